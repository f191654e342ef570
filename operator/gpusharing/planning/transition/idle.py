"""How a fenced node becomes idle, repeated before every run of an actuator: the drain, the waits, then the proof.

    no holder by LIST ── what the run waits for is there ── the agent read and closed NVML ── two more empty LISTs

Steps that can take long come first, so that the proof is fresh when it is used. The reading was requested at most a
minute ago, after the last pod left and after the last event (requests.py). Both LISTs were made after the agent
answered and within the last half minute.

Terms: docs/design/glossary.md#fence, docs/design/glossary.md#gang, docs/design/glossary.md#point-of-no-return,
docs/design/glossary.md#class.
"""

from dataclasses import replace
from datetime import datetime, timedelta

from gpusharing.api.names import DisruptionClass, Phase
from gpusharing.api.validation import parse_duration
from gpusharing.planning.drain.gangkeepers import explain_gangs
from gpusharing.planning.drain.plan import DrainPlan
from gpusharing.planning.snapshot.actions import Action, Evict, ForceDelete, UpdateFence
from gpusharing.planning.snapshot.podviews import NodeWork
from gpusharing.planning.transition.requests import answers_quiet, last_busy, next_quiet_request
from gpusharing.planning.transition.verdict import FencedCase, Verdict
from gpusharing.planning.vocabulary.blockers import explain_blockers, main_reason
from gpusharing.planning.vocabulary.lengths import counted
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.wanted.assess import Assessed

JOBS_PACE = 4
"""The number of poll intervals between two LISTs while the drain waits for jobs, which run for minutes to hours."""
LIST_AGE = timedelta(seconds=30)
"""The maximum age of a LIST that proves idleness."""


def way_to_idle(
    case: FencedCase,
    waiting: Verdict | None = None,
    *,
    any_event: bool = False,
    step_proven: bool = False,
) -> Verdict | None:
    """Return the verdict on what is due first: a worse class of disruption (`escalate`), a LIST, the drain, `waiting`
    (what the run lacks), or the proof of idleness. None if the node was just proven idle. While the pods are not
    listed, or the LIST failed, the verdict is Draining with the reason Settling or ListFailed. That verdict and
    `waiting` wake at the next poll, and the pods are listed then. `any_event`: the agent's reading may be older than
    the last event. `step_proven`: the request to the agent records that the present step is proven."""
    if (escalated := escalate(case)) is not None:
        return escalated
    work, plan = case.work, case.drain
    if work is None or plan is None or work.error:
        why = work.error if work else "listing the pods on the node"
        reason = Reason.LIST_FAILED if work else Reason.SETTLING
        return replace(case.verdict(Phase.DRAINING, reason, why, wake=next_poll(case)), wants_pods=True)
    if plan.holders:
        return _drain(case, plan)
    if waiting is not None:
        return replace(waiting, wake=next_poll(case), wants_pods=True)
    return _prove(case, work, any_event=any_event, step_proven=step_proven)


def escalate(case: FencedCase) -> Verdict | None:
    """Return the Draining verdict (PodsLeaving) that records the present class of disruption (`NodeCase.disruption`) in
    the fence, or None if the fence has it already. The class only ever gets worse, and it decides which pods must
    leave.

    Pods that did not have to leave before get the whole `drain.timeout`, counted from now. While the drain waits for
    jobs, the deadline does not change.
    """
    fence, assessment = case.fence, case.assessment
    if case.disruption is case.fence.disruption:
        return None
    assert isinstance(assessment, Assessed), "only a new target can change the disruption class"
    message = (
        f"the disruption class of the change is now {case.disruption}, which determines which pods must leave"
    )
    verdict = case.verdict(Phase.DRAINING, Reason.PODS_LEAVING, message)
    until = case.now + parse_duration(assessment.spec.drain.timeout)
    deadline = fence.deadline if fence.jobs else max(fence.deadline, until)
    fence = replace(fence, disruption=case.disruption, deadline=deadline)
    return replace(verdict, wants_pods=True).then(UpdateFence(case.node, fence))


def holds(case: FencedCase) -> bool:
    """Whether the policy wants the drain to continue after its deadline (onTimeout Hold). False after the point of no
    return, and if no policy drives the node or its spec cannot be read."""
    spec = case.assessment.policy.spec if case.assessment is not None else None
    return spec is not None and spec.drain.on_timeout == "Hold" and case.fence.stage == "fenced"


def outlasts(case: FencedCase) -> bool:
    """Whether the drain continues although its deadline is over. From then on, no time limit ends it."""
    return holds(case) and case.now >= case.fence.deadline


def next_poll(case: FencedCase, pace: int = 1) -> datetime:
    """Return when to list the pods again: `pace` poll intervals after the last LIST, or after now if that time has
    passed or there was no LIST. If the fence's deadline lies ahead and comes first, return the deadline. A pass for
    another reason does not delay the LIST."""
    poll = timedelta(seconds=case.settings.poll * pace)
    soon = (case.work.listed_at if case.work is not None else case.now) + poll
    soon = soon if soon > case.now else case.now + poll
    return min(soon, case.fence.deadline) if case.now < case.fence.deadline else soon


