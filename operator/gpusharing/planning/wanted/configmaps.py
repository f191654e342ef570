"""What must our ConfigMaps contain, which all nodes share (docs/design/transition.md#configuration)?"""

from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType

from gpusharing.api import names
from gpusharing.planning.snapshot.actions import WriteConfig
from gpusharing.planning.snapshot.nvidia import StackView
from gpusharing.planning.snapshot.views import GPUNodeView, GpuView, NodeView
from gpusharing.planning.wanted import migfile, pluginconfig
from gpusharing.planning.wanted.pluginconfig import PluginConfig
from gpusharing.planning.wanted.target import Request


def plan_config(
    requests: Iterable[Request],
    models: Mapping[str, GpuView],
    plugins: Mapping[str, PluginConfig],
    stack: StackView,
    *,
    nodes: Collection[NodeView] = (),
    gpunodes: Mapping[str, GPUNodeView] = MappingProxyType({}),
) -> tuple[WriteConfig | None, bool]:
    """Return the write that the ConfigMaps need, and whether they contain entries that nothing needs now.

    An entry is added when a policy is accepted, before any label names it. It is removed only when no policy, Node
    label, fence or last proof names it: a missing key makes the device plugin crash-loop (docs/design/nvidia.md#b4).
    The neutral entry is never removed, because a ConfigMap without any entry has the same effect.
    """
    if stack.foreign_maps:
        return None, False
    well_known = migfile.well_known_entries({product: [gpu] for product, gpu in models.items()})
    kept = _find_kept(well_known, nodes, gpunodes, stack)
    plugin = {**stack.admin_plugin_configs}
    plugin |= {key: pluginconfig.render(config) for key, config in plugins.items()}
    # An entry of a policy replaces one of the admin with its name, which replaces one for the cards.
    cards = {**well_known, **kept}
    entries = {**cards, **migfile.parse_admin(stack.admin_mig_file)[0]}
    entries[migfile.ALL_DISABLED] = cards[migfile.ALL_DISABLED]  # every mode except MIG uses this name
    for request in requests:
        plugin |= request.plugins
        if request.entry is not None:
            entries[request.mig_config] = request.entry
    present = migfile.parse(stack.mig_file)
    unclaimed = stack.plugin_configs.keys() - plugin.keys() - {pluginconfig.NEUTRAL_KEY}
    unclaimed |= (present.keys() - entries.keys()) | kept.keys()
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


def _find_kept(
    well_known: Mapping[str, migfile.Entry],
    nodes: Iterable[NodeView],
    gpunodes: Mapping[str, GPUNodeView],
    stack: StackView,
) -> dict[str, migfile.Entry]:
    """Return our present entries that must not be replaced by `well_known` ones of the same name.

    A Node whose label names it would lose its configuration. That happens to cards whose PCI device ids are unknown
    when another card joins.
    """
    present, kept = migfile.sound_entries(stack.mig_file), dict[str, migfile.Entry]()
    changed = {name for name, entry in well_known.items() if name in present and present[name] != entry}
    for node in nodes if changed else ():
        name, gpunode = node.labels.get(names.LABEL_MIG_CONFIG, ""), gpunodes.get(node.name)
        if name not in changed or gpunode is None or gpunode.observed is None:
            continue
        gpus = gpunode.observed.gpus
        meaning = migfile.well_known(gpus, name)
        if migfile.resolve(present[name], gpus) == meaning != migfile.resolve(well_known[name], gpus):
            kept[name] = present[name]
    return kept


def _retain(
    plugin: dict[str, str], entries: dict[str, migfile.Entry], nodes: Iterable[NodeView], stack: StackView
) -> None:
    """Add to `plugin` and `entries`, in place, our present entries that are still in use.

    If somebody has edited or deleted one that is named after its content, what this process read before counts.
    """
    old_plugin = {**stack.plugin_configs, **stack.seen_plugin_configs}
    present = migfile.sound_entries(stack.mig_file)
    old_entries = {**present, **stack.seen_mig_entries}
    unclaimed = (old_plugin.keys() - plugin.keys()) | (old_entries.keys() - entries.keys())
    if not unclaimed:
        return
    # The entry that nodes without the label use has to stay, or their plugin would not start (b.4). NVIDIA's own chart
    # uses the name of the neutral entry for it, and a merged entry of that name must not become neutral under running
    # pods.
    lasting = unclaimed & {*referenced_entries(nodes), pluginconfig.default_entry(stack)}
    if migfile.parse_admin(stack.admin_mig_file)[1]:
        # An entry that cannot be read now was valid when it was merged; a typo must not remove it.
        lasting |= present.keys()
    for key in lasting & (old_plugin.keys() - plugin.keys()):
        plugin[key] = old_plugin[key]
    for name in lasting & (old_entries.keys() - entries.keys()):
        entries[name] = old_entries[name]


def referenced_entries(nodes: Iterable[NodeView]) -> set[str]:
    entries: set[str] = set()
    for node in nodes:
        entries.add(node.labels.get(names.LABEL_MIG_CONFIG, ""))
        entries.add(node.labels.get(names.LABEL_PLUGIN_CONFIG, ""))
        if node.fence is not None:
            entries |= {node.fence.target_mig_config, node.fence.target_plugin_config}
        if node.verified is not None:
            entries |= {node.verified.mig_config, node.verified.plugin_config}
    return entries
