"""What did the workloads of a pool use?

The use is read from Prometheus as the peaks of each hour, in stretches of at most a day. It is reported by
dcgm-exporter, with either of its label sets, by our agent, or by both. The names of workloads come from
kube-state-metrics, if it is there.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from fractions import Fraction
from math import ceil, isnan

from gpusharing.api.names import RESOURCE_GPU
from gpusharing.planning.gpus.cards import Card, bare_product, find_card
from gpusharing.planning.gpus.geometry import resource_name
from gpusharing.planning.vocabulary.lengths import counted, some
from kubectl_gpusharing.shell.session import side_by_side
from kubectl_gpusharing.shell.troubles import Trouble
from kubectl_gpusharing.usage import queries
from kubectl_gpusharing.usage.needs import History, Holding
from kubectl_gpusharing.usage.prometheus import Prometheus, Series
from kubectl_gpusharing.usage.queries import ACTIVE, HOUR, OWN, USED, braced
from kubectl_gpusharing.usage.recommendation import ModelPool
from kubectl_gpusharing.usage.windows import DAY, MOST_POINTS, Answers, find_gaps
from kubectl_gpusharing.usage.workloads import RECURS, Fold, Gpu, Record, part_of_card, read_dcgm

MOST_SERIES = 100_000
"""The highest number of series at one time that is read; above it, the user has to select some."""
SAMPLES = 10_000_000
"""The most samples that one query may make Prometheus load; it refuses over 50 million (--query.max-samples)."""
POINTS = 500_000
"""The most points in one answer, so that memory is bounded: the more series there are, the shorter the stretches."""


async def read_usage(prometheus: Prometheus, fold: Fold, start: float, selector: str) -> list[str]:
    """Add the use of the GPUs that count for `fold`, from `start` to its end, and return why it is incomplete."""
    chosen = braced(selector)
    where = f" for {chosen}" if chosen else ""
    counts = await prometheus.instant(queries.most_series(selector, round(fold.end - start)), fold.end)
    most_series_at_once = max((1.0, *(series.value for series in counts)))
    if most_series_at_once > MOST_SERIES:
        raise Trouble(
            f"{prometheus.endpoint.where} has {most_series_at_once:,.0f} GPU series at one time, but this plugin reads at"
            f" most {MOST_SERIES:,} at once: select fewer, for example with --match 'cluster=\"east\"'"
        )
    missing = await find_gaps(
        prometheus,
        queries.usage_count(selector),
        start,
        fold.end,
        nothing=f"{prometheus.endpoint.where} has no GPU metrics in this window ({USED}, {OWN}){where}: does it scrape"
        " dcgm-exporter or the operator's agents? In the GPU Operator: dcgmExporter.serviceMonitor.enabled=true; in"
        " the operator's chart: monitoring.podMonitor.enabled=true",
        lost="usage during that time is unknown",
        points=min(MOST_POINTS, SAMPLES / most_series_at_once),
    )
    latest = (prometheus.instant(query, fold.end) for query in queries.latest(selector))
    allocatable, infos, slices = await side_by_side(*latest)
    add_gpus(fold, infos)
    fold.slices = {(series.node, series.label("resource")): series.value for series in slices}
    at_once = max(1, min(round(DAY / HOUR), int(POINTS / most_series_at_once)))
    fine = most_series_at_once * at_once * HOUR / queries.POINT <= SAMPLES
    hourly = queries.hourly(selector, round(queries.POINT) if fine else queries.STEP)
    whole = fold.end - (fold.hours - 1) * HOUR, fold.end
    for hour in range(0, fold.hours, at_once):
        begin = fold.end - (fold.hours - hour) * HOUR
        end = min(fold.end, begin + at_once * HOUR)
        once = queries.ownership(selector, round(end - begin))
        answers = await side_by_side(
            *(prometheus.between(each, begin + HOUR, end, float(HOUR), whole=whole) for each in hourly.values()),
            *(prometheus.instant(each, end) for each in once.values()),
        )
        part = Answers(list, zip((*hourly, *once), answers, strict=True))
        labels = (series.labels for series in (*part["used"], *part["own"]))
        clusters = sorted({cluster for each in labels if (cluster := each.get("cluster"))})
        if len(clusters) > 1:  # their pools cannot have one layout
            raise Trouble(
                f"Prometheus has GPU data from several clusters ({', '.join(clusters[:5])}). Choose one:"
                f" --match 'cluster=\"{clusters[0]}\"'"
            )
        fold.replicas |= _replicas(allocatable, part["used"], fold)
        fold.add(part)
    missing += [f"Prometheus warns: {warning}" for warning in sorted(prometheus.warnings)]
    fold.remarks = (*_remarks(fold), *fold.wrong)
    return missing


def add_gpus(fold: Fold, infos: Iterable[Series]) -> None:
    """Add the GPUs of the chosen nodes that agents reported; the value of each series is the time of the report."""
    for series in sorted(infos, key=lambda series: series.value):
        node, uuid, product = series.node, series.label("uuid"), series.label("product")
        like = fold.card is None or find_card(product) is fold.card
        if uuid and (like or product) and (fold.nodes is None or node in fold.nodes):
            last = fold.hours - 1 - max(0, int((fold.end - series.value) // HOUR))
            (fold.gpus if like else fold.others)[uuid] = Gpu(node, product, last)


def _replicas(allocatable: Iterable[Series], used: Iterable[Series], fold: Fold) -> dict[str, int]:
    known = {(gpu.node, uuid) for uuid, gpu in fold.gpus.items()}
    known |= {(labels.node, labels.gpu) for labels in (read_dcgm(one, frozenset()) for one in used)}
    gpus = Counter(node for node, _ in known)
    replicas: dict[str, int] = {}
    for series in allocatable:
        node = series.exported("node")
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


RECENT = 24
"""Hours without a sighting after which a workload counts as gone."""
PRESENT = 2
"""Hours without a sighting after which a GPU does not count; the least possible, as peaks are those of full hours."""
AT_ONCE = 0.98
"""The part of its hours in which a workload's number of pods must suffice; during an update, there are more."""
GROWN = 3
"""The number of hours for which a higher number of pods has to last to count at once."""


