"""`import` on clusters that people reported, with files that NVIDIA's programs refuse (kubectl_gpusharing/setup/importing.py, kubectl_gpusharing/setup/handmade.py)."""

from dataclasses import replace

import pytest
from hack.cluster.nodes import LABEL_POOL
from tests.build import H100, NOW, make_cluster_policy, make_gpu, make_gpunode, make_node, make_snapshot, make_stack
from tests.cli.asking import ask, reported
from tests.cli.test_import import SPACE, STATE, policies
from tests.fakes.virtualtime import virtually
from tests.recipes import MIG, PLUGIN
from tests.wording import lacks

from gpusharing.kube.client import CONFIG_MAPS
from gpusharing.kube.sourcesettings import AdminMaps
from gpusharing.planning.gpus.geometry import Layout
from gpusharing.planning.snapshot.nvidia import MpsDaemonView
from gpusharing.planning.snapshot.views import ClusterSnapshot, GpuView
from gpusharing.planning.stack.effects import UPSTREAM_MIG_CONFIG
from gpusharing.planning.stack.nodesymptoms import PluginEntries
from gpusharing.planning.wanted.migfile import well_known
from gpusharing.planning.wanted.verify import EXCLUSIVE
from kubectl_gpusharing.setup.importing import AdminConfigMaps, find_import
from kubectl_gpusharing.shell.troubles import FAILED

A30 = "NVIDIA A30"
MANAGED = "nvidia.com/gpu.deploy.mig-manager"


@virtually
async def test_more_shares_than_a_policy_allows_are_told_as_that() -> None:
    """NVIDIA/k8s-device-plugin#1433: the memory of each GPU as shares of a MiB."""
    told = await ask(reported("replicas-16384"), "import")
    assert (told.status, policies(told.out)) == (FAILED, {})
    why = "its device plugin uses too many replicas (nvidia.com/gpu: 16384); a policy allows 2 to 1024"
    assert f"gpu-1 is left out: {why}" in told.out


@virtually
async def test_a_configmap_in_another_namespace_is_told_with_that_namespace() -> None:
    """NVIDIA/gpu-operator#412: it was created in kube-system."""
    told = await ask(reported("configmap-elsewhere"), "import")
    assert (told.status, policies(told.out)) == (FAILED, {})
    assert not lacks(told.out, "gpu-1", "slice-4", "nvidia-time-slicing-config", "gpu-operator", "kube-system")
    assert "adminPluginConfigMap" not in told.out


@virtually
async def test_gpus_that_cloud_init_divided_are_told_as_that() -> None:
    """NVIDIA/gpu-operator#2415: mig-parted in the user data of the machines, and no mig-manager."""
    told, examined = [await ask(reported("mig-by-cloud-init"), verb) for verb in ("import", "doctor")]
    assert (told.status, policies(told.out)) == (FAILED, {})
    why = "divided into 4x1g.24gb, and not by mig-manager (no nvidia.com/mig.config, migManager.enabled is false)"
    assert not lacks(told.out, "rtx-1", why)
    label = "kubectl label node rtx-1 --overwrite nvidia.com/mig.config=all-1g.24gb"
    assert f"Run: {label}" in told.out
    assert f"-> {label}" in examined.out


@virtually
async def test_mig_invalid_is_told_with_mixed_as_the_way_out() -> None:
    """NVIDIA/gpu-operator#1607: GPUs with and without MIG in one node under strategy single."""
    told, examined = [await ask(reported("mig-invalid"), verb) for verb in ("import", "doctor")]
    assert (told.status, examined.status, policies(told.out)) == (FAILED, FAILED, {})
    why = "strategy single needs one and the same MIG profile on every GPU, so the device plugin does not start"
    way_out = "set ClusterPolicy mig.strategy to mixed"
    flat = " ".join(examined.out.split())
    assert all(text in said for text in (why, way_out) for said in (told.out, flat))
    assert not lacks(flat, "ERROR", "ws-1", "nvidia.com/gpu.product", "NVIDIA-A100-PCIE-40GB-MIG-INVALID")
    assert """-p '{"spec":{"mig":{"strategy":"mixed"}}}'""" in examined.out


REJECTED = {
    "one": ("replicas: 1", "replicas: the device plugin rejects 1: it expects a whole number of"),
    "a text": ('replicas: "4"', 'replicas: the device plugin rejects "4": it expects a whole number of'),
    "none": ("replicas:", "replicas: the device plugin needs this field"),
}


@pytest.mark.parametrize(("text", "why"), REJECTED.values(), ids=REJECTED)
@virtually
async def test_an_entry_that_the_device_plugin_refuses_is_told_by_its_field(text: str, why: str) -> None:
    cluster = reported("replicas-16384")
    entry = cluster.get(CONFIG_MAPS, "time-slicing-config", SPACE)["data"]["any"]
    broken = {"data": {"any": entry.replace("replicas: 16384", text)}}
    cluster.patch(CONFIG_MAPS, "time-slicing-config", broken, SPACE)
    told = await ask(cluster, "import")
    assert (told.status, policies(told.out)) == (FAILED, {})
    where = "ConfigMap time-slicing-config, entry any, sharing.timeSlicing.resources[0]."
    assert where + why in told.out


