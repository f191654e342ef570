"""Does NVIDIA's MPS daemon serve, and what repairs it?

The repair is PROCESS_TO_SIGNAL in the GPU Operator's MPS DaemonSet. Chart value gpuOperator.repairMps lets the operator
make it (docs/adr/0076-the-one-exception.md).
"""

from collections.abc import Collection, Mapping
from dataclasses import replace

from gpusharing.api import names
from gpusharing.planning.snapshot.actions import RepairMps
from gpusharing.planning.snapshot.nvidia import MpsDaemonView, MpsRepairs, Operand, Program, StackView
from gpusharing.planning.snapshot.views import GPUNodeView, NodeView, PlanSettings
from gpusharing.planning.vocabulary.commands import Command
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.vocabulary.lengths import some
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.wanted.target import SKIPS_THREADS, find_deafness, needs_newer_plugin
from gpusharing.planning.wanted.verify import EXCLUSIVE, is_told_mps

VALUE = "chart value gpuOperator.repairMps"
"""The chart value that allows the operator to repair the DaemonSet, for messages."""
DAEMON_SET, PROGRAM = "nvidia-device-plugin-mps-control-daemon", "mps-control-daemon"
"""The only DaemonSet that the operator may patch, and the only value that it may write there. They are the same in
templates/repair-mps.yaml."""
MOST_REPAIRS = 3
"""How often the operator sets the value under one version of the device plugin before it gives up."""


def plan_repair(stack: StackView, settings: PlanSettings) -> RepairMps | None:
    """Return the write that lets the MPS daemons follow labels, or the rest of one not yet reported.

    The write sets PROCESS_TO_SIGNAL. It restarts the MPS daemons of the whole cluster, so it is made only while no node
    serves MPS (docs/adr/0076-the-one-exception.md).
    """
    policy, repairs = stack.cluster_policy, stack.mps_repairs
    daemon = policy.mps_daemon if policy is not None else None
    if policy is None or daemon is None or not settings.repair_mps:
        return None
    if find_due(stack, settings) is not None:
        return RepairMps(policy, daemon, count_repair(repairs, daemon))
    # The answer to the write may have been lost, or the operator may have ended after it.
    is_set = daemon.signalled == daemon.program == PROGRAM
    if repairs.pending and is_set and _is_countable(stack, settings):
        return RepairMps(policy, daemon, repairs)
    return None


def find_due(stack: StackView, settings: PlanSettings) -> MpsDaemonView | None:
    daemon = _find_deaf_daemon(stack, settings)
    return None if daemon is None or _find_restraint(daemon, stack, settings) else daemon


def _find_deaf_daemon(stack: StackView, settings: PlanSettings) -> MpsDaemonView | None:
    daemon = stack.cluster_policy.mps_daemon if stack.cluster_policy is not None else None
    return daemon if settings.repair_mps and daemon is not None and find_deafness(daemon) else None


def count_repair(repairs: MpsRepairs, daemon: MpsDaemonView) -> MpsRepairs:
    """Return the record to write before this DaemonSet is patched, in which the repair is pending.

    A repair that is tried again counts once, unless the state of the DaemonSet is unknown. Another version of the
    device plugin starts a new count.
    """
    known = repairs if repairs.plugin == daemon.version else MpsRepairs()
    tried = known.state == daemon.state != ""
    return MpsRepairs(known.count if tried else known.count + 1, daemon.version, daemon.state, pending=True)


def add_repair(objection: Finding, stack: StackView, settings: PlanSettings) -> Finding:
    """Return the objection to an MPS daemon that ignores labels with what the operator does about it."""
    daemon = _find_deaf_daemon(stack, settings)
    if daemon is None:
        return objection
    why = _find_restraint(daemon, stack, settings)
    if not why and stack.repair_error:
        why = f"The operator could not set it and will try again: {stack.repair_error}"
    found = Finding.of(why or "The operator sets it now", objection.reason)
    commands = (*objection.commands, *found.commands)
    return replace(objection, message=f"{objection.message}. {found.message} ({VALUE})", commands=commands)


