"""NVIDIA's installations of which the random world has one: what the operator sees of each, its machines, and which modes each of them can carry out."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from tests.build import H100, make_cluster_policy
from tests.planning.dramachines import DraMachine
from tests.planning.machines import NodeMachine

from gpusharing.api import names
from gpusharing.api.names import Mode
from gpusharing.api.policy import GPUSharingPolicySpec
from gpusharing.planning.snapshot.nvidia import PLUGIN_SWITCH, DaemonSetState, DraView, PlainStackView, StackView

Installation = Literal["the GPU Operator", "the device-plugin chart", "the DRA driver"]
GPU_OPERATOR: Installation = "the GPU Operator"
PLAIN: Installation = "the device-plugin chart"
DRA: Installation = "the DRA driver"
INSTALLATIONS = (GPU_OPERATOR, PLAIN, DRA)
DRIVER = DaemonSetState("dra-driver-nvidia-gpu-kubelet-plugin", "dra")
CHART = PlainStackView("nvdp-nvidia-device-plugin", "nvdp", "nvidia-mig-manager", pausable=True)


def stack_of(installation: Installation = GPU_OPERATOR) -> StackView:
    """A complete installation before the operator has written anything."""
    policy, dra = make_cluster_policy(), DraView()
    if installation == PLAIN:
        policy = replace(policy, plain=CHART)
    elif installation == DRA:
        policy = replace(policy, plugin_config_name="", switches={PLUGIN_SWITCH: False})
        dra = DraView(DRIVER, classes=())
    return StackView(policy, False, {}, "", {}, serves_our_mig_file=True, plugin_map_exists=False, dra=dra)


def machine_of(stack: StackView, name: str, products: tuple[str, ...] = (H100,)) -> NodeMachine:
    """A fresh machine with NVIDIA's software of this installation."""
    return (DraMachine if stack.by_dra else NodeMachine)(name, products)


def labels_of(stack: StackView) -> Mapping[str, str]:
    """What people set on each node, as the how-to of the installation says."""
    plain = stack.cluster_policy is not None and stack.cluster_policy.plain is not None
    return {names.LABEL_DEPLOY_CLIENT: "true"} if plain else {}


def can_carry_out(stack: StackView, spec: GPUSharingPolicySpec) -> bool:
    """Whether this mode exists there: the DRA driver shares no device among pods that know nothing of each other."""
    if not stack.by_dra or spec.mode is Mode.FULL:
        return True
    return spec.mig is not None and spec.mig.strategy == "mixed" and spec.time_slicing is None
