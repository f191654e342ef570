"""Shows what each source of proof says about a node and what it should say, for a person who asks why the node is not
done.

The results are those of `wanted/verify.py`, one row per source.

Terms: docs/design/glossary.md#proof.
"""

from collections.abc import Mapping

from gpusharing.api import names
from gpusharing.planning.snapshot.stackviews import StackView
from gpusharing.planning.snapshot.views import NodeView, ObservedView
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.vocabulary.lengths import counted
from gpusharing.planning.vocabulary.values import value
from gpusharing.planning.wanted.actuators.choice import find_actuator
from gpusharing.planning.wanted.target import Target, describe_layouts
from gpusharing.planning.wanted.verify import (
    Comparison,
    Source,
    find_disagreements,
    paused_operands,
    served,
    tell_devices,
)


@value
class Proof:
    """What one source of proof says about a node."""

    source: Source
    """Which source of proof it is."""
    says: str
    """What the source says about the node."""
    should: str
    """What it should say. Empty if the target needs nothing from this source."""
    disagrees: Finding | None
    """Why it disagrees with the target, or None if it agrees."""


def tell_proofs(
    node: NodeView, observed: ObservedView, target: Target, stack: StackView
) -> tuple[Proof, ...]:
    """Return one Proof for each source that this installation has, in the order of the members of Source. A Proof whose
    source disagrees with the target carries the Finding that says why. The target must have one layout for each
    observed GPU; otherwise `find_disagreements` raises ValueError or IndexError."""
    actuator = find_actuator(stack)
    wrong = find_disagreements(Comparison(node, observed, target, stack), actuator.checks)
    says = "is quiet" if observed.quiet else f"reads {counted(len(observed.gpus), 'GPU')}"
    rows = {
        Source.AGENT: (observed.error or says, "reads GPUs"),
        Source.NVML: (describe_layouts(observed.hardware.layouts), describe_layouts(target.layouts)),
        Source.MIG_MANAGER: _mig_manager(node, target),
        Source.OPERANDS: (", ".join(paused_operands(node)) or "none paused", "none paused"),
        Source.PLUGIN: (
            node.labels.get(names.LABEL_PLUGIN_CONFIG, "") or "not set",
            target.plugin_key or "not set",
        ),
        Source.GFD: ("differ" if Source.GFD in wrong else "as configured", "as configured"),
        Source.ALLOCATABLE: (_counts(served(node)), _counts(target.resources)),
        Source.SLICES: (
            tell_devices(node.devices.layouts) if node.devices else "none",
            tell_devices(target.layouts),
        ),
    }
    return tuple(
        Proof(source, says, should, wrong.get(source))
        for source, (says, should) in rows.items()
        if source in actuator.sources
    )


def _mig_manager(node: NodeView, target: Target) -> tuple[str, str]:
    """Return what mig-manager's labels on the node say and what they should say, each as a configuration with its
    state, such as `all-1g.10gb (success)`. If the target does not need mig-manager, they are `not asked` and an
    empty string."""
    if not target.mig_config:
        return "not asked", ""
    config = node.labels.get(names.LABEL_MIG_CONFIG, "") or "not set"
    return (
        f"{config} ({node.labels.get(names.LABEL_MIG_STATE, '') or 'no state'})",
        f"{target.mig_config} (success)",
    )


def _counts(resources: Mapping[str, int]) -> str:
    """Return the resources with their counts, sorted by name and separated by commas, such as `4 nvidia.com/gpu`, or
    `none`."""
    return ", ".join(f"{count} {name}" for name, count in sorted(resources.items())) or "none"
