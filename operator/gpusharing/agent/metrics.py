"""The agent's metrics for Prometheus, read from the loop at each scrape. The loop itself knows nothing of metrics.

They are about the agent and the health of its GPUs, and about what the GPUs are used for, without DCGM. The number of
series is bounded whatever tenants do (MOST_DEVICES, MOST_HOLDERS, MOST_RESOURCES). No UID of a pod is a label. Values
that are unknown are absent: no series is 0 because an answer is missing.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeAlias

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gpusharing.agent.gpunode import gpu_status
from gpusharing.agent.library import GPU, DeviceUse
from gpusharing.agent.loop import AgentLoop
from gpusharing.agent.meter import LaggingCounts, Metered
from gpusharing.agent.usage import MOST_DEVICES, MOST_HOLDERS, MOST_RESOURCES, DeviceUsage, Holder, Sum, usage
from gpusharing.kube.ownversion import own_version
from gpusharing.planning.gpus.health import diagnose, is_healthy, vitals_of

DEVICE = ("gpu", "uuid", "profile")
"""Labels of a device: index of its GPU, its own UUID, and its MIG profile, empty for a whole GPU."""
POD = ("namespace", "pod", *DEVICE)
FAMILIES: Mapping[str, tuple[tuple[str, ...], str]] = {
    "build_info": (("version", "component"), "1, with the version of the operator or of the agent."),
    "agent_readings_total": (("outcome",), "Attempts to read the GPUs, by outcome: ok, failed, hung."),
    "agent_reading_seconds_total": ((), "Time taken by successful readings of the GPUs."),
    "agent_writes_total": (("outcome",), "Reports sent to the API server, by outcome: ok, failed."),
    "agent_faults_total": (
        ("part",),
        "Unexpected errors, by the part of the agent: gpu, reading, pods, meter, turn. Each is a bug; what it"
        " concerns is reported as unknown.",
    ),
    "agent_ready": ((), "1 while the agent can answer requests from the operator."),
    "agent_quiet": (
        (),
        "1 while the agent leaves the GPUs alone at the operator's request: all, or those that a change concerns.",
    ),
    "agent_simulated": ((), "1 when the GPUs are SIMULATED."),
    "agent_pods": ((), "Pods on this node that have a GPU device allocated; absent when unknown."),
    "agent_allocated_devices": (("resource",), "Devices allocated to pods, by resource name; absent when unknown."),
    "agent_gpu_info": (("gpu", "uuid", "product"), "1 for each GPU."),
    "agent_gpu_mig_instances": (("gpu", "profile"), "MIG instances that exist."),
    "agent_gpu_mig_enabled": (("gpu",), "1 while MIG mode is on."),
    "agent_gpu_processes": (("gpu",), "Processes that use the GPU."),
    "agent_gpu_ecc_uncorrected": (
        ("gpu",),
        "Uncorrected ECC errors since the driver was loaded; absent where not supported.",
    ),
    "agent_gpu_row_remap_failed": (
        ("gpu",),
        "1 when a row remapping failed: replace the card; absent where not supported.",
    ),
    "agent_gpu_healthy": (("gpu",), "1 while NVML reports no problem that makes the GPU unhealthy."),
    "agent_gpu_row_remap_pending": (
        ("gpu",),
        "1 while a row remapping is pending, which needs a GPU reset; absent where not supported.",
    ),
    "agent_gpu_critical_xid": (
        ("gpu",),
        "The first critical XID received since the agent started; absent if there was none. XIDs that are"
        " raised between two readings are missed.",
    ),
    "agent_gpu_recovery_action": (
        ("gpu", "action"),
        "1 for the recovery action that the driver requests (R565 and newer).",
    ),
    "device_info": (
        (*DEVICE, "gpu_uuid", "instance_id", "placement"),
        "1 for each whole GPU without MIG and each MIG device; placement is START:SIZE in NVML placement units.",
    ),
    "device_memory_bytes": (DEVICE, "Memory of the device, in bytes."),
    "device_memory_used_bytes": (
        DEVICE,
        "Memory in use on the device, in bytes, excluding the memory that the driver reserves.",
    ),
    "device_unattributed_processes": (
        DEVICE,
        "Processes on the device that belong to no pod, or to a pod whose name is unknown; absent if some processes"
        " cannot be seen.",
    ),
    "device_unattributed_memory_bytes": (
        DEVICE,
        "Memory used on the device by processes that cannot be attributed to a pod, in bytes; absent if some processes"
        " cannot be seen.",
    ),
    "device_sm_ratio": (
        DEVICE,
        "Share of the GPU's SM time that its processes used in the driver's last sample period, 0 to 1; absent with MIG"
        " on, or if the driver does not report it.",
    ),
    "device_slices": (
        (*DEVICE, "resource"),
        "Slices of the device that can be allocated to pods: 1, or the number of replicas if it is shared.",
    ),
    "device_slices_allocated": ((*DEVICE, "resource"), "Slices of the device that are allocated to pods."),
    "pod_slices": ((*POD, "resource"), "Slices of a device that are allocated to a pod."),
    "pod_processes": (
        POD,
        "Processes of a pod on a device; absent if some processes cannot be seen, or if some belong to a pod whose"
        " name is unknown, because it may be this one.",
    ),
    "pod_memory_used_bytes": (
        POD,
        "Memory used by the processes of a pod on a device, in bytes; absent if the driver does not report it, or if"
        " pod_processes is absent.",
    ),
    "pod_sm_ratio": (
        POD,
        "Share of the GPU's SM time that a pod used in the driver's last sample period, 0 to 1; absent with MIG on, if"
        " the driver does not report it, or if pod_processes is absent.",
    ),
    "xid_errors_total": (
        ("gpu", "xid"),
        "XIDs received from a GPU since the agent started; a new one is exported as 0 for 90 s, so that"
        " increase() also counts its first occurrence. XIDs that are raised between two readings are missed.",
    ),
    "usage_left_out": (
        (),
        f"Devices and pod/device pairs omitted from the usage metrics, which cover at most {MOST_DEVICES}"
        f" devices and {MOST_HOLDERS} pairs.",
    ),
    "slice_seconds_total": (
        ("policy", "namespace", "resource"),
        "GPU-seconds of slices allocated to a namespace: the time of each slice, multiplied by its share of the"
        " GPU. A replica of a shared GPU counts as long as it is allocated, whether or not its pod uses the GPU.",
    ),
    "idle_slice_seconds_total": (
        ("policy", "resource"),
        "GPU-seconds of slices that were not allocated to a pod.",
    ),
    "stranded_slice_seconds_total": (("policy",), "GPU-seconds of capacity that no slice of the layout covers."),
    "transition_slice_seconds_total": (
        ("policy",),
        "GPU-seconds not allocated to a pod, on nodes in the middle of a change.",
    ),
    "gpu_seconds_total": (
        ("policy",),
        "All metered GPU-seconds: the sum of allocated, idle, stranded and in transition.",
    ),
    "gpu_pods_hour_max": (
        ("gpu", "uuid"),
        "The most pods that held slices of the GPU at one time since the last full hour of UTC, also between scrapes.",
    ),
    "gpu_slices_hour_max": (
        ("gpu", "uuid"),
        "The most slices of the GPU, instances included, that were allocated to pods at one time since the last full hour"
        " of UTC, also between scrapes.",
    ),
}
"""The labels and the text of each metric, by its name without `gpusharing_`. Those that end in _total are counters."""
Rows: TypeAlias = Iterable[tuple[Sequence[str], float | None]]
"""The values of the labels of each sample, and its value; None if that is unknown."""


class AgentCollector(Collector):
    """Collects the metrics of one agent, those of the GPUs from the last successful reading."""

    def __init__(self, loop: AgentLoop) -> None:
        self._loop = loop
        self._version = own_version()

    def collect(self) -> Iterable[Metric]:
        loop = self._loop
        found: dict[str, Rows] = {
            "build_info": [((self._version, "agent"), 1)],
            "agent_readings_total": _labeled(loop.readings_by_outcome),
            "agent_reading_seconds_total": [((), loop.reading_seconds)],
            "agent_writes_total": _labeled(loop.writes_by_outcome),
            "agent_faults_total": _labeled(loop.faults_by_part),
            "agent_ready": [((), not loop.why_not_ready())],
        }
        if (seen := loop.observed) is not None:
            found |= {"agent_quiet": [((), seen.quiet)], "agent_simulated": [((), seen.simulated)]}
            if seen.pods is not None and seen.allocated is not None:
                found |= {"agent_pods": [((), seen.pods)], "agent_allocated_devices": _labeled(seen.allocated)}
        if loop.gpus:
            found |= _of_gpus(loop.gpus)
        return _families(found)


def _of_gpus(gpus: Sequence[GPU]) -> dict[str, Rows]:
    def each(value: Callable[[GPU], float | None]) -> Rows:
        return (((str(gpu.index),), value(gpu)) for gpu in gpus)

    return {
        "agent_gpu_info": (((str(gpu.index), gpu.uuid, gpu.product), 1) for gpu in gpus),
        "agent_gpu_mig_instances": (
            ((str(gpu.index), profile), count)
            for gpu in gpus
            for profile, count in Counter(instance.profile for instance in gpu.instances).items()
        ),
        "agent_gpu_mig_enabled": each(lambda gpu: gpu.mig_mode == "Enabled"),
        "agent_gpu_processes": each(lambda gpu: len(gpu.processes)),
        "agent_gpu_ecc_uncorrected": each(lambda gpu: gpu.ecc_uncorrected),
        "agent_gpu_row_remap_failed": each(lambda gpu: gpu.remapped_rows[1] if gpu.remapped_rows else None),
        "agent_gpu_healthy": each(lambda gpu: is_healthy(diagnose([(gpu.index, vitals_of(gpu_status(gpu)))]))),
        "agent_gpu_row_remap_pending": each(lambda gpu: gpu.remapped_rows[0] if gpu.remapped_rows else None),
        "agent_gpu_critical_xid": each(lambda gpu: gpu.xid),
        "agent_gpu_recovery_action": (
            ((str(gpu.index), gpu.recovery_action), 1) for gpu in gpus if gpu.recovery_action is not None
        ),
    }


class UsageCollector(Collector):
    """Collects one agent's usage metrics, if its last turn has read the GPUs, and its meter and peaks."""

    def __init__(self, loop: AgentLoop, clock: Callable[[], float] = time.monotonic) -> None:
        self._loop = loop
        self._clock = clock
        self._seen: dict[tuple[str, str], int] = {}
        self._xids = LaggingCounts(loop.settings.meter_lag)
        self._alone = threading.Lock()  # each scrape runs in a thread of its own

    def collect(self) -> Iterable[Metric]:
        if self._loop.use is not None:
            use, holdings = self._loop.use
            known = usage(use, holdings)
            yield from _families(_of_devices(known) | _of_slices(known) | _of_pods(known.holders))
            yield from _families(
                {
                    "xid_errors_total": self._count_xids(use.xids),
                    "usage_left_out": [((), known.left_out)],
                }
            )
        yield from of_meter(self._loop.meter.metered)
        reading, most = self._loop.reading, self._loop.peaks.most
        gpus = () if reading is None else reading.gpus
        peaks = [((str(gpu.index), gpu.uuid), most[gpu.uuid]) for gpu in gpus if gpu.uuid in most]
        yield from _families(
            {
                "gpu_pods_hour_max": ((labels, pods) for labels, (pods, _) in peaks),
                "gpu_slices_hour_max": ((labels, slices) for labels, (_, slices) in peaks),
            }
        )

    def _count_xids(self, xids: Iterable[tuple[int, int, int]]) -> Rows:
        with self._alone:
            now = self._clock()
            for gpu, xid, count in xids:
                labels = str(gpu), str(xid)
                if grown := count - self._seen.get(labels, 0):
                    self._seen[labels] = count
                    self._xids.add(labels, grown, now)
            return self._xids.export(now).items()


