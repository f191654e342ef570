"""Unary gRPC calls over the kubelet's unix socket: `v1.PodResourcesLister`, List and GetAllocatableResources.

gRPC is HTTP/2 with length-prefixed messages (grpc/grpc doc/PROTOCOL-HTTP2.md); grpcio would cost more memory than the
rest of the agent. Both calls go out together, at each turn, over one connection that stays open. Neither can be left
out: nothing else on the node shows that a device plugin has marked a device unhealthy or shares it among more.
"""

import asyncio
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import cast
from urllib.parse import unquote

from gpusharing.agent.http2 import Conversation, Stream
from gpusharing.agent.podresources import Answers, Holdings, PodResourcesUnavailable

SOCKET = Path("/var/lib/kubelet/pod-resources/kubelet.sock")
LIST = "/v1.PodResourcesLister/List"
ALLOCATABLE = "/v1.PodResourcesLister/GetAllocatableResources"
_PREFIX = 5
_STATUS, _OK = b"grpc-status", b"0"


class KubeletPodResources:
    """The podresources API of the kubelet of this node. One reading at a time."""

    def __init__(self, socket: Path = SOCKET, timeout: float = 5.0, offered_timeout: float = 2.0) -> None:
        """Timeouts in seconds: for the holdings, and for the devices that there are."""
        self._socket = socket
        self._timeout = timeout
        self._offered_timeout = offered_timeout
        self._answers = Answers()
        self._connection: _Connection | None = None
        self._file: tuple[int, ...] = ()
        """The file of the socket that the connection goes to."""

    async def read(self) -> Holdings:
        """See PodResources.read. After a failure the next one begins with a new connection."""
        try:
            holdings = await self._read()
        except BaseException:
            self.close()
            raise
        return holdings

    def close(self) -> None:
        """Close the connection. Reading again opens another one."""
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    async def _read(self) -> Holdings:
        try:
            async with asyncio.timeout(self._timeout):
                listed, allocatable = await self._ask()
            return self._answers.holdings(_message(listed), self._offered(allocatable))
        except TimeoutError as error:
            raise PodResourcesUnavailable(f"the kubelet did not answer on {self._socket} in time") from error
        except FileNotFoundError as error:
            raise PodResourcesUnavailable(
                f"no kubelet socket {self._socket}; mount its directory into the agent"
            ) from error
        except OSError as error:
            raise PodResourcesUnavailable(f"cannot reach the kubelet on {self._socket}: {error}") from error
        except ValueError as error:
            raise PodResourcesUnavailable(
                f"the answer on {self._socket} is not understood: {error}"
            ) from error

    async def _ask(self) -> Sequence[Stream]:
        """Both calls; the first has ended. A connection that stayed open may have ended meanwhile, or lead to a kubelet
        that was replaced: then a new one is asked, in the same turn."""
        file = _which(self._socket)
        if self._connection is not None and self._connection.usable and self._file == file:
            with suppress(OSError, ValueError):
                return await self._connection.ask(self._offered_timeout)
        self.close()
        create = asyncio.get_running_loop().create_unix_connection
        _, self._connection = await create(_Connection, str(self._socket))
        self._file = file
        return await self._connection.ask(self._offered_timeout)

    def _offered(self, allocatable: Stream) -> bytes | None:
        """None when the kubelet does not answer (KubeletPodResourcesGetAllocatable, which 1.28 made final), whatever
        the cause: whether pods hold devices decides about drains, and is known by now."""
        if not allocatable.ended:
            self.close()  # nobody waits for that answer any more
            return None
        try:
            return _message(allocatable)
        except (PodResourcesUnavailable, ValueError):
            return None


class _Connection(asyncio.Protocol):
    """Answers what the kubelet sends at any time, also between two calls: its pings, above all."""

    def __init__(self) -> None:
        self._http2 = Conversation()
        self._transport: asyncio.Transport | None = None
        self._error: Exception | None = None
        """Why no more answers will come."""
        self._awaited: Sequence[Stream] = ()
        self._woken: asyncio.Future[None] | None = None

    @property
    def usable(self) -> bool:
        """Another call may be made."""
        return self._error is None and not self._http2.over

    async def ask(self, patience: float) -> Sequence[Stream]:
        """Make both calls. Returns when both have ended, after `patience` seconds also with the first alone. Raises
        OSError when the connection ends before, ValueError when what comes is no answer."""
        sent, streams = self._http2.call((LIST, ALLOCATABLE))
        if self._transport is not None:
            self._transport.write(sent)
        with suppress(TimeoutError):
            async with asyncio.timeout(patience):
                await self._until_ended(streams)
        await self._until_ended(streams[:1])
        if isinstance(self._error, ValueError):
            raise self._error  # who goes on with something else may have said anything before
        if _STATUS not in streams[0].headers:
            raise self._error or ValueError(streams[0].error or "the call ended without a gRPC status")
        return streams

    def close(self) -> None:
        """Close at once, whatever is under way."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        try:
            answer = self._http2.receive(data)
        except ValueError as error:
            self._end(error)
            self.close()
            return
        if answer and self._transport is not None:
            self._transport.write(answer)
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._end(exc or ConnectionError("the kubelet closed the connection before it answered"))

    def _end(self, error: Exception) -> None:
        self._error = self._error or error
        self._wake()

    async def _until_ended(self, streams: Sequence[Stream]) -> None:
        """Until these have ended, or the connection has."""
        self._awaited = streams
        while not self._is_settled():
            self._woken = asyncio.get_running_loop().create_future()
            await self._woken

    def _is_settled(self) -> bool:
        return self._error is not None or all(stream.ended for stream in self._awaited)

    def _wake(self) -> None:
        if self._woken is not None and not self._woken.done():
            self._woken.set_result(None)


def _which(socket: Path) -> tuple[int, ...]:
    """Distinguishes a socket from its replacement: inode numbers are reused, but with another time of change."""
    found = os.stat(socket)
    return found.st_dev, found.st_ino, found.st_ctime_ns


def _message(stream: Stream) -> bytes:
    """The one message of an answer; raises PodResourcesUnavailable for any status but OK, ValueError without one."""
    status = stream.headers.get(_STATUS)
    if status is None:
        raise ValueError("the call ended without a gRPC status")
    if status != _OK:
        detail = unquote(stream.headers.get(b"grpc-message", b"no message").decode())
        raise PodResourcesUnavailable(f"the kubelet refused: gRPC status {status.decode()}, {detail}")
    body = stream.body
    compressed, length = body[:1], int.from_bytes(body[1:_PREFIX])
    if compressed != b"\x00" or len(body) != _PREFIX + length:
        raise ValueError(f"{len(body)} bytes are not one plain message of {length}")
    return bytes(body[_PREFIX:])
