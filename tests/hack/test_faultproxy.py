"""hack/faultproxy: each fault hits what it is meant for as often as it was told, and nothing else. And clocks that are set."""

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from hack.faultproxy import FaultProxy, PlayedRefusal, faults
from hack.faultproxy.calls import is_renewal
from hack.faultproxy.setclock import SetClock

from gpusharing.kube.client import GPUNODES, LEASES, NODES, PODS, ApiRequest
from gpusharing.kube.errors import EvictionBlocked, Expired, Unavailable
from gpusharing.kube.wire import error_of, event_of

LEASE = "/apis/coordination.k8s.io/v1/namespaces/gpusharing/leases/gpusharing-operator"


@pytest.mark.parametrize(
    ("path", "body", "renewal"),
    [
        (LEASE, b"", True),
        (LEASE, b'{"spec": {"holderIdentity": "a"}}', True),
        (LEASE, b'{"metadata": null}', True),
        (LEASE, b'{"metadata": {"annotations": {"a": "b"}}}', False),
        (LEASE, b'[{"op": "replace", "path": "/spec/holderIdentity", "value": "a"}]', True),
        (LEASE, b'[{"op": "add", "path": "/metadata/annotations/a", "value": "b"}]', False),
        (NODES.path(None, "gpu-1"), b"", False),
    ],
)
def test_a_write_to_the_lease_without_annotations_only_renews_it(path: str, body: bytes, renewal: bool) -> None:
    assert is_renewal(path, body) is renewal


GPU_1, GPU_2 = NODES.path(None, "gpu-1"), NODES.path(None, "gpu-2")


class Server:
    """Takes every write as one more version, lists by the newest version, and tells watches what is said to it."""

    def __init__(self) -> None:
        self.version = 10
        self.taken: list[str] = []
        self.away = False
        self.url = ""
        self._streams: list[tuple[str, asyncio.Queue[str]]] = []

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if request.query.get("watch"):
            return await self._watch(request)
        if self.away and request.transport is not None:
            request.transport.abort()
        elif request.method != "GET":
            self.version += 1
            self.taken.append(request.path)
        return web.json_response({"metadata": {"resourceVersion": str(self.version)}})

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        lines: asyncio.Queue[str] = asyncio.Queue()
        self._streams.append((request.path, lines))
        while True:
            await response.write((await lines.get()).encode() + b"\n")

    def tell(self, path: str, name: str, number: int) -> None:
        self.version += 1
        metadata = {"name": name, "resourceVersion": str(self.version), "number": number}
        for where, lines in self._streams:
            if where == path:
                lines.put_nowait(json.dumps({"type": "MODIFIED", "object": {"metadata": metadata}}))


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    found = Server()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", found.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    found.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield found
    await runner.cleanup()


@pytest.fixture
def proxy(server: Server) -> Iterator[FaultProxy]:
    with FaultProxy(server.url, "") as found:
        yield found


@pytest.fixture
async def client(proxy: FaultProxy) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(proxy.url) as session:
        yield session


async def patch(client: aiohttp.ClientSession, path: str) -> int:
    try:
        async with client.patch(path, json={}) as answer:
            return answer.status
    except aiohttp.ClientError:
        return 0


@asynccontextmanager
async def watching(client: aiohttp.ClientSession, path: str) -> AsyncIterator[aiohttp.StreamReader]:
    async with client.get(path, params={"watch": "true"}) as answer:
        yield answer.content


async def read(content: aiohttp.StreamReader) -> Any:
    """The number in the next event, or the error that it stands for; None at the end."""
    async with asyncio.timeout(30):
        line = await content.readline()
    if not line:
        return None
    try:
        return event_of(ApiRequest("watch", NODES), line).object["metadata"]["number"]
    except (Expired, Unavailable) as error:
        return type(error)


async def test_one_object_fails_for_ever_and_its_neighbor_does_not(
    proxy: FaultProxy, client: aiohttp.ClientSession
) -> None:
    sick = proxy.fail("PATCH", GPU_1, PlayedRefusal(503, retry_after=1))
    paths = [f"{path}?fieldManager=x" for path in (GPU_1, GPU_1, GPU_2, GPU_1)]
    assert [await patch(client, path) for path in paths] == [503, 503, 200, 503]
    sick.lift()
    assert await patch(client, paths[0]) == 200
    assert sick.hits == 3


