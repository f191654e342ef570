"""What the operator spends in a minute on 20, 200 and 1,000 nodes that a PodDisruptionBudget blocks.

No node software runs: agents' reports are written once. Only the wait for new configuration is shortened.
"""

import time
from collections import Counter

from hack.bench import start
from hack.bench.machine import cpu_ms, pace_ms
from hack.bench.results import REFERENCE_PACE_MS
from hack.bench.testbed import GPUNODES, LEASES, Testbed, open_testbed
from hack.cluster import nodes
from hack.cluster.api import ApiError, Object, in_parallel
from hack.cluster.process import wait_until
from hack.figures.page import Cell, Figures

SIZES = (20, 200, 1000)
GPUS = 8
MINUTES = 1
PATIENCE = 900.0
SETTLED = 180.0
"""Seconds after which no back-off of a look grows any more, if there are looks enough for all nodes."""
LOOKS_A_MINUTE = 60
TIME_SLICED: Object = {
    "mode": "TimeSlicing",
    "timeSlicing": {"replicas": 4},
    "drain": {"unmanagedPods": "Evict", "strandedPods": "Allow"},
}


def measure() -> Figures:
    """Return a row for each of SIZES. Raises TimeoutError if the nodes are not blocked within PATIENCE."""
    rows: list[list[Cell]] = []
    with open_testbed(factor=1.0, node_software=False, config_propagation="1s") as testbed:
        budget = {
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": {"name": "blocked"},
            "spec": {"minAvailable": 1_000_000, "selector": {"matchLabels": {"app": "blocked"}}},
        }
        testbed.api.create("/apis/policy/v1/namespaces/default/poddisruptionbudgets", budget)
        there = 0
        for size in SIZES:
            _add_blocked(testbed, size - there, size)
            there = size
            rows.append([size, *_spend(testbed)])
    return Figures(rows, "polls as shipped")


def _add_blocked(testbed: Testbed, count: int, total: int) -> None:
    """Add a pool of `count` nodes with a guarded pod on each, and wait until all `total` nodes are blocked."""
    pool = f"blocked-{total}"
    names = [f"{pool}-{index:04}" for index in range(count)]
    made = [nodes.node_manifest(name, pool=pool, product=start.PRODUCT, gpus=GPUS) for name in names]
    nodes.create_nodes(testbed.api, made)
    wait_until(lambda: _created(testbed), PATIENCE, "a GPUNode", poll=1.0)
    start.report(testbed, total, PATIENCE)
    in_parallel(lambda name: testbed.run_pod(name, name, {"app": "blocked"}), names)

    def all_run() -> bool:
        pods = testbed.api.list("/api/v1/namespaces/default/pods")
        return len([pod for pod in pods if pod.get("status", {}).get("phase") == "Running"]) == total

    def all_blocked() -> bool:
        transitions = (raw.get("status", {}).get("transition") or {} for raw in testbed.api.list(GPUNODES))
        return len([one for one in transitions if one.get("reason") == "PDBNeverAllows"]) == total

    wait_until(all_run, PATIENCE, f"{total} pods to run", poll=1.0)
    testbed.apply_policy(pool, pool, TIME_SLICED)
    wait_until(all_blocked, PATIENCE, f"{total} nodes to be blocked", poll=5.0)
    time.sleep(SETTLED if total <= LOOKS_A_MINUTE else SETTLED / 6)
    testbed.wait_silent(seconds=10, at_most=PATIENCE)


def _created(testbed: Testbed) -> bool:
    """Whether there is a GPUNode; just after its CRD was installed the API server answers 429."""
    try:
        return bool(testbed.api.list(GPUNODES))
    except ApiError as error:
        if error.status != 429:
            raise
        return False


def _spend(testbed: Testbed) -> list[Cell]:
    """Return a minute's calls of each kind, CPU seconds, and these at the reference pace."""
    before, used, span = pace_ms(), cpu_ms(testbed.operator.pid), testbed.span()
    time.sleep(60 * MINUTES)
    cpu = (cpu_ms(testbed.operator.pid) - used) / 1000
    requests = [one for one in testbed.requests(span) if one.resource != LEASES]
    pace = (before + pace_ms()) / 2
    kinds = Counter(
        "pods"
        if one.verb == "list" and one.resource == "pods" and "spec.nodeName%3Dblocked" in one.path
        else "budgets"
        if one.verb == "list" and one.resource == "poddisruptionbudgets"
        else "writes"
        if one.is_write
        else "reads"
        for one in requests
        if one.is_write or one.verb in ("get", "list")
    )
    counts = [kinds[kind] / MINUTES for kind in ("pods", "budgets", "reads", "writes")]
    return [*counts, cpu / MINUTES, cpu / MINUTES * REFERENCE_PACE_MS / pace]
