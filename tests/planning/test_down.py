"""A program that does not run any more, or has done what it says, while what it left behind still looks as if it did."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from tests.build import NOW, at, make_cluster_policy, make_operand, make_snapshot, make_stack
from tests.planning.cases import FULL, MIXED, MPS, assessed_of, judged, make_case
from tests.planning.changes import FENCE, answering, changing, fence_to
from tests.wording import lacks

from gpusharing.api import names
from gpusharing.api.names import Phase
from gpusharing.planning.rollout import plan_rollout
from gpusharing.planning.snapshot.actions import EnsureGPUNode, LabelNode, UpdateFence
from gpusharing.planning.snapshot.memory import DRIFTS, PassMemory
from gpusharing.planning.snapshot.nvidia import MpsDaemonView, Operand, Program
from gpusharing.planning.transition.verdict import NodeCase
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.wanted.actuators import LABELS

RUNS = Operand("gpu-operator", "mps-1", "uid-mps", ready=True, ready_since=at(-3600))
DOWN = replace(RUNS, ready=False, down=True, ready_since=None)
SIGNALLED = MpsDaemonView("v0.18.1", "mps-control-daemon", "mps-control-daemon", sees_host=True)
LIMIT = 90
"""The grace of a drift and then that of a restart, in seconds."""


def serving(daemon: Operand | None, since: float | None = None, **fields: Any) -> NodeCase:
    seen = None if since is None else at(since)
    return make_case(MPS, was=MPS, mps_daemon=daemon, seen_since=seen, **fields)


def test_a_daemon_that_stays_down_blocks_its_node_until_a_person_acts_and_the_mode_it_left_is_no_life() -> None:
    verdict = judged(serving(DOWN, -LIMIT))
    assert (verdict.phase, verdict.reason, verdict.stands) == (Phase.BLOCKED, Reason.MPS_NOT_RUNNING, True)
    assert (verdict.actions, verdict.candidate, verdict.wake) == ((), False, None)
    assert "in compute mode ExclusiveProcess" in verdict.message
    assert "pod mps-1 is not running" in verdict.message
    assert [str(one) for one in verdict.commands] == ["kubectl -n gpu-operator delete pod mps-1"]


@pytest.mark.parametrize("since", [None, -LIMIT + 1])
def test_a_daemon_that_restarts_leaves_its_node_synced_for_a_while(since: float | None) -> None:
    verdict = judged(serving(DOWN, since))
    assert (verdict.phase, verdict.reason, verdict.stands) == (Phase.SYNCED, Reason.SYNCED, False)
    assert verdict.wake == at((since or 0) + LIMIT)


def test_a_daemon_that_starts_now_and_then_does_not_run_and_one_that_keeps_running_does() -> None:
    crashing = replace(RUNS, ready_since=at(-29))
    verdict = judged(serving(crashing, -LIMIT))
    assert (verdict.phase, verdict.wake) == (Phase.BLOCKED, at(1))
    assert "started a moment ago" in verdict.message
    steady = judged(serving(replace(RUNS, ready_since=at(-30)), -LIMIT))
    assert (steady.phase, steady.wake) == (Phase.SYNCED, None)
    assert judged(serving(crashing)).phase is Phase.SYNCED, "nobody has seen it down"


def test_no_pod_of_the_daemon_is_no_life_unless_nvidias_own_chart_may_hide_it() -> None:
    seen = make_stack(MPS, cluster_policy=make_cluster_policy(mps_daemon=SIGNALLED))
    verdict = judged(serving(None, -LIMIT, stack=seen))
    assert (verdict.phase, verdict.reason) == (Phase.BLOCKED, Reason.MPS_NOT_RUNNING)
    assert "app=nvidia-device-plugin-mps-control-daemon" in verdict.message
    assert judged(serving(None, -LIMIT)).phase is Phase.SYNCED
    assert judged(make_case(FULL, mps_daemon=DOWN, seen_since=at(-LIMIT))).phase is Phase.SYNCED, "no MPS is wanted"


def test_a_node_whose_daemon_does_not_run_is_not_adopted() -> None:
    verdict = judged(serving(DOWN, node={"verified": None}))
    assert (verdict.phase, verdict.reason, verdict.stands) == (Phase.BLOCKED, Reason.MPS_NOT_RUNNING, False)
    adopted = judged(serving(RUNS, node={"verified": None}))
    assert [type(action) for action in adopted.actions] == [LabelNode]


def test_nothing_is_said_of_the_daemon_of_a_node_that_is_away() -> None:
    assert judged(serving(DOWN, -LIMIT, node={"ready": False})).reason is not Reason.MPS_NOT_RUNNING


def test_a_change_to_mps_is_not_proven_by_the_mode_that_a_dead_daemon_left() -> None:
    fence = fence_to(MPS, to_layout=assessed_of(serving(RUNS)).target.text, gfd_timestamp="")
    case = changing(MPS, was=MPS, mps_daemon=DOWN, fence=fence, gpunode=answering(was=MPS))
    verdict = judged(case)
    assert (verdict.phase, verdict.reason) == (Phase.VERIFYING, Reason.MPS_NOT_RUNNING)
    assert judged(replace(case, operands={**case.operands, Program.MPS_DAEMON: RUNS})).phase is Phase.UNCORDONING


def test_passes_remember_since_when_the_daemon_is_down_until_it_has_kept_running() -> None:
    case, memory, told = serving(DOWN), PassMemory(), []
    assert case.gpunode is not None
    for seconds, pod in [(0, DOWN), (40, replace(RUNS, ready_since=at(40))), (50, DOWN), (90, DOWN), (100, RUNS)]:
        pods = {**case.operands, Program.MPS_DAEMON: pod}
        snapshot = make_snapshot([case.node], [MPS], gpunodes=[case.gpunode], stack=case.stack, memory=memory)
        operands = {program: {"gpu-07": one} for program, one in pods.items()}
        plan = plan_rollout(replace(snapshot, operands=operands), NOW + timedelta(seconds=seconds))
        memory = plan.memory
        told.append((plan.verdicts["gpu-07"].phase, next(iter(memory.seen_since.get("gpu-07", {}).values()), None)))
    synced, since = Phase.SYNCED, NOW
    assert told == [(synced, since), (synced, since), (synced, since), (Phase.BLOCKED, since), (synced, None)]


REBOOTS = {names.LABEL_MIG_STATE: "rebooting"}


def test_a_reboot_that_does_not_come_is_not_awaited_for_ever_and_the_message_says_what_is_missing() -> None:
    within = judged(make_case(MIXED, labels=REBOOTS, seen_since=at(-1199)))
    assert (within.reason, within.stands, within.wake) == (Reason.ACTUATOR_BUSY, False, at(1))
    verdict = judged(make_case(MIXED, labels=REBOOTS, seen_since=at(-1200)))
    assert (verdict.phase, verdict.reason, verdict.stands) == (Phase.BLOCKED, Reason.ACTUATOR_BUSY, True)
    assert not lacks(verdict.message, "gpu-07", "Ready", "1200 s")
    gone = judged(make_case(MIXED, labels=REBOOTS, seen_since=at(-1200), operand=None))
    assert "it has no pod there" in gone.message


def test_in_a_change_a_reboot_that_does_not_come_is_cured_and_one_that_lasts_is_awaited() -> None:
    stuck = changing(labels=REBOOTS, now=1300, seen_since=at(20))
    verdict = judged(stuck)
    assert (verdict.phase, verdict.reason) == (Phase.RECONFIGURING, Reason.ACTUATION_IN_PROGRESS)
    assert not lacks(verdict.message, "not booted", "1200 s")
    assert verdict.message.endswith("restarting mig-manager")
    (due,) = verdict.actions
    assert isinstance(due, UpdateFence)
    assert due.fence.attempt == stuck.fence.attempt + 1
    for lasting in (
        changing(labels=REBOOTS, now=1300, seen_since=at(20), node={"ready": False}),
        changing(labels=REBOOTS, now=1300, seen_since=at(900)),
    ):  # it has booted since
        assert judged(lasting).actions == ()
    assert judged(lasting).wake == at(2100)


DEAD = replace(make_operand(), ready=False)
PENDING = {names.LABEL_MIG_STATE: "pending"}
SAYS = "label nvidia.com/mig.config.state=pending says that mig-manager is at work on gpu-07"


@pytest.mark.parametrize(("pod", "sign"), [(DEAD, f"its pod {DEAD.name} is not Ready"), (None, "it has no pod there")])
def test_a_state_whose_author_has_no_pod_is_believed_for_as_long_as_a_restart_takes(
    pod: Operand | None, sign: str
) -> None:
    within = judged(make_case(MIXED, labels=PENDING, operand=pod, seen_since=at(-LIMIT + 1)))
    assert (within.reason, within.wake) == (Reason.ACTUATOR_BUSY, at(1))
    verdict = judged(make_case(MIXED, labels=PENDING, operand=pod, seen_since=at(-LIMIT)))
    assert (verdict.phase, verdict.reason, verdict.stands) == (Phase.BLOCKED, Reason.ACTUATOR_MISSING, True)
    assert not lacks(verdict.message, SAYS, sign, "app=nvidia-mig-manager")
    assert not any(isinstance(one, EnsureGPUNode) for one in verdict.actions), "NVML is open, as nobody is at work"
    later = judged(make_case(MIXED, labels=PENDING, operand=pod, seen_since=at(-1200)))
    assert (later.reason, later.message) == (verdict.reason, verdict.message)


def test_operands_that_are_paused_by_a_mig_manager_without_a_pod_are_named_with_it() -> None:
    paused = {f"{names.LABEL_DEPLOY_PREFIX}device-plugin": names.PAUSED_FOR_MIG}
    verdict = judged(make_case(MIXED, was=MIXED, labels=paused, operand=None))
    assert (verdict.phase, verdict.reason) == (Phase.BLOCKED, Reason.ACTUATOR_MISSING)
    assert not lacks(verdict.message, "no Ready mig-manager pod", "gpu-07", "device-plugin")


def test_pods_of_a_node_that_is_away_say_nothing_about_their_programs() -> None:
    away = make_case(MIXED, labels=PENDING, operand=DEAD, seen_since=at(-LIMIT), node={"ready": False})
    claim = LABELS.find_claim(away)
    assert claim is not None
    assert claim.claim == SAYS
    late = changing(labels=PENDING, now=1300, operand=DEAD, node={"ready": False})
    assert DEAD.name not in judged(late).message


@pytest.mark.parametrize(("pod", "sign"), [(DEAD, f"its pod {DEAD.name} is not Ready"), (None, "it has no pod there")])
def test_in_a_change_a_state_whose_author_has_no_pod_is_told_with_the_missing_sign(
    pod: Operand | None, sign: str
) -> None:
    early = judged(changing(labels=PENDING, now=LIMIT - 1, operand=pod))
    assert (early.message, early.wake) == ("mig-manager is applying the configuration", at(LIMIT))
    verdict = judged(changing(labels=PENDING, now=LIMIT, operand=pod))
    assert (verdict.phase, verdict.reason) == (Phase.RECONFIGURING, Reason.ACTUATION_IN_PROGRESS)
    claim = "mig-manager is applying the configuration, says label nvidia.com/mig.config.state=pending"
    assert verdict.message == f"{claim}; {sign}"
    fence = replace(FENCE, restart_uid="uid-old")
    old = judged(changing(now=LIMIT, operand=pod, fence=fence))
    assert not lacks(old.message, "state success", "restart", sign)


def test_passes_remember_since_when_a_program_says_the_same_in_one_boot() -> None:
    case, memory, told = make_case(MIXED), PassMemory(), []
    assert case.gpunode is not None
    says = [
        (0, "pending", "a"),
        (5, "pending", "a"),
        (9, "rebooting", "a"),
        (12, "rebooting", "b"),
        (15, "success", "b"),
    ]
    for seconds, state, boot in says:
        labels = {**case.node.labels, names.LABEL_MIG_STATE: state}
        node = replace(case.node, labels=labels, boot_id=boot)
        snapshot = make_snapshot([node], [MIXED], gpunodes=[case.gpunode], stack=case.stack, memory=memory)
        memory = plan_rollout(snapshot, at(seconds)).memory
        told.append([since for what, since in memory.seen_since.get("gpu-07", {}).items() if what != DRIFTS])
    assert told == [[at(0)], [at(0)], [at(9)], [at(12)], []]


UPGRADE = names.LABEL_UPGRADE_STATE
DRIVERS: dict[str, tuple[dict[str, str], dict[str, Any]]] = {
    "an upgrade that waits for its driver pod": (
        {UPGRADE: "pod-restart-required"}, {"foreign": "NVIDIA driver upgrade"}),
    "an upgrade that validates": ({UPGRADE: "validation-required"}, {"foreign": "NVIDIA driver upgrade"}),
    "operands that a driver pod paused": ({f"{names.LABEL_DEPLOY_PREFIX}dcgm": "true_paused-for-driver-upgrade"}, {}),
}  # fmt: skip


@pytest.mark.parametrize(("labels", "node"), DRIVERS.values(), ids=DRIVERS)
def test_a_driver_that_is_replaced_for_hours_needs_a_person_and_nvml_stays_closed(
    labels: dict[str, str], node: dict[str, Any]
) -> None:
    label, shown = next(iter(labels.items()))
    believed = judged(make_case(MIXED, labels=labels, node=node, seen_since=at(-3599)))
    assert (believed.reason, believed.stands, believed.wake) == (Reason.FOREIGN_MAINTENANCE, False, at(1))
    verdict = judged(make_case(MIXED, labels=labels, node=node, seen_since=at(-3600)))
    assert (verdict.reason, verdict.stands, verdict.wake) == (Reason.FOREIGN_MAINTENANCE, True, None)
    assert not lacks(verdict.message, f"{label}={shown}", "driver", "gpu-07")
    assert "for more than 3600 s" in verdict.message
    (command,) = verdict.commands
    assert str(command) in verdict.message
    closes = [one.quiet for one in verdict.actions if isinstance(one, EnsureGPUNode)]
    assert closes == ([] if shown == "validation-required" else [True])


@pytest.mark.parametrize("state", ["upgrade-required", "wait-for-jobs-required", "upgrade-done"])
def test_a_driver_upgrade_may_wait_for_days(state: str) -> None:
    waits = make_case(MIXED, labels={UPGRADE: state}, node={"foreign": "NVIDIA driver upgrade"}, seen_since=at(-99999))
    assert (judged(waits).reason, judged(waits).stands) == (Reason.FOREIGN_MAINTENANCE, False)


def test_a_ready_agent_that_does_not_answer_is_not_awaited_for_ever() -> None:
    silent = {"request_id": "new:uid-gpu-07:resume"}
    known = make_case(MIXED, gpunode=silent).gpunode
    assert known is not None
    assert known.observed is not None
    closed = {**silent, "observed": replace(known.observed, quiet=True)}
    within = judged(make_case(MIXED, gpunode=closed, seen_since=at(-119)))
    assert (within.reason, within.stands, within.wake) == (Reason.OBSERVATION_PENDING, False, at(1))
    verdict = judged(make_case(MIXED, gpunode=closed, seen_since=at(-120)))
    assert (verdict.reason, verdict.stands) == (Reason.OBSERVATION_PENDING, True)
    assert not lacks(verdict.message, "agent on gpu-07", "Ready", "not answered", "new:uid-gpu-07:resume")
    never = make_case(MIXED, gpunode={**silent, "observed": None}, seen_since=at(-120))
    assert (judged(never).reason, judged(never).stands) == (Reason.OBSERVATION_PENDING, True)


def test_a_proven_node_whose_agent_cannot_run_says_that_its_gpus_are_shown_as_last_read() -> None:
    trouble = Finding(Reason.AGENT_NOT_STARTED, "its pod does not start: the image cannot be pulled")
    case = make_case(FULL, agent_ready=False)
    assert "last read" not in judged(case).message, "it may just restart"
    lasting = judged(make_case(FULL, agent_ready=False, seen_since=at(-LIMIT)))
    assert (lasting.phase, lasting.wake) == (Phase.SYNCED, None)
    assert not lacks(lasting.message, "as they were last read", "no Ready agent pod", "gpu-07")
    verdict = judged(replace(case, agent_trouble=trouble))
    assert (verdict.phase, verdict.reason) == (Phase.SYNCED, Reason.SYNCED)
    assert not lacks(verdict.message, "as they were last read", "no agent", "gpu-07", "does not start")


def test_in_a_change_an_agent_that_does_not_answer_is_named_before_the_deadline_and_at_it() -> None:
    silent = replace(answering(), observed=None)
    early = judged(changing(now=119, gpunode=silent))
    assert (early.reason, early.wake) == (Reason.OBSERVATION_PENDING, at(120))
    assert not lacks(early.message, "agent", "read the GPUs")
    case = changing(now=120, gpunode=silent)
    assert case.gpunode is not None
    claim = f"the agent on gpu-07 is Ready, but has not answered request {case.gpunode.request_id}"
    assert claim in judged(case).message
    late = judged(changing(now=2400, gpunode=silent))
    assert late.phase is Phase.FAILED
    assert not lacks(late.message, claim, "120 s", "timed out")
    gone = judged(changing(now=120, gpunode=silent, agent_ready=False))
    assert not lacks(gone.message, "read the GPUs", "no Ready agent pod", "gpu-07")
