"""How does one node, fenced or not, compare with its policy, and what would a change disturb?

The result does not depend on time, so it can be cached for as long as its inputs are equal.
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import chain

from gpusharing.api import names
from gpusharing.api.gpunode import MAX_HOLDERS
from gpusharing.api.names import DisruptionClass, Mode
from gpusharing.api.policy import Drain, GPUSharingPolicySpec
from gpusharing.planning.gpus.health import REACHABLE
from gpusharing.planning.snapshot.nvidia import StackView
from gpusharing.planning.snapshot.records import SpecVersion
from gpusharing.planning.snapshot.views import GPUNodeView, NodeView, ObservedView, PolicyView
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.vocabulary.reasons import Mark, Reason
from gpusharing.planning.vocabulary.values import value
from gpusharing.planning.wanted.actuators import Actuator
from gpusharing.planning.wanted.pluginconfig import PluginConfig
from gpusharing.planning.wanted.target import (
    PolicyTargets,
    Target,
    find_last_proven,
    predict_resources,
    without_default_label,
)
from gpusharing.planning.wanted.verify import (
    Comparison,
    describe_observed,
    effective_plugin_config,
    find_mismatch,
    needs_two_steps,
    only_name_differs,
    paused_operands,
    served,
)


@value
class Untargeted:
    """The assessment of a node that has no target."""

    policy: PolicyView
    objection: Finding
    observed_text: str
    """The layouts that the GPUs have now, for people. Empty if they are unknown."""
    accepted: bool = True
    """Whether the policy itself is accepted, so that only this node cannot be as the policy asks."""
    unobserved: bool = False
    """Whether only the GPUs are unknown, so that no target can be computed yet."""


@value
class Assessed:
    """The assessment of a node with a target: what the node should be, and whether it is."""

    policy: PolicyView
    spec: GPUSharingPolicySpec
    observed: ObservedView
    """The agent's report from which the target was computed."""
    target: Target
    """What the node should finally be."""
    stop: Target
    """The intermediate target: whole GPUs without sharing. It is used only if `two_steps`."""
    observed_text: str
    two_steps: bool = False
    """Whether the change involves both MPS and MIG. In a single step, mig-manager would race with the MPS daemon."""
    mismatch: Finding | None = None
    """The first disagreement between a source of proof and the target."""
    disruption: DisruptionClass = DisruptionClass.NONE
    """The class of disruption of the change from the present state to the target."""
    gpus: tuple[int, ...] = ()
    """Indexes of the only GPUs that the change touches, sorted. Empty unless `disruption` is ChangedGPUs."""
    whole: str = ""
    """Why the whole node must be emptied although drain.scope is Changed, or empty."""
    doubt: str = ""
    """Why a change that has begun must not touch the GPUs now, as a run might disturb more than its record says."""
    drift: Finding | None = None
    """How the node differs from what was last proven on it for this policy: its target, or what a rollback restored."""

    @property
    def goal(self) -> Target:
        return self.stop if self.two_steps else self.target


Assessment = Untargeted | Assessed


