"""May a change of this node begin? Each gate, their order, and when they open."""

from dataclasses import replace
from datetime import datetime
from itertools import combinations
from typing import Any, Literal

import pytest
from tests.build import (
    NO_MIG_MANAGER,
    NOW,
    SETTINGS,
    at,
    make_cluster_policy,
    make_fence,
    make_gpu,
    make_gpunode,
    make_operand,
    make_partial,
    make_pod,
    make_policy,
    make_stack,
)
from tests.planning.cases import FULL, MIXED, MPS, SLICED, T4, assessed_of, closed_gate, make_case, pair_of, proof_of
from tests.wording import lacks

from gpusharing.api import names
from gpusharing.api.gpunode import PartialInstance
from gpusharing.planning.gpus.health import Vitals
from gpusharing.planning.snapshot.nvidia import MpsDaemonView, Operand, PlainStackView
from gpusharing.planning.snapshot.podviews import NodeWork, PodView
from gpusharing.planning.snapshot.records import UNRECORDED, Deferred, SpecVersion, Verified
from gpusharing.planning.snapshot.views import GpuView, PolicyView
from gpusharing.planning.transition.gates import find_gate, find_other_divider, first_closed, target_gates
from gpusharing.planning.transition.verdict import NodeCase
from gpusharing.planning.vocabulary.findings import Blocker
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.wanted import migfile
from gpusharing.planning.wanted.actuators import needs_restart
from gpusharing.planning.wanted.pluginconfig import render

PENDING = {names.LABEL_MIG_STATE: "pending"}
MIG_CONFIG = names.LABEL_MIG_CONFIG
DEPLOY, WORKLOAD = "nvidia.com/gpu.deploy.", "nvidia.com/gpu.workload.config"


def observing(case: NodeCase, **fields: Any) -> NodeCase:
    assert case.gpunode is not None
    assert case.gpunode.observed is not None
    assert case.assessment is not None
    report = replace(case.gpunode, observed=replace(case.gpunode.observed, **fields))
    return make_case(case.assessment.policy, gpunode=report)


def drifted(**fields: Any) -> NodeCase:
    """A node that was proven as 2x3g.40gb, and whose mig.config somebody has set to all-disabled since."""
    labels = {MIG_CONFIG: "all-disabled", names.LABEL_MIG_STATE: "success"}
    node = {"verified": proof_of(MIXED), **fields.pop("node", {})}
    return make_case(MIXED, was=MIXED, labels=labels, node=node, **fields)


CORRECTED, RETRIED = (proof_of(MIXED, MIXED.version.revision, retry) for retry in ("", "a"))
ALIAS = "site"


def adopted(policy: PolicyView, label: str, name: str | None, **fields: Any) -> NodeCase:
    """A node that was proven under this policy and has drifted for the whole grace, while the label has this value; the configurations of an admin have an entry `site` that means the same as the policy's."""
    config, key = pair_of(policy)
    stack = make_stack(policy, make_policy("pool-c", mode="TimeSlicing"))
    entries = dict(migfile.parse(stack.mig_file))
    files = {**stack.plugin_configs, ALIAS: stack.plugin_configs[key]}
    stack = replace(stack, plugin_configs=files)
    if config in entries:
        stack = replace(stack, mig_file=migfile.render({**entries, ALIAS: entries[config]}))
    node = {"verified": proof_of(policy), **fields.pop("node", {})}
    labels = {label: name, **fields.pop("labels", {})}
    return make_case(policy, was=policy, labels=labels, node=node, stack=stack, drifting_since=at(-60), **fields)


PLUGIN_CONFIG = names.LABEL_PLUGIN_CONFIG
NO_PLUGIN: dict[str, Any] = {"resources": {}}
NO_GFD = {names.LABEL_GPU_PRODUCT: None, "nvidia.com/mig-3g.40gb.count": None}
_, OTHER_KEY = pair_of(make_policy("pool-c", mode="TimeSlicing"))


def reading(**fields: Any) -> NodeCase:
    return observing(make_case(MIXED), **fields)


def switched(operand: str, value: str = "false") -> NodeCase:
    return make_case(MIXED, labels={DEPLOY + operand: value})


def exclusive(policy: PolicyView, **fields: Any) -> NodeCase:
    report = make_gpunode(gpus=(make_gpu(compute_mode="ExclusiveProcess"),))
    return make_case(policy, gpunode=report, **fields)


PLAIN = PlainStackView("nvdp-nvidia-device-plugin", "nvdp")
DAEMON = Operand("gpu-operator", "mps-1", "uid-mps", ready=True)
DOWN = replace(DAEMON, ready=False, down=True)
MORE = make_policy(mode="MPS", mps={"replicas": 8})
SIGNALLED = MpsDaemonView("v0.18.1", "mps-control-daemon", "mps-control-daemon", sees_host=True)


def given_up(record: Deferred, **node: Any) -> NodeCase:
    return make_case(MIXED, node={"deferred": record, **node})


