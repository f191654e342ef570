"""What the two ConfigMaps must hold (docs/design/transition.md#configuration), and what may go.

An entry is added when a policy is accepted, before any label points at it. It goes only when no policy, Node
label, fence or last verified pair names it: a missing key crash-loops the device plugin (docs/design/nvidia.md#b4). The
neutral entry never goes: a ConfigMap without any entry does the same.
"""

from collections.abc import Iterable, Mapping

from gpusharing.api import names
from gpusharing.planning.snapshot.actions import WriteConfig
from gpusharing.planning.snapshot.stackviews import StackView
from gpusharing.planning.snapshot.views import GpuView, NodeView
from gpusharing.planning.wanted import migfile, pluginconfig
from gpusharing.planning.wanted.pluginconfig import PluginConfig
from gpusharing.planning.wanted.target import Wish


def plan_config(
    wishes: Iterable[Wish],
    nodes: Iterable[NodeView],
    models: Mapping[str, GpuView],
    plugins: Mapping[str, PluginConfig],
    stack: StackView,
) -> tuple[WriteConfig | None, bool]:
    """The ConfigMaps as they should be (None when they are already, or are somebody else's), and whether they hold
    entries that only Nodes keep, so that a later look may find them free.

    `wishes`: of the policies; `models`: one GPU per card model present; `plugins`: what the targets of nodes need, by
    key.
    """
    if stack.foreign_map:
        return None, False
    plugin, entries = _wanted(wishes, models, plugins, stack)
    present = migfile.parse(stack.mig_file)
    neutral = {pluginconfig.NEUTRAL_KEY}
    unclaimed = (stack.plugin_configs.keys() - plugin.keys() - neutral) | (present.keys() - entries.keys())
    _retain(plugin, entries, nodes, stack)
    plugin.setdefault(pluginconfig.NEUTRAL_KEY, pluginconfig.NEUTRAL)
    if (
        plugin == dict(stack.plugin_configs)
        and stack.plugin_map_exists
        and dict(present) == entries
        and migfile.is_rendered(stack.mig_file)
        and stack.marked
        and stack.written.keys() >= plugin.keys() | entries.keys()
    ):
        return None, bool(unclaimed)
    return WriteConfig(plugin, migfile.render(entries)), bool(unclaimed)


def _wanted(
    wishes: Iterable[Wish],
    models: Mapping[str, GpuView],
    plugins: Mapping[str, PluginConfig],
    stack: StackView,
) -> tuple[dict[str, str], dict[str, migfile.Entry]]:
    """What policies, the admin and the cards present need: plugin configurations and mig-parted entries."""
    plugin = dict(stack.admin_plugin_configs)
    plugin |= {key: pluginconfig.render(config) for key, config in plugins.items()}
    well_known = migfile.well_known_entries({product: [gpu] for product, gpu in models.items()})
    entries = {**well_known, **migfile.parse_admin(stack.admin_mig_file).entries}
    entries[migfile.ALL_DISABLED] = well_known[
        migfile.ALL_DISABLED
    ]  # every mode but MIG means it by this name
    for wish in wishes:
        plugin |= wish.plugins
        if wish.entry is not None:
            entries[wish.mig_config] = wish.entry
    return plugin, entries


def _retain(
    plugin: dict[str, str], entries: dict[str, migfile.Entry], nodes: Iterable[NodeView], stack: StackView
) -> None:
    """Add entries that no policy wants and a Node still names, as they were before somebody edited or deleted them."""
    old_plugin = {**stack.plugin_configs, **stack.seen_plugin_configs}
    present = migfile.sound_entries(stack.mig_file)
    old_entries = {**present, **stack.seen_mig_entries}
    unclaimed = (old_plugin.keys() - plugin.keys()) | (old_entries.keys() - entries.keys())
    if not unclaimed:
        return
    # The entry of nodes without the label, or their plugin would not start (b.4). NVIDIA's own chart uses the neutral
    # entry's name for it: a merged one must not become neutral under running pods.
    kept = unclaimed & {*referenced(nodes), pluginconfig.default_entry(stack)}
    if migfile.parse_admin(stack.admin_mig_file).problem:
        # An entry that cannot be read now was right when it was merged; a typing error removes no entry.
        kept |= present.keys()
    for key in kept & (old_plugin.keys() - plugin.keys()):
        plugin[key] = old_plugin[key]
    for name in kept & (old_entries.keys() - entries.keys()):
        entries[name] = old_entries[name]


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
