"""What a node that somebody configured by hand serves, in the words of a policy that would change nothing. Pure.

What the GPUs are is what NVML says; what the device plugin makes of them is the entry that the Node's label or
ClusterPolicy's default names. A policy can express less than NVIDIA's files: where it cannot, none is proposed.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gpusharing.api import names
from gpusharing.api.policy import MAX_REPLICAS, MIN_REPLICAS
from gpusharing.planning.gpus.cards import bare_product, find_card
from gpusharing.planning.gpus.geometry import Layout, generated_layouts
from gpusharing.planning.snapshot.stackviews import StackView
from gpusharing.planning.snapshot.views import GPUNodeView, GpuView, NodeView, ObservedView
from gpusharing.planning.stack.nodesymptoms import PluginEntries
from gpusharing.planning.wanted.migfile import resolve_name, well_known
from gpusharing.planning.wanted.pluginconfig import NEUTRAL_KEY, PluginConfig, Sharing, find_flaws
from gpusharing.planning.wanted.target import describe_layouts, predict_resources
from gpusharing.planning.wanted.verify import (
    EXCLUSIVE,
    effective_plugin_config,
    find_entry,
    is_told_mps,
    served,
)
from gpusharing.planning.wanted.yamltext import parse_yaml

Spec = Mapping[str, Any]
"""Mode and its block, as a policy has them on the wire."""
_AT_WORK = ("pending", "rebooting")
_SAID = ("version", "flags.migStrategy", "sharing.timeSlicing", "sharing.mps")
"""Fields of a device plugin's configuration that a policy says in its own way."""


@dataclass(frozen=True, slots=True)
class Handmade:
    """One node as it is."""

    node: str
    """Name of the node."""
    products: tuple[str, ...]
    """The products of its cards, each once."""
    gpus: int
    """How many GPUs it has."""
    spec: Spec
    """The mode and its block that leave it as it is."""
    text: str
    """The layout in words, such as `2x3g.40gb, 4x shared`."""
    unsaid: tuple[str, ...] = ()
    """What else the entry of its device plugin says: it stays in force until the first change of the node."""


def find_handmade(
    node: NodeView, observed: ObservedView, stack: StackView, plugin: PluginEntries
) -> Handmade | str:
    """The node, or why no policy can say what it is, a clause for people.

    `stack`: with the entries of `plugin`, the ConfigMap that ClusterPolicy names for the device plugin.
    """
    gpus = observed.gpus
    if (
        why := find_unsettled(node)
        or _contradiction(node, gpus, stack)
        or _only_entry(node, stack, plugin.config_map)
    ):
        return why
    config = effective_plugin_config(node, stack)
    if config is None:
        return find_unserved(node, stack, plugin)
    layouts = observed.hardware.layouts
    offered = predict_resources(layouts, PluginConfig(config.mig_strategy))
    here = config.on(offered)
    use = PluginUse(here, any(layout is not None for layout in layouts), frozenset(offered))
    if why := next((why for said in BEYOND_POLICIES if (why := said(use))), ""):
        return why
    entry = find_entry(node.labels.get(names.LABEL_PLUGIN_CONFIG, ""), stack)
    return Handmade(
        node=node.name,
        products=tuple(sorted({bare_product(gpu.product) for gpu in gpus})),
        gpus=len(gpus),
        spec=_spec(node, gpus, here, stack),
        text=describe_layouts(layouts, here.sharing.replicas[0][1] if here.sharing else 1),
        unsaid=find_unsaid(stack.plugin_configs.get(entry, "")),
    )


# --- what is in the way --------------------------------------------------------------------------------------


def _only_entry(node: NodeView, stack: StackView, plugin_map: str) -> str:
    """Say that the node has no label for its device plugin and uses the only entry of the ConfigMap of NVIDIA's chart;
    empty if it does not. That ends once the entry is merged into our ConfigMap, which has more
    (docs/design/nvidia.md#b4)."""
    theirs, policy = stack.admin_plugin_configs, stack.cluster_policy
    if policy is None or policy.plain is None or policy.plugin_default or not plugin_map:
        return ""
    if node.labels.get(names.LABEL_PLUGIN_CONFIG) or NEUTRAL_KEY in theirs or len(theirs) != 1:
        return ""
    (key,) = theirs
    return (
        f"no label names its device plugin's configuration, so it uses {key}, the only entry of ConfigMap"
        f" {plugin_map}; the operator's ConfigMap has more. Run: kubectl label node {node.name}"
        f" {names.LABEL_PLUGIN_CONFIG}={key}"
    )


