"""hack/cluster/nodes.py: a fresh simulated node looks as NVIDIA's software leaves a real one."""

from typing import Any

import pytest
from hack.cluster.nodes import FLEET, LABEL_POOL, fleet, is_ready, node_manifest


def labels_of(manifest: dict[str, Any]) -> dict[str, str]:
    labels: dict[str, str] = manifest["metadata"]["labels"]
    return labels


def test_a_node_with_mig_capable_cards_has_been_seen_by_mig_manager() -> None:
    manifest = node_manifest("gpu-01", product="NVIDIA H100 80GB HBM3", gpus=8, pool="a")
    labels = labels_of(manifest)
    assert labels["nvidia.com/gpu.product"] == "NVIDIA-H100-80GB-HBM3"
    assert labels["nvidia.com/gpu.count"] == "8"
    assert labels["nvidia.com/mig.capable"] == "true"
    assert labels["nvidia.com/mig.config"] == "all-disabled"
    assert labels["nvidia.com/mig.config.state"] == "success"
    assert labels["nvidia.com/gpu.deploy.mig-manager"] == "true"
    assert labels[LABEL_POOL] == "a"
    assert manifest["status"]["allocatable"]["nvidia.com/gpu"] == "8"
    assert manifest["metadata"]["annotations"] == {"kwok.x-k8s.io/node": "fake"}


def test_a_node_whose_card_cannot_do_mig_has_no_mig_config_label() -> None:
    labels = labels_of(node_manifest("gpu-01", product="NVIDIA L40S", gpus=4))
    assert labels["nvidia.com/mig.capable"] == "false"
    assert labels["nvidia.com/gpu.family"] == "ada-lovelace"
    assert not [key for key in labels if key.startswith("nvidia.com/mig.config")]
    assert "nvidia.com/gpu.deploy.mig-manager" not in labels
    assert LABEL_POOL not in labels


def test_labels_given_by_the_caller_win() -> None:
    labels = labels_of(node_manifest("gpu-01", labels={"nvidia.com/gpu.count": "7", "rack": "r1"}))
    assert (labels["nvidia.com/gpu.count"], labels["rack"]) == ("7", "r1")


def test_an_unknown_card_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="NVIDIA H100 81GB"):
        node_manifest("gpu-01", product="NVIDIA H100 81GB")


@pytest.mark.parametrize("count", [0, 1, 8, 250])
def test_a_fleet_has_distinct_names_in_order_and_pools_of_even_size(count: int) -> None:
    manifests = fleet(count)
    names = [manifest["metadata"]["name"] for manifest in manifests]
    assert len(set(names)) == count
    assert names == sorted(names)
    sizes = [sum(labels_of(manifest)[LABEL_POOL] == pool for manifest in manifests) for pool, _, _ in FLEET]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(
    ("status", "taints", "expected"),
    [
        pytest.param("True", [], True, id="Ready and free of taints"),
        pytest.param("Unknown", [], False, id="no kubelet yet"),
        pytest.param("True", [{"key": "node.kubernetes.io/not-ready"}], False, id="still tainted as new"),
        pytest.param("True", [{"key": "dedicated"}], True, id="a taint of the admin does not matter"),
    ],
)
def test_when_a_node_counts_as_ready(status: str, taints: list[dict[str, str]], expected: bool) -> None:
    node = {"spec": {"taints": taints}, "status": {"conditions": [{"type": "Ready", "status": status}]}}
    assert is_ready(node) is expected
