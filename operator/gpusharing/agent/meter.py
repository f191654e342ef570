"""How long each tenant had how much of the node's GPUs. Pure: the time is an argument.

Every second of every GPU goes to exactly one of four: a tenant that holds a slice, idle (a slice that nobody holds),
stranded (what no slice of the layout offers) or transition (what nobody holds on a node in the middle of a change). So
they add up to the seconds of the GPUs, always. Time between two turns goes to how things stood at the first of them.
docs/adr/0043-the-meter.md says why the meter is here, why what is new begins with 0, and what a restart
costs.
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
"""Namespace, policy or resource of what is not counted separately. Nothing in Kubernetes can be called this."""
LAG = 90.0
"""Seconds for which a new series is exported as 0."""
NOTHING = Fraction(0)


@value
class Bounds:
    """How much is counted separately on a node, so that its series stay few whatever happens to it over months."""

    accounts: int = 128
    """Accounts of tenants, of a policy, a namespace and a resource each. Later ones share the namespace OTHERS."""
    others: int = 32
    """Accounts of that namespace by policy and resource. Later ones share the resource OTHERS too."""
    idle: int = 64
    """Pairs of a policy and a resource with idle slices. Later ones share the resource OTHERS."""
    policies: int = 16
    """Later ones share the policy OTHERS."""
    room_after: float = 3600.0
    """Seconds for which a series that does not change is still exported when there is no room for another."""
    forget_after: float = 86400.0
    """The same when there is room: a Prometheus that was away for some hours still finds what was counted."""


BOUNDS = Bounds()


class Account(NamedTuple):
    """Whose time it is. A tuple, because many are hashed at each turn."""

    policy: str
    """Name of the policy that owns the node; empty: none does."""
    namespace: str
    """Namespace of the pod that holds the slices; OTHERS beyond the bounds."""
    resource: str
    """Name of the resource that they are offered as; OTHERS beyond the bounds."""


@value
class Allotment:
    """Which tenant has how much of the node's GPUs at a moment, in GPUs. It adds up to `gpus`."""

    policy: str
    """Name of the policy that owns the node; empty: none does."""
    gpus: int
    """How many GPUs the node has."""
    held: Mapping[tuple[str, str], Fraction]
    """Namespace and resource."""
    idle: Mapping[str, Fraction]
    """Resource."""
    stranded: Fraction
    """What no slice of the layout offers."""
    transition: Fraction
    """What nobody holds on a node in the middle of a change; elsewhere 0."""


@value
class _Slices:
    """One device: which part of which GPU it is, and which tenants hold how much of it."""

    share: Fraction
    offered: Mapping[str, int]
    known: Mapping[str, int]
    """What it is offered as, or was last."""
    held: Mapping[tuple[str, str], int]


Offers = Mapping[str, Mapping[str, int]]
"""By device how many slices of which resource the kubelet has to hand out."""
NO_OFFERS: Offers = {}


def standing(
    reading: Reading, holdings: Holdings, policy: str, *, changing: bool, known: Offers = NO_OFFERS
) -> Allotment:
    """The current state; `changing`: the node is in the middle of a change, and idle slices are of no use to
    anybody. `known`: what `last_offers` says of the devices that are not offered now."""
    held: dict[tuple[str, str], Fraction] = {}
    idle: dict[str, Fraction] = {}
    for device in _devices(reading, holdings, known):
        taken = Counter(dict.fromkeys(device.known, 0))
        for (_, resource), count in device.held.items():
            taken[resource] += count
        parts = sum(max(count, device.known.get(resource, 0)) for resource, count in taken.items())
        if not parts:
            continue
        each = device.share / parts
        for tenant, count in device.held.items():
            held[tenant] = held.get(tenant, NOTHING) + each * count
        for resource, count in taken.items():
            free = max(0, device.offered.get(resource, 0) - count)
            idle[resource] = idle.get(resource, NOTHING) + each * free
    gpus = len(reading.gpus)
    rest = gpus - sum(held.values(), NOTHING)
    if changing:
        return Allotment(policy, gpus, held, {}, NOTHING, rest)
    return Allotment(policy, gpus, held, idle, rest - sum(idle.values(), NOTHING), NOTHING)


