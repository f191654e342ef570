"""Read the use of GPUs from Prometheus: the peaks of each hour by workload, queried in stretches of at most a day.

The use is reported by dcgm-exporter, with either of its label sets, by our agent, or by both. The names of workloads come from kube-state-metrics, if it is there.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from math import isnan

from gpusharing.planning.gpus.cards import find_card
from gpusharing.planning.vocabulary.lengths import counted
from kubectl_gpusharing.shell.troubles import Trouble
from kubectl_gpusharing.usage.prometheus.client import Prometheus, Series, side_by_side
from kubectl_gpusharing.usage.prometheus.matchers import braced
from kubectl_gpusharing.usage.prometheus.windows import DAY, MOST_POINTS, Answers, find_gaps
from kubectl_gpusharing.usage.read import queries
from kubectl_gpusharing.usage.read.fold import Fold, Gpu
from kubectl_gpusharing.usage.read.queries import ACTIVE, HOUR, OWN, USED
from kubectl_gpusharing.usage.read.series import (
    exported_label,
    read_dcgm,
)

MOST_SERIES = 100_000
"""The highest number of series at one time that is read."""
SAMPLES = 10_000_000
"""The highest number of samples that one query may make Prometheus load. It refuses more than 50 million (--query.max-samples)."""
POINTS = 500_000
"""The highest number of points in one answer: the more series there are, the shorter the stretches, so that memory stays bounded."""


async def read_usage(prometheus: Prometheus, fold: Fold, start: float, selector: str) -> list[str]:
    """Read the use of the GPUs that count for `fold`, an empty one, from `start` to its end, and add it there. Return why it is incomplete."""
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
    at_once = max(1, min(round(DAY / HOUR), int(POINTS / most_series_at_once)))
    hourly, whole = queries.hourly(selector), (fold.end - (fold.hours - 1) * HOUR, fold.end)
    for hour in range(0, fold.hours, at_once):
        begin = fold.end - (fold.hours - hour) * HOUR
        end = min(fold.end, begin + at_once * HOUR)
        once = queries.ownership(selector, round(end - begin))
        answers = await side_by_side(
            *(
                prometheus.between(each, begin + HOUR, end, float(HOUR), whole=whole)
                for each in hourly.values()
            ),
            *(prometheus.instant(each, end) for each in once.values()),
        )
        part = Answers(list, zip((*hourly, *once), answers, strict=True))
        labels = (series.labels for series in (*part["used"], *part["own"]))
        clusters = sorted({cluster for each in labels if (cluster := each.get("cluster"))})
        if len(clusters) > 1:  # their pools cannot have one layout
            raise Trouble(
                f"Prometheus has GPU data from several clusters ({', '.join(clusters[:5])}). Choose one:"
                f" --selector 'cluster=\"{clusters[0]}\"'"
            )
        fold.replicas |= _replicas(allocatable, part["used"], fold)
        fold.add(part)
    missing += [f"Prometheus warns: {warning}" for warning in sorted(prometheus.warnings)]
    fold.remarks = (*_remarks(fold), *fold.wrong)
    return missing


def add_gpus(fold: Fold, infos: Iterable[Series]) -> None:
    """Add to `fold` the GPUs of the chosen nodes that agents reported, at the time that each series has as its value."""
    for series in sorted(infos, key=lambda series: series.value):
        node, uuid, product = series.node, series.labels.get("uuid", ""), series.labels.get("product", "")
        like = fold.card is None or find_card(product) is fold.card
        if uuid and (like or product) and (fold.nodes is None or node in fold.nodes):
            last = fold.hours - 1 - max(0, int((fold.end - series.value) // HOUR))
            (fold.gpus if like else fold.others)[uuid] = Gpu(node, product, last)


def _replicas(allocatable: Iterable[Series], used: Iterable[Series], fold: Fold) -> dict[str, int]:
    """Return, by node, how many times each GPU is advertised, where that is more than once."""
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
