"""What is promised of the first nodes of a change, asked of every start: the invariant (n) of rollout.py."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from tests.planning.broken import hold
from tests.planning.pooling import is_away, pool

from gpusharing.api import names
from gpusharing.api.policy import GPUSharingPolicySpec
from gpusharing.api.times import parse_duration
from gpusharing.planning.gpus.health import is_healthy
from gpusharing.planning.snapshot.actions import FenceNode
from gpusharing.planning.snapshot.records import Fence, Verified
from gpusharing.planning.snapshot.views import NodeView, PolicyView
from gpusharing.planning.transition.verdict import find_health

if TYPE_CHECKING:
    from tests.planning.world import World


def canaries_first(world: "World", action: FenceNode, policy: PolicyView, spec: GPUSharingPolicySpec) -> None:
    """No node starts beside canaries that are not proven, or have not served for long enough, or cannot all be, or do not serve; a canary that drifted is put right all the same."""
    canary = spec.rollout.canary
    if canary is None:
        return
    mine = pool(world, policy.name)
    if canary.nodes == len(mine) or (policy.resetting and canary.nodes > len(mine)):
        return  # nobody can correct the canary of a policy that is being deleted
    same, outnumbers = partial(world.ledger.is_of, policy=policy), canary.nodes > len(mine)
    if policy.resetting:
        _soaks_beyond_its_reset(world, policy, spec)
    proven = sorted(
        (one.verified.changed_at, one.name)
        for one in mine
        if one.verified is not None and one.verified.changed_at is not None and same(one.verified)
        if not one.verified.rolled_back and not (outnumbers and one.uid in world.ledger.apart)
    )
    if not policy.resetting and action.node.name in {name for _, name in proven}:
        return
    if not policy.resetting and not (outnumbers and action.fence.newcomer):
        _serve(world, mine, [name for _, name in proven], 1 if outnumbers else canary.nodes, action)
    proofs = [at for at, _ in proven]
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
    begun = [one for one in mine if one.fence is not None and _has_begun(one, same) and one is not action.node]
    hold(
        len(proofs) + len(begun) < canary.nodes,
        f"(n) more nodes than {canary.nodes} canaries start before these are proven",
    )


def _serve(world: "World", mine: list[NodeView], proven: list[str], most: int, action: FenceNode) -> None:
    """The canaries serve what was proven on them. Once another node has started, nobody asks any more."""
    fences = (one.fence for one in mine if one.name not in proven and one is not action.node)
    if len(proven) > most or any(fence is not None and fence.stage != "yielded" for fence in fences):
        return
    for name in proven:
        node, health = world.nodes[name], find_health(world.gpunodes.get(name))
        healthy = health is None or is_healthy(health)
        key = node.labels.get(names.LABEL_PLUGIN_CONFIG, "")
        as_proven = node.verified is not None and node.verified.plugin_config == key
        hold(healthy and as_proven and not is_away(node), f"(n) {name}, a canary, does not serve")


def _soaks_beyond_its_reset(world: "World", policy: PolicyView, spec: GPUSharingPolicySpec) -> None:
    """Canaries that nothing is remembered of have served all the same."""
    here = {node.uid for node in world.nodes.values()}
    known, generation = world.ledger.proofs.items(), policy.version
    proofs = sorted(at for uid, (of, at) in known if of == generation and uid in here)
    canary = spec.rollout.canary
    if canary is not None and len(proofs) >= canary.nodes:
        served = world.now - proofs[canary.nodes - 1]
        hold(served >= parse_duration(canary.soak), f"(n) nodes that were reset have served for {served} only")


def _has_begun(node: NodeView, same: Callable[[Fence | Verified], bool]) -> bool:
    fence = node.fence
    if fence is None or fence.stage == "yielded":
        return False
    proof = node.verified
    if proof is not None and proof.changed_at is not None and same(proof):
        return False  # counted as proven
    return same(fence)
