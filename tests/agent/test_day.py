"""24 simulated hours of the agent, with changes and faults in every one of them, leave nothing behind. SIMULATED."""

from pathlib import Path
from statistics import median
from typing import Any

from hack.nvmlsim.simulator import Simulator
from tests.agent.nvml_day import HOURS
from tests.agent.nvml_machine import finish, needs_compiler, start

pytestmark = needs_compiler

CYCLE = 3
"""Hours after which a day repeats itself: a call hangs in each third hour, and the partitions come round."""
SETTLED = 3
"""Hours after which every code path was taken at least once: a call hangs in the third."""
PER_HOUR = 2 * 1024
"""Bytes that Python may hold more after each hour. 100 readings an hour: 20 bytes each, less than any object."""
HEAP_PER_HOUR = 3 * 1024
"""Bytes that malloc may hold more. 1.2 to 2.0 KB are seen, most of it tracemalloc's own tables (without it none after half a day); malloc's smallest block is 32 bytes, so one left behind by each reading would be 3.2 KB more."""
RSS = 1024 * 1024
"""Bytes that the allocator may lose in a day to fragmentation, with tracemalloc's own tables."""

SECONDS = 600
"""Patience, real time: a day takes 12 s of an idle core, on which a whole CI may be running."""


def test_a_day_of_changes_and_faults_leaves_nothing_behind(tmp_path: Path) -> None:
    machine = Simulator.create(tmp_path / "state", ["h100-80gb", "h100-80gb"], seed="day")
    day = finish(start(machine, module="nvml_day", MALLOC_ARENA_MAX="1"), seconds=SECONDS)
    assert len(day["hours"]) == HOURS
    assert day["readings"]["ok"] > 2000
    assert day["readings"]["failed"] > 200
    assert day["readings"]["hung"] > 50
    assert day["errors"] == HOURS
    assert day["writes"] < 10 * HOURS, "written only on changes"
    settled, last = day["hours"][SETTLED], day["hours"][-1]
    hours = HOURS - 1 - SETTLED
    assert last["traced"] - settled["traced"] < PER_HOUR * hours
    assert last["objects"] - settled["objects"] < 5 * hours
    assert last["rss"] - settled["rss"] < RSS
    assert {(hour["files"], hour["threads"]) for hour in day["hours"][SETTLED:]} == {(settled["files"], 1)}
    assert growth(day, "traced") < PER_HOUR / 2
    assert growth(day, "heap") < HEAP_PER_HOUR


def growth(day: dict[str, Any], what: str) -> float:
    """Bytes an hour: the median over pairs of hours that are CYCLE apart. A table that doubles its size once, or a buffer of 64 KiB that comes and stays, is in few of these pairs, and something left behind by each reading in all."""
    values = [hour[what] for hour in day["hours"][SETTLED:]]
    per_hour = [(after - before) / CYCLE for before, after in zip(values, values[CYCLE:], strict=False)]
    found = float(median(per_hour))
    print(f"{what} grows by {found:.0f} bytes an hour")
    return found