def assess(node: NodeView, gpunode: GPUNodeView | None, targets: PolicyTargets, *, actuator: Actuator) -> Assessment:
    policy, request, stack = targets.policy, targets.request, targets.stack
    observed = gpunode.observed if gpunode else None
    text = describe_observed(node, observed)
    if isinstance(request, Finding):
        return Untargeted(policy, request, text, accepted=False)
    if not has_gpu(node) and not (observed is not None and observed.gpus):
        label = f"label {names.LABEL_GPU_PRESENT} is not true"
        message = f"{node.name} has no NVIDIA GPU ({label}); narrow spec.nodeSelector"
        return Untargeted(policy, Finding(Reason.NO_GPU, message), text)
    if observed is None:
        pending = Finding(Reason.OBSERVATION_PENDING, "the agent has not reported yet")
        return Untargeted(policy, pending, text, unobserved=True)
    if (unknown := _find_unread(observed)) is not None:
        return Untargeted(policy, unknown, text, unobserved=True)
    target = targets.find(node.name, observed.hardware)
    if isinstance(target, Finding):
        return Untargeted(policy, target, text)
    target, stop = (_spare_manager(each, node, observed) for each in (target, targets.stop(observed.hardware)))
    if policy.resetting:
        target = without_default_label(target, stack)
    assessed = aim(Assessed(policy, request.spec, observed, target, stop, text), target, node, stack, actuator)
    record = node.verified
    if (
        record is not None
        and record.policy == policy.name
        and record.mig_config == target.mig_config
        and record.plugin_config == target.plugin_key
        and record.layout == target.text
    ):
        return replace(assessed, drift=assessed.mismatch)
    if record is not None and record.rolled_back and record.version == policy.version:
        last = find_last_proven(node, observed, stack)
        if isinstance(last, Target):
            return replace(assessed, drift=find_mismatch(Comparison(node, observed, last, stack), actuator.checks))
    return assessed


def aim(assessed: Assessed, target: Target, node: NodeView, stack: StackView, actuator: Actuator) -> Assessed:
    """Return the assessment of the same report with another target, and without drift."""
    compared = Comparison(node, assessed.observed, target, stack)
    mismatch = find_mismatch(compared, actuator.checks)
    disruption, gpus, whole, doubt = find_extent(compared, mismatch, assessed.policy.version, assessed.spec.drain)
    return replace(
        assessed,
        target=target,
        two_steps=needs_two_steps(compared),
        mismatch=mismatch,
        disruption=disruption,
        gpus=gpus,
        whole=whole,
        doubt=doubt,
        drift=None,
    )


def _spare_manager(target: Target, node: NodeView, observed: ObservedView) -> Target:
    """Return the target without a run of a mig-manager that a deploy label keeps off whole GPUs.

    A run that has begun keeps its target.
    """
    begun = node.fence is not None and node.fence.target_mig_config
    whole = not target.with_mig and observed.hardware.layouts == target.layouts
    return replace(target, mig_config="") if whole and not begun and node.keeps_off("mig-manager") else target


def _find_unread(observed: ObservedView) -> Finding | None:
    if not observed.gpus:
        if observed.error:
            return Finding(Reason.AGENT_ERROR, f"the agent cannot read the GPUs: {observed.error}")
        return Finding(Reason.AGENT_ERROR, "the agent finds no GPU through NVML; check the driver on the node")
    if nameless := next((gpu for gpu in observed.hardware.kinds if not gpu.product), None):
        message = f"GPU {nameless.index} is not responding and never has; drain and reboot the node"
        return Finding(Reason.GPU_UNHEALTHY, message)
    return None


def has_gpu(node: NodeView) -> bool:
    """Whether the Node's labels, apart from the PCI labels of Node Feature Discovery, or resources show a GPU."""
    return (
        node.labels.get(names.LABEL_GPU_PRESENT) == "true"
        or names.LABEL_GPU_PRODUCT in node.labels
        or bool(served(node))
    )


def find_disruption(compared: Comparison, mismatch: Finding | None) -> DisruptionClass:
    """Return the class of disruption of the change to the target (docs/design/transition.md#classes).

    Raises ValueError if there is a mismatch and the target does not have one layout for each GPU.
    """
    target, stack = compared.target, compared.stack
    if mismatch is None:
        return DisruptionClass.NONE
    for gpu, layout in zip(compared.observed.gpus, target.layouts, strict=True):
        if gpu.mig_enabled != (layout is not None) or gpu.mig_pending:
            return DisruptionClass.REBOOT if stack.with_reboot else DisruptionClass.RESET
    if stack.by_dra or not _serves_already(compared):
        return DisruptionClass.GPU_PODS
    if Mark.ENDS_MPS in mismatch.reason.marks and (target.mode is Mode.MPS or compared.uses_mps):
        return DisruptionClass.PLUGIN_RESTART if only_name_differs(compared) else DisruptionClass.GPU_PODS
    return DisruptionClass.PLUGIN_RESTART


