"""The MPS DaemonSet: when it is deaf, when the operator repairs it, what is said while it does not, and restarts that end clients."""

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
from tests.planning.cases import MPS, SLICED, assessed_of, judged, make_case
from tests.planning.test_installation import WANTS_MPS, pointers
from tests.seen import Seen
from tests.wording import lacks

from gpusharing.api.names import LABEL_MPS_CAPABLE, LABEL_PLUGIN_CONFIG, DisruptionClass, Phase
from gpusharing.planning.report.events import node_events, shared_event
from gpusharing.planning.rollout import plan_rollout
from gpusharing.planning.snapshot.actions import RepairMps, SetPointers
from gpusharing.planning.snapshot.nvidia import ClusterPolicyView, MpsDaemonView, MpsRepairs, Operand, StackView
from gpusharing.planning.snapshot.views import OLD_VIEW, GPUNodeView, NodeView, PlanSettings, PolicyView
from gpusharing.planning.stack.installation import find_deaf_mps
from gpusharing.planning.stack.mps import (
    MOST_REPAIRS,
    add_repair,
    count_lapses,
    count_repair,
    find_due,
    find_serving,
    plan_repair,
)
from gpusharing.planning.transition.gates import find_gate
from gpusharing.planning.transition.verdict import NodeCase
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.wanted.target import (
    RELEASED_DAEMON,
    SKIPS_THREADS,
    counts_without_suffixes,
    find_deafness,
    find_remedy,
    find_suffixed,
    merges_suffixes,
    needs_newer_plugin,
)

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


def repaired(found: StackView) -> RepairMps:
    action = plan_repair(found, ASKED)
    assert action is not None
    return action


@pytest.mark.parametrize("name", [DEAF.signalled, "mps-control-deamon", "", "nvidia-device-plugin"])
def test_a_daemon_that_cannot_be_notified_is_repaired_and_the_repair_counted(name: str) -> None:
    daemon = replace(DEAF, signalled=name)
    action = repaired(stack(daemon))
    assert (action.daemon, action.repairs) == (daemon, PENDING)
    assert not lacks(explain(stack(daemon), ASKED), "The operator sets it now", "gpuOperator.repairMps")


def test_a_daemon_whose_image_has_only_a_digest_is_repaired_by_its_name() -> None:
    digest = replace(DEAF, version="")
    assert plan_repair(stack(digest), ASKED) is None  # an old plugin may be behind the released name
    action = repaired(stack(replace(digest, signalled="mps-control-deamon")))
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
    assert repaired(found).repairs == PENDING


def test_a_repair_that_was_made_without_being_reported_is_reported() -> None:
    action = repaired(stack(RIGHT, mps_repairs=PENDING))
    assert action.repairs == PENDING
    assert not lacks(shared_event(action).note, "repair 1 of 3", "v0.20.0")


@pytest.mark.parametrize(
    ("before", "count"),
    [
        pytest.param(MpsRepairs(), 1, id="the first"),
        pytest.param(MpsRepairs(2, "v0.20.0", "uid/1"), 3, id="it was overwritten"),
        pytest.param(
            MpsRepairs(2, "v0.20.0", "uid/1", pending=True), 3, id="it was overwritten before it was reported"
        ),
        pytest.param(MpsRepairs(2, "v0.20.0", "other/2"), 3, id="a new DaemonSet"),
        pytest.param(MpsRepairs(3, "v0.20.0", "uid/2"), 3, id="the same one again"),
        pytest.param(MpsRepairs(3, "v0.19.9", "uid/1"), 1, id="a new plugin"),
    ],
)
def test_how_a_repair_is_counted(before: MpsRepairs, count: int) -> None:
    assert count_repair(before, DEAF).count == count


def test_repairs_of_a_daemonset_whose_state_is_unknown_come_to_an_end_too() -> None:
    unknown = replace(DEAF, state="")
    repairs = MpsRepairs()
    for number in range(1, MOST_REPAIRS + 1):
        repairs = repaired(stack(unknown, mps_repairs=repairs)).repairs
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


# --- restarts of config-manager alone (docs/design/transition.md#lapse) ------------------------------------------------

POD = Operand("gpu-operator", "mps-x", "uid-1", ready=True)
TEXT = (
    "the config-manager container in pod mps-x restarted once (OOMKilled, exit code 137) while the MPS daemon kept"
    " running; every such restart ends the MPS clients on the node"
)


