"""Which mode fits a pool, from what its workloads need."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from enum import StrEnum
from functools import lru_cache
from itertools import accumulate, chain, repeat
from math import ceil
from types import MappingProxyType
from typing import Any, TypeAlias

from gpusharing.api.names import Mode
from gpusharing.planning.gpus.cards import TURNS, Card, client_memory, memory_of
from gpusharing.planning.gpus.geometry import Layout, normalize
from gpusharing.planning.vocabulary.values import value
from kubectl_gpusharing.usage.needs import GIB, Goal, Need, Workload
from kubectl_gpusharing.usage.packing import ROUNDING, Packer, Seat, Size, TemplateChoice, choose


@value
class ModelPool:
    name: str
    """For people."""
    card: Card
    nodes: tuple[int, ...]
    """How many GPUs each node has. If these numbers differ, a policy can only have one layout for all GPUs."""
    used: int
    """GPUs that pods hold now, completely or in part."""

    @property
    def gpus(self) -> int:
        return sum(self.nodes)


Occupied: TypeAlias = Mapping[str, Mapping[Workload, int]]
"""The GPUs that several pods share now, by their names in messages: how many pods of which workload each has."""


class Bound(StrEnum):
    """Why a workload gets a profile of this size and no smaller one."""

    MEMORY = "a smaller instance has too little memory"
    COMPUTE = "a smaller instance has too little compute"
    SMALLEST = "the smallest instance is enough"
    LAYOUT = "larger than needed"
    """The layout has no smaller instance for it, or deliberately gives it more room."""
    WHOLE = "needs whole GPUs"


class Misplaced(StrEnum):
    """Why a workload has no place in the layout."""

    UNKNOWN = "need unknown"
    SEVERAL = "more GPUs than a node has"
    APART = "needs a pool of whole GPUs"
    """A pod needs all GPUs of a node, or whole GPUs where nodes differ: a policy cannot leave these whole and divide others."""
    DEVICES = "uses several instances or shares"
    """One pod uses several instances or shares, which must be on one node."""


@value
class Placement:
    """A workload, and what each of its pods should request or why the layout does not serve it."""

    need: Need
    why: Bound | Misplaced
    profile: str = ""
    """Empty for whole GPUs and without a place."""
    gpus: int = 0
    """Whole GPUs of each pod, needed or given; 0 with a profile, and if unknown."""


@value
class Portion:
    """The GPUs of a node that have the same layout."""

    layout: Layout | None
    """None if these GPUs stay whole."""
    indexes: tuple[int, ...]
    """On each node, as NVML counts them."""
    gpus: int
    """On all nodes that are needed."""


@value
class CoLocation:
    """The shared GPU whose pods would use the most memory if all reached their highest peak at once."""

    gpu: str
    parts: tuple[tuple[Workload, int, float], ...]
    """Each workload with the number of its pods and the bytes of each, the largest sum first."""
    memory: float
    """Of the card, in bytes."""

    @property
    def bytes(self) -> float:
        return sum(count * each for _, count, each in self.parts)

    @property
    def fits(self) -> bool:
        return self.bytes <= self.memory


@value
class Recommendation:
    pool: ModelPool
    goal: Goal
    template: tuple[Layout | None, ...]
    """The layout of each GPU of a node, by index, or None for a GPU that stays whole. A single element applies to all GPUs of every node."""
    placed: tuple[Placement, ...]
    unplaced: tuple[Placement, ...]
    nodes: int
    gpus: int
    """The GPUs needed: the divided ones on these nodes, and those that pods get whole."""
    stranded: tuple[int, int]
    """The compute slices and the memory units that no instance covers, on all GPUs that are needed. A memory unit is an eighth of the card's memory on most cards."""
    idle: Layout
    """The instances on these nodes that no workload needs, as room to grow."""
    worst: CoLocation | None
    """None if no GPU is shared."""

    @property
    def pods(self) -> int:
        return sum(workload.need.history.pods for workload in self.placed)

    @property
    def saved(self) -> int:
        """How many fewer GPUs are needed than are in use now; below 0 if more. Workloads without a place keep what they hold or need, in whole GPUs."""
        kept = 0
        for place in self.unplaced:
            holds = place.need.history.holds
            kept += place.need.history.pods * (place.gpus or ceil(holds.devices * (holds.share or 1)))
        return self.pool.used - self.gpus - kept

    @property
    def mode(self) -> Mode:
        return Mode.MIG if any(self.template) else Mode.FULL

    @property
    def portions(self) -> tuple[Portion, ...]:
        """The GPUs of the template grouped by layout, in the order of the first index of each."""
        indexes: dict[Layout | None, list[int]] = {}
        for index, layout in enumerate(self.template):
            indexes.setdefault(layout, []).append(index)
        alike = len(self.template) == 1
        units = self.gpus if alike else self.nodes
        return tuple(Portion(layout, tuple(at), len(at) * units) for layout, at in indexes.items())

    def block(self) -> dict[str, Any]:
        if self.mode is Mode.FULL:
            return {"mode": "Full"}
        return {"mode": "MIG", "mig": {"strategy": "mixed", "layouts": layout_rows(self.portions)}}


def layout_rows(portions: Sequence[Portion]) -> list[dict[str, Any]]:
    """Return `spec.mig.layouts` of a policy with these layouts; a single one is for all devices."""
    everywhere = len(portions) == 1
    return [
        {"devices": "all" if everywhere else list(portion.indexes), "profiles": dict(portion.layout or ())}
        for portion in portions
    ]