def of_meter(metered: Metered) -> Iterator[Metric]:
    return _families(
        {
            "slice_seconds_total": metered["allocated"].items(),
            "idle_slice_seconds_total": metered["idle"].items(),
            "stranded_slice_seconds_total": metered["stranded"].items(),
            "transition_slice_seconds_total": metered["transition"].items(),
            "gpu_seconds_total": metered["gpus"].items(),
        }
    )


def _of_devices(known: DeviceUsage) -> dict[str, Rows]:
    def each(value: Callable[[DeviceUse], float | None]) -> Rows:
        return ((_device(device), value(device)) for device in known.devices)

    places = []
    for device in known.devices:
        number = place = ""
        if (instance := device.instance) is not None:
            number = str(instance.id)
            place = "" if instance.start < 0 else f"{instance.start}:{instance.size}"
        places.append(((*_device(device), device.gpu_uuid, number, place), 1))
    others = [(_device(device), known.others.get(device.uuid, Sum())) for device in known.devices if device.all_listed]
    return {
        "device_info": places,
        "device_memory_bytes": each(lambda device: device.memory),
        "device_memory_used_bytes": each(lambda device: device.memory_used),
        "device_unattributed_processes": ((labels, other.processes) for labels, other in others),
        "device_unattributed_memory_bytes": ((labels, other.memory) for labels, other in others),
        "device_sm_ratio": each(lambda device: _ratio(device, known.sm_percent.get(device.uuid, 0))),
    }


