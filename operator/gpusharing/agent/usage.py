"""Which pod uses how much of which device: a reading combined with the kubelet's holdings. Pure.

A process belongs to the pod of its cgroup. If the name of that pod is unknown, the process belongs to the one pod that
holds the device, provided exactly one does, that pod has no named process anywhere, and no other unnamed pod computes
there; otherwise it belongs to nobody. Any holder of that device that has no named process on the node may be that pod,
so what it uses there is unknown. A process in no pod's cgroup belongs to nobody either, so that what the host runs is
never attributed to a tenant.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field

from gpusharing.agent.library import DeviceUse, ProcessUse, Use
from gpusharing.agent.podresources import Holdings, PodDevices
from gpusharing.planning.vocabulary.values import value

MOST_DEVICES = 128
"""The most devices that are reported, in the order of their GPUs. Sixteen GPUs with seven instances each are 112."""
MOST_HOLDERS = 256
"""The most pairs of a pod and a device that are reported, in the order of the pods' names. A kubelet runs 110 pods by
default."""
MOST_RESOURCES = 4
"""The most resource names that are reported for one device: the plugin advertises one, and old ones linger."""

PodName = tuple[str, str]
"""Namespace and name of a pod."""


@value
class Sum:
    """What several processes use of a device in total."""

    processes: int = 0
    """How many processes there are."""
    memory: int | None = 0
    """Bytes of memory; None if the driver does not report it for one of the processes."""
    sm_percent: int = 0
    """Sum of their percentages of SM time; those that the driver does not report count as 0."""

    def with_process(self, process: ProcessUse) -> "Sum":
        """Return the sum with one more process added. The memory is None if the memory of the sum or of the process is
        unknown; an unknown percentage of SM time counts as 0."""
        memory = None if self.memory is None or process.memory is None else self.memory + process.memory
        return Sum(self.processes + 1, memory, self.sm_percent + (process.sm_percent or 0))


@value
class Holder:
    """What one pod holds and uses of one device."""

    pod: PodName
    """Namespace and name of the pod."""
    device: DeviceUse
    """The GPU or MIG device, with what all processes use of it."""
    slices: Mapping[str, int]
    """Slices of the device that the pod holds, by resource name; empty if it only computes there."""
    taken: Sum | None
    """What the pod's processes use, or None if an unnamed pod that may be this one computes there."""


