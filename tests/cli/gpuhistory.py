"""What dcgm-exporter, our agents and kube-state-metrics told a Prometheus in the past, SIMULATED, as OpenMetrics.
Labels of dcgm-exporter are those that hack/sim/dcgmexporter.py gives it, which says from where."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from math import pi, sin

from hack.sim.dcgmexporter import USED, DCGMValues, SetUp, samples
from tests.cli.history import daily_texts, text_of

EVERY = 240
"""Seconds between two scrapes: fewer than those for which Prometheus goes on telling a value."""
GIB = 1024
"""In MiB."""
Use = Callable[[float], tuple[float, float]]
"""Memory in MiB and activity of one, by the hour since the beginning."""


def steady(mib: float, active: float) -> Use:
    """The same all day long, but for a little; the highest is that."""
    return lambda hour: (mib * (1 - 0.1 * abs(sin(hour * 1.7))), active)


def daily(low: float, high: float, active: float) -> Use:
    return lambda hour: (low + (high - low) * abs(sin(pi * hour / 24)), active * abs(sin(pi * hour / 24)))


def flat(mib: float, active: float) -> Use:
    return lambda hour: (mib, active)


@dataclass(frozen=True)
class PodRun:
    pod: tuple[str, str]
    use: Use
    hours: tuple[float, float] = (0, 1e9)
    owner: tuple[str, str] = ("", "")
    """Kind and name; of a Deployment too. Empty: nobody tells."""
    memory: str = ""


@dataclass(frozen=True)
class Card:
    """A GPU, or a MIG device of one, and who holds it."""

    uuid: str
    node: str
    runs: Sequence[PodRun] = ()
    profile: str = ""
    instance: str = ""
    model: str = "NVIDIA H100 80GB HBM3"
    total: bool = False
    """Several pods hold it, and the exporter tells each what all of them take."""


@dataclass(frozen=True)
class Fleet:
    """Cards that one dcgm-exporter for each node tells of."""

    begin: datetime
    hours: float
    cards: Sequence[Card]
    setup: SetUp = field(default_factory=SetUp)
    labels: Mapping[str, str] = field(default_factory=dict)
    unseen: Sequence[tuple[float, float]] = ()
    """Hours from and to, in which Prometheus did not scrape."""
    agent: bool = False
    """Our agent is there too, and tells the pods of shared GPUs apart."""
    exporter: bool = True
    owners: bool = True
    named: bool = True
    activity: bool = True


def openmetrics(fleets: Sequence[Fleet]) -> list[str]:
    told = (sample for fleet in fleets for sample in _samples(fleet))
    return daily_texts((name, f"{name}{text_of(labels)} {value:.6g}", at) for name, labels, value, at in told)


Sample = tuple[str, dict[str, str], float, int]


def _samples(fleet: Fleet) -> Iterator[Sample]:
    start = int(fleet.begin.timestamp())
    for card in fleet.cards:
        yield from _scraped(fleet, card, start)
    for node in sorted({card.node for card in fleet.cards}):
        target = {"namespace": "gpu-operator", "pod": "dcgm-exporter-x", "job": "dcgm", "instance": node}
        for at in range(0, int(fleet.hours * 3600) + 1, EVERY):
            yield "up", {**target, **fleet.labels}, 1, start + at


def _scraped(fleet: Fleet, card: Card, start: int) -> Iterator[Sample]:
    for at in range(0, int(fleet.hours * 3600) + 1, EVERY):
        hour = at / 3600
        if any(first <= hour < last for first, last in fleet.unseen):
            continue
        there = [run for run in card.runs if run.hours[0] <= hour < run.hours[1]]
        if fleet.exporter:
            yield from _exported(fleet, card, there, hour, start + at)
        if fleet.agent:
            yield from _told(fleet, card, there, hour, start + at)
        # Slower, as nothing changes.
        if fleet.owners and at % 1200 == 0:
            for run in there:
                yield from _owned(fleet, run, start + at)


def _exported(fleet: Fleet, card: Card, there: Sequence[PodRun], hour: float, at: int) -> Iterator[Sample]:
    index = int(card.uuid.rpartition("-")[2])
    uses = [run.use(hour) for run in there] or [(0.0, 0.0)]
    if card.total:
        uses = [(sum(mib for mib, _ in uses), min(1.0, sum(active for _, active in uses)))] * len(uses)
    pods: list[tuple[str, str] | None] = [run.pod for run in there] or [None]
    for pod, (mib, active) in zip(pods, uses, strict=True):
        device = DCGMValues(index, card.uuid, active, round(mib), card.profile, card.instance, pod)
        target = {"job": "dcgm", "instance": card.node}
        for name, labels, value in samples([device], fleet.setup):
            if name == USED or fleet.activity:
                named = {**labels, "modelName": card.model, fleet.setup.hostname: card.node if fleet.named else ""}
                yield name, {**named, **target, **fleet.labels}, value, at


def _told(fleet: Fleet, card: Card, there: Sequence[PodRun], hour: float, at: int) -> Iterator[Sample]:
    index, uuid = (card.uuid.rpartition("-")[2], f"MIG-{card.uuid}-{card.instance}" if card.profile else card.uuid)
    where = {"node": card.node, "gpu": index, "job": "agent", **fleet.labels}
    resource = f"nvidia.com/mig-{card.profile}" if card.profile else "nvidia.com/gpu"
    if index == "0":
        node = {key: told for key, told in where.items() if key != "gpu"}
        yield "gpusharing_agent_simulated", node, 1, at
    yield "gpusharing_agent_gpu_info", {**where, "uuid": card.uuid, "product": card.model}, 1, at
    device = {**where, "uuid": uuid, "profile": card.profile}
    info = {"gpu_uuid": card.uuid, "instance_id": card.instance}
    yield "gpusharing_device_info", {**device, **info}, 1, at
    yield "gpusharing_device_slices", {**device, "resource": resource}, max(1, len(card.runs)), at
    for run in there:
        mib, active = run.use(hour)
        pod = dict(zip(("namespace", "pod"), run.pod, strict=True))
        yield "gpusharing_pod_slices", {**device, **pod, "resource": resource}, 1, at
        yield "gpusharing_pod_memory_used_bytes", {**device, **pod}, mib * 2**20, at
        if not card.profile:
            yield "gpusharing_pod_sm_ratio", {**device, **pod}, active, at


def _owned(fleet: Fleet, run: PodRun, at: int) -> Iterator[Sample]:
    (namespace, name), (kind, owner) = run.pod, run.owner
    if run.memory:
        told = {"namespace": namespace, "pod": name, "annotation_gpusharing_dev_gpu_memory": run.memory}
        yield "kube_pod_annotations", {**told, **fleet.labels}, 1, at
    if not kind:
        return
    above = {"Deployment": "ReplicaSet", "CronJob": "Job"}.get(kind, kind)
    between = owner if above == kind else f"{owner}-5d8f7"
    labels = {"namespace": namespace, "pod": name, "owner_kind": above, "owner_name": between}
    yield "kube_pod_owner", {**labels, **fleet.labels}, 1, at
    if above != kind:
        metric, label = {"ReplicaSet": ("kube_replicaset_owner", "replicaset"), "Job": ("kube_job_owner", "job_name")}[
            above
        ]
        owned = {"namespace": namespace, label: between, "owner_kind": kind, "owner_name": owner}
        yield metric, {**owned, **fleet.labels}, 1, at
