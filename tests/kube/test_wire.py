"""What both transports send and how they read what comes back; each is tried on a server by itself too."""

import json

import pytest
from hack.sim.fakecluster import FakeCluster
from tests.wording import lacks

from gpusharing.kube.client import GPUNODES, JSON, ApiRequest, PassingClient, Resource, WatchEvent
from gpusharing.kube.errors import Expired, Forbidden, Throttled, Unavailable
from gpusharing.kube.wire import INACTIVITY, MOST_SECONDS, error_of, error_of_response, event_of, lasting, parse_object

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
