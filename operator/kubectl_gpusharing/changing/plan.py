"""`plan -f FILE | POLICY`: what an edit would do, computed by the operator's own planner on a live snapshot.

Before the operator is installed, the plan is an estimate: the GPUs are inferred from labels, as `import` does.

Exit status: that of the verdict (conclusion.py), or 1 if the plan could not be made.
"""

import asyncio
from argparse import Namespace
from dataclasses import dataclass, replace
from datetime import timedelta
from heapq import nlargest
from math import floor

from gpusharing.api.names import Phase
from gpusharing.kube.client import GPUNODES, JSON, POLICIES
from gpusharing.kube.errors import KubeError
from gpusharing.kube.raw import text
from gpusharing.planning.pools.hours import RECENT
from gpusharing.planning.report.proposal import Proposal, Step, foresee, tell_proposal
from gpusharing.planning.vocabulary.blockers import explain_blockers
from gpusharing.planning.vocabulary.lengths import counted, some
from kubectl_gpusharing.changing.conclusion import FAIL_ON, INKS, Outcome, conclude, judge, tell_span
from kubectl_gpusharing.changing.dependents import find_vanishing, read_dependents, read_tenants
from kubectl_gpusharing.live.cluster import MAX_LISTED, LivePlan, gathered
from kubectl_gpusharing.live.files import read_policies
from kubectl_gpusharing.pools.fleet import read_node
from kubectl_gpusharing.pools.timeline import read_changes
from kubectl_gpusharing.setup.adoption import with_pointers, with_presumed
from kubectl_gpusharing.setup.importing import read_admin_maps
from kubectl_gpusharing.shell.documents import ConclusionData, PlanData, ProposalData, StepData
from kubectl_gpusharing.shell.drawing import (
    BLANK,
    Ink,
    Line,
    Paper,
    Span,
    columns,
    describe_simulated,
    fold,
    line,
    prose,
    prose_of_each,
    table,
)
from kubectl_gpusharing.shell.session import Session, no_such, object_name
from kubectl_gpusharing.shell.terminal import Terminal
from kubectl_gpusharing.shell.troubles import Trouble

PRESUMED = (
    "No agent has read the GPUs. They are inferred from the labels and the advertised resources of the nodes, and"
    " ClusterPolicy is assumed to name the operator's ConfigMaps. To see what an installation needs first, run: kubectl"
    " gpusharing doctor"
)
MOST = 20
"""How many nodes and pods are listed; -o wide lists all."""
COLUMNS = columns(NODE=0, CLASS=3, NOW=2, AFTER=2, PODS=4, BUDGETS=5, WHEN=0)


@dataclass(frozen=True, slots=True)
class Planned:
    proposals: tuple[Proposal, ...] = ()
    notes: tuple[str, ...] = ()
    simulated: tuple[str, ...] = ()
    dependents: tuple[str, ...] = ()
    estimate: bool = False
    fail_on: tuple[str, ...] | None = None
    """None if the flag --fail-on was not given."""
    bars_tenants: bool = False
    """Whether the chart's guard would leave a tenant without nodes, or namespaces could not be listed (`read_tenants`)."""

    @property
    def verdict(self) -> ConclusionData:
        return conclude(
            self.proposals, estimate=self.estimate, fail_on=self.fail_on, bars_tenants=self.bars_tenants
        )


def describe(planned: Planned, paper: Paper) -> list[Line]:
    """Draw the whole plan, below the verdict."""
    verdict = planned.verdict
    lines = prose(verdict["message"], paper, hang="  ", ink=INKS[verdict["outcome"]])
    lines += [*describe_simulated(planned.simulated, paper), BLANK]
    for proposal in planned.proposals:
        refusal = f"{proposal.policy}: {proposal.about.rstrip('.')}"
        explained = not proposal.accepted and refusal in verdict["message"]
        lines += [*_describe(proposal, paper, estimate=planned.estimate, explained=explained), BLANK]
    lines += prose_of_each((f"! {one}." for one in planned.dependents), paper, ink=Ink.WAITING)
    lines += prose_of_each((f"Note: {note}" for note in planned.notes), paper, ink=Ink.FAINT)
    return [*lines, *prose("This is only a plan. Nothing was changed.", paper, ink=Ink.FAINT)]


