"""What did each workload use, by series that are read hour by hour?

`Fold` adds them to one record for each workload, one stretch of time after another, so that the size depends only on
the number of hours. Labels are parsed for every exporter and scrape configuration.
"""

import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from math import isnan, nan
from typing import TypeAlias, TypeVar

from gpusharing.planning.gpus.cards import Card, extent, find_card
from kubectl_gpusharing.usage.needs import Workload, declared_memory
from kubectl_gpusharing.usage.prometheus import Series, nodes_of
from kubectl_gpusharing.usage.queries import ANNOTATION, HOUR
from kubectl_gpusharing.usage.windows import Answers

Key = TypeVar("Key")
Pod: TypeAlias = tuple[str, str]
"""The namespace and name of a pod, or of another namespaced object."""
Device: TypeAlias = tuple[str, str]
"""The UUID of a GPU, and the id of a GPU instance on it; the id is empty for the whole GPU."""
MIB = 1 << 20
EXPORTER = "dcgm-exporter"
"""A part of the names of dcgm-exporter's pods. They are recognized by it if no `up` series shows which they are."""


@dataclass(frozen=True, slots=True)
class DeviceLabels:
    """The parsed labels of a series about a device; empty where the labels name none."""

    device: Device
    pod: Pod | None
    profile: str = ""
    node: str = ""
    model: str = ""
    """The product name of the card, which the agent does not report."""
    resource: str = ""
    """The resource name of the device, which only our agent reports."""

    @property
    def gpu(self) -> str:
        return self.device[0]


def read_dcgm(series: Series, exporters: frozenset[Pod]) -> DeviceLabels:
    """Parse the labels of a series of dcgm-exporter, whose own pods, the `exporters`, hold no GPU."""
    labels = series.labels
    device = labels.get("UUID") or labels.get("uuid", ""), labels.get("GPU_I_ID", "")
    node = labels.get("node") or labels.get("Hostname") or labels.get("hostname", "")
    pod = series.pod
    if "pod_name" in labels:
        pod = (labels.get("pod_namespace", ""), labels["pod_name"])
    if pod is not None and (pod in exporters or (not exporters and EXPORTER in pod[1])):
        pod = None
    profile = labels.get("GPU_I_PROFILE", "").removeprefix("MIG ")
    return DeviceLabels(device, pod, profile, node, labels.get("modelName", ""))


def devices_of(infos: Iterable[Series]) -> dict[str, Device]:
    """Return the devices in the series of `gpusharing_device_info`, by the UUID in the agent's series."""
    return {
        labels.get("uuid", ""): (labels.get("gpu_uuid") or labels.get("uuid", ""), labels.get("instance_id", ""))
        for labels in (series.labels for series in infos)
    }


def read_agent(series: Series, devices: Mapping[str, Device]) -> DeviceLabels:
    """Parse the labels of a series of the agent. A UUID that is not in `devices` is taken for that of a whole GPU."""
    uuid, profile, resource = (series.label(label) for label in ("uuid", "profile", "resource"))
    device = devices.get(uuid, (uuid, ""))
    return DeviceLabels(device, series.pod, profile, series.node, resource=resource)


RECURS = "cronjob"
"""The kind of workloads that may run again although they have no pods now."""
UNNAMED = "pods"
"""The kind of a workload that is known only by the names of its pods."""
# Letters and digits of generated names (apimachinery v0.36.3 pkg/util/rand/rand.go, alphanums).
_HASH = "[bcdfghjklmnpqrstvwxz2456789]"
_SUFFIX = re.compile(rf"(?:(?:-{_HASH}{{5,10}})?-{_HASH}{{5}}|-[0-9]+)\Z")


def read_owners(
    pods: Iterable[Series], replicasets: Iterable[Series], jobs: Iterable[Series]
) -> dict[Pod, tuple[str, str]]:
    """Return the kind and name of each pod's workload, which is above its ReplicaSet or Job, if it has one."""
    above = {
        (kind, series.exported("namespace"), series.exported(label)): _owner(series)
        for kind, label, answer in (("ReplicaSet", "replicaset", replicasets), ("Job", "job_name", jobs))
        for series in answer
    }
    owners: dict[Pod, tuple[str, str]] = {}
    for series in pods:
        if (pod := series.pod) is not None:
            kind, name = _owner(series)
            direct = (kind, name) if kind else ("pod", pod[1])
            owner = above.get((kind, pod[0], name), direct)
            owners[pod] = owner if owner[0] else direct
    return owners


