"""The golden scenarios of the crash matrix on a real control plane: those of tests/embedded/goldens.py, in short.
An `act` waits only for what stays until the operator goes on or people act: a state that passes within a moment is missed on a slow machine."""

from collections.abc import Callable

from hack.cluster.api import Object
from hack.cluster.nodes import node_manifest
from tests.embedded.goldens import says_success_while_paused
from tests.integration.crash import Scenario
from tests.integration.product import FULL, GPUNODES, H100, MIXED, MPS, NODES, SINGLE, SLICED, Pool
from tests.integration.stages import RIGHT, overwrite, signalled
from tests.integration.workloads import PDBS, Workload, claiming, guard

from gpusharing.api import names

ELSEWHERE = "crash-elsewhere"


def ready(pool: Pool) -> bool:
    return pool.condition("Ready").get("status") == "True"


def in_the_middle(pool: Pool, node: str = "") -> None:
    """Until the change of a node is past its point of no return; where this machine stood still it may be done."""
    pool.wait(lambda: begun(pool, node), "the point of no return")


def begun(pool: Pool, node: str) -> bool:
    """Past its point of no return, or done: before its first change a node has no mode."""
    found = pool.node(node)["metadata"]
    fence = (found.get("annotations") or {}).get(names.ANNOTATION_FENCE, "")
    return '"stage":"actuating"' in fence or names.LABEL_MODE in found["labels"]


def create(pool: Pool) -> None:
    pool.apply(MIXED)


def retarget(pool: Pool) -> None:
    create(pool)
    in_the_middle(pool)
    pool.apply(SINGLE)


def lose_node(pool: Pool, at_once: int = 1) -> None:
    """A failure of the change, where it was on record in time: the policy takes one more than that."""
    pool.apply({**MIXED, "rollout": {"maxUnavailable": at_once, "maxFailures": 2}})
    in_the_middle(pool, pool.nodes[0])
    pool.api.delete(f"{NODES}/{pool.nodes[0]}")


def lose_policy(pool: Pool) -> None:
    create(pool)
    in_the_middle(pool)
    pool.api.delete(pool.path)


def lose_gpunodes(pool: Pool) -> None:
    create(pool)
    in_the_middle(pool)
    pool.api.delete(GPUNODES)


def busy_node(pool: Pool) -> None:
    """Two pods under a budget that lets one go, and one without a budget."""
    guarded = Workload(pool, pool.nodes[0], 2)
    Workload(pool, pool.nodes[0], 1, app=f"{pool.name}-free").wait_running(1)
    guarded.wait_running(2)
    guard(pool, guarded.app, 1, minAvailable=1)


def unblock(pool: Pool, at_once: int = 1) -> None:
    """Wait until the budget blocks the one node, then give it a third pod elsewhere."""
    pool.apply({**SLICED, "rollout": {"maxUnavailable": at_once}})
    budget = f"{PDBS}/{pool.name}-guard"
    pool.wait(lambda: pool.api.get(budget)["status"]["disruptionsAllowed"] == 0, "the budget to be used up")
    Workload(pool, ELSEWHERE, 1, app=pool.name, resource="")


def plain_node(name: str) -> Object:
    manifest: Object = node_manifest(name)
    manifest["metadata"]["labels"] = {"kubernetes.io/hostname": name}
    for resources in (manifest["status"]["capacity"], manifest["status"]["allocatable"]):
        del resources["nvidia.com/gpu"]
    return manifest


def given_back(pool: Pool) -> bool:
    """The policy is gone and the node is free of us."""
    gone = not pool.product.exists(pool.path)
    return gone and not pool.fence() and "gpusharing.dev/policy" not in pool.labels()


def rest_ready(pool: Pool) -> bool:
    """The node that is left is Synced, and nothing is left of the other one."""
    return ready(pool) and not pool.product.exists(f"{GPUNODES}/{pool.nodes[0]}")


# --- acts of the scenarios of other stages, and of those that only `make test-crash FULL=1` plays ------------------


def broken(fault: str) -> Callable[[Pool], None]:
    """Before the operator starts: the next run of mig-manager goes wrong."""
    return lambda pool: pool.inject(fault)


def two_steps(pool: Pool) -> None:
    pool.serve(MPS)
    pool.apply(MIXED)


def retry(pool: Pool) -> None:
    create(pool)
    pool.wait_phase("Failed", "ActuatorFailed")
    pool.annotate(pool.nodes[0], {names.ANNOTATION_RETRY: "again"})


def roll_back(pool: Pool) -> None:
    pool.serve(SINGLE)
    pool.inject("refuse")
    pool.apply({**MIXED, "rollout": {"onFailure": "Rollback"}})


def rolled_back(pool: Pool) -> bool:
    return bool(pool.transition().get("reason") == "RolledBack") and not pool.fence()


def go_back(pool: Pool) -> None:
    """What mig-manager is told after its failure is still applied: it says success and leaves the operands paused."""
    create(pool)
    in_the_middle(pool)
    pool.apply(FULL)
    pool.wait(lambda: says_success_while_paused(pool.labels()), "the wedge")


