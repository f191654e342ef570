"""The meter's counters for Prometheus. The growth of all parts adds up to that of `gpusharing_gpu_seconds_total`."""

from collections.abc import Iterable

from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from gpusharing.agent.meter import Meter

PREFIX = "gpusharing"


class MeterCollector(Collector):
    """Collects the counters of one meter."""

    def __init__(self, meter: Meter) -> None:
        """Collect the counters of `meter`."""
        self._meter = meter

    def collect(self) -> Iterable[Metric]:
        """Yield every metric, as documented in docs/reference/metrics.md."""
        metered = self._meter.metered
        allocated = _family(
            "slice_seconds",
            "GPU-seconds of slices allocated to a namespace: the time of each slice, multiplied by its share of the"
            " GPU. A replica of a shared GPU counts as long as it is allocated, whether or not its pod uses the GPU.",
            "policy",
            "namespace",
            "resource",
        )
        for account, seconds in metered.allocated.items():
            allocated.add_metric([account.policy, account.namespace, account.resource], seconds)
        yield allocated
        idle = _family(
            "idle_slice_seconds",
            "GPU-seconds of slices that were not allocated to a pod.",
            "policy",
            "resource",
        )
        for (policy, resource), seconds in metered.idle.items():
            idle.add_metric([policy, resource], seconds)
        yield idle
        stranded = _family(
            "stranded_slice_seconds",
            "GPU-seconds of capacity that no slice of the layout covers.",
            "policy",
        )
        changing = _family(
            "transition_slice_seconds",
            "GPU-seconds not allocated to a pod, on nodes in the middle of a change.",
            "policy",
        )
        gpus = _family(
            "gpu_seconds",
            "All metered GPU-seconds: the sum of allocated, idle, stranded and in transition.",
            "policy",
        )
        for family, counts in (
            (stranded, metered.stranded), (changing, metered.transition), (gpus, metered.gpus)
        ):  # fmt: skip
            for policy, seconds in counts.items():
                family.add_metric([policy], seconds)
            yield family


def _family(name: str, text: str, *labels: str) -> CounterMetricFamily:
    """Return an empty counter with this name, help text and labels."""
    return CounterMetricFamily(f"{PREFIX}_{name}", text, labels=labels)
