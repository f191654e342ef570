"""What would a change of mig-manager or of the MIG strategy do to nodes?

It also says whether MIG works without the GPU Operator, with mig-manager as a DaemonSet of its own beside NVIDIA's
device-plugin chart (`find_mig_obstacle`).
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from gpusharing.api import names
from gpusharing.api.names import (
    LABEL_DEPLOY_PREFIX,
    LABEL_MIG_CAPABLE,
    LABEL_MIG_CONFIG,
    LABEL_WORKLOAD_CONFIG,
    RESOURCE_MIG_PREFIX,
    WORKLOAD_CONTAINER,
)
from gpusharing.api.policy import GPUSharingPolicySpec
from gpusharing.planning.gpus.geometry import Layout, generated_layouts
from gpusharing.planning.snapshot.nvidia import ClusterPolicyView, PlainStackView, StackView, StartChange
from gpusharing.planning.snapshot.views import (
    GPUNodeView,
    GpuView,
    Hardware,
    NodeView,
    ObservedView,
    PlanSettings,
    PolicyView,
)
from gpusharing.planning.stack.installationviews import (
    InstallationView,
    Symptom,
    Topic,
    error,
    plain_upgrade,
    warning,
)
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.vocabulary.lengths import some
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.wanted import pluginconfig
from gpusharing.planning.wanted.assess import has_gpu
from gpusharing.planning.wanted.migfile import ALL_DISABLED, parse, parse_admin, resolve, well_known
from gpusharing.planning.wanted.ownership import Owners, find_contenders
from gpusharing.planning.wanted.target import describe_layouts, is_readable, pauses_clients
from gpusharing.planning.wanted.verify import find_entry, served

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
    """Return the nodes whose GPUs mig-manager would or may change at its start, by name.

    Each start of its pod applies the configuration that the Node's label names, without a drain
    (docs/design/nvidia.md#a2), so nothing may start it while a node's GPUs differ from their label, such as GPUs that
    somebody divided with nvidia-smi under NVIDIA's default label all-disabled. A node without the label counts as
    all-disabled, which the GPU Operator may write at any time (docs/design/nvidia.md#d1). `agents` are the nodes with a
    Ready agent, or None if that is not known.
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
    """Return how the GPUs differ from the label's value, and a configuration that they have, if any."""
    gpus = [gpu for gpu in hardware.gpus if gpu.mig_capable]  # mig-parted skips the others
    layouts = tuple(gpu.layout for gpu in gpus)
    if _meaning(config or ALL_DISABLED, gpus, stack) == layouts:
        return "", ""
    label = f"{LABEL_MIG_CONFIG} is {config or f'not set, which the GPU Operator takes for {ALL_DISABLED}'}"
    usual = generated_layouts(gpus[0].profiles) if gpus else {}
    ours = [*parse_admin(stack.admin_mig_file)[0], *parse(stack.mig_file)]
    same = (name for name in (ALL_DISABLED, *usual, *ours) if _meaning(name, gpus, stack) == layouts)
    return f"{label}, but its GPUs have {describe_layouts(layouts)}", next(same, "")


def _meaning(config: str, gpus: Sequence[GpuView], stack: StackView) -> tuple[Layout | None, ...] | str:
    if config == ALL_DISABLED:  # also on cards whose profiles are unknown
        return (None,) * len(gpus)
    for entries in (parse_admin(stack.admin_mig_file)[0], parse(stack.mig_file)):
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
    """Return the command that starts mig-manager, after those that label nodes. Empty if these are not enough."""
    return " && ".join([*label_commands(changes), command]) if command and is_safe(changes) else ""


def tell_changes(changes: Sequence[StartChange]) -> str:
    """Return what mig-manager would change at its start and what to do. Each clause begins with a semicolon."""
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


UNKNOWN = "nothing is known of its GPUs"


def find_strategy_users(
    stack: StackView,
    nodes: Mapping[str, NodeView],
    gpunodes: Mapping[str, GPUNodeView],
    owners: Mapping[str, str],
    policies: Iterable[PolicyView],
) -> dict[str, str]:
    """Return, by node, the MIG devices that it would lose without ClusterPolicy's mig.strategy.

    The strategy of ClusterPolicy or of NVIDIA's chart beats every entry of the device plugin
    (docs/design/nvidia.md#b2). A node whose policy waits for the removal, because it wants another strategy, is left
    out unless it is paused.
    """
    cluster_policy = stack.cluster_policy
    if cluster_policy is None or not cluster_policy.mig_strategy or stack.by_dra:
        return {}
    fixed = cluster_policy.mig_strategy
    paused = {policy.name: policy.spec.rollout.paused for policy in policies if policy.spec is not None}
    waiting = {policy.name for policy in policies if wants_other_strategy(policy, fixed)}
    users = {}
    for name in sorted(nodes):
        node, gpunode = nodes[name], gpunodes.get(name)
        owner = owners.get(name, "")
        stays = paused.get(owner, False)
        if owner in waiting and not stays:  # its own change takes these devices away
            continue
        if _own_strategy(node, stack) == fixed:
            continue
        if devices := _find_mig(node, gpunode.observed if gpunode is not None else None, fixed):
            held = f"; its policy {owner} is paused" if owner in waiting and devices != UNKNOWN else ""
            users[name] = devices + held
    return users


def wants_other_strategy(policy: PolicyView, fixed: str) -> bool:
    return policy.spec is not None and policy.spec.mig is not None and policy.spec.mig.strategy != fixed


def _own_strategy(node: NodeView, stack: StackView) -> str:
    key = find_entry(node.labels.get(names.LABEL_PLUGIN_CONFIG, ""), stack)
    if not key:
        return "none"
    config = pluginconfig.parse(stack.plugin_configs.get(key, ""))
    return config.mig_strategy if config is not None else ""


def _find_mig(node: NodeView, observed: ObservedView | None, fixed: str) -> str:
    """Return the MIG devices of the node, UNKNOWN, or an empty string if it certainly has none."""
    counts = sorted(served(node).items())
    if offered := [f"{count} {name}" for name, count in counts if name.startswith(names.RESOURCE_MIG_PREFIX)]:
        return ", ".join(offered)
    if observed is not None and observed.gpus and not observed.error:
        divided = any(gpu.mig_enabled or gpu.instances_withheld for gpu in observed.hardware.kinds)
        return describe_layouts(observed.hardware.layouts) if divided else ""
    product = node.labels.get(names.LABEL_GPU_PRODUCT, "")
    if "-MIG-" in product:
        return product
    # Under strategy none, GFD describes a GPU with MIG on as a whole one.
    whole = product and fixed != "none"
    if whole or node.labels.get(names.LABEL_MIG_CAPABLE) == "false" or not has_gpu(node):
        return ""
    return UNKNOWN


def strategy_users_of(view: InstallationView, cluster_policy: ClusterPolicyView) -> dict[str, str]:
    if "nodes" in view.unread:
        return {"every GPU node": UNKNOWN}
    owners = Owners(find_contenders(view.policies))
    return find_strategy_users(
        replace(view.stack, cluster_policy=cluster_policy),
        {node.name: node for node in view.nodes},
        view.gpunodes,
        {node.name: owners.owner(node) for node in view.nodes},
        view.policies,
    )


def tell_strategy_users(users: Mapping[str, str], fixed: str) -> str:
    """Return why the strategy must not be removed yet, and what comes first. The clause begins with a semicolon."""
    if not users:
        return ""
    them = "this node" if len(users) == 1 else "these nodes"
    unknown = [name for name, devices in users.items() if devices == UNKNOWN]
    wait = f"wait until the agent of {some(unknown)} has reported, and " if unknown else ""
    rows = [f"{name} ({devices})" for name, devices in users.items()]
    return (
        f"; do not remove it while nodes depend on it, because they would lose their MIG devices: {some(rows)}."
        f" First {wait}let label {names.LABEL_PLUGIN_CONFIG} of {them} name an entry with flags.migStrategy: {fixed},"
        f" or set spec.mig.strategy to {fixed}"
    )


def find_unusable_manager(plain: PlainStackView, version: str) -> Finding | None:
    if not plain.mig_manager:
        return Finding(
            Reason.MIG_MANAGER_MISSING,
            "mig-manager does not run in the namespace of NVIDIA's device-plugin chart, so nothing would partition"
            " the GPUs",
        )
    if not pauses_clients(version):
        return Finding(
            Reason.MIG_MANAGER_TOO_OLD,
            f"DaemonSet {plain.mig_manager} runs mig-manager {version}, which is older than v0.15 and does not use"
            f" the label {names.LABEL_DEPLOY_CLIENT} to pause the device plugin, so the plugin would keep the GPUs in"
            " use during a change",
        )
    if not plain.pausable:
        return Finding(
            Reason.PLUGIN_NOT_PAUSED,
            "mig-manager cannot pause the device plugin from NVIDIA's chart, which would keep the GPUs in use during a"
            f" change: the chart's nodeSelector lacks {names.LABEL_DEPLOY_CLIENT}",
        )
    return None


def find_mig_obstacle(
    spec: GPUSharingPolicySpec,
    policy: ClusterPolicyView,
    settings: PlanSettings,
    strategy_users: Mapping[str, str],
    start_changes: Sequence[StartChange],
) -> tuple[Finding | None, str]:
    """Return why mode MIG cannot be carried out alongside NVIDIA's device-plugin chart, and the remedy.

    mig-manager can change the GPUs of a node only while no other program uses them. The GPU Operator's programs stop
    for it by their deploy labels. Those of the chart stop only if they require nvidia.com/gpu.deploy.client=true of
    their nodes, and mig-manager pauses that label since v0.15 (docs/design/nvidia.md#a1). The remedy is a command,
    empty if it must not be run yet.
    """
    plain, namespace, ours = policy.plain, settings.gpu_operator_namespace, settings.mig_config_map
    if plain is None or spec.mig is None:
        return None, ""
    found = find_unusable_manager(plain, policy.mig_manager_version)
    if found is not None and found.reason is Reason.PLUGIN_NOT_PAUSED:
        selector = r"'nodeSelector.nvidia\.com/gpu\.deploy\.client=true'"
        upgrade = plain_upgrade(plain, namespace, selector, option="--set-string")
        return found, f"kubectl label nodes NODE... {names.LABEL_DEPLOY_CLIENT}=true && {upgrade}"
    if found is not None and found.reason is Reason.MIG_MANAGER_MISSING:
        command = "kubectl apply -k deploy/mig-manager"
    elif found is not None:
        command = (
            f"kubectl -n {namespace} set image daemonset/{plain.mig_manager}"
            " nvidia-mig-manager=REPOSITORY/k8s-mig-manager:v0.15.1"
        )
    elif policy.mig_strategy not in ("", spec.mig.strategy):
        message = (
            f"migStrategy in NVIDIA's device-plugin chart is {policy.mig_strategy} and overrides spec.mig.strategy"
            f" {spec.mig.strategy} on every node{tell_strategy_users(strategy_users, policy.mig_strategy)}"
        )
        command = "" if strategy_users else plain_upgrade(plain, namespace, "migStrategy=null")
        return Finding(Reason.MIG_STRATEGY_SET, message), command
    elif policy.mig_config_name != ours:
        message = (
            f"mode MIG has no effect unless DaemonSet {plain.mig_manager} mounts ConfigMap {ours} in"
            f" the directory of its CONFIG_FILE; it mounts {policy.mig_config_name or 'none'}"
        )
        found = Finding(Reason.LAYOUTS_NEED_CONFIG_MAP, message)
        command = f"kubectl -n {namespace} edit daemonset {plain.mig_manager}"
    else:
        return None, ""
    message = found.message + tell_changes(start_changes)  # each of these commands starts mig-manager
    return Finding(found.reason, message), after_labels(command, start_changes)


def find_mig_obstacles(view: InstallationView) -> Iterator[Symptom]:
    place, dra = view.place, view.dra
    if dra.mig_manager and not view.cluster_policies and not is_readable(dra.mig_manager_version):
        yield warning(
            Topic.CLUSTER_POLICY,
            "MigManagerVersionUnknown",
            f"the image of DaemonSet {dra.mig_manager} has no tag that is a version, so it is assumed to be v0.15 or"
            " newer. An older mig-manager does not pause the programs that keep the GPUs in use, and changes would"
            " fail after the drain. Check the image, and give it a tag",
            f"kubectl -n {place.gpu_operator_namespace} get daemonset {dra.mig_manager} -o"
            " jsonpath='{.spec.template.spec.containers[*].image}'",
        )
    if (stack := view.plain) is None:
        return
    specs = (policy.spec for policy in view.policies if policy.spec is not None)
    users, changes = strategy_users_of(view, stack), start_changes_of(view)
    obstacles = (find_mig_obstacle(spec, stack, place, users, changes) for spec in specs)
    for obstacle, command in dict.fromkeys(obstacles):
        if obstacle is not None:
            by_plugin = obstacle.reason is Reason.MIG_STRATEGY_SET
            show = f"kubectl get nodes -L {names.LABEL_PLUGIN_CONFIG}" if by_plugin else SHOW_LABELS
            yield error(Topic.CLUSTER_POLICY, str(obstacle.reason), obstacle.message, command or show)


def find_unselected(node: NodeView, policy: ClusterPolicyView | None) -> str:
    """Return a message with the remedy if NVIDIA's chart does not run on the node.

    That is decided by its deploy label.
    """
    plain, label = policy.plain if policy is not None else None, names.LABEL_DEPLOY_CLIENT
    value = node.labels.get(label, "")
    if plain is None or not plain.pausable or value == "true" or "paused-for-" in value:
        return ""
    state = f"label {label} of {node.name} is {value}" if value else f"{node.name} has no label {label}"
    return (
        f"{state}, so NVIDIA's device plugin does not run there; run:"
        f" kubectl label node {node.name} --overwrite {label}=true"
    )
