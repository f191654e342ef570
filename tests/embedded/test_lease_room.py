"""The record on the Lease becomes too long for the API server: does the rollout end? (planning/pools/writes.py)"""

import asyncio

import pytest
from tests.embedded.scene import FULL, SLICED, Scene, at_once, nodes, open_scene
from tests.fakes.virtualtime import virtually

from gpusharing.api import names
from gpusharing.kube.client import JSON, LEASES, ApiRequest, PassingClient
from gpusharing.kube.errors import Invalid
from gpusharing.planning.snapshot.records import LEASE_ROOM


class SmallServer(PassingClient):
    """Refuses a Lease whose record is longer than `limit`, as an API server refuses annotations above 256 KiB."""

    def __init__(self, scene: Scene, limit: int = LEASE_ROOM) -> None:
        super().__init__(scene.e.cluster.client("operator"))
        self.limit, self.refused, self.longest = limit, 0, 0

    async def call(self, request: ApiRequest) -> JSON:
        if request.resource == LEASES and request.body:
            annotations = request.body.get("metadata", {}).get("annotations") or {}
            size = len(annotations.get(names.ANNOTATION_CLAIMS, ""))
            self.longest = max(size, self.longest)
            if size > self.limit:
                self.refused += 1
                raise Invalid("metadata.annotations: Too long: may not be more than 262144 bytes")
        return await self.client.call(request)


@pytest.mark.parametrize("part", [1.0, 0.5, 0.1], ids=["one claim too many", "half of them", "hardly one"])
@virtually
async def test_a_rollout_ends_although_its_claims_do_not_fit_onto_the_lease(part: float) -> None:
    async with open_scene(*nodes(6), start=False) as scene:
        server = SmallServer(scene)
        scene.e.start_operator(server)
        await scene.serve(FULL)
        scene.apply(SLICED, rollout=at_once(4))
        await scene.any_fenced()
        server.limit = max(int(server.longest * part) - 1, 250)
        await scene.ready(seconds=3600)
        assert server.refused <= 10


@virtually
async def test_no_claim_is_taken_that_would_not_fit_beside_what_others_wrote_on_the_lease() -> None:
    async with open_scene(*nodes(4), start=False) as scene:
        server = SmallServer(scene)
        scene.e.start_operator(server)
        await scene.serve(FULL)
        lease = scene.e.cluster.objects(LEASES)[0]["metadata"]
        free = 600
        others = {"metadata": {"annotations": {"note": "x" * (LEASE_ROOM - len(names.ANNOTATION_CLAIMS) - 4 - free)}}}
        scene.e.cluster.patch(LEASES, lease["name"], others, lease["namespace"])
        server.limit, server.longest = free, 0
        await asyncio.sleep(10)
        scene.apply(SLICED, rollout=at_once(4))

        def waiting() -> bool:
            shown = (scene.transition(f"gpu-{number + 1}").get("message", "") for number in range(4))
            return any("the leader's Lease has no room for another claim" in message for message in shown)

        await scene.e.until(waiting, "a node that waits for room on the Lease", 600)
        await scene.ready(seconds=3600)
        assert server.refused == 0
        assert server.longest <= free
