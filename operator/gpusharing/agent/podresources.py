"""Which GPU devices pods hold, as the kubelet of this node knows it.

The kubelet serves gRPC `v1.PodResourcesLister` on a unix socket (kubernetes/kubelet v0.36.3
pkg/apis/podresources/v1/api.proto). Its answers are a few nested messages of protobuf's wire format, read here;
`kubelet.py` does the calls.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import field, replace
from operator import attrgetter
from typing import Protocol, TypeVar

from gpusharing.planning.vocabulary.values import value

T = TypeVar("T")

NVIDIA_RESOURCES = "nvidia.com/"
"""More than GPUs: whatever a device plugin of NVIDIA's serves counts as in use."""

# Field numbers of api.proto.
_ALLOCATABLE_DEVICES = 1  # AllocatableResourcesResponse.devices
_POD_RESOURCES = 1  # ListPodResourcesResponse.pod_resources
_POD_NAME = 1  # PodResources.name
_POD_NAMESPACE = 2  # PodResources.namespace
_POD_CONTAINERS = 3  # PodResources.containers
_CONTAINER_DEVICES = 2  # ContainerResources.devices
_DEVICES_RESOURCE_NAME = 1  # ContainerDevices.resource_name
_DEVICES_IDS = 2  # ContainerDevices.device_ids

# Wire types (protobuf.dev/programming-guides/encoding).
_VARINT, _FIXED64, _LENGTH_DELIMITED, _FIXED32 = 0, 1, 2, 5


@value
class Held:
    """Devices of one resource in the hands of one pod."""

    namespace: str
    """Namespace of the pod."""
    pod: str
    """Name of the pod."""
    resource: str
    """For example nvidia.com/gpu."""
    devices: tuple[str, ...]
    """As the device plugin calls them: a UUID, or UUID::replica where the device is shared. In order."""


@value
class Holdings:
    """Devices that pods of this node hold. Finished pods hold none.

    Kubelets before 1.34, and later ones with the feature gate KubeletPodResourcesListUseActivePods off, list finished
    pods too (kubernetes#119423, mended by #132028), but without devices: List calls UpdateAllocatedDevices first, which
    drops those of pods that are not active (pkg/kubelet/apis/podresources/server_v1.go, cm/devicemanager/manager.go,
    read at v1.36.3; memory and CPUs are what those kubelets get wrong). Only a kubelet that has just begun, and has not
    heard of all its pods, may still count them.
    """

    allocated: dict[str, int] = field(default_factory=dict)
    """Resource name (nvidia.com/...) to devices held; replicas of a shared GPU count one each."""
    pods: int = 0
    """Pods that hold at least one of them."""
    held: tuple[Held, ...] = ()
    """Which pod holds which, by namespace, pod and resource."""
    offered: tuple[tuple[str, str], ...] | None = None
    """Resource name and device id of every healthy device that pods can hold, in order; None: the kubelet does not
    report it."""


class PodResourcesUnavailable(Exception):
    """The kubelet could not be asked: report holdings as unknown, say why in the log, ask again at the next turn."""


class PodResources(Protocol):
    """Which pods hold GPU devices on this node."""

    async def read(self) -> Holdings:
        """Ask once; raises PodResourcesUnavailable."""
        ...


