"""Where a write goes, and who is asked before it leaves: the leader may be one no more since the caller decided.
And which writes count as undone by others, and are held back (kube/sender.py)."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any

import pytest
from aiohttp import web
from tests.fakes.login import AnonymousLogin
from tests.fakes.virtualtime import virtually
from tests.kube.scripted import Answer, found, scripted, status

from gpusharing.api import names
from gpusharing.kube.client import JSON, NODES, PODS, ApiRequest, KubeClient, PassingClient
from gpusharing.kube.errors import Unavailable, Undone
from gpusharing.kube.http import HttpClient, Limits
from gpusharing.kube.sender import Writes

NODE = {"metadata": {"name": "n"}}


async def test_an_object_is_created_in_the_namespace_that_it_names() -> None:
    async with scripted(found(NODE)) as (script, client):
        await client.create(PODS, {"metadata": {"name": "p", "namespace": "team-a"}})
    assert [asked.path for asked in script.asked] == ["/api/v1/namespaces/team-a/pods"]


def answers_once() -> Answer:
    """Answer the first request of a connection, and hang up at the next one without a word."""
    seen = set[object]()

    async def answer(request: web.Request) -> web.StreamResponse:
        if request.transport in seen:
            assert request.transport is not None
            request.transport.abort()
        seen.add(request.transport)
        return web.json_response(NODE)

    return answer


CALLS: dict[str, Callable[[HttpClient], Awaitable[object]]] = {
    "get": lambda client: client.get(NODES, "n"),
    "delete": lambda client: client.delete(NODES, "n", uid="u"),
    "patch": lambda client: client.patch(NODES, "n", {}),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
async def test_a_call_whose_connection_breaks_is_not_repeated_behind_the_callers_back(
    call: Callable[[HttpClient], Awaitable[object]],
) -> None:
    calls: list[int] = []

    def called(request: ApiRequest, status: int) -> None:
        calls.append(status)

    async with scripted(answers_once(), on_call=called) as (script, client):
        await client.get(NODES, "n")
        with pytest.raises(Unavailable):
            await call(client)
    assert len(script.asked) == len(calls) == 2


async def test_the_answer_to_a_write_may_have_headers_of_256_kib() -> None:
    """Something in front of the API server adds them, and the write was carried out."""
    lengths = iter((260_000, 265_000))

    async def answer(_: web.Request) -> web.StreamResponse:
        return web.json_response(NODE, headers={"Set-Cookie": "x" * next(lengths)})

    async with scripted(answer) as (_, client):
        assert await client.patch(NODES, "n", {}) == NODE
        with pytest.raises(Unavailable, match="Got more than 262144 bytes"):
            await client.patch(NODES, "n", {})


class NotAllowed(Exception):
    """What `before_write` raises here."""


async def test_a_write_that_is_not_allowed_is_not_sent_and_reads_are_not_asked_about() -> None:
    def refuse() -> None:
        raise NotAllowed

    async with (
        scripted(found(NODE)) as (script, _),
        HttpClient(AnonymousLogin(script.url), before_write=refuse) as client,
    ):
        assert await client.get(NODES, "n") == NODE
        for write in (
            lambda: client.create(NODES, NODE),
            lambda: client.patch(NODES, "n", {}),
            lambda: client.delete(NODES, "n", uid="u"),
            lambda: client.evict("x", "p", "u"),
        ):
            with pytest.raises(NotAllowed):
                await write()
    assert [asked.method for asked in script.asked] == ["GET"]


class Asking(PassingClient):
    """Gives each request something to ask before it is sent, as the executor does."""

    def __init__(self, client: KubeClient, ask: Callable[[], None]) -> None:
        super().__init__(client)
        self._ask = ask

    async def call(self, request: ApiRequest) -> JSON:
        return await self.client.call(replace(request, before_send=self._ask))


@asynccontextmanager
async def asking(who: str, url: str, ask: Callable[[], None], limits: Limits) -> AsyncIterator[KubeClient]:
    """A client that asks before each write: the client itself, or the request."""
    before_write = ask if who == "client" else lambda: None
    async with HttpClient(AnonymousLogin(url), limits=limits, before_write=before_write) as client:
        yield Asking(client, ask) if who == "request" else client


@pytest.mark.parametrize("who", ["client", "request"])
async def test_a_write_that_waited_for_its_slot_is_asked_about_when_it_has_it(who: str) -> None:
    leads, came, answered = True, asyncio.Event(), asyncio.Event()

    def must_lead() -> None:
        if not leads:
            raise NotAllowed

    async def slow(request: Any) -> Any:
        came.set()
        await answered.wait()
        return await found(NODE)(request)

    async with scripted(slow) as (script, _), asking(who, script.url, must_lead, Limits(parallel=1)) as client:
        first = asyncio.create_task(client.patch(NODES, "n", {}))
        second = asyncio.create_task(client.patch(NODES, "n", {}))
        await came.wait()
        leads = False
        answered.set()
        await first
        with pytest.raises(NotAllowed):
            await second
        leads = True
        assert await client.patch(NODES, "n", {}) == NODE, "the slot is free again"
    assert len(script.asked) == 2


@pytest.mark.parametrize("who", ["client", "request"])
async def test_a_write_is_asked_about_again_before_it_is_sent_with_renewed_credentials(who: str) -> None:
    asked = 0

    def once() -> None:
        nonlocal asked
        asked += 1
        if asked > 1:
            raise NotAllowed

    async with scripted(status(401, "Unauthorized")) as (script, _), asking(who, script.url, once, Limits()) as client:
        with pytest.raises(NotAllowed):
            await client.patch(NODES, "n", {})
    assert len(script.asked) == 1


@pytest.mark.parametrize("who", ["client", "request"])
async def test_a_write_that_waited_for_a_connection_is_asked_about_when_it_has_one(who: str) -> None:
    leads = True

    def must_lead() -> None:
        if not leads:
            raise NotAllowed

    async with scripted(found(NODE)) as (script, _), asking(who, script.url, must_lead, Limits(parallel=1)) as client:
        write = asyncio.create_task(client.patch(NODES, "n", {}))
        await asyncio.sleep(0)  # it is connecting
        leads = False
        with pytest.raises(NotAllowed):
            await write
        leads = True
        assert await client.patch(NODES, "n", {}) == NODE, "the client is as it was"
    assert len(script.asked) == 1


FENCE, PROOF, CONFIG = names.ANNOTATION_FENCE, names.ANNOTATION_VERIFIED, names.LABEL_PLUGIN_CONFIG


class Server:
    def __init__(self) -> None:
        self.writes, self.version = Writes(), 1
        self.labels: dict[str, str] = {}
        self.annotations: dict[str, str] = {}

    def node(self) -> dict[str, Any]:
        metadata = {"name": "n", "uid": "u", "resourceVersion": str(self.version)}
        return {"metadata": {**metadata, "labels": dict(self.labels), "annotations": dict(self.annotations)}}

    def others(self, **labels: str) -> None:
        """Somebody else writes, and the watch shows it."""
        self.version += 1
        self.labels |= {CONFIG if key == "config" else key: value for key, value in labels.items()}
        self.writes.saw(NODES, self.node())

    def write(
        self,
        labels: Mapping[str, str | None],
        annotations: Mapping[str, str | None] | None = None,
        *,
        late: bool = False,
        wish: object = None,
    ) -> None:
        """The operator's write; `late`: its event comes before its answer."""
        body = {"metadata": {"labels": dict(labels), "annotations": dict(annotations or {})}}
        request = ApiRequest("patch", NODES, name="n", body=body, wish=wish)
        self.writes.check(request)
        known = self.writes.sends(request)
        self.version += 1
        for mine, sent in ((self.labels, labels), (self.annotations, annotations or {})):
            mine.update({key: value for key, value in sent.items() if value is not None})
            for key in [key for key, value in sent.items() if value is None]:
                mine.pop(key, None)
        answer = self.node()
        if late:
            self.writes.saw(NODES, answer)
        known.in_flight -= 1
        self.writes.wrote(request, answer)
        self.writes.saw(NODES, answer)