def leaving(policy: PolicyView = SLICED, **fields: Any) -> NodeCase:
    """A node with MPS, whose GPU is exclusive, that is to have another mode."""
    return exclusive(policy, was=MPS, **fields)


def stopping(written: datetime | None) -> NodeCase:
    """A node on its way from MPS to MIG; the configuration of its stop at whole GPUs was written then, or never."""
    case = make_case(MIXED, was=MPS)
    stop = assessed_of(case).stop
    configs = {**case.stack.plugin_configs, stop.plugin_key: render(stop.plugin)}
    times = {key: time for key, time in case.stack.written.items() if key != stop.plugin_key}
    if written is not None:
        times[stop.plugin_key] = written
    return make_case(MIXED, was=MPS, stack=replace(case.stack, plugin_configs=configs, written=times))


OFF_FOR_HAMI = switched("device-plugin")
SERVED_BY_HAMI = replace(OFF_FOR_HAMI, node=replace(OFF_FOR_HAMI.node, other_plugin="HAMi's device plugin"))
FIVE_TIMES = Deferred(5, at(60), "DrainTimeout", UNRECORDED)
WENT_BACK = Verified("pool-b", "", "", layout="1x full", gpus=1, version=MIXED.version, rolled_back=True)
DEFERRED = Deferred(2, at(60), "DrainTimeout", UNRECORDED)
OFF = make_stack(SLICED, cluster_policy=make_cluster_policy(switches=NO_MIG_MANAGER))
ASKS_FOR_RESET = replace(make_gpu(), vitals=Vitals(recovery="Reset"))
WITHHELD = replace(make_gpu(), instances_withheld=True)
BARE = PartialInstance(5, "3g.40gb")
WITHHELD_HALVES = replace(make_gpu(1, layout=(("3g.40gb", 2),)), instances_withheld=True)
LOST = replace(make_gpu(), vitals=Vitals(access="Lost"))
NAMED = replace(SETTINGS, unsafe_drivers=("570",))
ACCEPTED = replace(SETTINGS, refuse_unsafe_drivers=False)
PAUSED = make_policy(rollout={"paused": True})
MIG_FILE = make_stack(MIXED).mig_file
NO_MANAGER = {DEPLOY + "mig-manager": "false"}
UPGRADE_FAILED = {names.LABEL_UPGRADE_STATE: names.UPGRADE_FAILED}
UPGRADE = {"foreign": "NVIDIA driver upgrade", "foreign_waits": True}
CLOSED: dict[str, tuple[NodeCase, Reason, object]] = {
    "a person wants it skipped": (
        make_case(MIXED, labels={names.LABEL_SKIP: "true"}, node={"ready": False}), Reason.SKIP_LABEL, None),
    "a person wants it skipped, in another spelling": (
        make_case(MIXED, labels={names.LABEL_SKIP: "True"}), Reason.SKIP_LABEL, None),
    "a person wants it skipped, in another word": (
        make_case(MIXED, labels={names.LABEL_SKIP: "yes"}), Reason.SKIP_LABEL, None),
    "five attempts were given up": (given_up(FIVE_TIMES), Reason.NEEDS_ATTENTION, at(60)),
    "the same change failed and the node went back": (
        make_case(MIXED, node={"verified": WENT_BACK}), Reason.ROLLED_BACK, None),
    "the node is being deleted": (make_case(MIXED, node={"deleting": True}), Reason.NODE_NOT_READY, None),
    "the node is not Ready": (make_case(MIXED, node={"ready": False}), Reason.NODE_NOT_READY, None),
    "somebody else maintains it": (make_case(MIXED, node={"foreign": "kured"}), Reason.FOREIGN_MAINTENANCE, None),
    "NVIDIA's driver upgrade failed there": (
        make_case(MIXED, labels=UPGRADE_FAILED, node=UPGRADE), Reason.DRIVER_UPGRADE_FAILED, None),
    "it failed and its NodeMaintenance is still there": (
        make_case(MIXED, labels=UPGRADE_FAILED, node={"foreign": "NVIDIA NodeMaintenance a/b"}),
        Reason.DRIVER_UPGRADE_FAILED, None),
    "it failed and somebody else works there now": (
        make_case(MIXED, labels=UPGRADE_FAILED, node={"foreign": "kured reboot"}), Reason.FOREIGN_MAINTENANCE, None),
    "somebody cordoned it": (make_case(MIXED, node={"unschedulable": True}), Reason.ALREADY_CORDONED, None),
    "an admin switched the device plugin off": (switched("device-plugin"), Reason.OPERANDS_DISABLED, None),
    "an admin switched it off by another word, which keeps a DaemonSet off as well": (
        switched("device-plugin", "no"), Reason.OPERANDS_DISABLED, None),
    "an admin switched GFD off": (switched("gpu-feature-discovery"), Reason.OPERANDS_DISABLED, None),
    "an admin switched all operands off": (switched("operands"), Reason.OPERANDS_DISABLED, None),
    "an admin switched mig-manager off, and MIG has to be set up": (
        make_case(MIXED, labels=NO_MANAGER), Reason.OPERANDS_DISABLED, None),
    "an admin switched mig-manager off, and MIG has to go": (
        make_case(SLICED, was=MIXED, labels=NO_MANAGER), Reason.OPERANDS_DISABLED, None),
    "an admin switched mig-manager off, and MIG comes after MPS, in the second step": (
        make_case(MIXED, was=MPS, labels=NO_MANAGER), Reason.OPERANDS_DISABLED, None),
    "an admin switched mig-manager off, and nobody has read the GPUs": (
        make_case(MIXED, labels=NO_MANAGER, agent_ready=False), Reason.OPERANDS_DISABLED, None),
    "another device plugin serves it, for which an admin switched NVIDIA's off": (
        SERVED_BY_HAMI, Reason.FOREIGN_DEVICE_PLUGIN, None),
    "the GPUs are passed through to virtual machines": (
        make_case(MIXED, labels={WORKLOAD: "vm-passthrough"}), Reason.WORKLOAD_CONFIG, None),
    "vGPUs are made for virtual machines, and so nobody reads the GPUs": (
        make_case(MIXED, labels={WORKLOAD: "vm-vgpu"}, agent_ready=False), Reason.WORKLOAD_CONFIG, None),
    "no agent is ready": (make_case(MIXED, agent_ready=False), Reason.AGENT_NOT_READY, None),
    "the agent is quiet still": (reading(quiet=True), Reason.OBSERVATION_PENDING, None),
    "the agent cannot read": (reading(error="NVMLFailed"), Reason.AGENT_ERROR, None),
    "the driver asks for a reset of a GPU": (reading(gpus=(ASKS_FOR_RESET,)), Reason.GPU_UNHEALTHY, None),
    "a GPU is lost": (reading(gpus=(LOST,)), Reason.GPU_UNHEALTHY, None),
    "repartitioning is unsafe under the driver": (reading(driver_version="580.95.05"), Reason.UNSAFE_DRIVER, None),
    "going back to whole GPUs is unsafe under the driver": (
        observing(make_case(FULL, was=MIXED), driver_version="535.0"), Reason.UNSAFE_DRIVER, None),
    "an admin named the driver": (replace(reading(driver_version="570.1"), settings=NAMED), Reason.UNSAFE_DRIVER, None),
    "MPS left its compute mode behind": (
        observing(make_case(SLICED), gpus=(make_gpu(compute_mode="ExclusiveProcess"),)), Reason.COMPUTE_MODE, None),
    "mig-manager is working on its own": (
        make_case(MIXED, labels=PENDING, seen_since=at(-60)), Reason.ACTUATOR_BUSY, at(1140)),
    "mig-manager says that it reboots the node, however long": (
        make_case(MIXED, labels={names.LABEL_MIG_STATE: "rebooting"}, seen_since=at(-9999)),
        Reason.ACTUATOR_BUSY, None),
    "the driver is being unloaded": (
        make_case(MIXED, labels={f"{names.LABEL_DEPLOY_PREFIX}mig-manager": "true_paused-for-driver-upgrade"}),
        Reason.FOREIGN_MAINTENANCE, None),
    "the agent may not list the MIG instances that are to be proven": (
        reading(gpus=(WITHHELD,)), Reason.AGENT_LACKS_RIGHTS, None),
    "the agent may not list the MIG instances that are to go": (
        observing(make_case(FULL), gpus=(make_gpu(0), WITHHELD_HALVES)), Reason.AGENT_LACKS_RIGHTS, None),
    "beside the wanted instances there is one without a compute instance, which mig-parted would leave": (
        reading(gpus=(make_partial(PartialInstance(5, "1g.10gb"), layout={"3g.40gb": 2}),)),
        Reason.INSTANCES_LEFT, None),
    "no instance has a compute instance, so mig-parted would find no room": (
        reading(gpus=(make_partial(BARE, replace(BARE, id=6), layout={}),)), Reason.INSTANCES_LEFT, None),
    "MPS left its compute mode behind, and time-slicing came after it": (
        exclusive(FULL, was=SLICED), Reason.COMPUTE_MODE, None),
    "MPS left its compute mode behind, and nobody knows what came after it": (
        exclusive(SLICED, labels={names.LABEL_PLUGIN_CONFIG: "gone"}), Reason.COMPUTE_MODE, None),
    "the MPS daemon of a node that is to leave MPS does not run": (
        leaving(mps_daemon=DOWN), Reason.MPS_DAEMON_NOT_READY, None),
    "the MPS daemon does not run on the way to MIG": (
        leaving(MIXED, mps_daemon=DOWN), Reason.MPS_DAEMON_NOT_READY, None),
    "the MPS daemon became Ready a moment ago, perhaps only until its next crash": (
        leaving(mps_daemon=replace(DAEMON, ready_since=at(-10))), Reason.MPS_DAEMON_NOT_READY, at(20)),
    "the MPS daemon's pod is gone": (
        leaving(stack=make_stack(MPS, SLICED, cluster_policy=make_cluster_policy(mps_daemon=SIGNALLED))),
        Reason.MPS_DAEMON_NOT_READY, None),
    "the MPS daemon of NVIDIA's chart does not run, and other clients are wanted": (
        leaving(
            MORE, mps_daemon=DOWN,
            stack=make_stack(MPS, MORE, cluster_policy=replace(make_cluster_policy(), plain=PLAIN)),
        ), Reason.MPS_DAEMON_NOT_READY, None),
    "the configuration of the stop on the way was written a moment ago": (
        stopping(at(-100)), Reason.CONFIG_PROPAGATING, at(20)),
    "the configuration of the stop on the way is not written": (stopping(None), Reason.CONFIG_PROPAGATING, None),
    "there is no mig-manager": (make_case(MIXED, operand=None), Reason.ACTUATOR_MISSING, None),
    "mig-manager is not ready": (make_case(MIXED, operand=make_operand(ready=False)), Reason.ACTUATOR_MISSING, None),
    "MIG is on and mig-manager is switched off": (
        make_case(SLICED, was=MIXED, stack=OFF), Reason.ACTUATOR_MISSING, None),
    "drift was seen for the first time": (drifted(), Reason.DRIFTED, at(60)),
    "drift was seen just now": (drifted(drifting_since=NOW), Reason.DRIFTED, at(60)),
    "drift was seen a while ago, and its grace counts from then": (
        drifted(drifting_since=NOW, now=at(10)), Reason.DRIFTED, at(60)),
    "drift was seen less than its grace ago": (drifted(drifting_since=at(-59)), Reason.DRIFTED, at(1)),
    "drift came back in this revision": (
        drifted(drifting_since=at(-60), node={"verified": CORRECTED}), Reason.DRIFT_RETURNED, None),
    "drift came back in this revision, and somebody removed the annotation": (
        drifted(drifting_since=at(-60), node={"verified": RETRIED, "retry": ""}), Reason.DRIFT_RETURNED, None),
    "drift came back, and it may heal itself still": (drifted(node={"verified": CORRECTED}), Reason.DRIFTED, at(60)),
    "nothing that we write would mend it": (
        make_case(MIXED, was=MIXED, node={"resources": {}}, drifting_since=at(-60)), Reason.ALLOCATABLE_MISMATCH, None),
    "the device plugin is down on a node with the key of the policy": (
        adopted(SLICED, PLUGIN_CONFIG, pair_of(SLICED)[1], node=NO_PLUGIN), Reason.ALLOCATABLE_MISMATCH, None),
    "the device plugin is down on a node with an admin's name of the same meaning": (
        adopted(SLICED, PLUGIN_CONFIG, ALIAS, node=NO_PLUGIN), Reason.ALLOCATABLE_MISMATCH, None),
    "the device plugin is down on a node with the key of the policy that had it before": (
        adopted(SLICED, PLUGIN_CONFIG, OTHER_KEY, node=NO_PLUGIN), Reason.ALLOCATABLE_MISMATCH, None),
    "the device plugin is down on a node that uses the default entry": (
        adopted(FULL, PLUGIN_CONFIG, None, node=NO_PLUGIN), Reason.ALLOCATABLE_MISMATCH, None),
    "the device plugin is down on a node that mig-manager never had to divide": (
        adopted(SLICED, MIG_CONFIG, None, node=NO_PLUGIN), Reason.ALLOCATABLE_MISMATCH, None),
    "GFD's labels are gone from a node that an admin's entry divided": (
        adopted(MIXED, MIG_CONFIG, ALIAS, labels=NO_GFD), Reason.LABEL_MISMATCH, None),
    "a GPU did not come back": (
        make_case(MIXED, was=MIXED, node={"verified": replace(proof_of(MIXED), gpus=2)}), Reason.GPU_MISSING, None),
    "an earlier try was given up": (given_up(DEFERRED), Reason.DEFERRED, at(60)),
    "an earlier try was given up, and somebody removed the annotation": (
        given_up(replace(DEFERRED, retry="again")), Reason.DEFERRED, at(60)),
    "an earlier try of this very policy was given up": (
        given_up(replace(DEFERRED, version=MIXED.version)), Reason.DEFERRED, at(60)),
    "the policy is paused": (make_case(PAUSED), Reason.PAUSED, None),
    "the configuration is not written": (make_case(MIXED, stack=make_stack(FULL)), Reason.CONFIG_PROPAGATING, None),
    "the mig-parted entry is not written": (
        make_case(MIXED, stack=make_stack(MIXED, mig_file=migfile.render({}))), Reason.CONFIG_PROPAGATING, None),
    "somebody edited the configuration": (
        make_case(MIXED, stack=make_stack(MIXED, plugin_configs=dict.fromkeys(make_stack(MIXED).plugin_configs, ""))),
        Reason.CONFIG_PROPAGATING, None),
    "somebody gave the mig-parted entry another meaning": (
        make_case(MIXED, stack=make_stack(MIXED, mig_file=MIG_FILE.replace("3g.40gb: 2", "3g.40gb: 1"))),
        Reason.CONFIG_PROPAGATING, None),
    "somebody made the mig-parted file one that is refused": (
        make_case(MIXED, stack=make_stack(MIXED, mig_file=MIG_FILE + "mine: 1\n")),
        Reason.CONFIG_PROPAGATING, None),
    "somebody removed the times of writing": (
        make_case(MIXED, stack=make_stack(MIXED, written={})), Reason.CONFIG_PROPAGATING, None),
    "the configuration may not be written": (
        make_case(MIXED, stack=make_stack(FULL, write_error="no right")), Reason.CONFIG_NOT_WRITTEN, None),
    "the configuration was written a moment ago": (
        make_case(MIXED, stack=make_stack(MIXED, written_at=at(-100))), Reason.CONFIG_PROPAGATING, at(20)),
}  # fmt: skip


