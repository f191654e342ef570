"""Which layout a pool should have, given what all its workloads need.

A policy gives every node of its pool the same layout, GPU by GPU (`spec.mig.layouts` by index), so the answer is one
template for a node and the number of nodes that are needed. Workloads whose smallest profile is the same get the same
profile, or a larger one if that takes fewer GPUs. So the explanation fits into a sentence, and manifests need few
resource names.

The layout uses no more nodes than the pool has, or as few additional ones as possible. Among those layouts the goal
decides:

- *cost*: the fewest GPUs; then the fewest nodes, then the fewest pods with more than they need.

- *performance*: the most room for the workload that has least, up to a whole GPU for each pod; then the most compute
for all; then the fewest GPUs.

The same input always gives the same answer, whatever the order of the workloads.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from enum import StrEnum
from functools import lru_cache
from itertools import accumulate, chain, repeat
from math import ceil
from typing import Any

from gpusharing.api.names import Mode
from gpusharing.planning.gpus.capacity import memory_of
from gpusharing.planning.gpus.cards import Card
from gpusharing.planning.gpus.geometry import Layout, normalize
from gpusharing.planning.vocabulary.values import value
from kubectl_gpusharing.usage.reckon.needs import GIB, Goal, Need, Workload
from kubectl_gpusharing.usage.reckon.templates import Packer, Seat, Size, TemplateChoice, choose


@value
class ModelPool:
    """Nodes with GPUs of one model."""

    name: str
    """Name of the pool, for people."""
    card: Card
    """The model of all its GPUs."""
    nodes: tuple[int, ...]
    """How many GPUs each node has. If these numbers differ, a policy can only have one layout for all GPUs."""
    used: int
    """The number of GPUs that pods hold now, completely or in part."""

    @property
    def gpus(self) -> int:
        """The number of GPUs on all nodes."""
        return sum(self.nodes)


@value
class Occupied:
    """A GPU that several pods share now."""

    gpu: str
    """The name of the GPU in messages."""
    pods: tuple[tuple[Workload, int], ...]
    """The workloads on the GPU, each with its number of pods there."""


class Bound(StrEnum):
    """Why a workload gets a profile of this size and no smaller one."""

    MEMORY = "a smaller instance has too little memory"
    COMPUTE = "a smaller instance has too little compute"
    """A smaller profile has enough memory but not enough compute."""
    SMALLEST = "the smallest instance is enough"
    LAYOUT = "larger than needed"
    """The layout of the pool has no smaller instance for it, or deliberately gives it more room."""
    WHOLE = "needs whole GPUs"


class Misplaced(StrEnum):
    """Why a workload has no place in the layout."""

    UNKNOWN = "need unknown"
    """The doubts of the need say why."""
    SEVERAL = "more GPUs than a node has"
    APART = "needs a pool of whole GPUs"
    """A pod needs all GPUs of a node, or it needs whole GPUs and the nodes have different numbers of them. One policy
    then cannot leave these GPUs whole and divide others."""
    DEVICES = "uses several instances or shares"
    """One pod uses several instances or shares, which must be on one node. There is no advice for such pods."""


@value
class Placement:
    """A workload, and what each of its pods should request or why the layout does not serve it."""

    need: Need
    """The need of the workload."""
    why: Bound | Misplaced
    """Why the workload gets this much, or why it has no place."""
    profile: str = ""
    """MIG profile; empty for whole GPUs and without a place."""
    gpus: int = 0
    """Whole GPUs of each pod; 0 with a profile. Without a place, the number of whole GPUs that each pod needs; 0 if it
    does not need whole GPUs, or if its need is unknown."""


@value
class Portion:
    """The GPUs of a node that have the same layout."""

    layout: Layout | None
    """The layout of these GPUs, or None if they stay whole."""
    indexes: tuple[int, ...]
    """The indexes of these GPUs on each node, as NVML counts them."""
    gpus: int
    """The number of these GPUs on all nodes that are needed."""


@value
class CoLocation:
    """A shared GPU whose pods, if all reached their highest peak at once, would use more memory than the pods of any
    other shared GPU."""

    gpu: str
    """The name of the GPU in messages."""
    parts: tuple[tuple[Workload, int, float], ...]
    """Each workload with the number of its pods and the bytes of each pod, the largest sum first."""
    memory: float
    """Memory of the card, in bytes."""

    @property
    def bytes(self) -> float:
        """Memory of all pods at their peaks, in bytes."""
        return sum(count * each for _, count, each in self.parts)

    @property
    def fits(self) -> bool:
        """Whether the card has at least as much memory as all pods at their peaks use."""
        return self.bytes <= self.memory


@value
class Recommendation:
    """The recommended layout of a pool, with its consequences."""

    pool: ModelPool
    """The pool that the recommendation is for."""
    goal: Goal
    """The goal by which the layout was chosen."""
    template: tuple[Layout | None, ...]
    """The layout of each GPU of a node, by index, or None for a GPU that stays whole. If there is a single element, it
    applies to all GPUs of every node."""
    placed: tuple[Placement, ...]
    """The workloads that the layout serves."""
    unplaced: tuple[Placement, ...]
    """The workloads that it does not serve."""
    nodes: int
    """The number of nodes needed."""
    gpus: int
    """The number of GPUs needed: the divided ones on these nodes, and those that pods get whole."""
    stranded: tuple[int, int]
    """The numbers of compute slices and of memory units that no instance covers, on all GPUs that are needed. A memory
    unit is an eighth of the card's memory on most cards."""
    idle: Layout
    """The instances on these nodes that no workload needs, as room to grow."""
    worst: CoLocation | None
    """The shared GPU with the highest possible memory use today, or None if no GPU is shared."""

    @property
    def pods(self) -> int:
        """The number of pods that have a place."""
        return sum(workload.need.history.pods for workload in self.placed)

    @property
    def saved(self) -> int:
        """How many fewer GPUs are needed than are in use now; below 0 if more are needed. Workloads without a place are
        taken to need the whole GPUs that are known, or else what each of their pods holds now, rounded up to whole
        GPUs; a device of unknown share counts as a whole GPU."""
        beside = 0
        for place in self.unplaced:
            history = place.need.history
            beside += history.pods * (place.gpus or ceil(history.holds.devices * (history.holds.share or 1)))
        return self.pool.used - self.gpus - beside

    @property
    def mode(self) -> Mode:
        """The mode of the policy: MIG if some GPU is divided, else Full."""
        return Mode.MIG if any(self.template) else Mode.FULL

    @property
    def portions(self) -> tuple[Portion, ...]:
        """The GPUs of the template grouped by layout, in the order of the first index of each. Each portion has its
        number of GPUs on all nodes that are needed. A template of one layout is for every GPU, however many a node has;
        its only index is 0."""
        indexes: dict[Layout | None, list[int]] = {}
        for index, layout in enumerate(self.template):
            indexes.setdefault(layout, []).append(index)
        alike = len(self.template) == 1
        units = self.gpus if alike else self.nodes
        return tuple(Portion(layout, tuple(at), len(at) * units) for layout, at in indexes.items())

    def block(self) -> dict[str, Any]:
        """Return the fields of a policy's `spec` that set the layout: `mode` and, unless all GPUs stay whole, `mig`
        with strategy mixed and the layouts."""
        if self.mode is Mode.FULL:
            return {"mode": "Full"}
        return {"mode": "MIG", "mig": {"strategy": "mixed", "layouts": layout_rows(self.portions)}}