@virtually
async def test_the_operators_own_writes_are_never_somebody_elses() -> None:
    server = Server()
    for number in range(20):
        server.write({}, {FENCE: f"stage {number}"}, late=True)
        await asyncio.sleep(1)


@virtually
async def test_what_the_operator_removes_and_sets_again_is_not_undone_by_others() -> None:
    server = Server()
    for number in range(8):
        server.write({CONFIG: "a"}, {FENCE: f"change {number}"})
        await asyncio.sleep(60)
        server.write({CONFIG: None}, {FENCE: None})
        server.others(heartbeat=str(number))
        await asyncio.sleep(1)


async def contested(server: Server) -> None:
    """Somebody reverts one label until the operator waits before it is written again."""
    for _ in range(9):
        try:
            server.write({CONFIG: "a"})
        except Undone:
            return
        server.others(config="theirs")
    pytest.fail("nine writes in a row were sent")


@virtually
async def test_only_the_value_that_others_undo_waits() -> None:
    server = Server()
    await contested(server)
    server.write({CONFIG: "b"})
    await asyncio.sleep(600)
    server.write({CONFIG: "a"})


OP = "pool-b.1a1f830fe0f"
TIMED: dict[str, Callable[[int], str]] = {
    "the id of a request": lambda n: f"{OP}:quiet:a143129d76:{1795165805533 + n}",
    "the id of a change": lambda n: f'{{"op":"pool-b.{0x1A1F830FE0F + n:x}"}}',
    "a record": lambda n: f'{{"since":"2026-11-20T10:00:{n % 60:02}.5Z","until":"2026-11-20T10:{n % 60:02}:00+01:00"}}',
    "one of two values": lambda n: "ab"[n % 2],
    "a value of which nothing is known": str,
}