def _describe(proposal: Proposal, paper: Paper, *, estimate: bool, explained: bool) -> list[Line]:
    lines = fold(_title(proposal, estimate=estimate), paper)
    if not explained:
        text, ink = ("Accepted", Ink.PLAIN) if proposal.accepted else ("Refused", Ink.BAD)
        lines += prose(f"{text}: {proposal.about}", paper, hang="  ", ink=ink)
    if proposal.accepted and proposal.steps:
        facts = (
            f"disruption class {proposal.disruption}",
            f"{counted(proposal.at_once, 'node')} at a time",
            f"windows: {', '.join(proposal.windows)}" if proposal.windows else "no time windows",
            f"takes {tell_span(proposal.lasts)}" if proposal.lasts else "",
            proposal.hash and f"plan {proposal.hash}",
        )
        lines += prose("; ".join(filter(None, facts)), paper, hang="  ")
    for product, gib in proposal.client_memory.items():
        text = (
            f"each MPS client of a {product} may use {floor(gib * 100) / 100:.2f} GiB of its memory and"
            f" {proposal.client_threads} % of its threads"
        )
        lines += prose(text, paper, hang="  ")
    shown = proposal.steps if paper.wide else proposal.steps[:MOST]
    if shown:
        rows = []
        for step in shown:
            verdict, preview = step.verdict, step.preview
            # Only the operator knows the progress of a change, because it has sent the evictions.
            when = "under way" if verdict.phase.in_flight else f"{verdict.phase}: {verdict.reason}"
            begins = Span("at once", Ink.GOOD) if step.starts else Span(when, Ink.WAITING)
            counts = ("?", "") if preview is None else (str(len(preview.pods)), ", ".join(preview.budgets))
            change = str(verdict.disruption), verdict.observed, verdict.wanted
            rows.append(line(verdict.node, *change, *counts, begins))
        lines += table(COLUMNS, rows, paper, "  ")
        if (more := len(proposal.steps) - len(shown)) > 0:
            lines.append(line(Span(f"  and {counted(more, 'more node')}; -o wide lists all", Ink.FAINT)))
        previews = [step.preview for step in proposal.steps if step.preview is not None]
        pods = [pod for preview in previews for pod in preview.pods]
        named = some(pods, len(pods) if paper.wide else MOST)
        texts = [f"pods that would be evicted: {named}"] if pods else []
        gangs = sorted({gang for preview in previews for gang in preview.gangs})
        texts += [f"gang that would be interrupted: {gang}" for gang in gangs]
        lines += prose_of_each(texts, paper, indent="  ")
    lines += _resources(proposal, paper)
    lines += prose_of_each((f"! {blocker}" for blocker in _blockers(proposal)), paper, ink=Ink.WAITING)
    if adopted := proposal.adopted:
        named = some(adopted, len(adopted) if paper.wide else MOST)
        nodes_are = counted(len(adopted), "node is", "nodes are")
        text = f"{nodes_are} already up to date and will not change: {named}"
        lines += prose(text, paper, hang="  ", ink=Ink.GOOD)
    blocked = [step.verdict for step in proposal.steps if step.verdict.phase is Phase.BLOCKED]
    # Blocking pods have been named already, so only blocked nodes without such pods are listed.
    others = {verdict.message: verdict for verdict in blocked if not verdict.blockers}
    for verdict in (*proposal.left_out, *others.values())[: None if paper.wide else 5]:
        why = "" if verdict.message == proposal.about else f": {verdict.message}"
        text = f"! {verdict.node} stays as it is ({verdict.reason}){why}"
        lines += prose(text, paper, hang="  ", ink=Ink.WAITING)
    return lines


