"""One SIMULATED node: its GPUs and NVIDIA's programs on it, started and killed as pods and reboots do it."""

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
from gpusharing.planning.gpus.cards import bare_product, find_card
from hack.sim.gpu import SimulatedGPUs
from hack.sim.gpuoperator import operator_labels
from hack.sim.migmanager import MigManager, MigManagerFaults
from hack.sim.migparted import generated
from hack.sim.mps import MpsDaemon
from hack.sim.nodeobject import ANNOTATION_REBOOTING, Labels, NodeObject, SimCluster
from hack.sim.operands import DevicePlugin, FeatureDiscovery, PlayedOperand
from hack.sim.readings import ChangedReading, Readings

ANNOTATION_GPUS = "sim.gpusharing.dev/gpus"
"""How many GPUs the node has, kept because GFD's count label counts MIG devices with strategy single."""

ANNOTATION_PRODUCTS = "sim.gpusharing.dev/products"
"""The product of each GPU where there are several card models, in GFD's form with commas between."""

Spawn: TypeAlias = Callable[[Coroutine[Any, Any, None]], "asyncio.Task[None]"]


def simulated_gpus(raw: JSON) -> SimulatedGPUs | None:
    """The GPUs of a Node by its annotation or its product label; None when it has no card that we know."""
    metadata = raw["metadata"]
    labels, annotations = metadata.get("labels") or {}, metadata.get("annotations") or {}
    if several := annotations.get(ANNOTATION_PRODUCTS):
        found = [_product(label) for label in several.split(",")]
    else:
        count = annotations.get(ANNOTATION_GPUS) or labels.get(LABEL_GPU_COUNT) or "1"
        found = [_product(labels.get(LABEL_GPU_PRODUCT, ""))] * int(count)
    products = [product for product in found if product]
    return SimulatedGPUs(metadata["name"], products) if len(products) == len(found) else None


def _product(label: str) -> str:
    """NVML's name of a card, by GFD's; empty for one that we do not know."""
    card = find_card(label)
    bare = bare_product(label)
    return next((name for name in card.products if bare_product(name) == bare), "") if card else ""


CALLS = 60.0
"""Real seconds, far more than the calls to the API server take by which a pod ends: no time factor makes these faster.
A time-out that comes before them would be one that NVIDIA's software does not have."""


class _MigPort:
    """mig-manager's view of its node."""

    def __init__(self, node: "SimNode") -> None:
        self._node = node
        self._started = node.cluster.clock.now()

    @property
    def labels(self) -> Labels:
        return self._node.object.labels

    @property
    def with_reboot(self) -> bool:
        return self._node.cluster.policy.with_reboot

    async def patch_labels(self, changes: Mapping[str, str | None]) -> None:
        await self._node.object.patch(changes)

    async def operands_gone(self, seconds: float) -> bool:
        """For CALLS real seconds at least."""
        cluster = self._node.cluster
        patience = max(seconds, CALLS * cluster.settings.time_factor)
        gone = [operand.is_gone for operand in self._node.operands]
        for event in gone:
            if not await cluster.clock.wait_for(event, patience):
                return False
        return True

    def mig_file(self) -> str:
        """A ConfigMap that is not there yet counts as none: the generated file (really, the pod would not start)."""
        cluster = self._node.cluster
        seen = cluster.config_maps.content(
            cluster.policy.mig_config,
            node=self._node.name,
            pod_started=self._started,
            now=cluster.clock.now(),
        )
        return seen.get("config.yaml") or self._node.generated_file

    async def reboot(self) -> None:
        self._node.reboot()
        await asyncio.get_running_loop().create_future()  # until the reboot kills this process

    def log(self, line: str) -> None:
        self._node.log(line)


