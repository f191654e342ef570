"""The actuator of DRA with static partitions: mig-manager divides the GPUs as its label says, and NVIDIA's DRA driver
publishes the resulting devices.

The driver looks for MIG devices only when its kubelet plugin starts, so each run replaces the plugin's pod once
mig-manager is done. Its ResourceSlices outlive the pod, so they prove nothing before the new pod is Ready. The fence
names the pod to replace in `daemon_uid`, the field that names the MPS daemon's pod where the device plugin serves the
GPUs.

Terms: docs/design/glossary.md#actuator, docs/design/glossary.md#fence, docs/design/glossary.md#point-of-no-return.
"""

from dataclasses import replace
from datetime import datetime, timedelta

from gpusharing.planning.snapshot.records import Fence
from gpusharing.planning.snapshot.stackviews import Operand, Program
from gpusharing.planning.snapshot.views import NodeView, ObservedView
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.wanted.actuators.actuator import (
    ActuatorCase,
    Obstacle,
    Sign,
    Trouble,
    Writing,
    find_sign,
)
from gpusharing.planning.wanted.actuators.labels import LABELS
from gpusharing.planning.wanted.draobjects import find_unrequestable
from gpusharing.planning.wanted.target import Target
from gpusharing.planning.wanted.verify import (
    AGENT_CHECKS,
    COMPUTE_MODE,
    MIG_CHECKS,
    Check,
    Source,
    find_slice_mismatch,
)

WHAT = "NVIDIA's DRA kubelet plugin"
"""The program that publishes the devices, for messages."""


# --- what stands in the way --------------------------------------------------------------------------------


def _no_plugin(case: ActuatorCase, target: Target) -> str:
    """Return the message that no Ready pod of the kubelet plugin is on the node, although a first run to the target
    needs one, and where to look for it. Empty if there is such a pod, or if no run is needed."""
    if not _needs_run(case, target) or not (missing := _find_plugin_missing(case, again=False)):
        return ""
    where = f"label {Program.KUBELET_PLUGIN.label}={Program.KUBELET_PLUGIN}"
    return f"{missing}; check the pods with {where} in namespace {case.settings.gpu_operator_namespace}"


def _unpublished(case: ActuatorCase, target: Target) -> str:
    """Return the message that the driver has not published all devices of the node, or also others than GPUs and MIG
    devices (`NodeDevices.others`), so that no change could be proven. Empty otherwise."""
    return "" if _is_published(case.node) else find_slice_mismatch(case.node, target.layouts, None)


def _is_published(node: NodeView) -> bool:
    """Whether the driver has published all devices of the node, and nothing but GPUs and MIG devices. Otherwise it is
    not running, is about to publish, or serves a GPU in another way, so a drain would not help."""
    return node.devices is not None and not node.devices.missing and not node.devices.others


# --- what a run writes -------------------------------------------------------------------------------------


def _needs_run(case: ActuatorCase, target: Target) -> bool:
    """Whether mig-manager has to run, or the driver has published all its devices of the node but they differ from the
    target or from what the agent has read."""
    observed = case.gpunode.observed if case.gpunode is not None else None
    differs = bool(find_slice_mismatch(case.node, target.layouts, observed))
    return LABELS.needs_run(case, target) or (_is_published(case.node) and differs)


def _find_missing(case: ActuatorCase, goal: Target, again: bool) -> str:
    """Return the message that a run to `goal` needs a pod that is missing: mig-manager's, according to
    `LABELS.find_missing`, or else the kubelet plugin's, which need not be Ready for a repeated run. Empty if
    neither is missing."""
    return LABELS.find_missing(case, goal, again) or _find_plugin_missing(case, again=again)


def _find_plugin_missing(case: ActuatorCase, *, again: bool) -> str:
    """Return the message that no Ready pod of the kubelet plugin is on the node, or an empty string if there is one.
    For a repeated run (`again`), a pod that is not Ready is enough."""
    pod = case.operands.get(Program.KUBELET_PLUGIN)
    return (
        "" if pod is not None and (again or pod.ready) else f"no Ready pod of {WHAT} runs on {case.node.name}"
    )


def _write(case: ActuatorCase, fence: Fence, goal: Target, idle: ObservedView | None, again: bool) -> Writing:
    """Return what a run to `goal` writes: the labels that change, the mig-manager pod to delete, and as `daemon_uid`
    the kubelet plugin's pod, which is empty if there is none. No start time of GPU Feature Discovery is recorded. The
    rest is as in `LABELS.write`."""
    pod = case.operands.get(Program.KUBELET_PLUGIN)
    writing = LABELS.write(case, fence, goal, idle, again)
    return replace(writing, daemon_uid=pod.uid if pod is not None else "", gfd_timestamp="")


