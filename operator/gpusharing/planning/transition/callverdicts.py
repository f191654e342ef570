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
    """Whether one of the verdict's blockers (with the reason CallFailed) says that calls about its node fail
    repeatedly."""
    return any(blocker.reason is Reason.CALL_FAILED for blocker in verdict.blockers)


def named(verdict: Verdict, failure: CallFailure, now: datetime, fence: Fence | None = None) -> Verdict:
    """Return the verdict of a node whose calls fail, with `failure` in it. The verdict is unchanged if it already names
    a failed call. One without actions is unchanged too, unless its node is a candidate whose calls are suspended, or is
    in flight and less than LONGEST_WAIT seconds have passed since the failed call's next try.

    While calls are suspended, the node is no candidate, and `wake` is no later than the next try. After LASTING
    failures in a row, the verdict gets the failure's message and blocker and the reason CallFailed; only CordonKept
    stays, with its message in front. Then a verdict that would fence the node becomes Pending, one that missed the
    deadline of a step past the point of no return becomes Failed (`_is_late`), and a release loses its deadline. The
    actions stay. Without `fence`, a late request to the agent does not make the verdict Failed.
    """
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
    """Whether the verdict's deadline is over but a step past the point of no return still has to be sent. Such a step
    is an action that `_goes_on` accepts or, during a proof (Verifying or VerifyingIdle, and the fence stage is
    `actuating`), a request to the agent; a release is not. False without a deadline."""
    deadline, begun = verdict.deadline, fence is not None and fence.stage == "actuating"
    asks = begun and verdict.phase in (Phase.VERIFYING, Phase.VERIFYING_IDLE)
    asks = asks and any(isinstance(one, EnsureGPUNode) for one in verdict.actions)
    return deadline is not None and now >= deadline and (asks or any(map(_goes_on, verdict.actions)))


def _goes_on(action: Action) -> bool:
    """Whether the action continues a change past its point of no return: it restarts a pod, or it writes the fence of
    a node whose fence stage is `actuating`."""
    if isinstance(action, UpdateFence | Actuate):
        return action.node.fence is not None and action.node.fence.stage == "actuating"
    return isinstance(action, RestartOperand)


def _noted(verdict: Verdict, node: NodeView, now: datetime) -> Verdict:
    """Return the verdict with a write to the fence that records that the change has failed
    (docs/adr/0044-what-was-seen-is-written-down.md). If the failing call is itself a PATCH of the fence, the record is
    added to that PATCH, unless the PATCH follows another revision or the failure of this revision is already
    recorded. Otherwise a PATCH with the record comes first. The verdict is unchanged if the node has no fence, or if
    its fence already has the record."""
    fence = node.fence
    if fence is None or fence.failed is not None:
        return verdict
    actions = tuple(_with_failure(action, fence, now) for action in verdict.actions)
    if any(isinstance(action, UpdateFence | Actuate) for action in actions):
        return verdict.then(*actions)
    return verdict.then(UpdateFence(node, replace(fence, failed=now)), *actions)


def _with_failure(action: Action, failed: Fence, now: datetime) -> Action:
    """Return the action with the failure recorded in the fence that it writes. `failed` is the present fence. An
    action is returned unchanged if it writes no fence, if its fence is for a different revision from `failed`, or if
    the change is already known to have failed in this revision."""
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
    """The failures by subject. A subject is a node, or a write without which no node, or no node of one policy, can be
    fenced."""
    uncertain_claims: dict[str, Claim]
    """The claims of nodes without a visible fence, by node. The call that wrote the fence failed, but the fence may
    exist nevertheless."""
    now: datetime
    """When the pass began."""

    @staticmethod
    def of(snapshot: ClusterSnapshot, members: Mapping[str, Member], now: datetime) -> "Failing":
        """Return the failures in this snapshot. A candidate's claim is uncertain while the candidate's calls are
        suspended after fewer than LASTING failures in a row, because its fence may exist."""
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
        """Return all members, with new verdicts for two kinds of nodes whose calls fail and that are not Failed yet.
        Nodes that missed the deadline of a step past the point of no return become Failed, with an action that records
        that in the fence. Nodes in flight whose calls failed at least STUCK times in a row get a verdict that names the
        failed call (`named`). Without such nodes, `members` itself is returned.

        The pools must know this before they choose, because Failed nodes count for maxFailures and the slots of the
        others do not become free by themselves.
        """
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
        """Return the verdicts, with each one that would fence its node replaced by a Pending verdict that has no
        actions and no deadline and wakes after LONGEST_WAIT seconds; a candidate stays one. `why` says what keeps the
        nodes from starting and begins the message. The reason is Progressing or, if the calls that read the policies
        keep failing, CallFailed, with a blocker that says so."""
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
        """Add the failures to the verdicts of their nodes, in place. The failure to write the claims or, if
        there is none, the finalizer of a policy keeps every fence of the policy from being written, so it is added to
        each of the policy's nodes that would start now."""
        for node, failure in self.failures.items():
            if (verdict := verdicts.get(node)) is not None:
                verdicts[node] = named(verdict, failure, self.now)
        if self.failures.keys() - verdicts.keys():
            for node, verdict in verdicts.items():
                starts = any(isinstance(action, FenceNode) for action in verdict.actions)
                common = self.failures.get(CLAIMS) or self.failures.get(policy_subject(verdict.policy))
                if starts and common is not None:
                    verdicts[node] = named(verdict, common, self.now)
