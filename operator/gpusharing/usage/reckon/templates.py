"""The search behind a recommendation: which workload gets which profile, how many instances of each a node has, and
how many nodes are needed.

Each of n nodes must hold an n-th of the pods that get a profile, rounded up. Whether a node can is a question of exact
packing (packing.py). Only those n have to be tried at which one of these numbers changes, so the search is short. It
is exact for instances and for pods with one GPU each. Pods with several whole GPUs are put on nodes first fit, the
largest first.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import product
from math import inf

from gpusharing.planning.gpus.geometry import Layout
from gpusharing.planning.vocabulary.values import value
from gpusharing.usage.reckon.needs import Goal, Need
from gpusharing.usage.reckon.packing import Counts, Packer

_Key = tuple[float | int | tuple[tuple[int, int], ...], ...]
ROUNDING = 1e-6
"""Tolerance for compute: a full 1g instance is measured as 1/7 of the card, perhaps in single precision, and must not
seem to need more than that."""


@value
class Size:
    """The memory and the compute of an instance."""

    memory: float
    """Memory in bytes."""
    compute: float
    """Part of the whole card's compute."""

    def holds(self, other: "Size") -> bool:
        """Whether this size is at least as large as the other in memory and, within a tolerance, in compute."""
        return self.memory >= other.memory and self.compute >= other.compute - ROUNDING


@value
class Seat:
    """The least that each pod of a workload must get: a profile, or a number of whole GPUs."""

    need: Need
    """The need of the workload."""
    index: int
    """Index of the smallest profile that holds the need, in the packer's order; -1 for whole GPUs."""
    gpus: int
    """The number of whole GPUs; 0 if the pods get a profile."""

    @property
    def pods(self) -> int:
        """How many pods the workload has at the same time."""
        return self.need.history.pods


@value
class Fleet:
    """The size of the pool: its number of nodes, and the GPUs of each."""

    per_node: int
    """The number of GPUs that one template covers."""
    nodes: int
    """How many nodes there are."""


@value
class TemplateChoice:
    """A candidate for the template, with the numbers of nodes and GPUs that it needs."""

    assignment: tuple[tuple[int, int], ...]
    """For each class of workloads, the index of the smallest profile that holds it and the index of the size that it
    gets; the size after the last profile is a whole GPU."""
    wanted: Counts
    """Number of instances of each profile in the whole pool."""
    nodes: int = 0
    """How many nodes are needed."""
    divided: int = 0
    """The number of GPUs of each node that are divided into instances."""
    whole: int = 0
    """Number of GPUs that are needed whole, on all nodes."""
    layouts: tuple[Layout, ...] = ()
    """The layouts of the divided GPUs of a node, before they are filled up."""

    @property
    def gpus(self) -> int:
        """The number of GPUs needed on all nodes."""
        return self.nodes * self.divided + self.whole

    def index(self, seat: Seat) -> int:
        """Return the index of the size that a workload gets; the one after the last profile stands for a whole GPU.
        Raises KeyError for a seat of whole GPUs, because these have no assignment."""
        return dict(self.assignment)[seat.index]


def choose(
    packer: Packer, sizes: Sequence[Size], seats: Sequence[Seat], fleet: Fleet, goal: Goal
) -> TemplateChoice:
    """Return the best template: the one with the fewest additional nodes and, of these, the one that the goal prefers,
    with the layouts of its divided GPUs. `sizes` has the size of each of the packer's profiles and, last, that of a
    whole GPU. If `fleet` has one GPU for each node, whole GPUs are only added up, and one pod may get those of several
    nodes. Raises ValueError if a node has no room for instances beside the whole GPUs of one pod."""
    pods: Counter[int] = Counter()
    for seat in seats:
        if not seat.gpus:
            pods[seat.index] += seat.pods
    whole = sorted((seat.gpus for seat in seats if seat.gpus for _ in range(seat.pods)), reverse=True)
    if fleet.per_node == 1:  # the nodes differ, or have one GPU each: only the sum counts
        whole = [1] * sum(whole)

    def order(choice: TemplateChoice) -> tuple[int, _Key]:
        """Return the sort key of a choice: the number of additional nodes, then `_key`. The best choice has
        the lowest."""
        return max(choice.nodes - fleet.nodes, 0), _key(choice, sizes, seats, goal)

    candidates = (_cheapest(packer, way, pods, whole, fleet) for way in _ways(sizes, sorted(pods)))
    best = min(filter(None, candidates), key=order, default=None)
    if best is None:
        raise ValueError("whole GPUs leave no room for instances on any node")
    return replace(best, layouts=packer.pack(_per_node(best.wanted, max(best.nodes, 1)), best.divided))


