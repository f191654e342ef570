"""The agent's metrics for Prometheus, read from the loop at each scrape. The loop itself knows nothing of metrics.

They are about the agent and the health of its GPUs, and about what the GPUs are used for, without DCGM. The number of
series is bounded whatever tenants do (MOST_DEVICES, MOST_HOLDERS, MOST_RESOURCES). No UID of a pod is a label. Values
that are unknown are absent: no series is 0 because an answer is missing.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gpusharing.agent.gpunode import gpu_status
from gpusharing.agent.library import GPU, DeviceUse
from gpusharing.agent.loop import AgentLoop
from gpusharing.agent.meter import LaggingCounts, Metered
from gpusharing.agent.usage import MOST_DEVICES, MOST_HOLDERS, MOST_RESOURCES, DeviceUsage, Holder, Sum, usage
from gpusharing.kube.ownversion import own_version
from gpusharing.planning.gpus.health import diagnose, is_healthy, vitals_of

PREFIX = "gpusharing"
DEVICE = ("gpu", "uuid", "profile")
"""Labels of a device: index of its GPU, its own UUID, and its MIG profile, empty for a whole GPU."""
POD = ("namespace", "pod", *DEVICE)
Rows = Iterable[tuple[Sequence[str], float | None]]
"""The values of the labels of each sample, and its value."""
Family = TypeVar("Family", GaugeMetricFamily, CounterMetricFamily)


class AgentCollector(Collector):
    """Collects the metrics of one agent, those of the GPUs from the last successful reading."""

    def __init__(self, loop: AgentLoop) -> None:
        self._loop = loop
        self._version = own_version()

    def collect(self) -> Iterable[Metric]:
        loop = self._loop
        yield _gauge(
            "build_info",
            "1, with the version of the operator or of the agent.",
            ("version", "component"),
            [((self._version, "agent"), 1)],
        )
        yield _counter(
            "agent_readings",
            "Attempts to read the GPUs, by outcome: ok, failed, hung.",
            ("outcome",),
            _labeled(loop.readings_by_outcome),
        )
        yield CounterMetricFamily(
            "gpusharing_agent_reading_seconds",
            "Time taken by successful readings of the GPUs.",
            value=loop.reading_seconds,
        )
        yield _counter(
            "agent_writes",
            "Reports sent to the API server, by outcome: ok, failed.",
            ("outcome",),
            _labeled(loop.writes_by_outcome),
        )
        yield _counter(
            "agent_faults",
            "Unexpected errors, by the part of the agent: gpu, reading, pods, meter, turn. Each is a bug; what it"
            " concerns is reported as unknown.",
            ("part",),
            _labeled(loop.faults_by_part),
        )
        ready = not loop.why_not_ready()
        yield _value("agent_ready", "1 while the agent can answer requests from the operator.", ready)
        if (seen := loop.observed) is not None:
            yield _value("agent_quiet", "1 while the GPU library is kept closed at the operator's request.", seen.quiet)
            yield _value("agent_simulated", "1 when the GPUs are SIMULATED.", seen.simulated)
            if seen.pods is not None and seen.allocated is not None:
                yield _value(
                    "agent_pods", "Pods on this node that have a GPU device allocated; absent when unknown.", seen.pods
                )
                yield _gauge(
                    "agent_allocated_devices",
                    "Devices allocated to pods, by resource name; absent when unknown.",
                    ("resource",),
                    _labeled(seen.allocated),
                )
        if loop.reading is not None:
            yield from _of_gpus(loop.reading.gpus)


def _of_gpus(gpus: tuple[GPU, ...]) -> Iterable[Metric]:
    yield _gauge(
        "agent_gpu_info",
        "1 for each GPU.",
        ("gpu", "uuid", "product"),
        (((str(gpu.index), gpu.uuid, gpu.product), 1) for gpu in gpus),
    )
    yield _gauge(
        "agent_gpu_mig_instances",
        "MIG instances that exist.",
        ("gpu", "profile"),
        (
            ((str(gpu.index), profile), count)
            for gpu in gpus
            for profile, count in Counter(instance.profile for instance in gpu.instances).items()
        ),
    )
    yield _per_gpu("agent_gpu_mig_enabled", "1 while MIG mode is on.", gpus, lambda g: g.mig_mode == "Enabled")
    yield _per_gpu("agent_gpu_processes", "Processes that use the GPU.", gpus, lambda g: len(g.processes))
    yield _per_gpu(
        "agent_gpu_ecc_uncorrected",
        "Uncorrected ECC errors since the driver was loaded; absent where not supported.",
        gpus,
        lambda g: g.ecc_uncorrected,
    )
    yield _per_gpu(
        "agent_gpu_row_remap_failed",
        "1 when a row remapping failed: replace the card; absent where not supported.",
        gpus,
        lambda g: None if g.remapped_rows is None else g.remapped_rows[1],
    )
    yield _per_gpu(
        "agent_gpu_healthy",
        "1 while NVML reports no problem that makes the GPU unhealthy.",
        gpus,
        lambda g: is_healthy(diagnose([(g.index, vitals_of(gpu_status(g)))])),
    )
    yield _per_gpu(
        "agent_gpu_row_remap_pending",
        "1 while a row remapping is pending, which needs a GPU reset; absent where not supported.",
        gpus,
        lambda g: None if g.remapped_rows is None else g.remapped_rows[0],
    )
    yield _per_gpu(
        "agent_gpu_critical_xid",
        "The first critical XID received since the agent started; absent if there was none. XIDs that are"
        " raised between two readings are missed.",
        gpus,
        lambda g: g.xid,
    )
    yield _gauge(
        "agent_gpu_recovery_action",
        "1 for the recovery action that the driver requests (R565 and newer).",
        ("gpu", "action"),
        (((str(g.index), g.recovery_action), 1) for g in gpus if g.recovery_action is not None),
    )


class UsageCollector(Collector):
    """Collects one agent's usage metrics, if its last turn has read the GPUs, and its meter and peaks."""

    def __init__(self, loop: AgentLoop, clock: Callable[[], float] = time.monotonic) -> None:
        self._loop = loop
        self._clock = clock
        self._seen: dict[tuple[int, int], int] = {}
        self._xids: LaggingCounts[tuple[int, int]] = LaggingCounts(loop.settings.meter_lag)
        self._alone = threading.Lock()  # each scrape runs in a thread of its own

    def collect(self) -> Iterable[Metric]:
        yield from self._of_use()
        yield from of_meter(self._loop.meter.metered)
        reading = self._loop.reading
        yield from _of_peaks(self._loop.peaks.most, () if reading is None else reading.gpus)

    def _of_use(self) -> Iterable[Metric]:
        if self._loop.use is None:
            return
        use, holdings = self._loop.use
        known = usage(use, holdings)
        yield from _of_devices(known)
        yield from _of_slices(known)
        yield from _of_pods(known.holders)
        with self._alone:
            now = self._clock()
            for gpu, xid, count in use.xids:
                if grown := count - self._seen.get((gpu, xid), 0):
                    self._seen[gpu, xid] = count
                    self._xids.add((gpu, xid), grown, now)
            xids = self._xids.export(now)
        yield _counter(
            "xid_errors",
            "XIDs received from a GPU since the agent started; a new one is exported as 0 for 90 s, so that"
            " increase() also counts its first occurrence. XIDs that are raised between two readings are missed.",
            ("gpu", "xid"),
            (((str(gpu), str(xid)), count) for (gpu, xid), count in xids.items()),
        )
        yield _value(
            "usage_left_out",
            f"Devices and pod/device pairs omitted from the usage metrics, which cover at most {MOST_DEVICES}"
            f" devices and {MOST_HOLDERS} pairs.",
            known.left_out,
        )


