"""Shows what each source of proof says about a node and what it should say, for a person who asks why the node is not done. The results are those of `wanted/verify.py`."""

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
    says: str
    should: str
    """Empty if the target needs nothing from this source."""
    disagrees: Finding | None
    """Why it disagrees with the target, or None if it agrees."""


def tell_proofs(
    node: NodeView, observed: ObservedView, target: Target, stack: StackView
) -> tuple[Proof, ...]:
    """Return one Proof for each source that this installation has. The target must have one layout for each observed GPU."""
    actuator = find_actuator(stack)
    wrong = find_disagreements(Comparison(node, observed, target, stack), actuator.checks)
    says = "is quiet" if observed.quiet else f"reads {counted(len(observed.gpus), 'GPU')}"
    labels = node.labels
    mig_manager = ("not asked", "")
    if target.mig_config:
        config, state = labels.get(names.LABEL_MIG_CONFIG), labels.get(names.LABEL_MIG_STATE)
        mig_manager = (f"{config or 'not set'} ({state or 'no state'})", f"{target.mig_config} (success)")
    rows = {
        Source.AGENT: (observed.error or says, "reads GPUs"),
        Source.NVML: (describe_layouts(observed.hardware.layouts), describe_layouts(target.layouts)),
        Source.MIG_MANAGER: mig_manager,
        Source.OPERANDS: (", ".join(paused_operands(node)) or "none paused", "none paused"),
        Source.PLUGIN: (labels.get(names.LABEL_PLUGIN_CONFIG) or "not set", target.plugin_key or "not set"),
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


def _counts(resources: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(resources.items())) or "none"
