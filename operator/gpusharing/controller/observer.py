"""The observer of the loop: in the shipped process, the metrics."""

from collections.abc import Mapping

from gpusharing.controller.execute import Outcome
from gpusharing.planning.rollout import RolloutPlan
from gpusharing.planning.snapshot.actions import Action
from gpusharing.planning.snapshot.views import ClusterSnapshot
from gpusharing.planning.transition.verdict import Verdict


class Observer:
    """Is called when something happens. This one keeps nothing, for an operator without metrics."""

    def passed(
        self, seconds: Mapping[str, float], plan: RolloutPlan, snapshot: ClusterSnapshot, outcome: Outcome
    ) -> None:
        """One pass: the seconds of its steps, its plan, its snapshot, and the outcome."""

    def acted(self, action: Action, result: str) -> None:
        """One action and its result."""

    def changed(self, before: Verdict | None, after: Verdict) -> None:
        """One verdict changed."""
