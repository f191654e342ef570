"""HttpClient against a scripted server: what goes over the wire, and what each answer becomes (kube/wire.py)."""

import asyncio
import json
import socket
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web
from hack.sim.fakecluster import FakeCluster
from tests.fakes.login import AnonymousLogin
from tests.fakes.serving import serving
from tests.fakes.virtualtime import virtual_now, virtually
from tests.kube.scripted import Answer, found, plain, scripted, status, stream
from tests.wording import lacks
from yarl import URL

from gpusharing.kube import errors
from gpusharing.kube.client import EVENTS, GPUNODES, JSON, NODES, PODS, ApiRequest, PassingClient, Resource, WatchEvent
from gpusharing.kube.errors import Expired, Forbidden, Throttled, TooLarge, Unavailable
from gpusharing.kube.http import HttpClient, Limits
from gpusharing.kube.listreader import MOST_OF_PAGE
from gpusharing.kube.lists import Unreadable, pages_of
from gpusharing.kube.login import Access
from gpusharing.kube.wire import (
    INACTIVITY,
    MOST_BYTES,
    MOST_SECONDS,
    error_of,
    error_of_response,
    event_of,
    lasting,
    parse_object,
)

NODE = {"metadata": {"name": "n", "uid": "u", "resourceVersion": "7"}}
BUDGET = {"reason": "DisruptionBudget", "message": "The disruption budget a needs 2 healthy pods and has 2 currently"}
TERMINATING = {"reason": "NamespaceTerminating", "message": "namespace x is being terminated", "field": "x"}

REFUSALS: list[tuple[str, Answer, type[errors.KubeError]]] = [
    ("400", status(400, "BadRequest"), errors.Invalid),
    ("401 twice", status(401, "Unauthorized"), errors.Unauthorized),
    ("403", status(403, "Forbidden"), errors.Forbidden),
    ("404", status(404, "NotFound"), errors.NotFound),
    ("405", status(405, "MethodNotAllowed"), errors.Invalid),
    ("408", status(408, "Timeout"), errors.Unavailable),
    ("409", status(409, "Conflict"), errors.Conflict),
    ("409 of an existing object", status(409, "AlreadyExists"), errors.Conflict),
    ("410", status(410, "Expired"), errors.Expired),
    ("413", plain(413, "too large"), errors.Invalid),
    ("422", status(422, "Invalid"), errors.Invalid),
    ("429 of priority and fairness", status(429, "TooManyRequests", retry_after=1), errors.Throttled),
    ("429 in plain text", plain(429, "Too many requests, please try again later."), errors.Throttled),
    ("500", status(500, "InternalError"), errors.Unavailable),
    ("502 of a proxy", plain(502, "<html>"), errors.Unavailable),
    ("503", status(503, "ServiceUnavailable"), errors.Unavailable),
    ("504", status(504, "Timeout", retry_after=10), errors.Unavailable),
    ("a success that is no JSON", plain(200, "<html>"), errors.Unavailable),
    ("a success that is no object", found([1]), errors.Unavailable),
]


@pytest.mark.parametrize(("answer", "kind"), [r[1:] for r in REFUSALS], ids=[r[0] for r in REFUSALS])
async def test_a_patch_is_answered_with(answer: Answer, kind: type[errors.KubeError]) -> None:
    async with scripted(answer) as (_, client):
        with pytest.raises(errors.KubeError) as raised:
            await client.patch(NODES, "n", {})
    assert type(raised.value) is kind


async def test_an_existing_object_is_told_apart_from_a_conflict_when_creating() -> None:
    async with scripted(status(409, "AlreadyExists"), status(409, "Conflict")) as (_, client):
        with pytest.raises(errors.AlreadyExists):
            await client.create(NODES, NODE)
        with pytest.raises(errors.Conflict):
            await client.create(NODES, NODE)


