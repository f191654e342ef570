"""Explain why a node is in its present state: the verdict, each source of proof, what blocks it, and the remedy.

Pure.
"""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from gpusharing.api.names import Phase
from gpusharing.api.records import from_wire
from gpusharing.api.times import from_rfc3339
from gpusharing.kube.client import JSON
from gpusharing.planning.report.proofs import Proof, tell_proofs
from gpusharing.planning.report.transition import OTHERS, PERSON, transition, whose_cordon
from gpusharing.planning.snapshot.looks import LONGEST, LOOKS
from gpusharing.planning.vocabulary.reasons import BY_WORD
from gpusharing.planning.wanted.assess import Assessed, Untargeted
from gpusharing.planning.wanted.verify import Source
from kubectl_gpusharing.live.cluster import LivePlan
from kubectl_gpusharing.pools.fleet import NodeStatus, read_node
from kubectl_gpusharing.pools.status import node_data
from kubectl_gpusharing.shell.documents import NodeExplanationData
from kubectl_gpusharing.shell.drawing import (
    BLANK,
    Column,
    Ink,
    Line,
    Paper,
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

LAST = 8
"""How many transitions are shown; -o wide shows all."""
_ENDS = {PERSON: "a person acts", OTHERS: "others are done"}
_CORDON_HOLDERS = {"ours": "the operator", "foreign": "another controller", "human": "a person"}
"""By the word in the GPUNode (planning/report/transition.py)."""
PROOF = (Column("PROOF"), Column("SAYS"), Column("SHOULD SAY"))
HISTORY = columns(ENTERED=0, PHASE=0, REASON=0)


@dataclass(frozen=True, slots=True)
class NodeAnswer:
    node: NodeStatus
    proofs: tuple[Proof, ...] = ()
    unproven: str = ""
    """Why there are no proofs; empty if there are."""
    notes: tuple[str, ...] = ()

    @property
    def remedy(self) -> str:
        return BY_WORD[self.node.reason].remedy if self.node.reason in BY_WORD else ""

    def as_data(self) -> NodeExplanationData:
        node = self.node
        return {
            "node": node.name,
            **node_data(node),
            "remedy": self.remedy,
            "proofs": [
                {
                    "source": str(proof.source),
                    "says": proof.says,
                    "should": proof.should,
                    "agrees": proof.disagrees is None,
                    "reason": "" if proof.disagrees is None else str(proof.disagrees.reason),
                    "message": "" if proof.disagrees is None else proof.disagrees.message,
                }
                for proof in self.proofs
            ],
            "unproven": self.unproven,
            "simulated": [node.name] if node.simulated else [],
            "notes": list(self.notes),
        }


def node_answer(name: str, gpunode: JSON | None, live: LivePlan | None, missing: str) -> NodeAnswer:
    """Combine what is known about a node; `missing` says why there is no plan."""
    node = NodeStatus(name=name) if gpunode is None else read_node(gpunode)
    if live is None:
        return NodeAnswer(node, unproven=missing, notes=_next_look(node, 0.0))
    here, verdict = live.snapshot.nodes.get(name), live.plan.verdicts.get(name)
    if here is not None:
        node = replace(node, cordon=whose_cordon(here))
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
    return NodeAnswer(node, proofs, unproven, notes)


def _next_look(node: NodeStatus, seconds: float) -> tuple[str, ...]:
    if node.phase != Phase.BLOCKED or not node.blockers:
        return ()
    within = length(max(LONGEST, timedelta(seconds=seconds / LOOKS)))
    retry = f"or at once after: kubectl gpusharing retry {node.name}"
    return (f"the operator looks at the pods of this node again within {within}, {retry}",)


def _proofs(name: str, live: LivePlan) -> tuple[tuple[Proof, ...], str]:
    members = (one for pool in live.plan.pools.values() for one in pool.members if one.node.name == name)
    member = next(members, None)
    match member and member.assessment:
        case Assessed() as one:
            return tell_proofs(live.snapshot.nodes[name], one.observed, one.goal, live.snapshot.stack), ""
        case Untargeted(objection=finding):
            return (), finding.message
    return (), "no policy governs this node"


# --- in words ------------------------------------------------------------------------------------------------


def describe_node(answer: NodeAnswer, now: datetime, paper: Paper) -> list[Line]:
    node = answer.node
    lines = describe_simulated([node.name] if node.simulated else [], paper)
    since = age(node.entered, now)
    until = f", until {_ENDS.get(node.deadline, node.deadline)}" if node.deadline else ""
    managed = Span(f"{node.phase}: {node.reason}", node.state.value.ink)
    title = line(
        Span(node.name, Ink.TITLE),
        f"  {node.policy or 'no policy'}  ",
        managed if node.phase else Span("not managed", Ink.FAINT),
        f"{f'  since {since}' if since else ''}{until}",
    )
    lines += fold(title, paper)
    lines += prose(node.message, paper)
    if answer.remedy and answer.remedy not in node.message:
        lines += prose(f"Remedy: {answer.remedy}", paper, ink=Ink.TITLE)
    facts = {
        node.observed: node.observed and node.wanted in ("", node.observed),
        f"{node.observed or '?'} -> {node.wanted}": node.wanted not in ("", node.observed),
        f"disruption class {node.disruption}": node.disruption not in ("", "None"),
        f"step {node.step}, attempt {node.attempt}": node.step,
        f"cordoned by {_CORDON_HOLDERS.get(node.cordon, node.cordon)}": node.cordon,
    }
    lines += prose("; ".join(fact for fact, applies in facts.items() if applies), paper, ink=Ink.FAINT)
    if node.unhealthy:
        lines += prose(f"GPUs: {node.unhealthy}", paper, ink=Ink.BAD)
    lines += [BLANK, *_proof_lines(answer, paper)]
    if node.blockers:
        lines += [BLANK, line(Span("What blocks it", Ink.TITLE))]
        lines += prose_of_each(node.blockers, paper, indent="  ")
    if history := node.history[0 if paper.wide else -LAST :]:
        rows = [line(f"{age(from_rfc3339(one.at), now)} ago", one.phase, one.reason) for one in history]
        lines += [BLANK, *table(HISTORY, rows, paper)]
    return lines + prose_of_each((f"Note: {note}" for note in answer.notes), paper, ink=Ink.FAINT)


def _proof_lines(answer: NodeAnswer, paper: Paper) -> list[Line]:
    if not answer.proofs:
        return prose(f"No proof to show: {answer.unproven}", paper, hang="  ", ink=Ink.WAITING)
    good, bad = ("✓", "✗") if paper.glyphs else ("+", "x")
    rows = []
    for proof in answer.proofs:
        mark, ink = (good, Ink.GOOD) if proof.disagrees is None else (bad, Ink.BAD)
        rows.append(line(Span(f"{mark} {proof.source}", ink), proof.says, proof.should))
    drawn = table(PROOF, rows, paper)
    lines = list(drawn)
    for proof, row in zip(answer.proofs, drawn[-len(rows) :], strict=True):
        # The message adds nothing if the row shows completely what the source says and what it should say.
        whole = shows(row, proof.says) and shows(row, proof.should) and proof.says != proof.should
        if proof.disagrees is not None and (not whole or proof.source in (Source.AGENT, Source.GFD)):
            lines += prose(f"{proof.source}: {proof.disagrees.message}", paper, hang="  ", ink=Ink.BAD)
    return lines
