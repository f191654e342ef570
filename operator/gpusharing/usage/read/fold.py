"""Hourly answers about GPUs, a stretch of time after the other, summed up by workload. Pure, and bounded by the hours.

dcgm-exporter does not report what a pod takes of a GPU that others hold too: it reports each of them, or one of them,
with what the whole GPU takes. Such hours are left out, unless the agent reports the pod's own.
"""

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import isnan, nan

from gpusharing.planning.gpus.cards import Card, find_card
from gpusharing.usage.prometheus.client import Series
from gpusharing.usage.read.series import MIB, Device, DeviceLabels, Pod, PodOwners, read_agent, read_dcgm
from gpusharing.usage.reckon.needs import Workload

MOST_MIB = 1 << 20
"""No GPU has more than that: DCGM writes what it does not know as a number near 2^31 or 2^63 (NVIDIA/DCGM
dcgmlib/dcgm_structs.h at 72fa3fe, DCGM_INT32_BLANK and DCGM_INT64_BLANK)."""


@dataclass(frozen=True, slots=True)
class HourAnswers:
    """Answers for one stretch, in the order of `usagequeries.hourly` and `names`."""

    used: Sequence[Series]
    """The highest memory use of each hour, in MiB, by dcgm-exporter."""
    live: Sequence[Series]
    """Memory in use at the end of each hour, in MiB, by dcgm-exporter."""
    active: Sequence[Series]
    """The 95th percentile of the activity of each hour, 0 to 1, by dcgm-exporter."""
    own: Sequence[Series]
    """The highest memory use of each hour, in bytes, by our agent."""
    held: Sequence[Series]
    """Slices that pods hold at the end of each hour, by our agent."""
    sm: Sequence[Series]
    """The 95th percentile of the SM time of each hour, by our agent."""
    owners: PodOwners
    """Whose pods they are."""
    declared: Mapping[Pod, int]
    """Bytes, by the annotation."""
    exporters: frozenset[Pod]
    """Pods of dcgm-exporter, which are no workload."""
    devices: Mapping[str, Device]
    """Which device each UUID of the agent means."""
    simulated: frozenset[str] = frozenset()
    """Nodes."""


@dataclass(slots=True)
class Record:
    """One workload. Arrays have a place for each hour, the oldest first; nan: not known."""

    memory: "array[float]"
    """Memory in use, in bytes."""
    activity: "array[float]"
    """Of one, of the whole card."""
    pods: "array[int]"
    """At the end of the hour."""
    devices: "array[int]"
    """Of one pod at the end of the hour, at most."""
    last: int = -1
    """The hour in which a pod of it was seen last."""
    profile: str = ""
    """Of the device that it held last; empty: no MIG device."""
    gpu: str = ""
    """Of that device."""
    node: str = ""
    resource: str = ""
    """As the agent reports it; empty: it does not."""
    slices: float = 0.0
    """Replicas that a pod of it holds on that device, by the agent."""
    of_device: bool = False
    """Whether some of the activity is that of a whole device which other pods held too."""
    shared: int = 0
    """Hours in which what a pod took was not known, because others held its GPU too."""
    declared: int | None = None
    """Bytes that the pods which were seen last declare, the most of them."""
    declared_at: int = -1
    """The hour in which those were seen."""

    @classmethod
    def of(cls, hours: int) -> "Record":
        """A workload of which nothing is known."""
        none = array("I", [0]) * hours
        return cls(array("d", [nan]) * hours, array("f", [nan]) * hours, none, none[:])

    def hold(self, told: DeviceLabels, hour: int) -> None:
        """Remember the device that a pod of it held in this hour."""
        self.last, self.profile = hour, told.profile
        self.gpu, self.node = told.device.gpu, told.node

    def declare(self, said: int | None, hour: int) -> None:
        """What a pod that existed in this hour declares. Its owner may have changed or removed that."""
        if hour > self.declared_at:
            self.declared_at, self.declared = hour, said
        elif hour == self.declared_at and said is not None:
            self.declared = max(said, self.declared or 0)


@dataclass(slots=True)
class Gpu:
    """One GPU that was seen."""

    node: str
    model: str
    last: int
    """The hour in which it was seen last."""
    divided: int = -1
    """The hour in which it was seen last with MIG devices."""
    holders: Counter[Workload] = field(default_factory=Counter)
    """Pods of each workload in `held`."""
    held: int = -1
    """The hour in which a pod held it last."""


Reading = tuple[DeviceLabels, Series]
"""A series, and what its labels say."""