@pytest.mark.parametrize(("case", "reason", "until"), CLOSED.values(), ids=CLOSED.keys())
def test_it_may_not_begin(case: NodeCase, reason: Reason, until: object) -> None:
    gate = closed_gate(case)
    assert (gate.reason, gate.until) == (reason, until), gate.message


IN_TURN: tuple[tuple[Reason, dict[str, Any]], ...] = (
    (Reason.SKIP_LABEL, {"labels": {names.LABEL_SKIP: "true"}}),
    (Reason.NODE_NOT_READY, {"node": {"ready": False}}),
    (Reason.FOREIGN_MAINTENANCE, {"node": {"foreign": "kured"}}),
    (Reason.ALREADY_CORDONED, {"node": {"unschedulable": True}}),
    (Reason.ACTUATOR_BUSY, {"labels": PENDING, "seen_since": at(-60)}),
    (Reason.FOREIGN_DEVICE_PLUGIN, {
        "labels": {DEPLOY + "device-plugin": "false"}, "node": {"other_plugin": "HAMi's device plugin"}}),
    (Reason.WORKLOAD_CONFIG, {"labels": {WORKLOAD: "vm-vgpu"}}),
    (Reason.OPERANDS_DISABLED, {"labels": {DEPLOY + "gpu-feature-discovery": "false"}}),
    (Reason.AGENT_NOT_READY, {"agent_ready": False}),
    (Reason.AGENT_ERROR, {"observed": {"error": "NVMLFailed"}}),
    (Reason.GPU_UNHEALTHY, {"observed": {"gpus": (ASKS_FOR_RESET,)}}),
    (Reason.UNSAFE_DRIVER, {"observed": {"driver_version": "580.95.05"}}),
    (Reason.ACTUATOR_MISSING, {"operand": None}),
    (Reason.DEFERRED, {"node": {"deferred": DEFERRED}}),
    (Reason.PAUSED, {"policy": PAUSED}),
    (Reason.CONFIG_NOT_WRITTEN, {"stack": make_stack(FULL, write_error="no right")}),
)  # fmt: skip
"""What closes the gate, by its reason. Of two that apply, the earlier one is told."""