def find_extent(
    compared: Comparison, mismatch: Finding | None, version: SpecVersion, drain: Drain
) -> tuple[DisruptionClass, tuple[int, ...], str, str]:
    """Return `disruption`, `gpus`, `whole` and `doubt` of the assessment."""
    disruption, fence = find_disruption(compared, mismatch), compared.node.fence
    part = DisruptionClass.CHANGED_GPUS
    if fence is None:
        if disruption is not DisruptionClass.GPU_PODS or drain.scope == "Node":
            return disruption, (), "", ""
        whole = next(chain(_find_doubts(compared), _needs_whole(compared), _unsuited(compared, version)), "")
        return (disruption, (), whole, "") if whole else (part, find_changed(compared), "", "")
    if fence.disruption is not part:
        return disruption, (), "", ""
    doubt = next(_find_doubts(compared), "")
    if disruption is not DisruptionClass.GPU_PODS:
        return disruption, (), "", doubt
    whole = "drain.scope is Node now" if drain.scope == "Node" else next(_needs_whole(compared), "")
    return (disruption, (), whole, doubt) if whole else (part, find_changed(compared), "", doubt)


def find_changed(compared: Comparison) -> tuple[int, ...]:
    pairs = zip(compared.observed.gpus, compared.target.layouts, strict=True)
    return tuple(gpu.index for gpu, layout in pairs if gpu.layout != layout)


_RECONFIGURED = "the device plugin's configuration changes"


def _find_doubts(compared: Comparison) -> Iterator[str]:
    """Yield what is seen of the node and its stack because of which a run may disturb pods on GPUs that keep their layout.

    What is unknown only for a moment before the cordon is waited for elsewhere (`find_unreported`).
    """
    node, observed, target, stack = compared.node, compared.observed, compared.target, compared.stack
    fence, policy = node.fence, stack.cluster_policy
    if stack.by_dra:
        yield "NVIDIA's DRA driver serves the GPUs"
    if policy is None or policy.plain is not None:
        yield "there is no ClusterPolicy that shows how mig-manager works"
    if stack.with_reboot:
        yield "mig-manager may reboot the node"
    # NVIDIA's driver manager, which sets this label, runs only where the GPU Operator installs drivers.
    on_host = node.labels.get(f"{names.LABEL_DEPLOY_PREFIX}driver") == "pre-installed"
    if on_host or (policy is not None and (policy.stops_host_clients or policy.is_off("driver.enabled"))):
        yield "the driver is installed on the host, where mig-manager stops host services"
    if compared.uses_mps:
        yield "MPS serves the GPUs"
    now, wanted = effective_plugin_config(node, stack), _recorded_plugin(compared) or target.plugin
    if now is None or not now.same_effect(wanted, with_mig=True):
        yield _RECONFIGURED
    elif now.sharing is not None:
        yield "the GPUs are time-sliced"
    for gpu in observed.gpus:
        if gpu.vitals.access != REACHABLE:
            yield f"GPU {gpu.index} does not respond"
        if gpu.instances_withheld:
            yield "the agent may not list MIG instances"
        if gpu.mig_pending and fence is not None:
            yield f"a change of the MIG mode of GPU {gpu.index} is pending"


def _needs_whole(compared: Comparison) -> Iterator[str]:
    """Yield why the target needs the whole node to be empty, although only layouts differ."""
    target, before = compared.target, _recorded_plugin(compared)
    if target.mode is Mode.MPS:
        yield "MPS serves the GPUs"
    if before is not None and not before.same_effect(target.plugin, with_mig=True):
        yield _RECONFIGURED
    if target.plugin.sharing is not None:
        yield "the GPUs are time-sliced"
    if target.plugin.mig_strategy == "single" and len(set(target.layouts)) > 1:
        yield "MIG strategy single needs equal GPUs"


