"""kill -9 after each API write of the golden scenarios: the restart reaches the same end state (issue point 10).

Taking, renewing and releasing the Lease are no writes here. CI, and whoever sets CRASH=all, runs every point; else
it is every point of `idle` and `pods` and every third one of the others.
"""

import json
import os
import time
from collections import Counter
from collections.abc import Iterator

import pytest
from hack.cluster.api import ApiError, Object
from hack.cluster.nodes import create_nodes, node_manifest
from hack.faultproxy import FaultProxy
from tests.integration.crash import Outcome, Scenario, Theatre
from tests.integration.nursery import Nursery
from tests.integration.product import GPUNODES, H100, MIXED, NODES, SINGLE, SLICED, Pool, Product
from tests.integration.workloads import PDBS, Workload, guard

ALL = os.environ.get("CRASH") == "all" or "CI" in os.environ
EXTRA_WRITES = 2
"""More than in the undisturbed run that a crash may cost."""
ELSEWHERE = "crash-elsewhere"
"""A node without GPUs."""
LIMIT = 80
"""No scenario has that many writes; a run that goes on for ever must end."""


def ready(pool: Pool) -> bool:
    return pool.condition("Ready").get("status") == "True"


def in_the_middle(pool: Pool, node: str = "") -> None:
    """Until the change of a node is past its point of no return."""
    pool.wait(lambda: pool.fence(node).get("stage") == "actuating", "the point of no return")


def create(pool: Pool) -> None:
    pool.apply(MIXED)


def retarget(pool: Pool) -> None:
    create(pool)
    in_the_middle(pool)
    pool.apply(SINGLE)


def lose_node(pool: Pool) -> None:
    create(pool)
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


def unblock(pool: Pool) -> None:
    """Wait until the budget blocks, then give it a third pod elsewhere."""
    pool.apply(SLICED)
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
    try:
        pool.api.get(pool.path)
    except ApiError:
        return not pool.fence() and "gpusharing.dev/policy" not in pool.labels()
    return False


def rest_ready(pool: Pool) -> bool:
    """The node that is left is Synced, and nothing is left of the other one."""
    return ready(pool) and not pool.product.exists(f"{GPUNODES}/{pool.nodes[0]}")


SCENARIOS = (
    Scenario("idle", create, ready, (H100,), publish_period=0.25),
    Scenario("pods", unblock, ready, (H100,), prepare=busy_node, gpus=4),
    Scenario("retarget", retarget, ready, (H100,)),
    Scenario("node-deleted", lose_node, rest_ready, (H100, H100)),
    Scenario("policy-deleted", lose_policy, given_back, (H100,)),
    Scenario("gpunodes-deleted", lose_gpunodes, ready, (H100,)),
)
EVERY_POINT = {"idle", "pods"}


@pytest.fixture(scope="module")
def theatre(product: Product, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Theatre]:
    """No other operator may run: there is one Lease."""
    directory = tmp_path_factory.mktemp("crash")
    with FaultProxy(product.api.url, product.api.ca_pem) as proxy, Nursery() as nursery:
        create_nodes(product.api, [plain_node(ELSEWHERE)])
        theatre = Theatre(product, proxy, nursery, directory)
        theatre.clear()
        yield theatre
        theatre.clear()
        product.remove(f"{NODES}/{ELSEWHERE}")


def complaints(scenario: Scenario, reference: list[Outcome], outcome: Outcome) -> Iterator[str]:
    """What a run did that it must not."""
    if outcome.restarts != 1:
        yield f"{outcome.restarts} restarts"
    if outcome.state != reference[0].state:
        yield f"another end: {difference(reference[0].state, outcome.state)}"
    twice = [uid for uid, count in outcome.evicted.items() if count > 1]
    if twice:
        yield f"evicted twice: {twice}"
    if sum(outcome.evicted.values()) != sum(reference[0].evicted.values()):
        yield f"{sum(outcome.evicted.values())} evictions"
    yield from too_many(scenario, reference, outcome)


def too_many(scenario: Scenario, reference: list[Outcome], outcome: Outcome) -> Iterator[str]:
    """What a crash costs. With quick publishing, how many moments a status shows depends on the pace of a run."""

    def counted(one: Outcome) -> Counter[str]:
        return Counter(w for w in one.applied if scenario.publish_period > 1 or not w.endswith("/status"))

    most = max((counted(one) for one in reference), key=Counter.total)
    if (now := counted(outcome)).total() > most.total() + EXTRA_WRITES:
        yield f"{now.total()} writes, undisturbed {most.total()}; more: {dict(now - most)}"


def difference(wanted: object, found: object, path: str = "") -> str:
    """The places where two JSON trees differ."""
    if isinstance(wanted, dict) and isinstance(found, dict):
        keys = sorted({*wanted, *found})
        parts = (difference(wanted.get(key), found.get(key), f"{path}.{key}") for key in keys)
        return "; ".join(part for part in parts if part)
    return "" if wanted == found else f"{path}: {json.dumps(wanted)} -> {json.dumps(found)}"


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_a_kill_after_any_write_changes_nothing_in_the_end(theatre: Theatre, scenario: Scenario) -> None:
    began = time.monotonic()
    reference = [theatre.run(scenario), theatre.run(scenario)]
    assert reference[0].state == reference[1].state, difference(reference[0].state, reference[1].state)
    every = ALL or scenario.name in EVERY_POINT
    step = 1 if every else 3
    failures, points = [], 0
    for number in range(1, LIMIT, step):
        outcome = theatre.run(scenario, kill_at=number)
        if outcome.restarts == 0:
            break
        points += 1
        at = next((write.what for write in outcome.log if write.number == number), "?")
        for complaint in complaints(scenario, reference, outcome):
            failures.append(f"after write {number} ({at}): {complaint}")
    seconds = time.monotonic() - began
    print(
        f"\ncrash {scenario.name}: {points} points, step {step}, {seconds:.0f} s,"
        f" undisturbed {[len(one.applied) for one in reference]} writes"
    )
    assert not failures, "\n".join(failures)


def test_a_kill_before_a_node_write_leaves_is_as_harmless(theatre: Theatre) -> None:
    scenario = SCENARIOS[0]
    reference = theatre.run(scenario)
    points = [write.number for write in reference.log if "/nodes/" in write.path]
    assert len(points) == 3, "fence, PNR, release"
    failures = []
    for number in points:
        outcome = theatre.run(scenario, kill_at=number, before=True)
        failures += [f"before write {number}: {text}" for text in complaints(scenario, [reference], outcome)]
    assert not failures, "\n".join(failures)
