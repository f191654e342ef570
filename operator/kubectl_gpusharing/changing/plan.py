"""`plan -f FILE | POLICY`: what would a change of a policy do, to which nodes and pods?

The operator's own planner answers, on a live snapshot. Before the operator is installed, the plan is an estimate: the
GPUs are inferred from labels, as `import` does. The verdict (`Outcome`) decides text, data and exit status, which is 1
if no plan could be made. Other objects that refer to resources or labels which would vanish are read with the user's
rights, and only here; the operator needs no rights to them.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, replace
from datetime import datetime
from enum import IntEnum
from math import floor

from gpusharing.api.names import LABEL_ISOLATION, LABEL_MODE, Phase
from gpusharing.api.validation import is_rewritten
from gpusharing.kube.client import DAEMON_SETS, DEPLOYMENTS, JSON, NAMESPACES, POLICIES, KubeClient, Resource
from gpusharing.kube.errors import KubeError
from gpusharing.kube.lists import list_of, pages_of
from gpusharing.kube.raw import entries, has_condition, text
from gpusharing.planning.drain.stranded import ADMITTED
from gpusharing.planning.gpus.cards import describe_turns, find_memory
from gpusharing.planning.pools.windows import RECENT, Course
from gpusharing.planning.report.proposal import Move, Proposal, Step, tell_proposal
from gpusharing.planning.transition.verdict import Verdict
from gpusharing.planning.vocabulary.findings import explain_blockers
from gpusharing.planning.vocabulary.lengths import counted, some
from gpusharing.planning.vocabulary.reasons import Mark, Reason
from gpusharing.planning.wanted.verify import name_gpus
from kubectl_gpusharing.live.cluster import MAX_LISTED, LivePlan, gathered
from kubectl_gpusharing.live.files import read_policies
from kubectl_gpusharing.pools.fleet import tell_gpus
from kubectl_gpusharing.pools.timeline import read_courses, tell_courses, tell_seconds
from kubectl_gpusharing.setup.importing import read_admin_maps, with_pointers, with_presumed
from kubectl_gpusharing.shell.arguments import Arguments
from kubectl_gpusharing.shell.documents import ConclusionData, PlanData, ProposalData, StandingData, StepData
from kubectl_gpusharing.shell.drawing import (
    BLANK,
    Ink,
    Line,
    PrintOptions,
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
from kubectl_gpusharing.shell.troubles import CHANGES, DONE, FAILED_ON, Trouble, error_text

FAIL_ON = ("evictions", "shortfall")
UNREADABLE = "the labels of the node and the resources that it advertises do not show which GPUs it has"


class Outcome(IntEnum):
    """The result of a plan; the value is the exit status."""

    NOTHING = DONE
    CHANGES = CHANGES
    CANNOT = 3
    UNKNOWN = 4

    def __str__(self) -> str:
        return "nothing to do" if self is Outcome.NOTHING else self.name.lower()


INKS = dict(zip(map(str, Outcome), (Ink.GOOD, Ink.BUSY, Ink.BAD, Ink.WAITING), strict=True))


def judge(proposal: Proposal, *, estimate: bool = False) -> tuple[Outcome, str]:
    """Return the first outcome that applies to one policy, and why. The text may be empty for NOTHING and CHANGES."""
    if not proposal.accepted:
        return Outcome.CANNOT, proposal.about
    unknown = ""
    if unread := proposal.unread:
        unknown = f"{some([one.node for one in unread])}: {UNREADABLE if estimate else unread[0].message}"
    if proposal.steps:
        return Outcome.CHANGES, unknown and f"it is unknown what will happen on {unknown}"
    if proposal.deleting:
        again = "To keep the pool, apply the policy again once it is gone"
        return Outcome.NOTHING, f"it is being deleted and selects no node any more. {again}"
    if proposal.leaving:
        return Outcome.CHANGES, ""
    if proposal.lost:
        owners, nodes = some(sorted({*proposal.lost.values()})), some(tuple(proposal.lost))
        why = f"other policies ({owners}) own every node that spec.nodeSelector selects ({nodes})"
        return Outcome.CANNOT, f"{why}. Narrow a selector, or give this policy a higher spec.priority"
    if unknown:
        return Outcome.UNKNOWN, unknown
    if proposal.coming:
        return Outcome.UNKNOWN, f"another policy is still changing {some(proposal.coming)}"
    if stuck := [one for one in proposal.left_out if Mark.OUTSIDE not in one.reason.marks]:
        return Outcome.CANNOT, f"{some([one.node for one in stuck])}: {stuck[0].reason}: {stuck[0].message}"
    return Outcome.NOTHING, ""


KUEUE = ("v1beta2", "v1beta1")
"""The versions of Kueue's API that are tried."""
KINDS: tuple[tuple[str, Resource], ...] = (
    ("ResourceQuota", Resource("", "v1", "resourcequotas", namespaced=True)),
    ("LimitRange", Resource("", "v1", "limitranges", namespaced=True)),
    *(("ResourceFlavor", Resource("kueue.x-k8s.io", version, "resourceflavors")) for version in KUEUE),
    *(("ClusterQueue", Resource("kueue.x-k8s.io", version, "clusterqueues")) for version in KUEUE),
    ("Deployment", DEPLOYMENTS),
    ("StatefulSet", Resource("apps", "v1", "statefulsets", namespaced=True)),
    ("DaemonSet", DAEMON_SETS),
    ("Job", Resource("batch", "v1", "jobs", namespaced=True)),
    ("CronJob", Resource("batch", "v1", "cronjobs", namespaced=True)),
)


