"""Which objects of ours must the cluster have: ConfigMaps, and DeviceClasses and DeviceTaintRules for DRA?

All nodes share the ConfigMaps (docs/design/transition.md#configuration). The others are there where NVIDIA's DRA driver
serves the GPUs.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType

from gpusharing.api import names
from gpusharing.api.names import RESOURCE_MIG_PREFIX
from gpusharing.planning.gpus.geometry import Layout, parse_profile, resource_name
from gpusharing.planning.snapshot.actions import WriteClasses, WriteConfig, WriteRules
from gpusharing.planning.snapshot.nvidia import DRA_DRIVER, DeviceClassView, StackView
from gpusharing.planning.snapshot.views import ClusterSnapshot, GPUNodeView, GpuView, NodeView
from gpusharing.planning.vocabulary.commands import Command
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.wanted import migfile, pluginconfig
from gpusharing.planning.wanted.pluginconfig import PluginConfig
from gpusharing.planning.wanted.target import Request, Target


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


PREFIX = "gpusharing-mig-"
"""How the names of our DeviceClasses begin."""


def wanted_class(profile: str) -> DeviceClassView:
    resource = resource_name(profile)
    kind = f"device.attributes['{DRA_DRIVER}']"
    selector = f"device.driver == '{DRA_DRIVER}' && {kind}.type == 'mig' && {kind}.profile == '{profile}'"
    name = PREFIX + resource.removeprefix(RESOURCE_MIG_PREFIX)
    return DeviceClassView(name, uid="", version="", ours=True, resource=resource, selectors=(selector,))


def find_profiles(layouts: Iterable[Layout | None]) -> tuple[str, ...]:
    return tuple(sorted({profile for layout in layouts for profile, _ in layout or ()}))


def plan_classes(snapshot: ClusterSnapshot, targets: Iterable[Target]) -> WriteClasses | None:
    """Return the writes of our DeviceClasses, one for each MIG profile in use, or None also if they were not read.

    Pods go on requesting MIG instances as extended resources by them. Whole GPUs need none, because the driver's chart
    installs class `gpu.nvidia.com` (dra-driver-nvidia-gpu v0.5.0, templates/deviceclass-gpu.yaml). A class of somebody
    else is never touched. A class of ours that has lost its extended resource is not corrected, because the API server
    would drop that field again. One that has another is not removed, because it may be the copy of a person.
    """
    if (present := snapshot.stack.dra.classes) is None:
        return None
    classes = {one.name: one for one in present}
    ours = {one.name: one for one in present if _is_ours(one)}
    taken = {name for one in present if one.name not in ours for name in (one.name, one.resource)}
    reports = (one.observed for one in snapshot.gpunodes.values() if one.observed is not None)
    offers = [(node, node.devices.layouts) for node in snapshot.nodes.values() if node.devices is not None]
    # A node that was rolled back, or waits for its change, serves pods with what was proven on it before.
    proven = (layouts for node, layouts in offers if node.verified is not None)
    wanted = _classes_of((*(target.layouts for target in targets), *proven))
    in_use = wanted | _classes_of((*(one.hardware.layouts for one in reports), *(layouts for _, layouts in offers)))
    writes = WriteClasses(
        create=tuple(one for name, one in wanted.items() if name not in classes and not taken & {name, one.resource}),
        correct=tuple(
            (one, current)
            for name, one in in_use.items()
            if (current := ours.get(name)) is not None
            and current.resource
            and (current.plain, current.resource, current.selectors) != (True, one.resource, one.selectors)
        ),
        remove=tuple(
            one for name, one in ours.items() if name not in in_use and one.resource in ("", _resource_in(name))
        ),
    )
    return None if writes == WriteClasses() else writes


def _is_ours(current: DeviceClassView) -> bool:
    # A copy that somebody made under another name is not ours, even if it has our label and PREFIX.
    return current.ours and bool(_resource_in(current.name))


def _resource_in(name: str) -> str:
    """Return the extended resource of our class with this name. Empty if no class of ours could have the name."""
    resource = RESOURCE_MIG_PREFIX + name.removeprefix(PREFIX)
    return resource if name.startswith(PREFIX) and profile_of(resource) else ""


def profile_of(resource: str) -> str:
    """Return the MIG profile of an extended resource, such as `1g.10gb+me` for nvidia.com/mig-1g.10gb.me."""
    profile = resource.removeprefix(RESOURCE_MIG_PREFIX).replace("gb.", "gb+")
    return profile if parse_profile(profile) and resource_name(profile) == resource else ""


def _classes_of(nodes: Iterable[Iterable[Layout | None]]) -> dict[str, DeviceClassView]:
    profiles = find_profiles(layout for layouts in nodes for layout in layouts)
    return {one.name: one for one in map(wanted_class, profiles)}


def find_unrequestable(layouts: Iterable[Layout | None], stack: StackView) -> str | Finding:
    """Return why pods could not request a MIG profile of these layouts as an extended resource.

    A message if a person has to act. Otherwise the operator is about to create the class, and the result is a Finding.
    """
    classes = stack.dra.classes or ()
    names, resources = {one.name: one for one in classes}, {one.resource for one in classes}
    for one in map(wanted_class, find_profiles(layouts)):
        if one.resource in resources:
            continue
        current = names.get(one.name)
        if current is not None and not _is_ours(current):
            return (
                f"no pod could request {one.resource}: DeviceClass {one.name} belongs to somebody else and does not"
                f" have spec.extendedResourceName {one.resource}; set it there, or give that class another name"
            )
        if current is not None and not current.resource:
            remove = Command.of("kubectl delete deviceclass", one.name, effects=())  # no running pod needs its class
            message = (
                f"DeviceClass {one.name} has no spec.extendedResourceName, so no pod could request {one.resource}: the"
                " API server drops the field unless its DRAExtendedResource feature gate is on. Once it is, run:"
                f" {remove}"
            )
            return Finding(Reason.ACTUATOR_MISSING, message, commands=(remove,))
        message = f"no DeviceClass lets pods request {one.resource} yet; the operator creates {one.name}"
        if stack.dra.class_error:
            return f"{message}, which has failed: {stack.dra.class_error}"
        return Finding(Reason.CONFIG_PROPAGATING, message)
    return ""


def find_doubtful(classes: Iterable[DeviceClassView], resources: Collection[str]) -> dict[str, str]:
    """Return the classes of others whose selectors lack the profile of their resource, each with a clause that says so.

    The API server lets any class claim any extended resource, and the scheduler gives pods what the class selects.
    """
    doubts = {}
    for one in classes:
        profile = profile_of(one.resource) if one.resource in resources and not _is_ours(one) else ""
        word = rf"(?<![\w.+-]){re.escape(profile)}(?![\w.+-])"
        if profile and not any(re.search(word, selector) for selector in one.selectors):
            doubts[one.name] = (
                f"DeviceClass {one.name} belongs to somebody else and has spec.extendedResourceName {one.resource}, but"
                f" none of its selectors names the profile {profile}, so pods that request {one.resource} may get"
                " another device or stay Pending"
            )
    return doubts


def plan_rules(snapshot: ClusterSnapshot, busy: Collection[str]) -> WriteRules | None:
    """Return the writes of our DeviceTaintRules, one for each node whose fence says so, or None.

    A fence is written before its rule and removed before it, so the fences alone say which rules must exist
    (docs/adr/0079-a-device-taint-rule-for-a-cordon.md). The rules of `busy` nodes, to which this pass writes, are left
    to the next. A rule that differs is created anew, so that its creation time says since when it keeps pods off.
    """
    fenced = {name for name, node in snapshot.nodes.items() if node.fence is not None and node.fence.tainted}
    left = {name for name, node in snapshot.nodes.items() if node.fence_error} | set(busy)
    rules = [rule for rule in snapshot.taint_rules if rule.node]
    writes = WriteRules(
        create=tuple(sorted(fenced - {rule.node for rule in rules} - left)),
        remove=tuple(rule for rule in rules if rule.node not in left and (rule.node not in fenced or not rule.since)),
    )
    return None if writes == WriteRules() else writes
