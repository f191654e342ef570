"""Computes `GPUNode.status.transition` and `.conditions`, which show the verdict on a node to people. No decision is
made from them.

Every wait that is shown names who holds the node back, and until when (docs/design/drain.md#rule-14): a time if the
clock ends the wait, otherwise `person` or `others`.

Terms: docs/design/glossary.md#fence.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from gpusharing.api.names import Phase
from gpusharing.api.times import NEVER, from_rfc3339, to_rfc3339
from gpusharing.planning.gpus.health import is_healthy
from gpusharing.planning.snapshot.views import NodeView
from gpusharing.planning.transition.verdict import Verdict
from gpusharing.planning.vocabulary.blockers import culprit, explain_blockers
from gpusharing.planning.vocabulary.lengths import MAX_TEXT, cut
from gpusharing.planning.vocabulary.reasonkinds import Passes
from gpusharing.planning.vocabulary.reasons import Reason

MAX_HISTORY = 20
"""The largest number of phases in the history of a node; the oldest are dropped."""
PERSON, OTHERS = "person", "others"
"""Values of the column DEADLINE if no clock ends the wait."""
DAY = timedelta(days=1)
"""A deadline more than a day after the beginning of its phase is shown with its date."""


def transition(
    verdict: Verdict, node: NodeView, previous: Mapping[str, Any], now: datetime
) -> dict[str, Any]:
    """Return `status.transition` after this pass, with long texts cut to MAX_TEXT. `previous` is the stored value: it
    gives the history and, if the phase is unchanged, the time at which the phase began. Only a new phase is added to
    the history, which keeps its last MAX_HISTORY entries; another reason is not. While the verdict and the node stay
    equal, the result does too."""
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
    """Whether the node waits for a person, for another program or for the clock. True also for a failed node, because a
    person has to act, and for Progressing. False only for the other reasons after which nothing is awaited
    (`Passes.DONE`): Synced, Unowned and ProductSkipped."""
    return verdict.reason.passes is not Passes.DONE or verdict.reason is Reason.PROGRESSING


def who_keeps(verdict: Verdict, node: NodeView) -> str:
    """Return who or what holds the node back: the first pod of the most urgent blocker that names pods, and the number
    of all other blocking pods (`namespace/name +2`). Without such a pod, return the verdict's `leaving`, else its
    `keeper`, else the keeper of its reason, such as `gsp/NAME` for a policy, or just its kind if no name is known.
    Empty if the node waits for nothing."""
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
    """Return what ends the node's wait; empty if it waits for nothing (`is_wait`). PERSON for a Failed node, a held
    drain, or a verdict with `stands`. Otherwise the verdict's deadline in UTC, unless that is None or NEVER: a time of
    day such as `14:30:00Z`, or a full timestamp if it is more than a day after `since`, when the phase began. Without
    such a deadline, PERSON if the reason ends only when a person acts, else OTHERS; ForeignMaintenance counts as
    OTHERS."""
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
    """Return `GPUNode.status.conditions`, whose only row is the condition Healthy. Its lastTransitionTime is kept from
    `previous` as long as its status is the same. If the health of the GPUs is unknown, return the rows of
    `previous` unchanged."""
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
    """Return who cordoned the node, as far as is known: `ours` if our fence, even a yielded one, says that we did, else
    `foreign` if another controller works on the node, else `human`. Empty if the node is not cordoned."""
    if not node.unschedulable:
        return ""
    if node.fence is not None and node.fence.cordons and not node.fence.prior_unschedulable:
        return "ours"
    return "foreign" if node.foreign_works else "human"
