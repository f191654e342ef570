"""The operator's metrics for Prometheus, and the observer that the loop tells about each pass.

`docs/reference/metrics.md` is generated from this file.
"""

import time
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, get_args

from prometheus_client import Counter, Gauge, Histogram, Metric
from prometheus_client.registry import Collector

from gpusharing.api.names import Phase
from gpusharing.controller.execute import Outcome
from gpusharing.controller.role import ProcessMetrics
from gpusharing.planning.gpus.health import is_healthy
from gpusharing.planning.report.counts import count_slices, waited_for
from gpusharing.planning.report.status import needs_person
from gpusharing.planning.rollout import RolloutPlan
from gpusharing.planning.snapshot.actions import Action
from gpusharing.planning.snapshot.views import ClusterSnapshot
from gpusharing.planning.stack.mps import count_lapses
from gpusharing.planning.transition.cases import Member
from gpusharing.planning.transition.verdict import Verdict
from gpusharing.planning.vocabulary.reasons import Passes, Reason
from gpusharing.planning.wanted.assess import Assessed


class Observer:
    """Receives a call for each thing that happens in the loop.

    This one ignores all of them, for an operator without metrics.
    """

    def passed(
        self, seconds: Mapping[str, float], plan: RolloutPlan, snapshot: ClusterSnapshot, outcome: Outcome
    ) -> None:
        """Called at the end of a pass with the seconds of each step by its name."""

    def acted(self, action: Action, result: str) -> None:
        """Called after an action with its result, `done` or what prevented it."""

    def changed(self, before: Verdict | None, after: Verdict) -> None:
        """Called when the verdict of a node differs from the one before, which is None for a new node."""


Standstill = tuple[str, tuple[str, ...], str, tuple[str, ...]]
"""What makes no progress: the kind, the values of the gauge's labels, the node, and what must change to be progress."""
Values = dict[tuple[str, ...], float]
"""The values of a gauge, by the values of its labels."""


