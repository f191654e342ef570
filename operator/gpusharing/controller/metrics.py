"""The operator's metrics for Prometheus. `docs/reference/metrics.md` is generated from this file.

Terms: docs/design/glossary.md#drift, docs/design/glossary.md#fence.
"""

import time
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Mapping, Set
from itertools import chain
from typing import Any, get_args

from prometheus_client import Counter, Gauge, Histogram, Metric
from prometheus_client.registry import Collector

from gpusharing.api.names import Phase
from gpusharing.controller.execute import Outcome
from gpusharing.controller.observer import Observer
from gpusharing.controller.processmetrics import ProcessMetrics
from gpusharing.planning.gpus.health import is_healthy
from gpusharing.planning.report.counts import count_slices, waited_for
from gpusharing.planning.rollout import RolloutPlan
from gpusharing.planning.snapshot.actions import Action
from gpusharing.planning.snapshot.views import ClusterSnapshot
from gpusharing.planning.transition.members import Member
from gpusharing.planning.transition.verdict import Verdict
from gpusharing.planning.vocabulary.reasonkinds import Passes
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.wanted.assess import Assessed


class Metrics(Observer, Collector):
    """The leader's metrics. A standby has those of `ProcessMetrics` only, so that no sum counts a node twice."""

    def __init__(
        self, process: ProcessMetrics | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Add all metrics to the registry of `process`, by default a new one. This object is itself added to the
        registry, which calls `collect` at each scrape. `clock` returns seconds and never goes back."""
        self.process = process or ProcessMetrics()
        self.registry = self.process.registry
        self._clock = clock
        self._entered: dict[str, float] = {}
        """When each node entered its phase, by node name, if this process saw that."""
        # Before the others in the registry, so that the metrics after it are up to date at each scrape.
        self.registry.register(self)
        self._last: tuple[RolloutPlan, ClusterSnapshot] | None = None
        """Plan and snapshot of the last pass, or None before the first."""
        self.status_of: Callable[[str], Mapping[str, Any]] = lambda policy: {}
        """Returns the status of a policy as last read or written, by policy name; empty if it has none."""
        self._policies: set[str] = set()
        """Policies whose transitions are counted."""
        self._describe_passes()
        self._describe_pools()
        self._describe_slices()

    def _describe_passes(self) -> None:
        """Create the metrics of passes, actions, transitions and phases. The durations of all phases exist from the
        start."""
        self.pass_seconds = Histogram(
            "gpusharing_pass_seconds",
            "Duration of one step of a pass: gather, plan, execute or publish.",
            ["step"],
            registry=self.registry,
            buckets=(0.001, 0.005, 0.02, 0.1, 0.5, 2, 10),
        )
        self.actions = Counter(
            "gpusharing_actions_total",
            "Attempted actions, by kind and result: done (exported as 0 from the start), or what prevented the action.",
            ["action", "result"],
            registry=self.registry,
        )
        self.transitions = Counter(
            "gpusharing_transitions_total",
            "How often nodes entered a phase, by reason. A series does not exist before its first transition, so"
            " increase() does not count that transition.",
            ["phase", "reason"],
            registry=self.registry,
        )
        self.phase_seconds = Histogram(
            "gpusharing_phase_seconds",
            "Time that nodes spent in a phase, counted only if this process saw the phase begin.",
            ["phase"],
            registry=self.registry,
            buckets=(1, 5, 15, 60, 300, 900, 3600, 14400, 86400),
        )
        for phase in Phase:  # increase() does not count the first value of a series
            self.phase_seconds.labels(str(phase))

    def _describe_pools(self) -> None:
        """Create the gauges of nodes, conditions, health, budgets, halts, prices and drains by policy, and of orphaned
        nodes. No gauge has a value yet, except that of orphaned nodes, which is 0."""
        self.nodes = self._per_policy("gpusharing_policy_nodes", "Nodes of a policy by phase.", "phase")
        self.conditions = self._per_policy(
            "gpusharing_policy_condition",
            "1 for the present status and reason of each condition of a policy.",
            "type",
            "status",
            "reason",
        )
        self.unhealthy = self._per_policy(
            "gpusharing_policy_unhealthy_nodes",
            "Nodes of a policy with an unhealthy GPU, by reason; such nodes are not reconfigured.",
            "reason",
        )
        self.allowed = self._per_policy(
            "gpusharing_policy_budget_allowed_nodes",
            "Number of a policy's nodes that may be unavailable at once, according to rollout.maxUnavailable.",
        )
        self.used = self._per_policy(
            "gpusharing_policy_budget_used_nodes",
            "Number of a policy's nodes that are unavailable, or may soon be because someone else has begun to work"
            " on them. Each node counts once.",
        )
        self.halted = self._per_policy(
            "gpusharing_policy_halted",
            "1 while a policy starts no further changes because rollout.maxFailures was reached.",
        )
        self.price = self._per_policy(
            "gpusharing_policy_gpu_hourly_price",
            "Price of one GPU per hour as set in spec.cost of the policy; absent if it is not set.",
            "currency",
        )
        self.blocked_pods = self._per_policy(
            "gpusharing_drain_blocked_pods",
            "Pods that block the drains of a policy's nodes, by reason.",
            "reason",
        )
        self.orphans = Gauge(
            "gpusharing_orphan_nodes",
            "Nodes that stay cordoned because their policy was deleted after the point of no return.",
            registry=self.registry,
        )

    def _describe_slices(self) -> None:
        """Create the counters of transitions and of ended MPS clients by policy, the gauges of drift, agents, GPUs and
        slices by policy, and the gauge of Pending pods by resource. None has a value yet."""
        self.moves = Counter(
            "gpusharing_policy_transitions_total",
            "Number of times that nodes of a policy entered a phase; if it stops increasing, no node makes progress.",
            ["policy"],
            registry=self.registry,
        )
        self.drifted = self._per_policy(
            "gpusharing_policy_drifted_nodes",
            "Nodes of a policy that no longer match their last proven state and are not being corrected yet.",
        )
        self.lapses = Counter(
            "gpusharing_policy_mps_clients_ended_total",
            "Number of times that config-manager restarted without the MPS daemon and thereby ended the MPS clients"
            " on a policy's node.",
            ["policy"],
            registry=self.registry,
        )
        self.agentless = self._per_policy(
            "gpusharing_policy_nodes_without_agent", "Nodes of a policy that have no Ready agent."
        )
        self.gpus = self._per_policy(
            "gpusharing_policy_gpus",
            "GPUs reported by the agents on a policy's nodes, by the mode of the policy.",
            "mode",
        )
        self.slices = self._per_policy(
            "gpusharing_policy_slices",
            "GPU slices (MIG instances, shares, or whole GPUs) that the policy's nodes advertise.",
            "resource",
        )
        self.idle = self._per_policy(
            "gpusharing_policy_slices_idle",
            "GPU slices that are not allocated to a pod, on nodes that accept pods.",
            "resource",
        )
        self.pending = Gauge(
            "gpusharing_pending_pods",
            "Pods that request a GPU resource and have no node yet. After the first 16 resource names that no node"
            " advertises, all others count as _others.",
            ["resource"],
            registry=self.registry,
        )

    def _per_policy(self, name: str, text: str, *labels: str) -> Gauge:
        """Create and return a gauge with the label `policy` and the labels in `labels`."""
        return Gauge(name, text, ["policy", *labels], registry=self.registry)

    def collect(self) -> Iterable[Metric]:
        """Set the gauges that are computed only for a scrape, and return no metric. These are the conditions as the
        policies show them, and, from the last pass, drift, nodes without a Ready agent, GPUs, slices, idle slices and
        Pending pods. They are expensive with thousands of nodes, so passes do not set them. Nothing is set before the
        first pass. The registry calls this at each scrape, before it reads the gauges."""
        if self._last is None:
            return ()
        plan, snapshot = self._last
        pools, agents = plan.pools, snapshot.agents
        _show(self.drifted, {(name,): sum(map(_is_drifted, pool.members)) for name, pool in pools.items()})
        rows = ((name, row) for name in pools for row in self.status_of(name).get("conditions") or ())
        keys = ("type", "status", "reason")
        _show(self.conditions, {(name, *(str(row.get(key, "")) for key in keys)): 1 for name, row in rows})
        _show(self.agentless, {(name,): len(set(pool.names) - agents) for name, pool in pools.items()})
        _show(self.gpus, _gpus_by_mode(plan, snapshot))
        counted = {
            name: count_slices((snapshot.nodes[node] for node in pool.names), snapshot)
            for name, pool in pools.items()
        }
        _show(
            self.slices,
            {(n, r): count for n, (served, _) in counted.items() for r, count in served.items()},
        )
        _show(self.idle, {(n, r): count for n, (_, idle) in counted.items() for r, count in idle.items()})
        _show(self.pending, {(resource,): count for resource, count in waited_for(snapshot).items()})
        return ()

    def passed(
        self, seconds: Mapping[str, float], plan: RolloutPlan, snapshot: ClusterSnapshot, outcome: Outcome
    ) -> None:
        """Record the duration of each step of a pass, set the gauges of its plan, and remember plan and snapshot for
        the next scrape. Create the counters of new policies at 0, and remove those of policies that are gone. The first
        call also creates a counter at 0 for each kind of action, with the result `done`. `outcome` is not used. See
        Observer."""
        # These series begin at 0, because Prometheus does not count the first value of a series. Failures need no 0,
        # because they recur; transitions would have nearly 2,000 pairs of phase and reason.
        for kind in get_args(Action) if self._last is None else ():
            self.actions.labels(kind.__name__, "done")
        self._last = plan, snapshot
        self._count_moves_of(plan.pools.keys())
        for step, duration in seconds.items():
            self.pass_seconds.labels(step).observe(duration)
        self._show_pools(plan)

    def _show_pools(self, plan: RolloutPlan) -> None:
        """Set the gauges that every pass sets: nodes, health, budget, halts, prices and blocked pods by policy, and the
        number of orphaned nodes in the cluster. A policy counts as halted if a node of its pool has a verdict with the
        reason Halted. For nodes that are gone, the time at which they entered their phase is forgotten."""
        verdicts = plan.verdicts
        self._entered = {node: began for node, began in self._entered.items() if node in verdicts}
        owned = [(name, verdicts[node]) for name, pool in plan.pools.items() for node in pool.names]
        _show(self.nodes, Tally((name, str(verdict.phase)) for name, verdict in owned))
        _show(self.unhealthy, Tally(chain.from_iterable(_unhealthy_reasons(*row) for row in owned)))
        _show(self.allowed, {(name,): pool.limit for name, pool in plan.pools.items()})
        _show(self.used, {(name,): pool.used for name, pool in plan.pools.items()})
        halted = {name for name, verdict in owned if verdict.reason is Reason.HALTED}
        _show(self.halted, {(name,): name in halted for name in plan.pools})
        _show(self.price, _prices(plan))
        _show(self.blocked_pods, Tally(chain.from_iterable(_blocked_reasons(*row) for row in owned)))
        self.orphans.set(sum(verdict.reason is Reason.ORPHAN_FENCE for verdict in verdicts.values()))

    def _count_moves_of(self, policies: Set[str]) -> None:
        """Create the counters of transitions and of ended MPS clients, at 0, for each new policy, and remove those of
        policies that are gone."""
        for counter in (self.moves, self.lapses):
            for name in policies:
                counter.labels(name)
            for name in self._policies - policies:
                counter.remove(name)
        self._policies = set(policies)

    def acted(self, action: Action, result: str) -> None:
        """Count an action by kind and result. See Observer."""
        self.actions.labels(type(action).__name__, result).inc()

    def changed(self, before: Verdict | None, after: Verdict) -> None:
        """Count how often the MPS clients of a node ended. If the node has entered another phase, count and remember
        that, and record how long it was in the previous phase if that is known. Does nothing for a new node. The
        counters by policy count only policies of the last pass. See Observer."""
        if before is not None and after.lapses is not None and after.policy in self._policies:
            self.lapses.labels(after.policy).inc(after.lapses.since(before.lapses))
        if before is not None and before.phase is not after.phase:
            self.transitions.labels(str(after.phase), str(after.reason)).inc()
            if after.policy in self._policies:
                self.moves.labels(after.policy).inc()
            if (began := self._entered.get(after.node)) is not None:
                self.phase_seconds.labels(str(before.phase)).observe(self._clock() - began)
            self._entered[after.node] = self._clock()


def _is_drifted(member: Member) -> bool:
    """Whether a node no longer matches what was proven there, and no change is correcting that yet, because it has no
    fence. False for a node that cannot be compared with its target."""
    assessed = member.assessment
    return isinstance(assessed, Assessed) and assessed.drift is not None and member.node.fence is None


def _gpus_by_mode(plan: RolloutPlan, snapshot: ClusterSnapshot) -> dict[tuple[str, ...], float]:
    """Return how many GPUs the agents on the nodes of each policy report, by policy and mode. A node without a report
    counts as 0 GPUs. Policies whose spec is invalid are left out."""
    counts = {
        name: len(one.observed.gpus) for name, one in snapshot.gpunodes.items() if one.observed is not None
    }
    return {
        (name, str(pool.policy.spec.mode)): sum(counts.get(node, 0) for node in pool.names)
        for name, pool in plan.pools.items()
        if pool.policy.spec is not None
    }


def _prices(plan: RolloutPlan) -> dict[tuple[str, ...], float]:
    """Return the hourly price of a GPU by policy and currency. Policies without a price, or with an invalid spec, are
    left out."""
    specs = ((name, pool.policy.spec) for name, pool in plan.pools.items())
    costs = ((name, spec.cost) for name, spec in specs if spec is not None and spec.cost is not None)
    return {(name, cost.currency): float(cost.gpu_hourly_price) for name, cost in costs}


def _unhealthy_reasons(policy: str, verdict: Verdict) -> list[tuple[str, str]]:
    """Return the policy and the reason as the only pair if the node has an unhealthy GPU, else an empty list. The list
    is also empty if the health of its GPUs is not known."""
    health = verdict.health
    return [] if health is None or is_healthy(health) else [(policy, str(health.reason))]


def _blocked_reasons(policy: str, verdict: Verdict) -> list[tuple[str, str]]:
    """Return a pair of policy and reason for each reason and each pod that blocks for it, in no particular order, so
    that counting the pairs counts the pods. A pod that several blockers with one reason name counts once. Blockers that
    go away soon by themselves (`Passes.SOON`) are left out, and so are those that name no pod."""
    pods = {
        (blocker.reason, pod)
        for blocker in verdict.blockers
        if blocker.reason.passes is not Passes.SOON
        for pod in blocker.pods
    }
    return [(policy, str(reason)) for reason, _ in pods]


def _show(gauge: Gauge, values: Mapping[tuple[str, ...], float]) -> None:
    """Replace all values of a gauge. `values` are keyed by the values of its labels. No scrape sees the gauge half
    filled, because the same thread serves the pages."""
    gauge.clear()
    for labels, value in values.items():
        gauge.labels(*labels).set(value)