def layout_rows(portions: Sequence[Portion]) -> list[dict[str, Any]]:
    """Return `spec.mig.layouts` of a policy with these layouts, in their order. A single one is for all devices. The
    `profiles` of GPUs that stay whole are empty."""
    everywhere = len(portions) == 1
    return [
        {"devices": "all" if everywhere else list(portion.indexes), "profiles": dict(portion.layout or ())}
        for portion in portions
    ]


def recommend(
    pool: ModelPool, needs: Sequence[Need], occupied: Sequence[Occupied] = (), *, goal: Goal
) -> Recommendation:
    """Return the recommended layout of `pool`. If some needs are `Misplaced.APART`, no GPU is divided if the pool has
    enough GPUs for that and, unless the goal is performance, it takes no more in total. `occupied` lists the GPUs that
    pods share now. If the nodes have different numbers of GPUs, every GPU counts as a node of its own, so the template
    has one layout. Raises ValueError if a node, or the pool, has no GPUs, or if they use the CPU's memory."""
    if not pool.nodes or min(pool.nodes) < 1:
        raise ValueError(f"pool {pool.name} has no GPU")
    if not pool.card.memory_gb:
        raise ValueError(f"{pool.card.key} shares its memory with the CPU: what fits on it is not known")
    packer = _packer(pool.card)
    alike = len(set(pool.nodes)) == 1
    per_node, count = (pool.nodes[0], len(pool.nodes)) if alike else (1, pool.gpus)
    seats, apart, unplaced = _seats(pool, needs, packer.sizes, per_node)
    chosen = choose(packer, seats, per_node, count, goal)
    # If no GPU is divided, each pod gets whole GPUs, one instead of an instance, and nothing is in the way of `apart`.
    undivided = [replace(seat, gpus=seat.gpus or 1) for seat in [*seats, *apart]]
    beside = sum(seat.gpus * seat.pods for seat in apart)
    most = pool.gpus if goal is Goal.PERFORMANCE else min(pool.gpus, chosen.gpus + beside)
    if beside and sum(seat.gpus * seat.pods for seat in undivided) <= most:
        seats, apart = sorted(undivided, key=lambda seat: seat.need.workload), []
        chosen = choose(packer, seats, per_node, count, goal)
    unplaced += [Placement(seat.need, Misplaced.APART, gpus=seat.gpus) for seat in apart]
    template = _template(packer, chosen, per_node)
    lost = [packer.stranded(layout) for layout in template if layout is not None]
    placed = tuple(_granted(packer, seat, chosen) for seat in seats)
    return Recommendation(
        pool=pool,
        goal=goal,
        template=template,
        placed=placed,
        unplaced=tuple(sorted(unplaced, key=lambda each: each.need.workload)),
        nodes=_nodes_for(pool.nodes, chosen.nodes * per_node),
        gpus=chosen.gpus,
        stranded=(
            sum(slices for _, slices in lost) * chosen.nodes,
            sum(units for units, _ in lost) * chosen.nodes,
        ),
        idle=_idle(template, placed, chosen.nodes),
        worst=_worst(pool.card, needs, occupied),
    )


