"""What is known about mig-manager on one node: whether a change needs it, whether it works, is stuck or has failed, and
from when on its state is about the present run.

Terms: docs/design/glossary.md#point-of-no-return.
"""

from collections.abc import Callable
from datetime import datetime, timedelta

from gpusharing.api import names
from gpusharing.planning.gpus.geometry import Layout
from gpusharing.planning.transition.verdict import FencedCase, NodeCase
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.vocabulary.values import value
from gpusharing.planning.wanted.target import Target
from gpusharing.planning.wanted.verify import paused_operands, tell_guest_reset


def needs_run(case: NodeCase, target: Target) -> bool:
    """Whether the target has a label for mig-manager and can be reached only by a run of mig-manager."""
    if not target.mig_config:
        return False
    labels = case.node.labels
    return labels.get(names.LABEL_MIG_CONFIG) != target.mig_config or needs_restart(case, target)


def needs_restart(case: NodeCase, target: Target) -> bool:
    """Whether mig-manager's label already has the target's value and the node still differs, so that only a new
    mig-manager pod can repair it (docs/design/nvidia.md#a6)."""
    if not target.mig_config or case.node.labels.get(names.LABEL_MIG_CONFIG) != target.mig_config:
        return False
    return (
        case.node.labels.get(names.LABEL_MIG_STATE) != "success"
        or bool(paused_operands(case.node))
        or found_layouts(case) != target.layouts
    )


def found_layouts(case: NodeCase) -> tuple[Layout | None, ...]:
    """Return the layout of every GPU in the agent's last reading; empty without one."""
    observed = case.gpunode.observed if case.gpunode else None
    return observed.hardware.layouts if observed else ()


def is_ready(case: NodeCase) -> bool:
    """Whether the node's mig-manager pod exists and is Ready."""
    return case.operand is not None and case.operand.ready


# --- after the point of no return --------------------------------------------------------------------------


@value
class ManagerTrouble:
    """What mig-manager's labels show while it is not done, or after it has failed."""

    mismatch: Finding
    """The reason and the message."""
    final: bool
    """Whether waiting longer changes nothing."""
    cure: str
    """The first step of another run, as shown to people. Empty if another run would not help."""


def find_trouble(case: FencedCase) -> ManagerTrouble | None:
    """Return the trouble that mig-manager's labels show, by the first of SIGNS that applies. None if mig-manager
    reports success and is done, or if the change does not need it. Some signs depend on the time since the PNR or
    the last restart."""
    if not case.fence.target_mig_config:
        return None
    for sign in SIGNS:
        if message := sign.find(case):
            return ManagerTrouble(Finding(sign.reason, message), sign.final, sign.cure)
    return None


@value
class Sign:
    """One way in which mig-manager's labels show that it is not done."""

    find: Callable[[FencedCase], str]
    """Returns the message, or an empty string if the labels do not show this."""
    reason: Reason
    """The reason of the trouble."""
    final: bool
    """Whether waiting longer changes nothing."""
    cure: str
    """The first step of another run, as in ManagerTrouble."""


def _state(case: FencedCase) -> str:
    """Return the value of the node's mig.config.state label; empty without one."""
    return case.node.labels.get(names.LABEL_MIG_STATE, "")


def _waited(case: FencedCase) -> float:
    """Return the seconds since the PNR or the last restart of mig-manager."""
    return (case.now - case.fence.stage_since).total_seconds()


def _restarts(case: FencedCase) -> str:
    """Return the message that mig-manager is restarting and its state is from before, or an empty string if the state
    is about this run."""
    state = _state(case)
    if state not in _ENDED or case.now >= believed_from(case):
        return ""
    return f"mig-manager is restarting; its state {state} dates from before the restart"


def _overwritten(case: FencedCase) -> str:
    """Return the message that mig-manager has ended while its label has another value than ours, because somebody
    overwrote the label during the change, or an empty string if not. NVIDIA's GPU Operator writes all-disabled if
    it finds no label (docs/design/nvidia.md#d1)."""
    label, wanted = case.node.labels.get(names.LABEL_MIG_CONFIG, ""), case.fence.target_mig_config
    if _state(case) not in _ENDED or label == wanted:
        return ""
    who = case.node.label_rewriters.get(names.LABEL_MIG_CONFIG, "someone")
    return f"{names.LABEL_MIG_CONFIG} is {label or 'missing'}, not {wanted}: {who} changed it"