async def test_the_list_of_one_node_gets_no_answer_at_all(proxy: FaultProxy, client: aiohttp.ClientSession) -> None:
    deaf = proxy.fail("GET", PODS.path(), None, query="spec.nodeName=gpu-1")

    async def pods(node: str, **more: str) -> int:
        async with client.get(PODS.path(), params={"fieldSelector": f"spec.nodeName={node}", **more}) as answer:
            return answer.status

    waiting = asyncio.create_task(pods("gpu-1"))
    async with asyncio.timeout(60):
        while not deaf.hits:  # noqa: ASYNC110 - the proxy tells nobody
            await asyncio.sleep(0.01)
    assert await pods("gpu-2") == 200
    assert await pods("gpu-1", watch="true") == 200
    assert not waiting.done()
    waiting.cancel()
    await asyncio.wait([waiting])
    assert deaf.hits == 1


async def test_a_refusal_reads_as_an_api_servers_own(proxy: FaultProxy, client: aiohttp.ClientSession) -> None:
    path = PODS.path("team", "job-1", "eviction")
    proxy.fail("POST", path, PlayedRefusal(429, "no", "TooManyRequests", causes={"DisruptionBudget": "needs 2"}))
    async with client.post(path) as answer:
        error = error_of(ApiRequest("create", PODS, "eviction"), answer.status, await answer.json())
    assert isinstance(error, EvictionBlocked)


async def test_an_answer_is_lost_after_the_write_is_done(
    server: Server, proxy: FaultProxy, client: aiohttp.ClientSession
) -> None:
    proxy.disturb(faults.AnswerLost(2, "one", times=2))
    assert [await patch(client, path) for path in (GPU_2, GPU_1, GPU_2)] == [200, 0, 200]
    assert await patch(client, f"{GPU_1}/status") == 0, "about the same object"
    assert await patch(client, GPU_1) == 200, "two were asked for"
    assert server.taken == [GPU_2, GPU_1, GPU_2, f"{GPU_1}/status", GPU_1]
    assert [write.number for write in proxy.writes] == [1, 2, 3, 4, 5], "the log knows them all"


async def test_a_request_is_lost_before_the_server_hears_of_it(
    server: Server, proxy: FaultProxy, client: aiohttp.ClientSession
) -> None:
    fault = faults.RequestLost(1, "all", times=2)
    proxy.disturb(fault)
    assert [await patch(client, path) for path in (GPU_1, GPU_2, GPU_2)] == [0, 0, 200]
    assert server.taken == [GPU_2]
    assert fault.hits == 2


async def test_somebody_else_writes_to_the_object_first(
    server: Server, proxy: FaultProxy, client: aiohttp.ClientSession
) -> None:
    written: list[str] = []
    proxy.disturb(faults.Competitor(1, "one", times=2, write=written.append))
    for path in (f"{GPU_1}/status", GPU_2, GPU_1, GPU_1):
        assert await patch(client, path) == 200
    assert written == [GPU_1, GPU_1], "of the object, never of its subresource"


@pytest.mark.parametrize(("scope", "seen"), [("one", [429, 200, 503]), ("all", [429, 503, 429])])
async def test_the_server_refuses(
    server: Server, proxy: FaultProxy, client: aiohttp.ClientSession, scope: faults.Scope, seen: list[int]
) -> None:
    answers = PlayedRefusal(503), PlayedRefusal(429, retry_after=1)
    proxy.disturb(faults.RefusedCalls(2, scope, times=3, answers=answers))
    assert await patch(client, GPU_2) == 200
    assert [await patch(client, path) for path in (GPU_1, GPU_2, GPU_1)] == seen


async def test_a_held_write_is_done_when_the_act_is_over(
    server: Server, proxy: FaultProxy, client: aiohttp.ClientSession
) -> None:
    go = threading.Event()

    def wait() -> None:
        assert go.wait(30)

    proxy.disturb(faults.HeldWrite(1, "one", act=wait))
    held = asyncio.create_task(patch(client, GPU_1))
    assert await patch(client, LEASES.path("gpusharing", "leader")) == 200
    assert server.taken == [LEASES.path("gpusharing", "leader")]
    assert not held.done()
    go.set()
    assert await held == 200


def stop(came: threading.Event, go: threading.Event) -> None:
    came.set()
    assert go.wait(30)


async def test_where_two_writes_are_on_their_way_at_once_no_number_is_passed_over(
    proxy: FaultProxy, client: aiohttp.ClientSession
) -> None:
    came, go, killed = threading.Event(), threading.Event(), threading.Event()

    lost = faults.AnswerLost(2, "one", times=1)
    proxy.disturb(faults.HeldWrite(1, "one", act=partial(stop, came, go)), lost)
    proxy.arm(2, killed.set, before=True)
    held = asyncio.create_task(patch(client, GPU_1))
    assert await asyncio.to_thread(came.wait, 30)
    assert await patch(client, GPU_2) == 200, "the first of two to be answered"
    go.set()
    assert await held == 200
    assert await patch(client, GPU_2) == 503, "the one that kills"
    assert await patch(client, GPU_2) == 0
    assert (killed.is_set(), lost.hits) == (True, 1)


