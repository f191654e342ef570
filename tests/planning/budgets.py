"""PodDisruptionBudgets as their controller keeps them, and what the API server answers to an eviction.
Written after kubernetes v1.36.3 `pkg/registry/core/pod/storage/eviction.go` and the disruption controller; nothing is asked of pdb.py, which foresees the same answers."""

from collections.abc import Iterable
from dataclasses import dataclass

from tests.planning.podkinds import NAMESPACE

from gpusharing.planning.snapshot.podviews import PdbView, PodView
from gpusharing.planning.vocabulary.reasons import Reason


@dataclass(frozen=True)
class Budget:
    name: str
    app: str
    min_available: int
    replicas: int = 3
    always_allow_unhealthy: bool = False

    def selects(self, pod: PodView) -> bool:
        return pod.namespace == NAMESPACE and pod.labels.get("app") == self.app

    def healthy(self, pods: Iterable[PodView]) -> int:
        return sum(self.selects(pod) and pod.ready and pod.deleted_at is None for pod in pods)

    def room(self, pods: Iterable[PodView]) -> int:
        return max(0, self.healthy(pods) - self.min_available)

    def view(self, pods: Iterable[PodView]) -> PdbView:
        every = tuple(pods)
        return PdbView(
            NAMESPACE,
            self.name,
            {"app": self.app},
            disruptions_allowed=self.room(every),
            expected_pods=self.replicas,
            desired_healthy=self.min_available,
            current_healthy=self.healthy(every),
            always_allow_unhealthy=self.always_allow_unhealthy,
        )


def answer_to(pod: PodView, budgets: Iterable[Budget], pods: Iterable[PodView]) -> Reason:
    if pod.phase in ("Succeeded", "Failed", "Pending") or pod.deleted_at is not None:
        return Reason.EVICTED
    guards = [budget for budget in budgets if budget.selects(pod)]
    if len(guards) > 1:
        return Reason.EVICTION_ERROR
    every = tuple(pods)
    for budget in guards:
        if not pod.ready and (budget.always_allow_unhealthy or budget.healthy(every) >= budget.min_available > 0):
            continue
        if budget.room(every) == 0:
            return Reason.PDB
    return Reason.EVICTED
