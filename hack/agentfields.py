"""The source of each observed field: the NVML call, its right, and what the agent shows without that right.

Data for docs/reference/agent-fields.md and for tests, not imported by the agent. The rights are those of
docs/design/hardware.md#rights, after nvml.h of NVML 13.3.
"""

from dataclasses import dataclass
from enum import Enum


class NeededRight(Enum):
    """A right of the agent, how the chart grants it, and why it is needed."""

    NOTHING = ("nothing", "–", "the agent knows it itself")
    DRIVER = (
        "the driver's library and devices",
        "`agent.runtimeClassName`, `agent.visibleDevices: all`, `agent.driverCapabilities: utility`",
        "NVIDIA's container runtime injects libnvidia-ml.so.1 and the device nodes; no Linux capability",
    )
    MIG_CONFIG = (
        "the rights of NVIDIA's own operands",
        "`agent.privileged: true` (the default)",
        "only a privileged container is certain to have them: read access to mig/config (/dev/nvidia-caps/nvidia-cap1, "
        "mode 0400), the devices of instances that are created after the container, and CAP_SYS_PTRACE for the "
        "executables of other processes",
    )
    HOST_PID = (
        "the host's PID namespace",
        "`hostPID: true`; no value changes it",
        "NVML reports process ids of the host, and omits processes of other PID namespaces: they are missing, not"
        " nameless",
    )
    POD_RESOURCES = (
        "the kubelet's podresources socket",
        "`agent.podResourcesPath`, mounted read-only; the container runs as user 0",
        "the socket and its folder belong to root and are not accessible to other users",
    )
    POD_LOGS = (
        "the names of the pods' log folders",
        "`agent.podLogsPath`, mounted read-only where `agent.privileged` is true",
        "the cgroup of a process shows the uid of its pod, and the kubelet names these folders after namespace, name "
        "and uid; no log is read",
    )

    def __init__(self, title: str, chart: str, why: str) -> None:
        self.title = title
        self.chart = chart
        """The values of the chart that grant the right."""
        self.why = why


@dataclass(frozen=True, slots=True)
class FieldSource:
    """The NVML calls that read one or several fields together, and the rights that these calls need."""

    fields: tuple[str, ...]
    """The names below `status.observed`, as on the wire."""
    calls: tuple[str, ...]
    """The NVML functions that are called; those that read single field ids appear as nvmlDeviceGetFieldValues."""
    needs: tuple[NeededRight, ...]
    """The rights that all of the calls together need."""
    without: str
    """What the agent shows without the right, or if card or driver do not support the call."""


SESSION = (
    "nvmlInit",
    "nvmlShutdown",
    "nvmlDeviceGetCount",
    "nvmlDeviceGetHandleByIndex",
)
"""The calls on which all others depend."""

