"""What `doctor` says of kubelets (stack/nodesymptoms.py)."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from tests.build import make_node
from tests.seen import Seen
from tests.wording import lacks

from gpusharing.planning.stack.installationviews import Installation
from gpusharing.planning.stack.nodesymptoms import MOST_BEHIND, OLDEST, find_kubelet_symptoms, find_minor

CHART = Path(__file__).parents[2] / "deploy/helm/gpu-sharing-operator/Chart.yaml"
GPU = {"nvidia.com/gpu.present": "true"}


def kubelets(api_server: str, *versions: str) -> list[tuple[str, str]]:
    found = find_kubelet_symptoms(running({f"gpu-{number}": one for number, one in enumerate(versions, 1)}), api_server)
    return [(one.reason, str(one.command).split(" -o")[0]) for one in found]


def running(versions: dict[str, str], labels: Mapping[str, str] = GPU) -> Installation:
    nodes = tuple(replace(make_node(name), labels=labels) for name in versions)
    return Seen(nodes=nodes, kubelets=versions).installation


def test_kubelets_that_nobody_stands_for_are_told_once_each() -> None:
    assert kubelets("v1.33.1-eks-1-33-5", "v1.29.9", "v1.30.0+k3s1", "v1.34.0", "v1.33.9", "v1.28.0") == [
        ("KubeletNewer", "kubectl get node gpu-3"),
        ("KubeletBehind", "kubectl get node gpu-1 gpu-5"),
    ]
    assert kubelets("v1.32.0", "v1.29.9", "v1.32.9") == [("KubeletOld", "kubectl get node gpu-1")]
    (one,) = find_kubelet_symptoms(running({"gpu-1": "v1.29.9"}), "v1.32.0")
    assert one.severity == "WARNING"
    assert not lacks(one.message, "gpu-1 (v1.29.9)", "1.30")


@pytest.mark.parametrize("server", ["", "v0.0.0-master+$Format:%H$", "odd"])
def test_without_a_version_of_the_server_kubelets_are_held_against_ours_alone(server: str) -> None:
    assert kubelets(server, "v1.99.0", "v1.29.0") == [("KubeletOld", "kubectl get node gpu-2")]


@pytest.mark.parametrize("version", ["", "v0.0.0-master+$Format:%H$", "odd"])
def test_of_a_kubelet_without_a_version_nothing_is_said(version: str) -> None:
    assert find_minor(version) is None
    assert kubelets("v1.36.3", version) == []


def test_of_kubelets_within_reach_and_of_those_without_a_gpu_nothing_is_said() -> None:
    assert kubelets("v1.36.3", "v1.36.9", "v1.36.0", "v1.33.0") == []
    assert [*find_kubelet_symptoms(running({"cpu-1": "v1.20.0"}, {}), "v1.36.3")] == []
    assert MOST_BEHIND == 3


def test_the_oldest_kubernetes_is_that_of_the_chart() -> None:
    asked = yaml.safe_load(CHART.read_text())["kubeVersion"]
    assert asked == f">={OLDEST[0]}.{OLDEST[1]}.0-0"
