"""Does what a node offers fit its labels and its agent's report, whether or not a policy owns it?

`doctor`, `import` and the verdict on a node without a policy ask here. What NVIDIA's programs offer and write:
docs/design/nvidia.md b6, b7, b9 and c.
"""

import re
from collections.abc import Iterator, Sequence
from typing import TypeAlias

from gpusharing.api.names import (
    LABEL_GPU_COUNT,
    LABEL_GPU_PRODUCT,
    LABEL_MIG_CONFIG,
    LABEL_MIG_STATE,
    LABEL_MIG_STRATEGY,
    LABEL_PLUGIN_CONFIG,
    RESOURCE_GPU,
)
from gpusharing.planning.gpus.cards import find_card
from gpusharing.planning.gpus.geometry import Layout, generated_layouts
from gpusharing.planning.snapshot.nvidia import MIG_MANAGER_SWITCH
from gpusharing.planning.snapshot.views import ClusterSnapshot, NodeView, ObservedView
from gpusharing.planning.stack.effects import (
    FREE_STRATEGY,
    INVALID,
    MIG_MANAGER,
    STRATEGY,
    advertise,
    compare_config,
    find_foreign_file,
    find_layouts,
    find_mig_entry,
    read_config,
    why_unread,
)
from gpusharing.planning.vocabulary.commands import Change
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.vocabulary.lengths import some
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.wanted.migfile import ALL_DISABLED
from gpusharing.planning.wanted.pluginconfig import PluginConfig
from gpusharing.planning.wanted.target import counts_without_suffixes, describe_layouts
from gpusharing.planning.wanted.verify import (
    advertised,
    find_unhealthy,
    served,
    tell_counts,
    tell_unhealthy,
    tell_withdrawn,
)

_COMPUTE_INSTANCE = re.compile(r"\d+c\.")
"""Matches the profile of a compute instance that is smaller than its GPU instance, such as 1c.3g.40gb."""


Misfit: TypeAlias = tuple[Finding, Change | None]
"""How one node contradicts itself and what to do about it, in clauses that do not name it, and the change of a label of
the node or of ClusterPolicy that mends it, if there is one."""


def find_misfits(node: NodeView, snapshot: ClusterSnapshot) -> Iterator[Misfit]:
    """Yield what does not fit on a node, the gravest first; nothing while somebody changes the node."""
    stack, labels, state = snapshot.stack, node.labels, node.labels.get(LABEL_MIG_STATE)
    changing = node.fence is not None or bool(node.fence_error) or state in ("pending", "rebooting")
    if changing or node.other_plugin or stack.by_dra:
        return
    observed, config = snapshot.observed(node.name), read_config(node, snapshot)
    if observed is not None and (not observed.gpus or why_unread(observed, fresh=node.name in snapshot.agents)):
        observed = None
    if labels.get(LABEL_GPU_PRODUCT, "").endswith(INVALID):
        text = (
            f"label {LABEL_GPU_PRODUCT} is {labels[LABEL_GPU_PRODUCT]}: strategy single needs one and the same MIG"
            " profile on every GPU, so the device plugin does not start, and the node advertises no GPU. Either"
            f" {_tell_strategy(snapshot)}, or divide all GPUs of the node alike"
        )
        policy = stack.cluster_policy
        fixed = policy is not None and policy.plain is None and policy.mig_strategy == "single"
        change = FREE_STRATEGY if _some_policy_divides(snapshot) else Change(fields=((STRATEGY, "mixed"),))
        yield Finding(Reason.MIG_INVALID, text), change if fixed else None
        return
    if (config is None or config.mig_strategy != "none") and (small := _find_compute_instances(node, snapshot)):
        text = (
            f"configuration {labels[LABEL_MIG_CONFIG]} has compute instances that are smaller than their GPU instances"
            f" ({some(small)}), at which the device plugin exits. Name only profiles of GPU instances in it, such as"
            f" {_COMPUTE_INSTANCE.sub('', small[0])}"
        )
        yield Finding(Reason.COMPUTE_INSTANCES, text), None
        return
    if state != "failed":
        yield from _find_mislabeled(node, observed, snapshot)
    unserved = _find_unserved(node, observed, config, snapshot)
    if unserved:
        text = (
            f"{unserved}, but its device plugin advertises whole GPUs (migStrategy none), which no policy mode does: a"
            " pod with such a GPU can use one instance of it. Drain the node, then either switch MIG off or"
            f" {_tell_strategy(snapshot)}"
        )
        yield Finding(Reason.MIG_NOT_SERVED, text), None
    offers = advertised(node)
    due = advertise(observed.hardware.layouts, config) if observed is not None and config is not None else offers
    short = find_unhealthy(node, due) or {name: n for name, n in node.unhealthy.items() if name in offers}
    if unhealthy := tell_unhealthy(node, short) if short else tell_withdrawn(node):
        yield Finding(Reason.DEVICE_UNHEALTHY, unhealthy), None
    elif offers and not unserved and offers not in (due, counts_without_suffixes(due)):
        wanted = tell_counts(due) if due else "nothing, because strategy single refuses GPUs that are divided unlike"
        text = (
            f"it advertises {tell_counts(offers)}, but with its GPUs and its configuration the device plugin would"
            f" advertise {wanted}. See the plugin's log"
        )
        yield Finding(Reason.ALLOCATABLE_MISMATCH, text), None


