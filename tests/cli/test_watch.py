"""`status --watch`: a picture that follows the cluster, at a terminal and on a pipe, where standard error says that the server or a right is gone (kubectl_gpusharing/pools/status.py, kubectl_gpusharing/shell/terminal.py)."""

import asyncio
import io
import re
import select
import signal
import subprocess
import termios
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import IO

import pytest
from hack.cluster.process import wait_until
from hack.sim.fakecluster import FakeCluster
from hack.sim.fakefaults import EVER
from tests.cli.asking import ME, ask
from tests.cli.desk import END, HEIGHT, PROGRAM, SECONDS, WIDTH, Desk, read_until, terminal
from tests.cli.desk import GPUNODES as GPUNODES_PATH
from tests.cli.desk import POLICIES as POLICIES_PATH
from tests.cli.objects import fleet, gpunode, policy
from tests.cli.schema import read_stream
from tests.fakes.virtualtime import virtually
from tests.wording import lacks

from gpusharing.kube.client import EVENTS, GPUNODES, POLICIES
from gpusharing.kube.errors import Forbidden, KubeError, Unavailable
from kubectl_gpusharing.shell.troubles import INTERRUPTED, Denied

ALTERNATE, ORDINARY, TOP = "\x1b[?1049h", "\x1b[?1049l", "\x1b[H"
"""To the alternate screen of xterm and back, and to the upper left corner."""
BEFORE, AFTER = "1/3 nodes", "2/3 nodes"
CHANGED = policy("pool-b", nodes="2/3", message="pool-b-2: waiting for 1 pod to leave")


# --- at a terminal -----------------------------------------------------------------------------------------------


def test_a_change_is_drawn_over_what_was_there_before(desk: Desk) -> None:
    with terminal(desk, "status", "--watch") as (process, screen):
        first = read_until(screen, "pool-c")
        desk.server.modify(POLICIES_PATH, CHANGED)
        later = read_until(screen, "pool-b-2: waiting for 1 pod to leave")
        process.send_signal(signal.SIGINT)
        rest = read_until(screen, END)
        assert process.wait(SECONDS) == INTERRUPTED
    last = rest.rpartition(ORDINARY)[2]
    assert BEFORE in first.partition(ALTERNATE)[2], "the first picture is on the alternate screen"
    assert (ALTERNATE in later, ORDINARY in later) == (False, False), "and so are those that follow"
    over = next(one for one in later.split(TOP) if "pool-b-2: waiting for 1 pod to leave" in one)
    assert AFTER in over, "the picture with the news begins at the top"
    assert BEFORE not in over
    assert AFTER in last, "the last one stays on the ordinary screen"
    assert "Traceback" not in rest


@pytest.mark.parametrize("output", ["json", "yaml"])
def test_data_go_on_below_at_a_terminal_too_each_time_there_are_news(desk: Desk, output: str) -> None:
    with terminal(desk, "status", "--watch", "-o", output) as (process, screen):
        seen = read_until(screen, "nodesWithoutPolicy")
        assert "1/3" in seen
        desk.server.modify(POLICIES_PATH, CHANGED)
        seen += read_until(screen, "2/3")
        process.send_signal(signal.SIGINT)
        seen += read_until(screen, END)
        assert process.wait(SECONDS) == INTERRUPTED
    assert "\x1b" not in seen, "it can be scrolled and copied"
    assert seen.count("nodesWithoutPolicy") == 2


def pictures(seen: str) -> list[list[str]]:
    """The rows of each picture that was drawn over another, as a person reads them."""
    drawn = [one.partition(ORDINARY)[0] for one in seen.split(TOP)[1:]]
    return [[re.sub(r"\x1b\[[0-9;?]*[a-z]", "", row).rstrip() for row in one.split("\n")] for one in drawn]


def test_where_the_screen_has_no_room_for_all_it_draws_a_row_for_each_pool_the_worst_first(desk: Desk) -> None:
    states = {f"pool-{number:02}": "Failed" if number > 96 else "Synced" for number in range(100)}
    desk.server.lists[POLICIES_PATH] = [policy(name, status=word) for name, word in states.items()]
    desk.server.lists[GPUNODES_PATH] = [gpunode(f"{name}-0", word, policy=name) for name, word in states.items()]
    with terminal(desk, "status", "--watch", "--no-color") as (process, screen):
        seen = read_until(screen, "pass a POLICY")
        process.send_signal(signal.SIGINT)
        last = read_until(screen, END).rpartition(ORDINARY)[2]
        assert process.wait(SECONDS) == INTERRUPTED
    *rows, said = next(rows for rows in pictures(seen) if "pass a POLICY" in rows[-1])
    assert len(rows) == HEIGHT - 1
    health, totals, rest, header, *pools = rows
    assert health == "3 pools need attention: pool-97, pool-98, pool-99."
    assert totals.startswith("100 pools: 97 done, 3 failed; 100 nodes: 97 done, 3 failed")
    assert f"{totals} {rest}".endswith("; 2400 GPUs with 192000 GB of memory")
    assert header.startswith("POOL")
    assert [row.split()[0] for row in pools[:4]] == ["pool-97", "pool-98", "pool-99", "pool-00"]
    assert all("Failed" in row for row in pools[:3])
    assert re.fullmatch(rf"and {100 - len(pools)} more lines; .*POLICY.*", said)
    assert last.count("x  x 1 failed") == 3, "at the end everything stays on the ordinary screen"
    assert "pool-96  MIG 2x3g.40gb  Synced" in last


