"""What Prometheus has about the use of GPUs: the peak of each hour, in stretches of at most a day, by workload.

From dcgm-exporter, with either of its label sets, from our agent, or from both; the names of workloads from
kube-state-metrics where it exists.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import isnan

from gpusharing.api.names import ANNOTATION_GPU_MEMORY
from gpusharing.cli.shell.troubles import Trouble
from gpusharing.kube.quantity import count
from gpusharing.planning.gpus.cards import Card, find_card
from gpusharing.planning.vocabulary.lengths import counted
from gpusharing.usage.prometheus.client import Prometheus, Series, side_by_side
from gpusharing.usage.prometheus.matchers import braced, nodes_of
from gpusharing.usage.prometheus.windows import DAY, MOST_POINTS, find_gaps
from gpusharing.usage.read.fold import Fold, Gpu, HourAnswers
from gpusharing.usage.read.queries import (
    ACTIVE,
    ANNOTATION,
    HOUR,
    OWN,
    USED,
    hourly,
    latest,
    most_series,
    ownership,
    usage_count,
)
from gpusharing.usage.read.series import MIB, Pod, PodOwners, devices_of, exported_label, pod_of, read_dcgm

MOST_SERIES = 100_000
"""At one time. Beyond that the user has to choose."""
SAMPLES = 10_000_000
"""The most samples that Prometheus has to load for one query: it refuses more than 50 million (--query.max-samples)."""
POINTS = 500_000
"""The most points in one answer: the more series, the shorter the stretch, so that memory stays bounded."""


@dataclass(frozen=True, slots=True)
class UsageQuery:
    """What is asked for."""

    start: float
    """Seconds since 1970."""
    end: float
    """Seconds since 1970."""
    selector: str = ""
    """Matchers, without braces."""
    nodes: frozenset[str] | None = None
    """Only GPUs of these; None: of all."""
    card: Card | None = None
    """Only GPUs of this model; None: of all."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What was found."""

    fold: Fold
    """The answers of all hours, folded."""
    slices: Mapping[tuple[str, str], float]
    """Replicas of a device, by node and resource, as the agents report them: the most."""
    replicas: Mapping[str, int]
    """Times that a GPU is offered, by node, where that is more than once."""
    missing: tuple[str, ...]
    """Why the answer is incomplete; empty: it is complete."""
    remarks: tuple[str, ...]
    """What a reader should know about the series."""
    simulated: frozenset[str] = frozenset()
    """Nodes whose agents say that their GPUs are SIMULATED."""


async def read_usage(prometheus: Prometheus, asked: UsageQuery) -> Usage:
    """Raises Trouble, also where there is nothing at all."""
    chosen = braced(asked.selector)
    where = f" for {chosen}" if chosen else ""
    series = await _series(prometheus, asked)
    missing = await find_gaps(
        prometheus,
        usage_count(asked.selector),
        asked.start,
        asked.end,
        nothing=f"{prometheus.place.where} has no GPU metrics in this window ({USED}, {OWN}){where}: does it scrape"
        " dcgm-exporter or the operator's agents? In the GPU Operator: dcgmExporter.serviceMonitor.enabled=true; in"
        " the operator's chart: monitoring.podMonitor.enabled=true",
        lost="what was used meanwhile is unknown",
        points=min(MOST_POINTS, SAMPLES / series),
    )
    hours = max(1, round((asked.end - asked.start) / HOUR))
    offered, infos, slices = await side_by_side(
        *(prometheus.instant(query, asked.end) for query in latest(asked.selector))
    )
    fold = Fold(asked.end, hours, asked.nodes, asked.card)
    know_gpus(fold, infos)
    remarks: list[str] = []
    replicas: dict[str, int] = {}
    simulated: frozenset[str] = frozenset()
    for start, end in _stretches(asked, hours, series):
        part = await _read_part(prometheus, asked, start, end, remarks)
        replicas |= _replicas(offered, part.used, fold)
        fold.replicated = frozenset(replicas)
        fold.add(part)
        simulated |= part.simulated
    missing += [f"Prometheus warns: {warning}" for warning in sorted(prometheus.warnings)]
    most = {(one.labels.get("node", ""), one.labels.get("resource", "")): one.value for one in slices}
    notes = (*_remarks(fold), *dict.fromkeys(remarks))
    return Usage(fold, most, replicas, tuple(missing), notes, simulated)


async def _series(prometheus: Prometheus, asked: UsageQuery) -> float:
    found = await prometheus.instant(most_series(asked.selector, round(asked.end - asked.start)), asked.end)
    most = max((1.0, *(one.value for one in found)))
    if most > MOST_SERIES:
        raise Trouble(
            f"{prometheus.place.where} has {most:,.0f} series of GPUs at one time, and this plugin reads at most"
            f" {MOST_SERIES:,} at once: choose some, such as by --selector 'cluster=\"east\"'"
        )
    return most


