"""On which nodes mig-manager would change GPUs when it starts, and what a person has to run first so that it does not.

Each start of its pod applies the configuration that the Node's label names, without a drain (docs/design/nvidia.md#a2).
So nothing may start or restart mig-manager while a node's GPUs differ from their label, such as GPUs that somebody
divided with nvidia-smi under NVIDIA's default label all-disabled.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence

from gpusharing.api.names import (
    LABEL_DEPLOY_PREFIX,
    LABEL_MIG_CAPABLE,
    LABEL_MIG_CONFIG,
    LABEL_WORKLOAD_CONFIG,
    RESOURCE_MIG_PREFIX,
    WORKLOAD_CONTAINER,
)
from gpusharing.planning.gpus.geometry import Layout, generated_layouts
from gpusharing.planning.snapshot.stackviews import StackView, StartChange
from gpusharing.planning.snapshot.views import GPUNodeView, GpuView, Hardware, NodeView, ObservedView
from gpusharing.planning.stack.installationviews import InstallationView
from gpusharing.planning.vocabulary.lengths import some
from gpusharing.planning.wanted.migfile import ALL_DISABLED, parse, parse_admin, resolve, well_known
from gpusharing.planning.wanted.target import describe_layouts

_DEPLOY_MANAGER = f"{LABEL_DEPLOY_PREFIX}mig-manager"
SHOW_LABELS = f"kubectl get nodes -L {LABEL_MIG_CONFIG}"
"""The command that is printed where a command that starts mig-manager must not be."""


def runs_mig_manager(node: NodeView, gpunodes: Mapping[str, GPUNodeView]) -> bool:
    """Whether mig-manager runs on the node, or may run there later; it does not on nodes without GPUs."""
    return node.name in gpunodes or node.labels.get(_DEPLOY_MANAGER, "") not in ("", "false")


def find_start_changes(
    nodes: Mapping[str, NodeView],
    gpunodes: Mapping[str, GPUNodeView],
    stack: StackView,
    agents: Collection[str] | None = None,
) -> tuple[StartChange, ...]:
    """Return the nodes whose GPUs mig-manager would change at its start, or of which that is unknown, by name.

    A node without the label counts as all-disabled, which the GPU Operator may write at any time
    (docs/design/nvidia.md#d1). `agents` are the nodes with a Ready agent, or None if that is not known.
    """
    known: dict[tuple[str, Hardware], tuple[str, str]] = {}
    changes = []
    for name, node in sorted(nodes.items()):
        # Past the point of no return a node is drained, and its label asks for what its policy wants.
        if not _may_run(node, gpunodes) or (node.fence is not None and node.fence.stage == "actuating"):
            continue
        observed = gpunodes[name].observed if name in gpunodes else None
        stale = agents is not None and name not in agents
        if observed is None or (unknown := _why_unknown(observed, stale=stale)):
            if node.labels.get(LABEL_MIG_CAPABLE) != "false" and not _is_kept_off(node, stack):
                instances = [one for one in sorted(node.resources) if one.startswith(RESOURCE_MIG_PREFIX)]
                advertised = f"; it advertises {some(instances)}" if instances else ""
                why = unknown if observed else f"no agent has read its GPUs{advertised}"
                changes.append(StartChange(name, why, known=False))
            continue
        key = node.labels.get(LABEL_MIG_CONFIG, ""), observed.hardware
        if key not in known:
            known[key] = _compare(*key, stack)
        why, config = known[key]
        if why:
            changes.append(StartChange(name, why, config))
    return tuple(changes)


def _may_run(node: NodeView, gpunodes: Mapping[str, GPUNodeView]) -> bool:
    if runs_mig_manager(node, gpunodes):
        return True
    # A mig-manager that is switched off may have no deploy label yet. It gets none on nodes of virtual machines.
    labels = node.labels
    in_containers = labels.get(LABEL_WORKLOAD_CONFIG, "") in ("", WORKLOAD_CONTAINER)
    return in_containers and labels.get(LABEL_MIG_CAPABLE) == "true" and _DEPLOY_MANAGER not in labels


def _is_kept_off(node: NodeView, stack: StackView) -> bool:
    if stack.cluster_policy is None:  # nobody writes deploy labels
        return False
    manager, workload = node.labels.get(_DEPLOY_MANAGER, ""), node.labels.get(LABEL_WORKLOAD_CONFIG, "")
    return manager == "false" or (not manager and workload not in ("", WORKLOAD_CONTAINER))


def _why_unknown(observed: ObservedView, *, stale: bool) -> str:
    if observed.error:
        return f"its agent cannot read the GPUs: {observed.error}"
    if stale:
        return "its agent is not Ready, so its GPUs may have changed since the last report"
    if observed.quiet:
        return "its agent is not reading the GPUs at the moment"
    if not all(gpu.product for gpu in observed.gpus):  # NVML has never answered for it
        return "its agent could not read all GPUs yet"
    if any(gpu.mig_enabled and gpu.instances_withheld for gpu in observed.gpus):
        return "its agent is not allowed to list MIG instances"
    return ""


def _compare(config: str, hardware: Hardware, stack: StackView) -> tuple[str, str]:
    """Return how the GPUs differ from the label's value, and the name of a configuration that they have, if any."""
    gpus = [gpu for gpu in hardware.gpus if gpu.mig_capable]  # mig-parted skips the others
    layouts = tuple(gpu.layout for gpu in gpus)
    if _meaning(config or ALL_DISABLED, gpus, stack) == layouts:
        return "", ""
    label = f"{LABEL_MIG_CONFIG} is {config or f'not set, which the GPU Operator takes for {ALL_DISABLED}'}"
    usual = generated_layouts(gpus[0].profiles) if gpus else {}
    ours = [*parse_admin(stack.admin_mig_file).entries, *parse(stack.mig_file)]
    same = (name for name in (ALL_DISABLED, *usual, *ours) if _meaning(name, gpus, stack) == layouts)
    return f"{label}, but its GPUs have {describe_layouts(layouts)}", next(same, "")


def _meaning(config: str, gpus: Sequence[GpuView], stack: StackView) -> tuple[Layout | None, ...] | str:
    if config == ALL_DISABLED:  # also on cards whose profiles are unknown
        return (None,) * len(gpus)
    for entries in (parse_admin(stack.admin_mig_file).entries, parse(stack.mig_file)):
        if entry := entries.get(config):
            return resolve(entry, gpus)
    return well_known(gpus, config)


def start_changes_of(view: InstallationView) -> tuple[StartChange, ...]:
    if "nodes" in view.unread:
        return (StartChange("all nodes", "Nodes could not be read", known=False),)
    agents = None
    if view.agents is not None and "pods" not in view.unread:
        agents = {pod.node for pod in view.agents.pods if pod.ready}
    return find_start_changes({node.name: node for node in view.nodes}, view.gpunodes, view.stack, agents)


def label_commands(changes: Iterable[StartChange]) -> list[str]:
    """Return the commands that label nodes with the layouts that they have, as far as these have names."""
    nodes = defaultdict[str, list[str]](list)
    for change in changes:
        if change.config:
            nodes[change.config].append(change.node)
    return [
        f"kubectl label node {' '.join(names)} --overwrite {LABEL_MIG_CONFIG}={config}"
        for config, names in sorted(nodes.items())
    ]


def is_safe(changes: Iterable[StartChange]) -> bool:
    """Whether mig-manager would change nothing at its start once `label_commands` have been run."""
    return all(change.config for change in changes)


def after_labels(command: str, changes: Sequence[StartChange]) -> str:
    """Return the command that starts mig-manager, after those that label nodes, or nothing if these are not enough."""
    return " && ".join([*label_commands(changes), command]) if command and is_safe(changes) else ""


def tell_changes(changes: Sequence[StartChange]) -> str:
    """Return what mig-manager would change at its start and what to do, as clauses that each begin with a semicolon."""
    if not changes:
        return ""
    differing = [f"{change.node} ({change.why})" for change in changes if change.known]
    unknown = [f"{change.node} ({change.why})" for change in changes if not change.known]
    unnamed = [change.node for change in changes if change.known and not change.config]
    text = ""
    if differing:
        text += f"; mig-manager would change GPUs at its start on {some(differing)}"
    if unnamed:
        text += (
            f"; no configuration has the layout of {some(unnamed)}: put an entry with it into a ConfigMap of your own"
            f" (chart value gpuOperator.adminMigConfigMap) and name the entry in {LABEL_MIG_CONFIG}, or drain the node"
            " and remove its MIG instances first"
        )
    if unknown:
        text += (
            f"; it is unknown what mig-manager would change at its start on {some(unknown)}: the operator's agent has"
            " to read the GPUs there first. Where it never can, keep mig-manager off the node (with the GPU Operator:"
            f" kubectl label node NODE --overwrite {_DEPLOY_MANAGER}=false)"
        )
    return text
