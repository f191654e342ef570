"""Others who set the labels by which a node is changed: they would undo a change, and the GPUs would be repartitioned
back and forth (docs/design/transition.md#label-owners)."""

from gpusharing.api import names
from gpusharing.planning.snapshot.views import NodeView
from gpusharing.planning.wanted.assess import Assessed

HANDS = ("kubectl", "kubelet", "gpu-operator")
"""Beginnings of the names of field managers that never set a label back: people's tools, and the GPU Operator, which
writes `mig.config` only where it finds none (docs/design/nvidia.md#d1)."""


def find_owners(node: NodeView) -> dict[str, str]:
    """Return, for each label that somebody else sets, who that is and what to do about it; empty for nearly all nodes.

    A field manager counts after it has replaced a value that we wrote, until a person asks for another try.
    """
    proof = node.verified
    if not node.label_rewriters or proof is None or node.retry not in ("", proof.retry):
        return dict(node.label_owners)
    told = (
        f"has replaced a value of the operator; stop that, then set a new value of {names.ANNOTATION_RETRY}"
    )
    replaced = {label: who for label, who in node.label_rewriters.items() if not who.startswith(HANDS)}
    return {**{label: f"{who} {told}" for label, who in replaced.items()}, **node.label_owners}


def find_owned(node: NodeView, assessed: Assessed) -> str:
    """Return the first label that the change would write although somebody else sets it, and who that is; empty if
    there is none.

    When drift is corrected and in the middle of a change, only controllers that list the label as their own count, not
    field managers that have replaced our value.
    """
    begins = node.fence is None and assessed.drift is None
    owners = find_owners(node) if begins else node.label_owners
    for target in (assessed.goal, assessed.target) if owners else ():
        mig = target.mig_config or node.labels.get(names.LABEL_MIG_CONFIG, "")  # empty: it is not written
        written = {names.LABEL_MIG_CONFIG: mig, names.LABEL_PLUGIN_CONFIG: target.plugin_key}
        for label, owner in owners.items():
            if written[label] != node.labels.get(label, ""):
                return f"{label} would become {written[label] or 'absent'}, but {owner}"
    return ""
