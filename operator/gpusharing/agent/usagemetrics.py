"""What the GPUs of a node are used for, and the meter's counters, as Prometheus metrics, without DCGM.

The number of series is bounded whatever tenants do (MOST_DEVICES, MOST_HOLDERS, MOST_RESOURCES). No UID of a pod is a label. Values that are unknown are absent: no series is 0 because an answer is missing.
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
        self._meter = meter

    def collect(self) -> Iterable[Metric]:
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
    """Collects the usage metrics of one agent; none if the last turn did not read the GPUs."""

    def __init__(self, loop: AgentLoop, clock: Callable[[], float] = time.monotonic) -> None:
        self._loop = loop
        self._clock = clock
        self._seen: dict[tuple[int, int], int] = {}
        self._xids: LaggingCounts[tuple[int, int]] = LaggingCounts(loop.settings.meter_lag)
        self._alone = threading.Lock()  # each scrape runs in a thread of its own

    def collect(self) -> Iterable[Metric]:
        if self._loop.use is None:
            return
        use, holdings = self._loop.use
        known = usage(use, holdings)
        yield from _of_devices(known)
        yield from _of_slices(known)
        yield from _of_pods(known.holders)
        # Each is exported as 0 first, because most XIDs come once.
        xids = _counter(
            "xid_errors",
            "XIDs received from a GPU since the agent started; a new one is exported as 0 for 90 s, so that"
            " increase() also counts its first occurrence. XIDs that are raised between two readings are missed.",
            "gpu",
            "xid",
        )
        for (gpu, xid), count in self._count_xids(use).items():
            xids.add_metric([str(gpu), str(xid)], count)
        yield xids
        left_out = _family(
            "usage_left_out",
            f"Devices and pod/device pairs omitted from the usage metrics, which cover at most {MOST_DEVICES}"
            f" devices and {MOST_HOLDERS} pairs.",
        )
        left_out.add_metric([], known.left_out)
        yield left_out

    def _count_xids(self, use: Use) -> Mapping[tuple[int, int], float]:
        with self._alone:
            now = self._clock()
            for gpu, xid, count in use.xids:
                grown = count - self._seen.get((gpu, xid), 0)
                if grown:
                    self._seen[gpu, xid] = count
                    self._xids.add((gpu, xid), grown, now)
            return self._xids.export(now)


def _of_devices(known: DeviceUsage) -> Iterable[Metric]:
    devices = known.devices
    info = _family(
        "device_info",
        "1 for each whole GPU without MIG and each MIG device; placement is START:SIZE in NVML placement units.",
        *DEVICE,
        "gpu_uuid",
        "instance_id",
        "placement",
    )
    for device in devices:
        number = place = ""
        if (instance := device.instance) is not None:
            number = str(instance.id)
            place = "" if instance.start < 0 else f"{instance.start}:{instance.size}"
        info.add_metric([*_device(device), device.gpu_uuid, number, place], 1)
    yield info
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


def _ratio(device: DeviceUse, percent: int) -> float | None:
    return min(1.0, percent / 100) if device.reports_sm else None


def _device(device: DeviceUse) -> list[str]:
    return [str(device.gpu), device.uuid, "" if device.instance is None else device.instance.profile]


def _per_device(
    name: str, text: str, devices: Iterable[DeviceUse], value: Callable[[DeviceUse], float | None]
) -> GaugeMetricFamily:
    family = _family(name, text, *DEVICE)
    for device in devices:
        number = value(device)
        if number is not None:
            family.add_metric(_device(device), number)
    return family


def _family(name: str, text: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"{PREFIX}_{name}", text, labels=labels)


def _counter(name: str, text: str, *labels: str) -> CounterMetricFamily:
    return CounterMetricFamily(f"{PREFIX}_{name}", text, labels=labels)