EVICTIONS: list[tuple[str, Answer, errors.KubeError]] = [
    (
        "a budget says no",
        status(429, "TooManyRequests", "Cannot evict pod", causes=[BUDGET]),
        errors.EvictionBlocked(BUDGET["message"], None),
    ),
    (
        "a budget is being processed",
        status(429, "TooManyRequests", "no", causes=[{**BUDGET, "message": ""}], retry_after=10),
        errors.EvictionBlocked("no", 10.0),
    ),
    (
        "the client is too fast",
        status(429, "TooManyRequests", "slow down", retry_after=2),
        errors.Throttled("slow down", 2.0),
    ),
    (
        "the client is too fast, in plain text",
        plain(429, "Too many requests, please try again later."),
        errors.Throttled("Too many requests, please try again later.", None),
    ),
    (
        "a webhook refuses this pod",
        status(429, "TooManyRequests", "Eviction triggered evacuation of VMI"),
        errors.EvictionFailed("Eviction triggered evacuation of VMI"),
    ),
    ("two budgets", status(500, "InternalError", "more than one"), errors.EvictionFailed("more than one")),
    (
        "a race over the budget was lost",
        status(500, "ServerTimeout", "try again", retryAfterSeconds=10),
        errors.EvictionBlocked("try again", 10.0),
    ),
    (
        "a race over the budget was lost, and the server waited too long for it",
        status(504, "Timeout", "couldn't update PodDisruptionBudget due to conflicts", retryAfterSeconds=10),
        errors.EvictionBlocked("couldn't update PodDisruptionBudget due to conflicts", 10.0),
    ),
    (
        "a 504 of a proxy",
        plain(504, "gateway time-out"),
        errors.Unavailable("the API server cannot create pods/eviction: gateway time-out"),
    ),
    (
        "a request that took the API server too long",
        status(504, "Timeout", "request did not complete within the allotted timeout"),
        errors.Unavailable(
            "the API server cannot create pods/eviction: request did not complete within the allotted timeout"
        ),
    ),
    (
        "a 504 of something else that names a time",
        status(504, "ServerTimeout", "etcd is slow", retryAfterSeconds=10),
        errors.Unavailable("the API server cannot create pods/eviction: etcd is slow"),
    ),
    ("no word at all", plain(504, ""), errors.Unavailable("the API server cannot create pods/eviction: HTTP 504")),
    (
        "a budget says no and names no time",
        status(429, "TooManyRequests", "no", causes=[BUDGET], retryAfterSeconds=0),
        errors.EvictionBlocked(BUDGET["message"], None),
    ),
    (
        "a budget says no, and the time is no number",
        status(429, "TooManyRequests", "no", causes=[BUDGET], retryAfterSeconds=True),
        errors.EvictionBlocked(BUDGET["message"], None),
    ),
    (
        "the namespace goes away",
        status(403, "Forbidden", "unable to create", causes=[TERMINATING]),
        errors.Forbidden("unable to create", namespace_terminating=True),
    ),
]


@pytest.mark.parametrize(("answer", "error"), [e[1:] for e in EVICTIONS], ids=[e[0] for e in EVICTIONS])
async def test_an_eviction_is_answered_with(answer: Answer, error: errors.KubeError) -> None:
    async with scripted(answer) as (_, client):
        with pytest.raises(errors.KubeError) as raised:
            await client.evict("x", "p", "u")
    assert type(raised.value) is type(error)
    assert (str(raised.value), vars(raised.value)) == (str(error), vars(error))


async def test_a_missing_right_names_verb_resource_and_the_chart_value() -> None:
    async with scripted(status(403, "Forbidden", "User x cannot")) as (_, client):
        with pytest.raises(errors.Forbidden) as raised:
            await client.patch(GPUNODES, "n", {}, subresource="status")
    assert not raised.value.namespace_terminating
    assert "patch gpunodes/status in gpusharing.dev" in str(raised.value)
    assert "rbac.create" in str(raised.value)


async def test_what_an_admission_policy_refuses_is_no_missing_right() -> None:
    message = "nodes x is forbidden: ValidatingAdmissionPolicy 'ours' with binding 'ours' denied request: no"
    async with scripted(status(403, "Forbidden", message)) as (_, client):
        with pytest.raises(errors.Forbidden) as raised:
            await client.patch(GPUNODES, "n", {})
    assert str(raised.value).endswith("denied request: no")


async def test_an_eviction_carries_the_uid_and_no_grace_period() -> None:
    async with scripted(found({"kind": "Status", "status": "Success"})) as (script, client):
        await client.evict("team-a", "llm-0", "u1")
    (asked,) = script.asked
    assert (asked.method, asked.path) == ("POST", "/api/v1/namespaces/team-a/pods/llm-0/eviction")
    assert asked.body["apiVersion"] == "policy/v1"
    assert asked.body["deleteOptions"] == {"preconditions": {"uid": "u1"}}


