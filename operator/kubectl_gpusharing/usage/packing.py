"""On how few GPUs and nodes do workloads fit, and which workload gets which profile?

Packing is exact (`Packer`, `fewest_nodes`). Each of n nodes must hold an n-th of the pods of a profile, rounded up, and
only those n are tried at which one of these numbers changes.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from enum import StrEnum
from functools import cache, lru_cache
from itertools import chain, islice, product, repeat
from math import inf
from operator import mul

from gpusharing.planning.gpus.cards import Card, extent, memory_of, plain_profiles, usable_memory
from gpusharing.planning.gpus.geometry import Layout, legal_layouts, maximal_layouts, normalize
from gpusharing.planning.vocabulary.values import value
from kubectl_gpusharing.usage.needs import GIB, Goal, Need

Counts = tuple[int, ...]
"""The number of instances of each profile, in the order of the packer's profiles."""
SizeClass = tuple[int, bool]
"""The index of the smallest profile that holds the need, and whether no larger size is given instead."""
ROUNDING = 1e-6
"""Tolerance for compute: a full 1g instance is measured as 1/7 of the card, perhaps in single precision."""


@value
class Size:
    memory: float
    compute: float
    """The part of the whole card's compute."""

    def holds(self, other: "Size") -> bool:
        return self.memory >= other.memory and self.compute >= other.compute - ROUNDING


