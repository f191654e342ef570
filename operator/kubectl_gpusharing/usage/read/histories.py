"""Turn the use that was read from Prometheus into the input of a recommendation: the pool, the histories of its workloads, and the GPUs that pods share. Pure."""

from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from fractions import Fraction
from math import ceil, isnan

from gpusharing.api.names import RESOURCE_GPU
from gpusharing.planning.gpus.cards import Card, bare_product, find_card
from gpusharing.planning.gpus.geometry import resource_name
from gpusharing.planning.vocabulary.lengths import counted, some
from kubectl_gpusharing.shell.troubles import Trouble
from kubectl_gpusharing.usage.read.fold import Fold, Gpu, Record, part_of_card
from kubectl_gpusharing.usage.read.series import RECURS
from kubectl_gpusharing.usage.reckon.histogram import Sample
from kubectl_gpusharing.usage.reckon.needs import History, Holding
from kubectl_gpusharing.usage.reckon.recommendation import Occupied

RECENT = 24
"""Hours without a sighting after which a workload counts as gone."""
PRESENT = 2
"""Hours without a sighting after which a GPU does not count. Peaks are queried for full hours, so the value cannot be lower."""
NO_NODE = (
    "the node of some GPUs is unknown (they have no node, Hostname or hostname label): each counts as a "
    "separate node"
)
AT_ONCE = 0.98
"""The part of a workload's hours in which its number of pods must not be exceeded: old and new pods coexist during an update."""


@dataclass(frozen=True, slots=True)
class ObservedPool:
    """A pool of GPUs of one model, as Prometheus shows it."""

    model: str
    card: Card | None
    """None if our table does not have the model."""
    nodes: tuple[int, ...]
    """How many GPUs each node has, in the order of the nodes' names."""
    used: int
    """GPUs that were held in the last hour, in whole or in part."""
    histories: tuple[History, ...]
    occupied: Occupied
    remarks: tuple[str, ...]
    simulated: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    """Sorted; the UUID of a GPU whose node is unknown."""


def find_pool(fold: Fold, where: str) -> ObservedPool:
    """Return the pool that `fold` shows; `where` names the chosen nodes in messages. Raises Trouble if no GPU was seen lately, or if the GPUs or their nodes have several models."""
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
        if record.held.device.gpu not in known:
            continue
        if record.last <= latest - RECENT and workload.kind != RECURS:
            gone.append(f"{workload.namespace}/{workload.name}")
            continue
        # If a workload has grown, its new pods count. The extra pods of an update do not exist at the ends of two hours.
        counts = [count for count in record.pods if count] or [1]
        pods = max(sorted(counts)[ceil(AT_ONCE * len(counts)) - 1], min(counts[-2:]))
        holds = _holding(fold, record, known[record.held.device.gpu], card)
        memory, activity = (
            tuple(
                Sample(datetime.fromtimestamp(fold.end - (fold.hours - 1 - hour) * 3600, UTC), value)
                for hour, value in enumerate(values)
                if not isnan(value)
            )
            for values in (record.memory, record.activity)
        )
        histories.append(
            History(workload, pods, holds, memory, activity or None, record.declared, record.of_device)
        )
    away = [gpu for uuid, gpu in known.items() if uuid not in gpus and gpu.last > latest - RECENT]
    remarks = [*fold.remarks]
    if any(not gpu.node for gpu in gpus.values()):
        remarks.append(NO_NODE)
    if away:
        last = {gpu.node or "a node": latest - gpu.last for gpu in sorted(away, key=lambda gpu: gpu.last)}
        names = some([f"{node} (not seen for {hours} h)" for node, hours in sorted(last.items())])
        are = "are" if len(away) > 1 else "is"
        remarks.append(
            f"{counted(len(away), 'GPU')} of {names} {are} not counted: run this again when such a node is back, unless"
            " it was replaced"
        )
    if gone:
        are = "are" if len(gone) > 1 else "is"
        remarks.append(
            f"{counted(len(gone), 'workload')} had no pod in the last day and {are} left out: {some(sorted(gone))}"
        )
    if old := sorted(node for node, last in fold.beyond.items() if last <= latest - PRESENT):
        are = "they are" if len(old) > 1 else "it is"
        remarks.append(
            f"the history of {counted(len(old), 'node')} with GPUs ({some(old)}) is left out: {are} gone, and nodes"
            " are chosen by their current labels. If such a node belonged to this pool, run this without -l and"
            " --policy, and with --card if there are several models"
        )
    return ObservedPool(
        model,
        card,
        tuple(nodes[name] for name in sorted(nodes)),
        sum(gpu.held_at == latest for gpu in gpus.values()),
        tuple(histories),
        {
            f"{gpu.node}/{uuid}": gpu.holders
            for uuid, gpu in gpus.items()
            if gpu.held_at == latest and gpu.divided != latest and sum(gpu.holders.values()) > 1
        },
        tuple(remarks),
        tuple(sorted(fold.simulated & {gpu.node for gpu in gpus.values()})),
        tuple(sorted(nodes)),
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
