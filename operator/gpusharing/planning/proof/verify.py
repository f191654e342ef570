"""Is a node what it should be? An ordered chain of checks over five sources; the first disagreement is the answer.

    source             proves                                             reason when it disagrees
    NVML (agent)       instances per GPU, MIG mode, compute mode          ObservationPending, LayoutMismatch ...
    mig.config(.state) mig-manager is done, and with this very layout     ActuatorBusy, ActuatorFailed, LabelMismatch
    gpu.deploy.*       no operand is paused                               OperandsPaused
    GFD labels         plugin and GFD read the new configuration          LabelMismatch
    allocatable        the scheduler sees exactly the predicted counts    AllocatableMismatch

Each source counts where it exists for the mode and the card (docs/design/way.md#proof). Nothing is remembered: the
same chain adopts a node, finds drift and proves a change; a change only asks for fresher evidence (`Evidence`).
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from gpusharing.api import names
from gpusharing.api.names import Mode
from gpusharing.planning.gpus.cards import bare_product
from gpusharing.planning.gpus.geometry import Layout, resource_name
from gpusharing.planning.gpus.health import REACHABLE
from gpusharing.planning.snapshot.stackviews import StackView
from gpusharing.planning.snapshot.views import GpuView, NodeView, ObservedView
from gpusharing.planning.wanted import toolversions
from gpusharing.planning.wanted.migfile import Unresolved, resolve_name
from gpusharing.planning.wanted.pluginconfig import STRATEGIES, MigStrategy, PluginConfig, parse
from gpusharing.planning.wanted.target import Target, describe_layouts, is_plugin_resource
from gpusharing.planning.words.findings import Finding
from gpusharing.planning.words.reasons import Reason

EXCLUSIVE = "ExclusiveProcess"
MPS_DAEMONS = frozenset({"nvidia-cuda-mps-server", "nvidia-cuda-mps-control"})
"""NVIDIA's own processes; an idle GPU may have them (docs/design/way.md#idle)."""
FREE = ("Default", "NotSupported")
"""Compute modes in which any process may use a GPU."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """How fresh the proof must be; empty fields ask for nothing."""

    request_id: str = ""
    """Only an observation that echoes this id counts."""
    gfd_timestamp: str = ""
    """GFD must have started anew since this one."""


@dataclass(frozen=True, slots=True)
class Case:
    """One node against one target."""

    node: NodeView
    observed: ObservedView
    target: Target
    stack: StackView
    evidence: Evidence = Evidence()


def find_mismatch(case: Case) -> Finding | None:
    """The first disagreement in the order of CHECKS; None: all sources agree."""
    for check in CHECKS:
        if (mismatch := check(case)) is not None:
            return mismatch
    return None


def _observation(case: Case) -> Finding | None:
    seen = case.observed
    if case.evidence.request_id and seen.request_id != case.evidence.request_id:
        return Finding(Reason.OBSERVATION_PENDING, "waiting for the agent to read the GPUs again")
    if seen.error:
        return Finding(Reason.AGENT_ERROR, f"the agent cannot read the GPUs: {seen.error}")
    if seen.quiet:
        return Finding(Reason.OBSERVATION_PENDING, "the agent is quiet, its last reading proves nothing")
    if gone := next((gpu for gpu in seen.gpus if gpu.vitals.access != REACHABLE), None):
        text = f"GPU {gone.index} does not answer, so its last known state is shown; see condition Healthy"
        return Finding(Reason.GPU_UNHEALTHY, text)
    withheld = find_withheld(seen)
    matters = withheld is not None and (case.target.with_mig or any(gpu.mig_enabled for gpu in seen.gpus))
    return withheld if matters else None


def find_withheld(observed: ObservedView) -> Finding | None:
    """A GPU whose MIG instances the agent may not list: what it sees of them proves no layout."""
    blind = next((gpu for gpu in observed.gpus if gpu.instances_withheld), None)
    if blind is None:
        return None
    return Finding(
        Reason.AGENT_LACKS_RIGHTS,
        f"NVML does not let the agent list the MIG instances of GPU {blind.index}; give its container the rights that"
        " docs/reference/agent-fields.md names",
    )


def _count(case: Case) -> Finding | None:
    return find_missing(case.node, case.observed)


def find_missing(node: NodeView, observed: ObservedView) -> Finding | None:
    """Fewer GPUs than were proven on the node before."""
    proven, found = node.verified.gpus if node.verified else 0, len(observed.gpus)
    if found >= proven:
        return None
    return Finding(
        Reason.GPU_MISSING,
        f"NVML lists {found} of the {proven} GPUs that were proven here; see `dmesg | grep -i nvrm` on {node.name}, or,"
        f" when it is to have {found}: kubectl annotate node {node.name} {names.ANNOTATION_VERIFIED}-",
    )


def _instances(case: Case) -> Finding | None:
    gpus = case.observed.gpus
    found = tuple([gpu.layout for gpu in gpus])
    if found != case.target.layouts:
        return Finding(
            Reason.LAYOUT_MISMATCH,
            f"NVML shows {describe_layouts(found)} instead of {describe_layouts(case.target.layouts)}",
        )
    if pending := next((gpu for gpu in gpus if gpu.mig_pending), None):
        return Finding(
            Reason.MIG_MODE_PENDING, f"GPU {pending.index}: a MIG mode change waits for a GPU reset or reboot"
        )
    return None


def _mig_manager(case: Case) -> Finding | None:
    if not case.target.mig_config:
        return None
    config = case.node.labels.get(names.LABEL_MIG_CONFIG, "")
    state = case.node.labels.get(names.LABEL_MIG_STATE, "")
    if not config:
        if case.target.with_mig:
            return Finding(
                Reason.LABEL_MISMATCH,
                f"{names.LABEL_MIG_CONFIG} is not set: mig-manager would not bring this layout back after a reboot",
            )
        return None
    if config != case.target.mig_config:
        meaning = resolve_name(config, case.node.name, case.observed.gpus, case.stack)
        if isinstance(meaning, Unresolved) or meaning != case.target.layouts:
            return Finding(
                Reason.LABEL_MISMATCH,
                f"{names.LABEL_MIG_CONFIG} is {config}, wanted {case.target.mig_config}",
            )
    if state == "failed":
        return Finding(
            Reason.ACTUATOR_FAILED, f"mig-manager failed to apply {config}; its pod's log says why"
        )
    if state != "success":
        return Finding(
            Reason.ACTUATOR_BUSY, f"mig-manager applies {config} (state {state or 'not reported yet'})"
        )
    return None


_PAUSABLE = tuple((operand, names.LABEL_DEPLOY_PREFIX + operand) for operand in names.DEPLOY_PAUSABLE)


def paused_operands(node: NodeView) -> tuple[str, ...]:
    """Operands that a MIG change or a driver upgrade paused and nobody started again (a.1, d.4)."""
    labels = node.labels
    return tuple([operand for operand, label in _PAUSABLE if "paused-for-" in labels.get(label, "")])


def _operands(case: Case) -> Finding | None:
    if paused := paused_operands(case.node):
        return Finding(Reason.OPERANDS_PAUSED, f"still paused: {', '.join(paused)}")
    return None


def effective_plugin_config(node: NodeView, stack: StackView) -> PluginConfig | None:
    """What the device plugin of a node is told now; None when its label names no configuration (b.4)."""
    policy = stack.cluster_policy
    key = node.labels.get(names.LABEL_PLUGIN_CONFIG, "") or (policy.plugin_default if policy else "")
    fixed = _fixed_strategy(stack)
    if not key:
        return PluginConfig(fixed or "none")
    text = stack.plugin_configs.get(key)
    config = parse(text) if text is not None else None
    return PluginConfig(fixed, config.sharing) if config is not None and fixed else config


def _fixed_strategy(stack: StackView) -> MigStrategy | None:
    """ClusterPolicy mig.strategy beats every configuration's own (b.2)."""
    return STRATEGIES.get(stack.cluster_policy.mig_strategy) if stack.cluster_policy else None