_packer = lru_cache(maxsize=4)(Packer)
"""Returns the packer of a card. Packers are cached because they cache their results."""


def _seats(
    pool: ModelPool, needs: Sequence[Need], sizes: Sequence[Size], per_node: int
) -> tuple[list[Seat], list[Seat], list[Placement]]:
    """Return three lists, sorted by workload: the smallest seat of each workload that the layout can serve; the seats
    that have no place beside instances, because other pods get instances and a pod needs all GPUs of a node, which are
    `per_node` (one if nodes differ); and the workloads that no layout serves. The latter have the reason of `_seat`, or
    SEVERAL if a pod needs more GPUs than any node has."""
    seats: list[Seat] = []
    unplaced: list[Placement] = []
    for need in sorted(needs, key=lambda each: each.workload):
        seat = _seat(need, sizes)
        if isinstance(seat, Misplaced):
            unplaced.append(Placement(need, seat))
        elif seat.gpus > max(pool.nodes):
            unplaced.append(Placement(need, Misplaced.SEVERAL, gpus=seat.gpus))
        else:
            seats.append(seat)
    if all(seat.gpus for seat in seats):
        return seats, [], unplaced
    # A pod that needs all GPUs of a node leaves none to divide, and all nodes have the same template.
    apart = [seat for seat in seats if seat.gpus >= per_node]
    return [seat for seat in seats if seat.gpus < per_node], apart, unplaced


