"""Unary gRPC calls over the kubelet's unix socket: `v1.PodResourcesLister`, List and GetAllocatableResources.

gRPC is HTTP/2 with length-prefixed messages (grpc/grpc doc/PROTOCOL-HTTP2.md). h2 does the HTTP/2; grpcio would
cost more memory than the rest of the agent.
"""

import asyncio
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

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

from gpusharing.agent.podresources import Holdings, PodResourcesUnavailable, holdings, offered

SOCKET = Path("/var/lib/kubelet/pod-resources/kubelet.sock")
LIST = "/v1.PodResourcesLister/List"
ALLOCATABLE = "/v1.PodResourcesLister/GetAllocatableResources"
_EMPTY_MESSAGE = b"\x00\x00\x00\x00\x00"  # not compressed, length 0: neither request has fields
_PREFIX = 5
_OK = b"0"


class KubeletPodResources:
    """The podresources API of the kubelet of this node, asked over a fresh connection each time."""

    def __init__(self, socket: Path = SOCKET, timeout: float = 5.0, offered_timeout: float = 2.0) -> None:
        """Time-outs in seconds: for who holds what, and for what there is to hold."""
        self._socket = socket
        self._timeout = timeout
        self._offered_timeout = offered_timeout

    async def read(self) -> Holdings:
        """See PodResources.read."""
        try:
            async with asyncio.timeout(self._timeout):
                known = holdings(await _call(self._socket, LIST))
        except TimeoutError as error:
            raise PodResourcesUnavailable(f"the kubelet did not answer on {self._socket} in time") from error
        except FileNotFoundError as error:
            raise PodResourcesUnavailable(
                f"no kubelet socket {self._socket}; mount its directory into the agent"
            ) from error
        except OSError as error:
            raise PodResourcesUnavailable(f"cannot reach the kubelet on {self._socket}: {error}") from error
        except (H2Error, ValueError) as error:
            raise PodResourcesUnavailable(
                f"the answer on {self._socket} is not understood: {error}"
            ) from error
        return replace(known, offered=await self._offered())

    async def _offered(self) -> tuple[tuple[str, str], ...] | None:
        """None where the kubelet does not tell (KubeletPodResourcesGetAllocatable, which 1.28 made final), whatever the
        cause: whether pods hold devices decides about drains, and is known by now."""
        try:
            async with asyncio.timeout(self._offered_timeout):
                return offered(await _call(self._socket, ALLOCATABLE))
        except (PodResourcesUnavailable, OSError, H2Error, ValueError):
            return None


async def _call(socket: Path, method: str) -> bytes:
    """The answer to one call; raises PodResourcesUnavailable for any status but OK."""
    reader, writer = await asyncio.open_unix_connection(str(socket))
    try:
        call = _UnaryCall(method)
        writer.write(call.request())
        while not call.ended:
            received = await reader.read(65536)
            if not received:
                raise PodResourcesUnavailable("the kubelet closed the connection before it answered")
            writer.write(call.receive(received))
        return call.message()
    finally:
        writer.close()


class _UnaryCall:
    """The HTTP/2 conversation of one call, without the socket."""

    def __init__(self, method: str) -> None:
        self._method = method
        self.ended = False
        self._http2 = H2Connection(H2Configuration(client_side=True, header_encoding=None))
        self._body = bytearray()
        self._headers: dict[bytes, bytes] = {}

    def request(self) -> bytes:
        """What the client sends: preface, headers and the one empty message."""
        self._http2.initiate_connection()
        stream = self._http2.get_next_available_stream_id()
        headers = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", self._method),
            (":authority", "localhost"),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
        ]
        self._http2.send_headers(stream, headers)
        self._http2.send_data(stream, _EMPTY_MESSAGE, end_stream=True)
        return self._http2.data_to_send()

    def receive(self, data: bytes) -> bytes:
        """Take what the server sent; returns what is to be sent back."""
        for event in self._http2.receive_data(data):
            self._take(event)
        return self._http2.data_to_send()

    def message(self) -> bytes:
        """The one message of the answer; raises PodResourcesUnavailable for any status but OK."""
        status = self._headers.get(b"grpc-status", b"none")
        if status != _OK:
            detail = unquote(self._headers.get(b"grpc-message", b"no message").decode())
            raise PodResourcesUnavailable(f"the kubelet refused: gRPC status {status.decode()}, {detail}")
        compressed, length = self._body[:1], int.from_bytes(self._body[1:_PREFIX])
        if compressed != b"\x00" or len(self._body) != _PREFIX + length:
            raise ValueError(f"{len(self._body)} bytes are not one plain message of {length}")
        return bytes(self._body[_PREFIX:])

    def _take(self, event: Event) -> None:
        match event:
            case DataReceived():
                self._body += event.data
                self._http2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            case ResponseReceived() | TrailersReceived():
                self._headers |= {bytes(name): bytes(value) for name, value in event.headers}
            case StreamEnded() | StreamReset() | ConnectionTerminated():
                self.ended = True
            case _:
                pass
