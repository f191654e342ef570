"""etcd is restored from a backup in the middle of a rollout, or a watch falls silent: what the operator then does."""

import asyncio

import pytest
from hack.sim.fakefaults import EVER, SILENCE
from tests.embedded.scene import HOUR, SLICED, at_once, gpu_pod, nodes, open_scene
from tests.embedded.test_changes import assert_as_wanted
from tests.embedded.test_people import claims
from tests.fakes.virtualtime import virtually

from gpusharing.kube.client import CONFIG_MAPS, PODS
from gpusharing.kube.lease import Timing

EVICTS = {"unmanagedPods": "Evict", "strandedPods": "Allow"}
GPUS = "gpu-1", "gpu-2", "gpu-3"


@pytest.mark.parametrize("pods", [[], ["job-1", "job-2"]], ids=["an idle node", "a node with a pod"])
@virtually
async def test_no_pod_leaves_and_no_node_passes_its_point_of_no_return_while_a_watch_is_silent(pods: list[str]) -> None:
    async with open_scene(*nodes(2)) as scene:
        for name, node in zip(pods, GPUS, strict=False):
            scene.e.cluster.add(PODS, gpu_pod(name, node))
        scene.apply(SLICED, drain=EVICTS, rollout=at_once(1))
        first = await scene.any_fenced()
        scene.apply(SLICED, drain=EVICTS, rollout={**at_once(2), "paused": True, "whenPaused": "Hold"})
        await scene.reason(first, "Paused")
        silent = scene.e.cluster.faults.fail("watch", CONFIG_MAPS, SILENCE, times=EVER)
        listless = scene.e.cluster.faults.fail("list", CONFIG_MAPS, SILENCE, times=EVER)
        scene.e.cluster.close_watches()
        await asyncio.sleep(200)
        scene.apply(SLICED, drain=EVICTS, rollout=at_once(2))
        await scene.reason(first, "ObservationPending")
        await asyncio.sleep(300)
        assert [name for name in GPUS[:2] if scene.cordoned(name)] == [first]
        assert scene.evicted() == []
        silent.lift()
        listless.lift()
        await scene.ready()
        assert sorted(scene.evicted()) == pods


@pytest.mark.parametrize("done", [False, True], ids=["of its first node", "after its first node"])
@virtually
async def test_a_rollout_goes_on_from_what_a_restored_store_says(done: bool) -> None:
    async with open_scene(*nodes(3), lease=Timing()) as scene:
        scene.apply(SLICED, rollout=at_once(1))
        first = await scene.any_fenced()
        if done:
            await scene.released(first)
        fences, cluster = [scene.fence(name) for name in GPUS], scene.e.cluster
        backup, claimed = cluster.backup(), claims(scene)
        cluster.store.version += 10_000
        await scene.ready()
        cluster.restore(backup)
        await asyncio.sleep(0.1)
        cluster.send_bookmarks()  # to NVIDIA's simulated programs: they begin anew with their API server
        assert [scene.fence(name) for name in GPUS] == fences
        assert claims(scene) == claimed
        await scene.ready(seconds=HOUR)
        assert_as_wanted(scene, SLICED, *GPUS)
        assert claims(scene) == set()
        assert not any(map(scene.cordoned, GPUS))
        assert scene.e.operators == 1, "it was not restarted"
