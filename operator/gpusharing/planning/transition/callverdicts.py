"""The verdict of a node whose calls fail, with the API server's error message (see callfailures.py)."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta

from gpusharing.api.names import Phase
from gpusharing.planning.snapshot.actions import (
    Actuate,
    EnsureGPUNode,
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
    """Whether an earlier failure no longer matters to the node."""
    return verdict.phase in (Phase.SYNCED, Phase.SKIPPED) and not verdict.actions


def calls_fail(verdict: Verdict) -> bool:
    return any(blocker.reason is Reason.CALL_FAILED for blocker in verdict.blockers)


def show_failure(
    verdict: Verdict, failure: CallFailure, now: datetime, fence: Fence | None = None
) -> Verdict:
    """Return the verdict with the failure of its calls in it, once the failure lasts. Its actions stay; while calls are suspended, the node is no candidate."""
    suspended = failure.holds(now)
    # Much has to be proven again before some calls, so the next attempt may come this late.
    recent = now < failure.next_try + timedelta(seconds=LONGEST_WAIT)
    on_its_way = verdict.phase.in_flight and recent
    silent = not verdict.actions and not (suspended and verdict.candidate) and not on_its_way
    if silent or calls_fail(verdict):
        return verdict
    wake = verdict.wake
    if suspended:
        wake = min(wake, failure.next_try) if wake is not None else failure.next_try
    verdict = replace(verdict, wake=wake, candidate=verdict.candidate and not suspended)
    if not failure.lasts:
        return verdict
    phase = Phase.PENDING if verdict.starts else verdict.phase  # nothing has begun
    reason, message = Reason.CALL_FAILED, f"{failure.message}; the call is retried with increasing delays"
    if verdict.reason is Reason.CORDON_KEPT:
        message = f"{verdict.message}. This step waits for a call that keeps failing: {message}"
        reason = verdict.reason
    return replace(
        verdict,
        phase=Phase.FAILED if _is_late(verdict, fence, now) else phase,
        reason=reason,
        message=message,
        deadline=None if any(isinstance(action, Release) for action in verdict.actions) else verdict.deadline,
        blockers=(*verdict.blockers, Blocker(Reason.CALL_FAILED, message=failure.message)),
    )


def _is_late(verdict: Verdict, fence: Fence | None, now: datetime) -> bool:
    """Whether the deadline is over and a step past the point of no return still has to be sent; a release is none."""
    if verdict.deadline is None or now < verdict.deadline:
        return False
    asks = fence is not None and fence.stage == "actuating"
    asks = asks and verdict.phase in (Phase.VERIFYING, Phase.VERIFYING_IDLE)
    for action in verdict.actions:
        if isinstance(action, RestartOperand) or (asks and isinstance(action, EnsureGPUNode)):
            return True
        if isinstance(action, UpdateFence | Actuate):
            written = action.node.fence
            if written is not None and written.stage == "actuating":
                return True
    return False


def _record_failure(verdict: Verdict, node: NodeView, now: datetime) -> Verdict:
    """Record in the fence that the change has failed, if possible with a PATCH of the fence that is due anyway (docs/adr/0044-what-was-seen-is-written-down.md)."""
    fence = node.fence
    if fence is None or fence.failed is not None:
        return verdict
    actions = tuple(
        replace(action, fence=replace(action.fence, failed=now))
        if isinstance(action, UpdateFence | Actuate)
        and action.fence.version == fence.version != action.fence.failed_version
        else action
        for action in verdict.actions
    )
    if any(isinstance(action, UpdateFence | Actuate) for action in actions):
        return verdict.then(*actions)
    return verdict.then(UpdateFence(node, replace(fence, failed=now)), *actions)


@value(eq=False)
class Failing:
    """The nodes whose calls fail, in one pass."""

    failures: Mapping[str, CallFailure]
    """By node, or by a write without which no node, or no node of one policy, can be fenced."""
    uncertain_claims: dict[str, Claim]
    """The claims of nodes whose fence may exist although the call that wrote it failed."""
    now: datetime

    @staticmethod
    def of(snapshot: ClusterSnapshot, members: Mapping[str, Member], now: datetime) -> "Failing":
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
        """Return all members, with new verdicts for nodes that a failing call has made late or stuck: the pools must know before they choose."""
        late = {}
        for node, failure in self.failures.items():
            if (member := members.get(node)) is None or member.verdict.phase is Phase.FAILED:
                continue
            verdict = show_failure(member.verdict, failure, self.now, member.node.fence)
            if verdict.phase is Phase.FAILED:
                late[node] = replace(member, verdict=_record_failure(verdict, member.node, self.now))
            elif verdict.phase.in_flight and failure.stuck:
                late[node] = replace(member, verdict=verdict)
        return {**members, **late} if late else members

    def keep_back(self, verdicts: Mapping[str, Verdict], why: str) -> dict[str, Verdict]:
        """Return the verdicts with Pending ones for all nodes that would start; `why` begins their message."""
        failure = self.failures.get(POLICIES)
        changed = dict(verdicts)
        for node, verdict in verdicts.items():
            if not verdict.starts:
                continue
            changed[node] = waits = replace(
                verdict,
                phase=Phase.PENDING,
                reason=Reason.PROGRESSING,
                message=f"{why}; until this is resolved, no node starts its change",
                actions=(),
                deadline=None,
                wake=self.now + timedelta(seconds=LONGEST_WAIT),
            )
            if failure is not None and failure.lasts:
                blocker = Blocker(Reason.CALL_FAILED, message=failure.message)
                blockers = (*verdict.blockers, blocker)
                changed[node] = replace(waits, reason=Reason.CALL_FAILED, blockers=blockers)
        return changed

    def show(self, verdicts: dict[str, Verdict]) -> None:
        """Add the failures to the verdicts of their nodes, in place. A write that keeps every fence from being written counts for each node that would start."""
        for node, failure in self.failures.items():
            if (verdict := verdicts.get(node)) is not None:
                verdicts[node] = show_failure(verdict, failure, self.now)
        if self.failures.keys() - verdicts.keys():
            for node, verdict in verdicts.items():
                common = self.failures.get(CLAIMS) or self.failures.get(policy_subject(verdict.policy))
                if verdict.starts and common is not None:
                    verdicts[node] = show_failure(verdict, common, self.now)