def of_meter(metered: Metered) -> Iterable[Metric]:
    """Yield the counters of a meter."""
    yield _counter(
        "slice_seconds",
        "GPU-seconds of slices allocated to a namespace: the time of each slice, multiplied by its share of the"
        " GPU. A replica of a shared GPU counts as long as it is allocated, whether or not its pod uses the GPU.",
        ("policy", "namespace", "resource"),
        metered["allocated"].items(),
    )
    yield _counter(
        "idle_slice_seconds",
        "GPU-seconds of slices that were not allocated to a pod.",
        ("policy", "resource"),
        metered["idle"].items(),
    )
    yield _counter(
        "stranded_slice_seconds",
        "GPU-seconds of capacity that no slice of the layout covers.",
        ("policy",),
        metered["stranded"].items(),
    )
    yield _counter(
        "transition_slice_seconds",
        "GPU-seconds not allocated to a pod, on nodes in the middle of a change.",
        ("policy",),
        metered["transition"].items(),
    )
    yield _counter(
        "gpu_seconds",
        "All metered GPU-seconds: the sum of allocated, idle, stranded and in transition.",
        ("policy",),
        metered["gpus"].items(),
    )


def _of_devices(known: DeviceUsage) -> Iterable[Metric]:
    devices = known.devices
    places = []
    for device in devices:
        number = place = ""
        if (instance := device.instance) is not None:
            number = str(instance.id)
            place = "" if instance.start < 0 else f"{instance.start}:{instance.size}"
        places.append(((*_device(device), device.gpu_uuid, number, place), 1))
    yield _gauge(
        "device_info",
        "1 for each whole GPU without MIG and each MIG device; placement is START:SIZE in NVML placement units.",
        (*DEVICE, "gpu_uuid", "instance_id", "placement"),
        places,
    )
    yield _per_device("device_memory_bytes", "Memory of the device, in bytes.", devices, lambda device: device.memory)
    yield _per_device(
        "device_memory_used_bytes",
        "Memory in use on the device, in bytes, excluding the memory that the driver reserves.",
        devices,
        lambda device: device.memory_used,
    )

    others = {device.uuid: known.others.get(device.uuid, Sum()) if device.all_listed else None for device in devices}
    yield _per_device(
        "device_unattributed_processes",
        "Processes on the device that belong to no pod, or to a pod whose name is unknown; absent if some processes"
        " cannot be seen.",
        devices,
        lambda device: None if (sum_ := others[device.uuid]) is None else sum_.processes,
    )
    yield _per_device(
        "device_unattributed_memory_bytes",
        "Memory used on the device by processes that cannot be attributed to a pod, in bytes; absent if some processes"
        " cannot be seen.",
        devices,
        lambda device: None if (sum_ := others[device.uuid]) is None else sum_.memory,
    )
    yield _per_device(
        "device_sm_ratio",
        "Share of the GPU's SM time that its processes used in the driver's last sample period, 0 to 1; absent with MIG"
        " on, or if the driver does not report it.",
        devices,
        lambda device: _ratio(device, known.sm_percent.get(device.uuid, 0)),
    )


