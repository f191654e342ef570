"""Calls over one connection: what is sent, what is understood, and when the connection is of no use any more."""

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import Event, RequestReceived, StreamEnded
from hpack import Encoder

from gpusharing.agent.http2 import MOST, MOST_TURNS, Conversation, Stream

PATHS = ("/v1.Lister/List", "/v1.Lister/Get")
DATA, HEADERS, RST_STREAM, SETTINGS, PUSH_PROMISE, GOAWAY, CONTINUATION = 0, 1, 3, 4, 5, 7, 9
END_STREAM, END_HEADERS = 1, 4


def frame(kind: int, flags: int, stream: int, content: bytes = b"") -> bytes:
    """One frame, RFC 9113 section 4.1."""
    return len(content).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + content


def asked() -> tuple[Conversation, list[Stream]]:
    """A conversation in which both calls were made."""
    conversation = Conversation()
    _, streams = conversation.call(PATHS)
    return conversation, streams


def headers(*rows: tuple[str, str]) -> bytes:
    """A block of headers."""
    return Encoder().encode(rows)


def test_a_server_understands_both_calls_and_is_understood_turn_after_turn() -> None:
    conversation = Conversation()
    server = H2Connection(H2Configuration(client_side=False, header_encoding="utf-8"))
    server.initiate_connection()
    for turn in range(3):
        sent, streams = conversation.call(PATHS)
        events: list[Event] = server.receive_data(sent)
        requests = [event for event in events if isinstance(event, RequestReceived)]
        rows = [{str(name): str(text) for name, text in event.headers} for event in requests]
        ended = [event for event in events if isinstance(event, StreamEnded)]
        assert [row[":path"] for row in rows] == list(PATHS)
        assert {row["te"] for row in rows} == {"trailers"}
        assert len(ended) == 2
        for event in requests:
            server.send_headers(event.stream_id, [(":status", "200"), ("content-type", "application/grpc")])
            server.send_data(event.stream_id, f"answer {turn}".encode())
            server.send_headers(event.stream_id, [("grpc-status", "0")], end_stream=True)
        server.ping(b"8 bytes.")
        back = conversation.receive(server.data_to_send())
        assert {type(event).__name__ for event in server.receive_data(back)} >= {"PingAckReceived"}
        assert [bytes(stream.body) for stream in streams] == 2 * [f"answer {turn}".encode()]
        assert [stream.headers[b"grpc-status"] for stream in streams] == 2 * [b"0"]
        assert all(stream.ended for stream in streams)


def test_bytes_may_come_one_at_a_time() -> None:
    conversation, (first, second) = asked()
    data = b"".join(
        [
            frame(SETTINGS, 0, 0, b"\x00\x05" + (16384).to_bytes(4)),
            frame(HEADERS, END_HEADERS, 1, headers((":status", "200"))),
            frame(DATA, 0, 1, b"abc"),
            frame(DATA, END_STREAM, 1, b"def"),
        ]
    )
    back = b"".join(conversation.receive(data[at : at + 1]) for at in range(len(data)))
    assert back == frame(SETTINGS, 1, 0)
    assert (bytes(first.body), first.ended, second.ended) == (b"abcdef", True, False)


def test_an_answer_that_is_larger_than_the_window_is_let_through() -> None:
    conversation, (first, _) = asked()
    conversation.receive(frame(HEADERS, END_HEADERS, 1, headers((":status", "200"))))
    for _ in range(100):
        conversation.receive(frame(DATA, 0, 1, bytes(16000)))
    assert len(first.body) == 1_600_000


def test_a_server_that_goes_away_or_takes_a_call_back_ends_it_without_a_status() -> None:
    conversation, (first, second) = asked()
    conversation.receive(frame(RST_STREAM, 0, 1, bytes(4)))
    assert (conversation.over, first.ended, second.ended) == (False, True, False)
    conversation.receive(frame(GOAWAY, 0, 0, bytes(8)))
    assert (conversation.over, second.ended, second.headers) == (True, True, {})


def test_odd_headers_are_no_status_and_disturb_no_other_call() -> None:
    conversation, (first, second) = asked()
    odd = headers(("Grpc-Status", "0"), (":status", "late"), ("connection", "close"), ("", " "))
    conversation.receive(frame(HEADERS, END_HEADERS | END_STREAM, 1, odd))
    assert (first.ended, b"grpc-status" in first.headers) == (True, False)
    conversation.receive(frame(HEADERS, END_HEADERS, 3, headers((":status", "200"))))
    conversation.receive(frame(HEADERS, END_HEADERS | END_STREAM, 3, headers(("grpc-status", "0"))))
    assert (second.ended, second.headers[b"grpc-status"], conversation.over) == (True, b"0", False)


def test_a_connection_does_not_grow_for_ever() -> None:
    conversation = Conversation()
    for turn in range(MOST_TURNS):
        assert not conversation.over
        conversation.call(PATHS[:1])
        conversation.receive(
            frame(HEADERS, END_HEADERS | END_STREAM, 2 * turn + 1, headers((":status", "200")))
        )
    assert conversation.over


@pytest.mark.parametrize(
    "data",
    [
        frame(DATA, 0, 0, b"x"),
        frame(HEADERS, END_HEADERS, 5),
        frame(HEADERS, END_HEADERS, 1, b"\xff"),
        frame(PUSH_PROMISE, 0, 1, bytes(8)),
        frame(CONTINUATION, 0, 1),
    ],
    ids=[
        "data on no stream", "an answer that nobody asked for", "headers of no table", "a push", "a continuation",
    ],
)  # fmt: skip
def test_what_is_not_understood_is_refused(data: bytes) -> None:
    conversation, _ = asked()
    with pytest.raises(ValueError, match="invalid HTTP/2"):
        conversation.receive(data)


def test_an_answer_has_an_end() -> None:
    conversation, _ = asked()
    conversation.receive(frame(HEADERS, END_HEADERS, 1, headers((":status", "200"))))
    part = frame(DATA, 0, 1, bytes(16384))
    for _ in range(MOST // 16384):
        conversation.receive(part)
    with pytest.raises(ValueError, match="more than"):
        conversation.receive(part)
