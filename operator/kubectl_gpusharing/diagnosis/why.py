"""`why NODE|KIND/NAME`: why is a node, a policy's worst node, or a pod in its present state?

One screen says which sources disagree, what blocks it, and what to do. The published state of a node needs only the
viewer's rights. The sources of proof need those of `plan`; if the user lacks them, the answer says what more rights
would add.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from gpusharing.api.names import Phase
from gpusharing.api.records import from_wire
from gpusharing.api.selectors import matches
from gpusharing.kube.client import CORE_EVENTS, GPUNODES, JSON, NODES, PDBS, PODS, POLICIES, Resource
from gpusharing.kube.pods import pdb_view, pod_view, rows_of
from gpusharing.kube.raw import entries, part, section, text, texts
from gpusharing.planning.drain.placement import needs_of
from gpusharing.planning.pools.windows import Course
from gpusharing.planning.report.events import POD_DELETED, POD_EVICTED
from gpusharing.planning.report.proposal import Proofs, Step, tell_proofs, tell_proposal
from gpusharing.planning.report.transition import cordoned_by, transition
from gpusharing.planning.snapshot.memory import LONGEST, LOOKS
from gpusharing.planning.snapshot.podviews import PdbView
from gpusharing.planning.vocabulary.lengths import counted
from gpusharing.planning.vocabulary.reasons import BY_WORD, Reason
from gpusharing.planning.wanted.assess import Assessed, Untargeted
from gpusharing.planning.wanted.verify import Source
from kubectl_gpusharing.diagnosis.pod import (
    ENDS,
    MOST_FENCES,
    PodAnswer,
    describe_pod,
    explain_fences,
    find_fenced,
    find_room,
    gone_answer,
    pod_answer,
    published_answer,
)
from kubectl_gpusharing.live.cluster import LivePlan, gathered
from kubectl_gpusharing.pools.fleet import NodeStatus, find_pool, read_node, read_pools
from kubectl_gpusharing.pools.status import describe_pool, node_data, pool_data
from kubectl_gpusharing.pools.timeline import read_courses, tell_courses, tell_seconds
from kubectl_gpusharing.shell.arguments import Arguments
from kubectl_gpusharing.shell.documents import NodeExplanationData, PodExplanationData, PoolExplanationData
from kubectl_gpusharing.shell.drawing import (
    BLANK,
    Column,
    Ink,
    Line,
    PrintOptions,
    Span,
    age,
    columns,
    describe_simulated,
    fold,
    length,
    line,
    prose,
    prose_of_each,
    shows,
    table,
)
from kubectl_gpusharing.shell.session import Session, find_subject, object_name
from kubectl_gpusharing.shell.terminal import Terminal
from kubectl_gpusharing.shell.troubles import DONE, Denied, Trouble, tell_rights

LAST = 8
"""How many transitions are shown; -o wide shows all."""
_CORDONED_BY = {"Operator": "the operator", "Others": "another controller", "Person": "a person"}
PROOF = (Column("PROOF"), Column("SAYS"), Column("SHOULD SAY"))
HISTORY = columns(ENTERED=0, PHASE=0, REASON=0)


@dataclass(frozen=True, slots=True)
class NodeAnswer:
    node: NodeStatus
    proofs: Proofs = field(default_factory=dict)
    unproven: str = ""
    """Why there are no proofs; empty if there are."""
    courses: tuple[Course, ...] = ()
    """The course of its change and those of its pool before it, at best and at worst; empty if unknown or a person's."""
    before: int = 0
    """How many changes there are before its own."""
    notes: tuple[str, ...] = ()

    @property
    def remedy(self) -> str:
        return BY_WORD[self.node.reason].remedy if self.node.reason in BY_WORD else ""

    def as_data(self, now: datetime) -> NodeExplanationData:
        node = self.node
        return {
            "node": node.name,
            **node_data(node),
            "remedy": self.remedy,
            "proofs": [
                {
                    "source": str(source),
                    "says": says,
                    "should": should,
                    "agrees": wrong is None,
                    "reason": "" if wrong is None else str(wrong.reason),
                    "message": "" if wrong is None else wrong.message,
                }
                for source, (says, should, wrong) in self.proofs.items()
            ],
            "unproven": self.unproven,
            "simulated": [node.name] if node.simulated else [],
            "course": tell_seconds(self.courses, now),
            "notes": list(self.notes),
        }


