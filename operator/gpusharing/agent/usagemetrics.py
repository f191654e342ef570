"""What the GPUs of a node are used for, and the meter's counters, as Prometheus metrics, without DCGM. Made at each
scrape from the loop's last turn.

A node has at most MOST_DEVICES devices and MOST_HOLDERS pairs of a pod and a device, each with at most MOST_RESOURCES
names, so the number of series is bounded whatever tenants do; `gpusharing_usage_left_out` counts the devices and pairs
that are cut off. No UID of a pod is a label. Values that are unknown are absent: no series is 0 because an answer is
missing.
"""

import threading
import time
from collections.abc import Callable, Iterable, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gpusharing.agent.lagging import LaggingCounts
from gpusharing.agent.library import DeviceUse, Use
from gpusharing.agent.loop import AgentLoop
from gpusharing.agent.meter import Meter
from gpusharing.agent.usage import MOST_DEVICES, MOST_HOLDERS, MOST_RESOURCES, DeviceUsage, Holder, Sum, usage

PREFIX = "gpusharing"
DEVICE = ("gpu", "uuid", "profile")
"""Labels of a device: the index of its GPU, its own UUID, and its MIG profile, which is empty for a whole GPU."""
POD = ("namespace", "pod", *DEVICE)


class MeterCollector(Collector):
    """Collects the counters of one meter. The growth of all parts adds up to that of `gpusharing_gpu_seconds_total`."""

    def __init__(self, meter: Meter) -> None:
        """Collect the counters of `meter`."""
        self._meter = meter

    def collect(self) -> Iterable[Metric]:
        """Yield every metric of the meter's last turn (`Meter.metered`), as documented in docs/reference/metrics.md.
        Without a turn so far, the metrics have no series."""
        metered = self._meter.metered
        allocated = _counter(
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
        idle = _counter(
            "idle_slice_seconds",
            "GPU-seconds of slices that were not allocated to a pod.",
            "policy",
            "resource",
        )
        for (policy, resource), seconds in metered.idle.items():
            idle.add_metric([policy, resource], seconds)
        yield idle
        stranded = _counter(
            "stranded_slice_seconds",
            "GPU-seconds of capacity that no slice of the layout covers.",
            "policy",
        )
        changing = _counter(
            "transition_slice_seconds",
            "GPU-seconds not allocated to a pod, on nodes in the middle of a change.",
            "policy",
        )
        gpus = _counter(
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


class UsageCollector(Collector):
    """Collects the usage metrics of one agent."""

    def __init__(self, loop: AgentLoop, clock: Callable[[], float] = time.monotonic) -> None:
        """Collect the metrics of the agent that `loop` runs. `clock` returns monotonic seconds."""
        self._loop = loop
        self._xids = _Xids(loop.settings.meter_lag, clock)

    def collect(self) -> Iterable[Metric]:
        """Yield every metric, as documented in docs/reference/metrics.md; nothing if the last turn did not read the
        GPUs."""
        if self._loop.use is None:
            return
        use, holdings = self._loop.use
        known = usage(use, holdings)
        yield from _of_devices(known)
        yield from _of_slices(known)
        yield from _of_pods(known.holders)
        yield _of_xids(self._xids.export(use))
        left_out = _family(
            "usage_left_out",
            f"Devices and pod/device pairs omitted from the usage metrics, which cover at most {MOST_DEVICES}"
            f" devices and {MOST_HOLDERS} pairs.",
        )
        left_out.add_metric([], known.left_out)
        yield left_out


def _device_info(devices: Iterable[DeviceUse]) -> Metric:
    """Return the metric `device_info`, which is 1 for each device. Besides those in DEVICE, its labels are the UUID of
    the GPU, and the id and the placement of the instance (`_where`)."""
    info = _family(
        "device_info",
        "1 for each whole GPU without MIG and each MIG device; placement is START:SIZE in NVML placement units.",
        *DEVICE,
        "gpu_uuid",
        "instance_id",
        "placement",
    )
    for device in devices:
        info.add_metric([*_device(device), device.gpu_uuid, *_where(device)], 1)
    return info


def _of_devices(known: DeviceUsage) -> Iterable[Metric]:
    """Yield the metrics of devices: their properties, memory, unattributed processes, and SM time. A value that is
    unknown for a device is absent."""
    devices = known.devices
    yield _device_info(devices)
    yield _per_device(
        "device_memory_bytes", "Memory of the device, in bytes.", devices, lambda device: device.memory
    )
    yield _per_device(
        "device_memory_used_bytes",
        "Memory in use on the device, in bytes, excluding the memory that the driver reserves.",
        devices,
        lambda device: device.memory_used,
    )

    def others(device: DeviceUse) -> Sum:
        """Return what the processes of no pod, or of an unnamed one, use of the device."""
        return known.others.get(device.uuid, Sum())

    yield _per_device(
        "device_unattributed_processes",
        "Processes on the device that belong to no pod, or to a pod whose name is unknown; absent if some processes"
        " cannot be seen.",
        devices,
        lambda device: others(device).processes if device.all_listed else None,
    )
    yield _per_device(
        "device_unattributed_memory_bytes",
        "Memory used on the device by processes that cannot be attributed to a pod, in bytes; absent if some processes"
        " cannot be seen.",
        devices,
        lambda device: others(device).memory if device.all_listed else None,
    )
    yield _per_device(
        "device_sm_ratio",
        "Share of the GPU's SM time that its processes used in the driver's last sample period, 0 to 1; absent with MIG"
        " on, or if the driver does not report it.",
        devices,
        lambda device: _ratio(device, known.sm_percent.get(device.uuid, 0)),
    )


def _of_slices(known: DeviceUsage) -> Iterable[Metric]:
    """Yield two metrics: how many slices each device has, and how many of them pods hold. The second metric has no
    series while it is unknown what pods hold. At most MOST_RESOURCES resources of a device are included, beginning
    with those that pods hold."""
    keys = (*DEVICE, "resource")
    allocatable = _family(
        "device_slices",
        "Slices of the device that can be allocated to pods: 1, or the number of replicas if it is shared.",
        *keys,
    )
    allocated = _family("device_slices_allocated", "Slices of the device that are allocated to pods.", *keys)
    for device in known.devices:
        resources = known.allocatable.get(device.uuid, {})
        counts = {} if known.allocated is None else known.allocated.get(device.uuid, {})
        # Held resources come first, because they need not be allocatable any more and must not be cut off.
        for resource in list(dict.fromkeys([*counts, *resources]))[:MOST_RESOURCES]:
            labels = (*_device(device), resource)
            if resource in resources:
                allocatable.add_metric(labels, resources[resource])
            if known.allocated is not None:
                allocated.add_metric(labels, counts.get(resource, 0))
    yield allocatable
    yield allocated


def _of_pods(holders: Iterable[Holder]) -> Iterable[Metric]:
    """Yield the metrics of each pair of a pod and a device. A pair has no metrics about processes if some processes on
    the device cannot be seen, or if some belong to a pod whose name is unknown, because that may be this pod. Memory or
    SM time that the driver does not report is absent too."""
    slices = _family("pod_slices", "Slices of a device that are allocated to a pod.", *POD, "resource")
    processes = _family(
        "pod_processes",
        "Processes of a pod on a device; absent if some processes cannot be seen, or if some belong to a pod whose"
        " name is unknown, because it may be this one.",
        *POD,
    )
    memory = _family(
        "pod_memory_used_bytes",
        "Memory used by the processes of a pod on a device, in bytes; absent if the driver does not report it, or if"
        " pod_processes is absent.",
        *POD,
    )
    shares = _family(
        "pod_sm_ratio",
        "Share of the GPU's SM time that a pod used in the driver's last sample period, 0 to 1; absent with MIG on, if"
        " the driver does not report it, or if pod_processes is absent.",
        *POD,
    )
    for holder in holders:
        labels = [*holder.pod, *_device(holder.device)]
        for resource, count in holder.slices.items():
            slices.add_metric([*labels, resource], count)
        taken = holder.taken
        if taken is None or not holder.device.all_listed:
            continue
        processes.add_metric(labels, taken.processes)
        if taken.memory is not None:
            memory.add_metric(labels, taken.memory)
        share = _ratio(holder.device, taken.sm_percent)
        if share is not None:
            shares.add_metric(labels, share)
    yield slices
    yield processes
    yield memory
    yield shares


class _Xids:
    """Counters of XIDs by GPU and XID. Each is exported as 0 first, so that a scrape sees the 0: most XIDs come once,
    and Prometheus does not count the first value of a series."""

    def __init__(self, lag: float, clock: Callable[[], float]) -> None:
        """Export each new counter as 0 for `lag` seconds by `clock`."""
        self._clock = clock
        self._seen: dict[tuple[int, int], int] = {}
        self._counts: LaggingCounts[tuple[int, int]] = LaggingCounts(lag)
        self._alone = threading.Lock()  # each scrape runs in a thread of its own

    def export(self, use: Use) -> Mapping[tuple[int, int], float]:
        """Add the XIDs that are new since the last call to the counters, and return the counts to export, by GPU index
        and XID; a new counter is 0 for the lag. Safe to call from several threads."""
        with self._alone:
            now = self._clock()
            for gpu, xid, count in use.xids:
                grown = count - self._seen.get((gpu, xid), 0)
                if grown:
                    self._seen[gpu, xid] = count
                    self._counts.add((gpu, xid), grown, now)
            return self._counts.export(now)


def _of_xids(heard: Mapping[tuple[int, int], float]) -> Metric:
    """Return the metric of XIDs. `heard` holds the counts by GPU index and XID."""
    xids = _counter(
        "xid_errors",
        "XIDs received from a GPU since the agent started; a new one is exported as 0 for 90 s, so that"
        " increase() also counts its first occurrence. XIDs that are raised between two readings are missed.",
        "gpu",
        "xid",
    )
    for (gpu, xid), count in heard.items():
        xids.add_metric([str(gpu), str(xid)], count)
    return xids


def _ratio(device: DeviceUse, percent: int) -> float | None:
    """Return the fraction of SM time for a percentage, or None if the driver does not report it. It is at most 1,
    although rounding may make a sum slightly larger."""
    return min(1.0, percent / 100) if device.reports_sm else None


def _device(device: DeviceUse) -> list[str]:
    """Return the values of the labels in DEVICE, in that order. The profile of a whole GPU is empty."""
    return [str(device.gpu), device.uuid, "" if device.instance is None else device.instance.profile]


def _where(device: DeviceUse) -> tuple[str, str]:
    """Return the id and the placement, written START:SIZE, of a device's GPU instance, as label values. Both are empty
    for a whole GPU, and the placement is empty if the agent may not read it."""
    instance = device.instance
    if instance is None:
        return "", ""
    return str(instance.id), "" if instance.start < 0 else f"{instance.start}:{instance.size}"


def _per_device(
    name: str, text: str, devices: Iterable[DeviceUse], value: Callable[[DeviceUse], float | None]
) -> GaugeMetricFamily:
    """Return a gauge named PREFIX_`name` with the `value` of each device, with the labels in DEVICE. Devices whose
    value is None are absent."""
    family = _family(name, text, *DEVICE)
    for device in devices:
        number = value(device)
        if number is not None:
            family.add_metric(_device(device), number)
    return family


def _family(name: str, text: str, *labels: str) -> GaugeMetricFamily:
    """Return an empty gauge with this name, help text and labels."""
    return GaugeMetricFamily(f"{PREFIX}_{name}", text, labels=labels)


def _counter(name: str, text: str, *labels: str) -> CounterMetricFamily:
    """Return an empty counter with this name, help text and labels."""
    return CounterMetricFamily(f"{PREFIX}_{name}", text, labels=labels)
