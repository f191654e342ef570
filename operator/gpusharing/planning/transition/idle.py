"""What is due next before a fenced node is idle? Asked again before every run of an actuator.

    no holder by LIST ── what the run waits for is there ── the agent read and closed NVML ── two more empty LISTs

Steps that can take long come first, so that the proof is fresh when it is used. The reading was requested at most a
minute ago, after the last pod left and after the last event (`fresh_reading`). Both LISTs were made after the agent
answered and within the last half minute.
"""

from collections.abc import Collection
from dataclasses import replace
from datetime import datetime, timedelta

from gpusharing.api.names import DisruptionClass, Phase
from gpusharing.planning.drain.plan import DrainPlan
from gpusharing.planning.drain.pods import count_staying, has_finished
from gpusharing.planning.drain.standing import explain_gangs
from gpusharing.planning.gpus.health import REACHABLE
from gpusharing.planning.snapshot.actions import Action, Evict, ForceDelete
from gpusharing.planning.snapshot.podviews import NodeWork
from gpusharing.planning.snapshot.views import ObservedView
from gpusharing.planning.transition.requests import answers_quiet, next_quiet_request, pods_request, tell_busy
from gpusharing.planning.transition.verdict import NodeCase, Verdict
from gpusharing.planning.vocabulary.findings import Finding, explain_blockers, main_reason
from gpusharing.planning.vocabulary.lengths import counted, some
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.wanted.target import describe_layouts
from gpusharing.planning.wanted.verify import name_gpus

JOBS_PACE = 4
"""The number of poll intervals between two LISTs while the drain waits for jobs. Jobs run for minutes to hours."""
LIST_AGE = timedelta(seconds=30)
"""The maximum age of a LIST that proves idleness."""


def way_to_idle(
    case: NodeCase, waiting: Verdict | None = None, *, any_event: bool = False, step_proven: bool = False
) -> Verdict | None:
    """Return what is due next until the node is idle, or None if it is proven. `waiting` is what else the run needs."""
    if (waits := case.overreach) is not None:
        return case.show(Phase.VERIFYING_IDLE, waits, *read_again(case), wake=next_poll(case))
    work, plan = case.work, case.drain
    if work is None or plan is None or work.error:
        why = work.error if work else "listing the pods on the node"
        reason = Reason.LIST_FAILED if work else Reason.SETTLING
        return case.verdict(Phase.DRAINING, reason, why, wake=next_poll(case), wants_pods=True)
    if (asked := ask_who_holds(case)) is not None:
        return asked
    if plan.holders:
        return _drain(case, plan)
    if waiting is not None:
        return replace(waiting, wake=next_poll(case), wants_pods=True)
    return _prove(case, work, any_event=any_event, step_proven=step_proven)


def holds(case: NodeCase) -> bool:
    """Whether the policy wants the drain to continue after its deadline. No time limit ends it then."""
    spec = case.spec
    return spec is not None and spec.drain.on_timeout == "Hold" and case.fence.stage == "fenced"


def outlasts(case: NodeCase) -> bool:
    return holds(case) and case.now >= case.fence.deadline


def next_poll(case: NodeCase, pace: int = 1) -> datetime:
    """Return when to list the pods again: `pace` poll intervals after the last LIST, no later than the deadline."""
    poll = timedelta(seconds=case.settings.poll * pace)
    soon = (case.work.listed_at if case.work is not None else case.now) + poll
    if soon <= case.now:
        soon = case.now + poll
    return min(soon, case.fence.deadline) if case.now < case.fence.deadline else soon


def awaits_holders(case: NodeCase) -> bool:
    """Whether only some GPUs are to be emptied and the agent has yet to report which pods hold which."""
    return case.scope.part is not None and case.scope.part.holders is None


def read_again(case: NodeCase) -> tuple[Action, ...]:
    """Return the next request for a reading of GPUs that an agent does not read by itself, as NVML is closed."""
    request = pods_request(case) if case.gpunode is not None and case.gpunode.quiet else None
    return () if request is None else (request,)


def ask_who_holds(case: NodeCase) -> Verdict | None:
    if not awaits_holders(case):
        return None
    message, request = "waiting for the agent to report which pods hold which GPUs", pods_request(case)
    phase = Phase.DRAINING if case.fence.stage == "fenced" else Phase.VERIFYING_IDLE
    actions = () if request is None else (request,)
    return case.verdict(phase, Reason.OBSERVATION_PENDING, message, *actions, wake=next_poll(case), wants_pods=True)


def _drain(case: NodeCase, plan: DrainPlan) -> Verdict:
    reason = main_reason(plan.blockers) or Reason.PODS_LEAVING
    lines = explain_blockers(plan.blockers)
    kind = "pod" if case.fence.disruption is DisruptionClass.REBOOT else "GPU pod"
    text, part = f"{counted(plan.holders, kind)} left to go", case.scope.part
    if part is not None and case.work is not None:
        stay = counted(count_staying(case.work.pods, case.scope), "pod stays", "pods stay")
        text += f" from {name_gpus(sorted(part.gpus))}, and {stay} on other GPUs"
    if plan.jobs:
        alone = "themselves" if len(plan.jobs) > 1 else "itself"
        text += f", of which {len(plan.jobs)} may end by {alone} first"
    if gangs := case.gangs:
        text += f", which interrupts {explain_gangs(gangs)}"
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
    name = case.node.name
    actions: list[Action] = [Evict(name, pod.namespace, pod.name, pod.uid) for pod in plan.evict]
    for pod in plan.delete:
        # The API server removes a pod without a grace period at once, whether its containers have ended or not.
        grace = 1 if pod.grace < 1 else None
        actions.append(ForceDelete(name, pod.namespace, pod.name, pod.uid, grace))
    return replace(
        case.verdict(phase, reason, message, *actions, wake=wake, wants_pods=True),
        pods=plan.holders,
        blockers=plan.blockers,
        leaving=plan.first + (f" +{plan.holders - 1}" if plan.first and plan.holders > 1 else ""),
    )