def _plugin(case: Case) -> Finding | None:
    key = case.node.labels.get(names.LABEL_PLUGIN_CONFIG, "")
    if key == case.target.plugin_key:
        return None  # the entry itself is written again when somebody deletes it (configmaps.py); the node is as it was
    config = effective_plugin_config(case.node, case.stack)
    if config is None:
        return Finding(
            Reason.LABEL_MISMATCH, f"{names.LABEL_PLUGIN_CONFIG} is {key}, which names no known configuration"
        )
    if not config.same_effect(case.target.plugin, with_mig=case.target.with_mig):
        return Finding(
            Reason.LABEL_MISMATCH,
            f"{names.LABEL_PLUGIN_CONFIG} is {key or 'not set'}, wanted {case.target.plugin_key}",
        )
    return None


def _compute_mode(case: Case) -> Finding | None:
    """MPS's daemon makes a GPU exclusive and sets Default again when it stops cleanly
    (docs/design/hardware.md#mps-mode)."""
    gpus = case.observed.gpus
    if case.target.mode is Mode.MPS:
        shared = next((gpu for gpu in gpus if gpu.compute_mode not in (EXCLUSIVE, "NotSupported")), None)
        if shared is None:
            return None
        text = f"GPU {shared.index} is in compute mode {shared.compute_mode}: the MPS daemon does not serve it yet"
        return Finding(Reason.MPS_NOT_RUNNING, text)
    return find_exclusive(gpus)


