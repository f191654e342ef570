"""The verdict of a node whose calls fail, with the API server's error message (see callfailures.py).

Terms: docs/design/glossary.md#fence, docs/design/glossary.md#slot, docs/design/glossary.md#point-of-no-return.
"""

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
    """Whether the verdict is Synced or Skipped and has no action, so that an earlier failure no longer matters."""
    return verdict.phase in (Phase.SYNCED, Phase.SKIPPED) and not verdict.actions


def calls_fail(verdict: Verdict) -> bool:
    """Whether one of the verdict's blockers (with the reason CallFailed) says that calls about its node fail repeatedly."""
    return any(blocker.reason is Reason.CALL_FAILED for blocker in verdict.blockers)


def named(verdict: Verdict, failure: CallFailure, now: datetime, fence: Fence | None = None) -> Verdict:
    """Return the verdict of a node whose calls fail, with `failure` in it."""
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
    starts = any(isinstance(action, FenceNode) for action in verdict.actions)
    phase = Phase.PENDING if starts else verdict.phase  # nothing has begun
    reason, message = Reason.CALL_FAILED, f"{failure.message}; the call is retried with increasing delays"
    if verdict.reason is Reason.CORDON_KEPT:
        reason, message = (
            verdict.reason,
            f"{verdict.message}. This step waits for a call that keeps failing: {message}",
        )
    return replace(
        verdict,
        phase=Phase.FAILED if _is_late(verdict, fence, now) else phase,
        reason=reason,
        message=message,
        deadline=None if any(isinstance(action, Release) for action in verdict.actions) else verdict.deadline,
        blockers=(*verdict.blockers, Blocker(Reason.CALL_FAILED, message=failure.message)),
    )


def _is_late(verdict: Verdict, fence: Fence | None, now: datetime) -> bool:
    deadline, begun = verdict.deadline, fence is not None and fence.stage == "actuating"
    asks = begun and verdict.phase in (Phase.VERIFYING, Phase.VERIFYING_IDLE)
    asks = asks and any(isinstance(one, EnsureGPUNode) for one in verdict.actions)
    return deadline is not None and now >= deadline and (asks or any(map(_goes_on, verdict.actions)))


def _goes_on(action: Action) -> bool:
    if isinstance(action, UpdateFence | Actuate):
        return action.node.fence is not None and action.node.fence.stage == "actuating"
    return isinstance(action, RestartOperand)


def _noted(verdict: Verdict, node: NodeView, now: datetime) -> Verdict:
    fence = node.fence
    if fence is None or fence.failed is not None:
        return verdict
    actions = tuple(_with_failure(action, fence, now) for action in verdict.actions)
    if any(isinstance(action, UpdateFence | Actuate) for action in actions):
        return verdict.then(*actions)
    return verdict.then(UpdateFence(node, replace(fence, failed=now)), *actions)


def _with_failure(action: Action, failed: Fence, now: datetime) -> Action:
    if not isinstance(action, UpdateFence | Actuate):
        return action
    fence = action.fence
    if fence.version != failed.version or fence.failed_version == failed.version:
        return action
    return replace(action, fence=replace(fence, failed=now))


@value(eq=False)
class Failing:
    """The nodes whose calls fail, in one pass."""

    failures: Mapping[str, CallFailure]
    uncertain_claims: dict[str, Claim]
    now: datetime

    @staticmethod
    def of(snapshot: ClusterSnapshot, members: Mapping[str, Member], now: datetime) -> "Failing":
        """Return the failures in this snapshot."""
        failures, claims = snapshot.call_failures, snapshot.claims
        claims_kept = {
            node: claims[node]
            for node in sorted(failures.keys() & members.keys() & claims.keys())
            if members[node].verdict.candidate and failures[node].holds(now) and not failures[node].lasts
        }
        return Failing(failures, claims_kept, now)

    def holds(self, node: str) -> bool:
        """Whether the node's calls are suspended after a failure, so that other candidates go first."""
        failure = self.failures.get(node)
        return failure is not None and failure.holds(self.now)

    def find_late(self, members: dict[str, Member]) -> dict[str, Member]:
        """Return all members, with new verdicts for two kinds of nodes whose calls fail and that are not Failed yet."""
        late = {}
        for node, failure in self.failures.items():
            if (member := members.get(node)) is None or member.verdict.phase is Phase.FAILED:
                continue
            verdict = named(member.verdict, failure, self.now, member.node.fence)
            if verdict.phase is Phase.FAILED:
                late[node] = replace(member, verdict=_noted(verdict, member.node, self.now))
            elif verdict.phase.in_flight and failure.stuck:
                late[node] = replace(member, verdict=verdict)
        return {**members, **late} if late else members

    def keep_back(self, verdicts: Mapping[str, Verdict], why: str) -> dict[str, Verdict]:
        """Return the verdicts, with each one that would fence its node replaced by a Pending verdict that has no actions and no deadline and wakes after LONGEST_WAIT seconds; a candidate stays one."""
        failure = self.failures.get(POLICIES)
        changed = {}
        for node, verdict in verdicts.items():
            if not any(isinstance(action, FenceNode) for action in verdict.actions):
                changed[node] = verdict
                continue
            waits = replace(
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
                waits = replace(waits, reason=Reason.CALL_FAILED, blockers=(*verdict.blockers, blocker))
            changed[node] = waits
        return changed

    def name(self, verdicts: dict[str, Verdict]) -> None:
        """Add the failures to the verdicts of their nodes, in place."""
        for node, failure in self.failures.items():
            if (verdict := verdicts.get(node)) is not None:
                verdicts[node] = named(verdict, failure, self.now)
        if self.failures.keys() - verdicts.keys():
            for node, verdict in verdicts.items():
                starts = any(isinstance(action, FenceNode) for action in verdict.actions)
                common = self.failures.get(CLAIMS) or self.failures.get(policy_subject(verdict.policy))
                if starts and common is not None:
                    verdicts[node] = named(verdict, common, self.now)