def _ways(sizes: Sequence[Size], classes: Sequence[int]) -> Iterator[tuple[tuple[int, int], ...]]:
    """Yield every possible assignment of sizes to classes of workloads; a class has all workloads with the same
    smallest profile, whose index it is. Each class gets that profile or a larger size. An assignment is a tuple of
    pairs: the indexes of the smallest profile and of the assigned size. Yields one empty assignment without classes."""
    choices = [[at for at, size in enumerate(sizes) if size.holds(sizes[least])] for least in classes]
    for indexes in product(*choices):
        yield tuple(zip(classes, indexes, strict=True))


def _key(choice: TemplateChoice, sizes: Sequence[Size], seats: Sequence[Seat], goal: Goal) -> _Key:
    """Return the sort key of a choice; the best one has the lowest. The goal cost prefers few GPUs, then few nodes,
    then few pods that get a larger size than the smallest that holds them. Pods with whole GPUs do not count. The goal
    performance prefers much room for the workload that has the least room (in memory or compute, whichever is tighter),
    then much compute for all pods, then few GPUs."""
    got = [(seat, choice.index(seat)) for seat in seats if not seat.gpus]
    if goal is Goal.COST:
        raised = sum(seat.pods for seat, index in got if index != seat.index)
        return choice.gpus, choice.nodes, raised, choice.assignment
    room = min((_room(seat.need, sizes[index]) for seat, index in got), default=inf)
    compute = sum(seat.pods * sizes[index].compute for seat, index in got)
    return -room, -compute, choice.gpus, choice.nodes, choice.assignment


def _room(need: Need, size: Size) -> float:
    """Return how many times the need fits into the size, in memory or compute, whichever is tighter. A need that is
    unknown or 0 does not count; the result is infinite if neither counts."""
    memory = size.memory / need.memory if need.memory else inf
    return min(memory, size.compute / need.compute if need.compute else inf)


def _cheapest(
    packer: Packer,
    assignment: tuple[tuple[int, int], ...],
    pods: Mapping[int, int],
    whole: Sequence[int],
    fleet: Fleet,
) -> TemplateChoice | None:
    """Return the choice with this assignment for which the existing nodes suffice with as few GPUs as possible and, of
    these, as few nodes as possible. If the existing nodes are too few, as few additional ones as possible are used. It
    has 0 nodes if no pod needs a GPU. None if no number of nodes suffices. `pods` counts the pods of each class, and
    `whole` has the whole GPUs of each other pod in descending order."""
    wanted = [0] * (len(packer.profiles) + 1)
    for smallest, index in assignment:
        wanted[index] += pods[smallest]
    undivided = (*whole, *[1] * wanted.pop())
    way = TemplateChoice(assignment, tuple(wanted), whole=sum(undivided))
    if not any(wanted) and not undivided:
        return way
    best: TemplateChoice | None = None
    for nodes in _steps((*wanted, len(undivided), way.whole, fleet.nodes)):
        if best is not None and nodes > fleet.nodes:
            break
        kept = _first_fit(undivided, nodes, fleet.per_node)
        if kept is None:
            continue
        room = fleet.per_node - kept
        if best is not None:  # only fewer GPUs are better
            room = min(room, (best.gpus - way.whole - 1) // nodes)
        divided = packer.fewest(_per_node(way.wanted, nodes), room)
        if divided is not None:
            best = replace(way, nodes=nodes, divided=divided)
    return best


def _per_node(wanted: Counts, nodes: int) -> Counts:
    """Return how many instances of each profile a node must hold if `wanted` is spread evenly over `nodes` nodes,
    rounded up."""
    return tuple(-(-count // nodes) for count in wanted)


def _steps(wanted: Sequence[int]) -> list[int]:
    """Return the numbers of nodes that must be tried, in ascending order and beginning with 1: each number with which
    a node's share of any count in `wanted`, rounded up, is smaller than with one node fewer."""
    numbers = {1}
    for count in wanted:
        each = count
        while each > 1:
            nodes = -(-count // (each - 1))
            numbers.add(nodes)
            each = -(-count // nodes)
    return sorted(numbers)


@lru_cache(maxsize=1024)
def _first_fit(whole: tuple[int, ...], nodes: int, per_node: int) -> int | None:
    """Return how many GPUs of each node must stay whole so that pods with `whole` GPUs each fit on `nodes` nodes,
    first fit; 0 if there are no such pods. Return None if that is more than `per_node`. `whole` must be sorted in
    descending order."""
    if not whole:
        return 0
    for room in range(max(whole[0], -(-sum(whole) // nodes)), per_node + 1):
        free, place, last = [room] * nodes, 0, 0
        for gpus in whole:
            place = place if gpus == last else 0  # equal pods fill the nodes in order
            while place < nodes and free[place] < gpus:
                place += 1
            if place == nodes:
                break
            free[place] -= gpus
            last = gpus
        else:
            return room
    return None
