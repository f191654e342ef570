"""The actuator of the GPU Operator and of NVIDIA's device-plugin chart: mig-manager and the device plugin, which follow
two labels of the Node.

    nvidia.com/mig.config            mig-manager divides the GPUs and reports in mig.config.state
    nvidia.com/device-plugin.config  config-manager hands the device plugin and GPU Feature Discovery (GFD) their entry

Terms: docs/design/glossary.md#actuator, docs/design/glossary.md#fence,
docs/design/glossary.md#point-of-no-return.
"""

from datetime import datetime, timedelta

from gpusharing.api import names
from gpusharing.api.names import Mode
from gpusharing.planning.snapshot.records import Fence
from gpusharing.planning.snapshot.stackviews import MIG_MANAGER_SWITCH, Operand, Program
from gpusharing.planning.snapshot.views import NodeView, ObservedView
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.wanted.actuators.actuator import (
    Actuator,
    ActuatorCase,
    Obstacle,
    Sign,
    Trouble,
    Writing,
    find_sign,
)
from gpusharing.planning.wanted.assess import uses_mps
from gpusharing.planning.wanted.target import Target, find_last_proven
from gpusharing.planning.wanted.toolversions import find_deafness, find_remedy
from gpusharing.planning.wanted.verify import CHECKS, find_entry, paused_operands, tell_guest_reset

# --- what stands in the way --------------------------------------------------------------------------------


def _deaf_mps(case: ActuatorCase, target: Target) -> str:
    """Return why no label can turn MPS on, with the remedy, if MPS is the target and the MPS daemon follows no label.
    Empty otherwise. Without this objection, the node would be drained before anybody notices."""
    policy = case.stack.cluster_policy
    daemon = policy.mps_daemon if policy is not None else None
    if daemon is None or target.mode is not Mode.MPS or not (why := find_deafness(daemon)):
        return ""
    return f"no label can enable MPS with device plugin {daemon.version}: {why}. {find_remedy(daemon).text}"


def _nobody_ends_mig(case: ActuatorCase, target: Target) -> str:
    """Return a message if the GPUs do not have the target's layouts and the target has no value for mig-manager's
    label: MIG is then on, and no mig-manager would switch it off. Empty otherwise."""
    policy = case.stack.cluster_policy
    if target.mig_config or case.found_layouts == target.layouts:
        return ""
    why = f"ClusterPolicy {MIG_MANAGER_SWITCH} is false"
    if policy is not None and policy.plain is not None:
        cannot = "mig-manager cannot pause the device plugin of NVIDIA's chart"
        why = cannot if policy.plain.mig_manager else "there is no mig-manager"
    return f"MIG is enabled on {case.node.name} and nothing there can disable it, because {why}"


def _rebooting(case: ActuatorCase, target: Target) -> str:
    """Return the message that mig-manager is rebooting the node although no change is in progress, if its state is
    `rebooting` and the target needs mig-manager. Empty otherwise. Call it only while no change of ours is in
    progress."""
    rebooting = case.node.labels.get(names.LABEL_MIG_STATE, "") == "rebooting"
    if not rebooting or not target.mig_config:
        return ""
    return "mig-manager is rebooting the node, although no change is in progress"


def _no_mig_manager(case: ActuatorCase, target: Target) -> str:
    """Return the message that a first run to the target needs mig-manager and no Ready pod of it is on the node. Empty
    if one is, or if no run of mig-manager is needed."""
    missing = _find_missing(case, target, again=False)
    where = f"label app={Program.MIG_MANAGER} in namespace {case.settings.gpu_operator_namespace}"
    return f"{missing}; check the pods with {where}" if missing else ""


OBJECTIONS = (
    Obstacle(_deaf_mps, Reason.MPS_NOT_SWITCHABLE),
    Obstacle(_nobody_ends_mig, Reason.ACTUATOR_MISSING),
)
OBSTACLES = (
    Obstacle(_rebooting, Reason.ACTUATOR_BUSY),
    Obstacle(_no_mig_manager, Reason.ACTUATOR_MISSING),
)
"""The first match wins; a test pins the order."""


# --- what a run writes -------------------------------------------------------------------------------------


def _find_labels(node: NodeView, target: Target) -> dict[str, str]:
    """Return the values that both labels have on a node with this target, by label. The device plugin's value is empty
    if its label must be absent. If the target needs no mig-manager, its label keeps its present value, which is
    empty if it has none."""
    config = target.mig_config or node.labels.get(names.LABEL_MIG_CONFIG, "")
    return {names.LABEL_MIG_CONFIG: config, names.LABEL_PLUGIN_CONFIG: target.plugin_key}


