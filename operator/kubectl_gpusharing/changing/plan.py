"""`plan -f FILE | POLICY`: what an edit would do, computed by the operator's own planner on a live snapshot.

Before the operator is installed, the plan is an estimate: the GPUs are inferred from labels, as `import` does.

Exit status: that of the verdict (conclusion.py), or 1 if the plan could not be made.

Terms: docs/design/glossary.md#gang.
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
from gpusharing.planning.report.proposal import Proposal, Step, Vanishing, foresee, tell_proposal
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
    """All the results that `plan` shows."""

    proposals: tuple[Proposal, ...] = ()
    """For each pool, what would happen to it."""
    notes: tuple[str, ...] = ()
    """Sentences about what is uncertain in the proposals."""
    simulated: tuple[str, ...] = ()
    """Nodes of these pools whose GPUs are SIMULATED."""
    dependents: tuple[str, ...] = ()
    """Sentences about other objects that refer to resources or labels which will no longer exist."""
    estimate: bool = False
    """Whether the GPUs were inferred from labels, because the operator is not installed."""
    fail_on: tuple[str, ...] | None = None
    """The words of --fail-on, or None if the flag was not given."""
    bars_tenants: bool = False
    """Whether a namespace that the chart's guard for tenants limits would be left without any node for its GPU pods, or
    it is unknown because namespaces could not be listed (`read_tenants`)."""

    @property
    def verdict(self) -> ConclusionData:
        """The verdict on all proposals together."""
        return conclude(
            self.proposals, estimate=self.estimate, fail_on=self.fail_on, bars_tenants=self.bars_tenants
        )


def describe(planned: Planned, paper: Paper) -> list[Line]:
    """Draw the verdict with the totals, the nodes with SIMULATED GPUs, all proposals (`_describe`), the objects that
    depend on what vanishes, the notes about what is uncertain, and a sentence that nothing was changed."""
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
    """Draw what would happen to one pool: the title, whether its policy is accepted and why, the summary if nodes
    change, the share of each MPS client, the table of nodes that would change (at most MOST unless the paper is wide),
    the pods that would be evicted, the resources whose numbers change, what blocks the changes, and which nodes stay as
    they are and why. The pods are left out with the table if no node changes, and other parts if they are empty. The
    acceptance is left out if `explained` is true, because the verdict above has it."""
    lines = fold(_title(proposal, estimate=estimate), paper)
    if not explained:
        text, ink = ("Accepted", Ink.PLAIN) if proposal.accepted else ("Refused", Ink.BAD)
        lines += prose(f"{text}: {proposal.about}", paper, hang="  ", ink=ink)
    if proposal.accepted and proposal.steps:
        lines += prose(_summary(proposal), paper, hang="  ")
    for product, gib in proposal.client_memory.items():
        text = (
            f"each MPS client of a {product} may use {floor(gib * 100) / 100:.2f} GiB of its memory and"
            f" {proposal.client_threads} % of its threads"
        )
        lines += prose(text, paper, hang="  ")
    shown = proposal.steps if paper.wide else proposal.steps[:MOST]
    if shown:
        lines += table(COLUMNS, [_row(step) for step in shown], paper, "  ")
        if (more := len(proposal.steps) - len(shown)) > 0:
            lines.append(line(Span(f"  and {counted(more, 'more node')}; -o wide lists all", Ink.FAINT)))
        lines += _evicted(proposal, paper)
    lines += _resources(proposal, paper)
    lines += prose_of_each((f"! {blocker}" for blocker in _blockers(proposal)), paper, ink=Ink.WAITING)
    return [*lines, *_unchanged(proposal, paper)]


def _unchanged(proposal: Proposal, paper: Paper) -> list[Line]:
    """Draw which nodes stay as they are and why: those that already have the wanted layout but are not governed by the
    policy yet, in one sentence that names at most MOST of them unless the paper is wide; then those that are left out
    or blocked. A blocked node whose blocking pods have been named already is not drawn, and of several that are blocked
    with the same message only the last is. A message that says why the whole policy is refused is left out. On paper
    that is not wide, at most 5 of the nodes that are left out or blocked are drawn."""
    lines: list[Line] = []
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
    """Return the policy's name and what would happen, in one line: the reason why the policy is refused; or the outcome
    with its explanation if nothing changes; or `nothing to change`; or at most two of the changes of layout, each only
    once and sorted, with `?` for a layout that is unknown, and how many of its nodes will change. The total of nodes
    includes those that match already and those that are left out. `estimate` is true if the operator is not installed.
    """
    outcome, why = judge(proposal, estimate=estimate)
    count = len(proposal.steps)
    size = count + len(proposal.left_out) + len(proposal.adopted) + proposal.settled
    changes = f"{count} of {counted(size, 'node')} will change"
    if not proposal.accepted:
        return line(Span(proposal.policy, Ink.TITLE), "  ", Span(proposal.reason, Ink.BAD))
    if outcome is not Outcome.CHANGES:
        what = f"{outcome}: {why}" if why else "nothing to change"
        return line(Span(proposal.policy, Ink.TITLE), "  ", Span(what, INKS[str(outcome)]))
    kinds = sorted({(s.verdict.observed or "?", s.verdict.wanted or "?") for s in proposal.steps})
    ways = ", ".join(f"{now} -> {after}" for now, after in kinds[:2]) + (" ..." if len(kinds) > 2 else "")
    return line(Span(proposal.policy, Ink.TITLE), f"  {ways}  ", Span(changes, Ink.BUSY))


def _summary(proposal: Proposal) -> str:
    """Return the class of the change, the number of nodes that change at a time, the time windows (or `no time
    windows`), how long the change takes and the hash of the plan, separated by semicolons. An unknown length and an
    empty hash are left out."""
    facts = [f"disruption class {proposal.disruption}", f"{counted(proposal.at_once, 'node')} at a time"]
    facts.append(f"windows: {', '.join(proposal.windows)}" if proposal.windows else "no time windows")
    facts += [f"takes {tell_span(proposal.lasts)}"] if proposal.lasts else []
    if proposal.hash:
        facts.append(f"plan {proposal.hash}")
    return "; ".join(facts)


def _row(step: Step) -> Line:
    """Return the cells of one node in the table of nodes; see COLUMNS. PODS is how many pods would be evicted, and
    BUDGETS which PodDisruptionBudgets that concerns. If the node's pods were not listed, their number is ? and the
    budgets are empty. WHEN is `at once` if the change would begin in this pass, and `under way` if it has begun and is
    not over, also if it failed. Otherwise it is the phase of the node and the reason why its change does not begin."""
    verdict, preview = step.verdict, step.preview
    # Only the operator knows the progress of a change, because it has sent the evictions.
    when = "under way" if verdict.phase.in_flight else f"{verdict.phase}: {verdict.reason}"
    pods, budgets = ("?", ()) if preview is None else (str(len(preview.pods)), preview.budgets)
    begins = Span("at once", Ink.GOOD) if step.starts else Span(when, Ink.WAITING)
    change = str(verdict.disruption), verdict.observed, verdict.wanted
    return line(verdict.node, *change, pods, ", ".join(budgets), begins)


def _evicted(proposal: Proposal, paper: Paper) -> list[Line]:
    """Draw one sentence with the pods that would be evicted, and one for each gang that would be interrupted, as far as
    pods were listed. At most MOST pods are named, or all on wide paper. Empty if no pod would be evicted and no gang
    interrupted."""
    pods = [pod for step in proposal.steps if step.preview is not None for pod in step.preview.pods]
    gangs = sorted({gang for s in proposal.steps if s.preview is not None for gang in s.preview.gangs})
    named = some(pods, len(pods) if paper.wide else MOST)
    texts = [f"pods that would be evicted: {named}"] if pods else []
    texts += [f"gang that would be interrupted: {gang}" for gang in gangs]
    return prose_of_each(texts, paper, indent="  ")


def _resources(proposal: Proposal, paper: Paper) -> list[Line]:
    """Draw each resource whose number of devices in the pool changes, sorted by name, with both numbers. If the number
    falls, add which pods request the resource (`_who_asks`). End with a hint if `mig.strategy: single` would keep the
    name nvidia.com/gpu. Empty if the policy is refused or no number changes."""
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
        if (resource := shrinking.get(name)) is not None and (who := _who_asks(resource)):
            lines += prose(who, paper, indent="    ", hang="  ")
    if proposal.single_keeps_name:
        hint = "spec.mig.strategy: single would keep the name nvidia.com/gpu, and no manifest would have to change"
        lines += prose(f"Hint: {hint}.", paper, indent="  ", hang="  ", ink=Ink.GOOD)
    return lines


def _who_asks(resource: Vanishing) -> str:
    """Return a clause about a resource whose number of devices in the pool falls: which pods of the pool request it
    (five are named at most), how many pods are waiting for it, and whether other nodes still advertise enough devices,
    too few, or none at all. Empty if no pod requests it or is waiting for it."""
    here, pending = len(resource.pods), resource.pending
    requests = counted(here, "pod here requests", "pods here request")
    parts = [f"{requests} it ({some(resource.pods, 5)})"] if here else []
    parts += [f"{counted(pending, 'pod is', 'pods are')} waiting for it"] if pending else []
    where = resource.demand.text if resource.demand.waiting else "other nodes still advertise it"
    where = where if resource.demand.remain else "no node would advertise it any more"
    return "; ".join((*parts, where)) if parts else ""


def _blockers(proposal: Proposal) -> tuple[str, ...]:
    """Return sentences about what would prevent the eviction of pods, merged for all nodes of a policy; if there are
    too many, the last one says how many are left out (`explain_blockers`). Nodes whose pods were not listed do not
    count."""
    return explain_blockers(
        blocker for step in proposal.steps if step.preview is not None for blocker in step.preview.blockers
    )


# --- as data ---------------------------------------------------------------------------------------------


def as_data(planned: Planned, where: str) -> PlanData:
    """Return the whole plan as plain data, for JSON and YAML. `where` is the name of the kubeconfig's context."""
    return {
        "context": where,
        "verdict": planned.verdict,
        "policies": [_proposal_data(one, estimate=planned.estimate) for one in planned.proposals],
        "simulated": list(planned.simulated),
        "dependents": list(planned.dependents),
        "notes": list(planned.notes),
    }


