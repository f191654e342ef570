"""The search behind a recommendation: which workload gets which profile, how many of each on a node, and on how many
nodes.

With n nodes each must hold an n-th of the pods that get a profile, rounded up; whether a node does is a question of
exact packing (packing.py). Only those n matter at which one of these numbers changes, so the search is short and, for
instances and pods with one GPU each, exact. Pods with several whole GPUs are put on nodes first fit, the largest first.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from itertools import product
from math import inf

from gpusharing.planning.gpus.geometry import Layout
from gpusharing.planning.vocabulary.values import value
from gpusharing.usage.reckon.needs import Goal, Need
from gpusharing.usage.reckon.packing import Counts, Packer

_Key = tuple[float | int | tuple[tuple[int, int], ...], ...]


ROUNDING = 1e-6
"""Of compute: a full 1g instance was measured as 1/7 of the card, perhaps in single precision, and is not more than
that."""


@value
class Size:
    """What an instance of a profile has."""

    memory: float
    """Bytes."""
    compute: float
    """Part of the whole card."""

    def holds(self, other: "Size") -> bool:
        """Whether a pod that fits into the other one fits here."""
        return self.memory >= other.memory and self.compute >= other.compute - ROUNDING


@value
class Seat:
    """The least that each pod of a workload has to get."""

    need: Need
    """The workload's."""
    index: int
    """Of the smallest profile, in the packer's order; -1 with whole GPUs."""
    gpus: int
    """Whole GPUs; 0 with a profile."""

    @property
    def pods(self) -> int:
        """At once."""
        return self.need.history.pods


@value
class Fleet:
    """The existing nodes."""

    per_node: int
    """The number of GPUs that one template covers."""
    nodes: int
    """How many nodes there are."""


@value
class TemplateChoice:
    """What a search found."""

    given: tuple[tuple[int, int], ...]
    """The smallest profile of some workloads and the one that they get, by index."""
    wanted: Counts
    """Instances by profile, of the whole pool."""
    nodes: int = 0
    """That are needed."""
    divided: int = 0
    """GPUs of each node with instances that are needed."""
    whole: int = 0
    """GPUs that are needed whole, on all nodes."""
    layouts: tuple[Layout, ...] = ()
    """The layouts of the divided GPUs of a node, before they are filled up."""

    @property
    def gpus(self) -> int:
        """Of all nodes."""
        return self.nodes * self.divided + self.whole

    def index(self, seat: Seat) -> int:
        """The profile that a workload gets."""
        return dict(self.given)[seat.index]


def choose(
    packer: Packer, sizes: Sequence[Size], seats: Sequence[Seat], fleet: Fleet, goal: Goal
) -> TemplateChoice:
    """The best template by the goal; `sizes` are of the packer's profiles. ValueError: no node has room for instances
    next to the whole GPUs of one pod."""
    key = _dearness(seats) if goal is Goal.COST else _tightness(seats, sizes)
    found = _best(packer, _ways(sizes, seats), seats, fleet, key)
    if found is None:
        raise ValueError("whole GPUs leave no room for instances on any node")
    wanted = _per_node(found.wanted, found.nodes) if found.nodes else found.wanted
    return replace(found, layouts=packer.pack(wanted, found.divided))


def _ways(sizes: Sequence[Size], seats: Sequence[Seat]) -> Iterator[tuple[tuple[int, int], ...]]:
    """Which profile each class of workloads may get: the smallest that holds it, or a larger one."""
    classes = sorted({seat.index for seat in seats if not seat.gpus})
    larger = [[one for one in range(len(sizes)) if sizes[one].holds(sizes[index])] for index in classes]
    for given in product(*larger):
        yield tuple(zip(classes, given, strict=True))


