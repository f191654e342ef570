"""The SIMULATED kubelet plugin of NVIDIA's DRA driver on one node, and what the kubelet does with its ResourceSlice.

The facts are those of dra-driver-nvidia-gpu v0.5.0, which tests/nvidia/test_dra.py shows with the real program. It
looks for partitions only when it starts, publishes whole GPUs and MIG devices in one pool named after the node, and
opens NVML only for that, so mig-manager need not pause it. The slice stays when the pod is gone, with its generation.
"""

import asyncio
import re
from collections.abc import Iterable

from gpusharing.agent.library import LibraryError
from gpusharing.api.gpunode import GPU
from gpusharing.kube.client import DEVICE_CLASSES, JSON, RESOURCE_SLICES
from gpusharing.kube.errors import AlreadyExists, NotFound, Throttled, Unavailable
from gpusharing.planning.gpus.cards import find_card
from gpusharing.planning.snapshot.nvidia import DRA_DRIVER
from hack.sim.gpu import SimulatedGPUs
from hack.sim.nodeobject import RETRY_SECONDS, NodeObject, SimCluster
from hack.sim.readings import Readings

DRA_SET = "dra-driver-nvidia-gpu-kubelet-plugin"
LABEL_DRA, KUBELET_PLUGIN = "dra-driver-nvidia-gpu-component", "kubelet-plugin"
WIPED_AFTER = 30.0
"""Simulated seconds without a plugin after which the kubelet deletes the plugin's slices (Kubernetes v1.37.2
pkg/kubelet/cm/dra/manager.go, defaultWipingDelay)."""
DOMAINS = "compute-domain.nvidia.com"
_CLASSES = {
    "gpu.nvidia.com": (DRA_DRIVER, "gpu", "nvidia.com/gpu"),
    "mig.nvidia.com": (DRA_DRIVER, "mig", ""),
    "vfio.gpu.nvidia.com": (DRA_DRIVER, "vfio", ""),
    "compute-domain-daemon.nvidia.com": (DOMAINS, "daemon", ""),
    "compute-domain-default-channel.nvidia.com": (DOMAINS, "channel", ""),
}
"""The DeviceClasses of the driver's chart: driver, type of device and extended resource, which only one has."""


def device_classes() -> list[JSON]:
    """Return the DeviceClasses that the driver's chart installs (deployments/helm, templates/deviceclass-*.yaml). There
    is one for each entry of _CLASSES, in its order: GPUs, MIG devices, GPUs for VMs, and the daemons and default
    channels of compute domains. Each selects its devices by driver and type, and that of channels only the channel with
    id 0. Only that of GPUs has an extended resource."""
    classes = []
    for name, (driver, kind, resource) in _CLASSES.items():
        words = f"device.driver == '{driver}' && device.attributes['{driver}'].type == '{kind}'"
        if kind == "channel":
            words += f" && device.attributes['{driver}'].id == 0"
        spec: JSON = {"selectors": [{"cel": {"expression": words}}]}
        if resource:
            spec["extendedResourceName"] = resource
        metadata = {"name": name, "labels": {"app.kubernetes.io/managed-by": "Helm"}}
        classes.append(
            {
                "apiVersion": DEVICE_CLASSES.api_version,
                "kind": "DeviceClass",
                "metadata": metadata,
                "spec": spec,
            }
        )
    return classes


def driver_pod_spec(node_selector: dict[str, str], tolerations: Iterable[JSON]) -> JSON:
    """Return the spec of the pods of the driver's DaemonSet, with this node selector and these tolerations: two
    containers, `compute-domains` and `gpus`, whose names and commands are those by which the driver is recognized. The
    pods have one second to end."""
    programs = {"compute-domains": "compute-domain-kubelet-plugin", "gpus": "gpu-kubelet-plugin"}
    return {
        "nodeSelector": node_selector,
        "tolerations": list(tolerations),
        "terminationGracePeriodSeconds": 1,
        "containers": [
            {
                "name": name,
                "image": "simulated-dra-driver-nvidia-gpu:v0.5.0",
                "command": ["bash", "-c"],
                "args": [f"{program} -v 1"],
            }
            for name, program in programs.items()
        ],
    }


def published_devices(gpus: Iterable[GPU]) -> list[JSON]:
    """Return the devices of a ResourceSlice for these GPUs, in the given order. They are the MIG instances of each GPU
    whose MIG mode is Enabled, which may be none, and each other GPU itself. Their names hold the GPU's index and, for
    an instance, its profile (without dots, and with `-` for `+`), the profile's id (0 if the card table has none) and
    its start. Raises LibraryError if NVML cannot reach one of the GPUs, because the real program exits then."""
    devices = []
    for gpu in gpus:
        if gpu.access != "Ok":
            raise LibraryError(f"error visiting devices: GPU {gpu.index}: {gpu.access} {gpu.error}")
        if gpu.mig_mode != "Enabled":
            devices.append(_device(f"gpu-{gpu.index}", gpu, {"type": "gpu", "uuid": gpu.uuid}))
            continue
        card = find_card(gpu.product)
        ids = {profile.name: profile.profile_id for profile in card.profiles} if card else {}
        for one in gpu.instances:
            short = re.sub("[^a-z0-9]", "-", one.profile.replace(".", ""))
            name = f"gpu-{gpu.index}-mig-{short}-{ids.get(one.profile) or 0}-{one.start}"
            own = {"type": "mig", "uuid": one.uuid, "parentUUID": gpu.uuid, "profile": one.profile}
            devices.append(_device(name, gpu, own))
    return devices


