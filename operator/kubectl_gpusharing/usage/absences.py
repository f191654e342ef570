"""Which nodes' agents did Prometheus not see for a while, and what is unknown because of that?

If the agent kept running, its counters kept growing and `increase` bridges the gap. If it restarted, the use of the
node's GPUs in the meantime is unknown. Prometheus cannot distinguish the two, so both are reported. A time in which
Prometheus saw no node at all is not an absence: `find_gaps` reports that.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import pairwise

from gpusharing.planning.vocabulary.lengths import counted, some
from kubectl_gpusharing.shell.session import side_by_side
from kubectl_gpusharing.usage.prometheus import CLOCKS, Prometheus, Series, nodes_of
from kubectl_gpusharing.usage.queries import (
    OF_TARGETS,
    POINT,
    POLICY,
    MeterQuery,
    anybody_query,
    braced,
    labels_of,
    matcher_of,
    seen_at,
)
from kubectl_gpusharing.usage.windows import DAY, Answers, duration, moment

SHORT = 300.0
"""The longest absence in a day that is not reported, in seconds. An update or a crash restarts an agent."""
LATELY = 600
"""Seconds without a Ready agent at the end of the window after which a node is reported; an update takes less."""
LOOK = "kubectl get pods -A -o wide -l app.kubernetes.io/name=gpusharing-agent"
Stretch = tuple[float, float]
"""The start and end of a time without samples, in seconds since 1970."""
PRESENCE = ("seen first", "seen last", "seen", "down first", "down last")
"""The answers to `close_queries` about when and how often nodes were seen. They also say when agents did not answer."""


@dataclass(frozen=True, slots=True)
class Sightings:
    """What Prometheus saw of the nodes and their agents in a stretch of time, in seconds since 1970."""

    start: float
    end: float
    nodes: Set[str]
    """The nodes with GPU time in the stretch."""
    suspects: Set[str]
    """Nodes that were perhaps not seen all the time; `presence` is about at least these."""
    presence: Mapping[str, Mapping[str, float]]
    """The values of PRESENCE, by their names and then by node."""
    holes: Sequence[Stretch]
    """When no node was seen, from the sighting before to the one after."""


def _by_node(answer: Iterable[Series]) -> dict[str, float]:
    return {series.node: series.value for series in answer if abs(series.value) <= CLOCKS[1]}


async def read_sightings(
    prometheus: Prometheus, query: MeterQuery, day: Answers, begin: float, end: float
) -> Sightings:
    nodes, suspects = nodes_of(day["gpus"]), nodes_of(day["suspects"])
    holes: list[Stretch] = []
    if nodes <= suspects:  # a node that was seen all the time would show that there are no holes
        anybody = await prometheus.between(anybody_query(query), begin, end, POINT)
        times = (begin - POINT, *sorted(at for series in anybody for at, _ in series.points), end + POINT)
        holes = [(last, first) for last, first in pairwise(times) if first - last > 1.5 * POINT]
    presence = {name: _by_node(day[name]) for name in PRESENCE}
    return Sightings(begin, end, nodes, suspects, presence, holes)


class Absences:
    """The times at which each node was seen. Answers must be added in chronological order."""

    def __init__(self, start: float, end: float) -> None:
        self.seconds: Counter[str] = Counter()
        """How long each node was absent; absences of up to SHORT in a stretch do not count."""
        self.first: dict[str, float] = {}
        """When each node was first seen, in the window or after it."""
        self.last: dict[str, float] = {}
        """When each node was last seen, in the window or before it."""
        self.returned: set[str] = set()
        """Nodes that were seen after the window."""
        self._start, self._end = start, end
        self._old: set[str] = set()
        """Nodes that were seen before the window, and again in it or after it."""
        self._holes: list[Stretch] = []
        """The times in which no node was seen."""

    def add(
        self,
        firsts: Mapping[str, float],
        lasts: Mapping[str, float],
        counts: Mapping[str, float],
        holes: Sequence[Stretch],
    ) -> None:
        """Add the next stretch: when each node was seen first and last, and how often if it was perhaps absent."""
        self._holes += holes
        for node, first in firsts.items():
            before = self.last.get(node, first)
            if node in self.last and node not in self.first:
                self._old.add(node)
            self.first.setdefault(node, first)
            if first > self._end:
                self.returned.add(node)
            missed = self.missed(before, first)
            if node in counts and node in lasts:  # a store may have answered only some of the queries
                missed += self.missed(first, lasts[node], round(counts[node]) - 2)
            if missed > SHORT:
                self.seconds[node] += round(missed)
        self.last |= lasts

    def began(self, node: str) -> bool:
        """Whether the node was first seen in the window or after it, not before it."""
        return node in self.first and node not in self._old

    def came(self) -> set[str]:
        """Return the nodes that are new, and were absent for more than SHORT when the window began."""
        nodes = {node for node in self.first.keys() & self.last.keys() if self.began(node)}
        return {node for node in nodes if self.missed(self._start, self.first[node]) > SHORT}

    def left(self) -> set[str]:
        """Return the nodes that were absent for more than SHORT when the window ended, and did not return."""
        nodes = {node for node, last in self.last.items() if last >= self._start} - self.returned
        return {node for node in nodes if self.missed(self.last[node], self._end) > SHORT}

    def missed(self, begin: float, end: float, sightings: int = 0) -> float:
        """Return how many seconds of the window, without holes, a node was absent between two sightings."""
        begin, end = max(begin, self._start - POINT), min(end, self._end + POINT)
        others = sum(max(0.0, min(end, b) - max(begin, a) - POINT) for a, b in self._holes)
        return max(0.0, end - begin - POINT * (sightings + 1) - others)


async def find_absences(prometheus: Prometheus, query: MeterQuery, sightings: Sequence[Sightings]) -> Absences:
    """Return when each node was seen in the window; one that is not a suspect in a stretch, throughout it."""
    absences = Absences(query.start, query.end)
    # Look no farther back and ahead than the window is long: users may choose a short one because a day is too much.
    around = min(DAY, query.end - query.start)
    nodes = matcher_of(frozenset[str]().union(*(each.suspects for each in sightings)))
    before, after = await side_by_side(
        prometheus.instant(seen_at(query, "max", round(around), nodes), query.start),
        prometheus.instant(seen_at(query, "min", round(around), nodes), query.end + around),
    )
    absences.add({}, _by_node(before), {}, [])
    for each in sightings:
        steady = each.nodes - each.suspects
        since, until = dict.fromkeys(steady, each.start), dict.fromkeys(steady, each.end)
        firsts, lasts, counts = (each.presence[name] for name in PRESENCE[:3])
        absences.add({**since, **firsts}, {**until, **lasts}, counts, each.holes)
    absences.add(_by_node(after), {}, {}, [])
    return absences


def describe_absences(seconds: Mapping[str, float]) -> Iterator[str]:
    if seconds:
        yield (
            f"Prometheus has no samples from {_nodes(seconds, duration)} for part of the window, but has some from"
            " before and after: if the agent restarted in between, or midnight in UTC was in between, some or all of"
            " that time is not billed to anyone"
        )


async def find_losses(
    prometheus: Prometheus, query: MeterQuery, sightings: Sequence[Sightings]
) -> tuple[list[str], list[str]]:
    """Return why the bill is incomplete, and remarks about nodes first seen late or last seen early.

    Nothing is missing if a node joined or left during the window. But something is missing if the agent failed before
    the node left, or started long after the node joined. The agent's pod distinguishes these: while it exists,
    Prometheus scrapes it, so `up` is 0, or the agent reports that it cannot read its GPUs.
    """
    absences = await find_absences(prometheus, query, sightings)
    down = _find_down(sightings)
    without_agent = await _count_without_agent(prometheus, query)
    # Nodes of other policies do not concern the bill of one policy.
    metered = frozenset[str]().union(*(each.nodes for each in sightings))
    ours = metered if POLICY in labels_of(query.selector) else {*absences.first, *absences.last, *down}
    silent = {
        node: seconds for node in ours & down.keys() if (seconds := silence_of(node, absences, down[node])) > SHORT
    }
    missing = [*describe_absences({node: absences.seconds[node] for node in ours & absences.seconds.keys()})]
    remarks: list[str] = []
    if silent:
        missing.append(
            f"Prometheus got no response from the agent on {_nodes(silent, duration)}, or the agent could not read its"
            f" GPUs: usage during that time is not billed to anyone. Check: {LOOK}"
        )
    if without_agent > sum(1 for node in silent if down[node][1] > query.end - LATELY):
        have = "have" if without_agent > 1 else "has"
        missing.append(
            f"{counted(without_agent, 'node')} {have} no Ready agent at the end of the window"
            f" (gpusharing_policy_nodes_without_agent), so usage of their GPUs is not billed to anyone. Check: {LOOK}"
        )
    others = ours - silent.keys()
    if came := {node: absences.first[node] for node in others & absences.came()}:
        names = _nodes(came, lambda at: f"since {moment(at)}")
        remarks.append(
            f"the first samples of some nodes are later than the beginning of the window: {names}; if their GPUs were"
            " there before, that time is not billed to anyone"
        )
    if left := {node: absences.last[node] for node in others & absences.left()}:
        names = _nodes(left, lambda at: f"until {moment(at)}")
        remarks.append(
            f"the last samples of some nodes are earlier than the end of the window: {names}; if their GPUs are still"
            " there, the time since then is not billed to anyone"
        )
    return missing, remarks


def _find_down(sightings: Iterable[Sightings]) -> dict[str, Stretch]:
    """Return when each node's agent first and last did not answer; `sightings` in chronological order."""
    down: dict[str, Stretch] = {}
    for each in sightings:
        for node, first in each.presence["down first"].items():
            begin, _ = down.get(node, (first, first))
            down[node] = begin, each.presence["down last"].get(node, first)
    return down


