"""Checks whether a node is what it should be. The checks of an actuator query the sources of proof in order, and the
first disagreement is the result. CHECKS are those of the actuator that follows labels.

    source             proves                                             reason when it disagrees
    agent              it can read, with NVML open                        AgentError, ObservationPending
    NVML (agent)       instances per GPU, MIG mode, compute mode          LayoutMismatch ...
    mig.config(.state) mig-manager has applied this very layout           ActuatorBusy, ActuatorFailed, LabelMismatch
    gpu.deploy.*       no operand is paused                               OperandsPaused
    GFD labels         plugin and GFD read the new configuration          LabelMismatch
    allocatable        the scheduler sees exactly the predicted counts    AllocatableMismatch

A source is checked only if it exists for the mode and the card (docs/design/transition.md#proof). The checks keep no
state, so the same ones adopt a node, find drift and prove a change. The caller makes sure that what proves a change is
more recent than the change (`transition/requests.py`).

Terms: docs/design/glossary.md#drift.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from enum import StrEnum

from gpusharing.api import names
from gpusharing.api.names import Mode
from gpusharing.planning.gpus.geometry import Layout, resource_name
from gpusharing.planning.gpus.health import REACHABLE
from gpusharing.planning.snapshot.stackviews import StackView
from gpusharing.planning.snapshot.views import Hardware, NodeView, ObservedView
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.vocabulary.lengths import counted, some
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.vocabulary.values import value
from gpusharing.planning.wanted import toolversions
from gpusharing.planning.wanted.gfdlabels import expected_gfd_labels
from gpusharing.planning.wanted.migfile import resolve_name
from gpusharing.planning.wanted.pluginconfig import (
    STRATEGIES,
    PluginConfig,
    default_entry,
    parse,
)
from gpusharing.planning.wanted.target import Target, describe_layouts, is_plugin_resource, predict_resources

SETTING = 'WITH_REBOOT "true" in ClusterPolicy migManager.env'
"""The setting that lets the GPU Operator's mig-manager reboot a node whose GPUs cannot be reset, for messages."""


def tell_guest_reset(observed: ObservedView | None, stack: StackView) -> str:
    """Return a clause that says why a MIG mode may stay pending in a virtual machine, and which setting helps; it
    begins with a semicolon. Empty if no GPU is known to need a reset by its virtual machine, if the setting is on
    already, or if there is neither a ClusterPolicy nor a mig-manager alongside NVIDIA's chart."""
    policy, kinds = stack.cluster_policy, observed.hardware.kinds if observed is not None else ()
    if policy is None or policy.with_reboot:
        return ""
    setting = SETTING
    if policy.plain is not None:
        if not policy.plain.mig_manager:
            return ""
        setting = f'WITH_REBOOT "true" in the environment of DaemonSet {policy.plain.mig_manager}'
    if not any(gpu.reset_in_guest for gpu in kinds):
        return ""
    return (
        "; a virtual machine often cannot reset a GPU that is passed through to it, so only a reboot of the node"
        f" switches the mode: set {setting}, or reboot the node yourself"
    )


EXCLUSIVE = "ExclusiveProcess"
"""The compute mode of a GPU that an MPS daemon serves."""
MPS_DAEMONS = frozenset({"nvidia-cuda-mps-server", "nvidia-cuda-mps-control"})
"""Names of NVIDIA's own MPS processes, which may run on an idle GPU (docs/design/transition.md#idle)."""
FREE = ("Default", "NotSupported")
"""Compute modes in which any process may use a GPU."""


@value
class Comparison:
    """One node with the target that it is compared with."""

    node: NodeView
    """The Node as it is now."""
    observed: ObservedView
    """The latest report of its agent."""
    target: Target
    """What the node should be."""
    stack: StackView
    """NVIDIA's components, and our ConfigMaps."""
    gfd_timestamp: str = ""
    """GFD's timestamp from before the change. As long as the label still has this value, GFD has not restarted and
    proves nothing. Empty if GFD need not restart."""


class Source(StrEnum):
    """A source of proof: a program that reports about the state of a node."""

    AGENT = "agent"
    NVML = "NVML"
    MIG_MANAGER = "mig-manager"
    OPERANDS = "operands"
    PLUGIN = "device plugin"
    GFD = "GFD labels"
    ALLOCATABLE = "allocatable"
    SLICES = "ResourceSlices"