def closed_by(*causes: dict[str, Any]) -> NodeCase:
    fields: dict[str, Any] = {}
    for key, change in (item for cause in causes for item in cause.items()):
        fields[key] = {**fields.get(key, {}), **change} if isinstance(change, dict) else change
    policy = fields.pop("policy", MIXED)
    report = observing(make_case(policy), **fields.pop("observed", {})).gpunode
    return make_case(policy, gpunode=report, **fields)


@pytest.mark.parametrize(("first", "second"), [*combinations(IN_TURN, 2)], ids=lambda one: str(one[0]))
def test_of_two_reasons_that_close_the_gate_the_earlier_one_is_told(
    first: tuple[Reason, dict[str, Any]], second: tuple[Reason, dict[str, Any]]
) -> None:
    alone, case = closed_by(second[1]), closed_by(first[1], second[1])
    gates = find_gate(alone, assessed_of(alone)), find_gate(case, assessed_of(case))
    assert [gate and gate.reason for gate in gates] == [second[0], first[0]]


OWN_NAME = adopted(SLICED, PLUGIN_CONFIG, pair_of(SLICED)[1], node={**NO_PLUGIN, "retry": "again"})


def test_what_would_mend_a_node_that_the_device_plugin_left_is_told() -> None:
    """A person may have the plugin restarted by the operator's own name, unless the node has it already."""
    alias = adopted(SLICED, PLUGIN_CONFIG, ALIAS, node=NO_PLUGIN)
    found = closed_gate(alias)
    assert found.message.endswith(f"kubectl annotate gpunode gpu-07 --overwrite {names.ANNOTATION_RETRY}=again")
    own = closed_gate(OWN_NAME)
    assert not lacks(own.message, "no label")