async def test_a_patch_is_a_merge_patch_under_our_name() -> None:
    async with scripted(found(NODE)) as (script, client):
        assert await client.patch(GPUNODES, "n", {"status": {"a": None}}, subresource="status") == NODE
    (asked,) = script.asked
    assert (asked.method, asked.path) == ("PATCH", "/apis/gpusharing.dev/v1alpha1/gpunodes/n/status")
    assert asked.headers["Content-Type"] == "application/merge-patch+json"
    assert asked.query == {"fieldManager": "gpusharing-operator"}
    assert asked.headers["User-Agent"] == "gpusharing-operator"
    assert asked.body == {"status": {"a": None}}


async def test_a_deletion_is_for_one_uid() -> None:
    async with scripted(found({"kind": "Status"})) as (script, client):
        await client.delete(PODS, "p", namespace="x", uid="u1")
    assert script.asked[0].body["preconditions"] == {"uid": "u1"}
    assert "gracePeriodSeconds" not in script.asked[0].body
    async with scripted(found({"kind": "Status"})) as (script, client):
        await client.delete(PODS, "p", namespace="x", uid="u1", grace=1)
    assert script.asked[0].body["gracePeriodSeconds"] == 1


async def test_a_read_asks_for_the_newest_state() -> None:
    async with scripted(found(NODE)) as (script, client):
        await client.get(NODES, "n")
    assert script.asked[0].query == {}


async def test_the_version_is_the_servers_own() -> None:
    async with scripted(found({"major": "1", "minor": "33+", "gitVersion": "v1.33.1-eks-1-33-5"})) as (script, client):
        assert await client.version() == "v1.33.1-eks-1-33-5"
    (asked,) = script.asked
    assert (asked.method, asked.path) == ("GET", "/version")


async def test_pages_follow_the_continue_token() -> None:
    first = {"metadata": {"resourceVersion": "5", "continue": "more"}, "items": [NODE]}
    last = {"metadata": {"resourceVersion": "5"}, "items": None}
    async with scripted(found(first), found(last)) as (script, client):
        pages = [page async for page in pages_of(client, PODS, 1, field_selector="spec.nodeName=n")]
    assert [(len(page.items), page.resource_version) for page in pages] == [(1, "5"), (0, "5")]
    assert script.asked[0].query == {"limit": "1", "fieldSelector": "spec.nodeName=n"}
    assert script.asked[1].query["continue"] == "more"
    async with scripted(found(last)) as (script, client):
        assert (await client.list_page(PODS)).items == []
    assert script.asked[0].query == {"limit": "500"}


def event(kind: str, body: Any) -> bytes:
    return json.dumps({"type": kind, "object": body}).encode() + b"\n"


async def test_a_watch_gives_events_however_the_bytes_are_cut() -> None:
    big = {**NODE, "spec": {"text": "x" * 3_000_000}}
    sent = event("ADDED", big) + event("BOOKMARK", NODE)
    async with scripted(stream(sent[:10], sent[10:70_000], sent[70_000:])) as (script, client):
        events = [seen async for seen in client.watch(NODES, "5", label_selector="a=b")]
    assert [seen.type for seen in events] == ["ADDED", "BOOKMARK"]
    assert events[0].object == big
    query = script.asked[0].query
    assert (query["resourceVersion"], query["allowWatchBookmarks"], query["labelSelector"]) == ("5", "true", "a=b")
    assert 240 <= int(query["timeoutSeconds"]) <= 300


async def test_a_watch_without_bookmarks_is_asked_for_as_long_as_it_may_be_silent() -> None:
    async with scripted(stream()) as (script, client):
        assert [seen async for seen in client.watch(EVENTS, "5")] == []
    assert int(script.asked[0].query["timeoutSeconds"]) < Limits().inactivity


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (410, errors.Expired),
        (500, errors.Unavailable),
        (429, errors.Throttled),
        (403, errors.Forbidden),
        (None, errors.Unavailable),
    ],
    ids=["410", "500", "429", "403", "without a code"],
)
async def test_an_error_event_ends_a_watch(code: int | None, kind: type[errors.KubeError]) -> None:
    async with scripted(stream(event("ERROR", {"kind": "Status", "code": code}))) as (_, client):
        with pytest.raises(errors.KubeError) as raised:
            assert [seen async for seen in client.watch(NODES, "5")] == []
    assert type(raised.value) is kind


