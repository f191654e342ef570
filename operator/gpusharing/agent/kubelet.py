"""The client of the kubelet's podresources API, which it serves as gRPC `v1.PodResourcesLister` on a unix socket."""

import asyncio
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import cast
from urllib.parse import unquote

from gpusharing.agent.http2 import Conversation, Stream
from gpusharing.agent.podresources import Holdings, HoldingsDecoder, PodResourcesUnavailable

SOCKET = Path("/var/lib/kubelet/pod-resources/kubelet.sock")
LIST = "/v1.PodResourcesLister/List"
ALLOCATABLE = "/v1.PodResourcesLister/GetAllocatableResources"
_PREFIX = 5
_STATUS, _OK = b"grpc-status", b"0"


class KubeletPodResources:
    """The podresources API of this node's kubelet. Supports one reading at a time, over one connection.

    Both calls are made at each turn: only GetAllocatableResources shows that a device is unhealthy, or shared by more.
    """

    def __init__(self, socket: Path = SOCKET, timeout: float = 5.0, allocatable_timeout: float = 2.0) -> None:
        self._socket = socket
        self._timeout = timeout
        self._allocatable_timeout = allocatable_timeout
        self._decoder = HoldingsDecoder()
        self._connection: _Connection | None = None
        self._file: tuple[int, ...] = ()
        """Device, inode and time of change of the socket's file at the connection. Inode numbers are reused."""

    async def read(self) -> Holdings:
        """Read as `PodResources` does; any error closes the connection. Without allocatable devices these are None."""
        try:
            try:
                async with asyncio.timeout(self._timeout):
                    listed, allocatable = await self._ask()
                return self._decoder.decode(_message(listed), self._allocatable_message(allocatable))
            except BaseException:
                self.close()
                raise
        except TimeoutError as error:
            raise PodResourcesUnavailable(f"the kubelet did not respond on {self._socket} in time") from error
        except FileNotFoundError as error:
            raise PodResourcesUnavailable(
                f"the kubelet socket {self._socket} does not exist; mount its directory into the agent's container"
            ) from error
        except OSError as error:
            raise PodResourcesUnavailable(f"cannot reach the kubelet on {self._socket}: {error}") from error
        except ValueError as error:
            raise PodResourcesUnavailable(f"cannot parse the kubelet's response on {self._socket}: {error}") from error

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    async def _ask(self) -> Sequence[Stream]:
        status = os.stat(self._socket)
        file = status.st_dev, status.st_ino, status.st_ctime_ns
        if self._connection is not None and self._connection.usable and self._file == file:
            with suppress(OSError, ValueError):
                return await self._connection.ask(self._allocatable_timeout)
        self.close()
        create = asyncio.get_running_loop().create_unix_connection
        _, self._connection = await create(_Connection, str(self._socket))
        self._file = file
        return await self._connection.ask(self._allocatable_timeout)

    def _allocatable_message(self, allocatable: Stream) -> bytes | None:
        if not allocatable.ended:
            self.close()  # so that a late answer is not taken for that of the next turn
            return None
        try:
            return _message(allocatable)
        # The feature gate KubeletPodResourcesGetAllocatable, which may reject the call, is final since 1.28.
        except (PodResourcesUnavailable, ValueError):
            return None


class _Connection(asyncio.Protocol):
    """One connection to the kubelet. It also answers what the kubelet sends between calls, above all pings."""

    def __init__(self) -> None:
        self._http2 = Conversation()
        self._transport: asyncio.Transport | None = None
        self._error: Exception | None = None
        """Why the connection ended, or None while it is open."""
        self._woken: asyncio.Future[None] | None = None

    @property
    def usable(self) -> bool:
        return self._error is None and not self._http2.over

    async def ask(self, patience: float) -> Sequence[Stream]:
        """Make both calls and return their streams. The first has ended; the second is awaited for `patience` seconds."""
        sent, streams = self._http2.call((LIST, ALLOCATABLE))
        if self._transport is not None:
            self._transport.write(sent)
        with suppress(TimeoutError):
            async with asyncio.timeout(patience):
                await self._until_ended(streams)
        await self._until_ended(streams[:1])
        if isinstance(self._error, ValueError):
            raise self._error  # a server that sends something invalid cannot be trusted with what it sent before
        if _STATUS not in streams[0].headers:
            raise self._error or ValueError(streams[0].error or "the call ended without a gRPC status")
        return streams

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
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
        self._end(exc or ConnectionError("the kubelet closed the connection before it responded"))

    def _end(self, error: Exception) -> None:
        self._error = self._error or error
        self._wake()

    async def _until_ended(self, streams: Sequence[Stream]) -> None:
        while self._error is None and not all(stream.ended for stream in streams):
            self._woken = asyncio.get_running_loop().create_future()
            await self._woken

    def _wake(self) -> None:
        if self._woken is not None and not self._woken.done():
            self._woken.set_result(None)


def _message(stream: Stream) -> bytes:
    status = stream.headers.get(_STATUS)
    if status is None:
        raise ValueError("the call ended without a gRPC status")
    if status != _OK:
        detail = unquote(stream.headers.get(b"grpc-message", b"no message").decode())
        raise PodResourcesUnavailable(f"the kubelet rejected the call: gRPC status {status.decode()}, {detail}")
    body = stream.body
    compressed, length = body[:1], int.from_bytes(body[1:_PREFIX])
    if compressed != b"\x00" or len(body) != _PREFIX + length:
        raise ValueError(f"the body has {len(body)} bytes, which is not one uncompressed message of {length} bytes")
    return bytes(body[_PREFIX:])
