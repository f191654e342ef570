"""How are nodes changed by the GPU Operator or NVIDIA's device-plugin chart, which follow Node labels?"""

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta

from gpusharing.api import names
from gpusharing.api.names import Mode
from gpusharing.planning.snapshot.nvidia import MIG_MANAGER_SWITCH, Operand, Program, StackView
from gpusharing.planning.snapshot.records import Fence
from gpusharing.planning.snapshot.views import NodeView, ObservedView
from gpusharing.planning.vocabulary.commands import Command
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.wanted.actuators.actuator import Actuator, ActuatorCase, Trace, Unfinished, Written
from gpusharing.planning.wanted.assess import needs_two_steps, uses_mps
from gpusharing.planning.wanted.target import Target, explain_deafness, find_last_proven
from gpusharing.planning.wanted.verify import (
    EXCLUSIVE,
    Checked,
    Comparison,
    Source,
    find_entry,
    is_told_mps,
    label_checks,
    name_gpus,
    paused_operands,
    reset_command,
    tell_guest_reset,
)

GAVE_UP = "failed to wait for pods to be deleted"
"""What mig-manager's log says if GPU clients, pods of NVIDIA's or others, did not stop within five minutes. See
mig-parted v0.15.1 pkg/mig/reconfigure/reconfigure.go:172."""
_ENDED = ("success", "failed")


