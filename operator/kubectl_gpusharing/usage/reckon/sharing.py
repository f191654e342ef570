"""Would the pods of a recommended layout fit on fewer GPUs if they shared whole ones? Nothing isolates them then, so people have to decide (`advise` asks them).

All GPUs get the same number of replicas, and the scheduler may put any pods together, so the worst case counts: with *MPS* (docs/design/hardware.md#mps-share) the greatest need must fit into 1/n of the memory and of the compute; with *time-slicing* the n greatest needs must fit together, and more than TURNS pods would wait too long.
"""

from itertools import chain

from gpusharing.api.names import Mode
from gpusharing.planning.gpus.capacity import TURNS, client_memory, memory_of
from gpusharing.planning.vocabulary.values import value
from kubectl_gpusharing.usage.reckon.needs import GIB, Goal
from kubectl_gpusharing.usage.reckon.recommendation import Recommendation
from kubectl_gpusharing.usage.reckon.templates import ROUNDING


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