@value
class Check:
    """A check of one thing that a source reports."""

    find: Callable[[Comparison], str | Finding]
    """Returns a message if the source disagrees with the target, or a Finding if the disagreement has a reason of its
    own. Returns an empty string if the source agrees."""
    reason: Reason
    """The reason of the disagreement, unless `find` returns a Finding."""
    source: Source
    """The source that this check is about."""


def _unreadable(compared: Comparison) -> str:
    """Return a message with the agent's error if it cannot read the GPUs, else an empty string."""
    return f"the agent cannot read the GPUs: {compared.observed.error}" if compared.observed.error else ""


def _quiet(compared: Comparison) -> str:
    """Return a message if the agent has closed NVML for a change, so that its report may be outdated, else an empty
    string."""
    return (
        "the agent has closed NVML for the change, so its last reading may be out of date"
        if compared.observed.quiet
        else ""
    )


def _unreachable(compared: Comparison) -> str:
    """Return a message about the first GPU that does not answer, so that its present state is unknown. Empty if all
    GPUs answer."""
    gone = next((gpu for gpu in compared.observed.hardware.kinds if gpu.vitals.access != REACHABLE), None)
    if gone is None:
        return ""
    return f"GPU {gone.index} is not responding, so its last known state is shown; see the Healthy condition"


def find_withheld(target: Target, observed: ObservedView) -> str:
    """Return a message if the agent is not allowed to list the MIG instances of a GPU, so that its report proves no
    layout. Empty if there is no such GPU, or if the target has no MIG and no GPU has MIG on."""
    kinds = observed.hardware.kinds
    blind = next((gpu for gpu in kinds if gpu.instances_withheld), None)
    if blind is None or not (target.with_mig or any(gpu.mig_enabled for gpu in kinds)):
        return ""
    return (
        f"NVML does not show the agent all MIG instances of GPU {blind.index}; grant the agent's container the rights"
        " listed in docs/reference/agent-fields.md"
    )


def find_missing(node: NodeView, observed: ObservedView) -> str:
    """Return a message with the remedy if NVML lists fewer GPUs than were last proven on the node. Empty if it lists
    as many or more, or if nothing was proven there."""
    proven, listed = node.verified.gpus if node.verified else 0, len(observed.gpus)
    if listed >= proven:
        return ""
    return (
        f"NVML lists {listed} of the {counted(proven, 'GPU')} from the last proof; see `dmesg | grep -i nvrm`"
        f" on {node.name}, or, if the node should have only {listed}, run (with the right to patch Nodes):"
        f" kubectl annotate node {node.name} {names.ANNOTATION_VERIFIED}-"
    )


def _other_layout(compared: Comparison) -> str:
    """Return a message if the GPUs' layouts according to NVML differ from those of the target, else an empty
    string."""
    layouts = compared.observed.hardware.layouts
    if layouts == compared.target.layouts:
        return ""
    return f"NVML shows {describe_layouts(layouts)} instead of {describe_layouts(compared.target.layouts)}"


def _mode_pending(compared: Comparison) -> str:
    """Return a message about the first GPU whose MIG mode is still waiting for a reset or reboot, else an empty
    string."""
    pending = next((gpu for gpu in compared.observed.hardware.kinds if gpu.mig_pending), None)
    if pending is None:
        return ""
    cause = tell_guest_reset(compared.observed, compared.stack)
    return (
        f"GPU {pending.index}: a MIG mode change is pending until the GPU is reset or the node reboots{cause}"
    )


def _mig_config(compared: Comparison) -> str:
    """Return a message if the label mig.config has neither the target's value nor another one that gives the GPUs the
    target's layouts. A missing label counts only if the target has MIG. Empty if the target does not use the label."""
    wanted, config = compared.target.mig_config, compared.node.labels.get(names.LABEL_MIG_CONFIG, "")
    if config == wanted or not wanted:
        return ""
    if not config:
        unset = (
            f"{names.LABEL_MIG_CONFIG} is not set: mig-manager would not restore this layout after a reboot"
        )
        return unset if compared.target.with_mig else ""
    meaning = resolve_name(config, compared.node.name, compared.observed.gpus, compared.stack)
    same = meaning == compared.target.layouts
    return "" if same else f"{names.LABEL_MIG_CONFIG} is {config}, but should be {wanted}"


