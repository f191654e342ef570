"""How long each tenant had how much of the node's GPUs. Pure: the time is an argument.

Every second of every GPU is counted in exactly one of four places: a tenant that holds a slice, idle (a slice that no
pod holds), stranded (capacity that no slice of the layout covers) or transition (capacity that no pod holds on a node
in the middle of a change). So they always add up to the seconds of the GPUs. The time between two turns is counted by
the state at the first of them. docs/adr/0043-the-meter.md says why the meter is here, why new counters begin with 0,
and what a restart costs.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Sized
from fractions import Fraction
from typing import NamedTuple

from gpusharing.agent.lagging import Key, LaggingCounts
from gpusharing.agent.library import Reading
from gpusharing.agent.podresources import Holdings
from gpusharing.agent.usage import base
from gpusharing.api.gpunode import GPU, Model
from gpusharing.planning.gpus.shares import WHOLE, Extent, shares
from gpusharing.planning.vocabulary.values import value

OTHERS = "_others"
"""The namespace, policy or resource under which everything is counted that has no counter of its own. Kubernetes
allows no such name."""
LAG = 90.0
"""Seconds for which a new series is exported as 0."""
NOTHING = Fraction(0)


@value
class Bounds:
    """How many separate counters a node has, so that its series stay few whatever happens to it over months."""

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
    """Seconds for which such a series is exported when there is room, so that a Prometheus that was away for hours
    finds it."""


BOUNDS = Bounds()


class Account(NamedTuple):
    """The tenant that the time of a slice is counted for. A plain tuple, because many are hashed at each turn."""

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
    """Slices that no pod holds, by resource."""
    stranded: Fraction
    """Capacity that no slice of the layout covers."""
    transition: Fraction
    """Capacity that no pod holds on a node in the middle of a change; otherwise 0."""


@value
class _Slices:
    """One device: which part of a GPU it is, and which tenants hold how much of it."""

    share: Fraction
    """Fraction of its GPU, 0 to 1."""
    allocatable: Mapping[str, int]
    """Slices that the kubelet lists now, by resource."""
    known: Mapping[str, int]
    """Slices that the kubelet lists now, or listed last."""
    allocated: Mapping[tuple[str, str], int]
    """Slices that tenants hold, by namespace and resource."""


AllocatableSlices = Mapping[str, Mapping[str, int]]
"""How many slices of each resource the kubelet can allocate on each device: by UUID of the device, then by
resource."""
NONE_ALLOCATABLE: AllocatableSlices = {}


def allotment_of(
    reading: Reading,
    holdings: Holdings,
    policy: str,
    *,
    changing: bool,
    known: AllocatableSlices = NONE_ALLOCATABLE,
) -> Allotment:
    """Return who has how much of the node's GPUs now. `policy` owns the node. With `changing`, the node is in the
    middle of a change, so all capacity that no pod holds counts as transition, and none as idle or stranded.
    `known` holds the slices of devices that the kubelet does not list now, from `last_allocatable`.

    A device is divided evenly among its slices. The number of slices of a resource is the number that the kubelet
    lists or listed last, or the number that pods hold if that is higher. Only slices that the kubelet lists now can be
    idle. A device without any slice counts as stranded.
    """
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
    """Return the slices of each device, by UUID and resource, as the kubelet lists them now. A device that it does not
    list now keeps its slices from `before`. It has more of a resource if the replica numbers that pods hold show that
    there are more.

    A kubelet lists healthy devices only (kubernetes pkg/kubelet/cm/devicemanager/manager.go, GetAllocatableDevices,
    v1.36.3), and none of a plugin that is restarting. A pod that holds one of four slices still holds a quarter then.
    For a device that was never listed, as after a restart of the agent, the replica numbers that pods hold give a lower
    bound. Devices that no longer exist are dropped unless pods hold replicas of them; while a GPU cannot be read, none
    is dropped.
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
    """Return the smallest number of slices that each shared device can have, by UUID and resource, given the replica
    numbers that pods hold. The number is at least 2. Devices of which no pod holds a replica are absent."""
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
    """Return how many slices the kubelet lists for each device, by UUID and resource. Empty if it lists none, or did
    not report them."""
    allocatable: dict[str, Counter[str]] = {}
    for resource, device in holdings.allocatable or ():
        allocatable.setdefault(base(device), Counter())[resource] += 1
    return allocatable


