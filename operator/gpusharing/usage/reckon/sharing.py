"""Would the pods of a recommended layout fit on fewer GPUs if they shared whole ones? Only the arithmetic: nothing
isolates pods that share a GPU, so people have to say whether that is acceptable (`advise` asks them).

A policy gives all GPUs the same number of replicas, and the scheduler puts any pods together, so the worst case counts:

- *MPS* divides evenly (docs/design/hardware.md#mps-share): the pod that needs most has to fit into 1/n of the memory
  and of the compute.
- *Time-slicing* divides nothing: the n pods that need most memory have to fit together, and so have the n that
  compute most. More than TURNS wait too long for their turn.
"""

from collections.abc import Sequence
from itertools import chain, repeat

from gpusharing.api.names import Mode
from gpusharing.planning.gpus.capacity import TURNS, client_memory, memory_of
from gpusharing.planning.gpus.cards import Card
from gpusharing.planning.vocabulary.values import value
from gpusharing.usage.reckon.needs import GIB, Goal, Need
from gpusharing.usage.reckon.recommendation import Recommendation
from gpusharing.usage.reckon.templates import ROUNDING

_Pods = tuple[float, ...]
"""What each pod needs, the largest first."""


@value
class Shared:
    """Fewer GPUs than the layout divides, for the same pods."""

    mode: Mode
    """MPS or TIME_SLICING."""
    replicas: int
    """Of each GPU."""
    pods: int
    """How many pods would share them."""
    gpus: int
    """How many GPUs that takes."""
    instead: int
    """GPUs that the layout takes for them."""
    needed: float
    """Bytes, headroom included: with MPS of the pod that needs most, else of the largest pods that share a GPU."""
    there: float
    """Bytes that they have: 1/replicas of the card with MPS, else the card's."""
    busy: float | None
    """Likewise, of the compute of a whole card. None: not known for all pods."""


def find_shared(found: Recommendation) -> Shared | None:
    """The way to share whole GPUs that takes the fewest; None: none takes fewer than the layout, or the goal was room
    rather than price. Pods with whole GPUs of a card that has MIG keep them, and are not counted."""
    if found.goal is not Goal.COST:
        return None
    card = found.pool.card
    sharing = [one for one in found.placed if one.profile or (not card.profiles and one.gpus == 1)]
    needs = [one.need for one in sharing]
    memory = _each_pod(needs, [float(need.memory or 0) for need in needs])
    known = [need.compute for need in needs if need.compute is not None]
    compute = _each_pod(needs, known) if len(known) == len(needs) else None
    keeping = sum(one.gpus * one.need.history.pods for one in found.placed if one not in sharing)
    instead = found.gpus - keeping
    ways = filter(None, (_mps(card, memory, compute, instead), _turns(card, memory, compute, instead)))
    return min((way for way in ways if way.gpus < instead), key=lambda way: way.gpus, default=None)


def _each_pod(needs: Sequence[Need], values: Sequence[float]) -> _Pods:
    """Return the value of each pod, where `values` are those of its workload; the largest first."""
    pairs = zip(values, needs, strict=True)
    of_all = chain.from_iterable(repeat(value, need.history.pods) for value, need in pairs)
    return tuple(sorted(of_all, reverse=True))


def _mps(card: Card, memory: _Pods, compute: _Pods | None, instead: int) -> Shared | None:
    if not memory or not memory[0]:
        return None
    most = min(card.mps_max_clients, int(memory_of(card) * GIB // memory[0]))
    if compute is not None and compute[0] > 0:
        most = min(most, int(1 / compute[0] + ROUNDING))
    if most < 2:
        return None
    gpus, replicas = _spread(len(memory), most)
    there = client_memory(card, replicas) * GIB
    busy = None if compute is None else compute[0]
    return Shared(Mode.MPS, replicas, len(memory), gpus, instead, memory[0], there, busy)


def _turns(card: Card, memory: _Pods, compute: _Pods | None, instead: int) -> Shared | None:
    whole = memory_of(card) * GIB
    for most in range(min(TURNS, len(memory)), 1, -1):
        gpus, replicas = _spread(len(memory), most)
        needed = sum(memory[:replicas])
        busy = None if compute is None else sum(compute[:replicas])
        if needed <= whole and (busy is None or busy <= 1 + ROUNDING):
            return Shared(Mode.TIME_SLICING, replicas, len(memory), gpus, instead, needed, whole, busy)
    return None


def _spread(pods: int, most: int) -> tuple[int, int]:
    """The number of GPUs with at most this many pods on each, and how many pods on each are then enough."""
    gpus = -(-pods // most)
    return gpus, -(-pods // gpus)
