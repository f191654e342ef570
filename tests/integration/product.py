"""The whole product on one real control plane, and the people around it: what the tests of this folder act with."""

import contextlib
import json
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from hack.cluster.api import Api, ApiError, Object
from hack.cluster.audit import AuditedRequest, read_requests, wait_logged
from hack.cluster.controlplane import ControlPlane
from hack.cluster.nodes import create_nodes, node_manifest
from hack.cluster.process import wait_until
from hack.sim.node import ANNOTATION_PRODUCTS
from tests.chart.cluster import find_object, is_there

from gpusharing.api import names
from gpusharing.planning.gpus.cards import bare_product
from hack import launch

GROUP = "/apis/gpusharing.dev/v1alpha1"
POLICIES = f"{GROUP}/gpusharingpolicies"
GPUNODES = f"{GROUP}/gpunodes"
NODES = "/api/v1/nodes"
LEASE = "/apis/coordination.k8s.io/v1/namespaces/gpusharing/leases/gpusharing-operator"
CLUSTER_POLICY = "/apis/nvidia.com/v1/clusterpolicies/cluster-policy"
FENCE = "gpusharing.dev/fence"
INJECT = "sim.gpusharing.dev/inject"
HELD = {"wedge_pending": "3600s"}
"""SETTINGS of a module that does something in the middle of a change (`Pool.hold`)."""
OPERATOR = f"system:serviceaccount:{launch.NAMESPACE}:gpusharing-operator"
AGENT = f"system:serviceaccount:{launch.AGENT_NAMESPACE}:gpusharing-agent"
H100, L40S = "NVIDIA H100 80GB HBM3", "NVIDIA L40S"
RESOURCES = "/apis/resource.k8s.io/v1"
RESOURCE_SLICES, DEVICE_CLASSES = f"{RESOURCES}/resourceslices", f"{RESOURCES}/deviceclasses"
SECONDS = 120.0
"""Patience of every wait here: far above what a step takes, for a machine that does other things too."""
POLL = 0.1
"""Seconds between two looks of a wait: at more looks the API server would spend half of its time answering them."""

FULL: Object = {"mode": "Full"}
SLICED: Object = {"mode": "TimeSlicing", "timeSlicing": {"replicas": 4}}
SINGLE: Object = {"mode": "MIG", "mig": {"strategy": "single", "config": "all-1g.10gb"}}
MIXED: Object = {"mode": "MIG", "mig": {"strategy": "mixed", "layouts": [{"profiles": {"3g.40gb": 2}}]}}
MPS: Object = {"mode": "MPS", "mps": {"replicas": 3}}
MIG_SLICED: Object = {**MIXED, "timeSlicing": {"replicas": 2}}

FACTOR = 120.0
"""Simulated seconds per second."""
AGENT_ACCOUNT = ("--agent-account", f"{launch.AGENT_NAMESPACE}/gpusharing-agent")
"""The simulated agents act under the shipped rights."""
WAITS = {
    "settle": "0.2s",
    "idle": "0.2s",
    "poll": "0.3s",
    "eviction_wait": "1s",
    "config_propagation": "0.9s",
    "wedge_pending": "60s",
    "wedge_paused": "1.5s",
    "restart_grace": "1s",
    "drift_grace": "1.5s",
    "abort_backoff": "2s",
    "publish_period": os.environ.get("PUBLISH_PERIOD", "0.2s"),
    "pending_period": "1s",
    "debounce": "0.05s",
}
"""The operator's waits. Patience shrinks less than the hardware's time: this machine may be slow, life is not.

A mig-manager that takes its time is no wedge, and its restart would be two more writes to the Node than tests count.
PUBLISH_PERIOD=20s finds tests that read a status too early, on a busy machine too.
"""

STEADY = {"lease_duration": "60s", "renew_deadline": "50s"}
"""Nobody loses the Lease because this machine stood still. Who is killed blocks its successor for as long."""


