"""Which GPU devices do pods hold, and which can they hold, according to the kubelet of this node?

The kubelet serves gRPC `v1.PodResourcesLister` on a unix socket (kubernetes/kubelet v0.36.3
pkg/apis/podresources/v1/api.proto). Its answers are a few nested messages in protobuf's wire format, which this module
decodes itself: grpcio would cost more memory than the rest of the agent.
"""

import asyncio
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import field, replace
from operator import attrgetter
from pathlib import Path
from typing import Protocol, TypeVar, cast
from urllib.parse import unquote

from gpusharing.agent.http2 import Conversation, Stream
from gpusharing.planning.vocabulary.values import value

T = TypeVar("T")

NVIDIA_RESOURCES = "nvidia.com/"
"""Prefix of the resources that are counted: all that a device plugin of NVIDIA serves, not only GPUs."""

# Field numbers of api.proto.
_ALLOCATABLE_DEVICES = 1  # AllocatableResourcesResponse.devices
_POD_RESOURCES = 1  # ListPodResourcesResponse.pod_resources
_POD_NAME = 1  # PodResources.name
_POD_NAMESPACE = 2  # PodResources.namespace
_POD_CONTAINERS = 3  # PodResources.containers
_CONTAINER_DEVICES = 2  # ContainerResources.devices
_DEVICES_RESOURCE_NAME = 1  # ContainerDevices.resource_name
_DEVICES_IDS = 2  # ContainerDevices.device_ids


@value
class PodDevices:
    """The devices of one resource that one pod holds."""

    namespace: str
    pod: str
    resource: str
    devices: tuple[str, ...]
    """Ids that the device plugin gave the devices, sorted: UUID, or UUID::replica if it is shared."""


@value
class Holdings:
    """The devices that pods of this node hold. Finished pods hold none.

    Kubelets before 1.34, and later ones with the feature gate KubeletPodResourcesListUseActivePods off, list finished
    pods too (kubernetes#119423, mended by #132028), but without devices: List calls UpdateAllocatedDevices first, which
    drops the devices of pods that are not active (pkg/kubelet/apis/podresources/server_v1.go,
    cm/devicemanager/manager.go, read at v1.36.3). Only a kubelet that has just started, and does not know all its pods
    yet, may still count them.
    """

    allocated: dict[str, int] = field(default_factory=dict)
    """How many devices pods hold, by resource name; each replica of a shared GPU counts as one."""
    pods: int = 0
    by_pod: tuple[PodDevices, ...] = ()
    """The devices of each pod, sorted by namespace, pod and resource."""
    allocatable: tuple[tuple[str, str], ...] | None = None
    """Resource name and id of every healthy device that pods can hold, sorted.

    None if the kubelet does not report it."""


class PodResourcesUnavailable(Exception):
    """The kubelet did not answer, or not with a valid list of pods."""


class PodResources(Protocol):
    """Reads which pods hold GPU devices on this node."""

    async def read(self) -> Holdings:
        """Return the current holdings. Raises PodResourcesUnavailable."""
        ...


def _decode(
    response: bytes, number: int, known: dict[bytes, tuple[T, ...]], decode: Callable[[bytes], Iterator[T]]
) -> tuple[dict[bytes, tuple[T, ...]], list[T]]:
    """Return the values of every field `number`, by the bytes of the field and all in one list."""
    now: dict[bytes, tuple[T, ...]] = {}
    everything: list[T] = []
    for message in _messages(response, number):
        values = known.get(message)
        if values is None:
            values = tuple(decode(message))
        now[message] = values
        everything += values
    return now, everything


def _pod_devices(pod: bytes) -> Iterator[PodDevices]:
    devices_by_resource: dict[str, list[str]] = {}
    for container in _messages(pod, _POD_CONTAINERS):
        for devices in _messages(container, _CONTAINER_DEVICES):
            for resource, device in _devices_in(devices):
                devices_by_resource.setdefault(resource, []).append(device)
    if devices_by_resource:
        namespace, name = (b"".join(_messages(pod, part)).decode() for part in (_POD_NAMESPACE, _POD_NAME))
        for resource, ids in devices_by_resource.items():
            yield PodDevices(namespace, name, resource, tuple(sorted(ids)))


def _devices_in(devices: bytes) -> Iterator[tuple[str, str]]:
    name = b"".join(_messages(devices, _DEVICES_RESOURCE_NAME)).decode()
    if name.startswith(NVIDIA_RESOURCES):
        for device in _messages(devices, _DEVICES_IDS):
            yield name, device.decode()


