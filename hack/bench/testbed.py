"""The testbed of `make bench`: a real control plane, SIMULATED node software, and the operator with its shipped
rights. Terms: docs/design/glossary.md#claim"""

import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpusharing.api import names
from hack import launch
from hack.bench import image
from hack.bench.machine import read_metric
from hack.cluster import install, nodes
from hack.cluster.api import MERGE_PATCH, Api, ApiError, Object, in_parallel
from hack.cluster.audit import AuditedRequest, read_requests
from hack.cluster.controlplane import ControlPlane, Options
from hack.cluster.process import free_ports, responds, wait_until

OPERATOR = f"system:serviceaccount:{launch.NAMESPACE}:{launch.SERVICE_ACCOUNT}"
NODE_SOFTWARE = "simulated-node-software"
"""User agent of the simulators (hack/sim/__main__.py)."""
LEASES = "leases"
CRD = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/gpusharingpolicies.gpusharing.dev"
CRD_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Counts:
    """The operator's requests in a span of time, without those that renew the Lease."""

    node_writes: int
    writes: int
    """All writes, including those to the Lease that carry claims."""
    reads: int
    """The requests get and list, without drain polls."""
    polls: int
    """Drain polls: lists of the pods of a node that is changed, and of PodDisruptionBudgets."""
    by_resource: str
    """The number of writes to each resource, for people, such as `36 nodes, 12 pods`."""


def count(requests: Sequence[AuditedRequest], claim_writes: int) -> Counts:
    """Count the requests of one user. `claim_writes` replaces the writes to the Lease, most of which renew it."""
    writes = Counter(request.resource for request in requests if request.is_write)
    writes[LEASES] = claim_writes
    read = [request for request in requests if request.verb in ("get", "list") and request.resource != LEASES]
    polls = sum(is_poll(request) for request in read)
    shown = sorted(writes.items(), key=lambda row: (-row[1], row[0]))
    return Counts(
        node_writes=writes["nodes"],
        writes=writes.total(),
        reads=len(read) - polls,
        polls=polls,
        by_resource=", ".join(f"{number} {resource}" for resource, number in shown if number),
    )


def is_poll(request: AuditedRequest) -> bool:
    """Whether a request is one of a drain: a list of budgets, or of one node's pods whatever their phase."""
    if request.verb != "list":
        return False
    of_one_node = "fieldSelector=spec.nodeName%3D" in request.path and "status.phase" not in request.path
    return request.resource == "poddisruptionbudgets" or (request.resource == "pods" and of_one_node)


def claim_writes(metrics_port: int) -> int:
    """Return how many writes of claims the operator has made since it started, according to its metrics."""
    return int(read_metric(metrics_port, 'gpusharing_actions_total{action="SetClaims",result="done"}'))


FACTOR = 20.0
"""How many times as fast as in reality the SIMULATED hardware and the operator's waits for it run."""
LOOP_FACTOR = 3.0
"""The factor for the plain loop: each kubectl takes half a second of CPU, which no factor shortens, and the loop runs
five of them for each node."""
ROLL_FACTOR = 5.0
"""The factor for a rollout of 200 nodes, 20 at once. At 20x, with 200 requests a second, the bench would measure the
machine and not the operator."""
SHELL_DEFAULTS = {"publish_period": "2.0s", "pending_period": "60.0s"}
"""Settings that hack/launch.py scales and the bench leaves as they are: the writes of status are part of the cost."""
LOOK = 1.0
"""Seconds between two lists of all GPUNodes. These have 10 KB each, and listing them must not become the load."""
POLICIES = f"/apis/{names.GROUP}/{names.VERSION}/{names.POLICIES}"
GPUNODES = f"/apis/{names.GROUP}/{names.VERSION}/gpunodes"
FULL: Object = {"mode": "Full", "mig": None}
SMALL_SLICES: Object = {"mode": "MIG", "mig": {"strategy": "single", "config": "all-1g.10gb"}}
LARGE_SLICES: Object = {"mode": "MIG", "mig": {"strategy": "single", "config": "all-2g.20gb"}}
"""FULL and both MIG layouts advertise nvidia.com/gpu, so that pods with that request run before and after a change."""


@dataclass
class Spent:
    """The beginning of a span of time, from which requests are counted."""

    start_bytes: int
    start_claims: int
    begun: float


