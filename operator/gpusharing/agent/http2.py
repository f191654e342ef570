"""The client's side of unary gRPC calls without fields, without the socket.

gRPC is HTTP/2 with length-prefixed messages (grpc/grpc doc/PROTOCOL-HTTP2.md). hyperframe reads and writes the frames
of HTTP/2 (RFC 9113), and hpack its headers (RFC 7541). The library h2, which combines both for every use of HTTP/2,
would save few lines (docs/adr/0045-what-a-cycle-of-the-agent-costs.md).
"""

from collections.abc import Iterable
from functools import lru_cache

from hpack import Decoder, Encoder, HPACKError, NeverIndexedHeaderTuple
from hyperframe.exceptions import HyperframeError
from hyperframe.frame import (
    FRAME_MAX_LEN,
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    PushPromiseFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

MOST = 16 << 20
"""The most bytes of one answer (kubernetes v1.36.3 test/e2e_node/util.go, defaultPodResourcesMaxSize)."""
MOST_TURNS = 1000
"""Calls of `Conversation.call` on one connection; their bytes fit into the window that every server begins with."""
MOST_HEADERS = 64 << 10
"""The most bytes of one block of headers, as encoded."""

_FRAME_HEADER = 9  # bytes, RFC 9113 section 4.1
_FIRST_WINDOW = (1 << 16) - 1  # section 6.9.2
_LARGEST_WINDOW = (1 << 31) - 1  # section 6.9.1
_CANCEL = 8  # section 7
_EMPTY_MESSAGE = b"\x00\x00\x00\x00\x00"  # not compressed, length 0
_PREFACE = b"".join(
    (
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        # The window has room for a whole answer, so that the server never waits for an update.
        SettingsFrame(settings={SettingsFrame.ENABLE_PUSH: 0, SettingsFrame.INITIAL_WINDOW_SIZE: 2 * MOST}).serialize(),
        WindowUpdateFrame(0, _LARGEST_WINDOW - _FIRST_WINDOW).serialize(),
    )
)


class Stream:
    """One call and as much of its answer as has arrived."""

    __slots__ = ("body", "ended", "error", "headers")

    def __init__(self) -> None:
        self.body = bytearray()
        self.headers: dict[bytes, bytes] = {}
        """Headers and trailers; gRPC reports its status in the trailers."""
        self.ended = False
        self.error = ""
        """Why we ended the call without an answer; empty if we did not."""


class Conversation:
    """The protocol state of one connection. Its methods return the bytes to send."""

    def __init__(self) -> None:
        self._unsent = [_PREFACE]
        self._unread = bytearray()
        self._decoder = Decoder()
        self._open: dict[int, Stream] = {}
        self._next_stream = 1  # those of a client are odd
        self._headers: HeadersFrame | ContinuationFrame | None = None  # an incomplete block
        self._received = 0  # bytes since the last update of the server's window
        self._turns = 0
        self._terminated = False

    @property
    def over(self) -> bool:
        """Whether no more calls can be made: the server ended the connection, or it had MOST_TURNS turns."""
        return self._terminated or self._turns >= MOST_TURNS

    def call(self, paths: Iterable[str]) -> tuple[bytes, list[Stream]]:
        """Begin one call for each path; ValueError if the server has ended the connection. Check `over` first."""
        if self._terminated:
            raise ValueError("the server has closed the connection, so no further calls can be made")
        self._turns += 1
        streams = []
        for path in paths:
            number, self._next_stream = self._next_stream, self._next_stream + 2
            self._unsent += (
                HeadersFrame(number, _request(path), flags=("END_HEADERS",)).serialize(),
                DataFrame(number, _EMPTY_MESSAGE, flags=("END_STREAM",)).serialize(),
            )
            streams.append(self._open.setdefault(number, Stream()))
        return self._to_send(), streams

    def receive(self, data: bytes) -> bytes:
        """Process bytes from the server; ValueError if they are invalid or too many, which ends the connection."""
        self._unread += data
        unread = self._unread
        try:
            while len(unread) >= _FRAME_HEADER:
                frame, length = Frame.parse_frame_header(memoryview(bytes(unread[:_FRAME_HEADER])))
                if length > FRAME_MAX_LEN:  # we allow no larger ones
                    raise _refused(f"a frame is {length} bytes long, but at most {FRAME_MAX_LEN} are allowed")
                end = _FRAME_HEADER + length
                if len(unread) < end:
                    break
                frame.parse_body(memoryview(bytes(unread[_FRAME_HEADER:end])))
                del unread[:end]
                self._take(frame)
        except (HyperframeError, HPACKError) as error:
            raise ValueError(f"invalid HTTP/2: {error}") from error
        return self._to_send()

    def _to_send(self) -> bytes:
        unsent, self._unsent = self._unsent, []
        return b"".join(unsent)

    def _take(self, frame: Frame) -> None:
        if (self._headers is None) is isinstance(frame, ContinuationFrame):
            raise _refused(
                "another frame interrupted a header block, or a CONTINUATION frame arrived outside a header block"
            )
        match frame:
            case HeadersFrame() | ContinuationFrame():
                self._take_headers(frame)
            case DataFrame():
                self._take_data(frame)
            case RstStreamFrame():
                if self._stream(frame) is not None:
                    self._drop(frame.stream_id)
            case PingFrame():
                if "ACK" not in frame.flags:  # we send no pings that the server could answer
                    self._unsent.append(PingFrame(0, frame.opaque_data, flags=("ACK",)).serialize())
            case SettingsFrame():
                if "ACK" in frame.flags:
                    return
                window = frame.settings.get(SettingsFrame.INITIAL_WINDOW_SIZE, _FIRST_WINDOW)
                streams = frame.settings.get(SettingsFrame.MAX_CONCURRENT_STREAMS, 1)
                if window < len(_EMPTY_MESSAGE) or not streams:
                    raise _refused("the server's settings do not allow any calls")
                self._unsent.append(SettingsFrame(flags=("ACK",)).serialize())
            case GoAwayFrame():  # the server may finish the calls before the last one that it names (section 6.8)
                self._terminated = True
                for number in [number for number in self._open if number > frame.last_stream_id]:
                    self._drop(number)
            case PushPromiseFrame():
                raise _refused("the server pushed a stream, although the agent does not allow server push")
            case _:
                pass  # does not matter to such calls, or belongs to an extension

    def _stream(self, frame: Frame) -> Stream | None:
        """Return the stream of a frame, or None if its call has ended already."""
        number = frame.stream_id
        if number % 2 == 0 or number >= self._next_stream:
            raise _refused(f"the server responded on stream {number}, which the agent never opened")
        return self._open.get(number)

    def _take_headers(self, frame: HeadersFrame | ContinuationFrame) -> None:
        begun = frame if self._headers is None else self._headers
        if begun is not frame:
            if begun.stream_id != frame.stream_id:
                raise _refused("a header block that began on one stream continues on another")
            begun.data += frame.data
            if len(begun.data) > MOST_HEADERS:
                raise _refused(f"the response headers are longer than {MOST_HEADERS} bytes")
        if "END_HEADERS" not in frame.flags:
            self._headers = begun
            return
        self._headers = None
        # All streams share one header table, so the block of a stream that has ended is decoded too.
        rows = self._decoder.decode(begun.data, raw=True)
        if (stream := self._stream(begun)) is not None:
            stream.headers.update((bytes(name), bytes(content)) for name, content in rows)
            self._end(begun)

    def _take_data(self, frame: DataFrame) -> None:
        self._received += frame.flow_controlled_length
        if self._received >= MOST:  # long before the window is exhausted
            self._unsent.append(WindowUpdateFrame(0, self._received).serialize())
            self._received = 0
        if (stream := self._stream(frame)) is not None:
            stream.body += frame.data
            if len(stream.body) > MOST:
                # Only this stream is reset: the answer to the other call may still be of use.
                self._unsent.append(RstStreamFrame(frame.stream_id, _CANCEL).serialize())
                self._drop(frame.stream_id)
                stream.error = f"the response is longer than {MOST} bytes"
                return
            self._end(frame)

    def _end(self, frame: Frame) -> None:
        if "END_STREAM" in frame.flags:
            self._open.pop(frame.stream_id).ended = True

    def _drop(self, number: int) -> None:
        """End a call without an answer: without its headers it has no gRPC status."""
        stream = self._open.pop(number)
        stream.headers.clear()
        stream.ended = True


def _refused(what: str) -> ValueError:
    return ValueError(f"invalid HTTP/2: {what}")


@lru_cache(maxsize=8)
def _request(path: str) -> bytes:
    # Never indexed, so the same bytes are valid on every connection at any time.
    rows = (
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "localhost"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
    )
    return Encoder().encode([NeverIndexedHeaderTuple(name, content) for name, content in rows])
