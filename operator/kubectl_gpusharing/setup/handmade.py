"""Which policy would change nothing on nodes that people set up by hand?

The GPUs are those that NVML reports (`presume` infers them before the installation). How the device plugin shares them
is read from the entry that the Node's label or ClusterPolicy's default names. Policies can express less than NVIDIA's
files; no policy is proposed for a node that needs more.
"""

import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from itertools import chain, count
from typing import Any

from gpusharing.api import names
from gpusharing.api.names import LABEL_HOSTNAME, PREFIX
from gpusharing.api.policy import MAX_REPLICAS, MIN_REPLICAS
from gpusharing.api.rules import MAX_NAME
from gpusharing.api.validation import is_rewritten
from gpusharing.kube.client import JSON
from gpusharing.planning.gpus.cards import bare_product, find_card
from gpusharing.planning.gpus.geometry import Layout
from gpusharing.planning.snapshot.nvidia import StackView
from gpusharing.planning.snapshot.views import ClusterSnapshot, GPUNodeView, GpuView, NodeView, ObservedView
from gpusharing.planning.stack.effects import find_layouts, label_nodes, tell_effects
from gpusharing.planning.stack.nodesymptoms import PluginEntries
from gpusharing.planning.stack.offers import find_misfits
from gpusharing.planning.vocabulary.commands import label_command
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.wanted.assess import has_gpu
from gpusharing.planning.wanted.migfile import resolve_name, well_known
from gpusharing.planning.wanted.pluginconfig import NEUTRAL_KEY, PluginConfig, find_flaws, parse_yaml
from gpusharing.planning.wanted.target import describe_layouts, predict_resources
from gpusharing.planning.wanted.verify import EXCLUSIVE, advertised, effective_plugin_config, find_entry, tell_partial
from kubectl_gpusharing.live.files import policy_manifest

_EXPRESSIBLE = ("version", "flags.migStrategy", "sharing.timeSlicing", "sharing.mps")
"""Fields of a device plugin's configuration that a policy can express."""


@dataclass(frozen=True, slots=True)
class Handmade:
    """A node that was configured by hand, with the policy settings that match it."""

    node: str
    products: tuple[str, ...]
    gpus: int
    spec: Mapping[str, Any]
    """The mode and its settings, as in the JSON of a policy's `spec`."""
    text: str
    """The layout in words, such as `2x3g.40gb, 4x shared`."""
    inexpressible: tuple[str, ...] = ()
    """Fields of the device plugin's entry that no policy can express, in force until the node's first change."""


def find_handmade(
    node: NodeView, observed: ObservedView, snapshot: ClusterSnapshot, plugin: PluginEntries
) -> Handmade | str:
    """Return the node with the policy settings that match it, or a clause that says why none do.

    The entries of the ConfigMap that ClusterPolicy names for the device plugin must already be merged into the
    snapshot's.
    """
    gpus, stack = observed.gpus, snapshot.stack
    if why := find_unsettled(node):
        return why
    if why := tell_partial(gpus):
        return f"no policy can want what its GPUs have: {why}"
    if why := tell_misfit(node, snapshot):
        return why
    theirs, policy = stack.admin_plugin_configs, stack.cluster_policy
    falls_back = policy is not None and policy.plain is not None and not policy.plugin_default
    selected = node.labels.get(names.LABEL_PLUGIN_CONFIG) or NEUTRAL_KEY in theirs
    # The plugin uses the only entry of a ConfigMap without a label, but ours has several (docs/design/nvidia.md#b4).
    if falls_back and plugin.config_map and not selected and len(theirs) == 1:
        (key,) = theirs
        name = label_command([node.name], f"{names.LABEL_PLUGIN_CONFIG}={key}")
        return (
            f"no label selects a configuration for the device plugin on this node, so it uses {key}, the only entry in"
            f" ConfigMap {plugin.config_map}; the operator's ConfigMap has several entries, so a label must select this"
            f" one. Run: {name}"
        )
    config = effective_plugin_config(node, stack)
    if config is None:
        return find_unserved(node, stack, plugin)
    layouts = observed.hardware.layouts
    advertised = predict_resources(layouts, PluginConfig(config.mig_strategy))
    here = config.on(advertised)
    with_mig = any(layout is not None for layout in layouts)
    if why := next(_find_beyond(here, advertised.keys(), with_mig=with_mig), ""):
        return why
    entry = find_entry(node.labels.get(names.LABEL_PLUGIN_CONFIG, ""), stack)
    return Handmade(
        node=node.name,
        products=tuple(sorted({bare_product(gpu.product) for gpu in gpus})),
        gpus=len(gpus),
        spec=_spec(node, gpus, here),
        text=describe_layouts(layouts, here.sharing.replicas[0][1] if here.sharing else 1),
        inexpressible=find_inexpressible(stack.plugin_configs.get(entry, "")),
    )