def _find_old(case: ActuatorCase, fence: Fence) -> tuple[Operand, str] | None:
    """Return the next pod that the fence names for deletion and that still exists, with the name of its program for
    messages. mig-manager's pod comes first. The kubelet plugin's pod follows only once mig-manager is done without
    trouble. None if there is no such pod."""
    if (old := LABELS.find_old(case, fence)) is not None:
        return old
    pod = case.operands.get(Program.KUBELET_PLUGIN)
    if pod is None or pod.uid != fence.daemon_uid or LABELS.find_trouble(case, fence) is not None:
        return None
    return pod, WHAT


# --- how a run goes ----------------------------------------------------------------------------------------


def _find_trouble(case: ActuatorCase, fence: Fence) -> Trouble | None:
    """Return the trouble that mig-manager shows or, once mig-manager is done, the trouble of the kubelet plugin. None
    if both are done."""
    return LABELS.find_trouble(case, fence) or find_sign(SIGNS, case, fence)


def _publishes_by(case: ActuatorCase, fence: Fence) -> datetime | None:
    """Return the time at which the ResourceSlices should be right at the latest: `restart_grace` seconds after the pod
    that replaces the old one became Ready, because a pod becomes Ready shortly before it publishes. None unless a Ready
    pod other than the old one is there. If it is unknown since when it has been Ready, the latest run's beginning
    counts."""
    pod = case.operands.get(Program.KUBELET_PLUGIN)
    if pod is None or pod.uid == fence.daemon_uid or not pod.ready:
        return None
    return (pod.ready_since or fence.stage_since) + timedelta(seconds=case.settings.restart_grace)


def _not_replaced(case: ActuatorCase, fence: Fence) -> str:
    """Return the message that the kubelet plugin's pod from before the change is still there and is not terminating.
    Only the operator replaces it, and only for a node that has a target. Empty if it is terminating or gone."""
    pod = case.operands.get(Program.KUBELET_PLUGIN)
    if pod is None or pod.uid != fence.daemon_uid or pod.deleting:
        return ""
    return f"{WHAT} has not been restarted since the change, so the ResourceSlices of {case.node.name} are outdated"


def _restarts(case: ActuatorCase, fence: Fence) -> str:
    """Return the message that the kubelet plugin has not restarted since the change, so that its old pod published the
    ResourceSlices. Empty once a new pod is Ready."""
    if _publishes_by(case, fence) is not None:
        return ""
    return f"{WHAT} is restarting; the ResourceSlices of {case.node.name} are from before the change"


def _outdated(case: ActuatorCase, fence: Fence) -> str:
    """Return how the ResourceSlices differ from the GPUs although the kubelet plugin has had time to publish the GPUs'
    devices; its pod may have started before the GPUs were divided. The GPUs are taken from the agent's answer to
    the request for the proof of this change. Empty if they agree, if there is no such answer without an error yet,
    or if the time is not over."""
    due, gpunode = _publishes_by(case, fence), case.gpunode
    observed = gpunode.observed if gpunode is not None else None
    if due is None or case.now < due or gpunode is None or observed is None:
        return ""
    asked = gpunode.request_id.startswith(f"{fence.op}:verify:") and observed.request_id == gpunode.request_id
    if not asked or observed.quiet or observed.error:
        return ""
    return find_slice_mismatch(case.node, observed.hardware.layouts, observed)


SIGNS = (
    Sign(_not_replaced, Reason.ACTUATION_IN_PROGRESS, final=True, cure=f"restarting {WHAT}"),
    Sign(_restarts, Reason.ACTUATION_IN_PROGRESS, final=False, cure=""),
    Sign(_outdated, Reason.ALLOCATABLE_MISMATCH, final=True, cure=f"restarting {WHAT}"),
)
"""Signs of the kubelet plugin, once mig-manager is done. The first match wins."""


def _next_look(case: ActuatorCase, fence: Fence) -> datetime | None:
    """Return when the passing of time alone may change what `_find_trouble` returns: the earliest moment in the future
    of `LABELS.next_look` and `_publishes_by`. None if there is none."""
    moments = LABELS.next_look(case, fence), _publishes_by(case, fence)
    return min((moment for moment in moments if moment is not None and moment > case.now), default=None)


DRA = replace(
    LABELS,
    needs=frozenset({"mig-manager", "driver", "container-toolkit"}),
    obstacles=(
        *LABELS.obstacles,
        Obstacle(_no_plugin, Reason.ACTUATOR_MISSING),
        Obstacle(_unpublished, Reason.ACTUATOR_MISSING),
        Obstacle(
            lambda case, target: find_unrequestable(target.layouts, case.stack), Reason.ACTUATOR_MISSING
        ),
    ),
    needs_run=_needs_run,
    find_missing=_find_missing,
    write=_write,
    find_old=_find_old,
    find_trouble=_find_trouble,
    next_look=_next_look,
    checks=(
        *AGENT_CHECKS,
        *MIG_CHECKS,
        COMPUTE_MODE,
        Check(
            lambda it: find_slice_mismatch(it.node, it.target.layouts, it.observed),
            Reason.ALLOCATABLE_MISMATCH,
            Source.SLICES,
        ),
    ),
    # mig-manager's label then means whole GPUs, and nothing reads the other labels.
    tell_left=lambda node: "",
)
