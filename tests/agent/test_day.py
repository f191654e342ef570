"""24 simulated hours of the agent, with changes and faults in every one of them, leave nothing behind. SIMULATED."""

from itertools import pairwise
from pathlib import Path

from hack.nvmlsim.simulator import Simulator
from tests.agent.nvml_day import HOURS
from tests.agent.nvml_machine import finish, needs_compiler, start

pytestmark = needs_compiler

SETTLED = 3
"""Hours after which every code path was taken at least once: a call hangs in the third."""
CYCLE = 3
"""Hours after which memory stands where it stood, but for what is really kept: lists grow and shrink meanwhile."""
PER_HOUR = 2 * 1024
"""Bytes that Python may hold more after each hour. 100 readings an hour: 20 bytes each, less than any object."""
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
    assert last["heap"] - settled["heap"] < PER_HOUR * hours
    assert last["rss"] - settled["rss"] < RSS
    assert {(hour["files"], hour["threads"]) for hour in day["hours"][SETTLED:]} == {(settled["files"], 1)}
    growth = [after["traced"] - before["traced"] for before, after in pairwise(day["hours"][SETTLED::CYCLE])]
    assert sorted(growth)[len(growth) // 2] < PER_HOUR * CYCLE / 2, growth
