"""The MPS DaemonSet: when the operator repairs it itself, and what it says while it does not."""

import re
from dataclasses import replace
from typing import Any

import pytest
from tests.build import (
    NOW,
    SETTINGS,
    make_cluster_policy,
    make_fence,
    make_gpu,
    make_gpunode,
    make_node,
    make_snapshot,
    make_stack,
)
from tests.planning.cases import MPS, assessed_of, make_case
from tests.wording import lacks

from gpusharing.api.names import LABEL_MPS_CAPABLE, LABEL_PLUGIN_CONFIG, DisruptionClass
from gpusharing.planning.report.events import shared_event
from gpusharing.planning.rollout import plan_rollout
from gpusharing.planning.snapshot.actions import RepairMps, SetPointers
from gpusharing.planning.snapshot.nvidia import ClusterPolicyView, MpsDaemonView, MpsRepairs, StackView
from gpusharing.planning.snapshot.views import OLD_VIEW, GPUNodeView, NodeView, PlanSettings
from gpusharing.planning.stack.mps import MOST_REPAIRS, add_repair, count_repair, find_due, find_serving, plan_repair
from gpusharing.planning.transition.gates import find_gate
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.vocabulary.reasons import Reason

ASKED = replace(SETTINGS, repair_mps=True)
DEAF = MpsDaemonView("v0.20.0", "mps-control-daemon", "/usr/bin/mps-control-daemon", sees_host=True, state="uid/2")
RIGHT = replace(DEAF, signalled=DEAF.program)
SPENT = MpsRepairs(MOST_REPAIRS, "v0.20.0", "uid/1")
PENDING = MpsRepairs(1, "v0.20.0", "uid/2", pending=True)


def stack(daemon: MpsDaemonView | None = DEAF, **fields: Any) -> StackView:
    return make_stack(MPS, cluster_policy=make_cluster_policy(mps_daemon=daemon), **fields)


def explain(found: StackView, settings: PlanSettings) -> str:
    """What is said after the objection, which has the commands that it names."""
    told = add_repair(Finding(Reason.MPS_NOT_SWITCHABLE, ""), found, settings)
    assert [*map(str, told.commands)] == re.findall("`(.*)`", told.message)
    return told.message


def test_a_daemon_that_cannot_be_notified_is_repaired_and_the_repair_counted() -> None:
    action = plan_repair(stack(), ASKED)
    assert action is not None
    assert (action.daemon, action.repairs) == (DEAF, PENDING)
    assert not lacks(explain(stack(), ASKED), "The operator sets it now", "gpuOperator.repairMps")


WRONG = ["mps-control-deamon", "", "nvidia-device-plugin"]


@pytest.mark.parametrize("daemon", [replace(DEAF, signalled=name) for name in WRONG], ids=WRONG)
def test_every_wrong_value_is_repaired(daemon: MpsDaemonView) -> None:
    action = plan_repair(stack(daemon), ASKED)
    assert action is not None
    assert action.daemon == daemon


def test_a_daemon_whose_image_has_only_a_digest_is_repaired_by_its_name() -> None:
    digest = replace(DEAF, version="")
    assert plan_repair(stack(digest), ASKED) is None  # an old plugin may be behind the released name
    action = plan_repair(stack(replace(digest, signalled="mps-control-deamon")), ASKED)
    assert action is not None
    assert not lacks(shared_event(action).note, "repair 1 of 3", "unknown version")


NOTHING: dict[str, tuple[StackView, bool]] = {
    "without the chart value": (stack(), False),
    "where the GPU Operator is right by itself": (stack(RIGHT), True),
    "where a repair waits to be reported, without the chart value": (stack(RIGHT, mps_repairs=PENDING), False),
    "where a repair waits to be reported, and the ConfigMap is somebody else's": (
        stack(RIGHT, mps_repairs=PENDING, foreign_maps=("gpusharing-device-plugin",)), True),
    "where a repair waits to be reported of a daemon with another name": (
        stack(replace(DEAF, program="mpsd", signalled="mpsd"), mps_repairs=PENDING), True),
    "where no daemon was seen": (stack(None), True),
    "before config-manager signals at all": (stack(replace(DEAF, version="v0.18.1")), True),
}  # fmt: skip


@pytest.mark.parametrize("what", NOTHING)
def test_nothing_is_repaired_and_nothing_said(what: str) -> None:
    found, asked = NOTHING[what]
    settings = ASKED if asked else SETTINGS
    assert plan_repair(found, settings) is None
    assert explain(found, settings) == ""


