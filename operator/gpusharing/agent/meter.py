"""How long each tenant had how much of the node's GPUs. Pure: the time is an argument.

Every second of every GPU goes to exactly one of four: a tenant that holds a slice, idle (a slice that no pod holds),
stranded (capacity that no slice of the layout covers) or transition (capacity that no pod holds on a node in the
middle of a change). So they always add up to the seconds of the GPUs. The time between two turns is counted by the
state at the first of them. docs/adr/0043-the-meter.md says why the meter is here, why new counters begin with 0, and
what a restart costs.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Sized
from fractions import Fraction
from typing import NamedTuple

from gpusharing.agent.lagging import LaggingCounts
from gpusharing.agent.library import Reading
from gpusharing.agent.podresources import Holdings
from gpusharing.agent.usage import base
from gpusharing.api.gpunode import GPU, Model
from gpusharing.planning.gpus.shares import WHOLE, Extent, shares
from gpusharing.planning.vocabulary.values import value

OTHERS = "_others"
"""The namespace, policy or resource of what is not counted separately. Kubernetes allows no such name."""
LAG = 90.0
"""Seconds for which a new series is exported as 0."""
NOTHING = Fraction(0)


@value
class Bounds:
    """How many counters a node keeps apart, so that its series stay few whatever happens to it over months."""

    accounts: int = 128
    """Accounts, each of a policy, a namespace and a resource. Later ones share the namespace OTHERS."""
    others: int = 32
    """Accounts of the namespace OTHERS, by policy and resource. Later ones share the resource OTHERS too."""
    idle: int = 64
    """Pairs of a policy and a resource with idle slices. Later ones share the resource OTHERS."""
    policies: int = 16
    """Policies. Later ones share the policy OTHERS."""
    room_after: float = 3600.0
    """Seconds for which a series that does not change is still exported when there is no room for another."""
    forget_after: float = 86400.0
    """Seconds for which it is exported when there is room, so that a Prometheus that was away for hours finds it."""


BOUNDS = Bounds()


class Account(NamedTuple):
    """Whose time it is. A plain tuple, because many are hashed at each turn."""

    policy: str
    """Name of the policy that owns the node; empty if none does."""
    namespace: str
    """Namespace of the pod that holds the slices; OTHERS beyond the bounds."""
    resource: str
    """Name of the resource of the slices; OTHERS beyond the bounds."""


@value
class Allotment:
    """Which tenant has how much of the node's GPUs at one moment, in GPUs. The parts add up to `gpus`."""

    policy: str
    """Name of the policy that owns the node; empty if none does."""
    gpus: int
    """How many GPUs the node has."""
    allocated: Mapping[tuple[str, str], Fraction]
    """What tenants hold, by namespace and resource."""
    idle: Mapping[str, Fraction]
    """What no pod holds of the slices, by resource."""
    stranded: Fraction
    """What no slice of the layout covers."""
    transition: Fraction
    """What no pod holds on a node in the middle of a change; otherwise 0."""


@value
class _Slices:
    """One device: which part of a GPU it is, and which tenants hold how much of it."""

    share: Fraction
    """Part of its GPU, 0 to 1."""
    allocatable: Mapping[str, int]
    """Slices that the kubelet lists now, by resource."""
    known: Mapping[str, int]
    """Slices that the kubelet lists now, or listed last."""
    allocated: Mapping[tuple[str, str], int]
    """Slices that tenants hold, by namespace and resource."""


AllocatableSlices = Mapping[str, Mapping[str, int]]
"""How many slices of each resource each device has for the kubelet to allocate."""
NONE_ALLOCATABLE: AllocatableSlices = {}


