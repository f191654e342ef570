"""Which nodes are written to first."""

from dataclasses import replace

from tests.build import make_snapshot
from tests.controller.executing import Executing, plan_of

from gpusharing.api.names import Phase


async def test_nodes_in_flight_are_written_to_before_others() -> None:
    """Their proofs grow old while a server that asks us to wait admits few calls."""
    stage = Executing()
    stage.add_node("gpu-08")
    plan = plan_of({name: (stage.fence(name),) for name in ("gpu-07", "gpu-08")})
    waiting = replace(plan.verdicts["gpu-07"], phase=Phase.PENDING)
    plan = replace(plan, verdicts={**plan.verdicts, "gpu-07": waiting})
    await stage.executor.execute(plan, make_snapshot([stage.view(), stage.view("gpu-08")]))
    assert [write.call.name for write in stage.cluster.writes] == ["gpu-08", "gpu-07"]
