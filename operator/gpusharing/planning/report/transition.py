"""What do `GPUNode.status.transition` and `.conditions` show people of the verdict? No decision is made from them."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from gpusharing.api.names import CordonedBy, Phase, WaitingFor
from gpusharing.api.times import NEVER, to_rfc3339
from gpusharing.planning.gpus.health import is_healthy
from gpusharing.planning.snapshot.views import NodeView
from gpusharing.planning.transition.verdict import Verdict
from gpusharing.planning.vocabulary.findings import culprit, explain_blockers
from gpusharing.planning.vocabulary.lengths import MAX_TEXT, cut
from gpusharing.planning.vocabulary.reasons import Passes, Reason

MAX_HISTORY = 12
"""The largest number of phases in the history of a node, more than a change has; the oldest are dropped."""


def transition(verdict: Verdict, node: NodeView, previous: Mapping[str, Any], now: datetime) -> dict[str, Any]:
    """Return `status.transition` after this pass. The stored `previous` gives the history and when the phase began.

    Every key is present; None tells the writer to remove it.
    """
    phase, reason = str(verdict.phase), str(verdict.reason)
    waiting_for = who_ends(verdict)
    same = previous.get("phase") == phase
    moment = to_rfc3339(now)
    since = (previous.get("since") if same else None) or moment
    history = list(previous.get("history") or ())
    if not same:
        history = [*history, f"{moment} {phase} {reason}"][-MAX_HISTORY:]
    return {
        "policy": verdict.policy,
        "wanted": cut(verdict.wanted, MAX_TEXT),
        "phase": phase,
        "reason": reason,
        "message": cut(verdict.message, MAX_TEXT),
        "since": since,
        "waitingFor": waiting_for,
        "deadline": to_rfc3339(verdict.deadline) if waiting_for == WaitingFor.CLOCK and verdict.deadline else None,
        "attempt": verdict.attempt,
        "step": verdict.step,
        "observed": cut(verdict.observed, MAX_TEXT),
        "disruption": str(verdict.disruption),
        "culprit": cut(who_keeps(verdict, node), MAX_TEXT),
        "cordonedBy": cordoned_by(node),
        "blockers": [cut(line, MAX_TEXT) for line in explain_blockers(verdict.blockers)],
        "history": history,
    }


def is_wait(verdict: Verdict) -> bool:
    """Whether the node waits for a person, another program or the clock; also true if its change failed."""
    return verdict.reason.passes is not Passes.DONE or verdict.reason is Reason.PROGRESSING


def who_keeps(verdict: Verdict, node: NodeView) -> str:
    """Return who or what holds the node back, such as `namespace/name +2` for three pods."""
    if not is_wait(verdict):
        return ""
    if found := culprit(verdict.blockers) or verdict.leaving or verdict.keeper:
        return found
    match verdict.reason.keeper:
        case "policy" if verdict.policy:
            return f"gsp/{verdict.policy}"
        case "node":
            return f"node/{node.name}"
        case "foreign" if node.foreign:
            return node.foreign
        case who:
            return who


def who_ends(verdict: Verdict) -> str | None:
    """Return who ends the node's wait, a value of WaitingFor; None without a wait.

    Every wait that is shown names who holds the node back, and until when (docs/design/drain.md#rule-14).
    """
    if not is_wait(verdict):
        return None
    if verdict.phase is Phase.FAILED or verdict.reason is Reason.DRAIN_HELD or verdict.stands:
        return str(WaitingFor.PERSON)
    if verdict.deadline not in (None, NEVER):
        return str(WaitingFor.CLOCK)
    foreign = verdict.reason is Reason.FOREIGN_MAINTENANCE
    by_person = verdict.reason.passes is Passes.BY_A_PERSON and not foreign
    return str(WaitingFor.PERSON if by_person else WaitingFor.OTHERS)


def health_conditions(
    verdict: Verdict, previous: Sequence[Mapping[str, Any]], now: datetime
) -> list[Mapping[str, Any]]:
    """Return `GPUNode.status.conditions`, whose only row is Healthy; the `previous` rows if the health is unknown."""
    health = verdict.health
    if health is None:
        return list(previous)
    return [condition("Healthy", is_healthy(health), health.reason, health.message, previous=previous, now=now)]


def condition(
    kind: str, holds: bool, reason: Reason, message: str, *, previous: Sequence[Mapping[str, Any]], now: datetime
) -> dict[str, Any]:
    """Return a condition, whose time is that of the `previous` one of its type with the same status."""
    status = "True" if holds else "False"
    same = (row for row in previous if row.get("type") == kind and row.get("status") == status)
    since = next(same, {}).get("lastTransitionTime") or to_rfc3339(now)
    found = {"type": kind, "status": status, "reason": str(reason), "message": cut(message, MAX_TEXT)}
    return {**found, "lastTransitionTime": since}


def cordoned_by(node: NodeView) -> str | None:
    """Return who cordoned the node as far as is known, a value of CordonedBy; None if it is not cordoned."""
    if not node.unschedulable:
        return None
    if node.fence is not None and node.fence.cordons and not node.fence.prior_unschedulable:
        return str(CordonedBy.OPERATOR)
    return str(CordonedBy.OTHERS if node.foreign_works else CordonedBy.PERSON)