def _mig_failed(compared: Comparison) -> str:
    """Return a message if mig-manager reports a failure. Empty if it does not, if the label mig.config is missing, or
    if the target does not need mig-manager."""
    config, state = _mig_state(compared)
    failed = config and state == "failed"
    return f"mig-manager failed to apply {config}; its pod's log shows why" if failed else ""


def _mig_busy(compared: Comparison) -> str:
    """Return a message if mig-manager's state is not `success`. Empty if it is, if the label mig.config is missing, or
    if the target does not need mig-manager. The state `failed` is reported by `_mig_failed`, which is checked
    first."""
    config, state = _mig_state(compared)
    busy = config and state != "success"
    return f"mig-manager is applying {config} (state {state or 'not reported yet'})" if busy else ""


def _mig_state(compared: Comparison) -> tuple[str, str]:
    """Return the values of the labels mig.config and mig.config.state. Each is empty if the label is missing. The
    first is also empty if the target does not need mig-manager."""
    labels = compared.node.labels
    config = labels.get(names.LABEL_MIG_CONFIG, "") if compared.target.mig_config else ""
    return config, labels.get(names.LABEL_MIG_STATE, "")


_PAUSABLE = tuple((operand, names.LABEL_DEPLOY_PREFIX + operand) for operand in names.DEPLOY_PAUSABLE)


def paused_operands(node: NodeView) -> tuple[str, ...]:
    """Return the names of the operands that are still paused for a MIG change or a driver upgrade, in the order of
    `names.DEPLOY_PAUSABLE` (docs/design/nvidia.md#a1, d.4). Other operands are not checked."""
    if not (labels := node.held_off):
        return ()
    return tuple([operand for operand, label in _PAUSABLE if "paused-for-" in labels.get(label, "")])


def _paused(compared: Comparison) -> str:
    """Return a message that lists the paused operands (`paused_operands`), or an empty string if there are none."""
    paused = paused_operands(compared.node)
    are = "is" if len(paused) == 1 else "are"
    change = "for a MIG change or a driver upgrade"
    return f"{', '.join(paused)} {are} still paused {change} on {compared.node.name}" if paused else ""


def effective_plugin_config(node: NodeView, stack: StackView) -> PluginConfig | None:
    """Return the configuration that the node's device plugin uses now. The entry that the node's label names counts, or
    without a label the default entry. Without either, or where NVIDIA's DRA driver takes the plugin's place, nothing is
    shared. A valid MIG strategy in ClusterPolicy overrides that of the entry. None if the entry does not exist or the
    plugin refuses it (b.4)."""
    if stack.by_dra:
        return PluginConfig()
    key = find_entry(node.labels.get(names.LABEL_PLUGIN_CONFIG, ""), stack)
    # ClusterPolicy mig.strategy overrides that of every configuration (b.2).
    fixed = STRATEGIES.get(stack.cluster_policy.mig_strategy) if stack.cluster_policy else None
    if not key:
        return PluginConfig(fixed or "none")
    text = stack.plugin_configs.get(key)
    config = parse(text) if text is not None else None
    return PluginConfig(fixed, config.sharing) if config is not None and fixed else config


def find_entry(label: str, stack: StackView) -> str:
    """Return the name of the entry that the device plugin uses on a node whose device-plugin label has the value
    `label`, or which has no such label if `label` is empty. The result is empty if the plugin uses no entry, in
    which case nothing is shared."""
    return label or default_entry(stack)


def is_told_mps(node: NodeView, stack: StackView) -> bool:
    """Whether the node's device plugin is configured to share the GPUs through MPS. The entry that the node's label
    names counts, or without a label the default entry. False if there is no such entry, if the plugin refuses it, or if
    NVIDIA's DRA driver replaces the plugin."""
    config = effective_plugin_config(node, stack)
    return config is not None and config.sharing is not None and config.sharing.strategy == "mps"


