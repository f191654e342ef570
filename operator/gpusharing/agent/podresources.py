"""Which GPU devices do pods hold, and which can they hold? The answers of the kubelet's podresources API.

They are a few nested messages in protobuf's wire format (kubernetes/kubelet v0.36.3
pkg/apis/podresources/v1/api.proto), which this module decodes itself: grpcio would cost more memory than the rest of
the agent.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import field, replace
from hashlib import sha256
from operator import attrgetter
from typing import Protocol, TypeVar

from gpusharing.agent.library import GPU
from gpusharing.api.gpunode import MAX_HOLDERS
from gpusharing.api.names import is_gpu_resource
from gpusharing.planning.gpus.texts import write_holders
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


def find_holders(holdings: Holdings, gpus: Iterable[GPU], uids: Mapping[tuple[str, str], str]) -> str | None:
    """Return which pods hold which of these GPUs, or None if there are too many; `uids` by namespace and name.

    A pod deleted by force may be listed beside its successor of the same name; neither gets GPUs here.
    """
    gpu_of = {uuid: gpu.index for gpu in gpus for uuid in gpu.uuids if uuid}
    pods: dict[tuple[str, str], list[PodDevices]] = {}
    for row in filter(lambda row: is_gpu_resource(row.resource), holdings.by_pod):  # NVIDIA serves network devices too
        pods.setdefault((row.namespace, row.pod), []).append(row)
    if len(pods) > MAX_HOLDERS:
        return None
    found: list[tuple[str, str, Iterable[int], str]] = []
    for (namespace, name), rows in pods.items():
        devices = sorted((row.resource, device) for row in rows for device in row.devices)
        on = {gpu_of.get(base(device), -1) for _, device in devices}
        sure = -1 not in on and len({row.resource for row in rows}) == len(rows)
        digest = sha256(json.dumps(devices).encode()).hexdigest()[:12]
        uid = uids.get((namespace, name), "")
        found.append((f"{namespace}/{name}", uid, on if sure else (), digest))
    return write_holders(found)


def base(device: str) -> str:
    """Return the UUID in a device plugin's id: the replicas of a shared device are called UUID::0, UUID::1 and so on."""
    return device.partition("::")[0]


class PodResourcesUnavailable(Exception):
    """The kubelet did not answer, or not with a valid list of pods."""


class PodResources(Protocol):
    """Reads which pods hold GPU devices on this node."""

    async def read(self) -> Holdings:
        """Return the current holdings. Raises PodResourcesUnavailable."""
        ...


class HoldingsDecoder:
    """Decodes one answer of the kubelet after another."""

    def __init__(self) -> None:
        # What two consecutive answers have in common is decoded only once. It is remembered by pod and by device,
        # because the kubelet iterates over Go maps, so both come in a different order each time (podsMapToPods in
        # pkg/kubelet/pod/pod_manager.go, containerDevicesFromResourceDeviceInstances in
        # pkg/kubelet/cm/container_manager.go, read at v1.36.3).
        self._pods: dict[bytes, tuple[PodDevices, ...]] = {}
        self._devices: dict[bytes, tuple[tuple[str, str], ...]] = {}
        self._last = Holdings()

    def decode(self, listed: bytes, allocatable: bytes | None = None) -> Holdings:
        """Return the holdings in both answers, the same object while neither changes; ValueError for a bad `listed`."""
        self._pods, rows = _decode(listed, _POD_RESOURCES, self._pods, _pod_devices)
        by_pod = tuple(sorted(rows, key=attrgetter("namespace", "pod", "resource")))
        devices: tuple[tuple[str, str], ...] | None = None
        if allocatable is not None:
            with suppress(ValueError):
                self._devices, pairs = _decode(allocatable, _ALLOCATABLE_DEVICES, self._devices, _devices_in)
                devices = tuple(sorted(pairs))
        if by_pod != self._last.by_pod:
            allocated: Counter[str] = Counter()
            for each in by_pod:
                allocated[each.resource] += len(each.devices)
            pods = {(each.namespace, each.pod) for each in by_pod}
            self._last = Holdings(dict(sorted(allocated.items())), len(pods), by_pod, devices)
        elif devices != self._last.allocatable:
            self._last = replace(self._last, allocatable=devices)
        return self._last


def _decode(
    response: bytes, number: int, known: dict[bytes, tuple[T, ...]], decode: Callable[[bytes], Iterator[T]]
) -> tuple[dict[bytes, tuple[T, ...]], list[T]]:
    """Return the values of every field `number`, by the bytes of the field and all in one list."""
    now: dict[bytes, tuple[T, ...]] = {}
    everything: list[T] = []
    for message in _messages(response, number):
        if (values := known.get(message)) is None:
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
