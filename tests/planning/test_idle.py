"""The way to an idle node, taken anew before every run: drain, waits, reading, LISTs (`planning/transition/idle.py`)."""

from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest
from tests.build import NOW, at, make_cluster_policy, make_gpu, make_operand, make_pod, make_stack, make_work
from tests.planning.cases import EVENT, FULL, MIXED, SLICED, quiet_report
from tests.planning.drains import FENCE, IDLE, MIG_CONFIG, MIG_STATE, REQUEST, asked, fenced, silent
from tests.wording import lacks

from gpusharing.api.names import DisruptionClass, Phase
from gpusharing.planning.snapshot.actions import Actuate, EnsureGPUNode, Evict
from gpusharing.planning.transition.attempts import proof_time
from gpusharing.planning.transition.before import before_pnr
from gpusharing.planning.transition.requests import last_event
from gpusharing.planning.transition.verdict import NodeCase
from gpusharing.planning.vocabulary.reasons import Reason

WAITS: dict[str, tuple[NodeCase, Reason]] = {
    "the node is not Ready": (fenced(node={"ready": False}), Reason.NODE_UNREACHABLE),
    "no agent is ready": (fenced(agent_ready=False), Reason.AGENT_NOT_READY),
    "the agent was not asked to be quiet": (fenced(), Reason.OBSERVATION_PENDING),
    "the agent has not answered": (fenced(gpunode=silent(request_id="older")), Reason.OBSERVATION_PENDING),
    "an older operator asked the agent": (
        fenced(gpunode=quiet_report(FULL, "op-1:quiet:1")), Reason.OBSERVATION_PENDING),
    "the agent left only one GPU alone, and now all change": (
        fenced(gpunode=replace(silent(), quiet_gpus=(0,))), Reason.OBSERVATION_PENDING),
    "the agent was asked before the last pod left": (
        fenced(gpunode=silent(), work=replace(IDLE, stood=REQUEST)), Reason.OBSERVATION_PENDING),
    "the agent was asked before mig-manager's last run": (
        fenced(gpunode=quiet_report(FULL, asked(-2).replace(EVENT, "earlier"))), Reason.OBSERVATION_PENDING),
    "both LISTs were made before the cordon": (
        fenced(gpunode=silent(), work=replace(IDLE, scope=replace(fenced().scope, cordoned_at=at(-3)))), Reason.SETTLING),
    "both LISTs were made while the node was not Ready": (
        fenced(gpunode=silent(), work=replace(IDLE, scope=replace(fenced().scope, silent=True))), Reason.SETTLING),
    "a process computes": (fenced(gpunode=silent(gpus=(make_gpu(processes=("python",)),))), Reason.GPU_STILL_BUSY),
    "a process that the agent cannot name computes": (
        fenced(gpunode=silent(gpus=(make_gpu(processes=("",)),))), Reason.GPU_STILL_BUSY),
    "the agent cannot read": (fenced(gpunode=silent(error="NVMLFailed")), Reason.GPU_STILL_BUSY),
    "only one LIST was empty": (
        fenced(gpunode=quiet_report(FULL, asked(0)), work=make_work(listed_at=NOW, empty_since=NOW)), Reason.SETTLING),
    "the second LIST is not made yet, however late it is": (
        fenced(gpunode=silent(), work=make_work(listed_at=at(-10), empty_since=at(-10))), Reason.SETTLING),
    "both LISTs are older than half a minute": (
        fenced(gpunode=quiet_report(FULL, asked(-35)), work=make_work(listed_at=at(-31), empty_since=at(-35))),
        Reason.SETTLING),
    "one of the two LISTs is older than half a minute": (
        fenced(gpunode=quiet_report(FULL, asked(-31)), work=make_work(listed_at=NOW, empty_since=at(-31))),
        Reason.SETTLING),
    "both LISTs were made before the agent answered": (
        fenced(gpunode=silent(), work=make_work(listed_at=NOW, empty_since=at(-3), quiet_since=NOW)),
        Reason.SETTLING),
    "one of the two LISTs was made before the agent answered": (
        fenced(gpunode=silent(), work=make_work(listed_at=NOW, empty_since=at(-3), quiet_since=at(-3))),
        Reason.SETTLING),
    "the agent read more than a minute ago": (
        fenced(gpunode=quiet_report(FULL, asked(-61)), work=make_work(listed_at=NOW, empty_since=at(-70))),
        Reason.OBSERVATION_PENDING),
    "the agent was asked by a clock that is ahead of ours": (
        fenced(gpunode=quiet_report(FULL, asked(9))), Reason.OBSERVATION_PENDING),
    "the configuration is not written": (fenced(gpunode=silent(), stack=make_stack(FULL)), Reason.CONFIG_PROPAGATING),
    "mig-manager is away": (fenced(gpunode=silent(), operand=None), Reason.ACTUATOR_MISSING),
    "mig-manager is not ready": (fenced(gpunode=silent(), operand=make_operand(ready=False)), Reason.ACTUATOR_MISSING),
    "what is known of the nodes is old": (
        replace(fenced(gpunode=silent()), old_views="nodes"), Reason.OBSERVATION_PENDING),
}  # fmt: skip


