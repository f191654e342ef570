"""Which programs change a node, and how: what is written for them, how do they show what they do, what proves it?

An actuator is the one of an installation (docs/adr/0075-actuators.md).
"""

from collections.abc import Iterator, Mapping
from dataclasses import field, replace
from datetime import datetime, timedelta
from typing import TypeAlias

from gpusharing.api import names
from gpusharing.api.names import Mode
from gpusharing.planning.gpus.geometry import Layout
from gpusharing.planning.snapshot.nvidia import MIG_MANAGER_SWITCH, Operand, Program, StackView
from gpusharing.planning.snapshot.records import Fence
from gpusharing.planning.snapshot.views import GPUNodeView, NodeView, ObservedView, PlanSettings
from gpusharing.planning.vocabulary.commands import Command
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.vocabulary.values import value
from gpusharing.planning.wanted.objects import find_unrequestable
from gpusharing.planning.wanted.target import Target, explain_deafness
from gpusharing.planning.wanted.verify import (
    EXCLUSIVE,
    Checked,
    Comparison,
    Source,
    agent_checks,
    compute_mode_checks,
    find_entry,
    find_slice_mismatch,
    is_told_mps,
    is_unknown,
    label_checks,
    mig_checks,
    name_gpus,
    needs_two_steps,
    only_name_differs,
    paused_operands,
    reset_command,
    tell_guest_reset,
    uses_mps,
)


@value
class Trace:
    """What a program left on a node, which is believed only for a while (docs/design/transition.md#traces)."""

    claim: str
    """Who says what by it, as a clause; another one once the program writes anew."""
    limit: float
    """For how many seconds it is believed in one boot of the node."""
    doubt: Finding
    """What is said after that: the claim, and which sign that the program lives is missing."""


@value
class ActuatorCase:
    """The part of a node's case (docs/design/glossary.md#case) that its actuator may know."""

    node: NodeView
    gpunode: GPUNodeView | None
    operands: Mapping[Program, Operand]
    """The pods of NVIDIA's programs on the node that we may restart. A program without a pod there is left out."""
    mig_failure: str
    """The last line of mig-manager's log after it failed; empty if it has not, or the log could not be read."""
    stack: StackView
    settings: PlanSettings
    now: datetime = field(compare=False)
    seen_since: Mapping[tuple[str, str], datetime]
    """Since when this process has seen what of the node (`PassMemory.seen_since`)."""

    @property
    def observed(self) -> ObservedView | None:
        return self.gpunode.observed if self.gpunode else None

    @property
    def found_layouts(self) -> tuple[Layout | None, ...]:
        return self.observed.hardware.layouts if self.observed else ()

    def first_seen(self, claim: str) -> datetime | None:
        return self.seen_since.get((self.node.boot_id, claim))

    def believes_until(self, trace: Trace) -> datetime:
        return (self.first_seen(trace.claim) or self.now) + timedelta(seconds=trace.limit)

    def find_doubt(self, trace: Trace | None) -> Finding | None:
        """Return what is said about the trace, if it is not believed any more."""
        return trace.doubt if trace is not None and self.believes_until(trace) <= self.now else None


Written: TypeAlias = tuple[Fence, Mapping[str, str | None]]
"""The fence, and the labels to set, or None to remove one."""


@value
class Unfinished(Finding):
    """What the programs of an actuator show while a run is not done, or after it has failed."""

    final: bool = True
    """Whether waiting longer changes nothing."""
    cure: str = ""
    """The first step of another run, as shown to people. Empty if another run would not help."""


GAVE_UP = "failed to wait for pods to be deleted"
"""What mig-manager's log says if GPU clients, pods of NVIDIA's or others, did not stop within five minutes. See
mig-parted v0.15.1 pkg/mig/reconfigure/reconfigure.go:172."""
_ENDED = ("success", "failed")


