"""A policy with deletionPolicy Reset is deleted, as people see it."""

import asyncio

from hack.sim.workloads import SimWorkload
from tests.embedded.oracle import difference
from tests.embedded.scene import FULL, HOUR, MIXED, SLICED, nodes, open_scene, pdb
from tests.embedded.test_edits import policy_exists
from tests.embedded.test_people import claims
from tests.fakes.virtualtime import virtually

from gpusharing.api import names
from gpusharing.kube.client import JSON, PDBS, POLICIES

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
        await scene.e.until(lambda: not policy_exists(scene), "the policy gone", HOUR)
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
        await scene.e.until(lambda: not policy_exists(scene), "the policy gone", HOUR)
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
        await scene.e.until(lambda: not policy_exists(scene), "the policy gone", HOUR)
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
        await scene.e.until(lambda: not policy_exists(scene), "the policy gone", 60)
        assert scene.e.node("gpu-1")["status"]["allocatable"][names.RESOURCE_GPU] == "8"