@pytest.mark.parametrize(("case", "reason"), WAITS.values(), ids=WAITS.keys())
def test_the_node_is_not_proven_idle(case: NodeCase, reason: Reason) -> None:
    verdict = before_pnr(case)
    assert (verdict.phase, verdict.reason) == (Phase.VERIFYING_IDLE, reason), verdict.message
    assert verdict.wants_pods
    assert verdict.wake is not None
    assert case.now < verdict.wake <= at(5)
    assert not any(isinstance(action, Actuate) for action in verdict.actions)


def test_no_pod_is_asked_to_leave_while_what_is_known_of_the_nodes_is_old() -> None:
    leaving = make_pod("b", deleted_at=at(9))
    pods, gone = fenced(work=make_work(make_pod("a"), leaving)), fenced(work=make_work(leaving))
    assert [type(action) for action in before_pnr(pods).actions] == [Evict]
    old = before_pnr(replace(pods, old_views="nodes"))
    assert (old.phase, old.reason, old.actions) == (Phase.DRAINING, Reason.OBSERVATION_PENDING, ())
    assert not lacks(old.message, "no pod is evicted", "nodes")
    assert (old.pods, old.wants_pods) == (2, True)
    assert old.wake is not None
    assert before_pnr(replace(gone, old_views="nodes")).reason is Reason.PODS_LEAVING


def test_on_a_node_that_is_not_ready_no_pod_is_evicted_and_none_is_called_stuck() -> None:
    """Kubernetes leaves the phase of its pods at Running, and its node controller deletes them after minutes."""
    pods = make_work(make_pod("a"), make_pod("b", deleted_at=at(-900)))
    stuck = before_pnr(fenced(work=pods))
    assert (stuck.reason, len(stuck.actions)) == (Reason.TERMINATING_STUCK, 1)
    silent_kubelet = before_pnr(fenced(work=pods, node={"ready": False}))
    assert (silent_kubelet.phase, silent_kubelet.reason) == (Phase.DRAINING, Reason.NODE_UNREACHABLE)
    assert silent_kubelet.actions == ()
    assert "NodeUnreachable: Pods team-a/a, team-a/b. " in silent_kubelet.message


@pytest.mark.parametrize("answered", [at(-59), at(-31)])
def test_a_young_proof_passes_however_long_the_node_is_empty(answered: datetime) -> None:
    lists = (at(-500), at(-29), NOW)
    work = make_work(listed_at=NOW, empty_since=at(-500), empty_lists=lists, quiet_since=at(-30))
    request = asked((answered - NOW).total_seconds())
    assert before_pnr(fenced(gpunode=quiet_report(FULL, request), work=work)).phase is Phase.RECONFIGURING


def test_a_proven_node_is_looked_at_until_its_change_is_written() -> None:
    work = make_work(listed_at=NOW, empty_since=at(-70), empty_lists=(at(-20), NOW), quiet_since=at(-30))
    verdict = before_pnr(fenced(gpunode=silent(), work=work))
    assert any(isinstance(action, Actuate) for action in verdict.actions)
    assert verdict.wants_pods


def test_a_change_that_leaves_mig_as_it_is_passes_without_mig_manager() -> None:
    labels = {MIG_CONFIG: "all-disabled", MIG_STATE: "success"}
    shared = fenced(SLICED, labels=labels, gpunode=silent(), operand=None)
    verdict = before_pnr(shared)
    assert (verdict.phase, verdict.message) == (Phase.RECONFIGURING, "changing to 4x shared")


WAITED_FOR: dict[str, dict[str, Any]] = {
    "the configuration": {"stack": make_stack(FULL)},
    "mig-manager": {"operand": None},
}


@pytest.mark.parametrize("missing", WAITED_FOR.values(), ids=WAITED_FOR.keys())
def test_the_agent_is_not_asked_for_silence_before_what_can_take_long_is_there(missing: dict[str, Any]) -> None:
    verdict = before_pnr(fenced(**missing))
    assert (verdict.phase, verdict.actions) == (Phase.VERIFYING_IDLE, ())


def test_a_question_that_the_agent_is_still_at_is_not_replaced_by_another() -> None:
    working = replace(silent(request_id="older"), request_id=asked(-100))
    work = make_work(listed_at=NOW, empty_since=at(-200))
    assert before_pnr(fenced(gpunode=working, work=work)).actions == ()


WORSE = replace(FENCE, disruption=DisruptionClass.GPU_PODS, version=MIXED.version)