def allotment_of(
    reading: Reading,
    holdings: Holdings,
    policy: str,
    *,
    changing: bool,
    known: AllocatableSlices = NONE_ALLOCATABLE,
) -> Allotment:
    """Return who has how much of the node's GPUs now. With `changing`, the node is in the middle of a change, so what
    no pod holds counts as transition. `known` has the slices of devices that the kubelet does not list now, from
    `last_allocatable`."""
    allocated: dict[tuple[str, str], Fraction] = {}
    idle: dict[str, Fraction] = {}
    for device in _devices(reading, holdings, known):
        taken = Counter(dict.fromkeys(device.known, 0))
        for (_, resource), count in device.allocated.items():
            taken[resource] += count
        parts = sum(max(count, device.known.get(resource, 0)) for resource, count in taken.items())
        if not parts:
            continue
        each = device.share / parts
        for tenant, count in device.allocated.items():
            allocated[tenant] = allocated.get(tenant, NOTHING) + each * count
        for resource, count in taken.items():
            free = max(0, device.allocatable.get(resource, 0) - count)
            idle[resource] = idle.get(resource, NOTHING) + each * free
    gpus = len(reading.gpus)
    rest = gpus - sum(allocated.values(), NOTHING)
    if changing:
        return Allotment(policy, gpus, allocated, {}, NOTHING, rest)
    return Allotment(policy, gpus, allocated, idle, rest - sum(idle.values(), NOTHING), NOTHING)


def last_allocatable(reading: Reading, holdings: Holdings, before: AllocatableSlices) -> AllocatableSlices:
    """Return the slices of each device, as the kubelet lists them now, else as in `before`, else as the held ids
    imply.

    A kubelet lists healthy devices only (kubernetes pkg/kubelet/cm/devicemanager/manager.go, GetAllocatableDevices,
    v1.36.3), and none of a plugin that is restarting. A pod that holds one of four slices still holds a quarter then.
    Of a device that was never listed, as after a restart of the agent, the replica numbers that pods hold give a lower
    bound. Devices that no longer exist are dropped, unless a GPU cannot be read.
    """
    allocatable, known = _allocatable(holdings), dict(before)
    if all(gpu.access == "Ok" for gpu in reading.gpus):
        # While a GPU cannot be read it has no UUID, so any of the known devices may be its own.
        present = {
            uuid
            for gpu in reading.gpus
            for uuid in (gpu.uuid, *(instance.uuid for instance in gpu.instances))
        }
        known = {uuid: slices for uuid, slices in known.items() if uuid in present}
    for uuid, least in _least_allocatable(holdings).items():
        slices = known.get(uuid, {})
        known[uuid] = {
            resource: max(slices.get(resource, 0), least.get(resource, 0)) for resource in {**slices, **least}
        }
    return {**known, **allocatable}


def _least_allocatable(holdings: Holdings) -> dict[str, dict[str, int]]:
    """Return by device and resource the fewest slices that a shared device can have, given the replica numbers that
    pods hold."""
    least_of: dict[str, dict[str, int]] = {}
    for each in holdings.by_pod:
        for device in each.devices:
            uuid, _, number = device.partition("::")
            if number.isdecimal():
                # No plugin shares a device as a single replica (k8s-device-plugin api/config/v1/replicas.go, v0.19.3).
                least, here = max(2, int(number) + 1), least_of.setdefault(uuid, {})
                here[each.resource] = max(least, here.get(each.resource, 0))
    return least_of


def _allocatable(holdings: Holdings) -> dict[str, Counter[str]]:
    """Return by device how many slices of each resource the kubelet lists."""
    allocatable: dict[str, Counter[str]] = {}
    for resource, device in holdings.allocatable or ():
        allocatable.setdefault(base(device), Counter())[resource] += 1
    return allocatable


def _devices(reading: Reading, holdings: Holdings, known: AllocatableSlices) -> Iterable[_Slices]:
    """Yield every device of the node with its share of its GPU, its slices, and who holds them. A device that was
    shared under the holder of the whole has no slices besides the holder's."""
    allocatable = _allocatable(holdings)
    allocated, whole = _allocated(holdings, allocatable, known)
    cards = {model.product: model for model in reading.models}
    for gpu in reading.gpus:
        for uuid, share in _under_holder(gpu, _shares(gpu, cards.get(gpu.product)), allocated):
            if uuid in whole:  # the holder has all of it, so nothing is idle
                yield _Slices(share, {}, {}, allocated[uuid])
            else:
                here: Mapping[str, int] = allocatable.get(uuid, {})
                yield _Slices(share, here, here or known.get(uuid, {}), allocated.get(uuid, {}))


