"""The verdict of a node whose calls fail, with the API server's error message (see callfailures.py)."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta

from gpusharing.api.names import Phase
from gpusharing.planning.snapshot.actions import (
    Action,
    Actuate,
    EnsureGPUNode,
    FenceNode,
    Release,
    RestartOperand,
    UpdateFence,
)
from gpusharing.planning.snapshot.callfailures import (
    CLAIMS,
    LONGEST_WAIT,
    POLICIES,
    CallFailure,
    policy_subject,
)
from gpusharing.planning.snapshot.records import Claim, Fence
from gpusharing.planning.snapshot.views import ClusterSnapshot, NodeView
from gpusharing.planning.transition.members import Member
from gpusharing.planning.transition.verdict import Verdict
from gpusharing.planning.vocabulary.blockers import Blocker
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.vocabulary.values import value


def is_moot(verdict: Verdict) -> bool:
    """Whether an earlier failure no longer matters, because nothing is to be done."""
    return verdict.phase in (Phase.SYNCED, Phase.SKIPPED) and not verdict.actions


def calls_fail(verdict: Verdict) -> bool:
    return any(blocker.reason is Reason.CALL_FAILED for blocker in verdict.blockers)


def named(verdict: Verdict, failure: CallFailure, now: datetime, fence: Fence | None = None) -> Verdict:
    """Return the verdict of a node whose calls fail, with `failure` in it unless it already names one; the actions stay.

    While calls are suspended, the node is no candidate. A lasting failure becomes the verdict's message, and a verdict
    that missed the deadline of a step past the point of no return becomes Failed. Without `fence`, a late request to the
    agent does not.
    """
    suspended = failure.holds(now)
    # Much has to be proven again before some calls, so the next attempt may come this late.
    recent = now < failure.next_try + timedelta(seconds=LONGEST_WAIT)
    on_its_way = verdict.phase.in_flight and recent
    silent = not verdict.actions and not (suspended and verdict.candidate) and not on_its_way
    if silent or calls_fail(verdict):
        return verdict
    if suspended:
        wake = failure.next_try if verdict.wake is None else min(verdict.wake, failure.next_try)
        verdict = replace(verdict, wake=wake, candidate=False)
    if not failure.lasts:
        return verdict
    phase = Phase.PENDING if _starts(verdict) else verdict.phase  # nothing has begun
    reason, message = Reason.CALL_FAILED, f"{failure.message}; the call is retried with increasing delays"
    if verdict.reason is Reason.CORDON_KEPT:
        reason = verdict.reason
        message = f"{verdict.message}. This step waits for a call that keeps failing: {message}"
    deadline = verdict.deadline
    if deadline is not None and now >= deadline and _goes_on(verdict, fence):
        phase = Phase.FAILED
    return replace(
        verdict,
        phase=phase,
        reason=reason,
        message=message,
        deadline=None if any(isinstance(action, Release) for action in verdict.actions) else deadline,
        blockers=(*verdict.blockers, Blocker(Reason.CALL_FAILED, message=failure.message)),
    )


def _starts(verdict: Verdict) -> bool:
    return any(isinstance(action, FenceNode) for action in verdict.actions)


def _goes_on(verdict: Verdict, fence: Fence | None) -> bool:
    """Whether an action of the verdict continues a change past its point of no return; a release does not."""
    proving = verdict.phase in (Phase.VERIFYING, Phase.VERIFYING_IDLE)
    asks = proving and fence is not None and fence.stage == "actuating"

    def goes_on(action: Action) -> bool:
        if isinstance(action, UpdateFence | Actuate):
            return action.node.fence is not None and action.node.fence.stage == "actuating"
        return isinstance(action, RestartOperand) or (asks and isinstance(action, EnsureGPUNode))

    return any(map(goes_on, verdict.actions))


def _with_record(verdict: Verdict, node: NodeView, now: datetime) -> Verdict:
    """Return the verdict with a write that records in the fence that the change has failed (docs/adr/0044-what-was-seen-is-written-down.md), or with the record in its own write of the fence."""
    fence = node.fence
    if fence is None or fence.failed is not None:
        return verdict

    def recorded(action: Action) -> Action:
        if not isinstance(action, UpdateFence | Actuate):
            return action
        written = action.fence
        # A fence that follows another revision, or that records the failure of this one already, stays as it is.
        if written.version != fence.version or written.failed_version == fence.version:
            return action
        return replace(action, fence=replace(written, failed=now))

    actions = tuple(map(recorded, verdict.actions))
    if not any(isinstance(action, UpdateFence | Actuate) for action in actions):
        actions = (UpdateFence(node, replace(fence, failed=now)), *actions)
    return verdict.then(*actions)


@value(eq=False)
class Failing:
    """The nodes whose calls fail, in one pass."""

    failures: Mapping[str, CallFailure]
    """By subject: a node, or a write without which no node, or no node of one policy, can be fenced."""
    uncertain_claims: dict[str, Claim]
    """The claims of nodes without a visible fence, by node. The call that wrote the fence failed, but the fence may exist."""
    now: datetime

    @staticmethod
    def of(snapshot: ClusterSnapshot, members: Mapping[str, Member], now: datetime) -> "Failing":
        """Return the failures in this snapshot. A candidate's claim is uncertain while its failure is not a lasting one."""
        failures, claims = snapshot.call_failures, snapshot.claims
        claims_kept = {
            node: claims[node]
            for node in sorted(failures.keys() & members.keys() & claims.keys())
            if members[node].verdict.candidate and failures[node].holds(now) and not failures[node].lasts
        }
        return Failing(failures, claims_kept, now)

    def holds(self, node: str) -> bool:
        failure = self.failures.get(node)
        return failure is not None and failure.holds(self.now)

    def find_late(self, members: dict[str, Member]) -> dict[str, Member]:
        """Return all members, with new verdicts for the nodes that failed by a deadline, and for those in flight that are stuck.

        The pools must know this before they choose, because Failed nodes count for maxFailures and the slots of the
        others do not become free by themselves. Without such nodes, `members` itself is returned.
        """
        late = {}
        for node, failure in self.failures.items():
            if (member := members.get(node)) is None or member.verdict.phase is Phase.FAILED:
                continue
            verdict = named(member.verdict, failure, self.now, member.node.fence)
            if verdict.phase is Phase.FAILED:
                late[node] = replace(member, verdict=_with_record(verdict, member.node, self.now))
            elif verdict.phase.in_flight and failure.stuck:
                late[node] = replace(member, verdict=verdict)
        return {**members, **late} if late else members

    def keep_back(self, verdicts: Mapping[str, Verdict], why: str) -> dict[str, Verdict]:
        """Hold back the verdicts that would fence their node; `why` begins their message."""
        failure = self.failures.get(POLICIES)
        changed = dict(verdicts)
        for node, verdict in verdicts.items():
            if not _starts(verdict):
                continue
            changed[node] = replace(
                verdict,
                phase=Phase.PENDING,
                reason=Reason.PROGRESSING,
                message=f"{why}; until this is resolved, no node starts its change",
                actions=(),
                deadline=None,
                wake=self.now + timedelta(seconds=LONGEST_WAIT),
            )
            if failure is not None and failure.lasts:
                blockers = (*verdict.blockers, Blocker(Reason.CALL_FAILED, message=failure.message))
                changed[node] = replace(changed[node], reason=Reason.CALL_FAILED, blockers=blockers)
        return changed

    def name(self, verdicts: dict[str, Verdict]) -> None:
        """Add the failures to the verdicts of their nodes, in place.

        The failure to write the claims, or the finalizer of a policy, is added to each node that would start now.
        """
        for node, failure in self.failures.items():
            if (verdict := verdicts.get(node)) is not None:
                verdicts[node] = named(verdict, failure, self.now)
        if self.failures.keys() - verdicts.keys():
            for node, verdict in verdicts.items():
                common = self.failures.get(CLAIMS) or self.failures.get(policy_subject(verdict.policy))
                if common is not None and _starts(verdict):
                    verdicts[node] = named(verdict, common, self.now)
