"""The taints of a raw Node: which of them are removed when their cause ends, and how a taint is printed."""

from gpusharing.api.names import TAINT_UNPROVEN
from gpusharing.kube.client import JSON
from gpusharing.kube.raw import text

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
"""Taints that are removed when a cordon, a condition or the lack of proof ends. They do not exclude a pod for good: a
node with such a taint counts as closed for now."""


def taint_text(taint: JSON) -> str:
    """Return a taint as `kubectl describe` prints it, such as `key=value:NoSchedule`."""
    value = text(taint, "value")
    return f"{text(taint, 'key')}{f'={value}' if value else ''}:{text(taint, 'effect')}"
