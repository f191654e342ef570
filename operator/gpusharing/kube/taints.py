"""The taints of a raw Node: which of them are removed when their cause ends, how a taint is printed, and which pods tolerate it (docs/design/transition.md#gate)."""

import json
from collections.abc import Sequence

from gpusharing.api.names import RESOURCE_GPU, TAINT_UNPROVEN
from gpusharing.kube.client import JSON
from gpusharing.kube.raw import entries, text

EFFECT = "NoSchedule"
GPU_TOLERATION = {"key": RESOURCE_GPU, "operator": "Exists", "effect": EFFECT}
"""The toleration of the GPU Operator's DaemonSets if ClusterPolicy sets none: a list there replaces it (docs/design/nvidia.md#d9)."""

KEEPS_OUT = ("NoSchedule", "NoExecute")
"""The effects of a taint that exclude pods which do not tolerate it."""
TRANSIENT_TAINTS = frozenset(
    {
        "node.kubernetes.io/unschedulable",
        "node.kubernetes.io/not-ready",
        "node.kubernetes.io/unreachable",
        TAINT_UNPROVEN,
    }
)
"""Taints that are removed when a cordon, a condition or the lack of proof ends. They do not exclude a pod for good."""


def taint_text(taint: JSON) -> str:
    """Return a taint as `kubectl describe` prints it, such as `key=value:NoSchedule`."""
    value = text(taint, "value")
    return f"{text(taint, 'key')}{f'={value}' if value else ''}:{text(taint, 'effect')}"


def start_gate(node: JSON) -> str | None:
    """Return the other taints of a Node that has the start-up taint, as a JSON list; None if it does not have it."""
    taints = entries(node, "spec", "taints")
    others = [row for row in taints if (row.get("key"), row.get("effect")) != (TAINT_UNPROVEN, EFFECT)]
    return None if len(others) == len(taints) else rows_text(others)


def tolerates(tolerations: Sequence[JSON], key: str = TAINT_UNPROVEN, value: str | None = None) -> bool:
    """Whether pods with these tolerations may start on a node with the taint `key` and the effect NoSchedule (core/v1 Toleration).

    If `value`, the taint's value, is None, every value of a toleration with this key matches.
    """
    return any(
        text(row, "effect") in ("", EFFECT)
        and text(row, "key") in ("", key)
        and (
            row.get("operator") == "Exists"
            or (text(row, "key") == key and value in (None, text(row, "value")))
        )
        for row in tolerations
    )


def rows_text(rows: Sequence[JSON]) -> str:
    return json.dumps(list(rows), separators=(",", ":"), ensure_ascii=False)