def _failed_midway(case: FencedCase) -> str:
    """Return the message that mig-manager failed, if it also left operands paused, else an empty string. It would
    start these again at the end of another run."""
    return _failed(case) if paused_operands(case.node) else ""


def _failed(case: FencedCase) -> str:
    """Return the message that mig-manager failed to apply our configuration, and why, or an empty string if its state
    is not `failed`."""
    if _state(case) != "failed":
        return ""
    why = f": {case.mig_failure}" if case.mig_failure else "; see the log of its pod"
    return f"mig-manager failed to apply {case.fence.target_mig_config}{why}{_pending(case)}"


def _pending(case: FencedCase) -> str:
    """Return a clause, with a leading separator, that a GPU still waits for a reset which its virtual machine may be
    unable to make. Empty if no GPU waits for one, or if that is not the cause."""
    observed = case.gpunode.observed if case.gpunode else None
    waits = observed is not None and any(gpu.mig_pending for gpu in observed.hardware.kinds)
    return tell_guest_reset(observed, case.stack) if waits else ""


def _paused_for_long(case: FencedCase) -> str:
    """Return the message that mig-manager reports success but operands are still paused, if `wedge_paused` seconds
    have passed since the PNR or the last restart of mig-manager, which is longer than a run needs. Otherwise return
    an empty string."""
    return _paused(case) if _waited(case) >= case.settings.wedge_paused else ""


def _paused(case: FencedCase) -> str:
    """Return the message that mig-manager reports success but operands are still paused, or an empty string if that is
    not so."""
    paused = paused_operands(case.node)
    if _state(case) != "success" or not paused:
        return ""
    return f"mig-manager reports success, but operands are still paused: {', '.join(paused)}"


def _stuck(case: FencedCase) -> str:
    """Return the message that mig-manager has been at work for too long, or an empty string if it has not. A reboot is
    limited only by the deadline of the change."""
    limit = case.settings.wedge_pending
    if _waited(case) < limit or _state(case) == "rebooting":
        return ""
    # The limit and not the time itself: a message with the seconds so far would be written again on every pass.
    return f"{doing}, for more than {limit:.0f} s now" if (doing := _at_work(case)) else ""


def _at_work(case: FencedCase) -> str:
    """Return what mig-manager is doing, or an empty string if it has succeeded or failed."""
    state = _state(case)
    doing = {"rebooting": "is rebooting the node", "pending": "is applying the configuration"}.get(
        state, "has not started"
    )
    return "" if state in _ENDED else f"mig-manager {doing}"


_ENDED = ("success", "failed")
_RESTART = "restarting mig-manager"
SIGNS: tuple[Sign, ...] = (
    Sign(_restarts, Reason.ACTUATION_IN_PROGRESS, final=False, cure=""),
    Sign(_overwritten, Reason.ACTUATOR_FAILED, final=True, cure="setting it again"),
    Sign(_failed_midway, Reason.ACTUATOR_FAILED, final=True, cure=_RESTART),
    Sign(_failed, Reason.ACTUATOR_FAILED, final=True, cure=""),
    Sign(_paused_for_long, Reason.OPERANDS_PAUSED, final=True, cure=_RESTART),
    Sign(_paused, Reason.OPERANDS_PAUSED, final=False, cure=_RESTART),
    Sign(_stuck, Reason.ACTUATOR_STUCK, final=True, cure=_RESTART),
    Sign(_at_work, Reason.ACTUATION_IN_PROGRESS, final=False, cure=_RESTART),
)
"""The first match wins; a test pins the order. First comes whether the state is about this run at all."""


def believed_from(case: FencedCase) -> datetime:
    """Return the time from which mig-manager's state is about this attempt: now if the attempt needed no restart, else
    when the pod that replaces the old one has been Ready for `restart_grace` seconds. Until that pod is Ready,
    return the deadline.

    The old pod may use its whole grace period, and the next one starts only after that.
    """
    fence, operand = case.fence, case.operand
    if not fence.restart_uid:
        return case.now
    if operand is None or operand.uid == fence.restart_uid or not operand.ready:
        return fence.deadline
    return (operand.ready_since or fence.stage_since) + timedelta(seconds=case.settings.restart_grace)


def next_look(case: FencedCase) -> datetime | None:
    """Return when the passing of time alone may change what `find_trouble` returns, or None if it will not."""
    settings = case.settings
    moments = [
        case.fence.stage_since + timedelta(seconds=wait)
        for wait in (settings.wedge_paused, settings.wedge_pending)
    ]
    moments.append(believed_from(case))
    return min((moment for moment in moments if moment > case.now), default=None)