async def _count_without_agent(prometheus: Prometheus, query: MeterQuery) -> int:
    """Return how many nodes had no Ready agent for the last LATELY seconds of the window."""
    if OF_TARGETS & set(labels_of(query.selector)):  # the operator's metric does not have these labels
        return 0
    counts = f"max by ({POLICY}) (gpusharing_policy_nodes_without_agent{braced(query.selector)})"
    answer = await prometheus.instant(f"min_over_time(({counts})[{LATELY}s:{POINT:g}s])", query.end)
    return sum(round(min(series.value, 1e6)) for series in answer if series.value > 0)


def _nodes(nodes: Mapping[str, float], show: Callable[[float], str]) -> str:
    return some([f"{node or 'a node'} ({show(number)})" for node, number in sorted(nodes.items())])


def silence_of(node: str, absences: Absences, down: Stretch) -> float:
    """Return how long the agent did not answer before the first sighting of a new node and after a node's last.

    The time after the last sighting counts unless the node returned.
    """
    begin, end = down
    if node not in absences.first and node not in absences.last:
        return absences.missed(begin, end)
    seconds = 0.0
    if node not in absences.last or absences.began(node):
        seconds += absences.missed(begin, min(end, absences.first[node]))
    if node in absences.last and node not in absences.returned:
        seconds += absences.missed(absences.last[node], end)
    return round(seconds)
