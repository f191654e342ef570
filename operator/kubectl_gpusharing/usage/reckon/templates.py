"""The search behind a recommendation: on how few GPUs a number of instances fit, which workload gets which profile, how
many instances of each a node has, and how many nodes are needed.

*Packing* is exact: it is based on legal layouts of the card, not only on sums of slices. Two 3g.40gb and a 1g.10gb have
7 compute slices together, as many as the card, and do not fit. So GPUs are filled one by one with layouts that
`geometry` calls legal. Each GPU is filled until none of the remaining instances fits on it: because a legal layout
stays legal without one of its instances, no solution is lost.

Each of n *nodes* must hold an n-th of the pods that get a profile, rounded up. Whether a node can is a question of
packing. Only those n have to be tried at which one of these numbers changes, so the search is short. It is exact for
instances and for pods with one GPU each. Pods with several whole GPUs are put on nodes first fit, the largest first.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, lru_cache, partial
from itertools import product
from math import inf

from gpusharing.planning.gpus.capacity import memory_of, plain_profiles, usable_memory
from gpusharing.planning.gpus.cards import Card
from gpusharing.planning.gpus.geometry import Layout, legal_layouts, maximal_layouts, normalize
from gpusharing.planning.vocabulary.values import value
from kubectl_gpusharing.usage.reckon.needs import GIB, Goal, Need

Counts = tuple[int, ...]
"""The number of instances of each profile, in the order of the packer's profiles."""
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


