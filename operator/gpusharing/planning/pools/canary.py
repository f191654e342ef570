"""The first nodes of a change, which the others wait for.

The fences and proofs of this revision of the policy on the Nodes say which they are: neither a restart nor a pause
changes that.

A canary of more nodes than the pool has cannot be proven, so no node in service starts. A pool that becomes smaller
than its canary after the canary began goes on: the nodes that are gone took their proofs with them, and the first
remaining node in service stands in for all (docs/adr/0055-a-canary-larger-than-its-pool.md).
"""

from datetime import datetime

from gpusharing.api.names import Phase
from gpusharing.api.times import to_rfc3339
from gpusharing.api.validation import parse_duration
from gpusharing.planning.pools.pooled import Pooled
from gpusharing.planning.snapshot.views import PolicyView
from gpusharing.planning.wanted.revision import find_revision, is_of
from gpusharing.planning.way.members import Member
from gpusharing.planning.words.findings import Finding
from gpusharing.planning.words.reasons import Reason


def find_canary(pooled: Pooled) -> int | Finding | None:
    """How many more nodes may start as canaries, or why none may; None: the canary keeps no node from starting."""
    canary, policy, members = pooled.spec.rollout.canary, pooled.policy, pooled.members
    if canary is None or not members or canary.nodes == len(members):
        return None
    nodes, revision = canary.nodes, find_revision(policy)
    if outnumbers(pooled):
        nodes, members = 1, [one for one in members if not _is_apart(one, policy, revision)]
    proven = sorted(at for one in members if (at := proven_at(one, policy, revision)) is not None)
    if len(proven) >= nodes:
        end = proven[nodes - 1] + parse_duration(canary.soak)
        return None if pooled.now >= end else _soaks(nodes, canary.soak, end)
    left = nodes - len(proven) - sum(_has_begun(one, policy, revision) for one in members)
    if left <= 0:
        return _unproven(nodes)
    return _too_large(pooled, canary.nodes, canary.soak) if outnumbers(pooled) else left


def outnumbers(pooled: Pooled) -> bool:
    """The canary has more nodes than the pool, and the pool is not empty. That holds nothing up for a policy that is
    being deleted: nobody can correct it any more."""
    canary = pooled.spec.rollout.canary
    return canary is not None and 0 < len(pooled.members) < canary.nodes and not pooled.policy.resetting


def proven_at(member: Member, policy: PolicyView, revision: str) -> datetime | None:
    """When a change to this revision was proven on the node; None: it was not."""
    verified = member.node.verified
    if verified is None or verified.rolled_back or not is_of(verified, policy, revision):
        return None
    return verified.changed_at


def _is_apart(member: Member, policy: PolicyView, revision: str) -> bool:
    """Its change is unaffected by a canary that is too large: it is that of a newcomer, which starts anyway, or it
    began under another spec."""
    fence, verified = member.node.fence, member.node.verified
    if fence is not None:
        return fence.newcomer or fence.turned or not is_of(fence, policy, revision)
    return verified is not None and verified.apart


def _has_begun(member: Member, policy: PolicyView, revision: str) -> bool:
    """It is in flight for this revision; a change of an earlier revision that goes on switches to this one with its
    next run."""
    fence, phase = member.node.fence, member.verdict.phase
    if fence is None or fence.stage == "yielded" or fence.policy_uid != policy.uid:
        return False
    if proven_at(member, policy, revision) is not None:
        return False
    goes_on = phase.in_flight and phase not in (Phase.FAILED, Phase.ABORTING)
    return is_of(fence, policy, revision) or goes_on


def _soaks(nodes: int, soak: str, end: datetime) -> Finding:
    message = (
        f"the first {_nodes(nodes)} (spec.rollout.canary) have been proven; others start once these have served for"
        f" {soak}, at {to_rfc3339(end)}"
    )
    return Finding(Reason.CANARY_SOAK, message, end)


def _unproven(nodes: int) -> Finding:
    return Finding(
        Reason.CANARY_SOAK, f"waiting for the first {_nodes(nodes)} (spec.rollout.canary) to be proven"
    )


def _too_large(pooled: Pooled, nodes: int, soak: str) -> Finding:
    total = len(pooled.members)
    message = (
        f"policy {pooled.policy.name}: {_said(pooled, nodes)}, so no node in service starts. Set it to {total} or"
        f" fewer, for example canary: {{nodes: 1, soak: {soak}}}"
    )
    return Finding(Reason.CANARY_TOO_LARGE, message)


def waits_for_canaries(nodes: int) -> str:
    """The message for nodes that are not canaries while the canaries start."""
    return f"the first {_nodes(nodes)} of the change (spec.rollout.canary) start before this one"


def find_note(pooled: Pooled) -> str:
    """What is odd about the canary; empty: nothing."""
    canary, total = pooled.spec.rollout.canary, len(pooled.members)
    if canary is None or not total or canary.nodes < total:
        return ""
    if canary.nodes == total:
        return f"{_said(pooled, total)}: the whole pool is the canary"
    found = find_canary(pooled)
    if isinstance(found, Finding) and found.reason is Reason.CANARY_TOO_LARGE:
        return found.message
    return f"{_said(pooled, canary.nodes)} by now: the first of the remaining nodes is its canary"


def _said(pooled: Pooled, nodes: int) -> str:
    return f"spec.rollout.canary.nodes is {nodes} and the pool has {_nodes(len(pooled.members))}"


def _nodes(count: int) -> str:
    return f"{count} node" if count == 1 else f"{count} nodes"
