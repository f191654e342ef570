"""Calls over one connection: what is sent, what is understood, and when the connection is of no use any more."""

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import Event, RequestReceived, StreamEnded
from hpack import Encoder

from gpusharing.agent.http2 import MOST, Conversation, Stream

PATHS = ("/v1.Lister/List", "/v1.Lister/Get")
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
UNHEARD_OF = 0x50
END_STREAM, END_HEADERS, PADDED = 1, 4, 8
ACK = 1


def frame(kind: int, flags: int, stream: int, content: bytes = b"") -> bytes:
    """One frame, RFC 9113 section 4.1."""
    return len(content).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + content


def asked() -> tuple[Conversation, list[Stream]]:
    conversation = Conversation()
    _, streams = conversation.call(PATHS)
    return conversation, streams


def headers(*rows: tuple[str, str]) -> bytes:
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


def test_a_connection_begins_with_windows_in_which_answers_of_16_mib_have_room_at_any_time() -> None:
    sent, _ = Conversation().call(PATHS)
    no_push, of_a_stream = b"\x00\x02" + bytes(4), b"\x00\x04" + (32 << 20).to_bytes(4)
    assert sent.startswith(
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
        + frame(SETTINGS, 0, 0, no_push + of_a_stream)
        + frame(WINDOW_UPDATE, 0, 0, (2**31 - 1 - 65535).to_bytes(4))
    ), "the connection's window becomes as large as RFC 9113 allows"


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
    assert back == frame(SETTINGS, ACK, 0)
    assert (bytes(first.body), first.ended, second.ended) == (b"abcdef", True, False)


def test_an_answer_that_is_larger_than_the_window_is_let_through() -> None:
    conversation, (first, _) = asked()
    conversation.receive(frame(HEADERS, END_HEADERS, 1, headers((":status", "200"))))
    for _ in range(100):
        conversation.receive(frame(DATA, 0, 1, bytes(16000)))
    assert len(first.body) == 1_600_000


def test_headers_may_come_in_parts_and_bodies_with_padding() -> None:
    conversation, (first, _) = asked()
    block = headers((":status", "200"), ("content-type", "application/grpc"))
    conversation.receive(frame(HEADERS, 0, 1, block[:3]))
    conversation.receive(frame(CONTINUATION, 0, 1, block[3:5]))
    assert first.headers == {}
    conversation.receive(frame(CONTINUATION, END_HEADERS, 1, block[5:]))
    conversation.receive(frame(DATA, PADDED, 1, b"\x02abc--"))
    conversation.receive(frame(HEADERS, END_STREAM, 1, headers(("grpc-status", "0"))[:1]))
    assert not first.ended, "the trailers are not whole"
    conversation.receive(frame(CONTINUATION, END_HEADERS, 1, headers(("grpc-status", "0"))[1:]))
    assert (first.headers[b":status"], bytes(first.body), first.ended) == (b"200", b"abc", True)
    assert first.headers[b"grpc-status"] == b"0"


def test_what_is_of_no_concern_to_such_calls_is_passed_over() -> None:
    conversation, (first, _) = asked()
    for kind, number, content in (
        (WINDOW_UPDATE, 0, (1000).to_bytes(4)), (WINDOW_UPDATE, 1, (1000).to_bytes(4)), (PRIORITY, 1, bytes(5)),
        (UNHEARD_OF, 1, b"grease"), (UNHEARD_OF, 0, b""),
    ):  # fmt: skip
        assert conversation.receive(frame(kind, 0, number, content)) == b""
    assert conversation.receive(frame(PING, ACK, 0, bytes(8))) == b"", "nobody answers an answer"
    assert conversation.receive(frame(SETTINGS, ACK, 0)) == b""
    assert (first.ended, conversation.over) == (False, False)


def test_late_words_on_a_call_that_has_ended_change_nothing_and_keep_the_table_of_headers() -> None:
    conversation, (first, second) = asked()
    encoder = Encoder()
    begun, late, late_too = (encoder.encode([("x", text)]) for text in ("begun", "late", "late"))
    conversation.receive(frame(HEADERS, END_HEADERS | END_STREAM, 1, begun))
    conversation.receive(frame(HEADERS, END_HEADERS, 1, late) + frame(DATA, 0, 1, b"late"))
    conversation.receive(frame(RST_STREAM, 0, 1, bytes(4)) + frame(WINDOW_UPDATE, 0, 1, b"\0\0\0\1"))
    conversation.receive(frame(HEADERS, END_HEADERS | END_STREAM, 3, late_too))
    assert (first.headers, bytes(first.body), second.headers) == ({b"x": b"begun"}, b"", {b"x": b"late"})


