"""The guard for tenants: the modes that a namespace's label admits, and the requirement that GPU pods in the namespace
get.

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
    """Return the routing-label values of the nodes on which GPU pods may run if their namespace has these labels. None
    if the namespace has no isolation label. Empty if that label's value is not a level; no GPU pod is admitted then.
    """
    level = namespace_labels.get(LABEL_ISOLATION)
    return None if level is None else ADMITTED.get(level, ())


def with_guard(pod: PodView) -> PodView:
    """Return the pod with the requirement on the routing label that the chart's guard for tenants would add to its
    replacement, in each term of its node affinity (a pod without terms gets one). An invalid isolation label gives a
    requirement that no node meets. The pod is unchanged if it requests no GPU resource or no isolation label was read.
    Whether the guard is on is not checked."""
    admitted = find_admitted(pod.namespace_labels or {})
    if admitted is None or not pod.resources:
        return pod
    row = (LABEL_MODE, "In", admitted)
    return replace(pod, node_terms=tuple((*term, row) for term in pod.node_terms or ((),)))


def describe_guard(namespace: str, namespace_labels: Mapping[str, str]) -> str:
    """Return a clause that names the isolation label of the namespace and the modes that it admits, or says that its
    value admits none. Empty if the namespace has no such label."""
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
