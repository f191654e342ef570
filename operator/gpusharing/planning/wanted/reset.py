"""spec.deletionPolicy Reset: what a policy asks for once it is being deleted (docs/design/transition.md#reset).

    deleted ── every node that it owns: drained as ever ── whole GPUs proven ── our labels and records go ──► finalizer

Until then it is a policy like any other, with mode Full and without a claim on nodes that it does not own yet.
"""

from dataclasses import replace

from gpusharing.api.names import Mode
from gpusharing.planning.snapshot.stackviews import StackView
from gpusharing.planning.snapshot.views import PolicyView
from gpusharing.planning.wanted import pluginconfig
from gpusharing.planning.wanted.target import Target

_FULL = {"mode": Mode.FULL, "mig": None, "time_slicing": None, "mps": None}


def under_deletion(policy: PolicyView, *, resets: bool) -> PolicyView:
    """Return the policy as the planner is to see it: with mode Full if it is being deleted and resets its nodes, else
    unchanged. `resets`: whether deletionPolicy is Reset, as far as that can be read.

    A policy without our finalizer is left unchanged, because the object will be gone in a moment, and so is one with
    force-release, because a person has given it up.
    """
    if not (policy.deleting and policy.finalizer and resets) or policy.force_release:
        return policy
    spec = None if policy.spec is None else policy.spec.model_copy(update=_FULL)
    return replace(policy, deleting=False, resetting=True, spec=spec)


def unlabelled(target: Target, stack: StackView) -> Target:
    """Return the target without the label for the device plugin if ClusterPolicy's default has the same effect, else
    unchanged.

    Removing the label restarts the plugin, so it is part of the change: budgeted, held and proven like the rest. If
    the default shares GPUs, or names an entry that cannot be read, the label stays permanently.
    """
    key = pluginconfig.default_entry(stack)
    text = stack.plugin_configs.get(key) if key else pluginconfig.NEUTRAL
    default = pluginconfig.parse(text) if text is not None else None
    if default is None or not default.same_effect(target.plugin, with_mig=target.with_mig):
        return target
    return replace(target, plugin_key="")
