"""A SIMULATED cluster with the shipped operator and agents, in virtual time and with the default settings but SELDOM.
`open_scene` watches the invariants of `guard.py` from the first write to the last; every test here runs in one."""

from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from hack.cluster.nodes import LABEL_POOL, node_manifest
from hack.embedded import CLUSTER_POLICY, Embedded, embedded
from hack.sim.agentpages import Pages
from hack.sim.fakefaults import Write
from hack.sim.gpu import SimulatedGPUs
from hack.sim.workloads import SimWorkload
from tests.embedded.guard import PromiseGuard
from tests.fakes.virtualtime import virtual_now

from gpusharing.api import names
from gpusharing.controller.settings import Settings
from gpusharing.kube.client import EVENTS, GPUNODES, JSON, LEASES, NODES, PDBS, PODS
from gpusharing.kube.errors import NotFound
from gpusharing.kube.fence import parse_record
from gpusharing.kube.lease import Timing
from gpusharing.planning.snapshot.records import Fence

H100, A100, L40S = "NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-80GB", "NVIDIA L40S"
HOUR = 3600.0
SELDOM = Timing(retry=4.5)
"""A Lease runs out as ever, but is not renewed every two seconds, which is a third of what an hour costs here. What is about leading, or a server that is too slow to renew it so seldom, takes the shipped times."""
RARELY = Timing(duration=900, deadline=600, retry=290)
"""For days on which no operator dies."""
BEFORE_LISTS = 590.0
"""Seconds in which a rollout of a few nodes is done, and before a list of everything would heal a lost event."""

FULL: JSON = {"mode": "Full"}
SLICED: JSON = {"mode": "TimeSlicing", "timeSlicing": {"replicas": 4}}
SINGLE: JSON = {"mode": "MIG", "mig": {"strategy": "single", "config": "all-1g.10gb"}}
MIXED: JSON = {"mode": "MIG", "mig": {"layouts": [{"profiles": {"3g.40gb": 2}}]}}
OTHER_MIXED: JSON = {"mode": "MIG", "mig": {"layouts": [{"profiles": {"1g.10gb": 7}}]}}
MPS: JSON = {"mode": "MPS", "mps": {"replicas": 4}}
MIG_SLICED: JSON = {**MIXED, "timeSlicing": {"replicas": 2}}
MODES = {
    "Full": FULL,
    "TimeSlicing": SLICED,
    "MPS": MPS,
    "MIG single": SINGLE,
    "MIG mixed": MIXED,
    "MIG and time-slicing": MIG_SLICED,
}


DRA_POLICY: JSON = {
    **CLUSTER_POLICY,
    "spec": {
        "devicePlugin": {"enabled": False},
        "migManager": {**CLUSTER_POLICY["spec"]["migManager"], "version": "v0.15.1"},
    },
}
"""The ClusterPolicy of a cluster in which NVIDIA's DRA driver serves the GPUs."""
WITH_REBOOT: JSON = {
    **CLUSTER_POLICY,
    "spec": {
        **CLUSTER_POLICY["spec"],
        "migManager": {**CLUSTER_POLICY["spec"]["migManager"], "env": [{"name": "WITH_REBOOT", "value": "true"}]},
    },
}
"""A ClusterPolicy that lets mig-manager reboot nodes."""


def node(name: str, product: str = H100, pool: str = "b", gpus: int = 2, *, plugin: bool = True) -> JSON:
    """A Ready GPU node as NVIDIA's software leaves a fresh one: whole GPUs. `plugin`: see node_manifest."""
    raw: JSON = node_manifest(name, product=product, gpus=gpus, pool=pool, plugin=plugin)
    raw["status"]["conditions"] = [{"type": "Ready", "status": "True"}]
    return raw


def nodes(count: int, product: str = H100, gpus: int = 2, *, plugin: bool = True) -> list[JSON]:
    return [node(f"gpu-{number + 1}", product, gpus=gpus, plugin=plugin) for number in range(count)]


