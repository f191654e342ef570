"""The agent's promises to the operator, on SIMULATED GPUs: agent/own.py and agent/background.py too."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from hack.sim.gpu import SimulatedGPUs
from tests.fakes.gpus import FixedPods, OneNode, eventually

from gpusharing.agent.library import NotLoaded, Reading
from gpusharing.agent.loop import AgentLoop, LoopSettings
from gpusharing.agent.podresources import Holdings
from gpusharing.kube.client import GPUNODES
from gpusharing.kube.errors import Unavailable

H100 = "NVIDIA H100 80GB HBM3"
NEVER = 3600.0
PROMPT = LoopSettings(interval=NEVER, hung_after=0.05, retry_first=0.001, retry_last=0.001)
"""Turns come from events only; a deadline passes at once; a retry comes at once."""


class Bench:
    """One agent on a simulated node."""

    def __init__(self, *products: str) -> None:
        self.node = OneNode()
        self.gpus = SimulatedGPUs("gpu-01", products or (H100,))
        self.pods = FixedPods()

    @asynccontextmanager
    async def running(self, settings: LoopSettings = PROMPT) -> AsyncIterator[AgentLoop]:
        """An agent process, from start to SIGTERM."""
        loop = AgentLoop(self.node.name, self.node.client, self.gpus, self.pods, settings, jitter=lambda: 1.0)
        task = asyncio.create_task(loop.run())
        try:
            yield loop
        finally:
            self.gpus.unhang()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task


@pytest.fixture
def bench() -> Bench:
    return Bench()


async def test_a_new_request_is_answered_with_what_the_library_reads(bench: Bench) -> None:
    bench.gpus.set_mig_mode(0, on=True)
    bench.gpus.create(0, "3g.40gb")
    bench.pods.holdings = Holdings({"nvidia.com/mig-3g.40gb": 1}, 1)
    bench.node.ask("r1")
    async with bench.running() as loop:
        observed = await bench.node.answered("r1")
    assert observed.simulated
    assert (observed.error, observed.quiet) == ("", False)
    assert [(g.mig_mode, [(i.profile, i.start) for i in g.instances]) for g in observed.gpus] == [
        ("Enabled", [("3g.40gb", 4)])
    ]
    assert observed.models[0].product == H100
    assert (observed.allocated, observed.pods) == ({"nvidia.com/mig-3g.40gb": 1}, 1)
    assert loop.why_not_ready() == ""


async def test_the_echo_is_of_the_request_seen_before_the_reading_began(bench: Bench) -> None:
    bench.gpus.hang()
    bench.node.ask("before")
    async with bench.running(LoopSettings(interval=NEVER, hung_after=NEVER)):
        await eventually(lambda: bench.gpus.readings == 1)
        bench.node.ask("during")
        bench.gpus.unhang()
        await bench.node.answered("during")
    echoes = [patch["status"]["observed"]["requestID"] for patch in bench.node.patches]
    assert echoes == ["before", "during"]
    assert bench.gpus.readings == 2


async def test_nothing_is_written_while_nothing_changes(bench: Bench) -> None:
    bench.node.ask("r1")
    async with bench.running(LoopSettings(interval=0.001)) as loop:
        await bench.node.answered("r1")
        seen = bench.gpus.readings
        await eventually(lambda: bench.gpus.readings >= seen + 5)
    assert (len(bench.node.patches), loop.stats.writes) == (1, 1)


async def test_a_change_of_the_hardware_is_reported_at_the_next_turn(bench: Bench) -> None:
    bench.node.ask("r1")
    async with bench.running(LoopSettings(interval=0.001)):
        await bench.node.answered("r1")
        bench.gpus.add_process(0, "python3", 4242)
        observed = await bench.node.until(lambda observed: bool(observed.gpus[0].processes))
    assert observed.gpus[0].processes[0].name == "python3"
    assert len(bench.node.patches) == 2


async def test_quiet_reads_once_more_and_then_keeps_the_library_closed(bench: Bench) -> None:
    bench.node.ask("r1")
    async with bench.running(LoopSettings(interval=0.001)) as loop:
        await bench.node.answered("r1")
        bench.node.ask("r2", quiet=True)
        observed = await bench.node.answered("r2")
        readings = bench.gpus.readings
        assert observed.quiet
        assert bench.gpus.open_sessions == 0
        bench.gpus.set_mig_mode(0, on=True)  # refused by the simulated driver while a client is open
        bench.pods.holdings = Holdings({"nvidia.com/gpu": 1}, 1)
        still = await bench.node.until(lambda observed: observed.pods == 1)
        assert (still.quiet, still.gpus[0].mig_mode) == (True, "Disabled")
        assert bench.gpus.readings == readings
        assert loop.why_not_ready() == ""
        bench.node.ask("r3")
        observed = await bench.node.answered("r3")
        assert (observed.quiet, observed.gpus[0].mig_mode) == (False, "Enabled")


async def test_a_restart_while_quiet_does_not_open_the_library(bench: Bench) -> None:
    bench.node.ask("r1", quiet=True)
    async with bench.running():
        await bench.node.answered("r1")
    readings, patches = bench.gpus.readings, len(bench.node.patches)
    bench.pods.holdings = Holdings({"nvidia.com/gpu": 1}, 1)
    async with bench.running() as loop:
        observed = await bench.node.until(lambda observed: observed.pods == 1)
    assert (observed.quiet, observed.request_id) == (True, "r1")
    assert bench.gpus.readings == readings
    assert len(bench.node.patches) == patches + 1
    assert loop.observed is not None


async def test_a_deleted_gpunode_is_filled_again_without_opening_a_quiet_library(bench: Bench) -> None:
    bench.node.ask("r1", quiet=True)
    async with bench.running():
        await bench.node.answered("r1")
        readings = bench.gpus.readings
        bench.node.delete()
        bench.node.ask("r1", quiet=True)
        observed = await bench.node.answered("r1")
    assert observed.quiet
    assert bench.gpus.readings == readings


async def test_without_a_gpunode_the_agent_waits_and_opens_nothing(bench: Bench) -> None:
    async with bench.running() as loop:
        await eventually(lambda: bench.node.lists == 1)
        assert "GPUNode gpu-01 does not exist" in loop.why_not_ready()
        assert bench.gpus.readings == 0
        bench.node.ask("r1")
        await bench.node.answered("r1")


async def test_a_hung_reading_is_reported_with_the_last_known_gpus_and_heals(bench: Bench) -> None:
    bench.node.ask("r1")
    async with bench.running() as loop:
        known = (await bench.node.answered("r1")).gpus
        bench.gpus.hang()
        bench.node.ask("r2", quiet=True)
        hung = await bench.node.until(lambda observed: observed.error.startswith("NVMLHung: "))
        assert (hung.request_id, hung.quiet, hung.gpus) == ("r1", False, known)
        assert "hangs" in loop.why_not_ready()
        assert loop.why_not_alive() == ""
        bench.node.ask("r3")
        await eventually(lambda: loop.stats.readings["hung"] >= 2)
        assert bench.gpus.readings == 2  # no second reading beside the hung one
        bench.gpus.unhang()
        healed = await bench.node.answered("r3")
    assert healed.error == ""
    assert bench.gpus.open_sessions == 0


async def test_a_missing_driver_is_an_error_text_and_no_echo(bench: Bench) -> None:
    bench.gpus.fail(NotLoaded("no driver; install it"))
    bench.node.ask("r1")
    async with bench.running(LoopSettings(interval=0.001)) as loop:
        observed = await bench.node.until(lambda observed: bool(observed.error))
        assert observed.error == "NVMLNotLoaded: no driver; install it"
        assert (observed.request_id, observed.gpus) == ("", ())
        assert loop.why_not_ready() == observed.error
        bench.gpus.fail(None)
        await bench.node.answered("r1")
    assert loop.stats.readings["failed"] >= 1


async def test_an_api_server_that_is_away_is_waited_for(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.node.ask("r1")
    faults = bench.node.cluster.faults
    faults.fail("list", GPUNODES, Unavailable("connection refused"), times=3)
    async with bench.running() as loop:
        assert loop.why_not_ready() == "the API server was not reached yet"
        await bench.node.answered("r1")
        assert loop.why_not_ready() == ""
        faults.fail("patch", GPUNODES, Unavailable("connection reset"), times=2)
        bench.gpus.add_process(0, "python3", 1)
        bench.node.ask("r2")
        observed = await bench.node.answered("r2")
        assert observed.gpus[0].processes
        assert loop.stats.failed_writes == 2
        await eventually(lambda: loop.why_not_ready() == "")
    told = [record.__dict__.get("error") for record in caplog.records]
    assert told.count("connection refused") == told.count("connection reset") == 1


async def test_a_report_whose_answer_was_lost_is_not_sent_again(bench: Bench) -> None:
    bench.node.ask("r1")
    lost = Unavailable("connection reset")
    bench.node.cluster.faults.fail("patch", GPUNODES, lost, after=True)
    async with bench.running() as loop:
        await bench.node.answered("r1")
        await eventually(lambda: loop.why_not_ready() == "")
    assert len(bench.node.patches) == 1


async def test_an_expired_watch_is_followed_by_a_new_list(bench: Bench) -> None:
    bench.node.ask("r1")
    async with bench.running():
        await bench.node.answered("r1")
        bench.node.cluster.expire()
        await eventually(lambda: bench.node.lists == 2)
        bench.node.ask("r2")
        await bench.node.answered("r2")


async def test_a_watch_that_the_server_ends_goes_on_without_a_list(bench: Bench) -> None:
    bench.node.ask("r1")
    async with bench.running():
        await bench.node.answered("r1")
        bench.node.cluster.close_watches()
        bench.node.ask("r2")
        await bench.node.answered("r2")
    assert bench.node.lists == 1


async def test_a_resource_that_nobody_holds_any_more_leaves_the_server(bench: Bench) -> None:
    bench.pods.holdings = Holdings({"nvidia.com/gpu": 1}, 1)
    bench.node.ask("r1")
    async with bench.running():
        await bench.node.answered("r1")
        bench.pods.holdings = Holdings({"nvidia.com/mig-1g.10gb": 2}, 2)
        bench.node.ask("r2")
        observed = await bench.node.answered("r2")
    assert observed.allocated == {"nvidia.com/mig-1g.10gb": 2}


async def test_without_the_kubelet_nothing_is_allocated_and_the_gpus_are_still_reported(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.pods.unavailable = "no socket"
    bench.node.ask("r1")
    async with bench.running():
        observed = await bench.node.answered("r1")
    assert (observed.error, observed.allocated, len(observed.gpus)) == ("", {}, 1)
    assert [record.__dict__["error"] for record in caplog.records if "devices unknown" in record.message] == [
        "no socket"
    ]


async def test_a_loop_that_stopped_turning_is_not_alive(bench: Bench) -> None:
    now = 0.0
    loop = AgentLoop("gpu-01", bench.node.client, bench.gpus, bench.pods, clock=lambda: now)
    assert loop.why_not_alive() == ""
    now = 101.0
    assert loop.why_not_alive() == "the loop has not turned for 101 s"


async def test_many_agents_run_in_one_process() -> None:
    benches = [Bench("Tesla T4", H100) for _ in range(50)]
    loops = [AgentLoop(b.node.name, b.node.client, b.gpus, b.pods, PROMPT) for b in benches]
    tasks = [asyncio.create_task(loop.run()) for loop in loops]
    for b in benches:
        b.node.ask("r1")
    reports = [await b.node.answered("r1") for b in benches]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert {(r.gpus[0].mig_mode, r.gpus[1].mig_mode) for r in reports} == {("NotSupported", "Disabled")}


def test_a_reading_is_a_value(bench: Bench) -> None:
    assert bench.gpus.read() == bench.gpus.read() != Reading("", (), ())