def _allocated(
    holdings: Holdings, allocatable: AllocatableSlices, known: AllocatableSlices
) -> tuple[dict[str, Counter[tuple[str, str]]], set[str]]:
    """Return by device how many slices each namespace holds of each resource, and the devices that were shared under
    the holder of the whole."""
    allocated: dict[str, Counter[tuple[str, str]]] = {}
    whole: set[str] = set()
    for each in holdings.by_pod:
        for device in each.devices:
            uuid = base(device)
            slices = sum((allocatable.get(uuid) or known.get(uuid, {})).values())
            if device == uuid and slices > 1:  # it was shared under its holder, who still holds all of it
                whole.add(uuid)
            else:
                slices = 1
            allocated.setdefault(uuid, Counter())[each.namespace, each.resource] += slices
    return allocated, whole


def _under_holder(
    gpu: GPU, parts: Sequence[tuple[str, Fraction]], allocated: Mapping[str, object]
) -> Sequence[tuple[str, Fraction]]:
    """Return the devices of a GPU with their shares. If MIG was switched on while a pod held the whole GPU, that pod
    keeps what no other pod holds as an instance."""
    if not gpu.uuid or gpu.uuid not in allocated or gpu.mig_mode != "Enabled":
        return parts
    others = [(uuid, share) for uuid, share in parts if uuid in allocated]
    return [*others, (gpu.uuid, WHOLE - sum((share for _, share in others), NOTHING))]


def _shares(gpu: GPU, model: Model | None) -> Sequence[tuple[str, Fraction]]:
    """Return UUID and share of each device of a GPU: the GPU itself without MIG, else its instances."""
    if gpu.mig_mode != "Enabled":
        return ((gpu.uuid, WHOLE),) if gpu.uuid else ()
    profiles = () if model is None else model.profiles
    # A container without rights cannot read sizes; memory then stands in for them.
    placed = all(profile.size for profile in profiles)
    extents = {each.name: Extent(each.slices, each.size if placed else each.memory_gb) for each in profiles}
    card = Extent(
        max((each.slices for each in extents.values()), default=0),
        max((each.memory for each in extents.values()), default=0),
    )
    parts = shares([extents.get(instance.profile, Extent(0, 0)) for instance in gpu.instances], card)
    return tuple((instance.uuid, part) for instance, part in zip(gpu.instances, parts, strict=True))


@value
class Metered:
    """Exported seconds of GPUs from the first turn to the last one, with new counters still at 0."""

    allocated: Mapping[Account, float]
    """What tenants held, by policy, namespace and resource."""
    idle: Mapping[tuple[str, str], float]
    """What slices were held by no pod, by policy and resource."""
    stranded: Mapping[str, float]
    """What no slice covered, by policy."""
    transition: Mapping[str, float]
    """What no pod held during changes, by policy."""
    gpus: Mapping[str, float]
    """The sum of all of the above, by policy."""


NOTHING_METERED = Metered({}, {}, {}, {}, {})