@dataclass
class Product:
    """A control plane with chart and simulated node software."""

    plane: ControlPlane
    directory: Path
    agent_port: int = 0
    """Where the agents' metrics are, as /NODE/metrics."""
    namespace: str = "gpu-operator"
    """Where NVIDIA's components and our ConfigMaps are."""
    labels: Mapping[str, str | None] = field(default_factory=dict)
    """Of a new node, besides those that the GPU Operator gives it; None takes one of these away."""
    plugin: bool = True
    """Whether a device plugin serves the GPUs; otherwise NVIDIA's DRA driver does."""
    outages: list[tuple[datetime, datetime]] = field(default_factory=list)
    """When the API server was away, or so new that it did not know its own roles yet."""

    @property
    def api(self) -> Api:
        return self.plane.api

    def operator(
        self, name: str = "operator", door: launch.Door | None = None, /, **settings: str
    ) -> launch.LaunchedProcess:
        """An operator under the shipped rights, not started yet; its log is named after it. `door`: see stage."""
        folder = self.directory / f"{name}-{uuid.uuid4().hex[:6]}"
        folder.mkdir()
        return launch.operator(self.plane.kubeconfig, folder, FACTOR, door, **(WAITS | STEADY | settings))

    def mark(self) -> int:
        return self.plane.audit_log.stat().st_size

    def requests(self, since: int = 0, user: str = OPERATOR) -> list[AuditedRequest]:
        """What a user asked the API server since then, and had an answer to."""
        self.wait_logged()
        return list(read_requests(self.plane.audit_log, user, start=since))

    def wait_logged(self) -> None:
        """Until the audit log tells of what was answered so far."""
        wait_logged(self.plane.audit_log, self.api)

    def writes(self, resource: str, name: str = "", since: int = 0) -> list[AuditedRequest]:
        """Writes of the operator that changed something."""
        return [
            request
            for request in self.requests(since)
            if request.is_write
            and request.resource == resource
            and (not name or request.name == name)
            and request.status < 400
        ]

    def refused(self) -> list[tuple[str, str, str]]:
        """(verb, resource, name) of what operator and agents asked for and may not, outages apart."""
        return [
            (request.verb, request.resource, request.name)
            for user in (OPERATOR, AGENT)
            for request in self.requests(user=user)
            if request.status == 403 and not any(began <= request.at <= ended for began, ended in self.outages)
        ]

    def scraped(self, nodes: Iterable[str]) -> dict[str, Any]:
        """The scrape of these nodes' agents as the chart's PodMonitor makes it: job, labels and honorLabels."""
        where = {"namespace": launch.AGENT_NAMESPACE}
        agents = [
            {
                "targets": [f"127.0.0.1:{self.agent_port}"],
                "labels": {"__metrics_path__": f"/{node}/metrics", "node": node, "pod": f"agent-on-{node}", **where},
            }
            for node in nodes
        ]
        return {"job_name": "gpusharing-agent", "honor_labels": True, "static_configs": agents}

    def exists(self, path: str) -> bool:
        return is_there(self.api, path)

    def our_classes(self) -> list[Object]:
        ours = f"{names.LABEL_MANAGED_BY}={names.MANAGED_BY}"
        return list(self.api.list(DEVICE_CLASSES, labelSelector=ours))

    def remove(self, *paths: str) -> None:
        for path in paths:
            with contextlib.suppress(ApiError):
                self.api.delete(path)

    @contextlib.contextmanager
    def pool(self, *cards: str, gpus: int = 2, name: str = "", empty: bool = False) -> Iterator["Pool"]:
        """A pool with one node per card, or `empty`; everything of it is removed afterwards."""
        found = Pool(self, name or f"p{uuid.uuid4().hex[:5]}")
        try:
            for number, card in enumerate(() if empty else cards or (H100,)):
                found.add_node(f"{found.name}-{number}", card, gpus=gpus)
            yield found
        finally:
            found.remove()


