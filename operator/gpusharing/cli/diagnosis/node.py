"""Why a node is where it is: the operator's verdict, each source of proof, what blocks, the remedy. Pure."""

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from gpusharing.api.times import from_rfc3339, to_rfc3339
from gpusharing.cli.live.cluster import Decided
from gpusharing.cli.pools.fleet import Seen, state_of
from gpusharing.cli.shell.drawing import (
    BLANK,
    Column,
    Ink,
    Line,
    Paper,
    Span,
    age,
    describe_simulated,
    fold,
    line,
    prose,
    shows,
    table,
)
from gpusharing.planning.report.proofs import Proof, tell_proofs
from gpusharing.planning.report.transition import OTHERS, PERSON, whose_cordon
from gpusharing.planning.transition.verdict import Verdict
from gpusharing.planning.vocabulary.blockers import explain_blockers
from gpusharing.planning.vocabulary.reasons import BY_WORD
from gpusharing.planning.wanted.assess import Assessed, Refused, Unobserved
from gpusharing.planning.wanted.verify import Source

LAST = 8
"""Transitions that are shown."""
_ENDS = {PERSON: "a person acts", OTHERS: "others are done"}
_IN_WORDS = (Source.AGENT, Source.GFD)
PROOF = (Column("PROOF"), Column("SAYS"), Column("SHOULD SAY"))
HISTORY = (Column("ENTERED"), Column("PHASE"), Column("REASON"))


@dataclass(frozen=True, slots=True)
class NodeAnswer:
    """All that is known."""

    node: Seen
    """What was published about the node, or what is planned for it where nothing was."""
    proofs: tuple[Proof, ...] = ()
    """What each source of proof says, and should say."""
    unproven: str = ""
    """Why no proofs are shown."""
    notes: tuple[str, ...] = ()
    """What could not be read, and what that makes uncertain."""
    remedy: str = ""
    """What to do; empty: nothing."""

    def as_data(self) -> dict[str, Any]:
        """For programs."""
        node = self.node
        return {
            "node": node.name,
            "policy": node.policy,
            "phase": node.phase,
            "reason": node.reason,
            "message": node.message,
            "remedy": self.remedy,
            "observed": node.observed,
            "wanted": node.wanted,
            "disruption": node.disruption,
            "cordon": node.cordon,
            "attempt": node.attempt,
            "step": node.step,
            "since": _written(node.since),
            "deadline": node.deadline,
            "unhealthy": node.unhealthy,
            "blockers": list(node.blockers),
            "proofs": [
                {
                    "source": str(one.source),
                    "says": one.says,
                    "should": one.should,
                    "agrees": one.disagrees is None,
                    "reason": "" if one.disagrees is None else str(one.disagrees.reason),
                    "message": "" if one.disagrees is None else one.disagrees.message,
                }
                for one in self.proofs
            ],
            "unproven": self.unproven,
            "history": [
                {"at": _written(one.at), "phase": one.phase, "reason": one.reason} for one in node.history
            ],
            "simulated": [node.name] if node.simulated else [],
            "notes": list(self.notes),
        }


def _written(moment: str | None) -> str | None:
    """Return a moment as we write moments; None if it is not one."""
    read = from_rfc3339(moment)
    return None if read is None else to_rfc3339(read)


def node_answer(name: str, seen: Seen | None, decided: Decided | None, trouble: str) -> NodeAnswer:
    """`seen`: what was published; `decided`: what is planned now; `trouble`: why that is not known."""
    verdict = None if decided is None else decided.plan.verdicts.get(name)
    proofs: tuple[Proof, ...] = ()
    unproven = trouble
    if decided is not None:
        proofs, unproven = _proofs(name, decided)
    node = _published_or_planned(seen or Seen(name=name), verdict)
    return NodeAnswer(
        node=replace(
            node,
            cordon=_cordon(name, seen, decided),
            simulated=node.simulated or bool(decided is not None and decided.simulated([name])),
        ),
        proofs=proofs,
        unproven=unproven,
        notes=() if decided is None else decided.notes,
        remedy=remedy_of(node.reason),
    )


def _published_or_planned(seen: Seen, verdict: Verdict | None) -> Seen:
    """Return the node as it was published, with what the verdict of the present plan says where nothing was."""
    if verdict is None:
        none = "no policy selects this node, so the operator does not change its GPUs"
        return seen if seen.phase else replace(seen, message=none)
    # The operator knows what the server said to its evictions; this process has made none.
    blockers = seen.blockers or tuple(explain_blockers(verdict.blockers))
    seen = replace(seen, policy=seen.policy or verdict.policy, blockers=blockers)
    if seen.phase:
        return seen
    return replace(
        seen,
        phase=str(verdict.phase),
        reason=str(verdict.reason),
        message=verdict.message,
        observed=verdict.observed,
        wanted=verdict.wanted,
        disruption=str(verdict.disruption),
        attempt=verdict.attempt,
        step=verdict.step,
    )


