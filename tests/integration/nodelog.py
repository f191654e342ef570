"""What the API server's audit log says of every write to a Node: the PATCH as it came, and the Node before and after.
The control plane of this folder logs writes to Nodes with their bodies, everything else without (`audit_policy`)."""

import json
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from hack.cluster.audit import lines_since
from tests.integration.product import FENCE, OPERATOR, Pool

from gpusharing.kube.client import JSON

AUDIT_POLICY = """\
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
omitManagedFields: true
rules:
  - {level: RequestResponse, verbs: [create, update, patch], resources: [{group: "", resources: [nodes]}]}
  - {level: Metadata}
"""
NODES = b'"resource":"nodes"'


@dataclass(frozen=True, slots=True)
class NodeWrite:
    """One accepted PATCH of a Node by the operator."""

    body: JSON
    before: JSON
    """The Node that the server applied it to; its status may be older."""
    after: JSON


def audit_policy(directory: Path) -> Path:
    path = directory / "audit-policy.yaml"
    path.write_text(AUDIT_POLICY)
    return path


def read_node_writes(log: Path, start: int = 0, user: str = OPERATOR) -> dict[str, list[NodeWrite]]:
    """By node what `user` wrote since `start` (size of the log), in the order in which the server did it.

    Nodes must have been created since then, or there is nothing to compare the first write with.
    """
    versions: defaultdict[str, dict[int, JSON]] = defaultdict(dict)
    writes: defaultdict[str, dict[int, JSON]] = defaultdict(dict)
    for event in _events(log, start):
        node = event["responseObject"]
        name, version = node["metadata"]["name"], int(node["metadata"]["resourceVersion"])
        known = versions[name].get(version)
        versions[name][version] = node
        # A write that changes nothing is answered with the version that is there.
        if event["user"]["username"] == user and event["verb"] == "patch" and known is None:
            writes[name][version] = event["requestObject"]
    return {name: list(_joined(found, versions[name])) for name, found in writes.items()}


def read_node_states(log: Path, start: int = 0) -> list[JSON]:
    """Every Node as each write since `start` left it, whoever wrote it, in the order in which the server did it.

    Of states that pass: who looks at the server itself now and then may miss them.
    """
    nodes = {int(event["responseObject"]["metadata"]["resourceVersion"]): event for event in _events(log, start)}
    return [nodes[version]["responseObject"] for version in sorted(nodes)]


def states(pool: Pool, since: int) -> list[JSON]:
    """The nodes of a pool as each write since then left them, in order."""
    pool.product.wait_logged()
    written = read_node_states(pool.product.plane.audit_log, since)
    return [node for node in written if node["metadata"]["name"] in pool.nodes]


def fences(pool: Pool, since: int) -> list[dict[str, JSON]]:
    """The fences on the nodes of a pool, by node, as each write since then left them, in order."""
    now: dict[str, JSON] = {}
    found = []
    for node in states(pool, since):
        now.pop(node["metadata"]["name"], None)
        if text := (node["metadata"].get("annotations") or {}).get(FENCE):
            now[node["metadata"]["name"]] = json.loads(text)
        found.append(dict(now))
    return found


def corrected(pool: Pool, since: int) -> bool:
    return any(fence["drift"] for now in fences(pool, since) for fence in now.values())


def _joined(writes: Mapping[int, JSON], versions: Mapping[int, JSON]) -> Iterator[NodeWrite]:
    order = sorted(versions)
    for version in sorted(writes):
        earlier = order[bisect_left(order, version) - 1]
        assert earlier < version, "the creation of the node is not in the log"
        yield NodeWrite(writes[version], versions[earlier], versions[version])


def _events(log: Path, start: int) -> Iterator[JSON]:
    """Accepted writes to Nodes, in the order of the log, which is not that of the versions."""
    for line in lines_since(log, start):
        if NODES not in line:
            continue
        event = json.loads(line)
        reference = event.get("objectRef") or {}
        accepted = event["stage"] == "ResponseComplete" and event["responseStatus"]["code"] < 300
        if accepted and "responseObject" in event and not reference.get("subresource"):
            yield event
