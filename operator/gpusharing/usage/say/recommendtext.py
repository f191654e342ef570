"""A recommendation as text. Pure."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from fractions import Fraction

from gpusharing.api.names import ANNOTATION_GPU_MEMORY, RESOURCE_MIG_PREFIX, Mode
from gpusharing.cli.shell.ages import counted, length
from gpusharing.cli.shell.drawing import BLANK, Column, Ink, Line, Paper, TextSpan, fold, line, prose, table
from gpusharing.cli.shell.simulated import describe_simulated
from gpusharing.planning.gpus.geometry import describe as layout_text
from gpusharing.planning.vocabulary.lengths import some
from gpusharing.usage.prometheus.windows import moment
from gpusharing.usage.read.histories import ObservedPool
from gpusharing.usage.read.poolnodes import NodeScope
from gpusharing.usage.reckon.decaying import Sample
from gpusharing.usage.reckon.needs import GIB, LEVELS, Confidence, Doubt, History, Need, Workload
from gpusharing.usage.reckon.recommendation import (
    CoLocation,
    Misplaced,
    Placed,
    Recommendation,
    Stranded,
    Unplaced,
)
from gpusharing.usage.reckon.sharing import Shared, find_shared
from gpusharing.usage.say.recommendplan import Effect, describe_effect

UNKNOWN = "?"
SPARKS, ASCII = "▁▂▃▄▅▆▇█", "_.-=+*%#"
WIDTH = 48
"""Characters of a sparkline, at most."""
BESIDE = len("  activity  ")
"""What stands before it in its line."""
_INKS = {Confidence.NONE: Ink.WAITING, Confidence.LOW: Ink.FAINT, Confidence.HIGH: Ink.GOOD}


@dataclass(frozen=True, slots=True)
class RecommendReport:
    """What was found out."""

    where: str
    """Which Prometheus."""
    start: float
    """Seconds since 1970."""
    end: float
    """Seconds since 1970."""
    scope: NodeScope
    """The nodes that were asked about."""
    seen: ObservedPool
    """What Prometheus has of them."""
    needs: tuple[Need, ...]
    """What each workload needs."""
    found: Recommendation | None
    """None: the layouts that the card can have are unknown."""
    policy: dict[str, object] | None
    """None: there is no layout to apply."""
    missing: tuple[str, ...]
    """Why the answer is incomplete; empty: it is complete."""
    remarks: tuple[str, ...]
    """What else a reader should know."""
    effect: Effect | None = None
    """What the policy would do. None: that was not planned."""

    @property
    def span(self) -> str:
        """Which time, which pool."""
        card = self.seen.model or "GPUs without a name"
        gpus = counted(sum(self.seen.nodes), "GPU")
        nodes = counted(len(self.seen.nodes), "node")
        time = f"{length(timedelta(seconds=self.end - self.start))} until {moment(self.end)}"
        return f"{time}, {self.scope.where}: {gpus} ({card}) on {nodes}"

    @property
    def packing(self) -> str:
        """What the layout takes."""
        return "" if self.found is None else packing_of(self.found)

    @property
    def steps(self) -> tuple[str, ...]:
        """What a person has to do besides."""
        if self.policy is None:
            return tuple(_asking(self.needs))
        return (*_homeless(self.found), *_asking(self.needs), *_labelling(self.scope))


def _homeless(found: Recommendation | None) -> Iterator[str]:
    if found is None or not found.unplaced:
        return
    names = some([_name(one.need.workload) for one in found.unplaced])
    yield (
        f"This layout has no place for {names}: give them GPUs elsewhere before you apply it to their nodes,"
        " or their pods may wait"
    )


def _asking(needs: Sequence[Need]) -> Iterator[str]:
    """Workloads whose owners have to say what they need."""
    silent = [
        _name(need.workload)
        for need in needs
        if Doubt.PREALLOCATED in need.doubts and need.history.declared is None
    ]
    if silent:
        yield (
            f"Ask the owners of {some(silent)} what a pod needs, and put it on the pods as {ANNOTATION_GPU_MEMORY}:"
            f" 15Gi. kube-state-metrics has to export it: --metric-annotations-allowlist=pods=[{ANNOTATION_GPU_MEMORY}]"
        )


def _labelling(scope: NodeScope) -> Iterator[str]:
    if scope.unlabelled:
        labels = ",".join(f"{key}={value}" for key, value in scope.selector["matchLabels"].items())
        yield f"The policy selects nodes by a label that they need first: kubectl label node NODE {labels}"


def _name(whose: Workload) -> str:
    return f"{whose.namespace}/{whose.name}"


def describe(answer: RecommendReport, paper: Paper, *, verbose: bool, written: str) -> list[Line]:
    """Each workload, the layout, what to do next, and what is not known."""
    lines = prose(answer.span, paper, ink=Ink.TITLE)
    lines += describe_simulated(answer.seen.simulated, paper)
    lines += _table(answer, paper)
    if verbose:
        lines += [part for need in answer.needs for part in _evidence(need, paper)]
    if answer.found is not None:
        lines.append(BLANK)
        if answer.found.placed:
            lines += _layout(answer.found, paper)
        lines += prose(answer.packing, paper, hang="  ")
        if (shared := find_shared(answer.found)) is not None:
            lines += prose(f"{shared_of(shared)}.", paper, hang="  ", ink=Ink.WAITING)
        if answer.effect is not None:
            lines += describe_effect(answer.effect, paper)
        lines += _next(answer, paper, written)
    for text in answer.remarks:
        lines += prose(f"{text}.", paper, hang="  ", ink=Ink.FAINT)
    for text in answer.missing:
        lines += prose(f"PARTIAL: {text}.", paper, hang="  ", ink=Ink.WAITING)
    return lines


def _table(answer: RecommendReport, paper: Paper) -> list[Line]:
    placed = placed_of(answer.found)
    rows: list[list[TextSpan]] = []
    for history in answer.seen.histories:
        whose = history.workload
        need = next((one for one in answer.needs if one.workload == whose), None)
        sure = Confidence.NONE if need is None else need.confidence
        rows.append(
            [
                TextSpan(whose.namespace),
                TextSpan(f"{whose.kind}/{whose.name}"),
                TextSpan(str(history.pods)),
                TextSpan(now_of(history), Ink.FAINT),
                TextSpan(_size(need.peak) if need and need.samples else UNKNOWN),
                TextSpan(_part(None if need is None else need.compute)),
                TextSpan(advice_of(placed.get(whose)), Ink.TITLE),
                TextSpan(str(sure), _INKS.get(sure, Ink.PLAIN)),
                TextSpan(why_of(need, placed.get(whose)), Ink.FAINT),
            ]
        )
    level = "P95" if answer.found is None else f"P{LEVELS[answer.found.goal].activity * 100:.0f}"
    columns = (
        Column("NAMESPACE"),
        Column("WORKLOAD"),
        Column("PODS"),
        Column("NOW", drop=2),
        Column("PEAK MEM"),
        Column(f"{level} ACTIVE", drop=3),
        Column("ADVICE"),
        Column("CONF", drop=1),
        Column("WHY", drop=4),
    )
    return table(columns, rows, paper)


def placed_of(found: Recommendation | None) -> dict[Workload, Placed | Unplaced]:
    """Each workload with where the recommendation puts it, or why nowhere; empty where there is none."""
    if found is None:
        return {}
    every: list[Placed | Unplaced] = [*found.placed, *found.unplaced]
    return {one.need.workload: one for one in every}


def now_of(history: History) -> str:
    """What each pod holds: `1g.20gb`, `1/4 GPU`, `full GPU`, `2 GPUs`."""
    holds = history.holds
    if holds.resource.startswith(RESOURCE_MIG_PREFIX):
        profile = holds.resource.removeprefix(RESOURCE_MIG_PREFIX).removesuffix(".shared")
        return profile if holds.devices == 1 else f"{holds.devices}x {profile}"
    if holds.share is None:
        return "shared GPU"
    if holds.share == 1:
        return "full GPU" if holds.devices == 1 else f"{holds.devices} GPUs"
    share = str(Fraction(holds.share))
    return f"{share} GPU" if holds.devices == 1 else f"{holds.devices}x {share} GPU"


def advice_of(one: Placed | Unplaced | None) -> str:
    """What a pod is to ask for."""
    if isinstance(one, Placed):
        return one.profile or counted(one.gpus, "GPU")
    if one is not None and one.gpus:
        return counted(one.gpus, "GPU")
    return UNKNOWN


def why_of(need: Need | None, one: Placed | Unplaced | None) -> str:
    """Why this advice, or why none."""
    if need is None or one is None:
        return "unknown card"
    if Doubt.PREALLOCATED in need.doubts and need.history.declared is None:
        return f"{Doubt.PREALLOCATED}: {need.reason}"
    if isinstance(one, Unplaced):
        if one.why is not Misplaced.UNKNOWN:
            return str(one.why)
        return need.reason if need.samples else "what it takes is unknown"
    told = [str(one.bound)]
    told += [str(doubt) for doubt in need.doubts if doubt is not Doubt.PREALLOCATED]
    if need.history.declared is not None:
        told.append(f"its owner says {_size(need.history.declared)}")
    elif need.confidence is not Confidence.HIGH:
        told.append(need.reason)
    if need.idle is not None and need.idle > 0.5:
        told.append(f"idle {need.idle:.0%} of the time")
    return ", ".join(told)


def _evidence(need: Need, paper: Paper) -> Iterator[Line]:
    """With -v: the samples, as far as they can be drawn, and what follows from them."""
    whose, history = need.workload, need.history
    yield BLANK
    yield from fold(line(TextSpan(f"{whose.namespace}  {whose.kind}/{whose.name}", Ink.TITLE)), paper)
    for name, samples, top in (
        ("memory  ", history.memory, need.highest),
        ("activity", history.activity or (), 1.0),
    ):
        if samples:
            yield line("  ", TextSpan(f"{name}  ", Ink.FAINT), sparkline(samples, top, paper))
    if history.activity and history.of_device:
        told = "activity is of the whole device, which other pods held too: how much of it this one took is unknown"
        yield from prose(told, paper, indent="  ", hang="  ", ink=Ink.WAITING)
    yield from _held_back(need, paper)
    hours = f"{need.samples} hourly peaks over {length(need.span)} ({need.coverage:.0%} of the hours)"
    yield from prose(hours, paper, indent="  ", hang="  ")
    if need.samples:
        told = f"p99 {_size(need.peak)}, highest {_size(need.highest)}"
        needs = "" if need.memory is None else f": needs {_size(need.memory)} with its headroom"
        yield from prose(told + needs, paper, indent="  ", hang="  ")
    doubts = "".join(f"; {doubt}" for doubt in need.doubts)
    yield from prose(f"{need.reason}{doubts}", paper, indent="  ", hang="  ", ink=Ink.FAINT)


def _held_back(need: Need, paper: Paper) -> Iterator[Line]:
    if Doubt.HELD_BACK in need.doubts and need.full is not None:
        holds = need.history.holds
        told = (
            f"in {need.full:.0%} of the hours it used all the compute of its {now_of(need.history)}"
            f" ({float(holds.compute):.0%} of the card); how much more it would use is unknown"
        )
        yield from prose(told, paper, indent="  ", hang="  ", ink=Ink.WAITING)


def sparkline(samples: Sequence[Sample], top: float, paper: Paper) -> str:
    """The highest of each part of the time; a blank where nothing is known."""
    first, last = samples[0].at, samples[-1].at
    cells = min(WIDTH, paper.room - BESIDE, round((last - first).total_seconds() / 3600) + 1)
    highest: list[float | None] = [None] * cells
    whole = (last - first).total_seconds() or 1.0
    for sample in samples:
        at = min(cells - 1, int((sample.at - first).total_seconds() / whole * cells))
        highest[at] = max(sample.value, highest[at] or 0.0)
    marks = SPARKS if paper.glyphs else ASCII
    # Not by a factor: of a top that is small enough it would be infinite.
    parts = [None if one is None else min(1.0, one / top) if top > 0 else 0.0 for one in highest]
    return "".join(" " if one is None else marks[round(one * (len(marks) - 1))] for one in parts)


def _layout(found: Recommendation, paper: Paper) -> list[Line]:
    lines: list[Line] = []
    for portion in found.portions:
        told = "whole" if portion.layout is None else layout_text(portion.layout)
        where = (
            "every GPU"
            if len(found.portions) == 1
            else f"GPU {','.join(map(str, portion.indexes))} of each node"
        )
        lines += prose(f"Layout: {told} on {where}", paper, hang="  ", ink=Ink.TITLE)
    return lines


def packing_of(found: Recommendation) -> str:
    """How many GPUs, compared with now, and what is left over."""
    if not found.placed:
        return "No layout: what the workloads need of an instance is unknown."
    pool = found.pool
    need = "needs" if found.pods == 1 else "need"
    told = [
        f"Packing for {found.goal}: {counted(found.pods, 'pod')} {need} {counted(found.gpus, 'GPU')} on"
        f" {counted(found.nodes, 'node')}; the pool has {pool.gpus} on {len(pool.nodes)}, {pool.used} of them in use"
    ]
    if found.gpus > pool.gpus:
        told.append(f"that is {found.gpus - pool.gpus} more than there are")
    if found.idle:
        told.append(f"room for {layout_text(found.idle).replace('+', ', ')} more")
    if lost := _stranded(found.stranded):
        told.append(lost)
    if found.worst is not None:
        told.append(_worst(found.worst))
    return f"{'; '.join(told)}."


def shared_of(one: Shared) -> str:
    """That sharing takes fewer GPUs, with the arithmetic and the price."""
    pods, gpus = counted(one.pods, "pod"), counted(one.gpus, "GPU")
    need, there = _size(one.needed), _size(one.there)
    if one.mode is Mode.MPS:
        way = f"MPS with {one.replicas} clients on each"
        fits = f"a client has {there}, and the largest need is {need}"
        busy = (
            ""
            if one.busy is None
            else f"; it has {1 / one.replicas:.0%} of the compute, and the busiest takes {one.busy:.0%}"
        )
        but = "a fatal fault of one reaches all clients of its GPU"
    else:
        way = f"time-slicing with {one.replicas} replicas of each"
        fits = f"the {one.replicas} that need most need {need} together, of {there}"
        busy = "" if one.busy is None else f"; the {one.replicas} busiest take {one.busy:.0%} of the compute"
        but = "one that takes too much memory makes the others fail"
    unknown = "; how busy all of them are is unknown" if one.busy is None else ""
    return (
        f"Sharing whole GPUs would take fewer: {pods} on {gpus} using {way}, and on {one.instead} using this layout"
        f" ({fits}{busy}{unknown}). But nothing isolates them: {but}, and nobody can be billed by use. Where nothing is"
        " promised to anybody and all trust each other, let them share: kubectl gpusharing advise asks about that"
    )


def _stranded(lost: Stranded) -> str:
    parts = ((lost.slices, "compute slice"), (lost.units, "memory unit"))
    told = " and ".join(counted(count, what) for count, what in parts if count)
    return f"no instance covers {told}" if told else ""


def _worst(one: CoLocation) -> str:
    parts = " + ".join(f"{count} x {each / GIB:.1f}" for _, count, each in one.parts)
    fits = "" if one.fits else ", more than it has"
    return f"worst co-location today {_size(one.bytes)} ({parts}) on a GPU with {_size(one.memory)}{fits}"


def _next(answer: RecommendReport, paper: Paper, written: str) -> list[Line]:
    lines: list[Line] = []
    for text in answer.steps:
        lines += prose(f"{text}.", paper, hang="  ")
    if answer.policy is None:
        return lines
    if written:
        told = (
            f"Wrote {written}. It has no effect until you apply it. What it would do: kubectl gpusharing plan"
            f" -f {written}"
        )
    else:
        told = "Nothing was changed. --write FILE writes the policy; kubectl gpusharing plan -f FILE says what it does"
    return [*lines, *prose(f"{told}.", paper, hang="  ")]


def _size(count: float) -> str:
    """Bytes, as quantities are written."""
    return f"{count / GIB:.1f}Gi"


def _part(part: float | None) -> str:
    return UNKNOWN if part is None else f"{part:.0%}"
