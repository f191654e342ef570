"""One pool of twelve nodes: the writes, reads and CPU time of a transition, and the cost of an idle operator."""

import time
from collections.abc import Iterator

from hack.bench.machine import cpu_ms, rss_mib
from hack.bench.results import Measured
from hack.bench.testbed import FACTOR, FULL, LARGE_SLICES, SMALL_SLICES, Counts, Testbed
from hack.cluster.api import Object, in_parallel

POOL = "small"
NODES = 12
PODS = 4
AT_ONCE = "25%"
WAIT = 120.0
CONDITIONS = f"{NODES} H100 nodes, maxUnavailable {AT_ONCE}, hardware and waits {FACTOR:g}x, publish settings default"


def transitions(testbed: Testbed) -> Iterator[Measured]:
    """Change empty nodes from Full to MIG and between MIG layouts, then once more with four GPU pods on each."""
    added = testbed.add_nodes(POOL, NODES)
    rollout: Object = {"rollout": {"maxUnavailable": AT_ONCE}, "drain": {"unmanagedPods": "Evict"}}
    testbed.apply_policy(POOL, POOL, {**FULL, **rollout})
    testbed.wait_ready([POOL], WAIT)
    testbed.wait_silent()

    new, _ = _roll(testbed, SMALL_SLICES)
    yield Measured("node_writes_per_transition", new.node_writes / NODES, f"Full to MIG; {CONDITIONS}")
    how = f"same; the device plugin's configuration is new, and nodes wait for it; {new.by_resource}"
    yield Measured("api_writes_per_transition_new_config", new.writes / NODES, how)

    empty, cpu = _roll(testbed, LARGE_SLICES)
    how = f"MIG to another MIG layout, else the same; {empty.by_resource}"
    yield Measured("api_writes_per_transition_0pods", empty.writes / NODES, how)
    how = "same; get and list, without drain polls"
    yield Measured("api_reads_per_transition", empty.reads / NODES, how)
    how = "same; lists of one node's pods and of PDBs"
    yield Measured("api_drain_polls_per_transition", empty.polls / NODES, how)
    yield Measured("cpu_ms_per_transition_small_pool", cpu / NODES, "same; its CPU clock")

    pods = [(f"{node}-{index}", node) for node in added for index in range(PODS)]
    in_parallel(lambda row: testbed.run_pod(*row), pods)
    testbed.wait_silent()
    busy, _ = _roll(testbed, SMALL_SLICES)
    how = f"MIG to MIG with {PODS} GPU pods on each node; {busy.by_resource}"
    yield Measured("api_writes_per_transition_4pods", busy.writes / NODES, how)


def _roll(testbed: Testbed, spec: Object) -> tuple[Counts, float]:
    span, used = testbed.span(), cpu_ms(testbed.operator.pid)
    testbed.edit(POOL, spec)
    testbed.wait_ready([POOL], WAIT)
    testbed.wait_silent()
    return testbed.counts(span), cpu_ms(testbed.operator.pid) - used


def idle(testbed: Testbed, seconds: float) -> Iterator[Measured]:
    """Measure `seconds` in which nothing changes, once the operator is silent."""
    testbed.wait_silent()
    span = testbed.span()
    used = cpu_ms(testbed.operator.pid)
    time.sleep(seconds)
    how = f"{seconds:g} s with {NODES} synced nodes, renewals of the Lease apart"
    yield Measured("idle_writes_60s", float(testbed.counts(span).writes), how)
    yield Measured("idle_cpu_ms_per_s", (cpu_ms(testbed.operator.pid) - used) / seconds, "same time")
    yield Measured("rss_idle_mib", rss_mib(testbed.operator.pid), "VmRSS at its end, after the transitions above")
