"""Where it is measured: a real control plane, SIMULATED node software, the operator under its shipped rights."""

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
from hack.cluster.api import Api, Object, in_parallel
from hack.cluster.audit import AuditedRequest, read_requests
from hack.cluster.controlplane import ControlPlane, Options
from hack.cluster.process import free_ports, wait_until

OPERATOR = f"system:serviceaccount:{launch.NAMESPACE}:{launch.SERVICE_ACCOUNT}"
NODE_SOFTWARE = "simulated-node-software"
"""User agent of the simulators (hack/sim/__main__.py)."""
LEASES = "leases"


@dataclass(frozen=True, slots=True)
class Counts:
    """Requests of the operator in some span of time, renewals of the Lease apart."""

    node_writes: int
    writes: int
    """All, with those writes of the Lease that carry claims."""
    reads: int
    """get and list, without drain polls and watches."""
    polls: int
    """Lists of the pods of a node in work, and of PodDisruptionBudgets."""
    by_resource: str
    """Writes by resource, for people."""


def count(requests: Sequence[AuditedRequest], claim_writes: int) -> Counts:
    """Count requests of one user. `claim_writes`: how many writes of the Lease carried claims."""
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
    """Whether a read looks at the pods of one node that is drained, or at the budgets of these pods."""
    if request.verb != "list":
        return False
    of_one_node = "fieldSelector=spec.nodeName%3D" in request.path and "status.phase" not in request.path
    return request.resource == "poddisruptionbudgets" or (request.resource == "pods" and of_one_node)


def claim_writes(metrics_port: int) -> int:
    """How many writes of claims the operator's own metrics count so far."""
    return int(read_metric(metrics_port, 'gpusharing_actions_total{action="SetClaims",result="done"}'))


FACTOR = 20.0
"""The SIMULATED hardware, and the operator's waits for hardware and kubelets, run so much faster than life."""
LOOP_FACTOR = 3.0
"""A kubectl takes half a second of CPU that no factor shortens, and a plain loop runs five of them for each node."""
ROLL_FACTOR = 5.0
"""A roll of 200 nodes keeps 20 in flight: at 20x its 200 requests a second measure the machine, not the operator."""
SHELL_DEFAULTS = {"publish_period": "2.0", "pending_period": "60.0"}
"""What hack/launch.py scales and the bench does not: how often people's view is written is part of the cost."""
LOOK = 1.0
"""Seconds between two looks at all GPUNodes: they are 10 KB each, and looking must not be the load."""
POLICIES = f"/apis/{names.GROUP}/{names.VERSION}/{names.POLICIES}"
GPUNODES = f"/apis/{names.GROUP}/{names.VERSION}/gpunodes"
FULL: Object = {"mode": "Full", "mig": None}
SMALL_SLICES: Object = {"mode": "MIG", "mig": {"strategy": "single", "config": "all-1g.10gb"}}
LARGE_SLICES: Object = {"mode": "MIG", "mig": {"strategy": "single", "config": "all-2g.20gb"}}
"""One resource name in all three, so that pods that ask for nvidia.com/gpu can run before and after."""


@dataclass
class Spent:
    """What happened since a moment."""

    start_bytes: int
    start_claims: int
    begun: float