def test_one_pool_with_more_nodes_than_rows_says_how_much_more_there_is(desk: Desk) -> None:
    desk.server.lists[POLICIES_PATH] = [policy()]
    desk.server.lists[GPUNODES_PATH] = [gpunode(f"n-{number:02}", "Draining") for number in range(30)]
    with terminal(desk, "status", "--watch", "--no-color") as (_, screen):
        seen = read_until(screen, "make the terminal taller")
    assert re.search(r"and \d+ more lines; .*terminal", seen)
    assert "n-00" in seen


def test_a_terminal_that_is_made_larger_is_used_from_the_next_picture_on(desk: Desk) -> None:
    message = "pool-b-1: PDB team-b/ranker: waiting for 2 pods to leave, and for the pods of two more nodes"
    desk.server.lists[POLICIES_PATH] = [policy(f"pool-{number}", message=message) for number in range(30)]
    with terminal(desk, "status", "--watch", "--no-color") as (_, screen):
        assert message not in read_until(screen, "pass a POLICY")
        termios.tcsetwinsize(screen, (100, 2 * WIDTH))
        larger = read_until(screen, message)  # lines are as long as the terminal is wide now, or this waits in vain
        larger += read_until(screen, "pool-29")
        assert "pass a POLICY" not in larger.rpartition(TOP)[2]


# --- on a pipe ---------------------------------------------------------------------------------------------------


@contextmanager
def piped(desk: Desk, *more: str) -> Iterator[subprocess.Popen[bytes]]:
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


def test_on_a_pipe_a_change_goes_on_below(desk: Desk) -> None:
    with piped(desk) as process:
        assert process.stdout is not None
        written = read_until(process.stdout.fileno(), "pool-c")
        assert BEFORE in written
        desk.server.modify(POLICIES_PATH, CHANGED)
        written += read_until(process.stdout.fileno(), AFTER)
        written += everything(process)[0]
    assert written.count("pool-b  MIG") == 2
    assert "\x1b" not in written


def shut_out(desk: Desk, answer: tuple[int, str]) -> None:
    """Once both watches are under way, end them, and answer this to all calls."""
    watches = {f"WATCH {path}" for path in (POLICIES_PATH, GPUNODES_PATH)}
    wait_until(lambda: watches <= set(desk.server.asked), SECONDS, "both watches")
    desk.server.refuses_all = answer
    desk.server.hang_up()


AWAY = [
    ((403, 'User "me" cannot list that'), "you lack a permission in context desk: not allowed to "),
    ((503, "apiserver is shutting down"), "the API server of context desk does not respond: "),
]


@pytest.mark.parametrize(("answer", "told"), AWAY, ids=["rights that are gone", "a server that is away"])
def test_a_watch_on_a_pipe_says_once_that_it_cannot_go_on_and_once_that_it_does(
    desk: Desk, answer: tuple[int, str], told: str
) -> None:
    with piped(desk) as process:
        assert line(process.stdout) == "1 pool needs attention: pool-b.\n"
        while not line(process.stdout).startswith("pool-b"):
            pass
        shut_out(desk, answer)
        said = line(process.stderr)
        assert said.startswith(f"warning: {told}")
        assert not lacks(said, "out of date", "reconnect")
        before = len(desk.server.asked)
        wait_until(lambda: len(desk.server.asked) >= before + 4, SECONDS, "further tries")
        desk.server.refuses_all = None
        assert line(process.stderr) == "warning: following context desk again\n"
        out, err = everything(process)
    assert err == ""
    assert "pool-b  MIG" not in out, "nothing has changed, so nothing is drawn anew"


def test_what_a_program_reads_of_a_watch_stays_data(desk: Desk) -> None:
    """What changed meanwhile comes when the server is back."""
    with piped(desk, "-o", "json") as process:
        first = line(process.stdout)
        shut_out(desk, (403, "no"))
        assert line(process.stderr).startswith("warning: you lack a permission")
        later = policy("pool-d")
        later["metadata"]["resourceVersion"] = "2"
        desk.server.lists[POLICIES_PATH] = [*desk.server.lists[POLICIES_PATH], later]
        desk.server.refuses_all = None
        assert line(process.stderr).startswith("warning: following context desk again")
        rest, err = everything(process)
    assert err == ""
    found = [[pool["name"] for pool in one["pools"]] for one in read_stream(first + rest)]
    assert found == [["pool-b", "pool-c"], ["pool-b", "pool-d", "pool-c"]]


# --- in virtual time ---------------------------------------------------------------------------------------------


