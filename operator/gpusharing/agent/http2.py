"""The client's side of unary gRPC calls without fields (grpc/grpc doc/PROTOCOL-HTTP2.md), without the socket.

hyperframe reads and writes the frames of HTTP/2 (RFC 9113) and hpack its headers (RFC 7541). What lies between them is
here, for a client that makes a few small calls and takes their answers whole. h2, which puts both together for every
use of HTTP/2, takes more CPU (docs/adr/0045-what-a-cycle-of-the-agent-costs.md).
"""

from collections.abc import Iterable, Iterator
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
"""Bytes of one answer, as others take them (kubernetes v1.36.3 test/e2e_node/util.go, defaultPodResourcesMaxSize)."""
MOST_TURNS = 1000
"""Of one connection. What we send in them fits into the window that every server begins with."""
MOST_HEADERS = 64 << 10
"""Bytes of one block of headers, packed."""

_FRAME_HEADER = 9  # bytes, RFC 9113 section 4.1
_FIRST_WINDOW = (1 << 16) - 1  # section 6.9.2
_LARGEST_WINDOW = (1 << 31) - 1  # section 6.9.1
_CANCEL = 8  # section 7
_EMPTY_MESSAGE = b"\x00\x00\x00\x00\x00"  # not compressed, length 0
_PREFACE = b"".join(
    (
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        # A whole answer has room in its window, so that nobody waits for updates.
        SettingsFrame(
            settings={SettingsFrame.ENABLE_PUSH: 0, SettingsFrame.INITIAL_WINDOW_SIZE: 2 * MOST}
        ).serialize(),
        WindowUpdateFrame(0, _LARGEST_WINDOW - _FIRST_WINDOW).serialize(),
    )
)


class Stream:
    """One call, and its result so far."""

    __slots__ = ("body", "ended", "error", "headers")

    def __init__(self) -> None:
        self.body = bytearray()
        self.headers: dict[bytes, bytes] = {}
        """With the trailers, in which gRPC says how it went."""
        self.ended = False
        self.error = ""
        """Why it ended without an answer, where we ended it."""