def _tell_strategy(snapshot: ClusterSnapshot) -> str:
    policy = snapshot.stack.cluster_policy
    if policy is None or policy.mig_strategy:
        plain = policy is not None and policy.plain is not None
        field = "migStrategy in the values of NVIDIA's device-plugin chart" if plain else f"ClusterPolicy {STRATEGY}"
        if policy is not None and _some_policy_divides(snapshot):
            return f"remove {field}, which overrides spec.mig.strategy of every policy"
        return f"set {field} to mixed"
    return f"set flags.migStrategy of the entry that {LABEL_PLUGIN_CONFIG} names to mixed"


def _some_policy_divides(snapshot: ClusterSnapshot) -> bool:
    return any(one.spec is not None and one.spec.mig is not None for one in snapshot.policies)


def _find_compute_instances(node: NodeView, snapshot: ClusterSnapshot) -> list[str]:
    entry = find_mig_entry(node.labels.get(LABEL_MIG_CONFIG, ""), snapshot.stack)
    counts = [devices for row in entry or () if isinstance(devices := row.get("mig-devices"), dict)]
    return [name for devices in counts for name in map(str, devices) if _COMPUTE_INSTANCE.match(name)]


def _find_unserved(
    node: NodeView, observed: ObservedView | None, config: PluginConfig | None, snapshot: ClusterSnapshot
) -> str:
    """Return how the GPUs are divided that the node offers as whole ones, as a clause."""
    labels, shared = node.labels, (RESOURCE_GPU, f"{RESOURCE_GPU}.shared")
    if config is None or config.mig_strategy != "none" or not any(name in shared for name in served(node)):
        return ""
    if observed is not None:
        divided = any(layout is not None for layout in observed.hardware.layouts)
        return f"its GPUs have {describe_layouts(observed.hardware.layouts)}" if divided else ""
    name, card = labels.get(LABEL_MIG_CONFIG, ""), find_card(labels.get(LABEL_GPU_PRODUCT, ""))
    if labels.get(LABEL_MIG_STATE) != "success" or card is None:
        return ""
    entry = find_mig_entry(name, snapshot.stack)
    rows = entry if entry is not None else [{"mig-enabled": generated_layouts(card.profiles).get(name) is not None}]
    return f"mig-manager has applied {name} to its GPUs" if any(row.get("mig-enabled") for row in rows) else ""


def _find_mislabeled(node: NodeView, observed: ObservedView | None, snapshot: ClusterSnapshot) -> Iterator[Misfit]:
    config, layouts = node.labels.get(LABEL_MIG_CONFIG, ""), find_layouts(node, observed)
    if config and find_foreign_file(snapshot):
        return
    if observed is not None:
        why, same, _ = compare_config(config, observed.hardware, snapshot.stack)
    else:
        divided = not config and layouts is not None and any(layout is not None for layout in layouts)
        why, same = ("divided", _guess_config(node, layouts or ())) if divided else ("", "")
    if not why:
        return
    mends = Change(labels=((LABEL_MIG_CONFIG, same),)) if same else None
    if config:
        off = _why_no_mig_manager(node, snapshot)
        start = f"once it may run there ({off})" if off else "at its next start"
        yield Finding(Reason.MIG_CONFIG_DIFFERS, f"{why}: mig-manager would change them {start}"), mends
        return
    text = f"its GPUs are divided into {describe_layouts(layouts or ())}"
    name = "" if same else " to an entry that has this layout"
    if missing := _why_no_mig_manager(node, snapshot):
        text += (
            f", and not by mig-manager (no {LABEL_MIG_CONFIG}, {missing}): the operator could neither keep nor change"
            f" that. Set the label{name} before mig-manager may run there, or its first start removes the instances"
        )
    else:
        text += (
            f", and {LABEL_MIG_CONFIG} is not set, so nothing would recreate the instances after a reboot, and once the"
            f" GPU Operator sets the label to {ALL_DISABLED}, mig-manager removes them. Set it{name}; mig-manager then"
            " finds the instances in place"
        )
    yield Finding(Reason.MIG_CONFIG_UNSET, text), mends


def _why_no_mig_manager(node: NodeView, snapshot: ClusterSnapshot) -> str:
    policy = snapshot.stack.cluster_policy
    if policy is not None and policy.is_off(MIG_MANAGER_SWITCH):
        return f"{MIG_MANAGER_SWITCH} is false"
    if policy is not None and policy.plain is not None and not policy.plain.mig_manager:
        return "there is no mig-manager"
    return f"{MIG_MANAGER} is {node.labels[MIG_MANAGER]}" if node.keeps_off("mig-manager") else ""


def _guess_config(node: NodeView, layouts: Sequence[Layout | None]) -> str:
    """Return NVIDIA's name for the layout of GPUs that nobody has read, if all are full of the same profile."""
    labels, card = node.labels, find_card(node.labels.get(LABEL_GPU_PRODUCT, ""))
    # Under strategy single, GFD counts the instances and not the GPUs (docs/design/nvidia.md#c).
    if card is None or len(layouts) != 1 or not layouts[0] or labels.get(LABEL_MIG_STRATEGY) != "mixed":
        return ""
    ((profile, count),) = layouts[0]
    name = f"all-{profile}"
    full = sum(most for _, most in generated_layouts(card.profiles).get(name) or ())
    fits = full and count % full == 0 and labels.get(LABEL_GPU_COUNT) == str(count // full)
    return name if fits else ""
