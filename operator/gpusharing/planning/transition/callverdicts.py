"""The verdict of a node whose calls fail, with the server's words (see callfailures.py).

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
    """Whether the node is where it should be and needs no write, so that an earlier failure no longer matters."""
    return verdict.phase in (Phase.SYNCED, Phase.SKIPPED) and not verdict.actions


def calls_fail(verdict: Verdict) -> bool:
    """Whether the verdict says that calls about its node fail repeatedly, by its reason or beside it."""
    return any(blocker.reason is Reason.CALL_FAILED for blocker in verdict.blockers)


def named(verdict: Verdict, failure: CallFailure, now: datetime, fence: Fence | None = None) -> Verdict:
    """Return the verdict of a node whose calls fail, with the failure unless the verdict names one already or the
    failure does not matter. Its actions stay; they wait for `next_try`. `fence`: the node's, needed only to find
    out whether the node is Failed.

    CORDON_KEPT stays the reason, and its message stays before the failure, whose text may be long and cut: after the
    release nothing tells the cordon from one of a person, so people read of it before the release or never."""
    suspended = failure.holds(now)
    on_its_way = verdict.phase.in_flight and failure.is_fresh(now)
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
    reason, message = Reason.CALL_FAILED, f"{failure.message}; it is retried with increasing delays"
    if verdict.reason is Reason.CORDON_KEPT:
        reason, message = verdict.reason, f"{verdict.message}. This waits for a call that fails: {message}"
    return replace(
        verdict,
        phase=Phase.FAILED if _is_late(verdict, fence, now) else phase,
        reason=reason,
        message=message,
        deadline=None if any(isinstance(action, Release) for action in verdict.actions) else verdict.deadline,
        blockers=(*verdict.blockers, Blocker(Reason.CALL_FAILED, message=failure.message)),
    )


def _is_late(verdict: Verdict, fence: Fence | None, now: datetime) -> bool:
    """Whether a step after the point of no return still fails at its deadline. A release has no deadline."""
    deadline, begun = verdict.deadline, fence is not None and fence.stage == "actuating"
    asks = begun and verdict.phase in (Phase.VERIFYING, Phase.VERIFYING_IDLE)
    asks = asks and any(isinstance(one, EnsureGPUNode) for one in verdict.actions)
    return deadline is not None and now >= deadline and (asks or any(map(_goes_on, verdict.actions)))


def _goes_on(action: Action) -> bool:
    """Whether the action continues a change past its point of no return. Before that point the deadline ends the
    change, and no such action is planned after it."""
    if isinstance(action, UpdateFence | Actuate):
        return action.node.fence is not None and action.node.fence.stage == "actuating"
    return isinstance(action, RestartOperand)


def _noted(verdict: Verdict, node: NodeView, now: datetime) -> Verdict:
    """Return the verdict with the record that the change has failed (docs/adr/0044-what-was-seen-is-written-down.md).
    The record goes into the PATCH that fails now; a step that is not a PATCH comes after it."""
    fence = node.fence
    if fence is None or fence.failed is not None:
        return verdict
    actions = tuple(_with_failure(action, fence, now) for action in verdict.actions)
    if any(isinstance(action, UpdateFence | Actuate) for action in actions):
        return verdict.then(*actions)
    return verdict.then(UpdateFence(node, replace(fence, failed=now)), *actions)


def _with_failure(action: Action, failed: Fence, now: datetime) -> Action:
    """Return the action with the failure recorded in its fence. An action without a fence, or for another generation
    than `failed`, the present fence, is returned unchanged."""
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
    """By node, or by what every fence or those of one policy need."""
    uncertain_claims: dict[str, Claim]
    """Claims of nodes without a visible fence whose fence may exist although the call that wrote it failed."""
    now: datetime
    """When the pass began."""

    @staticmethod
    def of(snapshot: ClusterSnapshot, members: Mapping[str, Member], now: datetime) -> "Failing":
        """Return the failures in this snapshot. A candidate's slot is free once its fence cannot exist."""
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
        """Return the members; those that could not take their next step by its deadline are Failed, and those whose
        calls have failed for long say so.

        Their pools must know this before they choose: Failed nodes count for maxFailures, and the slot of the others
        does not become free by itself.
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
        """Return the verdicts, with each start replaced by a wait. `why` says which objects may have changed
        meanwhile."""
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
                message=f"{why}; no node starts meanwhile",
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
        """Add the failures to the verdicts of their nodes, in place. A failure of a shared write is added to each node
        that would start."""
        for node, failure in self.failures.items():
            if (verdict := verdicts.get(node)) is not None:
                verdicts[node] = named(verdict, failure, self.now)
        if self.failures.keys() - verdicts.keys():
            for node, verdict in verdicts.items():
                starts = any(isinstance(action, FenceNode) for action in verdict.actions)
                if starts and (common := self._common(verdict.policy)) is not None:
                    verdicts[node] = named(verdict, common, self.now)

    def _common(self, policy: str) -> CallFailure | None:
        """Return the failure that keeps every fence of a policy from being written, or None."""
        return self.failures.get(CLAIMS) or self.failures.get(policy_subject(policy))