def test_a_change_that_mig_manager_might_reboot_the_node_for_since_waits_and_evicts_nobody() -> None:
    """Time-slicing was asked for, then MIG; then somebody lets mig-manager reboot the node, for a moment or for good."""
    reboots = make_stack(FULL, MIXED, cluster_policy=make_cluster_policy(with_reboot=True))
    cpu = make_work(make_pod("cpu", resources={}), make_pod(), empty_since=None)
    waits = before_pnr(fenced(fence=WORSE, gpunode=silent(), work=cpu, stack=reboots))
    assert (waits.phase, waits.reason, waits.actions) == (Phase.CORDONED, Reason.WIDER_DRAIN_NEEDED, ())
    late = before_pnr(fenced(fence=replace(WORSE, deadline=at(-240)), gpunode=silent(), work=None, stack=reboots))
    assert (late.phase, late.reason) == (Phase.ABORTING, Reason.WIDER_DRAIN_NEEDED)
    longer = replace(WORSE, version=FULL.version)
    assert before_pnr(fenced(fence=longer, gpunode=silent(), work=cpu, stack=reboots)).actions == (), "not asked for"
    edited = replace(longer, to_layout="1x full")
    anew = before_pnr(fenced(fence=edited, gpunode=silent(), work=cpu, stack=reboots))
    assert (anew.phase, anew.reason) == (Phase.ABORTING, Reason.PODS_LEAVING)


def test_a_class_never_falls_again() -> None:
    worst = replace(FENCE, disruption=DisruptionClass.REBOOT)
    case = fenced(fence=worst, gpunode=silent(), work=make_work(make_pod("cpu", resources={})))
    assert isinstance(before_pnr(case).actions[0], Evict)
    assert before_pnr(case).disruption is DisruptionClass.REBOOT


def test_lists_that_looked_for_gpu_pods_only_prove_nothing_for_a_reboot() -> None:
    worst = replace(FENCE, disruption=DisruptionClass.REBOOT)
    whole = fenced(fence=worst).scope
    gpus = replace(IDLE, scope=replace(whole, all_pods=False))
    assert before_pnr(fenced(fence=worst, gpunode=silent(), work=gpus)).reason is Reason.SETTLING
    seen = replace(IDLE, scope=whole)
    assert before_pnr(fenced(fence=worst, gpunode=silent(), work=seen)).phase is Phase.RECONFIGURING


def test_silence_is_asked_once_per_poll_while_somebody_computes() -> None:
    busy = silent(gpus=(make_gpu(processes=("python",)),))
    assert before_pnr(fenced(gpunode=busy)).actions == ()
    later = fenced(gpunode=busy, now=at(5), work=make_work(listed_at=at(5), empty_since=at(-3)))
    assert before_pnr(later).message == before_pnr(fenced(gpunode=busy)).message
    request = asked(5).replace(EVENT, last_event(later))
    assert before_pnr(later).actions == (EnsureGPUNode("gpu-07", "uid-gpu-07", request, quiet=True),)


def test_a_node_that_is_given_back_because_of_a_process_names_it() -> None:
    late = replace(FENCE, deadline=at(-240))
    busy = before_pnr(fenced(gpunode=silent(gpus=(make_gpu(processes=("python",)),)), fence=late))
    assert (busy.phase, busy.reason) == (Phase.ABORTING, Reason.GPU_STILL_BUSY)
    assert not lacks(busy.message, "not proven idle", "restored", "GPU 0", "python")
    silence = before_pnr(fenced(gpunode=silent(), fence=late))
    assert (silence.phase, silence.reason) == (Phase.ABORTING, Reason.DRAIN_TIMEOUT)
    assert not lacks(silence.message, "not proven idle", "restored")


def test_nvidias_own_mps_daemons_do_not_count_as_busy() -> None:
    daemons = ("nvidia-cuda-mps-server", "nvidia-cuda-mps-control")
    verdict = before_pnr(fenced(gpunode=silent(gpus=(make_gpu(processes=daemons),))))
    assert verdict.phase is Phase.RECONFIGURING


@pytest.mark.parametrize("deadline", [NOW, at(-60)])
def test_an_empty_node_whose_drain_has_run_out_is_judged_again_when_the_time_of_its_proof_is_over(
    deadline: datetime,
) -> None:
    late = before_pnr(fenced(fence=replace(FENCE, deadline=deadline), gpunode={"observed": None}))
    assert (late.phase, late.reason, late.actions) == (Phase.CORDONED, Reason.OBSERVATION_PENDING, ())
    assert late.wake == deadline + proof_time(fenced())


def test_a_request_that_follows_another_one_of_the_same_moment_has_a_name_of_its_own() -> None:
    stood = fenced(gpunode=quiet_report(FULL, asked(0)), work=replace(IDLE, stood=asked(0)))
    (request,) = before_pnr(stood).actions
    assert isinstance(request, EnsureGPUNode)
    assert stood.work is not None
    assert request.request_id not in ("", stood.work.stood)
    follows = replace(quiet_report(FULL, request.request_id), quiet=True)
    assert before_pnr(fenced(gpunode=follows, work=stood.work)).phase is Phase.RECONFIGURING