# --- what is in the way --------------------------------------------------------------------------------------


def find_unserved(node: NodeView, stack: StackView, plugin: PluginEntries) -> str:
    """Return why the device plugin of the node could not start with its configuration, and a remedy."""
    if effective_plugin_config(node, stack) is not None:
        return ""
    entry = find_entry(node.labels.get(names.LABEL_PLUGIN_CONFIG, ""), stack)
    problem = plugin.absence or f"ConfigMap {plugin.config_map} has no entry with that name"
    if refused := [flaw.text for flaw in find_flaws(stack.plugin_configs.get(entry, "")) if flaw.refused]:
        problem = f"ConfigMap {plugin.config_map or 'of the operator'}, entry {entry}, {refused[0]}"
    elif not plugin.config_map:
        problem = "the operator's ConfigMap has no entry with that name, and ClusterPolicy specifies no other ConfigMap"
    other = label_command([node.name], f"{names.LABEL_PLUGIN_CONFIG}=ENTRY")
    return (
        f"its device plugin is configured to use entry {entry}, but {problem}: the node"
        f" will lose its GPUs when the plugin restarts. Correct this, or name an entry that exists: {other}"
    )


def find_unsettled(node: NodeView) -> str:
    """Return an objection if mig-manager is still applying the node's MIG label, or has failed to."""
    config, state = node.labels.get(names.LABEL_MIG_CONFIG, ""), node.labels.get(names.LABEL_MIG_STATE, "")
    if config and state in ("pending", "rebooting"):
        return f"mig-manager is applying {config} (state {state}): run import again when it is done"
    if config and state == "failed":
        return f"mig-manager failed to apply {config}. Fix that first; see the log of its pod"
    return ""


def tell_misfit(node: NodeView, snapshot: ClusterSnapshot) -> str:
    """Return how the node contradicts itself; empty also if only devices differ, which the planner judges."""
    for misfit, change in find_misfits(node, snapshot):
        if misfit.reason not in (Reason.DEVICE_UNHEALTHY, Reason.ALLOCATABLE_MISMATCH):
            if change is None or not change.labels:
                return misfit.message
            effects, command = label_nodes([node.name], *change.labels[0], snapshot)
            return f"{misfit.message}{tell_effects(effects)}{f'. Run: {command}' if command else ''}"
    return ""


def _find_beyond(config: PluginConfig, advertised: Set[str], *, with_mig: bool) -> Iterator[str]:
    if (sharing := config.sharing) is None:
        return
    counts = ", ".join(f"{name}: {count}" for name, count in sharing.replicas)
    # Sharing the other resources too would not help while the numbers differ, so these are named first.
    if len({count for _, count in sharing.replicas}) > 1:
        yield f"its device plugin uses different replica counts ({counts}), but a policy sets one count for all resources"
    if any(count > MAX_REPLICAS for _, count in sharing.replicas):
        limits = f"a policy allows {MIN_REPLICAS} to {MAX_REPLICAS}"
        yield f"its device plugin uses too many replicas ({counts}); {limits}"
    if whole := sorted(advertised - dict(sharing.replicas).keys()):
        yield (
            f"its device plugin leaves {', '.join(whole)} whole and shares only some resources ({counts}), but a policy"
            " shares all or none"
        )
    if sharing.strategy == "mps" and with_mig:
        yield "its device plugin is configured for MPS on MIG instances, which NVIDIA's device plugin does not support"
    if sharing.strategy == "mps" and not sharing.fail_requests_greater_than_one:
        yield (
            "its device plugin uses MPS with failRequestsGreaterThanOne: false, but a policy with MPS always rejects"
            " requests for more than one share"
        )


def find_inexpressible(text: str) -> tuple[str, ...]:
    """Return the sorted paths of the fields in a device plugin's configuration that no policy can express."""
    flaws = find_flaws(text)
    if any(flaw.refused for flaw in flaws):
        return ()
    known = tuple(f"{path}.".lower() for path in (*_EXPRESSIBLE, *(flaw.path for flaw in flaws)))
    paths = _paths(parse_yaml(text), "")
    return tuple(sorted(path for path in paths if not f"{path}.".lower().startswith(known)))


def _paths(value: object, path: str) -> Iterator[str]:
    if path and not isinstance(value, dict):
        yield path
    for key, item in value.items() if isinstance(value, dict) else ():
        yield from _paths(item, f"{path}.{key}".lstrip("."))


# --- in the words of a policy ----------------------------------------------------------------------------------


