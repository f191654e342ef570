"""A watch whose server goes away, or whose rights do (kubectl_gpusharing/pools/status.py): on a pipe, standard error says so."""

import json
import select
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import pytest
from hack.cluster.process import wait_until
from tests.cli.desk import GPUNODES, POLICIES, PROGRAM, SECONDS, Desk
from tests.cli.objects import policy
from tests.wording import lacks

from kubectl_gpusharing.shell.troubles import INTERRUPTED


@contextmanager
def watching(desk: Desk, *more: str) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(
        [*PROGRAM, "status", "--watch", *more],
        env=desk.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def line(stream: IO[bytes] | None) -> str:
    assert stream is not None
    ready, _, _ = select.select([stream], [], [], SECONDS)
    assert ready, f"nothing more for {SECONDS} s"
    return stream.readline().decode()


def everything(process: subprocess.Popen[bytes]) -> tuple[str, str]:
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=SECONDS)
    assert process.returncode == INTERRUPTED
    return out.decode(), err.decode()


def shut_out(desk: Desk, answer: tuple[int, str]) -> None:
    """Once both watches are under way, end them, and answer this to all calls."""
    watches = {f"WATCH {path}" for path in (POLICIES, GPUNODES)}
    wait_until(lambda: watches <= set(desk.server.asked), SECONDS, "both watches")
    desk.server.refuses_all = answer
    desk.server.hang_up()


def tries(desk: Desk, more: int) -> None:
    before = len(desk.server.asked)
    wait_until(lambda: len(desk.server.asked) >= before + more, SECONDS, "further tries")


AWAY = [
    ((403, 'User "me" cannot list that'), "you lack a permission in context desk: not allowed to "),
    ((503, "apiserver is shutting down"), "the API server of context desk does not respond: "),
]


@pytest.mark.parametrize(("answer", "told"), AWAY, ids=["rights that are gone", "a server that is away"])
def test_a_watch_on_a_pipe_says_once_that_it_cannot_go_on_and_once_that_it_does(
    desk: Desk, answer: tuple[int, str], told: str
) -> None:
    with watching(desk) as process:
        assert line(process.stdout) == "1 pool needs attention: pool-b.\n"
        while not line(process.stdout).startswith("pool-b"):
            pass
        shut_out(desk, answer)
        said = line(process.stderr)
        assert said.startswith(f"warning: {told}")
        assert not lacks(said, "out of date", "reconnect")
        tries(desk, 4)
        desk.server.refuses_all = None
        assert line(process.stderr) == "warning: following context desk again\n"
        out, err = everything(process)
    assert err == ""
    assert "pool-b  MIG" not in out, "nothing has changed, so nothing is drawn anew"


def test_what_a_program_reads_of_a_watch_stays_data(desk: Desk) -> None:
    """What changed meanwhile comes when the server is back."""
    with watching(desk, "-o", "json") as process:
        first = line(process.stdout)
        shut_out(desk, (403, "no"))
        assert line(process.stderr).startswith("warning: you lack a permission")
        later = policy("pool-d")
        later["metadata"]["resourceVersion"] = "2"
        desk.server.lists[POLICIES] = [*desk.server.lists[POLICIES], later]
        desk.server.refuses_all = None
        assert line(process.stderr).startswith("warning: following context desk again")
        rest, err = everything(process)
    assert err == ""
    decoder, text, found = json.JSONDecoder(), first + rest, []
    while text.strip():
        value, end = decoder.raw_decode(text.lstrip())
        found.append([pool["name"] for pool in value["pools"]])
        text = text.lstrip()[end:]
    assert found == [["pool-b", "pool-c"], ["pool-b", "pool-d", "pool-c"]]
