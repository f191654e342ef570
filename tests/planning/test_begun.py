"""A node whose change has begun stays its policy's business, whatever becomes of the node or the policy."""

from collections.abc import Callable

import pytest
from tests.build import H100, make_policy
from tests.planning.cases import pass_time
from tests.planning.deeds import vanished
from tests.planning.machines import NodeMachine
from tests.planning.world import World

from gpusharing.api.names import Phase
from gpusharing.planning.gpus.cards import bare_product
from gpusharing.planning.report.status import policy_status
from gpusharing.planning.vocabulary.reasons import Reason

A100 = "NVIDIA A100-SXM4-80GB"


def sharing(replicas: int, products: tuple[str, ...] = (), **rollout: int) -> World:
    """Two H100 nodes and an A100 node that are to share their GPUs, one after the other."""
    world = World()
    for name, product in (("a0", A100), ("n1", H100), ("n2", H100)):
        world.add_node(name, NodeMachine(name, (product,)))
    world.set_policy(make_policy(mode="Full"))
    world.settle()
    edit(world, replicas, products, **rollout)
    return world


def edit(world: World, replicas: int, products: tuple[str, ...] = (), **rollout: int) -> None:
    world.set_policy(
        make_policy(
            mode="TimeSlicing",
            timeSlicing={"replicas": replicas},
            products=[bare_product(product) for product in products],
            rollout={"maxUnavailable": 1, **rollout},
            drain={"strandedPods": "Allow"},
        )
    )


def changing(name: str) -> Callable[[World], bool]:
    def reached(world: World) -> bool:
        fence = world.nodes[name].fence
        return fence is not None and fence.stage == "actuating"

    return reached


def test_a_product_that_is_left_out_in_the_middle_of_its_change_keeps_its_slot_and_is_told() -> None:
    world = sharing(4)
    pass_time(world, 1000, until=changing("a0"))
    assert world.nodes["a0"].fence is not None
    edit(world, 2, (H100,))
    pass_time(world, 200, seconds=15)
    plan, snapshot = world.plan(), world.snapshot()
    assert (plan.verdicts["a0"].phase, plan.verdicts["a0"].reason) == (Phase.FAILED, Reason.PRODUCT_SKIPPED)
    pool = plan.pools["pool-b"]
    assert (pool.total, pool.limit, pool.used) == (3, 1, 1)
    assert [name for name, node in world.nodes.items() if node.unschedulable] == ["a0"]
    status = policy_status(snapshot.policies[0], plan, snapshot, {}, world.now)
    told = {row["type"]: (row["status"], row["reason"]) for row in status["conditions"]}
    assert told["Ready"] == ("False", "RolloutInProgress")
    assert told["Stalled"] == ("True", "NodesFailed")
    assert [row["node"] for row in status["failures"]] == ["a0"]
    edit(world, 2)
    pass_time(world, 200, seconds=15)
    assert [node.fence for node in world.nodes.values()] == [None] * 3


@pytest.mark.parametrize("failures", [1, 3], ids=["the first halts", "three halt"])
def test_a_node_whose_gpus_vanish_in_its_change_counts_as_failed_and_as_away(failures: int) -> None:
    world = sharing(4, maxFailures=failures)
    pass_time(world, 1000, until=changing("a0"))
    assert vanished(world, "a0")
    pass_time(world, 200, seconds=15)
    plan = world.plan()
    assert plan.verdicts["a0"].phase is Phase.FAILED
    assert [name for name, node in world.nodes.items() if node.unschedulable] == ["a0"]
    waits = {one.reason for one in plan.verdicts.values() if one.phase not in (Phase.FAILED, Phase.SYNCED)}
    assert waits == {Reason.HALTED if failures == 1 else Reason.BUDGET_FULL}