class Answers:
    """The kubelet's answers as values. Whatever two consecutive answers share is decoded once.

    This works by pod and by device: the kubelet iterates over Go maps, so both come in a different order each time
    (podsMapToPods in pkg/kubelet/pod/pod_manager.go, containerDevicesFromResourceDeviceInstances in
    pkg/kubelet/cm/container_manager.go, read at v1.36.3). Values are in an order of ours, and the same value is the
    same object, as long as nothing changes.
    """

    def __init__(self) -> None:
        self._pods: dict[bytes, tuple[Held, ...]] = {}
        self._devices: dict[bytes, tuple[tuple[str, str], ...]] = {}
        self._last = Holdings()

    def holdings(self, listed: bytes, allocatable: bytes | None = None) -> Holdings:
        """What a ListPodResourcesResponse says about GPU devices; raises ValueError when it is malformed. A malformed
        AllocatableResourcesResponse says nothing."""
        self._pods, held = _decoded(listed, _POD_RESOURCES, self._pods, _held)
        held.sort(key=attrgetter("namespace", "pod", "resource"))
        offered = None if allocatable is None else self._offered(allocatable)
        last = self._last
        if tuple(held) != last.held:
            self._last = _counted(tuple(held), offered)
        elif offered != last.offered:
            self._last = replace(last, offered=offered)
        return self._last

    def _offered(self, allocatable: bytes) -> tuple[tuple[str, str], ...] | None:
        try:
            self._devices, found = _decoded(allocatable, _ALLOCATABLE_DEVICES, self._devices, _named)
        except ValueError:
            return None
        return tuple(sorted(found))


def _decoded(
    response: bytes, number: int, known: dict[bytes, tuple[T, ...]], decode: Callable[[bytes], Iterator[T]]
) -> tuple[dict[bytes, tuple[T, ...]], list[T]]:
    """The value of each of these fields, and all of them; `known` has those of the last answer."""
    now: dict[bytes, tuple[T, ...]] = {}
    everything: list[T] = []
    for message in _messages(response, number):
        said = known.get(message)
        if said is None:
            said = tuple(decode(message))
        now[message] = said
        everything += said
    return now, everything


def _counted(held: tuple[Held, ...], offered: tuple[tuple[str, str], ...] | None) -> Holdings:
    allocated: Counter[str] = Counter()
    for each in held:
        allocated[each.resource] += len(each.devices)
    pods = {(each.namespace, each.pod) for each in held if each.devices}
    return Holdings(dict(sorted((+allocated).items())), len(pods), held, offered)


def _held(pod: bytes) -> Iterator[Held]:
    held: dict[str, list[str]] = {}
    for container in _messages(pod, _POD_CONTAINERS):
        for devices in _messages(container, _CONTAINER_DEVICES):
            for resource, device in _named(devices):
                held.setdefault(resource, []).append(device)
    if held:
        namespace, name = (b"".join(_messages(pod, part)).decode() for part in (_POD_NAMESPACE, _POD_NAME))
        for resource, found in held.items():
            yield Held(namespace, name, resource, tuple(sorted(found)))


def _named(devices: bytes) -> Iterator[tuple[str, str]]:
    """Resource name and id of each device of NVIDIA's in a ContainerDevices."""
    name = b"".join(_messages(devices, _DEVICES_RESOURCE_NAME)).decode()
    if name.startswith(NVIDIA_RESOURCES):
        for device in _messages(devices, _DEVICES_IDS):
            yield name, device.decode()


def _messages(message: bytes, number: int) -> Iterator[bytes]:
    """Contents of every length-delimited field of that number, in order."""
    at, size = 0, len(message)
    while at < size:
        key = message[at]
        key, at = (key, at + 1) if key < 0x80 else _varint(message, at)
        begin, at = _extent(message, at, key & 7)
        if at > size:
            raise ValueError(f"protobuf field {key >> 3} ends {at - size} bytes past its message")
        if key & 7 == _LENGTH_DELIMITED and key >> 3 == number:
            yield message[begin:at]


def _extent(message: bytes, at: int, wire_type: int) -> tuple[int, int]:
    """Return where the contents of a field begin and end, whose key ends at `at`."""
    if wire_type == _VARINT:
        return at, _varint(message, at)[1]
    if wire_type == _LENGTH_DELIMITED:
        short = at < len(message) and message[at] < 0x80
        length, at = (message[at], at + 1) if short else _varint(message, at)
        return at, at + length
    if wire_type in (_FIXED64, _FIXED32):
        return at, at + (8 if wire_type == _FIXED64 else 4)
    raise ValueError(f"protobuf wire type {wire_type} at byte {at}")


def _varint(message: bytes, at: int) -> tuple[int, int]:
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