def guarded_node(pool: Pool) -> None:
    guarded = Workload(pool, pool.nodes[0], 2)
    guarded.wait_running(2)
    guard(pool, guarded.app, 1, minAvailable=1)


def time_out(pool: Pool) -> None:
    """The budget lets one pod go, and nothing replaces it before the drain was given up once."""
    pool.apply({**SLICED, "drain": {"timeout": "6s", "strandedPods": "Allow"}})
    pool.wait(lambda: names.ANNOTATION_DEFERRED in pool.node()["metadata"]["annotations"], "the time-out")
    pool.api.merge_patch(f"{PDBS}/{pool.name}-guard", {"spec": {"minAvailable": 0}})


def uncordon_before(pool: Pool) -> None:
    """While the budget holds the drain up; tightened first, for a pod that lands again would make room for another.

    An eviction may be on its way when the cordon is lifted, and whether it is in time would be chance.
    """
    pool.apply({**SLICED, "drain": {"strandedPods": "Allow"}})
    pool.wait(lambda: pool.fence().get("stage") == "fenced", "the fence")
    budget = f"{PDBS}/{pool.name}-guard"
    pool.wait(lambda: pool.api.get(budget)["status"]["disruptionsAllowed"] == 0, "the budget to be used up")
    pool.api.merge_patch(budget, {"spec": {"minAvailable": 2}})
    pool.wait(lambda: pool.api.get(budget)["status"]["desiredHealthy"] == 2, "the budget to be tighter")
    pool.cordon(pool.nodes[0], lifted=True)
    pool.wait(lambda: names.ANNOTATION_DEFERRED in pool.node()["metadata"]["annotations"], "the end of the try")
    pool.api.merge_patch(budget, {"spec": {"minAvailable": 0}})


def uncordon_after(pool: Pool) -> None:
    create(pool)
    in_the_middle(pool)
    pool.cordon(pool.nodes[0], lifted=True)


def drift(pool: Pool) -> None:
    create(pool)
    pool.wait_synced()
    pool.inject("lose-instances")
    pool.wait(lambda: pool.fence().get("drift") is True, "the correction")


def three_of_four(pool: Pool) -> None:
    pool.apply({**SLICED, "drain": {"strandedPods": "Allow"}, "rollout": {"maxUnavailable": 3}})


def pods_on_three(pool: Pool) -> None:
    for name in pool.nodes[:3]:
        Workload(pool, name, 1, app=f"{pool.name}-free").wait_running(1)


def break_mps_set(pool: Pool) -> None:
    overwrite(pool.product)


def repaired(pool: Pool) -> bool:
    return signalled(pool.product) == RIGHT and ready(pool)


def there_and_back(pool: Pool) -> None:
    pool.serve(MIXED)
    pool.apply(FULL)


def holders(pool: Pool) -> None:
    """Two pods on the first node, each with a GPU of NVIDIA's DRA driver: one asks for an extended resource, as for a device plugin, and one by a claim."""
    Workload(pool, pool.nodes[0], 1).wait_running(1)
    Workload(pool, pool.nodes[0], 1, app=f"{pool.name}-claim", resource="", more=claiming(pool)).wait_running(1)


SCENARIOS = (
    Scenario("idle", create, ready, (H100,), publish_period=0.25),
    Scenario("pods", unblock, ready, (H100,), prepare=busy_node, gpus=4),
    Scenario("retarget", retarget, ready, (H100,), midway=True),
    Scenario("node-deleted", lose_node, rest_ready, (H100, H100)),
    Scenario("policy-deleted", lose_policy, given_back, (H100,)),
    Scenario("gpunodes-deleted", lose_gpunodes, ready, (H100,)),
    Scenario("plain-chart", there_and_back, ready, (H100,), stage="plain"),
    Scenario("dra", create, ready, (H100,), prepare=holders, stage="dra"),
    Scenario("repair", lambda pool: pool.apply(MPS), repaired, (H100,), prepare=break_mps_set, stage="repairing"),
)

MORE = (
    Scenario("two-steps", two_steps, ready, (H100,)),
    Scenario("wedge-pending", create, ready, (H100,), prepare=broken("wedge-pending")),
    Scenario("wedge-paused", create, ready, (H100,), prepare=broken("wedge-paused")),
    Scenario("success-paused", go_back, ready, (H100,), prepare=broken("wedge-paused")),
    Scenario("failed-retried", retry, ready, (H100,), prepare=broken("failed")),
    Scenario("rolled-back", roll_back, rolled_back, (H100,)),
    Scenario("drain-time-out", time_out, ready, (H100,), prepare=guarded_node, gpus=4),
    Scenario("uncordon-before", uncordon_before, ready, (H100,), prepare=guarded_node, gpus=4),
    Scenario("uncordon-after", uncordon_after, ready, (H100,)),
    Scenario("drift", drift, ready, (H100,)),
    Scenario("three-of-four", three_of_four, ready, (H100,) * 4, prepare=pods_on_three),
)