def at_rest(restarts: int, policy: PolicyView = MPS, cause: str = "", **fields: Any) -> NodeCase:
    """A node that is as its policy wants it, beside an MPS daemon whose config-manager has restarted."""
    pod = replace(POD, lone_restarts=restarts, restart_cause=cause)
    return make_case(policy, was=policy, mps_daemon=pod, **fields)


def test_a_node_that_serves_again_stays_as_it_is_and_says_what_ended_its_clients() -> None:
    calm, verdict = judged(at_rest(0)), judged(at_rest(1, cause="OOMKilled, exit code 137"))
    assert (verdict.phase, verdict.actions) == (calm.phase, calm.actions)
    assert verdict.phase in (Phase.SYNCED, Phase.PENDING)
    assert verdict.message.endswith(f"; {TEXT}")
    assert verdict.message.removesuffix(f"; {TEXT}") == calm.message
    assert verdict.mps_pod == replace(POD, lone_restarts=1, restart_cause="OOMKilled, exit code 137")
    settling = judged(make_case(MPS, was=MPS, mps_daemon=replace(POD, settling=True)))
    assert settling.mps_pod == lapse(0, settling=True)


def test_several_restarts_are_counted_and_an_unknown_cause_is_left_out() -> None:
    assert "restarted 3 times while" in judged(at_rest(3)).message
    assert not lacks(judged(at_rest(2, cause="exit code 1")).message, "2 times", "exit code 1")
    assert judged(at_rest(-1, cause="exit code 1")).message == judged(at_rest(0)).message


NOBODY: dict[str, NodeCase] = {
    "no daemon": make_case(MPS, was=MPS),
    "another mode": at_rest(1, SLICED),
    "a daemon that follows no label": at_rest(
        1, stack=make_stack(MPS, cluster_policy=make_cluster_policy(mps_daemon=RELEASED_DAEMON))
    ),
}


@pytest.mark.parametrize("what", NOBODY)
def test_nothing_is_counted_where_no_client_can_have_ended(what: str) -> None:
    assert NOBODY[what].mps_pod is None


def lapse(count: int, pod: str = "uid-1", *, settling: bool = False) -> Operand:
    return replace(POD, uid=pod, lone_restarts=count, settling=settling)


SEEN: dict[str, tuple[Operand | None, Operand | None, int]] = {
    "a restart": (lapse(0), lapse(1), 1),
    "two between two passes": (lapse(1), lapse(3), 2),
    "none": (lapse(1), lapse(1), 0),
    "a new pod": (lapse(2), lapse(0, "uid-2"), 0),
    "one in a new pod": (lapse(2), lapse(1, "uid-2"), 1),
    "a daemon that was not there before": (None, lapse(1), 0),
    "both containers restarted": (lapse(1), lapse(0), 0),
    "no daemon any more": (lapse(1), None, 0),
    "the daemon alone": (lapse(0), lapse(-1), 0),
    "config-manager after the daemon": (lapse(-1), lapse(0), 1),
    "config-manager twice after the daemon": (lapse(-3), lapse(-1), 2),
    "the daemon alone in a new pod": (lapse(2), lapse(-1, "uid-2"), 0),
    "config-manager not running yet": (lapse(-3), lapse(0, settling=True), 0),
    "config-manager running again, first seen without": (lapse(-4, settling=True), lapse(-3), 0),
}


@pytest.mark.parametrize("what", SEEN)
def test_each_restart_is_an_event_once(what: str) -> None:
    before, after, count = SEEN[what]
    verdict = judged(at_rest(0))
    told = node_events(replace(verdict, mps_pod=before), replace(verdict, mps_pod=after))
    assert [(event.type, event.reason) for event in told] == [("Warning", "MPSClientsEnded")] * bool(count)
    shown = max(count, after.lone_restarts) if after is not None else 0
    times = "once" if shown == 1 else f"{shown} times"
    assert not any(lacks(one.note, "gpu-07", "config-manager", "pod mps-x", times) for one in told)
    assert (count_lapses(before, after) if after is not None else 0) == count


# --- as doctor says it -------------------------------------------------------------------------------------------------

MENDED = replace(RELEASED_DAEMON, signalled="mps-control-daemon")


