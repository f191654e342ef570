"""What is promised of the first nodes of a change, asked of every start: the invariant (n) of rollout.py."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from tests.planning.broken import hold
from tests.planning.pooling import pool

from gpusharing.api.policy import GPUSharingPolicySpec
from gpusharing.api.validation import parse_duration
from gpusharing.planning.snapshot.actions import FenceNode
from gpusharing.planning.snapshot.records import Fence, Verified
from gpusharing.planning.snapshot.views import NodeView, PolicyView

if TYPE_CHECKING:
    from tests.planning.world import World


def canaries_first(world: "World", action: FenceNode, policy: PolicyView, spec: GPUSharingPolicySpec) -> None:
    """No node starts beside canaries that are not proven, or have not served for long enough, or cannot all be."""
    canary = spec.rollout.canary
    if canary is None:
        return
    mine = pool(world, policy.name)
    if canary.nodes == len(mine):
        return
    same, outnumbers = partial(world.ledger.is_of, policy=policy), canary.nodes > len(mine)
    if policy.resetting and not outnumbers:
        _soaks_beyond_its_reset(world, policy, spec)
    proofs = sorted(
        one.verified.changed_at
        for one in mine
        if one.verified is not None and one.verified.changed_at is not None and same(one.verified)
        if not one.verified.rolled_back and not (outnumbers and one.uid in world.ledger.apart)
    )
    if outnumbers:
        served = any(world.now - at >= parse_duration(canary.soak) for at in proofs)
        hold(
            served or action.fence.newcomer,
            f"(n) a node in service starts in a pool of {len(mine)}, for {canary.nodes} canaries",
        )
        return
    if len(proofs) >= canary.nodes:
        since = world.now - proofs[canary.nodes - 1]
        hold(since >= parse_duration(canary.soak), f"(n) the canaries have served for {since} only")
        return
    begun = [
        one for one in mine if one.fence is not None and _has_begun(one, same) and one is not action.node
    ]
    hold(
        len(proofs) + len(begun) < canary.nodes,
        f"(n) more nodes than {canary.nodes} canaries start before these are proven",
    )


def _soaks_beyond_its_reset(world: "World", policy: PolicyView, spec: GPUSharingPolicySpec) -> None:
    """Canaries that nothing is remembered of have served all the same."""
    here = {node.uid for node in world.nodes.values()}
    known, generation = world.ledger.proofs.items(), (policy.uid, policy.generation)
    proofs = sorted(at for uid, (of, at) in known if of == generation and uid in here)
    canary = spec.rollout.canary
    if canary is not None and len(proofs) >= canary.nodes:
        served = world.now - proofs[canary.nodes - 1]
        hold(
            served >= parse_duration(canary.soak), f"(n) nodes that were reset have served for {served} only"
        )


def _has_begun(node: NodeView, same: Callable[[Fence | Verified], bool]) -> bool:
    fence = node.fence
    if fence is None or fence.stage == "yielded":
        return False
    proof = node.verified
    if proof is not None and proof.changed_at is not None and same(proof):
        return False  # counted as proven
    return same(fence)
