"""The operator's metrics for Prometheus.

`docs/reference/metrics.md` is generated from this file.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, get_args

from prometheus_client import Counter, Gauge, Histogram, Metric
from prometheus_client.registry import Collector

from gpusharing.api.names import Phase
from gpusharing.controller.gauges import Seen, Standstill, collect_gauges, find_standstills
from gpusharing.controller.role import ProcessMetrics
from gpusharing.planning.report.counts import waited_for
from gpusharing.planning.rollout import RolloutPlan
from gpusharing.planning.snapshot.actions import Action
from gpusharing.planning.snapshot.views import ClusterSnapshot
from gpusharing.planning.stack.mps import count_lapses
from gpusharing.planning.transition.verdict import Verdict
from gpusharing.planning.vocabulary.reasons import Reason


class Metrics(Collector):
    """The leader's metrics, which the loop tells about each pass."""

    def __init__(self, process: ProcessMetrics | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.process = process or ProcessMetrics()
        self.registry = self.process.registry
        self._clock = clock
        self._entered: dict[str, float] = {}
        self._standstills: dict[tuple[str, Standstill], float] = {}
        """When this process first saw each one that lasts, with its policy."""
        # Before the others in the registry, so that the metrics after it are up to date at each scrape.
        self.registry.register(self)
        self._last: tuple[RolloutPlan, ClusterSnapshot] | None = None
        """Plan and snapshot of the last pass, or None before the first."""
        self.status_of: Callable[[str], Mapping[str, Any]] = lambda policy: {}
        """Returns the status of a policy as last read or written; empty if it has none."""
        self._policies: set[str] = set()
        counter, gauge = partial(Counter, registry=self.registry), partial(Gauge, registry=self.registry)
        histogram = partial(Histogram, registry=self.registry)
        self.pass_seconds = histogram(
            "gpusharing_pass_seconds",
            "Duration of one step of a pass: gather, plan, execute or publish.",
            ["step"],
            buckets=(0.001, 0.005, 0.02, 0.1, 0.5, 2, 10),
        )
        self.actions = counter(
            "gpusharing_actions_total",
            "Attempted actions, by kind and result: done (exported as 0 from the start), or what prevented the action.",
            ["action", "result"],
        )
        self.transitions = counter(
            "gpusharing_transitions_total",
            "How often nodes entered a phase, by reason. A series does not exist before its first transition, so"
            " increase() does not count that transition.",
            ["phase", "reason"],
        )
        self.phase_seconds = histogram(
            "gpusharing_phase_seconds",
            "Time that nodes spent in a phase, counted only if this process saw the phase begin.",
            ["phase"],
            buckets=(1, 5, 15, 60, 300, 900, 3600, 14400, 86400),
        )
        for phase in Phase:  # increase() does not count the first value of a series
            self.phase_seconds.labels(str(phase))

        self.orphans = gauge(
            "gpusharing_orphan_nodes",
            "Nodes that stay cordoned because their policy was deleted after the point of no return.",
        )

        self.stopped = gauge(
            "gpusharing_stopped", "1 while the ConfigMap gpusharing-stop stops the operator, as of the last pass."
        )

        self.moves = counter(
            "gpusharing_policy_transitions_total",
            "Number of times that nodes of a policy entered a phase; if it stops increasing, no node makes progress.",
            ["policy"],
        )
        self.lapses = counter(
            "gpusharing_policy_mps_clients_ended_total",
            "Number of times that config-manager restarted without the MPS daemon and thereby ended the MPS clients"
            " on a policy's node.",
            ["policy"],
        )
        self.pending = gauge(
            "gpusharing_pending_pods",
            "Pods that request a GPU resource and have no node yet. After the first 16 resource names that no node"
            " advertises, all others count as _others.",
            ["resource"],
        )

    def describe(self) -> Iterable[Metric]:
        """Yield the gauges about policies without values, by which the registry knows their names."""
        return collect_gauges({})

    def collect(self) -> Iterable[Metric]:
        """Yield the gauges about policies, and set the one about pods for the same scrape."""
        policies = dict[str, Seen]()
        if self._last is not None:
            plan, snapshot = self._last
            ages, now = dict[str, dict[str, dict[tuple[str, ...], float]]](), self._clock()
            for (policy, (gauge, labels, *_)), since in self._standstills.items():
                found = ages.setdefault(policy, {}).setdefault(gauge, {})
                found[labels] = max(now - since, found.get(labels, 0.0))
            for name, pool in plan.pools.items():
                policies[name] = Seen(pool, plan, snapshot, self.status_of(name), ages.get(name, {}))
            self.pending.clear()  # no scrape sees it half filled, because one page is rendered at a time
            for resource, count in waited_for(snapshot).items():
                self.pending.labels(resource).set(count)
        yield from collect_gauges(policies)

    def passed(self, seconds: Mapping[str, float], plan: RolloutPlan, snapshot: ClusterSnapshot) -> None:
        """Record a pass, with the seconds of each step by its name."""
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
        standing = {
            (name, each) for name, pool in plan.pools.items() for each in find_standstills(pool, plan, snapshot)
        }
        now = self._clock()
        self._standstills = {each: self._standstills.get(each, now) for each in standing}
        self.stopped.set(bool(snapshot.stop))
        self.orphans.set(sum(verdict.reason is Reason.ORPHAN_FENCE for verdict in verdicts.values()))

    def acted(self, action: Action, result: str) -> None:
        """Count an action by its result, `done` or what prevented it."""
        self.actions.labels(type(action).__name__, result).inc()

    def changed(self, before: Verdict | None, after: Verdict) -> None:
        """Count the change of a node's verdict; `before` is None for a new node."""
        if before is not None and after.mps_pod is not None and after.policy in self._policies:
            self.lapses.labels(after.policy).inc(count_lapses(before.mps_pod, after.mps_pod))
        if before is not None and before.phase is not after.phase:
            self.transitions.labels(str(after.phase), str(after.reason)).inc()
            if after.policy in self._policies:
                self.moves.labels(after.policy).inc()
            if (began := self._entered.get(after.node)) is not None:
                self.phase_seconds.labels(str(before.phase)).observe(self._clock() - began)
            self._entered[after.node] = self._clock()
