"""kube/background.py: calls that may block, beside a real event loop."""

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest

from gpusharing.kube.background import Background, in_daemon_thread, new_worker

EITHER = pytest.mark.parametrize("make", [lambda: in_daemon_thread, new_worker], ids=["thread", "worker"])
HANGS = """\
import asyncio, threading
from gpusharing.kube.background import new_worker
async def main():
    future = new_worker()(threading.Event().wait, "hangs")
    done, _ = await asyncio.wait({future}, timeout=0.01)
    print("given up" if not done else "done")
asyncio.run(main())
"""


@EITHER
def test_the_result_and_the_error_of_a_call_reach_the_one_who_awaits(make: Callable[[], Background]) -> None:
    def fail() -> None:
        raise KeyError("gone")

    async def main() -> int:
        background = make()
        with pytest.raises(KeyError, match="gone"):
            await background(fail, "fails")
        answer: int = await background(lambda: 7, "answers")
        return answer

    assert asyncio.run(main()) == 7


def test_a_worker_makes_all_its_calls_in_one_thread_under_the_name_of_the_first() -> None:
    async def main() -> list[threading.Thread]:
        worker = new_worker()
        return [await worker(threading.current_thread, name) for name in ("one", "two")]

    one, two = asyncio.run(main())
    assert one is two
    assert one.name == "one"
    assert one.daemon


def test_a_call_behind_one_that_hangs_waits_for_it() -> None:
    async def main() -> tuple[bool, str]:
        worker, hanging = new_worker(), threading.Event()
        first = worker(hanging.wait, "hangs")
        second = worker(lambda: "second", "waits")
        await asyncio.sleep(0)
        before = first.done() or second.done()
        hanging.set()
        await first
        return before, await second

    assert asyncio.run(main()) == (False, "second")


def test_a_call_that_was_given_up_on_does_not_end_the_worker() -> None:
    async def main() -> str:
        worker, hanging = new_worker(), threading.Event()
        given_up = worker(hanging.wait, "hangs")
        given_up.cancel()
        hanging.set()
        following: str = await worker(lambda: "next", "next")
        return following

    assert asyncio.run(main()) == "next"


def test_a_call_that_hangs_does_not_hold_the_process() -> None:
    ended = subprocess.run([sys.executable, "-c", HANGS], check=False, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "given up\n", "")