NAMED_LAYOUT = make_policy(mig={"config": "all-3g.40gb"})
HALVES = {"all-3g.40gb": [{"devices": "all", "mig-enabled": True, "mig-devices": {"3g.40gb": 2}}]}
OPEN: dict[str, NodeCase] = {
    "nothing is in the way": make_case(MIXED),
    "mig-manager is switched off, and the GPUs stay whole": make_case(SLICED, labels=NO_MANAGER, operand=None),
    "mig-manager is switched off, and MPS has no need of it": make_case(MPS, labels=NO_MANAGER, operand=None),
    "the label for skipping is false": make_case(MIXED, labels={names.LABEL_SKIP: "false"}),
    "the label for skipping is empty": make_case(MIXED, labels={names.LABEL_SKIP: ""}),
    "MPS serves the GPU still": exclusive(SLICED, was=MPS),
    "MPS is to take over the GPU that it left": exclusive(MPS),
    "the MPS daemon runs": leaving(mps_daemon=replace(DAEMON, ready_since=at(-30))),
    "only config-manager of the MPS daemon's pod crashes": leaving(mps_daemon=replace(DAEMON, ready=False)),
    "the MPS daemon does not run, and a person has reset the GPUs": make_case(
        SLICED, was=MPS, mps_daemon=DOWN, gpunode=make_gpunode(gpus=(make_gpu(),))
    ),
    "the MPS daemon does not run, and other clients are wanted": make_case(MORE, was=MPS, mps_daemon=DOWN),
    "NVIDIA's own chart runs the MPS daemon, whose pods have labels of a person's and are not seen": leaving(
        stack=make_stack(MPS, SLICED, cluster_policy=replace(make_cluster_policy(), plain=PLAIN))
    ),
    "the configuration of the stop on the way had time, too": stopping(at(-120)),
    "another configuration could not be written": make_case(MIXED, stack=make_stack(MIXED, write_error="no right")),
    "a try of another policy was given up": given_up(replace(DEFERRED, version=SpecVersion("uid-other", "another"))),
    "no GPU is repartitioned, so the driver does not matter": observing(make_case(SLICED), driver_version="580.95.05"),
    "the driver is fixed": reading(driver_version="580.159.03"),
    "an admin accepts what the driver has": replace(reading(driver_version="580.95.05"), settings=ACCEPTED),
    "the GPUs are said to be for containers": make_case(MIXED, labels={WORKLOAD: "container"}),
    "the label for the workload is empty": make_case(MIXED, labels={WORKLOAD: ""}),
    "the operands are switched on": make_case(
        MIXED, labels={DEPLOY + "operands": "true", DEPLOY + "device-plugin": "true"}
    ),
    "the plugin is paused, not switched off": switched("device-plugin", "paused-for-mig-change"),
    "an operand that no mode needs is switched off": switched("dcgm"),
    "a card without MIG needs no mig-manager": make_case(SLICED, products=(T4,), operand=None),
    "mig.config stays as it is, so mig-manager is not needed": make_case(
        SLICED, labels={MIG_CONFIG: "all-disabled", names.LABEL_MIG_STATE: "success"}, operand=None
    ),
    "mig-manager is switched off and MIG as well": make_case(SLICED, stack=OFF, operand=None),
    "mig-manager is wedged for longer than it may take": make_case(MIXED, labels=PENDING, seen_since=at(-1200)),
    "the agent may not list MIG instances, and there are to be none": observing(make_case(SLICED), gpus=(WITHHELD,)),
    "mig-parted clears a GPU on which one of two instances has no compute instance": reading(
        gpus=(make_partial(BARE, layout={"3g.40gb": 1}),)
    ),
    "mig-parted clears the instances without a compute instance before it switches MIG off": observing(
        make_case(SLICED), gpus=(make_partial(BARE, layout={}),)
    ),
    "drift has lasted for its grace": drifted(drifting_since=at(-60)),
    "another name has GFD restarted, which disturbs no pod": adopted(SLICED, PLUGIN_CONFIG, ALIAS, labels=NO_GFD),
    "a person asks for the operator's own name, which has the device plugin restarted": adopted(
        SLICED, PLUGIN_CONFIG, ALIAS, node={**NO_PLUGIN, "retry": "again"}
    ),
    "the instances of an admin's entry are lost": adopted(MIXED, MIG_CONFIG, ALIAS, gpunode=make_case(SLICED).gpunode),
    "mig-manager failed to apply an admin's entry": adopted(
        MIXED, MIG_CONFIG, ALIAS, labels={names.LABEL_MIG_STATE: "failed"}
    ),
    "somebody divided a GPU that has no mig.config": adopted(
        SLICED, MIG_CONFIG, None, gpunode=make_case(MIXED, was=MIXED).gpunode
    ),
    "somebody gave the device plugin an entry that is unknown": adopted(SLICED, PLUGIN_CONFIG, "unknown"),
    "drift came back after a new revision": drifted(
        drifting_since=at(-60), node={"verified": proof_of(MIXED, corrected="another")}
    ),
    "a person asks to put drift right once more": drifted(node={"verified": RETRIED, "retry": "b"}),
    "the wait after an abort is over": make_case(MIXED, node={"deferred": DEFERRED}, now=at(60)),
    "a new revision ends the wait after an abort": given_up(
        replace(DEFERRED, version=SpecVersion(MIXED.uid, "another"))
    ),
    "a person ends the wait after an abort": given_up(DEFERRED, retry="now"),
    "a person ends another wait with another value": given_up(replace(DEFERRED, retry="a"), retry="b"),
    "the configuration had time to reach the node": make_case(MIXED, stack=make_stack(MIXED, written_at=at(-120))),
    "NVIDIA's file needs no time of ours": make_case(
        NAMED_LAYOUT,
        stack=make_stack(
            NAMED_LAYOUT, serves_our_mig_file=False, generated_mig_files={"gpu-07": migfile.render(HALVES)}
        ),
    ),
}


