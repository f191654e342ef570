"""Turn the use that was read from Prometheus into the input of a recommendation: the pool, the histories of its
workloads, and the GPUs that pods share. Pure."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
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
from kubectl_gpusharing.usage.reckon.needs import History, Holding, Workload
from kubectl_gpusharing.usage.reckon.recommendation import Occupied

RECENT = 24
"""Hours without a sighting after which a workload counts as gone."""
PRESENT = 2
"""Hours without a sighting after which a GPU does not count: its node was replaced or is unavailable. Peaks are
queried for full hours, so the value cannot be lower."""
NO_NODE = (
    "the node of some GPUs is unknown (they have no node, Hostname or hostname label): each counts as a "
    "separate node"
)
AT_ONCE = 0.98
"""The part of a workload's hours in which its number of pods must not be exceeded. It is below 1 because old and new
pods coexist during an update."""


@dataclass(frozen=True, slots=True)
class ObservedPool:
    """A pool of GPUs of one model, as Prometheus shows it."""

    model: str
    """The product name of all its GPUs."""
    card: Card | None
    """The model's entry in our table, or None if there is none."""
    nodes: tuple[int, ...]
    """How many GPUs each node has, in the order of the nodes' names."""
    used: int
    """GPUs that were held in the last hour, in whole or in part."""
    histories: tuple[History, ...]
    """What each workload used, and what its pods hold now."""
    occupied: tuple[Occupied, ...]
    """The GPUs that several pods share now."""
    remarks: tuple[str, ...]
    """What a reader should know about the series."""
    simulated: tuple[str, ...] = ()
    """The nodes whose GPUs are SIMULATED."""
    names: tuple[str, ...] = ()
    """The sorted names of the nodes; the UUID of a GPU whose node is unknown."""


def find_pool(fold: Fold, where: str) -> ObservedPool:
    """Return the pool that `fold` shows. Histories are sorted by workload. Workloads without a pod in the last day that
    has data are left out, except CronJobs, and a remark names them. Workloads that last held a GPU of another model are
    left out without a remark. `where` names the chosen nodes in messages. Raises Trouble if no GPU was seen lately, if
    the GPUs are of several models, or if their nodes also have GPUs of another model than the chosen card."""
    records: list[Record | Gpu] = [*fold.records.values(), *fold.gpus.values()]
    latest = max((record.last for record in records), default=-1)  # the last hour of which anything is known
    gpus = _gpus(fold, latest, where)
    _refuse_mixed(fold, gpus, latest, where)
    model = next(iter(gpus.values())).model
    card = find_card(model)
    # A GPU whose node is unknown counts as a node of its own, so that all such GPUs get the same layout.
    nodes = Counter(gpu.node or uuid for uuid, gpu in gpus.items())
    known = {uuid: gpu for uuid, gpu in fold.gpus.items() if bare_product(gpu.model) == bare_product(model)}
    ours = {workload: record for workload, record in fold.records.items() if record.held.device.gpu in known}
    there = {
        workload: record
        for workload, record in ours.items()
        if record.last > latest - RECENT or workload.kind == RECURS
    }
    histories = tuple(
        History(
            workload,
            _pods(record),
            _holding(fold, record, known[record.held.device.gpu], card),
            tuple(_samples(fold, record.memory)),
            tuple(_samples(fold, record.activity)) or None,
            record.declared,
            record.of_device,
        )
        for workload, record in sorted(there.items())
    )
    return ObservedPool(
        model,
        card,
        tuple(nodes[name] for name in sorted(nodes)),
        sum(1 for gpu in gpus.values() if gpu.held_at == latest),
        histories,
        tuple(_occupied(gpus, latest)),
        (
            *fold.remarks,
            *([NO_NODE] if any(not gpu.node for gpu in gpus.values()) else []),
            *_away([gpu for uuid, gpu in known.items() if uuid not in gpus], latest),
            *_gone(ours.keys() - there.keys()),
            *_replaced(fold, latest),
        ),
        tuple(sorted(fold.simulated & {gpu.node for gpu in gpus.values()})),
        tuple(sorted(nodes)),
    )


def _gpus(fold: Fold, latest: int, where: str) -> dict[str, Gpu]:
    """Return, by UUID, the GPUs that were seen in the PRESENT hours up to the hour `latest`. Raises Trouble if there
    are none, or if they are of several models; an unknown model counts as one."""
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
    return gpus


