"""How long each tenant had how much of the node's GPUs, and how many pods and slices a GPU had at most in an hour.

docs/adr/0043-the-meter.md says why the meter is here, why new counters begin with 0, and what a restart costs.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import datetime
from typing import TypeAlias

from gpusharing.agent.allotment import Allotment
from gpusharing.agent.library import Reading
from gpusharing.agent.podresources import Holdings, base
from gpusharing.kube.clock import wall_time
from gpusharing.planning.vocabulary.values import value

Labels: TypeAlias = tuple[str, ...]
"""The values of the labels of a counter. Those of the meter begin with the policy, empty if none owns the node."""


class LaggingCounts:
    """The counters of one metric by their labels, exported as Prometheus needs them.

    `increase` does not count the first value of a series. So a new one, or one that comes back, is exported as 0 for
    `lag` seconds, longer than the usual time between scrapes, and only then shows its real count.
    """

    def __init__(self, lag: float) -> None:
        self.exported: Mapping[Labels, float] = {}
        """The values since the last turn. The mapping is replaced, never changed."""
        self.growth: Mapping[Labels, float] = {}
        """By how much each exported value that grew in the last turn did so."""
        self._lag = lag
        self._counts: dict[Labels, float] = {}
        self._first_added: dict[Labels, float] = {}
        self._last_changed: dict[Labels, float] = {}
        """When each counter was added to, or its exported value changed or still differed from its count."""

    def __contains__(self, key: Labels) -> bool:
        return key in self._counts

    def __iter__(self) -> Iterator[Labels]:
        return iter(self._counts)

    def __len__(self) -> int:
        return len(self._counts)

    def add(self, key: Labels, amount: float, now: float) -> None:
        """Add to a counter, new or not. An amount of 0 announces it before there is anything to count."""
        self._counts[key] = self._counts.get(key, 0.0) + amount
        self._first_added.setdefault(key, now)
        self._last_changed[key] = now

    def export(self, now: float) -> Mapping[Labels, float]:
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

    def drop(self, now: float, patience: float, keep: Collection[Labels] = ()) -> None:
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


@value
class Bounds:
    """How many counters a node has apart, so that its series stay few, whatever happens over months."""

    accounts: int = 128
    """Tenants (policy, namespace and resource) with counters of their own; later ones share the namespace OTHERS."""
    others: int = 32
    """Resources of the namespace OTHERS, by policy, with counters of their own; later ones share the resource OTHERS too."""
    idle: int = 64
    policies: int = 16
    room_after: float = 3600.0
    """Seconds for which a series that does not change is still exported when there is no room for another."""
    forget_after: float = 86400.0
    """Seconds for which it is exported when there is room, so that a Prometheus that was away for hours finds it."""


BOUNDS = Bounds()


Metered: TypeAlias = Mapping[str, Mapping[Labels, float]]
"""The exported GPU-seconds since the first turn, by the part of Allotment, whose keys follow the policy, and under `gpus`
the sum of all parts."""


class Meter:
    """Counts GPU-seconds, beginning with the first turn, by the state at the turn before.

    Every second of every GPU is a tenant's that holds a slice, idle (a slice that no pod holds), stranded (capacity
    that no slice of the layout covers) or in transition (what no pod holds on a node in the middle of a change).
    """

    def __init__(self, lag: float = LAG, bounds: Bounds = BOUNDS) -> None:
        self._bounds = bounds
        self._parts = {part: LaggingCounts(lag) for part in ("allocated", "idle", "stranded", "transition")}
        self._gpus = LaggingCounts(0.0)
        """The sum of the parts. It grows by what they have grown in the export, and begins at 0 with them."""
        self.metered: Metered = {part: {} for part in (*self._parts, "gpus")}
        """Replaced at each turn and never changed, so that a scrape sees the values of a single turn."""
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
        exported = {part: counts.export(now) for part, counts in self._parts.items()}
        for counts in self._parts.values():
            for account, grown in counts.growth.items():
                self._gpus.add(account[:1], grown, now)
        self.metered = {**exported, "gpus": self._gpus.export(now)}

    def _count(self, allotment: Allotment, since: float, until: float) -> None:
        seconds, bounds = max(0.0, until - since), self._bounds
        held, idle = self._parts["allocated"], self._parts["idle"]
        owner = self._key(self._gpus, (allotment.policy,), bounds.policies, (OTHERS,), until)
        self._gpus.add(owner, 0.0, until)
        self._parts["stranded"].add(owner, float(allotment.stranded) * seconds, until)
        self._parts["transition"].add(owner, float(allotment.transition) * seconds, until)
        for tenant, part in allotment.allocated.items():
            account, most = owner + tenant, bounds.accounts
            if account not in held and not self._has_room(held, most, until):
                account = *owner, OTHERS, tenant[1]
                most += bounds.others
                if account not in held and len(held) >= most:
                    account = *owner, OTHERS, OTHERS
            held.add(account, float(part) * seconds, until)
        for resource, part in allotment.idle.items():
            account = self._key(idle, (*owner, resource), bounds.idle, (*owner, OTHERS), until)
            idle.add(account, float(part) * seconds, until)

    def _key(self, counts: LaggingCounts, key: Labels, most: int, other: Labels, now: float) -> Labels:
        return key if key in counts or self._has_room(counts, most, now) else other

    def _has_room(self, counts: LaggingCounts, most: int, now: float) -> bool:
        if len(counts) >= most:
            self._drop(now, self._bounds.room_after)
        return len(counts) < most

    def _drop(self, now: float, patience: float) -> None:
        for counts in self._parts.values():
            counts.drop(now, patience)
        # A policy's sum grows when its parts are exported, which may be later.
        self._gpus.drop(now, patience, keep={account[:1] for counts in self._parts.values() for account in counts})


HOUR = 3600


class HourPeaks:
    """The peaks of each GPU in the current hour: they also show what comes and goes between two scrapes."""

    def __init__(self, clock: Callable[[], datetime] = wall_time) -> None:
        self._clock = clock
        self._most: Mapping[str, tuple[int, int]] = {}
        """Replaced, never changed, because scrapes run in threads of their own."""
        self._source: tuple[int, Reading, Holdings] | None = None

    @property
    def most(self) -> Mapping[str, tuple[int, int]]:
        """Pods and slices by the UUID of the GPU; empty if nothing was counted in this hour yet."""
        most, source = self._most, self._source
        return most if source is not None and source[0] == self._hour() else {}

    def turn(self, reading: Reading, holdings: Holdings) -> None:
        hour, last = self._hour(), self._source
        # What did not change is the same object, so most turns end here.
        if last is not None and last[0] == hour and last[1] is reading and last[2] is holdings:
            return
        gpus = {gpu.uuid: gpu.uuid for gpu in reading.gpus if gpu.uuid}
        gpus |= {uuid: gpu.uuid for gpu in reading.gpus for uuid in gpu.uuids}
        pods: dict[str, set[tuple[str, str]]] = {uuid: set() for uuid in gpus.values()}
        slices = dict.fromkeys(pods, 0)
        for each in holdings.by_pod:
            for device in each.devices:
                if (uuid := gpus.get(base(device))) is not None:
                    pods[uuid].add((each.namespace, each.pod))
                    slices[uuid] += 1
        before = self._most if last is not None and last[0] == hour else {}
        most = {}
        for uuid, holders in pods.items():
            old = before.get(uuid, (0, 0))
            most[uuid] = max(len(holders), old[0]), max(slices[uuid], old[1])
        self._most, self._source = most, (hour, reading, holdings)

    def _hour(self) -> int:
        return int(self._clock().timestamp()) // HOUR
