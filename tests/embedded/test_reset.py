"""A policy with deletionPolicy Reset is deleted, as people see it."""

import asyncio

from hack.sim.workloads import Workload
from tests.embedded.scene import HOUR, MIXED, SLICED, nodes, scene
from tests.embedded.test_edits import policy_exists
from tests.embedded.test_people import claims
from tests.fakes.virtualtime import virtually

from gpusharing.api import names
from gpusharing.kube.client import POLICIES

OURS = {names.LABEL_POLICY, names.LABEL_MODE, names.LABEL_PLUGIN_CONFIG}
RECORDS = {names.ANNOTATION_VERIFIED, names.ANNOTATION_DEFERRED, names.ANNOTATION_FENCE}


@virtually
async def test_nodes_become_whole_one_after_the_other_and_keep_nothing_of_ours_before_the_policy_goes() -> (
    None
):
    async with scene(*nodes(2), workloads=(Workload("free", 2),)) as stage:
        stage.apply(SLICED, deletionPolicy="Reset", drain={"strandedPods": "Allow"})
        await stage.ready(seconds=HOUR)
        await stage.running("free", 2)
        stage.e.cluster.delete(POLICIES, "pool-b")
        await stage.any_fenced("fenced")
        assert stage.e.policy("pool-b")["status"]["summary"]["status"] == "Deleting"
        await stage.e.until(lambda: not policy_exists(stage), "the policy gone", HOUR)
        for name in ("gpu-1", "gpu-2"):
            raw = stage.e.node(name)
            assert not OURS & raw["metadata"]["labels"].keys()
            assert not RECORDS & raw["metadata"]["annotations"].keys()
            assert not stage.cordoned(name)
        assert stage.guard.largest["pool-b"] == 1
        await stage.e.until(lambda: not claims(stage), "no claim", 60)
        await stage.running("free", 2)


@virtually
async def test_a_policy_that_resets_holds_its_finalizer_at_rest_and_takes_no_further_node() -> None:
    async with scene(*nodes(1)) as stage:
        stage.apply(MIXED, deletionPolicy="Reset")
        await stage.ready()
        await asyncio.sleep(5)
        assert stage.e.policy("pool-b")["metadata"]["finalizers"] == [names.FINALIZER]
        stage.cordon("gpu-1")
        stage.e.cluster.delete(POLICIES, "pool-b")
        await stage.reason("gpu-1", "AlreadyCordoned")
        message = stage.e.policy("pool-b")["status"]["summary"]["message"]
        assert "1 node to become whole GPUs first; gpu-1 was cordoned by somebody else" in message
        stage.cordon("gpu-1", on=False)
        await stage.e.until(lambda: not policy_exists(stage), "the policy gone", HOUR)
