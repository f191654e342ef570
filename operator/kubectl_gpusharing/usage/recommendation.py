"""Which layout fits a pool, by what its workloads need, and would sharing whole GPUs take fewer?

A policy gives every node of its pool the same layout, GPU by GPU (`spec.mig.layouts` by index), so the answer is one
template for a node and the number of nodes that are needed. Workloads whose smallest profile is the same get the same
profile, or a larger one if that takes fewer GPUs. So the explanation fits into a sentence, and manifests need few
resource names.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from functools import lru_cache
from itertools import accumulate, chain, repeat
from math import ceil, inf
from typing import Any

from gpusharing.api.names import Mode
from gpusharing.planning.gpus.cards import TURNS, Card, client_memory, memory_of
from gpusharing.planning.gpus.geometry import Layout, normalize
from gpusharing.planning.vocabulary.values import value
from kubectl_gpusharing.usage.needs import GIB, Doubt, Goal, History, Need, Workload
from kubectl_gpusharing.usage.packing import (
    ROUNDING,
    Outcome,
    Packer,
    Placement,
    Size,
    TemplateChoice,
    choose,
    fewest_nodes,
    whole_pods,
)


@value
class ModelPool:
    """A pool of GPUs of one model, and what Prometheus shows of it."""

    model: str
    card: Card | None
    nodes: tuple[int, ...]
    """How many GPUs each node has; if the numbers differ, a policy can only have one layout for all GPUs."""
    used: int
    """The most GPUs that were held at one time, in whole or in part."""
    names: tuple[str, ...] = ()
    """The names of the nodes, in the order of `nodes`; for a GPU whose node is unknown, its UUID."""
    histories: tuple[History, ...] = ()
    occupied: Mapping[str, Mapping[Workload, int]] = field(default_factory=dict)
    """How many pods of which workload share each GPU now, by its name in messages."""
    simulated: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def gpus(self) -> int:
        return sum(self.nodes)


@value
class Portion:
    """The GPUs of a node that have the same layout."""

    layout: Layout | None
    """The layout of these GPUs; None if they stay whole."""
    indexes: tuple[int, ...]
    """The indexes of these GPUs on each node, as NVML counts them."""
    gpus: int
    """The number of these GPUs on all nodes that are needed."""


@value
class Recommendation:
    pool: ModelPool
    card: Card
    goal: Goal
    template: tuple[Layout | None, ...]
    """The layout of each GPU of a node, by index, or None for a whole one; a single element is for all GPUs."""
    placed: tuple[Placement, ...]
    unplaced: tuple[Placement, ...]
    nodes: int
    gpus: int
    """The GPUs needed: the divided ones on these nodes, and those that pods get whole."""
    stranded: tuple[int, int]
    """The compute slices and the memory units (mostly eighths of a card) that no instance covers, on all GPUs."""
    idle: Layout
    """The instances on these nodes that no workload needs, as room to grow."""
    worst: tuple[tuple[int, float], ...]
    """The shared GPU whose pods would use the most memory if all peaked at once; empty if none is shared. It has the
    number of pods of each workload and the bytes of each pod, the largest sum first."""

    @property
    def pods(self) -> int:
        return sum(place.pods for place in self.placed)

    @property
    def worst_bytes(self) -> float:
        return sum(count * each for count, each in self.worst)

    @property
    def saved(self) -> int:
        """How many fewer GPUs are needed than are in use now; workloads without a place keep what they hold or need."""
        kept = 0
        for place in self.unplaced:
            holds = place.need.history.holds
            kept += place.pods * (place.gpus or ceil(holds.devices * (holds.share or 1)))
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
        {**({} if everywhere else {"devices": list(portion.indexes)}), "profiles": dict(portion.layout or ())}
        for portion in portions
    ]


def recommend(pool: ModelPool, needs: Sequence[Need], *, goal: Goal) -> Recommendation:
    """Return the recommended layout of `pool`, which does not depend on the order of the workloads.

    Raises ValueError if a node, or the pool, has no GPUs, or if their layouts or the size of their memory are unknown.
    """
    if not pool.nodes or min(pool.nodes) < 1:
        raise ValueError(f"the pool of {pool.model} has no GPU")
    if pool.card is None or not pool.card.memory_gb:
        raise ValueError(f"what fits on {pool.model} is not known")
    packer = _packer(pool.card)
    alike = len(set(pool.nodes)) == 1
    sizes = tuple(sorted(pool.nodes, reverse=True))
    per_node, count = (pool.nodes[0], len(pool.nodes)) if alike else (1, pool.gpus)
    places = [_least(need, packer, max(pool.nodes)) for need in sorted(needs, key=lambda each: each.workload)]
    unplaced = [place for place in places if not place.why.placed]
    seats = [place for place in places if place.why.placed]
    # A pod that needs all GPUs of a node leaves none to divide, and all nodes have the same template.
    bar = inf if all(seat.gpus for seat in seats) else per_node
    apart, seats = [seat for seat in seats if seat.gpus >= bar], [seat for seat in seats if seat.gpus < bar]
    chosen = choose(packer, seats, per_node, count, goal)
    # If no GPU is divided, each pod gets whole GPUs, one instead of an instance, and nothing is in the way of `apart`.
    undivided = [replace(seat, gpus=seat.gpus or 1) for seat in [*seats, *apart]]
    whole = sum(seat.gpus * seat.pods for seat in apart)
    most = pool.gpus if goal is Goal.PERFORMANCE else min(pool.gpus, chosen.gpus + whole)
    pods = whole_pods(undivided)
    if whole and sum(pods) <= most and (fewest_nodes(pods, sizes) or 0) <= len(sizes):
        seats, apart = sorted(undivided, key=lambda seat: seat.need.workload), []
        chosen = choose(packer, seats, per_node, count, goal)
    unplaced += [replace(seat, why=Outcome.APART) for seat in apart]
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
            idle[place.profile] -= place.pods
    # The largest nodes are used first; nodes that are missing are assumed to be as large as the largest.
    sums = accumulate(chain(sizes, repeat(sizes[0])), initial=0)
    nodes = next(count for count, there in enumerate(sums) if there >= chosen.nodes * per_node)
    if not divided:
        nodes = fewest_nodes(whole_pods(placed), sizes) or 0
    return Recommendation(
        pool=pool,
        card=pool.card,
        goal=goal,
        template=template,
        placed=placed,
        unplaced=tuple(sorted(unplaced, key=lambda each: each.need.workload)),
        nodes=nodes,
        gpus=chosen.gpus,
        stranded=(sum(slices for _, slices in lost) * chosen.nodes, sum(units for units, _ in lost) * chosen.nodes),
        idle=normalize(idle),
        worst=_worst(needs, pool.occupied),
    )


_packer = lru_cache(maxsize=4)(Packer)
"""Packers are cached because they cache their results."""


def _least(need: Need, packer: Packer, per_node: int) -> Placement:
    """Return the least that each pod must get, or why the workload has no place. A node has at most `per_node` GPUs."""
    holds, sizes = need.history.holds, packer.sizes
    if holds.devices > 1:
        # Several whole GPUs are one program that spreads over them; instances and shares cannot be joined.
        if holds.share != 1:
            return Placement(need, Outcome.DEVICES)
        gpus = holds.devices
    elif need.memory is None:
        if Doubt.TOO_LITTLE in need.doubts or holds.share is None:
            return Placement(need, Outcome.UNKNOWN)
        profile = holds.profile(packer.card)
        if profile in packer.profiles:
            return Placement(need, Outcome.KEPT, index=packer.profiles.index(profile))
        shares = enumerate(sizes[:-1]) if holds.share < 1 else ()
        index = next((at for at, size in shares if size.memory >= need.highest), -1)
        return Placement(need, Outcome.KEPT, index=index, gpus=int(index < 0))
    else:
        wanted = Size(need.memory, need.compute or 0.0)
        for index, size in enumerate(sizes[:-1]):
            if size.holds(wanted):
                enough = any(smaller.memory >= need.memory for smaller in sizes[:index])
                larger = Outcome.COMPUTE if enough else Outcome.MEMORY
                return Placement(need, larger if index else Outcome.SMALLEST, index=index)
        # The measured use did fit on one GPU, so anything beyond that is only headroom.
        declared = need.history.declared is not None
        gpus = max(1, ceil(need.memory / sizes[-1].memory)) if declared else 1
    return Placement(need, Outcome.SEVERAL if gpus > per_node else Outcome.WHOLE, gpus=gpus)


def _granted(packer: Packer, seat: Placement, chosen: TemplateChoice) -> Placement:
    if seat.index < 0:
        return seat
    index = len(packer.profiles) if seat.gpus else chosen.index(seat)
    if index == len(packer.profiles):
        return replace(seat, why=Outcome.LAYOUT, gpus=1)
    why = seat.why if index == seat.index else Outcome.LAYOUT
    return replace(seat, why=why, profile=packer.profiles[index].name)


def _worst(needs: Sequence[Need], occupied: Mapping[str, Mapping[Workload, int]]) -> tuple[tuple[int, float], ...]:
    highest = {need.workload: need.highest for need in needs}
    candidates = []
    for _, pods in sorted(occupied.items()):
        parts = sorted((-pods[one] * highest[one], one) for one in pods.keys() & highest)
        if sum(pods[one] for _, one in parts) > 1:
            candidates.append(tuple((pods[one], highest[one]) for _, one in parts))
    return max(candidates, key=lambda parts: sum(count * each for count, each in parts), default=())


@value
class Shared:
    """A way to serve the same pods with fewer GPUs than the layout takes, by sharing whole ones."""

    mode: Mode
    replicas: int
    pods: int
    gpus: int
    instead: int
    """How many GPUs the layout takes for the same pods."""
    needed: float
    """The bytes, headroom included, that the largest client of MPS needs, or the largest pods on one GPU."""
    there: float
    """The bytes available for that: with MPS 1/replicas of the card's memory, otherwise all of it."""
    busy: float | None
    """The compute that these pods use, as a part of a whole card; None if it is not known for every pod."""


