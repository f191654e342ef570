"""MIG modes that stay pending because a virtual machine often cannot reset a GPU (docs/design/hardware.md#guest)."""

from gpusharing.planning.snapshot.stackviews import StackView
from gpusharing.planning.snapshot.views import ObservedView

SETTING = 'WITH_REBOOT "true" in ClusterPolicy migManager.env'
"""What lets mig-manager reboot a node whose GPUs cannot be reset, for people."""


def tell_guest_reset(observed: ObservedView | None, stack: StackView) -> str:
    """Say, after a semicolon, why a MIG mode may stay pending in a virtual machine and which setting helps. Empty if no
    GPU is known to be one that a virtual machine has to reset, or if the setting is on already."""
    policy, kinds = stack.cluster_policy, observed.hardware.kinds if observed is not None else ()
    if policy is None or policy.plain is not None or policy.with_reboot:
        return ""
    if not any(gpu.reset_in_guest for gpu in kinds):
        return ""
    return (
        "; a virtual machine often cannot reset a GPU that is passed through to it, and then only a reboot of the node"
        f" switches the mode: set {SETTING}, or reboot the node yourself"
    )