def find_unserved(node: NodeView, stack: StackView, plugin: PluginEntries) -> str:
    """Return why the device plugin of a node has no configuration that it can start with; empty if it has one."""
    if effective_plugin_config(node, stack) is not None:
        return ""
    entry = find_entry(node.labels.get(names.LABEL_PLUGIN_CONFIG, ""), stack)
    refused = next(
        (flaw.text for flaw in find_flaws(stack.plugin_configs.get(entry, "")) if flaw.refused), ""
    )
    held = plugin.absence or f"ConfigMap {plugin.config_map} has no entry of that name"
    if refused:
        held = f"ConfigMap {plugin.config_map or 'of the operator'}, entry {entry}, {refused}"
    elif not plugin.config_map:
        held = "ClusterPolicy names no ConfigMap for it"
    return (
        f"its device plugin is configured to use entry {entry}, but {held}: the node"
        f" loses its GPUs when the plugin restarts. Correct that, or run: kubectl label node {node.name}"
        f" {names.LABEL_PLUGIN_CONFIG}-"
    )


def find_unsettled(node: NodeView) -> str:
    """Say that mig-manager has not applied the configuration of the node's label yet, or failed to; empty if it has."""
    config, state = node.labels.get(names.LABEL_MIG_CONFIG, ""), node.labels.get(names.LABEL_MIG_STATE, "")
    if config and state in _AT_WORK:
        return f"mig-manager is applying {config} (state {state}): run import again when it is done"
    if config and state == "failed":
        return f"mig-manager failed to apply {config}: fix that first; the log of its pod says why"
    return ""


def _contradiction(node: NodeView, gpus: Sequence[GpuView], stack: StackView) -> str:
    """Say that the node's MIG label is missing, unknown, or does not match the instances on its GPUs; empty if it
    matches."""
    config, found = node.labels.get(names.LABEL_MIG_CONFIG, ""), tuple(gpu.layout for gpu in gpus)
    if not config:
        return _unnamed(node, gpus) if any(found) else ""
    if not any(gpu.mig_capable for gpu in gpus):
        return ""
    label = f"{names.LABEL_MIG_CONFIG} is {config}"
    meaning = resolve_name(config, node.name, gpus, stack)
    if isinstance(meaning, str):
        return f"{label}, which is not a known configuration: {meaning}"
    if meaning != found:
        return (
            f"{label}, which means {describe_layouts(meaning)}, but its GPUs have {describe_layouts(found)}:"
            " mig-manager would change them at its next start"
        )
    return ""


def _unnamed(node: NodeView, gpus: Sequence[GpuView]) -> str:
    """Say that MIG instances exist without a label, because nos or a person created them without mig-manager, and which
    label to set."""
    found = tuple(gpu.layout for gpu in gpus)
    known = (name for name in generated_layouts(gpus[0].profiles) if well_known(gpus, name) == found)
    label = f"kubectl label node {node.name} {names.LABEL_MIG_CONFIG}="
    how = next((f"run: {label}{name}" for name in known), f"name an entry that has this layout: {label}NAME")
    return (
        f"its GPUs have {describe_layouts(found)} and {names.LABEL_MIG_CONFIG} is not set, so nothing would"
        f" recreate the instances after a reboot. mig-manager finds them in place when you {how}"
    )


@dataclass(frozen=True, slots=True)
class PluginUse:
    """What the device plugin makes of the GPUs of one node."""

    config: PluginConfig
    """The configuration of the plugin, with a row for each of `offered`."""
    with_mig: bool
    """Whether any of the GPUs has MIG on."""
    offered: frozenset[str]
    """The resource names that it has to offer, before it shares any."""

    @property
    def replicas(self) -> tuple[tuple[str, int], ...]:
        """Into how many it shares each resource; empty: it shares none."""
        return self.config.sharing.replicas if self.config.sharing is not None else ()

    @property
    def counts(self) -> str:
        """How many shares there are of each resource, in words."""
        return ", ".join(f"{name} by {count}" for name, count in self.replicas)

    @property
    def with_mps(self) -> bool:
        """Whether it shares by MPS."""
        return self.config.sharing is not None and self.config.sharing.strategy == "mps"


