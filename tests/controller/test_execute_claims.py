"""What the claims on the Lease say is said before the step that they are about."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass

import pytest
from tests.build import make_claim, make_fence
from tests.controller.executing import Claims, Executing
from tests.fakes.virtualtime import virtually

from gpusharing.controller.execute import SHARED_PATIENCE
from gpusharing.kube.client import JSON, POLICIES, ApiRequest, KubeClient, WatchEvent
from gpusharing.kube.errors import Conflict
from gpusharing.planning.snapshot.actions import Actuate, SetClaims, SetFinalizer


@pytest.mark.parametrize(("error", "writes"), [(Conflict("changed too often"), 0), (None, 1)])
async def test_without_its_claim_no_node_goes_past_its_point_of_no_return(error: Conflict | None, writes: int) -> None:
    stage = Executing()
    stage.claims.error = error
    actuate = Actuate(stage.view(), make_fence(stage="actuating"), {"nvidia.com/mig.config": "all-balanced"})
    await stage.run(actuate, shared=(SetClaims({"gpu-07": make_claim()}),))
    assert stage.patches() == writes


@dataclass
class SlowPolicies(KubeClient):
    """A client whose writes of policies take longer than a pass waits for them."""

    inner: KubeClient

    async def call(self, request: ApiRequest) -> JSON:
        if request.resource == POLICIES and request.verb == "patch":
            await asyncio.sleep(SHARED_PATIENCE + 1)
        return await self.inner.call(request)

    def stream(self, request: ApiRequest) -> AsyncGenerator[WatchEvent, None]:
        return self.inner.stream(request)


@virtually
async def test_a_slow_shared_write_that_ends_meanwhile_does_not_stand_for_refused_claims() -> None:
    stage = Executing(through=SlowPolicies, claims=Claims(Conflict("changed too often"), seconds=2))
    stage.cluster.add(POLICIES, {"metadata": {"name": "pool-b"}, "spec": {}})
    await stage.read_policies()
    actuate = Actuate(stage.view(), make_fence(stage="actuating"), {"nvidia.com/mig.config": "all-balanced"})
    shared = (SetFinalizer("pool-b", True), SetClaims({"gpu-07": make_claim()}))
    await stage.run(actuate, shared=shared)
    assert [write.call.resource for write in stage.cluster.writes] == [POLICIES]
