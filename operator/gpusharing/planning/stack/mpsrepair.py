"""PROCESS_TO_SIGNAL in the GPU Operator's MPS DaemonSet: when the operator corrects it itself, and why it does not.

Chart value gpuOperator.repairMps switches this on (docs/adr/0076-the-one-exception.md). The write restarts the MPS
daemons of the whole cluster, so it is made only while no node serves MPS.

Terms: docs/design/glossary.md#fence, docs/design/glossary.md#point-of-no-return.
"""

from collections.abc import Collection, Mapping

from gpusharing.api import names
from gpusharing.planning.snapshot.actions import RepairMps
from gpusharing.planning.snapshot.stackviews import MpsDaemonView, MpsRepairs, StackView
from gpusharing.planning.snapshot.views import GPUNodeView, NodeView, PlanSettings
from gpusharing.planning.vocabulary.lengths import some
from gpusharing.planning.wanted.toolversions import SKIPS_THREADS, find_deafness, find_remedy
from gpusharing.planning.wanted.verify import EXCLUSIVE, is_told_mps

VALUE = "chart value gpuOperator.repairMps"
"""The chart value that allows the operator to repair the DaemonSet, for messages."""
DAEMON_SET, PROGRAM = "nvidia-device-plugin-mps-control-daemon", "mps-control-daemon"
"""The only DaemonSet that the operator may patch, and the only value that it may write there. The chart's Role and
admission policy have the same two names (templates/repair-mps.yaml)."""
MOST_REPAIRS = 3
"""How often the operator sets the value under one version of the device plugin before it gives up."""


def plan_repair(stack: StackView, settings: PlanSettings) -> RepairMps | None:
    """Return the write that lets the MPS daemons follow labels, with the count of repairs that it records, or what is
    left of one that was made but not yet reported. None if the chart value is off, if no daemon is known to ignore
    labels, or if one of RESTRAINTS applies, such as a node that serves MPS."""
    daemon, policy = find_due(stack, settings), stack.cluster_policy
    if policy is None:
        return None
    if daemon is not None:
        return RepairMps(policy, daemon, count_repair(stack.mps_repairs, daemon))
    daemon = find_unreported(stack, settings)
    return None if daemon is None else RepairMps(policy, daemon, stack.mps_repairs)


def find_unreported(stack: StackView, settings: PlanSettings) -> MpsDaemonView | None:
    """Return the MPS daemon whose DaemonSet has the value PROGRAM now, while a repair is still recorded as pending,
    because the answer to the write was lost or the operator ended after it. None otherwise, also if the chart value is
    off or if the record is not in a ConfigMap of ours (`_uncountable`)."""
    daemon = stack.cluster_policy.mps_daemon if stack.cluster_policy is not None else None
    if not settings.repair_mps or not stack.mps_repairs.pending or daemon is None:
        return None
    is_set = daemon.signalled == daemon.program == PROGRAM
    return daemon if is_set and not _uncountable(daemon, stack, settings) else None


def find_due(stack: StackView, settings: PlanSettings) -> MpsDaemonView | None:
    """Return the MPS daemon that the operator must repair (`find_daemon`) and may repair now, because none of
    RESTRAINTS applies, or None."""
    daemon = find_daemon(stack, settings)
    if daemon is None or any(restraint(daemon, stack, settings) for restraint in RESTRAINTS):
        return None
    return daemon


def find_daemon(stack: StackView, settings: PlanSettings) -> MpsDaemonView | None:
    """Return the MPS daemon that the operator must repair, because it does not follow labels and the chart value is
    on. None otherwise, as without a ClusterPolicy or such a daemon, or if it is unknown whether the daemon follows
    labels."""
    daemon = stack.cluster_policy.mps_daemon if stack.cluster_policy is not None else None
    if not settings.repair_mps or daemon is None or not find_deafness(daemon):
        return None
    return daemon


