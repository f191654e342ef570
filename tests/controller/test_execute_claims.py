"""What the claims on the Lease say is said before the step that they are about."""

import asyncio
from unittest.mock import patch

import pytest
from tests.build import make_claim, make_fence
from tests.controller.executing import Executing
from tests.fakes.virtualtime import virtually

from gpusharing.controller.execute import SHARED_PATIENCE, Executor
from gpusharing.kube.client import POLICIES
from gpusharing.kube.errors import Conflict
from gpusharing.planning.snapshot.actions import Action, Actuate, SetClaims, SetFinalizer
from gpusharing.planning.snapshot.views import ClusterSnapshot


@pytest.mark.parametrize(("error", "writes"), [(Conflict("changed too often"), 0), (None, 1)])
async def test_without_its_claim_no_node_goes_past_its_point_of_no_return(
    error: Conflict | None, writes: int
) -> None:
    stage = Executing()
    stage.claims.error = error
    actuate = Actuate(stage.view(), make_fence(stage="actuating"), {"nvidia.com/mig.config": "all-balanced"})
    await stage.run(actuate, shared=(SetClaims({"gpu-07": make_claim()}),))
    assert stage.patches() == writes


@virtually
async def test_a_slow_shared_write_that_ends_meanwhile_does_not_stand_for_refused_claims() -> None:
    """The finalizer takes longer than a pass waits for it, and is written while the claims are refused."""
    stage = Executing()
    stage.cluster.add(POLICIES, {"metadata": {"name": "pool-b"}, "spec": {}})
    await stage.read_policies()
    perform = stage.executor._perform

    async def slow(action: Action, snapshot: ClusterSnapshot) -> bool:
        if isinstance(action, SetFinalizer):
            await asyncio.sleep(SHARED_PATIENCE + 1)
            return True
        if isinstance(action, SetClaims):
            await asyncio.sleep(2)
            raise Conflict("changed too often")
        return await perform(action, snapshot)

    actuate = Actuate(stage.view(), make_fence(stage="actuating"), {"nvidia.com/mig.config": "all-balanced"})
    shared = (SetFinalizer("pool-b", True), SetClaims({"gpu-07": make_claim()}))
    with patch.object(Executor, "_perform", side_effect=slow):
        await stage.run(actuate, shared=shared)
    assert stage.patches() == 0
