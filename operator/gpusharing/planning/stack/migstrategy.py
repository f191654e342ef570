"""Which nodes would lose resources without ClusterPolicy's mig.strategy, which beats every entry of the device plugin.

See docs/design/nvidia.md#b2.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from gpusharing.api import names
from gpusharing.planning.snapshot.stackviews import ClusterPolicyView, StackView
from gpusharing.planning.snapshot.views import GPUNodeView, NodeView, ObservedView, PolicyView
from gpusharing.planning.stack.installationviews import InstallationView
from gpusharing.planning.vocabulary.lengths import some
from gpusharing.planning.wanted import pluginconfig
from gpusharing.planning.wanted.assess import has_gpu
from gpusharing.planning.wanted.ownership import Owners, find_contenders
from gpusharing.planning.wanted.target import describe_layouts
from gpusharing.planning.wanted.verify import find_entry, served

UNKNOWN = "nothing is known of its GPUs"


def find_strategy_users(
    stack: StackView,
    nodes: Mapping[str, NodeView],
    gpunodes: Mapping[str, GPUNodeView],
    owners: Mapping[str, str],
    policies: Iterable[PolicyView],
) -> dict[str, str]:
    """Return, by node, the MIG devices that are named by the MIG strategy of ClusterPolicy or NVIDIA's chart.

    A node whose policy waits for the removal, because it wants another strategy, is left out unless it is paused.
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
    """Return why the strategy must not be removed yet, and what comes first, as a clause that begins with a semicolon."""
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
