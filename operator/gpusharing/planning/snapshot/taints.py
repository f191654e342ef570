"""Which taints of a node does a pod tolerate? As in k8s.io/api v0.36.3, core/v1/toleration.go."""

from gpusharing.api.names import TAINT_UNPROVEN
from gpusharing.api.selectors import holds
from gpusharing.planning.vocabulary.values import value

_KEEPS_OUT = ("NoSchedule", "NoExecute")
TRANSIENT_TAINTS = frozenset(
    {
        "node.kubernetes.io/unschedulable",
        "node.kubernetes.io/not-ready",
        "node.kubernetes.io/unreachable",
        TAINT_UNPROVEN,
    }
)
"""Taints that are removed when a cordon, a condition or the lack of proof ends. They do not exclude a pod for good."""


@value
class Taint:
    key: str
    value: str = ""
    effect: str = "NoSchedule"

    @property
    def text(self) -> str:
        """The taint as `kubectl describe` prints it, such as `key=value:NoSchedule`."""
        return f"{self.key}{f'={self.value}' if self.value else ''}:{self.effect}"

    @property
    def lasting(self) -> bool:
        """Whether it excludes pods that do not tolerate it until somebody removes it."""
        # Nothing removes the start-up taint if somebody sets it with another effect.
        transient = self.key in TRANSIENT_TAINTS and (self.key != TAINT_UNPROVEN or self.effect == "NoSchedule")
        return self.effect in _KEEPS_OUT and not transient


@value
class Toleration:
    key: str = ""
    operator: str = "Equal"
    value: str = ""
    effect: str = ""

    def covers(self, taint: Taint) -> bool:
        if self.effect not in ("", taint.effect) or self.key not in ("", taint.key):
            return False
        if not self.key:  # the API server refuses every other operator without a key
            return self.operator == "Exists"
        if self.operator in ("Gt", "Lt"):
            return holds({"taint": taint.value}, ("taint", self.operator, (self.value,)))
        return self.operator == "Exists" or (self.operator == "Equal" and self.value == taint.value)
