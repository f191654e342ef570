"""The first nodes of a change, for which the others wait.

The canaries are identified by the fences and proofs for this revision of the policy on the Nodes, so neither a restart
nor a pause changes them.

A canary with more nodes than its pool cannot be proven, so no node in service starts. If a pool becomes smaller than
its canary after the canary began, the rollout goes on: the nodes that are gone took their proofs with them, and the
first remaining node in service stands in for all canaries (docs/adr/0055-a-canary-larger-than-its-pool.md).

Until another node has started, each proven canary must also serve what was proven on it. A canary that fails to do so
keeps the other nodes waiting. It is not replaced, because otherwise one node after another would be used up, and the
soak does not start over.

Terms: docs/design/glossary.md#proof, docs/design/glossary.md#newcomer, docs/design/glossary.md#fence,
docs/design/glossary.md#drift.
"""

from collections.abc import Sequence
from datetime import datetime

from gpusharing.api.names import WAY, Phase
from gpusharing.api.times import to_rfc3339
from gpusharing.api.validation import parse_duration
from gpusharing.planning.pools.keepers import explain_keepers, first_keeper, goes_on, is_for_a_person
from gpusharing.planning.pools.pool import Pool
from gpusharing.planning.snapshot.views import NodeView, PolicyView
from gpusharing.planning.transition.members import Member, is_begun
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.vocabulary.lengths import counted
from gpusharing.planning.vocabulary.reasons import Reason


def find_canary(pool: Pool) -> int | Finding | None:
    """Return how many more nodes may start as canaries, which are the nodes that are proven first, or the Finding that
    says why no further node may start: a canary no longer serves what was proven on it, is not proven yet, or has not
    served for long enough. None if the canary keeps no node from starting. That is so if the policy has no canary, if
    the pool is empty or has exactly as many nodes as the canary, or if the canaries have served for long enough.

    If the canary `outnumbers` the pool, the first node that has begun counts as the canary. Until a node has begun, the
    Finding says that the canary is too large.
    """
    canary, policy, members = pool.spec.rollout.canary, pool.policy, pool.members
    if canary is None or not members or canary.nodes == len(members):
        return None
    nodes = canary.nodes
    if outnumbers(pool):
        nodes, members = 1, [one for one in members if not _is_apart(one, policy)]
    proven = _find_proven(members, policy)
    end = proven[nodes - 1][0] + parse_duration(canary.soak) if len(proven) >= nodes else None
    canaries = [one for _, _, one in proven[:nodes]]
    if broken := _broken(pool, canaries, members, end):
        return broken
    if end is not None:
        return None if pool.now >= end else _soaks(nodes, canary.soak, end)
    begun = _find_begun(members, policy)
    if (left := nodes - len(proven) - len(begun)) > 0:
        return _too_large(pool, canary.nodes, canary.soak) if outnumbers(pool) else left
    return _unproven(
        f"waiting for the canary of {counted(nodes, 'node')} (spec.rollout.canary) to be proven", begun
    )


def _find_proven(members: Sequence[Member], policy: PolicyView) -> list[tuple[datetime, str, Member]]:
    """Return the nodes on which a change to this revision was proven (`proven_at`), oldest proof first, and of equally
    old ones the first by name. Each tuple has the time of the proof, the node's name and the member."""
    proofs = ((proven_at(one.node, policy), one.node.name, one) for one in members)
    return sorted((at, name, one) for at, name, one in proofs if at is not None)


def outnumbers(pool: Pool) -> bool:
    """Whether the canary has more nodes than the pool, and the pool is not empty. False for a policy that resets its
    nodes, because nobody can correct such a policy any more."""
    canary = pool.spec.rollout.canary
    return canary is not None and 0 < len(pool.members) < canary.nodes and not pool.policy.resetting


def proven_at(node: NodeView, policy: PolicyView) -> datetime | None:
    """Return when a change to this revision was proven on the node. None if no such change was proven, if the node was
    rolled back, or if the proof does not record the time."""
    verified = node.verified
    if verified is None or verified.rolled_back or verified.version != policy.version:
        return None
    return verified.changed_at


def _is_apart(member: Member, policy: PolicyView) -> bool:
    """Whether the change of the node is unaffected by a canary that is too large: the node is a newcomer, which starts
    anyway, or the change began under another revision. Without a fence, the node's last proof says whether either was
    the case; False if it has no proof either."""
    fence, verified = member.node.fence, member.node.verified
    if fence is not None:
        return fence.newcomer or fence.turned or fence.version != policy.version
    return verified is not None and verified.apart


def _find_begun(members: Sequence[Member], policy: PolicyView) -> list[Member]:
    """Return the nodes on which a change that will prove this revision is under way (`_has_begun`), in their order."""
    return [one for one in members if _has_begun(one, policy)]


def _has_begun(member: Member, policy: PolicyView) -> bool:
    """Whether a change is under way on the node that will prove this revision, at the latest by its next run."""
    fence, phase = member.node.fence, member.verdict.phase
    if fence is None or fence.stage == "yielded" or fence.version.uid != policy.uid:
        return False
    if proven_at(member.node, policy) is not None:
        return False
    return fence.version == policy.version or phase in WAY