def node_answer(name: str, gpunode: JSON | None, live: LivePlan | None, missing: str) -> NodeAnswer:
    """Combine what is known about a node; `missing` says why there is no plan."""
    node = NodeStatus(name=name) if gpunode is None else read_node(gpunode)
    if live is None:
        return NodeAnswer(node, unproven=missing, notes=_next_look(node, 0.0))
    here, verdict = live.snapshot.nodes.get(name), live.plan.verdicts.get(name)
    if here is not None:
        node = replace(node, cordoned_by=cordoned_by(here))
    if here is not None and verdict is not None:
        planned = from_wire(NodeStatus, transition(verdict, here, {}, live.now))
        # The published blockers include the server's answers to evictions, which the plan made here lacks.
        node = replace(node, policy=node.policy or planned.policy, blockers=node.blockers or planned.blockers)
        if not node.phase:
            node = replace(planned, name=name, simulated=node.simulated, since=None, history=())
    elif not node.phase:
        node = replace(node, message="no policy selects this node, so the operator does not change its GPUs")
    proofs, unproven = _proofs(name, live)
    blocked = sum(one.phase is Phase.BLOCKED and bool(one.blockers) for one in live.plan.verdicts.values())
    notes = (*live.notes, *_next_look(node, live.snapshot.settings.poll * blocked))
    return NodeAnswer(node, proofs, unproven, notes=notes)


def _next_look(node: NodeStatus, seconds: float) -> tuple[str, ...]:
    """Return when the operator lists the pods of a Blocked node again (docs/adr/0018-looks-at-blocked-nodes.md)."""
    if node.phase != Phase.BLOCKED or not node.blockers:
        return ()
    within = length(max(LONGEST, timedelta(seconds=seconds / LOOKS)))
    retry = f"or at once after: kubectl gpusharing retry {node.name}"
    return (f"the operator looks at the pods of this node again within {within}, {retry}",)


def _proofs(name: str, live: LivePlan) -> tuple[Proofs, str]:
    members = (one for pool in live.plan.pools.values() for one in pool.members if one.node.name == name)
    member = next(members, None)
    match member and member.assessment:
        case Assessed() as one:
            return tell_proofs(live.snapshot.nodes[name], one.observed, one.goal, live.snapshot.stack), ""
        case Untargeted(objection=finding):
            return {}, finding.message
    return {}, "no policy governs this node"


# --- in words ------------------------------------------------------------------------------------------------


def describe_node(answer: NodeAnswer, now: datetime, options: PrintOptions) -> list[Line]:
    node = answer.node
    lines = describe_simulated([node.name] if node.simulated else [], options)
    since = age(node.entered, now)
    until = node.deadline or ENDS.get(node.waiting_for or "", node.waiting_for)
    managed = Span(f"{node.phase}: {node.reason}", node.state.value.ink)
    title = line(
        Span(node.name, Ink.TITLE),
        f"  {node.policy or 'no policy'}  ",
        managed if node.phase else Span("not managed", Ink.FAINT),
        f"{f'  since {since}' if since else ''}{f', until {until}' if until else ''}",
    )
    lines += fold(title, options)
    lines += prose(node.message, options)
    if answer.remedy and answer.remedy not in node.message:
        lines += prose(f"Remedy: {answer.remedy}", options, ink=Ink.TITLE)
    if answer.courses:
        queue = f" with the {counted(answer.before, 'node')} before it" if answer.before else ""
        takes = tell_courses(answer.courses, now)
        lines += prose(f"Expected{queue}: {takes}, judging by past changes and the windows", options)
    cordoner = node.cordoned_by or ""
    facts = {
        node.observed: node.observed and node.wanted in ("", node.observed),
        f"{node.observed or '?'} -> {node.wanted}": node.wanted not in ("", node.observed),
        f"disruption class {node.disruption}": node.disruption not in ("", "None"),
        f"step {node.step}, attempt {node.attempt}": node.step,
        f"cordoned by {_CORDONED_BY.get(cordoner, cordoner)}": cordoner,
    }
    lines += prose("; ".join(fact for fact, applies in facts.items() if applies), options, ink=Ink.FAINT)
    if node.unhealthy:
        lines += prose(f"GPUs: {node.unhealthy}", options, ink=Ink.BAD)
    lines += [BLANK, *_proof_lines(answer, options)]
    if node.blockers:
        lines += [BLANK, line(Span("What blocks it", Ink.TITLE))]
        lines += prose_of_each(node.blockers, options, indent="  ")
    if phases := node.phases[0 if options.wide else -LAST :]:
        rows = [line(f"{age(at, now)} ago", phase, reason) for at, phase, reason in phases]
        lines += [BLANK, *table(HISTORY, rows, options)]
    return lines + prose_of_each((f"Note: {note}" for note in answer.notes), options, ink=Ink.FAINT)


