"""How long each tenant had how much of the node's GPUs. Pure: the time is an argument.

docs/adr/0043-the-meter.md says why the meter is here, why new counters begin with 0, and what a restart costs.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence, Sized
from fractions import Fraction
from typing import Generic, TypeAlias, TypeVar

from gpusharing.agent.library import Reading
from gpusharing.agent.podresources import Holdings, base
from gpusharing.api.gpunode import GPU, Model
from gpusharing.planning.gpus.cards import WHOLE, shares
from gpusharing.planning.vocabulary.values import value

Key = TypeVar("Key")


class LaggingCounts(Generic[Key]):
    """The counters of one metric by their labels, exported as Prometheus needs them.

    `increase` does not count the first value of a series, and takes a lower value for a counter that restarted at 0. So
    a new series, or one that comes back, is exported at once with the value 0, keeps it for `lag` seconds, longer than
    the usual time between scrapes, and only then shows its real count.
    """

    def __init__(self, lag: float) -> None:
        self.exported: Mapping[Key, float] = {}
        """The values since the last turn. The mapping is replaced, never changed."""
        self.growth: Mapping[Key, float] = {}
        """By how much each exported value that grew in the last turn did so."""
        self._lag = lag
        self._counts: dict[Key, float] = {}
        self._first_added: dict[Key, float] = {}
        self._last_changed: dict[Key, float] = {}
        """When each counter was added to, or its exported value changed or still differed from its count."""

    def __contains__(self, key: Key) -> bool:
        return key in self._counts

    def __iter__(self) -> Iterator[Key]:
        return iter(self._counts)

    def __len__(self) -> int:
        return len(self._counts)

    def add(self, key: Key, amount: float, now: float) -> None:
        """Add to a counter, new or not. An amount of 0 announces it before there is anything to count."""
        self._counts[key] = self._counts.get(key, 0.0) + amount
        self._first_added.setdefault(key, now)
        self._last_changed[key] = now

    def export(self, now: float) -> Mapping[Key, float]:
        """End a turn: update `exported` and `growth`, and return the new `exported`."""
        before, exported, growth = self.exported, {}, {}
        for key, count in self._counts.items():
            exported[key] = count if now - self._first_added[key] >= self._lag else 0.0
            if not exported[key] == count == before.get(key):
                self._last_changed[key] = now
            if (more := exported[key] - before.get(key, 0.0)) > 0:
                growth[key] = more
        self.exported, self.growth = exported, growth
        return exported

    def drop(self, now: float, patience: float, keep: Collection[Key] = ()) -> None:
        """Drop the counters that were exported in full and have not changed for `patience` seconds."""
        gone = {
            key
            for key, at in self._last_changed.items()
            if now - at > patience and self.exported.get(key) == self._counts[key] and key not in keep
        }
        if not gone:
            return
        for key in gone:
            del self._counts[key], self._first_added[key], self._last_changed[key]
        self.exported = {key: count for key, count in self.exported.items() if key not in gone}


OTHERS = "_others"
"""The namespace, policy or resource for what has no counter of its own. Kubernetes allows no such name."""
LAG = 90.0
"""Seconds for which a new series is exported as 0."""
NOTHING = Fraction(0)


@value
class Bounds:
    """How many counters a node has apart, so that its series stay few, whatever happens over months."""

    accounts: int = 128
    """Accounts with counters of their own; later ones share the namespace OTHERS."""
    others: int = 32
    """Accounts of the namespace OTHERS with own counters; later ones share the resource OTHERS too."""
    idle: int = 64
    policies: int = 16
    room_after: float = 3600.0
    """Seconds for which a series that does not change is still exported when there is no room for another."""
    forget_after: float = 86400.0
    """Seconds for which it is exported when there is room, so that a Prometheus that was away for hours finds it."""


BOUNDS = Bounds()


Account: TypeAlias = tuple[str, str, str]
"""The tenant that the time of a slice is counted for: policy, namespace and resource.

The policy is empty if none owns the node."""


@value
class Allotment:
    """Which tenant has how much of the node's GPUs at one moment, in GPUs. The parts add up to `gpus`."""

    policy: str
    """The policy that owns the node; empty if none does."""
    gpus: int
    allocated: Mapping[tuple[str, str], Fraction]
    """GPUs that pods hold, by namespace and resource."""
    idle: Mapping[str, Fraction]
    """GPUs in slices that no pod holds, by resource."""
    stranded: Fraction
    transition: Fraction


AllocatableSlices = Mapping[str, Mapping[str, int]]
"""Slices that the kubelet can allocate on each device: by UUID of the device, then by resource."""
NONE_ALLOCATABLE: AllocatableSlices = {}


