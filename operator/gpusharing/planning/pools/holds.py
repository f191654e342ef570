"""What may keep all waiting nodes of a policy from starting (a hold), and the verdict of a node that waits for a hold
to end or for a slot.

HOLDS are checked in order, once per pool and pass, and only while some node could start; the first one that applies
wins. Nodes in flight go on, and some holds let a few nodes through (`_PASSES` in room.py).

Terms: docs/design/glossary.md#fence, docs/design/glossary.md#slot, docs/design/glossary.md#point-of-no-return.
"""

import re
from collections.abc import Callable, Sequence
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
from gpusharing.planning.vocabulary.values import value


@value
class Hold:
    """A rule that may keep every node of a policy from starting."""

    find: Callable[[Pool], str | Finding]
    """Returns the message that says why no node starts, or an empty string if the hold does not apply. A Finding is
    returned instead if the clock ends the hold, or if it has a reason of its own."""
    reason: Reason
    """The reason shown on the nodes that wait, unless the hold's Finding has another one."""


def _frozen(pool: Pool) -> str:
    """Return the message that maxUnavailable allows no node at all, whatever the size of the pool, as 0 and 0% do
    (`allowance`). Empty if it allows some."""
    frozen = allowance(pool.spec.rollout.max_unavailable, 1) == 0
    return "spec.rollout.maxUnavailable is 0, so the operator does not start a change" if frozen else ""


def _halted(pool: Pool) -> str:
    """Return the message that no further node starts, with the command that lets the rollout go on, if as many nodes
    have failed in this revision (`has_failed`) as maxFailures and the policy's annotation gpusharing.dev/resume allow
    together (`explain_halt`). Empty if fewer have. Failures that are known only from the record (`failed_before`) count
    too. The first three failed nodes in alphabetical order are named."""
    policy = pool.policy
    failing = (one.node.name for one in pool.members if one.marked and has_failed(one, policy))
    failed = sorted({*failing, *pool.failed_before})
    return explain_halt(policy, failed, pool.spec.rollout.max_failures)


def has_failed(member: Member, policy: PolicyView) -> bool:
    """Whether the node failed after the point of no return in this revision of the policy. True even if the node is
    no longer Failed, as long as its fence, its proof or its back-off records the failure."""
    fence = member.node.fence
    if fence is not None:
        fails = member.verdict.phase is Phase.FAILED or fence.failed is not None
        fails = fails and fence.stage == "actuating"
        if (fails and fence.version == policy.version) or fence.failed_version == policy.version:
            return True
    return failed_before(member.node, policy)


def _outnumbered(pool: Pool) -> str | Finding:
    """Return the Finding that the canary is larger than the pool. Empty if it is not, or if a remaining node has begun
    or proven the change and so stands in for the canary."""
    return _by_canary(pool, Reason.CANARY_TOO_LARGE) if outnumbers(pool) else ""


def _broken(pool: Pool) -> str | Finding:
    """Return the Finding that a canary no longer serves what was proven on it. Empty otherwise, even while nodes wait
    for the canary for another reason (`_soaking`)."""
    return _by_canary(pool, Reason.CANARY_NOT_SERVING)


def _unapproved(pool: Pool) -> str:
    """Return the message that a person has to approve the plan, with the command for it. If another plan was approved
    before, the message shows at most 64 characters of that approval, and why it does not count any more. Empty if the
    policy needs no approval, or if this plan (`plan_hash`) is approved."""
    policy = pool.policy
    if pool.spec.rollout.approval != "Manual":
        return ""
    plan = plan_hash(policy, pool.members)
    if policy.approved == plan:
        return ""
    old = (
        f"; {policy.approved[:64]} is the hash of another plan, because the policy has changed, nodes have joined"
        " or left, or some nodes cannot be read"
        if policy.approved
        else ""
    )
    return (
        f"spec.rollout.approval is Manual{old}. To approve the plan in status.plan, run kubectl annotate"
        f" gsp {policy.name} --overwrite {names.ANNOTATION_APPROVE}={plan}"
    )


def _soaking(pool: Pool) -> str | Finding:
    """Return the Finding that the canaries are not proven yet or have not served long enough. Empty otherwise, even
    while the canary holds nodes back for another reason."""
    return _by_canary(pool, Reason.CANARY_SOAK)


def _by_canary(pool: Pool, reason: Reason) -> str | Finding:
    """Return the Finding of `find_canary` if it has this reason, else an empty string."""
    canary = find_canary(pool)
    return canary if isinstance(canary, Finding) and canary.reason is reason else ""


def _closed(pool: Pool) -> str | Finding:
    """Return the Finding that no window is open or that the windows cannot be followed, or an empty string if nodes
    may start."""
    return pool.hours.closed or ""