def usual_peak(counts: Iterable[int]) -> int:
    """Return the most at one time, by hourly peaks, without the busiest hours unless the growth lasts; 1 without any."""
    known = [count for count in counts if count] or [1]
    most = min(ceil(AT_ONCE * len(known)), len(known) - (len(known) >= DAY / HOUR))
    return max(sorted(known)[most - 1], min(known[-GROWN:]))


def find_pool(fold: Fold, where: str) -> ModelPool:
    """Return the pool that `fold` shows; `where` names the chosen nodes in messages.

    Raises Trouble if no GPU was seen lately, or if the GPUs or their nodes have several models.
    """
    records: list[Record | Gpu] = [*fold.records.values(), *fold.gpus.values()]
    latest = max((record.last for record in records), default=-1)  # the last hour of which anything is known
    gpus = _gpus(fold, latest, where)
    model = next(iter(gpus.values())).model
    card = find_card(model)
    # A GPU whose node is unknown counts as a node of its own, so that all such GPUs get the same layout.
    nodes = Counter(gpu.node or uuid for uuid, gpu in gpus.items())
    known = {uuid: gpu for uuid, gpu in fold.gpus.items() if bare_product(gpu.model) == bare_product(model)}
    histories, gone = [], []
    for workload, record in sorted(fold.records.items()):
        if record.held.gpu not in known:
            continue
        if record.last <= latest - RECENT and workload.kind != RECURS:
            gone.append(workload.ref)
            continue
        pods = usual_peak(record.pods)
        holds = _holding(fold, record, known[record.held.gpu], card)
        memory, activity = (
            tuple(
                (datetime.fromtimestamp(fold.end - (fold.hours - 1 - hour) * 3600, UTC), value)
                for hour, value in enumerate(values)
                if not isnan(value)
            )
            for values in (record.memory, record.activity)
        )
        histories.append(History(workload, pods, holds, memory, activity or None, record.declared, record.of_device))
    away = [gpu for uuid, gpu in known.items() if uuid not in gpus and gpu.last > latest - RECENT]
    unplaced = any(not gpu.node for gpu in gpus.values())
    remarks = (*fold.remarks, *_left_out(fold, latest, away, gone, unplaced=unplaced))
    return ModelPool(
        model,
        card,
        nodes=tuple(nodes[name] for name in sorted(nodes)),
        used=min(usual_peak(fold.held), len(gpus)) if any(fold.held) else 0,
        names=tuple(sorted(nodes)),
        histories=tuple(histories),
        occupied={
            f"{gpu.node}/{uuid}": gpu.holders
            for uuid, gpu in gpus.items()
            if gpu.held_at == latest and gpu.divided != latest and sum(gpu.holders.values()) > 1
        },
        simulated=tuple(sorted(fold.simulated & {gpu.node for gpu in gpus.values()})),
        remarks=remarks,
    )


