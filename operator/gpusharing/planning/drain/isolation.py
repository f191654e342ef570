"""The guard for tenants: the modes that a namespace's label admits, and the requirement that GPU pods in the namespace get.

The chart's admission policies (templates/admission-guard.yaml) follow the same table. docs/how-to/isolate-tenants.md
"""

from collections.abc import Mapping
from dataclasses import replace

from gpusharing.api.names import LABEL_ISOLATION, LABEL_MODE
from gpusharing.planning.snapshot.podviews import PodView

ADMITTED: Mapping[str, tuple[str, ...]] = {"hardware": ("full", "mig"), "memory": ("full", "mig", "mps")}
"""The values of the routing label that each level of isolation admits. In `mig-time-slicing` nothing separates the pods
that share one instance."""


def find_admitted(namespace_labels: Mapping[str, str]) -> tuple[str, ...] | None:
    """Return the routing-label values of the nodes on which GPU pods of a namespace with these labels may run.

    None if the namespace has no isolation label; empty if that label's value is not a level, so no GPU pod is admitted.
    """
    level = namespace_labels.get(LABEL_ISOLATION)
    return None if level is None else ADMITTED.get(level, ())


def with_guard(pod: PodView, *, adds: bool = True) -> PodView:
    """Return the pod as the chart's guard for tenants would admit its replacement: with a requirement on the routing label.

    No node meets the requirement if the isolation label is invalid, or if the guard does not add requirements (`adds`)
    and would refuse the replacement because it lacks one. Whether the guard is on is not checked.
    """
    admitted = find_admitted(pod.namespace_labels or {})
    if admitted is None or not pod.resources:
        return pod
    # As the guard's validating policy checks it: the node selector, or each term of the node affinity.
    required = pod.node_selector.get(LABEL_MODE) in admitted or (
        bool(pod.node_terms)
        and all(
            any(
                key == LABEL_MODE and operator == "In" and {*values} <= {*admitted}
                for key, operator, values in term
            )
            for term in pod.node_terms
        )
    )
    row = (LABEL_MODE, "In", admitted if adds or required else ())
    return replace(pod, node_terms=tuple((*term, row) for term in pod.node_terms or ((),)))


def explain_refusal(namespace: str, namespace_labels: Mapping[str, str]) -> str:
    guard = describe_guard(namespace, namespace_labels)
    lacks = "; the pod does not require that, so its replacement would be refused"
    return f"{guard[:1].upper()}{guard[1:]}{lacks if find_admitted(namespace_labels) else ''}"


def describe_guard(namespace: str, namespace_labels: Mapping[str, str]) -> str:
    """Return a clause about the isolation label of the namespace and the modes that it admits; empty without the label."""
    admitted = find_admitted(namespace_labels)
    if admitted is None:
        return ""
    clause = f"namespace {namespace} has the label {LABEL_ISOLATION}={namespace_labels[LABEL_ISOLATION]}"
    if admitted:
        return f"{clause}, which admits its GPU pods only on nodes in mode {' or '.join(admitted)}"
    return (
        f"{clause}, which is not an isolation level, so none of its GPU pods are admitted: set it to"
        f" {' or '.join(ADMITTED)}"
    )