def _plugin_config(compared: Comparison) -> str:
    """Return a message if the entry that the device-plugin label, or else the default, names has another effect on
    this node than the target's, or cannot be used. If the target has no label, any label is a difference. Empty
    otherwise. If the label has the target's value, its entry is not read."""
    key = compared.node.labels.get(names.LABEL_PLUGIN_CONFIG, "")
    if key == compared.target.plugin_key:
        return ""  # if somebody deletes the entry, it is written again (configmaps.py), and nothing changes on the node
    if not compared.target.plugin_key:
        return f"{names.LABEL_PLUGIN_CONFIG} is {key}, but should be absent: the default entry has the same effect"
    config = effective_plugin_config(compared.node, compared.stack)
    if config is None:
        return f"{names.LABEL_PLUGIN_CONFIG} is {key}, which names no known configuration"
    target = compared.target
    if config.sharing is not None:  # rows for resources that this node does not have have no effect
        config = config.on(predict_resources(target.layouts, PluginConfig(target.plugin.mig_strategy)))
    if not config.same_effect(target.plugin, with_mig=target.with_mig):
        return (
            f"{names.LABEL_PLUGIN_CONFIG} is {key or 'not set'}, but should be {compared.target.plugin_key}"
        )
    return ""


def keep_names(compared: Comparison) -> Target:
    """Return the target with the names that the node's two configuration labels have now, as far as these mean the same
    on this node as the target's own names. A missing label gives an empty name. mig-manager's label may be missing only
    if the GPUs have the target's layouts, because otherwise the label must be written."""
    target, labels, observed = compared.target, compared.node.labels, compared.observed
    config = labels.get(names.LABEL_MIG_CONFIG, "")
    named = config or observed.hardware.layouts == target.layouts
    if target.mig_config and named and not _mig_config(compared):
        target = replace(target, mig_config=config)
    if not _plugin_config(compared):
        target = replace(target, plugin_key=labels.get(names.LABEL_PLUGIN_CONFIG, ""))
    return target


def _mps_absent(compared: Comparison) -> str:
    """Return a message about the first GPU that the MPS daemon does not serve yet: its compute mode is neither
    ExclusiveProcess nor NotSupported. Empty if there is none, or if the target is not MPS. The daemon sets a GPU to
    exclusive mode and restores Default when it stops cleanly (docs/design/hardware.md#mps-mode)."""
    if compared.target.mode is not Mode.MPS:
        return ""
    kinds = compared.observed.hardware.kinds
    shared = next((gpu for gpu in kinds if gpu.compute_mode not in (EXCLUSIVE, "NotSupported")), None)
    if shared is None:
        return ""
    return (
        f"GPU {shared.index} is in compute mode {shared.compute_mode}: the MPS daemon does not serve it yet"
    )


def _exclusive(compared: Comparison) -> str | Finding:
    return "" if compared.target.mode is Mode.MPS else find_exclusive(compared.observed.hardware)


def find_exclusive(hardware: Hardware) -> str | Finding:
    """Return why processes cannot share GPUs with MIG off, because of their compute mode, with the command that resets
    all that MPS left behind. A Finding AGENT_LACKS_RIGHTS if the agent may not read a mode. Empty if they can."""
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
    """Return these GPUs of a node for messages, such as `GPU 0` or `GPUs 0, 1`."""
    return f"{'GPU' if len(indexes) == 1 else 'GPUs'} {', '.join(map(str, indexes))}"


def reset_command(indexes: Sequence[int], hardware: Hardware) -> str:
    """Return the command for a shell of the node that sets these GPUs back to compute mode Default."""
    if len(indexes) == len(hardware.gpus):
        return "nvidia-smi -c 0"
    if len(indexes) == 1:
        return f"nvidia-smi -i {indexes[0]} -c 0"
    # nvidia-smi documents -i for one GPU when it modifies one.
    return f"for gpu in {' '.join(map(str, indexes))}; do nvidia-smi -i $gpu -c 0; done"


