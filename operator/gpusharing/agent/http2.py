"""The client's side of unary gRPC calls without fields (grpc/grpc doc/PROTOCOL-HTTP2.md), without the socket.

hyperframe reads and writes the frames of HTTP/2 (RFC 9113), and hpack its headers (RFC 7541). This module does what
lies between them, for a client that makes a few small calls and reads each answer whole. The library h2, which
combines both for every use of HTTP/2, takes more CPU (docs/adr/0045-what-a-cycle-of-the-agent-costs.md).
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
"""The most bytes of one answer, as for other clients of the kubelet (kubernetes v1.36.3 test/e2e_node/util.go,
defaultPodResourcesMaxSize)."""
MOST_TURNS = 1000
"""How often `Conversation.call` may be used on one connection. What we send in these calls fits into the window that
every server begins with."""
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
        SettingsFrame(
            settings={SettingsFrame.ENABLE_PUSH: 0, SettingsFrame.INITIAL_WINDOW_SIZE: 2 * MOST}
        ).serialize(),
        WindowUpdateFrame(0, _LARGEST_WINDOW - _FIRST_WINDOW).serialize(),
    )
)


class Stream:
    """One call and as much of its answer as has arrived."""

    __slots__ = ("body", "ended", "error", "headers")

    def __init__(self) -> None:
        """Begin a call of which no answer has arrived."""
        self.body = bytearray()
        self.headers: dict[bytes, bytes] = {}
        """Headers and trailers by name; gRPC reports its status in the trailers."""
        self.ended = False
        self.error = ""
        """Why we ended the call without an answer; empty if we did not."""


class Conversation:
    """The protocol state of one connection, beginning with the client's preface. It sends nothing itself: its methods
    return the bytes to send."""

    def __init__(self) -> None:
        """Begin a connection: the first bytes to send are the client's preface."""
        self._unsent = [_PREFACE]
        self._unread = bytearray()
        self._decoder = Decoder()
        self._open: dict[int, Stream] = {}
        self._next = 1
        """The number of the next stream. Those of a client are odd."""
        self._headers: HeadersFrame | None = None
        """The beginning of a block of headers, or None if none is incomplete. No other frame may come in between."""
        self._taken = 0
        """Bytes that were received since the last update of the server's window."""
        self._turns = 0
        self._terminated = False

    @property
    def over(self) -> bool:
        """Whether no more calls can be made on this connection, because the server ended it or because `call` was used
        MOST_TURNS times."""
        return self._terminated or self._turns >= MOST_TURNS

    def call(self, paths: Iterable[str]) -> tuple[bytes, list[Stream]]:
        """Begin one call for each path, with an empty message. Return the bytes to send, which on the first use begin
        with the preface, and the streams in the order of `paths`. Raises ValueError if the server has ended the
        connection; MOST_TURNS is not enforced here, so the caller checks `over` first."""
        if self._terminated:
            raise ValueError("the server has closed the connection, so no further calls can be made")
        self._turns += 1
        streams = [self._begin(path) for path in paths]
        return self._to_send(), streams

    def receive(self, data: bytes) -> bytes:
        """Process bytes from the server, which update the streams, and return the bytes to send back, possibly none.
        Raises ValueError if they are not valid HTTP/2 or exceed what this client allows; the connection cannot be
        used after that."""
        self._unread += data
        try:
            for frame in self._frames():
                self._take(frame)
        except (HyperframeError, HPACKError) as error:
            raise ValueError(f"invalid HTTP/2: {error}") from error
        return self._to_send()

    def _to_send(self) -> bytes:
        """Return all bytes that have not been sent yet, and clear the buffer."""
        unsent, self._unsent = self._unsent, []
        return b"".join(unsent)

    def _begin(self, path: str) -> Stream:
        """Queue the two frames that call the method `path` with an empty message, and return the new stream."""
        number, self._next = self._next, self._next + 2
        headers = HeadersFrame(number, _request(path), flags=("END_HEADERS",))
        message = DataFrame(number, _EMPTY_MESSAGE, flags=("END_STREAM",))
        self._unsent += (headers.serialize(), message.serialize())
        return self._open.setdefault(number, Stream())

    def _frames(self) -> Iterator[Frame]:
        """Yield every frame that has arrived whole, in order, and remove it from the unread bytes. Raises ValueError
        for a frame that is larger than we allow, and HyperframeError for one that cannot be parsed."""
        unread = self._unread
        while len(unread) >= _FRAME_HEADER:
            frame, length = Frame.parse_frame_header(memoryview(bytes(unread[:_FRAME_HEADER])))
            if length > FRAME_MAX_LEN:  # we allow no larger ones
                raise _refused(f"a frame is {length} bytes long, but at most {FRAME_MAX_LEN} are allowed")
            end = _FRAME_HEADER + length
            if len(unread) < end:
                return
            frame.parse_body(memoryview(bytes(unread[_FRAME_HEADER:end])))
            del unread[:end]
            yield frame

    def _take(self, frame: Frame) -> None:
        """Process one frame, and queue the answer to a ping. Frames that do not matter here are ignored. Raises
        ValueError for a push, a frame that interrupts a block of headers, a CONTINUATION outside a block, an unknown
        stream, a block that is too long, or settings that allow no call. Raises HPACKError for headers that cannot be
        decoded."""
        if (self._headers is None) is isinstance(frame, ContinuationFrame):
            raise _refused(
                "another frame interrupted a header block, or a CONTINUATION frame arrived outside a header block"
            )
        match frame:
            case HeadersFrame():
                self._take_headers(frame)
            case ContinuationFrame():
                self._take_continuation(frame)
            case DataFrame():
                self._take_data(frame)
            case RstStreamFrame():
                if self._stream(frame) is not None:
                    self._take_back(frame.stream_id)
            case PingFrame():
                if "ACK" not in frame.flags:  # we send no pings that the server could answer
                    self._unsent.append(PingFrame(0, frame.opaque_data, flags=("ACK",)).serialize())
            case SettingsFrame():
                self._take_settings(frame)
            case GoAwayFrame():
                self._take_goaway(frame)
            case PushPromiseFrame():
                raise _refused("the server pushed a stream, although the agent does not allow server push")
            case _:
                pass  # does not matter to such calls, or belongs to an extension

    def _stream(self, frame: Frame) -> Stream | None:
        """Return the stream that a frame belongs to, or None if its call has ended already. Raises ValueError for a
        stream that we never opened."""
        number = frame.stream_id
        if number % 2 == 0 or number >= self._next:
            raise _refused(f"the server responded on stream {number}, which the agent never opened")
        return self._open.get(number)

    def _take_headers(self, frame: HeadersFrame) -> None:
        """Process a block of headers: add the headers to the call, and end the call if this frame was its last. The
        headers of a call that has already ended are decoded and dropped. If the block is incomplete, store it until
        the rest has arrived. Raises HPACKError if the headers cannot be decoded, and ValueError for a stream that
        we never opened."""
        if "END_HEADERS" not in frame.flags:
            self._headers = frame
            return
        self._headers = None
        # All streams share one header table, so the block of a stream that has ended is decoded too.
        rows = self._decoder.decode(frame.data, raw=True)
        if (stream := self._stream(frame)) is not None:
            stream.headers.update((bytes(name), bytes(content)) for name, content in rows)
            self._end(frame)

    def _take_continuation(self, frame: ContinuationFrame) -> None:
        """Append a frame to the block of headers that was begun, and process the block once it is complete. Raises
        ValueError if the frame belongs to another stream, the block exceeds MOST_HEADERS, or we never opened the
        stream, and HPACKError if the headers cannot be decoded."""
        begun = self._headers
        if begun is None or begun.stream_id != frame.stream_id:
            raise _refused("a header block that began on one stream continues on another")
        begun.data += frame.data
        if len(begun.data) > MOST_HEADERS:
            raise _refused(f"the response headers are longer than {MOST_HEADERS} bytes")
        if "END_HEADERS" in frame.flags:
            begun.flags.add("END_HEADERS")
        self._take_headers(begun)

    def _take_data(self, frame: DataFrame) -> None:
        """Append the data of a frame to the body of its call, unless that has ended, and end the call if the frame was
        its last. When MOST bytes have arrived since the last window update, another one is queued. A body of more than
        MOST bytes ends its call with an error and resets the stream; the other calls continue. Raises ValueError for a
        stream that we never opened."""
        self._taken += frame.flow_controlled_length
        if self._taken >= MOST:  # long before the window is exhausted
            self._unsent.append(WindowUpdateFrame(0, self._taken).serialize())
            self._taken = 0
        if (stream := self._stream(frame)) is not None:
            stream.body += frame.data
            if len(stream.body) > MOST:
                # Only this stream is reset: the answer to the other call may still be of use.
                self._unsent.append(RstStreamFrame(frame.stream_id, _CANCEL).serialize())
                self._take_back(frame.stream_id)
                stream.error = f"the response is longer than {MOST} bytes"
                return
            self._end(frame)

    def _end(self, frame: Frame) -> None:
        """Mark the call of this frame as ended if the frame was its last. The call must be open."""
        if "END_STREAM" in frame.flags:
            self._open.pop(frame.stream_id).ended = True

    def _take_settings(self, frame: SettingsFrame) -> None:
        """Queue the acknowledgment of the server's settings. The server's acknowledgment of our settings is ignored.
        Raises ValueError if the settings allow no call: no concurrent stream, or a first window that is smaller than an
        empty message. All other settings are ignored."""
        if "ACK" in frame.flags:
            return
        window = frame.settings.get(SettingsFrame.INITIAL_WINDOW_SIZE, _FIRST_WINDOW)
        if window < len(_EMPTY_MESSAGE) or not frame.settings.get(SettingsFrame.MAX_CONCURRENT_STREAMS, 1):
            raise _refused("the server's settings do not allow any calls")
        self._unsent.append(SettingsFrame(flags=("ACK",)).serialize())

    def _take_goaway(self, frame: GoAwayFrame) -> None:
        """Record that the connection accepts no more calls, and end the calls after the last one that the server
        names; it may finish the earlier ones (section 6.8)."""
        self._terminated = True
        for number in [number for number in self._open if number > frame.last_stream_id]:
            self._take_back(number)

    def _take_back(self, number: int) -> None:
        """End an open call without an answer. The headers that have arrived for it are dropped, so that it has no gRPC
        status. Raises KeyError if no call with this stream number is open."""
        stream = self._open.pop(number)
        stream.headers.clear()
        stream.ended = True


def _refused(what: str) -> ValueError:
    """Return the error for something that HTTP/2 or this client does not allow."""
    return ValueError(f"invalid HTTP/2: {what}")


@lru_cache(maxsize=8)
def _request(path: str) -> bytes:
    """Return the encoded headers that call the method `path`. They are never indexed, so the same bytes are valid on
    every connection at any time."""
    rows = (
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "localhost"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
    )
    return Encoder().encode([NeverIndexedHeaderTuple(name, content) for name, content in rows])