async def strive(server: Server, value: Callable[[int], str], seconds: int, wish: object = None) -> int:
    """Try each second to write a label that somebody removes at once; return how many writes were sent."""
    sent = 0
    for second in range(seconds):
        with suppress(Undone):
            server.write({CONFIG: value(second)}, wish=wish)
            sent += 1
            server.others(config="theirs")
        await asyncio.sleep(1)
    return sent


@pytest.mark.parametrize("value", TIMED.values(), ids=TIMED.keys())
@virtually
async def test_a_value_that_differs_only_by_a_time_or_that_was_undone_before_is_not_new(
    value: Callable[[int], str],
) -> None:
    server = Server()
    await strive(server, value, 900)
    assert await strive(server, value, 3600) <= 13, "at most one write in five minutes"


@virtually
async def test_an_edit_of_a_person_never_waits_and_passes_once_for_each_edit() -> None:
    server = Server()
    for edit in range(5):
        server.write({CONFIG: "a"}, wish=edit)
        server.others(config="theirs")
        assert await strive(server, lambda _: "a", 30, wish=edit) <= (4 if edit == 0 else 1)


@virtually
async def test_the_end_of_a_change_is_never_held_back() -> None:
    server = Server()
    await contested(server)
    server.write({CONFIG: "a"}, {FENCE: None})


@virtually
async def test_a_label_that_others_add_again_is_removed_once_at_once_and_then_ever_more_rarely() -> None:
    server = Server()
    server.labels["policy"], sent = "pool-b", []
    for second in range(3600):
        if "policy" in server.labels:
            with suppress(Undone):
                server.write({"policy": None})
                sent.append(second)
                server.others(policy="pool-b")
        await asyncio.sleep(1)
    assert sent[:2] == [0, 1]
    assert len(sent) <= 20, "at most one write in five minutes"
    with pytest.raises(Undone, match=r"metadata\.labels\[policy\] of nodes n"):
        server.write({"policy": None})


@pytest.mark.parametrize("label", [names.LABEL_MIG_STATE, names.ANNOTATION_RETRY])
@virtually
async def test_what_others_set_anew_with_good_reason_is_removed_each_time(label: str) -> None:
    server = Server()
    for _ in range(9):
        server.labels[label] = "set"
        server.write({label: None})
        server.others(**{label: "set"})