async def test_who_replaces_what_a_trap_has_killed_may_take_its_mark_away_at_once(
    proxy: FaultProxy, client: aiohttp.ClientSession
) -> None:
    marked: list[bool] = []

    def kill() -> None:
        marked.append(proxy.sprung.is_set())
        proxy.sprung.clear()

    proxy.arm(1, kill)
    assert await patch(client, GPU_1) == 200
    assert (marked, proxy.sprung.is_set()) == ([True], False)


async def test_faults_and_traps_count_the_writes_that_are_aimed_at_and_the_log_counts_all(
    proxy: FaultProxy, client: aiohttp.ClientSession
) -> None:
    killed = threading.Event()
    lost = faults.AnswerLost(2, "one", times=1)
    proxy.aim(lambda method, path, body: (method, path) == ("PATCH", GPU_2))
    proxy.disturb(lost)
    proxy.arm(3, killed.set)
    paths = (GPU_1, GPU_1, GPU_2, GPU_1, GPU_2, GPU_1, GPU_1)
    assert [await patch(client, path) for path in paths] == [200, 200, 200, 200, 0, 200, 200]
    assert not killed.is_set()
    assert await patch(client, GPU_2) == 200
    assert killed.is_set()
    assert [write.number for write in proxy.writes] == [1, 2, 3, 4, 5, 6, 7, 8]
    proxy.reset()
    proxy.disturb(faults.AnswerLost(1, "one", times=1))
    assert await patch(client, GPU_1) == 0, "every write is aimed at again"


async def test_of_writes_on_their_way_at_once_each_is_aimed_at_in_its_turn(
    proxy: FaultProxy, client: aiohttp.ClientSession
) -> None:
    came, go = threading.Event(), threading.Event()

    lost, late = faults.AnswerLost(2, "one", times=1), faults.WatchLate(2, "one")
    proxy.aim(lambda method, path, body: path.startswith(GPU_1))
    proxy.disturb(faults.HeldWrite(1, "one", act=partial(stop, came, go)), lost, late)
    held = asyncio.create_task(patch(client, GPU_1))
    assert await asyncio.to_thread(came.wait, 30)
    assert await patch(client, f"{GPU_1}/status") == 0, "the second one to come"
    assert late.began is None, "the first answer"
    go.set()
    assert await held == 200
    assert (late.began is not None, lost.hits) == (True, 1)


async def test_a_write_that_was_on_its_way_before_others_were_aimed_at_does_not_count(
    proxy: FaultProxy, client: aiohttp.ClientSession
) -> None:
    came, go, killed = threading.Event(), threading.Event(), threading.Event()

    proxy.disturb(faults.HeldWrite(1, "one", act=partial(stop, came, go)))
    held = asyncio.create_task(patch(client, GPU_2))
    assert await asyncio.to_thread(came.wait, 30)
    proxy.aim(lambda method, path, body: path == GPU_1)
    proxy.arm(1, killed.set)
    go.set()
    assert (await held, killed.is_set()) == (200, False)
    assert (await patch(client, GPU_1), killed.is_set()) == (200, True)


async def test_a_write_that_never_arrives_is_not_aimed_at(
    server: Server, proxy: FaultProxy, client: aiohttp.ClientSession
) -> None:
    lost = faults.AnswerLost(2, "one", times=1)
    proxy.aim(lambda method, path, body: path == GPU_1)
    proxy.disturb(lost)
    server.away = True
    assert await patch(client, GPU_1) == 502
    server.away = False
    assert [await patch(client, GPU_1), await patch(client, GPU_1), lost.hits] == [200, 0, 1]


async def test_a_fault_whose_write_never_comes_does_not_begin(proxy: FaultProxy, client: aiohttp.ClientSession) -> None:
    lost = faults.AnswerLost(2, "all", times=1)
    proxy.aim(lambda method, path, body: path == GPU_2)
    proxy.disturb(lost)
    assert [await patch(client, path) for path in (GPU_1, GPU_2, GPU_1)] == [200, 200, 200]
    assert (lost.began, lost.hits) == (None, 0)


async def test_a_watch_is_late_as_a_whole_and_in_its_order(
    server: Server, proxy: FaultProxy, client: aiohttp.ClientSession
) -> None:
    loop = asyncio.get_running_loop()
    proxy.disturb(faults.WatchLate(1, "one", seconds=0.5, lasts=30.0))
    async with watching(client, NODES.path()) as nodes, watching(client, GPUNODES.path()) as others:
        await patch(client, GPU_1)
        began = loop.time()
        for number, name in enumerate(("gpu-1", "gpu-2", "gpu-1")):
            server.tell(NODES.path(), name, number)
        server.tell(GPUNODES.path(), "gpu-1", 9)
        assert await read(others) == 9
        assert [await read(nodes) for _ in range(3)] == [0, 1, 2]
        assert loop.time() - began >= 0.5


