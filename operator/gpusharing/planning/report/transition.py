"""`GPUNode.status.transition` and `.conditions`: the verdict of a node for people. Nothing is decided from them."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from gpusharing.api.times import from_rfc3339, to_rfc3339
from gpusharing.planning.gpus.health import is_healthy
from gpusharing.planning.report.waits import until_when, who_keeps
from gpusharing.planning.snapshot.views import NodeView
from gpusharing.planning.transition.verdict import Verdict
from gpusharing.planning.vocabulary.blockers import explain_blockers
from gpusharing.planning.vocabulary.lengths import cut

MAX_HISTORY = 20
MAX_MESSAGE = 1000


def transition(
    verdict: Verdict, node: NodeView, previous: Mapping[str, Any], now: datetime
) -> dict[str, Any]:
    """`status.transition` after this pass; `previous` is its present value. Equal verdicts give equal texts."""
    phase, reason = str(verdict.phase), str(verdict.reason)
    same = previous.get("phase") == phase
    moment = to_rfc3339(now)
    since = (previous.get("since") if same else None) or moment
    history = list(previous.get("history") or ())
    if not same:
        history = [*history, {"phase": phase, "reason": reason, "at": moment}][-MAX_HISTORY:]
    return {
        "policy": verdict.policy,
        "wanted": cut(verdict.wanted, MAX_MESSAGE),
        "phase": phase,
        "reason": reason,
        "message": cut(verdict.message, MAX_MESSAGE),
        "since": since,
        "deadline": until_when(verdict, from_rfc3339(since) or now),
        "attempt": verdict.attempt,
        "step": verdict.step,
        "observed": cut(verdict.observed, MAX_MESSAGE),
        "disruption": str(verdict.disruption),
        "culprit": cut(who_keeps(verdict, node), MAX_MESSAGE),
        "cordon": whose_cordon(node),
        "blockers": [cut(line, MAX_MESSAGE) for line in explain_blockers(verdict.blockers)],
        "history": history,
    }


def health_conditions(
    verdict: Verdict, previous: Sequence[Mapping[str, Any]], now: datetime
) -> list[Mapping[str, Any]]:
    """`GPUNode.status.conditions`: Healthy. `previous` stays while nothing is known about any GPU."""
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
            "message": cut(health.message, MAX_MESSAGE),
            "lastTransitionTime": earlier.get("lastTransitionTime") or to_rfc3339(now),
        }
    ]


def whose_cordon(node: NodeView) -> str:
    """Who holds the cordon of a node, as far as can be told."""
    if not node.unschedulable:
        return ""
    if node.fence is not None and node.fence.disruption.cordons and not node.fence.prior_unschedulable:
        return "ours"
    return "foreign" if node.foreign_works else "human"
