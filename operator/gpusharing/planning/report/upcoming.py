"""What is going to happen to a pool, shown in advance: `status.plan` of a policy."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from gpusharing.api.names import DisruptionClass, Phase
from gpusharing.planning.pools.approval import plan_hash
from gpusharing.planning.pools.hours import Hours
from gpusharing.planning.rollout import RolloutPlan
from gpusharing.planning.snapshot.looks import Preview
from gpusharing.planning.snapshot.views import ClusterSnapshot, PolicyView
from gpusharing.planning.transition.verdict import Verdict
from gpusharing.planning.vocabulary.blockers import explain_blockers
from gpusharing.planning.vocabulary.lengths import MAX_TEXT, cut
from gpusharing.planning.wanted.verify import served

MAX_LISTED = 20
"""Nodes named in plan and failures."""
MAX_GANGS = 10


def tell_plan(
    policy: PolicyView,
    verdicts: Sequence[Verdict],
    plan: RolloutPlan,
    snapshot: ClusterSnapshot,
    hours: Hours,
) -> dict[str, Any] | None:
    """Return `status.plan`: what is going to happen to the nodes of a policy, or None if none of them changes."""
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
    lost = [name for name in sorted(before) if after[name] < before[name]]
    demands = {name: plan.afterwards.find_demand(name) for name in lost}
    worst = max((verdict.disruption for verdict in changing), key=lambda one: one.severity)
    nodes, previews = [verdict.node for verdict in changing], plan.memory.previews
    return {
        "hash": plan_hash(policy, plan.pools[policy.name].members),
        "disruption": str(worst),
        "nodes": nodes[:MAX_LISTED],
        "nodeCount": len(nodes),
        "pods": sum(_pods_on(verdict, snapshot) for verdict in changing),
        **_disturbed([previews[name] for name in nodes if name in previews]),
        "shortages": [f"{name}: {one.text}" for name, one in demands.items() if one.waiting][:MAX_LISTED],
        "windows": hours.listed,
        "capacityBefore": dict(sorted(before.items())),
        "capacityAfter": dict(sorted(after.items())),
    }


def _disturbed(previews: Sequence[Preview]) -> dict[str, list[str]]:
    """The same for the same pods, whatever the order of the looks, because a status is written when it changes."""
    pods = sorted({name for one in previews for name in one.pods})
    budgets = sorted({name for one in previews for name in one.budgets})
    gangs = sorted({text for one in previews for text in one.gangs})
    lines = explain_blockers(blocker for one in previews for blocker in one.blockers)
    return {
        "podNames": pods[:MAX_LISTED],
        "budgets": budgets[:MAX_LISTED],
        "gangs": [cut(text, MAX_TEXT) for text in gangs[:MAX_GANGS]],
        "blockers": [cut(line, MAX_TEXT) for line in lines],
    }


def _pods_on(verdict: Verdict, snapshot: ClusterSnapshot) -> int:
    gpunode = snapshot.gpunodes.get(verdict.node)
    return verdict.pods or (gpunode.observed.pods if gpunode and gpunode.observed else None) or 0
