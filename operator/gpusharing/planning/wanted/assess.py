"""Compares one node, fenced or not, with the policy that owns it: what the node should be, whether it is, and how much
a change would disturb.

The result does not depend on time, so it can be cached for as long as its inputs are equal.

Terms: docs/design/glossary.md#fence, docs/design/glossary.md#drift, docs/design/glossary.md#point-of-no-return,
docs/design/glossary.md#class.
"""

from gpusharing.api import names
from gpusharing.api.names import DisruptionClass, Mode
from gpusharing.api.policy import GPUSharingPolicySpec
from gpusharing.planning.snapshot.stackviews import StackView
from gpusharing.planning.snapshot.views import GPUNodeView, NodeView, ObservedView, PolicyView
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.vocabulary.reasonkinds import Mark
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.vocabulary.values import value
from gpusharing.planning.wanted.actuators.actuator import Actuator
from gpusharing.planning.wanted.migfile import ALL_DISABLED
from gpusharing.planning.wanted.target import Target, Targets, without_default_label
from gpusharing.planning.wanted.verify import (
    EXCLUSIVE,
    Comparison,
    describe_observed,
    effective_plugin_config,
    find_mismatch,
    is_told_mps,
    paused_operands,
    served,
)


@value
class Refused:
    """The assessment of a node for which its policy gives no target."""

    policy: PolicyView
    """The policy that the node is compared with."""
    objection: Finding
    """Why there is no target."""
    accepted: bool
    """Whether the policy itself is accepted, so that only this node cannot be as the policy asks."""
    observed_text: str
    """The layouts that the GPUs have now, for people. Empty if they are unknown."""


@value
class Unobserved:
    """The assessment of a node whose GPUs are unknown, so that no target can be computed yet."""

    policy: PolicyView
    """The policy that the node is compared with."""
    pending: Finding
    """What is missing, or why the agent cannot read the GPUs."""
    observed_text: str
    """The layouts in the last report, for people. Empty if they are unknown."""


@value
class Assessed:
    """The assessment of a node with a target: what the node should be, and whether it is."""

    policy: PolicyView
    """The policy that the node is compared with."""
    spec: GPUSharingPolicySpec
    """The spec of that policy."""
    observed: ObservedView
    """The agent's report from which the target was computed."""
    target: Target
    """What the node should finally be."""
    stop: Target
    """The intermediate target: whole GPUs without sharing. It is used only if `two_steps`."""
    two_steps: bool
    """Whether the change involves both MPS and MIG. In a single step, mig-manager would race with the MPS daemon."""
    mismatch: Finding | None
    """The first disagreement between a source of proof and the target, or None if the node is as it should be."""
    disruption: DisruptionClass
    """The class of disruption of the change from the present state to the target. NONE if the node is as it should
    be."""
    drift: Finding | None
    """How the node differs from what was last proven on it for this policy, which is its target or what it was rolled
    back to. None if it does not differ, or if neither of these was proven."""
    observed_text: str
    """The layouts that the GPUs have now, for people."""

    @property
    def goal(self) -> Target:
        """The target that the next run leads to: the intermediate one if there are two steps, else the final one."""
        return self.stop if self.two_steps else self.target


Assessment = Refused | Unobserved | Assessed
"""The facts about one node under one policy, independent of time."""


def assess(
    node: NodeView,
    gpunode: GPUNodeView | None,
    policy: PolicyView,
    terms: Finding | Targets,
    stack: StackView,
    *,
    actuator: Actuator,
) -> Assessment:
    """Compare a node with its policy. Return Refused if the policy is not accepted, or if nothing shows that the node
    has a GPU. Otherwise return Unobserved if no report lists GPUs, or if one of the GPUs has never answered and so has
    no product (GPU_UNHEALTHY). Otherwise return Refused if the policy gives these GPUs no target, else Assessed.

    `gpunode` is the GPUNode of the node, or None if it does not exist yet. `terms` are the targets of the policy by
    hardware, or the Finding that says why the policy is not accepted (acceptance.py). For a policy that resets its
    nodes, the target is that of `without_default_label`.
    """
    observed = gpunode.observed if gpunode else None
    text = describe_observed(node, observed)
    if isinstance(terms, Finding):
        return Refused(policy, terms, False, text)
    if (refusal := _no_gpu(node, observed)) is not None:
        return Refused(policy, refusal, True, text)
    if observed is None or not observed.gpus:
        return Unobserved(policy, _unobserved(observed), text)
    if nameless := next((gpu for gpu in observed.hardware.kinds if not gpu.product), None):
        message = f"GPU {nameless.index} is not responding and never has; drain and reboot the node"
        return Unobserved(policy, Finding(Reason.GPU_UNHEALTHY, message), text)
    target = terms.find(node.name, observed.hardware)
    if isinstance(target, Finding):
        return Refused(policy, target, True, text)
    if policy.resetting:
        target = without_default_label(target, stack)
    mismatch = find_mismatch(Comparison(node, observed, target, stack), actuator.checks)
    disruption = find_disruption(node, observed, target, mismatch, stack)
    proven = _proven_before(node, policy, target)
    drift = mismatch if proven else _find_lapse(node, observed, policy, stack, actuator)
    stop, two_steps = terms.stop(observed.hardware), needs_two_steps(node, observed, target, stack)
    return Assessed(
        policy, terms.request.spec, observed, target, stop, two_steps, mismatch, disruption, drift, text
    )


