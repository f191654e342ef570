"""`python -m hack.sim` on a real control plane with kwok nodes (rung 2)."""

import asyncio
import os
import signal
import sys
import uuid
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from hack.cluster.api import Api, ApiError, Object
from hack.cluster.controlplane import ControlPlane
from hack.cluster.nodes import create_nodes, node_manifest, wait_nodes_ready

from gpusharing.planning.wanted.pluginconfig import NEUTRAL, NEUTRAL_KEY

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).resolve().parents[2]
STATE = "nvidia.com/mig.config.state"
PODS = "/api/v1/namespaces/gpu-operator/pods"
PLUGIN_MAP = "/api/v1/namespaces/gpu-operator/configmaps/gpusharing-device-plugin"


@asynccontextmanager
async def simulator(plane: ControlPlane) -> AsyncIterator[Process]:
    command = ("-m", "hack.sim", "--kubeconfig", str(plane.kubeconfig), "--time-factor", "50", "--agents")
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'operator'}:{ROOT}"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, *command, stdout=PIPE, stderr=STDOUT, cwd=ROOT, env=environment
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
            await process.communicate()


async def until(condition: Callable[[], object], what: str) -> None:
    for _ in range(1200):
        if condition():
            return
        await asyncio.sleep(0.1)
    raise TimeoutError(what)


def offered(api: Api, name: str) -> Object:
    allocatable = api.get(f"/api/v1/nodes/{name}")["status"]["allocatable"]
    return {key: value for key, value in allocatable.items() if key.startswith("nvidia.com/")}


def labels_of(api: Api, name: str) -> Object:
    found: Object = api.get(f"/api/v1/nodes/{name}")["metadata"]["labels"]
    return found


def create_gpunode(api: Api, name: str) -> None:
    gpunode = {
        "apiVersion": "gpusharing.dev/v1alpha1",
        "kind": "GPUNode",
        "metadata": {"name": name},
        "spec": {"request": {"id": "r1", "quiet": False}},
    }
    api.create("/apis/gpusharing.dev/v1alpha1/gpunodes", gpunode)


def remove(api: Api, *paths: str) -> None:
    for path in paths:
        try:
            api.delete(path)
        except ApiError as error:
            if error.status != 404:
                raise


async def test_a_node_goes_to_mig_and_its_agent_reports(control_plane: ControlPlane) -> None:
    api, name = control_plane.api, f"sim-{uuid.uuid4().hex[:6]}"
    wait_nodes_ready(api, create_nodes(api, [node_manifest(name, gpus=2)]))
    create_gpunode(api, name)
    # Without an entry NVIDIA's config-manager ends, and neither device plugin nor GFD run.
    remove(api, PLUGIN_MAP)
    data = {"metadata": {"name": PLUGIN_MAP.rpartition("/")[2]}, "data": {NEUTRAL_KEY: NEUTRAL}}
    api.create(PLUGIN_MAP.rpartition("/")[0], data)

    def observed() -> Object:
        found = api.get(f"/apis/gpusharing.dev/v1alpha1/gpunodes/{name}").get("status", {})
        answer: Object = found.get("observed", {})
        return answer

    try:
        async with simulator(control_plane) as process:
            assert process.stdout is not None
            assert (await process.stdout.readline()).startswith(b"SIMULATED")
            await until(lambda: observed().get("requestID") == "r1", "the agent's answer")
            assert observed()["simulated"] is True
            own = f"spec.nodeName={name}"
            await until(
                lambda: api.get(PODS, fieldSelector=own, labelSelector="app=nvidia-mig-manager")["items"],
                "mig-manager's pod",
            )
            await until(
                lambda: "nvidia.com/gfd.timestamp" in control_plane.kubectl("get", "node", name, "-o", "yaml"), "GFD"
            )
            labels = {"nvidia.com/mig.config": "all-3g.40gb", STATE: None}
            api.merge_patch(f"/api/v1/nodes/{name}", {"metadata": {"labels": labels}})
            await until(
                lambda: api.get(f"/api/v1/nodes/{name}")["metadata"]["labels"].get(STATE) == "success", "success"
            )
            process.send_signal(signal.SIGTERM)
            rest, _ = await process.communicate()
            assert process.returncode == 0, rest
            assert rest.endswith(b"stopped\n")
        assert offered(api, name).keys() == {"nvidia.com/gpu"}
    finally:
        sets = (
            "gpu-operator/daemonsets/nvidia-mig-manager-daemonset",
            "gpu-operator/daemonsets/nvidia-device-plugin-mps-control-daemon",
            "gpusharing/daemonsets/simulated-agent",
        )
        remove(api, *(f"/apis/apps/v1/namespaces/{one}" for one in sets))
        remove(api, PLUGIN_MAP, f"/apis/gpusharing.dev/v1alpha1/gpunodes/{name}", f"/api/v1/nodes/{name}")