def _left_out(fold: Fold, latest: int, away: Sequence[Gpu], gone: Sequence[str], *, unplaced: bool) -> Iterator[str]:
    if unplaced:
        yield (
            "the node of some GPUs is unknown (they have no node, Hostname or hostname label): each counts as a separate"
            " node"
        )
    if away:
        last = {gpu.node or "a node": latest - gpu.last for gpu in sorted(away, key=lambda gpu: gpu.last)}
        names = some([f"{node} (not seen for {hours} h)" for node, hours in sorted(last.items())])
        are = "are" if len(away) > 1 else "is"
        yield (
            f"{counted(len(away), 'GPU')} of {names} {are} not counted: run this again when such a node is back, unless"
            " it was replaced"
        )
    if gone:
        are = "are" if len(gone) > 1 else "is"
        yield f"{counted(len(gone), 'workload')} had no pod in the last day and {are} left out: {some(sorted(gone))}"
    if old := sorted(node for node, last in fold.beyond.items() if last <= latest - PRESENT):
        are = "they are" if len(old) > 1 else "it is"
        yield (
            f"the history of {counted(len(old), 'node')} with GPUs ({some(old)}) is left out: {are} gone, and nodes"
            " are chosen by their current labels. If such a node belonged to this pool, run this without -l and"
            " --policy, and with --card if there are several models"
        )


def _gpus(fold: Fold, latest: int, where: str) -> dict[str, Gpu]:
    gpus = {uuid: gpu for uuid, gpu in fold.gpus.items() if gpu.last > latest - PRESENT}
    if not gpus:
        model = f" of model {fold.card.key}" if fold.card else ""
        raise Trouble(
            f"Prometheus has no data on GPUs{model} of {where}; nodes are identified by the node label, or"
            " otherwise by Hostname"
        )
    models = Counter(bare_product(gpu.model) for gpu in gpus.values())
    if len(models) > 1:
        counts = ", ".join(f"{count} {model or 'without a name'}" for model, count in sorted(models.items()))
        raise Trouble(
            f"{where} has GPUs of several models ({counts}), and a layout is for one model. Choose one:"
            f" --card {min(filter(None, models), default='h100-80gb')}, or nodes: -l gpusharing.dev/pool=a"
        )
    nodes = {gpu.node for gpu in gpus.values() if gpu.node}
    others = [gpu for gpu in fold.others.values() if gpu.node in nodes and gpu.last > latest - PRESENT]
    if others:
        mixed = sorted({gpu.node for gpu in others})
        names = ", ".join(sorted({bare_product(gpu.model) for gpu in others}))
        raise Trouble(
            f"{counted(len(mixed), 'node')} of {where} ({some(mixed)}) also {'have' if len(mixed) > 1 else 'has'} GPUs"
            f" of another model ({names}), and a layout identifies GPUs by their index on the node, so it would divide"
            " the wrong ones. Choose nodes with GPUs of one model: -l gpusharing.dev/pool=a"
        )
    return gpus


def _holding(fold: Fold, record: Record, gpu: Gpu, card: Card | None) -> Holding:
    devices = max((1, *record.devices[max(0, record.last - RECENT + 1) : record.last + 1]))
    node, profile = record.held.node, record.held.profile
    resource = record.resource or (resource_name(profile) if profile else RESOURCE_GPU)
    times = int(fold.slices.get((node, resource), 0))
    if profile:
        share, compute = part_of_card(card, profile) or (None, Fraction(1))
        return Holding(resource, devices, None if share is None else share / max(1, times), compute)
    times = times or fold.replicas.get(node, 0)
    if times > 1:
        return Holding(resource, devices, Fraction(max(1, int(record.slices)), times))
    return Holding(resource, devices, None if sum(gpu.holders.values()) > 1 else Fraction(1))
