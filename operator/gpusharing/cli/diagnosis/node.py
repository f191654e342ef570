"""Why a node is where it is: the operator's verdict, each source of proof, what blocks, the remedy. Pure."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from gpusharing.api.times import to_rfc3339
from gpusharing.cli.live.cluster import Decided
from gpusharing.cli.pools.fleet import PastStep, Seen, state_of
from gpusharing.cli.shell.drawing import (
    BLANK,
    Column,
    Ink,
    Line,
    Paper,
    TextSpan,
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

    name: str
    """Name of the node."""
    policy: str
    """The policy that owns it; empty: none."""
    phase: str
    """Its phase."""
    reason: str
    """Why it is in this phase, in one CamelCase word."""
    message: str
    """A sentence with names and the next step."""
    observed: str
    """What each GPU is divided into now."""
    wanted: str
    """What each GPU is to be divided into."""
    disruption: str
    """Class of the change that is planned or under way."""
    cordon: str
    """Whose cordon it carries: ours, human, foreign or empty."""
    attempt: int
    """Number of the attempt; 0: nothing is in flight."""
    step: str
    """The step and how many there are; empty: nothing is in flight."""
    since: datetime | None
    """When the phase began; None: unknown."""
    deadline: str
    """When the clock ends the present wait, as the column DEADLINE has it."""
    unhealthy: str
    """What the condition Healthy says where it is False; empty: nothing is known to be wrong."""
    blockers: tuple[str, ...] = ()
    """One line for each reason that blocks."""
    history: tuple[PastStep, ...] = ()
    """The last transitions, newest last."""
    proofs: tuple[Proof, ...] = ()
    """What each source of proof says, and should say."""
    unproven: str = ""
    """Why no proofs are shown."""
    notes: tuple[str, ...] = ()
    """What could not be read, and what that makes uncertain."""
    remedy: str = ""
    """What to do; empty: nothing."""
    simulated: bool = False
    """Its GPUs are SIMULATED."""

    def as_data(self) -> dict[str, Any]:
        """For programs."""
        return {
            "node": self.name,
            "policy": self.policy,
            "phase": self.phase,
            "reason": self.reason,
            "message": self.message,
            "remedy": self.remedy,
            "observed": self.observed,
            "wanted": self.wanted,
            "disruption": self.disruption,
            "cordon": self.cordon,
            "attempt": self.attempt,
            "step": self.step,
            "since": _written(self.since),
            "deadline": self.deadline,
            "unhealthy": self.unhealthy,
            "blockers": list(self.blockers),
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
                {"at": _written(one.at), "phase": one.phase, "reason": one.reason} for one in self.history
            ],
            "simulated": [self.name] if self.simulated else [],
            "notes": list(self.notes),
        }


def _written(moment: datetime | None) -> str | None:
    return None if moment is None else to_rfc3339(moment)


def node_answer(name: str, seen: Seen | None, decided: Decided | None, trouble: str) -> NodeAnswer:
    """`seen`: what was published; `decided`: what is planned now; `trouble`: why that is not known."""
    verdict = None if decided is None else decided.plan.verdicts.get(name)
    proofs: tuple[Proof, ...] = ()
    unproven = trouble
    if decided is not None:
        proofs, unproven = _proofs(name, decided)
    # The operator knows what the server said to its evictions; this process has made none.
    blockers = seen.blockers if seen is not None else ()
    if not blockers and verdict is not None:
        blockers = explain_blockers(verdict.blockers)
    reason, message, phase = _said(seen, verdict)
    return NodeAnswer(
        name=name,
        policy=(seen.policy if seen is not None else "") or (verdict.policy if verdict is not None else ""),
        phase=phase,
        reason=reason,
        message=message,
        **_facts(seen, verdict),
        cordon=_cordon(name, seen, decided),
        since=None if seen is None else seen.since,
        deadline="" if seen is None else seen.deadline,
        unhealthy="" if seen is None else seen.unhealthy,
        blockers=tuple(blockers),
        history=() if seen is None else seen.history,
        proofs=proofs,
        unproven=unproven,
        notes=() if decided is None else decided.notes,
        remedy=remedy_of(reason),
        simulated=bool(seen is not None and seen.simulated)
        or bool(decided is not None and decided.simulated([name])),
    )


def _said(seen: Seen | None, verdict: Verdict | None) -> tuple[str, str, str]:
    """Reason, message and phase: as published, or as planned where nothing is published."""
    if seen is not None and seen.phase:
        return seen.reason, seen.message, seen.phase
    if verdict is not None:
        return str(verdict.reason), verdict.message, str(verdict.phase)
    return "", "no policy selects this node, so the operator does not change its GPUs", ""


def remedy_of(word: str) -> str:
    """What to do about this reason; empty when there is nothing to do, or when an operator of another version gave
    it."""
    return BY_WORD[word].remedy if word in BY_WORD else ""


def _facts(seen: Seen | None, verdict: Verdict | None) -> dict[str, Any]:
    """From what both the published state and a verdict have: the former, unless there is none."""
    fields = ("observed", "wanted", "disruption", "attempt", "step")
    source: Any = seen if seen is not None and seen.phase else verdict
    empty = {"attempt": 0}
    return {
        name: (empty.get(name, "") if source is None else _plain(getattr(source, name))) for name in fields
    }


def _plain(value: object) -> object:
    return value if isinstance(value, int) else str(value)


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
    lines = describe_simulated([answer.name] if answer.simulated else [], paper)
    lines += fold(_title(answer, now), paper)
    lines += prose(answer.message, paper)
    if answer.remedy and answer.remedy not in answer.message:
        lines += prose(f"Remedy: {answer.remedy}", paper, ink=Ink.TITLE)
    if facts := _told(answer):
        lines += prose("; ".join(facts), paper, ink=Ink.FAINT)
    if answer.unhealthy:
        lines += prose(f"GPUs: {answer.unhealthy}", paper, ink=Ink.BAD)
    lines += [BLANK, *_proof_lines(answer, paper)]
    if answer.blockers:
        lines += [BLANK, line(TextSpan("What blocks", Ink.TITLE))]
        lines += [one for text in answer.blockers for one in prose(text, paper, indent="  ", hang="  ")]
    if answer.history:
        lines += [BLANK, *_history(answer, now, paper)]
    for note in answer.notes:
        lines += prose(f"Note: {note}", paper, hang="  ", ink=Ink.FAINT)
    return lines


def _title(answer: NodeAnswer, now: datetime) -> Line:
    since = age(answer.since, now)
    when = f"  since {since}" if since else ""
    until = f", until {_ENDS.get(answer.deadline, answer.deadline)}" if answer.deadline else ""
    word = f"{answer.phase}: {answer.reason}" if answer.phase else "not ours"
    return line(
        TextSpan(answer.name, Ink.TITLE),
        f"  {answer.policy or 'no policy'}  ",
        TextSpan(word, state_of(answer.phase).value.ink if answer.phase else Ink.FAINT),
        f"{when}{until}",
    )


def _told(answer: NodeAnswer) -> list[str]:
    facts = []
    if answer.wanted and answer.wanted != answer.observed:
        facts.append(f"{answer.observed or '?'} -> {answer.wanted}")
    elif answer.observed:
        facts.append(answer.observed)
    if answer.disruption not in ("", "None"):
        facts.append(f"class {answer.disruption}")
    if answer.step:
        facts.append(f"step {answer.step}, attempt {answer.attempt}")
    if answer.cordon:
        facts.append(f"cordon: {answer.cordon}")
    return facts


def _proof_lines(answer: NodeAnswer, paper: Paper) -> list[Line]:
    if not answer.proofs:
        return prose(f"Proof: none. {answer.unproven}", paper, hang="  ", ink=Ink.WAITING)
    good, bad = ("✓", "✗") if paper.glyphs else ("+", "x")
    rows = []
    for one in answer.proofs:
        ink = Ink.GOOD if one.disagrees is None else Ink.BAD
        mark = good if one.disagrees is None else bad
        rows.append([TextSpan(f"{mark} {one.source}", ink), TextSpan(one.says), TextSpan(one.should)])
    drawn = table(PROOF, rows, paper)
    lines = list(drawn)
    for one, row in zip(answer.proofs, drawn[1:], strict=True):
        # A message says nothing more where the row has both sides, and was not cut for want of room.
        told = shows(row, one.says) and shows(row, one.should) and one.says != one.should
        if one.disagrees is not None and (not told or one.source in _IN_WORDS):
            lines += prose(f"{one.source}: {one.disagrees.message}", paper, hang="  ", ink=Ink.BAD)
    return lines


def _history(answer: NodeAnswer, now: datetime, paper: Paper) -> list[Line]:
    shown = answer.history if paper.wide else answer.history[-LAST:]
    rows = [[TextSpan(f"{age(one.at, now)} ago"), TextSpan(one.phase), TextSpan(one.reason)] for one in shown]
    return table(HISTORY, rows, paper)