def remedy_of(word: str) -> str:
    """What to do about this reason; empty when there is nothing to do, or when an operator of another version gave
    it."""
    return BY_WORD[word].remedy if word in BY_WORD else ""


def _cordon(name: str, seen: Seen | None, decided: Decided | None) -> str:
    node = None if decided is None else decided.snapshot.nodes.get(name)
    if node is not None:
        return whose_cordon(node)
    return "" if seen is None else seen.cordon


def _proofs(name: str, decided: Decided) -> tuple[tuple[Proof, ...], str]:
    """What each source says; otherwise why it is unknown what it should say."""
    for pool in decided.plan.pools.values():
        for member in pool.members:
            if member.node.name != name:
                continue
            found = member.assessment
            if isinstance(found, Assessed):
                return tell_proofs(member.node, found.observed, found.goal, decided.snapshot.stack), ""
            if isinstance(found, Refused):
                return (), found.objection.message
            if isinstance(found, Unobserved):
                return (), found.pending.message
    return (), "no policy applies to this node"


# --- in words ------------------------------------------------------------------------------------------------


def describe_node(answer: NodeAnswer, now: datetime, paper: Paper) -> list[Line]:
    """One screen."""
    lines = describe_simulated([answer.node.name] if answer.node.simulated else [], paper)
    lines += fold(_title(answer, now), paper)
    lines += prose(answer.node.message, paper)
    if answer.remedy and answer.remedy not in answer.node.message:
        lines += prose(f"Remedy: {answer.remedy}", paper, ink=Ink.TITLE)
    if facts := _told(answer):
        lines += prose("; ".join(facts), paper, ink=Ink.FAINT)
    if answer.node.unhealthy:
        lines += prose(f"GPUs: {answer.node.unhealthy}", paper, ink=Ink.BAD)
    lines += [BLANK, *_proof_lines(answer, paper)]
    if answer.node.blockers:
        lines += [BLANK, line(Span("What blocks", Ink.TITLE))]
        lines += [one for text in answer.node.blockers for one in prose(text, paper, indent="  ", hang="  ")]
    if answer.node.history:
        lines += [BLANK, *_history(answer, now, paper)]
    for note in answer.notes:
        lines += prose(f"Note: {note}", paper, hang="  ", ink=Ink.FAINT)
    return lines


def _title(answer: NodeAnswer, now: datetime) -> Line:
    since = age(answer.node.entered, now)
    when = f"  since {since}" if since else ""
    until = f", until {_ENDS.get(answer.node.deadline, answer.node.deadline)}" if answer.node.deadline else ""
    word = f"{answer.node.phase}: {answer.node.reason}" if answer.node.phase else "not ours"
    return line(
        Span(answer.node.name, Ink.TITLE),
        f"  {answer.node.policy or 'no policy'}  ",
        Span(word, state_of(answer.node.phase).value.ink if answer.node.phase else Ink.FAINT),
        f"{when}{until}",
    )


def _told(answer: NodeAnswer) -> list[str]:
    facts = []
    if answer.node.wanted and answer.node.wanted != answer.node.observed:
        facts.append(f"{answer.node.observed or '?'} -> {answer.node.wanted}")
    elif answer.node.observed:
        facts.append(answer.node.observed)
    if answer.node.disruption not in ("", "None"):
        facts.append(f"class {answer.node.disruption}")
    if answer.node.step:
        facts.append(f"step {answer.node.step}, attempt {answer.node.attempt}")
    if answer.node.cordon:
        facts.append(f"cordon: {answer.node.cordon}")
    return facts


def _proof_lines(answer: NodeAnswer, paper: Paper) -> list[Line]:
    if not answer.proofs:
        return prose(f"Proof: none. {answer.unproven}", paper, hang="  ", ink=Ink.WAITING)
    good, bad = ("✓", "✗") if paper.glyphs else ("+", "x")
    rows = []
    for one in answer.proofs:
        ink = Ink.GOOD if one.disagrees is None else Ink.BAD
        mark = good if one.disagrees is None else bad
        rows.append([Span(f"{mark} {one.source}", ink), Span(one.says), Span(one.should)])
    drawn = table(PROOF, rows, paper)
    lines = list(drawn)
    for one, row in zip(answer.proofs, drawn[1:], strict=True):
        # A message says nothing more where the row has both sides, and was not cut for want of room.
        told = shows(row, one.says) and shows(row, one.should) and one.says != one.should
        if one.disagrees is not None and (not told or one.source in _IN_WORDS):
            lines += prose(f"{one.source}: {one.disagrees.message}", paper, hang="  ", ink=Ink.BAD)
    return lines


def _history(answer: NodeAnswer, now: datetime, paper: Paper) -> list[Line]:
    shown = answer.node.history if paper.wide else answer.node.history[-LAST:]
    rows = [
        [Span(f"{age(from_rfc3339(one.at), now)} ago"), Span(one.phase), Span(one.reason)] for one in shown
    ]
    return table(HISTORY, rows, paper)