class Actuator:
    """mig-manager and the device plugin of the GPU Operator or of NVIDIA's chart, which follow two labels of the Node.

    nvidia.com/mig.config: mig-manager divides the GPUs and reports in mig.config.state.
    nvidia.com/device-plugin.config: config-manager hands the device plugin and GPU Feature Discovery (GFD) their entry.

    Another actuator overrides the answers in which it differs. None keeps state: what must survive is in the fence.
    """

    needs: frozenset[str] = frozenset(
        {"device-plugin", "gpu-feature-discovery", "mig-manager", "driver", "container-toolkit"}
    )
    """The programs without which it cannot change, serve or prove a node, as labels in `requirements.REQUIREMENTS`."""
    sources: tuple[Source, ...] = tuple(source for source in Source if source is not Source.SLICES)
    """The sources of proof that `checks` queries."""

    def objections(self, case: ActuatorCase, target: Target) -> Iterator[Finding]:
        """Yield why it can never reach a target here; asked from the start to the last run, and before a rollback."""
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
        """Yield what else keeps a change of a node from beginning."""
        doubt = claim.doubt if (claim := self.find_claim(case)) is not None else None
        if missing := Actuator.find_missing(self, case, target, again=False):
            paused = ", ".join(paused_operands(case.node))
            missing += f", which paused {paused} and would start that again" if paused else ""
            yield doubt or Finding(Reason.ACTUATOR_MISSING, f"{missing}; {_check_pods(case, Program.MIG_MANAGER)}")
        if doubt is not None and target.mig_config and case.node.labels[names.LABEL_MIG_STATE] == "rebooting":
            repair = "Read the log of its pod, then drain the node and reboot it"
            yield replace(doubt, message=f"{doubt.message}. {repair}")

    def find_labels(self, node: NodeView, target: Target) -> dict[str, str]:
        """Return the value of each of its labels for the target: empty if absent, the present one if not written."""
        config = target.mig_config or node.labels.get(names.LABEL_MIG_CONFIG, "")
        return {names.LABEL_MIG_CONFIG: config, names.LABEL_PLUGIN_CONFIG: target.plugin_key}

    def needs_run(self, case: ActuatorCase, target: Target) -> bool:
        """Whether the target can be reached only by a run on an idle node."""
        return self.needs_mig_manager(case, target)

    def needs_mig_manager(self, case: ActuatorCase, target: Target) -> bool:
        if not target.mig_config:
            return False
        present = case.node.labels.get(names.LABEL_MIG_CONFIG)
        return present != target.mig_config or needs_restart(case, target)

    def find_missing(self, case: ActuatorCase, goal: Target, again: bool) -> str:
        """Return which of its pods the node lacks for a run to `goal` or, with `again`, for a repetition."""
        pod, repeats = case.operands.get(Program.MIG_MANAGER), again and bool(goal.mig_config)
        if (pod is not None and (repeats or pod.ready)) or not (repeats or self.needs_mig_manager(case, goal)):
            return ""
        return f"no Ready mig-manager pod runs on {case.node.name}"

    def write(self, case: ActuatorCase, fence: Fence, goal: Target, idle: ObservedView | None, again: bool) -> Written:
        """Return what a run to `goal`, or a repetition of it, writes at the point of no return.

        In the fence, each of `restart_uid`, `daemon_uid` and `gfd_timestamp` must be set or emptied. `idle` is the
        reading that proved the node idle, or None for a plugin restart, which needs no idle node.
        """
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
        same = find_entry(key, stack) == find_entry(goal.plugin_key, stack)
        daemon_uid, daemon, observed = "", case.operands.get(Program.MPS_DAEMON), case.observed
        # With NVIDIA's device-plugin chart, the operator may not delete the daemon's pod (`needs_two_steps`).
        plain = stack.cluster_policy is not None and stack.cluster_policy.plain is not None
        if not same and goal.mode is Mode.MPS and observed is not None and daemon is not None and not plain:
            # Unless it restarts, the daemon keeps its old number of clients, because config-manager does not find its
            # process (docs/design/nvidia.md#b5).
            keeps = only_name_differs(Comparison(node, observed, goal, stack))
            daemon_uid = daemon.uid if uses_mps(node, observed, stack) and not keeps else ""
        gfd_timestamp = labels.get(names.LABEL_GFD_TIMESTAMP, "")
        if same or is_unknown(key, stack):  # GFD may have loaded the goal's entry before, and then does not restart
            gfd_timestamp = fence.gfd_timestamp if again else ""
        fence = replace(fence, restart_uid=restart_uid, daemon_uid=daemon_uid, gfd_timestamp=gfd_timestamp)
        return fence, changed

    def find_old(self, case: ActuatorCase, fence: Fence) -> tuple[Operand, str] | None:
        """Return the pod that must be deleted next for this run to go on, and its name for people."""
        manager, daemon = (case.operands.get(program) for program in (Program.MIG_MANAGER, Program.MPS_DAEMON))
        if manager is not None and manager.uid == fence.restart_uid:
            return manager, "mig-manager"
        return (daemon, "the MPS daemon") if daemon is not None and daemon.uid == fence.daemon_uid else None

    def find_trouble(self, case: ActuatorCase, fence: Fence) -> Unfinished | None:
        """Return None if the run has succeeded, or if it involves no program that could fail."""
        node, wanted, restart = case.node, fence.target_mig_config, "restarting mig-manager"
        if not wanted:
            return None
        state, label = node.labels.get(names.LABEL_MIG_STATE, ""), node.labels.get(names.LABEL_MIG_CONFIG, "")
        ended, waited = state in _ENDED, (case.now - fence.stage_since).total_seconds()
        # First comes whether the state is about this run at all.
        if ended and case.now < _believed_from(case, fence):
            late = tell_late(case, fence, case.operands.get(Program.MIG_MANAGER))
            message = f"mig-manager is restarting; its state {state} dates from before the restart{late}"
            return Unfinished(Reason.ACTUATION_IN_PROGRESS, message, final=False)
        if ended and label != wanted:
            # NVIDIA's GPU Operator writes all-disabled if it finds no label (docs/design/nvidia.md#d1).
            who = node.label_rewriters.get(names.LABEL_MIG_CONFIG, "someone")
            message = f"{names.LABEL_MIG_CONFIG} is {label or 'missing'}, not {wanted}: {who} changed it"
            return Unfinished(Reason.ACTUATOR_FAILED, message, cure="setting it again")
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
            return Unfinished(Reason.ACTUATOR_FAILED, f"mig-manager failed to apply {wanted}{why}{reset}", cure=cure)
        if state == "success":
            if not paused:
                return None
            message = f"mig-manager reports success, but operands are still paused: {', '.join(paused)}"
            final = waited >= case.settings.wedge_paused
            return Unfinished(Reason.OPERANDS_PAUSED, message, final=final, cure=restart)
        limit, doing = case.settings.wedge_pending, "has not started"
        doing = {"rebooting": "is rebooting the node", "pending": "is applying the configuration"}.get(state, doing)
        doing = f"mig-manager {doing}"
        # A node that is away has until the deadline of the change.
        reboot = self.find_claim(case) if state == "rebooting" else None
        if reboot is not None and node.ready and waited >= limit and case.find_doubt(reboot) is not None:
            return Unfinished(Reason.ACTUATOR_STUCK, reboot.doubt.message, cure=restart)
        if (late := tell_late(case, fence, case.operands.get(Program.MIG_MANAGER))) and state:
            late = f", says label {names.LABEL_MIG_STATE}={state}{late}"
        if waited < limit or reboot is not None:
            return Unfinished(Reason.ACTUATION_IN_PROGRESS, f"{doing}{late}", final=False, cure=restart)
        # The limit and not the time itself: a message with the seconds so far would be written again on every pass.
        return Unfinished(Reason.ACTUATOR_STUCK, f"{doing}, for more than {limit:.0f} s now{late}", cure=restart)

    def find_lost(self, case: ActuatorCase, fence: Fence) -> Written | None:
        """Return the labels of a run under way that others changed, to write again at any time; None if there are none."""
        labels, due = case.node.labels, fence.target_plugin_config
        if (present := labels.get(names.LABEL_PLUGIN_CONFIG, "")) == due:
            return None
        same = find_entry(present, case.stack) == find_entry(due, case.stack)
        if not same and not is_unknown(present, case.stack):  # the plugin and GFD start once more
            fence = replace(fence, gfd_timestamp=labels.get(names.LABEL_GFD_TIMESTAMP, ""))
        return fence, {names.LABEL_PLUGIN_CONFIG: due or None}

    def next_look(self, case: ActuatorCase, fence: Fence) -> datetime | None:
        """Return when the passing of time alone may change the result of `find_trouble`."""
        limits = (case.settings.wedge_paused, case.settings.wedge_pending, case.settings.sign_grace)
        moments = [fence.stage_since + timedelta(seconds=wait) for wait in limits]
        moments.append(_believed_from(case, fence))
        return min((moment for moment in moments if moment > case.now), default=None)

    def find_events(self, case: ActuatorCase) -> tuple[str, ...]:
        """Return strings that change with every event that may change the GPUs; a proof must be more recent."""
        labels, pod = case.node.labels, case.operands.get(Program.MIG_MANAGER)
        mig_labels = labels.get(names.LABEL_MIG_CONFIG, ""), labels.get(names.LABEL_MIG_STATE, "")
        return (*mig_labels, pod.uid if pod is not None else "")

    def find_work(self, node: NodeView) -> str:
        """Return what its programs do with the GPUs of a node on which we have started no run, as a clause."""
        state = node.labels.get(names.LABEL_MIG_STATE)
        if state not in ("pending", "rebooting"):
            return ""
        return f"mig-manager is working (state {state}), although the operator has started no run"

    def find_claim(self, case: ActuatorCase) -> Trace | None:
        """Return what says that its programs are at work on the node, as in `find_work`."""
        node, settings, pod = case.node, case.settings, case.operands.get(Program.MIG_MANAGER)
        if not self.find_work(node):
            return None
        state = node.labels[names.LABEL_MIG_STATE]
        does = "rebooting" if state == "rebooting" else "at work on"
        claim = f"label {names.LABEL_MIG_STATE}={state} says that mig-manager is {does} {node.name}"
        sign = tell_pod(pod)
        # After a boot its pod may wait long for the driver. Once there is one, it begins a run.
        if state == "pending" and node.ready and not (pod is not None and pod.ready):
            text = f"{claim}, but {sign}; {_check_pods(case, Program.MIG_MANAGER)}"
            missing = Finding(Reason.ACTUATOR_MISSING, text, stands=True)
            return Trace(f"{claim} without a pod", settings.sign_grace, missing)
        lasts = f"for more than {settings.wedge_pending:.0f} s; {sign}"
        if state == "rebooting":
            lasts = f"but the node is Ready and has not booted {lasts}"
        return Trace(claim, settings.wedge_pending, Finding(Reason.ACTUATOR_BUSY, f"{claim}, {lasts}", stands=True))

    def find_down(self, case: ActuatorCase, target: Target) -> Trace | None:
        """Return what looks like the target and was left by a program that does not run, or has only started."""
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
        """Yield what proves the result, and finds drift."""
        return label_checks(compared)

    def tell_left(self, node: NodeView) -> str:
        """Return a clause about what stays on a node whose policy is deleted, and why. Empty if nothing stays."""
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
    stays = target.mode is Mode.MPS and not needs_two_steps(Comparison(node, observed, target, case.stack))
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