def _broken(
    pool: Pool, canaries: Sequence[Member], members: Sequence[Member], end: datetime | None
) -> Finding | None:
    """Return the CanaryNotServing Finding about the first canary by name that no longer serves what was proven on it
    (`_why_not_serving`); that node is also its `keeper`. `members` are the nodes among which another one that has
    started is looked for. `end` is when the soak ends, or None if not all canaries are proven.

    None if all canaries serve what was proven, or if another node has started since `end`. None also if the policy
    resets its nodes, because nobody can correct such a policy any more.
    """
    if pool.policy.resetting:
        return None
    for canary in sorted(canaries, key=lambda canary: canary.node.name):
        if why := _why_not_serving(canary):
            break
    else:
        return None
    if end is not None and _others_began(pool, canaries, members, end):
        return None
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


def _others_began(pool: Pool, canaries: Sequence[Member], members: Sequence[Member], end: datetime) -> bool:
    """Whether a node that is not a canary has proven the policy's present revision after the soak ended at `end`, or is
    in a change to that revision that began at `end` or later. From then on the state of the canaries no longer holds
    other nodes back."""
    policy = pool.policy
    known = {member.node.name for member in canaries}
    for member in members:
        if member.node.name in known:
            continue
        fence, proof = member.node.fence, proven_at(member.node, policy)
        if proof is not None and proof > end:
            return True
        if fence is not None and fence.since >= end and _has_begun(member, policy):
            return True
    return False


def _soaks(nodes: int, soak: str, end: datetime) -> Finding:
    """Return the CanarySoak Finding that the canaries are proven and must serve until `end`, which is also its `until`,
    before other nodes start. `nodes` is the size of the canary, and `soak` the duration as the policy has it."""
    message = (
        f"the canary of {counted(nodes, 'node')} (spec.rollout.canary) has been proven; the other nodes follow once"
        f" it has been in service for {soak}, at {to_rfc3339(end)}"
    )
    return Finding(Reason.CANARY_SOAK, message, end)


def _unproven(message: str, begun: Sequence[Member]) -> Finding:
    """Return the CanarySoak Finding for nodes that wait for canaries to be proven. `begun` are the canaries whose
    change is under way. If the change of some does not end by itself, the message is `message` with their reasons, the
    first of them by name is the `keeper`, and `stands` says whether one of them waits for a person."""
    kept = [one for one in begun if not goes_on(one.verdict)]
    told = f" ({keepers})" if (keepers := explain_keepers(kept)) else ""
    stands = any(map(is_for_a_person, kept))
    return Finding(Reason.CANARY_SOAK, message + told, keeper=first_keeper(kept), stands=stands)


def _too_large(pool: Pool, nodes: int, soak: str) -> Finding:
    """Return the CanaryTooLarge Finding that the canary is larger than the pool, with a value to set instead. `nodes`
    and `soak` are the fields of the policy's canary."""
    total = len(pool.members)
    message = (
        f"policy {pool.policy.name}: {_sizes(pool, nodes)}, so the operator does not change any node in service."
        f" Set that field to {total} or less, for example canary: {{nodes: 1, soak: {soak}}}"
    )
    return Finding(Reason.CANARY_TOO_LARGE, message)


def wait_for_canaries(pool: Pool) -> Finding:
    """Return the CanarySoak Finding for nodes that are not canaries while the canaries start. It also names the
    canaries whose change does not end by itself (`_unproven`)."""
    canary, policy = pool.spec.rollout.canary, pool.policy
    nodes = counted(canary.nodes if canary is not None else 0, "node")
    begun = _find_begun(pool.members, policy)
    return _unproven(f"the canary of {nodes} (spec.rollout.canary) goes before this node", begun)


def find_note(pool: Pool) -> str:
    """Return a note if the canary has at least as many nodes as the pool. The note says that the whole pool is the
    canary, that the canary is too large, or that by now only the first remaining node is the canary. The whole pool is
    it too if the canary has more nodes but does not count as larger (`outnumbers`). Empty if the canary has fewer
    nodes, or if there is no canary or no member."""
    canary, total = pool.spec.rollout.canary, len(pool.members)
    if canary is None or not total or canary.nodes < total:
        return ""
    if not outnumbers(pool):
        return f"{_sizes(pool, canary.nodes)}, so the whole pool is the canary"
    state = find_canary(pool)
    if isinstance(state, Finding) and state.reason is Reason.CANARY_TOO_LARGE:
        return state.message
    return f"{_sizes(pool, canary.nodes)} by now, so the first of the remaining nodes is the canary"


def _sizes(pool: Pool, nodes: int) -> str:
    """Return the clause that compares the canary's `nodes` with the size of the pool."""
    return f"spec.rollout.canary.nodes is {nodes}, and the pool has {counted(len(pool.members), 'node')}"
