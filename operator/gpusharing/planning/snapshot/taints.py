"""Which taints of a node does a pod tolerate? As in k8s.io/api v0.36.3, core/v1/toleration.go."""

from gpusharing.api.names import TAINT_UNPROVEN
from gpusharing.api.selectors import holds
from gpusharing.planning.vocabulary.values import value

_KEEPS_OUT = ("NoSchedule", "NoExecute")
_OF_CONDITIONS = ("node.kubernetes.io/", "node.cloudprovider.kubernetes.io/")
_OUT_OF_SERVICE = "node.kubernetes.io/out-of-service"
"""The only taint with such a prefix that a person sets and removes."""


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
        """Whether it excludes pods that do not tolerate it until somebody removes it.

        Taints that are removed when a cordon, a condition or the lack of proof ends exclude no pod for good.
        """
        of_condition = self.key.startswith(_OF_CONDITIONS) and self.key != _OUT_OF_SERVICE
        # Nothing removes the start-up taint if somebody sets it with another effect.
        unproven = self.key == TAINT_UNPROVEN and self.effect == "NoSchedule"
        return self.effect in _KEEPS_OUT and not of_condition and not unproven


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
