"""People and other controllers get in the way: cordons, markers, budgets, several policies."""

import asyncio
import json
from datetime import timedelta

import pytest
from hack.sim.fakefaults import Write
from tests.embedded.scene import FULL, MIXED, SLICED, Scene, at_once, node, nodes, open_scene
from tests.fakes.virtualtime import virtual_now, virtually

from gpusharing.api import names
from gpusharing.kube.client import JSON, LEASES, NODES
from gpusharing.kube.fence import parse_claims
from gpusharing.planning.snapshot.records import Claim


def claimed(scene: Scene) -> dict[str, Claim]:
    lease = scene.e.cluster.get(LEASES, "gpusharing-operator", "gpusharing")
    found, error = parse_claims(lease["metadata"]["annotations"][names.ANNOTATION_CLAIMS])
    assert not error
    return found


def claims(scene: Scene) -> set[str]:
    return set(claimed(scene))


@virtually
async def test_a_node_that_a_person_cordoned_is_left_alone_and_its_cordon_stays() -> None:
    async with open_scene(*nodes(2)) as scene:
        scene.cordon("gpu-1")
        scene.apply(SLICED, rollout=at_once(2))
        await scene.phase("gpu-2", "Synced")
        transition = await scene.reason("gpu-1", "AlreadyCordoned")
        assert transition["cordonedBy"] == "Person"
        assert scene.node_writes()["gpu-1"] == 0
        scene.cordon("gpu-1", on=False)
        await scene.ready()


@virtually
async def test_a_node_adopted_while_a_person_has_cordoned_it_is_not_counted_as_in_service() -> None:
    async with open_scene(*nodes(1)) as scene:
        scene.cordon("gpu-1")
        await scene.serve(FULL)
        assert scene.cordoned("gpu-1")
        assert scene.e.policy("pool-b")["status"]["summary"]["nodes"] == "0/1"


@virtually
@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"spec": {"unschedulable": True}}, "AlreadyCordoned"),
        ({"metadata": {"annotations": {"weave.works/kured-reboot-in-progress": "1"}}}, "ForeignMaintenance"),
    ],
    ids=["a cordon", "a marker"],
)
async def test_what_arrives_between_decision_and_fence_is_not_overridden(body: JSON, reason: str) -> None:
    """It comes by watch while the claim is written: the Node PATCH that follows would meet no conflict."""
    async with open_scene(*nodes(1), serving=FULL) as scene:
        interfered: list[Write] = []

        def interfere(write: Write, when: str) -> None:
            claimed = write.call.resource == LEASES and "gpu-1" in json.dumps(write.call.body)
            if claimed and when == "after" and not interfered:
                interfered.append(write)
                scene.person("gpu-1", body)

        scene.e.cluster.faults.on_write = interfere
        begun = scene.mark()
        await scene.reach(SLICED, reason=reason)
        assert interfered
        await asyncio.sleep(60)
        assert scene.node_writes(begun)["gpu-1"] == 0
        assert scene.cordoned("gpu-1") is ("spec" in body)


@virtually
async def test_hold_cordon_leaves_the_node_cordoned_when_the_change_is_done() -> None:
    async with open_scene(*nodes(1)) as scene:
        await scene.begin(SLICED)
        scene.annotate("gpu-1", hold_cordon="true")
        await scene.ready()
        assert scene.cordoned("gpu-1")
        assert scene.labels("gpu-1")[names.LABEL_MODE] == "time-slicing"


@virtually
async def test_lifting_the_cordon_before_the_point_of_no_return_gives_the_change_up() -> None:
    async with open_scene(*nodes(1), serving=FULL) as scene:
        await scene.begin(SLICED)
        scene.cordon("gpu-1", on=False)
        await scene.released("gpu-1")
        assert scene.labels("gpu-1")[names.LABEL_MODE] == "full"
        assert names.LABEL_PLUGIN_CONFIG not in scene.labels("gpu-1")
        transition = await scene.reason("gpu-1", "Deferred")
        assert "UncordonedExternally" in transition["message"]
        begun = virtual_now()
        await scene.ready()
        assert virtual_now() - begun > timedelta(minutes=5)


@virtually
async def test_lifting_the_cordon_after_the_point_of_no_return_puts_it_back() -> None:
    async with open_scene(*nodes(1)) as scene:
        await scene.begin(MIXED, stage="actuating")
        await asyncio.sleep(3)
        scene.cordon("gpu-1", on=False)
        await scene.e.until(lambda: scene.cordoned("gpu-1"), "cordoned again", 5)
        await scene.e.until(lambda: scene.events()["CordonRestored"] == 1, "an Event", 60)
        await scene.ready()
        assert not scene.cordoned("gpu-1")


@virtually
async def test_the_point_of_no_return_loses_against_an_uncordon_in_the_same_moment() -> None:
    """docs/design/drain.md#x1: the uncordon comes between our decision and our PATCH, which fails with 409."""
    async with open_scene(*nodes(1)) as scene:
        await scene.begin(SLICED)
        client = scene.e.client
        assert client is not None
        client.interfere(lambda body: "actuating" in str(body), lambda: scene.cordon("gpu-1", on=False))
        await scene.released("gpu-1")
        assert names.LABEL_PLUGIN_CONFIG not in scene.labels("gpu-1")