class Screen(io.StringIO):
    def __init__(self) -> None:
        super().__init__()
        self.written = asyncio.Event()

    def write(self, text: str) -> int:
        self.written.set()
        return super().write(text)

    async def until(self, word: str) -> str:
        async with asyncio.timeout(300):
            while word not in self.picture():
                self.written.clear()
                await self.written.wait()
        return self.picture()

    def picture(self) -> str:
        return self.getvalue().rpartition(TOP)[2]


def with_fleet() -> FakeCluster:
    cluster = FakeCluster()
    for resource, found in zip((POLICIES, GPUNODES), fleet(), strict=True):
        for raw in found:
            cluster.add(resource, raw)
    return cluster


@asynccontextmanager
async def watching(cluster: FakeCluster, *words: str, width: int | None = WIDTH) -> AsyncIterator[Screen]:
    """Somebody looks for as long as this lasts; on a pipe, where there is no width."""
    screen = Screen()
    looking = asyncio.create_task(
        ask(cluster, "status", "--watch", *words, width=width, stream=screen), name="status --watch"
    )
    try:
        yield screen
        assert not looking.done(), "it goes on until Ctrl-C"
    finally:
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)


def publish(cluster: FakeCluster, **summary: str) -> None:
    cluster.patch(POLICIES, "pool-b", {"status": {"summary": summary}}, subresource="status")


@virtually
async def test_ages_go_on_while_nothing_happens() -> None:
    cluster = FakeCluster()
    cluster.add(POLICIES, policy())
    since = "2026-11-20T09:00:00Z"
    cluster.add(GPUNODES, gpunode("pool-b-1", "Draining", "PDB", since=since))
    async with watching(cluster) as screen:
        assert "59s" not in await screen.until("pool-b-1  ")
        await screen.until("59s")
        await screen.until("2m")


@virtually
async def test_events_that_come_are_drawn_below_their_pool() -> None:
    cluster = with_fleet()
    about = {"kind": "GPUSharingPolicy", "name": "pool-b"}
    news = {
        "metadata": {"name": "pool-b.1", "namespace": "default"},
        "eventTime": "2026-11-20T09:00:00.000000Z",
        "reason": "DrainStarted",
        "note": "pool-b-1: 2 GPU pods will be evicted",
        "regarding": about,
    }
    async with watching(cluster, "--events") as screen:
        assert "DrainStarted" not in await screen.until("pool-c")
        cluster.add(EVENTS, {**news, "regarding": {"kind": "Node", "name": "pool-b"}, "note": "of a node"})
        cluster.add(EVENTS, {**news, "metadata": {"name": "pool-b.2", "namespace": "default"}})
        text = await screen.until("ago DrainStarted: pool-b-1: 2 GPU pods will be evicted")
    assert "of a node" not in text


@virtually
async def test_a_right_to_events_that_is_missing_is_named() -> None:
    cluster = with_fleet()
    refusal = Forbidden('User "me" cannot list resource "events"')
    cluster.faults.fail("list", EVENTS, refusal, times=EVER, identity=ME)
    with pytest.raises(Denied, match='cannot list resource "events"'):
        await ask(cluster, "status", "--events")


@virtually
async def test_on_a_pipe_nothing_is_written_again_while_nothing_happens() -> None:
    cluster = with_fleet()
    async with watching(cluster, width=None) as screen:
        first = await screen.until("pool-c")
        await asyncio.sleep(3600)
        assert screen.getvalue() == first
        publish(cluster, nodes="2/3")
        await screen.until(AFTER)
    assert screen.getvalue().count("pool-b  MIG") == 2


@virtually
async def test_of_one_policy_only_its_own_changes_are_news() -> None:
    cluster = with_fleet()
    async with watching(cluster, "pool-c", width=None) as screen:
        first = await screen.until("pool-c")
        publish(cluster, nodes="2/3")
        await asyncio.sleep(60)
        assert screen.getvalue() == first
        cluster.patch(POLICIES, "pool-c", {"status": {"summary": {"used": "7/8"}}}, subresource="status")
        await screen.until("7/8 devices used")
    assert "pool-b" not in screen.getvalue()


REFUSALS = [Unavailable("503 Service Unavailable"), Forbidden('User "me" cannot watch resource "gpunodes"')]


@pytest.mark.parametrize("refusal", REFUSALS, ids=["away", "no right"])
@virtually
async def test_where_the_server_cannot_be_followed_the_picture_says_that_it_may_be_old_until_it_can_again(
    refusal: KubeError,
) -> None:
    cluster = with_fleet()
    fault = cluster.faults.fail("watch", GPUNODES, refusal, times=EVER, identity=ME)
    async with watching(cluster) as screen:
        old = await screen.until("This may be out of date: ")
        assert str(refusal) in " ".join(old.split())
        assert BEFORE in old, "what is known is still there"
        publish(cluster, nodes="2/3")
        assert "This may be out of date: " in await screen.until(AFTER), "policies are followed, nodes are not"
        fault.lift()
        publish(cluster, nodes="3/3")
        await screen.until("3/3 nodes")
        await asyncio.sleep(300)
        assert "This may be out of date" not in screen.picture()
