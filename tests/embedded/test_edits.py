"""Policies, Nodes and GPUNodes are edited and deleted while a node is in flight, or the node gets another owner; and deletionPolicy Reset."""

import asyncio

import pytest
from hack.cluster.nodes import LABEL_POOL
from hack.sim.workloads import SimWorkload
from tests.embedded.oracle import difference
from tests.embedded.scene import FULL, HOUR, MIXED, OTHER_MIXED, SINGLE, SLICED, Scene, node, nodes, open_scene, pdb
from tests.embedded.test_changes import assert_as_wanted
from tests.embedded.test_people import claims
from tests.embedded.test_troubles import failed
from tests.fakes.virtualtime import virtually

from gpusharing.api import names
from gpusharing.kube.client import JSON, NODES, PDBS, POLICIES
from gpusharing.kube.fence import parse_record
from gpusharing.planning.snapshot.records import Deferred


def policies(scene: Scene) -> set[str]:
    return {raw["metadata"]["name"] for raw in scene.e.cluster.objects(POLICIES)}


async def gone(scene: Scene, seconds: float = HOUR) -> None:
    await scene.e.until(lambda: not policies(scene), "the policy gone", seconds)


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
        assert policies(scene), "the finalizer keeps it"
        await gone(scene, 60)
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
        await gone(scene, 10)
        assert scene.fence("gpu-1") is None
        assert scene.cordoned("gpu-1")
        await scene.e.until(lambda: scene.events()["ChangeGivenUp"] == 1, "an Event that names the node", 10)


@virtually
async def test_a_policy_whose_nodes_rest_has_no_finalizer_and_goes_at_once() -> None:
    async with open_scene(*nodes(1), serving=MIXED) as scene:
        await asyncio.sleep(5)
        scene.e.cluster.delete(POLICIES, "pool-b")
        assert not policies(scene)
        await scene.e.until(lambda: names.LABEL_POLICY not in scene.labels("gpu-1"), "unowned", 10)
        assert scene.labels("gpu-1")[names.LABEL_MODE] == "mig", "the node keeps what it has"


@virtually
async def test_a_finalizer_that_was_stripped_in_the_middle_restores_the_node_all_the_same() -> None:
    """docs/design/drain.md#x4: the fence alone tells."""
    async with open_scene(*nodes(1)) as scene:
        await scene.begin(MIXED)
        scene.e.cluster.patch(POLICIES, "pool-b", {"metadata": {"finalizers": None}})
        scene.e.cluster.delete(POLICIES, "pool-b")
        assert not policies(scene)
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


@pytest.mark.parametrize("aside", [None, "q"], ids=["nobody's", "another policy's"])
@virtually
async def test_a_label_that_comes_and_goes_with_our_fence_costs_one_cordon_per_wait_and_not_one_per_pass(
    aside: str | None,
) -> None:
    """A tool labels nodes by what it sees on them; the API server cannot refuse a selector on such a label."""
    async with open_scene(node("gpu-1"), node("gpu-9", pool="q"), serving=FULL) as scene:
        await scene.serve(SLICED, "pool-q", "q")
        fences = 0

        def tool() -> bool:
            nonlocal fences
            fenced = scene.fence("gpu-1") is not None
            pool = scene.labels("gpu-1").get(LABEL_POOL)
            if fenced and pool == "b":
                fences += 1
                scene.person("gpu-1", {"metadata": {"labels": {LABEL_POOL: aside}}})
            elif not fenced and pool != "b":
                relabel(scene, "gpu-1", "b")
            return False

        scene.apply(SLICED)
        with pytest.raises(AssertionError, match="for ever did not come"):
            await scene.e.until(tool, "for ever", 1000)
        assert 1 <= fences <= 3, "at the start, and after 5 and 10 more minutes"
        record = parse_record(Deferred, scene.annotations("gpu-1")[names.ANNOTATION_DEFERRED])[0]
        assert record is not None
        assert (record.reason, record.version.uid) == ("Superseded", scene.e.policy("pool-b")["metadata"]["uid"])


OURS = {names.LABEL_POLICY, names.LABEL_MODE, names.LABEL_PLUGIN_CONFIG}
RECORDS = {names.ANNOTATION_VERIFIED, names.ANNOTATION_DEFERRED, names.ANNOTATION_FENCE}


