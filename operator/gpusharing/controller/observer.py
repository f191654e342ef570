"""The observer of the loop. In the shipped process, the metrics are the observer."""

from collections.abc import Mapping

from gpusharing.controller.execute import Outcome
from gpusharing.planning.rollout import RolloutPlan
from gpusharing.planning.snapshot.actions import Action
from gpusharing.planning.snapshot.views import ClusterSnapshot
from gpusharing.planning.transition.verdict import Verdict


class Observer:
    """Receives a call for each thing that happens in the loop. This one ignores all of them, for an operator without metrics."""

    def passed(
        self, seconds: Mapping[str, float], plan: RolloutPlan, snapshot: ClusterSnapshot, outcome: Outcome
    ) -> None:
        """Called at the end of a pass with the seconds of each step by its name."""

    def acted(self, action: Action, result: str) -> None:
        """Called after an action with its result, `done` or what prevented it."""

    def changed(self, before: Verdict | None, after: Verdict) -> None:
        """Called when the verdict of a node differs from the one before, which is None for a new node."""
