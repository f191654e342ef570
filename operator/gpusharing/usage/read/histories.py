"""What a recommendation is made of, from what Prometheus has: the pool, its workloads' histories, who shares. Pure."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from fractions import Fraction
from math import ceil, isnan

from gpusharing.api.names import RESOURCE_GPU
from gpusharing.cli.shell.troubles import Trouble
from gpusharing.planning.gpus.cards import Card, bare_product, find_card
from gpusharing.planning.gpus.geometry import resource_name
from gpusharing.planning.vocabulary.lengths import counted, some
from gpusharing.usage.read.fold import Fold, Gpu, Record
from gpusharing.usage.read.series import RECURS
from gpusharing.usage.read.usage import Usage
from gpusharing.usage.reckon.histogram import Sample
from gpusharing.usage.reckon.needs import History, Holding, Workload
from gpusharing.usage.reckon.recommendation import Occupied

RECENT = 24
"""Hours after which a workload that was not seen counts as gone."""
PRESENT = 2
"""Hours after which a GPU that was not seen is none of the pool's: its node was replaced, or is away. Less would be no
full hour, for which the peaks are asked."""
AT_ONCE = 0.98
"""Of the hours in which a workload ran, the part in which no more pods than this were there: an update has old and new
pods for a moment."""


@dataclass(frozen=True, slots=True)
class ObservedPool:
    """One pool."""

    model: str
    """The product name of all its GPUs."""
    card: Card | None
    """None: not in our table."""
    nodes: tuple[int, ...]
    """GPUs of each node, by the nodes' names."""
    used: int
    """GPUs that were held in the last hour, in whole or in part."""
    histories: tuple[History, ...]
    """What each workload used, and holds."""
    occupied: tuple[Occupied, ...]
    """The GPUs that several pods share now."""
    remarks: tuple[str, ...]
    """What a reader should know about the series."""
    simulated: tuple[str, ...] = ()
    """The nodes whose GPUs are SIMULATED."""


def find_pool(usage: Usage, where: str) -> ObservedPool:
    """The pool. Raises Trouble where there are no GPUs, or several models, also beside those of the chosen one."""
    fold = usage.fold
    seen: list[Record | Gpu] = [*fold.records.values(), *fold.gpus.values()]
    latest = max((one.last for one in seen), default=-1)  # the last hour of which anything is known
    gpus = _gpus(fold, latest, where)
    _refuse_mixed(fold, gpus, latest, where)
    model = next(iter(gpus.values())).model
    found = find_card(model)
    # Without names of nodes nobody knows which GPU is the first of its node: then all of them are to be alike.
    nodes = Counter(gpu.node or uuid for uuid, gpu in gpus.items())
    known = {uuid: gpu for uuid, gpu in fold.gpus.items() if bare_product(gpu.model) == bare_product(model)}
    ours = {whose: record for whose, record in fold.records.items() if record.gpu in known}
    there = {
        whose: record
        for whose, record in ours.items()
        if record.last > latest - RECENT or whose.kind == RECURS
    }
    histories = tuple(
        History(
            whose,
            _pods(record),
            _holding(usage, record, known[record.gpu], found),
            tuple(_samples(fold, record.memory)),
            tuple(_samples(fold, record.activity)) or None,
            record.declared,
            record.of_device,
        )
        for whose, record in sorted(there.items())
    )
    return ObservedPool(
        model,
        found,
        tuple(nodes[name] for name in sorted(nodes)),
        sum(1 for gpu in gpus.values() if gpu.held == latest),
        histories,
        tuple(_occupied(gpus, latest)),
        (
            *usage.remarks,
            *_without_node(gpus.values()),
            *_away([gpu for uuid, gpu in known.items() if uuid not in gpus], latest),
            *_gone(ours.keys() - there.keys()),
            *_replaced(fold, latest),
        ),
        tuple(sorted(usage.simulated & {gpu.node for gpu in gpus.values()})),
    )


def _gpus(fold: Fold, latest: int, where: str) -> dict[str, Gpu]:
    """Those of one model, by UUID. Raises Trouble."""
    gpus = {uuid: gpu for uuid, gpu in fold.gpus.items() if gpu.last > latest - PRESENT}
    if not gpus:
        card = fold.card
        which = f"no {card.key}" if card else "no GPU"
        raise Trouble(
            f"Prometheus knows {which} of {where}: nodes are identified by the label node, else by Hostname"
        )
    models = Counter(bare_product(gpu.model) for gpu in gpus.values())
    if len(models) > 1:
        told = ", ".join(f"{count} {model or 'without a name'}" for model, count in sorted(models.items()))
        raise Trouble(
            f"{where} has GPUs of several models ({told}), and a layout is for one model. Choose one:"
            f" --card {min(filter(None, models), default='h100-80gb')}, or nodes: -l gpusharing.dev/pool=a"
        )
    return gpus


