"""What keeps agents from reading, and what must not run beside NVIDIA's device plugin (stack/installation.py)."""

from dataclasses import replace

import pytest
from tests.planning.test_installation import POINTED, reporting

from gpusharing.planning.stack.plugins import has_cloud_plugin

NO_DRIVER = "NVMLNotLoaded: the NVIDIA driver is not loaded on this node"


@pytest.mark.parametrize(
    ("installs", "reason", "command"),
    [
        (True, "AgentCannotRead", "kubectl describe gpunode gpu-01"),
        (
            False,
            "DriverDisabled",
            """kubectl patch clusterpolicy cluster-policy --type merge -p '{"spec":{"driver":{"enabled":true}}}'""",
        ),
    ],
    ids=["the GPU Operator installs it", "the GPU Operator installs none"],
)
def test_a_missing_driver_is_told_with_what_is_to_be_done(installs: bool, reason: str, command: str) -> None:
    policy = replace(POINTED, switches={"driver.enabled": installs})
    view = replace(reporting(gpu_01=NO_DRIVER), cluster_policies=(policy,))
    (found,) = view.symptoms
    assert (found.reason, str(found.command)) == (reason, command)


@pytest.mark.parametrize(
    ("with_driver", "reason"),
    [("gpu-01", "AgentCannotRead"), ("gpu-02", "DriverDisabled")],
    ids=["the node itself offers GPUs", "another host brings its driver"],
)
def test_no_driver_is_installed_on_all_nodes_where_a_host_brings_its_own(with_driver: str, reason: str) -> None:
    policy = replace(POINTED, switches={"driver.enabled": False})
    view = reporting(gpu_01=NO_DRIVER, gpu_02="")
    gpus = {"nvidia.com/gpu": 8}
    nodes = tuple(replace(one, resources=gpus if one.name == with_driver else {}) for one in view.nodes)
    (found,) = replace(view, cluster_policies=(policy,), nodes=nodes).symptoms
    assert (found.reason, str(found.command)) == (reason, "kubectl describe gpunode gpu-01")


@pytest.mark.parametrize(
    ("labels", "two"),
    [
        ({"nvidia.com/gpu.present": "true"}, False),
        ({"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"}, True),
        (
            {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb", "gke-no-default-nvidia-gpu-device-plugin": "true"},
            False,
        ),
    ],
    ids=["not on GKE", "GKE runs its own", "GKE is told not to"],
)
def test_gke_runs_a_device_plugin_of_its_own_unless_a_label_says_no(labels: dict[str, str], two: bool) -> None:
    assert has_cloud_plugin(labels) is two
