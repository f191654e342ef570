"""A program that does not run any more, or has done what it says, while what it left behind
still looks as if it did."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from tests.build import NOW, at, make_cluster_policy, make_snapshot, make_stack
from tests.planning.cases import FULL, MIXED, MPS, assessed_of, make_case
from tests.planning.changes import answering, changing, fence_to

from gpusharing.api import names
from gpusharing.api.names import Phase
from gpusharing.planning.rollout import plan_rollout
from gpusharing.planning.snapshot.actions import LabelNode, UpdateFence
from gpusharing.planning.snapshot.memory import PassMemory
from gpusharing.planning.snapshot.nvidia import MpsDaemonView, Operand, Program
from gpusharing.planning.transition.judge import judge
from gpusharing.planning.transition.verdict import NodeCase, Verdict
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.vocabulary.reasons import Reason

RUNS = Operand("gpu-operator", "mps-1", "uid-mps", ready=True, ready_since=at(-3600))
DOWN = replace(RUNS, ready=False, down=True, ready_since=None)
SIGNALLED = MpsDaemonView("v0.18.1", "mps-control-daemon", "mps-control-daemon", sees_host=True)
LIMIT = 90
"""The grace of a drift and then that of a restart, in seconds."""


def serving(daemon: Operand | None, since: float | None = None, **fields: Any) -> NodeCase:
    """A node proven with MPS whose GPU is exclusive."""
    down_since = None if since is None else at(since)
    return make_case(MPS, was=MPS, mps_daemon=daemon, down_since=down_since, **fields)


def decide(case: NodeCase) -> Verdict:
    verdict = judge(case)
    assert verdict is not None
    return verdict


def test_a_daemon_that_stays_down_blocks_its_node_until_a_person_acts_and_the_mode_it_left_is_no_life() -> None:
    verdict = decide(serving(DOWN, -LIMIT))
    assert (verdict.phase, verdict.reason, verdict.stands) == (Phase.BLOCKED, Reason.MPS_NOT_RUNNING, True)
    assert (verdict.actions, verdict.candidate, verdict.wake) == ((), False, None)
    assert "in compute mode ExclusiveProcess" in verdict.message
    assert "pod mps-1 is not running" in verdict.message
    assert [str(one) for one in verdict.commands] == ["kubectl -n gpu-operator delete pod mps-1"]


@pytest.mark.parametrize("since", [None, -LIMIT + 1])
def test_a_daemon_that_restarts_leaves_its_node_synced_for_a_while(since: float | None) -> None:
    verdict = decide(serving(DOWN, since))
    assert (verdict.phase, verdict.reason, verdict.stands) == (Phase.SYNCED, Reason.SYNCED, False)
    assert verdict.wake == at((since or 0) + LIMIT)


def test_a_daemon_that_starts_now_and_then_does_not_run_and_one_that_keeps_running_does() -> None:
    crashing = replace(RUNS, ready_since=at(-29))
    verdict = decide(serving(crashing, -LIMIT))
    assert (verdict.phase, verdict.wake) == (Phase.BLOCKED, at(1))
    assert "started a moment ago" in verdict.message
    steady = decide(serving(replace(RUNS, ready_since=at(-30)), -LIMIT))
    assert (steady.phase, steady.wake) == (Phase.SYNCED, None)
    assert decide(serving(crashing)).phase is Phase.SYNCED, "nobody has seen it down"


def test_no_pod_of_the_daemon_is_no_life_unless_nvidias_own_chart_may_hide_it() -> None:
    seen = make_stack(MPS, cluster_policy=make_cluster_policy(mps_daemon=SIGNALLED))
    verdict = decide(serving(None, -LIMIT, stack=seen))
    assert (verdict.phase, verdict.reason) == (Phase.BLOCKED, Reason.MPS_NOT_RUNNING)
    assert "app=nvidia-device-plugin-mps-control-daemon" in verdict.message
    assert decide(serving(None, -LIMIT)).phase is Phase.SYNCED
    assert decide(make_case(FULL, mps_daemon=DOWN, down_since=at(-LIMIT))).phase is Phase.SYNCED, "no MPS is wanted"


def test_a_node_whose_daemon_does_not_run_is_not_adopted() -> None:
    verdict = decide(serving(DOWN, node={"verified": None}))
    assert (verdict.phase, verdict.reason, verdict.stands) == (Phase.BLOCKED, Reason.MPS_NOT_RUNNING, False)
    adopted = decide(serving(RUNS, node={"verified": None}))
    assert [type(action) for action in adopted.actions] == [LabelNode]


def test_nothing_is_said_of_the_daemon_of_a_node_that_is_away() -> None:
    assert decide(serving(DOWN, -LIMIT, node={"ready": False})).reason is not Reason.MPS_NOT_RUNNING


def test_a_change_to_mps_is_not_proven_by_the_mode_that_a_dead_daemon_left() -> None:
    fence = fence_to(MPS, to_layout=assessed_of(serving(RUNS)).target.text, gfd_timestamp="")
    case = changing(MPS, was=MPS, mps_daemon=DOWN, fence=fence, gpunode=answering(was=MPS))
    verdict = decide(case)
    assert (verdict.phase, verdict.reason) == (Phase.VERIFYING, Reason.MPS_NOT_RUNNING)
    assert decide(replace(case, operands={**case.operands, Program.MPS_DAEMON: RUNS})).phase is Phase.UNCORDONING


def test_passes_remember_since_when_the_daemon_is_down_until_it_has_kept_running() -> None:
    case, memory, told = serving(DOWN), PassMemory(), []
    assert case.gpunode is not None
    for seconds, pod in [(0, DOWN), (40, replace(RUNS, ready_since=at(40))), (50, DOWN), (90, DOWN), (100, RUNS)]:
        pods = {**case.operands, Program.MPS_DAEMON: pod}
        snapshot = make_snapshot([case.node], [MPS], gpunodes=[case.gpunode], stack=case.stack, memory=memory)
        operands = {program: {"gpu-07": one} for program, one in pods.items()}
        plan = plan_rollout(replace(snapshot, operands=operands), NOW + timedelta(seconds=seconds))
        memory = plan.memory
        told.append((plan.verdicts["gpu-07"].phase, memory.down_since.get("gpu-07")))
    synced, since = Phase.SYNCED, NOW
    assert told == [(synced, since), (synced, since), (synced, since), (Phase.BLOCKED, since), (synced, None)]


REBOOTS = {names.LABEL_MIG_STATE: "rebooting"}


def test_a_reboot_that_does_not_come_is_not_awaited_for_ever_and_the_message_says_what_is_missing() -> None:
    within = decide(make_case(MIXED, labels=REBOOTS, at_work_since=at(-1199)))
    assert (within.reason, within.stands, within.wake) == (Reason.ACTUATOR_BUSY, False, at(1))
    verdict = decide(make_case(MIXED, labels=REBOOTS, at_work_since=at(-1200)))
    assert (verdict.phase, verdict.reason, verdict.stands) == (Phase.BLOCKED, Reason.ACTUATOR_BUSY, True)
    assert "gpu-07, but the node is Ready and has not booted for more than 1200 s; its pod" in verdict.message
    gone = decide(make_case(MIXED, labels=REBOOTS, at_work_since=at(-1200), operand=None))
    assert "it has no pod there" in gone.message


def test_in_a_change_a_reboot_that_does_not_come_is_cured_and_one_that_lasts_is_awaited() -> None:
    stuck = changing(labels=REBOOTS, now=1300, at_work_since=at(20))
    verdict = decide(stuck)
    assert (verdict.phase, verdict.reason) == (Phase.RECONFIGURING, Reason.ACTUATION_IN_PROGRESS)
    assert "has not booted for more than 1200 s" in verdict.message
    assert verdict.message.endswith("restarting mig-manager")
    (due,) = verdict.actions
    assert isinstance(due, UpdateFence)
    assert due.fence.attempt == stuck.fence.attempt + 1
    for lasting in (
        changing(labels=REBOOTS, now=1300, at_work_since=at(20), node={"ready": False}),
        changing(labels=REBOOTS, now=1300, at_work_since=at(900)),
    ):  # it has booted since
        assert decide(lasting).actions == ()
    assert decide(lasting).wake == at(2100)


def test_a_proven_node_whose_agent_cannot_run_says_that_its_gpus_are_shown_as_last_read() -> None:
    trouble = Finding(Reason.AGENT_NOT_STARTED, "its pod does not start: the image cannot be pulled")
    case = make_case(FULL, agent_ready=False)
    assert "last read" not in decide(case).message, "it may just restart"
    verdict = decide(replace(case, agent_trouble=trouble))
    assert (verdict.phase, verdict.reason) == (Phase.SYNCED, Reason.SYNCED)
    assert "as they were last read, because no agent runs on gpu-07: its pod does not start" in verdict.message
