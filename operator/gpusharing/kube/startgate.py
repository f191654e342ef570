"""The start-up taint as it is written on Nodes and tolerated by pods (docs/design/transition.md#gate)."""

import json
from collections.abc import Sequence

from gpusharing.api import names
from gpusharing.kube.client import JSON
from gpusharing.kube.raw import entries, text

EFFECT = "NoSchedule"
GPU_TOLERATION = {"key": names.RESOURCE_GPU, "operator": "Exists", "effect": EFFECT}
"""The toleration of the GPU Operator's DaemonSets if ClusterPolicy sets none: a list there replaces it
(docs/design/nvidia.md#d9)."""


def start_gate(node: JSON) -> str | None:
    """Return the other taints of a Node that has the start-up taint, as a JSON list, which is `[]` if there are none.
    None if the Node does not have that taint with the effect NoSchedule; its value does not matter."""
    taints = entries(node, "spec", "taints")
    others = [taint for taint in taints if not _is_ours(taint)]
    return None if len(others) == len(taints) else _dump(others)


def opened(gate: str) -> list[JSON] | None:
    """Return the value of `spec.taints` without the start-up taint. `gate` is the JSON that `start_gate` returned.
    None, which removes the list, if no taint is left."""
    others: list[JSON] = json.loads(gate)
    return others or None


def _is_ours(taint: JSON) -> bool:
    """Whether this is the start-up taint with the effect that we write."""
    return taint.get("key") == names.TAINT_UNPROVEN and taint.get("effect") == EFFECT


def tolerates(tolerations: Sequence[JSON]) -> bool:
    """Whether pods with these tolerations may start on a node with the start-up taint. A toleration counts if its
    effect is NoSchedule or empty, and it has either the key of the taint, whatever its value, or no key and the
    operator Exists."""
    return any(
        text(row, "effect") in ("", EFFECT)
        and (
            text(row, "key") == names.TAINT_UNPROVEN
            or (not text(row, "key") and row.get("operator") == "Exists")
        )
        for row in tolerations
    )


def operand_tolerations(cluster_policy: JSON) -> list[JSON]:
    """Return the tolerations that NVIDIA's operands have under this ClusterPolicy: its own list unless that is missing
    or empty, else the GPU Operator's default."""
    return entries(cluster_policy, "spec", "daemonsets", "tolerations") or [GPU_TOLERATION]


def tolerations_text(tolerations: Sequence[JSON]) -> str:
    """Return tolerations as JSON, the form in which views hold them."""
    return _dump(list(tolerations))


def _dump(value: object) -> str:
    """Return `value` as compact JSON."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)
