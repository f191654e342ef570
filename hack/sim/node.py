"""One SIMULATED node: its GPUs and NVIDIA's programs on it, which start and die with their pods and with reboots."""

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeAlias

from gpusharing.agent.library import LibraryError
from gpusharing.api.names import (
    LABEL_DEPLOY_PREFIX,
    LABEL_GPU_COUNT,
    LABEL_GPU_PRESENT,
    LABEL_GPU_PRODUCT,
    LABEL_MIG_CONFIG,
    LABEL_PLUGIN_CONFIG,
    LABEL_WORKLOAD_CONFIG,
)
from gpusharing.kube.client import CONFIG_MAPS, JSON
from gpusharing.kube.errors import AlreadyExists
from gpusharing.kube.pods import container_requests
from gpusharing.kube.raw import entries, section
from gpusharing.planning.gpus.cards import bare_product, find_card
from hack.sim.dra import KubeletPlugin
from hack.sim.gpu import SimulatedGPUs
from hack.sim.gpuoperator import LABEL_DEPLOY_OPERANDS, operator_labels
from hack.sim.migmanager import MigManager, MigManagerFaults
from hack.sim.migparted import generated
from hack.sim.mps import MpsDaemon
from hack.sim.nodeobject import ANNOTATION_REBOOTING, NVIDIA, Labels, NodeObject, SimCluster
from hack.sim.operands import DevicePlugin, FeatureDiscovery, PlayedOperand
from hack.sim.readings import ChangedReading, Readings

ANNOTATION_GPUS = "sim.gpusharing.dev/gpus"
"""On a Node: the number of its GPUs, because GFD may count MIG devices."""

ANNOTATION_PRODUCTS = "sim.gpusharing.dev/products"
"""On a Node with several card models: the product of each GPU, as GFD writes it, separated by commas."""

Spawn: TypeAlias = Callable[[Coroutine[Any, Any, None]], "asyncio.Task[None]"]


def simulated_gpus(raw: JSON) -> SimulatedGPUs | None:
    """Return simulated GPUs for a Node, or None if its product is unknown."""
    metadata = raw["metadata"]
    labels, annotations = metadata.get("labels") or {}, metadata.get("annotations") or {}
    if several := annotations.get(ANNOTATION_PRODUCTS):
        names = [_product(label) for label in several.split(",")]
    else:
        count = annotations.get(ANNOTATION_GPUS) or labels.get(LABEL_GPU_COUNT) or "1"
        names = [_product(labels.get(LABEL_GPU_PRODUCT, ""))] * int(count)
    return SimulatedGPUs(metadata["name"], names) if all(names) else None


def _product(label: str) -> str:
    card = find_card(label)
    bare = bare_product(label)
    return next((name for name in card.products if bare_product(name) == bare), "") if card else ""


CALLS = 60.0
"""The shortest patience in real seconds: no time factor accelerates the API calls that remove a pod."""


class _MigPort:
    def __init__(self, node: "SimNode") -> None:
        self._node = node
        self._started = node.cluster.clock.now()

    @property
    def labels(self) -> Labels:
        """The labels of the newest known version of the Node, which may be older than the server's."""
        return self._node.object.labels

    @property
    def with_reboot(self) -> bool:
        return self._node.cluster.policy.with_reboot

    async def patch_labels(self, changes: Mapping[str, str | None]) -> None:
        await self._node.object.patch(changes)

    async def operands_gone(self, seconds: float) -> bool:
        """Wait for both operands, each for this many simulated seconds, or CALLS real ones if that is longer."""
        cluster = self._node.cluster
        patience = max(seconds, CALLS * cluster.settings.time_factor)
        gone = [operand.is_gone for operand in self._node.operands]
        for event in gone:
            if not await cluster.clock.wait_for(event, patience):
                return False
        return True

    def mig_file(self) -> str:
        cluster = self._node.cluster
        content = cluster.config_maps.content(
            cluster.policy.mig_config, node=self._node.name, pod_started=self._started, now=cluster.clock.now()
        )
        # A missing ConfigMap also gives the generated file, although a real pod would not start then.
        return content.get("config.yaml") or self._node.generated_file

    async def reboot(self) -> None:
        """Begin a reboot, and wait until it kills this process by canceling the call."""
        self._node.reboot()
        await asyncio.get_running_loop().create_future()  # until the reboot kills this process

    def log(self, line: str) -> None:
        self._node.log(line)


