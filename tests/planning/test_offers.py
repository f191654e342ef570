"""Does what a node offers fit its labels and its agent's report (planning/stack/offers.py)? A table of states."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from tests.build import (
    NO_MIG_MANAGER,
    NOW,
    make_cluster_policy,
    make_fence,
    make_gpu,
    make_gpunode,
    make_node,
    make_snapshot,
    make_stack,
)
from tests.seen import Seen, make_map
from tests.wording import lacks

from gpusharing.api import names
from gpusharing.api.names import Phase
from gpusharing.planning.gpus.geometry import Layout
from gpusharing.planning.rollout import plan_rollout
from gpusharing.planning.snapshot.actions import EnsureGPUNode
from gpusharing.planning.snapshot.nvidia import PlainStackView
from gpusharing.planning.snapshot.views import ClusterSnapshot, NodeView
from gpusharing.planning.stack.effects import find_layouts
from gpusharing.planning.stack.nodesymptoms import find_all_misfits, find_node_symptoms
from gpusharing.planning.stack.offers import find_misfits
from gpusharing.planning.vocabulary.commands import Change
from gpusharing.planning.vocabulary.reasons import Reason

CONFIG, STATE, PRODUCT = names.LABEL_MIG_CONFIG, names.LABEL_MIG_STATE, names.LABEL_GPU_PRODUCT
GPU, SMALL = names.RESOURCE_GPU, "nvidia.com/mig-1g.10gb"
ALL, SEVEN, THREE = "all-1g.10gb", (("1g.10gb", 7),), (("1g.10gb", 3),)
P = "NVIDIA-H100-80GB-HBM3"
PARTS = "version: v1\nmig-configs: {parts: [{devices: all, mig-enabled: true, mig-devices: {1c.3g.40gb: 2}}]}"
OWN = "version: v1\nmig-configs: {own: [{devices: all, mig-enabled: true, mig-devices: {1g.10gb: 3}}]}"


def world(
    labels: Mapping[str, str],
    offers: Mapping[str, int],
    layouts: tuple[Layout | None, ...] | None,
    strategy: str = "mixed",
    *,
    unhealthy: Mapping[str, int] | None = None,
    admin: str = "",
    plugin: str = "",
    chart: PlainStackView | None = None,
    node: Mapping[str, Any] | None = None,
    **more: Any,
) -> tuple[NodeView, ClusterSnapshot]:
    """A node without a policy, whose GPUs have these layouts; None: no agent has read them."""
    policy = replace(make_cluster_policy(plugin, mig_strategy=strategy, mig_config_name="", **more), plain=chart)
    stack = make_stack(
        cluster_policy=policy, admin_mig_file=admin, admin_plugin_configs={"any": SHARED} if chart else {}
    )
    known = {names.LABEL_GPU_PRESENT: "true", PRODUCT: P, **labels}
    view = replace(make_node(labels=known, resources=offers), unhealthy=unhealthy or {}, **(node or {}))
    gpus = [make_gpu(index, layout=layout) for index, layout in enumerate(layouts or ())]
    gpunodes = [] if layouts is None else [make_gpunode(gpus=gpus)]
    return view, make_snapshot([view], gpunodes=gpunodes, stack=stack)


SHARED = "version: v1\nsharing: {timeSlicing: {resources: [{name: nvidia.com/gpu, replicas: 4}]}}"
DONE = {CONFIG: ALL, STATE: "success"}
SHOWN = {names.LABEL_MIG_STRATEGY: "mixed", names.LABEL_GPU_COUNT: "2"}
INVALID = {PRODUCT: f"{P}-MIG-INVALID", **DONE}
ONE, TWO = (None,), (SEVEN, SEVEN)
FITS: dict[str, tuple[NodeView, ClusterSnapshot]] = {
    "whole GPUs": world({}, {GPU: 2}, (None, None)),
    "whole GPUs of which nobody has read": world({}, {GPU: 2}, None),
    "instances under mixed": world(DONE, {SMALL: 14}, TWO),
    "instances under single": world({**DONE, PRODUCT: f"{P}-MIG-1g.10gb"}, {GPU: 14}, TWO, "single"),
    "instances that nobody has read, with their label": world(DONE, {SMALL: 14}, None),
    "an entry of the admin's": world({CONFIG: "own", STATE: "success"}, {SMALL: 3}, (THREE,), admin=OWN),
    "a device plugin that offers nothing yet": world({}, {}, ONE),
    "mig-manager at work": world({CONFIG: ALL, STATE: "pending"}, {GPU: 1}, ONE),
    "our change": world(INVALID, {}, None, node={"fence": make_fence()}),
    "another device plugin": world({}, {GPU: 5}, ONE, node={"other_plugin": "HAMi's device plugin"}),
    "compute instances that strategy none serves whole": world({CONFIG: "parts"}, {GPU: 1}, None, "none", admin=PARTS),
    "the only entry of NVIDIA's chart": world({}, {GPU: 4}, ONE, "", plugin="theirs", chart=PlainStackView("nvdp", "")),
}


@pytest.mark.parametrize("name", FITS)
def test_nothing_is_said_of(name: str) -> None:
    assert [*find_misfits(*FITS[name])] == []


MISFITS: dict[str, tuple[tuple[NodeView, ClusterSnapshot], Reason, str, str]] = {
    "GFD's MIG-INVALID": (
        world(INVALID, {}, None, "single"), Reason.MIG_INVALID, "Set ClusterPolicy mig.strategy to mixed", ""),
    "GFD's MIG-INVALID, of which an agent knows more": (
        world(INVALID, {}, (SEVEN, None), "single"), Reason.MIG_INVALID, "one and the same MIG profile on every", ""),
    "an entry with compute instances": (
        world({CONFIG: "parts", STATE: "success"}, {}, None, admin=PARTS), Reason.COMPUTE_INSTANCES,
        "(1c.3g.40gb), at which the device plugin exits. Name only profiles of GPU instances in it, such as 3g.40gb",
        ""),
    "whole GPUs that are divided": (
        world(DONE, {GPU: 2}, TWO, "none"), Reason.MIG_NOT_SERVED, "its GPUs have 7x1g.10gb, but its device plugin", ""),
    "whole GPUs that are divided, of which nobody has read": (
        world(DONE, {GPU: 2}, None, "none"), Reason.MIG_NOT_SERVED, "mig-manager has applied all-1g.10gb", ""),
    "shares of GPUs that are divided": (
        world(DONE, {f"{GPU}.shared": 8}, TWO, "none"), Reason.MIG_NOT_SERVED, "advertises whole GPUs", ""),
    "instances without a label": (
        world({}, {SMALL: 14}, TWO), Reason.MIG_CONFIG_UNSET, "divided into 7x1g.10gb, and nvidia.com/mig.config", ALL),
    "instances without a label, of which nobody has read": (
        world(SHOWN, {SMALL: 14}, None), Reason.MIG_CONFIG_UNSET, "divided into 14x1g.10gb", ALL),
    "some instances, of which nobody has read": (
        world(SHOWN, {SMALL: 7}, None), Reason.MIG_CONFIG_UNSET, "Set it to an entry that has this layout", ""),
    "instances under single, of which nobody has read": (
        world({PRODUCT: f"{P}-MIG-1g.10gb"}, {GPU: 7}, None, "single"), Reason.MIG_CONFIG_UNSET, "into 7x1g.10gb", ""),
    "instances by cloud-init": (
        world(SHOWN, {SMALL: 14}, None, switches=NO_MIG_MANAGER), Reason.MIG_CONFIG_UNSET,
        "and not by mig-manager (no nvidia.com/mig.config, migManager.enabled is false)", ALL),
    "instances that the label does not name": (
        world({CONFIG: "all-disabled", STATE: "success"}, {SMALL: 14}, TWO), Reason.MIG_CONFIG_DIFFERS,
        "nvidia.com/mig.config is all-disabled, but its GPUs have 7x1g.10gb", ALL),
    "a layout without a name": (
        world(DONE, {SMALL: 3}, (THREE,)), Reason.MIG_CONFIG_DIFFERS, "but its GPUs have 3x1g.10gb", ""),
    "7 of 8": (
        world({}, {GPU: 7}, (None,) * 8, unhealthy={GPU: 1}), Reason.DEVICE_UNHEALTHY, "1 of 8 nvidia.com/gpu is", ""),
    "7 of 8, of which nobody has read": (
        world({}, {GPU: 7}, None, unhealthy={GPU: 1}), Reason.DEVICE_UNHEALTHY, "1 of 8 nvidia.com/gpu is", ""),
    "0 of 8": (
        world({}, {}, (None,) * 8, unhealthy={GPU: 8}), Reason.DEVICE_UNHEALTHY, "not running, or calls all of them", ""),
    "the whole GPU beside instances": (
        world({CONFIG: "x", STATE: "success"}, {SMALL: 7}, (SEVEN, None), unhealthy={GPU: 1},
            admin="mig-configs: {x: [{devices: [0], mig-enabled: true, mig-devices: {1g.10gb: 7}},"
            " {devices: [1], mig-enabled: false}]}"),
        Reason.DEVICE_UNHEALTHY, "1 of 1 nvidia.com/gpu is", ""),
    "7 of 7, but there are 8": (
        world({}, {GPU: 7}, (None,) * 8), Reason.ALLOCATABLE_MISMATCH, "advertises 7 nvidia.com/gpu, but", ""),
    "instances that single would refuse": (
        world(DONE, {GPU: 14}, (SEVEN, None), "single"), Reason.MIG_CONFIG_DIFFERS, "but its GPUs have", ""),
}  # fmt: skip


@pytest.mark.parametrize(("found", "reason", "words", "config"), MISFITS.values(), ids=MISFITS.keys())
def test_it_is_told(found: tuple[NodeView, ClusterSnapshot], reason: Reason, words: str, config: str) -> None:
    (one, change), *_ = find_misfits(*found)
    assert one.reason is reason
    assert (change.labels if change is not None else ()) == (((CONFIG, config),) if config else ())
    assert words in one.message
    assert found[0].name not in one.message


@pytest.mark.parametrize(("found", "reason", "words", "config"), MISFITS.values(), ids=MISFITS.keys())
def test_the_verdict_on_a_node_without_a_policy_says_so_and_nothing_is_done(
    found: tuple[NodeView, ClusterSnapshot], reason: Reason, words: str, config: str
) -> None:
    verdict = plan_rollout(found[1], NOW).verdicts["gpu-07"]
    assert (verdict.phase, verdict.reason) == (Phase.SKIPPED, reason)
    assert all(isinstance(action, EnsureGPUNode) for action in verdict.actions)
    assert verdict.message.startswith("no policy selects this node, and ")
    assert words in verdict.message


def test_a_report_that_may_be_old_is_not_compared() -> None:
    node, snapshot = world(DONE, {SMALL: 14}, (None, None))
    assert [one.reason for one, _ in find_misfits(node, snapshot)] != []
    assert [*find_misfits(node, replace(snapshot, agents=frozenset()))] == []


def test_an_unhealthy_instance_is_a_part_of_the_layout() -> None:
    node, _ = world(DONE, {SMALL: 6}, None, unhealthy={SMALL: 1})
    assert find_layouts(node, None) == (SEVEN,)


def told(found: tuple[NodeView, ClusterSnapshot], *others: NodeView) -> dict[str, tuple[str, str, str]]:
    node, snapshot = found
    policy = snapshot.stack.cluster_policy
    assert policy is not None
    view = Seen(nodes=(node, *others), cluster_policies=(policy,), gpunodes=snapshot.gpunodes)
    symptoms = find_node_symptoms(view.snapshot, {}, find_all_misfits(view.snapshot))
    return {one.reason: (one.severity, one.message, str(one.command)) for one in symptoms}


def test_doctor_says_it_once_for_all_nodes_with_a_command_that_takes_nothing_from_any() -> None:
    node, snapshot = MISFITS["instances by cloud-init"][0]
    found = told((node, snapshot), replace(node, name="gpu-08"))
    ((severity, message, command),) = found.values()
    assert severity == "WARNING"
    assert not lacks(message, "gpu-07, gpu-08", "14x1g.10gb")
    assert command == f"kubectl label node gpu-07 gpu-08 --overwrite {CONFIG}={ALL}"


def test_a_label_is_not_set_where_nobody_knows_what_mig_manager_would_do_with_it() -> None:
    found = world({**SHOWN, "nvidia.com/gpu.deploy.mig-manager": "true"}, {SMALL: 14}, None)
    _, message, command = told(found)["MigConfigUnset"]
    assert not lacks(message, "unknown", "mig-manager", "gpu-07")
    assert command == "kubectl describe node gpu-07"


def test_mixed_is_the_way_out_of_mig_invalid_unless_it_would_take_devices_from_other_nodes() -> None:
    found = MISFITS["GFD's MIG-INVALID"][0]
    severity, _, command = told(found)["MigInvalid"]
    assert (severity, '{"spec":{"mig":{"strategy":"mixed"}}}' in command) == ("ERROR", True)
    served = make_node("gpu-08", labels={**DONE, PRODUCT: f"{P}-MIG-1g.10gb"}, resources={GPU: 7})
    _, message, command = told(found, served)["MigInvalid"]
    assert "devices would go on gpu-08 (7 nvidia.com/gpu)" in message
    assert command == "kubectl describe node gpu-07"


def test_an_entry_of_the_device_plugin_is_changed_where_that_sets_the_strategy() -> None:
    node, snapshot = world(INVALID, {}, None, "", plugin="theirs")
    ((one, change),) = find_misfits(node, snapshot)
    assert not lacks(one.message, "flags.migStrategy", "nvidia.com/device-plugin.config", "mixed")
    assert (one.reason, change) == (Reason.MIG_INVALID, None)
    (_, fixed), *_ = find_misfits(*MISFITS["GFD's MIG-INVALID"][0])
    assert fixed == Change(fields=(("mig.strategy", "mixed"),))


def test_a_name_that_mig_manager_does_not_have_is_told_once_with_the_right_one() -> None:
    node, snapshot = world({CONFIG: "typo", STATE: "success"}, {SMALL: 14}, TWO)
    view = Seen(nodes=(node,), gpunodes=snapshot.gpunodes)
    entries = {"gpu-07": ("own", frozenset({"all-disabled"}))}
    (one,) = find_node_symptoms(view.snapshot, entries, find_all_misfits(view.snapshot))
    assert (one.reason, str(one.command)) == (
        "MigConfigDiffers",
        f"kubectl label node gpu-07 --overwrite {CONFIG}={ALL}",
    )
    (unread,) = find_node_symptoms(view.snapshot, entries)
    assert unread.reason == "MigConfigUnknown"


def test_the_entries_that_mig_manager_reads_count_before_the_installation() -> None:
    node, _ = world({CONFIG: "parts", STATE: "success"}, {}, None)
    policy = make_cluster_policy("", mig_strategy="mixed", mig_config_name="own")
    maps = {"own": make_map({"config.yaml": PARTS}, ours=False)}
    view = Seen(nodes=(node,), cluster_policies=(policy,), config_maps=maps)
    (one,) = find_node_symptoms(view.snapshot, {}, find_all_misfits(view.snapshot))
    assert (one.reason, one.severity) == ("ComputeInstances", "ERROR")
