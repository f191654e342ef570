"""When NVML must stay closed on a node that we do not change: somebody else works on its driver or its GPUs.

An open NVML handle makes a MIG mode change fail and keeps the driver from being unloaded (docs/design/nvidia.md#a8,
a.9, d.4). The operator reads the labels; the agent only does what `spec.request.quiet` says.
"""

from datetime import timedelta

from gpusharing.api import names
from gpusharing.planning.transition.verdict import NodeCase
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.vocabulary.reasons import Reason

ASKED_FOR = "node-maintenance-required"
"""A state of a driver upgrade that may last for weeks."""
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


def find_quiet(case: NodeCase) -> Finding | None:
    """Return why the agent of a node that we do not change must keep NVML closed, or None if it may read."""
    node = case.node
    if node.fence is not None and node.fence.stage != "yielded":
        return None
    state = node.labels.get(names.LABEL_UPGRADE_STATE, "")
    may_last = state in names.UPGRADE_LASTING or (state == ASKED_FOR and node.foreign_queued)
    paused = any("paused-for-driver-upgrade" in value for value in node.held_off.values())
    if not may_last and (state in UNLOADING or paused):
        message = f"NVIDIA's driver is being replaced on {node.name}; the agent keeps NVML closed until that is done"
        return Finding(Reason.FOREIGN_MAINTENANCE, message)
    return find_work(case)


def find_work(case: NodeCase) -> Finding | None:
    """Return that an actuator is at work although we have started no run. After `settings.wedge_pending` seconds only a reading shows whether it has done its work (docs/design/nvidia.md#a7)."""
    work = case.actuator.find_work(case.node)
    until = (case.at_work_since or case.now) + timedelta(seconds=case.settings.wedge_pending)
    if not work or case.now >= until:
        return None
    return Finding(Reason.ACTUATOR_BUSY, f"{work}; the agent keeps NVML closed meanwhile", until)
