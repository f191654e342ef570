"""kube/background.py: calls that may block, beside a real event loop. And kube/aio.py and our own version."""

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest
from tests.fakes.tls import Identity

from gpusharing.kube.background import Background, in_daemon_thread, new_worker
from gpusharing.kube.ownversion import own_version

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


TELL = """
import os, ssl, {module}
from aiohttp import connector

trusts = connector._SSL_CONTEXT_VERIFIED, connector._SSL_CONTEXT_UNVERIFIED, ssl.create_default_context()
print(*(trust.cert_store_stats()["x509_ca"] for trust in trusts), os.environ["SSL_CERT_FILE"], end="")
assert "SSL_CERT_DIR" not in os.environ
"""


@pytest.mark.parametrize(
    "module",
    [
        "gpusharing.controller.leading",
        "gpusharing.controller.main",
        "kubectl_gpusharing.shell.running",
        "kubectl_gpusharing.usage.prometheus",
    ],
)
def test_what_aiohttp_would_trust_by_itself_is_not_read_and_the_rest_stays(module: str, tmp_path: Path) -> None:
    authorities = str(Identity(tmp_path).pki.ca)
    environment = {name: value for name, value in os.environ.items() if name != "SSL_CERT_DIR"}
    done = subprocess.run(
        [sys.executable, "-c", TELL.format(module=module)], env=environment | {"SSL_CERT_FILE": authorities},
        check=False, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert (done.stdout, done.stderr, done.returncode) == (f"0 0 1 {authorities}", "", 0)


ROOT = Path(__file__).parents[2]
PRINTED = "from gpusharing.kube.ownversion import own_version; print(repr(own_version()))"


def test_the_version_is_that_of_the_installed_package() -> None:
    assert own_version() == version("gpu-sharing-operator")


def test_a_source_folder_that_is_not_installed_has_none() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "operator")}
    command = [sys.executable, "-S", "-c", PRINTED]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "''\n"
