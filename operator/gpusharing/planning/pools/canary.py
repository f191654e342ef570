"""The first nodes of a change, for which the others wait.

The canaries are identified by the fences and proofs for this revision of the policy on the Nodes, so neither a restart nor a pause changes them. A canary with more nodes than its pool cannot be proven, so no node in service starts, unless the pool shrank after the canary began (docs/adr/0055-a-canary-larger-than-its-pool.md).

Until another node has started, each proven canary must also serve what was proven on it. One that fails to do so is not replaced, because otherwise one node after another would be used up, and the soak does not start over.
"""

from collections.abc import Sequence
from datetime import datetime

from gpusharing.api.names import WAY, Phase
from gpusharing.api.times import to_rfc3339
from gpusharing.api.validation import parse_duration
from gpusharing.planning.pools.keepers import goes_on, is_for_a_person, name_keepers
from gpusharing.planning.pools.pool import Pool
from gpusharing.planning.snapshot.views import NodeView, PolicyView
from gpusharing.planning.transition.members import Member, is_begun
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.vocabulary.lengths import counted
from gpusharing.planning.vocabulary.reasons import Reason


def find_canary(pool: Pool) -> int | Finding | None:
    """Return how many more nodes may start as canaries, or why no further node may start, or None if the canary keeps no node from starting."""
    canary, policy, members = pool.spec.rollout.canary, pool.policy, pool.members
    if canary is None or not members or canary.nodes == len(members):
        return None
    nodes, large = canary.nodes, outnumbers(pool)
    if large:
        nodes, members = 1, [one for one in members if not _is_apart(one, policy)]
    proofs = ((proven_at(one.node, policy), one.node.name, one) for one in members)
    proven = sorted((at, name, one) for at, name, one in proofs if at is not None)
    end = proven[nodes - 1][0] + parse_duration(canary.soak) if len(proven) >= nodes else None
    if broken := _find_broken(pool, [one for _, _, one in proven[:nodes]], members, end):
        return broken
    if end is not None:
        message = (
            f"the canary of {counted(nodes, 'node')} (spec.rollout.canary) has been proven; the other nodes follow once"
            f" it has been in service for {canary.soak}, at {to_rfc3339(end)}"
        )
        return None if pool.now >= end else Finding(Reason.CANARY_SOAK, message, end)
    begun = [one for one in members if _has_begun(one, policy)]
    left = nodes - len(proven) - len(begun)
    if left > 0 and large:
        message = (
            f"policy {policy.name}: {_sizes(pool, canary.nodes)}, so the operator does not change any node in service."
            f" Set that field to {len(pool.members)} or less, for example canary: {{nodes: 1, soak: {canary.soak}}}"
        )
        return Finding(Reason.CANARY_TOO_LARGE, message)
    message = f"waiting for the canary of {counted(nodes, 'node')} (spec.rollout.canary) to be proven"
    return left if left > 0 else _unproven(message, begun)


def outnumbers(pool: Pool) -> bool:
    """Whether the canary has more nodes than the pool; False for a policy that resets its nodes, because nobody can correct it any more."""
    canary = pool.spec.rollout.canary
    return canary is not None and 0 < len(pool.members) < canary.nodes and not pool.policy.resetting


def proven_at(node: NodeView, policy: PolicyView) -> datetime | None:
    """Return when a change to this revision was proven on the node, or None if none was or the time is unknown."""
    verified = node.verified
    if verified is None or verified.rolled_back or verified.version != policy.version:
        return None
    return verified.changed_at


def _is_apart(member: Member, policy: PolicyView) -> bool:
    # A canary that is too large does not affect newcomers and changes that began under another revision.
    fence, verified = member.node.fence, member.node.verified
    if fence is not None:
        return fence.newcomer or fence.turned or fence.version != policy.version
    return verified is not None and verified.apart


def _has_begun(member: Member, policy: PolicyView) -> bool:
    fence = member.node.fence
    if fence is None or fence.stage == "yielded" or fence.version.uid != policy.uid:
        return False
    if proven_at(member.node, policy) is not None:
        return False
    return fence.version == policy.version or member.verdict.phase in WAY  # the next run is for this revision


def _find_broken(
    pool: Pool, canaries: Sequence[Member], members: Sequence[Member], end: datetime | None
) -> Finding | None:
    policy = pool.policy
    if policy.resetting:  # nobody can correct such a policy any more
        return None
    for canary in sorted(canaries, key=lambda canary: canary.node.name):
        if why := _why_not_serving(canary):
            break
    else:
        return None
    known = {one.node.name for one in canaries}
    for member in members:
        fence, proof = member.node.fence, proven_at(member.node, policy)
        if end is None or member.node.name in known:
            continue
        began = fence is not None and fence.since >= end and _has_begun(member, policy)
        if began or (proof is not None and proof > end):
            return None  # once another node has started, the canaries hold nobody back
    message = (
        f"{canary.node.name}, a canary (spec.rollout.canary), no longer serves the layout that was proven there:"
        f" {why}. No other node starts until the canary serves it again or leaves the pool, or the policy asks for"
        " something else"
    )
    return Finding(Reason.CANARY_NOT_SERVING, message, keeper=f"node/{canary.node.name}")


def _why_not_serving(member: Member) -> str:
    node, verdict = member.node, member.verdict
    if is_begun(node):  # every waiting node shows this, so the steps of the change are not named
        return "it has failed" if verdict.phase is Phase.FAILED else "it is being changed"
    if node.deleting:
        return "its Node is being deleted"
    if not node.ready:
        return "it is not Ready"
    if node.unschedulable:
        return "it is cordoned"
    proven = verdict.phase is Phase.SYNCED and verdict.reason is Reason.SYNCED
    return "" if proven else str(verdict.reason)


def _unproven(message: str, begun: Sequence[Member]) -> Finding:
    kept = [one for one in begun if not goes_on(one.verdict)]
    why, keeper = name_keepers(kept)
    stands = any(map(is_for_a_person, kept))
    return Finding(Reason.CANARY_SOAK, message + why, keeper=keeper, stands=stands)


def wait_for_canaries(pool: Pool) -> Finding:
    """Return the Finding for nodes that are not canaries while the canaries start."""
    canary, policy = pool.spec.rollout.canary, pool.policy
    nodes = counted(canary.nodes if canary is not None else 0, "node")
    begun = [one for one in pool.members if _has_begun(one, policy)]
    return _unproven(f"the canary of {nodes} (spec.rollout.canary) goes before this node", begun)


def find_note(pool: Pool) -> str:
    """Return a note for people if the canary has at least as many nodes as the pool, else an empty string."""
    canary, total = pool.spec.rollout.canary, len(pool.members)
    if canary is None or not total or canary.nodes < total:
        return ""
    sizes = _sizes(pool, canary.nodes)
    if not outnumbers(pool):
        return f"{sizes}, so the whole pool is the canary"
    state = find_canary(pool)
    if isinstance(state, Finding) and state.reason is Reason.CANARY_TOO_LARGE:
        return state.message
    return f"{sizes} by now, so the first of the remaining nodes is the canary"


def _sizes(pool: Pool, nodes: int) -> str:
    return f"spec.rollout.canary.nodes is {nodes}, and the pool has {counted(len(pool.members), 'node')}"
