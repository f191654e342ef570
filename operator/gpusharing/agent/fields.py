"""Which call gives each observed field, what right that needs, and what is shown without the right.

Data for docs/reference/agent-fields.md and for the tests that hold the adapter, the wire type, the simulator's rights
and the chart against it. The agent does not load it. Rights: reference/hardware-facts.md (g), after nvml.h.
"""

from dataclasses import dataclass
from enum import Enum


class Need(Enum):
    """A right, where it comes from in the chart, and why."""

    NOTHING = ("nothing", "–", "the agent knows it itself")
    DRIVER = (
        "the driver's library and devices",
        "`agent.runtimeClassName`, `agent.visibleDevices: all`, `agent.driverCapabilities: utility`",
        "NVIDIA's container runtime brings libnvidia-ml.so.1 and the device nodes; no Linux capability",
    )
    MIG_CONFIG = (
        "read access to mig/config",
        "`agent.privileged: true` (default false)",
        "/dev/nvidia-caps/nvidia-cap1 has mode 0400 and comes to privileged containers; that "
        "NVIDIA_MIG_CONFIG_DEVICES=all brings it too is not verified, so the chart does not offer it",
    )
    HOST_PID = (
        "the host's process table",
        "`agent.hostPID: true` (default true)",
        "NVML tells process ids of the host",
    )
    POD_RESOURCES = (
        "the kubelet's podresources socket",
        "`agent.podResourcesPath`, mounted read-only; the container runs as user 0",
        "the socket and its folder belong to root and are closed to others",
    )

    def __init__(self, title: str, chart: str, why: str) -> None:
        self.title = title
        self.chart = chart
        """Which values give it."""
        self.why = why


@dataclass(frozen=True, slots=True)
class Source:
    """Where some fields come from."""

    fields: tuple[str, ...]
    """Below `status.observed`, as on the wire; a field stands for all below it that no other source names."""
    calls: tuple[str, ...]
    """NVML functions, fields of nvmlDeviceGetFieldValues aside."""
    need: Need
    without: str
    """What the agent shows without the right, and where card or driver do not support the call."""


SESSION = (
    "nvmlInit",
    "nvmlShutdown",
    "nvmlDeviceGetCount",
    "nvmlDeviceGetHandleByIndex",
)
"""Calls that open the way to the others; without their right there is no reading, and `error` says so."""

SOURCES: tuple[Source, ...] = (
    Source(("requestID", "quiet", "simulated", "error"), (), Need.NOTHING, "–"),
    Source(
        ("driverVersion",),
        ("nvmlSystemGetDriverVersion",),
        Need.DRIVER,
        "no reading: `error` says what lacks",
    ),
    Source(
        ("models[].product", "gpus[].product", "gpus[].index"),
        ("nvmlDeviceGetName",),
        Need.DRIVER,
        "no reading",
    ),
    Source(("gpus[].uuid",), ("nvmlDeviceGetUUID",), Need.DRIVER, "no reading"),
    Source(("models[].memoryMiB",), ("nvmlDeviceGetMemoryInfo",), Need.DRIVER, "0"),
    Source(("models[].computeCapability",), ("nvmlDeviceGetCudaComputeCapability",), Need.DRIVER, "empty"),
    Source(
        ("models[].migCapable", "gpus[].migMode", "gpus[].migModePending"),
        ("nvmlDeviceGetMigMode",),
        Need.DRIVER,
        "false, NotSupported",
    ),
    Source(("models[].migModeChange",), ("nvmlDeviceGetFieldValues",), Need.DRIVER, "Unknown; field 184"),
    Source(
        ("models[].profiles",),
        ("nvmlDeviceGetGpuInstanceProfileInfo",),
        Need.DRIVER,
        "none; the planner takes those of its table of cards",
    ),
    Source(
        ("models[].profiles[].starts", "models[].profiles[].size"),
        ("nvmlDeviceGetGpuInstancePossiblePlacements",),
        Need.MIG_CONFIG,
        "none and 0; the planner takes those of its table of cards",
    ),
    Source(("gpus[].computeMode",), ("nvmlDeviceGetComputeMode",), Need.DRIVER, "NotSupported"),
    Source(
        ("gpus[].instances",),
        (
            "nvmlDeviceGetMaxMigDeviceCount",
            "nvmlDeviceGetMigDeviceHandleByIndex",
            "nvmlDeviceGetGpuInstanceId",
            "nvmlDeviceGetAttributes",
        ),
        Need.DRIVER,
        "none",
    ),
    Source(
        ("gpus[].instances[].start", "gpus[].instances[].size"),
        ("nvmlDeviceGetGpuInstances", "nvmlGpuInstanceGetInfo"),
        Need.MIG_CONFIG,
        "-1 and 0, and instances without a compute instance are not seen; counts per profile, which a change is "
        "proven by, come from the MIG devices",
    ),
    Source(
        ("gpus[].processes",),
        ("nvmlDeviceGetComputeRunningProcesses", "nvmlDeviceGetMPSComputeRunningProcesses"),
        Need.DRIVER,
        "where NVML refuses: one process with id 0 and no name, which counts as busy",
    ),
    Source(
        ("gpus[].processes[].name",),
        ("nvmlSystemGetProcessName",),
        Need.HOST_PID,
        "empty, which counts as busy; MPS's own daemons are then not known as such",
    ),
    Source(("gpus[].eccUncorrected",), ("nvmlDeviceGetTotalEccErrors",), Need.DRIVER, "null"),
    Source(
        ("gpus[].remappedRows",),
        ("nvmlDeviceGetRemappedRows", "nvmlDeviceGetFieldValues"),
        Need.DRIVER,
        "null; fields 142 to 145 where MIG instances are active",
    ),
    Source(
        ("gpus[].recoveryAction",), ("nvmlDeviceGetFieldValues",), Need.DRIVER, "null; field 230, since R565"
    ),
    Source(
        ("gpus[].xid",),
        ("nvmlEventSetCreate", "nvmlDeviceRegisterEvents", "nvmlEventSetWait_v2", "nvmlEventSetFree"),
        Need.DRIVER,
        "null; heard only while the agent reads (docs/adr/0015-health-from-the-same-reading.md)",
    ),
    Source(("gpus[].access",), (), Need.DRIVER, "–; from the error that any of the calls gives"),
    Source(("allocated", "pods"), (), Need.POD_RESOURCES, "empty and 0: USED is not known"),
)
