"""The start of an operator on 5,000 nodes: how long it takes until its first plan, and its memory at that point.

No node software runs, because nothing changes; this module writes the agents' reports once.
"""

import time
from collections.abc import Iterator
from contextlib import suppress

from gpusharing.agent.gpunode import Observation, request_of
from gpusharing.agent.podresources import Holdings
from hack.bench.large import as_kubelets_report
from hack.bench.machine import cpu_ms, read_metric, rss_mib
from hack.bench.results import Measured
from hack.bench.testbed import FULL, GPUNODES, Testbed
from hack.cluster import nodes
from hack.cluster.api import Object, in_parallel
from hack.cluster.process import wait_until
from hack.sim.gpu import SimulatedGPUs

POOL, PRODUCT, GPUS = "start", "NVIDIA L40S", 8
WAIT_PER_NODE = 0.2
"""Seconds that each of these steps may take per node: creating, reporting and adopting."""


def start(testbed: Testbed, count: int) -> Iterator[Measured]:
    """Create and adopt `count` nodes, restart the operator, and measure its start."""
    seconds = 60 + WAIT_PER_NODE * count
    made = [nodes.node_manifest(f"{POOL}-{i:04}", pool=POOL, product=PRODUCT, gpus=GPUS) for i in range(count)]
    nodes.create_nodes(testbed.api, map(as_kubelets_report, made))
    report(testbed, count, seconds)
    testbed.apply_policy(POOL, POOL, FULL)
    testbed.wait_ready([POOL], seconds)
    testbed.wait_silent(at_most=seconds)
    testbed.operator.stop()
    begun = time.monotonic()
    testbed.operator.start()
    wait_planned(testbed, seconds)
    took, used = time.monotonic() - begun, cpu_ms(testbed.operator.pid)
    how = (
        f"process started to first plan carried out, {count} adopted nodes of 18 KB, their GPUNodes and agent pods;"
        f" {used / 1000:.1f} s of CPU"
    )
    yield Measured("start_5000_nodes_s", took, how)
    testbed.wait_silent(seconds=10, at_most=seconds)
    how = "VmRSS of the same operator, idle; ten seconds without a write"
    yield Measured("rss_5000_nodes_mib", rss_mib(testbed.operator.pid), how)


def report(testbed: Testbed, count: int, seconds: float) -> None:
    """Write the report of each node's agent to its GPUNode, until there are `count` GPUNodes."""
    reported: set[str] = set()

    def observe(raw: Object) -> None:
        name = raw["metadata"]["name"]
        gpus = SimulatedGPUs(name, [PRODUCT] * GPUS)
        observation = Observation.after(request_of(raw), gpus.read(), simulated=True).held_by(Holdings({}, 0))
        testbed.api.merge_patch(f"{GPUNODES}/{name}/status", observation.patch(raw) or {})

    def all_reported() -> bool:
        missing = [raw for raw in testbed.api.list(GPUNODES) if raw["metadata"]["name"] not in reported]
        in_parallel(observe, [raw for raw in missing if not raw.get("status", {}).get("observed")])
        reported.update(raw["metadata"]["name"] for raw in missing)
        return len(reported) >= count

    wait_until(all_reported, seconds, f"the GPUNodes of {count} nodes", poll=1.0)


def wait_planned(testbed: Testbed, seconds: float) -> None:
    def planned() -> bool:
        with suppress(OSError):  # not listening yet
            return read_metric(testbed.metrics_port, 'gpusharing_pass_seconds_count{step="plan"}') >= 1
        return False

    wait_until(planned, seconds, "the first plan")
