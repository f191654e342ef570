"""How long each tenant had how much of the node's GPUs. Pure: the time is an argument.

Every second of every GPU goes to exactly one of four: a tenant that holds a slice, idle (a slice that nobody holds),
stranded (what no slice of the layout offers) or transition (what nobody holds of a node in the middle of a change). So
they add up to the seconds of the GPUs, always. Time between two turns goes to how things stood at the first of them.
docs/adr/0043-the-meter.md says why the meter is here, why it lags, and what a restart costs.
"""

from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeVar

from gpusharing.agent.library import GPU, Model, Reading
from gpusharing.agent.podresources import Holdings
from gpusharing.agent.usage import base
from gpusharing.planning.gpus.shares import WHOLE, Extent, shares

MOST_ACCOUNTS = 128
"""Accounts of tenants, of a policy, a namespace and a resource each. Those that come later share OTHERS."""
OTHERS = "_others"
"""No namespace can be called this."""

LAG = 90.0
"""Seconds by which what is told lags behind. A new series is told at once, with 0, and stays 0 for longer than a scrape
usually takes to come: Prometheus does not count the first value that it sees of a series."""
_KEPT = 8
"""Points in time of a lag that are kept, so that many turns in a row cost no memory."""
FORGET_AFTER = 3600.0
"""Seconds for which an account that holds nothing is told all the same."""
NOTHING = Fraction(0)
Key = TypeVar("Key")


@dataclass(frozen=True, slots=True)
class Account:
    """Whose time it is."""

    policy: str
    namespace: str
    resource: str


@dataclass(frozen=True, slots=True)
class Standing:
    """Who has what of the node's GPUs at a moment, in GPUs. It adds up to `gpus`."""

    policy: str
    gpus: int
    held: Mapping[tuple[str, str], Fraction]
    """Namespace and resource."""
    idle: Mapping[str, Fraction]
    """Resource."""
    stranded: Fraction
    transition: Fraction


@dataclass(frozen=True, slots=True)
class _Slices:
    """One device: what part of which GPU it is, and what of it is whose."""

    share: Fraction
    offered: Mapping[str, int]
    held: Mapping[tuple[str, str], int]


def standing(reading: Reading, holdings: Holdings, policy: str, *, changing: bool) -> Standing:
    """How things stand; `changing`: the node is in the middle of a change, and idle slices are no use to anybody."""
    held: dict[tuple[str, str], Fraction] = {}
    idle: dict[str, Fraction] = {}
    for device in _devices(reading, holdings):
        taken = Counter(dict.fromkeys(device.offered, 0))
        for (_, resource), count in device.held.items():
            taken[resource] += count
        there = {resource: max(count, device.offered.get(resource, 0)) for resource, count in taken.items()}
        parts = sum(there.values())
        if not parts:
            continue
        each = device.share / parts
        for tenant, count in device.held.items():
            held[tenant] = held.get(tenant, NOTHING) + each * count
        for resource, count in there.items():
            idle[resource] = idle.get(resource, NOTHING) + each * (count - taken[resource])
    gpus = len(reading.gpus)
    rest = gpus - sum(held.values(), NOTHING)
    if changing:
        return Standing(policy, gpus, held, {}, NOTHING, rest)
    return Standing(policy, gpus, held, idle, rest - sum(idle.values(), NOTHING), NOTHING)


def _devices(reading: Reading, holdings: Holdings) -> Iterable[_Slices]:
    offered: dict[str, Counter[str]] = {}
    for resource, device in holdings.offered or ():
        offered.setdefault(base(device), Counter())[resource] += 1
    held: dict[str, Counter[tuple[str, str]]] = {}
    for each in holdings.held:
        for device in each.devices:
            held.setdefault(base(device), Counter())[each.namespace, each.resource] += 1
    cards = {model.product: model for model in reading.models}
    for gpu in reading.gpus:
        for uuid, share in _shares(gpu, cards.get(gpu.product)):
            yield _Slices(share, offered.get(uuid, {}), held.get(uuid, {}))


def _shares(gpu: GPU, model: Model | None) -> Sequence[tuple[str, Fraction]]:
    """UUID and share of each device of a GPU."""
    if gpu.mig_mode != "Enabled":
        return ((gpu.uuid, WHOLE),) if gpu.uuid else ()
    profiles = {} if model is None else {profile.name: profile for profile in model.profiles}
    # Sizes are withheld from a container without rights.
    placed = all(profile.size for profile in profiles.values())

    def extent(name: str) -> Extent:
        profile = profiles.get(name)
        if profile is None:
            return Extent(0, 0)
        return Extent(profile.slices, profile.size if placed else profile.memory_gb)

    every = [extent(name) for name in profiles]
    card = Extent(
        max((each.slices for each in every), default=0), max((each.memory for each in every), default=0)
    )
    parts = shares([extent(instance.profile) for instance in gpu.instances], card)
    return tuple((instance.uuid, part) for instance, part in zip(gpu.instances, parts, strict=True))