HOLDS = (
    Hold(_frozen, Reason.FROZEN),
    Hold(_halted, Reason.HALTED),
    Hold(_outnumbered, Reason.CANARY_TOO_LARGE),
    Hold(_unapproved, Reason.APPROVAL_NEEDED),
    Hold(_broken, Reason.CANARY_NOT_SERVING),
    Hold(_closed, Reason.WINDOW_CLOSED),  # or the reason why no window can be followed
    Hold(_soaking, Reason.CANARY_SOAK),
)
"""The first match wins. Holds that a person has to end come before those that the clock
ends."""


def find_hold(pool: Pool, past: AbstractSet[Reason] = frozenset()) -> Finding | None:
    """Return the Finding of the first of HOLDS that applies. Holds with a reason in `past` are not checked; None if no
    other applies."""
    for hold in HOLDS:
        if hold.reason in past:
            continue
        if found := hold.find(pool):
            return Finding.of(found, hold.reason)
    return None


# --- how far a person lets a rollout go on after failures -----------------------------------------------------
# The value `<revision>` of the policy's annotation gpusharing.dev/resume allows as many further failures as
# spec.rollout.maxFailures says, `<revision>.<k>` k times as many, and any other value none. So a person who has
# examined further failures writes a new value, and the operator has nothing else to remember.


_WRITTEN = re.compile(r"([0-9a-f]{12})(?:\.([1-9][0-9]{0,4}))?")
_SHOWN = 64
"""The maximum number of characters shown of a value that allows nothing."""


def find_batches(policy: PolicyView) -> int:
    """Return how many times maxFailures a person has allowed in this revision in addition to the first maxFailures: 1
    for the annotation value `<revision>`, and k for `<revision>.<k>`. 0 if the annotation is missing, cannot be read or
    is for another revision."""
    found = _WRITTEN.fullmatch(policy.resumed)
    if found is None or found[1] != policy.version.revision:
        return 0
    return int(found[2] or 1)


def explain_halt(policy: PolicyView, failed: Sequence[str], most: int) -> str:
    """Return the message that no further node starts, with the command that lets the rollout go on. Empty if nodes may
    start, because fewer nodes have failed in this revision than maxFailures and the policy's annotation
    gpusharing.dev/resume allow together. `failed` has the failed nodes, named as the message shows them, and `most` is
    maxFailures, at least 1. The value in the command is the smallest that lets the rollout go on after these failures.
    """
    batches = find_batches(policy)
    if len(failed) < most * (1 + batches):
        return ""
    resumed, needed = _resumed(policy, most * (1 + batches)), len(failed) // most
    revision = policy.version.revision
    value = f"{revision}.{needed}" if needed > 1 else revision
    return (
        f"{some(failed)} failed in this revision of the policy, and spec.rollout.maxFailures is {most}{resumed}: no"
        f" further node starts. When the cause is fixed, run kubectl annotate gsp {policy.name} --overwrite"
        f" {names.ANNOTATION_RESUME}={value}"
    )


def read_value(message: str) -> str:
    """Return the value of the annotation in the command at the end of a message from `explain_halt`. A message without
    such a command is returned unchanged."""
    return message.rpartition(f" {names.ANNOTATION_RESUME}=")[2]


def _resumed(policy: PolicyView, limit: int) -> str:
    """Return a clause in parentheses, after a space, that shows the present value of the annotation and says how many
    failures it allows, or that it is not for this revision; the latter also if the value cannot be read. Empty if the
    annotation is not set."""
    if not policy.resumed:
        return ""
    value = f'{names.ANNOTATION_RESUME} "{policy.resumed[:_SHOWN]}"'
    if find_batches(policy):
        return f" ({value} allows the rollout to continue until {counted(limit, 'node has', 'nodes have')} failed)"
    return f" ({value} is not for revision {policy.version.revision})"


# --- what waiting nodes show ----------------------------------------------------------------------------------


@value
class Wait:
    """A wait that candidates of a pool share; their verdicts are made from it."""

    reason: Finding
    """The reason and the message, and the object that holds the nodes back."""
    phase: Phase = Phase.PENDING
    """The phase of these nodes."""
    for_room: bool = True
    """Whether these nodes wait only for a slot. False if a hold of their pool keeps them from starting."""

    @staticmethod
    def for_hold(hold: Finding) -> "Wait":
        """Return the wait of candidates while `hold` keeps every node of their pool from starting. The wait has the
        reason and the message of `hold` and the phase that belongs to this reason, and it does not count as a wait for
        a slot."""
        return Wait(hold, hold.reason.waiting_phase, for_room=False)

    def verdict(self, case: NodeCase) -> Verdict:
        """Return the verdict of a candidate to which this wait applies, with the phase of the wait and with the reason,
        message, `keeper` and `stands` of its Finding; it has no actions. The node stays a candidate only if it waits
        for room. If it waits for a hold to end and that time is known, that time is the verdict's deadline and its
        `wake`. The verdict depends only on the wait and the case, so the memo may cache it."""
        reason, ends = self.reason, None if self.for_room else self.reason.until
        found = case.verdict(self.phase, reason.reason, reason.message, wake=ends, candidate=self.for_room)
        return replace(found, deadline=ends, keeper=reason.keeper, stands=reason.stands)
