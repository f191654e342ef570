"""What do `GPUNode.status.transition` and `.conditions` show people of the verdict? No decision is made from them."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from gpusharing.api.names import Phase
from gpusharing.api.times import NEVER, from_rfc3339, to_rfc3339
from gpusharing.planning.gpus.health import is_healthy
from gpusharing.planning.snapshot.views import NodeView
from gpusharing.planning.transition.verdict import Verdict
from gpusharing.planning.vocabulary.findings import culprit, explain_blockers
from gpusharing.planning.vocabulary.lengths import MAX_TEXT, cut
from gpusharing.planning.vocabulary.reasons import Passes, Reason

MAX_HISTORY = 20
"""The largest number of phases in the history of a node; the oldest are dropped."""
PERSON, OTHERS = "person", "others"
"""Values of the column DEADLINE if no clock ends the wait."""
DAY = timedelta(days=1)
"""A deadline more than a day after the beginning of its phase is shown with its date."""


def transition(verdict: Verdict, node: NodeView, previous: Mapping[str, Any], now: datetime) -> dict[str, Any]:
    """Return `status.transition` after this pass. The stored `previous` gives the history and when the phase began."""
    phase, reason = str(verdict.phase), str(verdict.reason)
    same = previous.get("phase") == phase
    moment = to_rfc3339(now)
    since = (previous.get("since") if same else None) or moment
    history = list(previous.get("history") or ())
    if not same:
        history = [*history, {"phase": phase, "reason": reason, "at": moment}][-MAX_HISTORY:]
    return {
        "policy": verdict.policy,
        "wanted": cut(verdict.wanted, MAX_TEXT),
        "phase": phase,
        "reason": reason,
        "message": cut(verdict.message, MAX_TEXT),
        "since": since,
        "deadline": until_when(verdict, from_rfc3339(since) or now),
        "attempt": verdict.attempt,
        "step": verdict.step,
        "observed": cut(verdict.observed, MAX_TEXT),
        "disruption": str(verdict.disruption),
        "culprit": cut(who_keeps(verdict, node), MAX_TEXT),
        "cordon": whose_cordon(node),
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


def until_when(verdict: Verdict, since: datetime) -> str:
    """Return when or by whom the node's wait ends: a time in UTC, PERSON or OTHERS; empty without a wait.

    Every wait that is shown names who holds the node back, and until when (docs/design/drain.md#rule-14).
    """
    if not is_wait(verdict):
        return ""
    if verdict.phase is Phase.FAILED or verdict.reason is Reason.DRAIN_HELD or verdict.stands:
        return PERSON
    deadline = verdict.deadline
    if deadline is not None and deadline != NEVER:
        return to_rfc3339(deadline) if deadline - since > DAY else f"{deadline.astimezone(UTC):%H:%M:%SZ}"
    foreign = verdict.reason is Reason.FOREIGN_MAINTENANCE
    return PERSON if verdict.reason.passes is Passes.BY_A_PERSON and not foreign else OTHERS


def health_conditions(
    verdict: Verdict, previous: Sequence[Mapping[str, Any]], now: datetime
) -> list[Mapping[str, Any]]:
    """Return `GPUNode.status.conditions`, whose only row is Healthy; the `previous` rows if the health is unknown."""
    health = verdict.health
    if health is None:
        return list(previous)
    status = "True" if is_healthy(health) else "False"
    earlier = next((row for row in previous if row.get("status") == status), {})
    return [
        {
            "type": "Healthy",
            "status": status,
            "reason": str(health.reason),
            "message": cut(health.message, MAX_TEXT),
            "lastTransitionTime": earlier.get("lastTransitionTime") or to_rfc3339(now),
        }
    ]


def whose_cordon(node: NodeView) -> str:
    """Return who cordoned the node, as far as is known: `ours`, `foreign` (another controller) or `human`."""
    if not node.unschedulable:
        return ""
    if node.fence is not None and node.fence.cordons and not node.fence.prior_unschedulable:
        return "ours"
    return "foreign" if node.foreign_works else "human"