@pytest.mark.parametrize(("rollout", "most"), [({}, 1), (at_once(2), 2)], ids=["not said", "two"])
@virtually
async def test_never_more_nodes_are_away_than_max_unavailable_allows_and_all_that_are_allowed_are_used(
    rollout: JSON, most: int
) -> None:
    async with open_scene(*nodes(6)) as scene:
        await scene.serve(SLICED, rollout=rollout)
        assert scene.guard.largest["pool-b"] == most


@virtually
async def test_a_node_of_one_policy_waits_for_the_node_in_flight_of_another_under_the_cap_over_all() -> None:
    async with open_scene(node("gpu-1"), node("gpu-2", pool="c"), max_in_flight=1, config_propagation=0.0) as scene:
        await scene.begin(MIXED, stage="actuating")
        scene.apply(SLICED, name="pool-c", pool="c")
        waiting = await scene.reason("gpu-2", "BudgetFull")
        assert waiting["phase"] == "Pending"
        assert "operator.maxInFlight" in waiting["message"]
        assert scene.node_writes()["gpu-2"] == 0
        await scene.ready("pool-b", "pool-c")


@virtually
async def test_a_node_that_is_away_for_another_reason_counts_against_the_budget() -> None:
    async with open_scene(*nodes(3)) as scene:
        scene.cordon("gpu-3")
        shown = await scene.reach(SLICED, rollout=at_once(1), reason="BudgetFull")
        assert (shown["culprit"], shown["waitingFor"]) == ("node/gpu-3", "Person")
        await scene.until_condition("Stalled", "True", "Blocked")
        await asyncio.sleep(60)
        assert not scene.node_writes()
        scene.cordon("gpu-3", on=False)
        await scene.ready()


@virtually
async def test_lowering_the_budget_to_zero_lets_the_node_in_flight_finish_and_starts_no_other() -> None:
    async with open_scene(*nodes(2)) as scene:
        first = await scene.begin_any(SLICED, rollout=at_once(1))
        other = "gpu-2" if first == "gpu-1" else "gpu-1"
        scene.apply(SLICED, rollout=at_once(0))
        await scene.phase(first, "Synced")
        await scene.reason(other, "Frozen")
        assert scene.node_writes()[other] == 0


@virtually
async def test_a_paused_rollout_finishes_the_node_in_flight_and_starts_no_other() -> None:
    async with open_scene(*nodes(2)) as scene:
        first = await scene.begin_any(SLICED, rollout=at_once(1))
        (other,) = {"gpu-1", "gpu-2"} - {first}
        scene.apply(SLICED, rollout=at_once(1, paused=True))
        await scene.phase(first, "Synced")
        assert scene.node_writes()[first] == 3, "it went on in the same change"
        await scene.reason(other, "Paused")
        await asyncio.sleep(300)
        assert scene.node_writes()[other] == 0
        await scene.serve(SLICED)


@virtually
async def test_the_claim_comes_before_the_fence_and_goes_after_it() -> None:
    async with open_scene(*nodes(1)) as scene:
        await scene.begin(SLICED)
        assert claims(scene) == {"gpu-1"}
        log = scene.e.cluster.writes
        claim = next(i for i, w in enumerate(log) if w.call.resource == LEASES and "pool-b" in str(w.call.body))
        fence = next(i for i, w in enumerate(log) if w.call.resource == NODES and "fenced" in str(w.call.body))
        assert claim < fence
        await scene.ready()
        await scene.e.until(lambda: not claims(scene), "no claim", 10)


# --- several policies ------------------------------------------------------------------------------


@virtually
async def test_a_policy_of_strictly_higher_priority_takes_the_node_over_as_a_normal_change() -> None:
    async with open_scene(*nodes(1)) as scene:
        await scene.serve(SLICED, name="pool-z")
        mark = scene.mark()
        await scene.serve(MIXED, name="pool-a", priority=5)
        assert scene.labels("gpu-1")[names.LABEL_POLICY] == "pool-a"
        assert scene.node_writes(mark) == {"gpu-1": 3}
        await scene.until_condition("Ready", "False", "NoNodes", "pool-z")


@virtually
async def test_raising_a_priority_before_the_point_of_no_return_gives_the_running_change_up() -> None:
    async with open_scene(*nodes(1)) as scene:
        scene.apply(SLICED, name="pool-z")
        await scene.begin(MIXED, name="pool-a", priority=-1)
        scene.apply(MIXED, name="pool-a", priority=1)
        await scene.released("gpu-1")
        assert not scene.cordoned("gpu-1"), "the node is given back before it is taken anew"
        await scene.ready("pool-a")
        assert scene.labels("gpu-1")[names.LABEL_POLICY] == "pool-a"
        way = [(fence.policy, fence.stage) if fence is not None else None for _, fence in scene.fences()]
        assert way == [("pool-z", "fenced"), None, ("pool-a", "fenced"), ("pool-a", "actuating"), None]