SOURCES: tuple[FieldSource, ...] = (
    FieldSource(("requestID", "quiet", "simulated", "error"), (), (NeededRight.NOTHING,), "–"),
    FieldSource(("driverVersion",), ("nvmlSystemGetDriverVersion",), (NeededRight.DRIVER,), "empty"),
    FieldSource(
        ("models[].product", "models[].gpus"),
        ("nvmlDeviceGetName",),
        (NeededRight.DRIVER,),
        "`access: Failed` for that GPU; for all GPUs: no reading, and `error` says why",
    ),
    FieldSource(("gpus[].uuid",), ("nvmlDeviceGetUUID",), (NeededRight.DRIVER,), "`access: Failed` for that GPU"),
    FieldSource(
        ("models[].resetInGuest",),
        ("nvmlDeviceGetFieldValues", "nvmlDeviceGetVirtualizationMode"),
        (NeededRight.DRIVER,),
        "absent; field 184",
    ),
    FieldSource(
        ("models[].profiles",),
        ("nvmlDeviceGetGpuInstanceProfileInfo", "nvmlDeviceGetGpuInstancePossiblePlacements"),
        (NeededRight.DRIVER, NeededRight.MIG_CONFIG),
        "none, or without placements; the planner uses those of its table of cards",
    ),
    FieldSource(
        ("computeModes",),
        ("nvmlDeviceGetComputeMode",),
        (NeededRight.DRIVER,),
        "NotSupported; Unknown where NVML refuses, and then nothing is proven",
    ),
    FieldSource(
        ("gpus[].instancesWithheld",),
        (),
        (NeededRight.MIG_CONFIG,),
        "true, as where MIG is on and NVML lists no profiles, or not the instance of a MIG device: no change to MIG "
        "begins, none is proven, and a GPU with MIG on counts as busy",
    ),
    FieldSource(
        ("gpus[].migPending",),
        ("nvmlDeviceGetMigMode",),
        (NeededRight.DRIVER,),
        "absent; `access: Failed` where NVML refuses",
    ),
    FieldSource(
        ("gpus[].mig",),
        (
            "nvmlDeviceGetMigMode",
            "nvmlDeviceGetMaxMigDeviceCount",
            "nvmlDeviceGetMigDeviceHandleByIndex",
            "nvmlDeviceGetGpuInstanceId",
            "nvmlDeviceGetGpuInstances",
            "nvmlGpuInstanceGetInfo",
        ),
        (NeededRight.DRIVER, NeededRight.MIG_CONFIG),
        "NotSupported, or `access: Failed` where NVML refuses the mode; of the instances, only those whose MIG device "
        "the container may open",
    ),
    FieldSource(
        ("gpus[].partialInstances",),
        (
            "nvmlDeviceGetAttributes",
            "nvmlGpuInstanceGetComputeInstanceProfileInfo",
            "nvmlGpuInstanceGetComputeInstances",
        ),
        (NeededRight.DRIVER, NeededRight.MIG_CONFIG),
        "absent; `instancesWithheld: true` where NVML does not tell what is in an instance",
    ),
    FieldSource(
        ("programs",),
        (
            "nvmlDeviceGetComputeRunningProcesses",
            "nvmlDeviceGetMPSComputeRunningProcesses",
            "nvmlDeviceGetGraphicsRunningProcesses",
            "nvmlSystemGetProcessName",
        ),
        (NeededRight.HOST_PID, NeededRight.MIG_CONFIG),
        "one without a name, which counts as busy: without the host's PID namespace; where MIG is on and NVML does not "
        "list all of a GPU's instances, or one has no MIG device that can be seen; where NVML refuses a list or has it "
        "in another form, or a GPU or MIG device does not support the list of compute processes. A list of MPS or "
        "graphics clients that is not supported is empty ([why](../design/hardware.md#lists)). "
        "MPS's own daemons are recognized by their executable and parent; where executables may not be read, by the 15 "
        "bytes that the kernel keeps of their names",
    ),
    FieldSource(("gpus[].eccErrors",), ("nvmlDeviceGetTotalEccErrors",), (NeededRight.DRIVER,), "absent"),
    FieldSource(
        ("gpus[].remapPending", "gpus[].remapFailed"),
        ("nvmlDeviceGetRemappedRows", "nvmlDeviceGetFieldValues"),
        (NeededRight.DRIVER,),
        "absent; fields 142 to 145 where MIG instances are active",
    ),
    FieldSource(
        ("gpus[].recoveryAction",),
        ("nvmlDeviceGetFieldValues",),
        (NeededRight.DRIVER,),
        "absent; field 230, since R565",
    ),
    FieldSource(
        ("gpus[].xid",),
        ("nvmlEventSetCreate", "nvmlDeviceRegisterEvents", "nvmlEventSetWait_v2", "nvmlEventSetFree"),
        (NeededRight.DRIVER,),
        "absent; received only while the agent reads, and left out where the driver has field 230 (docs/adr/0015-health-from-the-same-reading.md)",
    ),
    FieldSource(
        ("gpus[].access", "gpus[].error"),
        (),
        (NeededRight.DRIVER,),
        "–; from the error that any of the calls returns",
    ),
    FieldSource(
        ("allocated", "pods", "holders"),
        (),
        (NeededRight.POD_RESOURCES,),
        "null: USED shows `+?`. Finished pods hold no devices; kubelets before 1.34 list them without any "
        "(kubernetes#119423, #132028)",
    ),
)

USAGE: tuple[FieldSource, ...] = (
    FieldSource(
        ("device_memory_bytes", "device_memory_used_bytes"),
        ("nvmlDeviceGetMemoryInfo",),
        (NeededRight.DRIVER,),
        "absent. For a whole GPU it is version 2 of the call, which leaves out what the driver reserves; before R510 "
        "that counts as used",
    ),
    FieldSource(
        ("pod_memory_used_bytes", "pod_processes", "device_unattributed_memory_bytes"),
        ("nvmlDeviceGetComputeRunningProcesses", "nvmlDeviceGetMPSComputeRunningProcesses"),
        (NeededRight.HOST_PID, NeededRight.MIG_CONFIG),
        "absent for a device with processes that are not seen; memory also where the driver does not report it for a"
        " process",
    ),
    FieldSource(
        ("pod_sm_ratio", "device_sm_ratio"),
        ("nvmlDeviceGetProcessUtilization",),
        (NeededRight.DRIVER, NeededRight.HOST_PID),
        "absent; always absent with MIG on, where NVML does not support it",
    ),
    FieldSource(
        ("pod_slices", "device_slices", "device_slices_allocated", "gpu_pods_hour_max", "gpu_slices_hour_max"),
        (),
        (NeededRight.POD_RESOURCES,),
        "absent; of a shared device the memory is still attributed to the pods by their cgroups",
    ),
    FieldSource(
        ("the label pod of a shared device's processes",),
        (),
        (NeededRight.POD_LOGS,),
        "the processes of a shared device count as unattributed, and the usage of its pods is absent; processes of a "
        "device that one pod holds are attributed to that pod",
    ),
    FieldSource(
        ("xid_errors_total",),
        ("nvmlEventSetCreate", "nvmlDeviceRegisterEvents", "nvmlEventSetWait_v2", "nvmlEventSetFree"),
        (NeededRight.DRIVER,),
        "absent; received only while the agent reads",
    ),
)
"""The sources of the metrics of usage, gpusharing_…, which are not part of the GPUNode."""
