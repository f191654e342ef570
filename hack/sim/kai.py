"""SIMULATED KAI-Scheduler, for pods that name it and request a fraction of a GPU (annotation `gpu-fraction`).

After kai-scheduler/KAI-Scheduler v0.17.0, pkg/binder/binding/resourcereservation: the first pod of a GPU gets a
reservation pod and a group; the one goes without the other. It runs on FakeCluster alone, because it binds with a PATCH.
"""

import asyncio
from collections.abc import Callable

from gpusharing.kube.client import JSON, NODES, PODS, KubeClient
from gpusharing.kube.errors import Conflict, NotFound
from gpusharing.kube.raw import count
from hack.sim.feed import follow
from hack.sim.settings import Clock, SimSettings
from hack.sim.workloads import start_pod

SCHEDULER, NAMESPACE = "kai-scheduler", "kai-resource-reservation"
GROUP, FRACTION = "runai-gpu-group", "gpu-fraction"
GPU, MIG = "nvidia.com/gpu", "nvidia.com/mig-"


class Kai:
    """A scheduler that binds the pods that name it, and maintains the reservation pods of their GPU groups."""

    def __init__(
        self, client: KubeClient, settings: SimSettings, *, log: Callable[[str], None] = lambda line: None
    ) -> None:
        self._client, self._log = client, log
        self._clock = Clock(settings)
        self._pods: dict[str, JSON] = {}
        self._nodes: dict[str, JSON] = {}
        self._wake = asyncio.Event()
        self._groups = 0

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(follow(self._client, PODS, self._take(self._pods, "uid"), log=self._log))
            tasks.create_task(follow(self._client, NODES, self._take(self._nodes, "name"), log=self._log))
            while True:
                await self._wake.wait()
                await self._clock.sleep(0.2)
                self._wake.clear()
                await self._sync()
                for pod in self._pending():
                    for bound in await self._bind(pod):
                        tasks.create_task(start_pod(self._client, self._clock, bound))

    def _take(self, known: dict[str, JSON], key: str) -> Callable[[JSON, bool], None]:
        def take(raw: JSON, gone: bool) -> None:
            if gone:
                known.pop(raw["metadata"][key], None)
            else:
                known[raw["metadata"][key]] = raw
            self._wake.set()

        return take

    def _members(self, group: str) -> tuple[list[JSON], list[JSON]]:
        pods = [pod for pod in self._pods.values() if group_of(pod) == group]
        reserving = [pod for pod in pods if pod["metadata"]["namespace"] == NAMESPACE]
        sharing = [pod for pod in pods if pod["metadata"]["namespace"] != NAMESPACE]
        return reserving, [pod for pod in sharing if phase_of(pod) in ("Pending", "Running")]

    async def _sync(self) -> None:
        for group in sorted({group_of(pod) for pod in self._pods.values()} - {""}):
            reserving, sharing = self._members(group)
            if reserving and not sharing:
                await self._delete(reserving, grace=0)
            elif sharing and not reserving:
                await self._delete([pod for pod in sharing if phase_of(pod) == "Running"])

    async def _delete(self, pods: list[JSON], grace: int | None = None) -> None:
        for pod in pods:
            metadata = pod["metadata"]
            if "deletionTimestamp" in metadata:
                continue
            self._pods.pop(metadata["uid"], None)
            try:
                await self._client.delete(
                    PODS, metadata["name"], namespace=metadata["namespace"], uid=metadata["uid"], grace=grace
                )
            except (NotFound, Conflict):
                continue

    def _pending(self) -> list[JSON]:
        waiting = [
            pod
            for pod in self._pods.values()
            if pod["spec"].get("schedulerName") == SCHEDULER and not pod["spec"].get("nodeName")
        ]
        return sorted(waiting, key=lambda pod: str(pod["metadata"]["name"]))

    async def _bind(self, pod: JSON) -> list[JSON]:
        first = next((place for name in sorted(self._nodes) if (place := self._place(pod, name))), None)
        if first is None:
            return []
        node, group = first
        begun = []
        if not group:
            self._groups += 1
            group = f"group-{self._groups}"
            container = {"name": "resource-reservation", "image": "simulated", "resources": {"limits": {GPU: "1"}}}
            about = {
                "name": f"gpu-reservation-{node}-{group}",
                "namespace": NAMESPACE,
                "labels": {"app": NAMESPACE, GROUP: group},
                "annotations": {"karpenter.sh/do-not-disrupt": "true"},
            }
            manifest: JSON = {"apiVersion": "v1", "kind": "Pod", "metadata": about}
            manifest["spec"] = {"nodeName": node, "containers": [container]}
            reservation = await self._client.create(PODS, manifest, namespace=NAMESPACE)
            begun.append(reservation)
            self._pods[reservation["metadata"]["uid"]] = reservation
        body: JSON = {"metadata": {"labels": {GROUP: group}}, "spec": {"nodeName": node}}
        metadata = pod["metadata"]
        try:
            bound = await self._client.patch(PODS, metadata["name"], body, namespace=metadata["namespace"])
        except (NotFound, Conflict):
            self._wake.set()
            return begun
        if metadata["uid"] in self._pods:  # otherwise the watch has shown meanwhile that it is gone
            self._pods[metadata["uid"]] = bound
            begun.append(bound)
        return begun

    def _place(self, pod: JSON, name: str) -> tuple[str, str] | None:
        node = self._nodes[name]
        # Taints, node selectors and readiness are ignored.
        if (node.get("spec") or {}).get("unschedulable") or is_mig(node):
            return None
        here = [other for other in self._pods.values() if other["spec"].get("nodeName") == name]
        for group in sorted({group_of(other) for other in here} - {""}):
            reserving, sharing = self._members(group)
            if reserving and sum(map(fraction_of, sharing)) + fraction_of(pod) <= 1:
                return name, group
        allocatable = count(((node.get("status") or {}).get("allocatable") or {}).get(GPU, "0")) or 0
        return (name, "") if allocatable > sum(map(gpus_of, here)) else None


def is_mig(node: JSON) -> bool:
    """Whether KAI takes the node for one with MIG, where it gives no fractions: by its own label or, without that, by
    allocatable MIG resources (v0.17.0, pkg/scheduler/api/node_info/node_info.go)."""
    label = (node["metadata"].get("labels") or {}).get("node-role.kubernetes.io/mig-enabled")
    allocatable = (node.get("status") or {}).get("allocatable") or {}
    return label == "true" if label is not None else any(n.startswith(MIG) and count(q) for n, q in allocatable.items())


def group_of(pod: JSON) -> str:
    """Return the group of the GPU that the pod shares or reserves; empty if it has none."""
    return str((pod["metadata"].get("labels") or {}).get(GROUP, ""))


def gpus_of(pod: JSON) -> int:
    """Return how many whole GPUs the pod's containers request, without its init containers."""
    if phase_of(pod) in ("Succeeded", "Failed"):
        return 0
    resources = (container.get("resources") or {} for container in pod["spec"]["containers"])
    return sum(count((each.get("limits") or {}).get(GPU, "0")) or 0 for each in resources)


def fraction_of(pod: JSON) -> float:
    """Return the fraction of a GPU that the pod requests by its annotation, or 0 if it has none."""
    return float((pod["metadata"].get("annotations") or {}).get(FRACTION, "0"))


def phase_of(pod: JSON) -> str:
    return str((pod.get("status") or {}).get("phase", "Pending"))