def _whole_despite_mig(use: PluginUse) -> str:
    """Say that MIG is on, but the plugin advertises whole GPUs, so that it does not share the MIG instances."""
    if not use.with_mig or use.config.mig_strategy != "none":
        return ""
    return (
        "MIG is on, but its device plugin offers the GPUs as whole ones (migStrategy none): no mode does that"
    )


def _uneven(use: PluginUse) -> str:
    """Say that the plugin shares the resources by different numbers; empty if it does not. Checked before
    `_partly_shared`, because fixing that first would not help."""
    if len({count for _, count in use.replicas}) <= 1:
        return ""
    return f"its device plugin shares {use.counts}: a policy has one number of replicas for all"


def _too_many(use: PluginUse) -> str:
    """Return the message about a device plugin that shares a GPU among more pods than a policy allows; empty if it does
    not."""
    if all(count <= MAX_REPLICAS for _, count in use.replicas):
        return ""
    return f"its device plugin shares {use.counts}: a policy allows {MIN_REPLICAS} to {MAX_REPLICAS}"


def _partly_shared(use: PluginUse) -> str:
    """Say that the plugin shares some resources and leaves others whole; empty if it does not."""
    missing = sorted(use.offered - dict(use.replicas).keys())
    if use.config.sharing is None or not missing:
        return ""
    return f"its device plugin shares {use.counts} and leaves {', '.join(missing)} whole: a policy shares all or none"


def _mps_on_mig(use: PluginUse) -> str:
    """Say that the node has MPS on MIG instances, which NVIDIA's device plugin refuses; empty if it does not."""
    return "MPS on MIG instances: NVIDIA's device plugin refuses it" if use.with_mps and use.with_mig else ""


def _lenient_mps(use: PluginUse) -> str:
    """Say that containers may request several MPS shares of the node today, which a policy would refuse; empty if they
    may not."""
    sharing = use.config.sharing
    if sharing is None or not use.with_mps or sharing.fail_requests_greater_than_one:
        return ""
    return (
        "MPS with failRequestsGreaterThanOne false: a policy with MPS always refuses requests for two shares"
    )


BEYOND_POLICIES: tuple[Callable[[PluginUse], str], ...] = (
    _whole_despite_mig,
    _uneven,
    _too_many,
    _partly_shared,
    _mps_on_mig,
    _lenient_mps,
)
"""Checks for what a device plugin does and no policy can express; the first that finds something is reported."""


def find_unsaid(text: str) -> tuple[str, ...]:
    """Return the paths of the fields in a device plugin's configuration that no policy can express. Fields that the
    plugin ignores are left out. Empty for a configuration that the plugin refuses."""
    flaws = find_flaws(text)
    if any(flaw.refused for flaw in flaws):
        return ()
    known = tuple(f"{path}.".lower() for path in (*_SAID, *(flaw.path for flaw in flaws)))
    paths = _paths(parse_yaml(text), "")
    return tuple(sorted(path for path in paths if not f"{path}.".lower().startswith(known)))


def _paths(found: object, path: str) -> Iterator[str]:
    """Yield the path of everything that is no map."""
    if path and not isinstance(found, dict):
        yield path
    for key, item in found.items() if isinstance(found, dict) else ():
        yield from _paths(item, f"{path}.{key}".lstrip("."))


# --- in the words of a policy ----------------------------------------------------------------------------------