def _devices(reading: Reading, holdings: Holdings, known: AllocatableSlices) -> Iterable[_Slices]:
    """Yield every device of the node, with its fraction of its GPU, its slices, and who holds them. A GPU without MIG
    whose UUID is unknown has none. If a device became shared while a pod held all of it, its only slices are those that
    this pod holds."""
    allocatable = _allocatable(holdings)
    allocated, whole = _allocated(holdings, allocatable, known)
    cards = {model.product: model for model in reading.models}
    for gpu in reading.gpus:
        for uuid, share in _under_holder(gpu, _shares(gpu, cards.get(gpu.product)), allocated):
            if uuid in whole:  # one pod holds all of it, so nothing is idle
                yield _Slices(share, {}, {}, allocated[uuid])
            else:
                here: Mapping[str, int] = allocatable.get(uuid, {})
                yield _Slices(share, here, here or known.get(uuid, {}), allocated.get(uuid, {}))


def _allocated(
    holdings: Holdings, allocatable: AllocatableSlices, known: AllocatableSlices
) -> tuple[dict[str, Counter[tuple[str, str]]], set[str]]:
    """Return how many slices each namespace holds of each resource, by UUID of the device, and the UUIDs of devices
    that became shared while a pod held all of them. Such a pod counts as the holder of all slices of its device."""
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
    """Return `parts`, the UUID and the fraction of each device of a GPU in the present layout. But if MIG was switched
    on while a pod held the whole GPU, return only the instances that other pods hold, and the GPU itself with all
    the rest."""
    if not gpu.uuid or gpu.uuid not in allocated or gpu.mig_mode != "Enabled":
        return parts
    others = [(uuid, share) for uuid, share in parts if uuid in allocated]
    return [*others, (gpu.uuid, WHOLE - sum((share for _, share in others), NOTHING))]


def _shares(gpu: GPU, model: Model | None) -> Sequence[tuple[str, Fraction]]:
    """Return the UUID and the fraction of each device of a GPU: of the GPU itself without MIG, else of its instances,
    which `shares` weighs by compute slices and memory. Empty for a GPU without MIG whose UUID is unknown. An instance
    whose profile is not in `model` has the fraction 0, and one whose UUID is unknown is included."""
    if gpu.mig_mode != "Enabled":
        return ((gpu.uuid, WHOLE),) if gpu.uuid else ()
    profiles = () if model is None else model.profiles
    # A container without rights cannot read sizes, so memory is used instead.
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
    """The exported GPU-seconds since the first turn. Counters that are still exported as 0 are included as 0."""

    allocated: Mapping[Account, float]
    """Time that tenants held, by policy, namespace and resource."""
    idle: Mapping[tuple[str, str], float]
    """Time of slices that no pod held, by policy and resource."""
    stranded: Mapping[str, float]
    """Time of capacity that no slice covered, by policy."""
    transition: Mapping[str, float]
    """Time of capacity that no pod held during changes, by policy."""
    gpus: Mapping[str, float]
    """The sum of all of the above, by policy."""


NOTHING_METERED = Metered({}, {}, {}, {}, {})