def _of_slices(known: DeviceUsage) -> dict[str, Rows]:
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
    return {"device_slices": allocatable, "device_slices_allocated": allocated}


def _of_pods(holders: Iterable[Holder]) -> dict[str, Rows]:
    labeled = [(holder, (*holder.pod, *_device(holder.device))) for holder in holders]
    seen = [
        (labels, holder.device, holder.taken)
        for holder, labels in labeled
        if holder.taken is not None and holder.device.all_listed
    ]
    return {
        "pod_slices": (
            ((*labels, resource), count) for holder, labels in labeled for resource, count in holder.slices.items()
        ),
        "pod_processes": ((labels, taken.processes) for labels, _, taken in seen),
        "pod_memory_used_bytes": ((labels, taken.memory) for labels, _, taken in seen),
        "pod_sm_ratio": ((labels, _ratio(device, taken.sm_percent)) for labels, device, taken in seen),
    }


def _ratio(device: DeviceUse, percent: int) -> float | None:
    return min(1.0, percent / 100) if device.reports_sm else None


def _device(device: DeviceUse) -> tuple[str, str, str]:
    return str(device.gpu), device.uuid, "" if device.instance is None else device.instance.profile


def _labeled(values: Mapping[str, float]) -> Rows:
    return (((label,), value) for label, value in values.items())


def _families(found: Mapping[str, Rows]) -> Iterator[Metric]:
    for name, rows in found.items():
        labels, text = FAMILIES[name]
        kind = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
        family = kind(f"gpusharing_{name}", text, labels=labels)
        for values, number in rows:
            if number is not None:
                family.add_metric(values, number)
        yield family