def allotment_of(
    reading: Reading,
    holdings: Holdings,
    policy: str,
    *,
    changing: bool,
    known: AllocatableSlices = NONE_ALLOCATABLE,
) -> Allotment:
    """Return who has how much of the node's GPUs now.

    With `changing`, all that no pod holds counts as transition. A device is divided evenly among its slices: as many as
    the kubelet lists or listed last (`known`), or as pods hold if that is more. Only slices that it lists now can be
    idle.
    """
    allocated: defaultdict[tuple[str, str], Fraction] = defaultdict(Fraction)
    idle: defaultdict[str, Fraction] = defaultdict(Fraction)
    listed = _allocatable(holdings)
    held, whole = _held(holdings, listed, known)
    cards = {model.product: model for model in reading.models}
    devices = (part for gpu in reading.gpus for part in _parts(gpu, cards.get(gpu.product), held))
    for uuid, share in devices:
        divided = uuid not in whole  # else one pod holds all of it, so nothing is idle
        here: Mapping[str, int] = listed.get(uuid, {}) if divided else {}
        slices = here or known.get(uuid, {}) if divided else {}
        taken = Counter(dict.fromkeys(slices, 0))
        for (_, resource), count in held.get(uuid, {}).items():
            taken[resource] += count
        parts = sum(max(count, slices.get(resource, 0)) for resource, count in taken.items())
        if not parts:
            continue
        each = share / parts
        for tenant, count in held.get(uuid, {}).items():
            allocated[tenant] += each * count
        for resource, count in taken.items():
            idle[resource] += each * max(0, here.get(resource, 0) - count)
    gpus = len(reading.gpus)
    rest = gpus - sum(allocated.values(), NOTHING)
    if changing:
        return Allotment(policy, gpus, allocated, {}, NOTHING, rest)
    return Allotment(policy, gpus, allocated, idle, rest - sum(idle.values(), NOTHING), NOTHING)


def last_allocatable(reading: Reading, holdings: Holdings, before: AllocatableSlices) -> AllocatableSlices:
    """Return the slices of each device as the kubelet lists or last listed them.

    A kubelet lists healthy devices only (kubernetes pkg/kubelet/cm/devicemanager/manager.go, GetAllocatableDevices,
    v1.36.3), and none of a plugin that is restarting. A pod that holds one of four slices still holds a quarter then.
    For a device that was never listed, as after a restart of the agent, the replica numbers that pods hold give a lower
    bound.
    """
    allocatable, known = _allocatable(holdings), dict(before)
    if all(gpu.access == "Ok" for gpu in reading.gpus):
        # While a GPU cannot be read it has no UUID, so any of the known devices may be its own.
        present = {uuid for gpu in reading.gpus for uuid in (gpu.uuid, *(instance.uuid for instance in gpu.instances))}
        known = {uuid: slices for uuid, slices in known.items() if uuid in present}
    for each in holdings.by_pod:
        for device in each.devices:
            uuid, _, number = device.partition("::")
            if number.isdecimal():
                # No plugin shares a device as a single replica (k8s-device-plugin api/config/v1/replicas.go, v0.19.3).
                slices = known.get(uuid, {})
                least = max(2, int(number) + 1, slices.get(each.resource, 0))
                known[uuid] = {**slices, each.resource: least}
    return {**known, **allocatable}


def _allocatable(holdings: Holdings) -> dict[str, Counter[str]]:
    allocatable: dict[str, Counter[str]] = {}
    for resource, device in holdings.allocatable or ():
        allocatable.setdefault(base(device), Counter())[resource] += 1
    return allocatable


def _held(
    holdings: Holdings, listed: AllocatableSlices, known: AllocatableSlices
) -> tuple[dict[str, Counter[tuple[str, str]]], set[str]]:
    """Return the slices of each device by tenant, and the devices that became shared while a pod held them whole."""
    held: dict[str, Counter[tuple[str, str]]] = {}
    whole: set[str] = set()
    for each in holdings.by_pod:
        for device in each.devices:
            uuid = base(device)
            slices = sum((listed.get(uuid) or known.get(uuid, {})).values())
            if device == uuid and slices > 1:  # its holder still holds all of it
                whole.add(uuid)
            else:
                slices = 1
            held.setdefault(uuid, Counter())[each.namespace, each.resource] += slices
    return held, whole


def _parts(gpu: GPU, model: Model | None, held: Mapping[str, object]) -> Sequence[tuple[str, Fraction]]:
    if gpu.mig_mode != "Enabled":
        return ((gpu.uuid, WHOLE),) if gpu.uuid else ()
    profiles = () if model is None else model.profiles
    # A container without rights cannot read sizes, so memory is used instead.
    placed = all(profile.size for profile in profiles)
    extents = {each.name: (each.slices, each.size if placed else each.memory_gb) for each in profiles}
    slices, memory = (max((extent[i] for extent in extents.values()), default=0) for i in (0, 1))
    parts = shares([extents.get(one.profile, (0, 0)) for one in gpu.instances], (slices, memory))
    devices = [(instance.uuid, part) for instance, part in zip(gpu.instances, parts, strict=True)]
    if not gpu.uuid or gpu.uuid not in held:
        return devices
    # MIG was switched on while a pod held the whole GPU: it has what no other pod holds.
    others = [(uuid, share) for uuid, share in devices if uuid in held]
    return [*others, (gpu.uuid, WHOLE - sum((share for _, share in others), NOTHING))]


