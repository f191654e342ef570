"""The agent's promises to the operator, on SIMULATED GPUs: agent/gpunode.py and kube/background.py too."""

import asyncio
import fcntl
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from hack.sim.gpu import SimulatedGPUs
from tests.fakes.gpus import FixedPods, OneNode, eventually, programs_on
from tests.fakes.virtualtime import virtually
from tests.wording import lacks

from gpusharing.agent.library import LibraryError, Reading
from gpusharing.agent.loop import AgentLoop, LoopSettings, RestartNeeded
from gpusharing.agent.main import lock_node
from gpusharing.agent.podresources import Holdings
from gpusharing.kube.client import GPUNODES
from gpusharing.kube.errors import Expired, Unavailable
from gpusharing.planning.gpus.texts import read_mig

H100 = "NVIDIA H100 80GB HBM3"
NEVER = 3600.0
PROMPT = LoopSettings(interval=NEVER, hung_after=NEVER, retry_first=0.001, retry_last=0.001)
"""Turns come from events only; a retry comes at once; a thread that starts late on a busy machine is no hang."""
HASTY = replace(PROMPT, hung_after=0.05)


class Bench:
    """One agent on a simulated node."""

    def __init__(self, *products: str) -> None:
        self.node = OneNode()
        self.gpus = SimulatedGPUs("gpu-01", products or (H100,))
        self.pods = FixedPods()

    @asynccontextmanager
    async def running(self, settings: LoopSettings = PROMPT) -> AsyncIterator[AgentLoop]:
        """An agent process, from start to SIGTERM. One that ends by itself ends the test at once."""
        clock, test = asyncio.get_running_loop().time, asyncio.current_task()
        assert test is not None
        loop = AgentLoop(
            self.node.name, self.node.client, self.gpus, self.pods, replace(settings, jitter=0.0), clock=clock
        )
        task = asyncio.create_task(loop.run())
        task.add_done_callback(lambda ended: ended.cancelled() or test.cancel())
        try:
            yield loop
        finally:
            self.gpus.unhang()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    async def ends(self, settings: LoopSettings = PROMPT) -> str:
        """An agent runs until it needs a new container; returns the error that the server has then."""
        with pytest.raises(RestartNeeded):
            await AgentLoop("gpu-01", self.node.client, self.gpus, self.pods, settings).run()
        assert self.node.observed is not None
        return self.node.observed.error


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
    assert [read_mig(gpu.mig)[0] for gpu in observed.gpus] == [(("3g.40gb", 1),)]
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
    assert (len(bench.node.patches), loop.writes_by_outcome["ok"]) == (1, 1)


async def test_a_change_of_the_hardware_is_reported_at_the_next_turn(bench: Bench) -> None:
    bench.node.ask("r1")
    async with bench.running(LoopSettings(interval=0.001)):
        await bench.node.answered("r1")
        bench.gpus.add_process(0, "python3", 4242)
        observed = await bench.node.until(lambda observed: bool(observed.programs))
    assert programs_on(observed, 0) == ["python3"]
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
        assert (still.quiet, still.gpus[0].mig) == (True, "Disabled")
        assert bench.gpus.readings == readings
        assert loop.why_not_ready() == ""
        bench.node.ask("r3")
        observed = await bench.node.answered("r3")
        assert (observed.quiet, observed.gpus[0].mig) == (False, "Enabled")


@pytest.fixture
def divided() -> Bench:
    """Two GPUs with an instance each, and a process on the second."""
    bench = Bench(H100, H100)
    for gpu in range(2):
        bench.gpus.set_mig_mode(gpu, on=True)
        bench.gpus.create(gpu, "3g.40gb")
    bench.gpus.add_process(1, "python3", 4242, bench.gpus.look()[1].instances[0].uuid)
    return bench


def used(loop: AgentLoop) -> list[int]:
    """The GPUs with series of their use."""
    return [device.gpu for device in loop.use[0].devices] if loop.use is not None else []