class Packer:
    """Packs instances on GPUs of one card, exactly, and caches its results.

    Sums of slices do not tell: two 3g.40gb and a 1g.10gb have the card's 7 compute slices, and do not fit. So GPUs are
    filled one by one with legal layouts, each until nothing more fits. A legal layout stays legal without one of its
    instances, so no solution is lost.
    """

    def __init__(self, card: Card) -> None:
        self.card = card
        self.profiles = plain_profiles(card)
        self._most = tuple(profile.max_count for profile in self.profiles)
        self._index = {profile.name: index for index, profile in enumerate(self.profiles)}
        # Only the largest profile shows how many slices the card has, so it is always included.
        self._slices, self._units = extent(card.profiles)
        profiles = (*self.profiles, *(each for each in card.profiles if each.slices == self._slices))
        self._legal = frozenset(self._counts(each) for each in legal_layouts(profiles) if self._is_ours(each))
        self._full = tuple(each for each in maximal_layouts(profiles) if self._is_ours(each))
        # Compute slices count as equal parts, although one is 16 of an H100 SXM's 132 multiprocessors, not 1/7.
        parts = [Size(usable_memory(card, each) * GIB, each.slices / self._slices) for each in self.profiles]
        self.sizes = (*parts, Size(memory_of(card) * GIB, 1.0))
        self._slices_each = tuple(profile.slices for profile in self.profiles)
        self._units_each = tuple(profile.size for profile in self.profiles)
        self._fills = cache(self._find_fills)
        self._fits = cache(self._find_fit)

    def fits(self, wanted: Counts, gpus: int) -> bool:
        return self._fits(wanted, gpus)

    def pack(self, wanted: Counts, gpus: int) -> tuple[Layout, ...]:
        """Return at most `gpus` layouts for exactly the `wanted` instances, where possible of one profile each.

        Raises ValueError if the instances do not fit.
        """
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
        """Return a lower bound for the number of GPUs that the `wanted` instances need."""
        alone = [-(-count // most) for count, most in zip(wanted, self._most, strict=True)]
        slices = -(-_total(wanted, self._slices_each) // self._slices) if self._slices else 0
        units = -(-_total(wanted, self._units_each) // self._units) if self._units else 0
        return max(slices, units, *alone, 0)

    def fill_up(self, layout: Layout, wanted: Collection[str]) -> Layout:
        """Add instances to the layout until its GPU is full, as many as possible of the `wanted` profiles."""
        counts = self._counts(layout)
        useful = {self._index[name] for name in wanted}

        def worth(candidate: Layout) -> tuple[int, int, int, int, Layout]:
            more = _minus(self._counts(candidate), counts)
            of_use = sum(count for index, count in enumerate(more) if index in useful)
            return -of_use, len(candidate), *self.stranded(candidate), candidate

        fuller = [candidate for candidate in self._full if _within(counts, self._counts(candidate))]
        return min(fuller, key=worth, default=layout)

    def stranded(self, layout: Layout) -> tuple[int, int]:
        """Return the memory units and the compute slices of a GPU that no instance of the layout covers."""
        return self._uncovered(self._counts(layout))

    def _uncovered(self, counts: Counts) -> tuple[int, int]:
        return self._units - _total(counts, self._units_each), self._slices - _total(counts, self._slices_each)

    def rank(self, layout: Layout) -> tuple[tuple[int, int], ...]:
        """Return a sort key: layouts with larger instances first and, of equally large ones, more of them."""
        return tuple((-self._index[name], -count) for name, count in layout)

    def _is_ours(self, layout: Layout) -> bool:
        return all(name in self._index for name, _ in layout)

    def _find_fit(self, wanted: Counts, gpus: int) -> bool:
        if self.least(wanted) > gpus:
            return False
        if not any(wanted):
            return True
        return any(self._fits(_minus(wanted, fill), gpus - 1) for fill in self._fills(self._clip(wanted)))

    def _clip(self, wanted: Counts) -> Counts:
        return tuple(map(min, wanted, self._most))

    def _find_fills(self, wanted: Counts) -> Sequence[Counts]:
        """Return all ways to fill one GPU with `wanted` instances, one of the largest among them.

        Those with the most memory units come first.
        """
        if not any(wanted):
            return ()
        largest = max(index for index, count in enumerate(wanted) if count)
        fits = {fill for fill in self._legal if _within(fill, wanted)}
        one_less = {(*fill[:at], fill[at] - 1, *fill[at + 1 :]) for fill in fits for at in range(len(fill))}
        fills = [fill for fill in fits if fill[largest] and fill not in one_less]
        return sorted(fills, key=lambda fill: (*self._uncovered(fill), fill))

    def _counts(self, layout: Layout) -> Counts:
        counts = [0] * len(self.profiles)
        for name, count in layout:
            counts[self._index[name]] = count
        return tuple(counts)


def _total(counts: Counts, each: Counts) -> int:
    return sum(map(mul, counts, each))


def _within(part: Counts, whole: Counts) -> bool:
    return all(each <= other for each, other in zip(part, whole, strict=True))


def _minus(whole: Counts, part: Counts) -> Counts:
    return tuple(each - other for each, other in zip(whole, part, strict=True))


class Outcome(StrEnum):
    """Why a workload gets a profile of this size and no smaller one, or why it has no place in the layout."""

    MEMORY = "a smaller instance has too little memory"
    COMPUTE = "a smaller instance has too little compute"
    SMALLEST = "the smallest instance is enough"
    LAYOUT = "larger than needed"
    """The layout has no smaller instance for it, or deliberately gives it more room."""
    WHOLE = "needs whole GPUs"
    KEPT = "keeps the size that it has"
    """Its memory is a setting, which would follow the size of another device."""
    UNKNOWN = "need unknown"
    SEVERAL = "more GPUs than a node has"
    APART = "needs a pool of whole GPUs"
    """A pod needs all GPUs of a node, or whole GPUs where nodes differ, and a policy cannot divide only the others."""
    DEVICES = "uses several instances or shares"
    """One pod uses several instances or shares, which must be on one node."""

    @property
    def placed(self) -> bool:
        return self not in (Outcome.UNKNOWN, Outcome.SEVERAL, Outcome.APART, Outcome.DEVICES)


@value
class Placement:
    """A workload, and what each of its pods should request or why the layout does not serve it."""

    need: Need
    why: Outcome
    profile: str = ""
    """The MIG profile. It is empty for whole GPUs, without a place, and before a template is chosen."""
    gpus: int = 0
    """Whole GPUs of each pod, needed or given; 0 with a profile, and if unknown."""
    index: int = -1
    """The index of the smallest profile that holds the need, in the packer's order; -1 if none does."""

    @property
    def pods(self) -> int:
        return self.need.history.pods

    @property
    def size_class(self) -> SizeClass:
        return self.index, self.why is Outcome.KEPT


@value
class TemplateChoice:
    """A candidate for the template, with the numbers of nodes and GPUs that it needs."""

    assignment: tuple[tuple[SizeClass, int], ...]
    """For each class of workloads, the index of the size that it gets. The size after the last profile is a whole
    GPU."""
    wanted: Counts
    nodes: int = 0
    divided: int = 0
    """GPUs of each node that are divided into instances."""
    whole: int = 0
    """GPUs that are needed whole, on all nodes."""
    layouts: tuple[Layout, ...] = ()
    """The layouts of the divided GPUs of a node, before they are filled up."""

    @property
    def gpus(self) -> int:
        return self.nodes * self.divided + self.whole

    def index(self, seat: Placement) -> int:
        """Return the index of the size that a workload gets. Raises KeyError for a seat of whole GPUs."""
        return dict(self.assignment)[seat.size_class]


def whole_pods(places: Iterable[Placement]) -> tuple[int, ...]:
    """Return the number of whole GPUs of each pod, the largest first."""
    return tuple(sorted((place.gpus for place in places for _ in range(place.pods)), reverse=True))


def choose(packer: Packer, seats: Sequence[Placement], per_node: int, nodes: int, goal: Goal) -> TemplateChoice:
    """Return the best template for `nodes` nodes with `per_node` GPUs each: few additional nodes, then as `goal` says.

    Raises ValueError if a node has no room for instances beside the whole GPUs of one pod.
    """
    sizes, pods = packer.sizes, Counter[SizeClass]()
    for seat in seats:
        if not seat.gpus:
            pods[seat.size_class] += seat.pods
    whole = whole_pods(seat for seat in seats if seat.gpus)
    if per_node == 1:  # the nodes differ, or have one GPU each: only the sum counts
        whole = (1,) * sum(whole)
    # The workloads with the same smallest profile are a class. Each class gets that profile or, unless kept, a larger size.
    classes = sorted(pods)
    larger = [
        [least] if kept else [at for at, size in enumerate(sizes) if size.holds(sizes[least])]
        for least, kept in classes
    ]
    ways = (tuple(zip(classes, indexes, strict=True)) for indexes in product(*larger))
    candidates = (_cheapest(packer, way, pods, whole, per_node, nodes) for way in ways)

    def key(choice: TemplateChoice) -> tuple[float | tuple[tuple[SizeClass, int], ...], ...]:
        more = max(choice.nodes - nodes, 0)
        got = [(seat, choice.index(seat)) for seat in seats if not seat.gpus]
        if goal is Goal.COST:
            raised = sum(seat.pods for seat, index in got if index != seat.index)
            return more, choice.gpus, choice.nodes, raised, choice.assignment
        rooms = [
            given / needed
            for seat, index in got
            for given, needed in ((sizes[index].memory, seat.need.memory), (sizes[index].compute, seat.need.compute))
            if needed
        ]
        compute = sum(seat.pods * sizes[index].compute for seat, index in got)
        return more, -min(rooms, default=inf), -compute, choice.gpus, choice.nodes, choice.assignment

    best = min(filter(None, candidates), key=key, default=None)
    if best is None:
        raise ValueError("whole GPUs leave no room for instances on any node")
    return replace(best, layouts=packer.pack(_per_node(best.wanted, max(best.nodes, 1)), best.divided))


def _cheapest(
    packer: Packer,
    assignment: tuple[tuple[SizeClass, int], ...],
    pods: Mapping[SizeClass, int],
    whole: Sequence[int],
    per_node: int,
    existing: int,
) -> TemplateChoice | None:
    """Return the choice with this assignment that has the fewest additional nodes, then GPUs, then nodes."""
    wanted = [0] * (len(packer.profiles) + 1)
    for each, index in assignment:
        wanted[index] += pods[each]
    undivided = tuple(sorted((*whole, *[1] * wanted.pop()), reverse=True))
    way = TemplateChoice(assignment, tuple(wanted), whole=sum(undivided))
    if not any(wanted) and not undivided:
        return way
    candidates = []
    steps = _steps(way.wanted)
    for divided in range(per_node + 1):
        of_pods = fewest_nodes(undivided, (per_node - divided,))
        of_instances = _nodes_for(packer, way.wanted, divided, steps)
        if of_pods is not None and of_instances is not None:
            # Fewer nodes are better in every respect, as each has these divided GPUs.
            nodes = max(of_pods, of_instances)
            candidates.append((max(nodes - existing, 0), nodes * divided, nodes, divided))
    if not candidates:
        return None
    *_, nodes, divided = min(candidates)
    return replace(way, nodes=nodes, divided=divided)


def _per_node(wanted: Counts, nodes: int) -> Counts:
    return tuple(-(-count // nodes) for count in wanted)


def _nodes_for(packer: Packer, wanted: Counts, divided: int, steps: Sequence[int]) -> int | None:
    """Return the first of these ascending numbers of nodes that holds the instances, or None."""
    first = bisect_left(steps, x=True, key=lambda nodes: packer.fits(_per_node(wanted, nodes), divided))
    return steps[first] if first < len(steps) else None


def _steps(wanted: Sequence[int]) -> list[int]:
    """Return the numbers of nodes at which a node's share of any count, rounded up, becomes smaller."""
    numbers = {1}
    for count in wanted:
        each = count
        while each > 1:
            nodes = -(-count // (each - 1))
            numbers.add(nodes)
            each = -(-count // nodes)
    return sorted(numbers)


EFFORT = 20_000
"""How many partly filled pools are tried before the result of first fit is taken for the best."""


@lru_cache(maxsize=1024)
def fewest_nodes(pods: tuple[int, ...], rooms: tuple[int, ...]) -> int | None:
    """Return how many of the nodes, the largest first, pods need that hold so many whole GPUs, the largest first.

    Nodes beyond `rooms`, their numbers of whole GPUs, are like the largest. The result is None if a pod needs more.
    """
    if pods and pods[0] > rooms[0]:
        return None
    number = Counter(pods)
    sizes, seen = tuple(sorted(number, reverse=True)), set[tuple[Counts, Rooms]]()
    counts = tuple(number[size] for size in sizes)
    nodes = max((_least_nodes(number, rooms[0], small) for small in range(1, rooms[0] // 2 + 1)), default=len(pods))
    while True:
        there = tuple(islice(chain(rooms, repeat(rooms[0])), nodes))
        if _first_fit(pods, there) or _fits(counts, tuple(sorted(Counter(there).items())), sizes, seen):
            return nodes
        nodes += 1


def _least_nodes(pods: Mapping[int, int], room: int, small: int) -> int:
    """Return a lower bound: two pods that each need over half of a node, or a large and no `small` one, do not fit."""
    large = sum(count for size, count in pods.items() if size > room - small)
    middle = sum(count for size, count in pods.items() if room < 2 * size and size <= room - small)
    volume = sum(size * count for size, count in pods.items() if small <= size <= room - small)
    return large + max(middle, -(-volume // room))


def _first_fit(pods: Sequence[int], rooms: Sequence[int]) -> bool:
    free, place, last = [*rooms], 0, 0
    for gpus in pods:
        place = place if gpus == last else 0  # equal pods fill the nodes in order
        while place < len(free) and free[place] < gpus:
            place += 1
        if place == len(free):
            return False
        free[place] -= gpus
        last = gpus
    return True


Rooms = tuple[tuple[int, int], ...]
"""Numbers of GPUs, each with the number of nodes that have so many."""


def _fits(counts: Counts, rooms: Rooms, sizes: Counts, seen: set[tuple[Counts, Rooms]]) -> bool:
    """Return whether so many pods of these `sizes`, the largest first, fit: an exact search, node by node.

    It is False after EFFORT attempts, those of earlier calls with the same `seen` included.
    """
    waiting = [(counts, rooms)]
    while waiting and len(seen) < EFFORT:
        now = waiting.pop()
        (counts, rooms), total = now, _total(now[0], sizes)
        if not total:
            return True
        if total > sum(room * nodes for room, nodes in rooms) or now in seen:
            continue
        seen.add(now)
        first = next(at for at, count in enumerate(counts) if count)
        for room, _ in rooms:
            left = tuple((each, nodes - (each == room)) for each, nodes in rooms if nodes > (each == room))
            fills = sorted(_find_fills(counts, sizes, room, first), key=lambda fill: _total(fill, sizes))
            waiting += [(_minus(counts, fill), left) for fill in fills]  # the fullest is tried first
    return False


def _find_fills(counts: Counts, sizes: Counts, room: int, first: int) -> list[Counts]:
    """Return all ways to fill a node until nothing more fits, with one of the largest pods among them."""
    fills = []

    def add(fill: Counts, free: int, least: int) -> None:
        """Go on with the sizes after those in `fill`; `least` is the smallest of which a pod is left."""
        at = len(fill)
        if at == len(counts):
            if free < least:
                fills.append(fill)
            return
        size = sizes[at]
        for number in range(int(at == first), min(counts[at], free // size) + 1):
            add((*fill, number), free - number * size, size if number < counts[at] else least)

    add((0,) * first, room, room + 1)
    return fills
