"""The gauges about each policy, one row for each, as they are when Prometheus asks.

`docs/reference/metrics.md` is generated from this file.
"""

from collections import Counter as Tally
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

from prometheus_client.core import GaugeMetricFamily

from gpusharing.api.names import Phase
from gpusharing.planning.gpus.health import is_healthy
from gpusharing.planning.pools.pool import Pool
from gpusharing.planning.report.counts import count_slices
from gpusharing.planning.report.status import needs_person
from gpusharing.planning.rollout import RolloutPlan
from gpusharing.planning.snapshot.views import ClusterSnapshot
from gpusharing.planning.transition.verdict import Verdict
from gpusharing.planning.vocabulary.reasons import Passes, Reason
from gpusharing.planning.wanted.assess import Assessed

Values: TypeAlias = Mapping[tuple[str, ...], float]
"""The values of a gauge, by the values of its labels."""
Standstill: TypeAlias = tuple[str, tuple[str, ...], str, tuple[str, ...]]
"""What makes no progress: the gauge, the values of its labels, the node, and what must change to be progress."""


@dataclass(frozen=True)
class Seen:
    """A policy as the last pass saw it."""

    pool: Pool
    plan: RolloutPlan
    snapshot: ClusterSnapshot
    status: Mapping[str, Any]
    """Its status as last read or written; empty if it has none."""
    ages: Mapping[str, Values]
    """How many seconds its standstills have lasted: the longest, by the name of the gauge."""

    @cached_property
    def owned(self) -> list[Verdict]:
        return [self.plan.verdicts[node] for node in self.pool.names]

    @cached_property
    def slices(self) -> tuple[Mapping[str, int], Mapping[str, int]]:
        return count_slices((self.snapshot.nodes[node] for node in self.pool.names), self.snapshot)


PolicyGauge: TypeAlias = tuple[str, str, Callable[[Seen], Values], tuple[str, ...]]
"""The name of a gauge, its help, how to find its values, and its labels beside `policy`."""


def collect_gauges(policies: Mapping[str, Seen]) -> Iterator[GaugeMetricFamily]:
    for name, text, find, more in GAUGES:
        family = GaugeMetricFamily(name, text, labels=["policy", *more])
        for policy, seen in policies.items():
            for labels, value in find(seen).items():
                family.add_metric([policy, *labels], value)
        yield family


def find_standstills(pool: Pool, plan: RolloutPlan, snapshot: ClusterSnapshot) -> Iterator[Standstill]:
    for node in pool.names:
        verdict, reasons = plan.verdicts[node], dict[str, set[str]]()
        # Until a node starts, others may use up what a PodDisruptionBudget allows.
        most = Passes.LATER if verdict.phase.in_flight else Passes.BY_A_PERSON
        for blocker in verdict.blockers:
            stays = blocker.reason.passes <= most and blocker.until is None
            if stays and blocker.reason is not Reason.JOBS_RUNNING:
                reasons.setdefault(str(blocker.reason), set()).update(blocker.pods)
        for reason, pods in reasons.items():
            yield BLOCKED_PODS, (reason,), node, tuple(sorted(pods))
        if verdict.phase is Phase.BLOCKED and needs_person(verdict):
            yield BLOCKED, (str(verdict.reason),), node, ()
        if node not in snapshot.agents:
            yield AGENTLESS, (), node, ()


def _conditions(seen: Seen) -> Values:
    rows = seen.status.get("conditions") or ()
    return {tuple(str(row.get(key, "")) for key in ("type", "status", "reason")): 1 for row in rows}


def _unhealthy(seen: Seen) -> Values:
    healths = (verdict.health for verdict in seen.owned)
    return Tally((str(one.reason),) for one in healths if one is not None and not is_healthy(one))


def _prices(seen: Seen) -> Values:
    cost = seen.pool.policy.spec.cost if seen.pool.policy.spec is not None else None
    return {} if cost is None else {(cost.currency,): float(cost.gpu_hourly_price)}


def _blocked_pods(seen: Seen) -> Values:
    blocked = Tally[tuple[str, ...]]()
    for verdict in seen.owned:
        hard = [one for one in verdict.blockers if one.reason.passes is not Passes.SOON]
        pods = {(blocker.reason, pod) for blocker in hard for pod in blocker.pods}
        blocked.update((str(reason),) for reason, _ in pods)
    return blocked


def _given_up(seen: Seen) -> Values:
    deferrals = (seen.snapshot.nodes[node].deferred for node in seen.pool.names)
    counts = (one.count for one in deferrals if one is not None and one.version == seen.pool.policy.version)
    return {(): max(counts, default=0)}