async def test_gpus_that_do_not_change_are_read_on_for_the_metrics_and_nothing_is_reported(divided: Bench) -> None:
    divided.node.ask("r1", quiet=True, quiet_gpus=[0])
    async with divided.running(LoopSettings(interval=0.001)) as loop:
        before = await divided.node.answered("r1")
        assert before.quiet
        readings, patches = divided.gpus.readings, len(divided.node.patches)
        divided.gpus.create(0, "1g.10gb")  # mig-manager is at work
        divided.gpus.set_health(1, 3, None)
        await eventually(lambda: divided.gpus.readings > readings + 1 and loop.gpus[1].ecc_uncorrected == 3)
        assert used(loop) == [1]
        assert [len(gpu.instances) for gpu in loop.gpus] == [1, 1], "GPU 0 as it was when it was last read"
        assert (divided.node.observed, len(divided.node.patches)) == (before, patches)
        assert loop.why_not_ready() == ""
        divided.node.ask("r2")
        after = await divided.node.answered("r2")
    assert (after.quiet, after.gpus[1].ecc_errors) == (False, True), "what was read meanwhile is reported now"
    assert read_mig(after.gpus[0].mig)[0] == (("3g.40gb", 1), ("1g.10gb", 1))


async def test_a_reading_that_fails_beside_a_change_is_no_failure_of_the_report(
    divided: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    divided.node.ask("r1", quiet=True, quiet_gpus=[0])
    async with divided.running(LoopSettings(interval=0.001)) as loop:
        before = await divided.node.answered("r1")
        divided.gpus.fail(LibraryError("Unknown Error", "NVMLAccessLost"))
        await eventually(lambda: loop.readings_by_outcome["failed"] >= 5)
        assert (divided.node.observed, loop.why_not_ready(), loop.use) == (before, "", None)
        divided.gpus.fail(None)
        await eventually(lambda: used(loop) == [1])
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == ["cannot read the GPUs"]


async def test_an_agent_that_starts_during_a_change_reads_the_gpus_that_do_not_change(divided: Bench) -> None:
    divided.node.ask("r1", quiet=True, quiet_gpus=[0])
    async with divided.running():
        before = await divided.node.answered("r1")
    async with divided.running(LoopSettings(interval=0.001)) as loop:
        await eventually(lambda: used(loop) == [1])
        assert [gpu.index for gpu in loop.gpus] == [1]
    assert divided.node.observed == before


async def test_silence_about_all_gpus_waits_for_a_reading_of_some(divided: Bench) -> None:
    divided.node.ask("r1", quiet=True, quiet_gpus=[0])
    async with divided.running(HASTY) as loop:
        await divided.node.answered("r1")
        divided.gpus.hang()
        await loop.cycle()
        divided.node.ask("r2", quiet=True)
        hung = await divided.node.until(lambda observed: observed.error.startswith("NVMLHung: "))
        assert (hung.request_id, hung.quiet) == ("r1", False)
        divided.gpus.unhang()
        observed = await divided.node.answered("r2")
        assert [gpu.access for gpu in observed.gpus] == ["Ok", "Ok"], "a reading of some GPUs answers nothing"
        assert (observed.quiet, observed.error, divided.gpus.open_sessions) == (True, "", 0)
        readings = divided.gpus.readings
        await loop.cycle()
        assert (divided.gpus.readings, loop.use) == (readings, None)


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
    async with bench.running(HASTY) as loop:
        known = (await bench.node.answered("r1")).gpus
        bench.gpus.hang()
        bench.node.ask("r2", quiet=True)
        hung = await bench.node.until(lambda observed: observed.error.startswith("NVMLHung: "))
        assert (hung.request_id, hung.quiet, hung.gpus) == ("r1", False, known)
        assert "is hung" in loop.why_not_ready()
        assert loop.why_not_alive() == ""
        bench.node.ask("r3")
        await eventually(lambda: loop.readings_by_outcome["hung"] >= 2)
        assert bench.gpus.readings == 2  # no second reading beside the hung one
        bench.gpus.unhang()
        healed = await bench.node.answered("r3")
    assert healed.error == ""
    assert bench.gpus.open_sessions == 0


@virtually
async def test_eight_gpus_without_persistence_mode_are_read_in_time_and_a_hang_is_told_within_a_minute() -> None:
    bench = Bench(*[H100] * 8)
    bench.gpus.hang()
    bench.node.ask("r1")
    async with bench.running(LoopSettings()) as loop:
        await asyncio.sleep(24)  # 3 s for each
        assert bench.node.observed is None
        bench.gpus.unhang()
        assert (await bench.node.answered("r1")).error == ""
        bench.gpus.hang()
        await asyncio.sleep(33 + 45)
        assert loop.why_not_ready().startswith("NVMLHung: ")


async def test_a_missing_driver_is_an_error_text_and_no_echo_and_logged_once(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.gpus.fail(LibraryError("no driver; install it", "NVMLNotLoaded"))
    bench.node.ask("r1")
    async with bench.running(LoopSettings(interval=0.001)) as loop:
        observed = await bench.node.until(lambda observed: bool(observed.error))
        assert observed.error == "NVMLNotLoaded: no driver; install it"
        assert (observed.request_id, observed.gpus) == ("", ())
        assert loop.why_not_ready() == observed.error
        await eventually(lambda: loop.readings_by_outcome["failed"] >= 3)
        bench.gpus.fail(None)
        await bench.node.answered("r1")
    assert [record.message for record in caplog.records] == ["cannot read the GPUs"]


@pytest.mark.parametrize(
    ("error", "readings"),
    [(LibraryError("another driver", "NVMLReplaced"), 1), (LibraryError("Unknown Error", "NVMLAccessLost"), 3)],
    ids=["the driver was replaced", "the devices cannot be opened any more"],
)
async def test_the_agent_ends_when_only_a_new_container_can_read_again(
    bench: Bench, error: LibraryError, readings: int
) -> None:
    bench.node.ask("r1")
    bench.gpus.fail(error)
    assert await bench.ends(LoopSettings(interval=0.001)) == f"{error.reason}: {error}"
    assert bench.gpus.readings == readings


async def test_an_end_never_comes_before_the_server_knows_why(bench: Bench) -> None:
    bench.node.ask("r1")
    bench.gpus.fail(LibraryError("another driver", "NVMLReplaced"))
    bench.node.cluster.faults.fail("patch", GPUNODES, Unavailable("connection refused"), times=3)
    assert await bench.ends() == "NVMLReplaced: another driver"
    assert bench.gpus.readings == 4


async def test_the_error_stays_in_view_over_the_restart_until_a_reading_succeeds(bench: Bench) -> None:
    bench.node.ask("r1")
    bench.gpus.fail(LibraryError("another driver", "NVMLReplaced"))
    await bench.ends()
    bench.gpus.hang()
    async with bench.running(LoopSettings(interval=NEVER, hung_after=NEVER)) as again:
        await eventually(lambda: bench.gpus.readings == 2)
        assert again.why_not_ready() == "the GPUs have not been read yet"
        assert bench.node.observed is not None
        assert bench.node.observed.error == "NVMLReplaced: another driver"
        bench.gpus.fail(None)
        bench.gpus.unhang()
        assert (await bench.node.answered("r1")).error == ""


async def test_a_reading_between_two_lost_accesses_begins_the_count_anew(bench: Bench) -> None:
    bench.node.ask("r1")
    settings = LoopSettings(interval=NEVER, hung_after=NEVER)
    async with bench.running(settings) as loop:
        await bench.node.answered("r1")
        for round_ in range(4):
            bench.gpus.fail(LibraryError("Unknown Error", "NVMLAccessLost"))
            await loop.cycle()
            await loop.cycle()
            bench.gpus.fail(None)
            await loop.cycle()
            assert loop.why_not_ready() == "", round_


@pytest.mark.parametrize("trouble", ["no driver", "a hang", "one GPU"])
async def test_the_agent_goes_on_where_a_new_container_would_not_help(bench: Bench, trouble: str) -> None:
    bench.node.ask("r1")
    match trouble:
        case "no driver":
            bench.gpus.fail(LibraryError("install it", "NVMLNotLoaded"))
        case "a hang":
            bench.gpus.hang()
        case _:
            bench.gpus.lose(0, "Failed", "Unknown Error")
    async with bench.running(LoopSettings(interval=0.001, hung_after=0.001)) as loop:
        await eventually(lambda: sum(loop.readings_by_outcome.values()) >= 10)


async def test_an_api_server_that_is_away_is_waited_for(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.node.ask("r1")
    faults = bench.node.cluster.faults
    faults.fail("list", GPUNODES, Unavailable("connection refused"), times=3)
    async with bench.running() as loop:
        assert not lacks(loop.why_not_ready(), "not reached", "API server")
        await bench.node.answered("r1")
        assert loop.why_not_ready() == ""
        faults.fail("patch", GPUNODES, Unavailable("connection reset"), times=2)
        bench.gpus.add_process(0, "python3", 1)
        bench.node.ask("r2")
        observed = await bench.node.answered("r2")
        assert observed.programs
        assert loop.writes_by_outcome["failed"] == 2
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


@pytest.mark.parametrize(
    ("end", "lists"), [("expire", 2), ("close_watches", 1)], ids=["expired", "ended by the server"]
)
async def test_a_watch_goes_on_and_only_after_an_expired_one_is_there_another_list(
    bench: Bench, end: str, lists: int
) -> None:
    bench.node.ask("r1")
    async with bench.running():
        await bench.node.answered("r1")
        getattr(bench.node.cluster, end)()
        await eventually(lambda: bench.node.lists == lists)
        bench.node.ask("r2")
        await bench.node.answered("r2")
    assert bench.node.lists == lists


@virtually
async def test_a_server_that_forgets_the_watchs_place_for_ever_is_listed_at_a_slow_pace() -> None:
    bench = Bench()
    bench.node.ask("r1")
    bench.node.cluster.faults.fail("watch", GPUNODES, Expired("too old resource version"), times=10**6)
    async with bench.running():
        await asyncio.sleep(120)
    assert 3 <= bench.node.lists <= 14


async def test_a_change_is_reported_to_a_gpunode_that_holds_all_that_was_known_before(bench: Bench) -> None:
    bench.node.ask("r1")
    async with bench.running() as loop:
        await bench.node.answered("r1")
        await loop.cycle()
        bench.pods.holdings = Holdings({"nvidia.com/gpu": 1}, 1)
        await loop.cycle()
        assert bench.node.observed is not None
        assert bench.node.observed.pods == 1


async def test_a_resource_that_nobody_holds_any_more_leaves_the_server(bench: Bench) -> None:
    bench.pods.holdings = Holdings({"nvidia.com/gpu": 1}, 1)
    bench.node.ask("r1")
    async with bench.running():
        await bench.node.answered("r1")
        bench.pods.holdings = Holdings({"nvidia.com/mig-1g.10gb": 2}, 2)
        bench.node.ask("r2")
        observed = await bench.node.answered("r2")
    assert observed.allocated == {"nvidia.com/mig-1g.10gb": 2}


async def test_without_the_kubelet_nobody_knows_who_holds_what_and_the_gpus_are_still_reported(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.pods.unavailable = "no socket"
    bench.node.ask("r1")
    async with bench.running():
        observed = await bench.node.answered("r1")
    assert (observed.error, observed.allocated, len(observed.gpus)) == ("", None, 1)
    assert observed.pods is None
    assert [record.__dict__["error"] for record in caplog.records if "which pods use devices" in record.message] == [
        "no socket"
    ]


async def test_a_loop_that_stopped_turning_is_not_alive(bench: Bench) -> None:
    now = 0.0
    loop = AgentLoop("gpu-01", bench.node.client, bench.gpus, bench.pods, clock=lambda: now)
    assert loop.why_not_alive() == ""
    now = 131.0
    assert not lacks(loop.why_not_alive(), "main loop", "131 s")


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
    assert {(r.gpus[0].mig, r.gpus[1].mig) for r in reports} == {("NotSupported", "Disabled")}


def test_a_reading_is_a_value(bench: Bench) -> None:
    assert bench.gpus.read() == bench.gpus.read() != Reading("", (), ())


async def test_a_second_agent_of_a_node_reads_nothing_and_says_so_until_the_first_has_ended(
    bench: Bench, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bench.node.ask("r1")
    first = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(first, fcntl.LOCK_EX)
    alone = lock_node(tmp_path)
    loop = AgentLoop("gpu-01", bench.node.client, bench.gpus, bench.pods, PROMPT, why_not_alone=alone)
    task = asyncio.create_task(loop.run())
    try:
        await eventually(lambda: "another agent runs on this node" in loop.why_not_ready())
        assert str(tmp_path) in loop.why_not_ready()
        assert (loop.readings_by_outcome["ok"], loop.writes_by_outcome["ok"]) == (0, 0)
        os.close(first)
        await bench.node.answered("r1")
        await eventually(lambda: not loop.why_not_ready())
        assert loop.readings_by_outcome["ok"] >= 1
    finally:
        task.cancel()
        await asyncio.wait({task})
    assert (alone(), lock_node(tmp_path)() != "") == ("", True), "it keeps the lock"
    assert sum("another agent" in record.message for record in caplog.records) == 1, "told once"


def test_where_nothing_can_be_locked_an_agent_is_not_kept_from_reading(tmp_path: Path) -> None:
    assert lock_node(tmp_path / "missing")() == ""