def _needs_run(case: ActuatorCase, target: Target) -> bool:
    """Whether the target has a value for mig-manager's label and mig-manager has to work towards it: the label has
    another value, or the node still differs (`needs_restart`)."""
    if not target.mig_config:
        return False
    return case.node.labels.get(names.LABEL_MIG_CONFIG) != target.mig_config or needs_restart(case, target)


def needs_restart(case: ActuatorCase, target: Target) -> bool:
    """Whether mig-manager's label already has the target's value and the node still differs, so that only a new
    mig-manager pod can repair it (docs/design/nvidia.md#a6). It differs if mig-manager does not report success, if
    an operand is paused, or if the GPUs have other layouts. False if the target does not need mig-manager."""
    labels = case.node.labels
    if not target.mig_config or labels.get(names.LABEL_MIG_CONFIG) != target.mig_config:
        return False
    return (
        labels.get(names.LABEL_MIG_STATE) != "success"
        or bool(paused_operands(case.node))
        or case.found_layouts != target.layouts
    )


def _find_missing(case: ActuatorCase, goal: Target, again: bool) -> str:
    """Return the message that a run to `goal` needs mig-manager and no pod of it that can be used is on the node. A
    first run needs a Ready one. A repeated run to a goal with a value for mig-manager's label always needs a pod,
    which need not be Ready, because the run restarts it. Empty if the pod is there or is not needed."""
    pod, repeats = case.operands.get(Program.MIG_MANAGER), again and bool(goal.mig_config)
    if (pod is not None and (repeats or pod.ready)) or not (repeats or _needs_run(case, goal)):
        return ""
    return f"no Ready mig-manager pod runs on {case.node.name}"


def _write(case: ActuatorCase, fence: Fence, goal: Target, idle: ObservedView | None, again: bool) -> Writing:
    """Return what a run to `goal` writes: the labels that change, and the pods of mig-manager and of the MPS daemon
    that have to be deleted. The MPS daemon's pod and GFD's present start time are included only if the entry of the
    device plugin changes. A repeated run that does not change it keeps the start time that the fence has."""
    node = case.node
    present_key = node.labels.get(names.LABEL_PLUGIN_CONFIG, "")
    plugin_changes = find_entry(present_key, case.stack) != find_entry(goal.plugin_key, case.stack)
    gfd_started = node.labels.get(names.LABEL_GFD_TIMESTAMP, "") if plugin_changes else ""
    return Writing(
        labels=_find_changed(node, goal, idle),
        restart_uid=_mig_manager_to_restart(case, goal, again=again),
        daemon_uid=_daemon_to_restart(case, goal) if plugin_changes else "",
        gfd_timestamp=fence.gfd_timestamp if again and not plugin_changes else gfd_started,
    )


def _find_changed(node: NodeView, goal: Target, idle: ObservedView | None) -> dict[str, str | None]:
    """Return the labels to write so that they name the goal, by key, and only those that change; the value None
    removes a label.

    mig-manager's label is written only with `idle`, the reading that proved the node idle. mig-manager's state is
    removed only together with a new value of that label, and never while the node reboots.
    """
    labels: dict[str, str | None] = {}
    if idle is not None and goal.mig_config and node.labels.get(names.LABEL_MIG_CONFIG) != goal.mig_config:
        labels[names.LABEL_MIG_CONFIG] = goal.mig_config
        if node.labels.get(names.LABEL_MIG_STATE) not in (None, "rebooting"):
            labels[names.LABEL_MIG_STATE] = None
    if node.labels.get(names.LABEL_PLUGIN_CONFIG, "") != goal.plugin_key:
        labels[names.LABEL_PLUGIN_CONFIG] = goal.plugin_key or None
    return labels


def _mig_manager_to_restart(case: ActuatorCase, goal: Target, *, again: bool) -> str:
    """Return the UID of the mig-manager pod that has to be deleted before the run begins; empty if none has to."""
    pod = case.operands.get(Program.MIG_MANAGER)
    if not goal.mig_config or pod is None:
        return ""
    return pod.uid if _needs_new_pod(case, goal, again=again) else ""


def _needs_new_pod(case: ActuatorCase, goal: Target, *, again: bool) -> bool:
    """Whether the run needs a new mig-manager pod. True for a repeated run if mig-manager's state is neither success
    nor failed, because it is stuck then. Otherwise True only if the label already has the goal's value, because
    mig-manager reacts to a new value by itself; for a first run, the node must also differ (`needs_restart`)."""
    labels = case.node.labels
    if not again or labels.get(names.LABEL_MIG_STATE) in _ENDED:
        same = labels.get(names.LABEL_MIG_CONFIG) == goal.mig_config
        return needs_restart(case, goal) or (again and same)
    return True


