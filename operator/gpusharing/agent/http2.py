"""The client's side of unary gRPC calls without fields (grpc/grpc doc/PROTOCOL-HTTP2.md), without the socket.

h2 does the HTTP/2. It costs 0.7 ms of CPU more for two calls than frames of our own would
(docs/adr/0045-what-a-cycle-of-the-agent-costs.md), and knows the protocol.
"""

from collections.abc import Iterable

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
)
from h2.exceptions import H2Error

MOST = 16 << 20
"""Bytes of one answer, as others take them (kubernetes test/e2e_node/util.go, defaultPodResourcesMaxSize)."""
MOST_TURNS = 1000
"""Of one connection: h2 4.4 remembers every stream that has ended, up to 65,536 (H2Connection.MAX_CLOSED_STREAMS)."""

_CONFIGURATION = H2Configuration(
    client_side=True,
    header_encoding=None,
    # Ours are the same six every time. What the kubelet sends is not looked at but for gRPC's status and message.
    validate_outbound_headers=False,
    normalize_outbound_headers=False,
    validate_inbound_headers=False,
    normalize_inbound_headers=False,
)
_EMPTY_MESSAGE = b"\x00\x00\x00\x00\x00"  # not compressed, length 0


class Stream:
    """One call, and its result so far."""

    __slots__ = ("body", "ended", "headers")

    def __init__(self) -> None:
        self.body = bytearray()
        self.headers: dict[bytes, bytes] = {}
        """With the trailers, in which gRPC says how it went."""
        self.ended = False


class Conversation:
    """One connection, from the client's preface on."""

    def __init__(self) -> None:
        self._http2 = H2Connection(_CONFIGURATION)
        self._http2.initiate_connection()
        self._open: dict[int, Stream] = {}
        self._turns = 0
        self._terminated = False

    @property
    def over(self) -> bool:
        """No more calls are made on it: the server accepts none, or there were many."""
        return self._terminated or self._turns >= MOST_TURNS

    def call(self, paths: Iterable[str]) -> tuple[bytes, list[Stream]]:
        """The bytes to send to call these methods with an empty message, and their streams in that order. Raises
        ValueError when the connection allows no more calls."""
        self._turns += 1
        try:
            streams = [self._begin(path) for path in paths]
        except H2Error as error:
            raise ValueError(f"no call can be made: {error}") from error
        return self._http2.data_to_send(), streams

    def receive(self, data: bytes) -> bytes:
        """Take what the server sent; returns the bytes to send back. Raises ValueError when it is not understood: then
        the connection is useless."""
        try:
            for event in self._http2.receive_data(data):
                self._take(event)
        except H2Error as error:
            raise ValueError(f"invalid HTTP/2: {error}") from error
        return self._http2.data_to_send()

    def _begin(self, path: str) -> Stream:
        number = self._http2.get_next_available_stream_id()
        headers = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", path),
            (":authority", "localhost"),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
        ]
        self._http2.send_headers(number, headers)
        self._http2.send_data(number, _EMPTY_MESSAGE, end_stream=True)
        return self._open.setdefault(number, Stream())

    def _take(self, event: Event) -> None:
        match event:
            case DataReceived():
                stream = self._open[event.stream_id]
                stream.body += event.data
                if len(stream.body) > MOST:
                    raise ValueError(f"an answer of more than {MOST} bytes")
                self._http2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            case ResponseReceived() | TrailersReceived():
                headers = {bytes(name): bytes(content) for name, content in event.headers}
                self._open[event.stream_id].headers.update(headers)
            case StreamEnded() | StreamReset():
                self._open.pop(event.stream_id).ended = True
            case ConnectionTerminated():
                self._terminated = True
                for stream in self._open.values():
                    stream.ended = True
                self._open.clear()
            case _:
                pass
