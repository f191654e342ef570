"""Read the use of GPUs from Prometheus: the peaks of each hour by workload, queried in stretches of at most a day.

The use is reported by dcgm-exporter, with either of its label sets, by our agent, or by both. The names of workloads
come from kube-state-metrics, if it is there.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from math import isnan

from gpusharing.planning.gpus.cards import find_card
from gpusharing.planning.vocabulary.lengths import counted
from kubectl_gpusharing.shell.troubles import Trouble
from kubectl_gpusharing.usage.prometheus.client import Prometheus, Series, side_by_side
from kubectl_gpusharing.usage.prometheus.matchers import braced, nodes_of
from kubectl_gpusharing.usage.prometheus.windows import DAY, MOST_POINTS, find_gaps
from kubectl_gpusharing.usage.read import queries
from kubectl_gpusharing.usage.read.fold import Fold, Gpu, HourAnswers
from kubectl_gpusharing.usage.read.queries import ACTIVE, ANNOTATION, HOUR, OWN, USED
from kubectl_gpusharing.usage.read.series import (
    Pod,
    devices_of,
    exported_label,
    pod_of,
    read_dcgm,
    read_owners,
)
from kubectl_gpusharing.usage.reckon.needs import declared_memory

MOST_SERIES = 100_000
"""The highest number of series at one time that is read. Above it the user has to select some of them."""
SAMPLES = 10_000_000
"""The highest number of samples that one query may make Prometheus load. It refuses more than 50 million
(--query.max-samples)."""
POINTS = 500_000
"""The highest number of points in one answer. The more series there are, the shorter the stretches, so that memory
stays bounded."""


async def read_usage(prometheus: Prometheus, fold: Fold, start: float, selector: str) -> list[str]:
    """Read the use of the GPUs that count for `fold`, an empty one, and add it there. The window is from `start`, in
    seconds since 1970, to the end of `fold`, whose whole hours are read, oldest first: in stretches of a day or, if
    that is shorter, of POINTS divided by the number of series hours, but at least one. `selector` has PromQL matchers,
    without braces. The remarks of `fold` are replaced. Return the reasons why the use is incomplete, which are gaps in
    the data and warnings of Prometheus; empty if it is complete. Raises Trouble if a query fails, or if Prometheus has
    no GPU metrics in the window, has more than MOST_SERIES series at one time, or has GPUs of several clusters."""
    chosen = braced(selector)
    where = f" for {chosen}" if chosen else ""
    counts = await prometheus.instant(queries.most_series(selector, round(fold.end - start)), fold.end)
    most_series_at_once = max((1.0, *(series.value for series in counts)))
    if most_series_at_once > MOST_SERIES:
        raise Trouble(
            f"{prometheus.place.where} has {most_series_at_once:,.0f} GPU series at one time, but this plugin reads at"
            f" most {MOST_SERIES:,} at once: select fewer, for example with --selector 'cluster=\"east\"'"
        )
    missing = await find_gaps(
        prometheus,
        queries.usage_count(selector),
        start,
        fold.end,
        nothing=f"{prometheus.place.where} has no GPU metrics in this window ({USED}, {OWN}){where}: does it scrape"
        " dcgm-exporter or the operator's agents? In the GPU Operator: dcgmExporter.serviceMonitor.enabled=true; in"
        " the operator's chart: monitoring.podMonitor.enabled=true",
        lost="usage during that time is unknown",
        points=min(MOST_POINTS, SAMPLES / most_series_at_once),
    )
    latest = (prometheus.instant(query, fold.end) for query in queries.latest(selector))
    allocatable, infos, slices = await side_by_side(*latest)
    add_gpus(fold, infos)
    fold.slices = {(series.node, series.labels.get("resource", "")): series.value for series in slices}
    remarks: list[str] = []
    at_once = max(1, min(round(DAY / HOUR), int(POINTS / most_series_at_once)))
    for hour in range(0, fold.hours, at_once):
        begin = fold.end - (fold.hours - hour) * HOUR
        stretch = (begin, min(fold.end, begin + at_once * HOUR))
        part = await _read_part(prometheus, fold, selector, stretch, remarks)
        fold.replicas |= _replicas(allocatable, part.used, fold)
        fold.add(part)
    missing += [f"Prometheus warns: {warning}" for warning in sorted(prometheus.warnings)]
    fold.remarks = (*_remarks(fold), *dict.fromkeys(remarks))
    return missing


async def _read_part(
    prometheus: Prometheus, fold: Fold, selector: str, stretch: tuple[float, float], remarks: list[str]
) -> HourAnswers:
    """Query the `stretch` from a start to an end and return its answers. `fold` has the window, and is not changed.
    Hourly values belong to the hours that end in the stretch after its start. Remarks about unreadable annotations are
    added to `remarks`. Raises Trouble if a query fails, or if the GPUs are in several clusters, as far as their series
    have the label `cluster`; series without it are accepted beside one cluster."""
    start, end = stretch
    whole = (fold.end - (fold.hours - 1) * HOUR, fold.end)
    hourly = queries.hourly(selector)
    answers = await side_by_side(
        *(
            prometheus.between(query, start + HOUR, end, float(HOUR), whole=whole)
            for query in hourly.values()
        ),
        *(prometheus.instant(query, end) for query in queries.ownership(selector, round(end - start))),
    )
    hours_of = dict(zip(hourly, answers, strict=False))
    pods, replicasets, jobs, annotated, exporters, infos, simulated = answers[len(hourly) :]
    labels = (series.labels for series in (*hours_of["used"], *hours_of["own"]))
    clusters = sorted({cluster for each in labels if (cluster := each.get("cluster"))})
    if len(clusters) > 1:  # their pools cannot have one layout
        raise Trouble(
            f"Prometheus has GPU data from several clusters ({', '.join(clusters[:5])}). Choose one:"
            f" --selector 'cluster=\"{clusters[0]}\"'"
        )
    return HourAnswers(
        **hours_of,
        owners=read_owners(pods, replicasets, jobs),
        declared=_declared(annotated, remarks),
        exporters=frozenset(
            (exported_label(one, "namespace"), one.labels.get("pod", "")) for one in exporters
        ),
        devices=devices_of(infos),
        simulated=nodes_of(simulated),
    )


def _declared(annotated: Iterable[Series], remarks: list[str]) -> dict[Pod, int]:
    """Return the bytes of GPU memory that the annotation of each pod declares for each of its devices
    (`declared_memory`). A value that is not valid is left out and adds a remark to `remarks`. Of several valid values
    of a pod the last one counts. Series that name no pod are ignored."""
    declared: dict[Pod, int] = {}
    for series in annotated:
        if (pod := pod_of(series.labels)) is None:
            continue
        size, wrong = declared_memory("/".join(pod), series.labels.get(ANNOTATION, ""))
        if wrong:
            remarks.append(wrong)
        else:
            declared[pod] = size
    return declared


def add_gpus(fold: Fold, infos: Iterable[Series]) -> None:
    """Add to `fold` the GPUs of the chosen nodes that agents reported: to `gpus` if they are of the chosen card or no
    card was chosen, else to `others`. What `fold` knows about a GPU already is replaced. The value of each series in
    `infos` is the time of the last report; the latest report of a GPU wins. GPUs without a UUID are ignored and, if a
    card was chosen, GPUs without a product."""
    for series in sorted(infos, key=lambda series: series.value):
        node, uuid, product = series.node, series.labels.get("uuid", ""), series.labels.get("product", "")
        like = fold.card is None or find_card(product) is fold.card
        if uuid and (like or product) and (fold.nodes is None or node in fold.nodes):
            last = fold.hours - 1 - max(0, int((fold.end - series.value) // HOUR))
            (fold.gpus if like else fold.others)[uuid] = Gpu(node, product, last)


def _replicas(allocatable: Iterable[Series], used: Iterable[Series], fold: Fold) -> dict[str, int]:
    """Return, by node, how many times each GPU is advertised: the number in `allocatable` divided by the known GPUs of
    the node, rounded down, or the highest result if a node has several such numbers. Only nodes that advertise each
    GPU more than once are included. GPUs are known from `used` and `fold`."""
    known = {(gpu.node, uuid) for uuid, gpu in fold.gpus.items()}
    known |= {(labels.node, labels.device.gpu) for labels in (read_dcgm(one, frozenset()) for one in used)}
    gpus = Counter(node for node, _ in known)
    replicas: dict[str, int] = {}
    for series in allocatable:
        node = exported_label(series, "node")
        times = int(series.value) // gpus[node] if gpus[node] else 0
        if times > 1:
            replicas[node] = max(times, replicas.get(node, 0))
    return replicas


def _remarks(fold: Fold) -> Iterator[str]:
    """Yield remarks about what the series do not show: the owners of some pods, the use of each pod on shared GPUs, or
    any activity at all. Nothing is yielded if nothing of that is missing."""
    if fold.unnamed:
        yield (
            f"the owner of {counted(len(fold.unnamed), 'pod')} is unknown (kube_pod_owner of"
            " kube-state-metrics): such workloads are named after their pods, without the generated suffix"
        )
    shared = sum(1 for record in fold.records.values() if record.shared)
    if shared:
        yield (
            f"{counted(shared, 'workload')} shared GPUs for which dcgm-exporter reports only the sum of"
            " all pods, so the usage of each is unknown for these hours. The operator's agent reports it"
            " (docs/how-to/usage.md)"
        )
    if fold.records and all(isnan(value) for record in fold.records.values() for value in record.activity):
        yield (
            f"how busy the GPUs were is unknown (dcgm-exporter reports {ACTIVE} by default, but needs profiling"
            " rights for it): the answer is based on memory alone"
        )