class Packer:
    """Packs instances on GPUs of one card. It caches its results, so use one packer for all questions about a card."""

    def __init__(self, card: Card) -> None:
        """Prepare to pack instances of the card's plain profiles: compute all legal layouts, the full ones among them,
        the card's size and, in `sizes`, that of each plain profile and, last, of the whole card. There, a compute slice
        counts as an equal part of the compute, although on real cards it is a little more or less: 16 of an H100 SXM's
        132 multiprocessors, not 1/7."""
        self.profiles = plain_profiles(card)
        self._most = tuple(profile.max_count for profile in self.profiles)
        self._index = {profile.name: index for index, profile in enumerate(self.profiles)}
        # Only the largest profile shows how many slices the card has, so it is always included.
        largest = max((each.slices for each in card.profiles), default=0)
        profiles = (*self.profiles, *(each for each in card.profiles if each.slices == largest))
        self._legal = frozenset(self._counts(each) for each in legal_layouts(profiles) if self._is_ours(each))
        self._full = tuple(each for each in maximal_layouts(profiles) if self._is_ours(each))
        parts = [Size(usable_memory(card, each) * GIB, each.slices / largest) for each in self.profiles]
        self.sizes = (*parts, Size(memory_of(card) * GIB, 1.0))
        self._slices = largest
        self._units = max((max(each.starts) + each.size for each in card.profiles if each.starts), default=0)
        self._fills = cache(self._find_fills)
        self._fits = cache(self._find_fit)

    def fewest(self, wanted: Counts, most: int) -> int | None:
        """Return the smallest number of GPUs that can hold the `wanted` instances, or None if that is more than
        `most`, which may be negative."""
        return next((gpus for gpus in range(self.least(wanted), most + 1) if self._fits(wanted, gpus)), None)

    def pack(self, wanted: Counts, gpus: int) -> tuple[Layout, ...]:
        """Return at most `gpus` layouts, one for each GPU, that together hold exactly the `wanted` instances. Where
        possible, a GPU gets instances of only one profile, which is easier to read. Raises ValueError if the instances
        do not fit."""
        layouts = []
        while any(wanted):
            gpus -= 1
            plain = sorted(self._fills(self._clip(wanted)), key=lambda fill: sum(map(bool, fill)))
            chosen = next((fill for fill in plain if self._fits(_minus(wanted, fill), gpus)), None)
            if chosen is None:
                raise ValueError(f"{wanted} does not fit on so few GPUs")
            sizes = zip(self.profiles, chosen, strict=True)
            layouts.append(normalize({profile.name: count for profile, count in sizes}))
            wanted = _minus(wanted, chosen)
        return tuple(layouts)

    def least(self, wanted: Counts) -> int:
        """Return a lower bound for the number of GPUs that the `wanted` instances need, computed from their slices,
        their memory units and the maximum of each profile on one GPU."""
        alone = [-(-count // most) for count, most in zip(wanted, self._most, strict=True)]
        slices = -(-self._sum(wanted, "slices") // self._slices) if self._slices else 0
        units = -(-self._sum(wanted, "size") // self._units) if self._units else 0
        return max(slices, units, *alone, 0)

    def fill_up(self, layout: Layout, wanted: Collection[str]) -> Layout:
        """Return the layout with more instances added until its GPU is full. The full layout with the most additional
        instances of the `wanted` profiles is preferred, then the one with the fewest profiles, then the one that
        strands the fewest memory units and then compute slices. A layout that no full layout contains is returned
        unchanged. Raises KeyError if `layout` or `wanted` has a profile that the packer does not use."""
        counts = self._counts(layout)
        useful = {self._index[name] for name in wanted}

        def worth(candidate: Layout) -> tuple[int, int, int, int, Layout]:
            """Return a sort key for full layouts; the best one has the lowest."""
            more = _minus(self._counts(candidate), counts)
            of_use = sum(count for index, count in enumerate(more) if index in useful)
            return -of_use, len(candidate), *self.stranded(candidate), candidate

        fuller = [candidate for candidate in self._full if _within(counts, self._counts(candidate))]
        return min(fuller, key=worth, default=layout)

    def stranded(self, layout: Layout) -> tuple[int, int]:
        """Return two numbers: the memory units and the compute slices of a GPU that no instance of the layout covers.
        Raises KeyError if the layout has a profile that the packer does not use."""
        counts = self._counts(layout)
        return self._units - self._sum(counts, "size"), self._slices - self._sum(counts, "slices")

    def rank(self, layout: Layout) -> tuple[tuple[int, int], ...]:
        """Return a sort key that puts layouts with larger instances first and, among layouts with equally large ones,
        those with more of them. Raises KeyError if the layout has a profile that the packer does not use."""
        return tuple((-self._index[name], -count) for name, count in layout)

    def _is_ours(self, layout: Layout) -> bool:
        """Whether all profiles of the layout are among those that the packer uses."""
        return all(name in self._index for name, _ in layout)

    def _find_fit(self, wanted: Counts, gpus: int) -> bool:
        """Whether the `wanted` instances fit on `gpus` GPUs; False if `gpus` is negative."""
        if self.least(wanted) > gpus:
            return False
        if not any(wanted):
            return True
        return any(self._fits(_minus(wanted, fill), gpus - 1) for fill in self._fills(self._clip(wanted)))

    def _clip(self, wanted: Counts) -> Counts:
        """Return the counts, each limited to the number of instances of its profile that fit on one GPU."""
        return tuple(map(min, wanted, self._most))

    def _find_fills(self, wanted: Counts) -> Sequence[Counts]:
        """Return all ways to fill one GPU with some of the `wanted` instances until no further one fits. Each includes
        at least one instance of the largest wanted profile. Those that use the most memory units come first, and of
        these those with the most slices. Empty if nothing is wanted."""
        if not any(wanted):
            return ()
        largest = max(index for index, count in enumerate(wanted) if count)
        fits = {fill for fill in self._legal if _within(fill, wanted)}
        fills = [fill for fill in fits if fill[largest] and fits.isdisjoint(_one_more(fill))]
        return sorted(fills, key=lambda fill: (-self._sum(fill, "size"), -self._sum(fill, "slices"), fill))

    def _sum(self, counts: Counts, what: str) -> int:
        """Return the sum, over all instances, of the profile attribute `what`: `slices` or `size`."""
        return sum(
            count * int(getattr(profile, what)) for count, profile in zip(counts, self.profiles, strict=True)
        )

    def _counts(self, layout: Layout) -> Counts:
        """Return the number of instances of each of the packer's profiles in the layout. Raises KeyError if the layout
        has another profile."""
        counts = [0] * len(self.profiles)
        for name, count in layout:
            counts[self._index[name]] = count
        return tuple(counts)


def _within(part: Counts, whole: Counts) -> bool:
    """Whether `part` has at most as many instances of each profile as `whole`."""
    return all(each <= other for each, other in zip(part, whole, strict=True))


def _minus(whole: Counts, part: Counts) -> Counts:
    """Return the counts of `whole` reduced by those of `part`; they may become negative."""
    return tuple(each - other for each, other in zip(whole, part, strict=True))


def _one_more(counts: Counts) -> Iterator[Counts]:
    """Yield, for each profile, the counts with one more instance of that profile."""
    for index in range(len(counts)):
        yield (*counts[:index], counts[index] + 1, *counts[index + 1 :])


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


def choose(packer: Packer, seats: Sequence[Seat], per_node: int, nodes: int, goal: Goal) -> TemplateChoice:
    """Return the best template for `nodes` nodes with `per_node` GPUs each: the one with the fewest additional nodes
    and, of these, the one that the goal prefers, with the layouts of its divided GPUs. If each node has one GPU, whole
    GPUs are only added up, and one pod may get those of several nodes. Raises ValueError if a node has no room for
    instances beside the whole GPUs of one pod."""
    sizes, pods = packer.sizes, Counter[int]()
    for seat in seats:
        if not seat.gpus:
            pods[seat.index] += seat.pods
    whole = sorted((seat.gpus for seat in seats if seat.gpus for _ in range(seat.pods)), reverse=True)
    if per_node == 1:  # the nodes differ, or have one GPU each: only the sum counts
        whole = [1] * sum(whole)
    # The workloads with the same smallest profile are a class. Each class gets that profile or a larger size.
    classes = sorted(pods)
    larger = [[at for at, size in enumerate(sizes) if size.holds(sizes[least])] for least in classes]
    ways = (tuple(zip(classes, indexes, strict=True)) for indexes in product(*larger))
    candidates = (_cheapest(packer, way, pods, whole, per_node, nodes) for way in ways)
    order = partial(_key, sizes=sizes, seats=seats, nodes=nodes, goal=goal)
    best = min(filter(None, candidates), key=order, default=None)
    if best is None:
        raise ValueError("whole GPUs leave no room for instances on any node")
    return replace(best, layouts=packer.pack(_per_node(best.wanted, max(best.nodes, 1)), best.divided))


def _key(
    choice: TemplateChoice, sizes: Sequence[Size], seats: Sequence[Seat], nodes: int, goal: Goal
) -> tuple[float | tuple[tuple[int, int], ...], ...]:
    """Return the sort key of a choice; the best has the lowest. Few nodes beyond `nodes` come first. Then the goal cost
    prefers few GPUs, then few nodes, then few pods that get a larger size than the smallest that holds them. Pods with
    whole GPUs do not count. The goal performance prefers much room for the workload that has the least room (in memory
    or compute, whichever is tighter), then much compute for all pods, then few GPUs."""
    more = max(choice.nodes - nodes, 0)
    got = [(seat, choice.index(seat)) for seat in seats if not seat.gpus]
    if goal is Goal.COST:
        raised = sum(seat.pods for seat, index in got if index != seat.index)
        return more, choice.gpus, choice.nodes, raised, choice.assignment
    room = min((_room(seat.need, sizes[index]) for seat, index in got), default=inf)
    compute = sum(seat.pods * sizes[index].compute for seat, index in got)
    return more, -room, -compute, choice.gpus, choice.nodes, choice.assignment


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
    per_node: int,
    existing: int,
) -> TemplateChoice | None:
    """Return the choice with this assignment for which the `existing` nodes, each with `per_node` GPUs, suffice with as
    few GPUs as possible and, of these, as few nodes as possible. If they are too few, as few additional ones as
    possible are used. It has 0 nodes if no pod needs a GPU. None if no number of nodes suffices. `pods` counts the pods
    of each class, and `whole` has the whole GPUs of each other pod in descending order."""
    wanted = [0] * (len(packer.profiles) + 1)
    for smallest, index in assignment:
        wanted[index] += pods[smallest]
    undivided = (*whole, *[1] * wanted.pop())
    way = TemplateChoice(assignment, tuple(wanted), whole=sum(undivided))
    if not any(wanted) and not undivided:
        return way
    best: TemplateChoice | None = None
    for nodes in _steps((*wanted, len(undivided), way.whole, existing)):
        if best is not None and nodes > existing:
            break
        room = per_node - _first_fit(undivided, nodes, per_node)
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
def _first_fit(whole: tuple[int, ...], nodes: int, per_node: int) -> int:
    """Return how many GPUs of each node must stay whole so that pods with `whole` GPUs each fit on `nodes` nodes,
    first fit; 0 if there are no such pods. If that is more than `per_node`, return `per_node` + 1, however many more
    it is. `whole` must be sorted in descending order."""
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
    return per_node + 1