def _recorded_plugin(compared: Comparison) -> PluginConfig | None:
    """Return the device plugin's configuration that the latest run has set; None before, or if its entry is gone."""
    node, fence = compared.node, compared.node.fence
    if fence is None or fence.stage != "actuating":
        return None
    labels = {**node.labels, names.LABEL_PLUGIN_CONFIG: fence.target_plugin_config}
    return effective_plugin_config(replace(node, labels=labels), compared.stack)


def _unsuited(compared: Comparison, version: SpecVersion) -> Iterator[str]:
    """Yield why a change that has not begun gains nothing from emptying some GPUs, or cannot."""
    changed, observed, deferred = find_changed(compared), compared.observed, compared.node.deferred
    if len(changed) in (0, len(observed.gpus)):
        yield "it concerns all GPUs" if changed else "no layout changes"
    if (observed.pods or 0) > MAX_HOLDERS:
        yield f"{observed.pods} pods hold devices, and the agent names at most {MAX_HOLDERS} of a node"
    if deferred is not None and deferred.version == version and deferred.reason == Reason.GPU_STILL_BUSY:
        yield "the last attempt found a GPU in use after its pods had left"


def _serves_already(compared: Comparison) -> bool:
    node, target, layouts = compared.node, compared.target, compared.observed.hardware.layouts
    # A device plugin that is away, as while it restarts, comes back with what its configuration says.
    away = None if served(node) else effective_plugin_config(node, compared.stack)
    offers = served(node) if away is None else predict_resources(layouts, away)
    if offers != target.resources or layouts != target.layouts:
        return False
    if not target.mig_config:
        return True
    done = node.labels.get(names.LABEL_MIG_STATE) == "success" and not paused_operands(node)
    return done and node.labels.get(names.LABEL_MIG_CONFIG, "") == target.mig_config


# --- others who set the labels by which a node is changed ----------------------------------------------


# Anybody else who sets these labels would undo a change, and the GPUs would be repartitioned back and forth
# (docs/design/transition.md#label-owners).

HANDS = ("kubectl", "kubelet", "gpu-operator")
"""Prefixes of the field managers that never set a label back: people's tools, and the GPU Operator.

The latter writes `mig.config` only if the label is absent (docs/design/nvidia.md#d1).
"""


def find_owners(node: NodeView) -> dict[str, str]:
    """Return the labels that another program sets, each with a clause that says who and what to do.

    What a field manager has changed counts only until a person gives the retry annotation a new value.
    """
    proof = node.verified
    if not node.label_rewriters or proof is None or node.retry not in ("", proof.retry):
        return dict(node.label_owners)
    advice = (
        "has overwritten the operator's value; stop it from doing so, then set"
        f" {names.ANNOTATION_RETRY} on the GPUNode to a new value"
    )
    replaced = {label: who for label, who in node.label_rewriters.items() if not who.startswith(HANDS)}
    return {**{label: f"{who} {advice}" for label, who in replaced.items()}, **node.label_owners}


def find_owned(node: NodeView, assessed: Assessed, actuator: Actuator) -> str:
    """Return a message about the first label that the change would alter although somebody else sets it.

    While drift is corrected or a change is in progress, only controllers that claim the label as their own count.
    """
    begins = node.fence is None and assessed.drift is None
    owners = find_owners(node) if begins else node.label_owners
    for target in (assessed.goal, assessed.target) if owners else ():
        written = actuator.find_labels(node, target)
        for label, owner in owners.items():
            if label in written and written[label] != node.labels.get(label, ""):
                change = f"set {label} to {written[label]}" if written[label] else f"remove {label}"
                return f"the change would {change}, but {owner}"
    return ""
