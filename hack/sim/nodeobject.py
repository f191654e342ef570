"""The API object of one SIMULATED node, as its programs see and change it."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from gpusharing.kube.client import JSON, NODES, KubeClient
from gpusharing.kube.errors import NotFound, Throttled, Unavailable
from hack.sim.configmaps import MountedConfigMaps
from hack.sim.gpuoperator import ClusterPolicy
from hack.sim.settings import Clock, SimSettings

ANNOTATION_REBOOTING = "sim.gpusharing.dev/rebooting"
"""On a Node while it is down: the simulator of the kubelet leaves its conditions alone then."""
RETRY_SECONDS = 1.0
NVIDIA = "nvidia.com/"

Labels: TypeAlias = Mapping[str, str]


@dataclass
class SimCluster:
    """The client, settings, clock and state that the programs of all nodes share."""

    client: KubeClient
    settings: SimSettings
    clock: Clock
    log: Callable[[str], None]
    config_maps: MountedConfigMaps
    policy: ClusterPolicy = field(default_factory=ClusterPolicy)
    mps_pod: JSON = field(default_factory=dict)
    """The spec of new pods of the GPU Operator's MPS DaemonSet."""


class NodeObject:
    def __init__(self, cluster: SimCluster, raw: JSON, on_labels: Callable[[Labels, Labels], None]) -> None:
        self.name: str = raw["metadata"]["name"]
        self.raw = raw
        self._cluster = cluster
        self._on_labels = on_labels

    @property
    def labels(self) -> Labels:
        labels: Labels = self.raw["metadata"].get("labels") or {}
        return labels

    @property
    def annotations(self) -> Mapping[str, str]:
        annotations: Mapping[str, str] = self.raw["metadata"].get("annotations") or {}
        return annotations

    def take(self, raw: JSON) -> None:
        """Store a version of the Node unless a newer one is known, and call `on_labels` if the labels changed."""
        if _version(raw) <= _version(self.raw):
            return
        before, self.raw = self.labels, raw
        if before != self.labels:
            self._on_labels(before, self.labels)

    async def patch(
        self, labels: Mapping[str, str | None] | None = None, annotations: Mapping[str, str | None] | None = None
    ) -> None:
        """Change labels and annotations; a value of None removes one."""
        metadata = {"labels": dict(labels or {}), "annotations": dict(annotations or {})}
        metadata = {key: value for key, value in metadata.items() if value}
        if metadata:
            await self._write({"metadata": metadata}, None)

    async def advertise(self, counts: Mapping[str, int], *, plugin: bool) -> None:
        """Write the number of each GPU resource to the Node's status, as the kubelet does (docs/design/nvidia.md#b7)."""
        status = self.raw.get("status") or {}
        capacity, allocatable = status.get("capacity") or {}, status.get("allocatable") or {}
        names = {name for name in (*capacity, *allocatable) if name.startswith(NVIDIA)} | counts.keys()
        new_allocatable = {name: str(counts.get(name, 0)) for name in sorted(names)}
        new_capacity = new_allocatable if plugin else {n: capacity.get(n, "0") for n in new_allocatable}
        if new_allocatable.items() <= allocatable.items() and new_capacity.items() <= capacity.items():
            return
        shown = ", ".join(f"{name} {count}" for name, count in new_allocatable.items())
        self._cluster.log(f"{self.name}: allocatable: {shown}")
        await self._write({"status": {"capacity": new_capacity, "allocatable": new_allocatable}}, "status")

    async def set_ready(self, ready: bool, *, boot: str = "") -> None:
        """Set Ready as the kubelet does, with the ID of a boot, or to Unknown as the node controller does."""
        conditions = [dict(row) for row in (self.raw.get("status") or {}).get("conditions") or ()]
        conditions = [row for row in conditions if row.get("type") != "Ready"]
        reason, message = ("KubeletReady", "SIMULATED") if ready else ("NodeStatusUnknown", "SIMULATED reboot")
        moment = self._cluster.clock.rfc3339()
        conditions.append(
            {
                "type": "Ready",
                "status": "True" if ready else "Unknown",
                "reason": reason,
                "message": message,
                "lastHeartbeatTime": moment,
                "lastTransitionTime": moment,
            }
        )
        status: dict[str, Any] = {"conditions": conditions}
        if boot:
            status["nodeInfo"] = {"bootID": boot}
        await self._write({"status": status}, "status")

    async def _write(self, body: dict[str, Any], subresource: str | None) -> None:
        while True:
            try:
                answer = await self._cluster.client.patch(NODES, self.name, body, subresource=subresource)
            except NotFound:
                return
            except (Unavailable, Throttled) as error:
                self._cluster.log(f"{self.name}: {error!r}; trying again")
                await asyncio.sleep(RETRY_SECONDS)
            else:
                self.take(answer)
                return


def _version(raw: JSON) -> int:
    return int(raw["metadata"].get("resourceVersion") or 0)