def _gfd_not_restarted(compared: Comparison) -> str:
    """Return a message if the label with the start time of GPU Feature Discovery still has the value from before the
    change, so that its other labels prove nothing. Empty if it has another value or is missing, or if GFD need not
    restart for this change."""
    before = compared.gfd_timestamp
    if not before or compared.node.labels.get(names.LABEL_GFD_TIMESTAMP) != before:
        return ""
    # config-manager changes the configuration and then sends a signal. If it fails in between, no signal is sent.
    text = f"has not restarted since the change; if this persists, delete its pod on {compared.node.name}"
    return f"GPU Feature Discovery {text}"


def _gfd_labels(compared: Comparison) -> str:
    """Return a message about the first label of GPU Feature Discovery that does not have the value predicted for the
    target, else an empty string. On a node with several card models, the labels are compared with the prediction
    for the model whose product they show, or with the last prediction if they show none of these products. Raises
    ValueError unless the target has one layout for each observed GPU, and IndexError if there are no GPUs."""
    labels = compared.node.labels
    possible = expected_gfd_labels(compared.target, compared.observed)
    shown = labels.get(names.LABEL_GPU_PRODUCT, "")
    # Compare with the model whose product the labels show.
    expected = next((one for one in possible if one[names.LABEL_GPU_PRODUCT] == shown), possible[-1])
    for label, due in expected.items():
        if labels.get(label, "") != due:
            products = " or ".join(one[names.LABEL_GPU_PRODUCT] for one in possible)
            wanted = products if label == names.LABEL_GPU_PRODUCT else due
            return f"label {label} is {labels.get(label, 'absent')}, but should be {wanted}"
    return ""


def served(node: NodeView) -> dict[str, int]:
    """Return the GPU resources that the scheduler sees on the node now, by name with their counts: those that NVIDIA's
    device plugin advertises, or else those of the devices that NVIDIA's DRA driver publishes. Counts of 0 are left
    out."""
    plugin = {name: count for name, count in node.resources.items() if is_plugin_resource(name) and count > 0}
    return plugin if plugin or node.devices is None else dict(node.devices.resources)


def _allocatable(compared: Comparison) -> str | Finding:
    """Return a message if the resources of the device plugin that the node advertises are not exactly those of the
    target, else an empty string. If they are what a device plugin before v0.20 would advertise for the target,
    return a Finding with the reason PLUGIN_TOO_OLD instead."""
    now = served(compared.node)
    if now == dict(compared.target.resources):
        return ""
    message = f"the node advertises {_counts(now)} instead of {_counts(dict(compared.target.resources))}"
    if now == toolversions.counts_without_suffixes(compared.target.resources):
        return Finding(Reason.PLUGIN_TOO_OLD, f"{message}: {toolversions.ADVICE}")
    return message


def _counts(resources: dict[str, int]) -> str:
    """Return the resources with their counts, sorted by name and separated by commas, or `no GPU resource` if there
    are none."""
    return ", ".join(f"{count} {name}" for name, count in sorted(resources.items())) or "no GPU resource"


# What the scheduler sees where NVIDIA's DRA driver serves the GPUs, in place of the kubelet's allocatable counts and of
# GPU Feature Discovery's labels.


