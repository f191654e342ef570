"""Nodes that Prometheus did not see for a while, although it saw others: an agent was away, or was not scraped.

If the agent went on, its counters did too, and `increase` bridges the time. If it began anew, nobody knows what the
node's GPUs did. Prometheus does not tell the one from the other, so both are reported. A node that came in the window
or left it has no absence; nor has any while Prometheus saw no node at all, which `find_gaps` tells.

Of a node that came in the window or left it nothing is missing; of one whose agent is dead, or began late, something
is (`find_losses`). The agent's pod tells the two apart: while it is there, Prometheus scrapes it, and `up` is 0, or the
agent says that it cannot read its GPUs.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from itertools import pairwise

from gpusharing.planning.vocabulary.lengths import counted, some
from gpusharing.usage.prometheus.client import CLOCKS, Prometheus, Series, side_by_side
from gpusharing.usage.prometheus.matchers import OF_TARGETS, braced, labels_of, of_others
from gpusharing.usage.prometheus.windows import DAY, days, duration, moment
from gpusharing.usage.read.queries import GPUS, POLICY, MeterQuery

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
    return [
        f"Prometheus has no samples of {_nodes(found, duration)} in a gap of the window, but has some from"
        " before and after it: if the agent restarted in the gap, some or all of that time is billed to nobody"
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


AGENTS = 'job="gpusharing-agent"'
"""The job of the chart's PodMonitor (templates/podmonitor.yaml, jobLabel), unless the selector names another."""
LATELY = 600
"""Seconds before the end of the window in which a node without a Ready agent had none: an update takes less."""
LOOK = "kubectl get pods -A -o wide -l app.kubernetes.io/name=gpusharing-agent"


async def find_losses(
    prometheus: Prometheus, wish: MeterQuery, metered: Set[str]
) -> tuple[list[str], list[str]]:
    """Return why the bill is incomplete, and what may be missing in it, for all nodes that were not seen for a while;
    of one policy, only for those of `metered`. Raises Trouble."""
    absences = await find_absences(prometheus, wish)
    down = await _find_down(prometheus, wish)
    bare = await _find_bare(prometheus, wish)
    # Other policies' nodes are none of ours.
    ours = metered if POLICY in labels_of(wish.selector) else {*absences.first, *absences.last, *down}
    silent = {
        node: told for node in ours & down.keys() if (told := silence_of(node, absences, down[node])) > SHORT
    }
    missing = describe_absences({node: absences.seconds[node] for node in ours & absences.seconds.keys()})
    remarks: list[str] = []
    if silent:
        missing.append(
            f"Prometheus got no answer from the agent of {_nodes(silent, duration)}, or it could not read its GPUs:"
            f" what they did meanwhile is billed to nobody. See {LOOK}"
        )
    if bare > sum(1 for node in silent if down[node][1] > wish.end - LATELY):
        have = "have" if bare > 1 else "has"
        missing.append(
            f"{counted(bare, 'node')} {have} no Ready agent at the end of the window"
            f" (gpusharing_policy_nodes_without_agent), and what such GPUs do is billed to nobody. See {LOOK}"
        )
    others = ours - silent.keys()
    if came := {node: absences.first[node] for node in others & absences.came(SHORT)}:
        names = _nodes(came, lambda at: f"from {moment(at)} on")
        remarks.append(
            f"nodes that were not seen from the beginning: {names}; what GPUs that were there earlier did until then"
            " is billed to nobody"
        )
    if left := {node: absences.last[node] for node in others & absences.left(SHORT)}:
        names = _nodes(left, lambda at: f"until {moment(at)}")
        remarks.append(
            f"nodes that were not seen until the end: {names}; what GPUs that are still there did since is billed to"
            " nobody"
        )
    return missing, remarks


def _nodes(found: Mapping[str, float], show: Callable[[float], str]) -> str:
    """The first nodes, each with its time or length of time, and how many more there are."""
    return some([f"{node or 'a node'} ({show(seconds)})" for node, seconds in sorted(found.items())])


def silence_of(node: str, absences: Absences, down: tuple[float, float]) -> float:
    """Seconds before a node was first seen, and after it was last seen, in which its agent did not answer or
    could not read. `down`: when that was so first and last."""
    begin, end = down
    if node not in absences.first and node not in absences.last:
        return absences.missed(begin, end)
    seconds = 0.0
    if node not in absences.last or absences.began(node):
        seconds += absences.missed(begin, min(end, absences.first[node]))
    if node in absences.last and node not in absences.returned:
        seconds += absences.missed(absences.last[node], end)
    return round(seconds)


async def _find_down(prometheus: Prometheus, wish: MeterQuery) -> dict[str, tuple[float, float]]:
    """When the agent of each node did not answer, or was not Ready, first and last."""
    job = "" if "job" in labels_of(wish.selector) else AGENTS
    chosen = of_others(wish.selector, frozenset({POLICY}))
    asked = f"up{braced(chosen, job)}", f"gpusharing_agent_ready{braced(chosen)}"
    silent = f"timestamp({' or '.join(f'max by (node) ({one}) == 0' for one in asked)})"
    found: dict[str, tuple[float, float]] = {}
    for start, end in days(wish.start, wish.end):
        span = f"[{round(end - start)}s:{POINT:g}s]"
        firsts, lasts = await side_by_side(
            *(prometheus.instant(f"{function}_over_time({silent}{span})", end) for function in ("min", "max"))
        )
        ended = by_node(lasts)
        for node, first in by_node(firsts).items():
            found[node] = found.get(node, (first, 0.0))[0], ended.get(node, first)
    return found


async def _find_bare(prometheus: Prometheus, wish: MeterQuery) -> int:
    """Nodes that had no Ready agent at the end, by the operator, which names only their policy."""
    if OF_TARGETS & set(labels_of(wish.selector)):
        return 0
    counts = f"max by ({POLICY}) (gpusharing_policy_nodes_without_agent{braced(wish.selector)})"
    found = await prometheus.instant(f"min_over_time(({counts})[{LATELY}s:{POINT:g}s])", wish.end)
    return sum(round(min(one.value, 1e6)) for one in found if one.value > 0)
