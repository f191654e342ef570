"""The rollback of a change that failed after the point of no return, for policies with onFailure Rollback.

    Failed ── recorded in the fence ──► the steps of after.py towards the layout that was proven last ── proven ──►
    RolledBack: uncordoned, serving that layout; the change is not tried again by itself

A node is rolled back only once. If the rollback fails too, the node is Failed and held
(docs/design/transition.md#rollback).
"""

from dataclasses import replace

from gpusharing.api.names import Phase
from gpusharing.planning.snapshot.actions import UpdateFence
from gpusharing.planning.transition.attempts import goes_back, owe, owed_for, retry_command
from gpusharing.planning.transition.verdict import NodeCase, Verdict
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.vocabulary.lengths import cut
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.wanted.assess import Assessed, Untargeted, find_disruption, needs_two_steps
from gpusharing.planning.wanted.verify import Comparison, find_mismatch

MAX_FAILURE = 300
"""The maximum length of a failure's cause on the Node, in characters."""


def find_way_back(case: NodeCase) -> NodeCase | None:
    """Return the case with the last proven layout as its target; None if the node is not being rolled back."""
    if not goes_back(case):
        return None
    assessment = case.assessed
    if assessment is None:
        return case
    back = _assess_back(case, assessment)
    if isinstance(back, str):
        gone = Finding(Reason.ROLLING_BACK, f"the rollback is no longer possible: {back}")
        return replace(case, assessment=Untargeted(assessment.policy, gone, assessment.observed_text))
    return replace(case, assessment=back)


def present_way_back(verdict: Verdict, case: NodeCase) -> Verdict:
    wanted = case.assessed.target.text if case.assessed is not None else verdict.wanted
    reason, message = verdict.reason, verdict.message
    if verdict.phase not in (Phase.FAILED, Phase.UNCORDONING):
        message = f"rolling back after a failure: {message}"
    if verdict.phase is Phase.FAILED and reason is Reason.ROLLING_BACK:
        # That layout cannot be reached any more.
        message = f"{message}. To try {wanted} again, run: {retry_command(case.node.name, case.fence.retry)}"
    if reason in (Reason.ACTUATION_IN_PROGRESS, Reason.OBSERVATION_PENDING):
        reason = Reason.ROLLING_BACK
    return replace(verdict, wanted=wanted, reason=reason, message=message)


def turn_back(case: NodeCase, failure: Finding, *, known: bool) -> Verdict | str:
    """Begin the rollback by recording it in the fence, or return a clause that says why the node is not rolled back now."""
    assessment = case.assessed
    if assessment is None or assessment.spec.rollout.on_failure != "Rollback":
        return ""
    if goes_back(case):
        return f"the rollback to {assessment.target.text} failed too"
    if not (known and case.node.ready and case.agent_ready):
        return "spec.rollout.onFailure is Rollback; the rollback starts once the state of the node is known"
    back = _assess_back(case, assessment)
    if isinstance(back, str):
        return f"spec.rollout.onFailure is Rollback, but {back}"
    if owed_for(back.target) == owed_for(assessment.target):
        return "spec.rollout.onFailure is Rollback, but the layout that failed is also the last one proven on this node"
    if not case.fence.disruption.cordons and back.disruption.cordons:
        return (
            "spec.rollout.onFailure is Rollback, but the rollback needs an idle node, and this one is in use"
        )
    message = f"{failure.message}; rolling back to {back.target.text}, the last layout proven on this node"
    owed = owe(case, back, attempt=1, failed=True)
    policy, begun_version = assessment.policy, case.fence.version
    fence = replace(
        owed.fence,
        version=policy.version,
        failed_version=policy.version if begun_version.uid == policy.uid else begun_version,
        drift=False,
        step=1,
        steps=1,
        rolls_back=True,
        failure=cut(failure.message, MAX_FAILURE),
    )
    return case.verdict(Phase.RECONFIGURING, Reason.ROLLING_BACK, message, UpdateFence(case.node, fence))


def _assess_back(case: NodeCase, assessment: Assessed) -> Assessed | str:
    node, observed, stack = case.node, assessment.observed, case.stack
    target = case.actuator.find_last_proven(node, observed, stack)
    if isinstance(target, str):
        return target
    if objection := next(case.actuator.objections(case, target), None):
        return f"the last proven mode is {target.mode}, and {objection.message}"
    mismatch = find_mismatch(Comparison(node, observed, target, stack), case.actuator.checks)
    return replace(
        assessment,
        target=target,
        two_steps=needs_two_steps(node, observed, target, stack),
        mismatch=mismatch,
        disruption=find_disruption(node, observed, target, mismatch, stack),
        drift=None,
    )
