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
from gpusharing.planning.vocabulary.findings import Finding
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
from gpusharing.planning.wanted.assess import needs_two_steps, uses_mps
from gpusharing.planning.wanted.target import Target, find_last_proven
from gpusharing.planning.wanted.toolversions import find_deafness, find_remedy
from gpusharing.planning.wanted.verify import (
    CHECKS,
    EXCLUSIVE,
    find_entry,
    is_told_mps,
    name_gpus,
    paused_operands,
    reset_command,
    tell_guest_reset,
)

# --- what stands in the way --------------------------------------------------------------------------------


def _deaf_mps(case: ActuatorCase, target: Target) -> str:
    """Return why no label can turn MPS on, with the remedy, if the target is MPS and the GPU Operator's MPS daemon is
    known to ignore labels. Empty otherwise, also if there is no such daemon. Without this objection, the node would
    be drained before anybody noticed."""
    policy = case.stack.cluster_policy
    daemon = policy.mps_daemon if policy is not None else None
    if daemon is None or target.mode is not Mode.MPS or not (why := find_deafness(daemon)):
        return ""
    return f"no label can enable MPS with {daemon.plugin}: {why}. {find_remedy(daemon).text}"


def _nobody_ends_mig(case: ActuatorCase, target: Target) -> str:
    """Return a message if the target has no value for mig-manager's label and the GPUs do not have the target's
    layouts, because MIG is then on and no mig-manager would switch it off. The message is also returned if the
    layouts are unknown. Empty otherwise."""
    policy = case.stack.cluster_policy
    if target.mig_config or case.found_layouts == target.layouts:
        return ""
    why = f"ClusterPolicy {MIG_MANAGER_SWITCH} is false"
    if policy is not None and policy.plain is not None:
        cannot = "mig-manager cannot pause the device plugin from NVIDIA's chart"
        why = cannot if policy.plain.mig_manager else "there is no mig-manager"
    return f"MIG is enabled on {case.node.name} and nothing there can disable it, because {why}"


def _daemon_down(case: ActuatorCase, target: Target) -> str | Finding:
    """Return why nobody would reset the compute mode of the GPUs if the node left MPS now: only an MPS daemon that ends
    cleanly does (docs/design/nvidia.md#b5). Once the labels are written it is too late to ask."""
    node, observed = case.node, case.gpunode.observed if case.gpunode else None
    started = node.fence is not None and node.fence.stage == "actuating"
    if observed is None or started or not is_told_mps(node, case.stack):
        return ""
    stays = target.mode is Mode.MPS and not needs_two_steps(node, observed, target, case.stack)
    exclusive = [gpu.index for gpu in observed.gpus if gpu.compute_mode == EXCLUSIVE]
    if stays or not exclusive:
        return ""
    pod = case.operands.get(Program.MPS_DAEMON)
    effect = f"{name_gpus(exclusive)} would stay in compute mode {EXCLUSIVE} when {node.name} leaves MPS"
    reset = f"run on the node: {reset_command(exclusive, observed.hardware)}"
    if pod is None:
        policy = case.stack.cluster_policy
        # With NVIDIA's own chart, pods that a value of the chart names otherwise are not seen.
        seen = policy is not None and policy.mps_daemon is not None
        return f"no pod of the MPS daemon runs on {node.name}, so {effect}; {reset}" if seen else ""
    if pod.down:
        return (
            f"the MPS daemon in pod {pod.name} is not running, so {effect}. See why: kubectl -n {pod.namespace}"
            f" describe pod {pod.name}. To restart it, run: kubectl -n {pod.namespace} delete pod {pod.name}. If it"
            f" cannot start, {reset}"
        )
    # An operator that takes over knows only what it has seen itself, and must not end a drain for that.
    since = pod.ready_since if node.fence is None else None
    if since is not None and case.now < (stable := since + timedelta(seconds=case.settings.restart_grace)):
        text = f"the MPS daemon in pod {pod.name} started a moment ago, and may not keep running"
        return Finding(Reason.MPS_DAEMON_NOT_READY, text, stable)
    return ""


