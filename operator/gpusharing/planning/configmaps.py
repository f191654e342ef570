"""What the two ConfigMaps must hold (design.md section 5), and what may go.

An entry is added when a policy is accepted, before any label points at it. It goes only when no policy, Node
label, fence or last verified pair names it: a missing key crash-loops the device plugin (nvidia-actuators.md b.4).
"""

from collections.abc import Iterable, Mapping

from gpusharing.api import names
from gpusharing.api.names import Mode
from gpusharing.api.policy import GPUSharingPolicySpec
from gpusharing.planning import migfile, pluginconfig
from gpusharing.planning.actions import WriteConfig
from gpusharing.planning.geometry import Layout, normalise
from gpusharing.planning.pluginconfig import PluginConfig
from gpusharing.planning.target import find_wish, plugin_config
from gpusharing.planning.views import GpuView, NodeView, PolicyView, StackView


def plan_config(
    policies: Iterable[PolicyView],
    nodes: Iterable[NodeView],
    models: Mapping[str, GpuView],
    plugins: Mapping[str, PluginConfig],
    stack: StackView,
) -> tuple[WriteConfig | None, bool]:
    """The ConfigMaps as they should be (None when they are so already), and whether they hold entries that only
    Nodes keep, so that a later look may find them free. `models`: one GPU per card model present; `plugins`: what
    the targets of nodes need, by key.
    """
    plugin = {key: pluginconfig.render(config) for key, config in plugins.items()}
    entries: dict[str, migfile.Entry] = dict(migfile.parse(stack.admin_mig_file))
    for policy in policies:
        if policy.spec is None:
            continue
        wish = find_wish(policy.name, policy.spec)
        for text in map(pluginconfig.render, foreseen(policy.spec)):
            plugin[pluginconfig.key_for(policy.name, text)] = text
        if wish.entry is not None:
            entries[wish.mig_config] = wish.entry
    for name, entry in migfile.well_known_entries(
        {product: [gpu] for product, gpu in models.items()}
    ).items():
        entries.setdefault(name, entry)
    present = migfile.parse(stack.mig_file)
    unclaimed = (stack.plugin_configs.keys() - plugin.keys()) | (present.keys() - entries.keys())
    if unclaimed:
        kept = unclaimed & referenced(nodes)
        plugin |= {key: text for key, text in stack.plugin_configs.items() if key in kept}
        entries |= {name: entry for name, entry in present.items() if name in kept}
    if (
        plugin == dict(stack.plugin_configs)
        and stack.plugin_map_exists
        and stack.mig_file
        and dict(present) == entries
    ):
        return None, bool(unclaimed)
    return WriteConfig(plugin, migfile.render(entries)), bool(unclaimed)


def foreseen(spec: GPUSharingPolicySpec) -> tuple[PluginConfig, ...]:
    """Device-plugin configurations that a policy needs whatever its nodes are: its own, and the stop between MPS
    and MIG. Time-slicing of a named MIG configuration depends on the cards and comes with the first node.
    """
    stop = (PluginConfig(),) if spec.mode in (Mode.MIG, Mode.MPS) else ()
    layouts: list[Layout | None] = [None]
    if spec.mode is Mode.MIG and spec.mig is not None:
        if spec.mig.layouts is None and spec.time_slicing is not None and spec.mig.strategy == "mixed":
            return stop
        rows = spec.mig.layouts or ()
        layouts = [normalise(row.profiles) if row.profiles else None for row in rows]
        if spec.mig.strategy == "single":
            layouts = [(("any", 1),)]  # every profile is nvidia.com/gpu then
    return (plugin_config(spec, layouts), *stop)


def referenced(nodes: Iterable[NodeView]) -> set[str]:
    """Every entry that a Node names: by label, fence or last verified pair."""
    found: set[str] = set()
    for node in nodes:
        found.add(node.labels.get(names.LABEL_MIG_CONFIG, ""))
        found.add(node.labels.get(names.LABEL_PLUGIN_CONFIG, ""))
        if node.fence is not None:
            found |= {node.fence.target_mig_config, node.fence.target_plugin_config}
        if node.verified is not None:
            found |= {node.verified.mig_config, node.verified.plugin_config}
    return found
