"""Which pod uses how much of which device? A reading is combined with the kubelet's holdings. Pure.

A process belongs to the pod of its cgroup. If the name of that pod is unknown, the process belongs to the one pod that
holds the device, provided exactly one does, that pod has no named process anywhere, and no other unnamed pod computes
there; otherwise it belongs to nobody. A process in no pod's cgroup belongs to nobody either, so that what the host runs
is never attributed to a tenant.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field

from gpusharing.agent.library import DeviceUse, ProcessUse, Use
from gpusharing.agent.podresources import Holdings, base
from gpusharing.planning.vocabulary.values import value

MOST_DEVICES = 128
"""The most devices that are reported. Sixteen GPUs with seven instances each are 112."""
MOST_HOLDERS = 256
"""The most pairs of a pod and a device that are reported. A kubelet runs 110 pods by default."""
MOST_RESOURCES = 4
"""The most resource names reported for one device: the plugin advertises one, and old ones linger."""

PodName = tuple[str, str]
"""Namespace and name of a pod."""


@value
class Sum:
    """What several processes use of a device in total."""

    processes: int = 0
    memory: int | None = 0
    """Bytes in use; None if the driver does not report it for one of the processes."""
    sm_percent: int = 0
    """Percentage of SM time; what the driver does not report counts as 0."""

    def with_process(self, process: ProcessUse) -> "Sum":
        memory = None if self.memory is None or process.memory is None else self.memory + process.memory
        return Sum(self.processes + 1, memory, self.sm_percent + (process.sm_percent or 0))


@value
class Holder:
    """What one pod holds and uses of one device."""

    pod: PodName
    device: DeviceUse
    slices: Mapping[str, int]
    """Slices of the device that the pod holds, by resource name; empty if it only computes there."""
    taken: Sum | None
    """What the pod's processes use, or None if an unnamed pod that may be this one computes there."""


@value
class DeviceUsage:
    """What the devices of a node are used for."""

    devices: tuple[DeviceUse, ...] = ()
    allocatable: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Slices of each device, by UUID and resource name."""
    allocated: Mapping[str, Mapping[str, int]] | None = None
    """Slices that pods hold. None if the kubelet did not report it."""
    holders: tuple[Holder, ...] = ()
    others: Mapping[str, Sum] = field(default_factory=dict)
    """What the processes that belong to no pod, or to an unnamed one, use of each device, by UUID."""
    sm_percent: Mapping[str, int] = field(default_factory=dict)
    """Percentage of SM time of all processes together, by UUID of the device."""
    left_out: int = 0
    """How many devices, and pairs of a pod and a device, exceed the bounds. The mappings by UUID have all devices."""


def usage(use: Use, holdings: Holdings | None) -> DeviceUsage:
    """Combine the use of the GPUs with what pods hold. If that is unknown, only pods that compute are holders."""
    devices = {device.uuid: device for device in use.devices[:MOST_DEVICES]}
    busy: Counter[str] = Counter()
    for process in use.processes:
        busy[process.device] += process.sm_percent or 0
    held = [
        ((each.namespace, each.pod), each.resource, device)
        for each in (() if holdings is None else holdings.by_pod)
        for device in each.devices
    ]
    slices: dict[tuple[PodName, str], dict[str, int]] = {}
    holding: defaultdict[str, set[PodName]] = defaultdict(set)
    for pod, resource, device in held:
        _add(slices.setdefault((pod, base(device)), {}), resource)
        holding[base(device)].add(pod)
    taken, others, unclear = _attribute(use.processes, holding)
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
        allocated=None if holdings is None else _count_slices((row[1], row[2]) for row in held),
        holders=holders,
        others=others,
        sm_percent=busy,
        left_out=len(use.devices) - len(devices) + len(pairs) - len(holders),
    )


def _attribute(
    processes: Sequence[ProcessUse], holding: Mapping[str, set[PodName]]
) -> tuple[dict[tuple[PodName, str], Sum], dict[str, Sum], set[tuple[PodName, str]]]:
    """Return what processes use, by pod and device; by device for those without a pod; and the unknown pairs."""
    named = {(each.pod.namespace, each.pod.name) for each in processes if each.pod and each.pod.name}
    unnamed: dict[str, set[str]] = {}  # UIDs of the unnamed pods that compute on each device
    for process in processes:
        if process.pod is not None and not process.pod.name:
            unnamed.setdefault(process.device, set()).add(process.pod.uid)
    candidate: dict[str, PodName | None] = {}  # who the unnamed pod on a device must be
    for device, uids in unnamed.items():
        holders = holding.get(device, set())
        alone = len(holders) == len(uids) == 1 and not holders & named
        candidate[device] = next(iter(holders)) if alone else None
    taken: dict[tuple[PodName, str], Sum] = {}
    others: dict[str, Sum] = {}
    for process in processes:
        owner: PodName | None = None
        if process.pod is not None:
            named_pod = process.pod.namespace, process.pod.name
            owner = named_pod if process.pod.name else candidate[process.device]
        if owner is None:
            others[process.device] = others.get(process.device, Sum()).with_process(process)
        else:
            pair = (owner, process.device)
            taken[pair] = taken.get(pair, Sum()).with_process(process)
    unclear = {
        (pod, device)
        for device, owner in candidate.items()
        if owner is None
        for pod in holding.get(device, set()) - named
    }
    return taken, others, unclear


def _count_slices(devices: Iterable[tuple[str, str]]) -> dict[str, dict[str, int]]:
    counts: dict[str, dict[str, int]] = {}
    for resource, device in devices:
        _add(counts.setdefault(base(device), {}), resource)
    return counts


def _add(counts: dict[str, int], resource: str) -> None:
    if resource in counts or len(counts) < MOST_RESOURCES:
        counts[resource] = counts.get(resource, 0) + 1