def find_exclusive(gpus: Sequence[GpuView]) -> Finding | None:
    """A whole GPU that only one process may use."""
    odd = next((gpu for gpu in gpus if gpu.layout is None and gpu.compute_mode not in FREE), None)
    if odd is None:
        return None
    if odd.compute_mode == "Unknown":
        text = f"NVML does not tell the agent the compute mode of GPU {odd.index}"
        return Finding(Reason.AGENT_LACKS_RIGHTS, text)
    text = f"GPU {odd.index} is in compute mode {odd.compute_mode}"
    if MPS_DAEMONS.intersection(odd.processes):
        return Finding(Reason.COMPUTE_MODE, f"{text}: the MPS daemon still serves it")
    return Finding(
        Reason.COMPUTE_MODE, f"{text}, left behind by MPS; run nvidia-smi -i {odd.index} -c 0 on the node"
    )


def expected_gfd_labels(case: Case) -> tuple[Mapping[str, str], ...]:
    """The label sets that GPU Feature Discovery may write for the target (docs/design/nvidia.md#c).

    One per card model on the node: it counts per model and writes one over the other, in an order that may change at
    each run (k8s-device-plugin, internal/lm/mig-strategy.go).
    """
    products = tuple(bare_product(gpu.product) for gpu in case.observed.gpus)
    return _expect(case.target.layouts, case.target.plugin, products)


@lru_cache(maxsize=1024)
def _expect(
    layouts: tuple[Layout | None, ...], plugin: PluginConfig, products: tuple[str, ...]
) -> tuple[Mapping[str, str], ...]:
    shared = "-SHARED" if plugin.sharing and not plugin.sharing.rename else ""
    # Models with a whole GPU come last, so one of them stays.
    whole = [product for product, layout in zip(products, layouts, strict=True) if layout is None]
    if len(whole) == len(products):
        return tuple(
            {**_whole_labels(plugin, count), names.LABEL_GPU_PRODUCT: product + shared}
            for product, count in Counter(products).items()
        )
    common = _mig_labels(layouts, plugin)
    if plugin.mig_strategy == "single":
        profile = next(layout[0][0] for layout in layouts if layout)
        suffix = f"-MIG-{profile.replace('+', '.')}{shared}"
    else:
        suffix = shared if whole else ""
    shown = dict.fromkeys(whole or products)
    return tuple({**common, names.LABEL_GPU_PRODUCT: product + suffix} for product in shown)


def _whole_labels(plugin: PluginConfig, gpus: int) -> dict[str, str]:
    sharing = plugin.sharing
    return {
        names.LABEL_GPU_COUNT: str(gpus),
        names.LABEL_GPU_REPLICAS: str(sharing.replicas[0][1] if sharing else 1),
        names.LABEL_SHARING_STRATEGY: sharing.strategy if sharing else "none",
        **({names.LABEL_MPS_CAPABLE: "true"} if sharing and sharing.strategy == "mps" else {}),
    }