class SimNode:
    """The programs of one node. `take`, `set_mig_manager_pod` and `policy_changed` tell it what happened."""

    def __init__(self, cluster: SimCluster, raw: JSON, gpus: SimulatedGPUs, spawn: Spawn) -> None:
        self.cluster = cluster
        self.object = NodeObject(cluster, raw, self._labels_changed)
        self.name = self.object.name
        self.gpus = gpus
        self.told = ChangedReading(gpus)
        """What NVML reports to the agent."""
        self.faults = MigManagerFaults()
        self.generated_file = ""
        self._spawn = spawn
        self.mps = MpsDaemon(cluster, self.object, gpus, self._wake_operands)
        self._gfd = FeatureDiscovery(cluster, self.object, gpus)
        self.operands = tuple(
            PlayedOperand(port.operand, port, cluster.clock, cluster.settings.times, self.log)
            for port in (
                DevicePlugin(cluster, self.object, gpus, lambda: self.mps.clients is not None),
                self._gfd,
            )
        )
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._pod: JSON | None = None
        self._manager: MigManager | None = None
        self._down = False

    # --- what happens to it ----------------------------------------------------------------------------

    def start(self) -> None:
        """The node is seen for the first time: the GPU Operator labels it, its operands start."""
        self._spawn(self._first_labels())
        self._start_operands()
        self._start_mps()

    def stop(self) -> None:
        """The Node is gone."""
        for key in list(self._tasks):
            self._kill(key)

    def take(self, raw: JSON) -> None:
        """A new version of the Node."""
        self.object.take(raw)

    def set_mig_manager_pod(self, pod: JSON | None) -> None:
        """The mig-manager pod that runs on this node now; another UID is a fresh process, None is none."""
        if _uid(pod) == _uid(self._pod):
            return
        self._pod = pod
        self._kill("mig-manager")
        if not self._down:
            self._start_mig_manager()

    def set_mps_pod(self, pod: JSON | None) -> None:
        """The MPS control daemon pod that runs on this node now."""
        self.mps.set_pod(_uid(pod) or "")

    def policy_changed(self, *, plugin: bool, mig: bool) -> None:
        """ClusterPolicy changed in what reaches these operands: they roll."""
        if self._down:
            return
        if plugin:
            self._spawn(self._operator_labels())
            self._spawn(self._roll_operands())
        if mig:
            self.kill_mig_manager()

    def kill_mig_manager(self) -> None:
        """Its process dies, wherever it is, and its container starts again."""
        self._kill("mig-manager")
        self._start_mig_manager()

    def reboot(self) -> None:
        """The node goes down and comes back: pods' processes are killed, MIG instances are lost."""
        self._tasks["reboot"] = self._spawn(self._reboot())

    def lose_instances(self) -> None:
        """Somebody destroys every MIG instance by hand; GFD notices at its next turn, the plugin never."""
        for index in range(self.gpus.count):
            if self.gpus.card(index).profiles:
                self.gpus.destroy_all(index)
        self._spawn(self._label_later())

    def log(self, line: str) -> None:
        """One line for people."""
        self.cluster.log(f"{self.name}: {line}")

    # --- inside ------------------------------------------------------------------------------------------

    def _labels_changed(self, before: Labels, after: Labels) -> None:
        if _differ(before, after, LABEL_GPU_PRESENT, LABEL_WORKLOAD_CONFIG):
            self._spawn(self._operator_labels())
        if _differ(before, after, LABEL_PLUGIN_CONFIG, *_DEPLOY):
            self._wake_operands()
        self._note_mig_config()

    def _wake_operands(self) -> None:
        for operand in self.operands:
            operand.wake()

    def _note_mig_config(self) -> None:
        """mig-manager's informer."""
        if self._manager is not None:
            self._manager.note(self.object.labels.get(LABEL_MIG_CONFIG, ""))

    def _start_operands(self) -> None:
        for operand in self.operands:
            self._tasks[operand.name] = self._spawn(operand.run())

    def _start_mps(self) -> None:
        self._tasks[self.mps.operand] = self._spawn(self.mps.run())

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
        """Generate the configuration from the hardware and publish it, unless ClusterPolicy names one
        (docs/design/nvidia.md#a10)."""
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
            "labels": {
                "app.kubernetes.io/component": "nvidia-mig-manager",
                "nvidia.com/node-name": self.name,
            },
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
        self.log("reboots")
        for key in ("mig-manager", self.mps.operand, *(operand.name for operand in self.operands)):
            self._kill(key)
        self.mps.reboot()
        await self.object.patch(annotations={ANNOTATION_REBOOTING: "true"})
        await self.object.set_ready(False)
        for operand in self.operands:
            await operand.restart()
        await self.cluster.clock.sleep(self.cluster.settings.times.reboot)
        self.gpus.reboot()
        await self.object.patch(annotations={ANNOTATION_REBOOTING: None})
        await self.object.set_ready(True)
        self.log("is back")
        self._down = False
        self._start_operands()
        self._start_mps()
        self._start_mig_manager()

    def _kill(self, key: str) -> None:
        task = self._tasks.pop(key, None)
        if task is not None:
            task.cancel()
        if key == "mig-manager":
            self._manager = None


_DEPLOY = tuple(f"{LABEL_DEPLOY_PREFIX}{operand}" for operand in ("device-plugin", "gpu-feature-discovery"))


def _differ(before: Labels, after: Labels, *keys: str) -> bool:
    return any(before.get(key) != after.get(key) for key in keys)


def _uid(pod: JSON | None) -> str | None:
    return None if pod is None else str(pod["metadata"]["uid"])