def owner_of(pod: Pod, owners: Mapping[Pod, tuple[str, str]]) -> tuple[str, str]:
    """Return the kind, in lower case, and the name of a pod's workload."""
    kind, name = owners.get(pod) or (UNNAMED, _SUFFIX.sub("", pod[1], count=1))
    return kind.lower(), name


def _owner(series: Series) -> tuple[str, str]:
    # Without an owner, kube-state-metrics exports "", and before v2.8.0 <none> (its internal/store/pod.go).
    kind, name = series.label("owner_kind"), series.label("owner_name")
    return ("", "") if kind in ("", "<none>") else (kind, name)


MOST_MIB = 1 << 20
"""A memory size in MiB that no GPU exceeds. DCGM reports an unknown value as a number near 2^31 or 2^63 (NVIDIA/DCGM
dcgmlib/dcgm_structs.h at 72fa3fe, DCGM_INT32_BLANK and DCGM_INT64_BLANK)."""
Reading = tuple[DeviceLabels, Series]


@dataclass(slots=True)
class Record:
    """The history of one workload, in arrays with one element for each hour, oldest first; nan stands for unknown."""

    memory: "array[float]"
    """The memory in use, in bytes."""
    activity: "array[float]"
    """The highest activity of any pod, as a part of the whole card."""
    pods: "array[int]"
    devices: "array[int]"
    last: int = -1
    """The hour in which a pod was last seen; -1 if none was."""
    held: DeviceLabels = field(default=DeviceLabels(("", ""), None))
    """The device that the workload held last; empty if none."""
    resource: str = ""
    """The resource name of the device in `held`; empty if the agent does not report it."""
    slices: float = 0.0
    """How many replicas of the device in `held` a pod holds, as the agent reports it."""
    of_device: bool = False
    """Whether some of the activity is that of a whole device that other pods held too."""
    shared: int = 0
    """How many hourly values were left out, because other pods held the GPU too and the share is unknown."""
    declared: int | None = None
    """The most bytes that any pod declared in the hour `declared_at`; None if none did."""
    declared_at: int = -1
    """The latest hour in which a pod was seen; -1 if none was."""

    @classmethod
    def of(cls, hours: int) -> "Record":
        none = array("I", [0]) * hours
        return cls(array("d", [nan]) * hours, array("f", [nan]) * hours, none, none[:])

    def declare(self, declared: int | None, hour: int) -> None:
        """Record the memory declared by a pod; a later hour counts more, because owners change declarations."""
        if hour > self.declared_at:
            self.declared_at, self.declared = hour, declared
        elif hour == self.declared_at and declared is not None:
            self.declared = max(declared, self.declared or 0)


@dataclass(slots=True)
class Gpu:
    node: str
    model: str
    last: int
    """The hour in which the GPU was last seen; -1 if never."""
    divided: int = -1
    """The hour in which the GPU was last seen with MIG devices; -1 if never."""
    holders: Counter[Workload] = field(default_factory=Counter)
    """How many pods of each workload held the GPU when the most did in the hour `held_at`."""
    held_at: int = -1
    """The hour in which a pod last held the GPU; -1 if none did."""


Span = tuple[float, float]
"""When a pod was first and last seen on a device in an hour, in seconds since 1970."""


def find_peak(spans: Iterable[tuple[Key, Span]]) -> set[Key]:
    """Return the keys that were there at the time at which the most were; a key may have several spans."""
    turns = sorted(turn for key, (first, last) in spans for turn in ((first, False, key), (last, True, key)))
    there, peak = Counter[Key](), set[Key]()
    for _, over, key in turns:  # at the same time, those that begin come first
        there[key] += -1 if over else 1
        if not there[key]:
            del there[key]
        if len(there) > len(peak):
            peak = set(there)
    return peak