class Labels(Actuator):
    """mig-manager and the device plugin, which follow two labels of the Node.

    nvidia.com/mig.config: mig-manager divides the GPUs and reports in mig.config.state.
    nvidia.com/device-plugin.config: config-manager hands the device plugin and GPU Feature Discovery (GFD) their entry.
    """

    needs = frozenset({"device-plugin", "gpu-feature-discovery", "mig-manager", "driver", "container-toolkit"})
    sources = tuple(source for source in Source if source is not Source.SLICES)

    def objections(self, case: ActuatorCase, target: Target) -> Iterator[Finding]:
        policy = case.stack.cluster_policy
        daemon = policy.mps_daemon if policy is not None else None
        if daemon is not None and target.mode is Mode.MPS and (deaf := explain_deafness(daemon)) is not None:
            yield deaf  # without this objection, the node would be drained before anybody noticed
        if not target.mig_config and case.found_layouts != target.layouts:  # unknown layouts count too
            why = f"ClusterPolicy {MIG_MANAGER_SWITCH} is false"
            if policy is not None and policy.plain is not None:
                cannot = "mig-manager cannot pause the device plugin from NVIDIA's chart"
                why = cannot if policy.plain.mig_manager else "there is no mig-manager"
            text = f"MIG is enabled on {case.node.name} and nothing there can disable it, because {why}"
            yield Finding(Reason.ACTUATOR_MISSING, text)
        if found := _find_daemon_down(case, target):
            yield Finding.of(found, Reason.MPS_DAEMON_NOT_READY)

    def obstacles(self, case: ActuatorCase, target: Target) -> Iterator[Finding]:
        doubt = claim.doubt if (claim := self.find_claim(case)) is not None else None
        if missing := Labels.find_missing(self, case, target, again=False):
            paused = ", ".join(paused_operands(case.node))
            missing += f", which paused {paused} and would start that again" if paused else ""
            yield doubt or Finding(Reason.ACTUATOR_MISSING, f"{missing}; {_where_pods_are(case)}")
        if doubt is not None and target.mig_config and case.node.labels[names.LABEL_MIG_STATE] == "rebooting":
            repair = "Read the log of its pod, then drain the node and reboot it"
            yield replace(doubt, message=f"{doubt.message}. {repair}")

    def find_labels(self, node: NodeView, target: Target) -> dict[str, str]:
        config = target.mig_config or node.labels.get(names.LABEL_MIG_CONFIG, "")
        return {names.LABEL_MIG_CONFIG: config, names.LABEL_PLUGIN_CONFIG: target.plugin_key}

    def needs_run(self, case: ActuatorCase, target: Target) -> bool:
        return self.needs_mig_manager(case, target)

    def needs_mig_manager(self, case: ActuatorCase, target: Target) -> bool:
        if not target.mig_config:
            return False
        present = case.node.labels.get(names.LABEL_MIG_CONFIG)
        return present != target.mig_config or needs_restart(case, target)

    def find_missing(self, case: ActuatorCase, goal: Target, again: bool) -> str:
        pod, repeats = case.operands.get(Program.MIG_MANAGER), again and bool(goal.mig_config)
        if (pod is not None and (repeats or pod.ready)) or not (repeats or self.needs_mig_manager(case, goal)):
            return ""
        return f"no Ready mig-manager pod runs on {case.node.name}"

    def write(self, case: ActuatorCase, fence: Fence, goal: Target, idle: ObservedView | None, again: bool) -> Written:
        node, labels, stack = case.node, case.node.labels, case.stack
        config, state = labels.get(names.LABEL_MIG_CONFIG), labels.get(names.LABEL_MIG_STATE)
        key = labels.get(names.LABEL_PLUGIN_CONFIG, "")
        changed: dict[str, str | None] = {}
        if idle is not None and goal.mig_config and config != goal.mig_config:
            changed[names.LABEL_MIG_CONFIG] = goal.mig_config
            if state not in (None, "rebooting"):
                changed[names.LABEL_MIG_STATE] = None
        if key != goal.plugin_key:
            changed[names.LABEL_PLUGIN_CONFIG] = goal.plugin_key or None
        restart_uid, manager = "", case.operands.get(Program.MIG_MANAGER)
        if goal.mig_config and manager is not None:
            # mig-manager does not react to a label that keeps its value, and may be stuck in a state of its own.
            repeated = again and (state not in _ENDED or config == goal.mig_config)
            restart_uid = manager.uid if repeated or needs_restart(case, goal) else ""
        if find_entry(key, stack) == find_entry(goal.plugin_key, stack):
            gfd_timestamp = fence.gfd_timestamp if again else ""
            fence = replace(fence, restart_uid=restart_uid, daemon_uid="", gfd_timestamp=gfd_timestamp)
            return fence, changed
        daemon_uid, daemon = "", case.operands.get(Program.MPS_DAEMON)
        observed = case.observed
        # With NVIDIA's device-plugin chart, the operator may not delete the daemon's pod (`needs_two_steps`).
        plain = stack.cluster_policy is not None and stack.cluster_policy.plain is not None
        if goal.mode is Mode.MPS and observed is not None and daemon is not None and not plain:
            # Unless it restarts, the daemon keeps its old number of clients, because config-manager does not find its
            # process (docs/design/nvidia.md#b5).
            daemon_uid = daemon.uid if uses_mps(node, observed, stack) else ""
        gfd_timestamp = labels.get(names.LABEL_GFD_TIMESTAMP, "")
        fence = replace(fence, restart_uid=restart_uid, daemon_uid=daemon_uid, gfd_timestamp=gfd_timestamp)
        return fence, changed

    def find_old(self, case: ActuatorCase, fence: Fence) -> tuple[Operand, str] | None:
        manager, daemon = (case.operands.get(program) for program in (Program.MIG_MANAGER, Program.MPS_DAEMON))
        if manager is not None and manager.uid == fence.restart_uid:
            return manager, "mig-manager"
        return (daemon, "the MPS daemon") if daemon is not None and daemon.uid == fence.daemon_uid else None

    def find_trouble(self, case: ActuatorCase, fence: Fence) -> Unfinished | None:
        node, wanted, restart = case.node, fence.target_mig_config, "restarting mig-manager"
        if not wanted:
            return None
        state, label = node.labels.get(names.LABEL_MIG_STATE, ""), node.labels.get(names.LABEL_MIG_CONFIG, "")
        ended, waited = state in _ENDED, (case.now - fence.stage_since).total_seconds()
        # First comes whether the state is about this run at all.
        if ended and case.now < _believed_from(case, fence):
            late = tell_late(case, fence, case.operands.get(Program.MIG_MANAGER))
            message = f"mig-manager is restarting; its state {state} dates from before the restart{late}"
            return Unfinished(Finding(Reason.ACTUATION_IN_PROGRESS, message), final=False)
        if ended and label != wanted:
            # NVIDIA's GPU Operator writes all-disabled if it finds no label (docs/design/nvidia.md#d1).
            who = node.label_rewriters.get(names.LABEL_MIG_CONFIG, "someone")
            message = f"{names.LABEL_MIG_CONFIG} is {label or 'missing'}, not {wanted}: {who} changed it"
            return Unfinished(Finding(Reason.ACTUATOR_FAILED, message), final=True, cure="setting it again")
        paused = paused_operands(node)
        if state == "failed":
            why = f": {case.mig_failure}" if case.mig_failure else "; see the log of its pod"
            observed = case.observed
            pending = observed is not None and any(gpu.mig_pending for gpu in observed.hardware.kinds)
            reset = tell_guest_reset(observed, case.stack) if pending else ""
            # Another run would start the paused operands again. If mig-manager gave up waiting, it has not touched a GPU,
            # so another run helps once the pods are gone. Before 0.15.1 its state stays `pending` instead
            # (docs/design/nvidia.md#a7).
            cure = restart if paused or GAVE_UP in case.mig_failure else ""
            message = f"mig-manager failed to apply {wanted}{why}{reset}"
            return Unfinished(Finding(Reason.ACTUATOR_FAILED, message), final=True, cure=cure)
        if state == "success":
            if not paused:
                return None
            message = f"mig-manager reports success, but operands are still paused: {', '.join(paused)}"
            final = waited >= case.settings.wedge_paused
            return Unfinished(Finding(Reason.OPERANDS_PAUSED, message), final=final, cure=restart)
        limit, doing = case.settings.wedge_pending, "has not started"
        doing = {"rebooting": "is rebooting the node", "pending": "is applying the configuration"}.get(state, doing)
        doing = f"mig-manager {doing}"
        # A node that is away has until the deadline of the change.
        reboot = self.find_claim(case) if state == "rebooting" else None
        if reboot is not None and node.ready and waited >= limit and case.find_doubt(reboot) is not None:
            return Unfinished(
                replace(reboot.doubt, reason=Reason.ACTUATOR_STUCK, stands=False), final=True, cure=restart
            )
        if (late := tell_late(case, fence, case.operands.get(Program.MIG_MANAGER))) and state:
            late = f", says label {names.LABEL_MIG_STATE}={state}{late}"
        if waited < limit or reboot is not None:
            finding = Finding(Reason.ACTUATION_IN_PROGRESS, f"{doing}{late}")
            return Unfinished(finding, final=False, cure=restart)
        # The limit and not the time itself: a message with the seconds so far would be written again on every pass.
        finding = Finding(Reason.ACTUATOR_STUCK, f"{doing}, for more than {limit:.0f} s now{late}")
        return Unfinished(finding, final=True, cure=restart)

    def find_lost(self, case: ActuatorCase, fence: Fence) -> Written | None:
        labels, due = case.node.labels, fence.target_plugin_config
        if (present := labels.get(names.LABEL_PLUGIN_CONFIG, "")) == due:
            return None
        if find_entry(present, case.stack) != find_entry(due, case.stack):  # the plugin and GFD start once more
            fence = replace(fence, gfd_timestamp=labels.get(names.LABEL_GFD_TIMESTAMP, ""))
        return fence, {names.LABEL_PLUGIN_CONFIG: due or None}

    def next_look(self, case: ActuatorCase, fence: Fence) -> datetime | None:
        limits = (case.settings.wedge_paused, case.settings.wedge_pending, case.settings.sign_grace)
        moments = [fence.stage_since + timedelta(seconds=wait) for wait in limits]
        moments.append(_believed_from(case, fence))
        return min((moment for moment in moments if moment > case.now), default=None)

    def find_events(self, case: ActuatorCase) -> tuple[str, ...]:
        labels, pod = case.node.labels, case.operands.get(Program.MIG_MANAGER)
        mig_labels = labels.get(names.LABEL_MIG_CONFIG, ""), labels.get(names.LABEL_MIG_STATE, "")
        return (*mig_labels, pod.uid if pod is not None else "")

    def find_work(self, node: NodeView) -> str:
        state = node.labels.get(names.LABEL_MIG_STATE)
        if state not in ("pending", "rebooting"):
            return ""
        return f"mig-manager is working (state {state}), although the operator has started no run"

    def find_claim(self, case: ActuatorCase) -> Trace | None:
        node, settings, pod = case.node, case.settings, case.operands.get(Program.MIG_MANAGER)
        if not self.find_work(node):
            return None
        state = node.labels[names.LABEL_MIG_STATE]
        does = "rebooting" if state == "rebooting" else "at work on"
        claim = f"label {names.LABEL_MIG_STATE}={state} says that mig-manager is {does} {node.name}"
        sign = tell_pod(pod)
        # After a boot its pod may wait long for the driver. Once there is one, it begins a run.
        if state == "pending" and node.ready and not (pod is not None and pod.ready):
            text = f"{claim}, but {sign}; {_where_pods_are(case)}"
            missing = Finding(Reason.ACTUATOR_MISSING, text, stands=True)
            return Trace(f"{claim} without a pod", settings.sign_grace, missing)
        lasts = f"for more than {settings.wedge_pending:.0f} s; {sign}"
        if state == "rebooting":
            lasts = f"but the node is Ready and has not booted {lasts}"
        return Trace(claim, settings.wedge_pending, Finding(Reason.ACTUATOR_BUSY, f"{claim}, {lasts}", stands=True))

    def find_down(self, case: ActuatorCase, target: Target) -> Trace | None:
        if target.mode is not Mode.MPS:
            return None
        name, policy, pod = case.node.name, case.stack.cluster_policy, case.operands.get(Program.MPS_DAEMON)
        claim = f"the GPUs of {name} are in compute mode {EXCLUSIVE}, as if an MPS daemon served them"
        limit = case.settings.sign_grace
        if pod is None:
            # With NVIDIA's own chart, pods that a value of the chart names otherwise are not seen.
            if policy is None or policy.mps_daemon is None:
                return None
            where = f"label app={Program.MPS_DAEMON} in namespace {case.settings.gpu_operator_namespace}"
            text = f"{claim}, but no pod of one runs there; check the DaemonSet of the pods with {where}"
            return Trace(claim, limit, Finding(Reason.MPS_NOT_RUNNING, text))
        until = steady_from(case, pod, claim)
        if not pod.down and until is None:
            return None
        show, restart = _restart_daemon(pod)
        if until is not None:
            text = f"the MPS daemon in pod {pod.name} on {name} started a moment ago, and may not keep running. {show}"
            return Trace(claim, limit, Finding(Reason.MPS_NOT_RUNNING, text, until))
        text = (
            f"{claim}, but the one in pod {pod.name} is not running: the mode is what it left behind, and no MPS client can"
            f" start. {show}. To restart it, run: {restart}"
        )
        return Trace(claim, limit, Finding(Reason.MPS_NOT_RUNNING, text, commands=(restart,)))

    def checks(self, compared: Comparison) -> Checked:
        return label_checks(compared)

    def find_last_proven(self, node: NodeView, observed: ObservedView, stack: StackView) -> Target | str:
        return find_last_proven(node, observed, stack)

    def tell_left(self, node: NodeView) -> str:
        # The last change removes the label unless that would share the GPUs (`target.without_default_label`). mig-manager's
        # label always stays, with the value all-disabled, but is not mentioned.
        if names.LABEL_PLUGIN_CONFIG not in node.labels:
            return ""
        return (
            f" except {names.LABEL_PLUGIN_CONFIG}: without it the device plugin would use ClusterPolicy's"
            " devicePlugin.config.default, which would not be whole GPUs"
        )


