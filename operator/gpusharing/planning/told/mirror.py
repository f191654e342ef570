"""`GPUNode.status.transition` and `.conditions`: the verdict of a node for people. Nothing is decided from them."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from gpusharing.planning.snapshot.views import NodeView
from gpusharing.planning.way.gates import CORDONING
from gpusharing.planning.way.verdict import Verdict
from gpusharing.planning.words.blockers import culprit, explain_blockers

MAX_HISTORY = 20
MAX_MESSAGE = 1000


def transition(
    verdict: Verdict, node: NodeView, previous: Mapping[str, Any], now: datetime
) -> dict[str, Any]:
    """The mirror after this pass; `previous` is what stands there now. Equal verdicts give equal mirrors."""
    phase, reason = str(verdict.phase), str(verdict.reason)
    same = previous.get("phase") == phase
    moment = _stamp(now)
    history = list(previous.get("history") or ())
    if not same:
        history = [*history, {"phase": phase, "reason": reason, "at": moment}][-MAX_HISTORY:]
    return {
        "policy": verdict.policy,
        "wanted": _cut(verdict.wanted),
        "phase": phase,
        "reason": reason,
        "message": _cut(verdict.message),
        "since": (previous.get("since") if same else None) or moment,
        "deadline": f"{verdict.deadline.astimezone(UTC):%H:%M:%SZ}" if verdict.deadline else "",
        "attempt": verdict.attempt,
        "step": verdict.step,
        "observed": _cut(verdict.observed),
        "disruption": str(verdict.disruption),
        "culprit": _cut(culprit(verdict.blockers)),
        "cordon": whose_cordon(node),
        "blockers": [_cut(line) for line in explain_blockers(verdict.blockers)],
        "history": history,
    }


def health_conditions(
    verdict: Verdict, previous: Sequence[Mapping[str, Any]], now: datetime
) -> list[Mapping[str, Any]]:
    """`GPUNode.status.conditions`: Healthy. `previous` stays while nothing is known of any GPU."""
    health = verdict.health
    if health is None:
        return list(previous)
    status = "True" if health.well else "False"
    earlier = next((row for row in previous if row.get("status") == status), {})
    return [
        {
            "type": "Healthy",
            "status": status,
            "reason": str(health.reason),
            "message": _cut(health.message),
            "lastTransitionTime": earlier.get("lastTransitionTime") or _stamp(now),
        }
    ]


def _stamp(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def whose_cordon(node: NodeView) -> str:
    """Who holds the cordon of a node, as far as anybody can tell."""
    if not node.unschedulable:
        return ""
    if node.fence is not None and node.fence.disruption in CORDONING and not node.fence.prior_unschedulable:
        return "ours"
    return "foreign" if node.foreign else "human"


def _cut(text: str) -> str:
    return text if len(text) <= MAX_MESSAGE else text[: MAX_MESSAGE - 3] + "..."