@dataclass(slots=True)
class Fold:
    """The result of all stretches that have been added, and the filters that apply to them.

    Where several pods hold a GPU, dcgm-exporter does not report the use of each: it reports all of them, or only one,
    with the use of the whole GPU. Such hours are left out, unless the agent reports the pod's own use.
    """

    end: float
    """The end of the window, in seconds since 1970."""
    hours: int
    nodes: frozenset[str] | None = None
    card: Card | None = None
    """The model of the GPUs that count; None for all. A workload may also have pods on GPUs of other models."""
    replicas: dict[str, int] = field(default_factory=dict)
    """How many times each GPU is advertised, by node, where that is more than once."""
    slices: Mapping[tuple[str, str], float] = field(default_factory=dict)
    """The most replicas of a device, by node and resource, as the agents report it."""
    remarks: tuple[str, ...] = ()
    simulated: frozenset[str] = frozenset()
    held: "array[int]" = field(init=False)
    """The most GPUs that pods held at one time, by the hour."""
    records: dict[Workload, Record] = field(default_factory=dict)
    gpus: dict[str, Gpu] = field(default_factory=dict)
    others: dict[str, Gpu] = field(default_factory=dict)
    """The GPUs of `nodes` that are of another model than `card`, by UUID."""
    beyond: dict[str, int] = field(default_factory=dict)
    """The hour in which each node that has GPUs but is not in `nodes` was last seen."""
    unnamed: set[Pod] = field(default_factory=set)
    wrong: dict[str, None] = field(default_factory=dict)
    """Clauses about annotations that declare no valid size of memory."""
    _owners: Mapping[Pod, tuple[str, str]] = field(default_factory=dict)
    _declared: dict[Pod, int] = field(default_factory=dict)
    _workloads: dict[Pod, Workload] = field(default_factory=dict)
    """A cache for the current stretch, because a pod has many series."""

    def __post_init__(self) -> None:
        self.held = array("I", [0]) * self.hours

    def add(self, part: Answers) -> None:
        """Add the answers to `queries.hourly` and `queries.ownership` for the next stretch of time."""
        self._owners, self._declared = read_owners(part["pods"], part["replicasets"], part["jobs"]), {}
        self._workloads.clear()
        self.simulated |= nodes_of(part["simulated"])
        for series in part["annotated"]:
            if (pod := series.pod) is not None:
                size, wrong = declared_memory("/".join(pod), series.label(ANNOTATION))
                if wrong:
                    self.wrong[wrong] = None
                else:
                    self._declared[pod] = size
        read_own = partial(read_agent, devices=devices_of(part["devices"]))
        targets = ((one.exported("namespace"), one.label("pod")) for one in part["exporters"])
        read_exporter = partial(read_dcgm, exporters=frozenset(targets))
        scraped = [(read_exporter(series), series) for series in part["used"]]
        used = [(labels, series) for labels, series in scraped if self._is_ours(labels)]
        for labels, series in scraped:
            if labels.model and self._is_there(labels) and not self._is_ours(labels):
                self._see(self.others, labels, series)
        for labels, series in [*scraped, *((read_own(series), series) for series in part["slices"])]:
            if labels.node and self.nodes is not None and labels.node not in self.nodes and series.points:
                last = self.hour(series.points[-1][0])
                self.beyond[labels.node] = max(last, self.beyond.get(labels.node, -1))
        # A series without a model counts only for GPUs that an earlier stretch has seen, so `live` comes first.
        live = self._ours(part["live"], read_exporter)
        for labels, series in used:
            self._see(self.gpus, labels, series)
        active = self._ours(part["active"], read_exporter)
        own, sm = self._ours(part["own"], read_own), self._ours(part["sm"], read_own)
        crowded, split = self._crowded(live, used)
        self._add_memory(used, own, crowded)
        self._add_activity(active, sm, crowded, split)
        seen = [*live, *self._ours(part["slices"], read_own)]

        def read(series: Series) -> DeviceLabels:  # only the agent's have a resource
            return (read_own if "resource" in series.labels else read_exporter)(series)

        self._add_holders(seen)
        self._add_pods(self._find_spans(seen, self._ours(part["first"], read), self._ours(part["last"], read)))
        for _, series in self._ours(part["peaks"], read_own):
            for at, value in series.points:
                if value > 0:
                    hour = self.hour(at)
                    self.held[hour] = max(1, self.held[hour])
        for labels, series in (*used, *own):  # a pod may have come and gone between the ends of two hours
            if labels.pod is not None and series.points:
                record, hour = self._record(labels.pod), self.hour(series.points[-1][0])
                record.declare(self._declared.get(labels.pod), hour)
                if hour > record.last:
                    record.last, record.held = hour, labels

    def hour(self, at: float) -> int:
        return self.hours - 1 - round((self.end - at) / HOUR)

    def _end_of(self, hour: int) -> float:
        return self.end - (self.hours - 1 - hour) * HOUR

    def _is_there(self, labels: DeviceLabels) -> bool:
        return bool(labels.gpu) and (self.nodes is None or labels.node in self.nodes)

    def _is_ours(self, labels: DeviceLabels) -> bool:
        if not self._is_there(labels):
            return False
        if self.card is None:
            return True
        gpu = self.gpus.get(labels.gpu)
        return find_card(labels.model or (gpu.model if gpu else "")) is self.card

    def _ours(self, answer: Iterable[Series], read: Callable[[Series], DeviceLabels]) -> list[Reading]:
        return [(labels, series) for series in answer if self._is_ours(labels := read(series))]

    def _see(self, gpus: dict[str, Gpu], labels: DeviceLabels, series: Series) -> None:
        last = self.hour(series.points[-1][0]) if series.points else -1
        gpu = gpus.get(labels.gpu)
        if gpu is None:
            gpu = gpus[labels.gpu] = Gpu(labels.node, labels.model, last)
        elif last >= gpu.last:
            gpu.last, gpu.node, gpu.model = last, labels.node or gpu.node, labels.model or gpu.model
        if labels.profile:
            gpu.divided = max(gpu.divided, last)

    def _crowded(self, live: Iterable[Reading], used: Iterable[Reading]) -> tuple[set[Device], set[Device]]:
        """Return the devices of several pods for which the use of each pod is unknown, and those for which it is known.

        It is unknown if several pods were always reported with the same value, or on a node that advertises more
        GPUs than it has, where dcgm-exporter never reported several pods on one: it names only one holder.
        """
        holders: dict[Device, dict[float, dict[Pod, float]]] = {}
        replicas = {
            labels.device: labels.node
            for labels, _ in used
            if labels.pod is not None and not labels.profile and labels.node in self.replicas
        }
        for labels, series in live:
            if labels.pod is None:
                continue
            for at, value in series.points:
                # Keyed by pod, because a pod that is scraped twice with different labels is still one pod.
                holders.setdefault(labels.device, {}).setdefault(at, {})[labels.pod] = value
        crowded: set[Device] = set()
        split: set[Device] = set()
        several: set[str] = set()
        for device, moments in holders.items():
            together = [values.values() for values in moments.values() if len(values) > 1]
            if together:
                several.add(replicas.get(device, ""))
                # Where the exporter splits the memory by pods, the parts differ at some time.
                (crowded if all(len(set(values)) == 1 for values in together) else split).add(device)
        return crowded | {device for device, node in replicas.items() if node not in several}, split

    def _values(self, readings: Iterable[Reading]) -> Iterator[tuple[Pod, DeviceLabels, Record, int, float]]:
        for labels, series in readings:
            if labels.pod is not None:
                record = self._record(labels.pod)
                for at, value in series.points:
                    yield labels.pod, labels, record, self.hour(at), value

    def _add_memory(self, used: Iterable[Reading], own: Iterable[Reading], crowded: set[Device]) -> None:
        known: set[tuple[Pod, int]] = set()
        for pod, _, record, hour, size in self._values(own):
            if 0 <= size <= MOST_MIB * MIB:
                self._most(record.memory, hour, size)
                known.add((pod, hour))
        for pod, labels, record, hour, mib in self._values(used):
            if (pod, hour) in known or not 0 <= mib <= MOST_MIB:
                continue
            if labels.device in crowded:
                record.shared += 1
            else:
                self._most(record.memory, hour, mib * MIB)

    def _add_activity(
        self, active: Iterable[Reading], sm: Iterable[Reading], crowded: set[Device], split: set[Device]
    ) -> None:
        known: set[tuple[Pod, int]] = set()
        for pod, _, record, hour, value in self._values(sm):
            self._most(record.activity, hour, min(1.0, max(0.0, value)))
            known.add((pod, hour))
        for labels, series in active:
            portion = part_of_card(find_card(labels.model), labels.profile)
            if portion is None or labels.device in crowded:
                continue
            whole = float(portion[1])
            for pod, _, record, hour, value in self._values([(labels, series)]):
                if (pod, hour) not in known:
                    self._most(record.activity, hour, min(1.0, max(0.0, value)) * whole)
                    record.of_device = record.of_device or labels.device in split

    def _add_holders(self, readings: Iterable[Reading]) -> None:
        for _, labels, record, hour, value in self._values(readings):
            gpu = self.gpus.get(labels.gpu)
            if labels.profile and gpu is not None:
                gpu.divided = max(gpu.divided, hour)
            if hour >= record.last:
                record.last, record.held = hour, labels
                if labels.resource:
                    record.resource, record.slices = labels.resource, value

    def _find_spans(
        self, seen: Iterable[Reading], first: Iterable[Reading], last: Iterable[Reading]
    ) -> dict[int, dict[tuple[Pod, Device], Span]]:
        """Return by hour when each pod was on each device; `seen` are samples at the ends of hours."""
        spans: dict[int, dict[tuple[Pod, Device], Span]] = {}
        for pod, labels, _, hour, _ in self._values(seen):
            spans.setdefault(hour, {})[pod, labels.device] = self._end_of(hour), self._end_of(hour)
        for pod, labels, _, hour, at in self._values(last):
            if at >= self._end_of(hour) - HOUR:  # a query looks back farther
                there, key = spans.setdefault(hour, {}), (pod, labels.device)
                begin, end = there.get(key, (at, at))
                there[key] = min(begin, at), max(end, at)
        for pod, labels, _, hour, at in self._values(first):
            begin = max(at, self._end_of(hour) - HOUR)
            if (span := spans.get(hour, {}).get((pod, labels.device))) is not None:
                spans[hour][pod, labels.device] = min(begin, span[0]), span[1]
        return spans

    def _add_pods(self, spans: Mapping[int, Mapping[tuple[Pod, Device], Span]]) -> None:
        for hour, there in sorted(spans.items()):
            pods: dict[Workload, list[tuple[Pod, Span]]] = {}
            devices: dict[Pod, list[tuple[Device, Span]]] = {}
            holders: dict[str, list[tuple[Pod, Span]]] = {}
            for (pod, device), span in there.items():
                pods.setdefault(self._workload(pod), []).append((pod, span))
                devices.setdefault(pod, []).append((device, span))
                holders.setdefault(device[0], []).append((pod, span))
            for rows in pods.values():
                record = self._record(rows[0][0])
                record.pods[hour] = len(find_peak(rows))
                for pod in {pod for pod, _ in rows}:
                    record.devices[hour] = max(record.devices[hour], len(find_peak(devices[pod])))
                    record.declare(self._declared.get(pod), hour)
            for uuid, rows in holders.items():
                gpu = self.gpus.get(uuid)
                if gpu is not None and hour >= gpu.held_at:
                    gpu.held_at, gpu.holders = hour, Counter(map(self._workload, find_peak(rows)))
            held = find_peak((uuid, span) for uuid, rows in holders.items() if uuid in self.gpus for _, span in rows)
            self.held[hour] = len(held)

    def _record(self, pod: Pod) -> Record:
        workload = self._workload(pod)
        if workload not in self.records:
            self.records[workload] = Record.of(self.hours)
        return self.records[workload]

    def _workload(self, pod: Pod) -> Workload:
        if pod not in self._workloads:
            if pod not in self._owners:
                self.unnamed.add(pod)
            self._workloads[pod] = Workload(pod[0], *owner_of(pod, self._owners))
        return self._workloads[pod]

    @staticmethod
    def _most(values: "array[float]", hour: int, value: float) -> None:
        if isnan(values[hour]) or value > values[hour]:
            values[hour] = value


def part_of_card(card: Card | None, profile: str) -> tuple[Fraction | None, Fraction] | None:
    """Return which parts of a card's memory and compute a device with this MIG profile, or a whole GPU, has.

    The part of the memory is None if the card shares the CPU's, and the result if the card or the profile is unknown.
    """
    if not profile:
        return Fraction(1), Fraction(1)
    match = next((each for each in card.profiles if each.name == profile), None) if card else None
    if card is None or match is None:
        return None
    whole, _ = extent(card.profiles)
    memory = Fraction(match.memory_gb, card.memory_gb) if card.memory_gb else None
    return memory, Fraction(match.slices, whole)
