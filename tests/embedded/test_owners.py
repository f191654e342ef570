"""A change whose node gets another owner in the middle, by a label, a selector or a deletion."""

import pytest
from hack.cluster.nodes import LABEL_POOL
from tests.embedded.scene import FULL, SINGLE, SLICED, Scene, nodes, open_scene
from tests.embedded.test_changes import assert_as_wanted
from tests.embedded.test_troubles import failed
from tests.fakes.virtualtime import virtually

from gpusharing.api import names
from gpusharing.kube.client import POLICIES
from gpusharing.kube.fence import parse_record
from gpusharing.planning.snapshot.records import Deferred


def policies(scene: Scene) -> set[str]:
    return {raw["metadata"]["name"] for raw in scene.e.cluster.objects(POLICIES)}


def relabel(scene: Scene, name: str, pool: str) -> None:
    scene.person(name, {"metadata": {"labels": {LABEL_POOL: pool}}})


@pytest.mark.parametrize("deleted", [False, True], ids=["relabelled", "relabelled, and its policy deleted"])
@virtually
async def test_a_failed_node_is_repaired_by_its_new_owner_in_the_same_slot(deleted: bool) -> None:
    async with open_scene(*nodes(1)) as scene:
        await failed(scene)
        mark = scene.mark()
        scene.apply(SINGLE, "pool-c", "c")
        relabel(scene, "gpu-1", "c")
        if deleted:
            scene.e.cluster.delete(POLICIES, "pool-b")
        await scene.ready("pool-c")
        assert_as_wanted(scene, SINGLE, "gpu-1", owner="pool-c")
        assert policies(scene) == ({"pool-c"} if deleted else {"pool-b", "pool-c"})
        patches = [write.call.body or {} for write in scene.writes(mark, "nodes")]
        assert all("unschedulable" not in (body.get("spec") or {}) for body in patches[:-1]), (
            "the node is given back once, at the end"
        )


@virtually
async def test_an_older_policy_of_equal_priority_does_not_take_a_node_from_one_that_drains_it() -> None:
    async with open_scene(*nodes(1)) as scene:
        scene.apply(FULL, "older", "elsewhere")
        await scene.begin(SLICED, "younger", "b")
        assert names.LABEL_POLICY not in scene.labels("gpu-1"), "nobody has proven anything there yet"
        scene.apply(FULL, "older", "b")
        await scene.ready("younger")
        assert_as_wanted(scene, SLICED, "gpu-1", owner="younger")


@virtually
async def test_a_label_that_comes_and_goes_with_our_fence_costs_one_cordon_per_wait_and_not_one_per_pass() -> None:
    """A tool labels nodes by what it sees on them; the API server cannot refuse a selector on such a label."""
    async with open_scene(*nodes(1), serving=FULL) as scene:
        fences = 0

        def tool() -> bool:
            nonlocal fences
            fenced = scene.fence("gpu-1") is not None
            pool = scene.labels("gpu-1").get(LABEL_POOL)
            if fenced and pool:
                fences += 1
                scene.person("gpu-1", {"metadata": {"labels": {LABEL_POOL: None}}})
            elif not fenced and not pool:
                relabel(scene, "gpu-1", "b")
            return False

        scene.apply(SLICED)
        with pytest.raises(AssertionError, match="for ever did not come"):
            await scene.e.until(tool, "for ever", 1000)
        assert 1 <= fences <= 3, "at the start, and after 5 and 10 more minutes"
        record = parse_record(Deferred, scene.annotations("gpu-1")[names.ANNOTATION_DEFERRED])[0]
        assert record is not None
        assert (record.reason, record.version.uid) == ("Superseded", scene.e.policy("pool-b")["metadata"]["uid"])
