"""A rollout over 200 nodes compared with its physical minimum, the adoption of 1000 nodes compared with a loop of raw
PATCHes, and memory. Terms: docs/design/glossary.md#point-of-no-return"""

import asyncio
import math
import statistics
import time
from collections.abc import Iterator, Sequence
from datetime import datetime

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
    """Change a pool of `count` empty nodes from Full to MIG with maxUnavailable 10 %. Yield the efficiency of the
    rollout, the CPU time per node and the writes per node. Policy and nodes are removed at the end, unless
    something failed. Raises TimeoutError if a step takes too long."""
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
    """Return the shortest time in which `count` nodes could be changed, `at_once` at a time, divided by the time that
    the rollout in `span` took, from its first write to a Node to its last. Each round takes at least the waits to
    settle and to be idle, plus the median of `actuation_seconds`. `name` is the metric's name. Raises ValueError if no
    node was changed, or the node software wrote nothing to one of the changed nodes."""
    writes, drain = (
        node_writes(testbed, span),
        (launch.WAITS["SETTLE"] + launch.WAITS["IDLE"]) / testbed.factor,
    )
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
    """Return the times of the writes to each Node and its subresources since `span` began, by node and in order: those
    by the operator's user, and those by the user agent of the node software. Writes of others are ignored. A node to
    which the operator wrote fewer than three times was not changed and is left out."""
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
    """Return the seconds of a node's actuation: from the point of no return, which is the operator's second write, to
    the node software's last write before the release, which is the operator's last write. Raises ValueError if the
    node software wrote nothing before the release."""
    own, theirs = times
    return (max(moment for moment in theirs if moment < own[-1]) - own[1]).total_seconds()


def fleet(testbed: Testbed, count: int) -> Iterator[Measured]:
    """Let the operator adopt `count` nodes, for which it only writes its own labels. Yield the time of the adoption
    divided by the time of a loop of equal writes, the CPU time of one write of the loop, and the memory of the
    operator before and after a restart. Policy and nodes stay. Raises TimeoutError if a step takes too long."""
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
    """Add the image list of a kubelet to the status of `node`, and return `node`."""
    name = node["metadata"]["name"]
    images = [
        {
            "names": [
                f"registry.example/team/{name}-image-{i:03}@sha256:{i:064x}",
                f"registry.example/team/image:{i}",
            ],
            "sizeBytes": 1_000_000 + i,
        }
        for i in range(IMAGES)
    ]
    node["status"]["images"] = images
    return node


def _on_nodes(requests: Sequence[AuditedRequest]) -> list[AuditedRequest]:
    """Return those of the requests that write a Node itself, not one of its subresources."""
    return [request for request in requests if request.is_write and request.resource == "nodes"]


def _seconds(requests: Sequence[AuditedRequest]) -> float:
    """Return the seconds from the first to the last of these requests. There must be at least one."""
    moments = [request.at for request in requests]
    return (max(moments) - min(moments)).total_seconds()


RAW_PATCH: JSON = {
    "metadata": {
        "annotations": {
            f"{names.PREFIX}bench-label": "raw",
            f"{names.PREFIX}bench": '{"v":1,"policy":"fleet","migConfig":"","pluginConfig":"fleet-0000000",'
            '"correctedRevision":"","retry":""}',
        }
    }
}
"""What the raw loop writes to a node. It is as large as the label and the annotation with which the operator adopts a
node, but two annotations: admission lets the operator's user write only labels that mean something to the operator."""


async def relabel(testbed: Testbed, node_names: Sequence[str]) -> None:
    """Send RAW_PATCH to each node, as the operator's user and to PARALLEL nodes at a time. Writes a kubeconfig of that
    user into the testbed's folder. Raises KubeError if a PATCH fails."""
    path = launch.operator_kubeconfig(testbed.plane.kubeconfig, testbed.directory)
    slots = asyncio.Semaphore(PARALLEL)
    async with HttpClient(OfficialLogin(path)) as client:

        async def patch(name: str) -> None:
            """Send RAW_PATCH to one node."""
            async with slots:
                await client.patch(NODES, name, RAW_PATCH)

        await asyncio.gather(*(patch(name) for name in node_names))