@value
class Metered:
    """The exported GPU-seconds since the first turn, by policy and the keys of Allotment."""

    allocated: Mapping[Account, float]
    idle: Mapping[tuple[str, str], float]
    stranded: Mapping[str, float]
    transition: Mapping[str, float]
    gpus: Mapping[str, float]
    """The sum of all of the above."""


NOTHING_METERED = Metered({}, {}, {}, {}, {})


class Meter:
    """Counts GPU-seconds, beginning with the first turn.

    Every second of every GPU is counted in exactly one of four places: a tenant that holds a slice, idle (a slice that
    no pod holds), stranded (capacity that no slice of the layout covers) or transition (capacity that no pod holds on a
    node in the middle of a change). The time between two turns is counted by the state at the first of them.
    """

    def __init__(self, lag: float = LAG, bounds: Bounds = BOUNDS) -> None:
        self.metered = NOTHING_METERED
        """Replaced at each turn and never changed, so that a scrape sees the values of a single turn."""
        self._bounds = bounds
        self._allocated: LaggingCounts[Account] = LaggingCounts(lag)
        self._idle: LaggingCounts[tuple[str, str]] = LaggingCounts(lag)
        self._stranded: LaggingCounts[str] = LaggingCounts(lag)
        self._transition: LaggingCounts[str] = LaggingCounts(lag)
        self._gpus: LaggingCounts[str] = LaggingCounts(0.0)
        """The sum of the other counters. It grows by what they have grown in the export, and begins at 0 with them."""
        self._now: Allotment | None = None
        self._since = 0.0

    def turn(self, now: float, allotment: Allotment | None) -> None:
        """Count the time since the last turn by its allotment. If `allotment` is unknown, the last one still applies."""
        if self._now is not None:
            self._count(self._now, self._since, now)
        before, self._now, self._since = self._now, allotment or self._now, now
        if self._now is None:
            return
        if self._now is not before:  # announce the counters of the new state, at 0
            self._count(self._now, now, now)
        self._drop(now, self._bounds.forget_after)
        allocated, idle = self._allocated.export(now), self._idle.export(now)
        stranded, transition = self._stranded.export(now), self._transition.export(now)
        for (policy, _, _), grown in self._allocated.growth.items():
            self._gpus.add(policy, grown, now)
        for (policy, _), grown in self._idle.growth.items():
            self._gpus.add(policy, grown, now)
        for each in (self._stranded, self._transition):
            for policy, grown in each.growth.items():
                self._gpus.add(policy, grown, now)
        self.metered = Metered(allocated, idle, stranded, transition, self._gpus.export(now))

    def _count(self, allotment: Allotment, since: float, until: float) -> None:
        seconds = max(0.0, until - since)
        policy = self._key(self._gpus, allotment.policy, self._bounds.policies, OTHERS, until)
        self._gpus.add(policy, 0.0, until)
        self._stranded.add(policy, float(allotment.stranded) * seconds, until)
        self._transition.add(policy, float(allotment.transition) * seconds, until)
        for (namespace, resource), part in allotment.allocated.items():
            account, most = (policy, namespace, resource), self._bounds.accounts
            if account not in self._allocated and not self._has_room(self._allocated, most, until):
                account = policy, OTHERS, resource
                most += self._bounds.others
                if account not in self._allocated and len(self._allocated) >= most:
                    account = policy, OTHERS, OTHERS
            self._allocated.add(account, float(part) * seconds, until)
        for resource, part in allotment.idle.items():
            pair = self._key(self._idle, (policy, resource), self._bounds.idle, (policy, OTHERS), until)
            self._idle.add(pair, float(part) * seconds, until)

    def _key(self, counts: LaggingCounts[Key], key: Key, most: int, other: Key, now: float) -> Key:
        return key if key in counts or self._has_room(counts, most, now) else other

    def _has_room(self, counts: Sized, most: int, now: float) -> bool:
        if len(counts) >= most:
            self._drop(now, self._bounds.room_after)
        return len(counts) < most

    def _drop(self, now: float, patience: float) -> None:
        for each in (self._allocated, self._idle, self._stranded, self._transition):
            each.drop(now, patience)
        # A policy's sum grows when its parts are exported, which may be later.
        policies = {policy for policy, *_ in (*self._allocated, *self._idle)}
        self._gpus.drop(now, patience, keep=policies.union(self._stranded, self._transition))