def _rebooting(case: ActuatorCase, target: Target) -> str:
    """Return the message that mig-manager is rebooting the node, if its state is `rebooting` and the target needs
    mig-manager. Empty otherwise. The message says that no change is in progress, so call this only if none is."""
    rebooting = case.node.labels.get(names.LABEL_MIG_STATE, "") == "rebooting"
    if not rebooting or not target.mig_config:
        return ""
    return "mig-manager is rebooting the node, although no change is in progress"


def _no_mig_manager(case: ActuatorCase, target: Target) -> str:
    """Return the message that a first run to the target needs mig-manager and no Ready mig-manager pod is on the node.
    Empty if one is, or if the run does not need mig-manager."""
    missing = _find_missing(case, target, again=False)
    where = f"label app={Program.MIG_MANAGER} in namespace {case.settings.gpu_operator_namespace}"
    return f"{missing}; check the pods with {where}" if missing else ""


OBJECTIONS = (
    Obstacle(_deaf_mps, Reason.MPS_NOT_SWITCHABLE),
    Obstacle(_nobody_ends_mig, Reason.ACTUATOR_MISSING),
    Obstacle(_daemon_down, Reason.MPS_DAEMON_NOT_READY),
)
OBSTACLES = (
    Obstacle(_rebooting, Reason.ACTUATOR_BUSY),
    Obstacle(_no_mig_manager, Reason.ACTUATOR_MISSING),
)
"""The first match wins."""


# --- what a run writes -------------------------------------------------------------------------------------


def _find_labels(node: NodeView, target: Target) -> dict[str, str]:
    """Return the values that the labels of mig-manager and of the device plugin have on a node with this target, by
    label. The device plugin's value is empty if its label must be absent. If the target does not need mig-manager,
    the value of mig-manager's label is its present one, or empty if the label is missing."""
    config = target.mig_config or node.labels.get(names.LABEL_MIG_CONFIG, "")
    return {names.LABEL_MIG_CONFIG: config, names.LABEL_PLUGIN_CONFIG: target.plugin_key}


def _needs_run(case: ActuatorCase, target: Target) -> bool:
    """Whether the target has a value for mig-manager's label and mig-manager must work towards it, either because the
    label has another value or because the node still differs (`needs_restart`)."""
    if not target.mig_config:
        return False
    return case.node.labels.get(names.LABEL_MIG_CONFIG) != target.mig_config or needs_restart(case, target)


def needs_restart(case: ActuatorCase, target: Target) -> bool:
    """Whether mig-manager's label already has the target's value and the node still differs, so that only a new
    mig-manager pod can repair the node (docs/design/nvidia.md#a6). The node differs if mig-manager does not report
    success, if an operand is paused, or if the GPUs have other or unknown layouts. False if the target does not need
    mig-manager."""
    labels = case.node.labels
    if not target.mig_config or labels.get(names.LABEL_MIG_CONFIG) != target.mig_config:
        return False
    return (
        labels.get(names.LABEL_MIG_STATE) != "success"
        or bool(paused_operands(case.node))
        or case.found_layouts != target.layouts
    )


def _find_missing(case: ActuatorCase, goal: Target, again: bool) -> str:
    """Return the message that the node has no mig-manager pod that a run to `goal` can use, or an empty string if it
    has one or the run needs none. A first run needs a Ready pod if `_needs_run` holds. A repeated run needs a pod,
    Ready or not, if the goal has a value for mig-manager's label."""
    pod, repeats = case.operands.get(Program.MIG_MANAGER), again and bool(goal.mig_config)
    if (pod is not None and (repeats or pod.ready)) or not (repeats or _needs_run(case, goal)):
        return ""
    return f"no Ready mig-manager pod runs on {case.node.name}"