def policy(spec: JSON, name: str = "pool-b", pool: str = "b", **more: Any) -> JSON:
    """A GPUSharingPolicy on a pool; `more` goes into its spec."""
    selector = {"nodeSelector": {"matchLabels": {LABEL_POOL: pool}}}
    return {
        "apiVersion": names.API_VERSION,
        "kind": "GPUSharingPolicy",
        "metadata": {"name": name},
        "spec": {**selector, **spec, **more},
    }


def at_once(limit: int | str, **more: Any) -> JSON:
    return {"maxUnavailable": limit, **more}


def pdb(name: str, app: str, **spec: Any) -> JSON:
    """A PodDisruptionBudget over the pods of a Workload."""
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"selector": {"matchLabels": {"app": app}}, **spec},
    }


def gpu_pod(name: str, node_name: str, **more: Any) -> JSON:
    """A running pod that holds one GPU of a node; `more` replaces parts of metadata and spec."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", **more.get("metadata", {})},
        "spec": {
            "nodeName": node_name,
            "containers": [{"name": "main", "resources": {"limits": {names.RESOURCE_GPU: "1"}}}],
            **more.get("spec", {}),
        },
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]},
    }


@dataclass
class Scene:
    """An embedded cluster, its guard, and the questions that tests ask."""

    e: Embedded
    guard: PromiseGuard

    def apply(self, spec: JSON, name: str = "pool-b", pool: str = "b", **more: Any) -> None:
        self.e.apply(policy(spec, name, pool, **more))

    async def serve(
        self, spec: JSON, name: str = "pool-b", pool: str = "b", *, seconds: float = BEFORE_LISTS, **more: Any
    ) -> None:
        """Apply a policy and wait until it is Ready."""
        self.apply(spec, name, pool, **more)
        await self.ready(name, seconds=seconds)

    async def begin(
        self, spec: JSON, name: str = "pool-b", pool: str = "b", *, stage: str = "fenced", **more: Any
    ) -> Fence:
        """Apply a policy and wait until gpu-1 is in this stage of its change."""
        self.apply(spec, name, pool, **more)
        return await self.fenced("gpu-1", stage)

    async def begin_any(self, spec: JSON, *, stage: str = "fenced", **more: Any) -> str:
        """Apply a policy and wait until some node is in this stage of its change; returns its name."""
        self.apply(spec, **more)
        return await self.any_fenced(stage)

    async def reject(self, spec: JSON, *, reason: str, **more: Any) -> JSON:
        """Apply a policy and wait until it is not accepted for this reason; returns the condition."""
        self.apply(spec, **more)
        return await self.until_condition("Accepted", "False", reason)

    async def reach(self, spec: JSON, *, phase: str = "", reason: str = "", seconds: float = HOUR, **more: Any) -> JSON:
        """Apply a policy and wait until gpu-1 shows this phase or reason; returns the transition."""
        self.apply(spec, **more)
        if phase:
            return await self.phase("gpu-1", phase, seconds=seconds)
        return await self.reason("gpu-1", reason, seconds)

    async def ready(self, *policies: str, seconds: float = BEFORE_LISTS) -> None:
        """Wait for Ready of the present generation of policies, by default of pool-b."""
        await self.e.ready(*(policies or ("pool-b",)), seconds=seconds)

    async def phase(self, node_name: str, *phases: str, seconds: float = HOUR) -> JSON:
        """Wait until the transition of a node shows one of these phases; returns the transition."""
        await self.e.until(lambda: self.transition(node_name).get("phase") in phases, f"{node_name} {phases}", seconds)
        return self.transition(node_name)

    async def reason(self, node_name: str, reason: str, seconds: float = HOUR) -> JSON:
        """Wait until the transition of a node shows this reason; returns the transition."""
        await self.e.until(lambda: self.transition(node_name).get("reason") == reason, f"{node_name} {reason}", seconds)
        return self.transition(node_name)

    async def fenced(self, node_name: str, stage: str = "fenced", seconds: float = HOUR) -> Fence:
        """Wait until a node carries our fence in this stage."""

        def there() -> bool:
            fence = self.fence(node_name)
            return fence is not None and fence.stage == stage

        await self.e.until(there, f"fence {stage} on {node_name}", seconds)
        fence = self.fence(node_name)
        assert fence is not None
        return fence

    async def any_fenced(self, stage: str = "fenced") -> str:
        """Wait until some node carries our fence in this stage; returns its name."""

        def found() -> list[str]:
            names_ = [raw["metadata"]["name"] for raw in self.e.cluster.objects(NODES)]
            fences = {name: self.fence(name) for name in names_}
            return [name for name, fence in fences.items() if fence is not None and fence.stage == stage]

        await self.e.until(lambda: bool(found()), f"a fence {stage}", HOUR)
        return found()[0]

    async def released(self, node_name: str, seconds: float = HOUR) -> None:
        await self.e.until(lambda: self.fence(node_name) is None, f"{node_name} released", seconds)

    def transition(self, node_name: str) -> JSON:
        """`status.transition` of a GPUNode; empty while there is none."""
        try:
            raw = self.e.cluster.get(GPUNODES, node_name)
        except NotFound:
            return {}
        transition: JSON = (raw.get("status") or {}).get("transition") or {}
        return transition

    def condition(self, kind: str, name: str = "pool-b") -> JSON:
        """A condition of a policy; empty while there is none."""
        rows = (self.e.policy(name).get("status") or {}).get("conditions") or ()
        return next((dict(row) for row in rows if row["type"] == kind), {})

    async def until_condition(self, kind: str, status: str, reason: str, name: str = "pool-b") -> JSON:
        """Wait for a condition of the present generation; returns it."""

        def holds() -> bool:
            row = self.condition(kind, name)
            fresh = row.get("observedGeneration") == self.e.policy(name)["metadata"]["generation"]
            return fresh and (row["status"], row["reason"]) == (status, reason)

        await self.e.until(holds, f"{name} {kind}={status} {reason}", HOUR)
        return self.condition(kind, name)

    def labels(self, node_name: str) -> Mapping[str, str]:
        labels: Mapping[str, str] = self.e.node(node_name)["metadata"]["labels"]
        return labels

    def annotations(self, node_name: str) -> Mapping[str, str]:
        annotations: Mapping[str, str] = self.e.node(node_name)["metadata"].get("annotations") or {}
        return annotations

    def cordoned(self, node_name: str) -> bool:
        spec: JSON = self.e.node(node_name).get("spec", {})
        return spec.get("unschedulable") is True

    def fence(self, node_name: str) -> Fence | None:
        text = self.annotations(node_name).get(names.ANNOTATION_FENCE)
        return parse_record(Fence, text)[0] if text else None

    def writes(self, since: int = 0, plural: str = "") -> list[Write]:
        """What the operator wrote since that position of the log, the Lease apart."""
        return [
            write
            for write in self.e.cluster.writes[since:]
            if write.call.identity == "operator"
            and write.call.resource != LEASES
            and plural in ("", write.call.resource.plural)
        ]

    def node_writes(self, since: int = 0) -> Counter[str]:
        return Counter(write.call.name for write in self.writes(since, "nodes") if write.error is None)

    def fences(self, since: int = 0) -> list[tuple[str, Fence | None]]:
        """Node and fence of each write of the operator that sets a fence, or, with None, takes it away."""
        found = []
        for write in self.writes(since, "nodes"):
            annotations = ((write.call.body or {}).get("metadata") or {}).get("annotations") or {}
            if names.ANNOTATION_FENCE in annotations and write.error is None:
                fence, _ = parse_record(Fence, annotations[names.ANNOTATION_FENCE] or "")
                found.append((write.call.name, fence))
        return found

    def mark(self) -> int:
        return len(self.e.cluster.writes)

    def evicted(self) -> list[str]:
        """Names of the pods whose eviction the server accepted, in order."""
        return [
            write.call.name
            for write in self.writes(plural="pods")
            if write.call.verb == "evict" and write.error is None
        ]

    def deleted(self) -> list[str]:
        """Names of the pods that the operator deleted, in order; the actuators' own among them."""
        return [
            write.call.name
            for write in self.writes(plural="pods")
            if write.call.verb == "delete" and write.error is None
        ]

    def events(self) -> Counter[str]:
        """Events by reason, without the second copies on GPUNodes."""
        told = self.e.cluster.objects(EVENTS)
        return Counter(str(event["reason"]) for event in told if event["regarding"]["kind"] != "GPUNode")

    def pods(self, app: str) -> list[JSON]:
        return self.e.cluster.objects(PODS, label_selector=f"app={app}")

    async def running(self, app: str, count: int) -> None:
        def there() -> bool:
            pods = [pod for pod in self.pods(app) if "deletionTimestamp" not in pod["metadata"]]
            phases = [str((pod.get("status") or {}).get("phase")) for pod in pods]
            return phases.count("Running") == count

        await self.e.until(there, f"{count} pods of {app}", 600)

    def person(self, node_name: str, body: JSON) -> None:
        """A person, or another controller, changes a Node."""
        self.e.cluster.patch(NODES, node_name, body)

    def cordon(self, node_name: str, on: bool = True) -> None:
        self.person(node_name, {"spec": {"unschedulable": True if on else None}})

    def annotate(self, node_name: str, **annotations: str | None) -> None:
        """kubectl annotate node, with our prefix; `_` stands for `-`."""
        body = {names.PREFIX + key.replace("_", "-"): value for key, value in annotations.items()}
        self.person(node_name, {"metadata": {"annotations": body}})

    def request(self, node_name: str, **annotations: str | None) -> None:
        """kubectl annotate gpunode, by somebody who may not change Nodes."""
        body = {names.PREFIX + key: value for key, value in annotations.items()}
        self.e.cluster.patch(GPUNODES, node_name, {"metadata": {"annotations": body}})

    def requests(self, node_name: str) -> JSON:
        """What the annotations of a GPUNode still ask for."""
        metadata: JSON = self.e.cluster.get(GPUNODES, node_name)["metadata"]
        return metadata.get("annotations") or {}