def test_the_room_that_answers_take_is_given_back() -> None:
    conversation, _ = asked()
    part, taken, back = bytes(16384), 0, b""
    for number in (1, 3):
        for _ in range(MOST // 2 // len(part)):
            assert back == b""
            back = conversation.receive(frame(DATA, 0, number, part))
            taken += len(part)
    assert back == frame(WINDOW_UPDATE, 0, 0, taken.to_bytes(4))


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
    for turn in range(1000):
        assert not conversation.over
        conversation.call(PATHS[:1])
        conversation.receive(frame(HEADERS, END_HEADERS | END_STREAM, 2 * turn + 1, headers((":status", "200"))))
    assert conversation.over


@pytest.mark.parametrize(
    "data",
    [
        frame(DATA, 0, 0, b"x"),
        frame(HEADERS, END_HEADERS, 5),
        frame(HEADERS, END_HEADERS, 1, b"\xff"),
        frame(PUSH_PROMISE, 0, 1, bytes(8)),
        frame(CONTINUATION, 0, 1),
        frame(HEADERS, 0, 1) + frame(DATA, 0, 1, b"x"),
        frame(HEADERS, 0, 1) + frame(CONTINUATION, END_HEADERS, 3),
        frame(HEADERS, 0, 1) + 5 * frame(CONTINUATION, 0, 1, bytes(16384)),
        frame(DATA, 0, 2, b"x"),
        frame(DATA, PADDED, 1, b"\x09abc"),
        frame(DATA, 0, 1, bytes(16385)),
        frame(SETTINGS, 0, 0, b"\x00\x03" + bytes(4)),
        frame(SETTINGS, 0, 0, b"\x00\x04" + (4).to_bytes(4)),
        frame(SETTINGS, 0, 0, bytes(5)),
    ],
    ids=[
        "data on no stream", "an answer that nobody asked for", "headers of no table", "a push", "a continuation",
        "headers that break off", "headers that go on elsewhere", "headers without an end", "a stream of the server's",
        "more padding than frame", "a frame that is too large", "no room for a call", "no room for a message",
        "settings that are cut short",
    ],
)  # fmt: skip
def test_what_is_not_understood_is_refused(data: bytes) -> None:
    conversation, _ = asked()
    with pytest.raises(ValueError, match="invalid HTTP/2"):
        conversation.receive(data)


def test_nobody_calls_a_server_that_has_gone_away() -> None:
    conversation, _ = asked()
    conversation.receive(frame(GOAWAY, 0, 0, bytes(8)))
    with pytest.raises(ValueError, match="no further calls can be made"):
        conversation.call(PATHS)


def test_an_answer_has_an_end_and_leaves_the_other_call_alone() -> None:
    conversation, (first, second) = asked()
    conversation.receive(frame(HEADERS, END_HEADERS, 1, headers((":status", "200"), ("grpc-status", "0"))))
    part = frame(DATA, 0, 1, bytes(16384))
    for _ in range(MOST // 16384):
        conversation.receive(part)
    assert not first.ended
    assert conversation.receive(part) == frame(RST_STREAM, 0, 1, (8).to_bytes(4))
    assert (first.ended, first.headers, first.error) == (
        True,
        {},
        f"the response is longer than {MOST} bytes",
    )
    conversation.receive(part)
    conversation.receive(frame(HEADERS, END_HEADERS | END_STREAM, 3, headers(("grpc-status", "0"))))
    assert (second.ended, second.headers[b"grpc-status"], conversation.over) == (True, b"0", False)


def test_a_status_in_a_call_that_is_taken_back_is_none() -> None:
    conversation, (first, second) = asked()
    for number in (1, 3):
        conversation.receive(frame(HEADERS, END_HEADERS, number, headers(("grpc-status", "0"))))
    conversation.receive(frame(RST_STREAM, 0, 1, bytes(4)))
    assert (first.ended, first.headers) == (True, {})
    conversation.receive(frame(GOAWAY, 0, 0, (3).to_bytes(4) + bytes(4)))
    assert (conversation.over, second.ended) == (True, False), "it may still be finished"
    conversation.receive(frame(GOAWAY, 0, 0, (1).to_bytes(4) + bytes(4)))
    assert (second.ended, second.headers) == (True, {})