def _find_daemon_down(case: ActuatorCase, target: Target) -> str | Finding:
    """Return why nobody would reset the compute mode of the GPUs if the node left MPS now.

    Only an MPS daemon that ends cleanly does (docs/design/nvidia.md#b5). Once the labels are written it is too late to
    ask.
    """
    node, observed = case.node, case.observed
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
        show, restart = _restart_daemon(pod)
        message = (
            f"the MPS daemon in pod {pod.name} is not running, so {effect}. {show}. To restart it, run:"
            f" {restart}. If it cannot start, {reset}"
        )
        return Finding(Reason.MPS_DAEMON_NOT_READY, message, commands=(restart,))
    # An operator that takes over knows only what it has seen itself, and must not end a drain for that.
    since = pod.ready_since if node.fence is None else None
    if since is not None and case.now < (stable := since + timedelta(seconds=case.settings.restart_grace)):
        text = f"the MPS daemon in pod {pod.name} started a moment ago, and may not keep running"
        return Finding(Reason.MPS_DAEMON_NOT_READY, text, stable)
    return ""


def _restart_daemon(pod: Operand) -> tuple[str, Command]:
    """Return how to see why an MPS daemon does not run, and the command that restarts it."""
    show = Command.of(f"kubectl -n {pod.namespace} describe pod {pod.name}")
    restart = Command.of(f"kubectl -n {pod.namespace} delete pod {pod.name}", effects=())  # it has no clients
    return f"See why: {show}", restart