@virtually
async def test_a_reset_takes_one_node_at_a_time_and_its_pods_run_again() -> None:
    async with open_scene(*nodes(2), workloads=(SimWorkload("free", 2),)) as scene:
        await scene.serve(SLICED, deletionPolicy="Reset", drain={"strandedPods": "Allow"}, seconds=HOUR)
        await scene.running("free", 2)
        scene.e.cluster.delete(POLICIES, "pool-b")
        await scene.any_fenced("fenced")
        assert scene.e.policy("pool-b")["status"]["summary"]["status"] == "Deleting"
        await gone(scene)
        for name in ("gpu-1", "gpu-2"):
            raw = scene.e.node(name)
            assert not OURS & raw["metadata"]["labels"].keys()
            assert not RECORDS & raw["metadata"]["annotations"].keys()
            assert not scene.cordoned(name)
        assert scene.guard.largest["pool-b"] == 1
        await scene.e.until(lambda: not claims(scene), "no claim", 60)
        await scene.running("free", 2)


@virtually
async def test_a_policy_that_resets_holds_its_finalizer_at_rest_and_takes_no_further_node() -> None:
    async with open_scene(*nodes(1)) as scene:
        await scene.serve(MIXED, deletionPolicy="Reset")
        await asyncio.sleep(5)
        assert scene.e.policy("pool-b")["metadata"]["finalizers"] == [names.FINALIZER]
        scene.cordon("gpu-1")
        scene.e.cluster.delete(POLICIES, "pool-b")
        await scene.reason("gpu-1", "AlreadyCordoned")
        message = scene.e.policy("pool-b")["status"]["summary"]["message"]
        assert "1 node has yet to be returned to whole GPUs; gpu-1 was cordoned by someone else" in message
        scene.cordon("gpu-1", on=False)
        await gone(scene)
        assert scene.labels("gpu-1")[names.LABEL_MIG_CONFIG] == "all-disabled"
        assert not OURS & scene.labels("gpu-1").keys()
        assert difference(FULL, scene.e.node("gpu-1"), scene.e.software.nodes["gpu-1"]) == ""
        assert (await scene.reason("gpu-1", "Unowned"))["phase"] == "Skipped"


@virtually
async def test_a_budget_that_allows_nothing_holds_up_a_reset_and_is_named_until_the_pod_is_gone() -> None:
    async with open_scene(*nodes(1), workloads=(SimWorkload("llm", 1),)) as scene:
        await scene.serve(SLICED, deletionPolicy="Reset", drain={"strandedPods": "Allow"}, seconds=HOUR)
        await scene.running("llm", 1)
        scene.e.cluster.add(PDBS, pdb("keep", "llm", minAvailable=1))
        scene.e.cluster.delete(POLICIES, "pool-b")
        blocked = await scene.reason("gpu-1", "PDBNeverAllows")
        assert blocked["phase"] == "Blocked"

        def summary() -> JSON:
            found: JSON = scene.e.policy("pool-b")["status"]["summary"]
            return found

        await scene.e.until(lambda: "default/keep" in summary()["message"], "the budget to be named", HOUR)
        assert summary()["status"] == "Deleting"
        assert scene.fence("gpu-1") is None
        scene.e.cluster.delete(PDBS, "keep", "default")
        await gone(scene)
        assert not OURS & scene.labels("gpu-1").keys()


@virtually
async def test_force_release_ends_a_reset_and_leaves_the_node_as_it_is() -> None:
    async with open_scene(*nodes(1)) as scene:
        await scene.serve(SLICED, deletionPolicy="Reset")
        scene.cordon("gpu-1")
        scene.e.cluster.delete(POLICIES, "pool-b")
        await scene.reason("gpu-1", "AlreadyCordoned")
        release = {"metadata": {"annotations": {names.ANNOTATION_FORCE_RELEASE: "true"}}}
        scene.e.cluster.patch(POLICIES, "pool-b", release)
        await gone(scene, 60)
        assert scene.e.node("gpu-1")["status"]["allocatable"][names.RESOURCE_GPU] == "8"