HELD: dict[str, tuple[StackView, str]] = {
    "the plugin is too old": (
        stack(replace(DEAF, version="v0.19.3")),
        "The operator sets the name by itself once the device plugin is v0.20.0 or newer",
    ),
    "the daemon has another name": (
        stack(replace(DEAF, program="mpsd", signalled="/usr/bin/mpsd")),
        "The operator can only set mps-control-daemon in DaemonSet nvidia-device-plugin-mps-control-daemon",
    ),
    "the DaemonSet has another name": (stack(replace(DEAF, name="mps")), "which would not help here"),
    "the DaemonSet is elsewhere": (stack(replace(DEAF, namespace="nvidia")), "which would not help here"),
    "repairs cannot be counted yet": (
        stack(plugin_map_exists=False), "in ConfigMap gpusharing-device-plugin, and is waiting"),
    "the ConfigMap is somebody else's": (
        stack(foreign_maps=("gpusharing-device-plugin",)), "exists and belongs to the operator"),
    "there is no value to correct": (stack(replace(DEAF, signalled=None)), "which this DaemonSet does not have"),
    "it was overwritten too often": (
        stack(mps_repairs=SPENT),
        "The operator has set it 3 times under device plugin v0.20.0, but someone else overwrote it each time, so the"
        " operator has given up; find out who does this, then run `kubectl annotate -n gpu-operator configmap"
        " gpusharing-device-plugin gpusharing.dev/mps-repairs-`",
    ),
    "a node serves MPS": (stack(mps_nodes=("gpu-1",)), "no node uses MPS; gpu-1 still does"),
    "nodes serve MPS": (stack(mps_nodes=("gpu-1", "gpu-2")), "no node uses MPS; gpu-1, gpu-2 still do"),
}  # fmt: skip


@pytest.mark.parametrize("what", HELD)
def test_it_says_why_it_does_not_repair_while(what: str) -> None:
    found, words = HELD[what]
    assert plan_repair(found, ASKED) is None
    text = explain(found, ASKED)
    assert words in text
    assert text.endswith(" (chart value gpuOperator.repairMps)")


def test_a_foreign_configmap_of_mig_parted_does_not_hold_a_repair_back() -> None:
    found = stack(foreign_maps=(SETTINGS.mig_config_map,))
    assert plan_repair(found, ASKED) is not None


def test_a_write_that_failed_is_said_and_tried_again_without_another_count() -> None:
    found = stack(mps_repairs=PENDING, repair_error="no right to patch daemonsets")
    assert not lacks(explain(found, ASKED), "try again", "no right to patch daemonsets")
    action = plan_repair(found, ASKED)
    assert action is not None
    assert action.repairs == PENDING


def test_a_repair_that_was_made_without_being_reported_is_reported() -> None:
    action = plan_repair(stack(RIGHT, mps_repairs=PENDING), ASKED)
    assert action is not None
    assert action.repairs == PENDING
    assert not lacks(shared_event(action).note, "repair 1 of 3", "v0.20.0")


@pytest.mark.parametrize(
    ("before", "count"),
    [
        (MpsRepairs(), 1),
        (MpsRepairs(2, "v0.20.0", "uid/1"), 3),
        (MpsRepairs(2, "v0.20.0", "uid/1", pending=True), 3),
        (MpsRepairs(2, "v0.20.0", "other/2"), 3),
        (MpsRepairs(3, "v0.20.0", "uid/2"), 3),
        (MpsRepairs(3, "v0.19.9", "uid/1"), 1),
    ],
    ids=[
        "the first",
        "it was overwritten",
        "it was overwritten before it was reported",
        "a new DaemonSet",
        "the same one again",
        "a new plugin",
    ],
)
def test_how_a_repair_is_counted(before: MpsRepairs, count: int) -> None:
    assert count_repair(before, DEAF).count == count


def test_repairs_of_a_daemonset_whose_state_is_unknown_come_to_an_end_too() -> None:
    unknown = replace(DEAF, state="")
    repairs = MpsRepairs()
    for number in range(1, MOST_REPAIRS + 1):
        action = plan_repair(stack(unknown, mps_repairs=repairs), ASKED)
        assert action is not None
        repairs = action.repairs
        assert repairs.count == number
    assert plan_repair(stack(unknown, mps_repairs=repairs), ASKED) is None


# --- which nodes serve MPS ------------------------------------------------------------------------------

