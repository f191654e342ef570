"""Which nodes are written to first, and how long a plan is carried out."""

import asyncio
from dataclasses import replace

from hack.sim.fakefaults import EVER, SILENCE
from tests.build import make_snapshot
from tests.controller.executing import Executing, plan_of
from tests.fakes.virtualtime import virtually
from tests.kube.objects import pod

from gpusharing.api.names import Phase
from gpusharing.controller.execute import PLAN_VALID
from gpusharing.kube.client import NODES, PODS
from gpusharing.kube.http import Limits
from gpusharing.planning.snapshot.actions import Evict


async def test_nodes_in_flight_are_written_to_before_others() -> None:
    """Their proofs grow old while a server that asks us to wait admits few calls."""
    stage = Executing()
    stage.add_node("gpu-08")
    plan = plan_of({name: (stage.fence(name),) for name in ("gpu-07", "gpu-08")})
    waiting = replace(plan.verdicts["gpu-07"], phase=Phase.PENDING)
    plan = replace(plan, verdicts={**plan.verdicts, "gpu-07": waiting})
    await stage.executor.execute(plan, make_snapshot([stage.view(), stage.view("gpu-08")]))
    assert [write.call.name for write in stage.cluster.writes] == ["gpu-08", "gpu-07"]


def sent(stage: Executing) -> list[str]:
    """The verbs of the writes about gpu-07 and its pods that have reached the server."""
    return [write.call.verb for write in stage.cluster.writes if write.call.resource in (NODES, PODS)]


def slow_evictions(stage: Executing) -> tuple[Evict, Evict]:
    """Two evictions, each of which the server carries out and answers too late."""
    stage.cluster.faults.fail("evict", PODS, SILENCE, times=EVER, after=True)
    other = stage.cluster.add(PODS, pod("llm-1"))["metadata"]["uid"]
    return stage.eviction, Evict("gpu-07", "team-a", "llm-1", other)


@virtually
async def test_what_goes_on_in_the_background_ends_with_the_next_plan() -> None:
    stage = Executing()
    await stage.run(*slow_evictions(stage))
    await stage.run()
    await asyncio.sleep(60)
    assert sent(stage) == ["evict"]


@virtually
async def test_what_goes_on_in_the_background_ends_with_the_time_of_its_plan_if_no_other_is_made() -> None:
    stage = Executing()
    stage.cluster.faults.limits = Limits(total=PLAN_VALID + 1)
    await stage.run(*slow_evictions(stage))
    await asyncio.sleep(60)
    assert sent(stage) == ["evict"]
