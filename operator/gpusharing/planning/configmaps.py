"""What the two ConfigMaps must hold (design.md section 5), and what may go.

An entry is added when a policy is accepted, before any label points at it. It goes only when no policy, Node
label, fence or last verified pair names it: a missing key crash-loops the device plugin (nvidia-actuators.md b.4).
"""

from collections.abc import Callable, Iterable, Mapping

from gpusharing.api import names
from gpusharing.planning import migfile, pluginconfig
from gpusharing.planning.actions import WriteConfig
from gpusharing.planning.pluginconfig import PluginConfig
from gpusharing.planning.target import Wish, find_wish
from gpusharing.planning.views import GpuView, NodeView, PolicyView, StackView


def _wish(policy: PolicyView) -> Wish | None:
    return find_wish(policy.name, policy.spec) if policy.spec is not None else None


def plan_config(
    policies: Iterable[PolicyView],
    nodes: Iterable[NodeView],
    models: Mapping[str, GpuView],
    plugins: Mapping[str, PluginConfig],
    stack: StackView,
    wish_of: Callable[[PolicyView], Wish | None] = _wish,
) -> tuple[WriteConfig | None, bool]:
    """The ConfigMaps as they should be (None when they are so already), and whether they hold entries that only
    Nodes keep, so that a later look may find them free. `models`: one GPU per card model present; `plugins`: what
    the targets of nodes need, by key.
    """
    plugin = {key: pluginconfig.render(config) for key, config in plugins.items()}
    entries: dict[str, migfile.Entry] = dict(migfile.parse(stack.admin_mig_file))
    for policy in policies:
        if (wish := wish_of(policy)) is None:
            continue
        plugin |= wish.plugins
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