def needs_restart(case: ActuatorCase, target: Target) -> bool:
    """Whether only a new mig-manager pod can repair the node: its label is right already (docs/design/nvidia.md#a6)."""
    labels = case.node.labels
    if not target.mig_config or labels.get(names.LABEL_MIG_CONFIG) != target.mig_config:
        return False
    return (
        labels.get(names.LABEL_MIG_STATE) != "success"
        or bool(paused_operands(case.node))
        or case.found_layouts != target.layouts
    )


def steady_from(case: ActuatorCase, pod: Operand, claim: str) -> datetime | None:
    """Return when a pod that was down and has started will count as running; None if it does, or is down."""
    if case.first_seen(claim) is None or pod.ready_since is None:
        return None
    steady = pod.ready_since + timedelta(seconds=case.settings.restart_grace)
    return steady if case.now < steady else None


def tell_pod(pod: Operand | None) -> str:
    """Return a clause that says whether the program's pod on the node shows a sign of life."""
    return f"its pod {pod.name} is {'' if pod.ready else 'not '}Ready" if pod is not None else "it has no pod there"


def tell_late(case: ActuatorCase, fence: Fence, pod: Operand | None) -> str:
    """Return a clause on the missing pod of a program that a run has awaited for long; empty while it may just start."""
    due = fence.stage_since + timedelta(seconds=case.settings.sign_grace)
    there = (pod is not None and pod.ready) or not case.node.ready
    return "" if there or case.now < due else f"; {tell_pod(pod)}"


def _where_pods_are(case: ActuatorCase) -> str:
    where = f"label app={Program.MIG_MANAGER} in namespace {case.settings.gpu_operator_namespace}"
    return f"check the pods with {where}"


def _believed_from(case: ActuatorCase, fence: Fence) -> datetime:
    """Return the time from which mig-manager's state is about this attempt.

    It is the deadline until the replacing pod is Ready: the old pod may use its whole grace period, and the next one
    starts only after that.
    """
    pod = case.operands.get(Program.MIG_MANAGER)
    if not fence.restart_uid:
        return case.now
    if pod is None or pod.uid == fence.restart_uid or not pod.ready:
        return fence.deadline
    return (pod.ready_since or fence.stage_since) + timedelta(seconds=case.settings.restart_grace)


LABELS = Labels()
