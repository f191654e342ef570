"""The configuration that was last proven on a node, as a target: a failed change is rolled back to it
(docs/design/transition.md#rollback).

The record on the Node names two configurations. Both must still mean what they meant: the device plugin's is named
after its content, and what the mig-parted entry makes of these GPUs must read as the record says.
"""

from gpusharing.api.names import Mode
from gpusharing.planning.gpus.geometry import Layout
from gpusharing.planning.snapshot.records import Verified
from gpusharing.planning.snapshot.stackviews import StackView
from gpusharing.planning.snapshot.views import NodeView, ObservedView, routing_label
from gpusharing.planning.vocabulary.lengths import counted
from gpusharing.planning.wanted import migfile, pluginconfig
from gpusharing.planning.wanted.configured import configured_since
from gpusharing.planning.wanted.migfile import Unresolved
from gpusharing.planning.wanted.pluginconfig import PluginConfig
from gpusharing.planning.wanted.target import Target, describe_layouts, predict_resources


def find_last_proven(node: NodeView, observed: ObservedView, stack: StackView) -> Target | str:
    """Return the target that the record of the last proof names, or why there is no valid one, as a clause for
    people."""
    record, gpus = node.verified, observed.gpus
    if record is None:
        return "nothing was proven on the node before"
    if not record.layout:
        return "an older version of the operator recorded the last proof without its layout"
    if record.gpus not in (0, len(gpus)):
        return f"the last proof was of {counted(record.gpus, 'GPU')}, and NVML lists {len(gpus)}"
    content, plugin = _find_plugin(record.plugin_config, stack)
    if plugin is None:
        return f"the device plugin's configuration {record.plugin_config} no longer exists"
    layouts = _find_layouts(record, node, observed, stack)
    if isinstance(layouts, Unresolved):
        return f"the mig-parted configuration {record.mig_config} is no longer usable: {layouts.why}"
    text = describe_layouts(layouts, plugin.sharing.replicas[0][1] if plugin.sharing else 1)
    if text != record.layout:
        return f"{record.mig_config or 'what is recorded'} now means {text}, but {record.layout} was proven"
    mode = _find_mode(layouts, plugin)
    return Target(
        mode=mode,
        routing=routing_label(mode, time_slicing=plugin.sharing is not None),
        layouts=layouts,
        mig_config=record.mig_config,
        plugin_key=record.plugin_config,
        plugin=plugin,
        resources=predict_resources(layouts, plugin),
        text=text,
        configured=configured_since((record.plugin_config, content), record.mig_config, layouts, gpus, stack),
    )


def _find_plugin(key: str, stack: StackView) -> tuple[str, PluginConfig | None]:
    """Return text and meaning of the device plugin's configuration of this name; empty and None if it is lost. An entry
    that somebody edited or removed is found in what was seen before, because it is about to be written again."""
    for entries in (stack.plugin_configs, stack.seen_plugin_configs):
        content = entries.get(key)
        if content is not None and pluginconfig.is_named_after(content, key):
            return content, pluginconfig.parse(content)
    return "", None


def _find_layouts(
    record: Verified, node: NodeView, observed: ObservedView, stack: StackView
) -> tuple[Layout | None, ...] | Unresolved:
    whole = (None,) * len(observed.gpus)
    if record.mig_config == migfile.ALL_DISABLED:
        return whole
    if record.mig_config:
        return migfile.resolve_name(record.mig_config, node.name, observed.gpus, stack)
    if observed.hardware.layouts != whole:
        return Unresolved("MIG is on, and no recorded mig-manager configuration would switch it off")
    return whole


def _find_mode(layouts: tuple[Layout | None, ...], plugin: PluginConfig) -> Mode:
    if plugin.sharing is not None and plugin.sharing.strategy == "mps":
        return Mode.MPS
    if layouts.count(None) < len(layouts):
        return Mode.MIG
    return Mode.TIME_SLICING if plugin.sharing is not None else Mode.FULL