def _spec(node: NodeView, gpus: Sequence[GpuView], config: PluginConfig) -> Mapping[str, Any]:
    sharing, layouts = config.sharing, tuple(gpu.layout for gpu in gpus)
    mode, shares = "Full", dict[str, Any]()
    if sharing is not None:
        mode, key = ("MPS", "mps") if sharing.strategy == "mps" else ("TimeSlicing", "timeSlicing")
        rejects = sharing.fail_requests_greater_than_one and mode != "MPS"
        flags = {"renameByDefault": sharing.rename, "failRequestsGreaterThanOne": rejects}
        shares = {key: {"replicas": sharing.replicas[0][1], **{name: on for name, on in flags.items() if on}}}
    if not any(layout is not None for layout in layouts):
        return {"mode": mode, **shares}
    label = node.labels.get(names.LABEL_MIG_CONFIG, "")
    rows: dict[Layout | None, list[int]] = {}
    for gpu in gpus:
        rows.setdefault(gpu.layout, []).append(gpu.index)
    mig: dict[str, Any] = {"strategy": config.mig_strategy}
    if well_known(gpus, label) == layouts:
        mig["config"] = label
    else:
        mig["layouts"] = [
            {**({} if len(rows) == 1 else {"devices": indexes}), "profiles": dict(layout or ())}
            for layout, indexes in rows.items()
        ]
    return {"mode": "MIG", "mig": mig, **shares}


MOST = 16
"""The largest number of GPUs of one node that is tried. An HGX board has 8, and NVIDIA's largest single system 16."""


# --- before the installation ---------------------------------------------------------------------------------
# Before the installation no agent reads NVML. GPU Feature Discovery's label names the card, `nvidia.com/mig.config` the
# layout, and the device plugin advertises what follows from both. If one number of GPUs explains all of that, it is
# presumed. This proves nothing, and every output that uses it says so.


def presume(node: NodeView, stack: StackView) -> GPUNodeView | None:
    """Return what the agent would probably read, by the node's labels and resources; None if that is unknown."""
    product = node.labels.get(names.LABEL_GPU_PRODUCT, "")
    plugin, card = effective_plugin_config(node, stack), find_card(product)
    profiles = card.profiles if card else ()
    config = node.labels.get(names.LABEL_MIG_CONFIG, "") if profiles else ""
    divided = any(layout is not None for layout in find_layouts(node, None) or ())
    if plugin is None or not product or (not config and divided):
        return None
    mps = plugin.sharing is not None and plugin.sharing.strategy == "mps"
    first = GpuView(
        index=0,
        product=bare_product(product),
        mig_capable=bool(profiles),
        mig_enabled=False,
        mig_pending=False,
        compute_mode=EXCLUSIVE if mps else "Default",
        layout=None,
        profiles=profiles,
    )
    gpus = [replace(first, index=index) for index in range(MOST)]
    for size in range(1, MOST + 1):
        layouts = resolve_name(config, node.name, gpus[:size], stack) if config else (None,) * size
        if isinstance(layouts, str) or predict_resources(layouts, plugin) != advertised(node):
            continue
        present = tuple(
            replace(gpu, mig_enabled=layout is not None, layout=layout)
            for gpu, layout in zip(gpus[:size], layouts, strict=True)
        )
        return GPUNodeView(node.name, node.uid, "", False, ObservedView("", False, "", present))
    return None


LABEL_POOL = f"{PREFIX}pool"
"""The label that our documentation recommends; the operator neither reads nor writes it."""
MAX_NAMES, MAX_ROWS = 64, 16
"""How many values one row of a selector may have, and how many rows a selector."""
Label = tuple[str, str]
Selector = Mapping[str, Any]
_POOL = re.compile(r"[\w.-]*(pool|node-?group|instance-?group)([-_.]?(name|id))?", re.IGNORECASE)
"""Matches names of labels, without their domains, by which people, clouds and autoscalers distinguish pools. A node
that joins with such a label belongs to the pool. With any other label, such as a zone, it is mere chance that no other
node has it today."""
_CHANCE = re.compile(
    r"topology|zone|region|image|hash|capacity|hostname|machine|version|network|subnet|address|storage", re.IGNORECASE
)
"""Matches parts of keys that match _POOL but describe a machine or its location, as the pool of its addresses."""
_MODES = {"Full": "full", "MIG": "mig", "MPS": "mps", "TimeSlicing": "time-slicing"}


@dataclass(frozen=True, slots=True)
class ProposedPolicy:
    name: str
    members: tuple[Handmade, ...]
    selector: Selector

    @property
    def nodes(self) -> tuple[str, ...]:
        return tuple(member.node for member in self.members)

    @property
    def manifest(self) -> JSON:
        return policy_manifest(self.name, {"nodeSelector": dict(self.selector), **self.members[0].spec})