class Meter:
    """Counts GPU-seconds, beginning with the first turn."""

    def __init__(self, lag: float = LAG, bounds: Bounds = BOUNDS) -> None:
        """Export each new counter as 0 for `lag` seconds, and keep at most as many separate counters as `bounds`
        allow."""
        self.metered = NOTHING_METERED
        """The values of the last turn. The object is replaced and never changed, so that a scrape sees the values of a
        single turn."""
        self._bounds = bounds
        self._allocated: LaggingCounts[Account] = LaggingCounts(lag)
        self._idle: LaggingCounts[tuple[str, str]] = LaggingCounts(lag)
        self._stranded: LaggingCounts[str] = LaggingCounts(lag)
        self._transition: LaggingCounts[str] = LaggingCounts(lag)
        self._gpus: LaggingCounts[str] = LaggingCounts(0.0)
        """Grows by what its parts have grown in the export, so that it is always their sum and begins at 0 with
        them."""
        self._now: Allotment | None = None
        self._since = 0.0

    def turn(self, now: float, allotment: Allotment | None) -> None:
        """Count the time since the last turn by the allotment of that turn, drop counters that have not changed for
        `forget_after` seconds, and set `metered`. `allotment` is the present one; counters that it needs are created at
        0. If it is None, which means unknown, the last known one still applies, and nothing is counted or exported if
        there was none. `now` is in seconds of a monotonic clock."""
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
        """Return the values to export from now on, and end the turn of all counters. The sum of each policy grows by
        as much as its parts have grown."""
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
        """Add the time from `since` to `until` to the counters of the tenants, idle slices, stranded capacity and
        transition in this allotment. Missing counters are created, and the policy's sum at 0. Where there is no room
        for a new counter, OTHERS is counted instead. A negative time counts as 0."""
        seconds = max(0.0, until - since)
        policy = self._key(self._gpus, allotment.policy, self._bounds.policies, OTHERS, until)
        self._gpus.add(policy, 0.0, until)
        self._stranded.add(policy, float(allotment.stranded) * seconds, until)
        self._transition.add(policy, float(allotment.transition) * seconds, until)
        for (namespace, resource), part in allotment.allocated.items():
            account = self._account(Account(policy, namespace, resource), until)
            self._allocated.add(account, float(part) * seconds, until)
        for resource, part in allotment.idle.items():
            pair = self._key(self._idle, (policy, resource), self._bounds.idle, (policy, OTHERS), until)
            self._idle.add(pair, float(part) * seconds, until)

    def _account(self, account: Account, now: float) -> Account:
        """Return the account to count under: `account` itself if it has a counter or there is room for one, else the
        same account with the namespace OTHERS, and if there is no room for that either, with the resource OTHERS too.
        To make room, counters that have not changed for long may be dropped (`_has_room`)."""
        if account in self._allocated or self._has_room(self._allocated, self._bounds.accounts, now):
            return account
        others = Account(account.policy, OTHERS, account.resource)
        if others in self._allocated or len(self._allocated) < self._bounds.accounts + self._bounds.others:
            return others
        return Account(account.policy, OTHERS, OTHERS)

    def _key(self, counts: LaggingCounts[Key], key: Key, most: int, other: Key, now: float) -> Key:
        """Return the key to count under: `key` itself if it has a counter or there is room for one, else `other`. To
        make room, counters that have not changed for long may be dropped (`_has_room`)."""
        return key if key in counts or self._has_room(counts, most, now) else other

    def _has_room(self, counts: Sized, most: int, now: float) -> bool:
        """Whether one more counter fits into `counts`, of which there may be `most`. If `counts` is full, counters of
        every kind that have not changed for `room_after` seconds are dropped first."""
        if len(counts) >= most:
            self._drop(now, self._bounds.room_after)
        return len(counts) < most

    def _drop(self, now: float, patience: float) -> None:
        """Drop the counters of every kind that have not changed for more than `patience` seconds and were exported in
        full. The sum of a policy is kept as long as any of its parts is, because the sum grows when the parts are
        exported, which may be later."""
        for each in (self._allocated, self._idle, self._stranded, self._transition):
            each.drop(now, patience)
        policies = {account.policy for account in self._allocated} | {policy for policy, _ in self._idle}
        self._gpus.drop(now, patience, keep=policies.union(self._stranded, self._transition))
