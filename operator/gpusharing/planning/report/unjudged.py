"""The status of a policy that makes the planner fail: what was shown stays, and the conditions say so."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from gpusharing.api.names import ConditionType
from gpusharing.planning.report.status import condition, policy_status
from gpusharing.planning.rollout import RolloutPlan
from gpusharing.planning.snapshot.views import ClusterSnapshot, PolicyView
from gpusharing.planning.transition.guard import of_policy
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.vocabulary.reasons import Reason


def tell_status(
    policy: PolicyView,
    plan: RolloutPlan,
    snapshot: ClusterSnapshot,
    previous: Mapping[str, Any],
    now: datetime,
) -> dict[str, Any]:
    """See `policy_status`. Whatever one policy holds, something is told about it."""
    try:
        return policy_status(policy, plan, snapshot, previous, now)
    except Exception as error:  # noqa: BLE001 - whatever one policy holds, the others are told (guard.py)
        found = plan.objections.get(policy.name) or of_policy(policy.name, error)
        return _unjudged(policy, found, previous, now)


def _unjudged(
    policy: PolicyView, found: Finding, previous: Mapping[str, Any], now: datetime
) -> dict[str, Any]:
    answers = {
        ConditionType.ACCEPTED: (False, found.reason, found.message),
        ConditionType.READY: (False, Reason.NOT_ACCEPTED, found.message),
        ConditionType.RECONCILING: (False, found.reason, found.message),
        ConditionType.STALLED: (True, found.reason, found.message),
    }
    told = [condition(kind, answer, policy.generation, previous, now) for kind, answer in answers.items()]
    return {**previous, "observedGeneration": policy.generation, "conditions": told}
