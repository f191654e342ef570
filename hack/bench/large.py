"""A rollout over 200 nodes compared with its physical minimum, the adoption of 1000 nodes compared with a loop of raw
PATCHes, and memory. Terms: docs/design/glossary.md#point-of-no-return"""

import asyncio
import math
import statistics
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

from gpusharing.api import names
from gpusharing.kube.client import JSON, NODES
from gpusharing.kube.http import HttpClient
from gpusharing.kube.login import OfficialLogin
from hack import launch
from hack.bench.machine import cpu_ms, rss_mib
from hack.bench.results import Measured
from hack.bench.testbed import FULL, NODE_SOFTWARE, OPERATOR, SMALL_SLICES, Spent, Testbed
from hack.cluster import nodes
from hack.cluster.audit import AuditedRequest

ROLL, FLEET = "roll", "fleet"
PERCENT = 10
PARALLEL = 16
"""How many nodes the operator acts on at once (Settings.parallel)."""
IMAGES = 50
"""The largest number of images that a kubelet reports (nodeStatusMaxImages); they make up most of a Node's 18 KB."""


def roll(testbed: Testbed, count: int) -> Iterator[Measured]:
    """Change a pool of `count` empty nodes from Full to MIG with maxUnavailable 10 %."""
    added = testbed.add_nodes(ROLL, count)
    testbed.apply_policy(ROLL, ROLL, {**FULL, "rollout": {"maxUnavailable": f"{PERCENT}%"}})
    testbed.wait_ready([ROLL], 60)
    testbed.wait_silent()
    span, used = testbed.span(), cpu_ms(testbed.operator.pid)
    testbed.edit(ROLL, SMALL_SLICES)
    testbed.wait_ready([ROLL], 300)
    used = cpu_ms(testbed.operator.pid) - used
    counts = testbed.counts(span)
    yield efficiency("roll_efficiency", testbed, span, count, max(1, count * PERCENT // 100))
    yield Measured("cpu_ms_per_transition", used / count, f"the same roll, {counts.polls / count:.1f} drain polls each")
    how = f"the same roll; {counts.by_resource}"
    yield Measured("api_writes_per_transition_roll", counts.writes / count, how)
    testbed.remove([ROLL], added)


def efficiency(name: str, testbed: Testbed, span: Spent, count: int, at_once: int) -> Measured:
    """Return the shortest time in which `count` nodes could be changed, divided by the time that the rollout took. Each
    round takes at least the waits to settle and to be idle, plus the median of `actuation_seconds`."""
    writes, drain = (node_writes(testbed, span), (launch.WAITS["SETTLE"] + launch.WAITS["IDLE"]) / testbed.factor)
    actuation = statistics.median(actuation_seconds(times) for times in writes.values())
    begin, end = min(own[0] for own, _ in writes.values()), max(own[-1] for own, _ in writes.values())
    rounds = math.ceil(count / at_once)
    ideal, real = rounds * (drain + actuation), (end - begin).total_seconds()
    how = (
        f"{count} nodes, {rounds} rounds x ({drain:.2f} s settle and idle + {actuation:.2f} s median from PNR to the"
        f" node software's last write) = {ideal:.1f} s; first fence to last release {real:.1f} s;"
        f" hardware and waits {testbed.factor:g}x"
    )
    return Measured(name, ideal / real, how)


Times = tuple[list[datetime], list[datetime]]
"""The times of the writes to one Node: those of the operator, and those of the node software."""


def node_writes(testbed: Testbed, span: Spent) -> dict[str, Times]:
    """Return the times of the writes to each Node that the operator has changed (three writes or more)."""
    times: dict[str, Times] = {}
    for request in testbed.requests(span, user=None):
        if not request.is_write or request.resource.partition("/")[0] != "nodes":
            continue
        own, theirs = times.setdefault(request.name, ([], []))
        if request.user == OPERATOR:
            own.append(request.at)
        elif request.user_agent == NODE_SOFTWARE:
            theirs.append(request.at)
    return {name: (sorted(own), sorted(theirs)) for name, (own, theirs) in times.items() if len(own) >= 3}


def actuation_seconds(times: Times) -> float:
    """Return the seconds from the point of no return to the node software's last write before the release."""
    own, theirs = times
    return (max(moment for moment in theirs if moment < own[-1]) - own[1]).total_seconds()


def fleet(testbed: Testbed, count: int) -> Iterator[Measured]:
    """Let the operator adopt `count` nodes, and compare that with a loop of equal writes."""
    manifests = [
        as_kubelets_report(nodes.node_manifest(f"{FLEET}-{i:04}", pool=FLEET, product="NVIDIA L40S"))
        for i in range(count)
    ]
    added = testbed.create_nodes(manifests)
    testbed.wait_silent()
    span = testbed.span()
    testbed.apply_policy(FLEET, FLEET, {**FULL, "rollout": {"maxUnavailable": 1}})
    testbed.wait_ready([FLEET], 120)
    testbed.wait_silent()
    operator = _seconds(_on_nodes(testbed.requests(span)))
    long_lived = rss_mib(testbed.operator.pid)
    span, used = testbed.span(), time.process_time()
    asyncio.run(relabel(testbed, added))
    used = (time.process_time() - used) * 1000 / count
    raw = _seconds(_on_nodes(testbed.requests(span)))
    how = f"{count} Node PATCHes, first to last: adoption {operator:.2f} s; raw loop {raw:.2f} s; {PARALLEL} at once"
    yield Measured("relabel_1000_nodes_vs_raw_patch", operator / raw, how)
    how = "CPU of one PATCH of that raw loop, its answer of 18 KB parsed: a yardstick for cpu_ms_per_transition"
    yield Measured("raw_patch_cpu_ms", used, how)
    how = "VmRSS of the operator that went through all of the above and adopted them"
    yield Measured("rss_1000_nodes_long_lived_mib", long_lived, how)
    testbed.restart_operator()
    testbed.wait_silent(seconds=10)
    how = f"VmRSS of an operator started on {count} adopted nodes of 18 KB, idle"
    yield Measured("rss_1000_nodes_mib", rss_mib(testbed.operator.pid), how)


def as_kubelets_report(node: JSON) -> JSON:
    """Add a kubelet's image list and its Ready condition to the status of `node`, and return `node`.

    kwok needs minutes for 5,000 nodes. The node controller would mark the agents' pods of the late ones, and kwok, unlike
    a kubelet, never makes a pod Ready again.
    """
    name = node["metadata"]["name"]
    images = [
        {
            "names": [f"registry.example/team/{name}-image-{i:03}@sha256:{i:064x}", f"registry.example/team/image:{i}"],
            "sizeBytes": 1_000_000 + i,
        }
        for i in range(IMAGES)
    ]
    node["status"]["images"] = images
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    times = {"lastHeartbeatTime": now, "lastTransitionTime": now}
    ready = {"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "SIMULATED", **times}
    node["status"]["conditions"] = [ready]
    return node


def _on_nodes(requests: Sequence[AuditedRequest]) -> list[AuditedRequest]:
    return [request for request in requests if request.is_write and request.resource == "nodes"]


def _seconds(requests: Sequence[AuditedRequest]) -> float:
    moments = [request.at for request in requests]
    return (max(moments) - min(moments)).total_seconds()


RAW_PATCH: JSON = {
    "metadata": {
        "annotations": {
            names.ANNOTATION_ABORT: "raw",
            names.ANNOTATION_RETRY: '{"v":1,"policy":"fleet","migConfig":"","pluginConfig":"fleet-0000000",'
            '"correctedRevision":"","retry":""}',
        }
    }
}
"""What the raw loop writes to a node. It is as large as the label and the annotation with which the operator adopts a
node, but two annotations that people write: admission lets the operator's user write no key that means nothing to the operator."""


async def relabel(testbed: Testbed, node_names: Sequence[str]) -> None:
    """Send RAW_PATCH to each node, as the operator's user and to PARALLEL nodes at a time."""
    path = launch.operator_kubeconfig(testbed.plane.kubeconfig, testbed.directory)
    slots = asyncio.Semaphore(PARALLEL)
    async with HttpClient(OfficialLogin(path)) as client:

        async def patch(name: str) -> None:
            async with slots:
                await client.patch(NODES, name, RAW_PATCH)

        await asyncio.gather(*(patch(name) for name in node_names))