def last_offers(reading: Reading, holdings: Holdings, before: Offers) -> Offers:
    """What each device is offered as, and where it is offered as nothing, what it was before.

    A kubelet lists healthy devices only (kubernetes pkg/kubelet/cm/devicemanager/manager.go, GetAllocatableDevices,
    v1.36.3), and none of a plugin that is restarting. Whoever holds one of four slices goes on holding a quarter. Of a
    device that was never seen offered, as after a restart of the agent, the ids that are held say how many at least.
    """
    offered, known = _offered(holdings), dict(before)
    if all(gpu.access == "Ok" for gpu in reading.gpus):
        # A GPU that cannot be read has no UUID: its devices may be any of those that were known.
        there = {uuid for gpu in reading.gpus for uuid in (gpu.uuid, *(one.uuid for one in gpu.instances))}
        known = {uuid: slices for uuid, slices in known.items() if uuid in there}
    for uuid, least in _least_offers(holdings).items():
        slices = known.get(uuid, {})
        known[uuid] = {
            resource: max(slices.get(resource, 0), least.get(resource, 0)) for resource in {**slices, **least}
        }
    return {**known, **offered}


def _least_offers(holdings: Holdings) -> dict[str, dict[str, int]]:
    """Of each shared device the fewest slices that it can have been offered as, by resource."""
    found: dict[str, dict[str, int]] = {}
    for each in holdings.held:
        for device in each.devices:
            uuid, _, number = device.partition("::")
            if number.isdecimal():
                # No plugin shares a device as a single replica (k8s-device-plugin api/config/v1/replicas.go, v0.19.3).
                least, here = max(2, int(number) + 1), found.setdefault(uuid, {})
                here[each.resource] = max(least, here.get(each.resource, 0))
    return found


def _offered(holdings: Holdings) -> dict[str, Counter[str]]:
    offered: dict[str, Counter[str]] = {}
    for resource, device in holdings.offered or ():
        offered.setdefault(base(device), Counter())[resource] += 1
    return offered


def _devices(reading: Reading, holdings: Holdings, known: Offers) -> Iterable[_Slices]:
    offered = _offered(holdings)
    held, whole = _held(holdings, offered, known)
    cards = {model.product: model for model in reading.models}
    for gpu in reading.gpus:
        for uuid, share in _under_holder(gpu, _shares(gpu, cards.get(gpu.product)), held):
            if uuid in whole:  # nothing of it is idle
                yield _Slices(share, {}, {}, held[uuid])
            else:
                here: Mapping[str, int] = offered.get(uuid, {})
                yield _Slices(share, here, here or known.get(uuid, {}), held.get(uuid, {}))


def _held(
    holdings: Holdings, offered: Offers, known: Offers
) -> tuple[dict[str, Counter[tuple[str, str]]], set[str]]:
    """Return how many slices of each device each namespace holds of each resource, and the devices that were shared
    under the holder of the whole."""
    held: dict[str, Counter[tuple[str, str]]] = {}
    whole: set[str] = set()
    for each in holdings.held:
        for device in each.devices:
            uuid = base(device)
            slices = sum((offered.get(uuid) or known.get(uuid, {})).values())
            if device == uuid and slices > 1:  # it was shared under its holder, who goes on holding all of it
                whole.add(uuid)
            else:
                slices = 1
            held.setdefault(uuid, Counter())[each.namespace, each.resource] += slices
    return held, whole


def _under_holder(
    gpu: GPU, parts: Sequence[tuple[str, Fraction]], held: Mapping[str, object]
) -> Sequence[tuple[str, Fraction]]:
    """The devices of a GPU. Where MIG was switched on under the holder of the whole GPU, it stays the holder's but for
    instances that others hold."""
    if not gpu.uuid or gpu.uuid not in held or gpu.mig_mode != "Enabled":
        return parts
    others = [(uuid, share) for uuid, share in parts if uuid in held]
    return [*others, (gpu.uuid, WHOLE - sum((share for _, share in others), NOTHING))]


def _shares(gpu: GPU, model: Model | None) -> Sequence[tuple[str, Fraction]]:
    """UUID and share of each device of a GPU."""
    if gpu.mig_mode != "Enabled":
        return ((gpu.uuid, WHOLE),) if gpu.uuid else ()
    profiles = () if model is None else model.profiles
    # Sizes are withheld from a container without rights.
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
    """Seconds of GPUs since the first turn, up to one turn; but 0 of what is new."""

    held: Mapping[Account, float]
    """By policy, namespace and resource."""
    idle: Mapping[tuple[str, str], float]
    """By policy and resource."""
    stranded: Mapping[str, float]
    """By policy."""
    transition: Mapping[str, float]
    """By policy."""
    gpus: Mapping[str, float]
    """By policy: what all of the above add up to."""


