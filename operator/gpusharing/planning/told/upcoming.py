"""What is going to happen to a pool, shown before it does: `status.plan` of a policy."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from gpusharing.api.names import DisruptionClass, Phase
from gpusharing.planning.pools.approval import plan_hash
from gpusharing.planning.pools.hours import Hours
from gpusharing.planning.proof.verify import served
from gpusharing.planning.rollout import RolloutPlan
from gpusharing.planning.snapshot.views import ClusterSnapshot, PolicyView
from gpusharing.planning.way.verdict import Verdict

MAX_LISTED = 20
"""Nodes named in plan and failures."""
_SEVERITY = tuple(DisruptionClass)


def tell_plan(
    policy: PolicyView,
    verdicts: Sequence[Verdict],
    plan: RolloutPlan,
    snapshot: ClusterSnapshot,
    hours: Hours,
) -> dict[str, Any] | None:
    """What is going to happen to the nodes of a policy; None when none of them changes."""
    changing = [
        verdict
        for verdict in verdicts
        if verdict.disruption is not DisruptionClass.NONE and verdict.phase is not Phase.SYNCED
    ]
    if not changing:
        return None
    before: Counter[str] = Counter()
    after: Counter[str] = Counter()
    for verdict in verdicts:
        now = served(snapshot.nodes[verdict.node])
        before.update(now)
        after.update(plan.targets.get(verdict.node, now))
    worst = max((verdict.disruption for verdict in changing), key=_SEVERITY.index)
    nodes = [verdict.node for verdict in changing]
    return {
        "hash": plan_hash(policy, plan.pools[policy.name].members),
        "disruption": str(worst),
        "nodes": nodes[:MAX_LISTED],
        "nodeCount": len(nodes),
        "pods": sum(_pods_on(verdict, snapshot) for verdict in changing),
        "windows": hours.listed,
        "capacityBefore": dict(sorted(before.items())),
        "capacityAfter": dict(sorted(after.items())),
    }


def _pods_on(verdict: Verdict, snapshot: ClusterSnapshot) -> int:
    gpunode = snapshot.gpunodes.get(verdict.node)
    return verdict.pods or (gpunode.observed.pods if gpunode and gpunode.observed else None) or 0
