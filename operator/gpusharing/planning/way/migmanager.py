"""What is known about mig-manager on one node: does a change need it, is it working or stuck, can it be believed?"""

from datetime import datetime, timedelta

from gpusharing.api import names
from gpusharing.planning.gpus.geometry import Layout
from gpusharing.planning.wanted.target import Target
from gpusharing.planning.wanted.verify import paused_operands
from gpusharing.planning.way.verdict import FencedCase, NodeCase
from gpusharing.planning.words.findings import Finding
from gpusharing.planning.words.reasons import Reason
from gpusharing.planning.words.values import value


def needs_run(case: NodeCase, target: Target) -> bool:
    """Whether the change is impossible without mig-manager."""
    if not target.mig_config:
        return False
    labels = case.node.labels
    return labels.get(names.LABEL_MIG_CONFIG) != target.mig_config or needs_restart(case, target)


def needs_restart(case: NodeCase, target: Target) -> bool:
    """The label has its value already, so only a new run of mig-manager can repair the difference
    (docs/design/nvidia.md#a6)."""
    if not target.mig_config or case.node.labels.get(names.LABEL_MIG_CONFIG) != target.mig_config:
        return False
    return (
        case.node.labels.get(names.LABEL_MIG_STATE) != "success"
        or bool(paused_operands(case.node))
        or found_layouts(case) != target.layouts
    )


def found_layouts(case: NodeCase) -> tuple[Layout | None, ...]:
    """The layout of every GPU that the agent saw last."""
    observed = case.gpunode.observed if case.gpunode else None
    return observed.hardware.layouts if observed else ()


def is_ready(case: NodeCase) -> bool:
    """A mig-manager pod on the node can act on a label."""
    return case.operand is not None and case.operand.ready


# --- after the point of no return --------------------------------------------------------------------------


@value
class ManagerTrouble:
    """What mig-manager says, when it is not plain success. `final`: waiting longer changes nothing."""

    mismatch: Finding
    """What it says."""
    final: bool
    """Whether waiting longer changes nothing."""
    curable: bool = False
    """Another run may help."""
    cure: str = "restarting mig-manager"
    """The first step of that run, for people."""


def find_trouble(case: FencedCase) -> ManagerTrouble | None:
    """The trouble that mig-manager's labels show, given the time since the PNR or the last restart."""
    fence, node, settings = case.fence, case.node, case.settings
    if not fence.target_mig_config:
        return None
    state = node.labels.get(names.LABEL_MIG_STATE, "")
    waited = (case.now - fence.stage_since).total_seconds()
    paused = paused_operands(node)
    if state in ("success", "failed") and case.now < believed_from(case):
        message = f"mig-manager is restarting; its state {state} is from before"
        return ManagerTrouble(Finding(Reason.ACTUATION_IN_PROGRESS, message), final=False)
    if state in ("success", "failed") and (found := _overwritten(case)):
        return ManagerTrouble(found, final=True, curable=True, cure="setting it again")
    if state == "failed":
        why = f": {case.mig_failure}" if case.mig_failure else "; its pod's log says why"
        message = f"mig-manager failed to apply {fence.target_mig_config}{why}"
        return ManagerTrouble(Finding(Reason.ACTUATOR_FAILED, message), final=True, curable=bool(paused))
    if state == "success":
        if not paused:
            return None
        message = f"mig-manager reports success, but operands are still paused: {', '.join(paused)}"
        wedged = waited >= settings.wedge_paused
        return ManagerTrouble(Finding(Reason.OPERANDS_PAUSED, message), final=wedged, curable=True)
    doing = {"rebooting": "reboots the node", "pending": "is at work"}.get(state, "has not begun")
    stuck = waited >= settings.wedge_pending and state != "rebooting"
    reason = Reason.ACTUATOR_STUCK if stuck else Reason.ACTUATION_IN_PROGRESS
    # The limit and not the time itself: a message with the seconds so far would be written again on every pass.
    lasting = f" for more than {settings.wedge_pending:.0f} s" if stuck else ""
    return ManagerTrouble(Finding(reason, f"mig-manager {doing}{lasting}"), final=stuck, curable=True)


def _overwritten(case: FencedCase) -> Finding | None:
    """Somebody overwrote our label in the middle of the change, as NVIDIA's GPU Operator does with all-disabled when
    it finds none (docs/design/nvidia.md#d1): what mig-manager reports is about another configuration."""
    label, wanted = case.node.labels.get(names.LABEL_MIG_CONFIG, ""), case.fence.target_mig_config
    if label == wanted:
        return None
    message = f"{names.LABEL_MIG_CONFIG} is {label or 'gone'} and not {wanted}: somebody overwrote it"
    return Finding(Reason.ACTUATOR_FAILED, message)


def believed_from(case: FencedCase) -> datetime:
    """From when a state is about this attempt: the pod that replaces the old one has had time to start.

    The old pod may use its whole grace period, and the next one starts only after that.
    """
    fence, operand = case.fence, case.operand
    if not fence.restart_uid:
        return fence.stage_since
    if operand is None or operand.uid == fence.restart_uid or not operand.ready:
        return fence.deadline
    begun = max(fence.stage_since, operand.ready_since or fence.stage_since)
    return begun + timedelta(seconds=case.settings.restart_grace)


def next_look(case: FencedCase) -> datetime | None:
    """When the clock alone may change what `find_trouble` says."""
    settings = case.settings
    moments = [
        case.fence.stage_since + timedelta(seconds=wait)
        for wait in (settings.wedge_paused, settings.wedge_pending)
    ]
    moments.append(believed_from(case))
    return min((moment for moment in moments if moment > case.now), default=None)
