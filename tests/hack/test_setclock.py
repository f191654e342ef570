"""hack/faultproxy/setclock.py: the time of day of a program is set while it runs, and of nobody else."""

import os
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hack.faultproxy.setclock import SetClock

PROGRAM = """\
import datetime, sys, time
for _ in sys.stdin:
    print(time.time(), datetime.datetime.now().timestamp(), time.monotonic(), time.clock_gettime(time.CLOCK_BOOTTIME))
    sys.stdout.flush()
"""


@pytest.mark.tools
def test_the_time_of_day_is_set_and_no_other_clock(tmp_path: Path) -> None:
    with (
        SetClock(tmp_path) as clock,
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            env={**os.environ, **clock.environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as program,
    ):
        assert program.stdin is not None
        assert program.stdout is not None
        for seconds in (0, 3600, -3600, 0):
            clock.set(seconds)
            day = datetime.now(UTC).timestamp()
            before = day, day, time.monotonic(), time.clock_gettime(time.CLOCK_BOOTTIME)
            program.stdin.write("now\n")
            program.stdin.flush()
            told = tuple(map(float, program.stdout.readline().split()))
            ahead = [round(there - here, -2) for there, here in zip(told, before, strict=True)]
            assert ahead == [seconds, seconds, 0, 0]
        program.stdin.close()