async def test_a_refused_watch_is_an_error_of_its_kind() -> None:
    async with scripted(status(410, "Expired")) as (_, client):
        with pytest.raises(errors.Expired):
            assert [seen async for seen in client.watch(NODES, "5")] == []


async def test_a_silent_watch_is_given_up() -> None:
    done = asyncio.Event()
    limits = Limits(inactivity=0.1)
    async with scripted(stream(event("ADDED", NODE), then=done.wait), limits=limits) as (_, client):
        events = client.watch(NODES, "5")
        assert (await anext(events)).type == "ADDED"
        with pytest.raises(errors.Unavailable):
            await anext(events)
        done.set()


async def test_a_watch_whose_connection_breaks_is_unavailable() -> None:
    async def broken(request: web.Request) -> web.StreamResponse:
        response = await stream(event("ADDED", NODE))(request)
        assert request.transport is not None
        request.transport.abort()
        return response

    async with scripted(broken) as (_, client):
        events = client.watch(NODES, "5")
        assert (await anext(events)).type == "ADDED"
        with pytest.raises(errors.Unavailable, match="watch nodes"):
            await anext(events)


async def test_a_call_without_an_answer_is_given_up_at_its_deadline() -> None:
    done = asyncio.Event()
    limits = Limits(total=0.1)
    async with scripted(stream(then=done.wait), limits=limits) as (_, client):
        with pytest.raises(errors.Unavailable, match=r"get nodes at .*: TimeoutError$"):
            await client.get(NODES, "n")
        done.set()


async def test_a_server_that_is_away_is_unavailable() -> None:
    async with scripted(found(NODE)) as (script, client):
        address = script.url
        await client.get(NODES, "n")
    # The server is gone now, and its port with it.
    async with HttpClient(AnonymousLogin(address)) as late:
        with pytest.raises(errors.Unavailable, match="get nodes"):
            await late.get(NODES, "n")
        with pytest.raises(errors.Unavailable, match="patch nodes"):
            await late.patch(NODES, "n", {})


async def test_no_more_calls_than_allowed_are_under_way() -> None:
    active, most, release = 0, 0, asyncio.Event()

    async def slow(_: Any) -> Any:
        nonlocal active, most
        active, most = active + 1, max(most, active + 1)
        if most == 3:
            release.set()
        await release.wait()
        active -= 1
        return await found(NODE)(_)

    async with scripted(slow, limits=Limits(parallel=3)) as (_, client):
        await asyncio.gather(*(client.get(NODES, "n") for _ in range(9)))
    assert most == 3


async def test_eight_calls_are_under_way_unless_it_is_said_how_many() -> None:
    class Slow(AnonymousLogin):
        async def token(self) -> str | None:
            begun.append(self.server)
            never: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
            return await never

    begun: list[str] = []
    async with HttpClient(Slow("http://127.0.0.1:1")) as client:
        calls = [asyncio.create_task(client.get(NODES, "n")) for _ in range(20)]
        await asyncio.sleep(0)
        assert len(begun) == 8
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)


async def test_every_request_is_reported_with_its_status() -> None:
    told: list[tuple[str, str, int]] = []

    def on_call(request: ApiRequest, code: int) -> None:
        told.append((request.verb, request.kind, code))

    answers = found(NODE), status(404, "NotFound"), stream()
    async with scripted(*answers, on_call=on_call) as (_, client):
        await client.get(NODES, "n")
        with pytest.raises(errors.NotFound):
            await client.evict("x", "p", "u")
        assert [seen async for seen in client.watch(NODES, "5")] == []
    assert told == [("get", "nodes", 200), ("create", "pods/eviction", 404), ("watch", "nodes", 200)]


@dataclass
class Tokens:
    server: str
    renewals: int = 0
    log: list[str] = field(default_factory=list)

    async def access(self) -> Access:
        return Access(self.server)

    async def token(self) -> str:
        return f"Bearer t{self.renewals}"

    async def renew(self) -> None:
        self.renewals += 1


async def test_a_refused_token_is_renewed_once_and_the_call_repeated() -> None:
    async with scripted(status(401), found(NODE), login=Tokens) as (script, client):
        assert await client.get(NODES, "n") == NODE
    assert [asked.headers["Authorization"] for asked in script.asked] == ["Bearer t0", "Bearer t1"]