def _messages(message: bytes, number: int) -> Iterator[bytes]:
    """Yield the content of every length-delimited field `number`. Raises ValueError if the message is malformed."""
    at, size = 0, len(message)
    while at < size:
        key = message[at]
        key, at = (key, at + 1) if key < 0x80 else _varint(message, at)
        begin = at
        match key & 7:  # the wire type (protobuf.dev/programming-guides/encoding)
            case 2:  # length-delimited
                short = at < size and message[at] < 0x80
                length, begin = (message[at], at + 1) if short else _varint(message, at)
                at = begin + length
            case 0:  # varint
                at = _varint(message, at)[1]
            case 1:  # 64 bits
                at += 8
            case 5:  # 32 bits
                at += 4
            case unknown:
                raise ValueError(f"unknown protobuf wire type {unknown} at byte {at}")
        if at > size:
            raise ValueError(f"protobuf field {key >> 3} ends {at - size} bytes past the end of its message")
        if key & 7 == 2 and key >> 3 == number:
            yield message[begin:at]


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """Return the number that begins at byte `at`, and the position after it."""
    number = shift = 0
    while True:
        if at >= len(message) or shift > 63:
            raise ValueError(f"protobuf varint truncated at byte {at}")
        byte = message[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
        shift += 7


SOCKET = Path("/var/lib/kubelet/pod-resources/kubelet.sock")
LIST = "/v1.PodResourcesLister/List"
ALLOCATABLE = "/v1.PodResourcesLister/GetAllocatableResources"
_PREFIX = 5
_STATUS, _OK = b"grpc-status", b"0"


class KubeletPodResources:
    """The podresources API of this node's kubelet. Supports one reading at a time.

    The calls List and GetAllocatableResources go out together at each turn, over one connection that stays open.
    Neither can be left out: nothing else on the node shows that a device plugin has marked a device unhealthy, or
    shares it among more pods.
    """

    def __init__(self, socket: Path = SOCKET, timeout: float = 5.0, allocatable_timeout: float = 2.0) -> None:
        self._socket = socket
        self._timeout = timeout
        self._allocatable_timeout = allocatable_timeout
        # What two consecutive answers have in common is decoded only once. It is remembered by pod and by device,
        # because the kubelet iterates over Go maps, so both come in a different order each time (podsMapToPods in
        # pkg/kubelet/pod/pod_manager.go, containerDevicesFromResourceDeviceInstances in
        # pkg/kubelet/cm/container_manager.go, read at v1.36.3).
        self._pods: dict[bytes, tuple[PodDevices, ...]] = {}
        self._devices: dict[bytes, tuple[tuple[str, str], ...]] = {}
        self._last = Holdings()
        self._connection: _Connection | None = None
        self._file: tuple[int, ...] = ()
        """Device, inode and time of change of the socket's file when the connection was opened.

        The time is needed because inode numbers are reused."""

    async def read(self) -> Holdings:
        """Return the current holdings; any error, and a cancellation too, closes the connection.

        Raises PodResourcesUnavailable if the list of pods cannot be read. If only the allocatable devices cannot, they
        are None, because drains depend only on which pods hold devices.
        """
        try:
            try:
                async with asyncio.timeout(self._timeout):
                    listed, allocatable = await self._ask()
                return self.decode(_message(listed), self._allocatable_message(allocatable))
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

    def decode(self, listed: bytes, allocatable: bytes | None = None) -> Holdings:
        """Return the holdings in a ListPodResourcesResponse and an AllocatableResourcesResponse.

        They are the same object while neither changes. Raises ValueError if `listed` is malformed; without a valid
        `allocatable` those devices are None.
        """
        self._pods, rows = _decode(listed, _POD_RESOURCES, self._pods, _pod_devices)
        by_pod = tuple(sorted(rows, key=attrgetter("namespace", "pod", "resource")))
        devices: tuple[tuple[str, str], ...] | None = None
        if allocatable is not None:
            try:
                self._devices, pairs = _decode(allocatable, _ALLOCATABLE_DEVICES, self._devices, _devices_in)
                devices = tuple(sorted(pairs))
            except ValueError:
                pass
        if by_pod != self._last.by_pod:
            allocated: Counter[str] = Counter()
            for each in by_pod:
                allocated[each.resource] += len(each.devices)
            pods = {(each.namespace, each.pod) for each in by_pod if each.devices}
            self._last = Holdings(dict(sorted((+allocated).items())), len(pods), by_pod, devices)
        elif devices != self._last.allocatable:
            self._last = replace(self._last, allocatable=devices)
        return self._last

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    async def _ask(self) -> Sequence[Stream]:
        status = os.stat(self._socket)
        file = status.st_dev, status.st_ino, status.st_ctime_ns  # inode numbers are reused
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
        """Make both calls, and return their streams.

        The first has ended then; the second is awaited for `patience` seconds only.
        """
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