@pytest.mark.parametrize("case", OPEN.values(), ids=OPEN.keys())
def test_it_may_begin(case: NodeCase) -> None:
    assert find_gate(case, assessed_of(case)) is None


STAGES: tuple[Literal["actuating", "fenced"], ...] = ("actuating", "fenced")


def test_a_node_that_is_drained_already_leaves_mps_without_its_daemon() -> None:
    """The wait would end at the deadline, and the proof names the GPUs that are left exclusive."""
    begun, drained = (
        leaving(mps_daemon=DOWN, fence=make_fence(stage), node={"unschedulable": True}) for stage in STAGES
    )
    assert first_closed(target_gates(begun, assessed_of(begun))) is None
    closed = first_closed(target_gates(drained, assessed_of(drained)))
    assert closed is not None
    assert closed.reason is Reason.MPS_DAEMON_NOT_READY


@pytest.mark.parametrize("answered", ["", "again", "once-more"])
def test_the_command_that_ends_a_wait_has_a_value_that_nothing_has_answered_yet(answered: str) -> None:
    case = given_up(replace(DEFERRED, retry=answered), retry=answered)
    gate = closed_gate(case)
    begin, _, value = gate.message.rpartition("=")
    assert begin.endswith(f" run: kubectl annotate gpunode gpu-07 --overwrite {names.ANNOTATION_RETRY}")
    again = given_up(replace(DEFERRED, retry=answered), retry=value)
    assert find_gate(again, assessed_of(again)) is None


