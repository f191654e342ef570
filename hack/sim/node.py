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
from gpusharing.kube.raw import entries
from gpusharing.planning.gpus.cards import bare_product, find_card
from hack.sim.dra import KubeletPlugin
from hack.sim.gpu import SimulatedGPUs
from hack.sim.gpuoperator import operator_labels
from hack.sim.migmanager import MigManager, MigManagerFaults
from hack.sim.migparted import generated
from hack.sim.mps import MpsDaemon
from hack.sim.nodeobject import ANNOTATION_REBOOTING, Labels, NodeObject, SimCluster
from hack.sim.operands import DevicePlugin, FeatureDiscovery, PlayedOperand
from hack.sim.readings import ChangedReading, Readings

ANNOTATION_GPUS = "sim.gpusharing.dev/gpus"
"""On a Node: the number of its GPUs. GFD's count label does not give it, because with strategy single that label counts
MIG devices."""

ANNOTATION_PRODUCTS = "sim.gpusharing.dev/products"
"""On a Node with several card models: the product of each GPU, as GFD writes it, separated by commas."""

Spawn: TypeAlias = Callable[[Coroutine[Any, Any, None]], "asyncio.Task[None]"]


def simulated_gpus(raw: JSON) -> SimulatedGPUs | None:
    """Return simulated GPUs for a Node, or None if one of its cards is not in the card table or no label names its
    product. ANNOTATION_PRODUCTS names the card of each GPU. Without it, all GPUs are of the product that the product
    label names, and their number is ANNOTATION_GPUS, else GFD's count label, else 1; a number of 0 gives no GPUs and
    not None. Raises ValueError if the number is not an integer."""
    metadata = raw["metadata"]
    labels, annotations = metadata.get("labels") or {}, metadata.get("annotations") or {}
    if several := annotations.get(ANNOTATION_PRODUCTS):
        names = [_product(label) for label in several.split(",")]
    else:
        count = annotations.get(ANNOTATION_GPUS) or labels.get(LABEL_GPU_COUNT) or "1"
        names = [_product(labels.get(LABEL_GPU_PRODUCT, ""))] * int(count)
    return SimulatedGPUs(metadata["name"], names) if all(names) else None


def _product(label: str) -> str:
    """Return NVML's product name for GFD's product label: of the card that the label names, the first product whose
    short form equals the label's. An empty string if the card table does not know the card or the product."""
    card = find_card(label)
    bare = bare_product(label)
    return next((name for name in card.products if bare_product(name) == bare), "") if card else ""


CALLS = 60.0
"""The shortest patience in real seconds, far more than the API calls that remove a pod take. No time factor accelerates
these calls, and without this limit the simulation would time out where NVIDIA's software would not."""


class _MigPort:
    """The NodePort of one node: it gives the node's mig-manager access to the Node and to the other programs."""

    def __init__(self, node: "SimNode") -> None:
        """Give a mig-manager pod that starts now access to `node`."""
        self._node = node
        self._started = node.cluster.clock.now()

    @property
    def labels(self) -> Labels:
        """The labels of the newest known version of the Node, which may be older than the server's."""
        return self._node.object.labels

    @property
    def with_reboot(self) -> bool:
        """Whether ClusterPolicy sets WITH_REBOOT now."""
        return self._node.cluster.policy.with_reboot

    async def patch_labels(self, changes: Mapping[str, str | None]) -> None:
        """Change labels of the Node; a value of None removes the label. Retries while the server is unavailable or
        throttles, and does nothing if the Node is gone (`NodeObject.patch`)."""
        await self._node.object.patch(changes)

    async def operands_gone(self, seconds: float) -> bool:
        """Wait for the device plugin and then for GFD until neither has a pod on the node, and return True. Returns
        False if one still has a pod after this many simulated seconds, or after CALLS real seconds if that is longer;
        the time counts anew for each."""
        cluster = self._node.cluster
        patience = max(seconds, CALLS * cluster.settings.time_factor)
        gone = [operand.is_gone for operand in self._node.operands]
        for event in gone:
            if not await cluster.clock.wait_for(event, patience):
                return False
        return True

    def mig_file(self) -> str:
        """Return the content of the configuration file that ClusterPolicy names, as this mig-manager's pod sees it now,
        or the generated file if ClusterPolicy names none. A ConfigMap that does not exist or has no config.yaml also
        gives the generated file, although a real pod would not start then."""
        cluster = self._node.cluster
        content = cluster.config_maps.content(
            cluster.policy.mig_config,
            node=self._node.name,
            pod_started=self._started,
            now=cluster.clock.now(),
        )
        return content.get("config.yaml") or self._node.generated_file

    async def reboot(self) -> None:
        """Begin a reboot, and wait until it kills this process by canceling the call. Never returns."""
        self._node.reboot()
        await asyncio.get_running_loop().create_future()  # until the reboot kills this process

    def log(self, line: str) -> None:
        """Log a line that begins with the node's name."""
        self._node.log(line)