def needs_two_steps(node: NodeView, observed: ObservedView, target: Target, stack: StackView) -> bool:
    """Whether the change leads from MPS to MIG or from MIG to MPS (docs/design/nvidia.md#b5, R11), so that either the
    MPS daemon or mig-manager must finish before the other begins. A node is on MPS if `uses_mps` says so. It is on MIG
    if the agent finds MIG enabled on any GPU, or if the target has a value for mig-manager's label and mig-manager is
    still applying a MIG layout. False if the target has neither MIG nor MPS.

    Also True for a change of an MPS configuration under NVIDIA's chart without the GPU Operator. The operator may not
    restart the daemon there, so the daemon would keep its old number of clients.
    """
    if target.with_mig:
        return uses_mps(node, observed, stack)
    if target.mode is not Mode.MPS:
        return False
    divided = bool(target.mig_config) and _is_being_divided(node)
    if divided or any(gpu.mig_enabled for gpu in observed.hardware.kinds):
        return True
    plain = stack.cluster_policy is not None and stack.cluster_policy.plain is not None
    config = effective_plugin_config(node, stack) if plain else None
    return (
        config is not None
        and not config.same_effect(target.plugin, with_mig=False)
        and uses_mps(node, observed, stack)
    )


def _is_being_divided(node: NodeView) -> bool:
    """Whether the label mig.config has a value other than all-disabled and mig-manager's state is neither `success` nor
    `failed`; a missing state counts too. The agent's last reading may then soon be outdated."""
    config = node.labels.get(names.LABEL_MIG_CONFIG, "")
    ended = node.labels.get(names.LABEL_MIG_STATE) in ("success", "failed")
    return config not in ("", ALL_DISABLED) and not ended


def uses_mps(node: NodeView, observed: ObservedView, stack: StackView) -> bool:
    """Whether the device plugin of the node is configured to share GPUs by MPS, or a GPU in the agent's report is in
    the exclusive compute mode that an MPS daemon sets."""
    return is_told_mps(node, stack) or any(gpu.compute_mode == EXCLUSIVE for gpu in observed.hardware.kinds)


def has_gpu(node: NodeView) -> bool:
    """Whether the node has NVIDIA GPUs: the label gpu.present is true, it has GPU Feature Discovery's product label, or
    the device plugin or NVIDIA's DRA driver advertises GPU resources on it."""
    return (
        node.labels.get(names.LABEL_GPU_PRESENT) == "true"
        or names.LABEL_GPU_PRODUCT in node.labels
        or bool(served(node))
    )


def _no_gpu(node: NodeView, observed: ObservedView | None) -> Finding | None:
    """Return a Finding with the reason NO_GPU if nothing shows an NVIDIA GPU on the node, else None. A GPU is shown by
    the label nvidia.com/gpu.present=true, GFD's product label, a resource that the device plugin or NVIDIA's DRA driver
    advertises (`has_gpu`), or the agent's report; the agent need not have reported yet. The PCI labels of Node Feature
    Discovery do not count."""
    if has_gpu(node) or (observed is not None and observed.gpus):
        return None
    return Finding(
        Reason.NO_GPU,
        f"{node.name} has no NVIDIA GPU (label {names.LABEL_GPU_PRESENT} is not true); narrow spec.nodeSelector",
    )


def _unobserved(observed: ObservedView | None) -> Finding:
    """Return a Finding that says why the GPUs are unknown. The reason is OBSERVATION_PENDING if there is no report yet,
    and AGENT_ERROR if the report has an error or lists no GPU."""
    if observed is None:
        return Finding(Reason.OBSERVATION_PENDING, "the agent has not reported yet")
    if observed.error:
        return Finding(Reason.AGENT_ERROR, f"the agent cannot read the GPUs: {observed.error}")
    return Finding(Reason.AGENT_ERROR, "the agent finds no GPU through NVML; check the driver on the node")