def find_vanishing(proposals: Iterable[Proposal], live: LivePlan) -> frozenset[str]:
    """Return the resource names, and the node labels as `key=value`, that no node would have after the changes."""
    accepted = [one for one in proposals if one.accepted and one.steps]
    names = {lost.resource for one in accepted for lost in one.vanishing if not lost.demand.remain}
    nodes = [live.snapshot.nodes[step.verdict.node] for one in accepted for step in one.steps]
    pairs = {pair for node in nodes for pair in node.labels.items() if is_rewritten(pair[0])}
    gone = pairs - live.plan.afterwards.find_labels() if pairs else pairs
    return frozenset(names | {f"{key}={value}" for key, value in gone})


async def read_dependents(
    client: KubeClient, vanishing: Set[str], ignored: str
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return sentences about objects outside the namespace `ignored` that refer to a name in `vanishing`.

    The second result is a note about kinds that could not be read. Raises KubeError only if it cannot be determined
    whether an unreadable kind is served.
    """
    mentions: dict[str, set[str]] = defaultdict(set)
    unread: dict[str, str] = {}
    for kind, resource in KINDS if vanishing else ():
        try:
            async for page in pages_of(client, resource):
                for raw in page.items:
                    namespace = text(raw, "metadata", "namespace")
                    ended = has_condition(raw, "Complete") or has_condition(raw, "Failed")
                    owners = {text(one, "kind") for one in entries(raw, "metadata", "ownerReferences")}
                    if ended or namespace == ignored or "CronJob" in owners:
                        continue
                    ref = "/".join(filter(None, (namespace, text(raw, "metadata", "name"))))
                    for name in _mentioned(raw.get("spec"), vanishing):
                        mentions[name].add(f"{kind} {ref}")
        except KubeError as error:
            if await client.served(resource):  # RBAC also refuses kinds that are not installed
                unread[resource.plural] = error_text(error)
    lines = [
        f"{name} will no longer exist, but these objects refer to it: {some(sorted(refs), 20)}"
        for name, refs in sorted(mentions.items())
    ]
    if any(ref.startswith("ResourceQuota ") for refs in mentions.values() for ref in refs):
        lines.append("A ResourceQuota has no effect on a resource that no node advertises")
    if not unread:
        return tuple(lines), ()
    why = f"{', '.join(sorted(unread))} may refer to names that will no longer exist, but could not be read"
    return tuple(lines), (f"{why}: {min(unread.values())}",)


async def read_tenants(
    client: KubeClient, vanishing: Set[str], live: LivePlan
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return sentences about namespaces without nodes left for GPU pods, and a note if they are unreadable.

    The chart's guard for tenants admits only some modes to such a namespace (docs/how-to/isolate-tenants.md).
    """
    lines = []
    for level, modes in ADMITTED.items() if live.snapshot.settings.guard != "false" else ():
        lost = vanishing & {f"{LABEL_MODE}={mode}" for mode in modes}
        if not lost or live.plan.afterwards.find_labels() & {(LABEL_MODE, mode) for mode in modes}:
            continue
        try:
            found = await list_of(client, NAMESPACES, label_selector=f"{LABEL_ISOLATION}={level}")
        except KubeError as error:
            what = f"namespaces with the {LABEL_ISOLATION} label"
            return (), (f"{what} could not be read: {error_text(error)}",)
        if found:
            whose = some(sorted(text(raw, "metadata", "name") for raw in found), 20)
            lines.append(
                f"No node will have mode {' or '.join(modes)}, but GPU pods in namespaces with the label"
                f" {LABEL_ISOLATION}={level} are admitted only to such nodes: {whose}"
            )
    return tuple(lines), ()


def _mentioned(value: object, vanishing: Set[str]) -> Iterator[str]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from {str(key).removeprefix("requests."), f"{key}={item}"} & vanishing
            yield from _mentioned(item, vanishing)
    elif isinstance(value, list):
        for item in value:
            yield from _mentioned(item, vanishing)
    elif isinstance(value, str) and value in vanishing:
        yield value


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
    now: datetime
    proposals: tuple[Proposal, ...] = ()
    notes: tuple[str, ...] = ()
    simulated: tuple[str, ...] = ()
    dependents: tuple[str, ...] = ()
    estimate: bool = False
    fail_on: tuple[str, ...] | None = None
    """The words of --fail-on; None if the flag was not given."""
    bars_tenants: bool = False
    """Whether a tenant may be left without nodes by the chart's guard; also if namespaces could not be listed."""
    moves: tuple[Move, ...] = ()
    """The nodes for which the files change anything, whatever policy owns them."""
    others: frozenset[str] = frozenset()
    """The policies that were not asked about; they are told of only for the nodes in `moves`."""

    @property
    def verdict(self) -> ConclusionData:
        judged = [(one, *judge(one, estimate=self.estimate)) for one in self.proposals]
        outcome = max((which for _, which, _ in judged), default=Outcome.NOTHING)
        steps = [step for one in self.proposals for step in one.steps]
        going = [step for one in self.proposals for step in one.going]
        pods = [pod for one in self.proposals for pod in one.evicted]
        known = [one.courses for one in self.proposals if one.going]
        courses = tuple(
            Course(min(one.begins for one in each), max(one.ends for one in each), max(one.spans for one in each))
            for each in (zip(*known, strict=True) if all(known) else ())
        )
        jobs = any(step.preview.jobs for step in going if step.preview is not None)  # they may be evicted in the end
        sure = not jobs and all(step.known and step.doubt is None for step in steps if step.obstacle is None)
        complete = sure and not any(one.evicts_again for one in self.proposals)
        whys = [f"{one.policy}: {why.rstrip('.')}" for one, which, why in judged if which is outcome and why]
        reason = some(whys)
        if outcome is Outcome.NOTHING:
            matching = sum(one.settled + len(one.adopted) for one in self.proposals)
            settled = f"{counted(matching, 'node has', 'nodes have')} what the policies ask for" if matching else ""
            empty = "no node with GPUs is selected" if judged else "there is no policy"
            reason = ". ".join(filter(None, (settled, reason))) or empty
        takes = (
            tell_courses(courses, self.now, apart=len({one[0].begins for one in known if one}) > 1) if courses else ""
        )
        changes = _tell_changes(steps, going, pods, complete=complete, takes=takes) if steps else ""
        changes = ". ".join(filter(None, (changes, *_tell_leaving(self.proposals))))
        parts = (changes, reason) if outcome is Outcome.CHANGES else (reason, changes)
        why = " ".join(f"{part}." for part in parts if part)
        unread = bool(steps) and any(one.unread for one in self.proposals)
        waiting = any(lost.demand.waiting for one in self.proposals if one.steps for lost in one.vanishing)
        # What blocks a node now may be gone tomorrow.
        seen = [step.preview for step in steps if step.preview is not None]
        evicts = unread or not complete or any(one.pods or one.jobs or one.blockers for one in seen)
        short = unread or waiting or self.bars_tenants
        failed_on = [word for word in self.fail_on or () if (evicts if word == "evictions" else short)]
        status = DONE if self.fail_on is not None and outcome is Outcome.CHANGES else int(outcome)
        guess = " (estimate, because the operator is not installed)" * self.estimate
        failed = f" --fail-on found: {', '.join(failed_on)}." if failed_on else ""
        return {
            "outcome": str(outcome),
            "exitStatus": FAILED_ON if failed_on else status,
            "message": f"{str(outcome).capitalize()}{guess}: {why}{failed}",
            "nodes": len(going),
            "blocked": [step.verdict.node for step in steps if step.obstacle is not None],
            "doubtful": [step.verdict.node for step in steps if step.doubt is not None],
            "leaving": sorted({node for one in self.proposals for node in one.leaving}),
            "pods": len(pods),
            "podsComplete": complete,
            **tell_seconds(courses, self.now),
            "windowsAtMost": max((one.spans for one in courses), default=None),
            "estimate": self.estimate,
            "failedOn": failed_on,
        }


def _tell_changes(
    steps: Sequence[Step], going: Sequence[Step], pods: Sequence[str], *, complete: bool, takes: str
) -> str:
    blocked = _name_nodes((step.obstacle, step.verdict.node) for step in steps)
    doubtful = _name_nodes((step.doubt, step.verdict.node) for step in steps)
    stays = f". Blocked: {blocked}" if blocked else ""
    stays += f". Evicted pods or a budget may block: {doubtful}" if doubtful else ""
    unseen = sum(not (step.known or step.obstacle or step.doubt) for step in steps)
    stays += f". What would happen on {counted(unseen, 'further node')} is unknown: their pods were not listed" * bool(
        unseen
    )
    if not going:
        return f"No node will change{' for certain' if doubtful or unseen else ' now'}{stays}"
    held = sum(step.held for step in going)
    after = f" ({f'{held} of them ' if held < len(going) else ''}only after a person has acted)" if held else ""
    jobs = sum(len(step.preview.jobs) for step in going if step.preview is not None)
    ending = f", and {counted(jobs, 'pod gets', 'pods get')} time to end (spec.drain.jobs)" if jobs else ""
    long = "How long this takes is unknown: no past change is recorded, or no window is long enough"
    if takes:
        long = f"{takes[0].upper()}{takes[1:]}, judging by past changes and the windows"
    evicted = f"{'' if complete else 'at least '}{counted(len(pods), 'pod')} will be evicted"
    return f"{counted(len(going), 'node')} will change{after} and {evicted}{ending}{stays}. {long}"


def _tell_leaving(proposals: Iterable[Proposal]) -> Iterator[str]:
    for one in proposals:
        for heir in sorted({*one.leaving.values()}):
            nodes = [node for node, next_ in one.leaving.items() if next_ == heir]
            leave = f"{counted(len(nodes), 'node leaves', 'nodes leave')} {one.policy} for"
            kept = "and keep their layouts" if len(nodes) > 1 else "and keeps its layout"
            yield f"{leave} {f'policy {heir}' if heir else f'no policy, {kept}'}: {some(nodes)}"


def _name_nodes(rows: Iterable[tuple[Reason | None, str]]) -> str:
    nodes: dict[Reason, list[str]] = {}
    for reason, node in rows:
        if reason is not None:
            nodes.setdefault(reason, []).append(node)
    return "; ".join(f"{some(sorted(named))} ({reason})" for reason, named in nodes.items())


def describe(planned: Planned, options: PrintOptions) -> list[Line]:
    verdict = planned.verdict
    lines = prose(verdict["message"], options, hang="  ", ink=INKS[verdict["outcome"]])
    lines += [*describe_simulated(planned.simulated, options), BLANK]
    for proposal in planned.proposals:
        refusal = f"{proposal.policy}: {proposal.about.rstrip('.')}"
        explained = not proposal.accepted and refusal in verdict["message"]
        lines += _describe(proposal, planned.now, options, estimate=planned.estimate, explained=explained)
        if proposal.policy in planned.others:
            lines += prose_of_each(_tell_moves(proposal, planned.moves), options, indent="  ", ink=Ink.WAITING)
        lines.append(BLANK)
    lines += prose_of_each((f"! {one}." for one in planned.dependents), options, ink=Ink.WAITING)
    lines += prose_of_each((f"Note: {note}" for note in planned.notes), options, ink=Ink.FAINT)
    return [*lines, *prose("This is only a plan. Nothing was changed.", options, ink=Ink.FAINT)]


def _tell_moves(proposal: Proposal, moves: Iterable[Move]) -> Iterator[str]:
    """Yield how the nodes of a policy that was not asked about stand without the edit of the others."""
    groups: dict[str, list[str]] = defaultdict(list)
    for move in moves:
        if move.owners[1] == proposal.policy:
            owner = f"policy {move.owners[0]}" if move.owners[0] else "no policy"
            groups[f"{owner}, {_tell_wait(move.before)}"].append(move.node)
    for was, nodes in sorted(groups.items()):
        yield f"! by the edit of other policies: {some(nodes)} (without it: {was})"


def _tell_wait(verdict: Verdict | None) -> str:
    if verdict is None:
        return "not judged"
    if verdict.starts:
        return "starts at once"
    return str(verdict.phase) if verdict.phase == str(verdict.reason) else f"{verdict.phase}: {verdict.reason}"


def _describe(
    proposal: Proposal, now: datetime, options: PrintOptions, *, estimate: bool, explained: bool
) -> list[Line]:
    lines = fold(_title(proposal, estimate=estimate), options)
    if not explained:
        text, ink = ("Accepted", Ink.PLAIN) if proposal.accepted else ("Refused", Ink.BAD)
        lines += prose(f"{text}: {proposal.about}", options, hang="  ", ink=ink)
    if proposal.accepted and proposal.steps:
        closed = proposal.no_window
        no_window = "no time windows" if closed is None else f"no window can be used ({closed.reason})"
        facts = (
            f"disruption class {proposal.disruption}",
            f"{counted(proposal.at_once, 'node')} at a time",
            f"windows: {', '.join(proposal.windows)}" if proposal.windows else no_window,
            tell_courses(proposal.courses, now) if proposal.courses else "",
            proposal.hash and f"plan {proposal.hash}",
        )
        lines += prose("; ".join(filter(None, facts)), options, hang="  ")
        if closed is not None and all(one.verdict.reason is not closed.reason for one in proposal.steps):
            lines += prose(f"! {closed.reason}: {closed.message}", options, hang="  ", ink=Ink.WAITING)
    for product, gib in proposal.client_memory.items():
        text = (
            f"each MPS client of a {product} may use {floor(gib * 100) / 100:.2f} GiB of its memory and"
            f" {proposal.client_threads} % of its threads"
        )
        lines += prose(text, options, hang="  ")
    shown = proposal.steps if options.wide else proposal.steps[:MOST]
    if shown:
        rows = []
        for step in shown:
            verdict, preview = step.verdict, step.preview
            # Only the operator knows the progress of a change, because it has sent the evictions.
            going = verdict.phase.in_flight and step.obstacle is None
            when = "under way" if going else f"{verdict.phase}: {verdict.reason}"
            begins = Span("at once", Ink.GOOD) if verdict.starts else Span(when, Ink.WAITING)
            counts = ("?", "") if preview is None else (str(len(preview.pods)), ", ".join(preview.budgets))
            only = f" ({name_gpus(verdict.gpus)})" if verdict.gpus else ""
            change = f"{verdict.disruption}{only}", verdict.observed, verdict.wanted
            rows.append(line(verdict.node, *change, *counts, begins))
        lines += table(COLUMNS, rows, options, "  ")
        if (more := len(proposal.steps) - len(shown)) > 0:
            lines.append(line(Span(f"  and {counted(more, 'more node')}; -o wide lists all", Ink.FAINT)))
        previews = [step.preview for step in proposal.steps if step.preview is not None]
        pods, most = proposal.evicted, None if options.wide else MOST
        jobs = [pod for step in proposal.going if step.preview is not None for pod in step.preview.jobs]
        kept = sorted({pod for one in previews for pod in one.pods} - {*pods})
        texts = [f"pods that would be evicted: {some(pods, most or len(pods))}"] if pods else []
        texts += [f"pods that get time to end: {some(jobs, most or len(jobs))}"] if jobs else []
        if stay := sum(preview.stay for preview in previews):
            texts.append(f"{counted(stay, 'pod stays', 'pods stay')} on GPUs that do not change")
        texts += [f"pods on nodes that may stay blocked: {some(kept, most or len(kept))}"] if kept else []
        gangs = sorted({gang for preview in previews for gang in preview.gangs})
        texts += [f"gang that would be interrupted: {gang}" for gang in gangs]
        lines += prose_of_each(texts, options, indent="  ")
    lines += _resources(proposal, options)
    lines += prose_of_each((f"! {blocker}" for blocker in _blockers(proposal)), options, ink=Ink.WAITING)
    if adopted := proposal.adopted:
        named = some(adopted, len(adopted) if options.wide else MOST)
        nodes_are = counted(len(adopted), "node is", "nodes are")
        text = f"{nodes_are} already up to date and will not change: {named}"
        lines += prose(text, options, hang="  ", ink=Ink.GOOD)
    stays = (Phase.BLOCKED, Phase.FAILED, Phase.SKIPPED)
    blocked = [step.verdict for step in proposal.steps if step.verdict.phase in stays]
    # Blocking pods have been named already, so only blocked nodes without such pods are listed.
    others = {verdict.message: verdict for verdict in blocked if not verdict.blockers}
    for verdict in (*proposal.left_out, *others.values())[: None if options.wide else 5]:
        why = "" if verdict.message == proposal.about else f": {verdict.message}"
        text = f"! {verdict.node} stays as it is ({verdict.reason}){why}"
        lines += prose(text, options, hang="  ", ink=Ink.WAITING)
    return lines


def _title(proposal: Proposal, *, estimate: bool) -> Line:
    name, (outcome, why) = Span(proposal.policy, Ink.TITLE), judge(proposal, estimate=estimate)
    if not proposal.accepted:
        return line(name, "  ", Span(proposal.reason, Ink.BAD))
    if outcome is not Outcome.CHANGES:
        what = f"{outcome}: {why}" if why else "nothing to change"
        return line(name, "  ", Span(what, INKS[str(outcome)]))
    if not proposal.steps:
        return line(name, "  ", Span("; ".join(_tell_leaving([proposal])), Ink.BUSY))
    kinds = sorted({(one.verdict.observed or "?", one.verdict.wanted or "?") for one in proposal.steps})
    ways = ", ".join(f"{now} -> {after}" for now, after in kinds[:2]) + (" ..." if len(kinds) > 2 else "")
    count = len(proposal.going)
    size = len(proposal.steps) + len(proposal.left_out) + len(proposal.adopted) + proposal.settled
    return line(name, f"  {ways}  ", Span(f"{count} of {counted(size, 'node')} will change", Ink.BUSY))


def _resources(proposal: Proposal, options: PrintOptions) -> list[Line]:
    shrinking = {one.resource: one for one in proposal.vanishing}
    if (proposal.before == proposal.after and not shrinking) or not proposal.accepted:
        return []
    lines: list[Line] = []
    for name in sorted({*proposal.before, *proposal.after}):
        now, then = proposal.before.get(name, 0), proposal.after.get(name, 0)
        lost = shrinking.get(name)
        if now != then:
            sign, ink = ("-", Ink.BAD) if then < now else ("+", Ink.GOOD)
            lines.append(line("  ", Span(f"{sign} {name}: {now} -> {then}", ink)))
        if lost is not None and then != lost.after:
            text = f"{name}: {now} -> {lost.after} if the blocked nodes changed too"
            lines += prose(text, options, indent="  ", hang="  ")
        if lost is not None:
            requests = counted(len(lost.pods), "pod here requests", "pods here request")
            parts = [f"{requests} it ({some(lost.pods, 5)})"] if lost.pods else []
            if lost.pending:
                parts.append(f"{counted(lost.pending, 'pod is', 'pods are')} waiting for it")
            if not lost.demand.remain:
                where = "no node would advertise it any more"
            elif lost.demand.waiting:
                where = lost.demand.text
            else:
                where = "other nodes still advertise it" if lost.elsewhere else f"{lost.demand.remain} will remain"
            if parts:
                lines += prose("; ".join((*parts, where)), options, indent="    ", hang="  ")
    if proposal.gpus:
        named = ", ".join(f"{count} {product}" for product, count in sorted(proposal.gpus.items()))
        same = f"on the same {tell_gpus(sum(proposal.gpus.values()), find_memory(proposal.gpus))}: {named}"
        lines += prose(same, options, indent="  ", hang="  ", ink=Ink.FAINT)
    if proposal.single_keeps_name:
        hint = "spec.mig.strategy: single would keep the name nvidia.com/gpu, and no manifest would have to change"
        lines += prose(f"Hint: {hint}.", options, indent="  ", hang="  ", ink=Ink.GOOD)
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
        "policies": [_proposal_data(one, planned) for one in planned.proposals],
        "moves": [
            {
                "name": one.node,
                "before": _standing_data(one.owners[0], one.before),
                "after": _standing_data(one.owners[1], one.after),
            }
            for one in planned.moves
        ],
        "simulated": list(planned.simulated),
        "dependents": list(planned.dependents),
        "notes": list(planned.notes),
    }


