"""An observer for an operator without metrics, as tests and the demo run it."""

from collections.abc import Mapping

from gpusharing.controller.execute import Outcome
from gpusharing.planning.rollout import RolloutPlan
from gpusharing.planning.snapshot.actions import Action
from gpusharing.planning.snapshot.views import ClusterSnapshot
from gpusharing.planning.transition.verdict import Verdict


class NoMetrics:
    """An observer that keeps nothing."""

    def passed(
        self, seconds: Mapping[str, float], plan: RolloutPlan, snapshot: ClusterSnapshot, outcome: Outcome
    ) -> None:
        """See Observer."""

    def acted(self, action: Action, result: str) -> None:
        """See Observer."""

    def changed(self, before: Verdict | None, after: Verdict) -> None:
        """See Observer."""
