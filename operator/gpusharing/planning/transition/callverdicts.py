"""The verdict of a node whose calls fail, with the server's words (see callfailures.py)."""

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
    """The node is where it should be: an earlier failure no longer matters."""
    return verdict.phase in (Phase.SYNCED, Phase.SKIPPED) and not verdict.actions


def named(verdict: Verdict, failure: CallFailure, now: datetime, fence: Fence | None = None) -> Verdict:
    """The verdict of a node whose calls fail, with the failure unless it names that already. It keeps its actions;
    they wait for `next_try`. `fence`: the node's, needed only to find out whether the node is Failed."""
    held = failure.holds(now)
    on_its_way = verdict.phase.in_flight and failure.is_fresh(now)
    silent = not verdict.actions and not (held and verdict.candidate) and not on_its_way
    if silent or verdict.reason is Reason.CALL_FAILED:
        return verdict
    wake = verdict.wake
    if held:
        wake = min(wake, failure.next_try) if wake is not None else failure.next_try
    verdict = replace(verdict, wake=wake, candidate=verdict.candidate and not held)
    if not failure.lasts:
        return verdict
    starts = any(isinstance(action, FenceNode) for action in verdict.actions)
    phase = Phase.PENDING if starts else verdict.phase  # nothing has begun
    return replace(
        verdict,
        phase=Phase.FAILED if _is_late(verdict, fence, now) else phase,
        reason=Reason.CALL_FAILED,
        message=f"{failure.message}; it is retried with increasing delays",
        deadline=None if any(isinstance(action, Release) for action in verdict.actions) else verdict.deadline,
        blockers=(*verdict.blockers, Blocker(Reason.CALL_FAILED, message=failure.message)),
    )


def _is_late(verdict: Verdict, fence: Fence | None, now: datetime) -> bool:
    """Whether a step after the point of no return still fails at its deadline; a release has no deadline."""
    deadline, begun = verdict.deadline, fence is not None and fence.stage == "actuating"
    asks = begun and verdict.phase in (Phase.VERIFYING, Phase.VERIFYING_IDLE)
    asks = asks and any(isinstance(one, EnsureGPUNode) for one in verdict.actions)
    return deadline is not None and now >= deadline and (asks or any(map(_goes_on, verdict.actions)))


def _goes_on(action: Action) -> bool:
    """Before the point of no return the deadline ends the change, and no such action is planned after it."""
    if isinstance(action, UpdateFence | Actuate):
        return action.node.fence is not None and action.node.fence.stage == "actuating"
    return isinstance(action, RestartOperand)


def _noted(verdict: Verdict, node: NodeView, now: datetime) -> Verdict:
    """The verdict with the record that the change has failed (docs/adr/0044-what-was-seen-is-written-down.md).

    The record goes into the PATCH that fails now. A step that is not a PATCH comes after it.
    """
    fence = node.fence
    if fence is None or fence.failed is not None:
        return verdict
    actions = tuple(_with_failure(action, fence, now) for action in verdict.actions)
    if any(isinstance(action, UpdateFence | Actuate) for action in actions):
        return verdict.then(*actions)
    return verdict.then(UpdateFence(node, replace(fence, failed=now)), *actions)


def _with_failure(action: Action, failed: Fence, now: datetime) -> Action:
    """`failed`: the present fence. A change that no longer belongs to its generation has not failed in it."""
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
    kept: dict[str, Claim]
    """Claims of nodes without a visible fence whose fence may exist although the call that wrote it failed."""
    now: datetime
    """When the pass began."""

    @staticmethod
    def of(snapshot: ClusterSnapshot, members: Mapping[str, Member], now: datetime) -> "Failing":
        """What the snapshot tells. A candidate's slot is free once no fence can exist."""
        failures, claims = snapshot.call_failures, snapshot.claims
        kept = {
            node: claims[node]
            for node in sorted(failures.keys() & members.keys() & claims.keys())
            if members[node].verdict.candidate and failures[node].holds(now) and not failures[node].lasts
        }
        return Failing(failures, kept, now)

    def holds(self, node: str) -> bool:
        """A candidate whose last call failed lets others go first."""
        failure = self.failures.get(node)
        return failure is not None and failure.holds(self.now)

    def find_late(self, members: dict[str, Member]) -> dict[str, Member]:
        """The members; those that cannot take their next step although the time for it is up are Failed, and those
        whose calls have failed for long say so.

        Their pools must know this before they choose: nodes shown as Failed count for maxFailures, and the slot of the
        others does not become free by itself.
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
        """The verdicts, in which nothing starts. `why`: the policies or other objects may have changed meanwhile."""
        failure = self.failures.get(POLICIES)
        told = {}
        for node, verdict in verdicts.items():
            if not any(isinstance(action, FenceNode) for action in verdict.actions):
                told[node] = verdict
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
            told[node] = waits
        return told

    def name(self, verdicts: dict[str, Verdict]) -> None:
        """Put the words of the server into the verdicts."""
        for node, failure in self.failures.items():
            if (verdict := verdicts.get(node)) is not None:
                verdicts[node] = named(verdict, failure, self.now)
        if self.failures.keys() - verdicts.keys():
            for node, verdict in verdicts.items():
                starts = any(isinstance(action, FenceNode) for action in verdict.actions)
                if starts and (common := self._common(verdict.policy)) is not None:
                    verdicts[node] = named(verdict, common, self.now)

    def _common(self, policy: str) -> CallFailure | None:
        """What keeps every fence of a policy from being written."""
        return self.failures.get(CLAIMS) or self.failures.get(policy_subject(policy))