NOTHING_METERED = Metered({}, {}, {}, {}, {})


class Meter:
    """Counts GPU-seconds from the first turn on."""

    def __init__(self, lag: float = LAG, bounds: Bounds = BOUNDS) -> None:
        """`lag`: seconds for which what is new is exported as 0."""
        self.metered = NOTHING_METERED
        """As of the last turn; replaced, never changed, so that a scrape sees one turn."""
        self._bounds = bounds
        self._held: LaggingCounts[Account] = LaggingCounts(lag)
        self._idle: LaggingCounts[tuple[str, str]] = LaggingCounts(lag)
        self._stranded: LaggingCounts[str] = LaggingCounts(lag)
        self._transition: LaggingCounts[str] = LaggingCounts(lag)
        self._gpus: LaggingCounts[str] = LaggingCounts(0.0)
        """Grows by what is exported of the parts, so that it is always their sum, and begins with their 0."""
        self._now: Allotment | None = None
        self._since = 0.0

    def turn(self, now: float, stands: Allotment | None) -> None:
        """The state from now on; None: unknown, so as before. `now`: seconds of a clock that only rises."""
        if self._now is not None:
            self._count(self._now, self._since, now)
        before, self._now, self._since = self._now, stands or self._now, now
        if self._now is None:
            return
        if self._now is not before:  # what it had was counted just now
            self._count(self._now, now, now)
        self._drop(now, self._bounds.forget_after)
        self.metered = self._tell(now)

    def _tell(self, now: float) -> Metered:
        held, idle = self._held.tell(now), self._idle.tell(now)
        stranded, transition = self._stranded.tell(now), self._transition.tell(now)
        for account, grown in self._held.grown.items():
            self._gpus.add(account.policy, grown, now)
        for (policy, _), grown in self._idle.grown.items():
            self._gpus.add(policy, grown, now)
        for each in (self._stranded, self._transition):
            for policy, grown in each.grown.items():
                self._gpus.add(policy, grown, now)
        return Metered(held, idle, stranded, transition, self._gpus.tell(now))

    def _count(self, stands: Allotment, since: float, until: float) -> None:
        seconds = max(0.0, until - since)
        policy = self._policy(stands.policy, until)
        self._gpus.add(policy, 0.0, until)
        self._stranded.add(policy, float(stands.stranded) * seconds, until)
        self._transition.add(policy, float(stands.transition) * seconds, until)
        for (namespace, resource), part in stands.held.items():
            account = self._account(Account(policy, namespace, resource), until)
            self._held.add(account, float(part) * seconds, until)
        for resource, part in stands.idle.items():
            self._idle.add(self._pair((policy, resource), until), float(part) * seconds, until)

    def _policy(self, policy: str, now: float) -> str:
        known = policy in self._gpus or self._has_room(self._gpus, self._bounds.policies, now)
        return policy if known else OTHERS

    def _account(self, account: Account, now: float) -> Account:
        if account in self._held or self._has_room(self._held, self._bounds.accounts, now):
            return account
        others = Account(account.policy, OTHERS, account.resource)
        if others in self._held or len(self._held) < self._bounds.accounts + self._bounds.others:
            return others
        return Account(account.policy, OTHERS, OTHERS)

    def _pair(self, pair: tuple[str, str], now: float) -> tuple[str, str]:
        known = pair in self._idle or self._has_room(self._idle, self._bounds.idle, now)
        return pair if known else (pair[0], OTHERS)

    def _has_room(self, counts: Sized, most: int, now: float) -> bool:
        if len(counts) >= most:
            self._drop(now, self._bounds.room_after)
        return len(counts) < most

    def _drop(self, now: float, patience: float) -> None:
        """The sum of a policy is dropped last: it grows when the parts are exported, and that may be later."""
        for each in (self._held, self._idle, self._stranded, self._transition):
            each.drop(now, patience)
        policies = {account.policy for account in self._held} | {policy for policy, _ in self._idle}
        self._gpus.drop(now, patience, keep=policies.union(self._stranded, self._transition))