def test_a_node_with_compute_instances_is_left_out() -> None:
    """mig-parted knows profiles of compute instances; the device plugin exits at them, and no policy may have them."""
    layout = (("1c.3g.40gb", 2),)
    rows = f"[{{devices: all, mig-enabled: true, mig-devices: {dict(layout)}}}]"
    entry = "flags: {migStrategy: mixed}"
    stack = make_stack(admin_mig_file=f"mig-configs: {{parts: {rows}}}", plugin_configs={"any": entry})
    node_ = make_node(labels={MIG: "parts", PLUGIN: "any", STATE: "success", LABEL_POOL: "z"})
    gpunode = make_gpunode(gpus=(make_gpu(layout=layout),))
    snapshot = make_snapshot([node_], [], gpunodes=[gpunode], stack=stack)
    given = AdminConfigMaps(PluginEntries("theirs", "gpu-operator", {"any": entry}))
    found = find_import(snapshot, given, AdminMaps(), NOW)
    (why,) = found.left_out.values()
    assert not lacks(why, "configuration parts", "compute instances")


def steps_of(snapshot: ClusterSnapshot) -> tuple[tuple[str, str], ...]:
    return find_import(snapshot, AdminConfigMaps(PluginEntries("", "gpu-operator", None)), AdminMaps(), NOW).steps


NAMED: dict[str, tuple[str, GpuView | None, str, str]] = {
    "a name that the operator is about to write is awaited": (
        "all-1g.10gb", make_gpu(layout=(("1g.10gb", 7),)), "| grep -qF all-1g.10gb:; do", "keep their devices"),
    "a node without a report is awaited": (
        "all-1g.10gb", None, "", "on gpu-07 (no agent has read its GPUs): the operator's agent has to read the GPUs"
        " there first"),
    "a name that nobody knows is replaced by that of the layout in force": (
        "typo", make_gpu(), "", "keep their devices"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "gpu", "wait", "words"), NAMED.values(), ids=NAMED.keys())
def test_before_the_pointer_moves(name: str, gpu: GpuView | None, wait: str, words: str) -> None:
    """mig-manager generated the names; our file has none of them until the agents have reported."""
    cluster_policy = make_cluster_policy("", mig_config_name=UPSTREAM_MIG_CONFIG)
    stack = make_stack(cluster_policy=cluster_policy, models=[])
    labels = {MIG: name, STATE: "success", LABEL_POOL: "z", "nvidia.com/gpu.product": H100, MANAGED: "true"}
    gpunodes = [make_gpunode(gpus=[gpu])] if gpu is not None else []
    steps = steps_of(make_snapshot([make_node(labels=labels)], [], gpunodes=gpunodes, stack=stack))
    assert [command for _, command in steps if command.startswith("until")] == ([steps[0][1]] if wait else [])
    assert wait in steps[0][1]
    assert words in steps[-1][0]


def divided_by_hand(layout: Layout, plugin: str = "") -> tuple[tuple[str, str], ...]:
    """The steps of import where somebody divided the GPUs of gpu-07 under NVIDIA's default label."""
    stack = make_stack(cluster_policy=make_cluster_policy(plugin, mig_config_name=""))
    nodes = [make_node(labels={MIG: "all-disabled", STATE: "success", MANAGED: "true"})]
    return steps_of(make_snapshot(nodes, [], gpunodes=[make_gpunode(gpus=[make_gpu(layout=layout)])], stack=stack))


def test_nodes_that_were_divided_by_hand_are_labeled_before_mig_manager_restarts() -> None:
    steps = divided_by_hand((("1g.10gb", 7),))
    commands = [command for _, command in steps]
    assert commands[-2] == "kubectl label node gpu-07 --overwrite nvidia.com/mig.config=all-1g.10gb"
    assert "is all-disabled, but its GPUs have 7x1g.10gb" in steps[-2][0]
    assert '"migManager":{"config":{"name":"gpusharing-mig-parted"}}' in commands[-1]


@pytest.mark.parametrize("pointed", [False, True], ids=["both fields", "only mig-manager's"])
def test_mig_manager_is_not_restarted_where_no_entry_has_the_layout_of_a_node(pointed: bool) -> None:
    steps = divided_by_hand((("1g.10gb", 3),), "gpusharing-device-plugin" if pointed else "")
    assert "migManager" not in "".join(command for _, command in steps)
    assert any("devicePlugin" in command for _, command in steps) is not pointed
    about, command = steps[-1]
    assert not lacks(about, "gpu-07", "ConfigMap")
    assert command == "kubectl gpusharing import > policies.yaml"


def test_a_field_of_the_device_plugin_alone_restarts_no_mig_manager() -> None:
    stack = make_stack(cluster_policy=make_cluster_policy(""))
    nodes = [make_node(labels={MIG: "all-disabled", STATE: "success", MANAGED: "true"})]
    gpunodes = [make_gpunode(gpus=[make_gpu(layout=(("1g.10gb", 7),))])]
    steps = steps_of(make_snapshot(nodes, [], gpunodes=gpunodes, stack=stack))
    assert [command.split()[:2] for _, command in steps] == [["kubectl", "patch"]]