def _best(
    packer: Packer,
    ways: Iterator[tuple[tuple[int, int], ...]],
    seats: Sequence[Seat],
    fleet: Fleet,
    key: Callable[[TemplateChoice], _Key],
) -> TemplateChoice | None:
    """The way that takes the fewest additional nodes, then the one with the least key; None: there is none."""
    pods: Counter[int] = Counter()
    for seat in seats:
        if not seat.gpus:
            pods[seat.index] += seat.pods
    whole = sorted((seat.gpus for seat in seats if seat.gpus for _ in range(seat.pods)), reverse=True)
    if fleet.per_node == 1:  # the nodes differ, or have one each: only the sum can be said
        whole = [1] * sum(whole)

    @cache
    def undivided(nodes: int) -> int | None:
        return _first_fit(whole, nodes, fleet.per_node)

    def order(one: TemplateChoice) -> tuple[int, _Key]:
        return max(one.nodes - fleet.nodes, 0), key(one)

    best: TemplateChoice | None = None
    for given in ways:
        wanted = [0] * len(packer.profiles)
        for smallest, index in given:
            wanted[index] += pods[smallest]
        way = TemplateChoice(given, tuple(wanted), whole=sum(whole))
        found = _cheapest(packer, way, whole, fleet, undivided)
        if found is not None and (best is None or order(found) < order(best)):
            best = found
    return best


def _dearness(seats: Sequence[Seat]) -> Callable[[TemplateChoice], _Key]:
    """Fewest GPUs; then nodes; then pods with more than they need."""

    def key(one: TemplateChoice) -> _Key:
        raised = sum(seat.pods for seat in seats if not seat.gpus and one.index(seat) != seat.index)
        return one.gpus, one.nodes, raised, one.given

    return key


def _tightness(seats: Sequence[Seat], sizes: Sequence[Size]) -> Callable[[TemplateChoice], _Key]:
    """Most room for the workload that has least, in memory or compute, whichever is tighter; then most for all; then
    fewest GPUs."""
    shared = [seat for seat in seats if not seat.gpus]

    def key(one: TemplateChoice) -> _Key:
        got = [(seat, sizes[one.index(seat)]) for seat in shared]
        room = min((_room(seat.need, size) for seat, size in got), default=inf)
        return -room, -sum(seat.pods * size.compute for seat, size in got), one.gpus, one.nodes, one.given

    return key


def _room(need: Need, size: Size) -> float:
    """How many times the need fits."""
    memory = size.memory / need.memory if need.memory else inf
    return min(memory, size.compute / need.compute if need.compute else inf)


def _cheapest(
    packer: Packer,
    way: TemplateChoice,
    whole: Sequence[int],
    fleet: Fleet,
    undivided_on: Callable[[int], int | None],
) -> TemplateChoice | None:
    """On as few GPUs as the existing nodes allow, then on as few nodes; else on as few additional nodes as possible.
    None: impossible."""
    if not any(way.wanted) and not whole:
        return way
    best: TemplateChoice | None = None
    fewest = inf
    for nodes in _steps((*way.wanted, len(whole), sum(whole), fleet.nodes)):
        if best is not None and nodes > fleet.nodes:
            break
        undivided = undivided_on(nodes)
        if undivided is None:
            continue
        wanted, room = _per_node(way.wanted, nodes), fleet.per_node - undivided
        least = packer.least(wanted)
        if least > room or nodes * least + way.whole >= fewest:
            continue
        divided = packer.fewest(wanted, room)
        if divided is not None and nodes * divided + way.whole < fewest:
            best = replace(way, nodes=nodes, divided=divided)
            fewest = best.gpus
    return best


def _per_node(wanted: Counts, nodes: int) -> Counts:
    return tuple(-(-count // nodes) for count in wanted)


def _steps(wanted: Sequence[int]) -> list[int]:
    """The numbers of nodes at which some n-th, rounded up, becomes less; ascending."""
    found = {1}
    for count in wanted:
        each = count
        while each > 1:
            nodes = -(-count // (each - 1))
            found.add(nodes)
            each = -(-count // nodes)
    return sorted(found)


def _first_fit(whole: Sequence[int], nodes: int, per_node: int) -> int | None:
    """Whole GPUs that each node must have for these pods, the largest first; None: more than it has."""
    if not whole:
        return 0
    for room in range(max(whole[0], -(-sum(whole) // nodes)), per_node + 1):
        free = [room] * nodes
        for gpus in whole:
            place = next((index for index, left in enumerate(free) if left >= gpus), None)
            if place is None:
                break
            free[place] -= gpus
        else:
            return room
    return None
