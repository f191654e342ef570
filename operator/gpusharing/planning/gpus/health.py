"""Whether a GPU is healthy enough to be reconfigured. The rules are a table: which fact makes it unhealthy, which
reason is reported, and what a person has to do.

The facts come from the agent's ordinary reading (docs/adr/0015-health-from-the-same-reading.md says what that shows
and what it does not). Running pods are left alone: an unhealthy GPU continues to serve as far as NVIDIA's device
plugin lets it. Its mode and layout stay as they are until a person has acted.
"""

from collections.abc import Callable, Iterable, Mapping

from gpusharing.api.gpunode import GPU
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.vocabulary.values import value

REACHABLE = "Ok"
"""Value of `Vitals.access` for a GPU that NVML can talk to."""


@value
class Vitals:
    """What NVML reports about one GPU's health. Counts are reduced to booleans, so that a growing count is not a
    change."""

    access: str = REACHABLE
    """Whether NVML can talk to the GPU: Ok, Lost, ResetRequired or Failed."""
    recovery: str | None = None
    """The action that the driver recommends (NVML field 230, since R565), NO_ACTION if it recommends none, or None if
    it does not report this field."""
    ecc_errors: bool = False
    """Whether there were uncorrected ECC errors since the driver was loaded."""
    remap_pending: bool = False
    """Whether a remapped memory row waits for a GPU reset."""
    remap_failed: bool = False
    """Whether a memory row could not be remapped."""
    xid: int | None = None
    """The first of the XIDS errors that the agent received, or None if there was none."""
    error: str = ""
    """NVML's error if `access` is Failed. Empty otherwise."""


HEALTHY = Vitals(recovery="None")
"""The vitals of a healthy GPU whose driver reports a recovery action."""


def vitals_of(gpu: GPU) -> Vitals:
    """Return the facts in a GPU's report that decide whether the GPU is healthy. Every GPU whose facts equal HEALTHY
    gets that object itself, so that many healthy GPUs share one."""
    rows = gpu.remapped_rows
    vitals = Vitals(
        access=gpu.access,
        recovery=gpu.recovery_action,
        ecc_errors=bool(gpu.ecc_uncorrected),
        remap_pending=rows is not None and rows.pending,
        remap_failed=rows is not None and rows.failed,
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
"""XID errors after which a GPU needs a reset or a reboot (NVIDIA, XID Errors, docs.nvidia.com/deploy/xid-errors). The
many others concern an application or NVLink, or are covered by the fields of Vitals."""

NO_ACTION = "None"
"""The driver's value for "no recovery action is needed"."""
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
"""What a person should do, by the driver's recovery action (nvmlDeviceGpuRecoveryAction_t, with NVIDIA's meanings)."""


NO_TROUBLE = Finding(Reason.NO_TROUBLE, "every GPU is healthy")
"""The finding if all GPUs are healthy."""


@value
class Rule:
    """One way in which a GPU can be unhealthy."""

    reason: Reason
    """The reason of the condition Healthy in that case."""
    holds: Callable[[Vitals], bool]
    """Returns whether a GPU is unhealthy in this way."""
    says: Callable[[Vitals], str]
    """Returns what is wrong and what to do about it, as a clause without the name of the GPU."""


RULES: tuple[Rule, ...] = (
    Rule(
        Reason.GPU_LOST,
        lambda gpu: gpu.access == "Lost",
        lambda gpu: f"fell off the bus; {_REBOOT}",
    ),
    Rule(
        Reason.GPU_UNREADABLE,
        lambda gpu: gpu.access not in (REACHABLE, "ResetRequired"),
        lambda gpu: f"NVML returns {gpu.error or gpu.access}; see `dmesg | grep -i nvrm` on the node",
    ),
    Rule(
        Reason.GPU_RESET_REQUIRED,
        lambda gpu: gpu.access != REACHABLE,
        lambda gpu: f"cannot be used until it is reset; {_RESET}",
    ),
    Rule(
        Reason.ROW_REMAP_FAILED,
        lambda gpu: gpu.remap_failed,
        lambda gpu: "a row remapping failed; replace the card",
    ),
    Rule(
        Reason.RECOVERY_NEEDED,
        lambda gpu: gpu.recovery not in (None, NO_ACTION),
        lambda gpu: f"the driver recommends {gpu.recovery}; {RECOVERIES.get(str(gpu.recovery), _REBOOT)}",
    ),
    Rule(
        Reason.ROW_REMAP_PENDING,
        lambda gpu: gpu.remap_pending,
        lambda gpu: f"a row remapping is pending and needs a GPU reset; {_RESET}",
    ),
    Rule(
        Reason.XID_SEEN,
        # If the driver reports a recovery action, only that counts: it goes away with the problem, whereas an XID is
        # remembered.
        lambda gpu: gpu.xid is not None and gpu.recovery is None,
        lambda gpu: (
            f"XID {gpu.xid} ({XIDS.get(gpu.xid or 0, 'critical')}); {_RESET}, then delete the agent's pod"
        ),
    ),
    Rule(
        Reason.ECC_UNCORRECTED,
        lambda gpu: gpu.ecc_errors,
        lambda gpu: f"uncorrected ECC errors since the driver was loaded; {_RESET}",
    ),
)
"""Gravest first; the first rule that holds is reported."""


def is_healthy(diagnosis: Finding) -> bool:
    """Whether the diagnosis says that all GPUs are healthy."""
    return diagnosis.reason is Reason.NO_TROUBLE


def diagnose(gpus: Iterable[tuple[int, Vitals]]) -> Finding:
    """Return NO_TROUBLE if all GPUs are healthy. Otherwise return a Finding about the GPU with the gravest problem,
    with the number of other unhealthy GPUs; among equally grave problems, the lowest index is reported. `gpus` are
    pairs of index and vitals. Equal input gives an equal message."""
    unhealthy = [(rank, index, gpu) for index, gpu in gpus if (rank := _rank(gpu)) is not None]
    if not unhealthy:
        return NO_TROUBLE
    rank, index, gpu = min(unhealthy, key=lambda each: each[:2])
    others = len(unhealthy) - 1
    more = f"; {others} more GPU{'s are' if others > 1 else ' is'} unhealthy" if others else ""
    return Finding(RULES[rank].reason, f"GPU {index}: {RULES[rank].says(gpu)}{more}")


def _rank(gpu: Vitals) -> int | None:
    """Return the index in RULES of the first rule that holds for the GPU, or None if the GPU is healthy."""
    return next((rank for rank, rule in enumerate(RULES) if rule.holds(gpu)), None)