def _proof_lines(answer: NodeAnswer, options: PrintOptions) -> list[Line]:
    if not answer.proofs:
        return prose(f"No proof to show: {answer.unproven}", options, hang="  ", ink=Ink.WAITING)
    good, bad = ("✓", "✗") if options.glyphs else ("+", "x")
    rows = []
    for source, (says, should, wrong) in answer.proofs.items():
        mark, ink = (good, Ink.GOOD) if wrong is None else (bad, Ink.BAD)
        rows.append(line(Span(f"{mark} {source}", ink), says, should))
    drawn = table(PROOF, rows, options)
    lines = list(drawn)
    for (source, proof), row in zip(answer.proofs.items(), drawn[-len(rows) :], strict=True):
        says, should, wrong = proof
        # The message adds nothing if the row shows completely what the source says and what it should say.
        whole = shows(row, says) and shows(row, should) and says != should
        if wrong is not None and (not whole or source in (Source.AGENT, Source.GFD)):
            lines += prose(f"{source}: {wrong.message}", options, hang="  ", ink=Ink.BAD)
    return lines


Explanation = tuple[type[Mapping[str, Any]], Callable[[], Any], Callable[[PrintOptions], list[Line]]]
"""An answer as data, with the type of that, and as lines."""


async def run(session: Session, typed: Arguments, terminal: Terminal) -> int:
    explanation, name = await explain(session, typed)
    terminal.answer(*explanation, names=[name])
    return DONE


async def explain(session: Session, typed: Arguments) -> tuple[Explanation, str]:
    """Return the answer about the one subject that was typed, and the name of the object."""
    kind, name, namespace = find_subject(typed.subjects[0], typed.namespace or session.namespace)
    also = ""
    if "/" not in typed.subjects[0] and await _is_policy(session, name):
        if await session.find(GPUNODES, name) is None:
            kind = POLICIES
        else:
            also = f"policy {name} has the same name; to explain it: kubectl gpusharing why gsp/{name}"
    named = object_name(kind, name)
    if kind is POLICIES:
        policies, nodes = await session.lists(POLICIES, GPUNODES)
        pool = find_pool(read_pools(policies, map(read_node, nodes))[0], name, session.where)
        worst = await _node(session, pool.changing[0].name) if pool.changing else None
        now = session.now()
        return (
            PoolExplanationData,
            lambda: {**pool_data(pool, now), "worst": worst.as_data(now) if worst else None},
            lambda options: (
                describe_pool(pool, now, options) + ([BLANK, *describe_node(worst, now, options)] if worst else [])
            ),
        ), named
    if kind is NODES:
        answer = await _node(session, name)
        now = session.now()
        answer = replace(answer, notes=(*answer.notes, *filter(None, [also])))
        return (NodeExplanationData, partial(answer.as_data, now), partial(describe_node, answer, now)), named
    explained, workload = await _explain_pod(session, kind, name, namespace)
    return (
        PodExplanationData,
        lambda: {"workload": workload, **asdict(explained)},
        lambda options: [*prose(workload, options), *describe_pod(explained, options)],
    ), named


async def _is_policy(session: Session, name: str) -> bool:
    with suppress(Trouble):
        return await session.find(POLICIES, name) is not None
    return False


async def _explain_pod(session: Session, kind: Resource, name: str, namespace: str) -> tuple[PodAnswer, str]:
    missing = ""
    try:
        raw = await session.find(kind, name, namespace)
    except Denied as error:
        other = f"if it is not in namespace {namespace}, choose another one with -n NAME"
        raise Denied(f"{error}; or, {other}", error.rights) from error
    if raw is None and kind is PODS:
        try:
            if (told := await _find_eviction(session, name, namespace)) is not None:
                return gone_answer(f"{namespace}/{name}", told), ""
        except Denied as error:
            missing = f"; the right to {tell_rights(error.rights)} would tell whether the operator evicted it"
        except Trouble as error:
            missing = f"; it is unknown whether the operator evicted it: {error}"
    try:
        raw = raw or await session.get(kind, name, namespace)
    except Trouble as error:
        raise Trouble(f"{error}{missing}") from error
    pod, workload = (raw, "") if kind is PODS else await _pod_of(session, kind, raw)
    return await _pod(session, pod), workload


async def _find_eviction(session: Session, name: str, namespace: str) -> JSON | None:
    about = f"involvedObject.kind=Pod,involvedObject.name={name}"
    events = await session.all(CORE_EVENTS, namespace=namespace, field_selector=about)
    ours = [one for one in events if text(one, "reason") in (POD_EVICTED, POD_DELETED)]
    return max(ours, key=lambda one: text(one, "eventTime"), default=None)


