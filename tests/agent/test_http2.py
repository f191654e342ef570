"""The client's side of HTTP/2, frame by frame, and against h2, which does all of it."""

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import Event, RequestReceived, StreamEnded
from hpack import Encoder

from gpusharing.agent.http2 import MOST, Conversation, Stream

PATHS = ("/v1.Lister/List", "/v1.Lister/Get")
DATA, HEADERS, SETTINGS, PUSH_PROMISE, PING, GOAWAY, CONTINUATION = 0, 1, 4, 5, 6, 7, 9
END_STREAM, END_HEADERS, PADDED, PRIORITY = 1, 4, 8, 32


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


def test_h2_understands_both_calls_and_is_understood() -> None:
    conversation, server = (
        Conversation(),
        H2Connection(H2Configuration(client_side=False, header_encoding="utf-8")),
    )
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


def test_padding_and_priority_are_not_content() -> None:
    conversation, (first, _) = asked()
    block = headers((":status", "200"))
    conversation.receive(
        frame(HEADERS, END_HEADERS | PADDED | PRIORITY, 1, b"\x03" + bytes(5) + block + bytes(3))
        + frame(DATA, PADDED, 1, b"\x02abc" + bytes(2))
    )
    assert (first.headers, bytes(first.body)) == ({b":status": b"200"}, b"abc")


def test_the_window_is_filled_up_again() -> None:
    conversation, (first, _) = asked()
    size, back, count = 16000, b"", 0
    while not back:
        back = conversation.receive(frame(DATA, 0, 1, bytes(size)))
        count += 1
    assert back == frame(8, 0, 0, (count * size).to_bytes(4))
    assert len(first.body) == count * size


def test_unknown_frames_and_acknowledgements_are_passed_over() -> None:
    conversation, streams = asked()
    assert (
        conversation.receive(frame(SETTINGS, 1, 0) + frame(PING, 1, 0, bytes(8)) + frame(200, 0, 0, b"x"))
        == b""
    )
    assert not any(stream.ended for stream in streams)


def test_a_server_that_goes_away_still_answers_what_it_took() -> None:
    conversation, (first, second) = asked()
    conversation.receive(frame(GOAWAY, 0, 0, (1).to_bytes(4) + bytes(4)))
    assert (conversation.over, first.ended, second.ended) == (True, False, True)
    conversation.receive(frame(DATA, END_STREAM, 1, b"all the same"))
    assert (first.ended, bytes(first.body)) == (True, b"all the same")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n", "no HTTP/2"),
        (frame(DATA, 0, 0, b"x"), "stream 0"),
        (frame(HEADERS, END_HEADERS, 5), "stream 5"),
        (frame(HEADERS, 0, 1), "headers of more than"),
        (frame(HEADERS, END_HEADERS, 1, b"\xff"), "headers cannot be decoded"),
        (frame(PUSH_PROMISE, 0, 1, bytes(8)), "type 5 was not agreed on"),
        (frame(CONTINUATION, 0, 1), "type 9 was not agreed on"),
        (frame(DATA, PADDED, 1, b"\x05abc"), "more padding than content"),
        (frame(DATA, PADDED, 1), "more padding than content"),
    ],
    ids=[
        "HTTP/1", "data on no stream", "an answer that nobody asked for", "headers in parts", "headers of no table",
        "a push", "a continuation", "too much padding", "padding without a length",
    ],
)  # fmt: skip
def test_what_is_not_understood_is_refused_by_name(data: bytes, reason: str) -> None:
    conversation, _ = asked()
    with pytest.raises(ValueError, match=reason):
        conversation.receive(data)


def test_an_answer_has_an_end() -> None:
    conversation, _ = asked()
    part = frame(DATA, 0, 1, bytes(16384))
    for _ in range(MOST // 16384):
        conversation.receive(part)
    with pytest.raises(ValueError, match="more than"):
        conversation.receive(part)


def test_what_was_decoded_is_decoded_anew_when_the_table_of_headers_has_changed() -> None:
    conversation, server = Conversation(), Encoder()
    told: list[str] = []
    for detail in ("a", "a", "a", "b", "b", "a", "a", "b"):
        _, (stream, _) = conversation.call(PATHS)
        block = server.encode([("grpc-status", "0"), ("grpc-message", detail)])
        number = 4 * len(told) + 1
        conversation.receive(frame(HEADERS, END_HEADERS | END_STREAM, number, block))
        told.append(stream.headers[b"grpc-message"].decode())
    assert "".join(told) == "aaabbaab"


def test_the_same_index_means_something_else_once_another_header_is_in_the_table() -> None:
    conversation, server = Conversation(), Encoder()
    told: list[bytes] = []
    first, second = [("grpc-message", "a")], [("grpc-message", "b")]
    blocks = [server.encode(first), server.encode(first), server.encode(second), server.encode(second)]
    assert blocks[1] == blocks[3], "the newest entry has the lowest index"
    for number, block in enumerate(blocks):
        _, (stream, _) = conversation.call(PATHS)
        conversation.receive(frame(HEADERS, END_HEADERS, 4 * number + 1, block))
        told.append(stream.headers[b"grpc-message"])
    assert told == [b"a", b"a", b"b", b"b"]