@value
class DeviceUsage:
    """What the devices of a node are used for."""

    devices: tuple[DeviceUse, ...] = ()
    """The devices that are reported, by GPU; MOST_DEVICES at most."""
    allocatable: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Number of slices of each device, by UUID and resource name."""
    allocated: Mapping[str, Mapping[str, int]] | None = None
    """Number of slices that pods hold, by UUID and resource name. None if the kubelet did not report it."""
    holders: tuple[Holder, ...] = ()
    """The pairs of a pod and a device, by namespace, name, GPU and device; MOST_HOLDERS at most."""
    others: Mapping[str, Sum] = field(default_factory=dict)
    """What the processes that belong to no pod, or to an unnamed one, use of each device, by UUID."""
    sm_percent: Mapping[str, int] = field(default_factory=dict)
    """Percentage of SM time that all processes use together, by UUID of the device."""
    left_out: int = 0
    """How many devices, and pairs of a pod and a device, exceed the bounds and are not reported."""


def usage(use: Use, holdings: Holdings | None) -> DeviceUsage:
    """Combine the use of the GPUs with the kubelet's holdings. If these are None, `allocated` is None, and only pods
    that compute are holders. `devices` has the first MOST_DEVICES of `use`, and `holders` the first MOST_HOLDERS of
    their pairs with pods, sorted by pod. `left_out` is the number of devices and pairs beyond that. The mappings by
    UUID have all devices."""
    devices = {device.uuid: device for device in use.devices[:MOST_DEVICES]}
    busy: Counter[str] = Counter()
    for process in use.processes:
        busy[process.device] += process.sm_percent or 0
    by_pod = () if holdings is None else holdings.by_pod
    slices = _slices(by_pod)
    holding: defaultdict[str, set[PodName]] = defaultdict(set)
    for pod, uuid in slices:
        holding[uuid].add(pod)
    owners = _Owners(use.processes, holding)
    taken, others = owners.attribute()
    unclear = owners.unclear()
    pairs = sorted(
        (pair for pair in slices.keys() | taken.keys() if pair[1] in devices),
        key=lambda pair: (pair[0], devices[pair[1]].gpu, pair[1]),
    )
    holders = tuple(
        Holder(
            pod,
            devices[uuid],
            slices.get((pod, uuid), {}),
            None if (pod, uuid) in unclear else taken.get((pod, uuid), Sum()),
        )
        for pod, uuid in pairs[:MOST_HOLDERS]
    )
    return DeviceUsage(
        devices=tuple(devices.values()),
        allocatable=_count_slices(() if holdings is None else holdings.allocatable or ()),
        allocated=None
        if holdings is None
        else _count_slices((each.resource, device) for each in by_pod for device in each.devices),
        holders=holders,
        others=others,
        sm_percent=busy,
        left_out=len(use.devices) - len(devices) + len(pairs) - len(holders),
    )


def _slices(by_pod: Iterable[PodDevices]) -> dict[tuple[PodName, str], dict[str, int]]:
    """Return how many slices each pod holds of each device: by the pair of pod and UUID, then by resource name. At most
    MOST_RESOURCES names are counted for a pair; slices of further ones are ignored."""
    slices: dict[tuple[PodName, str], dict[str, int]] = {}
    for each in by_pod:
        for device in each.devices:
            _add(slices.setdefault(((each.namespace, each.pod), base(device)), {}), each.resource)
    return slices


def base(device: str) -> str:
    """Return the UUID in a device plugin's id for a device. Replicas of a shared device are called UUID::0, UUID::1
    and so on."""
    return device.partition("::")[0]


class _Owners:
    """Attributes the processes of one reading to pods."""

    def __init__(self, processes: Sequence[ProcessUse], holding: Mapping[str, set[PodName]]) -> None:
        """`processes` are attributed to pods; `holding` has the pods that hold each device, by UUID."""
        self._processes = processes
        self._holding = holding
        self._named: set[PodName] = set()
        """Pods with a named process anywhere on the node. Their UIDs are known, so none of them is an unnamed pod."""
        self._nameless: dict[str, set[str]] = {}
        """UIDs of the unnamed pods that compute on each device, by UUID of the device."""
        for process in processes:
            if process.pod is not None and process.pod.name:
                self._named.add((process.pod.namespace, process.pod.name))
            elif process.pod is not None:
                self._nameless.setdefault(process.device, set()).add(process.pod.uid)

    def attribute(self) -> tuple[dict[tuple[PodName, str], Sum], dict[str, Sum]]:
        """Return two mappings: what the processes of each pod use, by pod and device, and what the processes whose pod
        is unknown use, by device. The pod is unknown for a process in no pod, and for a process of an unnamed pod
        unless only the device's one holder can be that pod (`_only_candidate`)."""
        taken: dict[tuple[PodName, str], Sum] = {}
        others: dict[str, Sum] = {}
        for process in self._processes:
            owner = self._owner(process)
            if owner is None:
                others[process.device] = others.get(process.device, Sum()).with_process(process)
            else:
                pair = (owner, process.device)
                taken[pair] = taken.get(pair, Sum()).with_process(process)
        return taken, others

    def unclear(self) -> set[tuple[PodName, str]]:
        """Return the pairs of a pod and a device for which it is unknown how much the pod uses. In such a pair, the pod
        holds the device and has no named process on the node. Unnamed pods compute on the device, and it is not clear
        which pods they are."""
        return {
            (pod, device)
            for device in self._nameless
            if self._only_candidate(device) is None
            for pod in self._holding.get(device, set()) - self._named
        }

    def _owner(self, process: ProcessUse) -> PodName | None:
        """Return the pod that a process belongs to: the named pod of its cgroup, or the only pod that the unnamed one
        can be. None if it belongs to no pod, or if that is unclear."""
        if process.pod is None:
            return None
        if process.pod.name:
            return process.pod.namespace, process.pod.name
        return self._only_candidate(process.device)

    def _only_candidate(self, device: str) -> PodName | None:
        """Return the pod that the unnamed pod on a device must be: its only holder, if there is exactly one unnamed
        pod there and the holder has no named process. Otherwise None. Raises KeyError if no unnamed pod computes on
        the device."""
        holders = self._holding.get(device, set())
        alone = len(holders) == len(self._nameless[device]) == 1
        return next(iter(holders)) if alone and not holders & self._named else None


def _count_slices(devices: Iterable[tuple[str, str]]) -> dict[str, dict[str, int]]:
    """Return how many slices there are, by UUID and resource name; at most MOST_RESOURCES names are counted for a
    device. `devices` are pairs of a resource name and a device id."""
    counts: dict[str, dict[str, int]] = {}
    for resource, device in devices:
        _add(counts.setdefault(base(device), {}), resource)
    return counts


def _add(counts: dict[str, int], resource: str) -> None:
    """Count one more slice of a resource in `counts`, by resource name. Does nothing if `counts` already has
    MOST_RESOURCES other names."""
    if resource in counts or len(counts) < MOST_RESOURCES:
        counts[resource] = counts.get(resource, 0) + 1