RESTARTS: dict[str, tuple[NodeCase, bool]] = {
    "the label has another value: writing it is enough": (make_case(MIXED), False),
    "everything is right": (make_case(MIXED, was=MIXED), False),
    "mig-manager failed": (make_case(MIXED, was=MIXED, labels={names.LABEL_MIG_STATE: "failed"}), True),
    "mig-manager left an operand paused": (
        make_case(MIXED, was=MIXED, labels={f"{names.LABEL_DEPLOY_PREFIX}dcgm": names.PAUSED_FOR_MIG}),
        True,
    ),
    "the instances are gone": (make_case(MIXED, was=MIXED, gpunode=make_case(MIXED).gpunode), True),
    "a card without MIG": (make_case(SLICED, was=SLICED, products=(T4,)), False),
}


@pytest.mark.parametrize(("case", "expected"), RESTARTS.values(), ids=RESTARTS.keys())
def test_only_a_fresh_run_of_mig_manager_mends_it(case: NodeCase, expected: bool) -> None:
    assert needs_restart(case, assessed_of(case).target) is expected


@pytest.mark.parametrize(
    ("pausable", "labels", "closed"),
    [
        pytest.param(True, {}, True, id="no label"),
        pytest.param(True, {names.LABEL_DEPLOY_CLIENT: "true"}, False, id="the label"),
        pytest.param(True, {names.LABEL_DEPLOY_CLIENT: "false"}, True, id="false"),
        pytest.param(True, {names.LABEL_DEPLOY_CLIENT: "yes"}, True, id="yes"),
        pytest.param(True, {names.LABEL_DEPLOY_CLIENT: ""}, True, id="an empty label"),
        pytest.param(True, {names.LABEL_DEPLOY_CLIENT: names.PAUSED_FOR_MIG}, False, id="paused"),
        pytest.param(False, {}, False, id="a chart that does not require it"),
        pytest.param(
            False, {names.LABEL_DEPLOY_CLIENT: "false"}, False, id="false, and a chart that does not require it"
        ),
    ],
)
def test_a_node_that_nvidias_chart_does_not_select_is_not_touched(
    pausable: bool, labels: dict[str, str], closed: bool
) -> None:
    policy = replace(make_cluster_policy(), plain=replace(PLAIN, mig_manager="mm", pausable=pausable))
    case = make_case(SLICED, stack=make_stack(SLICED, cluster_policy=policy), node={"labels": labels})
    gate = find_gate(case, assessed_of(case))
    if closed:
        assert gate is not None
        assert gate.reason is Reason.OPERANDS_DISABLED
        assert f"kubectl label node {case.node.name} --overwrite {names.LABEL_DEPLOY_CLIENT}=true" in gate.message
    else:
        assert gate is None or gate.reason is not Reason.OPERANDS_DISABLED


