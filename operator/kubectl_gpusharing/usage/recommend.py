"""`advise --from-prometheus`, or `recommend`: which layout suits a pool, by what its workloads used?

It needs only Prometheus with dcgm-exporter, not the operator. Where the operator is installed, it also shows the plan
of the policy. Nothing is applied: `--write FILE` writes a policy that waits for an approval.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

from gpusharing.api.names import ANNOTATION_GPU_MEMORY, RESOURCE_MIG_PREFIX, Mode
from gpusharing.kube.background import run_command
from gpusharing.planning.gpus.cards import memory_of
from gpusharing.planning.gpus.geometry import describe as layout_text
from gpusharing.planning.vocabulary.commands import Command
from gpusharing.planning.vocabulary.lengths import counted, some
from kubectl_gpusharing.changing import plan
from kubectl_gpusharing.changing.plan import Planned, propose
from kubectl_gpusharing.live.files import comment, policy_manifest
from kubectl_gpusharing.setup.layouts import pick
from kubectl_gpusharing.shell import drawing
from kubectl_gpusharing.shell.arguments import Arguments
from kubectl_gpusharing.shell.documents import LayoutChoiceData, RecommendationData, SavingData, WorkloadData
from kubectl_gpusharing.shell.drawing import BLANK, Column, Ink, Line, PrintOptions, Span, fold, line, prose, table
from kubectl_gpusharing.shell.session import Session
from kubectl_gpusharing.shell.terminal import Terminal
from kubectl_gpusharing.shell.troubles import CHANGES, DONE, Trouble, error_text
from kubectl_gpusharing.usage.bills import Price, price_of
from kubectl_gpusharing.usage.cost import amount, describe_doubts, money
from kubectl_gpusharing.usage.endpoints import find_endpoint
from kubectl_gpusharing.usage.histories import find_pool, read_usage
from kubectl_gpusharing.usage.meter import read_price
from kubectl_gpusharing.usage.needs import (
    GIB,
    LEVELS,
    MIN_POINTS,
    MIN_SPAN,
    Confidence,
    Doubt,
    Goal,
    History,
    Need,
    Sample,
    Workload,
    find_need,
)
from kubectl_gpusharing.usage.packing import Outcome, Placement
from kubectl_gpusharing.usage.prometheus import Prometheus, prometheus_at
from kubectl_gpusharing.usage.queries import HOUR, MeterQuery, selector_of
from kubectl_gpusharing.usage.recommendation import ModelPool, Portion, Recommendation, Shared, find_shared, recommend
from kubectl_gpusharing.usage.scopes import NodeScope, find_in_cluster, find_in_prometheus, narrow, rows_of
from kubectl_gpusharing.usage.windows import DAY, duration, moment, span_of
from kubectl_gpusharing.usage.workloads import Fold

UNKNOWN = "?"
SPARKS, ASCII = "▁▂▃▄▅▆▇█", "_.-=+*%#"
BETA = "Beta: no recommendation has been checked on a fleet of real GPUs yet; begin with a canary"
WIDTH = 48
"""The most characters in a sparkline."""
_INKS = {Confidence.NONE: Ink.WAITING, Confidence.LOW: Ink.FAINT, Confidence.HIGH: Ink.GOOD}


@dataclass(frozen=True, slots=True)
class RecommendReport:
    where: str
    start: float
    """The start of the window, in seconds since 1970, as is `end`."""
    end: float
    scope: NodeScope
    pool: ModelPool
    recommendation: Recommendation | None
    """The recommended layout; None if the layouts that the card can have are unknown."""
    policy: dict[str, object] | None
    missing: Sequence[str]
    remarks: Sequence[str]
    price: Price | None
    effect: plan.Planned | str | None = None
    """The plan of the policy, or a clause that says why it is unknown; None if no plan was requested."""
    context: str = ""

    @property
    def span(self) -> str:
        """A heading such as `14d until 2026-11-01T06:00:00Z, policy a: 16 GPUs (H100) on 2 nodes`."""
        card = self.pool.model or "GPUs without a name"
        gpus = counted(self.pool.gpus, "GPU")
        nodes = counted(len(self.pool.nodes), "node")
        time = f"{duration(self.end - self.start)} until {moment(self.end)}"
        return f"{time}, {self.scope.where}: {gpus} ({card}) on {nodes}"

    @property
    def places(self) -> dict[Workload, Placement]:
        found = self.recommendation
        places = [] if found is None else [*found.placed, *found.unplaced]
        return {place.need.workload: place for place in sorted(places, key=lambda each: each.need.workload)}


def _steps(answer: RecommendReport) -> Iterator[str]:
    if answer.policy is not None and answer.recommendation is not None and answer.recommendation.unplaced:
        names = some([each.need.workload.ref for each in answer.recommendation.unplaced])
        yield (
            f"This layout has no room for {names}: provide GPUs for them elsewhere before you apply it to their nodes,"
            " or their pods may stay Pending"
        )
    silent = [
        need.workload.ref
        for need in (place.need for place in answer.places.values())
        if Doubt.PREALLOCATED in need.doubts and need.history.declared is None
    ]
    if silent:
        yield (
            f"Ask the owners of {some(silent)} how much GPU memory a pod needs, and declare it on the pods, for example"
            f" {ANNOTATION_GPU_MEMORY}:"
            f" 15Gi. kube-state-metrics has to export it: --metric-annotations-allowlist=pods=[{ANNOTATION_GPU_MEMORY}]"
        )
    if answer.policy is not None and answer.scope.unlabelled:
        labels = (f"{key}={value}" for key, value in answer.scope.selector["matchLabels"].items())
        command = Command.of("kubectl label node NODE", *labels, effects=())  # it only lets the policy select them
        yield f"The policy selects nodes by a label that they do not have yet: {command}"


def describe(answer: RecommendReport, options: PrintOptions, *, verbose: bool, written: str) -> list[Line]:
    """Draw the answer; `verbose` adds the samples of each workload. `written` is the file of the policy, or empty."""
    lines = prose(answer.span, options, ink=Ink.TITLE)
    lines += drawing.describe_simulated(answer.pool.simulated, options)
    lines += prose(f"{BETA}.", options, ink=Ink.FAINT)
    lines += _table(answer, options)
    if verbose:
        lines += [part for place in answer.places.values() for part in _evidence(place.need, options)]
    if (found := answer.recommendation) is not None:
        lines.append(BLANK)
        if found.placed:
            for text in layouts_of(found.portions):
                lines += prose(f"Layout: {text}", options, hang="  ", ink=Ink.TITLE)
        lines += prose(packing_of(found), options, hang="  ")
        if found.placed:
            lines += prose(saving_of(found.saved, answer.price), options, hang="  ", ink=Ink.GOOD)
        if (shared := find_shared(found)) is not None:
            lines += prose(f"{shared_of(shared)}.", options, hang="  ", ink=Ink.WAITING)
        lines += describe_effect(answer.effect, options)
        texts = [*_steps(answer)]
        if answer.policy is not None:
            texts.append(
                f"Wrote {written}. It has no effect until you apply it. To see what it would do: kubectl gpusharing plan"
                f" -f {written}"
                if written
                else "Nothing was changed. --write FILE writes the policy; kubectl gpusharing plan -f FILE shows its"
                " effect"
            )
        lines += [one for text in texts for one in prose(f"{text}.", options, hang="  ")]
    return [*lines, *describe_doubts(answer.remarks, answer.missing, options)]


def _table(answer: RecommendReport, options: PrintOptions) -> list[Line]:
    places = answer.places
    goal = Goal.COST if answer.recommendation is None else answer.recommendation.goal
    busy = f"{LEVELS[goal][1]:.0%} BUSY"
    rows: list[dict[str, str | Span]] = []
    for history in answer.pool.histories:
        place = places.get(history.workload)
        row = _workload(history, place)
        sure = Confidence(row["confidence"])
        compute = None if place is None else place.need.compute
        rows.append(
            {
                "NAMESPACE": row["namespace"],
                "WORKLOAD": f"{row['kind']}/{row['name']}",
                "PODS": str(row["pods"]),
                "NOW": Span(row["now"], Ink.FAINT),
                "PEAK MEM": _size(row["highestBytes"]),
                "99% MEM": _size(row["peakBytes"]),
                busy: UNKNOWN if compute is None else f"{compute:.0%}",
                "ADVICE": Span(row["advice"] or UNKNOWN, Ink.TITLE),
                "CERTAINTY": Span(sure, _INKS.get(sure, Ink.PLAIN)),
                "WHY": Span(row["why"], Ink.FAINT),
            }
        )
    drops = {"CERTAINTY": 1, "NOW": 2, "99% MEM": 2, busy: 3, "WHY": 4}
    columns = [Column(title, drops.get(title, 0)) for title in rows[0]]
    legend = f"99% MEM, {busy}: so many of the hours stay at or below this value; recent hours count more."
    cells = [line(*row.values()) for row in rows]
    return [*table(columns, cells, options), *prose(legend, options, ink=Ink.FAINT)]


def now_of(history: History) -> str:
    """Return what each pod holds now, such as `1g.20gb`, `1/4 GPU`, `full GPU` or `2 GPUs`."""
    holds = history.holds
    if holds.resource.startswith(RESOURCE_MIG_PREFIX):
        device = holds.resource.removeprefix(RESOURCE_MIG_PREFIX).removesuffix(".shared")
    elif holds.share is None:
        return "shared GPU"
    elif holds.share == 1:
        return "full GPU" if holds.devices == 1 else f"{holds.devices} GPUs"
    else:
        device = f"{holds.share} GPU"
    return device if holds.devices == 1 else f"{holds.devices}x {device}"


def why_of(place: Placement | None) -> str:
    """Return the reasons for the advice, or why there is none, comma-separated."""
    if place is None:
        return "unknown card"
    need = place.need
    if Doubt.PREALLOCATED in need.doubts and need.history.declared is None:
        return need.reason
    if place.why is Outcome.UNKNOWN:
        return need.reason if need.samples else "what it uses is unknown"
    if not place.why.placed:
        return str(place.why)
    reasons = [str(place.why)]
    reasons += [str(doubt) for doubt in need.doubts if doubt is not Doubt.PREALLOCATED]
    if need.history.declared is not None:
        reasons.append(f"its owner declared {_size(need.history.declared)}")
    elif need.confidence is not Confidence.HIGH:
        reasons.append(need.reason)
    if need.idle is not None and need.idle > 0.5:
        reasons.append(f"idle {need.idle:.0%} of the time")
    return ", ".join(reasons)


def _evidence(need: Need, options: PrintOptions) -> Iterator[Line]:
    workload, history = need.workload, need.history
    yield BLANK
    yield from fold(line(Span(f"{workload.namespace}  {workload.kind}/{workload.name}", Ink.TITLE)), options)
    if history.memory:
        yield line("  ", Span("memory    ", Ink.FAINT), sparkline(history.memory, need.highest, options))
    if history.activity:
        yield line("  ", Span("activity  ", Ink.FAINT), sparkline(history.activity, 1.0, options))
    indented = partial(prose, options=options, indent="  ", hang="  ")
    if history.activity and history.of_device:
        device = (
            "activity is measured for the whole device, which other pods also used; how much of it came from this"
            " workload is unknown"
        )
        yield from indented(device, ink=Ink.WAITING)
    if Doubt.HELD_BACK in need.doubts and need.full is not None:
        held = (
            f"in {need.full:.0%} of the hours it used all the compute of its {now_of(history)}"
            f" ({float(history.holds.compute):.0%} of the card); how much more it would use is unknown"
        )
        yield from indented(held, ink=Ink.WAITING)
    hours = f"{need.samples} hourly peaks over {drawing.length(need.span)} ({need.coverage:.0%} of the hours)"
    yield from indented(hours)
    if need.samples:
        needs = "" if need.memory is None else f": needs {_size(need.memory)} including headroom"
        peaks = f"peak {_size(need.highest)}, at most {_size(need.peak)} in 99% of the hours"
        yield from indented(peaks + needs)
    doubts = "".join(f"; {doubt}" for doubt in need.doubts)
    yield from indented(f"{need.reason}{doubts}", ink=Ink.FAINT)


def sparkline(samples: Sequence[Sample], top: float, options: PrintOptions) -> str:
    """Return characters whose heights show the highest sample of each stretch, relative to `top`."""
    first, last = samples[0][0], samples[-1][0]
    cells = min(WIDTH, options.room - len("  activity  "), round((last - first).total_seconds() / 3600) + 1)
    highest: list[float | None] = [None] * cells
    whole = (last - first).total_seconds() or 1.0
    for at, value in samples:
        cell = min(cells - 1, int((at - first).total_seconds() / whole * cells))
        highest[cell] = max(value, highest[cell] or 0.0)
    marks = SPARKS if options.glyphs else ASCII
    # Each value is divided by top, because a factor of 1 / top would be infinite for a very small top.
    parts = [None if part is None else min(1.0, part / top) if top > 0 else 0.0 for part in highest]
    return "".join(" " if part is None else marks[round(part * (len(marks) - 1))] for part in parts)


def describe_effect(effect: plan.Planned | str | None, options: PrintOptions) -> list[Line]:
    if effect is None:
        return []
    if isinstance(effect, str):
        return prose(f"Its plan is not shown: {effect}.", options, hang="  ", ink=Ink.FAINT)
    title = prose("Its plan, if it were applied now:", options, hang="  ", ink=Ink.TITLE)
    return [BLANK, *title, *plan.describe(effect, options), BLANK]


def layouts_of(portions: Sequence[Portion]) -> Iterator[str]:
    """Yield a phrase for each layout, such as `7x1g.10gb on every GPU`."""
    for portion in portions:
        layout = "whole" if portion.layout is None else layout_text(portion.layout)
        indexes = f"GPU {','.join(map(str, portion.indexes))} of each node"
        yield f"{layout} on {'every GPU' if len(portions) == 1 else indexes}"


MONTH = Fraction(365 * 24, 12)
"""The mean number of hours in a month."""


def saving_of(saved: int, price: Price | None) -> str:
    """Return a sentence about how many GPUs are saved, or needed if it is below 0, and how much money a month."""
    if not saved:
        return "That saves no GPU."
    gpus = f"That saves {counted(saved, 'GPU')}" if saved > 0 else f"That takes {counted(-saved, 'GPU')} more"
    if price is None:
        return f"{gpus}. To see that in money, pass --price."
    cents = abs(round(saved * price.amount * MONTH * 100))
    return f"{gpus}, about {money(cents, price.currency)} a month ({amount(price.amount)} an hour for each)."


def saving_data(saved: int | None, price: Price | None) -> SavingData | None:
    if saved is None:
        return None
    month = None if price is None else round(float(saved * price.amount * MONTH), 2)
    return {"gpus": saved, "perMonth": month, "currency": None if price is None else price.currency}


def packing_of(recommendation: Recommendation) -> str:
    if not recommendation.placed:
        return "There is no layout, because it is unknown how large an instance the workloads need."
    pool = recommendation.pool
    need = "needs" if recommendation.pods == 1 else "need"
    clauses = [
        f"{counted(recommendation.pods, 'pod')} {need}"
        f" {counted(recommendation.gpus, 'GPU')} on {counted(recommendation.nodes, 'node')}; the pool has"
        f" {counted(pool.gpus, 'GPU')} on {counted(len(pool.nodes), 'node')}, {pool.used} of them in use"
    ]
    if recommendation.gpus > pool.gpus:
        clauses.append(f"that is {recommendation.gpus - pool.gpus} more than the pool has")
    if recommendation.idle:
        clauses.append(f"instances left free: {layout_text(recommendation.idle).replace('+', ', ')}")
    lost = zip(recommendation.stranded, ("compute slice", "memory unit"), strict=True)
    if unused := " and ".join(counted(count, what) for count, what in lost if count):
        clauses.append(f"unused: {unused}")
    if recommendation.worst:
        parts = " + ".join(f"{count} x {each / GIB:.1f}" for count, each in recommendation.worst)
        used, memory = recommendation.worst_bytes, memory_of(recommendation.card) * GIB
        only = "" if used <= memory else "only "
        clauses.append(
            f"if all pods on the fullest shared GPU had their peak at once today, they would use {_size(used)}"
            f" ({parts}), and the GPU has {only}{_size(memory)}"
        )
    return f"{'; '.join(clauses)}."


def shared_of(shared: Shared) -> str:
    """Return sentences, without the last period, about what sharing whole GPUs saves, and its disadvantages."""
    way = f"time-slicing and {shared.replicas} replicas"
    whose = f"the largest {counted(shared.replicas, 'pod')}"
    but = "a pod that uses too much memory makes the others fail"
    if shared.mode is Mode.MPS:
        way, whose = f"MPS and {shared.replicas} clients", "the largest client"
        but = "a fatal fault in one pod affects all clients of its GPU"
    busy = "; the compute is unknown" if shared.busy is None else f" and {shared.busy:.0%} of the compute"
    return (
        f"Sharing whole GPUs would need fewer GPUs: with {way} on each, {counted(shared.pods, 'pod')} would run on"
        f" {counted(shared.gpus, 'GPU')} instead of {shared.instead} with this layout ({whose} would use"
        f" {_size(shared.needed)} of {_size(shared.there)}{busy}). But nothing isolates them: {but}, and they"
        " cannot be billed for what they use. If no isolation was promised and all of them trust each other, they can"
        " share GPUs. To find out: kubectl gpusharing advise"
    )


def _size(count: float | None) -> str:
    return UNKNOWN if count is None else f"{count / GIB:.1f}Gi"


def policy_of(scope: NodeScope, recommendation: Recommendation) -> dict[str, Any]:
    """Return a policy with this layout, manual approval, and the other settings of an existing policy of `scope`."""
    replaced = ("mode", "mig", "mps", "timeSlicing", "nodeSelector", "rollout")
    unchanged = {key: value for key, value in scope.spec.items() if key not in replaced}
    rollout = scope.spec.get("rollout")
    spec = {
        "nodeSelector": dict(scope.selector),
        **recommendation.block(),
        **unchanged,
        "rollout": {**(rollout if isinstance(rollout, dict) else {}), "approval": "Manual"},
    }
    return policy_manifest(scope.name, spec, **scope.metadata)


def as_file(answer: RecommendReport) -> str:
    import yaml  # as in terminal.py: it costs as much as a short command

    found = answer.recommendation
    comments = [
        "Proposed by kubectl gpusharing recommend from measured usage. Nothing changes until someone"
        " approves the plan.",
        answer.span if found is None else f"{answer.span}; {packing_of(found)}",
        *filter(None, (drawing.simulated_sentence(answer.pool.simulated),)),
        f"{BETA}.",
        *(f"PARTIAL: {text}" for text in answer.missing),
        *_steps(answer),
    ]
    return "".join(map(comment, comments)) + yaml.safe_dump(answer.policy, sort_keys=False)


COLUMNS = {
    "from": "from", "until": "until", "pool": "pool", "namespace": "namespace", "kind": "kind", "workload": "name",
    "pods": "pods", "now": "now", "peak_bytes": "peakBytes", "need_bytes": "needBytes", "active": "active",
    "advice": "advice", "confidence": "confidence", "why": "why", "samples": "samples", "partial": "partial",
    "simulated": "simulated", "highest_bytes": "highestBytes",
}  # fmt: skip
"""The header of the CSV, with the names of its values in the plain data."""


def as_data(answer: RecommendReport) -> RecommendationData:
    places, found, effect = answer.places, answer.recommendation, answer.effect
    return {
        "prometheus": answer.where,
        "from": moment(answer.start),
        "until": moment(answer.end),
        "pool": answer.scope.name,
        "card": answer.pool.model,
        "nodes": len(answer.pool.nodes),
        "gpus": answer.pool.gpus,
        "gpusInUse": answer.pool.used,
        "partial": bool(answer.missing),
        "missing": list(answer.missing),
        "remarks": list(answer.remarks),
        "simulated": list(answer.pool.simulated),
        "next": list(_steps(answer)),
        "workloads": [_workload(each, places.get(each.workload)) for each in answer.pool.histories],
        "recommendation": None if found is None else _recommendation_data(found, answer.price),
        "policy": answer.policy,
        "plan": plan.as_data(effect, answer.context) if isinstance(effect, plan.Planned) else None,
        "notPlanned": effect if isinstance(effect, str) else None,
    }


def _workload(history: History, place: Placement | None) -> WorkloadData:
    workload, need = history.workload, None if place is None else place.need
    advice = None if place is None else place.profile or (counted(place.gpus, "GPU") if place.gpus else None)
    return {
        "namespace": workload.namespace,
        "kind": workload.kind,
        "name": workload.name,
        "pods": history.pods,
        "now": now_of(history),
        "samples": len(history.memory),
        "peakBytes": round(need.peak) if need and need.samples else None,
        "highestBytes": round(need.highest) if need and need.samples else None,
        "needBytes": None if need is None else need.memory,
        "active": None if need is None or need.compute is None else round(need.compute, 4),
        "activeOfDevice": history.of_device,
        "advice": advice,
        "placed": place is not None and place.why.placed,
        "confidence": str(Confidence.NONE if need is None else need.confidence),
        "doubts": [] if need is None else [str(doubt) for doubt in need.doubts],
        "why": why_of(place),
    }


def _recommendation_data(recommendation: Recommendation, price: Price | None) -> LayoutChoiceData:
    shared, (slices, units) = find_shared(recommendation), recommendation.stranded
    return {
        "goal": str(recommendation.goal),
        "mode": str(recommendation.mode),
        "layouts": [
            {
                "profiles": None if portion.layout is None else dict(portion.layout),
                "gpusOfEachNode": list(portion.indexes) if len(recommendation.template) > 1 else "all",
                "gpus": portion.gpus,
            }
            for portion in recommendation.portions
        ],
        "pods": recommendation.pods,
        "gpus": recommendation.gpus,
        "nodes": recommendation.nodes,
        "idle": dict(recommendation.idle),
        "stranded": {"computeSlices": slices, "memoryUnits": units},
        "shared": None
        if shared is None
        else {
            "mode": str(shared.mode),
            "replicas": shared.replicas,
            "pods": shared.pods,
            "gpus": shared.gpus,
            "gpusByThisLayout": shared.instead,
            "neededBytes": round(shared.needed),
            "thereBytes": round(shared.there),
            "active": None if shared.busy is None else round(shared.busy, 4),
        },
        "saving": saving_data(recommendation.saved, price),
        "worstCoLocationBytes": round(recommendation.worst_bytes) if recommendation.worst else None,
    }


def as_rows(answer: RecommendReport) -> Iterator[Sequence[object]]:
    yield tuple(COLUMNS)
    data = as_data(answer)
    marks = {name: "yes" if data[name] else "no" for name in ("partial", "simulated")}
    for row in data["workloads"]:
        values = {**data, **row, **marks}
        yield [values[name] for name in COLUMNS.values()]


MOST = round(30 * DAY)
"""The longest window, in seconds. Samples older than a few days have almost no weight."""


def run_offline(typed: Arguments, terminal: Terminal) -> int:
    return run_command(run(None, typed, terminal))


async def run(session: Session | None, typed: Arguments, terminal: Terminal) -> int:
    """Print a recommendation with the plan of its policy; without a `session`, from the URL in `--prometheus`."""
    _check(typed)
    async with prometheus_at(await find_endpoint(session, typed)) as prometheus:
        answer = await find_answer(prometheus, typed, session)
    if answer.policy is not None and terminal.output != "csv":
        effect = await find_effect(session, answer.scope, answer.policy)
        answer = replace(answer, effect=effect, context="" if session is None else session.name)
    if typed.write and answer.policy is not None:
        try:
            with Path(typed.write).open("x") as file:  # noqa: ASYNC230 - nothing else goes on here
                file.write(as_file(answer))
        except OSError as error:
            raise Trouble(f"--write {typed.write}: {error_text(error)}") from error
    terminal.answer(
        RecommendationData,
        lambda: as_data(answer),
        lambda options: describe(answer, options, verbose=typed.verbose, written=typed.write),
        lambda: as_rows(answer),
    )
    if typed.write and answer.policy is None:
        room = "no layout has room for any workload"
        why = _unknown(answer.pool) if answer.recommendation is None else room
        raise Trouble(f"--write {typed.write}: there is no layout to write, because {why}")
    return CHANGES if answer.missing else DONE


def _check(typed: Arguments) -> None:
    span_of(typed, 0.0, MOST)
    selector_of(typed.match)
    price_of(typed.price)
    if typed.policy and typed.selector:
        raise Trouble("pass either --policy or -l, not both")
    if typed.selector:
        rows_of(typed.selector)
    if typed.card:
        pick(typed.card)
    try:
        if typed.write and Path(typed.write).exists():
            raise Trouble(f"--write {typed.write}: the file already exists; choose another name")
    except (OSError, ValueError) as error:
        raise Trouble(f"--write {typed.write[:200]}: {error_text(error)}") from error


async def find_answer(prometheus: Prometheus, typed: Arguments, session: Session | None) -> RecommendReport:
    start, end = span_of(typed, await prometheus.now(), MOST)
    # Hours are those of the clock, so that the answer does not depend on the minute at which it is asked for.
    start, end = start - end % HOUR, end - end % HOUR
    selector = selector_of(typed.match)
    if session is not None:
        scope = await find_in_cluster(session, typed)
    else:
        scope = await find_in_prometheus(prometheus, typed, selector, end)
    card = pick(typed.card) if typed.card else None
    fold = Fold(end, max(1, round((end - start) / HOUR)), scope.nodes, card)
    missing = await read_usage(prometheus, fold, start, selector)
    pool = find_pool(fold, scope.where)
    if not pool.histories:
        raise Trouble(
            f"no pod used a GPU of {scope.where} during this window, or dcgm-exporter does not report pods (set"
            " DCGM_EXPORTER_KUBERNETES=true)"
        )
    scope, unseen = narrow(scope, len(pool.nodes), "" if card is None else card.key)
    goal = Goal(typed.goal or "cost")
    remarks = [*filter(None, (prometheus.endpoint.remark,)), *scope.remarks, *unseen, *pool.remarks]
    recommendation, policy = None, None
    if pool.card is None or not pool.card.memory_gb:
        missing.append(f"{_unknown(pool)}, so there is nothing to recommend")
    else:
        needs = tuple(find_need(history, pool.card, goal) for history in pool.histories)
        if all(need.confidence is Confidence.NONE and Doubt.TOO_LITTLE in need.doubts for need in needs):
            best = max(needs, key=lambda need: (need.samples, need.workload))
            hours, least = best.span.total_seconds() / 3600, MIN_SPAN.total_seconds() / 3600
            raise Trouble(
                f"too little history to recommend anything: {MIN_POINTS} hourly peaks over {round(least)} h are needed; of"
                f" {counted(len(needs), 'workload')}, {best.workload.ref} has the most, with"
                f" {best.samples} over {round(hours)} h. Try again later, or use a longer --window"
            )
        recommendation = recommend(pool, needs, goal=goal)
        # A layout that serves no workload is not worth applying.
        policy = policy_of(scope, recommendation) if recommendation.placed else None
    lately = MeterQuery(max(start, end - DAY), end, selector=selector)
    price = price_of(typed.price) or await read_price(prometheus, lately, pool.names)
    where = prometheus.endpoint.where
    return RecommendReport(where, start, end, scope, pool, recommendation, policy, missing, remarks, price)


async def find_effect(session: Session | None, scope: NodeScope, policy: dict[str, object]) -> Planned | str:
    if session is None:
        return "with --prometheus, the cluster is not contacted; use --service for a Prometheus inside one"
    if scope.unlabelled:
        return "no node has the policy's selector label yet; set the label, then run plan -f FILE"
    try:
        return await propose(session, (policy,), {scope.name})
    except Trouble as trouble:
        return str(trouble)


def _unknown(pool: ModelPool) -> str:
    return f"the possible layouts of {pool.model or 'a GPU of unknown model'} are unknown"
