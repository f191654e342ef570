"""Whose a namespace is: the value of one of its labels, as kube-state-metrics tells it. Pure."""

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field

from gpusharing.planning.vocabulary.lengths import some
from gpusharing.usage.prometheus.client import Series
from gpusharing.usage.read.meterqueries import EXPORTED, NAMESPACE
from gpusharing.usage.read.pricing import CHOOSE


@dataclass(frozen=True, slots=True)
class Teams:
    """Of one day."""

    last: Mapping[str, str] = field(default_factory=dict)
    """By namespace the value that was seen last: it may have gone, or have changed hands."""
    rivals: Set[str] = frozenset()
    """Namespaces that had several values at a time: whose they are nobody can tell."""

    def find(self, namespace: str) -> str:
        """Empty: unknown."""
        return "" if namespace in self.rivals else self.last.get(namespace, "")


def read_teams(last: Iterable[Series], rivals: Iterable[Series], label: str) -> Teams:
    """From answers: when each value was seen last, and which namespaces had several."""
    ordered = sorted(last, key=lambda one: (one.value, one.labels.get(label, "")))
    return Teams(
        {namespace_of(one): one.labels.get(label, "") for one in ordered},
        frozenset(map(namespace_of, rivals)),
    )


def namespace_of(one: Series) -> str:
    """The namespace that a series is about."""
    # A Prometheus that does not honour labels renames the one that was told.
    return one.labels.get(EXPORTED) or one.labels.get(NAMESPACE, "")


def no_label(label: str) -> str:
    """What to say where no namespace has the label."""
    return (
        f"Prometheus knows no namespace with the label {label}. kube-state-metrics exports only labels that"
        f" it is told to: --metric-labels-allowlist=namespaces=[{label}]. Without it: --by namespace"
    )


def describe_rivals(namespaces: Set[str], label: str) -> list[str]:
    """A sentence, if there is something to say. `namespaces`: those that used GPUs while whose they are was unknown."""
    if not namespaces:
        return []
    several = len(namespaces) > 1
    return [
        f"{'namespaces' if several else 'namespace'} {some(sorted(namespaces))} {'have' if several else 'has'} several"
        f" values of {label} at once, as when several clusters have {'them' if several else 'it'}, so"
        f" {'their' if several else 'its'} usage is listed under (no {label}): {CHOOSE}"
    ]
