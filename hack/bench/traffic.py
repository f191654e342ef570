"""What the operator asked of the API server, from the server's own audit log."""

import re
import urllib.request
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from hack import launch
from hack.cluster.audit import AuditedRequest

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
    with urllib.request.urlopen(f"http://127.0.0.1:{metrics_port}/metrics") as answer:
        text = answer.read().decode()
    found = re.search(
        r'^gpusharing_actions_total\{action="SetClaims",result="done"\} (\S+)$', text, re.MULTILINE
    )
    return int(float(found[1])) if found else 0