def _drifted(seen: Seen) -> Values:
    found = ((one.assessment, one.node) for one in seen.pool.members)
    return {(): sum(isinstance(a, Assessed) and a.drift is not None and node.fence is None for a, node in found)}


def _gpus(seen: Seen) -> Values:
    if seen.pool.policy.spec is None:
        return {}
    reports = (seen.snapshot.gpunodes.get(node) for node in seen.pool.names)
    gpus = sum(len(one.observed.gpus) for one in reports if one is not None and one.observed)
    return {(str(seen.pool.policy.spec.mode),): gpus}


BLOCKED_PODS = "gpusharing_drain_blocked_seconds"
BLOCKED = "gpusharing_policy_blocked_seconds"
AGENTLESS = "gpusharing_policy_without_agent_seconds"

GAUGES: tuple[PolicyGauge, ...] = (
    (
        "gpusharing_policy_nodes",
        "Nodes of a policy by phase.",
        lambda seen: Tally((str(verdict.phase),) for verdict in seen.owned),
        ("phase",),
    ),
    (
        "gpusharing_policy_condition",
        "1 for the present status and reason of each condition of a policy.",
        _conditions,
        ("type", "status", "reason"),
    ),
    (
        "gpusharing_policy_unhealthy_nodes",
        "Nodes of a policy with an unhealthy GPU, by reason; such nodes are not reconfigured.",
        _unhealthy,
        ("reason",),
    ),
    (
        "gpusharing_policy_budget_allowed_nodes",
        "Number of a policy's nodes that may be unavailable at once, according to rollout.maxUnavailable.",
        lambda seen: {(): seen.pool.limit},
        (),
    ),
    (
        "gpusharing_policy_budget_used_nodes",
        "Number of a policy's nodes that are unavailable, or may soon be because someone else has begun to work"
        " on them. Each node counts once.",
        lambda seen: {(): seen.pool.used},
        (),
    ),
    (
        "gpusharing_policy_halted",
        "1 while a policy starts no further changes because rollout.maxFailures was reached.",
        lambda seen: {(): any(verdict.reason is Reason.HALTED for verdict in seen.owned)},
        (),
    ),
    (
        "gpusharing_policy_gpu_hourly_price",
        "Price of one GPU per hour as set in spec.cost of the policy; absent if it is not set.",
        _prices,
        ("currency",),
    ),
    (
        "gpusharing_drain_blocked_pods",
        "Pods that block the drains of a policy's nodes, by reason.",
        _blocked_pods,
        ("reason",),
    ),
    (
        BLOCKED_PODS,
        "How long the same pods have kept a node of a policy from being drained, by reason: that of the node with the"
        " longest time. Jobs that the policy waits for, and what ends at a certain time, do not count.",
        lambda seen: seen.ages.get(BLOCKED_PODS, {}),
        ("reason",),
    ),
    (
        BLOCKED,
        "How long a node of a policy has been blocked by what only a person can end, by reason: that of the node with"
        " the longest time.",
        lambda seen: seen.ages.get(BLOCKED, {}),
        ("reason",),
    ),
    (
        AGENTLESS,
        "How long a node of a policy has had no Ready agent: that of the node with the longest time.",
        lambda seen: seen.ages.get(AGENTLESS, {}),
        (),
    ),
    (
        "gpusharing_policy_abandoned_changes",
        "How many changes of this revision were given up on a node of a policy: that of the node with the most.",
        _given_up,
        (),
    ),
    (
        "gpusharing_policy_drifted_nodes",
        "Nodes of a policy that no longer match their last proven state and are not being corrected yet.",
        _drifted,
        (),
    ),
    (
        "gpusharing_policy_nodes_without_agent",
        "Nodes of a policy that have no Ready agent.",
        lambda seen: {(): len(set(seen.pool.names) - seen.snapshot.agents)},
        (),
    ),
    (
        "gpusharing_policy_gpus",
        "GPUs reported by the agents on a policy's nodes, by the mode of the policy.",
        _gpus,
        ("mode",),
    ),
    (
        "gpusharing_policy_slices",
        "GPU slices (MIG instances, shares, or whole GPUs) that the policy's nodes advertise.",
        lambda seen: {(resource,): count for resource, count in seen.slices[0].items()},
        ("resource",),
    ),
    (
        "gpusharing_policy_slices_idle",
        "GPU slices that are not allocated to a pod, on nodes that accept pods and tell what pods hold; absent where no"
        " such node does.",
        lambda seen: {(resource,): count for resource, count in seen.slices[1].items()},
        ("resource",),
    ),
)