class Metrics(Observer, Collector):
    """The leader's metrics."""

    def __init__(self, process: ProcessMetrics | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.process = process or ProcessMetrics()
        self.registry = self.process.registry
        self._clock = clock
        self._entered: dict[str, float] = {}
        self._standstills: dict[Standstill, float] = {}
        """When this process first saw each one that lasts."""
        # Before the others in the registry, so that the metrics after it are up to date at each scrape.
        self.registry.register(self)
        self._last: tuple[RolloutPlan, ClusterSnapshot] | None = None
        """Plan and snapshot of the last pass, or None before the first."""
        self.status_of: Callable[[str], Mapping[str, Any]] = lambda policy: {}
        """Returns the status of a policy as last read or written; empty if it has none."""
        self._policies: set[str] = set()
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
        self.blocked_for = self._per_policy(
            "gpusharing_drain_blocked_seconds",
            "How long the same pods have kept a node of a policy from being drained, by reason: that of the node with the"
            " longest time. Jobs that the policy waits for, and what ends at a certain time, do not count.",
            "reason",
        )
        self.waits_for = self._per_policy(
            "gpusharing_policy_blocked_seconds",
            "How long a node of a policy has been blocked by what only a person can end, by reason: that of the node with"
            " the longest time.",
            "reason",
        )
        self.agentless_for = self._per_policy(
            "gpusharing_policy_without_agent_seconds",
            "How long a node of a policy has had no Ready agent: that of the node with the longest time.",
        )
        self.given_up = self._per_policy(
            "gpusharing_policy_abandoned_changes",
            "How many changes of this revision were given up on a node of a policy: that of the node with the most.",
        )
        self.orphans = Gauge(
            "gpusharing_orphan_nodes",
            "Nodes that stay cordoned because their policy was deleted after the point of no return.",
            registry=self.registry,
        )

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
        return Gauge(name, text, ["policy", *labels], registry=self.registry)

    def collect(self) -> Iterable[Metric]:
        """Set the gauges that are computed only for a scrape, and return no metric."""
        if self._last is None:
            return ()
        plan, snapshot = self._last
        found = {name: len(one.observed.gpus) for name, one in snapshot.gpunodes.items() if one.observed}
        conditions, gpus, slices, idle = Values(), Values(), Values(), Values()
        drifted, agentless = Values(), Values()
        for name, pool in plan.pools.items():
            drifted[name,] = sum(map(_is_drifted, pool.members))
            for row in self.status_of(name).get("conditions") or ():
                conditions[name, *(str(row.get(key, "")) for key in ("type", "status", "reason"))] = 1
            agentless[name,] = len(set(pool.names) - snapshot.agents)
            if pool.policy.spec is not None:
                gpus[name, str(pool.policy.spec.mode)] = sum(found.get(node, 0) for node in pool.names)
            served, unheld = count_slices((snapshot.nodes[node] for node in pool.names), snapshot)
            slices |= {(name, resource): count for resource, count in served.items()}
            idle |= {(name, resource): count for resource, count in unheld.items()}
        ages = {kind: Values() for kind in ("blocked pods", "blocked", "agent")}
        now = self._clock()
        for (kind, labels, *_), since in self._standstills.items():
            ages[kind][labels] = max(now - since, ages[kind].get(labels, 0.0))
        _show((self.blocked_for, ages["blocked pods"]), (self.waits_for, ages["blocked"]))
        _show((self.agentless_for, ages["agent"]))
        pending: Values = {(resource,): count for resource, count in waited_for(snapshot).items()}
        _show((self.drifted, drifted), (self.conditions, conditions), (self.agentless, agentless))
        _show((self.gpus, gpus), (self.slices, slices), (self.idle, idle), (self.pending, pending))
        return ()

    def passed(
        self, seconds: Mapping[str, float], plan: RolloutPlan, snapshot: ClusterSnapshot, outcome: Outcome
    ) -> None:
        # These series begin at 0, because Prometheus does not count the first value of a series. Failures need no 0,
        # because they recur; transitions would have nearly 2,000 pairs of phase and reason.
        for kind in get_args(Action) if self._last is None else ():
            self.actions.labels(kind.__name__, "done")
        self._last = plan, snapshot
        for counter in (self.moves, self.lapses):
            for name in plan.pools:
                counter.labels(name)
            for name in self._policies - plan.pools.keys():
                counter.remove(name)
        self._policies = set(plan.pools)
        for step, duration in seconds.items():
            self.pass_seconds.labels(step).observe(duration)
        verdicts = plan.verdicts
        self._entered = {node: began for node, began in self._entered.items() if node in verdicts}
        nodes, unhealthy, blocked = (Tally[tuple[str, ...]]() for _ in range(3))
        allowed, used, halted, price, given_up = Values(), Values(), Values(), Values(), Values()
        standstills = dict.fromkeys(_standstills(plan, snapshot), self._clock())
        self._standstills = {each: self._standstills.get(each, now) for each, now in standstills.items()}
        for name, pool in plan.pools.items():
            owned = [verdicts[node] for node in pool.names]
            nodes.update((name, str(verdict.phase)) for verdict in owned)
            healths = (verdict.health for verdict in owned)
            unhealthy.update((name, str(one.reason)) for one in healths if one is not None and not is_healthy(one))
            for verdict in owned:
                hard = [one for one in verdict.blockers if one.reason.passes is not Passes.SOON]
                pods = {(blocker.reason, pod) for blocker in hard for pod in blocker.pods}
                blocked.update((name, str(reason)) for reason, _ in pods)
            allowed[name,], used[name,] = pool.limit, pool.used
            deferrals = (snapshot.nodes[node].deferred for node in pool.names)
            counts = (one.count for one in deferrals if one is not None and one.version == pool.policy.version)
            given_up[name,] = max(counts, default=0)
            halted[name,] = any(verdict.reason is Reason.HALTED for verdict in owned)
            if (spec := pool.policy.spec) is not None and spec.cost is not None:
                price[name, spec.cost.currency] = float(spec.cost.gpu_hourly_price)
        _show((self.nodes, nodes), (self.unhealthy, unhealthy), (self.allowed, allowed), (self.used, used))
        _show((self.halted, halted), (self.price, price), (self.blocked_pods, blocked), (self.given_up, given_up))
        self.orphans.set(sum(verdict.reason is Reason.ORPHAN_FENCE for verdict in verdicts.values()))

    def acted(self, action: Action, result: str) -> None:
        self.actions.labels(type(action).__name__, result).inc()

    def changed(self, before: Verdict | None, after: Verdict) -> None:
        if before is not None and after.mps_pod is not None and after.policy in self._policies:
            self.lapses.labels(after.policy).inc(count_lapses(before.mps_pod, after.mps_pod))
        if before is not None and before.phase is not after.phase:
            self.transitions.labels(str(after.phase), str(after.reason)).inc()
            if after.policy in self._policies:
                self.moves.labels(after.policy).inc()
            if (began := self._entered.get(after.node)) is not None:
                self.phase_seconds.labels(str(before.phase)).observe(self._clock() - began)
            self._entered[after.node] = self._clock()


def _standstills(plan: RolloutPlan, snapshot: ClusterSnapshot) -> Iterator[Standstill]:
    for name, pool in plan.pools.items():
        for node in pool.names:
            verdict, reasons = plan.verdicts[node], dict[str, set[str]]()
            # Until a node starts, others may use up what a PodDisruptionBudget allows.
            most = Passes.LATER if verdict.phase.in_flight else Passes.BY_A_PERSON
            for blocker in verdict.blockers:
                stays = blocker.reason.passes <= most and blocker.until is None
                if stays and blocker.reason is not Reason.JOBS_RUNNING:
                    reasons.setdefault(str(blocker.reason), set()).update(blocker.pods)
            for reason, pods in reasons.items():
                yield "blocked pods", (name, reason), node, tuple(sorted(pods))
            if verdict.phase is Phase.BLOCKED and needs_person(verdict):
                yield "blocked", (name, str(verdict.reason)), node, ()
            if node not in snapshot.agents:
                yield "agent", (name,), node, ()


def _is_drifted(member: Member) -> bool:
    assessed = member.assessment
    return isinstance(assessed, Assessed) and assessed.drift is not None and member.node.fence is None


def _show(*rows: tuple[Gauge, Mapping[tuple[str, ...], float]]) -> None:
    # No scrape sees a gauge half filled, because the same thread serves the pages.
    for gauge, values in rows:
        gauge.clear()
        for labels, value in values.items():
            gauge.labels(*labels).set(value)