def _refuse_mixed(fold: Fold, gpus: Mapping[str, Gpu], latest: int, where: str) -> None:
    """Raise Trouble if a node of these GPUs also had GPUs of another model in the PRESENT hours up to the hour
    `latest`. A layout names GPUs by their index among all GPUs of a node, so it would divide the wrong ones. GPUs whose
    node is unknown are not checked."""
    nodes = {gpu.node for gpu in gpus.values() if gpu.node}
    beside = [gpu for gpu in fold.others.values() if gpu.node in nodes and gpu.last > latest - PRESENT]
    if beside:
        mixed = sorted({gpu.node for gpu in beside})
        models = ", ".join(sorted({bare_product(gpu.model) for gpu in beside}))
        raise Trouble(
            f"{counted(len(mixed), 'node')} of {where} ({some(mixed)}) also {'have' if len(mixed) > 1 else 'has'} GPUs"
            f" of another model ({models}), and a layout identifies GPUs by their index on the node, so it would divide"
            " the wrong ones. Choose nodes with GPUs of one model: -l gpusharing.dev/pool=a"
        )


def _away(gpus: Iterable[Gpu], latest: int) -> Iterator[str]:
    """Yield a remark about the GPUs in `gpus`, which are known but not counted, that were seen in the last day. The
    remark says for how many hours no such GPU of each node has been seen. Yields nothing if none was seen in the last
    day."""
    lately = [gpu for gpu in gpus if gpu.last > latest - RECENT]
    if not lately:
        return
    last = {gpu.node or "a node": latest - gpu.last for gpu in sorted(lately, key=lambda gpu: gpu.last)}
    names = some([f"{node} (not seen for {hours} h)" for node, hours in sorted(last.items())])
    are = "are" if len(lately) > 1 else "is"
    yield (
        f"{counted(len(lately), 'GPU')} of {names} {are} not counted: run this again when such a node is back, unless"
        " it was replaced"
    )


def _gone(workloads: Iterable[Workload]) -> Iterator[str]:
    """Yield one remark, which names at most three of them, that these workloads are left out because they had no pod in
    the last day. Yields nothing if there are none."""
    names = sorted(f"{workload.namespace}/{workload.name}" for workload in workloads)
    if names:
        are = "are" if len(names) > 1 else "is"
        yield f"{counted(len(names), 'workload')} had no pod in the last day and {are} left out: {some(names)}"


def _replaced(fold: Fold, latest: int) -> Iterator[str]:
    """Yield one remark about the nodes that have GPUs but were not chosen, if they were last seen PRESENT or more hours
    before the hour `latest`. Yield nothing if there are none. Nodes are chosen by their current labels, so it is
    unknown whether such a node belonged to this pool."""
    old = sorted(node for node, last in fold.beyond.items() if last <= latest - PRESENT)
    if old:
        gone = "they are" if len(old) > 1 else "it is"
        yield (
            f"the history of {counted(len(old), 'node')} with GPUs ({some(old)}) is left out: {gone} gone, and nodes"
            " are chosen by their current labels. If such a node belonged to this pool, run this without -l and"
            " --policy, and with --card if there are several models"
        )


def _pods(record: Record) -> int:
    """Return how many pods of a workload run at the same time: the lowest number that is not exceeded in 98 % of the
    hours with pods (AT_ONCE) or, if that is higher, the lower number of the last two such hours. Return 1 if no
    hour had any."""
    counts = [count for count in record.pods if count]
    if not counts:
        return 1
    # If a workload has grown, its new pods count. The extra pods of an update do not exist at the ends of two hours.
    return max(sorted(counts)[ceil(AT_ONCE * len(counts)) - 1], min(counts[-2:]))


def _holding(fold: Fold, record: Record, gpu: Gpu, card: Card | None) -> Holding:
    """Return what each pod holds now: the resource, the number of devices, and one device's parts of a card's memory
    and compute. The resource is the one that the agent reported, or else that of the profile or nvidia.com/gpu. The
    number is the highest of any pod at the end of an hour, in the RECENT hours up to the last sighting; at least 1.
    Replicas divide only the memory; of a whole GPU, a pod has the replicas that one last held. `gpu` is the last one
    held. The memory is None for an instance of unknown size, or a GPU of several pods not known to be shared."""
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


def _samples(fold: Fold, values: "Iterable[float]") -> Iterator[Sample]:
    """Yield a sample for each known hour of the array, timed at the end of the hour."""
    for hour, value in enumerate(values):
        if not isnan(value):
            at = fold.end - (fold.hours - 1 - hour) * 3600
            yield Sample(datetime.fromtimestamp(at, UTC), value)


def _occupied(gpus: dict[str, Gpu], latest: int) -> Iterator[Occupied]:
    """Yield each GPU that several pods held in the hour `latest` and that had no MIG devices then, with the number of
    pods of each workload. GPUs are sorted by UUID and named `NODE/UUID`."""
    for uuid, gpu in sorted(gpus.items()):
        if gpu.held_at == latest and gpu.divided != latest and sum(gpu.holders.values()) > 1:
            yield Occupied(f"{gpu.node}/{uuid}", tuple(sorted(gpu.holders.items())))