@pytest.mark.parametrize("later", [False, True], ids=["the file has the name", "another name is still to come"])
def test_a_name_that_gets_another_meaning_cannot_be_awaited(later: bool) -> None:
    a30, h100 = make_gpu(product=A30), make_gpu()
    stack = make_stack(cluster_policy=make_cluster_policy("", mig_config_name=""), models=[a30])
    layout = well_known((h100,), "all-balanced")[0]
    assert isinstance(layout, tuple)
    labels = {STATE: "success", LABEL_POOL: "z", MANAGED: "true"}
    nodes = [make_node(labels={**labels, MIG: "all-balanced"})]
    gpunodes = [make_gpunode(gpus=[replace(h100, layout=layout)]), make_gpunode("other", gpus=[a30])]
    nodes.append(make_node("other", labels={LABEL_POOL: "y"}))
    if later:
        nodes.append(make_node("third", labels={**labels, MIG: "all-1g.10gb"}))
        gpunodes.append(make_gpunode("third", gpus=[make_gpu(layout=(("1g.10gb", 7),))]))
    steps = steps_of(make_snapshot(nodes, [], gpunodes=gpunodes, stack=stack))
    words = (
        ". First see to 1 node on which mig-manager would fail: the operator's file does not have the"
        " nvidia.com/mig.config of gpu-07 (all-balanced) for their GPUs yet; run import again in a minute"
    )
    assert steps[-1][0].endswith(words) is not later
    assert any("all-1g.10gb:" in command for _, command in steps) is later


def test_a_node_is_left_out_if_our_file_will_never_have_its_name() -> None:
    """NVIDIA's name means something else on each of two cards whose PCI device ids we do not know."""
    here, there = (replace(make_gpu(product=product), product=f"{product} v2") for product in (H100, A30))
    layout = well_known((here,), "all-balanced")[0]
    assert isinstance(layout, tuple)
    stack = make_stack(cluster_policy=make_cluster_policy("", mig_config_name=""), models=[here, there])
    labels = {MIG: "all-balanced", STATE: "success", LABEL_POOL: "z", PLUGIN: "any"}
    nodes = [make_node(labels=labels), make_node("other", labels={LABEL_POOL: "y"})]
    gpunodes = [make_gpunode(gpus=[replace(here, layout=layout)]), make_gpunode("other", gpus=[there])]
    snapshot = make_snapshot(nodes, [], gpunodes=gpunodes, stack=stack)
    entries = PluginEntries("theirs", "gpu-operator", {"any": "flags: {migStrategy: mixed}"})
    found = find_import(snapshot, AdminConfigMaps(entries), AdminMaps(), NOW)
    why = "nvidia.com/mig.config is all-balanced, which the operator's ConfigMap will not contain for its GPUs"
    assert found.left_out["gpu-07"].startswith(why)


CLIENTS = "running pods keep their devices, except MPS clients: all those on 1 node (gpu-07) end, so drain"
RESET = "Afterwards check PROCESS_TO_SIGNAL in DaemonSet nvidia-device-plugin-mps-control-daemon"
NAMED_RIGHT = MpsDaemonView("v0.20.0", "mps-control-daemon", "mps-control-daemon", sees_host=True)


@pytest.mark.parametrize(
    ("share", "pointer", "daemon", "ends", "resets"),
    [
        pytest.param("mps", "theirs", None, True, False, id="an MPS node"),
        pytest.param("mps", "theirs", NAMED_RIGHT, True, True, id="an MPS node whose daemon is found by its name"),
        pytest.param("timeSlicing", "theirs", NAMED_RIGHT, False, False, id="a time-sliced node"),
        pytest.param("mps", "gpusharing-device-plugin", None, False, False, id="only mig-manager's is to be set"),
    ],
)
def test_the_last_step_says_whether_mps_clients_end(
    share: str, pointer: str, daemon: MpsDaemonView | None, ends: bool, resets: bool
) -> None:
    text = f"version: v1\nsharing: {{{share}: {{resources: [{{name: nvidia.com/gpu, replicas: 4}}]}}}}"
    cluster_policy = make_cluster_policy(pointer, mig_config_name="", mps_daemon=daemon)
    node_ = make_node(labels={PLUGIN: "shared", LABEL_POOL: "z"})
    gpu = replace(make_gpu(), compute_mode=EXCLUSIVE if share == "mps" else "Default")
    stack = make_stack(cluster_policy=cluster_policy)
    snapshot = make_snapshot([node_], [], gpunodes=[make_gpunode(gpus=[gpu])], stack=stack)
    given = AdminConfigMaps(PluginEntries("theirs", "gpu-operator", {"shared": text}))
    about, _ = find_import(snapshot, given, AdminMaps(), NOW).steps[-1]
    assert (CLIENTS in about, RESET in about) == (ends, resets)