def _seat(need: Need, sizes: Sequence[Size]) -> Seat | Misplaced:
    """Return the smallest profile that holds the need's memory and compute, where an unknown compute counts as none. If
    none does, return one whole GPU, or several if the owner declared more memory than one has. Pods that hold several
    whole GPUs now get the same number again. Return DEVICES if they hold several devices that are not whole GPUs, else
    UNKNOWN if the memory is unknown."""
    holds = need.history.holds
    if holds.devices > 1:
        # Several whole GPUs are one program that spreads over them; instances and shares cannot be joined.
        return Seat(need, -1, holds.devices) if holds.share == 1 else Misplaced.DEVICES
    if need.memory is None:
        return Misplaced.UNKNOWN
    wanted = Size(need.memory, need.compute or 0.0)
    for index, size in enumerate(sizes[:-1]):
        if size.holds(wanted):
            return Seat(need, index, 0)
    # The measured use did fit on one GPU, so anything beyond that is only headroom.
    declared = need.history.declared is not None
    return Seat(need, -1, max(1, ceil(need.memory / sizes[-1].memory)) if declared else 1)


def _granted(packer: Packer, seat: Seat, chosen: TemplateChoice) -> Placement:
    """Return what the pods of a workload get, with the reason: LAYOUT if they need less, also if they get one whole GPU
    instead of an instance, WHOLE if they need whole GPUs, SMALLEST for the smallest profile, COMPUTE if smaller ones
    have enough memory, else MEMORY."""
    if seat.gpus:
        return Placement(seat.need, Bound.WHOLE if seat.index < 0 else Bound.LAYOUT, gpus=seat.gpus)
    index = chosen.index(seat)
    if index == len(packer.profiles):
        return Placement(seat.need, Bound.LAYOUT, gpus=1)
    if index != seat.index:
        bound = Bound.LAYOUT
    elif not index:
        bound = Bound.SMALLEST
    else:
        enough = any(size.memory >= (seat.need.memory or 0) for size in packer.sizes[:index])
        bound = Bound.COMPUTE if enough else Bound.MEMORY
    return Placement(seat.need, bound, packer.profiles[index].name)


def _template(packer: Packer, chosen: TemplateChoice, per_node: int) -> tuple[Layout | None, ...]:
    """Return the layout of each of the `per_node` GPUs of a node: first the divided GPUs, filled up with whatever else
    fits on them (`Packer.fill_up`) and in the order of `Packer.rank`, then None for each GPU that stays whole."""
    names = {profile.name for profile, count in zip(packer.profiles, chosen.wanted, strict=True) if count}
    divided = sorted((packer.fill_up(layout, names) for layout in chosen.layouts), key=packer.rank)
    whole: list[Layout | None] = [None] * (per_node - len(divided))
    return (*divided, *whole)


def _nodes_for(nodes: Sequence[int], gpus: int) -> int:
    """Return how many nodes are needed to have this many GPUs, if the largest are used first. If all nodes together
    have fewer GPUs, the missing nodes are assumed to be as large as the largest."""
    sizes = chain(sorted(nodes, reverse=True), repeat(max(nodes)))
    return next(count for count, there in enumerate(accumulate(sizes, initial=0)) if there >= gpus)


def _idle(template: Sequence[Layout | None], placed: Sequence[Placement], nodes: int) -> Layout:
    """Return the instances that the template provides on `nodes` nodes and that no workload gets. Raises ValueError if
    workloads get more of a profile than there are."""
    there: Counter[str] = Counter()
    for layout in template:
        there.update({name: count * nodes for name, count in layout or ()})
    for workload in placed:
        if workload.profile:
            there[workload.profile] -= workload.need.history.pods
    return normalize(there)


def _worst(card: Card, needs: Sequence[Need], occupied: Sequence[Occupied]) -> CoLocation | None:
    """Return the shared GPU whose pods would use the most memory if all had their highest peak at once. Pods of
    workloads that are not in `needs` are ignored. Of several with the same sum, the first by the name of the GPU is
    returned. None if no GPU then has more than one pod."""
    highest = {need.workload: need.highest for need in needs}
    candidates = []
    for each in occupied:
        parts = [(workload, count, highest[workload]) for workload, count in each.pods if workload in highest]
        if sum(count for _, count, _ in parts) > 1:
            ordered = tuple(sorted(parts, key=lambda part: (-part[1] * part[2], part[0])))
            candidates.append(CoLocation(each.gpu, ordered, memory_of(card) * GIB))
    return min(candidates, key=lambda each: (-each.bytes, each.gpu), default=None)
