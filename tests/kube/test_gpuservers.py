"""Which DaemonSets serve GPUs (kube/gpuservers.py)."""

import pytest

from gpusharing.kube.client import JSON
from gpusharing.kube.gpuservers import gpu_server


def daemon_set(name: str, *command: str, image: str = "") -> JSON:
    """A DaemonSet with one container."""
    containers = [{"name": name, "image": image, "command": list(command)}]
    return {
        "metadata": {"namespace": "gpus", "name": "server"},
        "spec": {"template": {"spec": {"containers": containers}}},
    }


@pytest.mark.parametrize(
    ("raw", "dra"),
    [
        (daemon_set("nvidia-device-plugin"), False),
        (daemon_set("device-plugin", image="registry.example/projecthami/hami:v2.10.0"), False),
        (daemon_set("gpus", "gpu-kubelet-plugin"), True),
        (daemon_set("gpus", "exporter"), None),
        (daemon_set("device-plugin", image="registry.example/other/plugin:v1"), None),
    ],
    ids=[
        "the device plugin",
        "HAMi's device plugin",
        "the DRA driver",
        "another program in a container of that name",
        "something else",
    ],
)
def test_a_daemon_set_serves_gpus_by_the_plugin_or_by_the_dra_driver(raw: JSON, dra: bool | None) -> None:
    server = gpu_server(raw)
    assert (None if server is None else server.dra) is dra
