"""The client's side of HTTP/2 for unary gRPC calls, without the socket.

RFC 9113 and grpc/grpc doc/PROTOCOL-HTTP2.md, as far as calls without fields need them: what is asked is the same bytes
each time but for the number of the stream; nothing is pushed, and the windows are as large as they may be. The headers
of answers are hpack's to decode (RFC 7541), ours stay out of its table. What that leaves out is refused by name, never
guessed. h2 does all of HTTP/2; docs/adr/0045-what-a-cycle-of-the-agent-costs.md has its price.
"""

from collections.abc import Iterable
from functools import cache
from struct import Struct

from hpack import Decoder, Encoder, HPACKError, NeverIndexedHeaderTuple

_HEAD = Struct(">HBBBI")
"""Of a frame: the upper two bytes of its length and the last one, type, flags, stream."""
_ACK, _END_STREAM, _END_HEADERS, _PADDED, _PRIORITY = 1, 1, 4, 8, 32
_STREAM = 0x7FFFFFFF
_INDEX = 0x80  # of an indexed field, in one byte below 0xFF (RFC 7541 section 6.1)
_MOST_INDEXED = 16
_LARGEST_FRAME = 16384  # unless we allow more
_LARGEST_WINDOW = 2**31 - 1
_INITIAL_WINDOW = 65535
_TOP_UP = 1 << 20
"""Bytes taken after which the connection's window is filled up again."""
MOST = 16 << 20
"""Bytes of one answer, as others take them (kubernetes test/e2e_node/util.go, defaultPodResourcesMaxSize)."""

_EMPTY_MESSAGE = b"\x00\x00\x00\x00\x00"  # not compressed, length 0


class _Type:
    """Types of frames."""

    DATA, HEADERS, RST_STREAM, SETTINGS, PUSH_PROMISE = 0, 1, 3, 4, 5
    PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 6, 7, 8, 9


class Stream:
    """One call, and what has come of it so far."""

    __slots__ = ("body", "ended", "headers")

    def __init__(self) -> None:
        self.body = bytearray()
        self.headers: dict[bytes, bytes] = {}
        """With the trailers, in which gRPC says how it went."""
        self.ended = False