class SimNode:
    def __init__(self, cluster: SimCluster, raw: JSON, gpus: SimulatedGPUs, spawn: Spawn) -> None:
        self.cluster = cluster
        self.object = NodeObject(cluster, raw, self._labels_changed)
        self.name = self.object.name
        self.gpus = gpus
        self.agent_library = ChangedReading(gpus)
        """The NVML library of the node's agent, whose readings can be changed."""
        self.faults = MigManagerFaults()
        self.generated_file = ""
        self._spawn_task = spawn
        self._running: set[asyncio.Task[None]] = set()
        """All tasks of this node that have not ended, those of `_tasks` among them."""
        self.mps = MpsDaemon(cluster, self.object, gpus, self._wake_operands)
        self.kubelet_plugin = KubeletPlugin(cluster, self.object, gpus)
        self._plugin = DevicePlugin(cluster, self.object, gpus, lambda: self.mps.clients is not None)
        self._gfd = FeatureDiscovery(cluster, self.object, gpus)
        self.operands = tuple(
            PlayedOperand(port.operand, port, cluster.clock, cluster.settings.times, self.log)
            for port in (self._plugin, self._gfd)
        )
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._pod: JSON | None = None
        self._manager: MigManager | None = None
        self._down = False
        self._boots = 0

    # --- what happens to it ----------------------------------------------------------------------------

    def start(self) -> None:
        """Begin the simulation of a new Node. mig-manager starts later, when `set_mig_manager_pod` names its pod."""
        self._spawn(self._first_labels())
        self._start_operands()
        self._start_pods()

    def stop(self) -> None:
        for key in list(self._tasks):
            self._kill(key)
        for task in list(self._running):
            task.cancel()

    def take(self, raw: JSON) -> None:
        """Store a version of the Node, and wake the programs that a change of its labels affects."""
        self.object.take(raw)

    def set_mig_manager_pod(self, pod: JSON | None) -> None:
        """Start mig-manager in this pod, or end it; a container that waits, as in a CrashLoopBackOff, has no process."""
        if any("waiting" in section(row, "state") for row in entries(pod, "status", "containerStatuses")):
            pod = None
        if _uid(pod) == _uid(self._pod):
            return
        self._pod = pod
        self._kill("mig-manager")
        if not self._down:
            self._start_mig_manager()

    def set_mps_pod(self, pod: JSON | None) -> None:
        self.mps.set_pod(_uid(pod) or "")

    def set_kubelet_plugin_pod(self, pod: JSON | None) -> None:
        self.kubelet_plugin.set_pod(_uid(pod) or "")

    def policy_changed(self, *, plugin: bool, mig: bool) -> None:
        """Restart the device plugin and GFD, or mig-manager, because ClusterPolicy has changed for them."""
        if self._down:
            return
        self._spawn(self._operator_labels())
        if plugin:
            self._spawn(self._roll_operands())
        else:
            self._wake_operands()
        if mig:
            self.kill_mig_manager()

    def kill_mig_manager(self) -> None:
        """Kill mig-manager in whatever step it is, and start it as if its container restarted."""
        self._kill("mig-manager")
        self._start_mig_manager()

    def reboot(self) -> None:
        """Start to reboot the node, which kills all its processes but the agent."""
        self._tasks["reboot"] = self._spawn(self._reboot())

    def lose_instances(self) -> None:
        """Destroy every MIG instance, as a person might; cards without MIG are skipped."""
        for index in range(self.gpus.count):
            if self.gpus.card(index).profiles:
                self.gpus.destroy_all(index)
        self._spawn(self._label_later())

    def refuse(self, pod: JSON) -> str:
        """Return the error with which the device plugin refuses a container of the pod; empty if it refuses none."""
        containers = (*entries(pod, "spec", "initContainers"), *entries(pod, "spec", "containers"))
        return next(filter(None, (self._plugin.refuse(container_requests(one)) for one in containers)), "")

    def log(self, line: str) -> None:
        self.cluster.log(f"{self.name}: {line}")

    def keeps_waiting(self, pod: JSON) -> bool:
        """Whether the kubelet cannot start the pod, because no kubelet plugin prepares its ResourceClaims."""
        if not self.cluster.settings.dra or self.kubelet_plugin.serves:
            return False
        asks = (container_requests(one) for one in entries(pod, "spec", "containers"))
        return bool(entries(pod, "spec", "resourceClaims")) or any(
            name.startswith(NVIDIA) for one in asks for name in one
        )

    # --- inside ------------------------------------------------------------------------------------------

    def _spawn(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = self._spawn_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    def _labels_changed(self, before: Labels, after: Labels) -> None:
        # Not the deploy label of one operand (GO v26.7.0 controllers/nodelabeling_controller.go, getNodeLabelUpdateReasons).
        if _differ(before, after, LABEL_GPU_PRESENT, LABEL_WORKLOAD_CONFIG, LABEL_DEPLOY_OPERANDS):
            self._spawn(self._operator_labels())
        if _differ(before, after, LABEL_PLUGIN_CONFIG, *_DEPLOY):
            self._wake_operands()
        self._note_mig_config()

    def _wake_operands(self) -> None:
        for operand in self.operands:
            operand.wake()

    def _note_mig_config(self) -> None:
        if self._manager is not None:
            self._manager.note(self.object.labels.get(LABEL_MIG_CONFIG, ""))

    def _start_operands(self) -> None:
        for operand in self.operands:
            self._tasks[operand.name] = self._spawn(operand.run())

    def _start_pods(self) -> None:
        self._tasks[self.mps.operand] = self._spawn(self.mps.run())
        if self.cluster.settings.dra:
            self._tasks[self.kubelet_plugin.operand] = self._spawn(self.kubelet_plugin.run())

    def _start_mig_manager(self) -> None:
        if self._pod is not None and "mig-manager" not in self.cluster.policy.off:
            self._tasks["mig-manager"] = self._spawn(self._run_mig_manager(self._pod))

    async def _run_mig_manager(self, pod: JSON) -> None:
        cluster = self.cluster
        port = _MigPort(self)
        self.generated_file = await self._generate(pod)
        self._manager = MigManager(port, self.gpus, self.faults, cluster.clock, cluster.settings)
        self._note_mig_config()
        await self._manager.run()

    async def _generate(self, pod: JSON) -> str:
        try:
            reading = await Readings(self.gpus)(self.gpus.read_as_operand, "mig-manager")
        except LibraryError:
            return ""
        text = generated(reading)
        if text and not self.cluster.policy.mig_config:
            await self._publish(pod, text)
        return text

    async def _publish(self, pod: JSON, text: str) -> None:
        namespace, name = self.cluster.settings.gpu_operator_namespace, f"{self.name}-mig-config"
        owner = {"apiVersion": "v1", "kind": "Pod", "name": pod["metadata"]["name"], "uid": _uid(pod)}
        metadata = {
            "name": name,
            "labels": {"app.kubernetes.io/component": "nvidia-mig-manager", "nvidia.com/node-name": self.name},
            "ownerReferences": [owner],
        }
        body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"config.yaml": text}}
        try:
            await self.cluster.client.create(CONFIG_MAPS, body, namespace=namespace)
        except AlreadyExists:
            await self.cluster.client.patch(
                CONFIG_MAPS, name, {"metadata": metadata, "data": body["data"]}, namespace=namespace
            )

    async def _first_labels(self) -> None:
        if ANNOTATION_GPUS not in self.object.annotations:
            await self.object.patch(annotations={ANNOTATION_GPUS: str(self.gpus.count)})
        await self._operator_labels()

    async def _operator_labels(self) -> None:
        capable = any(self.gpus.card(index).profiles for index in range(self.gpus.count))
        await self.object.patch(operator_labels(self.object.labels, self.cluster.policy, mig_capable=capable))

    async def _label_later(self) -> None:
        await self.cluster.clock.sleep(self.cluster.settings.times.gfd_loop)
        await self._gfd.label()

    async def _roll_operands(self) -> None:
        for operand in self.operands:
            self._kill(operand.name)
            await operand.restart()
        self._start_operands()

    async def _reboot(self) -> None:
        self._down = True
        self.log("is rebooting")
        pods = ("mig-manager", self.mps.operand, self.kubelet_plugin.operand)
        for key in (*pods, *(operand.name for operand in self.operands)):
            self._kill(key)
        self.mps.reboot()
        self.kubelet_plugin.reboot()
        await self.object.patch(annotations={ANNOTATION_REBOOTING: "true"})
        await self.object.set_ready(False)
        for operand in self.operands:
            await operand.restart()
        await self.cluster.clock.sleep(self.cluster.settings.times.reboot)
        self.gpus.reboot()
        await self.object.patch(annotations={ANNOTATION_REBOOTING: None})
        self._boots += 1
        await self.object.set_ready(True, boot=f"{self.name}-boot-{self._boots}")
        self.log("has rebooted")
        self._down = False
        self._start_operands()
        self._start_pods()
        self._start_mig_manager()

    def _kill(self, key: str) -> None:
        task = self._tasks.pop(key, None)
        if task is not None:
            task.cancel()
        if key == "mig-manager":
            self._manager = None


_DEPLOY = tuple(f"{LABEL_DEPLOY_PREFIX}{operand}" for operand in ("device-plugin", "gpu-feature-discovery", "client"))


def _differ(before: Labels, after: Labels, *keys: str) -> bool:
    return any(before.get(key) != after.get(key) for key in keys)


def _uid(pod: JSON | None) -> str | None:
    return None if pod is None else str(pod["metadata"]["uid"])
