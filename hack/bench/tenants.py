"""The operator's memory while tenants leave many large objects: Pending pods, and PodDisruptionBudgets beside a drain."""

from collections.abc import Iterator

from hack.bench.machine import peak_mib, read_metric, reset_peak
from hack.bench.results import Measured
from hack.bench.testbed import FULL, SMALL_SLICES, Testbed
from hack.cluster.api import Object, in_parallel
from hack.cluster.process import wait_until

PODS, POD_KB = 600, 250
BUDGETS, BUDGET_KB = 2000, 200
SECONDS = 600.0
POOL = "tenants"


def large_objects(testbed: Testbed) -> Iterator[Measured]:
    """Measure a count of the Pending pods, and then the drain of a node beside the budgets."""
    reset_peak(testbed.operator.pid)
    in_parallel(lambda number: testbed.api.create("/api/v1/namespaces/default/pods", pod(number)), range(PODS))
    pending = 'gpusharing_pending_pods{resource="nvidia.com/gpu"}'
    counted = f"the operator to count {PODS} Pending pods"
    wait_until(lambda: read_metric(testbed.metrics_port, pending) >= PODS, SECONDS, counted, poll=1.0)
    how = f"VmHWM of the operator after it counted {PODS} Pending pods of {POD_KB} KB"
    yield Measured("peak_large_pods_mib", peak_mib(testbed.operator.pid), how)

    names = testbed.add_nodes(POOL, 1)
    testbed.apply_policy(POOL, POOL, FULL)
    testbed.wait_ready([POOL], SECONDS)
    testbed.run_pod("holder", names[0])
    budgets = "/apis/policy/v1/namespaces/default/poddisruptionbudgets"
    in_parallel(lambda number: testbed.api.create(budgets, budget(number)), range(BUDGETS))
    reset_peak(testbed.operator.pid)
    testbed.edit(POOL, SMALL_SLICES)
    testbed.wait_ready([POOL], SECONDS)
    how = f"VmHWM of the operator that drained a node beside {BUDGETS} PodDisruptionBudgets of {BUDGET_KB} KB"
    yield Measured("peak_large_budgets_mib", peak_mib(testbed.operator.pid), how)
    testbed.remove([POOL], names)


def pod(number: int) -> Object:
    """Return a pod that no node can take: half of it is an annotation, and half are variables of its container."""
    env = [{"name": f"V{each}", "value": "v" * 80} for each in range(POD_KB * 9 // 2)]
    container = {"name": "c", "image": "i", "env": env, "resources": {"limits": {"nvidia.com/gpu": "1"}}}
    metadata = {"name": f"large-{number:04}", "annotations": {"a": "x" * (POD_KB * 500)}}
    selector = {"no-such-node": "true"}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": {"containers": [container], "nodeSelector": selector},
    }


def budget(number: int) -> Object:
    metadata = {"name": f"large-{number:04}", "annotations": {"a": "x" * (BUDGET_KB * 1000)}}
    spec = {"minAvailable": 0, "selector": {"matchLabels": {"app": f"large-{number:04}"}}}
    return {"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": metadata, "spec": spec}