def _standing_data(owner: str, verdict: Verdict | None) -> StandingData | None:
    if verdict is None:
        return None
    return {
        "policy": owner,
        "wanted": verdict.wanted,
        "disruption": str(verdict.disruption),
        "gpus": list(verdict.gpus),
        "starts": verdict.starts,
        "phase": str(verdict.phase),
        "reason": str(verdict.reason),
    }


def _proposal_data(proposal: Proposal, planned: Planned) -> ProposalData:
    return {
        "name": proposal.policy,
        "asked": proposal.policy not in planned.others,
        "leaving": dict(proposal.leaving),
        "verdict": Planned(planned.now, (proposal,), estimate=planned.estimate).verdict,
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
        "leftOut": [{"node": one.node, "reason": str(one.reason), "message": one.message} for one in proposal.left_out],
        "capacityBefore": dict(proposal.before),
        "capacityAfter": dict(proposal.after),
        "gpus": None if proposal.gpus is None else dict(proposal.gpus),
        "vanishing": [
            {
                "resource": lost.resource,
                "before": lost.before,
                "after": lost.after,
                "offeredElsewhere": lost.elsewhere,
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
    verdict, preview, obstacle = step.verdict, step.preview, step.obstacle
    return {
        "name": verdict.node,
        "disruption": str(verdict.disruption),
        "gpus": list(verdict.gpus),
        "observed": verdict.observed,
        "wanted": verdict.wanted,
        "starts": verdict.starts,
        "phase": str(verdict.phase),
        "reason": str(verdict.reason),
        "message": verdict.message,
        "obstacle": str(obstacle or ""),
        "jobs": None if preview is None else list(preview.jobs),
        "pods": None if preview is None else list(preview.pods),
        "budgets": None if preview is None else list(preview.budgets),
        "gangs": None if preview is None else list(preview.gangs),
    }


async def run(session: Session, typed: Arguments, terminal: Terminal) -> int:
    fail_on = tuple(word.strip() for word in typed.fail_on.split(",")) if typed.fail_on else None
    if unknown := sorted({*(fail_on or ())} - {*FAIL_ON}):
        raise Trouble(f"--fail-on has no word {unknown[0]!r}; use one or more of {','.join(FAIL_ON)}")
    proposed, others = read_policies(typed.filename)
    only = {text(raw, "metadata", "name") for raw in proposed}
    for name in typed.policies if only else ():
        if name not in only:
            raise Trouble(no_such(POLICIES, name, sorted(only), "the file"))
    only = {*typed.policies} or only
    planned = await propose(session, proposed, only)
    planned = replace(planned, notes=(*others, *planned.notes), fail_on=fail_on)
    terminal.answer(
        PlanData,
        lambda: as_data(planned, session.name),
        lambda options: describe(planned, options),
        names=[object_name(POLICIES, one.policy) for one in planned.proposals],
    )
    return planned.verdict["exitStatus"]


async def propose(session: Session, proposed: tuple[JSON, ...], only: set[str]) -> Planned:
    """Return what would happen to the pools in `only`, or to all if it is empty, and to other pools by the edit of these.

    Raises Trouble, also for an unknown name in `only`.
    """
    async with gathered(session, proposed, beforehand=True) as cluster:
        if cluster.installed.missing:
            admin = await read_admin_maps(session, (await cluster.decide(())).snapshot)
            cluster.notes.insert(0, PRESUMED)
            cluster.foresee = lambda snapshot: with_presumed(with_pointers(snapshot, admin))
        live = await cluster.decide(only or None)
        ignored = live.snapshot.settings.gpu_operator_namespace
        moves = live.find_moves()
        moved = {move.node for move in moves}
        asked = {policy.name for policy in live.snapshot.policies if not only or policy.name in only}
        others = frozenset(name for move in moves for name in move.owners if name) - asked
        proposals = tuple(
            replace(
                tell_proposal(policy, live.plan, live.snapshot, live.now, None if policy.name in asked else moved),
                leaving={one.node: one.owners[1] for one in moves if one.leaves and one.owners[0] == policy.name},
            )
            for policy in live.snapshot.policies
            if policy.name in asked | others
        )
        most = max(1, min(RECENT, MAX_LISTED // max(1, len(proposals))))
        proposals = tuple(
            [replace(one, courses=await read_courses(session, live, one.policy, one.going, most)) for one in proposals]
        )
        vanishing = find_vanishing(proposals, live)
        dependents, unread = await read_dependents(session.client, vanishing, ignored)
        tenants, unlisted = await read_tenants(session.client, vanishing, live)
    names = [policy.name for policy in live.snapshot.policies]
    for name in sorted(only):
        if name not in names:
            raise Trouble(no_such(POLICIES, name, names, session.where))
    nodes = {node for name in asked for node in live.plan.pools[name].names} | moved
    notes = [*live.notes, *unread, *unlisted]
    for policy in live.snapshot.policies:
        slicing = policy.spec.time_slicing if policy.spec and (not only or policy.name in only) else None
        if slicing and (turns := describe_turns(slicing.replicas)):
            notes.append(f"policy {policy.name}: {turns}")
    return Planned(
        live.now,
        proposals,
        tuple(notes),
        live.simulated(nodes),
        (*tenants, *dependents),
        estimate=cluster.installed.missing,
        bars_tenants=bool(tenants or unlisted),
        moves=moves,
        others=others,
    )