@dataclass
class Pool:
    """Nodes with one label, and the policy for them, which has the pool's name."""

    product: Product
    name: str
    nodes: list[str] = field(default_factory=list)
    _paths: list[str] = field(default_factory=list)

    @property
    def api(self) -> Api:
        return self.product.api

    @property
    def path(self) -> str:
        return f"{POLICIES}/{self.name}"

    def add_node(
        self,
        name: str,
        card: str = H100,
        *more: str,
        gpus: int = 2,
        annotations: Mapping[str, str] | None = None,
        **labels: str,
    ) -> str:
        """One more simulated node of the pool: `gpus` cards of one model, or with `more` one card of each."""
        cards = (card, *more)
        count = len(cards) if more else gpus
        manifest = node_manifest(
            name, product=card, gpus=count, pool=self.name, labels=labels, plugin=self.product.plugin
        )
        with_ours = {**manifest["metadata"]["labels"], **self.product.labels}
        manifest["metadata"]["labels"] = {key: value for key, value in with_ours.items() if value is not None}
        manifest["metadata"].setdefault("annotations", {}).update(annotations or {})
        if more:
            products = ",".join(bare_product(model) for model in cards)
            manifest["metadata"]["annotations"][ANNOTATION_PRODUCTS] = products
        create_nodes(self.api, [manifest])
        self.nodes.append(name)
        return name

    def create(self, path: str, manifest: Object) -> Object:
        created = self.api.create(path, manifest)
        self._paths.append(f"{path}/{created['metadata']['name']}")
        return created

    # --- the policy --------------------------------------------------------------------------------------

    def manifest(self, spec: Object, name: str = "") -> Object:
        """A policy for this pool. Pods may be stranded: those of the tests are pinned to nodes by their names."""
        selector = {"matchLabels": {"gpusharing.dev/pool": self.name}}
        if isinstance(drain := spec.get("drain", {}), dict):
            spec = {**spec, "drain": {"strandedPods": "Allow", **drain}}
        return {
            "apiVersion": "gpusharing.dev/v1alpha1",
            "kind": "GPUSharingPolicy",
            "metadata": {"name": name or self.name},
            "spec": {"nodeSelector": selector, **spec},
        }

    def apply(self, spec: Object, name: str = "") -> None:
        """Create the policy, or replace its spec, as `kubectl apply` does."""
        self.api.apply(f"{POLICIES}/{name or self.name}", self.manifest(spec, name))
        if (path := f"{POLICIES}/{name}") != self.path and name:
            self._paths.insert(0, path)

    def serve(self, spec: Object) -> None:
        self.apply(spec)
        self.wait_synced()

    def wait_synced(self, seconds: float = SECONDS) -> None:
        """Until Ready says so of the present generation."""
        launch.wait_ready(self.api, self.name, seconds)

    def condition(self, kind: str, name: str = "") -> Object:
        """A condition of the present generation; empty while there is none."""
        raw = self.api.get(f"{POLICIES}/{name or self.name}")
        rows: list[Object] = raw.get("status", {}).get("conditions") or []
        now = [row for row in rows if row["observedGeneration"] == raw["metadata"]["generation"]]
        return next((row for row in now if row["type"] == kind), {})

    def wait_condition(self, kind: str, status: str, reason: str, name: str = "") -> str:
        """Wait for it; returns its message at that moment."""
        found: Object = {}

        def holds() -> bool:
            nonlocal found
            found = self.condition(kind, name)
            return (found.get("status"), found.get("reason")) == (status, reason)

        self.wait(holds, f"{kind}={status} {reason}")
        return str(found["message"])

    def summary(self) -> Object:
        found: Object = self.api.get(self.path).get("status", {}).get("summary") or {}
        return found

    def plan(self) -> Object:
        """`status.plan`; empty while no node is known to need a change."""
        found: Object = self.api.get(self.path).get("status", {}).get("plan") or {}
        return found

    def events(self) -> list[tuple[str, str]]:
        """(reason, note) of every event about the policy, oldest first."""
        found = self.api.list(
            "/apis/events.k8s.io/v1/namespaces/default/events", fieldSelector=f"regarding.name={self.name}"
        )
        found.sort(key=lambda event: str(event["eventTime"]))
        return [(event["reason"], event["note"]) for event in found]

    # --- its nodes -----------------------------------------------------------------------------------------

    def node(self, name: str = "") -> Object:
        """A Node; the first one unless told."""
        found: Object = self.api.get(f"{NODES}/{name or self.nodes[0]}")
        return found

    def labels(self, name: str = "") -> Mapping[str, str]:
        found: Mapping[str, str] = self.node(name)["metadata"]["labels"]
        return found

    def fence(self, name: str = "") -> Object:
        """Our fence on a Node; empty without one."""
        text = (self.node(name)["metadata"].get("annotations") or {}).get(FENCE)
        fence: Object = json.loads(text) if text else {}
        return fence

    def hold(self, name: str = "") -> None:
        """The next change of a Node's MIG layout stops after its point of no return, in NVIDIA's wedge, until `let_go`.

        Only with the settings HELD: other operators cure it after seconds.
        """
        self.inject("wedge-pending", name)

    def wait_held(self, name: str = "") -> None:
        """Until it has stopped there: what is done now is done in the middle of the change."""
        self.wait(
            lambda: names.PAUSED_FOR_MIG in self.labels(name).values(), "mig-manager to pause the operands", self.node
        )
        assert self.fence(name)["stage"] == "actuating"

    def let_go(self, name: str = "") -> None:
        self.inject("unwedge", name)

    def offered(self, name: str = "") -> dict[str, int]:
        """Allocatable GPU resources of a Node, without those at 0."""
        allocatable = self.node(name)["status"]["allocatable"]
        return {key: int(value) for key, value in allocatable.items() if key.startswith("nvidia.com/") and value != "0"}

    def devices(self, name: str = "") -> list[Object]:
        """The devices that NVIDIA's DRA driver publishes for a node, by name."""
        where = {"fieldSelector": f"spec.nodeName={name or self.nodes[0]}"}
        slices = self.api.list(RESOURCE_SLICES, **where)
        devices = (device for one in slices for device in one["spec"]["devices"])
        return sorted(devices, key=lambda device: str(device["name"]))

    def transition(self, name: str = "") -> Object:
        """`status.transition` of a GPUNode; empty while there is none."""
        raw = find_object(self.api, f"{GPUNODES}/{name or self.nodes[0]}") or {}
        found: Object = raw.get("status", {}).get("transition") or {}
        return found

    def annotate(self, name: str, annotations: Mapping[str, str | None]) -> None:
        """Set annotations of a Node; None removes one."""
        self.api.merge_patch(f"{NODES}/{name}", {"metadata": {"annotations": dict(annotations)}})

    def inject(self, fault: str, name: str = "") -> None:
        """Let something go wrong on a simulated node, and wait until it is taken note of."""
        name = name or self.nodes[0]
        self.annotate(name, {INJECT: fault})
        self.wait(lambda: INJECT not in self.node(name)["metadata"].get("annotations", {}), f"{fault} to be played")

    def cordon(self, name: str, *, lifted: bool = False) -> None:
        """As `kubectl cordon` and `kubectl uncordon` do."""
        self.api.merge_patch(f"{NODES}/{name}", {"spec": {"unschedulable": None if lifted else True}})

    def wait_phase(self, phase: str, reason: str = "", name: str = "") -> str:
        """Wait until `kubectl get gpun` would show it; returns the message at that moment."""
        now: Object = {}

        def shown() -> bool:
            nonlocal now
            now = self.transition(name)
            return now.get("phase") == phase and (not reason or now.get("reason") == reason)

        self.wait(shown, f"{name or self.nodes[0]} to be {phase} {reason}", lambda: self.transition(name))
        return str(now.get("message", ""))

    def wait(self, condition: Any, what: str, show: Any = None) -> None:
        """Wait until it holds; what is there instead is told."""
        try:
            wait_until(condition, SECONDS, what, poll=POLL)
        except TimeoutError as error:
            shown = show() if show else self.api.get(self.path).get("status")
            raise TimeoutError(f"{error}; there is {json.dumps(shown, default=sorted)[:3000]}") from None

    def remove(self) -> None:
        """Delete policies, workloads and nodes, in the order in which nothing holds anything up."""
        paths = (*self._paths, self.path)
        for path in paths:
            with contextlib.suppress(ApiError):
                if path.startswith(POLICIES):
                    force = {"metadata": {"annotations": {"gpusharing.dev/force-release": "true"}}}
                    self.api.merge_patch(path, force)
                self.api.delete(path)
        for name in self.nodes:
            self.product.remove(f"{GPUNODES}/{name}", f"{NODES}/{name}")
        for path in paths:
            if path.startswith(POLICIES):
                with contextlib.suppress(ApiError):
                    self.api.merge_patch(path, {"metadata": {"finalizers": None}})