@dataclass(frozen=True, slots=True)
class Metered:
    """Seconds of GPUs since the first turn, up to one turn."""

    held: Mapping[Account, float]
    idle: Mapping[tuple[str, str], float]
    """By policy and resource."""
    stranded: Mapping[str, float]
    """By policy."""
    transition: Mapping[str, float]
    gpus: Mapping[str, float]
    """By policy, of all its GPUs: what all of the above add up to."""


NOTHING_METERED = Metered({}, {}, {}, {}, {})


class Meter:
    """Counts GPU-seconds from the first turn on."""

    def __init__(self, lag: float = LAG) -> None:
        """`lag` in seconds."""
        self.metered = NOTHING_METERED
        """As of `lag` before the last turn; replaced, never changed, so that a scrape sees one turn."""
        self._lag = lag
        self._past: deque[tuple[float, Metered]] = deque()
        """Turns, oldest first: one that is older than the lag, and later ones."""
        self._held: dict[Account, float] = {}
        self._active: dict[Account, float] = {}
        """When each account of a tenant last held anything."""
        self._idle: dict[tuple[str, str], float] = {}
        self._stranded: dict[str, float] = {}
        self._transition: dict[str, float] = {}
        self._gpus: dict[str, float] = {}
        self._now: Standing | None = None
        self._since = 0.0

    def turn(self, now: float, stands: Standing | None) -> None:
        """How things stand from now on; None: nobody knows, so as before. `now`: seconds of a clock that only rises."""
        if self._now is not None:
            self._count(self._now, self._since, now)
        self._now, self._since = stands or self._now, now
        if self._now is None:
            return
        self._forget(now)
        self._count(self._now, now, now)
        current = Metered(
            held=dict(self._held),
            idle=dict(self._idle),
            stranded=dict(self._stranded),
            transition=dict(self._transition),
            gpus=dict(self._gpus),
        )
        self._tell(now, current)

    def _tell(self, now: float, current: Metered) -> None:
        if not self._past or now - self._past[-1][0] >= self._lag / _KEPT:
            self._past.append((now, current))
        while len(self._past) > 1 and self._past[1][0] <= now - self._lag:
            self._past.popleft()
        at, oldest = self._past[0]
        old = oldest if at <= now - self._lag else NOTHING_METERED
        self.metered = Metered(
            held=_since(old.held, current.held),
            idle=_since(old.idle, current.idle),
            stranded=_since(old.stranded, current.stranded),
            transition=_since(old.transition, current.transition),
            gpus=_since(old.gpus, current.gpus),
        )

    def _count(self, stands: Standing, since: float, until: float) -> None:
        seconds = max(0.0, until - since)
        for (namespace, resource), part in stands.held.items():
            account = self._account(Account(stands.policy, namespace, resource))
            self._active[account] = until
            _add(self._held, account, part, seconds)
        for resource, part in stands.idle.items():
            _add(self._idle, (stands.policy, resource), part, seconds)
        _add(self._stranded, stands.policy, stands.stranded, seconds)
        _add(self._transition, stands.policy, stands.transition, seconds)
        _add(self._gpus, stands.policy, Fraction(stands.gpus), seconds)

    def _account(self, account: Account) -> Account:
        if account in self._held or len(self._held) < MOST_ACCOUNTS:
            return account
        return Account(account.policy, OTHERS, account.resource)

    def _forget(self, now: float) -> None:
        """Make room: an account that has held nothing for so long was scraped, and begins with 0 when it returns."""
        if len(self._held) >= MOST_ACCOUNTS:
            for account in [each for each, at in self._active.items() if now - at > FORGET_AFTER]:
                del self._held[account], self._active[account]


def _add(counts: dict[Key, float], key: Key, part: Fraction, seconds: float) -> None:
    counts[key] = counts.get(key, 0.0) + float(part) * seconds


def _since(old: Mapping[Key, float], current: Mapping[Key, float]) -> Mapping[Key, float]:
    """The old counts, and 0 for what came later."""
    return {key: old.get(key, 0.0) for key in current}
