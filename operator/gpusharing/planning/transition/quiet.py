"""When NVML must stay closed on a node that we do not change: somebody else works on its driver or its GPUs.

An open NVML handle makes a MIG mode change fail and keeps the driver from being unloaded (docs/design/nvidia.md#a8,
a.9, d.4). During our own change the agent is quiet anyway. This module deals with mig-manager when it acts on an
administrator's label or after a reboot, and with NVIDIA's driver upgrade. The operator reads the labels; the agent
only does what `spec.request.quiet` says.
"""

from datetime import timedelta

from gpusharing.api import names
from gpusharing.planning.transition.verdict import NodeCase
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.vocabulary.reasons import Reason

ASKED_FOR = "node-maintenance-required"
"""A state of a driver upgrade that may last for weeks. The NodeMaintenance object shows when the work begins."""
UNLOADING = frozenset(
    {
        "pod-deletion-required",
        "drain-required",
        ASKED_FOR,
        "post-maintenance-required",
        "pod-restart-required",
    }
)
"""States of a driver upgrade from the last moment with the old driver to the start of the new one (d.4)."""
PAUSED = "paused-for-driver-upgrade"
"""A part of the value that an operand's switch has while the driver is being replaced."""


def find_quiet(case: NodeCase) -> Finding | None:
    """Return why the agent of a node that we do not change must keep NVML closed, or None if it may read. Always None
    for a node that we are changing; a node that we yielded does not count as one.

    NVIDIA's driver is being replaced if the label of the driver upgrade has a state in UNLOADING, or if an operand's
    label is paused for the upgrade; the reason is then ForeignMaintenance, and nothing says when it ends. States that
    may last for weeks do not count: those in UPGRADE_LASTING, and ASKED_FOR while the work waits for its turn. An
    actuator at work is a reason too (ActuatorBusy), until it has been working for `settings.wedge_pending` seconds,
    because only a reading shows whether a program that never ends has done its work (a.7).
    """
    node = case.node
    if node.fence is not None and node.fence.stage != "yielded":
        return None
    state = node.labels.get(names.LABEL_UPGRADE_STATE, "")
    may_last = state in names.UPGRADE_LASTING or (state == ASKED_FOR and node.foreign_queued)
    if not may_last and (state in UNLOADING or any(PAUSED in value for value in node.held_off.values())):
        message = f"NVIDIA's driver is being replaced on {node.name}; the agent keeps NVML closed until that is done"
        return Finding(Reason.FOREIGN_MAINTENANCE, message)
    return find_work(case)


def find_work(case: NodeCase) -> Finding | None:
    """Return the Finding (ActuatorBusy) that an actuator is at work although we have started no run on the node, with
    the time until which that counts: `settings.wedge_pending` seconds after it was first seen. None if it is not at
    work, or after that time."""
    work = case.actuator.find_work(case.node)
    until = (case.at_work_since or case.now) + timedelta(seconds=case.settings.wedge_pending)
    if not work or case.now >= until:
        return None
    return Finding(Reason.ACTUATOR_BUSY, f"{work}; the agent keeps NVML closed meanwhile", until)