def find_slice_mismatch(
    node: NodeView, layouts: Sequence[Layout | None], observed: ObservedView | None
) -> str:
    """Return how the devices that NVIDIA's DRA driver publishes for `node` differ from `layouts`, one per GPU, or from
    the devices that the agent has read. Only the first difference is reported. Empty if they agree. It counts as a
    difference if the driver has published nothing, not everything yet, or a device that is neither a GPU nor a MIG
    device or that several ResourceClaims may hold at once.

    The GPUs are compared without regard to their order, because the driver names them by UUID. A GPU with MIG on and
    without instances has no device. The UUIDs are compared only if `observed` has a `devices_key`, because devices that
    are made anew with the same layout may have other UUIDs.
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
    """Return the layouts for people, with the number of GPUs even if all have the same layout, or `no device` if there
    are none."""
    if len(set(layouts)) > 1:
        return describe_layouts(layouts)
    return f"{describe_layouts(layouts)} ({counted(len(layouts), 'GPU')})" if layouts else "no device"


AGENT_CHECKS = (
    Check(_unreadable, Reason.AGENT_ERROR, Source.AGENT),
    Check(_quiet, Reason.OBSERVATION_PENDING, Source.AGENT),
    Check(_unreachable, Reason.GPU_UNHEALTHY, Source.NVML),
    Check(lambda it: find_withheld(it.target, it.observed), Reason.AGENT_LACKS_RIGHTS, Source.NVML),
    Check(lambda it: find_missing(it.node, it.observed), Reason.GPU_MISSING, Source.NVML),
    Check(_other_layout, Reason.LAYOUT_MISMATCH, Source.NVML),
    Check(_mode_pending, Reason.MIG_MODE_PENDING, Source.NVML),
)
"""What the agent's reading proves, with every actuator. The agent comes first because every other source may be
stale."""

MIG_CHECKS = (
    Check(_mig_config, Reason.LABEL_MISMATCH, Source.MIG_MANAGER),
    Check(_mig_failed, Reason.ACTUATOR_FAILED, Source.MIG_MANAGER),
    Check(_mig_busy, Reason.ACTUATOR_BUSY, Source.MIG_MANAGER),
    Check(_paused, Reason.OPERANDS_PAUSED, Source.OPERANDS),
)
"""What proves that mig-manager is done, with every actuator that uses it."""
COMPUTE_MODE = Check(_exclusive, Reason.COMPUTE_MODE, Source.NVML)  # or a mode that the agent may not read

CHECKS = (
    *AGENT_CHECKS,
    *MIG_CHECKS,
    Check(_plugin_config, Reason.LABEL_MISMATCH, Source.PLUGIN),
    Check(_mps_absent, Reason.MPS_NOT_RUNNING, Source.NVML),
    COMPUTE_MODE,
    Check(_gfd_not_restarted, Reason.LABEL_MISMATCH, Source.GFD),
    Check(_gfd_labels, Reason.LABEL_MISMATCH, Source.GFD),
    Check(
        _allocatable, Reason.ALLOCATABLE_MISMATCH, Source.ALLOCATABLE
    ),  # or a device plugin that is too old for it
)
"""What proves a node that follows labels (`actuators/labels.py`). The first disagreement wins.
The compute mode comes after the plugin, because a GPU is rightly exclusive as long as the plugin is configured for
MPS."""


def find_mismatch(compared: Comparison, checks: Sequence[Check]) -> Finding | None:
    """Return the first disagreement with the target in the order of `checks`, or None if all sources agree. Later
    checks are not made."""
    for check in checks:
        if disagreement := check.find(compared):
            return Finding.of(disagreement, check.reason)
    return None


def find_disagreements(compared: Comparison, checks: Sequence[Check]) -> dict[Source, Finding]:
    """Return the first disagreement of each source that does not agree with the target, by source. Sources that agree
    are left out. The result is for people; decisions use only `find_mismatch`. Raises ValueError or IndexError if
    the check of GFD's labels does, because the target does not fit the GPUs."""
    disagreements: dict[Source, Finding] = {}
    for check in checks:
        if check.source not in disagreements and (text := check.find(compared)):
            disagreements[check.source] = Finding.of(text, check.reason)
    return disagreements


def describe_observed(node: NodeView, observed: ObservedView | None) -> str:
    """Return the layouts that the GPUs have now, for people, with the number of replicas according to GFD's labels.
    Empty if there is no report or it lists no GPU."""
    if observed is None or not observed.gpus:
        return ""
    layouts = observed.hardware.layouts
    return describe_layouts(layouts, _replicas_now(node, layouts))


_COUNT = re.compile("[0-9]{1,9}")


def _replicas_now(node: NodeView, layouts: Sequence[Layout | None]) -> int:
    """Return how many pods share each device according to GFD's label for the GPU or, with strategy mixed, for the
    first profile in `layouts`, if there is one. 1 if the label is missing or is not a number of at most nine
    digits."""
    labels, label = node.labels, names.LABEL_GPU_REPLICAS
    if labels.get(names.LABEL_MIG_STRATEGY) == "mixed":
        profile = next((name for layout in layouts for name, _ in layout or ()), "")
        label = f"{resource_name(profile)}.replicas" if profile else label
    replicas = labels.get(label, "1")
    return int(replicas) if replicas != "1" and _COUNT.fullmatch(replicas) else 1