def _daemon_to_restart(case: ActuatorCase, target: Target) -> str:
    """Return the UID of the MPS daemon's pod if the target is MPS and the node uses MPS already: unless it restarts,
    the daemon keeps its old number of clients, because config-manager does not find its process
    (docs/design/nvidia.md#b5). Empty otherwise, and if the GPUs are unknown or there is no such pod."""
    observed, daemon = (
        case.gpunode.observed if case.gpunode else None,
        case.operands.get(Program.MPS_DAEMON),
    )
    if target.mode is not Mode.MPS or observed is None or daemon is None:
        return ""
    return daemon.uid if uses_mps(case.node, observed, case.stack) else ""


def _find_old(case: ActuatorCase, fence: Fence) -> tuple[Operand, str] | None:
    """Return the first pod that the fence names and that still exists, with the name of its program for messages:
    mig-manager's, then that of the MPS daemon. None if there is none."""
    manager, daemon = (case.operands.get(program) for program in (Program.MIG_MANAGER, Program.MPS_DAEMON))
    if manager is not None and manager.uid == fence.restart_uid:
        return manager, "mig-manager"
    return (daemon, "the MPS daemon") if daemon is not None and daemon.uid == fence.daemon_uid else None


# --- how a run goes ----------------------------------------------------------------------------------------


def _find_trouble(case: ActuatorCase, fence: Fence) -> Trouble | None:
    """Return the trouble that mig-manager's labels show, by the first of SIGNS that applies. None if mig-manager
    reports success and is done, or if the change does not need it. Some signs depend on the time since the latest
    run began."""
    return find_sign(SIGNS, case, fence) if fence.target_mig_config else None


def _state(case: ActuatorCase) -> str:
    """Return the value of the node's mig.config.state label; empty without one."""
    return case.node.labels.get(names.LABEL_MIG_STATE, "")


def _waited(case: ActuatorCase, fence: Fence) -> float:
    """Return the seconds since the latest run passed the PNR. A repeated run, which may restart mig-manager, counts
    from its own beginning."""
    return (case.now - fence.stage_since).total_seconds()


def _restarts(case: ActuatorCase, fence: Fence) -> str:
    """Return the message that mig-manager is restarting and its state is from before. Empty if the state is about this
    run, or is neither `success` nor `failed`."""
    state = _state(case)
    if state not in _ENDED or case.now >= _believed_from(case, fence):
        return ""
    return f"mig-manager is restarting; its state {state} dates from before the restart"


def _overwritten(case: ActuatorCase, fence: Fence) -> str:
    """Return the message that somebody overwrote mig-manager's label during the change: mig-manager has ended, and the
    label does not have the value that the fence names. Empty otherwise. NVIDIA's GPU Operator writes all-disabled
    if it finds no label (docs/design/nvidia.md#d1)."""
    label, wanted = case.node.labels.get(names.LABEL_MIG_CONFIG, ""), fence.target_mig_config
    if _state(case) not in _ENDED or label == wanted:
        return ""
    who = case.node.label_rewriters.get(names.LABEL_MIG_CONFIG, "someone")
    return f"{names.LABEL_MIG_CONFIG} is {label or 'missing'}, not {wanted}: {who} changed it"


def _failed_midway(case: ActuatorCase, fence: Fence) -> str:
    """Return the message that mig-manager failed, if it also left operands paused, else an empty string. It would
    start these again at the end of another run."""
    return _failed(case, fence) if paused_operands(case.node) else ""


def _failed(case: ActuatorCase, fence: Fence) -> str:
    """Return the message that mig-manager failed to apply our configuration, with the last line of its log if that was
    read. Empty if its state is not `failed`."""
    if _state(case) != "failed":
        return ""
    why = f": {case.mig_failure}" if case.mig_failure else "; see the log of its pod"
    return f"mig-manager failed to apply {fence.target_mig_config}{why}{_pending(case)}"


def _pending(case: ActuatorCase) -> str:
    """Return the clause of `tell_guest_reset`, which begins with a semicolon: a GPU waits for a reset that its virtual
    machine may be unable to make. Empty if the MIG mode of no GPU is pending, or if that function returns nothing."""
    observed = case.gpunode.observed if case.gpunode else None
    waits = observed is not None and any(gpu.mig_pending for gpu in observed.hardware.kinds)
    return tell_guest_reset(observed, case.stack) if waits else ""


def _paused_for_long(case: ActuatorCase, fence: Fence) -> str:
    """Return the message that mig-manager reports success but operands are still paused, if `wedge_paused` seconds
    have passed since the latest run began, which is longer than a run needs. Otherwise return an empty string."""
    return _paused(case, fence) if _waited(case, fence) >= case.settings.wedge_paused else ""