def count_repair(repairs: MpsRepairs, daemon: MpsDaemonView) -> MpsRepairs:
    """Return the record to write before this DaemonSet is patched, in which the repair is pending. A repair that is
    tried again counts once: it is recognized by the state of the DaemonSet on which it was decided; if that is unknown,
    every try counts. Another version of the device plugin starts a new count."""
    known = repairs if repairs.plugin == daemon.version else MpsRepairs()
    tried = known.state == daemon.state != ""
    return MpsRepairs(known.count if tried else known.count + 1, daemon.version, daemon.state, pending=True)


def explain_repair(stack: StackView, settings: PlanSettings) -> str:
    """Return why the operator has not repaired the MPS daemon yet: the first of RESTRAINTS that applies, else the error
    of the last attempt, else that the operator repairs it now. The text continues a message: it begins with a period
    and a space, and has no period at its end. Empty if the chart value is off, or if no daemon is known to ignore
    labels."""
    daemon = find_daemon(stack, settings)
    if daemon is None:
        return ""
    for restraint in RESTRAINTS:
        if why := restraint(daemon, stack, settings):
            return f". {why} ({VALUE})"
    failed = (
        f"could not set it and will try again: {stack.repair_error}" if stack.repair_error else "sets it now"
    )
    return f". The operator {failed} ({VALUE})"


def find_serving(
    nodes: Mapping[str, NodeView],
    gpunodes: Mapping[str, GPUNodeView],
    agents: Collection[str],
    daemons: Collection[str],
    stack: StackView,
) -> tuple[str, ...]:
    """Return the nodes whose MPS clients would end if all MPS daemons were restarted, sorted. `agents` are the nodes
    with a Ready agent, `daemons` those with a pod of the MPS daemon.

    A node counts if it has such a pod, if GPU Feature Discovery calls it capable of MPS, or if its device plugin is
    configured for MPS. It does not count if it certainly has no client. That is the case if a change of ours has
    emptied it and no report shows a GPU that a daemon serves, or if its Ready agent reports that no daemon serves any
    GPU.
    """
    serving = []
    for name, node in nodes.items():
        capable = node.labels.get(names.LABEL_MPS_CAPABLE) == "true"
        if not (name in daemons or capable or is_told_mps(node, stack)):
            continue
        gpunode = gpunodes.get(name)
        if _is_emptied(node) and not _is_served(gpunode):
            continue
        if name not in agents or not _is_free(gpunode):
            serving.append(name)
    return tuple(sorted(serving))


def _is_emptied(node: NodeView) -> bool:
    """Whether the node is past the point of no return of a change of class GPUPods, Reset or Reboot, which has drained
    the node, and is still cordoned. Nothing is scheduled there before its layout is proven."""
    fence = node.fence
    return (
        fence is not None
        and fence.stage == "actuating"
        and fence.disruption.severity >= names.DisruptionClass.GPU_PODS.severity
        and node.unschedulable
    )


def _is_served(gpunode: GPUNodeView | None) -> bool:
    """Whether the agent's last report has a GPU in an exclusive compute mode, which an MPS daemon sets on the GPUs
    that it serves. False without a report. An emptied node with such a GPU is about to be proven and returned to
    service, so its daemon must not restart."""
    observed = gpunode.observed if gpunode is not None else None
    return observed is not None and any(gpu.compute_mode == EXCLUSIVE for gpu in observed.hardware.kinds)


def _is_free(gpunode: GPUNodeView | None) -> bool:
    """Whether the agent's report proves that no MPS daemon serves a GPU of the node, because each GPU is in compute
    mode Default. A daemon sets the GPUs that it serves to an exclusive mode (docs/design/hardware.md#mps-mode).
    False for every other mode, such as Prohibited, NotSupported or Unknown. Also False if there is no report, or if
    the agent reports an error or no GPU, or has closed NVML."""
    observed = gpunode.observed if gpunode is not None else None
    if observed is None or observed.quiet or observed.error or not observed.gpus:
        return False
    return all(gpu.compute_mode == "Default" for gpu in observed.hardware.kinds)


