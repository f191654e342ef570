"""SIMULATED workloads for FakeCluster: a ReplicaSet controller, a scheduler and kubelets that know GPU pods only.

On a real control plane the real controllers and kwok do this. FakeCluster itself ends graceful terminations and
maintains the numbers of PodDisruptionBudgets.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

from gpusharing.kube.client import JSON, NODES, PODS, REPLICA_SETS, RESOURCE_CLAIMS, KubeClient
from gpusharing.kube.errors import AlreadyExists, Conflict, NotFound
from gpusharing.kube.pods import pod_view
from gpusharing.kube.raw import count
from gpusharing.planning.snapshot.nvidia import TAINT_TEST
from gpusharing.planning.snapshot.podviews import PodView
from hack.sim.dradevices import WATCHED, DraDevices, claim_for, claim_status
from hack.sim.feed import follow
from hack.sim.nodeobject import NVIDIA
from hack.sim.settings import Clock, SimSettings

LABEL_WORKLOAD = "app"
START_SECONDS = 2.0
"""Simulated seconds from the binding of a pod until it is Running and Ready."""


@dataclass(frozen=True, slots=True)
class SimWorkload:
    """A number of identical pods, as a ReplicaSet maintains them, each of which may request GPUs."""

    name: str
    replicas: int
    resource: str = "nvidia.com/gpu"
    """The resource that each pod requests; empty if it requests none."""
    count: int = 1
    namespace: str = "default"
    node_selector: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    tolerations: tuple[Mapping[str, str], ...] = ()
    annotations: Mapping[str, str] = field(default_factory=dict)
    device_class: str = ""
    """The DeviceClass of which each pod claims one device by a ResourceClaimTemplate; empty if it claims none."""
    scheduler: str = ""
    """The name of the scheduler that binds its pods; empty if Workloads binds them."""

    def body(self, suffix: str) -> JSON:
        owner = {
            "apiVersion": "apps/v1",
            "kind": "ReplicaSet",
            "name": self.name,
            "uid": f"replicaset-{self.namespace}-{self.name}",
            "controller": True,
        }
        resources: JSON = {"limits": {self.resource: str(self.count)}} if self.resource else {}
        claims = [{"name": self.device_class, "resourceClaimTemplateName": self.name}]
        if self.device_class:
            resources["claims"] = [{"name": self.device_class}]
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": f"{self.name}-{suffix}",
                "namespace": self.namespace,
                "labels": {LABEL_WORKLOAD: self.name, **self.labels},
                **({"annotations": dict(self.annotations)} if self.annotations else {}),
                "ownerReferences": [owner],
            },
            "spec": {
                **({"schedulerName": self.scheduler} if self.scheduler else {}),
                "nodeSelector": dict(self.node_selector),
                "tolerations": [dict(row) for row in self.tolerations],
                **({"resourceClaims": claims} if self.device_class else {}),
                "containers": [{"name": "main", "image": "simulated", "resources": resources}],
            },
        }


class Workloads:
    """Maintains the pods of workloads: it replaces missing pods, and binds pods to nodes where they fit."""

    def __init__(
        self,
        client: KubeClient,
        settings: SimSettings,
        *,
        log: Callable[[str], None] = lambda line: None,
        refuse: Callable[[JSON], str] = lambda pod: "",
        waits: Callable[[JSON], bool] = lambda pod: False,
    ) -> None:
        self._client, self._refuse, self._waits = client, refuse, waits
        self._log = log
        self._clock = Clock(settings)
        self._random = random.Random(settings.seed)
        self._wanted: dict[tuple[str, str], SimWorkload] = {}
        self._pods: dict[str, JSON] = {}
        self._views: dict[str, tuple[str, PodView]] = {}
        """The resourceVersion of a pod and its parsed form, by uid."""
        self._nodes: dict[str, JSON] = {}
        self._wake = asyncio.Event()
        self._tests, self._tested, self._test_namespace = 0, 0, ""
        """How many pods the operator's test of the scheduler wants, how many it had, and in which namespace."""
        taints = settings.device_taints
        self._devices = DraDevices(self._wake.set, taints=taints) if settings.dra else None
        """What DRA drivers publish, or None if the device plugin serves the GPUs."""

    def apply(self, workload: SimWorkload) -> None:
        self._wanted[workload.namespace, workload.name] = workload
        self._wake.set()

    async def run(self) -> None:
        """Watch pods and nodes, and replace, bind and start pods, until canceled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(follow(self._client, PODS, self._take_pod, log=self._log))
            tasks.create_task(follow(self._client, NODES, self._take_node, log=self._log))
            if (dra := self._devices) is not None:
                tasks.create_task(follow(self._client, REPLICA_SETS, self._take_test, log=self._log))
                for kind in WATCHED:
                    tasks.create_task(follow(self._client, kind, partial(dra.take, kind), log=self._log))
            while True:
                await self._wake.wait()
                await self._clock.sleep(0.2)
                self._wake.clear()
                await self._play_test()
                await self._replace()
                for pod in await self._schedule():
                    tasks.create_task(start_pod(self._client, self._clock, pod, self._refuse, self._waits))

    # --- inside ------------------------------------------------------------------------------------------

    def _take_pod(self, pod: JSON, gone: bool) -> None:
        uid = pod["metadata"]["uid"]
        if gone:
            self._pods.pop(uid, None)
            self._views.pop(uid, None)
        else:
            self._store(pod)
        self._wake.set()

    def _store(self, pod: JSON) -> None:
        """Store a version of a pod unless a newer one is known: our own writes come back later as events."""
        known = self._pods.setdefault(pod["metadata"]["uid"], pod)
        if int(known["metadata"]["resourceVersion"]) < int(pod["metadata"]["resourceVersion"]):
            self._pods[pod["metadata"]["uid"]] = pod

    def _take_node(self, node: JSON, gone: bool) -> None:
        name = node["metadata"]["name"]
        if gone:
            self._nodes.pop(name, None)
        else:
            self._nodes[name] = node
        if self._pending():
            self._wake.set()

    def _take_test(self, raw: JSON, gone: bool) -> None:
        if raw["metadata"]["name"] != TAINT_TEST:
            return
        self._tests = 0 if gone else raw["spec"].get("replicas", 0)
        self._test_namespace = str(raw["metadata"]["namespace"])
        self._wake.set()

    async def _play_test(self) -> None:
        where = self._test_namespace
        pods = [one for one in self._pods.values() if one["metadata"]["name"].startswith(TAINT_TEST)]
        with suppress(NotFound, AlreadyExists):
            if self._tests and not pods and self._devices is not None:
                self._tested += 1
                name = f"{TAINT_TEST}-{self._tested}"
                body = {"metadata": {"name": name, "labels": {"app": TAINT_TEST}}, "spec": {}}
                self._store(await self._client.create(PODS, body, namespace=where))
                device = {"driver": "test.gpusharing.dev", "pool": TAINT_TEST, "device": "device"}
                results = [{"request": self._devices.grant_test(), **device}]
                status = {"allocation": {"devices": {"results": results}}}
                claim = {"metadata": {"name": name}, "status": status}
                await self._client.create(RESOURCE_CLAIMS, claim, namespace=where)
                told = {"status": {"resourceClaimStatuses": [{"name": "device", "resourceClaimName": name}]}}
                await self._client.patch(PODS, name, told, subresource="status", namespace=where)
            for pod in pods if not self._tests else ():
                name, uid = pod["metadata"]["name"], pod["metadata"]["uid"]
                self._pods.pop(uid, None)
                await self._client.delete(PODS, name, uid=uid, grace=0, namespace=where)
                raw = await self._client.get(RESOURCE_CLAIMS, name, namespace=where)
                await self._client.delete(RESOURCE_CLAIMS, name, uid=raw["metadata"]["uid"], namespace=where)

    async def _replace(self) -> None:
        for (namespace, name), workload in self._wanted.items():
            alive = [pod for pod in self._pods.values() if _belongs(pod, namespace, name) and _alive(pod)]
            for _ in range(workload.replicas - len(alive)):
                suffix = "".join(self._random.choices("bcdfghjklmnpqrstvwxz2456789", k=5))
                try:
                    pod = await self._client.create(PODS, workload.body(suffix), namespace=namespace)
                except AlreadyExists:
                    continue
                self._store(pod)

    async def _schedule(self) -> list[JSON]:
        bound = []
        used = self._device_counts()
        for pod in self._pending():
            request = Counter(dict(self._view(pod).resources))
            name = next((n for n in sorted(self._nodes) if self._fits(pod, request, n, used)), None)
            if name is None:
                continue
            try:
                await self._claim(pod, request, name)
                answer = await self._client.patch(
                    PODS, pod["metadata"]["name"], {"spec": {"nodeName": name}}, namespace=pod["metadata"]["namespace"]
                )
            except (NotFound, Conflict, AlreadyExists):
                continue
            used.setdefault(name, Counter()).update(request)
            self._store(answer)
            bound.append(answer)
        return bound

    def _pending(self) -> list[JSON]:
        known = (pod for pod in self._pods.values() if self._is_ours(pod) and _alive(pod))
        pending = [pod for pod in known if not {"nodeName", "schedulerName"} & pod["spec"].keys()]
        return sorted(pending, key=lambda pod: str(pod["metadata"]["name"]))

    def _is_ours(self, pod: JSON) -> bool:
        return any(_belongs(pod, namespace, name) for namespace, name in self._wanted)

    def _device_counts(self) -> dict[str, Counter[str]]:
        used: dict[str, Counter[str]] = {}
        for pod in self._pods.values():
            node = pod["spec"].get("nodeName")
            if node and (pod.get("status") or {}).get("phase") not in ("Succeeded", "Failed"):
                used.setdefault(node, Counter()).update(self._view(pod).resources)
        return used

    def _view(self, pod: JSON) -> PodView:
        uid, version = pod["metadata"]["uid"], pod["metadata"]["resourceVersion"]
        known = self._views.get(uid)
        if known is None or known[0] != version:
            known = self._views[uid] = version, pod_view(pod, {})
        return known[1]

    def _fits(self, pod: JSON, request: Counter[str], name: str, used: dict[str, Counter[str]]) -> bool:
        node = self._nodes[name]
        labels = node["metadata"].get("labels") or {}
        cordoned = node.get("spec", {}).get("unschedulable") and not self._view(pod).tolerates_cordon
        # Other resources, affinity and the node's readiness are ignored.
        tolerations = pod["spec"].get("tolerations") or ()
        taints = [row for row in node.get("spec", {}).get("taints") or () if row["effect"] != "PreferNoSchedule"]
        repelled = not all(any(_tolerates(one, taint) for one in tolerations) for taint in taints)
        selected = (pod["spec"].get("nodeSelector") or {}).items() <= labels.items()
        if cordoned or repelled or not selected:
            return False
        if self._devices is not None:
            return self._allocate(pod, request, name) is not None
        allocatable = (node.get("status") or {}).get("allocatable") or {}
        in_use = used.get(name, Counter())
        return all(
            (count(allocatable.get(resource, "0")) or 0) - in_use[resource] >= number
            for resource, number in request.items()
            if resource.startswith(NVIDIA)
        )

    def _allocate(self, pod: JSON, request: Counter[str], name: str) -> list[JSON] | None:
        assert self._devices is not None, "on the DRA stack"
        wanted = {row["name"]: 1 for row in pod["spec"].get("resourceClaims") or ()}
        for resource, number in request.items():
            if resource.startswith(NVIDIA):
                wanted[self._devices.class_for(resource)] = number
        return self._devices.allocate(name, wanted)

    async def _claim(self, pod: JSON, request: Counter[str], name: str) -> None:
        if self._devices is None or not (results := self._allocate(pod, request, name)):
            return
        namespace = pod["metadata"]["namespace"]
        claim = await self._client.create(RESOURCE_CLAIMS, claim_for(pod, results), namespace=namespace)
        self._devices.take(RESOURCE_CLAIMS, claim, False)
        status: JSON = {"status": claim_status(pod, claim)}
        await self._client.patch(PODS, pod["metadata"]["name"], status, namespace=namespace, subresource="status")


async def start_pod(
    client: KubeClient,
    clock: Clock,
    pod: JSON,
    refuse: Callable[[JSON], str] = lambda pod: "",
    waits: Callable[[JSON], bool] = lambda pod: False,
) -> None:
    """Make the bound pod Running, or Failed if `refuse` says why, once it no longer `waits`."""
    await clock.sleep(START_SECONDS)
    while waits(pod):
        await clock.sleep(START_SECONDS)
    moment = clock.rfc3339()
    ready = [{"type": kind, "status": "True", "lastTransitionTime": moment} for kind in ("Ready", "PodScheduled")]
    status: JSON = {"phase": "Running", "startTime": moment, "conditions": ready}
    if error := refuse(pod):
        told = f"Allocate failed due to rpc error: code = Unknown desc = {error}, which is unexpected"
        status = {"phase": "Failed", "reason": "UnexpectedAdmissionError", "message": told, "startTime": moment}
    name, namespace = pod["metadata"]["name"], pod["metadata"]["namespace"]
    with suppress(NotFound):
        await client.patch(PODS, name, {"status": status}, namespace=namespace, subresource="status")


def _tolerates(toleration: JSON, taint: JSON) -> bool:
    if toleration.get("effect") not in (None, "", taint["effect"]):
        return False
    exists, key = toleration.get("operator") == "Exists", toleration.get("key")
    if not key:
        return exists
    return bool(key == taint["key"]) and (exists or toleration.get("value", "") == taint.get("value", ""))


def _belongs(pod: JSON, namespace: str, name: str) -> bool:
    metadata = pod["metadata"]
    return metadata["namespace"] == namespace and (metadata.get("labels") or {}).get(LABEL_WORKLOAD) == name


def _alive(pod: JSON) -> bool:
    phase = (pod.get("status") or {}).get("phase")
    return "deletionTimestamp" not in pod["metadata"] and phase not in ("Succeeded", "Failed")
