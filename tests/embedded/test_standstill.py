"""A pool in which passes make no progress says so, unless it waits for the pods of a node."""

import asyncio

import pytest
from hack.sim.fakecluster import FakeClient
from tests.embedded.scene import FULL, HOUR, SLICED, Scene, at_once, gpu_pod, nodes, open_scene
from tests.fakes.virtualtime import virtually

from gpusharing.api import names
from gpusharing.kube.client import JSON, NODES, PODS, ApiRequest
from gpusharing.planning.pools.choice import MOST_VAIN


class Lookout(FakeClient):
    """When the pods of gpu-1 are listed, gpu-2 becomes a candidate, and 59 passes were in vain; the first list of its pods is slow. `missing` are nodes whose pods were wanted, too, and have not come."""

    scene: Scene
    missing = frozenset[str]()
    armed = False

    async def call(self, request: ApiRequest) -> JSON:
        listed = (request.verb, request.resource) == ("list", PODS)
        node = request.query.get("fieldSelector", "").removeprefix("spec.nodeName=") if listed else ""
        if node == "gpu-2":
            await asyncio.sleep(5)
        if node == "gpu-1" and self.armed:
            self.armed = False
            self.cluster.patch(NODES, "gpu-2", {"metadata": {"labels": {names.LABEL_SKIP: None}}})
            await asyncio.sleep(0.5)
            loop = self.scene.e.loop
            assert loop is not None
            # The pass that lists these pods has the memory already: it is changed in place.
            object.__setattr__(loop.memory, "vain_passes", {"pool-b": MOST_VAIN - 1})
            object.__setattr__(loop.memory, "wants_pods", loop.memory.wants_pods | self.missing)
        return await super().call(request)


@pytest.mark.parametrize(("missing", "told"), [((), True), (("gpu-3",), False)], ids=["no wait", "a wait"])
@virtually
async def test_after_sixty_passes_in_vain_the_policy_is_stalled_unless_pods_of_a_node_have_not_come(
    missing: tuple[str, ...], told: bool
) -> None:
    async with open_scene(*nodes(2), start=False) as scene:
        client = Lookout(scene.e.cluster, "operator")
        client.scene, client.missing = scene, frozenset(missing)
        scene.e.start_operator(client)
        await scene.serve(FULL)
        scene.e.cluster.add(PODS, gpu_pod("notebook", "gpu-1"))
        scene.person("gpu-2", {"metadata": {"labels": {names.LABEL_SKIP: "true"}}})
        await scene.reach(SLICED, rollout=at_once(2), drain={"strandedPods": "Allow"}, reason="Unmanaged")
        since = scene.mark()
        client.armed = True
        await scene.fenced("gpu-2", seconds=HOUR)
        bodies = [write.call.body or {} for write in scene.writes(since, "gpusharingpolicies")]
        rows = [row for body in bodies for row in (body.get("status") or {}).get("conditions") or ()]
        stalled = {(row["status"], row["reason"]) for row in rows if row["type"] == "Stalled"}
        assert (("True", "NoProgress") in stalled) is told, stalled