class Conversation:
    """One connection, from the client's preface on."""

    def __init__(self) -> None:
        self.over = False
        """The server takes no more calls."""
        self._greeting = _greeting()
        self._next = 1
        self._open: dict[int, Stream] = {}
        self._decoder = Decoder()
        self._indexed: dict[bytes, dict[bytes, bytes]] = {}
        """Blocks of headers that were decoded without changing the decoder's table."""
        self._rest = b""
        """The beginning of a frame."""
        self._taken = 0

    def call(self, paths: Iterable[str]) -> tuple[bytes, list[Stream]]:
        """What is to be sent to call these methods with an empty message, and their streams in that order."""
        sent, streams = [self._greeting], []
        self._greeting = b""
        for path in paths:
            headers = _request(path)
            sent += _frame(_Type.HEADERS, _END_HEADERS, self._next, headers)
            sent += _frame(_Type.DATA, _END_STREAM, self._next, _EMPTY_MESSAGE)
            streams.append(self._open.setdefault(self._next, Stream()))
            self._next += 2
        return b"".join(sent), streams

    def receive(self, data: bytes) -> bytes:
        """Take what the server sent; returns what is to be sent back. Raises ValueError where it is not understood:
        then the connection is of no use any more."""
        data = self._rest + data if self._rest else data
        at, answer = 0, b""
        while len(data) - at >= _HEAD.size:
            upper, last, kind, flags, number = _HEAD.unpack_from(data, at)
            begin = at + _HEAD.size
            end = begin + (upper << 8 | last)
            if end - begin > _LARGEST_FRAME:
                raise ValueError(
                    f"no HTTP/2: a frame of {end - begin} bytes, {_LARGEST_FRAME} at most were allowed"
                )
            if end > len(data):
                break
            answer += self._take(kind, flags, number & _STREAM, data[begin:end])
            at = end
        self._rest = data[at:]
        return answer

    def _take(self, kind: int, flags: int, number: int, content: bytes) -> bytes:
        """One frame; returns what is to be sent back."""
        match kind:
            case _Type.DATA:
                return self._take_data(flags, number, content)
            case _Type.HEADERS:
                self._take_headers(flags, number, content)
            case _Type.RST_STREAM:
                self._end(number)
            case _Type.SETTINGS if not flags & _ACK:  # none bears on requests that are this small
                return b"".join(_frame(_Type.SETTINGS, _ACK, 0, b""))
            case _Type.PUSH_PROMISE | _Type.CONTINUATION:
                raise ValueError(f"an HTTP/2 frame of type {kind} was not agreed on")
            case _Type.PING if not flags & _ACK:
                return b"".join(_frame(_Type.PING, _ACK, 0, content))
            case _Type.GOAWAY:
                self._go_away(int.from_bytes(content[:4]) & _STREAM)
        return b""

    def _take_data(self, flags: int, number: int, content: bytes) -> bytes:
        stream = self._stream(number)
        stream.body += _without_padding(flags, content)
        if len(stream.body) > MOST:
            raise ValueError(f"an answer of more than {MOST} bytes")
        if flags & _END_STREAM:
            self._end(number)
        self._taken += len(content)
        if self._taken < _TOP_UP:
            return b""
        taken, self._taken = self._taken, 0
        return b"".join(_frame(_Type.WINDOW_UPDATE, 0, 0, taken.to_bytes(4)))

    def _take_headers(self, flags: int, number: int, content: bytes) -> None:
        stream = self._stream(number)
        if not flags & _END_HEADERS:
            raise ValueError(f"headers of more than {_LARGEST_FRAME} bytes")
        block = _without_padding(flags, content)
        stream.headers.update(self._decode(block[5:] if flags & _PRIORITY else block))
        if flags & _END_STREAM:
            self._end(number)

    def _decode(self, block: bytes) -> dict[bytes, bytes]:
        """What nothing but indices of the table says stays so until the table changes: of one server, soon always."""
        known = self._indexed.get(block)
        if known is not None:
            return known
        try:
            rows = self._decoder.decode(block, raw=True)
        except HPACKError as error:
            raise ValueError(f"headers cannot be decoded: {error}") from error
        found = {bytes(name): bytes(content) for name, content in rows}
        if not all(_INDEX < byte < 0xFF for byte in block) or len(self._indexed) >= _MOST_INDEXED:
            self._indexed.clear()
        else:
            self._indexed[block] = found
        return found

    def _stream(self, number: int) -> Stream:
        stream = self._open.get(number)
        if stream is None:
            raise ValueError(f"an HTTP/2 frame on stream {number}, on which nothing is asked")
        return stream

    def _end(self, number: int) -> None:
        if stream := self._open.pop(number, None):
            stream.ended = True

    def _go_away(self, last: int) -> None:
        """Calls up to `last` are still answered."""
        self.over = True
        for number in [number for number in self._open if number > last]:
            self._end(number)


def _greeting() -> bytes:
    """The client's preface: nothing may be pushed, and the windows are as large as they may be."""
    settings = b"\x00\x02" + bytes(4) + b"\x00\x04" + _LARGEST_WINDOW.to_bytes(4)
    more = (_LARGEST_WINDOW - _INITIAL_WINDOW).to_bytes(4)
    frames = (*_frame(_Type.SETTINGS, 0, 0, settings), *_frame(_Type.WINDOW_UPDATE, 0, 0, more))
    return b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"".join(frames)


@cache
def _request(path: str) -> bytes:
    """The headers of a call."""
    headers = (
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "localhost"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
    )
    return Encoder().encode([NeverIndexedHeaderTuple(*header) for header in headers], huffman=False)


def _frame(kind: int, flags: int, number: int, content: bytes) -> tuple[bytes, bytes]:
    size = len(content)
    return _HEAD.pack(size >> 8, size & 0xFF, kind, flags, number), content


def _without_padding(flags: int, content: bytes) -> bytes:
    if not flags & _PADDED:
        return content
    if not content or content[0] >= len(content):
        raise ValueError("an HTTP/2 frame with more padding than content")
    return content[1 : len(content) - content[0]]
