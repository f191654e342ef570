"""Which GPU devices pods hold, according to the kubelet of this node.

The kubelet serves gRPC `v1.PodResourcesLister` on a unix socket (kubernetes/kubelet v0.36.3
pkg/apis/podresources/v1/api.proto). Its answers are a few nested messages in protobuf's wire format, which this module
decodes; `kubelet.py` makes the calls.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import field, replace
from operator import attrgetter
from typing import Protocol, TypeVar

from gpusharing.planning.vocabulary.values import value

T = TypeVar("T")

NVIDIA_RESOURCES = "nvidia.com/"
"""Prefix of the resources that are counted: everything that a device plugin of NVIDIA serves, not only GPUs."""

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
class PodDevices:
    """The devices of one resource that one pod holds."""

    namespace: str
    """Namespace of the pod."""
    pod: str
    """Name of the pod."""
    resource: str
    """Name of the resource, such as nvidia.com/gpu."""
    devices: tuple[str, ...]
    """Ids that the device plugin gave the devices, sorted: a UUID, or UUID::replica if the device is shared."""


@value
class Holdings:
    """The devices that pods of this node hold. Finished pods hold none.

    Kubelets before 1.34, and later ones with the feature gate KubeletPodResourcesListUseActivePods off, list finished
    pods too (kubernetes#119423, mended by #132028), but without devices: List calls UpdateAllocatedDevices first,
    which drops the devices of pods that are not active (pkg/kubelet/apis/podresources/server_v1.go,
    cm/devicemanager/manager.go, read at v1.36.3; those kubelets get only memory and CPUs wrong). Only a kubelet that
    has just started, and does not know all its pods yet, may still count them.
    """

    allocated: dict[str, int] = field(default_factory=dict)
    """How many devices pods hold, by resource name (nvidia.com/...); each replica of a shared GPU counts as one."""
    pods: int = 0
    """How many pods hold at least one of them."""
    by_pod: tuple[PodDevices, ...] = ()
    """The devices of each pod, sorted by namespace, pod and resource."""
    allocatable: tuple[tuple[str, str], ...] | None = None
    """Resource name and device id of every healthy device that pods can hold, sorted. None if the kubelet does not
    report it."""


class PodResourcesUnavailable(Exception):
    """The kubelet did not answer, or not with a valid list of pods. The agent reports the holdings as unknown, logs the
    reason, and tries again at the next turn."""


class PodResources(Protocol):
    """Reads which pods hold GPU devices on this node."""

    async def read(self) -> Holdings:
        """Return the current holdings. Raises PodResourcesUnavailable."""
        ...


class Answers:
    """Decodes the kubelet's answers. Parts that two consecutive answers have in common are decoded only once.

    This works by pod and by device: the kubelet iterates over Go maps, so both come in a different order each time
    (podsMapToPods in pkg/kubelet/pod/pod_manager.go, containerDevicesFromResourceDeviceInstances in
    pkg/kubelet/cm/container_manager.go, read at v1.36.3). The values returned are sorted, and as long as nothing
    changes, the same object is returned.
    """

    def __init__(self) -> None:
        """Begin without any earlier answer."""
        self._pods: dict[bytes, tuple[PodDevices, ...]] = {}
        self._devices: dict[bytes, tuple[tuple[str, str], ...]] = {}
        self._last = Holdings()

    def holdings(self, listed: bytes, allocatable: bytes | None = None) -> Holdings:
        """Return the holdings in a ListPodResourcesResponse, with the allocatable devices in an
        AllocatableResourcesResponse. Only resources whose name begins with NVIDIA_RESOURCES count. As long as neither
        has changed, the same object is returned. The allocatable devices are None if `allocatable` is None or
        malformed. Raises ValueError if `listed` is malformed."""
        self._pods, rows = _decode(listed, _POD_RESOURCES, self._pods, _pod_devices)
        rows.sort(key=attrgetter("namespace", "pod", "resource"))
        by_pod = tuple(rows)
        devices = None if allocatable is None else self._decode_allocatable(allocatable)
        last = self._last
        if by_pod != last.by_pod:
            self._last = _count(by_pod, devices)
        elif devices != last.allocatable:
            self._last = replace(last, allocatable=devices)
        return self._last

    def _decode_allocatable(self, allocatable: bytes) -> tuple[tuple[str, str], ...] | None:
        """Return the resource name and the id of every healthy device of NVIDIA's resources, sorted, or None if the
        response is malformed."""
        try:
            self._devices, devices = _decode(allocatable, _ALLOCATABLE_DEVICES, self._devices, _devices_in)
        except ValueError:
            return None
        return tuple(sorted(devices))


def _decode(
    response: bytes, number: int, known: dict[bytes, tuple[T, ...]], decode: Callable[[bytes], Iterator[T]]
) -> tuple[dict[bytes, tuple[T, ...]], list[T]]:
    """Decode every field `number` of a response with `decode`, reusing the values in `known` from the last answer.
    Return the values by the bytes of their field, and all values in one list. Raises ValueError if the response or
    a field is malformed."""
    now: dict[bytes, tuple[T, ...]] = {}
    everything: list[T] = []
    for message in _messages(response, number):
        values = known.get(message)
        if values is None:
            values = tuple(decode(message))
        now[message] = values
        everything += values
    return now, everything


def _count(by_pod: tuple[PodDevices, ...], allocatable: tuple[tuple[str, str], ...] | None) -> Holdings:
    """Return the holdings for the devices of each pod. They include the number of devices by resource, without zeros,
    and the number of pods that hold any."""
    allocated: Counter[str] = Counter()
    for each in by_pod:
        allocated[each.resource] += len(each.devices)
    pods = {(each.namespace, each.pod) for each in by_pod if each.devices}
    return Holdings(dict(sorted((+allocated).items())), len(pods), by_pod, allocatable)


def _pod_devices(pod: bytes) -> Iterator[PodDevices]:
    """Yield the devices that a PodResources message lists, one value for each of NVIDIA's resources; nothing if the
    pod holds none. Raises ValueError if the message is malformed."""
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
    """Yield the resource name and the id of each device in a ContainerDevices message if the resource is one of
    NVIDIA's; otherwise nothing. Raises ValueError if the message is malformed."""
    name = b"".join(_messages(devices, _DEVICES_RESOURCE_NAME)).decode()
    if name.startswith(NVIDIA_RESOURCES):
        for device in _messages(devices, _DEVICES_IDS):
            yield name, device.decode()


def _messages(message: bytes, number: int) -> Iterator[bytes]:
    """Yield the content of every length-delimited field `number` of a message, in order. Raises ValueError if the
    message is malformed."""
    at, size = 0, len(message)
    while at < size:
        key = message[at]
        key, at = (key, at + 1) if key < 0x80 else _varint(message, at)
        begin, at = _extent(message, at, key & 7)
        if at > size:
            raise ValueError(f"protobuf field {key >> 3} ends {at - size} bytes past the end of its message")
        if key & 7 == _LENGTH_DELIMITED and key >> 3 == number:
            yield message[begin:at]


def _extent(message: bytes, at: int, wire_type: int) -> tuple[int, int]:
    """Return where the contents of a field begin and end; the end may lie beyond the message, which is not checked
    here. `at` is the position after the field's key. Raises ValueError for an unknown wire type or a malformed
    number."""
    if wire_type == _VARINT:
        return at, _varint(message, at)[1]
    if wire_type == _LENGTH_DELIMITED:
        short = at < len(message) and message[at] < 0x80
        length, at = (message[at], at + 1) if short else _varint(message, at)
        return at, at + length
    if wire_type in (_FIXED64, _FIXED32):
        return at, at + (8 if wire_type == _FIXED64 else 4)
    raise ValueError(f"unknown protobuf wire type {wire_type} at byte {at}")


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """Return the number that begins at byte `at`, and the position after it. Raises ValueError if it is cut off or has
    more than ten bytes."""
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
