"""Is a GPU healthy enough to be reconfigured? The rules are data: which fact, which reason, what a person has to do.

The facts come from the agent's ordinary reading (docs/adr/0015-health-from-the-same-reading.md says what that shows
and what it does not). Running pods are left alone: an unhealthy GPU goes on serving, as far as NVIDIA's device plugin
lets it. Its mode and layout stay as they are until a person has acted.
"""

from collections.abc import Callable, Iterable, Mapping

from gpusharing.api.gpunode import GPU
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.vocabulary.values import value

REACHABLE = "Ok"


@value
class Vitals:
    """What NVML reports about one GPU's health. Counts are reduced to yes or no, so that a growing count changes
    nothing."""

    access: str = REACHABLE
    """Ok, Lost, ResetRequired or Failed: whether NVML can talk to the GPU."""
    recovery: str | None = None
    """The action that the driver asks for (NVML field 230, since R565); None if it does not say."""
    ecc_errors: bool = False
    """Uncorrected ECC errors since the driver was loaded."""
    remap_pending: bool = False
    """Whether a row remapping waits for a reset."""
    remap_failed: bool = False
    """Whether a row remapping failed."""
    xid: int | None = None
    """The first XID of XIDS that the agent received, or None if there was none."""
    error: str = ""
    """NVML's error if access is Failed; empty otherwise."""


HEALTHY = Vitals(recovery="None")


def vitals_of(gpu: GPU) -> Vitals:
    """Return the facts that decide whether a GPU is healthy. All healthy GPUs have the same object, so that the planner
    need not examine it any further."""
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
    119: "GSP did not answer in time",
    120: "GSP error",
    140: "unrecovered ECC error",
    143: "GPU initialization error",
}
"""XIDs after which a GPU needs a reset or a reboot (NVIDIA, XID Errors, docs.nvidia.com/deploy/xid-errors). The many
others are about an application, about NVLink, or are covered by the fields above."""

NO_ACTION = "None"
_RESET = "drain the node, then reset the GPU (nvidia-smi -r) or reboot the node"
_REBOOT = "drain and reboot the node"
RECOVERIES: Mapping[str, str] = {
    "Reset": _RESET,
    "Reboot": _REBOOT,
    "DrainP2P": "stop the applications that use peer-to-peer traffic of this GPU",
    "DrainAndReset": _RESET,
    "RecoverIMEX": "recover the IMEX domain of the node",
    "BusReset": "drain the node and reset the GPU's PCIe bus, or reboot the node",
    "SystemReboot": _REBOOT,
    "Unknown": "see `nvidia-smi -q` on the node for the recovery action, which is newer than this agent",
}
"""What to do, by the driver's recovery action (nvmlDeviceGpuRecoveryAction_t; the meaning of each is NVIDIA's)."""


NO_TROUBLE = Finding(Reason.NO_TROUBLE, "every GPU is healthy")
"""The finding for GPUs without trouble."""


@value
class Rule:
    """A fact that makes a GPU unhealthy."""

    reason: Reason
    """The reason that condition Healthy then has."""
    holds: Callable[[Vitals], bool]
    """Whether a GPU is unhealthy in this way."""
    says: Callable[[Vitals], str]
    """Returns the trouble and what to do about it, without the name of the GPU."""


RULES: tuple[Rule, ...] = (
    Rule(
        Reason.GPU_LOST,
        lambda gpu: gpu.access == "Lost",
        lambda gpu: f"fell off the bus; {_REBOOT}",
    ),
    Rule(
        Reason.GPU_UNREADABLE,
        lambda gpu: gpu.access not in (REACHABLE, "ResetRequired"),
        lambda gpu: f"NVML answers {gpu.error or gpu.access}; see `dmesg | grep -i nvrm` on the node",
    ),
    Rule(
        Reason.GPU_RESET_REQUIRED,
        lambda gpu: gpu.access != REACHABLE,
        lambda gpu: f"cannot be used before a reset; {_RESET}",
    ),
    Rule(
        Reason.ROW_REMAP_FAILED,
        lambda gpu: gpu.remap_failed,
        lambda gpu: "a row remapping failed; replace the card",
    ),
    Rule(
        Reason.RECOVERY_NEEDED,
        lambda gpu: gpu.recovery not in (None, NO_ACTION),
        lambda gpu: f"the driver asks for {gpu.recovery}; {RECOVERIES.get(str(gpu.recovery), _REBOOT)}",
    ),
    Rule(
        Reason.ROW_REMAP_PENDING,
        lambda gpu: gpu.remap_pending,
        lambda gpu: f"a row remapping waits for a reset; {_RESET}",
    ),
    Rule(
        Reason.XID_SEEN,
        # If the driver reports a recovery action, that counts instead: it ends with the trouble, a remembered XID does
        # not.
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
"""Gravest first; the first that applies is reported. A test pins the order."""


def is_healthy(diagnosis: Finding) -> bool:
    """Whether nothing is wrong with the GPUs."""
    return diagnosis.reason is Reason.NO_TROUBLE


def diagnose(gpus: Iterable[tuple[int, Vitals]]) -> Finding:
    """Return NO_TROUBLE, or the gravest trouble among the GPUs, which are given as (index, vitals). Of equally grave
    ones, the lowest index is reported. Equal facts give equal texts."""
    unhealthy = [(rank, index, gpu) for index, gpu in gpus if (rank := _rank(gpu)) is not None]
    if not unhealthy:
        return NO_TROUBLE
    rank, index, gpu = min(unhealthy, key=lambda each: each[:2])
    others = len(unhealthy) - 1
    more = f"; {others} more GPU{'s are' if others > 1 else ' is'} unhealthy" if others else ""
    return Finding(RULES[rank].reason, f"GPU {index}: {RULES[rank].says(gpu)}{more}")


def _rank(gpu: Vitals) -> int | None:
    """Return the index of the first rule that the GPU breaks, or None if it is healthy."""
    return next((rank for rank, rule in enumerate(RULES) if rule.holds(gpu)), None)
