"""Nodes that Prometheus did not see for a while, although it saw others: an agent was away, or was not scraped.

If the agent went on, its counters did too, and `increase` bridges the time. If it began anew, nobody knows what the
node's GPUs did. Prometheus does not tell the one from the other, so both are reported. A node that came in the window
or left it has no absence (see `silences`); nor has any while Prometheus saw no node at all, which `find_gaps` tells.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import timedelta
from itertools import pairwise

from gpusharing.cli.shell.ages import length
from gpusharing.planning.vocabulary.lengths import some
from gpusharing.usage.prometheus.client import CLOCKS, Prometheus, Series, side_by_side
from gpusharing.usage.prometheus.matchers import braced, of_others
from gpusharing.usage.prometheus.windows import DAY, days
from gpusharing.usage.read.meterqueries import GPUS, POLICY, MeterQuery

POINT = 60.0
"""Seconds between the times at which a node is looked for."""
SHORT = 300.0
"""Seconds of a day that are worth no report: restarts of an agent, for an update or by a crash."""
Stretch = tuple[float, float]
"""From when to when, in seconds since 1970; nothing is known in between."""


async def find_absences(prometheus: Prometheus, wish: MeterQuery) -> "Absences":
    """Seconds of the window in which each node was not seen, where it was before and after that. Raises Trouble."""
    found = Absences(wish.start, wish.end)
    # As far back and ahead as the window is long: a short one is asked for because a day is too much.
    beside = min(DAY, wish.end - wish.start)
    chosen = braced(of_others(wish.selector, frozenset({POLICY})))

    def seen(function: str, seconds: float) -> str:
        return (
            f"{function}_over_time(timestamp(max by (node) ({GPUS}{chosen}))[{round(seconds)}s:{POINT:g}s])"
        )

    found.add([], await prometheus.instant(seen("max", beside), wish.start), [], [])
    for start, end in days(wish.start, wish.end):
        functions = ("min", "max", "count")
        firsts, lasts, counts, anybody = await side_by_side(
            *(prometheus.instant(seen(function, end - start), end) for function in functions),
            prometheus.between(f"count({GPUS}{chosen})", start, end, POINT),
        )
        found.add(firsts, lasts, counts, _holes(start, end, anybody))
    found.add(await prometheus.instant(seen("min", beside), wish.end + beside), [], [], [])
    return found


def describe_absences(found: dict[str, float]) -> list[str]:
    """A sentence, if there is something to say."""
    if not found:
        return []
    told = some([f"{node or 'a node'} ({_length(seconds)})" for node, seconds in sorted(found.items())])
    return [
        f"Prometheus has no samples of {told} in a gap of the window, but has some from before and after it: if the"
        " agent restarted in the gap, some or all of that time is billed to nobody"
    ]


class Absences:
    """Answers by days, oldest first."""

    def __init__(self, start: float, end: float) -> None:
        self.seconds: Counter[str] = Counter()
        self.first: dict[str, float] = {}
        """When each node was first seen, in the window or after it, where it was seen in either."""
        self.last: dict[str, float] = {}
        """When each node was last seen, in the window or before it, where it was seen in either."""
        self.returned: set[str] = set()
        """Nodes that were seen after the window."""
        self._start, self._end = start, end
        self._old: set[str] = set()
        self._holes: list[Stretch] = []

    def add(
        self,
        firsts: Iterable[Series],
        lasts: Iterable[Series],
        counts: Iterable[Series],
        holes: Sequence[Stretch],
    ) -> None:
        """When each node was seen first and last in the next stretch of time, and how often. `holes`: when none was."""
        self._holes += holes
        ended, seen = by_node(lasts), by_node(counts)
        for node, first in by_node(firsts).items():
            before = self.last.get(node, first)
            if node in self.last and node not in self.first:
                self._old.add(node)
            self.first.setdefault(node, first)
            if first > self._end:
                self.returned.add(node)
            missed = self.missed(before, first)
            if node in seen and node in ended:  # a store may have answered some of the questions only
                missed += self.missed(first, ended[node], round(seen[node]) - 2)
            if missed > SHORT:
                self.seconds[node] += round(missed)
        self.last |= ended

    def began(self, node: str) -> bool:
        """Whether it was seen in the window, or after it, and not before."""
        return node in self.first and node not in self._old

    def came(self, least: float) -> set[str]:
        """Nodes that were not seen before the window, and more than `least` seconds after its beginning."""
        nodes = {node for node in self.first.keys() & self.last.keys() if self.began(node)}
        return {node for node in nodes if self.missed(self._start, self.first[node]) > least}

    def left(self, least: float) -> set[str]:
        """Nodes that were seen in the window, for the last time more than `least` seconds before its end."""
        nodes = {node for node, last in self.last.items() if last >= self._start} - self.returned
        return {node for node in nodes if self.missed(self.last[node], self._end) > least}

    def missed(self, begin: float, end: float, seen: int = 0) -> float:
        """Seconds between two times at which a node was seen, and `seen` times between them, less those of all."""
        begin, end = max(begin, self._start - POINT), min(end, self._end + POINT)
        others = sum(max(0.0, min(end, b) - max(begin, a) - POINT) for a, b in self._holes)
        return max(0.0, end - begin - POINT * (seen + 1) - others)


def by_node(found: Iterable[Series]) -> dict[str, float]:
    """Times, or counts of them, without those that no clock shows."""
    return {one.labels.get("node", ""): one.value for one in found if abs(one.value) <= CLOCKS[1]}


def _holes(start: float, end: float, anybody: Iterable[Series]) -> list[Stretch]:
    """When no node was seen."""
    seen = sorted(at for one in anybody for at, _ in one.points)
    return [(a, b) for a, b in pairwise((start - POINT, *seen, end + POINT)) if b - a > 1.5 * POINT]


def _length(seconds: float) -> str:
    return length(timedelta(seconds=seconds))
