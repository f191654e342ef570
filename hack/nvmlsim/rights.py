"""The right that each NVML call needs, and the source that says so: data for the C library, the README and the tests.

admin is CAP_SYS_ADMIN in the machine's user namespace (open-gpu-kernel-modules: osIsAdministrator); config and monitor
are admin, or mig/config (0400 on a host) or mig/monitor (0444) can be opened, which the container toolkit v1.19.1
gives no container without CAP_SYS_ADMIN (cmd/nvidia-container-runtime-hook/container_config.go).
"""

from dataclasses import dataclass
from typing import Literal

Need = Literal["monitor", "config", "admin"]
When = Literal["always", "whole GPU with MIG on"]

_PRIVILEGED = 'nvml.h: "Requires privileged user"; MIG user guide: mig/config'
_PLUGIN = 'nvml.h: "Requires privileged user"; the device plugin and GFD do with mig/monitor (k8s-device-plugin#399)'
_ROOT = 'nvml.h: "Requires root user"'
_PARENT = 'nvml.h: "only if the caller has appropriate privileges"'
_PIDS = _PARENT + "; open-gpu-kernel-modules: subdeviceCtrlCmdGpuGetPids asks for SMC_MONITOR"


@dataclass(frozen=True, slots=True)
class CallRight:
    function: str
    needs: Need
    when: When
    """Whether the right is always needed, or only for a whole GPU with MIG on."""
    source: str


RIGHTS: tuple[CallRight, ...] = (
    CallRight("nvmlDeviceSetMigMode", "admin", "always", _ROOT),
    CallRight("nvmlDeviceSetComputeMode", "admin", "always", 'nvml.h: "Requires root/admin permissions"'),
    CallRight("nvmlDeviceCreateGpuInstance", "config", "always", _PRIVILEGED),
    CallRight("nvmlDeviceCreateGpuInstanceWithPlacement", "config", "always", _PRIVILEGED),
    CallRight("nvmlGpuInstanceDestroy", "config", "always", _PRIVILEGED),
    CallRight("nvmlGpuInstanceCreateComputeInstance", "config", "always", _PRIVILEGED),
    CallRight("nvmlGpuInstanceCreateComputeInstanceWithPlacement", "config", "always", _PRIVILEGED),
    CallRight("nvmlComputeInstanceDestroy", "config", "always", _PRIVILEGED),
    CallRight("nvmlDeviceGetGpuInstances", "config", "always", _PRIVILEGED),
    CallRight("nvmlGpuInstanceGetComputeInstances", "config", "always", _PRIVILEGED),
    CallRight("nvmlDeviceGetGpuInstancePossiblePlacements_v2", "config", "always", _PRIVILEGED),
    CallRight("nvmlDeviceGetGpuInstanceRemainingCapacity", "config", "always", _PRIVILEGED),
    CallRight("nvmlGpuInstanceGetComputeInstancePossiblePlacements", "config", "always", _PRIVILEGED),
    CallRight("nvmlGpuInstanceGetComputeInstanceRemainingCapacity", "config", "always", _PRIVILEGED),
    CallRight("nvmlDeviceGetGpuInstanceById", "monitor", "always", _PLUGIN),
    CallRight("nvmlGpuInstanceGetComputeInstanceById", "monitor", "always", _PLUGIN),
    CallRight(
        "nvmlDeviceGetMemoryInfo", "monitor", "whole GPU with MIG on",
        _PARENT + "; nvidia-container-toolkit#842, k8s-device-plugin#1683",
    ),
    CallRight("nvmlDeviceGetMemoryInfo_v2", "monitor", "whole GPU with MIG on", _PARENT),
    CallRight("nvmlDeviceGetComputeRunningProcesses_v3", "monitor", "whole GPU with MIG on", _PIDS),
    CallRight("nvmlDeviceGetMPSComputeRunningProcesses_v3", "monitor", "whole GPU with MIG on", _PIDS),
    CallRight("nvmlDeviceGetGraphicsRunningProcesses_v3", "monitor", "whole GPU with MIG on", _PIDS),
)  # fmt: skip
"""The calls that need a right. Any other call needs only an open device."""


def c_table() -> str:
    """Return the C source of the table RIGHTS, in its order, for rights.c."""
    rows = [
        f'    {{"{right.function}", RIGHT_{right.needs.upper()}, {int(right.when != "always")}}},' for right in RIGHTS
    ]
    return "\n".join(
        ["/* Generated from hack/nvmlsim/rights.py. */", "static const struct rule rules[] = {", *rows, "};", ""]
    )


def markdown_table() -> str:
    rows = [f"| `{right.function}` | {right.needs} | {right.when} | {right.source} |" for right in RIGHTS]
    return "\n".join(["| Call | Right | When | Source |", "|---|---|---|---|", *rows])