def recommend(
    pool: ModelPool, needs: Sequence[Need], occupied: Occupied = MappingProxyType({}), *, goal: Goal
) -> Recommendation:
    """Return the recommended layout of `pool`. Raises ValueError if a node, or the pool, has no GPUs, or if they use the CPU's memory."""
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
    whole = sum(seat.gpus * seat.pods for seat in apart)
    most = pool.gpus if goal is Goal.PERFORMANCE else min(pool.gpus, chosen.gpus + whole)
    if whole and sum(seat.gpus * seat.pods for seat in undivided) <= most:
        seats, apart = sorted(undivided, key=lambda seat: seat.need.workload), []
        chosen = choose(packer, seats, per_node, count, goal)
    unplaced += [Placement(seat.need, Misplaced.APART, gpus=seat.gpus) for seat in apart]
    names = {profile.name for profile, count in zip(packer.profiles, chosen.wanted, strict=True) if count}
    divided = sorted((packer.fill_up(layout, names) for layout in chosen.layouts), key=packer.rank)
    template: tuple[Layout | None, ...] = (*divided, *[None] * (per_node - len(divided)))
    lost = [packer.stranded(layout) for layout in divided]
    placed = tuple(_granted(packer, seat, chosen) for seat in seats)
    idle = Counter[str]()
    for layout in divided:
        idle.update({name: count * chosen.nodes for name, count in layout})
    for place in placed:
        if place.profile:
            idle[place.profile] -= place.need.history.pods
    # The largest nodes are used first; nodes that are missing are assumed to be as large as the largest.
    sizes = accumulate(chain(sorted(pool.nodes, reverse=True), repeat(max(pool.nodes))), initial=0)
    return Recommendation(
        pool=pool,
        goal=goal,
        template=template,
        placed=placed,
        unplaced=tuple(sorted(unplaced, key=lambda each: each.need.workload)),
        nodes=next(count for count, there in enumerate(sizes) if there >= chosen.nodes * per_node),
        gpus=chosen.gpus,
        stranded=(
            sum(slices for _, slices in lost) * chosen.nodes,
            sum(units for units, _ in lost) * chosen.nodes,
        ),
        idle=normalize(idle),
        worst=_worst(pool.card, needs, occupied),
    )


_packer = lru_cache(maxsize=4)(Packer)
"""Packers are cached because they cache their results."""


def _seats(
    pool: ModelPool, needs: Sequence[Need], sizes: Sequence[Size], per_node: int
) -> tuple[list[Seat], list[Seat], list[Placement]]:
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


def _worst(card: Card, needs: Sequence[Need], occupied: Occupied) -> CoLocation | None:
    highest = {need.workload: need.highest for need in needs}
    candidates = []
    for gpu, pods in occupied.items():
        parts = [
            (workload, count, highest[workload]) for workload, count in pods.items() if workload in highest
        ]
        if sum(count for _, count, _ in parts) > 1:
            ordered = tuple(sorted(parts, key=lambda part: (-part[1] * part[2], part[0])))
            candidates.append(CoLocation(gpu, ordered, memory_of(card) * GIB))
    return min(candidates, key=lambda each: (-each.bytes, each.gpu), default=None)


@value
class Shared:
    """A way to serve the same pods with fewer GPUs than the layout takes, by sharing whole ones."""

    mode: Mode
    replicas: int
    pods: int
    gpus: int
    instead: int
    """GPUs that the layout takes for the same pods."""
    needed: float
    """Bytes, headroom included: with MPS of the pod with the greatest need, otherwise of the largest pods that may share a GPU."""
    there: float
    """Bytes available for that: with MPS 1/replicas of the card's memory, otherwise all of it."""
    busy: float | None
    """The compute that these pods use, as a part of a whole card; None if it is not known for every pod."""


def find_shared(recommendation: Recommendation) -> Shared | None:
    """Return the way to share whole GPUs that takes the fewest, if that is fewer than the layout takes for the same pods. Pods that get whole GPUs keep them, except single ones of a card without MIG."""
    if recommendation.goal is not Goal.COST:
        return None
    card, placed = recommendation.pool.card, recommendation.placed
    sharing = [place for place in placed if place.profile or (not card.profiles and place.gpus == 1)]
    needs = list(chain.from_iterable([place.need] * place.need.history.pods for place in sharing))
    memory = sorted((float(need.memory or 0) for need in needs), reverse=True)
    known = sorted((need.compute for need in needs if need.compute is not None), reverse=True)
    compute = known if len(known) == len(needs) else None
    instead = recommendation.gpus - sum(
        place.gpus * place.need.history.pods for place in placed if place not in sharing
    )
    pods, whole, ways = len(needs), memory_of(card) * GIB, list[Shared]()
    if memory and memory[0]:
        most = min(card.mps_max_clients, int(whole // memory[0]))
        if compute and compute[0] > 0:
            most = min(most, int(1 / compute[0] + ROUNDING))
        if most > 1:
            gpus, replicas = _spread(pods, most)
            there, busy = client_memory(card, replicas) * GIB, compute[0] if compute else None
            ways.append(Shared(Mode.MPS, replicas, pods, gpus, instead, memory[0], there, busy))
    for most in range(min(TURNS, pods), 1, -1):
        gpus, replicas = _spread(pods, most)
        needed, busy = sum(memory[:replicas]), None if compute is None else sum(compute[:replicas])
        if needed <= whole and (busy or 0) <= 1 + ROUNDING:
            ways.append(Shared(Mode.TIME_SLICING, replicas, pods, gpus, instead, needed, whole, busy))
            break
    return min((way for way in ways if way.gpus < instead), key=lambda way: way.gpus, default=None)


def _spread(pods: int, most: int) -> tuple[int, int]:
    """Return how many GPUs the pods need with at most `most` on each, and the highest number on one if they are spread evenly."""
    gpus = -(-pods // most)
    return gpus, -(-pods // gpus)
