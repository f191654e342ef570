"""Nodes whose agents Prometheus did not see for a while, although it saw others: the agent was not running or was not
scraped.

If the agent kept running, its counters kept growing and `increase` bridges the gap. If it restarted, the use of the
node's GPUs in the meantime is unknown. Prometheus cannot distinguish the two, so both are reported. A time in which
Prometheus saw no node at all is not an absence: `find_gaps` reports that.

A node that joined or left during the window has no absence either, and nothing is missing. But something is missing if
the agent failed before the node left, or started long after the node joined (`find_losses`). The agent's pod
distinguishes these: while it exists, Prometheus scrapes it, so `up` is 0, or the agent reports that it cannot read its
GPUs.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import pairwise

from gpusharing.planning.vocabulary.lengths import counted, some
from kubectl_gpusharing.usage.prometheus.client import CLOCKS, Prometheus, Series, side_by_side
from kubectl_gpusharing.usage.prometheus.matchers import OF_TARGETS, braced, labels_of, matcher_of, nodes_of
from kubectl_gpusharing.usage.prometheus.windows import DAY, Answers, duration, moment
from kubectl_gpusharing.usage.read.queries import POINT, POLICY, MeterQuery, anybody_query, seen_at

SHORT = 300.0
"""The longest absence in a day, in seconds, that is not reported: an update or a crash restarts an agent."""
LATELY = 600
"""How many seconds before the end of the window a node must have been without a Ready agent to be reported. An update
of the agent takes less."""
LOOK = "kubectl get pods -A -o wide -l app.kubernetes.io/name=gpusharing-agent"
Stretch = tuple[float, float]
"""The start and end of a time without samples, in seconds since 1970."""
PRESENCE = ("seen first", "seen last", "seen", "down first", "down last")
"""The names of those answers to `close_queries` that say when nodes were seen and how often, and when their agents did
not answer."""


@dataclass(frozen=True, slots=True)
class Sightings:
    """What Prometheus saw of the nodes and their agents in a stretch of time."""

    start: float
    """Start of the stretch, in seconds since 1970."""
    end: float
    """End of the stretch, in seconds since 1970."""
    nodes: Set[str]
    """The nodes with GPU time in the stretch."""
    suspects: Set[str]
    """The nodes that were perhaps not seen all the time. `presence` is about at least these nodes."""
    presence: Mapping[str, Mapping[str, float]]
    """The values of PRESENCE, by their names and then by node."""
    holes: Sequence[Stretch]
    """The times in which no node was seen."""


async def read_sightings(
    prometheus: Prometheus, query: MeterQuery, day: Answers, begin: float, end: float
) -> Sightings:
    """Return which nodes were seen between two times, in Unix seconds, from the answers for that stretch, `day`. The
    times at which no node at all was seen are queried only if every node with GPU time is a suspect, or if there is
    none. Otherwise a node that was seen all the time shows that there are none. Those times are stretches of more than
    1.5 POINT seconds, each from the sighting before it to the sighting after it. They begin no earlier than POINT
    seconds before `begin` and end no later than POINT seconds after `end`; without any sighting, that is the whole
    time. Raises Trouble if that query fails."""
    nodes, suspects = nodes_of(day["gpus"]), nodes_of(day["suspects"])
    holes: list[Stretch] = []
    if nodes <= suspects:
        anybody = await prometheus.between(anybody_query(query), begin, end, POINT)
        times = (begin - POINT, *sorted(at for series in anybody for at, _ in series.points), end + POINT)
        holes = [(last, first) for last, first in pairwise(times) if first - last > 1.5 * POINT]
    presence = {name: _by_node(day[name]) for name in PRESENCE}
    return Sightings(begin, end, nodes, suspects, presence, holes)


async def find_absences(
    prometheus: Prometheus, query: MeterQuery, sightings: Sequence[Sightings]
) -> "Absences":
    """Return when each node was seen in the window, with its seconds of absence between two sightings. A node that is
    not a suspect in a stretch counts as seen throughout it. The time just before and after the window, as long as the
    window but at most a day, is queried for the suspects. Raises Trouble if a query fails."""
    absences = Absences(query.start, query.end)
    # Look no farther back and ahead than the window is long: users may choose a short one because a day is too much.
    beside = min(DAY, query.end - query.start)
    nodes = matcher_of(frozenset[str]().union(*(each.suspects for each in sightings)))
    before, after = await side_by_side(
        prometheus.instant(seen_at(query, "max", round(beside), nodes), query.start),
        prometheus.instant(seen_at(query, "min", round(beside), nodes), query.end + beside),
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
    """Yield one sentence about the absent nodes, or nothing if there are none. `seconds` has the seconds of absence by
    node."""
    if seconds:
        yield (
            f"Prometheus has no samples from {_nodes(seconds, duration)} for part of the window, but has some from"
            " before and after: if the agent restarted in between, or midnight in UTC was in between, some or all of"
            " that time is not billed to anyone"
        )


class Absences:
    """The times at which each node was seen. Answers must be added in chronological order."""

    def __init__(self, start: float, end: float) -> None:
        """Begin with no sightings. The window is from `start` to `end`, in seconds since 1970."""
        self.seconds: Counter[str] = Counter()
        """Seconds for which each node was absent. Absences of up to SHORT in a stretch do not count."""
        self.first: dict[str, float] = {}
        """When each node was first seen in the window or after it; absent if it was seen in neither."""
        self.last: dict[str, float] = {}
        """When each node was last seen in the window or before it; absent if it was seen in neither."""
        self.returned: set[str] = set()
        """Nodes that were seen after the window."""
        self._start, self._end = start, end
        self._old: set[str] = set()
        self._holes: list[Stretch] = []

    def add(
        self,
        firsts: Mapping[str, float],
        lasts: Mapping[str, float],
        counts: Mapping[str, float],
        holes: Sequence[Stretch],
    ) -> None:
        """Add what is known about the next stretch of time and update all attributes. `firsts` and `lasts` have the
        times at which each node was first and last seen in it, and `counts` has the number of sightings of nodes
        that were perhaps absent in between. `holes` are the times in which no node was seen. A node's absence from
        its previous sighting to its last one in this stretch is only added to `seconds` if it exceeds SHORT."""
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
        """Whether the node was first seen in the window or later. False if it was seen before the window or never."""
        return node in self.first and node not in self._old

    def came(self) -> set[str]:
        """Return the nodes that were first seen in the window and more than SHORT seconds after its beginning. Times
        in which no node was seen do not count."""
        nodes = {node for node in self.first.keys() & self.last.keys() if self.began(node)}
        return {node for node in nodes if self.missed(self._start, self.first[node]) > SHORT}

    def left(self) -> set[str]:
        """Return the nodes that were last seen in the window, not after it, and more than SHORT seconds before its end.
        Times in which no node was seen do not count."""
        nodes = {node for node, last in self.last.items() if last >= self._start} - self.returned
        return {node for node in nodes if self.missed(self.last[node], self._end) > SHORT}

    def missed(self, begin: float, end: float, sightings: int = 0) -> float:
        """Return for how many seconds a node was absent between `begin` and `end` if it was seen `sightings` times in
        between. A node is seen every POINT seconds, so POINT seconds do not count for each sighting and for the
        step from the last one to `end`. A time in which no node was seen at all does not count either, except for
        POINT seconds of it, nor does what lies more than POINT seconds outside the window. The result is never
        negative."""
        begin, end = max(begin, self._start - POINT), min(end, self._end + POINT)
        others = sum(max(0.0, min(end, b) - max(begin, a) - POINT) for a, b in self._holes)
        return max(0.0, end - begin - POINT * (sightings + 1) - others)


def _by_node(answer: Iterable[Series]) -> dict[str, float]:
    """Return the value of each series by the name of its node, which is empty if the series has no label `node`. Of
    several series of a node the last counts. Values that are not a number or too large to be a time are left out."""
    return {series.node: series.value for series in answer if abs(series.value) <= CLOCKS[1]}


async def find_losses(
    prometheus: Prometheus, query: MeterQuery, sightings: Sequence[Sightings]
) -> tuple[list[str], list[str]]:
    """Return two lists of sentences: why the bill is incomplete, and remarks about nodes first seen late or last seen
    early. The first names nodes absent between sightings and agents silent for more than SHORT seconds (`silence_of`),
    which the remarks leave out, and counts nodes without a Ready agent at the end if these exceed the silent ones. A
    query about one policy names only nodes with GPU time. Raises Trouble if a query fails."""
    absences = await find_absences(prometheus, query, sightings)
    down = _down(sightings)
    bare = await _find_bare(prometheus, query)
    # Nodes of other policies do not concern the bill of one policy.
    metered = frozenset[str]().union(*(each.nodes for each in sightings))
    ours = metered if POLICY in labels_of(query.selector) else {*absences.first, *absences.last, *down}
    silent = {
        node: seconds
        for node in ours & down.keys()
        if (seconds := silence_of(node, absences, down[node])) > SHORT
    }
    missing = [*describe_absences({node: absences.seconds[node] for node in ours & absences.seconds.keys()})]
    remarks: list[str] = []
    if silent:
        missing.append(
            f"Prometheus got no response from the agent on {_nodes(silent, duration)}, or the agent could not read its"
            f" GPUs: usage during that time is not billed to anyone. Check: {LOOK}"
        )
    if bare > sum(1 for node in silent if down[node][1] > query.end - LATELY):
        have = "have" if bare > 1 else "has"
        missing.append(
            f"{counted(bare, 'node')} {have} no Ready agent at the end of the window"
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


def _nodes(nodes: Mapping[str, float], show: Callable[[float], str]) -> str:
    """Format the nodes in the order of their names, each followed by its number as formatted by `show`, such as `gpu-1
    (20 min)`. Only the first three are named, and an empty name is shown as `a node`."""
    return some([f"{node or 'a node'} ({show(number)})" for node, number in sorted(nodes.items())])


def silence_of(node: str, absences: Absences, down: tuple[float, float]) -> float:
    """Return the seconds within `down` before the node's first sighting, if it is new in the window, and after its last
    one, if it did not return; all of `down` if it was never seen. Gaps between sightings do not count. `down`: the
    first and last time at which its agent did not answer or could not read its GPUs."""
    begin, end = down
    if node not in absences.first and node not in absences.last:
        return absences.missed(begin, end)
    seconds = 0.0
    if node not in absences.last or absences.began(node):
        seconds += absences.missed(begin, min(end, absences.first[node]))
    if node in absences.last and node not in absences.returned:
        seconds += absences.missed(absences.last[node], end)
    return round(seconds)


def _down(sightings: Iterable[Sightings]) -> dict[str, tuple[float, float]]:
    """Return, by node that had any, the first and the last time in the window at which its agent did not answer or was
    not Ready. Where the last time of a stretch is unknown, it is taken to be the first."""
    down: dict[str, tuple[float, float]] = {}
    for each in sightings:
        for node, first in each.presence["down first"].items():
            down[node] = down.get(node, (first, 0.0))[0], each.presence["down last"].get(node, first)
    return down


async def _find_bare(prometheus: Prometheus, query: MeterQuery) -> int:
    """Return how many nodes had no Ready agent in the last LATELY seconds of the window: the sum, over all policies, of
    the lowest number that the operator reported in that time. Return 0 if the selector names labels of scrape targets,
    because the operator's metric does not have them. Raises Trouble if the query fails."""
    if OF_TARGETS & set(labels_of(query.selector)):
        return 0
    counts = f"max by ({POLICY}) (gpusharing_policy_nodes_without_agent{braced(query.selector)})"
    answer = await prometheus.instant(f"min_over_time(({counts})[{LATELY}s:{POINT:g}s])", query.end)
    return sum(round(min(series.value, 1e6)) for series in answer if series.value > 0)