class Meter:
    """Counts the seconds of GPUs from the first turn on."""

    def __init__(self, lag: float = LAG, bounds: Bounds = BOUNDS) -> None:
        """Export each new counter as 0 for `lag` seconds, and keep at most as many counters apart as `bounds` allow."""
        self.metered = NOTHING_METERED
        """The values of the last turn. Replaced and never changed, so that a scrape sees a single turn."""
        self._bounds = bounds
        self._allocated: LaggingCounts[Account] = LaggingCounts(lag)
        self._idle: LaggingCounts[tuple[str, str]] = LaggingCounts(lag)
        self._stranded: LaggingCounts[str] = LaggingCounts(lag)
        self._transition: LaggingCounts[str] = LaggingCounts(lag)
        self._gpus: LaggingCounts[str] = LaggingCounts(0.0)
        """Grows by what is exported of the parts, so that it is always their sum and begins at 0 with them."""
        self._now: Allotment | None = None
        self._since = 0.0

    def turn(self, now: float, allotment: Allotment | None) -> None:
        """Count the time since the last turn by the state then, and set `metered`. `allotment` is the state from now
        on, or None if it is unknown, so that the last one goes on. `now` is in seconds of a monotonic clock."""
        if self._now is not None:
            self._count(self._now, self._since, now)
        before, self._now, self._since = self._now, allotment or self._now, now
        if self._now is None:
            return
        if self._now is not before:  # announce the counters of the new state, at 0
            self._count(self._now, now, now)
        self._drop(now, self._bounds.forget_after)
        self.metered = self._export(now)

    def _export(self, now: float) -> Metered:
        """Return the values to export from now on. The sum of each policy grows by what its parts have grown."""
        allocated, idle = self._allocated.export(now), self._idle.export(now)
        stranded, transition = self._stranded.export(now), self._transition.export(now)
        for account, grown in self._allocated.growth.items():
            self._gpus.add(account.policy, grown, now)
        for (policy, _), grown in self._idle.growth.items():
            self._gpus.add(policy, grown, now)
        for each in (self._stranded, self._transition):
            for policy, grown in each.growth.items():
                self._gpus.add(policy, grown, now)
        return Metered(allocated, idle, stranded, transition, self._gpus.export(now))

    def _count(self, allotment: Allotment, since: float, until: float) -> None:
        """Add the time from `since` to `until`, by this state, to the counters of everybody in it."""
        seconds = max(0.0, until - since)
        policy = self._policy(allotment.policy, until)
        self._gpus.add(policy, 0.0, until)
        self._stranded.add(policy, float(allotment.stranded) * seconds, until)
        self._transition.add(policy, float(allotment.transition) * seconds, until)
        for (namespace, resource), part in allotment.allocated.items():
            account = self._account(Account(policy, namespace, resource), until)
            self._allocated.add(account, float(part) * seconds, until)
        for resource, part in allotment.idle.items():
            self._idle.add(self._pair((policy, resource), until), float(part) * seconds, until)

    def _policy(self, policy: str, now: float) -> str:
        """Return the policy to count under: itself if it is counted or there is room, else OTHERS."""
        known = policy in self._gpus or self._has_room(self._gpus, self._bounds.policies, now)
        return policy if known else OTHERS

    def _account(self, account: Account, now: float) -> Account:
        """Return the account to count under: itself if it is counted or there is room, else that of namespace OTHERS,
        and beyond its bounds that of resource OTHERS too."""
        if account in self._allocated or self._has_room(self._allocated, self._bounds.accounts, now):
            return account
        others = Account(account.policy, OTHERS, account.resource)
        if others in self._allocated or len(self._allocated) < self._bounds.accounts + self._bounds.others:
            return others
        return Account(account.policy, OTHERS, OTHERS)

    def _pair(self, pair: tuple[str, str], now: float) -> tuple[str, str]:
        """Return the pair of policy and resource to count idle slices under, with the resource OTHERS if there is no
        room."""
        known = pair in self._idle or self._has_room(self._idle, self._bounds.idle, now)
        return pair if known else (pair[0], OTHERS)

    def _has_room(self, counts: Sized, most: int, now: float) -> bool:
        """Whether one more counter fits, after dropping those that have not changed for `room_after` if there are
        `most`."""
        if len(counts) >= most:
            self._drop(now, self._bounds.room_after)
        return len(counts) < most

    def _drop(self, now: float, patience: float) -> None:
        """Drop the counters that have not changed for `patience` seconds. The sum of a policy goes last, because it
        grows when its parts are exported, which may be later."""
        for each in (self._allocated, self._idle, self._stranded, self._transition):
            each.drop(now, patience)
        policies = {account.policy for account in self._allocated} | {policy for policy, _ in self._idle}
        self._gpus.drop(now, patience, keep=policies.union(self._stranded, self._transition))