@dataclass
class Testbed:
    """The running programs, and the operations on them that measurements need."""

    plane: ControlPlane
    directory: Path
    operator: launch.LaunchedProcess
    metrics_port: int
    factor: float

    @property
    def api(self) -> Api:
        return self.plane.api

    def wait_started(self) -> None:
        wait_until(lambda: responds(f"http://127.0.0.1:{self.metrics_port}/metrics"), 30, "the operator to start")

    def restart_operator(self) -> None:
        """Replace the operator with a new process, whose caches are empty."""
        self.operator.stop()
        self.operator.start()
        self.wait_started()

    # --- pools ---------------------------------------------------------------------------------------------

    def add_nodes(self, pool: str, count: int, **fields: Any) -> list[str]:
        """Create `count` nodes of a pool, called POOL-0000 and so on, and wait until their agents have reported."""
        made = [nodes.node_manifest(f"{pool}-{index:04}", pool=pool, **fields) for index in range(count)]
        return self.create_nodes(made)

    def create_nodes(self, manifests: Sequence[Object]) -> list[str]:
        """Create nodes, wait until each node's agent has reported, and return their names."""
        added = nodes.create_nodes(self.api, manifests)
        waiting = set(added)

        def all_observed() -> bool:
            time.sleep(LOOK)
            for raw in self.api.list(GPUNODES):
                if raw.get("status", {}).get("observed"):
                    waiting.discard(raw["metadata"]["name"])
            return not waiting

        wait_until(all_observed, 60 + 0.6 * len(added), f"the agents of {len(added)} nodes to report")
        return added

    def run_pod(self, name: str, node: str, labels: Mapping[str, str] | None = None) -> None:
        """Create a pod with one GPU on a node."""
        gpu = {"nvidia.com/gpu": "1"}
        container = {"name": "main", "image": "none", "resources": {"requests": gpu, "limits": gpu}}
        metadata = {"name": name, "labels": dict(labels or {})}
        body = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata}
        spec = {"nodeName": node, "containers": [container]}
        self.api.create("/api/v1/namespaces/default/pods", {**body, "spec": spec})

    def apply_policy(self, name: str, pool: str, spec: Mapping[str, Any]) -> None:
        """Create a policy that selects the nodes with the pool's label; fields of `spec` that are None are left out."""
        selector = {"matchLabels": {nodes.LABEL_POOL: pool}}
        body = {
            "apiVersion": names.API_VERSION,
            "kind": "GPUSharingPolicy",
            "metadata": {"name": name},
            "spec": {"nodeSelector": selector, **{key: value for key, value in spec.items() if value is not None}},
        }
        self.api.create(POLICIES, body)

    def label_node(self, name: str, pool: str) -> None:
        self.api.merge_patch(f"/api/v1/nodes/{name}", {"metadata": {"labels": {nodes.LABEL_POOL: pool}}})

    def edit(self, policy: str, spec: Mapping[str, Any]) -> None:
        """Merge fields into the spec of a policy; None removes a field."""
        self.api.merge_patch(f"{POLICIES}/{policy}", {"spec": dict(spec)})

    def wait_ready(self, policies: Sequence[str], seconds: float) -> None:
        """Wait until the present generation of each policy is Ready, at most `seconds` for each."""
        for policy in policies:
            launch.wait_ready(self.api, policy, seconds)

    def remove(self, policies: Sequence[str], node_names: Sequence[str]) -> None:
        """Delete policies and nodes, and wait until the GPUNodes of these nodes have been garbage-collected."""
        in_parallel(lambda name: self.api.delete(f"{POLICIES}/{name}"), policies)
        in_parallel(lambda name: self.api.delete(f"/api/v1/nodes/{name}"), node_names)
        gone = set(node_names)

        def collected() -> bool:
            time.sleep(LOOK)
            return not any(raw["metadata"]["name"] in gone for raw in self.api.list(GPUNODES))

        wait_until(collected, 60, f"the GPUNodes of {len(gone)} deleted nodes to go")

    # --- traffic -------------------------------------------------------------------------------------------

    def span(self, *, stopped: bool = False) -> Spent:
        """Begin a span of time, for `requests` and `counts`. With `stopped` the operator does not run."""
        size, claims = self.plane.audit_log.stat().st_size, 0 if stopped else claim_writes(self.metrics_port)
        return Spent(size, claims, time.monotonic())

    def requests(self, span: Spent, user: str | None = OPERATOR) -> list[AuditedRequest]:
        """Return the requests since the span began, of all users if `user` is None."""
        return list(read_requests(self.plane.audit_log, user, start=span.start_bytes))

    def counts(self, span: Spent) -> Counts:
        claims = claim_writes(self.metrics_port) - span.start_claims
        return count(self.requests(span), claims)

    def wait_silent(self, seconds: float = 3.0, at_most: float = 60.0) -> None:
        """Wait for `seconds` in which the operator writes nothing but renewals of its Lease."""
        span = self.span()

        def silent() -> bool:
            nonlocal span
            if time.monotonic() - span.begun < seconds:
                return False
            if self.counts(span).writes:
                span = self.span()
                return False
            return True

        wait_until(silent, at_most, "the operator to fall silent")


@contextmanager
def open_testbed(
    factor: float = FACTOR,
    *,
    node_software: bool = True,
    arguments: tuple[str, ...] = (),
    directory: Path | None = None,
    **settings: str,
) -> Iterator[Testbed]:
    """Yield a control plane with our chart, SIMULATED node software and the operator. `directory` may be that of an
    earlier control plane; `settings` become GPUSHARING_<NAME>."""
    with ControlPlane(directory, Options(audit=True)) as plane, tempfile.TemporaryDirectory() as folder:
        files = Path(folder)
        install.install_gpu_operator(plane.api)
        if directory is not None:
            wait_until(lambda: _changes_crd(plane.api), CRD_SECONDS, "the API server to accept changes of the CRD")
        launch.install_chart(plane.kubeconfig)
        port = free_ports(1)[0]
        settings = {**SHELL_DEFAULTS, **settings, "metrics_port": str(port)}
        with (
            launch.node_software(plane.kubeconfig, files, factor, *arguments) if node_software else nullcontext(),
            image.operator(plane.kubeconfig, files, factor, **settings) as operator,
        ):
            testbed = Testbed(plane, files, operator, port, factor)
            testbed.wait_started()
            yield testbed


def _changes_crd(api: Api) -> bool:
    """Whether the API server accepts a change of the policies' CRD, or has no such CRD. Within half a minute after its
    start it refuses each one, as long as it does not know the kind of the parameters of rollback-check.yaml; helm would
    fail."""
    try:
        api.request("PATCH", CRD, {}, MERGE_PATCH, dryRun="All")
    except ApiError as error:
        if "failed to find resource referenced by paramKind" in error.message:
            return False
        if error.status != 404:
            raise
    return True
