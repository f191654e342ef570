"""The pages of operator and agent: what strangers who reach a port can make them do is bounded."""

import asyncio
import io
import select
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field

import pytest
from prometheus_client.registry import CollectorRegistry
from tests.fakes.gpus import eventually

from gpusharing.kube.pageserver import (
    FRESH_S,
    LONGEST_REQUEST,
    MOST_ACCEPTED,
    MOST_CONNECTIONS,
    MOST_OF_AN_ADDRESS,
    MOST_THREADS,
    RENDERING_SHARE,
    Answer,
    PageServer,
    SharedAnswer,
    metrics_page,
)

OK = Answer(200, b"ok\n")


@dataclass
class Clock:
    now: float = 0.0
    step: float = 0.0
    """Seconds that go by with each look at the clock."""

    def __call__(self) -> float:
        self.now += self.step
        return self.now


@dataclass
class Counted:
    """A page that counts how often it is computed."""

    times: int = 0
    let_go: threading.Event = field(default_factory=threading.Event)

    def compute(self) -> Answer:
        self.times += 1
        return Answer(200, f"{self.times}".encode())

    def wait(self, authorization: str) -> Answer:
        self.let_go.wait()
        return OK


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def server(clock: Clock) -> Iterator[PageServer]:
    """A server whose clock stands still."""
    server = PageServer(("127.0.0.1", 0), {"/healthz": lambda _: OK}, clock=clock)
    server.start()
    yield server
    server.stop()


def get(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}") as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def answering() -> int:
    return sum("process_request_thread" in thread.name for thread in threading.enumerate())


def test_a_page_is_found_by_its_path_and_another_one_is_not_there(server: PageServer) -> None:
    assert get(server.port, "/healthz?verbose") == (200, "ok\n")
    assert get(server.port, "/") == (404, "try /healthz\n")


def test_a_flood_of_readers_has_the_metrics_rendered_once() -> None:
    counted, clock = Counted(), Clock()
    page = SharedAnswer(counted.compute, clock=clock)
    with ThreadPoolExecutor(MOST_CONNECTIONS) as readers:
        assert {answer.body for answer in readers.map(lambda _: page(), range(200))} == {b"1"}
        clock.now += FRESH_S
        assert {answer.body for answer in readers.map(lambda _: page(), range(200))} == {b"2"}


def test_metrics_that_take_long_are_rendered_in_a_small_part_of_the_time() -> None:
    counted, clock = Counted(), Clock(step=1.0)
    page = SharedAnswer(counted.compute, share=RENDERING_SHARE, clock=clock)
    for _ in range(200):
        page()
    renderings = counted.times  # of one second each
    assert 1 < renderings <= clock.now * RENDERING_SHARE + 1


def test_metrics_are_those_of_the_registry() -> None:
    assert metrics_page(CollectorRegistry())()[:2] == (200, b"")


async def test_a_flood_keeps_sixteen_connections_and_in_the_next_second_its_own_address_is_served_again(
    server: PageServer, clock: Clock
) -> None:
    silent = [socket.create_connection(("127.0.0.1", server.port), timeout=5) for _ in range(MOST_ACCEPTED - 10)]
    try:
        for connection in silent[::2]:
            with suppress(ConnectionError):
                connection.sendall(b"GET /healthz HTTP/1.1\r\nX-Slow: ")
        for connection in silent[MOST_OF_AN_ADDRESS:]:
            with suppress(ConnectionResetError):
                assert await asyncio.to_thread(connection.recv, 1) == b"", "closed at once"
        assert answering() <= MOST_CONNECTIONS
        clock.now += 1.0
        assert await asyncio.to_thread(get, server.port, "/healthz") == (200, "ok\n")
    finally:
        for connection in silent:
            connection.close()
    await eventually(lambda: answering() == 0)


async def test_a_flood_from_one_address_ends_no_connection_of_another(server: PageServer, clock: Clock) -> None:
    kubelet, theirs = socket.socketpair()
    with kubelet, ExitStack() as stack:
        server.process_request(theirs, ("10.0.0.1", 1))
        strangers = [
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=5))
            for _ in range(2 * MOST_CONNECTIONS)
        ]
        assert await asyncio.to_thread(strangers[0].recv, 1) == b"", "the oldest of the stranger's made room"
        kubelet.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
        assert (await asyncio.to_thread(kubelet.recv, 4096)).startswith(b"HTTP/1.0 200 OK")


async def test_the_seventeenth_connection_makes_its_place_by_ending_the_oldest(server: PageServer) -> None:
    with ExitStack() as stack:
        address = "127.0.0.1", server.port
        silent = [stack.enter_context(socket.create_connection(address, timeout=5)) for _ in range(17)]
        assert await asyncio.to_thread(silent[0].recv, 1) == b""
    await eventually(lambda: answering() == 0)