def _refuse_mixed(fold: Fold, gpus: Mapping[str, Gpu], latest: int, where: str) -> None:
    """Raises Trouble: a layout names GPUs by their index among all of a node, whatever their model."""
    nodes = {gpu.node for gpu in gpus.values() if gpu.node}
    beside = [gpu for gpu in fold.others.values() if gpu.node in nodes and gpu.last > latest - PRESENT]
    if beside:
        mixed = sorted({gpu.node for gpu in beside})
        models = ", ".join(sorted({bare_product(gpu.model) for gpu in beside}))
        raise Trouble(
            f"{counted(len(mixed), 'node')} of {where} ({some(mixed)}) also {'have' if len(mixed) > 1 else 'has'} GPUs"
            f" of another model ({models}), and a layout names GPUs by their index among all of a node: it would divide"
            " the wrong ones. Choose nodes with GPUs of one model: -l gpusharing.dev/pool=a"
        )


def _without_node(gpus: Iterable[Gpu]) -> Iterator[str]:
    if any(not gpu.node for gpu in gpus):
        yield "the node of some GPUs is unknown (label node, Hostname or hostname): each counts as a node of its own"


def _away(gpus: Iterable[Gpu], latest: int) -> Iterator[str]:
    """`gpus`: those that are not counted. Of what has been gone for a day nothing is said."""
    lately = [gpu for gpu in gpus if gpu.last > latest - RECENT]
    if not lately:
        return
    last = {gpu.node or "a node": latest - gpu.last for gpu in sorted(lately, key=lambda gpu: gpu.last)}
    told = some([f"{node} (not seen for {hours} h)" for node, hours in sorted(last.items())])
    are = "are" if len(lately) > 1 else "is"
    yield (
        f"{counted(len(lately), 'GPU')} of {told} {are} not counted: ask again when such a node is back, if it was not"
        " replaced"
    )


def _gone(workloads: Iterable[Workload]) -> Iterator[str]:
    names = sorted(f"{whose.namespace}/{whose.name}" for whose in workloads)
    if names:
        are = "are" if len(names) > 1 else "is"
        yield f"{counted(len(names), 'workload')} had no pod in the last day and {are} left out: {some(names)}"


def _replaced(fold: Fold, latest: int) -> Iterator[str]:
    """Nodes that are not chosen and not there any more: nobody knows whether they had the labels that are asked for."""
    old = sorted(node for node, last in fold.beyond.items() if last <= latest - PRESENT)
    if old:
        gone = "they are" if len(old) > 1 else "it is"
        yield (
            f"the history of {counted(len(old), 'node')} with GPUs ({some(old)}) is left out: {gone} gone, and nodes"
            " are chosen by the labels of today. If such a node was of this pool, ask without -l and --policy, with"
            " --card where there are several models"
        )


def _pods(record: Record) -> int:
    counts = [count for count in record.pods if count]
    if not counts:
        return 1
    # Who has grown today needs today's pods; an update does not take from the end of one hour to that of the next.
    return max(sorted(counts)[ceil(AT_ONCE * len(counts)) - 1], min(counts[-2:]))


def _devices(record: Record) -> int:
    """Of one pod, at most, in the last day in which the workload ran: what it held before is over."""
    return max((1, *record.devices[max(0, record.last - RECENT + 1) : record.last + 1]))


def _holding(usage: Usage, record: Record, gpu: Gpu, card: Card | None) -> Holding:
    """What each pod holds, as far as known."""
    if record.profile:
        resource = record.resource or resource_name(record.profile)
        share, compute = _of_instance(record.profile, card)
        times = int(usage.slices.get((record.node, resource), 1))
        return Holding(
            resource, _devices(record), share / times if share is not None and times > 1 else share, compute
        )
    resource = record.resource or RESOURCE_GPU
    times = int(usage.slices.get((record.node, resource), 0)) or usage.replicas.get(record.node, 0)
    if times > 1:
        return Holding(resource, _devices(record), Fraction(max(1, int(record.slices)), times))
    together = sum(gpu.holders.values())
    return Holding(resource, _devices(record), None if together > 1 else Fraction(1))


def _of_instance(profile: str, card: Card | None) -> tuple[Fraction | None, Fraction]:
    """The parts of memory and of compute that an instance has. Of a card that is not known no compute is, either."""
    found = next((one for one in card.profiles if one.name == profile), None) if card else None
    if card is None or found is None:
        return None, Fraction(1)
    whole = max(one.slices for one in card.profiles)
    return Fraction(found.memory_gb, card.memory_gb), Fraction(found.slices, whole)


def _samples(fold: Fold, values: "Iterable[float]") -> Iterator[Sample]:
    """The hours of which something is known, by their ends."""
    for hour, value in enumerate(values):
        if not isnan(value):
            at = fold.end - (fold.hours - 1 - hour) * 3600
            yield Sample(datetime.fromtimestamp(at, UTC), value)


def _occupied(gpus: dict[str, Gpu], latest: int) -> Iterator[Occupied]:
    for uuid, gpu in sorted(gpus.items()):
        if gpu.held == latest and gpu.divided != latest and sum(gpu.holders.values()) > 1:
            yield Occupied(f"{gpu.node}/{uuid}", tuple(sorted(gpu.holders.items())))
