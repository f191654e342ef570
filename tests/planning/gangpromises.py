"""What is promised of gangs, asked of every eviction and deletion by force: a part of the invariants (c) and (t).

The tests' own opinion: nothing is asked of the modules about gangs in drain/.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from tests.planning import podkinds
from tests.planning.broken import hold

from gpusharing.api.names import DisruptionClass
from gpusharing.planning.snapshot.actions import Evict, ForceDelete
from gpusharing.planning.snapshot.podviews import PodView

if TYPE_CHECKING:
    from tests.planning.world import World


def ended(world: "World", action: Evict | ForceDelete) -> None:
    """Nobody ends a gang of which a member must stay, on whatever node: a rank that leaves ends all of them."""
    fence, pod = world.nodes[action.node].fence, world.pods[action.node].get(action.uid)
    policy = next((one for one in world.policies if fence is not None and one.name == fence.policy), None)
    if fence is None or pod is None or pod.gang is None or policy is None or policy.spec is None:
        return
    terms = podkinds.Terms(policy.spec.drain, fence.disruption is DisruptionClass.REBOOT, world.now)
    kept = [world.kinds[mate.uid] for mate in _mates(world, pod) if podkinds.is_kept(mate, terms)]
    row = "(c) evicts" if isinstance(action, Evict) else "(t) deletes"
    hold(not kept, f"{row} {world.kinds[pod.uid]} while another of its gang must stay: {kept}")


def _mates(world: "World", pod: PodView) -> Iterator[PodView]:
    """The other members of its gang that run, GPU or not."""
    for other in world.everywhere():
        if other.gang == pod.gang and other.uid != pod.uid and podkinds.must_leave(other, reboot=True):
            yield world.readable(other)
