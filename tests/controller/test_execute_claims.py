"""What the claims on the Lease say is said before the step that they are about."""

import pytest
from tests.build import make_claim, make_fence
from tests.controller.executing import Executing

from gpusharing.kube.errors import Conflict
from gpusharing.planning.snapshot.actions import Actuate, SetClaims


@pytest.mark.parametrize(("error", "writes"), [(Conflict("changed too often"), 0), (None, 1)])
async def test_without_its_claim_no_node_goes_past_its_point_of_no_return(
    error: Conflict | None, writes: int
) -> None:
    stage = Executing()
    stage.claims.error = error
    actuate = Actuate(stage.view(), make_fence(stage="actuating"), {"nvidia.com/mig.config": "all-balanced"})
    await stage.run(actuate, shared=(SetClaims({"gpu-07": make_claim()}),))
    assert stage.patches() == writes