@pytest.mark.parametrize(("error", "seen"), [(faults.GONE, Expired), (faults.BROKEN, Unavailable)], ids=["410", "500"])
async def test_open_watches_end_in_an_error_and_new_ones_do_not(
    server: Server, proxy: FaultProxy, client: aiohttp.ClientSession, error: PlayedRefusal, seen: type
) -> None:
    proxy.disturb(faults.WatchEnds(1, "one", error=error))
    async with watching(client, NODES.path()) as nodes, watching(client, GPUNODES.path()) as others:
        await patch(client, GPU_1)
        assert await read(nodes) is seen
        assert await read(nodes) is None
        server.tell(GPUNODES.path(), "gpu-1", 9)
        assert await read(others) == 9
        async with watching(client, NODES.path()) as again:
            server.tell(NODES.path(), "gpu-1", 1)
            assert await read(again) == 1


@pytest.mark.parametrize(("scope", "seen"), [("one", [1]), ("all", [])])
async def test_events_are_swallowed_until_the_watch_ends_in_410(
    server: Server, proxy: FaultProxy, client: aiohttp.ClientSession, scope: faults.Scope, seen: list[int]
) -> None:
    fault = faults.EventsSwallowed(1, scope, times=5)
    proxy.disturb(fault)
    async with watching(client, NODES.path()) as nodes:
        await patch(client, GPU_1)
        for number, name in enumerate(("gpu-1", "gpu-2", "gpu-1")):
            server.tell(NODES.path(), name, number)
        assert [await read(nodes) for _ in seen] == seen
        assert await read(nodes) is Expired
    assert fault.hits == 3 - len(seen)


async def test_a_list_after_a_410_is_the_first_one_of_the_run_once(
    server: Server, proxy: FaultProxy, client: aiohttp.ClientSession
) -> None:
    async def versions(path: str, **query: str) -> str:
        async with client.get(path, params={"limit": "25", **query}) as answer:
            return str((await answer.json())["metadata"]["resourceVersion"])

    proxy.disturb(faults.OldList(2, "all"))
    of_one_node = {"fieldSelector": "spec.nodeName=gpu-1"}
    assert [await versions(NODES.path()), await versions(PODS.path(), **of_one_node)] == ["10", "10"]
    async with watching(client, NODES.path()) as nodes:
        await patch(client, GPU_1)
        assert await versions(NODES.path()) == "11"
        await patch(client, GPU_1)
        assert await read(nodes) is Expired
    assert await versions(PODS.path(), **of_one_node) == "12", "what a drain rests on is never old"
    assert [await versions(NODES.path()) for _ in range(2)] == ["10", "12"]


async def test_every_call_is_slow(server: Server, proxy: FaultProxy, client: aiohttp.ClientSession) -> None:
    proxy.disturb(faults.Slow(0, "all", seconds=0.3))
    loop = asyncio.get_running_loop()
    began = loop.time()
    assert await patch(client, GPU_1) == 200
    assert loop.time() - began >= 0.3
    began = loop.time()
    async with watching(client, NODES.path()):
        assert loop.time() - began >= 0.3, "new watches, too"


async def test_the_server_tells_another_time(server: Server, proxy: FaultProxy, client: aiohttp.ClientSession) -> None:
    async def late() -> float:
        async with client.patch(GPU_1, json={}) as answer:
            told = parsedate_to_datetime(answer.headers["Date"])
        return round((datetime.now(UTC) - told).total_seconds(), -2)

    proxy.disturb(faults.DateShifted(2, "all", seconds=-3600.0))
    assert [await late() for _ in range(3)] == [0, 3600, 3600]
    async with client.get(NODES.path(), params={"watch": "true"}) as stream:
        told = parsedate_to_datetime(stream.headers["Date"])
    assert round((datetime.now(UTC) - told).total_seconds(), -2) == 3600, "watches, too"


async def test_each_client_has_a_door_and_the_log_tells_what_it_could_know(server: Server, proxy: FaultProxy) -> None:
    urls = {name: proxy.open_door(name) for name in ("first", "second")}
    async with aiohttp.ClientSession(urls["first"]) as first, aiohttp.ClientSession(urls["second"]) as second:
        for session in (first, second, first):
            assert await patch(session, GPU_1) == 200
    told = [(write.door, write.since, write.version) for write in proxy.writes]
    assert told == [("first", 0, 11), ("second", 11, 12), ("first", 12, 13)]


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