def test_who_could_not_switch_mig_off_is_told_by_the_stack_that_is_there() -> None:
    policy = make_cluster_policy(switches=NO_MIG_MANAGER)
    plain = replace(policy, plain=PLAIN)
    for found, words in (
        (policy, "ClusterPolicy migManager.enabled is false"),
        (plain, "there is no mig-manager"),
        (
            replace(plain, plain=replace(PLAIN, mig_manager="mm")),
            "mig-manager cannot pause the device plugin from NVIDIA's chart",
        ),
    ):
        case = make_case(SLICED, was=MIXED, stack=make_stack(SLICED, cluster_policy=found))
        gate = closed_gate(case)
        assert gate.reason is Reason.ACTUATOR_MISSING
        assert words in gate.message


def test_operands_are_switched_on_after_the_label_of_gpus_that_were_divided_by_hand() -> None:
    off = {DEPLOY + "operands": "false", names.LABEL_MIG_CONFIG: "all-disabled"}
    for count, label in ((7, "all-1g.10gb"), (3, "")):
        divided = make_gpunode(gpus=[make_gpu(layout=(("1g.10gb", count),))])
        case = make_case(MIXED, labels=off, gpunode=divided)
        gate = closed_gate(case)
        assert f"but its GPUs have {count}x1g.10gb" in gate.message
        remove = f"kubectl label node gpu-07 {DEPLOY}operands-"
        first = f"kubectl label node gpu-07 --overwrite nvidia.com/mig.config={label} && {remove}"
        assert (first in gate.message) is bool(label)
        assert (remove in gate.message) is bool(label)


# --- the last gate, which needs the pods of the node ---------------------------------------------------------------

SMALL = make_gpu(layout=(("1g.10gb", 3),))
UNCOMMON = "slices.example.com/1g.10gb"


def divided(
    *pods: PodView, gpu: GpuView = SMALL, node: dict[str, Any] | None = None, **labels: str | None
) -> Blocker | None:
    """Whether somebody else seems to divide a node that nobody labeled, on which these pods are."""
    case = make_case(
        FULL, labels={MIG_CONFIG: labels.get("config")}, node=node or {}, gpunode=make_gpunode(gpus=(gpu,))
    )
    return find_other_divider(case.node, case.observed, NodeWork(pods, (), NOW), case.stack)


def sliced(**fields: Any) -> PodView:
    return make_pod(**{"resources": {}, "other_devices": (UNCOMMON,), **fields})


def test_instances_that_nothing_explains_beside_a_pod_with_devices_of_others_are_for_a_person_to_decide() -> None:
    found = divided(sliced())
    assert found is not None
    assert (found.reason, found.pods) == (Reason.DIVIDED_ELSEWHERE, ("team-a/llm-0",))
    command = f"kubectl annotate gpunode gpu-07 --overwrite {names.ANNOTATION_RETRY}=again"
    assert not lacks(found.message, command, UNCOMMON, "3x1g.10gb")


SPARED: dict[str, Blocker | None] = {
    "no pod runs there": divided(),
    "the pod holds what NVIDIA's plugin serves": divided(sliced(resources={"nvidia.com/mig-1g.10gb": 1})),
    "the pod asks for nothing": divided(sliced(other_devices=())),
    "the pod has ended": divided(sliced(phase="Succeeded")),
    "the GPUs have no instances": divided(sliced(), gpu=make_gpu()),
    "MIG is on without instances": divided(sliced(), gpu=make_gpu(layout=())),
    "mig-manager made the instances": divided(
        sliced(), gpu=make_gpu(layout=(("1g.10gb", 7),)), config="all-1g.10gb"),
    "a person has decided": divided(sliced(), node={"retry": "again"}),
}  # fmt: skip


@pytest.mark.parametrize("found", SPARED.values(), ids=SPARED.keys())
def test_nobody_else_divides_the_node_if(found: Blocker | None) -> None:
    assert found is None


def test_the_instances_of_the_last_proof_are_the_operators_whatever_the_label_says_now() -> None:
    case = drifted()
    layouts = case.found_layouts
    assert any(layouts)
    work = NodeWork((sliced(),), (), NOW)
    assert find_other_divider(case.node, case.observed, work, case.stack) is None
    other = replace(case.node, verified=None)
    assert find_other_divider(other, case.observed, work, case.stack) is not None