class Conversation:
    """One connection, from the client's preface on."""

    def __init__(self) -> None:
        self._unsent = [_PREFACE]
        self._unread = bytearray()
        self._decoder = Decoder()
        self._open: dict[int, Stream] = {}
        self._next = 1
        """The number of the next stream; a client's are odd."""
        self._headers: HeadersFrame | None = None
        """Headers of which more is to come: until then nothing else may."""
        self._taken = 0
        """Bytes of answers for which the server's window was not given back yet."""
        self._turns = 0
        self._terminated = False

    @property
    def over(self) -> bool:
        """No more calls are made on it: the server accepts none, or there were many."""
        return self._terminated or self._turns >= MOST_TURNS

    def call(self, paths: Iterable[str]) -> tuple[bytes, list[Stream]]:
        """What is to be sent to call these methods with an empty message, and their streams in that order. Raises
        ValueError where the connection allows no more calls."""
        if self._terminated:
            raise ValueError("no call can be made: the server has ended the connection")
        self._turns += 1
        streams = [self._begin(path) for path in paths]
        return self._to_send(), streams

    def receive(self, data: bytes) -> bytes:
        """Take what the server sent; returns what is to be sent back. Raises ValueError where it is not understood:
        then the connection is of no use any more."""
        self._unread += data
        try:
            for frame in self._frames():
                self._take(frame)
        except (HyperframeError, HPACKError) as error:
            raise ValueError(f"invalid HTTP/2: {error}") from error
        return self._to_send()

    def _to_send(self) -> bytes:
        unsent, self._unsent = self._unsent, []
        return b"".join(unsent)

    def _begin(self, path: str) -> Stream:
        number, self._next = self._next, self._next + 2
        headers = HeadersFrame(number, _request(path), flags=("END_HEADERS",))
        message = DataFrame(number, _EMPTY_MESSAGE, flags=("END_STREAM",))
        self._unsent += (headers.serialize(), message.serialize())
        return self._open.setdefault(number, Stream())

    def _frames(self) -> Iterator[Frame]:
        """Every frame that has come whole, in order."""
        unread = self._unread
        while len(unread) >= _FRAME_HEADER:
            frame, length = Frame.parse_frame_header(memoryview(bytes(unread[:_FRAME_HEADER])))
            if length > FRAME_MAX_LEN:  # we allow no larger ones
                raise _refused(f"a frame of {length} bytes")
            end = _FRAME_HEADER + length
            if len(unread) < end:
                return
            frame.parse_body(memoryview(bytes(unread[_FRAME_HEADER:end])))
            del unread[:end]
            yield frame

    def _take(self, frame: Frame) -> None:
        if (self._headers is None) is isinstance(frame, ContinuationFrame):
            raise _refused("headers that break off, or go on where none began")
        match frame:
            case HeadersFrame():
                self._take_headers(frame)
            case ContinuationFrame():
                self._take_continuation(frame)
            case DataFrame():
                self._take_data(frame)
            case RstStreamFrame():
                self._take_reset(frame)
            case PingFrame():
                self._take_ping(frame)
            case SettingsFrame():
                self._take_settings(frame)
            case GoAwayFrame():
                self._take_goaway(frame)
            case PushPromiseFrame():
                raise _refused("a push, which we do not allow")
            case _:
                pass  # of no concern to such calls, or of an extension that we need not know

    def _stream(self, frame: Frame) -> Stream | None:
        """The call that a frame is about; None: it has ended."""
        number = frame.stream_id
        if number % 2 == 0 or number >= self._next:
            raise _refused(f"an answer on stream {number}, on which nobody asked")
        return self._open.get(number)

    def _take_headers(self, frame: HeadersFrame) -> None:
        """A block of headers has come, or its beginning."""
        if "END_HEADERS" not in frame.flags:
            self._headers = frame
            return
        self._headers = None
        # The table of headers is the connection's: a block is decoded also where nobody wants it any more.
        rows = self._decoder.decode(frame.data, raw=True)
        if (stream := self._stream(frame)) is not None:
            stream.headers.update((bytes(name), bytes(content)) for name, content in rows)
            self._end(frame)

    def _take_continuation(self, frame: ContinuationFrame) -> None:
        begun = self._headers
        if begun is None or begun.stream_id != frame.stream_id:
            raise _refused("headers of one stream that go on in another")
        begun.data += frame.data
        if len(begun.data) > MOST_HEADERS:
            raise _refused(f"more than {MOST_HEADERS} bytes of headers")
        if "END_HEADERS" in frame.flags:
            begun.flags.add("END_HEADERS")
        self._take_headers(begun)

    def _take_data(self, frame: DataFrame) -> None:
        self._taken += frame.flow_controlled_length
        if self._taken >= MOST:  # long before the window is used up
            self._unsent.append(WindowUpdateFrame(0, self._taken).serialize())
            self._taken = 0
        if (stream := self._stream(frame)) is not None:
            stream.body += frame.data
            if len(stream.body) > MOST:
                # This answer is useless, but the other call's may not be: only this stream is reset.
                self._unsent.append(RstStreamFrame(frame.stream_id, _CANCEL).serialize())
                self._take_back(frame.stream_id)
                stream.error = f"an answer of more than {MOST} bytes"
                return
            self._end(frame)

    def _end(self, frame: Frame) -> None:
        """End the call where this frame was its last."""
        if "END_STREAM" in frame.flags:
            self._open.pop(frame.stream_id).ended = True

    def _take_reset(self, frame: RstStreamFrame) -> None:
        if self._stream(frame) is not None:
            self._take_back(frame.stream_id)

    def _take_settings(self, frame: SettingsFrame) -> None:
        """Our headers use no table and our messages have five bytes, so no other setting is in their way."""
        if "ACK" in frame.flags:
            return
        window = frame.settings.get(SettingsFrame.INITIAL_WINDOW_SIZE, _FIRST_WINDOW)
        if window < len(_EMPTY_MESSAGE) or not frame.settings.get(SettingsFrame.MAX_CONCURRENT_STREAMS, 1):
            raise _refused("settings that leave no room for a call")
        self._unsent.append(SettingsFrame(flags=("ACK",)).serialize())

    def _take_ping(self, frame: PingFrame) -> None:
        if "ACK" not in frame.flags:
            self._unsent.append(PingFrame(0, frame.opaque_data, flags=("ACK",)).serialize())

    def _take_goaway(self, frame: GoAwayFrame) -> None:
        """The server takes no more calls. It may finish those up to the one that it names (section 6.8)."""
        self._terminated = True
        for number in [number for number in self._open if number > frame.last_stream_id]:
            self._take_back(number)

    def _take_back(self, number: int) -> None:
        """End a call without an answer, whatever was said in it."""
        stream = self._open.pop(number)
        stream.headers.clear()
        stream.ended = True


def _refused(what: str) -> ValueError:
    return ValueError(f"invalid HTTP/2: {what}")


@lru_cache(maxsize=8)
def _request(path: str) -> bytes:
    """The headers of a call. Never indexed, so that they say the same on every connection at any time."""
    rows = (
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "localhost"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
    )
    return Encoder().encode([NeverIndexedHeaderTuple(name, content) for name, content in rows])