def _mig_labels(layouts: tuple[Layout | None, ...], plugin: PluginConfig) -> dict[str, str]:
    sharing = plugin.sharing
    replicas = sharing.replicas[0][1] if sharing else 1
    instances: Counter[str] = Counter()
    for layout in layouts:
        instances.update(dict(layout or ()))
    if plugin.mig_strategy == "single":
        return {
            names.LABEL_MIG_STRATEGY: "single",
            names.LABEL_GPU_COUNT: str(instances.total()),
            names.LABEL_GPU_REPLICAS: str(replicas),
            names.LABEL_SHARING_STRATEGY: sharing.strategy if sharing else "none",
        }
    expected = {names.LABEL_MIG_STRATEGY: "mixed"}
    for profile, count in instances.items():
        expected[f"{resource_name(profile)}.count"] = str(count)
        expected[f"{resource_name(profile)}.replicas"] = str(replicas)
    return expected


def _gfd(case: Case) -> Finding | None:
    labels = case.node.labels
    if case.evidence.gfd_timestamp and labels.get(names.LABEL_GFD_TIMESTAMP) == case.evidence.gfd_timestamp:
        # config-manager changes the configuration, then signals; when it fails in between, nobody signals again.
        text = f"has not restarted since the change; if this lasts, delete its pod on {case.node.name}"
        return Finding(Reason.LABEL_MISMATCH, f"GPU Feature Discovery {text}")
    possible = expected_gfd_labels(case)
    shown = labels.get(names.LABEL_GPU_PRODUCT, "")
    # Whose labels these seem to be: of several models, the one whose product they show.
    expected = next((one for one in possible if one[names.LABEL_GPU_PRODUCT] == shown), possible[-1])
    products = " or ".join(one[names.LABEL_GPU_PRODUCT] for one in possible)
    for label, value in expected.items():
        if labels.get(label, "") != value:
            wanted = products if label == names.LABEL_GPU_PRODUCT else value
            return Finding(
                Reason.LABEL_MISMATCH, f"label {label} is {labels.get(label, 'absent')}, expected {wanted}"
            )
    return None


def served(node: NodeView) -> dict[str, int]:
    """GPU resources that the node offers now; a quantity of 0 counts as absent."""
    return {name: count for name, count in node.resources.items() if is_plugin_resource(name) and count > 0}


def _allocatable(case: Case) -> Finding | None:
    now = served(case.node)
    if now == dict(case.target.resources):
        return None
    message = f"the node offers {_counts(now)} instead of {_counts(dict(case.target.resources))}"
    if now == toolversions.merged(case.target.resources):
        return Finding(Reason.PLUGIN_TOO_OLD, f"{message}: {toolversions.ADVICE}")
    return Finding(Reason.ALLOCATABLE_MISMATCH, message)


def _counts(resources: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(resources.items())) or "no GPU resource"


CHECKS: tuple[Callable[[Case], Finding | None], ...] = (
    _observation,
    _count,
    _instances,
    _mig_manager,
    _operands,
    _plugin,
    _compute_mode,
    _gfd,
    _allocatable,
)
"""First wins; a test pins the order. The agent comes first because every other source can be stale; the compute mode
comes after the plugin, because a GPU is exclusive by right for as long as the plugin is told to use MPS."""


def describe_observed(node: NodeView, observed: ObservedView | None) -> str:
    """What the GPUs are divided into now, for people; sharing is read from GFD's labels."""
    if observed is None or not observed.gpus:
        return ""
    layouts = tuple([gpu.layout for gpu in observed.gpus])
    return describe_layouts(layouts, _replicas_now(node, layouts))


_COUNT = re.compile("[0-9]{1,9}")


def _replicas_now(node: NodeView, layouts: Sequence[Layout | None]) -> int:
    """Shares of each device, as GFD's labels tell: of the GPU, or with strategy mixed of its profiles."""
    labels, label = node.labels, names.LABEL_GPU_REPLICAS
    if labels.get(names.LABEL_MIG_STRATEGY) == "mixed":
        profile = next((name for layout in layouts for name, _ in layout or ()), "")
        label = f"{resource_name(profile)}.replicas" if profile else label
    replicas = labels.get(label, "1")
    return int(replicas) if _COUNT.fullmatch(replicas) else 1


__all__ = [
    "CHECKS",
    "Case",
    "Evidence",
    "describe_observed",
    "effective_plugin_config",
    "find_mismatch",
    "paused_operands",
    "served",
]