def _device(name: str, gpu: GPU, own: dict[str, str]) -> JSON:
    """Return the device `name` of `gpu`. Its attributes are `own` and the GPU's product, all of them strings, sorted by
    name."""
    attributes = {**own, "productName": gpu.product}
    return {"name": name, "attributes": {key: {"string": value} for key, value in sorted(attributes.items())}}


class KubeletPlugin:
    """Plays gpu-kubelet-plugin on one node, whose pod may be replaced. `run` acts when `set_pod` names another pod, and
    after a reboot."""

    operand = "gpu-kubelet-plugin"

    def __init__(self, cluster: SimCluster, node: NodeObject, gpus: SimulatedGPUs) -> None:
        """Prepare the plugin of a node, without a pod."""
        self._cluster, self._node, self._gpus = cluster, node, gpus
        self._wanted = self._started = ""
        self._slice = f"00000-{DRA_DRIVER}-{node.name}-simulated"
        self._wake = asyncio.Event()

    def set_pod(self, uid: str) -> None:
        """Set the UID of the plugin's pod that runs on the node now; empty if there is none or it is terminating. Wakes
        `run` if the UID differs from the one set before."""
        if uid != self._wanted:
            self._wanted = uid
            self._wake.set()

    def reboot(self) -> None:
        """End the plugin because the node goes down; the next `run` starts it again in the same pod. Call it only
        while `run` is not running."""
        self._started = ""

    async def run(self) -> None:
        """Publish the GPUs' devices once for each new pod that runs, and once after a reboot, until canceled; later
        changes of the GPUs are not published. If NVML cannot be read, the start is repeated after a CrashLoopBackOff,
        or as soon as the pod changes. It doubles with each failure, from `crash_first` to `crash_last`, and begins anew
        after a success. When a plugin that had started has had no pod for WIPED_AFTER, the slice is deleted. KubeErrors
        other than Unavailable and Throttled are raised."""
        crashes, clock, times = 0, self._cluster.clock, self._cluster.settings.times
        while True:
            self._wake.clear()
            if self._wanted == self._started:
                crashes = 0
                await self._wake.wait()
            elif not self._wanted:
                if not await clock.wait_for(self._wake, WIPED_AFTER):
                    self._started = ""
                    await self._write(None)
            elif await self._start(uid := self._wanted):
                self._started = uid
            else:
                await clock.wait_for(self._wake, min(times.crash_first * 2**crashes, times.crash_last))
                crashes += 1

    async def _start(self, uid: str) -> bool:
        """Wait for the time of a program's start (`parted`), read the GPUs and publish their devices, and return True.
        If the pod is no longer the one of this UID after the reading, nothing is published, but True is returned, too.
        Returns False, which is logged, if NVML cannot be read or cannot reach a GPU. KubeErrors other than Unavailable
        and Throttled are raised."""
        await self._cluster.clock.sleep(self._cluster.settings.times.parted)
        try:
            reading = await Readings(self._gpus)(self._gpus.read_as_operand, self.operand)
            devices = published_devices(reading.gpus)
        except LibraryError as error:
            self._cluster.log(f"{self._node.name}: {self.operand}: crash-loops: {error}")
            return False
        if uid == self._wanted:
            names = ", ".join(one["name"] for one in devices)
            self._cluster.log(f"{self._node.name}: {self.operand}: publishes {names or 'no device'}")
            await self._write(devices)
        return True

    async def _write(self, devices: list[JSON] | None) -> None:
        """Create the slice or replace its devices, or delete it if `devices` is None. Unavailable and Throttled are
        logged and retried every RETRY_SECONDS, real ones, without end; other KubeErrors are raised."""
        while True:
            try:
                await (self._delete() if devices is None else self._publish(devices))
            except (Unavailable, Throttled) as error:
                self._cluster.log(f"{self._node.name}: {self.operand}: {error!r}; trying again")
                await asyncio.sleep(RETRY_SECONDS)
            else:
                return

    async def _publish(self, devices: list[JSON]) -> None:
        """Create the node's slice, which the Node owns, or replace the devices in the one that exists; its generation
        stays 1. KubeErrors other than AlreadyExists are raised."""
        name, client = self._node.name, self._cluster.client
        owner = {"apiVersion": "v1", "kind": "Node", "name": name, "uid": self._node.raw["metadata"]["uid"]}
        body = {
            "apiVersion": RESOURCE_SLICES.api_version,
            "kind": "ResourceSlice",
            "metadata": {"name": self._slice, "ownerReferences": [{**owner, "controller": True}]},
            "spec": {
                "driver": DRA_DRIVER,
                "nodeName": name,
                "pool": {"name": name, "generation": 1, "resourceSliceCount": 1},
                "devices": devices,
            },
        }
        try:
            await client.create(RESOURCE_SLICES, body)
        except AlreadyExists:
            await client.patch(RESOURCE_SLICES, self._slice, {"spec": {"devices": devices}})

    async def _delete(self) -> None:
        """Log that the node's slice is deleted, and delete it if there is one. KubeErrors other than NotFound are
        raised."""
        self._cluster.log(f"{self._node.name}: kubelet: wipes the ResourceSlice of {DRA_DRIVER}")
        try:
            raw = await self._cluster.client.get(RESOURCE_SLICES, self._slice)
            await self._cluster.client.delete(RESOURCE_SLICES, self._slice, uid=raw["metadata"]["uid"])
        except NotFound:
            return
