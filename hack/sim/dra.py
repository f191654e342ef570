"""The SIMULATED kubelet plugin of NVIDIA's DRA driver on one node, and what the kubelet does with its ResourceSlice.

After dra-driver-nvidia-gpu v0.5.0, which tests/nvidia/test_dra.py plays: it looks for partitions, with NVML, only when
it starts, in one pool named after the node. The slice stays when the pod is gone, with its generation.
"""

import asyncio
import re
from collections.abc import Iterable

from gpusharing.agent.library import GPU, LibraryError
from gpusharing.kube.client import DEVICE_CLASSES, JSON, RESOURCE_SLICES
from gpusharing.kube.errors import AlreadyExists, NotFound, Throttled, Unavailable
from gpusharing.planning.gpus.cards import find_card
from gpusharing.planning.snapshot.nvidia import DRA_DRIVER
from hack.sim.gpu import SimulatedGPUs, mig_devices
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
    """Return the DeviceClasses of the driver's chart (deployments/helm, templates/deviceclass-*.yaml)."""
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
            {"apiVersion": DEVICE_CLASSES.api_version, "kind": "DeviceClass", "metadata": metadata, "spec": spec}
        )
    return classes


def driver_pod_spec(node_selector: dict[str, str], tolerations: Iterable[JSON]) -> JSON:
    """Return the spec of the driver's pods, with the containers and commands by which the driver is recognized."""
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
    devices = []
    for gpu in gpus:
        if gpu.access != "Ok":
            raise LibraryError(f"error visiting devices: GPU {gpu.index}: {gpu.access} {gpu.error}")
        if gpu.mig_mode != "Enabled":
            devices.append(_device(f"gpu-{gpu.index}", gpu, {"type": "gpu", "uuid": gpu.uuid}))
            continue
        card = find_card(gpu.product)
        ids = {profile.name: profile.profile_id for profile in card.profiles} if card else {}
        for one in mig_devices(gpu):
            short = re.sub("[^a-z0-9]", "-", one.profile.replace(".", ""))
            name = f"gpu-{gpu.index}-mig-{short}-{ids.get(one.profile) or 0}-{one.start}"
            own = {"type": "mig", "uuid": one.uuid, "parentUUID": gpu.uuid, "profile": one.profile}
            devices.append(_device(name, gpu, own))
    return devices


def _device(name: str, gpu: GPU, own: dict[str, str]) -> JSON:
    attributes = {**own, "productName": gpu.product}
    return {"name": name, "attributes": {key: {"string": value} for key, value in sorted(attributes.items())}}


class KubeletPlugin:
    """Plays gpu-kubelet-plugin on one node, whose pod may be replaced."""

    operand = "gpu-kubelet-plugin"

    def __init__(self, cluster: SimCluster, node: NodeObject, gpus: SimulatedGPUs) -> None:
        self._cluster, self._node, self._gpus = cluster, node, gpus
        self._wanted = self._started = ""
        self._slice = f"00000-{DRA_DRIVER}-{node.name}-simulated"
        self._wake = asyncio.Event()

    @property
    def serves(self) -> bool:
        """Whether the plugin runs and has published, so that it prepares the claims of pods."""
        return bool(self._wanted) and self._started == self._wanted

    def set_pod(self, uid: str) -> None:
        """Set the UID of the plugin's running pod; empty if there is none or it is terminating."""
        if uid != self._wanted:
            self._wanted = uid
            self._wake.set()

    def reboot(self) -> None:
        self._started = ""

    async def run(self) -> None:
        """Publish once for each new pod and after a reboot. Without a pod the slice goes after WIPED_AFTER."""
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
        while True:
            try:
                await (self._delete() if devices is None else self._publish(devices))
            except (Unavailable, Throttled) as error:
                self._cluster.log(f"{self._node.name}: {self.operand}: {error!r}; trying again")
                await asyncio.sleep(RETRY_SECONDS)
            else:
                return

    async def _publish(self, devices: list[JSON]) -> None:
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
        self._cluster.log(f"{self._node.name}: kubelet: wipes the ResourceSlice of {DRA_DRIVER}")
        try:
            raw = await self._cluster.client.get(RESOURCE_SLICES, self._slice)
            await self._cluster.client.delete(RESOURCE_SLICES, self._slice, uid=raw["metadata"]["uid"])
        except NotFound:
            return