@pytest.mark.parametrize(
    ("daemon", "command"),
    [
        (RELEASED_DAEMON, '{"spec":{"devicePlugin":{"version":"v0.20.0"}}}'),
        (replace(RELEASED_DAEMON, version="v0.20.0"), "PROCESS_TO_SIGNAL=mps-control-daemon"),
    ],
    ids=["the device plugin is too old as well", "the name alone is wrong"],
)
def test_an_mps_daemon_that_follows_no_label_is_told_with_the_first_step_that_mends_it(
    daemon: MpsDaemonView, command: str
) -> None:
    (found,) = find_deaf_mps(pointers(WANTS_MPS, mps_daemon=daemon).installation)
    assert (found.reason, found.severity) == ("MPSNotSwitchable", "ERROR")
    assert command in str(found.command)
    assert not lacks(found.message, "pool-e", "no label", "MPS")
    assert "-c config-manager PROCESS_TO_SIGNAL=mps-control-daemon" in found.message


@pytest.mark.parametrize(
    "view",
    [
        pointers(mps_daemon=RELEASED_DAEMON),
        pointers(WANTS_MPS, mps_daemon=replace(MENDED, version="v0.20.0")),
        pointers(WANTS_MPS),
    ],
    ids=["no policy wants MPS", "the GPU Operator is right by itself", "no daemon was seen"],
)
def test_nothing_is_told_of_an_mps_daemon_that_nobody_needs_or_that_follows_labels(view: Seen) -> None:
    assert list(find_deaf_mps(view.installation)) == []


# --- what device plugins serve differently by version ---------------------------------------------------------------------
# Rung 3 holds counts_without_suffixes against the real 0.19.3.


@pytest.mark.parametrize(
    ("version", "old"),
    [
        ("v0.19.3", True),
        ("0.17.1-ubi8", True),
        ("v0.20.0", False),
        ("v1.0.0", False),
        ("", False),
        ("sha256:0.1", False),
    ],
    ids=["the last old one", "with an image suffix", "the first new one", "a later one", "unknown", "a digest"],
)
def test_a_version_is_too_old_only_when_it_is_known_to_be(version: str, old: bool) -> None:
    assert merges_suffixes(version) is old


NAME, PATH = "mps-control-daemon", "/usr/bin/mps-control-daemon"
CRASHES, OTHER_NAME = "crashes when it reads the host's kernel threads", f"looks for a process named {PATH}"


@pytest.mark.parametrize(
    ("version", "named", "sees_host", "says"),
    [
        pytest.param("v0.18.1", False, True, "", id="the last that waits for the label"),
        pytest.param("v0.18.2", False, True, CRASHES, id="the first that does not"),
        pytest.param("v0.19.3", True, True, CRASHES, id="the name would be right"),
        pytest.param(
            "0.19.3-ubi9", False, False, f"{OTHER_NAME}, but the daemon is called mps-", id="the host is not seen"
        ),
        pytest.param("v0.20.0", False, True, OTHER_NAME, id="the first that passes over threads"),
        pytest.param("v0.20.0", True, True, "", id="nothing is wrong"),
        pytest.param("v0.20.0", None, True, "", id="a shell around it"),
        pytest.param("", False, True, "", id="a version that is unknown, and the released name"),
        pytest.param("sha256:0.17.1", False, True, "", id="a digest, and the released name"),
        pytest.param("sha256:0.19.1", True, True, "", id="a digest, and the right name"),
    ],
)
def test_an_mps_daemon_is_deaf_where_its_config_manager_cannot_reach_it(
    version: str, named: bool | None, sees_host: bool, says: str
) -> None:
    daemon = MpsDaemonView(version, "/bin/sh" if named is None else NAME, NAME if named else PATH, sees_host)
    found = find_deafness(daemon)
    assert says in found
    assert bool(found) is bool(says)


@pytest.mark.parametrize(
    ("signalled", "says"),
    [
        ("mps-control-deamon", "looks for a process named mps-control-deamon, but"),
        ("", "has no value in PROCESS_TO_SIGNAL, but"),
        (None, "has no value in PROCESS_TO_SIGNAL, but"),
    ],
    ids=["a name with a typing error", "an empty name", "no name"],
)
@pytest.mark.parametrize("version", ["v0.20.0", ""], ids=["by version", "by digest"])
def test_an_mps_daemon_is_deaf_whenever_config_manager_looks_for_another_process(
    version: str, signalled: str | None, says: str
) -> None:
    daemon = MpsDaemonView(version, "mps-control-daemon", signalled, sees_host=True)
    assert says in find_deafness(daemon)
    assert "PROCESS_TO_SIGNAL=mps-control-daemon" in find_remedy(daemon)[0]


