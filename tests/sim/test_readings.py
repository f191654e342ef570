"""sim/readings.py: calls of NVML without a thread, unless one would hang."""

import asyncio
import threading

import pytest
from hack.sim.gpu import SimulatedGPUs
from hack.sim.readings import HANGING, Readings
from tests.fakes.virtualtime import virtually

from gpusharing.agent.library import LibraryError

H100 = "NVIDIA H100 80GB HBM3"


def simulated() -> tuple[SimulatedGPUs, Readings]:
    gpus = SimulatedGPUs("gpu-1", [H100])
    return gpus, Readings(gpus)


@virtually
async def test_a_reading_is_made_at_once_in_the_thread_of_the_caller_who_goes_on_in_another_turn() -> None:
    _, readings = simulated()
    future = readings(threading.current_thread, "nvml-reading")
    assert not future.done(), "others get their turn, as beside a real reading"
    assert await future is threading.current_thread()


@virtually
async def test_what_a_reading_fails_of_reaches_the_one_who_awaits() -> None:
    _, readings = simulated()

    def fail() -> None:
        raise LibraryError("no driver", "NVMLNotLoaded")

    with pytest.raises(LibraryError, match="no driver"):
        await readings(fail, "nvml-reading")


@virtually
async def test_nobody_minds_that_a_reading_was_given_up_on() -> None:
    gpus, readings = simulated()
    given_up = readings(gpus.read, "nvml-reading")
    given_up.cancel()
    assert (await readings(gpus.read, "nvml-reading")).gpus
    assert given_up.cancelled()


@virtually
async def test_a_reading_that_hangs_holds_up_nobody_and_returns_when_it_no_longer_does() -> None:
    gpus, readings = simulated()
    before = set(HANGING)
    gpus.hang()
    hanging = readings(gpus.read, "nvml-reading")
    await asyncio.sleep(60)
    assert not hanging.done()
    (thread,) = set(HANGING) - before
    assert thread.name == "nvml-reading"
    gpus.unhang()
    assert thread not in HANGING, "its end is waited for, before any time passes"
    assert (await hanging).gpus