def _of_peaks(most: Mapping[str, tuple[int, int]], gpus: Iterable[GPU]) -> Iterable[Metric]:
    rows = [((str(gpu.index), gpu.uuid), most[gpu.uuid]) for gpu in gpus if gpu.uuid in most]
    yield _gauge(
        "gpu_pods_hour_max",
        "The most pods that held slices of the GPU at one time since the last full hour of UTC, also between scrapes.",
        ("gpu", "uuid"),
        ((labels, pods) for labels, (pods, _) in rows),
    )
    yield _gauge(
        "gpu_slices_hour_max",
        "The most slices of the GPU, instances included, that were allocated to pods at one time since the last full hour"
        " of UTC, also between scrapes.",
        ("gpu", "uuid"),
        ((labels, slices) for labels, (_, slices) in rows),
    )


def _of_slices(known: DeviceUsage) -> Iterable[Metric]:
    keys = (*DEVICE, "resource")
    allocatable, allocated = [], []
    for device in known.devices:
        resources = known.allocatable.get(device.uuid, {})
        counts = {} if known.allocated is None else known.allocated.get(device.uuid, {})
        # Held resources come first, because they need not be allocatable any more and must not be cut off.
        for resource in list(dict.fromkeys([*counts, *resources]))[:MOST_RESOURCES]:
            labels = (*_device(device), resource)
            if resource in resources:
                allocatable.append((labels, resources[resource]))
            if known.allocated is not None:
                allocated.append((labels, counts.get(resource, 0)))
    yield _gauge(
        "device_slices",
        "Slices of the device that can be allocated to pods: 1, or the number of replicas if it is shared.",
        keys,
        allocatable,
    )
    yield _gauge("device_slices_allocated", "Slices of the device that are allocated to pods.", keys, allocated)