def _write(case: ActuatorCase, fence: Fence, goal: Target, idle: ObservedView | None, again: bool) -> Writing:
    """Return what a run to `goal` writes: the labels that change, the UIDs of the mig-manager pod and the MPS daemon
    pod that must be deleted, and GFD's present start time. If the device plugin's entry does not change, the UID of
    the MPS daemon's pod is empty; the start time is then empty for a first run, and taken from the fence for a
    repeated one."""
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
    """Return the labels that must change to name the goal, by key with their new values; None removes a label.

    mig-manager's label is written only with `idle`, the reading that proved the node idle. mig-manager's state label
    is then removed too, unless it is `rebooting`.
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
    """Return the UID of the mig-manager pod that must be deleted before the run begins. Empty if none must be, if the
    goal does not need mig-manager, or if there is no pod.

    A repeated run (`again`) needs a new pod if mig-manager's state is neither `success` nor `failed`, because
    mig-manager is then stuck. Otherwise one is needed only if the label already has the goal's value, to which
    mig-manager does not react, and in a first run only if the node differs (`needs_restart`).
    """
    pod, labels = case.operands.get(Program.MIG_MANAGER), case.node.labels
    if not goal.mig_config or pod is None:
        return ""
    stuck = again and labels.get(names.LABEL_MIG_STATE) not in _ENDED
    same = again and labels.get(names.LABEL_MIG_CONFIG) == goal.mig_config
    return pod.uid if stuck or same or needs_restart(case, goal) else ""


def _daemon_to_restart(case: ActuatorCase, target: Target) -> str:
    """Return the UID of the MPS daemon's pod if the target is MPS and the node already uses MPS. Unless it restarts,
    the daemon keeps its old number of clients, because config-manager does not find its process
    (docs/design/nvidia.md#b5). Empty otherwise, and also if the GPUs are unknown or there is no such pod. Empty with
    NVIDIA's device-plugin chart, where the operator may not delete the pod (`needs_two_steps`)."""
    observed, daemon = (
        case.gpunode.observed if case.gpunode else None,
        case.operands.get(Program.MPS_DAEMON),
    )
    if target.mode is not Mode.MPS or observed is None or daemon is None:
        return ""
    policy = case.stack.cluster_policy
    if policy is not None and policy.plain is not None:
        return ""
    return daemon.uid if uses_mps(case.node, observed, case.stack) else ""


def _find_old(case: ActuatorCase, fence: Fence) -> tuple[Operand, str] | None:
    """Return the first pod that the fence names for deletion and that still exists, with the name of its program for
    messages. mig-manager's pod comes before that of the MPS daemon. None if neither exists."""
    manager, daemon = (case.operands.get(program) for program in (Program.MIG_MANAGER, Program.MPS_DAEMON))
    if manager is not None and manager.uid == fence.restart_uid:
        return manager, "mig-manager"
    return (daemon, "the MPS daemon") if daemon is not None and daemon.uid == fence.daemon_uid else None


# --- how a run goes ----------------------------------------------------------------------------------------


def _find_trouble(case: ActuatorCase, fence: Fence) -> Trouble | None:
    """Return the trouble that mig-manager shows, by the first of SIGNS that applies. None if none applies, or if the
    change does not need mig-manager. Even a success is trouble if it dates from before this run, if the label has
    another value than the fence names, or if operands are still paused. Some signs depend on the time since the latest
    run began."""
    return find_sign(SIGNS, case, fence) if fence.target_mig_config else None


def _state(case: ActuatorCase) -> str:
    """Return the value of the node's mig.config.state label. Empty if it has none."""
    return case.node.labels.get(names.LABEL_MIG_STATE, "")


def _restarts(case: ActuatorCase, fence: Fence) -> str:
    """Return the message that mig-manager is restarting and its state dates from before the restart. Empty if the
    state is about this run, or is neither `success` nor `failed`."""
    state = _state(case)
    if state not in _ENDED or case.now >= _believed_from(case, fence):
        return ""
    return f"mig-manager is restarting; its state {state} dates from before the restart"


def _overwritten(case: ActuatorCase, fence: Fence) -> str:
    """Return the message that somebody overwrote mig-manager's label during the change, if mig-manager has succeeded
    or failed and the label does not have the value that the fence names. Empty otherwise. NVIDIA's GPU Operator
    writes all-disabled if it finds no label (docs/design/nvidia.md#d1)."""
    label, wanted = case.node.labels.get(names.LABEL_MIG_CONFIG, ""), fence.target_mig_config
    if _state(case) not in _ENDED or label == wanted:
        return ""
    who = case.node.label_rewriters.get(names.LABEL_MIG_CONFIG, "someone")
    return f"{names.LABEL_MIG_CONFIG} is {label or 'missing'}, not {wanted}: {who} changed it"


def _failed_midway(case: ActuatorCase, fence: Fence) -> str:
    """Return the message that mig-manager failed (`_failed`) if it did and left operands paused, else an empty string.
    mig-manager would start these operands again at the end of another run."""
    return _failed(case, fence) if paused_operands(case.node) else ""


def _gave_up_waiting(case: ActuatorCase, fence: Fence) -> str:
    """Return the message that mig-manager failed because pods did not stop in time, if its log says so, else an empty
    string. It has not touched a GPU by then, so another run helps once the pods are gone. Before 0.15.1 its state
    stays `pending` instead, which `_stuck` finds (docs/design/nvidia.md#a7)."""
    return _failed(case, fence) if GAVE_UP in case.mig_failure else ""


def _failed(case: ActuatorCase, fence: Fence) -> str:
    """Return the message that mig-manager failed to apply our configuration. It contains the last line of
    mig-manager's log, or tells the reader to look there if the line is unknown, and ends with the clause of
    `_pending`. Empty if the state is not `failed`."""
    if _state(case) != "failed":
        return ""
    why = f": {case.mig_failure}" if case.mig_failure else "; see the log of its pod"
    return f"mig-manager failed to apply {fence.target_mig_config}{why}{_pending(case)}"


def _pending(case: ActuatorCase) -> str:
    """Return the clause of `tell_guest_reset` if the MIG mode of a GPU is pending: which setting helps if a virtual
    machine cannot reset the GPU. Empty if no mode is pending, if the GPUs are unknown, or if that function returns
    nothing."""
    observed = case.gpunode.observed if case.gpunode else None
    waits = observed is not None and any(gpu.mig_pending for gpu in observed.hardware.kinds)
    return tell_guest_reset(observed, case.stack) if waits else ""


def _paused_for_long(case: ActuatorCase, fence: Fence) -> str:
    """Return the message that operands are still paused although mig-manager reports success (`_paused`), once
    `wedge_paused` seconds have passed since the latest run began. Empty before that, or if `_paused` finds nothing."""
    waited = (case.now - fence.stage_since).total_seconds()
    return _paused(case, fence) if waited >= case.settings.wedge_paused else ""


def _paused(case: ActuatorCase, fence: Fence) -> str:
    """Return the message that mig-manager reports success but operands are still paused, with their names, or an empty
    string if that is not the case. `fence` is ignored."""
    paused = paused_operands(case.node)
    if _state(case) != "success" or not paused:
        return ""
    return f"mig-manager reports success, but operands are still paused: {', '.join(paused)}"


def _stuck(case: ActuatorCase, fence: Fence) -> str:
    """Return the message that mig-manager has not finished within `wedge_pending` seconds after the latest run began.
    Empty before that time, and also if mig-manager has succeeded or failed or is rebooting the node. Only the
    deadline of the change limits a reboot."""
    limit = case.settings.wedge_pending
    if (case.now - fence.stage_since).total_seconds() < limit or _state(case) == "rebooting":
        return ""
    # The limit and not the time itself: a message with the seconds so far would be written again on every pass.
    return f"{doing}, for more than {limit:.0f} s now" if (doing := _at_work(case, fence)) else ""


def _at_work(case: ActuatorCase, fence: Fence) -> str:
    """Return a clause about what mig-manager is doing, or an empty string if it has succeeded or failed. `fence` is
    ignored. Any other state than these two, `pending` and `rebooting` means that it has not started."""
    state = _state(case)
    doing = {"rebooting": "is rebooting the node", "pending": "is applying the configuration"}.get(
        state, "has not started"
    )
    return "" if state in _ENDED else f"mig-manager {doing}"


GAVE_UP = "failed to wait for pods to be deleted"
"""What mig-manager's log says if pods of NVIDIA's or other GPU clients did not stop within five minutes (mig-parted
v0.15.1 pkg/mig/reconfigure/reconfigure.go:172)."""
_ENDED = ("success", "failed")
_RESTART = "restarting mig-manager"
SIGNS: tuple[Sign, ...] = (
    Sign(_restarts, Reason.ACTUATION_IN_PROGRESS, final=False, cure=""),
    Sign(_overwritten, Reason.ACTUATOR_FAILED, final=True, cure="setting it again"),
    Sign(_failed_midway, Reason.ACTUATOR_FAILED, final=True, cure=_RESTART),
    Sign(_gave_up_waiting, Reason.ACTUATOR_FAILED, final=True, cure=_RESTART),
    Sign(_failed, Reason.ACTUATOR_FAILED, final=True, cure=""),
    Sign(_paused_for_long, Reason.OPERANDS_PAUSED, final=True, cure=_RESTART),
    Sign(_paused, Reason.OPERANDS_PAUSED, final=False, cure=_RESTART),
    Sign(_stuck, Reason.ACTUATOR_STUCK, final=True, cure=_RESTART),
    Sign(_at_work, Reason.ACTUATION_IN_PROGRESS, final=False, cure=_RESTART),
)
"""The first match wins. First comes whether the state is about this run at all."""


def _believed_from(case: ActuatorCase, fence: Fence) -> datetime:
    """Return the time from which mig-manager's state is about this attempt. That is now if the attempt needed no
    restart, else `restart_grace` seconds after the replacing pod became Ready, or after the latest run began if it
    is unknown since when that pod has been Ready. Until that pod is Ready, return the deadline of the fence.

    The old pod may use its whole grace period, and the next one starts only after that.
    """
    pod = case.operands.get(Program.MIG_MANAGER)
    if not fence.restart_uid:
        return case.now
    if pod is None or pod.uid == fence.restart_uid or not pod.ready:
        return fence.deadline
    return (pod.ready_since or fence.stage_since) + timedelta(seconds=case.settings.restart_grace)


def _next_look(case: ActuatorCase, fence: Fence) -> datetime | None:
    """Return when the passing of time alone may change the result of `_find_trouble`, or None if it will not. Three
    moments count, and the earliest that is in the future is returned: `wedge_paused` and `wedge_pending` seconds
    after the latest run began, and `_believed_from`."""
    settings = case.settings
    moments = [
        fence.stage_since + timedelta(seconds=wait)
        for wait in (settings.wedge_paused, settings.wedge_pending)
    ]
    moments.append(_believed_from(case, fence))
    return min((moment for moment in moments if moment > case.now), default=None)


def _find_events(case: ActuatorCase) -> tuple[str, ...]:
    """Return the values of the node's labels mig.config and mig.config.state and the UID of its mig-manager pod. Each
    is empty if missing. The tuple changes with every event that may change the GPUs."""
    labels, pod = case.node.labels, case.operands.get(Program.MIG_MANAGER)
    mig_labels = labels.get(names.LABEL_MIG_CONFIG, ""), labels.get(names.LABEL_MIG_STATE, "")
    return (*mig_labels, pod.uid if pod is not None else "")


def _find_work(node: NodeView) -> str:
    """Return a clause if mig-manager's state is `pending` or `rebooting`, although no run of ours is in progress. Empty
    for any other state. Call it only for a node on which we have started no run."""
    state = node.labels.get(names.LABEL_MIG_STATE)
    if state not in ("pending", "rebooting"):
        return ""
    return f"mig-manager is working (state {state}), although the operator has started no run"


# --- the way back ------------------------------------------------------------------------------------------


def _tell_left(node: NodeView) -> str:
    """Return the end of the sentence that says which labels of a node are removed: all except the device plugin's
    label, with the reason. Empty if the node does not have that label, which the last change removes unless that
    would share the GPUs (`target.without_default_label`). mig-manager's label always stays, with the value
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