def find_shared(recommendation: Recommendation) -> Shared | None:
    """Return the way to share whole GPUs that takes the fewest; None if the layout takes no more.

    Nothing isolates pods that share a GPU, so people have to decide whether that is acceptable (`advise` asks them). A
    policy gives all GPUs the same number of replicas, and the scheduler may put any pods together, so the worst case
    counts. MPS divides a GPU evenly (docs/design/hardware.md#mps-share), so the largest pod must fit into 1/n of it;
    time-slicing divides nothing, so the n largest pods must fit together, and wait for at most TURNS turns.

    Pods that get whole GPUs keep them, except single ones of a card without MIG. On a whole GPU, a program that keeps
    its size would reserve more, so there is no such way.
    """
    if recommendation.goal is not Goal.COST or any(place.why is Outcome.KEPT for place in recommendation.placed):
        return None
    card, placed = recommendation.card, recommendation.placed
    sharing = [place for place in placed if place.profile or (not card.profiles and place.gpus == 1)]
    needs = list(chain.from_iterable([place.need] * place.pods for place in sharing))
    memory = sorted((float(need.memory or 0) for need in needs), reverse=True)
    known = sorted((need.compute for need in needs if need.compute is not None), reverse=True)
    compute = known if len(known) == len(needs) else None
    instead = recommendation.gpus - sum(place.gpus * place.pods for place in placed if place not in sharing)
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
    """Return how many GPUs the pods need with at most `most` on each, and the highest number on one."""
    gpus = -(-pods // most)
    return gpus, -(-pods // gpus)
