"""The rollback of a change that failed after the point of no return, for policies with onFailure Rollback.

    Failed ── recorded in the fence ──► the steps of after.py towards the layout that was proven last ── proven ──►
    RolledBack: uncordoned, serving that layout; the change is not tried again by itself

A node is rolled back only once. If the rollback fails too, the node is Failed and held
(docs/design/transition.md#rollback).

Terms: docs/design/glossary.md#fence, docs/design/glossary.md#class, docs/design/glossary.md#point-of-no-return.
"""

from dataclasses import replace

from gpusharing.api.names import Phase
from gpusharing.planning.snapshot.actions import UpdateFence
from gpusharing.planning.transition.attempts import goes_back, owe, owed_for, retry_command
from gpusharing.planning.transition.verdict import FencedCase, Verdict
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.vocabulary.lengths import cut
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.wanted.assess import Assessed, Untargeted, find_disruption, needs_two_steps
from gpusharing.planning.wanted.verify import Comparison, find_mismatch

MAX_FAILURE = 300
"""The maximum length, in characters, of a failure's cause that is kept on the Node."""


def find_way_back(case: FencedCase) -> FencedCase | None:
    """Return the case with the last proven layout as its target, or None if the node is not being rolled back. If that
    layout can no longer be reached, the assessment of the returned case is Untargeted, with the reason RollingBack and a
    message that says why. A case whose policy gives the node no target now is returned unchanged."""
    if not goes_back(case):
        return None
    assessment = case.assessment
    if not isinstance(assessment, Assessed):
        return case
    back = _assess_back(case, assessment)
    if isinstance(back, str):
        gone = Finding(Reason.ROLLING_BACK, f"the rollback is no longer possible: {back}")
        return replace(case, assessment=Untargeted(assessment.policy, gone, assessment.observed_text))
    return replace(case, assessment=back)


def present_way_back(verdict: Verdict, case: FencedCase) -> Verdict:
    """Return the verdict of a node that is being rolled back, reworded for people. `case` is the case with the policy's
    target, which is shown as the wanted layout. The message gets a prefix about the rollback, except in the phases
    Failed and Uncordoning. If the rollback is no longer possible, the command that tries the policy's target again is
    added. The reasons ActuationInProgress and ObservationPending become RollingBack; other reasons stay."""
    assessment = case.assessment
    wanted = assessment.target.text if isinstance(assessment, Assessed) else verdict.wanted
    reason, message = verdict.reason, verdict.message
    if verdict.phase not in (Phase.FAILED, Phase.UNCORDONING):
        message = f"rolling back after a failure: {message}"
    if (
        verdict.phase is Phase.FAILED and reason is Reason.ROLLING_BACK
    ):  # the last proven layout cannot be reached any more
        message = f"{message}. To try {wanted} again, run: {retry_command(case.node.name, case.fence.retry)}"
    if reason in (Reason.ACTUATION_IN_PROGRESS, Reason.OBSERVATION_PENDING):
        reason = Reason.ROLLING_BACK
    return replace(verdict, wanted=wanted, reason=reason, message=message)


def turn_back(case: FencedCase, failure: Finding, *, known: bool) -> Verdict | str:
    """Return the Reconfiguring verdict, with the reason RollingBack, that begins the rollback by recording it in the
    fence, or a clause that says why the node is not rolled back now. The clause is empty if the policy wants failed
    nodes held or gives the node no target. A rollback that failed is not begun again. Nor does one begin while the
    node's state is unknown (`known` is False, or the node or its agent is not Ready), if the last proven layout cannot
    be reached (`_assess_back`) or is the one that failed, or if the rollback needs an idle node and the change did not.

    `known`: the failure shows the present state of the node. A node that is not Ready, or has no Ready agent, shows an
    old state: what its kubelet last advertised dates from before the change.
    """
    assessment = case.assessment
    if not isinstance(assessment, Assessed) or assessment.spec.rollout.on_failure != "Rollback":
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
    verdict = case.verdict(Phase.RECONFIGURING, Reason.ROLLING_BACK, message)
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
    return verdict.then(UpdateFence(case.node, fence))


def _assess_back(case: FencedCase, assessment: Assessed) -> Assessed | str:
    """Return `assessment` with the layout that was last proven on the node as its target, and without any drift. The
    mismatch, the class of disruption and the number of steps are found anew. If that layout can no longer be reached,
    return a clause that says why."""
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
