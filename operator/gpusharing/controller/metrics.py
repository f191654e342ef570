"""The operator's metrics for Prometheus. `docs/reference/metrics.md` is generated from this file."""

from collections import Counter as Tally
from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from gpusharing.controller.execute import Outcome
from gpusharing.kube.client import Resource
from gpusharing.planning.actions import Action
from gpusharing.planning.rollout import RolloutPlan
from gpusharing.planning.way.verdict import Verdict


class Metrics:
    """The operator's metrics in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.pass_seconds = Histogram(
            "gpusharing_pass_seconds",
            "Time of one step of a pass: gather, plan, execute or publish.",
            ["step"],
            registry=self.registry,
            buckets=(0.001, 0.005, 0.02, 0.1, 0.5, 2, 10),
        )
        self.actions = Counter(
            "gpusharing_actions_total",
            "Actions carried out, by kind and result (done, or what kept it).",
            ["action", "result"],
            registry=self.registry,
        )
        self.transitions = Counter(
            "gpusharing_transitions_total",
            "Phases that nodes entered.",
            ["phase", "reason"],
            registry=self.registry,
        )
        self.nodes = Gauge(
            "gpusharing_policy_nodes",
            "Nodes of a policy by phase.",
            ["policy", "phase"],
            registry=self.registry,
        )
        self.unhealthy = Gauge(
            "gpusharing_policy_unhealthy_nodes",
            "Nodes of a policy with an unhealthy GPU, by reason; such nodes are not reconfigured.",
            ["policy", "reason"],
            registry=self.registry,
        )
        self.requests = Counter(
            "gpusharing_api_requests_total",
            "Calls to the API server by verb, resource and HTTP status (0: no answer).",
            ["verb", "resource", "status"],
            registry=self.registry,
        )
        held = "1 while this process holds the Lease."
        self.leader = Gauge("gpusharing_leader", held, registry=self.registry)

    def passed(self, seconds: Mapping[str, float], plan: RolloutPlan, outcome: Outcome) -> None:
        """See observer.Observer."""
        for step, duration in seconds.items():
            self.pass_seconds.labels(step).observe(duration)
        verdicts = plan.verdicts
        mine = [(name, verdicts[node]) for name, pool in plan.pools.items() for node in pool.names]
        counts = Tally((name, verdict.phase) for name, verdict in mine)
        ill = Tally((name, v.health.reason) for name, v in mine if v.health is not None and not v.health.well)
        self.unhealthy.clear()
        for (policy, reason), count in ill.items():
            self.unhealthy.labels(policy, str(reason)).set(count)
        self.nodes.clear()
        for (policy, phase), count in counts.items():
            self.nodes.labels(policy, str(phase)).set(count)

    def acted(self, action: Action, result: str) -> None:
        """See observer.Observer."""
        self.actions.labels(type(action).__name__, result).inc()

    def changed(self, before: Verdict | None, after: Verdict) -> None:
        """See observer.Observer."""
        if before is not None and before.phase is not after.phase:
            self.transitions.labels(str(after.phase), str(after.reason)).inc()

    def called(
        self, verb: str, resource: Resource, subresource: str | None, status: int, seconds: float
    ) -> None:
        """See http.OnCall."""
        kind = f"{resource.plural}/{subresource}" if subresource else resource.plural
        self.requests.labels(verb, kind, str(status)).inc()