def _title(proposal: Proposal, *, estimate: bool) -> Line:
    name, (outcome, why) = Span(proposal.policy, Ink.TITLE), judge(proposal, estimate=estimate)
    if not proposal.accepted:
        return line(name, "  ", Span(proposal.reason, Ink.BAD))
    if outcome is not Outcome.CHANGES:
        what = f"{outcome}: {why}" if why else "nothing to change"
        return line(name, "  ", Span(what, INKS[str(outcome)]))
    kinds = sorted({(s.verdict.observed or "?", s.verdict.wanted or "?") for s in proposal.steps})
    ways = ", ".join(f"{now} -> {after}" for now, after in kinds[:2]) + (" ..." if len(kinds) > 2 else "")
    count = len(proposal.steps)
    size = count + len(proposal.left_out) + len(proposal.adopted) + proposal.settled
    return line(name, f"  {ways}  ", Span(f"{count} of {counted(size, 'node')} will change", Ink.BUSY))


def _resources(proposal: Proposal, paper: Paper) -> list[Line]:
    if proposal.before == proposal.after or not proposal.accepted:
        return []
    shrinking = {one.resource: one for one in proposal.vanishing}
    lines: list[Line] = []
    for name in sorted({*proposal.before, *proposal.after}):
        now, then = proposal.before.get(name, 0), proposal.after.get(name, 0)
        if now == then:
            continue
        sign, ink = ("-", Ink.BAD) if then < now else ("+", Ink.GOOD)
        lines.append(line("  ", Span(f"{sign} {name}: {now} -> {then}", ink)))
        if (lost := shrinking.get(name)) is not None:
            requests = counted(len(lost.pods), "pod here requests", "pods here request")
            parts = [f"{requests} it ({some(lost.pods, 5)})"] if lost.pods else []
            if lost.pending:
                parts.append(f"{counted(lost.pending, 'pod is', 'pods are')} waiting for it")
            where = lost.demand.text if lost.demand.waiting else "other nodes still advertise it"
            where = where if lost.demand.remain else "no node would advertise it any more"
            if parts:
                lines += prose("; ".join((*parts, where)), paper, indent="    ", hang="  ")
    if proposal.single_keeps_name:
        hint = "spec.mig.strategy: single would keep the name nvidia.com/gpu, and no manifest would have to change"
        lines += prose(f"Hint: {hint}.", paper, indent="  ", hang="  ", ink=Ink.GOOD)
    return lines


def _blockers(proposal: Proposal) -> tuple[str, ...]:
    return explain_blockers(
        blocker for step in proposal.steps if step.preview is not None for blocker in step.preview.blockers
    )


# --- as data ---------------------------------------------------------------------------------------------


def as_data(planned: Planned, where: str) -> PlanData:
    return {
        "context": where,
        "verdict": planned.verdict,
        "policies": [_proposal_data(one, estimate=planned.estimate) for one in planned.proposals],
        "simulated": list(planned.simulated),
        "dependents": list(planned.dependents),
        "notes": list(planned.notes),
    }


def _proposal_data(proposal: Proposal, *, estimate: bool) -> ProposalData:
    return {
        "name": proposal.policy,
        "verdict": conclude((proposal,), estimate=estimate),
        "accepted": proposal.accepted,
        "reason": proposal.reason,
        "message": proposal.about,
        "hash": proposal.hash,
        "disruption": str(proposal.disruption),
        "atOnce": proposal.at_once,
        "windows": list(proposal.windows),
        "nodes": list(map(_step_data, proposal.steps)),
        "settled": proposal.settled,
        "adopted": list(proposal.adopted),
        "leftOut": [
            {"node": one.node, "reason": str(one.reason), "message": one.message} for one in proposal.left_out
        ],
        "capacityBefore": dict(proposal.before),
        "capacityAfter": dict(proposal.after),
        "vanishing": [
            {
                "resource": lost.resource,
                "before": lost.before,
                "after": lost.after,
                "offeredElsewhere": lost.demand.remain > 0,
                "asked": lost.demand.requested,
                "remain": lost.demand.remain,
                "willWait": lost.demand.waiting,
                "pods": list(lost.pods),
                "pending": lost.pending,
            }
            for lost in proposal.vanishing
        ],
        "blockers": list(_blockers(proposal)),
        "singleKeepsName": proposal.single_keeps_name,
        "clientMemoryGiB": dict(proposal.client_memory),
        "clientThreadsPercent": proposal.client_threads,
    }


