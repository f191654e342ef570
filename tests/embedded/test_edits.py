"""Policies, Nodes and GPUNodes are edited and deleted while a node is in flight."""

import asyncio

import pytest
from tests.embedded.scene import FULL, MIXED, OTHER_MIXED, Scene, node, nodes, open_scene
from tests.embedded.test_changes import assert_as_wanted
from tests.embedded.test_people import claims
from tests.fakes.virtualtime import virtually

from gpusharing.api import names
from gpusharing.kube.client import NODES, POLICIES
from gpusharing.kube.errors import NotFound


def policy_exists(scene: Scene, name: str = "pool-b") -> bool:
    try:
        scene.e.policy(name)
    except NotFound:
        return False
    return True


@pytest.mark.parametrize("stage_name", ["fenced", "actuating"])
@virtually
async def test_another_layout_in_the_middle_of_a_change_is_reached_without_two_drains(stage_name: str) -> None:
    async with open_scene(*nodes(1)) as scene:
        scene.apply(MIXED)
        await scene.fenced("gpu-1", stage_name)
        await scene.serve(OTHER_MIXED)
        assert_as_wanted(scene, OTHER_MIXED, "gpu-1")
        assert scene.node_writes()["gpu-1"] == (3 if stage_name == "fenced" else 4)


@virtually
async def test_a_policy_deleted_before_the_point_of_no_return_goes_when_its_node_is_restored() -> None:
    async with open_scene(*nodes(1), serving=FULL) as scene:
        await scene.begin(MIXED)
        scene.e.cluster.delete(POLICIES, "pool-b")
        assert policy_exists(scene), "the finalizer keeps it"
        await scene.e.until(lambda: not policy_exists(scene), "the policy gone", 60)
        assert scene.fence("gpu-1") is None
        assert not scene.cordoned("gpu-1")
        assert scene.labels("gpu-1")[names.LABEL_MODE] == "full"
        await scene.e.until(lambda: not claims(scene), "no claim", 10)


@virtually
async def test_an_event_names_the_node_of_a_policy_that_was_released_by_force() -> None:
    async with open_scene(*nodes(1)) as scene:
        await scene.begin(MIXED, stage="actuating")
        scene.e.cluster.patch(
            POLICIES, "pool-b", {"metadata": {"annotations": {names.ANNOTATION_FORCE_RELEASE: "true"}}}
        )
        scene.e.cluster.delete(POLICIES, "pool-b")
        await scene.e.until(lambda: not policy_exists(scene), "the policy gone", 10)
        assert scene.fence("gpu-1") is None
        assert scene.cordoned("gpu-1")
        await scene.e.until(lambda: scene.events()["ChangeGivenUp"] == 1, "an Event that names the node", 10)


@virtually
async def test_a_policy_whose_nodes_rest_has_no_finalizer_and_goes_at_once() -> None:
    async with open_scene(*nodes(1), serving=MIXED) as scene:
        await asyncio.sleep(5)
        scene.e.cluster.delete(POLICIES, "pool-b")
        assert not policy_exists(scene)
        await scene.e.until(lambda: names.LABEL_POLICY not in scene.labels("gpu-1"), "unowned", 10)
        assert scene.labels("gpu-1")[names.LABEL_MODE] == "mig", "the node keeps what it has"


@virtually
async def test_a_finalizer_that_was_stripped_in_the_middle_restores_the_node_all_the_same() -> None:
    """docs/design/drain.md#x4: the fence alone tells."""
    async with open_scene(*nodes(1)) as scene:
        await scene.begin(MIXED)
        scene.e.cluster.patch(POLICIES, "pool-b", {"metadata": {"finalizers": None}})
        scene.e.cluster.delete(POLICIES, "pool-b")
        assert not policy_exists(scene)
        await scene.released("gpu-1")
        assert not scene.cordoned("gpu-1")


@pytest.mark.parametrize("stage_name", ["fenced", "actuating"])
@virtually
async def test_a_node_deleted_in_the_middle_frees_its_slot_and_one_of_its_name_starts_clean(stage_name: str) -> None:
    async with open_scene(*nodes(2)) as scene:
        scene.apply(MIXED, rollout={"maxFailures": 2})
        first = await scene.any_fenced(stage_name)
        scene.e.cluster.delete(NODES, first)
        other = "gpu-2" if first == "gpu-1" else "gpu-1"
        await scene.phase(other, "Synced")
        await scene.ready()
        await scene.e.until(lambda: not claims(scene), "no claim", 10)
        scene.e.cluster.add(NODES, node(first))
        await scene.e.until(lambda: scene.condition("Ready")["status"] == "False", "not Ready", 60)
        await scene.ready()
        assert_as_wanted(scene, MIXED, "gpu-1", "gpu-2")