@dataclass(slots=True)
class Fold:
    """What is known so far."""

    end: float
    hours: int
    nodes: frozenset[str] | None = None
    """Only GPUs of these; None: of all."""
    card: Card | None = None
    """Only GPUs of this model; None: of all. A workload may have pods on others besides."""
    replicated: frozenset[str] = frozenset()
    """Nodes that offer more GPUs than they have."""
    records: dict[Workload, Record] = field(default_factory=dict)
    gpus: dict[str, Gpu] = field(default_factory=dict)
    others: dict[str, Gpu] = field(default_factory=dict)
    """GPUs of `nodes` that are not of `card`."""
    beyond: dict[str, int] = field(default_factory=dict)
    """Nodes with GPUs that are not in `nodes`: the hour in which each was seen last."""
    unnamed: set[Pod] = field(default_factory=set)
    """Pods whose owner is unknown."""
    _workloads: dict[Pod, Workload] = field(default_factory=dict)
    """Of the stretch: a pod has many series."""

    def add(self, part: HourAnswers) -> None:
        """Answers for a stretch after those of before."""
        self._workloads.clear()
        read_own = partial(read_agent, devices=part.devices)
        read_exporter = partial(read_dcgm, exporters=part.exporters)
        scraped = [(read_exporter(one), one) for one in part.used]
        used = [(told, one) for told, one in scraped if self._is_ours(told)]
        for told, one in scraped:
            if told.model and self._is_there(told) and not self._is_ours(told):
                self._see(self.others, told, one)
        self._look_beyond([*scraped, *((read_own(one), one) for one in part.held)])
        live = self._ours(part.live, read_exporter)
        for told, one in used:
            self._see(self.gpus, told, one)
        own = self._ours(part.own, read_own)
        crowded, split = self._crowded(live)
        self._add_memory(used, own, crowded, part)
        self._add_activity(
            self._ours(part.active, read_exporter), self._ours(part.sm, read_own), crowded, split, part
        )
        self._add_pods([*live, *self._ours(part.held, read_own)], part)
        for told, one in (*used, *own):
            self._pass(told, one, part)

    def hour(self, at: float) -> int:
        """The place of a time in the arrays."""
        return self.hours - 1 - round((self.end - at) / 3600)

    def _is_there(self, told: DeviceLabels) -> bool:
        return bool(told.device.gpu) and (self.nodes is None or told.node in self.nodes)

    def _is_ours(self, told: DeviceLabels) -> bool:
        if not self._is_there(told):
            return False
        if self.card is None:
            return True
        seen = self.gpus.get(told.device.gpu)
        return find_card(told.model or (seen.model if seen else "")) is self.card

    def _ours(self, found: Iterable[Series], read: Callable[[Series], DeviceLabels]) -> list[Reading]:
        return [(told, one) for one in found if self._is_ours(told := read(one))]

    def _look_beyond(self, found: Iterable[Reading]) -> None:
        for told, one in found:
            if told.node and self.nodes is not None and told.node not in self.nodes and one.points:
                last = self.hour(one.points[-1][0])
                self.beyond[told.node] = max(last, self.beyond.get(told.node, -1))

    def _see(self, gpus: dict[str, Gpu], told: DeviceLabels, one: Series) -> None:
        last = self.hour(one.points[-1][0]) if one.points else -1
        seen = gpus.get(told.device.gpu)
        if seen is None:
            seen = gpus[told.device.gpu] = Gpu(told.node, told.model, last)
        elif last >= seen.last:
            seen.last, seen.node, seen.model = last, told.node or seen.node, told.model or seen.model
        if told.profile:
            seen.divided = max(seen.divided, last)

    def _crowded(self, live: Iterable[Reading]) -> tuple[set[Device], set[Device]]:
        """Devices that several pods held at one time, each reported with what all of them take; and GPUs of nodes that
        offer more of them than they have, where dcgm-exporter names one holder of several. Also, devices that several
        pods held, each reported with its own memory."""
        holders: dict[Device, dict[float, dict[Pod, float]]] = {}
        replicas: dict[Device, str] = {}
        for told, one in live:
            if told.pod is None:
                continue
            if not told.profile and told.node in self.replicated:
                replicas[told.device] = told.node
            for at, value in one.points:
                # By pod: scraped twice, with different labels, it is one pod all the same.
                holders.setdefault(told.device, {}).setdefault(at, {})[told.pod] = value
        found: set[Device] = set()
        split: set[Device] = set()
        several: set[str] = set()
        for device, moments in holders.items():
            together = [values.values() for values in moments.values() if len(values) > 1]
            if together:
                several.add(replicas.get(device, ""))
                # Where the exporter splits the memory by pods, the parts differ at some time.
                (found if all(len(set(values)) == 1 for values in together) else split).add(device)
        return found | {device for device, node in replicas.items() if node not in several}, split

    def _values(
        self, found: Iterable[Reading], part: HourAnswers
    ) -> Iterator[tuple[Pod, DeviceLabels, Record, int, float]]:
        """Each value of the series that are about a pod: the pod, what the labels say, the record of its workload, and
        the hour."""
        for told, one in found:
            if told.pod is not None:
                record = self._record(told.pod, part)
                for at, value in one.points:
                    yield told.pod, told, record, self.hour(at), value

    def _add_memory(
        self, used: Iterable[Reading], own: Iterable[Reading], crowded: set[Device], part: HourAnswers
    ) -> None:
        """What the agent reports (`own`) comes before all else."""
        known: set[tuple[Pod, int]] = set()
        for pod, _, record, hour, size in self._values(own, part):
            if 0 <= size <= MOST_MIB * MIB:
                self._most(record.memory, hour, size)
                known.add((pod, hour))
        for pod, told, record, hour, mib in self._values(used, part):
            if (pod, hour) in known or not 0 <= mib <= MOST_MIB:
                continue
            if told.device in crowded:
                record.shared += 1
            else:
                self._most(record.memory, hour, mib * MIB)

    def _add_activity(
        self,
        active: Iterable[Reading],
        sm: Iterable[Reading],
        crowded: set[Device],
        split: set[Device],
        part: HourAnswers,
    ) -> None:
        """The agent's hours (`sm`, for GPUs without MIG only) come first, because it tells pods apart. dcgm-exporter
        splits no activity by pods: where others hold the device too, each is reported with all of it, which is an
        estimate, and is marked as one."""
        known: set[tuple[Pod, int]] = set()
        for pod, _, record, hour, value in self._values(sm, part):
            self._most(record.activity, hour, min(1.0, max(0.0, value)))
            known.add((pod, hour))
        for told, one in active:
            whole = part_of_card(told.model, told.profile) if told.profile else 1.0
            if whole is None or told.device in crowded:
                continue
            for pod, _, record, hour, value in self._values([(told, one)], part):
                if (pod, hour) not in known:
                    self._most(record.activity, hour, min(1.0, max(0.0, value)) * whole)
                    record.of_device = record.of_device or told.device in split

    def _add_pods(self, found: Iterable[Reading], part: HourAnswers) -> None:
        """The pods at the end of each hour, with how many devices."""
        devices: dict[tuple[Pod, int], set[Device]] = {}
        for pod, told, record, hour, value in self._values(found, part):
            devices.setdefault((pod, hour), set()).add(told.device)
            gpu = self.gpus.get(told.device.gpu)
            if told.profile and gpu is not None:
                gpu.divided = max(gpu.divided, hour)
            if hour >= record.last:
                record.hold(told, hour)
                if told.resource:
                    record.resource, record.slices = told.resource, value
        for (pod, hour), those in devices.items():
            workload = self._workload(pod, part.owners)
            record = self.records[workload]
            record.pods[hour] += 1
            record.devices[hour] = max(record.devices[hour], len(those))
            record.declare(part.declared.get(pod), hour)
            for device in those:
                self._hold(device, hour, workload)

    def _pass(self, told: DeviceLabels, one: Series, part: HourAnswers) -> None:
        """A pod that comes and goes between the ends of two hours is in neither, yet existed."""
        if told.pod is None or not one.points:
            return
        record, hour = self._record(told.pod, part), self.hour(one.points[-1][0])
        record.declare(part.declared.get(told.pod), hour)
        if hour > record.last:
            record.hold(told, hour)

    def _hold(self, device: Device, hour: int, workload: Workload) -> None:
        gpu = self.gpus.get(device.gpu)
        if gpu is None:
            return
        if hour > gpu.held:
            gpu.held, gpu.holders = hour, Counter()
        if hour == gpu.held:
            gpu.holders[workload] += 1

    def _record(self, pod: Pod, part: HourAnswers) -> Record:
        workload = self._workload(pod, part.owners)
        if workload not in self.records:
            self.records[workload] = Record.of(self.hours)
        return self.records[workload]

    def _workload(self, pod: Pod, owners: PodOwners) -> Workload:
        if pod not in self._workloads:
            if pod not in owners.pods:
                self.unnamed.add(pod)
            self._workloads[pod] = Workload(pod[0], *owners.find(pod))
        return self._workloads[pod]

    @staticmethod
    def _most(values: "array[float]", hour: int, value: float) -> None:
        if isnan(values[hour]) or value > values[hour]:
            values[hour] = value


def part_of_card(model: str, profile: str) -> float | None:
    """The part of its card's compute that a profile has; None: the card or the profile is not known."""
    card = find_card(model)
    if card is None or not card.profiles:
        return None
    most = max(one.slices for one in card.profiles)
    return next((one.slices / most for one in card.profiles if one.name == profile), None)
