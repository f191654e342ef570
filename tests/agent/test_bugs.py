"""An error that nothing expects ends nothing: it is reported, what it concerns is unknown, and the agent goes on."""

import asyncio
import logging
from collections.abc import Collection
from dataclasses import replace
from typing import Any

import pytest
from hack.nvmlsim.simulator import Simulator
from prometheus_client import CollectorRegistry
from tests.agent.nvml_machine import needs_compiler, read
from tests.agent.test_loop import PROMPT, Bench
from tests.fakes.gpus import eventually

from gpusharing.agent.library import Reading, in_background
from gpusharing.agent.loop import AgentLoop, LoopSettings
from gpusharing.agent.metrics import AgentCollector
from gpusharing.agent.podresources import Holdings
from gpusharing.api.gpunode import Request
from gpusharing.kube.background import in_daemon_thread
from gpusharing.kube.client import GPUNODES

BUG: Any = AttributeError("no such function")
OFTEN = replace(PROMPT, interval=0.001)


def counted(loop: AgentLoop, part: str) -> float:
    registry = CollectorRegistry()
    registry.register(AgentCollector(loop))
    return registry.get_sample_value("gpusharing_agent_faults_total", {"part": part}) or 0.0


def logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The parts of the agent whose unexpected errors were logged, each with a traceback."""
    told = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert all(record.exc_info for record in told)
    return [record.__dict__["part"] for record in told]


async def test_an_unexpected_error_of_the_library_is_reported_and_the_next_reading_follows(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bench = Bench()
    bench.node.ask("r1")
    async with bench.running(OFTEN) as loop:
        known = (await bench.node.answered("r1")).gpus
        bench.gpus.fail(BUG)
        bench.node.ask("r2", quiet=True)
        failing = await bench.node.until(lambda observed: bool(observed.error))
        assert failing.error.startswith("AgentFault: AttributeError: no such function (")
        assert (failing.request_id, failing.quiet, failing.gpus) == ("r1", False, known), "nothing new is claimed"
        assert loop.why_not_ready() == failing.error
        await eventually(lambda: counted(loop, "reading") >= 3)
        assert logged(caplog) == ["reading"], "once"
        bench.gpus.fail(None)
        assert (await bench.node.answered("r2")).error == ""
        await eventually(lambda: loop.why_not_ready() == "")


class Kubelet:
    def __init__(self, answer: Any) -> None:
        self.answer = answer

    async def read(self) -> Holdings:
        if isinstance(self.answer, Exception):
            raise self.answer
        holdings: Holdings = self.answer
        return holdings


async def test_an_unexpected_error_about_the_kubelet_makes_the_holdings_unknown_and_no_more() -> None:
    bench = Bench()
    bench.pods = Kubelet(TypeError("a list"))  # type: ignore[assignment]  # a double with the same methods
    bench.node.ask("r1")
    async with bench.running() as loop:
        observed = await bench.node.answered("r1")
        assert (observed.error, len(observed.gpus)) == ("", 1)
        assert (observed.allocated, observed.pods) == (None, None)
        assert counted(loop, "pods") >= 1


async def test_a_mistake_in_the_meter_does_not_hold_up_the_report() -> None:
    bench = Bench()
    nobody: Any = None
    bench.pods.holdings = Holdings({"nvidia.com/gpu": 1}, 1, by_pod=nobody)
    bench.node.ask("r1")
    async with bench.running() as loop:
        observed = await bench.node.answered("r1")
        assert (observed.error, observed.pods) == ("", 1)
        assert counted(loop, "meter") >= 1
        assert loop.why_not_ready() == ""


async def test_a_turn_that_fails_midway_is_not_taken_for_fresh_by_the_next(caplog: pytest.LogCaptureFixture) -> None:
    bench, odd = Bench(), object()
    kubelet = Kubelet(Holdings())
    bench.pods = kubelet  # type: ignore[assignment]  # a double with the same methods
    bench.node.ask("r1")
    async with bench.running(OFTEN) as loop:
        await bench.node.answered("r1")
        kubelet.answer = odd  # the reading of this turn succeeds, and what follows it does not
        bench.gpus.add_process(0, "python3", 1)
        failing = await bench.node.until(lambda observed: bool(observed.error))
        assert (failing.request_id, failing.programs) == ("r1", "")
        assert "AgentFault: AttributeError" in loop.why_not_ready()
        assert loop.reading is None, "no metric shows it either"
        kubelet.answer = Holdings()
        healed = await bench.node.until(lambda observed: not observed.error)
        assert healed.programs
        await eventually(lambda: loop.why_not_ready() == "")
    assert logged(caplog)[-1] == "turn"


async def test_a_library_that_has_to_stay_closed_stays_closed_through_a_bug() -> None:
    bench = Bench()
    kubelet = Kubelet(Holdings())
    bench.pods = kubelet  # type: ignore[assignment]  # a double with the same methods
    bench.node.ask("r1", quiet=True)
    async with bench.running(OFTEN) as loop:
        await bench.node.answered("r1")
        readings = bench.gpus.readings
        kubelet.answer = object()
        await eventually(lambda: counted(loop, "turn") >= 3)
        assert "AgentFault" in loop.why_not_ready()
        kubelet.answer = Holdings()
        await eventually(lambda: loop.why_not_ready() == "")
        assert bench.gpus.readings == readings
        assert bench.node.observed is not None
        assert (bench.node.observed.quiet, bench.node.observed.error) == (True, "")


async def test_an_unexpected_error_of_a_write_is_retried_with_a_growing_wait() -> None:
    bench = Bench()
    bench.node.ask("r1")
    bench.node.cluster.faults.fail("patch", GPUNODES, RuntimeError("a bug"), times=4)
    async with bench.running() as loop:
        observed = await bench.node.answered("r1")
        assert observed.error == ""
        await eventually(lambda: loop.why_not_ready() == "")
        assert counted(loop, "turn") >= 2


class Ending:
    simulated = True

    def read(self, leave: Collection[int] = ()) -> Reading:
        raise SystemExit(3)


async def test_an_end_of_the_process_is_no_error_to_go_on_after() -> None:
    read = in_background(Ending(), 60.0, asyncio.get_running_loop().time, lambda: None, in_daemon_thread)
    with pytest.raises(SystemExit):
        await read(Request("r1"), ())


async def test_an_agent_whose_first_turn_fails_says_so_and_a_signal_ends_it() -> None:
    bench = Bench()
    bench.pods = Kubelet(object())  # type: ignore[assignment]  # a double with the same methods
    bench.node.ask("r1")
    async with bench.running(LoopSettings(interval=0.001)) as loop:  # its end is a cancellation
        failing = await bench.node.until(lambda observed: bool(observed.error))
        assert (failing.error.partition(":")[0], failing.request_id, failing.gpus) == ("AgentFault", "", ())
        assert counted(loop, "turn") >= 1


async def test_a_gpunode_that_nobody_could_have_written_does_not_end_the_agent() -> None:
    bench = Bench()
    bench.node.cluster.add(GPUNODES, {"metadata": {"name": "gpu-01"}, "spec": None, "status": None})
    async with bench.running() as loop:
        await eventually(lambda: loop.readings_by_outcome["ok"] >= 1)


@needs_compiler
def test_a_gpu_that_nothing_can_be_made_of_does_not_hide_the_others(machine: Simulator) -> None:
    with machine.edit() as state:
        state.gpus[0].name = b"NVIDIA \xff\xfe"
    odd, fine = read(machine)["gpus"]
    assert (odd["access"], odd["processes"]) == ("Failed", [])
    assert odd["error"].startswith("AgentFault: UnicodeDecodeError: ")
    assert (fine["access"], fine["mig_mode"]) == ("Ok", "Disabled")