@pytest.mark.parametrize("version", ["v0.20.1", "v0.21.0", "v1.0.0"])
@pytest.mark.parametrize("signalled", ["/usr/bin/mps-control-daemon", "mps-control-deamon", None])
def test_after_0_20_only_the_last_part_of_the_name_has_to_match(version: str, signalled: str | None) -> None:
    daemon = MpsDaemonView(version, "mps-control-daemon", signalled, sees_host=True)
    found = signalled == "/usr/bin/mps-control-daemon" and version != "v0.20.1"
    assert (find_deafness(daemon) == "") is found


@pytest.mark.parametrize("program", ["/bin/sh", "bash", "/sbin/tini", ""])
def test_what_a_daemon_is_called_is_unknown_behind_another_program(program: str) -> None:
    daemon = MpsDaemonView("v0.20.0", program, "/usr/bin/mps-control-daemon", sees_host=True)
    assert find_deafness(daemon) == ""
    assert find_remedy(daemon)[1] is None


SET_ENV = "kubectl -n nvidia set env daemonset/mps -c config-manager PROCESS_TO_SIGNAL=mps-control-daemon"


@pytest.mark.parametrize(
    ("version", "program", "signalled", "sees_host", "newer", "command"),
    [
        pytest.param("v0.19.3", NAME, PATH, True, True, SET_ENV, id="both faults"),
        pytest.param("v0.19.3", NAME, NAME, True, True, SET_ENV, id="a name that the GPU Operator writes anew"),
        pytest.param("v0.19.3", "/bin/sh", PATH, True, True, "", id="a shell around it"),
        pytest.param("v0.19.3", NAME, PATH, False, False, SET_ENV, id="the host is not seen"),
        pytest.param("v0.20.0", NAME, PATH, True, False, SET_ENV, id="the name"),
    ],
)
def test_the_remedy_has_the_steps_that_the_daemon_needs(
    version: str, program: str, signalled: str, sees_host: bool, newer: bool, command: str
) -> None:
    daemon = MpsDaemonView(version, program, signalled, sees_host, name="mps", namespace="nvidia")
    assert find_deafness(daemon)
    text, found = find_remedy(daemon)
    assert (needs_newer_plugin(daemon), str(found or "")) == (newer, command)
    assert ("devicePlugin.version in ClusterPolicy to v0.20.0 or newer" in text) == newer
    assert command in text


def test_a_daemon_hears_once_the_remedy_was_carried_out() -> None:
    """NVIDIA/k8s-device-plugin#1105 and #1118: where the GPU Operator itself is right, there is nothing to do."""
    program = RELEASED_DAEMON.program
    assert find_deafness(RELEASED_DAEMON)
    assert find_deafness(replace(RELEASED_DAEMON, version=SKIPS_THREADS, signalled=program)) == ""


def test_the_first_profile_with_a_suffix_is_named() -> None:
    assert find_suffixed([None, (("2g.20gb", 1),), (("1g.10gb", 2), ("1g.10gb+me", 1))]) == "1g.10gb+me"
    assert find_suffixed([(("1g.24gb-me", 1),)]) == "1g.24gb-me"
    assert find_suffixed([None, (("7g.80gb", 1),)]) == ""


def test_suffixed_names_are_added_to_the_plain_ones_and_renamed_ones_stay_renamed() -> None:
    predicted = {
        "nvidia.com/mig-1g.10gb": 2,
        "nvidia.com/mig-1g.10gb.me": 1,
        "nvidia.com/mig-1g.24gb-me": 3,
        "nvidia.com/mig-1g.24gb.gfx.shared": 4,
        "nvidia.com/mig-2g.20gb.shared": 2,
        "nvidia.com/gpu": 1,
    }
    assert counts_without_suffixes(predicted) == {
        "nvidia.com/mig-1g.10gb": 3,
        "nvidia.com/mig-1g.24gb": 3,
        "nvidia.com/mig-1g.24gb.shared": 4,
        "nvidia.com/mig-2g.20gb.shared": 2,
        "nvidia.com/gpu": 1,
    }