async def _pod_of(session: Session, kind: Resource, workload: JSON) -> tuple[JSON, str]:
    named = f"{kind.plural}/{text(workload, 'metadata', 'name')}"
    selector = section(workload, "spec", "selector")
    labels, rows = texts(selector.get("matchLabels")), rows_of(entries(selector, "matchExpressions"))
    pods = await session.all(PODS, namespace=text(workload, "metadata", "namespace"))
    pods = [pod for pod in pods if matches(texts(part(pod, "metadata", "labels")), labels, rows)]
    if not pods:
        why = [text(row, "message").rstrip(".") for row in entries(workload, "status", "conditions")]
        raise Trouble(". ".join(filter(None, (f"{named} has no pods", *why))))
    waiting = [pod for pod in pods if not text(pod, "spec", "nodeName")]
    stuck = [pod for pod in pods if text(pod, "status", "phase") not in ("Running", "Succeeded")]
    sentence = f"{named}: {counted(len(pods), 'pod')}, {len(waiting)} of them without a node"
    return [*waiting, *stuck, *pods][0], sentence


async def _pod(session: Session, pod: JSON) -> PodAnswer:
    namespace = text(pod, "metadata", "namespace")
    budgets: list[PdbView] | None = []
    if text(pod, "status", "phase") == "Pending":
        budgets = None
        with suppress(Denied):
            budgets = [pdb_view(raw) for raw in await session.all(PDBS, namespace=namespace)]
    try:
        async with gathered(session) as cluster:
            live, needs = await cluster.decide(()), needs_of(pod_view(pod, {}))
            rooms = {name: find_room(needs, node, live) for name, node in live.snapshot.nodes.items()}
        labels = await session.namespace_labels(namespace)
        fenced = find_fenced(pod, rooms.values())
        # The published blockers include the server's answers to evictions, which the plan made here lacks.
        found = [await session.find(GPUNODES, room.node) for room in fenced[:MOST_FENCES]]
        shown = {node.name: node for node in map(read_node, filter(None, found))}
        full = [room.node for room in rooms.values() if room.full]
        return pod_answer(pod, rooms, live, labels, explain_fences(pod, fenced, shown, budgets, full))
    except Denied as error:
        try:
            policies, gpunodes = await session.all(POLICIES), await session.all(GPUNODES)
        except Denied as more:
            return published_answer(pod, (), (), (*error.rights, *more.rights))
        return published_answer(pod, policies, gpunodes, error.rights, budgets)


async def _node(session: Session, name: str) -> NodeAnswer:
    live, missing, coming, queue, courses = None, "", "", tuple[Step, ...](), tuple[Course, ...]()
    try:
        async with gathered(session) as cluster:
            live = await cluster.decide((), [name])
            later = live.delivered()
            coming = _find_next(name, live, later)
            if queue := _find_queue(name, later):
                courses = await read_courses(session, later, queue[-1].verdict.policy, queue)
    except Denied as error:
        missing = f"the right to {tell_rights(error.rights)} would add a plan with its proofs"
    except Trouble as error:
        missing = str(error)
    bare = live is not None and name in live.snapshot.nodes and name not in live.snapshot.gpunodes
    answer = node_answer(name, None if bare else await session.get(GPUNODES, name), live, missing)
    notes = (*answer.notes, *filter(None, [coming]))
    return replace(answer, courses=courses, before=max(0, len(queue) - 1), notes=notes)


def _find_next(name: str, live: LivePlan, later: LivePlan) -> str:
    now, then = live.plan.verdicts.get(name), later.plan.verdicts.get(name)
    if now is None or then is None or now.reason is not Reason.CONFIG_PROPAGATING:
        return ""
    if then.phase not in (Phase.PENDING, Phase.BLOCKED):
        return ""
    return f"once the configuration has reached the node, it waits further ({then.reason}): {then.message}"


def _find_queue(name: str, live: LivePlan) -> tuple[Step, ...]:
    verdict = live.plan.verdicts.get(name)
    policy = next((one for one in live.snapshot.policies if verdict and one.name == verdict.policy), None)
    if verdict is None or policy is None or verdict.phase is Phase.SYNCED:
        return ()
    if verdict.phase.in_flight and not verdict.starts:
        return ()
    steps = tell_proposal(policy, live.plan, live.snapshot, live.now).steps
    going = tuple(step for step in steps if not (step.obstacle or step.doubt))
    own = next((number for number, step in enumerate(going) if step.verdict.node == name), None)
    return () if own is None or going[own].held else going[: own + 1]