@asynccontextmanager
async def open_scene(
    *manifests: JSON,
    workloads: Iterable[SimWorkload] = (),
    budgets: Iterable[JSON] = (),
    start: bool = True,
    cluster_policy: JSON | None = CLUSTER_POLICY,
    hardware: dict[str, SimulatedGPUs] | None = None,
    sim: Mapping[str, Any] | None = None,
    played: bool = True,
    lease: Timing = SELDOM,
    pages: Pages | None = None,
    maintenance_keys: tuple[str, ...] = (),
    serving: JSON | None = None,
    **settings: Any,
) -> AsyncIterator[Scene]:
    """A cluster with these Nodes, the operator started; `settings` are the planner's. Checks the guard at the end.

    Unless `played`, no software runs on the nodes, our agent neither. `pages`: see NodeSoftware. `serving`: the spec of
    a policy that is Ready when the scene opens.
    """
    async with embedded(
        manifests,
        factor=1.0,
        workloads=workloads,
        sim=sim,
        settings=Settings(**settings, maintenance_keys=maintenance_keys),
        lease_timing=lease,
        now=virtual_now,
        cluster_policy=cluster_policy,
        hardware=hardware,
        played=played,
        pages=pages,
    ) as environment:
        guard = PromiseGuard(
            environment.cluster,
            environment.software,
            configures=settings.get("configure_gpu_operator", False),
            repairs=settings.get("repair_mps", False),
            forces=settings.get("force_delete", False),
        )
        for budget in budgets:
            environment.cluster.add(PDBS, budget)
        if start:
            environment.start_operator()
        scene = Scene(environment, guard)
        if serving is not None:
            await scene.serve(serving)
        yield scene
        await environment.kill_operator()
        guard.check()
