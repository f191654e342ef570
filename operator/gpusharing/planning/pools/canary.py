"""The first nodes of a change, which the others wait for.

Which they are is read from the Nodes, from the fences and proofs of this revision of the policy: a restart changes
nothing, and neither does a pause.
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
    """How many more nodes may start as canaries, or why none does; None: any node may start, as far as this goes."""
    canary, policy = pooled.spec.rollout.canary, pooled.policy
    if canary is None or canary.nodes >= len(pooled.members):
        return None
    revision = find_revision(policy)
    proven = sorted(at for one in pooled.members if (at := proven_at(one, policy, revision)) is not None)
    if len(proven) >= canary.nodes:
        end = proven[canary.nodes - 1] + parse_duration(canary.soak)
        return None if pooled.now >= end else _soaks(canary.nodes, canary.soak, end)
    begun = sum(_has_begun(one, policy, revision) for one in pooled.members)
    left = canary.nodes - len(proven) - begun
    return left if left > 0 else _unproven(canary.nodes)


def proven_at(member: Member, policy: PolicyView, revision: str) -> datetime | None:
    """When a change to this revision was proven on the node; None: none was."""
    verified = member.node.verified
    if verified is None or verified.rolled_back or not is_of(verified, policy, revision):
        return None
    return verified.changed_at


def _has_begun(member: Member, policy: PolicyView, revision: str) -> bool:
    """It is in flight for this revision; one of an earlier one that goes on turns to it with its next run."""
    fence, phase = member.node.fence, member.verdict.phase
    if fence is None or fence.stage == "yielded" or fence.policy_uid != policy.uid:
        return False
    if proven_at(member, policy, revision) is not None:
        return False
    goes_on = phase.in_flight and phase not in (Phase.FAILED, Phase.ABORTING)
    return is_of(fence, policy, revision) or goes_on


def _soaks(nodes: int, soak: str, end: datetime) -> Finding:
    message = (
        f"the first {_nodes(nodes)} of spec.rollout.canary are proven and serve for {soak} before others start, until"
        f" {to_rfc3339(end)}"
    )
    return Finding(Reason.CANARY_SOAK, message, end)


def _unproven(nodes: int) -> Finding:
    return Finding(
        Reason.CANARY_SOAK, f"waiting until the first {_nodes(nodes)} of spec.rollout.canary are proven"
    )


def waits_for_canaries(nodes: int) -> str:
    """What is told of nodes that are no canaries while these start."""
    return f"the first {_nodes(nodes)} of the change (spec.rollout.canary) go before this one"


def find_note(pooled: Pooled) -> str:
    """What is odd about the canary; empty: nothing."""
    canary, total = pooled.spec.rollout.canary, len(pooled.members)
    if canary is None or not total or canary.nodes < total:
        return ""
    return f"spec.rollout.canary.nodes is {canary.nodes} and the pool has {_nodes(total)}: the whole pool is the canary"


def _nodes(count: int) -> str:
    return f"{count} node" if count == 1 else f"{count} nodes"
