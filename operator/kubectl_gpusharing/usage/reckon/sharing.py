"""Would the pods of a recommended layout fit on fewer GPUs if they shared whole ones? This is only the arithmetic:
nothing isolates pods that share a GPU, so people have to decide whether that is acceptable (`advise` asks them).

A policy gives all GPUs the same number of replicas, and the scheduler may put any pods together, so the worst case
counts:

- *MPS* divides a GPU evenly (docs/design/hardware.md#mps-share): the pod with the greatest need must fit into 1/n of
the memory and of the compute.

- *Time-slicing* divides nothing: the n pods that need most memory must fit together, and so must the n pods that need
most compute. With more than TURNS pods, each would wait too long for its turn.
"""

from collections.abc import Sequence
from itertools import chain

from gpusharing.api.names import Mode
from gpusharing.planning.gpus.capacity import TURNS, client_memory, memory_of
from gpusharing.planning.gpus.cards import Card
from gpusharing.planning.vocabulary.values import value
from kubectl_gpusharing.usage.reckon.needs import GIB, Goal
from kubectl_gpusharing.usage.reckon.recommendation import Recommendation
from kubectl_gpusharing.usage.reckon.templates import ROUNDING

_Pods = Sequence[float]
"""The need of each pod, the largest first."""


@value
class Shared:
    """A way to serve the same pods with fewer GPUs than the layout takes, by sharing whole ones."""

    mode: Mode
    """The mode, MPS or TIME_SLICING."""
    replicas: int
    """How many replicas each GPU has."""
    pods: int
    """How many pods would share them."""
    gpus: int
    """How many GPUs this takes."""
    instead: int
    """How many GPUs the layout takes for the same pods."""
    needed: float
    """The bytes needed, headroom included: with MPS by the pod with the greatest need, otherwise by the largest pods
    that may share a GPU."""
    there: float
    """The bytes available for that: with MPS 1/replicas of the card's memory, otherwise all of it."""
    busy: float | None
    """The compute that these pods use, as a part of a whole card, or None if it is not known for every pod."""


def find_shared(recommendation: Recommendation) -> Shared | None:
    """Return the way to share whole GPUs that takes the fewest GPUs, or MPS if both ways take equally many. Return None
    if the goal is performance or if no way takes fewer GPUs than the layout does for the same pods. The compute is
    disregarded unless it is known for every pod. Pods that get several whole GPUs keep them and are not counted. On a
    card with MIG, pods that get one whole GPU keep it, too."""
    if recommendation.goal is not Goal.COST:
        return None
    card, placed = recommendation.pool.card, recommendation.placed
    sharing = [place for place in placed if place.profile or (not card.profiles and place.gpus == 1)]
    of_pods = list(chain.from_iterable([place.need] * place.need.history.pods for place in sharing))
    memory = sorted((float(need.memory or 0) for need in of_pods), reverse=True)
    known = sorted((need.compute for need in of_pods if need.compute is not None), reverse=True)
    compute = known if len(known) == len(of_pods) else None
    keeping = sum(place.gpus * place.need.history.pods for place in placed if place not in sharing)
    instead = recommendation.gpus - keeping
    ways = filter(None, (_mps(card, memory, compute, instead), _turns(card, memory, compute, instead)))
    return min((way for way in ways if way.gpus < instead), key=lambda way: way.gpus, default=None)


def _mps(card: Card, memory: _Pods, compute: _Pods | None, instead: int) -> Shared | None:
    """Return how MPS would serve these pods, spread evenly over the fewest GPUs. A GPU has at most the clients that MPS
    allows, and that fit if each used any pod's most memory and, if known, compute. `instead` is the number of GPUs in
    the layout. Return None without pods, for fewer than two clients, or if the memory is unknown."""
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
    """Return how time-slicing would serve these pods, at most TURNS on a GPU and spread evenly over as few GPUs as they
    fit on. `instead` is the number of GPUs in the layout. The pods that need most must fit together in memory and, if
    it is known, in compute. Return None if not even two pods fit on a GPU, or if there are fewer than two."""
    whole = memory_of(card) * GIB
    for most in range(min(TURNS, len(memory)), 1, -1):
        gpus, replicas = _spread(len(memory), most)
        needed = sum(memory[:replicas])
        busy = None if compute is None else sum(compute[:replicas])
        if needed <= whole and (busy is None or busy <= 1 + ROUNDING):
            return Shared(Mode.TIME_SLICING, replicas, len(memory), gpus, instead, needed, whole, busy)
    return None


def _spread(pods: int, most: int) -> tuple[int, int]:
    """Return how many GPUs `pods` pods need with at most `most` on each, and the highest number of pods on one GPU if
    they are spread evenly over these GPUs. Both arguments must be above 0."""
    gpus = -(-pods // most)
    return gpus, -(-pods // gpus)
