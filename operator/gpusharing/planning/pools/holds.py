"""What may keep all waiting nodes of a policy from starting (a hold), and the verdict of a node that waits.

Holds are looked for once per pool and pass, and only while some node could start. Nodes in flight go on, and some holds let a few nodes through (`select` in room.py).
"""

import re
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace

from gpusharing.api import names
from gpusharing.api.names import Phase
from gpusharing.api.validation import allowance
from gpusharing.planning.pools.approval import plan_hash
from gpusharing.planning.pools.canary import find_canary, outnumbers
from gpusharing.planning.pools.pool import Pool
from gpusharing.planning.snapshot.views import PolicyView
from gpusharing.planning.transition.attempts import failed_before
from gpusharing.planning.transition.members import Member
from gpusharing.planning.transition.verdict import NodeCase, Verdict
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.vocabulary.lengths import counted, some
from gpusharing.planning.vocabulary.reasons import Reason

_SHOWN = 64
"""The maximum number of characters shown of an annotation that allows nothing."""
_RESUMED = re.compile(r"([0-9a-f]{12})(?:\.([1-9][0-9]{0,4}))?")


def find_hold(pool: Pool, past: AbstractSet[Reason] = frozenset()) -> Finding | None:
    """Return the first hold of the pool whose reason is not in `past`, or None if there is none."""
    return next((hold for hold in _find_holds(pool) if hold.reason not in past), None)


def _find_holds(pool: Pool) -> Iterator[Finding]:
    # Holds that a person has to end come before those that the clock ends.
    policy, rollout = pool.policy, pool.spec.rollout
    if allowance(rollout.max_unavailable, 1) == 0:
        message = "spec.rollout.maxUnavailable is 0, so the operator does not start a change"
        yield Finding(Reason.FROZEN, message)
    failing = (one.node.name for one in pool.members if one.marked and has_failed(one, policy))
    failed = sorted({*failing, *pool.failed_before})
    if halted := explain_halt(policy, failed, rollout.max_failures):
        yield Finding(Reason.HALTED, halted)
    canary = find_canary(pool) if outnumbers(pool) else None
    if isinstance(canary, Finding) and canary.reason is Reason.CANARY_TOO_LARGE:
        yield canary
    if rollout.approval == "Manual" and policy.approved != (plan := plan_hash(policy, pool.members)):
        old = (
            f"; {policy.approved[:_SHOWN]} is the hash of another plan, because the policy has changed, nodes have joined"
            " or left, or some nodes cannot be read"
        )
        message = (
            f"spec.rollout.approval is Manual{old if policy.approved else ''}. To approve the plan in status.plan, run"
            f" kubectl annotate gsp {policy.name} --overwrite {names.ANNOTATION_APPROVE}={plan}"
        )
        yield Finding(Reason.APPROVAL_NEEDED, message)
    canary = find_canary(pool)
    if isinstance(canary, Finding) and canary.reason is Reason.CANARY_NOT_SERVING:
        yield canary
    if pool.hours.closed is not None:
        yield pool.hours.closed
    if isinstance(canary, Finding) and canary.reason is Reason.CANARY_SOAK:
        yield canary


def has_failed(member: Member, policy: PolicyView) -> bool:
    """Whether the node failed after the point of no return in this revision, as long as its fence, its proof or its back-off records the failure."""
    fence = member.node.fence
    if fence is not None:
        fails = member.verdict.phase is Phase.FAILED or fence.failed is not None
        fails = fails and fence.stage == "actuating"
        if (fails and fence.version == policy.version) or fence.failed_version == policy.version:
            return True
    return failed_before(member.node, policy)


def explain_halt(policy: PolicyView, failed: Sequence[str], most: int) -> str:
    """Return the message that no further node starts after these failures, with the command that lets the rollout go on; empty if nodes may start.

    `most` is maxFailures, at least 1. The value `<revision>` of the policy's annotation gpusharing.dev/resume allows as many further failures, `<revision>.<k>` k times as many, and any other value none. So a person who has examined further failures writes a new value, and the operator has nothing else to remember.
    """
    revision, found = policy.version.revision, _RESUMED.fullmatch(policy.resumed)
    batches = int(found[2] or 1) if found is not None and found[1] == revision else 0
    limit = most * (1 + batches)
    if len(failed) < limit:
        return ""
    resumed = ""
    if policy.resumed:
        until = f"allows the rollout to continue until {counted(limit, 'node has', 'nodes have')} failed"
        effect = until if batches else f"is not for revision {revision}"
        resumed = f' ({names.ANNOTATION_RESUME} "{policy.resumed[:_SHOWN]}" {effect})'
    needed = len(failed) // most
    value = f"{revision}.{needed}" if needed > 1 else revision
    return (
        f"{some(failed)} failed in this revision of the policy, and spec.rollout.maxFailures is {most}{resumed}: no"
        f" further node starts. When the cause is fixed, run kubectl annotate gsp {policy.name} --overwrite"
        f" {names.ANNOTATION_RESUME}={value}"
    )


def read_value(message: str) -> str:
    """Return the value of the annotation in the command at the end of a message from `explain_halt`."""
    return message.rpartition(f" {names.ANNOTATION_RESUME}=")[2]


def wait_for(case: NodeCase, why: Finding, *, for_slot: bool) -> Verdict:
    """Return the verdict of a candidate that waits for a slot or, without `for_slot`, for a hold of its pool to end.

    It depends only on the arguments, so the memo may cache it.
    """
    phase, until = (Phase.PENDING, None) if for_slot else (why.reason.waiting_phase, why.until)
    found = case.verdict(phase, why.reason, why.message, wake=until, candidate=for_slot)
    return replace(found, deadline=until, keeper=why.keeper, stands=why.stands)
