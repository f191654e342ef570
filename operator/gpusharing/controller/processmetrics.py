"""The metrics that every process of the operator has, whether it leads or stands by."""

from prometheus_client import CollectorRegistry, Counter, Gauge

from gpusharing.kube.client import ApiRequest
from gpusharing.kube.ownversion import own_version


class ProcessMetrics:
    """API calls, version and leadership, in a registry to which a leader adds its own metrics."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "gpusharing_api_requests_total",
            "Calls to the API server by verb, resource and HTTP status (0: no response).",
            ["verb", "resource", "status"],
            registry=self.registry,
        )
        build = "1, with the version of the operator or of the agent."
        self.build = Gauge("gpusharing_build_info", build, ["version", "component"], registry=self.registry)
        self.build.labels(own_version(), "operator").set(1)
        leads = "1 while this process holds the Lease."
        self.leader = Gauge("gpusharing_leader", leads, registry=self.registry)

    def called(self, request: ApiRequest, status: int) -> None:
        """Count an API call; the kind is empty for discovery. See http.OnCall."""
        kind = request.kind if request.resource.plural else ""
        self.requests.labels(request.verb, kind, str(status)).inc()
