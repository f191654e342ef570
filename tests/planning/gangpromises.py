"""What is promised of gangs, asked of every eviction and deletion by force, and of what is told of their members: a part of the invariants (c), (k) and (t).
The tests' own opinion: nothing is asked of the modules about gangs in drain/."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from tests.planning import podkinds
from tests.planning.broken import hold

from gpusharing.api.names import DisruptionClass
from gpusharing.api.policy import Drain
from gpusharing.planning.rollout import RolloutPlan
from gpusharing.planning.snapshot.actions import Evict, ForceDelete
from gpusharing.planning.snapshot.podviews import PodView
from gpusharing.planning.snapshot.views import NodeView
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.wanted.ownership import Owners, find_contenders

if TYPE_CHECKING:
    from tests.planning.world import World


def ended(world: "World", action: Evict | ForceDelete) -> None:
    """Nobody ends a gang of which a member must stay, on whatever node: a rank that leaves ends all of them.

    It must stay by the policy of the change, or by that of its own node.
    """
    node, pod = world.nodes[action.node], world.pods[action.node].get(action.uid)
    if node.fence is None or pod is None or pod.gang is None:
        return
    reboot, row = node.fence.disruption is DisruptionClass.REBOOT, "(c) evicts"
    row = "(t) deletes" if isinstance(action, ForceDelete) else row
    for where, mate in _mates(world, pod):
        for drain in (_drain_of(world, node), _drain_of(world, world.nodes[where])):
            if drain is None:
                continue
            terms = podkinds.Terms(drain, reboot, world.now, by_dra=world.stack.by_dra)
            hold(
                not podkinds.is_kept(mate, terms),
                f"{row} {world.kinds[pod.uid]} while {world.kinds[mate.uid]} of its gang must stay on {where}",
            )


def told(world: "World", plan: RolloutPlan) -> None:
    """Nobody is told that labels of a namespace cannot be read while they can, of a node whose pods were listed in this pass: not even of members of gangs that hold no GPU."""
    listed = world.memory.passed.wants_pods - world.unlisted if world.namespace is not None else ()
    for verdict in plan.verdicts.values():
        undecided = any(one.reason is Reason.NAMESPACE_UNREADABLE for one in verdict.blockers)
        hold(not (undecided and verdict.node in listed), f"(k) a namespace was not read: {verdict.blockers}")


def _mates(world: "World", pod: PodView) -> Iterator[tuple[str, PodView]]:
    """The other members of its gang that run, GPU or not, and their nodes."""
    for node, pods in world.pods.items():
        for other in pods.values():
            if other.gang == pod.gang and other.uid != pod.uid and podkinds.must_leave(other, reboot=True):
                yield node, world.readable(other)


def _drain_of(world: "World", node: NodeView) -> Drain | None:
    """What the policy that the node follows says: that of its change, else the one that owns it."""
    policies = {policy.name: policy for policy in world.policies}
    owner = policies.get(Owners(find_contenders(world.policies)).owner(node))
    policy = policies.get(node.fence.policy, owner) if node.fence is not None else owner
    return policy.spec.drain if policy is not None and policy.spec is not None else None
