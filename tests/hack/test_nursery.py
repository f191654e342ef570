"""tests/integration/nursery.py: what it kills is always an operator of its own."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hack.cluster.process import text_of, wait_until
from tests.integration.nursery import Nursery, freeze


def test_the_pid_of_an_operator_that_ended_is_kept_until_it_was_waited_for(tmp_path: Path) -> None:
    log = tmp_path / "operator.log"
    with Nursery() as nursery:
        pid = nursery.start({"GPUSHARING_LOG_LEVEL": "loud"}, log)  # no level: it ends at once
        wait_until(lambda: "LOG_LEVEL" in text_of(log), 60, "its complaint")
        nursery.strike(pid)
        os.kill(pid, 0)  # nobody else can have it
        nursery.wait(pid)
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
        nursery.kill(pid)
        with pytest.raises(ValueError, match=f"{pid} is not an operator of ours"):
            nursery.strike(pid)


def test_who_has_ended_by_itself_is_noticed_and_signalled_no_more(tmp_path: Path) -> None:
    with Nursery() as nursery:
        pid = nursery.start({"GPUSHARING_LOG_LEVEL": "loud"}, tmp_path / "operator.log")
        wait_until(lambda: nursery.has_ended(pid), 60, "its end")
        assert nursery.has_ended(pid)
        with pytest.raises(ValueError, match=f"{pid} is not an operator of ours"):
            nursery.freeze(pid)


@pytest.mark.parametrize(
    ("work", "waits"),
    [("await asyncio.sleep(60)", True), ("while True:\n        pass", False), ("time.sleep(60)", False)],
    ids=["at rest", "computing", "in another system call"],
)
def test_who_is_frozen_is_told_from_one_that_has_something_in_hand(work: str, waits: bool) -> None:
    program = f"""
import asyncio, time
async def main():
    print("at work", flush=True)
    {work}
asyncio.run(main())
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "at work\n"
        try:
            wait_until(lambda: told(process) is waits, 30, "what it says of its work")
        finally:
            process.kill()


def told(process: subprocess.Popen[str]) -> bool:
    found = freeze(process.pid)
    process.send_signal(signal.SIGCONT)
    return found