def _paused(case: ActuatorCase, fence: Fence) -> str:
    """Return the message that mig-manager reports success but operands are still paused, or an empty string if that is
    not so."""
    paused = paused_operands(case.node)
    if _state(case) != "success" or not paused:
        return ""
    return f"mig-manager reports success, but operands are still paused: {', '.join(paused)}"


def _stuck(case: ActuatorCase, fence: Fence) -> str:
    """Return the message that mig-manager has been at work for too long, or an empty string if it has not. A reboot is
    limited only by the deadline of the change."""
    limit = case.settings.wedge_pending
    if _waited(case, fence) < limit or _state(case) == "rebooting":
        return ""
    # The limit and not the time itself: a message with the seconds so far would be written again on every pass.
    return f"{doing}, for more than {limit:.0f} s now" if (doing := _at_work(case, fence)) else ""


def _at_work(case: ActuatorCase, fence: Fence) -> str:
    """Return what mig-manager is doing, or an empty string if it has succeeded or failed. Any state other than those,
    `pending` and `rebooting` means that it has not started."""
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


def _believed_from(case: ActuatorCase, fence: Fence) -> datetime:
    """Return the time from which mig-manager's state is about this attempt: now if the attempt needed no restart, else
    when the pod that replaces the old one has been Ready for `restart_grace` seconds. Until that pod is Ready,
    return the deadline.

    The old pod may use its whole grace period, and the next one starts only after that.
    """
    pod = case.operands.get(Program.MIG_MANAGER)
    if not fence.restart_uid:
        return case.now
    if pod is None or pod.uid == fence.restart_uid or not pod.ready:
        return fence.deadline
    return (pod.ready_since or fence.stage_since) + timedelta(seconds=case.settings.restart_grace)


def _next_look(case: ActuatorCase, fence: Fence) -> datetime | None:
    """Return when the passing of time alone may change what `_find_trouble` returns, or None if it will not. It is the
    earliest future moment of three: `wedge_paused` and `wedge_pending` seconds after the latest run began, and
    `_believed_from`."""
    settings = case.settings
    moments = [
        fence.stage_since + timedelta(seconds=wait)
        for wait in (settings.wedge_paused, settings.wedge_pending)
    ]
    moments.append(_believed_from(case, fence))
    return min((moment for moment in moments if moment > case.now), default=None)


def _find_events(case: ActuatorCase) -> tuple[str, ...]:
    """Return the values of the node's labels mig.config and mig.config.state and the UID of its mig-manager pod, each
    empty if missing. The tuple changes with every event that may change the GPUs."""
    labels, pod = case.node.labels, case.operands.get(Program.MIG_MANAGER)
    mig_labels = labels.get(names.LABEL_MIG_CONFIG, ""), labels.get(names.LABEL_MIG_STATE, "")
    return (*mig_labels, pod.uid if pod is not None else "")


def _find_work(node: NodeView) -> str:
    """Return a clause if mig-manager's state is `pending` or `rebooting`, although no change of ours is in progress.
    Empty for any other state. Call it only for a node without our fence."""
    state = node.labels.get(names.LABEL_MIG_STATE)
    if state not in ("pending", "rebooting"):
        return ""
    return f"mig-manager is working (state {state}), although no change is in progress"


# --- the way back ------------------------------------------------------------------------------------------


def _tell_left(node: NodeView) -> str:
    """Return the end of a sentence that says that the labels of a node are removed: the exception that the device
    plugin's label stays, and why. Empty if the node has no such label. The last change has removed it unless that
    would share the GPUs (`target.without_default_label`). mig-manager's label stays in any case, with the value
    all-disabled, but is not mentioned."""
    if names.LABEL_PLUGIN_CONFIG not in node.labels:
        return ""
    return (
        f" except {names.LABEL_PLUGIN_CONFIG}: without it the device plugin would use ClusterPolicy's"
        " devicePlugin.config.default, which would not be whole GPUs"
    )


LABELS = Actuator(
    needs=frozenset({"device-plugin", "gpu-feature-discovery", "mig-manager", "driver", "container-toolkit"}),
    objections=OBJECTIONS,
    obstacles=OBSTACLES,
    find_labels=_find_labels,
    needs_run=_needs_run,
    find_missing=_find_missing,
    write=_write,
    find_old=_find_old,
    find_trouble=_find_trouble,
    next_look=_next_look,
    find_events=_find_events,
    find_work=_find_work,
    checks=CHECKS,
    find_last_proven=find_last_proven,
    tell_left=_tell_left,
)
