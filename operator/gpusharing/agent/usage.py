"""Which pod uses how much of which device: a reading combined with the kubelet's holdings. Pure.

A process belongs to the pod of its cgroup. If that pod's name is unknown, it belongs to the one pod that holds the
device, provided exactly one does, has no named process anywhere, and no other unnamed pod computes there; otherwise to
nobody. Any holder of that device that has no named process on the node may be that pod, and what it takes there is
unknown. A process in no pod's cgroup belongs to nobody either, so that what the host runs is never attributed to a
tenant.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field

from gpusharing.agent.library import DeviceUse, ProcessUse, Use
from gpusharing.agent.podresources import Held, Holdings
from gpusharing.planning.vocabulary.values import value

MOST_DEVICES = 128
"""Devices reported: the first by GPU. Sixteen GPUs with seven instances each are 112."""
MOST_HOLDERS = 256
"""Pairs of a pod and a device reported: the first by name. A kubelet runs 110 pods by default."""
MOST_RESOURCES = 4
"""Resource names under which one device is reported: the plugin offers it as one, and old names linger."""

PodName = tuple[str, str]
"""Namespace and name."""


@value
class Sum:
    """What some processes take of a device."""

    processes: int = 0
    """How many there are."""
    memory: int | None = 0
    """Bytes; None as soon as the driver does not report it for one of them."""
    sm_percent: int = 0
    """Shares of SM time, of 100, added up; those that the driver does not report count as 0."""

    def with_process(self, process: ProcessUse) -> "Sum":
        """One more."""
        memory = None if self.memory is None or process.memory is None else self.memory + process.memory
        return Sum(self.processes + 1, memory, self.sm_percent + (process.sm_percent or 0))


@value
class Holder:
    """What one pod has of one device."""

    pod: PodName
    """Namespace and name."""
    device: DeviceUse
    """The GPU or the MIG device, with its use by all."""
    slices: Mapping[str, int]
    """Resource name to what it was given of the device; empty when it was given nothing but computes there."""
    taken: Sum | None
    """None: an unnamed pod computes there, and it may be this one."""


@value
class DeviceUsage:
    """What the devices of a node are used for."""

    devices: tuple[DeviceUse, ...] = ()
    """The devices that are reported, MOST_DEVICES at most, by GPU."""
    offered: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """UUID to resource name to slices that there are to hold."""
    held: Mapping[str, Mapping[str, int]] | None = None
    """UUID to resource name to slices that pods hold; None: the kubelet did not report it."""
    holders: tuple[Holder, ...] = ()
    """By namespace, name, GPU and device."""
    others: Mapping[str, Sum] = field(default_factory=dict)
    """UUID to what processes take that belong to no pod, or to an unnamed one."""
    sm_percent: Mapping[str, int] = field(default_factory=dict)
    """UUID to the share of SM time that all processes together took, of 100."""
    left_out: int = 0
    """Devices, and pairs of a pod and a device, beyond the bounds."""


def usage(use: Use, holdings: Holdings | None) -> DeviceUsage:
    """Combine both; None: the holdings are unknown."""
    devices = {device.uuid: device for device in use.devices[:MOST_DEVICES]}
    busy: Counter[str] = Counter()
    for process in use.processes:
        busy[process.device] += process.sm_percent or 0
    held = () if holdings is None else holdings.held
    slices = _slices(held)
    owners = _Owners(use.processes, _holding(slices))
    taken, others = owners.shared_out()
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
        offered=_counted(() if holdings is None else holdings.offered or ()),
        held=None
        if holdings is None
        else _counted((each.resource, device) for each in held for device in each.devices),
        holders=holders,
        others=others,
        sm_percent=busy,
        left_out=len(use.devices) - len(devices) + len(pairs) - len(holders),
    )


def _slices(held: Iterable[Held]) -> dict[tuple[PodName, str], dict[str, int]]:
    """By pod and device: how many slices the pod holds of it, by resource name."""
    slices: dict[tuple[PodName, str], dict[str, int]] = {}
    for each in held:
        for device in each.devices:
            _add(slices.setdefault(((each.namespace, each.pod), base(device)), {}), each.resource)
    return slices


def _holding(pairs: Iterable[tuple[PodName, str]]) -> dict[str, set[PodName]]:
    """By device: the pods that hold slices of it."""
    holding: dict[str, set[PodName]] = {}
    for pod, uuid in pairs:
        holding.setdefault(uuid, set()).add(pod)
    return holding


def base(device: str) -> str:
    """The UUID in the device plugin's id; replicas of a shared device are UUID::0, UUID::1 and so on."""
    return device.partition("::")[0]


class _Owners:
    """Whose the processes of one reading are."""

    def __init__(self, processes: Sequence[ProcessUse], holding: Mapping[str, set[PodName]]) -> None:
        """`holding`: by device who holds it."""
        self._processes = processes
        self._holding = holding
        self._named: set[PodName] = set()
        """Pods with a named process anywhere on the node: their uids are known, and pods without a name have others."""
        self._nameless: dict[str, set[str]] = {}
        """By device the uids of the pods without a name that compute there."""
        for process in processes:
            if process.pod is not None and process.pod.name:
                self._named.add((process.pod.namespace, process.pod.name))
            elif process.pod is not None:
                self._nameless.setdefault(process.device, set()).add(process.pod.uid)

    def shared_out(self) -> tuple[dict[tuple[PodName, str], Sum], dict[str, Sum]]:
        """By pod and device, and by device what belongs to no pod."""
        taken: dict[tuple[PodName, str], Sum] = {}
        others: dict[str, Sum] = {}
        for process in self._processes:
            owner = self._of(process)
            if owner is None:
                others[process.device] = others.get(process.device, Sum()).with_process(process)
            else:
                pair = (owner, process.device)
                taken[pair] = taken.get(pair, Sum()).with_process(process)
        return taken, others

    def unclear(self) -> set[tuple[PodName, str]]:
        """Holders, by device, whose processes may be among those of pods without a name."""
        return {
            (pod, device)
            for device in self._nameless
            if self._only_candidate(device) is None
            for pod in self._holding.get(device, set()) - self._named
        }

    def _of(self, process: ProcessUse) -> PodName | None:
        if process.pod is None:
            return None
        if process.pod.name:
            return process.pod.namespace, process.pod.name
        return self._only_candidate(process.device)

    def _only_candidate(self, device: str) -> PodName | None:
        """Which pod the unnamed pod on a device must be, if there is one such pod, and one holder that is not
        identified otherwise."""
        holders = self._holding.get(device, set())
        alone = len(holders) == len(self._nameless[device]) == 1
        return next(iter(holders)) if alone and not holders & self._named else None


def _counted(devices: Iterable[tuple[str, str]]) -> dict[str, dict[str, int]]:
    """UUID to resource name to how many."""
    found: dict[str, dict[str, int]] = {}
    for resource, device in devices:
        _add(found.setdefault(base(device), {}), resource)
    return found


def _add(counts: dict[str, int], resource: str) -> None:
    if resource in counts or len(counts) < MOST_RESOURCES:
        counts[resource] = counts.get(resource, 0) + 1