def propose(
    handmade: Iterable[Handmade], nodes: Mapping[str, NodeView], taken: Collection[str] = ()
) -> tuple[tuple[ProposedPolicy, ...], tuple[str, ...]]:
    """Return policies for pools of alike nodes, sorted by name, and the nodes for which there is no selector.

    The selector of a policy matches no other node.
    """
    alike: dict[tuple[object, ...], dict[str, Handmade]] = {}
    for member in sorted(handmade, key=lambda member: member.node):
        key = (member.products, member.gpus, json.dumps(member.spec, sort_keys=True))
        alike.setdefault(key, {})[member.node] = member
    pools = find_pools(nodes)
    proposed: list[ProposedPolicy] = []
    unnamed: list[str] = []
    used = set(taken)
    for members in alike.values():
        rest = frozenset(members)
        parts: list[tuple[Label | None, frozenset[str]]] = []
        for whole in (True, False):  # first the pools that have no other nodes
            for known, bearers in pools.items():
                if bearers & rest and (bearers <= rest or not whole):
                    parts.append((known, bearers & rest))
                    rest -= bearers
        for label, part in [*parts, *([(None, rest)] if rest else [])]:
            selectors = _selectors(label, sorted(part), pools, nodes)
            unnamed += [] if selectors else part
            for selected, selector in selectors:
                name = _name(label, members[selected[0]], used)
                used.add(name)
                proposed.append(ProposedPolicy(name, tuple(members[node] for node in selected), selector))
    return tuple(sorted(proposed, key=lambda policy: policy.name)), tuple(sorted(unnamed))


def find_pools(nodes: Mapping[str, NodeView]) -> dict[Label, frozenset[str]]:
    """Return the names of the nodes with each label whose key names a pool (_POOL)."""
    pools: dict[Label, set[str]] = {}
    for name, node in nodes.items():
        for key, value in node.labels.items():
            if _POOL.fullmatch(key.rpartition("/")[2]) and not is_rewritten(key) and not _CHANCE.search(key):
                pools.setdefault((key, value), set()).add(name)
    order = sorted(pools, key=lambda label: (label[0] != LABEL_POOL, label[0].endswith("id"), label))
    return {label: frozenset(pools[label]) for label in order}


def _selectors(
    label: Label | None, members: Sequence[str], pools: Mapping[Label, frozenset[str]], nodes: Mapping[str, NodeView]
) -> list[tuple[Sequence[str], Selector]]:
    hosts = {name: node.labels.get(LABEL_HOSTNAME, "") for name, node in nodes.items()}
    bearers = Counter(hosts.values())
    named = {name for name, host in hosts.items() if host and bearers[host] == 1}
    if label is not None:
        pool, others = {"matchLabels": dict([label])}, sorted(pools[label] - set(members))
        if not others:
            return [(members, pool)]
        excludable = named.issuperset(others) and all(has_gpu(nodes[name]) for name in others)
        if excludable and len(others) < min(len(members), MAX_NAMES * MAX_ROWS):
            return [(members, {**pool, "matchExpressions": _rows("NotIn", others, hosts)})]
    if not named.issuperset(members) or (label is None and len(members) > MAX_NAMES):
        return []
    return [
        (members[at * MAX_NAMES : (at + 1) * MAX_NAMES], {"matchExpressions": [row]})
        for at, row in enumerate(_rows("In", members, hosts))
    ]


def _rows(operator: str, names: Sequence[str], hosts: Mapping[str, str]) -> list[dict[str, object]]:
    values = [hosts[name] for name in names]
    parts = [values[at : at + MAX_NAMES] for at in range(0, len(values), MAX_NAMES)]
    return [{"key": LABEL_HOSTNAME, "operator": operator, "values": part} for part in parts]


def _name(label: Label | None, member: Handmade, used: Collection[str]) -> str:
    card = find_card(member.products[0])
    other = _slug(f"{card.key if card else member.products[0]}-{_MODES[member.spec['mode']]}")
    name = (pool_name(label[1]) if label else "") or other
    endings = (f"-{number}" for number in count(2))
    numbered = (name[: MAX_NAME - len(ending)].rstrip("-") + ending for ending in endings)
    return next(one for one in chain([name], numbered) if one not in used)


def pool_name(text: str) -> str:
    """Return a name for a policy, made from that of a pool; empty if the latter has no letter and no digit."""
    slug = _slug(text)
    return slug if len(slug) > 2 else f"pool-{slug}" if slug else ""


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower())[:MAX_NAME].strip("-")