class SimNode:
    """The programs of one node. Call `take`, `policy_changed` and the functions that set pods when something around the
    node changes."""

    def __init__(self, cluster: SimCluster, raw: JSON, gpus: SimulatedGPUs, spawn: Spawn) -> None:
        """Prepare the programs of the Node `raw` with the hardware `gpus`; `start` starts them. `spawn` starts a task
        and returns it."""
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
            for port in (
                self._plugin,
                self._gfd,
            )
        )
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._pod: JSON | None = None
        self._manager: MigManager | None = None
        self._down = False

    # --- what happens to it ----------------------------------------------------------------------------

    def start(self) -> None:
        """Begin the simulation of a new Node: the GPU Operator labels it, and the tasks of its operands, of the MPS
        daemon and, if NVIDIA's DRA driver serves the GPUs, of the kubelet plugin start. mig-manager starts later, when
        `set_mig_manager_pod` names its pod."""
        self._spawn(self._first_labels())
        self._start_operands()
        self._start_pods()

    def stop(self) -> None:
        """Cancel all tasks of the node, because the Node was deleted: its programs, a reboot or a restart that is in
        progress, and writes of labels. Does not wait for their end."""
        for key in list(self._tasks):
            self._kill(key)
        for task in list(self._running):
            task.cancel()

    def take(self, raw: JSON) -> None:
        """Store a version of the Node, and wake the programs that a change of its labels affects. Ignored unless its
        resourceVersion is higher than the known one's."""
        self.object.take(raw)

    def set_mig_manager_pod(self, pod: JSON | None) -> None:
        """Set the mig-manager pod that runs on this node now, or None. If its UID differs, the old process is killed,
        and a new one is started if there is a pod and ClusterPolicy does not turn mig-manager off. While the node
        is down, the new one starts once the node is up again."""
        if _uid(pod) == _uid(self._pod):
            return
        self._pod = pod
        self._kill("mig-manager")
        if not self._down:
            self._start_mig_manager()

    def set_mps_pod(self, pod: JSON | None) -> None:
        """Set the pod of the MPS control daemon that runs on this node now, or None. If its UID differs, the daemon
        stops or starts in the background."""
        self.mps.set_pod(_uid(pod) or "")

    def set_kubelet_plugin_pod(self, pod: JSON | None) -> None:
        """Set the pod of the DRA driver's kubelet plugin that runs on this node now, or None. If the settings have
        `dra`, a pod with another UID publishes the devices in the background."""
        self.kubelet_plugin.set_pod(_uid(pod) or "")

    def policy_changed(self, *, plugin: bool, mig: bool) -> None:
        """Restart the programs that a change of ClusterPolicy affects: with `plugin` the device plugin and GFD, in the
        background, with `mig` mig-manager. With `plugin` the GPU Operator's labels are also written again. Ignored
        while the node is down."""
        if self._down:
            return
        if plugin:
            self._spawn(self._operator_labels())
            self._spawn(self._roll_operands())
        if mig:
            self.kill_mig_manager()

    def kill_mig_manager(self) -> None:
        """Kill the process of mig-manager, whatever step it is in, and start a new one as if its container restarted,
        even while the node is down. No process is started without a pod, or if ClusterPolicy turns mig-manager off."""
        self._kill("mig-manager")
        self._start_mig_manager()

    def reboot(self) -> None:
        """Start to reboot the node: all its processes but the agent are killed, MIG instances are destroyed, and the
        Node is NotReady until it is up again. Call it only while no reboot is in progress, which is not checked."""
        self._tasks["reboot"] = self._spawn(self._reboot())

    def lose_instances(self) -> None:
        """Destroy every MIG instance, as a person might; cards without MIG are skipped. GFD notices after one interval
        of its loop; the device plugin never does. Raises InUse at the first GPU with an instance in use, whose other
        instances are gone; later GPUs then keep their instances, and GFD does not notice."""
        for index in range(self.gpus.count):
            if self.gpus.card(index).profiles:
                self.gpus.destroy_all(index)
        self._spawn(self._label_later())

    def refuse(self, pod: JSON) -> str:
        """Return the error with which the device plugin refuses a container of the pod; empty if it refuses none."""
        containers = (*entries(pod, "spec", "initContainers"), *entries(pod, "spec", "containers"))
        return next(filter(None, (self._plugin.refuse(container_requests(one)) for one in containers)), "")

    def log(self, line: str) -> None:
        """Log a line that begins with the node's name."""
        self.cluster.log(f"{self.name}: {line}")

    # --- inside ------------------------------------------------------------------------------------------

    def _spawn(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        """Start a task of this node, which `stop` cancels, and return it."""
        task = self._spawn_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    def _labels_changed(self, before: Labels, after: Labels) -> None:
        """Wake the programs that a label change affects: the GPU Operator if nvidia.com/gpu.present or the workload
        label changed, the device plugin and GFD if the label of their configuration or one of the labels that deploy
        them did, and mig-manager in any case, because it ignores an unchanged label by itself."""
        if _differ(before, after, LABEL_GPU_PRESENT, LABEL_WORKLOAD_CONFIG):
            self._spawn(self._operator_labels())
        if _differ(before, after, LABEL_PLUGIN_CONFIG, *_DEPLOY):
            self._wake_operands()
        self._note_mig_config()

    def _wake_operands(self) -> None:
        """Make the device plugin and GFD check labels, ConfigMaps and ClusterPolicy again in the background."""
        for operand in self.operands:
            operand.wake()

    def _note_mig_config(self) -> None:
        """Pass the mig.config label on to mig-manager, as its informer does. Ignored while it does not run."""
        if self._manager is not None:
            self._manager.note(self.object.labels.get(LABEL_MIG_CONFIG, ""))

    def _start_operands(self) -> None:
        """Start the tasks of the device plugin and GFD in the background. Call it only while neither runs."""
        for operand in self.operands:
            self._tasks[operand.name] = self._spawn(operand.run())

    def _start_pods(self) -> None:
        """Start the tasks of the MPS control daemon and, if the settings have `dra`, of the kubelet plugin."""
        self._tasks[self.mps.operand] = self._spawn(self.mps.run())
        if self.cluster.settings.dra:
            self._tasks[self.kubelet_plugin.operand] = self._spawn(self.kubelet_plugin.run())

    def _start_mig_manager(self) -> None:
        """Start mig-manager in the background if it has a pod and ClusterPolicy does not turn it off; otherwise do
        nothing. Call it only while mig-manager does not run."""
        if self._pod is not None and "mig-manager" not in self.cluster.policy.off:
            self._tasks["mig-manager"] = self._spawn(self._run_mig_manager(self._pod))

    async def _run_mig_manager(self, pod: JSON) -> None:
        """Run the process of this mig-manager pod until it is killed. The process first generates the configuration
        file, and then starts with the present value of the label. KubeErrors of the publication (`_generate`) and what
        `MigManager.run` raises pass through, which ends the simulation."""
        cluster = self.cluster
        port = _MigPort(self)
        self.generated_file = await self._generate(pod)
        self._manager = MigManager(port, self.gpus, self.faults, cluster.clock, cluster.settings)
        self._note_mig_config()
        await self._manager.run()

    async def _generate(self, pod: JSON) -> str:
        """Generate the configuration file from the hardware and return it (docs/design/nvidia.md#a10). Unless
        ClusterPolicy names a ConfigMap, the file is published as one; KubeErrors of the publication are raised.
        Returns an empty string if NVML cannot be read or no card has a MIG profile."""
        try:
            reading = await Readings(self.gpus)(self.gpus.read_as_operand, "mig-manager")
        except LibraryError:
            return ""
        text = generated(reading)
        if text and not self.cluster.policy.mig_config:
            await self._publish(pod, text)
        return text

    async def _publish(self, pod: JSON, text: str) -> None:
        """Create the ConfigMap NODE-mig-config with the generated configuration in the GPU Operator's namespace, or
        update it if it exists. The mig-manager pod becomes its owner. KubeErrors propagate."""
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
        """Write the number of GPUs to the Node's annotation ANNOTATION_GPUS if the Node lacks it, and then the GPU
        Operator's labels."""
        if ANNOTATION_GPUS not in self.object.annotations:
            await self.object.patch(annotations={ANNOTATION_GPUS: str(self.gpus.count)})
        await self._operator_labels()

    async def _operator_labels(self) -> None:
        """Write the label changes that the GPU Operator would make on this Node now (`operator_labels`); none if there
        is no GPU Operator (`plain`) or nothing is missing."""
        capable = any(self.gpus.card(index).profiles for index in range(self.gpus.count))
        await self.object.patch(operator_labels(self.object.labels, self.cluster.policy, mig_capable=capable))

    async def _label_later(self) -> None:
        """Wait for one interval of GFD's loop, and then let GFD label the node, if it runs. Raises PluginError or
        LibraryError if that fails, which ends the simulation."""
        await self.cluster.clock.sleep(self.cluster.settings.times.gfd_loop)
        await self._gfd.label()

    async def _roll_operands(self) -> None:
        """Delete the pods of the device plugin and GFD at once, and start their tasks anew. Until the new pods serve,
        allocatable is 0; GFD's labels stay unless ClusterPolicy turns GFD off."""
        for operand in self.operands:
            self._kill(operand.name)
            await operand.restart()
        self._start_operands()

    async def _reboot(self) -> None:
        """Take the node down: kill its programs, set an annotation, mark the Node NotReady, and reset the GPUs after
        the time of a reboot. Then remove the annotation, mark the Node Ready, and start everything again."""
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
        await self.object.set_ready(True)
        self.log("has rebooted")
        self._down = False
        self._start_operands()
        self._start_pods()
        self._start_mig_manager()

    def _kill(self, key: str) -> None:
        """Cancel the task of the program `key` and forget it, if it has one, without waiting for its end. With
        `mig-manager` its process object is forgotten, too."""
        task = self._tasks.pop(key, None)
        if task is not None:
            task.cancel()
        if key == "mig-manager":
            self._manager = None


_DEPLOY = tuple(f"{LABEL_DEPLOY_PREFIX}{operand}" for operand in ("device-plugin", "gpu-feature-discovery", "client"))


def _differ(before: Labels, after: Labels, *keys: str) -> bool:
    """Whether the value of any of these labels differs between `before` and `after`."""
    return any(before.get(key) != after.get(key) for key in keys)


def _uid(pod: JSON | None) -> str | None:
    """Return the UID of a pod, or None if there is no pod."""
    return None if pod is None else str(pod["metadata"]["uid"])