def _find_restraint(daemon: MpsDaemonView, stack: StackView, settings: PlanSettings) -> str | Finding:
    if (daemon.namespace, daemon.name, daemon.program) != (settings.gpu_operator_namespace, DAEMON_SET, PROGRAM):
        return f"The operator can only set {PROGRAM} in DaemonSet {DAEMON_SET}, which would not help here"
    if daemon.signalled is None:
        # The admission policy lets the operator add no variable, and replace none that takes its value from elsewhere.
        return "The operator can only correct the value of PROCESS_TO_SIGNAL, which this DaemonSet does not have"
    if needs_newer_plugin(daemon):
        return f"The operator sets the name by itself once the device plugin is {SKIPS_THREADS} or newer"
    if not _is_countable(stack, settings):
        return (
            f"The operator counts its repairs in ConfigMap {settings.plugin_config_map}, and is waiting until this"
            " ConfigMap exists and belongs to the operator"
        )
    if count_repair(stack.mps_repairs, daemon).count > MOST_REPAIRS:
        where = f"-n {settings.gpu_operator_namespace} configmap {settings.plugin_config_map}"
        # The operator repairs the DaemonSet again, once no node serves MPS.
        again = Command.of(f"kubectl annotate {where} {names.ANNOTATION_MPS_REPAIRS}-", effects=())
        message = (
            f"The operator has set it {MOST_REPAIRS} times under {daemon.plugin}, but someone else"
            f" overwrote it each time, so the operator has given up; find out who does this, then run"
            f" `{again}`"
        )
        return Finding(Reason.MPS_NOT_SWITCHABLE, message, commands=(again,))
    # The nodes in service come last: they are looked for only if nothing else prevents a repair.
    if stack.mps_nodes:
        do = "does" if len(stack.mps_nodes) == 1 else "do"
        return f"The operator will set it once no node uses MPS; {some(stack.mps_nodes)} still {do}"
    return ""


def _is_countable(stack: StackView, settings: PlanSettings) -> bool:
    return stack.plugin_map_exists and settings.plugin_config_map not in stack.foreign_maps


def find_serving(
    nodes: Mapping[str, NodeView],
    gpunodes: Mapping[str, GPUNodeView],
    agents: Collection[str],
    daemons: Collection[str],
    stack: StackView,
) -> tuple[str, ...]:
    """Return the nodes whose MPS clients would end if all MPS daemons were restarted, sorted.

    `agents` are the nodes with a Ready agent, `daemons` those with a pod of the MPS daemon.
    """
    serving = []
    for name, node in nodes.items():
        capable = node.labels.get(names.LABEL_MPS_CAPABLE) == "true"
        if not (name in daemons or capable or is_told_mps(node, stack)):
            continue
        observed = gpunodes[name].observed if name in gpunodes else None
        modes = [gpu.compute_mode for gpu in observed.hardware.kinds] if observed is not None else []
        # A daemon sets the GPUs that it serves to an exclusive mode (docs/design/hardware.md#mps-mode). An emptied
        # node with such a GPU is about to be proven and returned to service, so its daemon must not restart.
        fence = node.fence
        emptied = (
            fence is not None
            and fence.stage == "actuating"
            and fence.disruption.severity >= names.DisruptionClass.GPU_PODS.severity
            and node.unschedulable
        )
        if emptied and EXCLUSIVE not in modes:
            continue
        readable = observed is not None and observed.gpus and not (observed.quiet or observed.error)
        free = readable and all(mode == "Default" for mode in modes)
        if name not in agents or not free:
            serving.append(name)
    return tuple(sorted(serving))


def find_mps_pod(node: NodeView, operands: Mapping[Program, Operand], stack: StackView) -> Operand | None:
    """Return the pod of the node's MPS daemon. None if the node has no MPS clients that a restart would end."""
    pod = operands.get(Program.MPS_DAEMON)
    if pod is None or node.fence is not None or not is_told_mps(node, stack):
        return None
    daemon = stack.cluster_policy.mps_daemon if stack.cluster_policy is not None else None
    # Beside a daemon that follows no label, config-manager fails again and again.
    if daemon is not None and find_deafness(daemon):
        return None
    # Only what `count_lapses` reads: a verdict that has the pod would otherwise change with its readiness.
    return replace(pod, ready=True, deleting=False, down=False, ready_since=None)


def count_lapses(before: Operand | None, pod: Operand) -> int:
    """Return how often config-manager restarted alone since `before` and so ended the node's MPS clients.

    Each such restart ends them: config-manager begins with the fallback configuration and names the one of the label a
    moment later, and it signals the daemon both times (docs/design/nvidia.md#b5). The daemon then serves again, so the
    restart is counted and reported, and no node is drained for it.
    """
    if before is None or before.settling or pod.settling:
        return 0
    return max(0, pod.lone_restarts - (before.lone_restarts if before.uid == pod.uid else 0))


def tell_lapses(pod: Operand, count: int) -> str:
    if count <= 0:
        return ""
    times, last = ("once", "") if count == 1 else (f"{count} times", "the last time ")
    cause = f" ({last}{pod.restart_cause})" if pod.restart_cause else ""
    return (
        f"the config-manager container in pod {pod.name} restarted {times}{cause} while the MPS daemon kept"
        " running; every such restart ends the MPS clients on the node"
    )
