"""Is a node what its target wants, according to the sources of proof?

An actuator's checks query the sources in order, and the first disagreement is the result. The caller makes sure that
what proves a change is more recent than the change (`fresh_reading`).
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from enum import StrEnum
from functools import lru_cache
from typing import TypeAlias

from gpusharing.api import names
from gpusharing.api.names import Mode
from gpusharing.planning.gpus.cards import bare_product, find_card
from gpusharing.planning.gpus.geometry import Layout, resource_name
from gpusharing.planning.gpus.health import REACHABLE
from gpusharing.planning.snapshot.nvidia import StackView
from gpusharing.planning.snapshot.views import GpuView, Hardware, NodeView, ObservedView
from gpusharing.planning.vocabulary.commands import Command
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.vocabulary.lengths import counted, some
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.vocabulary.values import value
from gpusharing.planning.wanted.migfile import ALL_DISABLED, resolve_name
from gpusharing.planning.wanted.pluginconfig import STRATEGIES, PluginConfig, default_entry, parse
from gpusharing.planning.wanted.target import (
    ADVICE,
    Target,
    counts_without_suffixes,
    describe_layouts,
    is_plugin_resource,
    predict_resources,
    rejects_shares,
)


def expected_gfd_labels(target: Target, observed: ObservedView) -> tuple[Mapping[str, str], ...]:
    """Return the label sets that GPU Feature Discovery may write for the target (docs/design/nvidia.md#c).

    GFD counts each card model separately and overwrites the labels of one with those of the next, whole GPUs last, in
    an order that may change at each run (k8s-device-plugin v0.19.3, internal/lm/mig-strategy.go). Raises ValueError
    unless the target has one layout for each observed GPU.
    """
    return _expect(target.layouts, target.plugin, tuple(bare_product(gpu.product) for gpu in observed.gpus))


@lru_cache(maxsize=1024)
def _expect(
    layouts: tuple[Layout | None, ...], plugin: PluginConfig, products: tuple[str, ...]
) -> tuple[Mapping[str, str], ...]:
    replicas, sharing = str(plugin.replicas), plugin.sharing
    shared = "-SHARED" if sharing and not sharing.rename else ""
    labels = {names.LABEL_GPU_REPLICAS: replicas, names.LABEL_SHARING_STRATEGY: sharing.strategy if sharing else "none"}
    whole = [product for product, layout in zip(products, layouts, strict=True) if layout is None]
    if len(whole) == len(products):
        if sharing and sharing.strategy == "mps":
            labels[names.LABEL_MPS_CAPABLE] = "true"
        return tuple(
            {names.LABEL_GPU_COUNT: str(count), **labels, names.LABEL_GPU_PRODUCT: product + shared}
            for product, count in Counter(products).items()
        )
    instances: Counter[str] = Counter()
    for layout in layouts:
        instances.update(dict(layout or ()))
    if plugin.mig_strategy == "single":
        common = {names.LABEL_MIG_STRATEGY: "single", names.LABEL_GPU_COUNT: str(instances.total()), **labels}
        profile = next(layout[0][0] for layout in layouts if layout)
        suffix = f"-MIG-{profile.replace('+', '.')}{shared}"
    else:
        common, suffix = {names.LABEL_MIG_STRATEGY: "mixed"}, shared if whole else ""
        for profile, count in instances.items():
            common[f"{resource_name(profile)}.count"] = str(count)
            common[f"{resource_name(profile)}.replicas"] = replicas
    shown = dict.fromkeys(whole or products)
    return tuple({**common, names.LABEL_GPU_PRODUCT: product + suffix} for product in shown)


def future_labels(node: NodeView, target: Target, observed: ObservedView, policy: str) -> tuple[Mapping[str, str], ...]:
    """Return all labels that the node will have after the change, once for each set that GFD may write.

    A label whose future value is unknown keeps its present one, unless it is about MIG and GFD will no longer write it.
    Raises ValueError unless the target has one layout for each observed GPU.
    """
    strategy, before = target.plugin.mig_strategy, node.labels.get(names.LABEL_MIG_STRATEGY, "none")
    own = {**node.labels, names.LABEL_MODE: target.routing, names.LABEL_POLICY: policy}
    if (observed.hardware.layouts, before) != (target.layouts, strategy):
        # GFD writes the last three only under strategy single, from what NVML reports about the instances.
        of_instances = ("nvidia.com/gpu.multiprocessors", "nvidia.com/gpu.slices.", "nvidia.com/gpu.engines.")
        gone = (names.LABEL_MIG_STRATEGY, *(() if strategy == "single" else of_instances))
        profiles = {profile for layout in target.layouts for profile, _ in layout or ()}
        described = tuple(f"{resource_name(one)}." for one in profiles) if strategy == "mixed" else ()
        own = {
            key: value
            for key, value in own.items()
            if not key.startswith(gone) and (not key.startswith(names.RESOURCE_MIG_PREFIX) or key.startswith(described))
        }
        if "single" in (strategy, before) and (memory := _find_memory(target, observed)):
            own["nvidia.com/gpu.memory"] = str(memory)
    own |= {names.LABEL_MPS_CAPABLE: "false", names.LABEL_PLUGIN_CONFIG: target.plugin_key}
    if not target.plugin_key:
        del own[names.LABEL_PLUGIN_CONFIG]
    if target.mig_config:
        own |= {names.LABEL_MIG_CONFIG: target.mig_config, names.LABEL_MIG_STATE: "success"}
    if strategy == "mixed" and None not in target.layouts:
        own |= {names.LABEL_GPU_REPLICAS: "0", names.LABEL_SHARING_STRATEGY: "none"}
        own[names.LABEL_GPU_COUNT] = str(len(target.layouts))
    return tuple({**own, **written} for written in expected_gfd_labels(target, observed))


def _find_memory(target: Target, observed: ObservedView) -> int:
    """Return the MiB in the label gpu.memory: an instance's under strategy single, else the card's; 0 if unknown."""
    gpu, layout = observed.gpus[0], target.layouts[0]
    if target.plugin.mig_strategy == "single" and layout:
        return 1024 * next((one.memory_gb for one in gpu.profiles if one.name == layout[0][0]), 0)
    card = find_card(gpu.product)
    return (card.memory_mib or 1024 * card.memory_gb) if card is not None else 0


SETTING = 'WITH_REBOOT "true" in ClusterPolicy migManager.env'
"""The setting that lets mig-manager reboot a node whose GPUs cannot be reset, for messages."""
EXCLUSIVE = "ExclusiveProcess"
"""The compute mode of a GPU that an MPS daemon serves."""
MPS_DAEMONS = frozenset({"nvidia-cuda-mps-server", "nvidia-cuda-mps-control"})
"""Names of NVIDIA's own MPS processes, which may run on an idle GPU. See docs/design/transition.md#idle."""
FREE = ("Default", "NotSupported")
"""Compute modes in which any process may use a GPU."""


@value
class Comparison:
    """One node with the target that it is compared with."""

    node: NodeView
    observed: ObservedView
    target: Target
    stack: StackView
    gfd_timestamp: str = ""
    """GFD's timestamp before the change, or empty if GFD need not restart. While the label still has this value, GFD
    has not restarted and proves nothing."""

    @property
    def uses_mps(self) -> bool:
        return uses_mps(self.node, self.observed, self.stack)


class Source(StrEnum):
    """A program that reports about a node, if it exists for the mode and card (docs/design/transition.md#proof)."""

    AGENT = "agent"
    NVML = "NVML"
    MIG_MANAGER = "mig-manager"
    OPERANDS = "operands"
    PLUGIN = "device plugin"
    GFD = "GFD labels"
    ALLOCATABLE = "allocatable"
    SLICES = "ResourceSlices"


Checked: TypeAlias = Iterator[tuple[Source, Finding]]
"""The disagreements of the sources with a target, in the order in which the sources are checked."""
Checks: TypeAlias = Callable[[Comparison], Checked]


def find_mismatch(compared: Comparison, checks: Checks) -> Finding | None:
    return next((found for _, found in checks(compared)), None)


def find_disagreements(compared: Comparison, checks: Checks) -> dict[Source, Finding]:
    """Return the first disagreement of each source that disagrees. It is for people; decisions use `find_mismatch`."""
    results: dict[Source, Finding] = {}
    for source, found in checks(compared):
        results.setdefault(source, found)
    return results


def agent_checks(compared: Comparison) -> Checked:
    """Check what the agent reads. It comes first with every actuator, because every other source may be stale."""
    observed, target = compared.observed, compared.target
    kinds, layouts = observed.hardware.kinds, observed.hardware.layouts
    if observed.error:
        yield Source.AGENT, Finding(Reason.AGENT_ERROR, f"the agent cannot read the GPUs: {observed.error}")
    if observed.quiet:
        text = "the agent has closed NVML for the change, so its last reading may be out of date"
        yield Source.AGENT, Finding(Reason.OBSERVATION_PENDING, text)
    if gone := next((gpu for gpu in kinds if gpu.vitals.access != REACHABLE), None):
        text = f"GPU {gone.index} is not responding, so its last known state is shown; see the Healthy condition"
        yield Source.NVML, Finding(Reason.GPU_UNHEALTHY, text)
    if text := find_withheld(target, observed):
        yield Source.NVML, Finding(Reason.AGENT_LACKS_RIGHTS, text)
    if (missing := find_missing(compared.node, observed)) is not None:
        yield Source.NVML, missing
    if layouts != target.layouts:
        text = f"NVML shows {describe_layouts(layouts)} instead of {describe_layouts(target.layouts)}"
        why = find_leftover(observed.gpus, target.layouts) or tell_partial(observed.gpus)
        text += f": {why}" if why else ""
        yield Source.NVML, Finding(Reason.LAYOUT_MISMATCH, text)
    if waits := next((gpu for gpu in kinds if gpu.mig_pending), None):
        cause = tell_guest_reset(observed, compared.stack)
        text = f"a MIG mode change is pending until the GPU is reset or the node reboots{cause}"
        yield Source.NVML, Finding(Reason.MIG_MODE_PENDING, f"GPU {waits.index}: {text}")


def mig_checks(compared: Comparison) -> Checked:
    labels, paused = compared.node.labels, paused_operands(compared.node)
    if text := _check_mig_config(compared):
        yield Source.MIG_MANAGER, Finding(Reason.LABEL_MISMATCH, text)
    config = labels.get(names.LABEL_MIG_CONFIG, "") if compared.target.mig_config else ""
    state = labels.get(names.LABEL_MIG_STATE, "")
    if config and state == "failed":
        text = f"mig-manager failed to apply {config}; its pod's log shows why"
        yield Source.MIG_MANAGER, Finding(Reason.ACTUATOR_FAILED, text)
    elif config and state != "success":
        text = f"mig-manager is applying {config} (state {state or 'not reported yet'})"
        yield Source.MIG_MANAGER, Finding(Reason.ACTUATOR_BUSY, text)
    if paused:
        are, where = "is" if len(paused) == 1 else "are", compared.node.name
        claims = sorted({value for value in compared.node.held_off.values() if "paused-for-" in value})
        text = f"{', '.join(paused)} {are} still paused on {where} (label value {', '.join(claims)})"
        yield Source.OPERANDS, Finding(Reason.OPERANDS_PAUSED, text)


def label_checks(compared: Comparison) -> Checked:
    node, target, labels = compared.node, compared.target, compared.node.labels
    yield from agent_checks(compared)
    yield from mig_checks(compared)
    if text := _check_plugin_config(compared):
        yield Source.PLUGIN, Finding(Reason.LABEL_MISMATCH, text)
    for gpu in compared.observed.hardware.kinds if target.mode is Mode.MPS else ():
        # The MPS daemon sets a GPU to exclusive mode and restores Default when it stops cleanly
        # (docs/design/hardware.md#mps-mode).
        if gpu.compute_mode not in (EXCLUSIVE, "NotSupported"):
            text = f"GPU {gpu.index} is in compute mode {gpu.compute_mode}: the MPS daemon does not serve it yet"
            yield Source.NVML, Finding(Reason.MPS_NOT_RUNNING, text)
    # After the plugin, because a GPU is rightly exclusive as long as the plugin is configured for MPS.
    yield from compute_mode_checks(compared)
    if (before := compared.gfd_timestamp) and labels.get(names.LABEL_GFD_TIMESTAMP) == before:
        # config-manager changes the configuration and then sends a signal. If it fails in between, no signal is sent. And
        # Node Feature Discovery publishes what GFD writes into a file, up to a minute later (docs/design/nvidia.md#c).
        text = (
            f"label {names.LABEL_GFD_TIMESTAMP} is as before the change: GPU Feature Discovery has not restarted on"
            f" {node.name}, or Node Feature Discovery has not published what it wrote. If this persists, check when the"
            " pods of both there started, and delete the one that did not"
        )
        yield Source.GFD, Finding(Reason.LABEL_MISMATCH, text)
    possible = expected_gfd_labels(target, compared.observed)
    shown = labels.get(names.LABEL_GPU_PRODUCT, "")
    # Compare with the card model whose product the labels show.
    expected = next((one for one in possible if one[names.LABEL_GPU_PRODUCT] == shown), possible[-1])
    for label, due in expected.items():
        if labels.get(label, "") != due:
            products = " or ".join(one[names.LABEL_GPU_PRODUCT] for one in possible)
            should = products if label == names.LABEL_GPU_PRODUCT else due
            text = f"label {label} is {labels.get(label, 'absent')}, but should be {should}"
            yield Source.GFD, Finding(Reason.LABEL_MISMATCH, text)
    counts, wanted = served(node), dict(target.resources)
    if counts != wanted and not find_unhealthy(node, wanted):
        text = f"the node advertises {tell_counts(counts)} instead of {tell_counts(wanted)}"
        if counts == counts_without_suffixes(wanted):
            yield Source.ALLOCATABLE, Finding(Reason.PLUGIN_TOO_OLD, f"{text}: {ADVICE}")
        yield Source.ALLOCATABLE, Finding(Reason.ALLOCATABLE_MISMATCH, text)


def compute_mode_checks(compared: Comparison) -> Checked:
    if compared.target.mode is not Mode.MPS and (found := find_exclusive(compared.observed.hardware)):
        yield Source.NVML, Finding.of(found, Reason.COMPUTE_MODE)


def tell_counts(resources: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(resources.items())) or "no GPU resource"


def _check_mig_config(compared: Comparison) -> str:
    wanted, config = compared.target.mig_config, compared.node.labels.get(names.LABEL_MIG_CONFIG, "")
    if config == wanted or not wanted:
        return ""
    if not config:
        unset = "is not set: mig-manager would not restore this layout after a reboot"
        return f"{names.LABEL_MIG_CONFIG} {unset}" if compared.target.with_mig else ""
    meaning = resolve_name(config, compared.node.name, compared.observed.gpus, compared.stack)
    same = meaning == compared.target.layouts
    return "" if same else f"{names.LABEL_MIG_CONFIG} is {config}, but should be {wanted}"


def _check_plugin_config(compared: Comparison) -> str:
    target, key = compared.target, compared.node.labels.get(names.LABEL_PLUGIN_CONFIG, "")
    if key == target.plugin_key:
        return ""  # if somebody deletes the entry, it is written again (`plan_config`), and nothing changes on the node
    if not target.plugin_key:
        return f"{names.LABEL_PLUGIN_CONFIG} is {key}, but should be absent: the default entry has the same effect"
    config = effective_plugin_config(compared.node, compared.stack)
    if config is None:
        return f"{names.LABEL_PLUGIN_CONFIG} is {key}, which names no known configuration"
    if config.sharing is not None:  # rows for resources that this node does not have have no effect
        config = config.on(predict_resources(target.layouts, PluginConfig(target.plugin.mig_strategy)))
    if config.same_effect(target.plugin, with_mig=target.with_mig):
        return ""
    return f"{names.LABEL_PLUGIN_CONFIG} is {key or 'not set'}, but should be {target.plugin_key}"


def keep_names(compared: Comparison) -> Target:
    """Return the target with the node's present configuration labels, as far as these mean the same on this node.

    mig-manager's label may be missing only if the GPUs have the target's layouts, because otherwise it must be written.
    """
    target, labels, observed = compared.target, compared.node.labels, compared.observed
    config = labels.get(names.LABEL_MIG_CONFIG, "")
    named = config or observed.hardware.layouts == target.layouts
    if target.mig_config and named and not _check_mig_config(compared):
        target = replace(target, mig_config=config)
    if not _check_plugin_config(compared):
        target = replace(target, plugin_key=labels.get(names.LABEL_PLUGIN_CONFIG, ""))
    return target


def find_withheld(target: Target, observed: ObservedView) -> str:
    kinds = observed.hardware.kinds
    blind = next((gpu for gpu in kinds if gpu.instances_withheld), None)
    if blind is None or not (target.with_mig or any(gpu.mig_enabled for gpu in kinds)):
        return ""
    return (
        f"NVML does not show the agent all MIG instances of GPU {blind.index}; grant the agent's container the rights"
        " listed in docs/reference/agent-fields.md"
    )


def tell_partial(gpus: Sequence[GpuView]) -> str:
    """Return a clause about the first MIG instance that is not one full compute instance; empty if there is none."""
    partial = [(gpu.index, one) for gpu in gpus for one in gpu.partial]
    if not partial:
        return ""
    (index, one), more = partial[0], f", the first of {len(partial)} such," if len(partial) > 1 else ""
    if one.compute:
        wrong = f"is divided into {' and '.join(one.compute)}, so a change clears this GPU"
    else:  # nvidia-smi creates one of full size if no profile is named
        repair = f"nvidia-smi mig -i {index} -gi {one.id} -cci"
        wrong = (
            f"has no compute instance. A change clears this GPU; to repair it without one, run on the node: {repair}"
        )
    return f"GPU instance {one.id} ({one.profile}) of GPU {index}{more} {wrong}"


def find_leftover(gpus: Sequence[GpuView], layouts: Sequence[Layout | None]) -> str:
    """Return which GPU instances mig-parted would leave, and how to remove them; empty if it makes each GPU as wanted.

    It compares compute instances only, and clears a GPU before it creates any only if the GPU has some that differ
    (v0.15.1 pkg/mig/config/config.go, SetMigConfig). It clears all of them if a MIG mode has to change.
    """
    odd = [(gpu, layout) for gpu, layout in zip(gpus, layouts, strict=True) if gpu.partial]
    if not odd or any(gpu.mig_enabled != (layout is not None) for gpu, layout in zip(gpus, layouts, strict=True)):
        return ""
    for gpu, layout in odd:
        empty = [one for one in gpu.partial if not one.compute]
        left = Counter(dict(gpu.layout or ())) - Counter(name for one in empty for name in one.contents)
        if empty and (not left or left == Counter(dict(layout or ()))):
            ids, has = (
                ",".join(str(one.id) for one in empty),
                "has no compute instance" if len(empty) == 1 else "have none",
            )
            named = f"{'GPU instance' if len(empty) == 1 else 'GPU instances'} {ids} of GPU {gpu.index}"
            return (
                f"{named} {has}, and mig-manager may leave that or fail because of it. No pod can use it: to remove it,"
                f" run on the node: nvidia-smi mig -i {gpu.index} -gi {ids} -dgi"
            )
    return ""


def find_missing(node: NodeView, observed: ObservedView) -> Finding | None:
    proven, listed = node.verified.gpus if node.verified else 0, len(observed.gpus)
    if listed >= proven:
        return None
    forget = Command.of("kubectl annotate node", node.name, f"{names.ANNOTATION_VERIFIED}-")
    message = (
        f"NVML lists {listed} of the {counted(proven, 'GPU')} from the last proof; see `dmesg | grep -i nvrm`"
        f" on {node.name}, or, if the node should have only {listed}, run (with the right to {forget.right}): {forget}"
    )
    return Finding(Reason.GPU_MISSING, message, commands=(forget,))


def tell_guest_reset(observed: ObservedView | None, stack: StackView) -> str:
    """Return a clause that says why a MIG mode stays pending in a virtual machine, and what helps."""
    policy, kinds = stack.cluster_policy, observed.hardware.kinds if observed is not None else ()
    if policy is None or policy.with_reboot or not any(gpu.reset_in_guest for gpu in kinds):
        return ""
    setting = SETTING
    if policy.plain is not None:
        if not policy.plain.mig_manager:
            return ""
        setting = f'WITH_REBOOT "true" in the environment of DaemonSet {policy.plain.mig_manager}'
    return (
        "; a virtual machine often cannot reset a GPU that is passed through to it, so only a reboot of the node"
        f" switches the mode: set {setting}, or reboot the node yourself"
    )


_PAUSABLE = tuple((operand, names.LABEL_DEPLOY_PREFIX + operand) for operand in names.DEPLOY_PAUSABLE)


def paused_operands(node: NodeView) -> tuple[str, ...]:
    """Return the operands that are paused for a MIG change or a driver upgrade (docs/design/nvidia.md#a1, d.4)."""
    if not (labels := node.held_off):
        return ()
    return tuple([operand for operand, label in _PAUSABLE if "paused-for-" in labels.get(label, "")])


def effective_plugin_config(node: NodeView, stack: StackView) -> PluginConfig | None:
    """Return the configuration of the node's device plugin; None if its entry is missing or refused (b.4)."""
    if stack.by_dra:
        return PluginConfig()
    key = find_entry(node.labels.get(names.LABEL_PLUGIN_CONFIG, ""), stack)
    # ClusterPolicy mig.strategy overrides that of every configuration (b.2).
    fixed = STRATEGIES.get(stack.cluster_policy.mig_strategy) if stack.cluster_policy else None
    if not key:
        return PluginConfig(fixed or "none")
    text = stack.plugin_configs.get(key)
    config = parse(text) if text is not None else None
    sharing = config.sharing if config is not None else None
    version = stack.cluster_policy.plugin_version if stack.cluster_policy else ""
    if config is not None and sharing is not None and sharing.strategy == "mps" and rejects_shares(version):
        config = replace(config, sharing=replace(sharing, fail_requests_greater_than_one=True))
    return PluginConfig(fixed, config.sharing) if config is not None and fixed else config


def find_entry(label: str, stack: StackView) -> str:
    """Return the entry that the device plugin uses with this value of its label, or empty, if nothing is shared."""
    return label or default_entry(stack)


def is_unknown(label: str, stack: StackView) -> bool:
    """Whether the label leads to no entry. Up to 0.18.1 the plugin and GFD keep theirs, later they fall back (b.4)."""
    entry = find_entry(label, stack)
    return bool(entry) and entry not in stack.plugin_configs


def only_name_differs(compared: Comparison) -> bool:
    """Whether the node is as wanted except that its label leads to no entry, so that nothing has to restart."""
    node, label = compared.node, names.LABEL_PLUGIN_CONFIG
    if not is_unknown(node.labels.get(label, ""), compared.stack):
        return False
    renamed = replace(node, labels={**node.labels, label: compared.target.plugin_key})
    return find_mismatch(replace(compared, node=renamed), label_checks) is None


def is_told_mps(node: NodeView, stack: StackView) -> bool:
    config = effective_plugin_config(node, stack)
    return config is not None and config.sharing is not None and config.sharing.strategy == "mps"


def needs_two_steps(compared: Comparison) -> bool:
    """Whether the change leads from MPS to MIG or back: one program must finish first (docs/design/nvidia.md#b5, R11).

    Also for another MPS configuration under NVIDIA's chart without the GPU Operator, where the operator may not restart
    the daemon, which would keep its old number of clients.
    """
    node, target, stack = compared.node, compared.target, compared.stack
    if target.with_mig:
        return compared.uses_mps
    if target.mode is not Mode.MPS:
        return False
    # mig-manager may still be dividing the GPUs, so that the agent's last reading is soon outdated.
    labels = node.labels
    ended = labels.get(names.LABEL_MIG_STATE) in ("success", "failed")
    divided = target.mig_config and labels.get(names.LABEL_MIG_CONFIG, "") not in ("", ALL_DISABLED) and not ended
    if divided or any(gpu.mig_enabled for gpu in compared.observed.hardware.kinds):
        return True
    plain = stack.cluster_policy is not None and stack.cluster_policy.plain is not None
    config = effective_plugin_config(node, stack) if plain else None
    return config is not None and not config.same_effect(target.plugin, with_mig=False) and compared.uses_mps


def uses_mps(node: NodeView, observed: ObservedView, stack: StackView) -> bool:
    """Whether the device plugin is told to share GPUs by MPS, or an MPS daemon left its exclusive compute mode."""
    return is_told_mps(node, stack) or any(gpu.compute_mode == EXCLUSIVE for gpu in observed.hardware.kinds)


def find_exclusive(hardware: Hardware) -> str | Finding:
    """Return why the compute mode keeps processes from sharing GPUs with MIG off, or what the agent may not read."""
    if all(gpu.layout is not None or gpu.compute_mode in FREE for gpu in hardware.kinds):
        return ""
    odd = [gpu for gpu in hardware.gpus if gpu.layout is None and gpu.compute_mode not in FREE]
    if unknown := [gpu.index for gpu in odd if gpu.compute_mode == "Unknown"]:
        text = f"NVML does not show the agent the compute mode of {name_gpus(unknown)}"
        return Finding(Reason.AGENT_LACKS_RIGHTS, text)
    served = [gpu.index for gpu in odd if MPS_DAEMONS.intersection(gpu.processes)]
    left = [gpu for gpu in odd if gpu.index not in served]
    if not left:
        are, them = ("is", "it") if len(served) == 1 else ("are", "them")
        return f"{name_gpus(served)} {are} in compute mode {EXCLUSIVE}: the MPS daemon still serves {them}"
    indexes = [gpu.index for gpu in left]
    modes = " and ".join(sorted({gpu.compute_mode for gpu in left}))
    return (
        f"{name_gpus(indexes)} {'is' if len(left) == 1 else 'are'} in compute mode {modes}, left behind by MPS; run"
        f" on the node: {reset_command(indexes, hardware)}"
    )


def name_gpus(indexes: Sequence[int]) -> str:
    return f"{'GPU' if len(indexes) == 1 else 'GPUs'} {', '.join(map(str, indexes))}"


def reset_command(indexes: Sequence[int], hardware: Hardware) -> str:
    """Return the command for a shell of the node that sets these GPUs back to compute mode Default."""
    if len(indexes) == len(hardware.gpus):
        return "nvidia-smi -c 0"
    if len(indexes) == 1:
        return f"nvidia-smi -i {indexes[0]} -c 0"
    # nvidia-smi documents -i for one GPU when it modifies one.
    return f"for gpu in {' '.join(map(str, indexes))}; do nvidia-smi -i $gpu -c 0; done"


def served(node: NodeView) -> dict[str, int]:
    """Return the counts, above 0, of the device plugin's or the DRA driver's resources that the scheduler sees now."""
    plugin = {name: count for name, count in node.resources.items() if is_plugin_resource(name) and count > 0}
    return plugin if plugin or node.devices is None else dict(node.devices.resources)


def advertised(node: NodeView) -> dict[str, int]:
    """Return the counts of `served` with the unhealthy devices of the same resources."""
    return {name: count + node.unhealthy.get(name, 0) for name, count in served(node).items()}


def find_unhealthy(node: NodeView, wanted: Mapping[str, int]) -> dict[str, int]:
    """Return, by resource, the unhealthy devices that `node` lacks; empty if it differs from `wanted` otherwise.

    If it offers nothing at all, the device plugin may just as well be down. During a change, a resource without any
    healthy device may be one that the plugin does not serve yet (docs/design/nvidia.md#b9).
    """
    if not (counts := served(node)):
        return {}
    short = {name: due - counts.get(name, 0) for name, due in wanted.items() if counts.get(name, 0) != due}
    if not counts.keys() <= wanted.keys() or (node.fence is not None and not short.keys() <= counts.keys()):
        return {}
    return short if all(node.unhealthy.get(name) == count for name, count in short.items()) else {}


def tell_unhealthy(node: NodeView, unhealthy: Mapping[str, int]) -> str:
    counts = [f"{count} of {node.resources.get(name, 0) + count} {name}" for name, count in sorted(unhealthy.items())]
    be = "are" if sum(unhealthy.values()) > 1 else "is"
    return (
        f"{', '.join(counts)} {be} unhealthy according to the device plugin, so no new pod gets them; see the plugin's"
        " log and `dmesg | grep -i nvrm` on the node. Once the GPU works again, restart the plugin's pod, because the"
        " plugin calls no device healthy again before"
    )


def tell_withdrawn(node: NodeView) -> str:
    """Return a clause about a node whose kubelet counts devices and offers none of them; empty for any other node.

    That ends by itself: after a restart of the device plugin, or when the kubelet forgets a plugin that has stopped,
    after five minutes (docs/design/nvidia.md#b9). A node that is being changed may show it for another reason.
    """
    counts = node.unhealthy and {name: count for name, count in node.unhealthy.items() if is_plugin_resource(name)}
    if not counts or node.fence is not None or served(node):
        return ""
    return (
        f"the kubelet counts {tell_counts(counts)}, but offers none: the device plugin is not running, or calls all of"
        " them unhealthy; see the plugin's log"
    )


def tell_stuck(node: NodeView, stack: StackView) -> str:
    """Return `tell_withdrawn` where no change would help; one does if no entry lets the plugin start (b.4)."""
    return "" if is_unknown(node.labels.get(names.LABEL_PLUGIN_CONFIG, ""), stack) else tell_withdrawn(node)


def find_slice_mismatch(node: NodeView, layouts: Sequence[Layout | None], observed: ObservedView | None) -> str:
    """Return how the devices that NVIDIA's DRA driver publishes for `node` differ from `layouts`, one per GPU.

    The order does not count, because the driver names GPUs by UUID. A GPU with MIG on and without instances has no
    device. Devices that are made anew with the same layout may have other UUIDs, which are compared with `observed`.
    """
    if (devices := node.devices) is None:
        return f"NVIDIA's DRA driver publishes no ResourceSlice for {node.name}"
    if devices.missing:
        slices = counted(devices.missing, "ResourceSlice")
        return f"NVIDIA's DRA driver has not published {slices} of pool {node.name} yet"
    if devices.others:
        return (
            f"NVIDIA's DRA driver publishes devices of {node.name} that are neither GPUs nor MIG devices, or that"
            f" several ResourceClaims may hold at once: {some(devices.others)}"
        )
    wanted = tuple(layout for layout in layouts if layout is None or layout)
    when = "NVIDIA's DRA driver looks for MIG devices only when its pod starts"
    if Counter(wanted) != Counter(devices.layouts):
        now, due = tell_devices(devices.layouts), tell_devices(wanted)
        return f"the ResourceSlices of {node.name} show {now} instead of {due}; {when}"
    if observed is not None and observed.devices_key and devices.key != observed.devices_key:
        return f"the ResourceSlices of {node.name} list different devices than NVML reports; {when}"
    return ""


def tell_devices(layouts: tuple[Layout | None, ...]) -> str:
    if len(set(layouts)) > 1:
        return describe_layouts(layouts)
    return f"{describe_layouts(layouts)} ({counted(len(layouts), 'GPU')})" if layouts else "no device"


def describe_observed(node: NodeView, observed: ObservedView | None) -> str:
    """Return the layouts that the GPUs have now, with the replicas of GFD's labels, for people; empty if unknown."""
    if observed is None or not observed.gpus:
        return ""
    layouts, labels, label = observed.hardware.layouts, node.labels, names.LABEL_GPU_REPLICAS
    if labels.get(names.LABEL_MIG_STRATEGY) == "mixed":
        profile = next((name for layout in layouts for name, _ in layout or ()), "")
        label = f"{resource_name(profile)}.replicas" if profile else label
    replicas = labels.get(label, "1")
    known = replicas != "1" and re.fullmatch("[0-9]{1,9}", replicas)
    return describe_layouts(layouts, int(replicas) if known else 1)