async def test_connections_that_were_ended_and_still_wait_for_a_page_are_not_outnumbered(clock: Clock) -> None:
    slow = Counted()
    server = PageServer(("127.0.0.1", 0), {"/slow": slow.wait}, clock=clock)
    server.start()
    with ExitStack() as stack:
        for _ in range(2 * MOST_THREADS):
            clock.now += 0.1
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=5))
            with suppress(ConnectionError):
                connection.sendall(b"GET /slow HTTP/1.0\r\n\r\n")
        with suppress(ConnectionResetError):
            assert await asyncio.to_thread(connection.recv, 1) == b"", "refused"
        assert MOST_CONNECTIONS < answering() <= MOST_THREADS + 1  # the accepting thread may be one count behind
        slow.let_go.set()
    await eventually(lambda: answering() == 0)
    server.stop()


@pytest.mark.parametrize(
    "request_text",
    [
        b"GET /" + b"a" * LONGEST_REQUEST,
        b"GET /healthz HTTP/1.1\r\nX-Large: " + b"a" * LONGEST_REQUEST,
        b"GET /healthz HTTP/1.1\r\n" + b"".join(b"X-%d: %s\r\n" % (n, b"a" * 500) for n in range(90)) + b"\r\n",
    ],
    ids=["path", "header", "many headers"],
)
async def test_a_request_that_is_too_long_is_not_kept(
    server: PageServer, request_text: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection, suppress(ConnectionError):
        connection.sendall(request_text)
        assert await asyncio.to_thread(connection.recv, 1) == b""
    await eventually(lambda: answering() == 0)
    assert capsys.readouterr().err == ""


async def test_one_connection_is_answered_once_whatever_follows_in_it(server: PageServer) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nConnection: keep-alive\r\n\r\n" * 2)
        answers = io.BytesIO()
        with suppress(ConnectionResetError):
            while read := await asyncio.to_thread(connection.recv, 4096):
                answers.write(read)
    assert answers.getvalue().count(b"HTTP/1.0 200 OK") <= 1


async def test_a_connection_that_never_ends_its_request_is_ended_after_ten_seconds_and_no_younger_one(
    server: PageServer, clock: Clock
) -> None:
    address = "127.0.0.1", server.port
    with socket.create_connection(address, timeout=5) as older:
        older.sendall(b"GET /healthz HTTP/1.1\r\n")
        await eventually(lambda: answering() == 1)
        clock.now = 5.0
        with socket.create_connection(address) as younger:
            await eventually(lambda: answering() == 2)
            clock.now = 10.5
            assert await asyncio.to_thread(older.recv, 1) == b""
            younger.setblocking(False)
            with pytest.raises(BlockingIOError):
                younger.recv(1)
    await eventually(lambda: answering() == 0)


async def test_sixty_four_connections_wait_for_a_server_that_is_held_up_and_hardly_more() -> None:
    """Linux lets one more wait, and leaves unanswered who comes after that."""
    server = PageServer(("127.0.0.1", 0), {})
    poll, callers = select.poll(), [socket.socket() for _ in range(100)]
    for caller in callers:
        caller.setblocking(False)
        caller.connect_ex(("127.0.0.1", server.port))
        poll.register(caller, select.POLLOUT)
    await eventually(lambda: len(poll.poll(0)) >= 64)
    assert len(poll.poll(0)) < 80
    for caller in callers:
        caller.close()
    server.start()
    server.stop()


async def test_a_server_ends_beside_an_open_connection_and_its_port_is_free_at_once(server: PageServer) -> None:
    other = PageServer(("127.0.0.1", 0), {"/healthz": lambda _: OK})
    other.start()
    assert await asyncio.to_thread(get, other.port, "/healthz") == (200, "ok\n")
    with socket.create_connection(("127.0.0.1", other.port)):
        await eventually(lambda: answering() == 1)
        ending = threading.Thread(target=other.stop, daemon=True)
        ending.start()
        ending.join(10)
        assert not ending.is_alive()
    again = PageServer(("127.0.0.1", other.port), {})
    again.start()
    again.stop()


def test_after_a_hundred_connections_in_a_tenth_of_a_second_no_more_are_accepted_in_it(server: PageServer) -> None:
    now = 1000.0625  # a float is exactly this
    assert {server._pause(now) for _ in range(MOST_ACCEPTED)} == {0.0}
    assert server._pause(now) == pytest.approx(0.0375)
    assert server._pause(now + 0.0375) == 0.0
