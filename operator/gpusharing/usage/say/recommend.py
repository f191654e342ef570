"""A recommendation as text, as data, as CSV, and as a policy that waits for an approval. Pure; nothing is applied."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from gpusharing.api.names import ANNOTATION_GPU_MEMORY, RESOURCE_MIG_PREFIX, Mode
from gpusharing.cli.changing.plan import Planned
from gpusharing.cli.changing.plan import as_data as as_plan_data
from gpusharing.cli.changing.plan import describe as describe_plan
from gpusharing.cli.shell.drawing import (
    BLANK,
    Column,
    Ink,
    Line,
    Paper,
    Span,
    describe_simulated,
    fold,
    length,
    line,
    prose,
    simulated_sentence,
    table,
)
from gpusharing.cli.shell.manifests import comment, policy_manifest
from gpusharing.planning.gpus.geometry import describe as layout_text
from gpusharing.planning.vocabulary.lengths import counted, some
from gpusharing.usage.prometheus.windows import duration, moment
from gpusharing.usage.read.histories import ObservedPool
from gpusharing.usage.read.poolnodes import NodeScope
from gpusharing.usage.reckon.histogram import Sample
from gpusharing.usage.reckon.needs import GIB, LEVELS, Confidence, Doubt, History, Need, Workload
from gpusharing.usage.reckon.recommendation import (
    Misplaced,
    Placed,
    Recommendation,
    Unplaced,
)
from gpusharing.usage.reckon.sharing import Shared, find_shared
from gpusharing.usage.say.cost import describe_doubts

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
    effect: Planned | str | None = None
    """What the policy would do, or why that is unknown, as a clause. None: nobody has asked."""
    context: str = ""
    """The context of the cluster in which that was planned."""

    @property
    def span(self) -> str:
        """Which time, which pool."""
        card = self.seen.model or "GPUs without a name"
        gpus = counted(sum(self.seen.nodes), "GPU")
        nodes = counted(len(self.seen.nodes), "node")
        time = f"{duration(self.end - self.start)} until {moment(self.end)}"
        return f"{time}, {self.scope.where}: {gpus} ({card}) on {nodes}"

    @property
    def packing(self) -> str:
        """What the layout takes."""
        return "" if self.found is None else packing_of(self.found)

    @property
    def steps(self) -> tuple[str, ...]:
        """What a person has to do besides."""
        return tuple(_steps(self))


def _steps(answer: RecommendReport) -> Iterator[str]:
    if answer.policy is not None and answer.found is not None and answer.found.unplaced:
        names = some([_name(one.need.workload) for one in answer.found.unplaced])
        yield (
            f"This layout has no place for {names}: give them GPUs elsewhere before you apply it to their nodes,"
            " or their pods may wait"
        )
    silent = [
        _name(need.workload)
        for need in answer.needs
        if Doubt.PREALLOCATED in need.doubts and need.history.declared is None
    ]
    if silent:
        yield (
            f"Ask the owners of {some(silent)} what a pod needs, and put it on the pods as {ANNOTATION_GPU_MEMORY}:"
            f" 15Gi. kube-state-metrics has to export it: --metric-annotations-allowlist=pods=[{ANNOTATION_GPU_MEMORY}]"
        )
    if answer.policy is not None and answer.scope.unlabelled:
        labels = ",".join(f"{key}={value}" for key, value in answer.scope.selector["matchLabels"].items())
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
            lines += _layouts(answer.found, paper)
        lines += prose(answer.packing, paper, hang="  ")
        if (shared := find_shared(answer.found)) is not None:
            lines += prose(f"{shared_of(shared)}.", paper, hang="  ", ink=Ink.WAITING)
        lines += describe_effect(answer.effect, paper)
        lines += _next(answer, paper, written)
    return [*lines, *describe_doubts(answer.remarks, answer.missing, paper)]


def _table(answer: RecommendReport, paper: Paper) -> list[Line]:
    placed = placed_of(answer.found)
    rows: list[list[Span]] = []
    for history in answer.seen.histories:
        whose = history.workload
        need = next((one for one in answer.needs if one.workload == whose), None)
        sure = Confidence.NONE if need is None else need.confidence
        rows.append(
            [
                Span(whose.namespace),
                Span(f"{whose.kind}/{whose.name}"),
                Span(str(history.pods)),
                Span(now_of(history), Ink.FAINT),
                Span(_size(need.peak) if need and need.samples else UNKNOWN),
                Span(UNKNOWN if need is None or need.compute is None else f"{need.compute:.0%}"),
                Span(advice_of(placed.get(whose)), Ink.TITLE),
                Span(str(sure), _INKS.get(sure, Ink.PLAIN)),
                Span(why_of(need, placed.get(whose)), Ink.FAINT),
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
    yield from fold(line(Span(f"{whose.namespace}  {whose.kind}/{whose.name}", Ink.TITLE)), paper)
    for name, samples, top in (
        ("memory  ", history.memory, need.highest),
        ("activity", history.activity or (), 1.0),
    ):
        if samples:
            yield line("  ", Span(f"{name}  ", Ink.FAINT), sparkline(samples, top, paper))
    if history.activity and history.of_device:
        told = "activity is of the whole device, which other pods held too: how much of it this one took is unknown"
        yield from prose(told, paper, indent="  ", hang="  ", ink=Ink.WAITING)
    if Doubt.HELD_BACK in need.doubts and need.full is not None:
        told = (
            f"in {need.full:.0%} of the hours it used all the compute of its {now_of(history)}"
            f" ({float(history.holds.compute):.0%} of the card); how much more it would use is unknown"
        )
        yield from prose(told, paper, indent="  ", hang="  ", ink=Ink.WAITING)
    hours = f"{need.samples} hourly peaks over {length(need.span)} ({need.coverage:.0%} of the hours)"
    yield from prose(hours, paper, indent="  ", hang="  ")
    if need.samples:
        told = f"p99 {_size(need.peak)}, highest {_size(need.highest)}"
        needs = "" if need.memory is None else f": needs {_size(need.memory)} with its headroom"
        yield from prose(told + needs, paper, indent="  ", hang="  ")
    doubts = "".join(f"; {doubt}" for doubt in need.doubts)
    yield from prose(f"{need.reason}{doubts}", paper, indent="  ", hang="  ", ink=Ink.FAINT)


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


def describe_effect(effect: Planned | str | None, paper: Paper) -> list[Line]:
    """What the policy would do, as `plan -f` shows it, or why that is not shown; empty if nobody has asked."""
    if effect is None:
        return []
    if isinstance(effect, str):
        return prose(f"Its plan is not shown: {effect}.", paper, hang="  ", ink=Ink.FAINT)
    title = prose("Its plan, if it were applied now:", paper, hang="  ", ink=Ink.TITLE)
    return [BLANK, *title, *describe_plan(effect, paper), BLANK]


def _layouts(found: Recommendation, paper: Paper) -> list[Line]:
    lines: list[Line] = []
    for portion in found.portions:
        layout = "whole" if portion.layout is None else layout_text(portion.layout)
        indexes = f"GPU {','.join(map(str, portion.indexes))} of each node"
        where = "every GPU" if len(found.portions) == 1 else indexes
        lines += prose(f"Layout: {layout} on {where}", paper, hang="  ", ink=Ink.TITLE)
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
    lost = ((found.stranded.slices, "compute slice"), (found.stranded.units, "memory unit"))
    if any(count for count, _ in lost):
        told.append(
            f"no instance covers {' and '.join(counted(count, what) for count, what in lost if count)}"
        )
    if (worst := found.worst) is not None:
        parts = " + ".join(f"{count} x {each / GIB:.1f}" for _, count, each in worst.parts)
        more = "" if worst.fits else ", more than it has"
        told.append(
            f"worst co-location today {_size(worst.bytes)} ({parts}) on a GPU with {_size(worst.memory)}{more}"
        )
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


_MODES = ("mode", "mig", "mps", "timeSlicing")


def policy_of(scope: NodeScope, found: Recommendation) -> dict[str, Any]:
    """The policy of a pool with this layout; everything else in an existing policy stays as it is."""
    kept = {
        key: value for key, value in scope.spec.items() if key not in (*_MODES, "nodeSelector", "rollout")
    }
    rollout = scope.spec.get("rollout")
    spec = {
        "nodeSelector": dict(scope.selector),
        **found.block(),
        **kept,
        "rollout": {**(rollout if isinstance(rollout, dict) else {}), "approval": "Manual"},
    }
    return policy_manifest(scope.name, spec, **scope.metadata)


def as_file(answer: RecommendReport) -> str:
    """With what it is based on, as comments."""
    import yaml  # as in terminal.py: it costs as much as a short command

    told = [
        "Proposed by kubectl gpusharing recommend from what was measured. Nothing changes until somebody"
        " approves the plan.",
        f"{answer.span}; {answer.packing}",
        *filter(None, (simulated_sentence(answer.seen.simulated),)),
        *(f"PARTIAL: {text}" for text in answer.missing),
        *answer.steps,
    ]
    return "".join(map(comment, told)) + yaml.safe_dump(answer.policy, sort_keys=False)


COLUMNS = (
    "from", "until", "pool", "namespace", "kind", "workload", "pods", "now", "peak_bytes", "need_bytes", "active",
    "advice", "confidence", "why", "samples", "partial",
    "simulated",
)  # fmt: skip
"""Of the CSV."""


def as_data(answer: RecommendReport) -> dict[str, Any]:
    """For programs."""
    placed = placed_of(answer.found)
    by_workload = {need.workload: need for need in answer.needs}
    return {
        "prometheus": answer.where,
        "from": moment(answer.start),
        "until": moment(answer.end),
        "pool": answer.scope.name,
        "card": answer.seen.model,
        "nodes": len(answer.seen.nodes),
        "gpus": sum(answer.seen.nodes),
        "gpusInUse": answer.seen.used,
        "partial": bool(answer.missing),
        "missing": list(answer.missing),
        "remarks": list(answer.remarks),
        "simulated": list(answer.seen.simulated),
        "next": list(answer.steps),
        "workloads": [
            _workload(history, by_workload.get(history.workload), placed.get(history.workload))
            for history in answer.seen.histories
        ],
        "recommendation": None if answer.found is None else _found(answer.found),
        "policy": answer.policy,
        "plan": as_plan_data(answer.effect, answer.context) if isinstance(answer.effect, Planned) else None,
        "notPlanned": answer.effect if isinstance(answer.effect, str) else None,
    }


def _workload(history: History, need: Need | None, one: Placed | Unplaced | None) -> dict[str, Any]:
    whose = history.workload
    return {
        "namespace": whose.namespace,
        "kind": whose.kind,
        "name": whose.name,
        "pods": history.pods,
        "now": now_of(history),
        "samples": len(history.memory),
        "peakBytes": round(need.peak) if need and need.samples else None,
        "highestBytes": round(need.highest) if need and need.samples else None,
        "needBytes": None if need is None else need.memory,
        "active": None if need is None or need.compute is None else round(need.compute, 4),
        "activeOfDevice": history.of_device,
        "advice": None if advice_of(one) == UNKNOWN else advice_of(one),
        "placed": isinstance(one, Placed),
        "confidence": str(Confidence.NONE if need is None else need.confidence),
        "doubts": [] if need is None else [str(doubt) for doubt in need.doubts],
        "why": why_of(need, one),
    }


def _shared(one: Shared) -> dict[str, Any]:
    """What shares whole GPUs for fewer of them."""
    return {
        "mode": str(one.mode),
        "replicas": one.replicas,
        "pods": one.pods,
        "gpus": one.gpus,
        "gpusByThisLayout": one.instead,
        "neededBytes": round(one.needed),
        "thereBytes": round(one.there),
        "active": None if one.busy is None else round(one.busy, 4),
    }


def _found(found: Recommendation) -> dict[str, Any]:
    shared = find_shared(found)
    return {
        "goal": str(found.goal),
        "mode": str(found.mode),
        "layouts": [
            {
                "profiles": None if portion.layout is None else dict(portion.layout),
                "gpusOfEachNode": list(portion.indexes) if len(found.template) > 1 else "all",
                "gpus": portion.gpus,
            }
            for portion in found.portions
        ],
        "pods": found.pods,
        "gpus": found.gpus,
        "nodes": found.nodes,
        "idle": dict(found.idle),
        "stranded": {"computeSlices": found.stranded.slices, "memoryUnits": found.stranded.units},
        "shared": None if shared is None else _shared(shared),
        "worstCoLocationBytes": None if found.worst is None else round(found.worst.bytes),
    }


def as_rows(answer: RecommendReport) -> list[tuple[object, ...]]:
    """A header and a row for each workload, for CSV; what is not known is empty."""
    data = as_data(answer)
    partial, simulated = ("yes" if data[name] else "no" for name in ("partial", "simulated"))
    rows = [
        (
            data["from"], data["until"], data["pool"], one["namespace"], one["kind"], one["name"], one["pods"],
            one["now"], one["peakBytes"], one["needBytes"], one["active"], one["advice"], one["confidence"],
            one["why"], one["samples"], partial, simulated,
        )
        for one in data["workloads"]
    ]  # fmt: skip
    return [COLUMNS, *rows]
