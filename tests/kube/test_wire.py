"""What both transports send and how they read what comes back; each is tried on a server by itself too."""

import pytest

from gpusharing.kube.answers import ApiRequest
from gpusharing.kube.client import GPUNODES, WatchEvent
from gpusharing.kube.errors import Expired, Unavailable
from gpusharing.kube.wire import WATCH_SECONDS, event_of, parsed, selectors, watch_query

WATCH = ApiRequest("watch", GPUNODES)


def test_watches_that_begin_together_do_not_end_together() -> None:
    seconds = {int(watch_query("7", {})["timeoutSeconds"]) for _ in range(50)}
    assert 0.8 * WATCH_SECONDS <= min(seconds) < max(seconds) <= WATCH_SECONDS
    assert len(seconds) > 10


def test_only_selectors_that_are_given_are_sent() -> None:
    assert selectors("", "metadata.name=a") == {"fieldSelector": "metadata.name=a"}


def test_an_event_is_the_object_and_an_error_is_what_it_stands_for() -> None:
    line = b'{"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "9"}}}'
    assert event_of(WATCH, line) == WatchEvent("BOOKMARK", {"metadata": {"resourceVersion": "9"}})
    with pytest.raises(Expired, match="too old"):
        event_of(WATCH, b'{"type": "ERROR", "object": {"code": 410, "message": "too old"}}')


@pytest.mark.parametrize("line", [b"{", b"7", b'{"type": "ADDED"}', b'{"type": "ADDED", "object": {}}'])
def test_what_is_no_event_is_no_answer_of_an_api_server(line: bytes) -> None:
    with pytest.raises(Unavailable):
        event_of(WATCH, line)


def test_json_that_is_nested_without_end_is_none() -> None:
    with pytest.raises(Unavailable, match="not JSON"):
        parsed(WATCH, b"[" * 100_000)
