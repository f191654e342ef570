"""What PodDisruptionBudgets say about an eviction, worked out in the same way as by the API server.

The server decides (kubernetes v1.36.3 `pkg/registry/core/pod/storage/eviction.go`); this module only predicts the
server's answer, so that a hopeless drain does not begin and the reason is known before any pod is disturbed.
"""

from collections.abc import Iterable

from gpusharing.api.selectors import matches
from gpusharing.planning.snapshot.podviews import PdbView, PodView


def ref(pdb: PdbView) -> str:
    return f"{pdb.namespace}/{pdb.name}"


def selecting(pod: PodView, pdbs: Iterable[PdbView]) -> tuple[PdbView, ...]:
    return tuple(sorted((pdb for pdb in pdbs if _selects(pdb, pod)), key=ref))


def binding_budgets(pod: PodView, pdbs: Iterable[PdbView]) -> tuple[PdbView, ...]:
    """Return the budgets that the server will check for an eviction of the pod, sorted by name.

    A single budget decides alone. Two or more make every eviction of the pod fail, even if the pod is unready (500,
    kubernetes#75957).
    """
    if pod.phase in ("Succeeded", "Failed", "Pending") or pod.deleted_at is not None:
        return ()  # canIgnorePDB in eviction.go
    selected = selecting(pod, pdbs)
    if len(selected) == 1 and not pod.ready:  # KEP-3017
        (pdb,) = selected
        if pdb.always_allow_unhealthy or pdb.current_healthy >= pdb.desired_healthy > 0:
            return ()
    return selected


def never_allows(pdb: PdbView) -> bool:
    """Whether the budget requires all of its pods to be healthy, so that it never allows a disruption (docs/design/drain.md#e9)."""
    return pdb.expected_pods > 0 and pdb.desired_healthy >= pdb.expected_pods


def _selects(pdb: PdbView, pod: PodView) -> bool:
    if pdb.namespace != pod.namespace:
        return False
    if pdb.selects_all:
        return True
    if not pdb.match_labels and not pdb.match_expressions:
        return False  # no selector at all: selects nothing
    return matches(pod.labels, pdb.match_labels, pdb.match_expressions)