KEY = next(key for key, text in stack().plugin_configs.items() if "mps" in text)
TOLD = make_node(labels={LABEL_PLUGIN_CONFIG: KEY})
CAPABLE = make_node(labels={LABEL_MPS_CAPABLE: "true"})
FREE = make_gpunode()
SERVED = make_gpunode(gpus=(make_gpu(compute_mode="ExclusiveProcess"),))
EMPTIED = make_fence(stage="actuating", disruption=DisruptionClass.GPU_PODS)
SERVES: dict[str, tuple[NodeView, GPUNodeView | None, bool, bool, bool]] = {
    # node, report, agent Ready, daemon's pod, does it count?
    "told MPS and exclusive": (TOLD, SERVED, True, True, True),
    "told MPS, and the agent sees no daemon": (TOLD, FREE, True, True, False),
    "told MPS, and the agent sees no daemon, but is not Ready any more": (TOLD, FREE, False, True, True),
    "told MPS, and the agent is quiet": (TOLD, make_gpunode(quiet=True, quiet_echoed=True), True, True, True),
    "told MPS, and nothing was reported": (TOLD, None, True, False, True),
    "told MPS, and the agent cannot read": (TOLD, make_gpunode(error="no NVML"), True, False, True),
    "told MPS, and the compute mode is unknown": (
        TOLD, make_gpunode(gpus=(make_gpu(compute_mode="Unknown"),)), True, False, True),
    "capable of MPS for GFD": (CAPABLE, SERVED, True, False, True),
    "a daemon's pod alone": (make_node(), SERVED, True, True, True),
    "exclusive for another reason": (make_node(), SERVED, True, False, False),
    "emptied by our fence": (replace(TOLD, fence=EMPTIED, unschedulable=True), None, False, True, False),
    "emptied by our fence, and about to be proven": (
        replace(TOLD, fence=EMPTIED, unschedulable=True), SERVED, True, True, True),
    "our fence, and uncordoned by somebody": (
        replace(TOLD, fence=EMPTIED, unschedulable=False), None, False, True, True),
    "fenced before the point of no return": (
        replace(TOLD, fence=replace(EMPTIED, stage="fenced"), unschedulable=True), SERVED, True, True, True),
    "in a change that drains nobody": (
        replace(TOLD, fence=replace(EMPTIED, disruption=DisruptionClass.PLUGIN_RESTART), unschedulable=True),
        None, True, True, True),
}  # fmt: skip


@pytest.mark.parametrize("what", SERVES)
def test_whether_a_restart_of_all_daemons_could_end_clients_there(what: str) -> None:
    node, report, agent, daemon, counts = SERVES[what]
    name = node.name
    gpunodes = {} if report is None else {name: report}
    found = find_serving({name: node}, gpunodes, {name} if agent else (), {name} if daemon else (), stack())
    assert found == ((name,) if counts else ())


def test_a_repair_is_due_only_where_the_daemon_is_deaf_and_nothing_else_restrains_the_operator() -> None:
    assert find_due(stack(), ASKED) == DEAF
    for found, settings in ((stack(), SETTINGS), (stack(mps_repairs=SPENT), ASKED), (stack(None), ASKED)):
        assert find_due(found, settings) is None


# --- in a plan ------------------------------------------------------------------------------------------


def repairs(policy: ClusterPolicyView) -> list[type]:
    found = make_stack(MPS, cluster_policy=policy)
    settings = replace(ASKED, configure_gpu_operator=True)
    plan = plan_rollout(make_snapshot([make_node()], [MPS], stack=found, settings=settings), NOW)
    return [type(one) for one in plan.shared if isinstance(one, RepairMps | SetPointers)]


def test_a_plan_repairs_but_not_beside_a_write_to_clusterpolicy_that_may_undo_it() -> None:
    assert repairs(make_cluster_policy(mps_daemon=DEAF)) == [RepairMps]
    assert repairs(make_cluster_policy("", mps_daemon=DEAF)) == [SetPointers]


def test_a_blocked_node_says_what_the_repair_waits_for() -> None:
    case = replace(make_case(MPS, stack=stack(mps_nodes=("gpu-1", "gpu-2"))), settings=ASKED)
    gate = find_gate(case, assessed_of(case))
    assert gate is not None
    assert not lacks(gate.message, "gpu-1, gpu-2", "gpuOperator.repairMps")


def test_nothing_is_repaired_on_stale_views_which_may_show_no_client_where_there_is_one() -> None:
    found = make_stack(MPS, cluster_policy=make_cluster_policy(mps_daemon=DEAF))
    snapshot = make_snapshot([make_node()], [MPS], stack=found, settings=ASKED)
    for age, expected in ((OLD_VIEW, [RepairMps]), (OLD_VIEW + 1, [])):
        plan = plan_rollout(replace(snapshot, view_ages={"nodes": age}), NOW)
        assert [type(one) for one in plan.shared if isinstance(one, RepairMps)] == expected
