"""The demo on a real control plane: etcd, API server, controllers and scheduler, with our chart, its roles and the
operator as they are shipped."""

import asyncio
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import TypeVar

import yaml

from gpusharing.kube.client import JSON, KubeClient
from gpusharing.kube.http import HttpClient
from gpusharing.kube.login import OfficialLogin
from hack import launch as product
from hack.cluster import install, nodes
from hack.cluster.audit import read_requests, wait_logged
from hack.cluster.controlplane import ControlPlane, Options
from hack.cluster.process import ComponentError, tail
from hack.demo import fleet
from hack.demo.columns import KubectlView
from hack.demo.screen import Screen
from hack.demo.stage import LOG, ApplyRefused, Written, empty_log
from hack.sim.workloads import SimWorkload

FACTOR = 50.0
"""Simulated seconds in one real second."""
OPERATOR = f"system:serviceaccount:{product.NAMESPACE}:{product.SERVICE_ACCOUNT}"
LEASE = {"lease_duration": "15s", "renew_deadline": "14s", "retry_period": "1s"}
"""Settings of the Lease: the shipped duration, and a long deadline, because a busy machine renews late."""
Result = TypeVar("Result")


class ClusterStage:
    """The demo's cluster as a real control plane (see `stage.Stage`)."""

    patience = 6.0
    simulated = (
        f"SIMULATED: GPUs, NVIDIA's node software ({FACTOR:g} times as fast as we assume the real one to be) and "
        "kubelets (kwok). Real: etcd, API server, scheduler, controllers, kubectl, helm. The operator runs as a "
        "process with the rights that the chart grants it."
    )

    def __init__(self, plane: ControlPlane, client: HttpClient) -> None:
        self._plane = plane
        self._operator: product.LaunchedProcess | None = None
        self.client: KubeClient = client

    async def apply(self, manifest: JSON) -> str:
        try:
            return await self._kubectl("apply", "-f", "-", stdin=yaml.safe_dump(manifest))
        except subprocess.CalledProcessError as error:
            raise ApplyRefused(str(error.stderr)) from None

    async def show(self, view: KubectlView) -> str:
        return await self._kubectl(*view.arguments)

    async def deploy(self, workload: SimWorkload) -> None:
        path = f"/apis/apps/v1/namespaces/{workload.namespace}/deployments"
        await asyncio.to_thread(self._plane.api.create, path, deployment(workload))

    async def start_operator(self) -> None:
        start = partial(product.operator, self._plane.kubeconfig, self._plane.directory, FACTOR, **LEASE)
        self._operator = await asyncio.to_thread(start)
        self._operator.log = LOG
        self._operator.start()

    async def kill_operator(self) -> str:
        """Kill the operator with SIGKILL, wait for its end, and return a sentence with its pid and exit status."""
        if self._operator is None:
            raise RuntimeError("no operator was started")
        pid = self._operator.pid
        await asyncio.to_thread(self._operator.kill)
        return f"process {pid} ended with status {self._operator.exit_status}"

    async def stop(self) -> None:
        if self._operator is not None:
            await asyncio.to_thread(self._operator.stop)

    async def writes(self) -> list[Written]:
        """Return the operator's successful writes according to the API server's audit log, without those to Leases."""
        return await asyncio.to_thread(self._writes)

    async def changed(self) -> None:
        """Raise ComponentError if the operator has ended and was not killed."""
        if self._operator is not None and self._operator.exit_status not in (None, -signal.SIGKILL):
            raise ComponentError(
                f"the operator ended with status {self._operator.exit_status}; its last lines ({LOG}):\n{tail(LOG)}"
            )
        await asyncio.sleep(0.2)

    def _writes(self) -> list[Written]:
        wait_logged(self._plane.audit_log, self._plane.api)
        return [
            Written(request.resource, "/".join(filter(None, (request.namespace, request.name))))
            for request in read_requests(self._plane.audit_log, OPERATOR)
            if request.is_write and request.status < 300 and request.resource != "leases"
        ]

    async def _kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        return await asyncio.to_thread(partial(self._plane.kubectl, *arguments, stdin=stdin))


def deployment(workload: SimWorkload) -> JSON:
    pod = workload.body("")
    labels = pod["metadata"]["labels"]
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": workload.name, "namespace": workload.namespace},
        "spec": {
            "replicas": workload.replicas,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": pod["spec"]},
        },
    }


@asynccontextmanager
async def cluster_stage(screen: Screen) -> AsyncIterator[ClusterStage]:
    """Yield a control plane with everything but the operator."""
    empty_log()
    plane = ControlPlane(options=Options(audit=True))

    def prepare() -> None:
        install.install_gpu_operator(plane.api)
        for name in fleet.NAMESPACES:
            plane.api.create("/api/v1/namespaces", {"metadata": {"name": name}})

    def populate() -> None:
        nodes.wait_nodes_ready(plane.api, nodes.create_nodes(plane.api, fleet.nodes()))

    def install_chart() -> None:
        product.install_chart(plane.kubeconfig, "--set", "operator.replicaCount=0")

    try:
        _step(screen, "etcd, API server, controller-manager, scheduler, kwok", plane.start)
        _step(screen, "stand-ins for the GPU Operator's CRDs and ClusterPolicy", prepare)
        _step(screen, "our chart, by helm install", install_chart)
        _step(screen, f"{len(fleet.nodes())} SIMULATED nodes", populate)
        software = product.node_software(plane.kubeconfig, plane.directory, FACTOR, "--agent-interval", "1")
        with software:
            async with HttpClient(OfficialLogin(plane.kubeconfig), name="demo") as client:
                stage = ClusterStage(plane, client)
                try:
                    yield stage
                finally:
                    await stage.stop()
    finally:
        plane.stop()


def _step(screen: Screen, what: str, work: Callable[[], object]) -> None:
    begin = time.monotonic()
    work()
    screen.say(f"{time.monotonic() - begin:6.1f} s  {what}")
