"""Device plugins that do not follow our labels are known by what the Node shows (planning/stack/plugins.py)."""

from typing import Any

import pytest
from tests.build import make_node
from tests.kube.objects import node
from tests.wording import lacks

from gpusharing.kube.convert import node_view, other_plugin
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