@dataclass
class Testbed:
    """The running parts, and what the measurements ask of them."""

    plane: ControlPlane
    directory: Path
    operator: launch.LaunchedProcess
    metrics_port: int
    factor: float

    @property
    def api(self) -> Api:
        """As admin."""
        return self.plane.api

    def wait_started(self) -> None:
        """Until the operator answers."""
        wait_until(lambda: _answers(self.metrics_port), 30, "the operator to start")

    def restart_operator(self) -> None:
        """A new process of the operator, which knows nothing yet."""
        self.operator.stop()
        self.operator.start()
        self.wait_started()

    # --- pools ---------------------------------------------------------------------------------------------

    def add_nodes(self, pool: str, count: int, **fields: Any) -> list[str]:
        """Create nodes of a pool and wait until the agent of each has reported."""
        made = [nodes.node_manifest(f"{pool}-{index:04}", pool=pool, **fields) for index in range(count)]
        return self.create_nodes(made)

    def create_nodes(self, manifests: Sequence[Object]) -> list[str]:
        """Create nodes and wait until the agent of each has reported."""
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

    def apply_policy(self, name: str, pool: str, spec: Mapping[str, Any]) -> None:
        """Create a policy for a pool, without waiting."""
        selector = {"matchLabels": {nodes.LABEL_POOL: pool}}
        body = {
            "apiVersion": names.API_VERSION,
            "kind": "GPUSharingPolicy",
            "metadata": {"name": name},
            "spec": {
                "nodeSelector": selector,
                **{key: value for key, value in spec.items() if value is not None},
            },
        }
        self.api.create(POLICIES, body)

    def label_node(self, name: str, pool: str) -> None:
        """Move a node to a pool."""
        self.api.merge_patch(f"/api/v1/nodes/{name}", {"metadata": {"labels": {nodes.LABEL_POOL: pool}}})

    def edit(self, policy: str, spec: Mapping[str, Any]) -> None:
        """Change a policy, without waiting."""
        self.api.merge_patch(f"{POLICIES}/{policy}", {"spec": dict(spec)})

    def wait_ready(self, policies: Sequence[str], seconds: float) -> None:
        """Until the present generation of each is Ready."""
        for policy in policies:
            launch.wait_ready(self.api, policy, seconds)

    def remove(self, policies: Sequence[str], node_names: Sequence[str]) -> None:
        """Delete policies and nodes, and wait until their GPUNodes are collected."""
        in_parallel(lambda name: self.api.delete(f"{POLICIES}/{name}"), policies)
        in_parallel(lambda name: self.api.delete(f"/api/v1/nodes/{name}"), node_names)
        gone = set(node_names)

        def collected() -> bool:
            time.sleep(LOOK)
            return not any(raw["metadata"]["name"] in gone for raw in self.api.list(GPUNODES))

        wait_until(collected, 60, f"the GPUNodes of {len(gone)} deleted nodes to go")

    # --- traffic -------------------------------------------------------------------------------------------

    def span(self) -> Spent:
        """Begin to count."""
        size = self.plane.audit_log.stat().st_size
        return Spent(size, claim_writes(self.metrics_port), time.monotonic())

    def requests(self, span: Spent, user: str | None = OPERATOR) -> list[AuditedRequest]:
        """Return the requests in the audit log since the beginning of the span, of all users if `user` is None."""
        return list(read_requests(self.plane.audit_log, user, start=span.start_bytes))

    def counts(self, span: Spent) -> Counts:
        """The operator's requests since then."""
        claims = claim_writes(self.metrics_port) - span.start_claims
        return count(self.requests(span), claims)

    def wait_silent(self, seconds: float = 3.0, at_most: float = 60.0) -> None:
        """Until the operator has written nothing but its Lease for so long."""
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
    factor: float = FACTOR, *, node_software: bool = True, arguments: tuple[str, ...] = ()
) -> Iterator[Testbed]:
    """Start everything, with time running `factor` times as fast for hardware and waits; stop it at the end.

    Without `node_software` nobody reads GPUs or changes them; it gets the `arguments`.
    """
    with ControlPlane(options=Options(audit=True)) as plane, tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        install.install_gpu_operator(plane.api)
        launch.install_chart(plane.kubeconfig)
        port = free_ports(1)[0]
        settings = {**SHELL_DEFAULTS, "metrics_port": str(port)}
        with (
            launch.node_software(plane.kubeconfig, directory, factor, *arguments)
            if node_software
            else nullcontext(),
            image.operator(plane.api, directory, factor, **settings) as operator,
        ):
            testbed = Testbed(plane, directory, operator, port, factor)
            testbed.wait_started()
            yield testbed


def _answers(port: int) -> bool:
    try:
        claim_writes(port)
    except OSError:
        return False
    return True