def _spec(node: NodeView, gpus: Sequence[GpuView], config: PluginConfig, stack: StackView) -> Spec:
    """Return the mode and its settings that describe what the node serves. A MIG layout is named by the node's label if
    that is a well-known name with this meaning, else written out."""
    with_mig, sharing = any(gpu.layout is not None for gpu in gpus), config.sharing
    if not with_mig:
        if sharing is None:
            return {"mode": "Full"}
        if sharing.strategy == "mps":
            return {"mode": "MPS", "mps": _shares(sharing)}
        return {"mode": "TimeSlicing", "timeSlicing": _shares(sharing)}
    mig: dict[str, Any] = {"strategy": config.mig_strategy}
    label = node.labels.get(names.LABEL_MIG_CONFIG, "")
    if well_known(gpus, label) == tuple(gpu.layout for gpu in gpus):
        mig["config"] = label
    else:
        mig["layouts"] = _layouts(gpus)
    slicing = {"timeSlicing": _shares(sharing)} if sharing is not None else {}
    return {"mode": "MIG", "mig": mig, **slicing}


def _shares(sharing: Sharing) -> dict[str, Any]:
    block: dict[str, Any] = {"replicas": sharing.replicas[0][1]}
    if sharing.rename:
        block["renameByDefault"] = True
    if sharing.fail_requests_greater_than_one and sharing.strategy != "mps":
        block["failRequestsGreaterThanOne"] = True
    return block


def _layouts(gpus: Sequence[GpuView]) -> list[dict[str, Any]]:
    """A row for each layout, with the GPUs that have it; a whole GPU has no profiles."""
    rows: dict[Layout | None, list[int]] = {}
    for gpu in gpus:
        rows.setdefault(gpu.layout, []).append(gpu.index)
    return [
        {"devices": "all" if len(rows) == 1 else indexes, "profiles": dict(layout or ())}
        for layout, indexes in rows.items()
    ]


INSTANCE = "-MIG-"
"""In GPU Feature Discovery's label of the product where MIG instances are served as GPUs, before their profile."""
MOST = 16
"""GPUs of one node: an HGX board has 8, and NVIDIA's largest of one system 16."""


# --- before the installation ---------------------------------------------------------------------------------
# Nobody reads NVML then. GPU Feature Discovery names the card, `nvidia.com/mig.config` the layout, and the device
# plugin offers what follows from both: where one number of GPUs explains all of it, that number is presumed. It proves
# nothing, and everything that shows it says so.


def presume(node: NodeView, stack: StackView) -> GPUNodeView | None:
    """Return what the agent of a node would most likely read, inferred from the node's labels and what it offers; None
    if nothing explains those, or if its card is not in the table."""
    label = node.labels.get(names.LABEL_GPU_PRODUCT, "")
    config = effective_plugin_config(node, stack)
    if not label or config is None:
        return None
    card = find_card(label)
    mps = is_told_mps(node, stack)
    for count in range(1, MOST + 1):
        gpus = [
            GpuView(
                index=index,
                product=bare_product(label),
                mig_capable=bool(card and card.profiles),
                mig_enabled=False,
                mig_pending=False,
                compute_mode=EXCLUSIVE if mps else "Default",
                layout=None,
                profiles=card.profiles if card else (),
            )
            for index in range(count)
        ]
        layouts = _labeled_layouts(node, gpus, stack)
        if layouts is not None and predict_resources(layouts, config) == served(node):
            divided = tuple(
                replace(gpu, mig_enabled=layout is not None, layout=layout)
                for gpu, layout in zip(gpus, layouts, strict=True)
            )
            return GPUNodeView(node.name, node.uid, "", False, ObservedView("", False, "", divided))
    return None


def _labeled_layouts(
    node: NodeView, gpus: Sequence[GpuView], stack: StackView
) -> tuple[Layout | None, ...] | None:
    """Return the layout of each GPU that the label nvidia.com/mig.config stands for. Without the label, or if the
    first GPU cannot do MIG, each layout is None (no MIG). The whole result is None if the product label shows MIG
    instances all the same, or if the label's value means nothing on these GPUs."""
    config = node.labels.get(names.LABEL_MIG_CONFIG, "")
    if not config or not gpus[0].mig_capable:
        # Under strategy single instances are called nvidia.com/gpu, as whole GPUs are; the product tells them apart.
        divided = INSTANCE in node.labels.get(names.LABEL_GPU_PRODUCT, "")
        return None if divided else (None,) * len(gpus)
    found = resolve_name(config, node.name, gpus, stack)
    return None if isinstance(found, str) else found
