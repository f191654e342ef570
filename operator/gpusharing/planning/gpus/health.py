"""Whether a GPU is healthy enough to be reconfigured, and what a person has to do if not.

The facts come from the agent's ordinary reading (docs/adr/0015-health-from-the-same-reading.md). Running pods are left
alone. The agent imports this module, so it must not import pydantic.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice

from gpusharing.api.gpunode import GPUStatus
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.vocabulary.values import value

REACHABLE = "Ok"
"""Value of `Vitals.access` for a GPU that NVML can talk to."""


@value
class Vitals:
    """What NVML reports about one GPU's health. Counts are booleans, so that a growing count is not a change."""

    access: str = REACHABLE
    """Whether NVML can talk to the GPU: Ok, Lost, ResetRequired or Failed."""
    recovery: str | None = None
    """The driver's recommendation (NVML field 230, since R565); None if it has none, or no such field."""
    ecc_errors: bool = False
    remap_pending: bool = False
    remap_failed: bool = False
    xid: int | None = None
    """The first of the XIDS errors that the agent received, or None if there was none, or if the driver has field 230.

    What the driver recommends goes away with the problem, whereas an XID is remembered.
    """
    error: str = ""


HEALTHY = Vitals()


def vitals_of(gpu: GPUStatus) -> Vitals:
    """Return the facts in a GPU's report that decide whether the GPU is healthy. Healthy GPUs share one object."""
    vitals = Vitals(
        access=gpu.access,
        recovery=gpu.recovery_action,
        ecc_errors=gpu.ecc_errors,
        remap_pending=gpu.remap_pending,
        remap_failed=gpu.remap_failed,
        xid=gpu.xid,
        error=gpu.error,
    )
    return HEALTHY if vitals == HEALTHY else vitals


XIDS: Mapping[int, str] = {
    48: "double-bit ECC error",
    64: "row remapping failed",
    79: "GPU has fallen off the bus",
    95: "uncontained ECC error",
    119: "GSP did not respond in time",
    120: "GSP error",
    140: "unrecovered ECC error",
    143: "GPU initialization error",
}
"""XID errors after which a GPU needs a reset or a reboot. NVIDIA, XID Errors, docs.nvidia.com/deploy/xid-errors. The
many others concern an application or NVLink, or are covered by the fields of Vitals."""

_RESET = "drain the node, then reset the GPU (nvidia-smi -r) or reboot the node"
_REBOOT = "drain and reboot the node"
RECOVERIES: Mapping[str, str] = {
    "Reset": _RESET,
    "Reboot": _REBOOT,
    "DrainP2P": "stop the applications that use this GPU for peer-to-peer traffic",
    "DrainAndReset": _RESET,
    "RecoverIMEX": "recover the node's IMEX domain",
    "BusReset": "drain the node and reset the GPU's PCIe bus, or reboot the node",
    "SystemReboot": _REBOOT,
    "Unknown": "see `nvidia-smi -q` on the node for the recovery action, which this version of the agent does not"
    " recognize",
}
"""What a person should do, by the driver's recovery action (nvmlDeviceGpuRecoveryAction_t)."""


NO_TROUBLE = Finding(Reason.NO_TROUBLE, "every GPU is healthy")


GRAVEST_FIRST = (
    Reason.GPU_LOST,
    Reason.GPU_UNREADABLE,
    Reason.GPU_RESET_REQUIRED,
    Reason.ROW_REMAP_FAILED,
    Reason.RECOVERY_NEEDED,
    Reason.ROW_REMAP_PENDING,
    Reason.XID_SEEN,
    Reason.ECC_UNCORRECTED,
)
"""The reasons of `find_problems`, in its order."""


def find_problems(gpu: Vitals) -> Iterator[tuple[Reason, str]]:
    """Yield what is wrong with a GPU, gravest first."""
    if gpu.access == "Lost":
        yield Reason.GPU_LOST, f"fell off the bus; {_REBOOT}"
    elif gpu.access not in (REACHABLE, "ResetRequired"):
        answer = f"NVML returns {gpu.error or gpu.access}; see `dmesg | grep -i nvrm` on the node"
        yield Reason.GPU_UNREADABLE, answer
    elif gpu.access == "ResetRequired":
        yield Reason.GPU_RESET_REQUIRED, f"cannot be used until it is reset; {_RESET}"
    if gpu.remap_failed:
        yield Reason.ROW_REMAP_FAILED, "a row remapping failed; replace the card"
    if gpu.recovery is not None:
        advice = RECOVERIES.get(gpu.recovery, _REBOOT)
        yield Reason.RECOVERY_NEEDED, f"the driver recommends {gpu.recovery}; {advice}"
    if gpu.remap_pending:
        yield Reason.ROW_REMAP_PENDING, f"a row remapping is pending and needs a GPU reset; {_RESET}"
    if gpu.xid is not None:
        error = XIDS.get(gpu.xid, "critical")
        yield Reason.XID_SEEN, f"XID {gpu.xid} ({error}); {_RESET}, then delete the agent's pod"
    if gpu.ecc_errors:
        yield Reason.ECC_UNCORRECTED, f"uncorrected ECC errors since the driver was loaded; {_RESET}"


def is_healthy(diagnosis: Finding) -> bool:
    return diagnosis.reason is Reason.NO_TROUBLE


def diagnose(gpus: Iterable[tuple[int, Vitals]]) -> Finding:
    """Return a Finding about the GPU (index and vitals) with the gravest problem, or NO_TROUBLE."""
    unhealthy = [
        (GRAVEST_FIRST.index(reason), index, reason, text)
        for index, gpu in gpus
        for reason, text in islice(find_problems(gpu), 1)
    ]
    if not unhealthy:
        return NO_TROUBLE
    _, index, reason, text = min(unhealthy, key=lambda each: each[:2])
    others = len(unhealthy) - 1
    more = f"; {others} more GPU{'s are' if others > 1 else ' is'} unhealthy" if others else ""
    return Finding(reason, f"GPU {index}: {text}{more}")