def _find_lapse(
    node: NodeView, observed: ObservedView, policy: PolicyView, stack: StackView, actuator: Actuator
) -> Finding | None:
    """Return how a node that was rolled back now differs from the layout to which the rollback led. None if it does not
    differ, if it was not rolled back under the present version of the spec, or if the recorded configuration can no
    longer be used."""
    record = node.verified
    if record is None or not record.rolled_back or record.version != policy.version:
        return None
    last = actuator.find_last_proven(node, observed, stack)
    if isinstance(last, str):
        return None
    return find_mismatch(Comparison(node, observed, last, stack), actuator.checks)


def _proven_before(node: NodeView, policy: PolicyView, target: Target) -> bool:
    """Whether `target` is what was last proven on the node for a policy of this name, whatever the version of its spec.
    The record must have the target's values of both configuration labels and also its layout. A record without a layout
    needs only the two values."""
    record = node.verified
    return (
        record is not None
        and record.policy == policy.name
        and record.mig_config == target.mig_config
        and record.plugin_config == target.plugin_key
        and record.layout in ("", target.text)
    )


def find_disruption(
    node: NodeView, observed: ObservedView, target: Target, mismatch: Finding | None, stack: StackView
) -> DisruptionClass:
    """Return the class of disruption of the change from the node's present state to the target
    (docs/design/transition.md#classes). NONE if `mismatch` is None, which means that the node is as it should be.

    If the MIG mode of a GPU has to change or is still pending, the class is REBOOT if mig-manager may reboot the node,
    else RESET. It is GPU_PODS if layouts or resources change, if mig-manager has work left, if the mismatch is one
    whose correction ends MPS clients (`Mark.ENDS_MPS`) and the node or the target uses MPS, or if NVIDIA's DRA driver
    replaces the device plugin. Otherwise it is PLUGIN_RESTART.

    Raises ValueError if there is a mismatch and the target does not have one layout for each GPU.
    """
    if mismatch is None:
        return DisruptionClass.NONE
    for gpu, layout in zip(observed.gpus, target.layouts, strict=True):
        if gpu.mig_enabled != (layout is not None) or gpu.mig_pending:
            return DisruptionClass.REBOOT if stack.with_reboot else DisruptionClass.RESET
    if stack.by_dra or not _serves_already(node, observed, target):
        return DisruptionClass.GPU_PODS
    if Mark.ENDS_MPS in mismatch.reason.marks and (
        target.mode is Mode.MPS or uses_mps(node, observed, stack)
    ):
        return DisruptionClass.GPU_PODS
    return DisruptionClass.PLUGIN_RESTART


def _serves_already(node: NodeView, observed: ObservedView, target: Target) -> bool:
    """Whether the node already advertises the resources of the target, its GPUs have the layouts of the target, and
    mig-manager has nothing left to do. If the target has a value for mig-manager's label, the label must have it, the
    state must be `success`, and no operand may be paused. Any other difference can be corrected by restarting the
    device plugin."""
    if served(node) != target.resources or observed.hardware.layouts != target.layouts:
        return False
    if not target.mig_config:
        return True
    labels = node.labels
    done = labels.get(names.LABEL_MIG_STATE) == "success" and not paused_operands(node)
    return done and labels.get(names.LABEL_MIG_CONFIG, "") == target.mig_config


# --- others who set the labels by which a node is changed ----------------------------------------------


# Anybody else who sets these labels would undo a change, and the GPUs would be repartitioned back and forth
# (docs/design/transition.md#label-owners).

HANDS = ("kubectl", "kubelet", "gpu-operator")
"""Prefixes of the names of field managers that never set a label back: people's tools, and the GPU Operator, which
writes `mig.config` only if the label is absent (docs/design/nvidia.md#d1)."""


def find_owners(node: NodeView) -> dict[str, str]:
    """Return the labels that another program sets, each with a clause that says who and what to do. Empty for nearly
    all nodes.

    These are the labels that a controller claims and, on a node with a proof, those that a field manager has changed,
    until a person gives the retry annotation a new value. Managers whose name begins with one of HANDS are ignored. For
    a label with both, the claim of the controller is returned."""
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
    """Return a message about the first label whose value the change would alter although somebody else sets it. Empty
    if there is none. Both the next target and the final one are checked.

    At the beginning of a change, the owners that `find_owners` gives count: also field managers that have replaced our
    value on a node with a proof, except people's tools, and only until the retry annotation is changed. While drift is
    corrected or a change is in progress, only controllers that claim the label as their own count.
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