def _check_pods(case: ActuatorCase, program: Program) -> str:
    return f"check the pods with label {program.label}={program} in namespace {case.settings.gpu_operator_namespace}"


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


PLUGIN = "NVIDIA's DRA kubelet plugin"
"""The program that publishes the devices, for messages."""


class Dra(Actuator):
    """mig-manager, which divides the GPUs, and the kubelet plugin of NVIDIA's DRA driver.

    The driver looks for MIG devices only when its kubelet plugin starts, so each run replaces the plugin's pod once
    mig-manager is done. Its ResourceSlices outlive the pod, so they prove nothing before the new pod is Ready. The
    fence names the pod to replace in `daemon_uid`.
    """

    needs = frozenset({"mig-manager", "driver", "container-toolkit"})
    sources = (Source.AGENT, Source.NVML, Source.MIG_MANAGER, Source.OPERANDS, Source.SLICES)

    def obstacles(self, case: ActuatorCase, target: Target) -> Iterator[Finding]:
        yield from super().obstacles(case, target)
        if self.needs_run(case, target) and (missing := _find_plugin_missing(case, again=False)):
            yield Finding(Reason.ACTUATOR_MISSING, f"{missing}; {_check_pods(case, Program.KUBELET_PLUGIN)}")
        if not _is_published(case.node) and (text := find_slice_mismatch(case.node, target.layouts, None)):
            yield Finding(Reason.ACTUATOR_MISSING, text)
        if found := find_unrequestable(target.layouts, case.stack):
            yield Finding.of(found, Reason.ACTUATOR_MISSING)

    def needs_run(self, case: ActuatorCase, target: Target) -> bool:
        differs = bool(find_slice_mismatch(case.node, target.layouts, case.observed))
        return super().needs_run(case, target) or (_is_published(case.node) and differs)

    def find_missing(self, case: ActuatorCase, goal: Target, again: bool) -> str:
        return super().find_missing(case, goal, again) or _find_plugin_missing(case, again=again)

    def write(self, case: ActuatorCase, fence: Fence, goal: Target, idle: ObservedView | None, again: bool) -> Written:
        pod = case.operands.get(Program.KUBELET_PLUGIN)
        fence, labels = super().write(case, fence, goal, idle, again)
        return replace(fence, daemon_uid=pod.uid if pod is not None else "", gfd_timestamp=""), labels

    def find_old(self, case: ActuatorCase, fence: Fence) -> tuple[Operand, str] | None:
        if (old := super().find_old(case, fence)) is not None:
            return old
        pod = case.operands.get(Program.KUBELET_PLUGIN)
        if pod is None or pod.uid != fence.daemon_uid or super().find_trouble(case, fence) is not None:
            return None
        return pod, PLUGIN

    def find_trouble(self, case: ActuatorCase, fence: Fence) -> Unfinished | None:
        if (trouble := super().find_trouble(case, fence)) is not None:
            return trouble
        pod, due, slices = case.operands.get(Program.KUBELET_PLUGIN), _publishes_by(case, fence), case.node.name
        cure = f"restarting {PLUGIN}"
        # Only the operator replaces the pod, and only for a node that has a target.
        if pod is not None and pod.uid == fence.daemon_uid and not pod.deleting:
            old = f"has not been restarted since the change, so the ResourceSlices of {slices} are outdated"
            return Unfinished(Reason.ACTUATION_IN_PROGRESS, f"{PLUGIN} {old}", cure=cure)
        if due is None:
            old = (
                f"is restarting; the ResourceSlices of {slices} are from before the change{tell_late(case, fence, pod)}"
            )
            return Unfinished(Reason.ACTUATION_IN_PROGRESS, f"{PLUGIN} {old}", final=False)
        gpunode, observed = case.gpunode, case.observed
        if case.now < due or gpunode is None or observed is None or observed.quiet or observed.error:
            return None
        # The pod may have started before the GPUs were divided. Only the agent's answer for the proof of this change counts.
        asked = gpunode.request_id.startswith(f"{fence.op}:verify:") and observed.request_id == gpunode.request_id
        wrong = find_slice_mismatch(case.node, observed.hardware.layouts, observed) if asked else ""
        return Unfinished(Reason.ALLOCATABLE_MISMATCH, wrong, cure=cure) if wrong else None

    def find_lost(self, case: ActuatorCase, fence: Fence) -> Written | None:
        return None  # nothing reads the device plugin's label

    def next_look(self, case: ActuatorCase, fence: Fence) -> datetime | None:
        moments = super().next_look(case, fence), _publishes_by(case, fence)
        return min((moment for moment in moments if moment is not None and moment > case.now), default=None)

    def checks(self, compared: Comparison) -> Checked:
        yield from agent_checks(compared)
        yield from mig_checks(compared)
        yield from compute_mode_checks(compared)
        if text := find_slice_mismatch(compared.node, compared.target.layouts, compared.observed):
            yield Source.SLICES, Finding(Reason.ALLOCATABLE_MISMATCH, text)

    def find_down(self, case: ActuatorCase, target: Target) -> Trace | None:
        pod = case.operands.get(Program.KUBELET_PLUGIN)
        driver, name = case.stack.dra.driver, case.node.name
        if case.stack.dra.classes is not None and (lack := find_unrequestable(target.layouts, case.stack)):
            claim = f"the ResourceSlices of {name} offer devices for which there is no DeviceClass"
            return Trace(claim, case.settings.sign_grace, Finding.of(lack, Reason.ACTUATOR_MISSING))
        if pod is None and (driver is None or not driver.labelled):
            return None  # its pods are not seen
        claim, limit = f"the ResourceSlices of {name} offer its devices", case.settings.sign_grace
        if pod is not None and pod.ready:
            if (until := steady_from(case, pod, claim)) is None:
                return None
            text = f"{PLUGIN} started a moment ago on {name}, and may not keep running"
            return Trace(claim, limit, Finding(Reason.ACTUATOR_MISSING, text, until))
        where = f"label {Program.KUBELET_PLUGIN.label}={Program.KUBELET_PLUGIN}"
        text = (
            f"{claim}, but {PLUGIN}, which published them, is not running there, so no pod with a claim can start; check"
            f" the pods with {where}"
        )
        return Trace(claim, limit, Finding(Reason.ACTUATOR_MISSING, text))

    def tell_left(self, node: NodeView) -> str:
        return ""  # mig-manager's label then means whole GPUs, and nothing reads the other labels


def _is_published(node: NodeView) -> bool:
    """Whether the driver has published all devices, and only GPUs and MIG devices; a drain would not help otherwise."""
    return node.devices is not None and not node.devices.missing and not node.devices.others


def _find_plugin_missing(case: ActuatorCase, *, again: bool) -> str:
    pod = case.operands.get(Program.KUBELET_PLUGIN)
    there = pod is not None and (again or pod.ready)
    return "" if there else f"no Ready pod of {PLUGIN} runs on {case.node.name}"


def _publishes_by(case: ActuatorCase, fence: Fence) -> datetime | None:
    """Return when the new pod, if it is Ready, has published; it becomes Ready shortly before."""
    pod = case.operands.get(Program.KUBELET_PLUGIN)
    if pod is None or pod.uid == fence.daemon_uid or not pod.ready:
        return None
    return (pod.ready_since or fence.stage_since) + timedelta(seconds=case.settings.restart_grace)


LABELS, DRA = Actuator(), Dra()


def find_actuator(stack: StackView) -> Actuator:
    """Return the cluster's actuator; if none can change nodes, any, because every policy is refused then."""
    return DRA if stack.by_dra else LABELS