def _stretches(asked: UsageQuery, hours: int, series: float) -> list[tuple[float, float]]:
    """Whole hours, oldest first: from and to the ends of hours, the first one not included."""
    at_once = max(1, min(round(DAY / HOUR), int(POINTS / max(1.0, series))))
    begin = asked.end - hours * HOUR
    found = []
    for first in range(0, hours, at_once):
        last = min(hours, first + at_once)
        found.append((begin + first * HOUR, begin + last * HOUR))
    return found


async def _read_part(
    prometheus: Prometheus, asked: UsageQuery, start: float, end: float, remarks: list[str]
) -> HourAnswers:
    hours = max(1, round((asked.end - asked.start) / HOUR))
    whole = (asked.end - (hours - 1) * HOUR, asked.end)
    queries = hourly(asked.selector)
    found = await side_by_side(
        *(
            prometheus.between(query, start + HOUR, end, float(HOUR), whole=whole)
            for query in queries.values()
        ),
        *(prometheus.instant(query, end) for query in ownership(asked.selector, round(end - start))),
    )
    hours_of = dict(zip(queries, found, strict=False))
    pods, replicasets, jobs, annotated, exporters, infos, simulated = found[len(queries) :]
    _refuse_clusters([*hours_of["used"], *hours_of["own"]])
    return HourAnswers(
        **hours_of,
        owners=PodOwners.of(pods, replicasets, jobs),
        declared=_declared(annotated, remarks),
        exporters=frozenset(
            (exported_label(one, "namespace"), one.labels.get("pod", "")) for one in exporters
        ),
        devices=devices_of(infos),
        simulated=nodes_of(simulated),
    )


def _declared(annotated: Iterable[Series], remarks: list[str]) -> dict[Pod, int]:
    """What owners say that a pod needs, in bytes; unreadable values are reported."""
    found: dict[Pod, int] = {}
    for one in annotated:
        pod, size = pod_of(one.labels), one.labels.get(ANNOTATION, "")
        if pod is None:
            continue
        number = count(size)
        if number is not None and number >= MIB:
            found[pod] = number
        else:
            remarks.append(
                f"the annotation {ANNOTATION_GPU_MEMORY} of pod {'/'.join(pod)} is {size[:40]!r}, which is left out:"
                " write it like 15Gi"
            )
    return found


def _refuse_clusters(found: Iterable[Series]) -> None:
    """Raises Trouble: pools of several clusters cannot have one layout."""
    clusters = sorted({one.labels["cluster"] for one in found if one.labels.get("cluster")})
    if len(clusters) > 1:
        raise Trouble(
            f"Prometheus has GPUs of several clusters ({', '.join(clusters[:5])}). Choose one:"
            f" --selector 'cluster=\"{clusters[0]}\"'"
        )


def know_gpus(fold: Fold, infos: Iterable[Series]) -> None:
    """`infos`: for each GPU the time at which an agent reported it last."""
    for one in sorted(infos, key=lambda one: one.value):
        node, uuid = one.labels.get("node", ""), one.labels.get("uuid", "")
        product = one.labels.get("product", "")
        like = fold.card is None or find_card(product) is fold.card
        if uuid and (like or product) and (fold.nodes is None or node in fold.nodes):
            last = fold.hours - 1 - max(0, int((fold.end - one.value) // HOUR))
            (fold.gpus if like else fold.others)[uuid] = Gpu(node, product, last)


def _replicas(offered: Iterable[Series], used: Iterable[Series], fold: Fold) -> dict[str, int]:
    """Nodes that offer more GPUs than they have, and how often each."""
    gpus: dict[str, set[str]] = {}
    for one in used:
        told = read_dcgm(one, frozenset())
        gpus.setdefault(told.node, set()).add(told.device.gpu)
    for uuid, gpu in fold.gpus.items():
        gpus.setdefault(gpu.node, set()).add(uuid)
    found: dict[str, int] = {}
    for one in offered:
        node = exported_label(one, "node")
        times = int(one.value) // len(gpus[node]) if gpus.get(node) else 0
        if times > 1:
            found[node] = max(times, found.get(node, 0))
    return found


def _remarks(fold: Fold) -> list[str]:
    told: list[str] = []
    if fold.unnamed:
        told.append(
            f"the owner of {counted(len(fold.unnamed), 'pod')} is unknown (kube_pod_owner of"
            " kube-state-metrics): such workloads are named after their pods, without the generated suffix"
        )
    shared = sum(1 for record in fold.records.values() if record.shared)
    if shared:
        told.append(
            f"{counted(shared, 'workload')} shared GPUs of which dcgm-exporter reports only what all pods"
            " take together: how much each took is unknown for these hours. The operator's agent reports it"
            " (docs/how-to/usage.md)"
        )
    if fold.records and all(isnan(one) for record in fold.records.values() for one in record.activity):
        told.append(
            f"how busy the GPUs were is unknown ({ACTIVE} of dcgm-exporter is among its default metrics, and"
            " needs profiling rights): the answer is based on memory alone"
        )
    return told