def _prove(case: NodeCase, work: NodeWork, *, any_event: bool, step_proven: bool) -> Verdict | None:
    def wait(reason: Reason, message: str, *actions: Action, wake: datetime | None = None) -> Verdict:
        wake = wake or next_poll(case)
        return case.verdict(Phase.VERIFYING_IDLE, reason, message, *actions, wake=wake, wants_pods=True)

    if not case.node.ready:
        message = "the node is not Ready, so it is unknown whether its pods are still running"
        return wait(Reason.NODE_UNREACHABLE, message)
    if not case.agent_ready:
        unseen = case.no_agent(", so it is unknown whether the GPUs are idle")
        return wait(unseen.reason, unseen.message)
    request = next_quiet_request(case, work.stood, any_event=any_event, step_proven=step_proven)
    busy = tell_busy(case)
    if request is not None or busy or not answers_quiet(case):
        # The last answer stays visible until the next one, so that the status does not flap with every request.
        reason = Reason.GPU_STILL_BUSY if busy else Reason.OBSERVATION_PENDING
        message = busy or "waiting for the agent to read the GPUs once more and close NVML"
        return wait(reason, message, *([request] if request else []))
    # Two LISTs after the agent's answer and in the present scope were empty.
    if work.quiet_since is not None and work.scope == case.scope:
        first, last = max(work.quiet_since, case.now - LIST_AGE), work.listed_at - timedelta(seconds=case.settings.idle)
        if any(first < moment <= last for moment in work.empty_lists):
            return None
    wake = min(case.now + timedelta(seconds=case.settings.idle), next_poll(case))
    held = "a GPU" if case.scope.part is None else "one of the GPUs that change"
    return wait(Reason.SETTLING, f"no pod has {held}; listing the pods once more to be sure", wake=wake)


# --- what stays on the GPUs that do not change ----------------------------------------------------------------


def find_kept(observed: ObservedView, gpus: Collection[int]) -> tuple[tuple[str, str], ...]:
    """Return what a change that empties only these GPUs must leave as it is: the devices of the others, by pod too."""
    keys = zip(observed.gpus, observed.devices, strict=True)
    # Another instance at the same place may have the same UUID.
    devices = (
        (f"GPU {gpu.index}", f"{describe_layouts((gpu.layout,))} {key}") for gpu, key in keys if gpu.index not in gpus
    )
    return (*devices, *((holder.uid, holder.devices) for holder in observed.holders or ()))


def lacks_holders(case: NodeCase) -> bool:
    """Whether the agent answered a change of some GPUs without saying which pods hold which GPUs."""
    partly = case.fence.disruption is DisruptionClass.CHANGED_GPUS
    asked = case.answer is not None and case.gpunode is not None and case.gpunode.holders
    return partly and asked and not names_holders(case)


def names_holders(case: NodeCase) -> bool:
    """Whether the last report says of each pod with a device which one it is and which GPUs it holds."""
    holders = case.observed.holders if case.observed is not None else None
    return holders is not None and all(one.uid and one.gpus for one in holders)


def check_kept(case: NodeCase) -> Finding | None:
    """Return what is no longer as it was on GPUs that the change was not to touch, or that this is unknown."""
    kept, observed, work = dict(case.fence.kept), case.observed, case.work
    if (
        not kept
        or case.fence.disruption is not DisruptionClass.CHANGED_GPUS
        or observed is None
        or not observed.request_id.startswith(f"{case.fence.op}:")
    ):
        return None
    if observed.holders is None:
        message = "waiting for the agent to report which pods hold which GPUs"
        return Finding(Reason.OBSERVATION_PENDING, message)
    now = dict(find_kept(observed, case.fence.gpus))
    pods = {pod.uid: pod.ref for pod in (work.pods if work else ()) if not has_finished(pod)}
    changed = [  # of a GPU that cannot be read, the comparison with the target tells
        gpu.index
        for gpu in observed.gpus
        if now.get(f"GPU {gpu.index}") != kept.get(f"GPU {gpu.index}")
        and gpu.vitals.access == REACHABLE
        and not gpu.instances_withheld
    ]
    lost = [one for one in observed.holders if one.uid in kept and one.devices != kept[one.uid]]
    known = [one for one in observed.holders if one.uid in kept]
    on = [one.ref for one in known if changed and (not one.gpus or not set(changed).isdisjoint(one.gpus))]
    gone = [ref for uid, ref in pods.items() if changed and uid in kept and uid not in now]
    if changed or lost:
        named = sorted({*on, *gone, *(one.ref for one in lost)})
        touched = f"the devices of {name_gpus(changed)} are not those" if changed else "pods do not hold the devices"
        wanted = name_gpus(sorted(case.fence.gpus))
        message = (
            f"only {wanted} {'was' if len(case.fence.gpus) == 1 else 'were'} to change, but {touched} from before. Pods"
            f" that may be affected: {some(named) if named else 'none that is known'}"
        )
        return Finding(Reason.KEPT_GPUS_CHANGED, message)
    if work is None or work.error or work.listed_at <= case.fence.stage_since:
        why = work.error if work else ""
        return Finding(Reason.OBSERVATION_PENDING, why or "listing the pods on the node")
    if unseen := sorted(ref for uid, ref in pods.items() if uid in kept and uid not in now):
        message = f"the agent does not report which devices {some(unseen)} holds now"
        return Finding(Reason.OBSERVATION_PENDING, message)
    return None
