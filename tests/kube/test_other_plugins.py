"""Device plugins that do not follow our labels are known by what the Node shows (planning/stack/plugins.py), and so are
others who write our two labels (kube/labelwriters.py)."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from tests.build import make_node
from tests.kube.objects import node
from tests.kube.test_fence import FENCE
from tests.wording import lacks

from gpusharing.api.names import ANNOTATION_FENCE, ANNOTATION_VERIFIED, LABEL_MIG_CONFIG, LABEL_PLUGIN_CONFIG
from gpusharing.kube.convert import node_view, other_plugin
from gpusharing.kube.fence import record_text
from gpusharing.planning.snapshot.records import Fence, SpecVersion, Verified
from gpusharing.planning.snapshot.views import NodeView
from gpusharing.planning.stack.plugins import OTHERS, explain_plugin, name_resources

HAMI, STATE = "hami.io/node-nvidia-register", "hami.io/node-handshake"
DEVICES = '[{"id":"GPU-0","count":10,"devmem":81559,"devcore":100,"type":"NVIDIA-NVIDIA H100","health":true}]'
OLD_DEVICES = "GPU-0,10,81559,100,NVIDIA-NVIDIA H100,0,true,0,hami-core:"
GKE, WITHOUT = "cloud.google.com/gke-accelerator", "gke-no-default-nvidia-gpu-device-plugin"
BOTH = [make_node("gpu-1"), make_node("gpu-2")]
BOTTLEROCKET = "Bottlerocket OS 1.66.0 (aws-k8s-1.37-nvidia)"


def raw_node(
    labels: dict[str, str] | None = None,
    annotations: dict[str, str] | None = None,
    offered: dict[str, str] | None = None,
    os_image: str = "",
) -> dict[str, Any]:
    raw: dict[str, Any] = node()
    raw["metadata"]["labels"] |= labels or {}
    raw["metadata"]["annotations"] = annotations or {}
    raw["status"]["allocatable"] |= offered or {}
    raw["status"]["nodeInfo"] = {"osImage": os_image}
    return raw


@pytest.mark.parametrize(
    ("raw", "plugin"),
    [
        pytest.param(raw_node(annotations={HAMI: DEVICES}), "HAMi's device plugin", id="HAMi"),
        pytest.param(raw_node(annotations={HAMI: OLD_DEVICES}), "HAMi's device plugin", id="HAMi before 2.6"),
        pytest.param(
            raw_node(offered={"nvidia.com/gpumem": "81559"}), "HAMi's device plugin", id="HAMi's memory as a resource"
        ),
        pytest.param(
            raw_node({"instaslice.redhat.com/managed": "true"}),
            "OpenShift's Dynamic Accelerator Slicer",
            id="the slicer's label",
        ),
        pytest.param(
            raw_node(offered={"mig.das.com/1g.10gb": "14"}),
            "OpenShift's Dynamic Accelerator Slicer",
            id="the slicer's resources",
        ),
        pytest.param(
            raw_node(offered={"volcano.sh/vgpu-number": "20", "volcano.sh/vgpu-memory": "163118"}),
            "Volcano's vGPU device plugin",
            id="Volcano",
        ),
        pytest.param(
            raw_node({GKE: "nvidia-h100-80gb", "cloud.google.com/gke-gpu-sharing-strategy": "time-sharing"}),
            "GKE's own device plugin",
            id="GKE",
        ),
        pytest.param(
            raw_node({"kubernetes.azure.com/dcgm-exporter": "enabled"}),
            "the device plugin of AKS's managed GPU pools",
            id="AKS, managed",
        ),
        pytest.param(
            raw_node({"eks.amazonaws.com/compute-type": "auto"}),
            "the device plugin of EKS Auto Mode",
            id="EKS Auto Mode",
        ),
    ],
)
def test_a_device_plugin_that_serves_a_node_is_known_by(raw: dict[str, Any], plugin: str) -> None:
    assert node_view(raw).other_plugin == plugin
    assert explain_plugin(plugin, [make_node("gpu-07")]).message.startswith(f"{plugin} serves the GPUs on gpu-07 (")


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(raw_node(), id="NVIDIA's plugin on a plain node"),
        pytest.param(raw_node({GKE: "nvidia-h100-80gb", WITHOUT: "true"}), id="NVIDIA's plugin on GKE"),
        pytest.param(
            raw_node({"kubernetes.azure.com/agentpool": "gpu", "kubernetes.azure.com/accelerator": "nvidia"}),
            id="NVIDIA's plugin on AKS",
        ),
        pytest.param(
            raw_node({"eks.amazonaws.com/nodegroup": "gpu"}, os_image="Amazon Linux 2023.9.20251014"),
            id="NVIDIA's plugin on EKS",
        ),
        pytest.param(
            raw_node({"eks.amazonaws.com/nodegroup": "gpu"}, os_image=BOTTLEROCKET),
            id="Bottlerocket, whose own plugin may be switched off",
        ),
        pytest.param(
            raw_node(offered={"volcano.sh/vgpu-number": "0", "volcano.sh/vgpu-memory": "0"}),
            id="Volcano's plugin is gone",
        ),
        pytest.param(raw_node(annotations={HAMI: "[]"}), id="HAMi found no GPU"),
        pytest.param(
            raw_node(annotations={HAMI: DEVICES, STATE: "Deleted_2026.11.20 10:00:00"}),
            id="HAMi's scheduler no longer hears of its plugin",
        ),
        pytest.param(raw_node(annotations={"hami.io/node-dcu-register": DEVICES}), id="HAMi serves other cards there"),
    ],
)
def test_no_other_device_plugin_is_seen_in(raw: dict[str, Any]) -> None:
    assert other_plugin(raw) == ""


def test_every_plugin_is_told_with_its_mark_and_the_way_to_hand_nodes_over() -> None:
    for plugin, one in OTHERS.items():
        told = explain_plugin(plugin, BOTH).message
        assert not lacks(told, f"gpu-1, gpu-2 ({one.sign})")
        assert "NODE" not in told
    hami = explain_plugin("HAMi's device plugin", BOTH)
    assert hami.message.endswith("kubectl annotate node gpu-1 gpu-2 hami.io/node-nvidia-register-")


def test_a_node_that_nvidias_plugin_is_kept_off_is_not_handed_over_to_it() -> None:
    off = make_node("gpu-1", labels={"nvidia.com/gpu.deploy.device-plugin": "false"})
    told = explain_plugin("GKE's own device plugin", [off, BOTH[1]])
    assert told.commands == ()
    assert not lacks(told.message, "NVIDIA's device plugin", "gpu-1")


def test_resources_that_only_another_plugin_serves_are_named_with_the_nodes_that_it_serves() -> None:
    asked = ["nvidia.com/gpucores", "nvidia.com/gpu", "nvidia.com/gpumem"]
    nowhere = "nvidia.com/gpucores, nvidia.com/gpumem: only HAMi's device plugin serves this, and it serves"
    assert list(name_resources(asked, {"gpu-1": "", "gpu-2": "GKE's own device plugin"})) == [f"{nowhere} no node here"]
    assert list(name_resources(asked, {"gpu-1": "HAMi's device plugin", "gpu-2": ""})) == [f"{nowhere} gpu-1 here"]
    assert list(name_resources(["nvidia.com/gpu", "nvidia.com/mig-1g.10gb"], {})) == []


NFD, CAPI = "nfd.node.kubernetes.io/feature-labels", "cluster.x-k8s.io/labels-from-machine"
GKE_LABELS, MCM = "node.gke.io/last-applied-node-labels", "node.machine.sapcloud.io/last-applied-anno-labels-taints"
LISTS = {
    "Node Feature Discovery": (NFD, f"cpu-model.vendor_id,{LABEL_MIG_CONFIG}"),
    "one label only": (NFD, LABEL_MIG_CONFIG),
    "an instance of Node Feature Discovery": (f"gpus.{NFD}", f"{LABEL_MIG_CONFIG},pci-10de.present"),
    "Cluster API": (CAPI, f"node-role.kubernetes.io/gpu,{LABEL_MIG_CONFIG}"),
    "GKE": (GKE_LABELS, f"cloud.google.com/gke-nodepool=a,{LABEL_MIG_CONFIG}=all-1g.10gb"),
    "Gardener": (MCM, f'{{"metadata":{{"labels":{{"{LABEL_MIG_CONFIG}":"all-1g.10gb"}}}},"spec":{{}}}}'),
}
WHO = {
    NFD: "Node Feature Discovery manages it",
    CAPI: "Cluster API",
    GKE_LABELS: "GKE manages",
    MCM: "Gardener manages",
}


@pytest.mark.parametrize(("key", "listed"), LISTS.values(), ids=LISTS)
def test_a_controller_that_lists_the_label_on_the_node_owns_it(key: str, listed: str) -> None:
    view = node_view(node(metadata={"annotations": {"node.alpha.kubernetes.io/ttl": "0", key: listed}}))
    assert view.label_owners.keys() == {LABEL_MIG_CONFIG}
    (told,) = view.label_owners.values()
    assert told.startswith(WHO[key.removeprefix("gpus.")])
    assert not lacks(told, f"annotation {key}")


def test_the_label_of_the_device_plugin_is_found_as_well() -> None:
    listed = f"{LABEL_PLUGIN_CONFIG},{LABEL_MIG_CONFIG}"
    view = node_view(node(metadata={"annotations": {NFD: listed}}))
    assert view.label_owners.keys() == {LABEL_PLUGIN_CONFIG, LABEL_MIG_CONFIG}


UNOWNED = {
    "nothing that is ours": (NFD, "cpu-model.vendor_id,nvidia.com/gpu.present"),
    "only the state that mig-manager reports": (NFD, f"{LABEL_MIG_CONFIG}.state"),
    "a label whose name ends alike": (NFD, f"x.{LABEL_MIG_CONFIG},y-{LABEL_MIG_CONFIG},z/{LABEL_MIG_CONFIG}"),
    "a label whose name begins alike": (NFD, f"{LABEL_MIG_CONFIG}-old,{LABEL_MIG_CONFIG}2"),
    "a label whose dots are other characters": (NFD, "nvidia-com/mig-config"),
    "an extended resource": ("nfd.node.kubernetes.io/extended-resources", LABEL_MIG_CONFIG),
    "a note of a person": ("example.com/note", f"I set {LABEL_MIG_CONFIG} by hand"),
    "what kubectl applied last": ("kubectl.kubernetes.io/last-applied-configuration", LABEL_MIG_CONFIG),
}


@pytest.mark.parametrize(("key", "text"), UNOWNED.values(), ids=UNOWNED)
def test_nobody_owns_the_label_because_the_node_lists(key: str, text: str) -> None:
    assert node_view(node(metadata={"annotations": {key: text}})).label_owners == {}


# --- field managers ---------------------------------------------------------------------------------------------

ADOPTED = Verified(
    "pool-b", "all-3g.40gb", "pool-b-1234567", layout="2x3g.40gb", gpus=1, version=SpecVersion("uid-b", "")
)
PROOF = replace(ADOPTED, version=SpecVersion("uid-b", "r1"), changed_at=datetime(2026, 11, 20, 10, 30, tzinfo=UTC))
LATER, EARLIER = "2026-11-20T11:00:00Z", "2026-11-20T10:00:00Z"


def managed(manager: str, *labels: str, time: str = LATER) -> dict[str, Any]:
    fields: dict[str, Any] = {"f:metadata": {"f:labels": {f"f:{label}": {} for label in labels}}}
    return {"manager": manager, "operation": "Update", "time": time, "fieldsV1": fields}


def view_of(
    labels: dict[str, str], *rows: dict[str, Any], proof: Verified | None = PROOF, fence: Fence | None = None
) -> NodeView:
    """The view of a Node with these labels and managedFields, our record of the last proof and that of a change."""
    records = {ANNOTATION_VERIFIED: proof, ANNOTATION_FENCE: fence}
    annotations = {key: record_text(record) for key, record in records.items() if record is not None}
    metadata = {"labels": labels, "annotations": annotations, "managedFields": list(rows)}
    return node_view(node(metadata=metadata))


THEIRS = {LABEL_MIG_CONFIG: "all-1g.10gb", LABEL_PLUGIN_CONFIG: PROOF.plugin_config}
KYVERNO = managed("kyverno-background-controller", LABEL_MIG_CONFIG)


def test_a_field_manager_that_replaced_what_was_proven_is_known_by_name() -> None:
    ours = managed("gpusharing-operator", LABEL_PLUGIN_CONFIG)
    view = view_of(THEIRS, ours, KYVERNO, managed("kubelet"))
    assert view.label_rewriters == {LABEL_MIG_CONFIG: "kyverno-background-controller"}
    assert view.label_owners == {}


def test_what_a_rollback_wrote_to_a_node_that_was_adopted_is_ours_too() -> None:
    view = view_of(THEIRS, KYVERNO, proof=replace(ADOPTED, rolled_back=True))
    assert view.label_rewriters == {LABEL_MIG_CONFIG: "kyverno-background-controller"}


LED: dict[str, Verified] = {
    "a change of this policy": replace(PROOF, version=SpecVersion("uid-b", "r1")),
    "a change whose policy was deleted and created again": replace(PROOF, version=SpecVersion("uid-b", "of-the-other")),
}


@pytest.mark.parametrize("proof", LED.values(), ids=LED)
def test_what_was_proven_is_ours_after(proof: Verified) -> None:
    assert view_of(THEIRS, KYVERNO, proof=proof).label_rewriters == {LABEL_MIG_CONFIG: "kyverno-background-controller"}


def test_of_several_managers_the_last_one_counts() -> None:
    view = view_of(THEIRS, KYVERNO, managed("kubectl-label", LABEL_MIG_CONFIG, time=EARLIER))
    assert view.label_rewriters == {LABEL_MIG_CONFIG: "kyverno-background-controller"}


UNTOUCHED: dict[str, NodeView] = {
    "the value is the one that was proven": view_of({**THEIRS, LABEL_MIG_CONFIG: "all-3g.40gb"}, KYVERNO),
    "nothing was proven": view_of(THEIRS, KYVERNO, proof=None),
    "nobody needed mig-manager at the proof": view_of(THEIRS, KYVERNO, proof=replace(PROOF, mig_config="")),
    "the node was adopted under the name that they gave it": view_of(THEIRS, KYVERNO, proof=ADOPTED),
    "it was adopted so by another policy than the one that changed it": view_of(
        THEIRS, KYVERNO, proof=replace(PROOF, version=SpecVersion("uid-b", ""))),
    "the label was removed": view_of({LABEL_PLUGIN_CONFIG: PROOF.plugin_config}),
    "the API server does not say who": view_of(THEIRS, managed("kyverno", "another")),
    "the operator wrote it": view_of(THEIRS, managed("gpusharing-operator", LABEL_MIG_CONFIG)),
    "a person rolled back by our own program": view_of(THEIRS, managed("gpusharing-rollback", LABEL_MIG_CONFIG)),
}  # fmt: skip


@pytest.mark.parametrize("view", UNTOUCHED.values(), ids=UNTOUCHED)
def test_nobody_replaced_the_value_because(view: NodeView) -> None:
    assert view.label_rewriters == {}


@pytest.mark.parametrize("plugin_config", [PROOF.plugin_config, ""])
def test_past_the_point_of_no_return_the_value_of_the_change_is_ours(plugin_config: str) -> None:
    """What was proven before is then what somebody puts back. With NVIDIA's DRA driver, the device plugin has none."""
    fence = replace(FENCE, stage="actuating", target_mig_config="all-7g.80gb", target_plugin_config=plugin_config)
    back = {**THEIRS, LABEL_MIG_CONFIG: PROOF.mig_config}
    assert view_of(back, KYVERNO, fence=fence).label_rewriters == {LABEL_MIG_CONFIG: "kyverno-background-controller"}
    assert view_of({**THEIRS, LABEL_MIG_CONFIG: "all-7g.80gb"}, KYVERNO, fence=fence).label_rewriters == {}


def test_before_the_point_of_no_return_what_was_proven_last_is_ours() -> None:
    view = view_of(THEIRS, KYVERNO, fence=FENCE)
    assert view.label_rewriters == {LABEL_MIG_CONFIG: "kyverno-background-controller"}