def _step_data(step: Step) -> StepData:
    verdict, preview = step.verdict, step.preview
    return {
        "name": verdict.node,
        "disruption": str(verdict.disruption),
        "observed": verdict.observed,
        "wanted": verdict.wanted,
        "starts": step.starts,
        "phase": str(verdict.phase),
        "reason": str(verdict.reason),
        "message": verdict.message,
        "pods": None if preview is None else list(preview.pods),
        "budgets": None if preview is None else list(preview.budgets),
        "gangs": None if preview is None else list(preview.gangs),
    }


async def run(session: Session, typed: Namespace, terminal: Terminal) -> int:
    """Show what the policies in the files of `-f`, or else the present policies, would do."""
    fail_on = tuple(word.strip() for word in typed.fail_on.split(",")) if typed.fail_on else None
    if unknown := sorted({*(fail_on or ())} - {*FAIL_ON}):
        raise Trouble(f"--fail-on has no word {unknown[0]!r}; use one or more of {','.join(FAIL_ON)}")
    proposed, others = read_policies(typed.filename)
    only = {text(raw, "metadata", "name") for raw in proposed}
    for name in typed.policy if only else ():
        if name not in only:
            raise Trouble(no_such(POLICIES, name, sorted(only), "the file"))
    only = {*typed.policy} or only
    planned = await propose(session, proposed, only)
    planned = replace(planned, notes=(*others, *planned.notes), fail_on=fail_on)
    terminal.answer(
        PlanData,
        lambda: as_data(planned, session.name),
        lambda paper: describe(planned, paper),
        names=[object_name(POLICIES, one.policy) for one in planned.proposals],
    )
    return planned.verdict["exitStatus"]


async def propose(session: Session, proposed: tuple[JSON, ...], only: set[str]) -> Planned:
    """Return what would happen to the pools in `only` (all if it is empty); the others are planned too, because they compete for nodes. Raises Trouble, also if a name in `only` belongs to no policy."""
    async with gathered(session, proposed, beforehand=True) as cluster:
        if cluster.installed.missing:
            admin = await read_admin_maps(session, (await cluster.decide(())).snapshot)
            cluster.notes.insert(0, PRESUMED)
            cluster.foresee = lambda snapshot: with_presumed(with_pointers(snapshot, admin))
        live = await cluster.decide(only or None)
        ignored = live.snapshot.settings.gpu_operator_namespace
        proposals = tuple(
            tell_proposal(policy, live.plan, live.snapshot, live.now)
            for policy in live.snapshot.policies
            if not only or policy.name in only
        )
        most = max(1, min(RECENT, MAX_LISTED // max(1, len(proposals))))
        proposals = tuple([await _with_length(session, one, live, most) for one in proposals])
        vanishing = find_vanishing(proposals, live)
        dependents, unread = await read_dependents(session.client, vanishing, ignored)
        tenants, unlisted = await read_tenants(session.client, vanishing, live)
    names = [policy.name for policy in live.snapshot.policies]
    for name in sorted(only):
        if name not in names:
            raise Trouble(no_such(POLICIES, name, names, session.where))
    nodes = {node for one in proposals for node in live.plan.pools[one.policy].names}
    notes = (*live.notes, *unread, *unlisted)
    return Planned(
        proposals,
        notes,
        live.simulated(nodes),
        (*tenants, *dependents),
        estimate=cluster.installed.missing,
        bars_tenants=bool(tenants or unlisted),
    )


async def _with_length(session: Session, proposal: Proposal, live: LivePlan, most: int) -> Proposal:
    """Estimate from the histories of the nodes that changed last, those of the own pool first."""
    pool = live.plan.pools[proposal.policy]
    own = {*pool.names}

    async def read_past(node: str) -> list[timedelta]:
        try:
            return read_changes(read_node(await session.client.get(GPUNODES, node)), session.now())[0]
        except KubeError:
            return []

    dated = [
        (node.name in own, node.verified.changed_at, node.name)
        for node in live.snapshot.nodes.values()
        if node.verified is not None and node.verified.changed_at is not None
    ]
    async with asyncio.TaskGroup() as group:
        latest = nlargest(most, dated) if proposal.steps else ()
        tasks = [group.create_task(read_past(name)) for _, _, name in latest]
    past = [took for task in tasks for took in task.result()]
    return replace(proposal, lasts=foresee(pool, live.snapshot, live.now, len(proposal.steps), past))