def _other_name(daemon: MpsDaemonView, stack: StackView, settings: PlanSettings) -> str:
    """Return a sentence if the operator cannot repair this DaemonSet, else an empty string. It can repair only
    DAEMON_SET in NVIDIA's namespace, and only if the daemon's process is called PROGRAM, which is the only value that
    it may write. `stack` is not used; all RESTRAINTS have the same arguments."""
    known = (daemon.namespace, daemon.name, daemon.program) == (
        settings.gpu_operator_namespace,
        DAEMON_SET,
        PROGRAM,
    )
    return (
        ""
        if known
        else f"The operator can only set {PROGRAM} in DaemonSet {DAEMON_SET}, which would not help here"
    )


def _no_value(daemon: MpsDaemonView, stack: StackView, settings: PlanSettings) -> str:
    """Return a sentence if the DaemonSet has no value that the operator could correct, else an empty string. The
    admission policy lets the operator add no variable, and replace none that takes its value from elsewhere. Only
    `daemon` is used."""
    if daemon.signalled is not None:
        return ""
    return "The operator can only correct the value of PROCESS_TO_SIGNAL, which this DaemonSet does not have"


def _old_plugin(daemon: MpsDaemonView, stack: StackView, settings: PlanSettings) -> str:
    """Return a sentence if the name alone would not help because the device plugin is too old (`find_remedy`), else an
    empty string. Only `daemon` is used."""
    if not find_remedy(daemon).needs_plugin:
        return ""
    return f"The operator sets the name by itself once the device plugin is {SKIPS_THREADS} or newer"


def _uncountable(daemon: MpsDaemonView, stack: StackView, settings: PlanSettings) -> str:
    """Return a sentence if our device-plugin ConfigMap, in which repairs are counted, does not exist or was created by
    somebody else, else an empty string. A foreign ConfigMap for mig-parted does not matter here. `daemon` is not
    used."""
    if stack.plugin_map_exists and stack.foreign_map != settings.plugin_config_map:
        return ""
    ours = f"ConfigMap {settings.plugin_config_map}"
    return (
        f"The operator counts its repairs in {ours}, and is waiting until this ConfigMap exists and belongs to the"
        " operator"
    )


def _given_up(daemon: MpsDaemonView, stack: StackView, settings: PlanSettings) -> str:
    """Return a sentence if the operator has set the value MOST_REPAIRS times under this version of the device plugin
    and still finds it wrong, so that somebody must have overwritten it, else an empty string. The sentence has the
    command that starts a new count."""
    if count_repair(stack.mps_repairs, daemon).count <= MOST_REPAIRS:
        return ""
    where = f"-n {settings.gpu_operator_namespace} configmap {settings.plugin_config_map}"
    return (
        f"The operator has set it {MOST_REPAIRS} times under {daemon.plugin}, but someone else"
        f" overwrote it each time, so the operator has given up; find out who does this, then run"
        f" `kubectl annotate {where} {names.ANNOTATION_MPS_REPAIRS}-`"
    )


def _in_service(daemon: MpsDaemonView, stack: StackView, settings: PlanSettings) -> str:
    """Return a sentence that names the nodes in `stack.mps_nodes`, which serve MPS, or an empty string if there are
    none. Only the first three are named, with the number of the others. The other arguments are not used."""
    if not stack.mps_nodes:
        return ""
    do = "does" if len(stack.mps_nodes) == 1 else "do"
    return f"The operator will set it once no node uses MPS; {some(stack.mps_nodes)} still {do}"


RESTRAINTS = (
    _other_name,
    _no_value,
    _old_plugin,
    _uncountable,
    _given_up,
    _in_service,
)
"""The first match wins. The nodes in service come last: they are looked for only if nothing else prevents a repair."""