def _of_pods(holders: Iterable[Holder]) -> Iterable[Metric]:
    labeled = [(holder, (*holder.pod, *_device(holder.device))) for holder in holders]
    seen = [
        (labels, holder.device, holder.taken)
        for holder, labels in labeled
        if holder.taken is not None and holder.device.all_listed
    ]
    yield _gauge(
        "pod_slices",
        "Slices of a device that are allocated to a pod.",
        (*POD, "resource"),
        (((*labels, resource), count) for holder, labels in labeled for resource, count in holder.slices.items()),
    )
    yield _gauge(
        "pod_processes",
        "Processes of a pod on a device; absent if some processes cannot be seen, or if some belong to a pod whose"
        " name is unknown, because it may be this one.",
        POD,
        ((labels, taken.processes) for labels, _, taken in seen),
    )
    yield _gauge(
        "pod_memory_used_bytes",
        "Memory used by the processes of a pod on a device, in bytes; absent if the driver does not report it, or if"
        " pod_processes is absent.",
        POD,
        ((labels, taken.memory) for labels, _, taken in seen),
    )
    yield _gauge(
        "pod_sm_ratio",
        "Share of the GPU's SM time that a pod used in the driver's last sample period, 0 to 1; absent with MIG on, if"
        " the driver does not report it, or if pod_processes is absent.",
        POD,
        ((labels, _ratio(device, taken.sm_percent)) for labels, device, taken in seen),
    )


def _ratio(device: DeviceUse, percent: int) -> float | None:
    return min(1.0, percent / 100) if device.reports_sm else None


def _device(device: DeviceUse) -> tuple[str, str, str]:
    return str(device.gpu), device.uuid, "" if device.instance is None else device.instance.profile


def _per_device(
    name: str, text: str, devices: Iterable[DeviceUse], value: Callable[[DeviceUse], float | None]
) -> GaugeMetricFamily:
    return _gauge(name, text, DEVICE, ((_device(device), value(device)) for device in devices))


def _per_gpu(name: str, text: str, gpus: Iterable[GPU], value: Callable[[GPU], float | None]) -> GaugeMetricFamily:
    return _gauge(name, text, ("gpu",), (((str(gpu.index),), value(gpu)) for gpu in gpus))


def _value(name: str, text: str, value: float) -> GaugeMetricFamily:
    return _gauge(name, text, (), [((), value)])


def _labeled(values: Mapping[str, float]) -> Rows:
    return (((label,), value) for label, value in values.items())


def _gauge(name: str, text: str, labels: Sequence[str], rows: Rows) -> GaugeMetricFamily:
    return _filled(GaugeMetricFamily(f"{PREFIX}_{name}", text, labels=labels), rows)


def _counter(name: str, text: str, labels: Sequence[str], rows: Rows) -> CounterMetricFamily:
    return _filled(CounterMetricFamily(f"{PREFIX}_{name}", text, labels=labels), rows)


def _filled(family: Family, rows: Rows) -> Family:
    for values, number in rows:
        if number is not None:
            family.add_metric(values, number)
    return family
