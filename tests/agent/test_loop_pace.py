"""When the agent's loop reads and reports, and what it meters in between."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import replace
from itertools import pairwise

import pytest
from tests.agent.test_loop import NEVER, PROMPT, Bench
from tests.fakes.gpus import FixedPods, OneNode, eventually
from tests.fakes.virtualtime import virtually

from gpusharing.agent.gpunode import OwnNode
from gpusharing.agent.library import LibraryError
from gpusharing.agent.loop import AgentLoop, LoopSettings
from gpusharing.agent.podresources import Holdings, PodDevices
from gpusharing.kube.client import GPUNODES, ApiRequest, PassingClient, WatchEvent
from gpusharing.kube.errors import Unavailable

RESOURCE = "nvidia.com/gpu"
METERED = replace(PROMPT, meter_lag=0.0)


class Timed(FixedPods):
    def __init__(self) -> None:
        super().__init__()
        self.turns: list[float] = []

    async def read(self) -> Holdings:
        self.turns.append(asyncio.get_running_loop().time())
        return await super().read()


async def waits(seconds: float, failing: bool) -> list[float]:
    """The waits between the turns of an agent with the shipped settings, without the first turns."""
    bench, pods = Bench(), Timed()
    if failing:
        bench.node.cluster.faults.fail("patch", GPUNODES, Unavailable("connection refused"), times=10**6)
    bench.node.ask("r1")
    clock = asyncio.get_running_loop().time
    task = asyncio.create_task(AgentLoop("gpu-01", bench.node.client, bench.gpus, pods, clock=clock).run())
    await asyncio.sleep(seconds)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    begun = max(at for at in pods.turns if at < pods.turns[0] + 0.1)
    return [after - before for before, after in pairwise(at for at in pods.turns if at >= begun)]


@virtually
async def test_a_turn_is_up_to_a_tenth_early_or_late_so_that_a_fleet_does_not_beat_in_step() -> None:
    gaps = await waits(3000, failing=False)
    assert 27 <= min(gaps) < 28 < 32 < max(gaps) <= 33


@virtually
async def test_a_report_that_is_refused_is_sent_again_after_a_second_and_then_ever_more_seldom() -> None:
    gaps = await waits(1200, failing=True)
    due = [1, 2, 4, 8, 16, *[30] * (len(gaps) - 5)]
    assert len(gaps) > 20
    assert all(0.5 * wait <= gap <= 1.5 * wait for wait, gap in zip(due, gaps, strict=True)), gaps


@virtually
async def test_the_gpunode_is_listed_again_every_hour_whatever_the_watch_says() -> None:
    bench = Bench()
    bench.node.ask("r1")
    async with bench.running():
        await asyncio.sleep(2.5 * 3600)
        assert bench.node.lists == 3


async def test_an_agent_whose_reports_are_refused_is_not_ready_and_says_why() -> None:
    bench = Bench()
    bench.node.cluster.faults.fail("patch", GPUNODES, Unavailable("connection reset"))
    bench.node.ask("r1")
    async with bench.running(replace(PROMPT, retry_first=NEVER)) as loop:
        await eventually(lambda: loop.writes_by_outcome["failed"] == 1)
        assert loop.why_not_ready() == "connection reset"


async def test_a_refused_report_is_forgotten_with_its_gpunode() -> None:
    bench = Bench()
    bench.node.cluster.faults.fail("patch", GPUNODES, Unavailable("connection reset"))
    bench.node.ask("r1")
    async with bench.running(replace(PROMPT, retry_first=NEVER)) as loop:
        await eventually(lambda: loop.why_not_ready() == "connection reset")
        bench.node.delete()
        await eventually(lambda: "does not exist" in loop.why_not_ready())


async def test_a_report_that_was_lost_with_its_gpunode_is_sent_to_the_new_one() -> None:
    bench = Bench()
    bench.node.ask("r1")
    async with bench.running() as loop:
        before = await bench.node.answered("r1")
        await loop.cycle()
        bench.node.delete()
        await eventually(lambda: "does not exist" in loop.why_not_ready())
        bench.node.ask("r1")
        await eventually(lambda: loop.why_not_ready() == "")
        await loop.cycle()
        assert bench.node.observed == before


class Clumsy(PassingClient):
    async def stream(self, request: ApiRequest) -> AsyncGenerator[WatchEvent, None]:
        try:
            async for event in self.client.stream(request):
                yield event
        finally:
            raise ValueError("a bug")


async def test_a_bug_is_not_hidden_by_a_restart_that_is_needed_at_the_same_time() -> None:
    bench = Bench()
    bench.node.ask("r1")
    bench.gpus.fail(LibraryError("another driver", "NVMLReplaced"))
    loop = AgentLoop("gpu-01", Clumsy(bench.node.client), bench.gpus, bench.pods, PROMPT)
    with pytest.raises(ExceptionGroup) as ended:
        await loop.run()
    assert {str(error) for error in ended.value.exceptions} == {"a bug", "NVMLReplaced: another driver"}


@virtually
async def test_the_meter_follows_who_holds_what_though_the_kubelet_never_says_what_there_is() -> None:
    bench = Bench()
    bench.node.ask("r1")
    async with bench.running(METERED) as loop:
        await bench.node.answered("r1")
        (gpu,) = bench.gpus.read().gpus
        bench.pods.holdings = Holdings(by_pod=(PodDevices("team-a", "train", RESOURCE, (gpu.uuid,)),))
        await loop.cycle()
        await asyncio.sleep(10)
        bench.pods.unavailable = "no socket"
        await loop.cycle()
        await asyncio.sleep(10)
        await loop.cycle()
        held = {namespace: seconds for (_, namespace, _), seconds in loop.meter.metered["allocated"].items()}
        assert held == {"team-a": 20.0}, "a kubelet that is away changes nothing"


@virtually
async def test_the_meter_follows_the_gpus_and_the_quiet_of_a_change_though_nothing_is_held() -> None:
    bench = Bench()
    (gpu,) = bench.gpus.read().gpus
    bench.pods.holdings = Holdings(allocatable=((RESOURCE, gpu.uuid),))
    bench.node.ask("r1")
    async with bench.running(METERED) as loop:
        await bench.node.answered("r1")
        await asyncio.sleep(5)
        bench.gpus.set_mig_mode(0, on=True)
        await loop.cycle()
        await asyncio.sleep(10)
        bench.node.ask("r2", quiet=True)
        await bench.node.answered("r2")
        await asyncio.sleep(20)
        await loop.cycle()
    told = loop.meter.metered
    seconds = [*told["idle"].values(), told["stranded"]["",], told["transition"]["",]]
    assert seconds == pytest.approx([5, 10, 20], abs=0.1)


def test_late_answers_about_the_last_eight_deleted_gpunodes_are_ignored_and_earlier_ones_forgotten() -> None:
    own = OwnNode("gpu-01", OneNode().client, lambda: None)
    versions = [
        {"metadata": {"name": "gpu-01", "uid": f"uid-{number}", "resourceVersion": str(number + 1)}}
        for number in range(9)
    ]
    for version in versions:
        own.take(version, version)
        own.take(None, version)
    for version in versions[1:]:
        own.take(version, version)
        assert own.node is None
    own.take(versions[0], versions[0])
    assert own.node == versions[0], "what is remembered does not grow for ever"


@virtually
async def test_a_request_in_a_store_that_was_restored_from_a_backup_is_answered() -> None:
    bench = Bench()
    bench.node.ask("r1")
    async with bench.running(LoopSettings()):
        await bench.node.answered("r1")
        backup = bench.node.cluster.backup()
        bench.node.cluster.store.version += 10_000
        bench.node.ask("r2")
        await bench.node.answered("r2")
        await asyncio.sleep(100)
        bench.node.cluster.restore(backup)
        bench.node.ask("r3")
        await asyncio.sleep(300)
        await bench.node.answered("r3")
        patches = len(bench.node.patches)
        await asyncio.sleep(600)
        assert len(bench.node.patches) == patches, "it writes what it knows again only while it doubts"