async def test_a_watch_renews_a_refused_token_too() -> None:
    async with scripted(status(401), stream(event("ADDED", NODE)), login=Tokens) as (script, client):
        assert [seen.type async for seen in client.watch(NODES, "5")] == ["ADDED"]
    assert [asked.headers["Authorization"] for asked in script.asked] == ["Bearer t0", "Bearer t1"]


async def test_credentials_that_stay_refused_are_unauthorized_after_one_renewal() -> None:
    async with scripted(status(401), login=Tokens) as (script, client):
        with pytest.raises(errors.Unauthorized):
            await client.get(NODES, "n")
        with pytest.raises(errors.Unauthorized):
            assert [seen async for seen in client.watch(NODES, "5")] == []
    tokens = [asked.headers["Authorization"] for asked in script.asked]
    assert tokens == ["Bearer t0", "Bearer t1", "Bearer t1", "Bearer t2"]


@pytest.mark.parametrize(
    ("waiting", "least", "most"),
    [(0, 10.0, 11.0), (2, 3.0, 3.1)],
    ids=["it accepts the connection and says nothing", "it does not accept the connection"],
)
@virtually
async def test_a_silent_server_is_given_up_after_three_seconds_or_once_connected_after_ten(
    waiting: int, least: float, most: float
) -> None:
    """The kernel accepts one connection for a server with a backlog of 0, and lets the others wait."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server:
        before = [socket.socket() for _ in range(waiting)]
        for one in before:
            one.setblocking(False)
            one.connect_ex(server.getsockname())
        async with HttpClient(AnonymousLogin(f"http://127.0.0.1:{server.getsockname()[1]}")) as client:
            begun = virtual_now()
            with pytest.raises(Unavailable):
                await client.get(NODES, "n")
            assert least <= (virtual_now() - begun).total_seconds() <= most
        for one in before:
            one.close()


WATCH = ApiRequest("watch", GPUNODES)


def test_watches_that_begin_together_do_not_end_together() -> None:
    seconds = {int(lasting(WATCH).query["timeoutSeconds"]) for _ in range(50)}
    assert 240 <= min(seconds) < max(seconds) <= 300
    assert len(seconds) > 10


def test_a_watch_counts_as_dead_after_one_bookmark_that_did_not_come_and_before_a_second_one() -> None:
    """The API server sends one every 60 s."""
    assert 60 < INACTIVITY < 2 * 60


async def test_a_missing_right_to_ask_for_the_kinds_of_a_group_names_the_group() -> None:
    class Refused(PassingClient):
        async def call(self, request: ApiRequest) -> JSON:
            raise error_of(request, 403, {"message": "User x cannot"})

    with pytest.raises(Forbidden, match=r"get gpusharing.dev/v1alpha1 in gpusharing.dev: User x"):
        await Refused(FakeCluster().client("x")).served(GPUNODES)


def test_a_kind_is_in_no_namespace_and_its_watches_have_bookmarks_unless_it_says_otherwise() -> None:
    kind = Resource("example.com", "v1", "things")
    assert kind.path("team-a", "x") == "/apis/example.com/v1/things/x"
    assert int(lasting(ApiRequest("watch", kind)).query["timeoutSeconds"]) >= 240


async def test_only_selectors_that_are_given_are_sent() -> None:
    sent: list[ApiRequest] = []

    class Noting(PassingClient):
        async def call(self, request: ApiRequest) -> JSON:
            sent.append(request)
            return await super().call(request)

    client = Noting(FakeCluster().client("x"))
    await client.list_page(GPUNODES, label_selector="", field_selector="metadata.name=a", limit=0)
    assert sent == [ApiRequest("list", GPUNODES, query={"fieldSelector": "metadata.name=a"})]


def test_an_event_is_the_object_and_an_error_is_what_it_stands_for() -> None:
    line = b'{"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "9"}}}'
    assert event_of(WATCH, line) == WatchEvent("BOOKMARK", {"metadata": {"resourceVersion": "9"}})
    with pytest.raises(Expired, match="too old"):
        event_of(WATCH, b'{"type": "ERROR", "object": {"code": 410, "message": "too old"}}')


@pytest.mark.parametrize(
    "line",
    [
        b"{",
        b"7",
        b'{"type": "ADDED"}',
        b'{"type": "ADDED", "object": {}}',
        b'{"type": ["ADDED"], "object": {"metadata": {}}}',
        b'{"type": {}, "object": {"metadata": {}}}',
    ],
)
def test_what_is_no_event_is_no_answer_of_an_api_server(line: bytes) -> None:
    with pytest.raises(Unavailable):
        event_of(WATCH, line)


@pytest.mark.parametrize("given", [10**400, 10**9])
def test_a_time_to_wait_beyond_all_measure_is_cut_to_a_day(given: int) -> None:
    body = json.dumps({"details": {"retryAfterSeconds": given}}).encode()
    for raw, header in ((body, None), (b"", str(given))):
        error = error_of_response(WATCH, 429, raw, header)
        assert isinstance(error, Throttled)
        assert error.retry_after == MOST_SECONDS == 86400.0


def test_json_that_is_nested_without_end_is_none() -> None:
    with pytest.raises(Unavailable, match="not JSON"):
        parse_object(WATCH, b"[" * 100_000)


def test_a_path_that_the_server_does_not_know_names_the_kind() -> None:
    request = ApiRequest("list", GPUNODES)
    absent = error_of_response(request, 404, b"404 page not found\n", None)
    assert not lacks(str(absent), "gpunodes.gpusharing.dev", "404 page not found")
    status = {"kind": "Status", "message": 'gpunodes.gpusharing.dev "a" not found'}
    assert str(error_of(request, 404, status)) == status["message"]


@pytest.mark.parametrize("turns", range(6))
async def test_a_connection_that_arrives_just_before_the_end_is_closed(turns: int) -> None:
    async with serving(web.Application()) as url:
        client = socket.create_connection(("127.0.0.1", URL(url).port or 0), timeout=10)
        for _ in range(turns):
            await asyncio.sleep(0)
    with client:
        assert client.recv(1) == b""


async def test_an_answer_that_is_too_large_to_be_read_is_named_and_not_kept() -> None:
    large = {**NODE, "x": "x" * MOST_BYTES}
    async with scripted(found(large), found({"items": [large]}), stream(event("ADDED", large))) as (_, client):
        with pytest.raises(TooLarge, match="cannot get nodes, because the response is too large"):
            await client.get(NODES, "n")
        with pytest.raises(TooLarge, match=r"cannot list nodes, because an object \(name n\) is too large"):
            await client.list_page(NODES, limit=1)
        with pytest.raises(TooLarge, match=r"cannot watch nodes, because an object \(name n\) is too large"):
            await anext(client.watch(NODES, "7"))


async def test_what_is_kept_of_a_list_is_kept_of_each_object_of_each_page() -> None:
    pages = [{"metadata": {"continue": more}, "items": [NODE, {**NODE, "spec": 1}]} for more in ("next", "")]
    async with scripted(*map(found, pages)) as (_, client):
        kept = [page.items async for page in pages_of(client, NODES, keep=lambda raw: raw.get("spec", 0))]
    assert kept == [[0, 1], [0, 1]]


async def test_an_object_of_which_nothing_can_be_kept_fails_the_list_and_is_named() -> None:
    async with scripted(found({"items": [NODE, {"metadata": {"name": "m"}, "spec": {}}]})) as (_, client):
        with pytest.raises(Unreadable, match="nodes/n cannot be read"):
            _ = [page async for page in pages_of(client, NODES, keep=lambda raw: raw["spec"])]


async def test_after_a_page_of_large_objects_the_rest_comes_in_smaller_ones() -> None:
    large = [{"metadata": {"name": f"n-{number}"}, "x": "x" * MOST_OF_PAGE} for number in range(2)]
    pages = (
        found({"items": large}),
        found({"metadata": {"continue": "more"}, "items": large[:1]}),
        found({"items": large[1:]}),
    )
    async with scripted(*pages) as (script, client):
        names = [
            name
            async for page in pages_of(client, NODES, 2, keep=lambda raw: raw["metadata"]["name"])
            for name in page.items
        ]
    assert names == ["n-0", "n-1"]
    assert [(asked.query["limit"], asked.query.get("continue")) for asked in script.asked] == [
        ("2", None),
        ("1", None),
        ("1", "more"),
    ]