def _drain(case: FencedCase, plan: DrainPlan) -> Verdict:
    """Return the verdict on a node whose drain continues, with this pass's evictions and deletions. The next pass lists
    the pods. It comes at the next poll, JOBS_PACE poll intervals after the last LIST while the plan has jobs, or
    earlier at the plan's `next_wake`. The evictions come before the deletions; a pod without a grace period is deleted
    with one of a second. The phase is WaitingForJobs while the plan has jobs, else Draining. The first reason that
    applies counts: ObservationPending if stale data prevents an eviction or deletion; DrainHeld without jobs if the
    drain `outlasts` its deadline; the most urgent blocker's; PodsLeaving."""
    reason = main_reason(plan.blockers) or Reason.PODS_LEAVING
    lines = explain_blockers(plan.blockers)
    text = _tell_left(case, plan)
    if outlasts(case) and not plan.jobs:
        stays = f"the node stays {case.fence.closed}"
        text = f"drain.timeout has expired and drain.onTimeout is Hold, so {stays}; {text}"
        reason = Reason.DRAIN_HELD
    if case.old_views and (plan.evict or plan.delete):  # the cordon may have been lifted since
        plan, reason = replace(plan, evict=(), delete=()), Reason.OBSERVATION_PENDING
        text += (
            f"; no pod is evicted until the API server sends updates about {case.old_views}, because the cached data"
            " is stale"
        )
    message = f"{text}; {lines[0]}" if lines else text
    poll = next_poll(case, JOBS_PACE if plan.jobs else 1)
    wake = min(plan.next_wake, poll) if plan.next_wake else poll
    phase = Phase.WAITING_FOR_JOBS if plan.jobs else Phase.DRAINING
    verdict = case.verdict(phase, reason, message, wake=wake)
    name = case.node.name
    actions: list[Action] = [Evict(name, pod.namespace, pod.name, pod.uid) for pod in plan.evict]
    for pod in plan.delete:
        # The API server removes a pod without a grace period at once, whether its containers have ended or not.
        grace = 1 if pod.grace < 1 else None
        actions.append(ForceDelete(name, pod.namespace, pod.name, pod.uid, grace))
    return replace(
        verdict,
        pods=plan.holders,
        blockers=plan.blockers,
        leaving=plan.first + (f" +{plan.holders - 1}" if plan.first and plan.holders > 1 else ""),
        wants_pods=True,
        actions=tuple(actions),
    )


def _tell_left(case: FencedCase, plan: DrainPlan) -> str:
    """Return a clause that says how many pods are left, how many of those whose turn it is may end by themselves, and
    which gangs the drain interrupts. They are called GPU pods, except before a reboot, which all pods have to leave."""
    kind = "pod" if case.fence.disruption is DisruptionClass.REBOOT else "GPU pod"
    text = f"{counted(plan.holders, kind)} left to go"
    if plan.jobs:
        alone = "themselves" if len(plan.jobs) > 1 else "itself"
        text += f", of which {len(plan.jobs)} may end by {alone} first"
    return f"{text}, which interrupts {explain_gangs(case.gangs)}" if case.gangs else text


def _prove(case: FencedCase, work: NodeWork, *, any_event: bool, step_proven: bool) -> Verdict | None:
    """Return the VerifyingIdle verdict on what the proof of idleness still lacks, with the next request to the agent if
    one is needed, or None if the node is proven idle. `any_event` and `step_proven` are those of `next_quiet_request`.
    The proof needs a Ready node (else NodeUnreachable) and a Ready agent. The agent must have closed NVML
    (ObservationPending until then), read all GPUs, and seen no process on them except MPS daemons (else GPUStillBusy,
    with the words of `last_busy`). After that, two LISTs some seconds apart must show no pod that has to leave
    (`_listed_twice`, Settling until then). The verdict wakes at the next poll, or `settings.idle` seconds from now if
    only the second LIST is missing and that is earlier."""

    def wait(reason: Reason, message: str, wake: datetime | None = None) -> Verdict:
        """Return a VerifyingIdle verdict that has the pods listed again, at `wake` or, if that is None, at the next
        poll."""
        verdict = case.verdict(Phase.VERIFYING_IDLE, reason, message, wake=wake or next_poll(case))
        return replace(verdict, wants_pods=True)

    if not case.node.ready:
        return wait(
            Reason.NODE_UNREACHABLE,
            "the node is not Ready, so it is unknown whether its pods are still running",
        )
    if not case.agent_ready:
        unseen = case.no_agent(", so it is unknown whether the GPUs are idle")
        return wait(unseen.reason, unseen.message)
    request = next_quiet_request(case, work.stood, any_event=any_event, step_proven=step_proven)
    busy = last_busy(case)
    if request is not None or busy or not answers_quiet(case):
        # The last answer stays visible until the next one, so that the status does not flap with every request.
        reason = Reason.GPU_STILL_BUSY if busy else Reason.OBSERVATION_PENDING
        verdict = wait(reason, busy or "waiting for the agent to read the GPUs once more and close NVML")
        return verdict.then(request) if request is not None else verdict
    if _listed_twice(case, work):
        return None
    wake = min(case.now + timedelta(seconds=case.settings.idle), next_poll(case))
    return wait(Reason.SETTLING, "no pod has a GPU; listing the pods once more to be sure", wake)


def _listed_twice(case: FencedCase, work: NodeWork) -> bool:
    """Whether two LISTs, the last one and an earlier one, showed no pod that has to leave. The earlier one must be at
    least `settings.idle` seconds older than the last one, less than LIST_AGE old, and made after the agent's answer was
    seen. False if there is no such answer, or if the LISTs were made for another scope or under another cordon."""
    if work.quiet_since is None or work.scope != case.scope:
        return False
    first = max(work.quiet_since, case.now - LIST_AGE)
    last = work.listed_at - timedelta(seconds=case.settings.idle)
    return any(first < moment <= last for moment in work.empty_lists)
