"""The agent's metrics for Prometheus, read from the loop at each scrape. The loop itself knows nothing of metrics."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gpusharing.agent.gpunode import gpu_status
from gpusharing.agent.library import GPU
from gpusharing.agent.loop import AgentLoop
from gpusharing.kube.ownversion import own_version
from gpusharing.planning.gpus.health import diagnose, is_healthy, vitals_of

PREFIX = "gpusharing_agent"


class AgentCollector(Collector):
    """Collects the metrics of one agent, those of the GPUs from the last successful reading."""

    def __init__(self, loop: AgentLoop) -> None:
        self._loop = loop
        self._version = own_version()

    def collect(self) -> Iterable[Metric]:
        loop = self._loop
        build = GaugeMetricFamily(
            "gpusharing_build_info",
            "1, with the version of the operator or of the agent.",
            labels=["version", "component"],
        )
        build.add_metric([self._version, "agent"], 1)
        yield build
        yield _counter(
            "readings", "Attempts to read the GPUs, by outcome: ok, failed, hung.", "outcome", loop.readings_by_outcome
        )
        yield CounterMetricFamily(
            f"{PREFIX}_reading_seconds", "Time taken by successful readings of the GPUs.", value=loop.reading_seconds
        )
        yield _counter(
            "writes", "Reports sent to the API server, by outcome: ok, failed.", "outcome", loop.writes_by_outcome
        )
        yield _counter(
            "faults",
            "Unexpected errors, by the part of the agent: gpu, reading, pods, meter, turn. Each is a bug; what it"
            " concerns is reported as unknown.",
            "part",
            loop.faults_by_part,
        )
        ready = not loop.why_not_ready()
        yield _gauge("ready", "1 while the agent can answer requests from the operator.", ready)
        if (observed := loop.observed) is not None:
            yield _gauge("quiet", "1 while the GPU library is kept closed at the operator's request.", observed.quiet)
            yield _gauge("simulated", "1 when the GPUs are SIMULATED.", observed.simulated)
            if observed.pods is not None and observed.allocated is not None:
                yield _gauge(
                    "pods", "Pods on this node that have a GPU device allocated; absent when unknown.", observed.pods
                )
                yield _family(
                    "allocated_devices",
                    "Devices allocated to pods, by resource name; absent when unknown.",
                    ("resource",),
                    (((resource,), count) for resource, count in observed.allocated.items()),
                )
        if loop.reading is not None:
            yield from _of_gpus(loop.reading.gpus)


def _of_gpus(gpus: tuple[GPU, ...]) -> Iterable[Metric]:
    yield _family(
        "gpu_info",
        "1 for each GPU.",
        ("gpu", "uuid", "product"),
        (((str(gpu.index), gpu.uuid, gpu.product), 1) for gpu in gpus),
    )
    yield _family(
        "gpu_mig_instances",
        "MIG instances that exist.",
        ("gpu", "profile"),
        (
            ((str(gpu.index), profile), count)
            for gpu in gpus
            for profile, count in Counter(instance.profile for instance in gpu.instances).items()
        ),
    )
    yield _per_gpu("gpu_mig_enabled", "1 while MIG mode is on.", gpus, lambda g: g.mig_mode == "Enabled")
    yield _per_gpu("gpu_processes", "Processes that use the GPU.", gpus, lambda g: len(g.processes))
    yield _per_gpu(
        "gpu_ecc_uncorrected",
        "Uncorrected ECC errors since the driver was loaded; absent where not supported.",
        gpus,
        lambda g: g.ecc_uncorrected,
    )
    yield _per_gpu(
        "gpu_row_remap_failed",
        "1 when a row remapping failed: replace the card; absent where not supported.",
        gpus,
        lambda g: None if g.remapped_rows is None else g.remapped_rows.failed,
    )
    yield _per_gpu(
        "gpu_healthy",
        "1 while NVML reports no problem that makes the GPU unhealthy.",
        gpus,
        lambda g: is_healthy(diagnose([(g.index, vitals_of(gpu_status(g)))])),
    )
    yield _per_gpu(
        "gpu_row_remap_pending",
        "1 while a row remapping is pending, which needs a GPU reset; absent where not supported.",
        gpus,
        lambda g: None if g.remapped_rows is None else g.remapped_rows.pending,
    )
    yield _per_gpu(
        "gpu_critical_xid",
        "The first critical XID received since the agent started; absent if there was none. XIDs that are"
        " raised between two readings are missed.",
        gpus,
        lambda g: g.xid,
    )
    yield _family(
        "gpu_recovery_action",
        "1 for the recovery action that the driver requests (R565 and newer).",
        ("gpu", "action"),
        (((str(g.index), g.recovery_action), 1) for g in gpus if g.recovery_action is not None),
    )


def _per_gpu(name: str, text: str, gpus: Iterable[GPU], value: Callable[[GPU], float | None]) -> GaugeMetricFamily:
    values = ((str(gpu.index), value(gpu)) for gpu in gpus)
    rows = (((index,), float(number)) for index, number in values if number is not None)
    return _family(name, text, ("gpu",), rows)


def _family(
    name: str, text: str, labels: Sequence[str], rows: Iterable[tuple[Sequence[str], float]]
) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"{PREFIX}_{name}", text, labels=labels)
    for values, number in rows:
        family.add_metric(values, number)
    return family


def _counter(name: str, text: str, label: str, counts: Mapping[Any, float]) -> CounterMetricFamily:
    family = CounterMetricFamily(f"{PREFIX}_{name}", text, labels=[label])
    for key, count in counts.items():
        family.add_metric([key], count)
    return family


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"{PREFIX}_{name}", text, value=float(value))