def _proposal_data(proposal: Proposal, *, estimate: bool) -> ProposalData:
    """Return what would happen to one pool as plain data, including all of its changing and left-out nodes and its own
    verdict, which leaves --fail-on out of account."""
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
        "nodes": [_step_data(step) for step in proposal.steps],
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
    """Return the change of one node as plain data. The fields about its pods are None if the pods were not listed."""
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
    """Show what the policies in the files of `-f`, or else the present policies, would do (see VerbModule). If the user
    names policies, only these are shown. A note names each other object in the files, which is ignored. Nothing is
    written. Returns the exit status of the verdict. Raises Trouble, also if a named policy does not exist or, with
    `-f`, is not in the files, or if --fail-on has an unknown word."""
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
    """Return what would happen to the pools if the `proposed` policies were applied, and what is uncertain about it.
    Only the policies named in `only` are shown, or all if it is empty; the others are planned too, because they compete
    for nodes. If no operator is installed, the cluster is planned as it will be with one: with GPUs inferred from
    labels and advertised resources (`with_presumed`) and ClusterPolicy naming the operator's ConfigMaps
    (`with_pointers`); the first note says so. Nothing is written. Raises Trouble, also if a name in `only` belongs to
    no policy."""
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
    """Return the proposal with how long its changes take, judging by the changes in the histories of at most `most`
    nodes: first nodes of its own pool, then others, each group with the latest proven change first. Nodes without a
    proven change are not read. All histories are read at once, but none if no node of the pool will change; the length
    is empty then, and also if it is unknown (`foresee`). A GPUNode that cannot be read counts as one without a history.
    """
    pool = live.plan.pools[proposal.policy]
    own = {*pool.names}
    dated = [
        (node.name in own, node.verified.changed_at, node.name)
        for node in live.snapshot.nodes.values()
        if node.verified is not None and node.verified.changed_at is not None
    ]
    async with asyncio.TaskGroup() as group:
        latest = nlargest(most, dated) if proposal.steps else ()
        tasks = [group.create_task(_read_past(session, name)) for _, _, name in latest]
    past = [took for task in tasks for took in task.result()]
    return replace(proposal, lasts=foresee(pool, live.snapshot, live.now, len(proposal.steps), past))


async def _read_past(session: Session, node: str) -> list[timedelta]:
    """Return how long each past change of a node took, by its history (`read_changes`). Empty if the GPUNode cannot be
    read (any KubeError)."""
    try:
        return read_changes(read_node(await session.client.get(GPUNODES, node)), session.now())[0]
    except KubeError:
        return []
