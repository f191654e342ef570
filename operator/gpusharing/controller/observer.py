"""The observer of the loop. In the shipped process it is the metrics."""

from collections.abc import Mapping

from gpusharing.controller.execute import Outcome
from gpusharing.planning.rollout import RolloutPlan
from gpusharing.planning.snapshot.actions import Action
from gpusharing.planning.snapshot.views import ClusterSnapshot
from gpusharing.planning.transition.verdict import Verdict


class Observer:
    """Receives what happens in the loop. This one ignores everything, for an operator without metrics."""

    def passed(
        self, seconds: Mapping[str, float], plan: RolloutPlan, snapshot: ClusterSnapshot, outcome: Outcome
    ) -> None:
        """Note the end of a pass: the seconds of its steps, its plan, its snapshot, and its outcome."""

    def acted(self, action: Action, result: str) -> None:
        """Note an action and its result: `done`, or what prevented it."""

    def changed(self, before: Verdict | None, after: Verdict) -> None:
        """Note that the verdict of a node differs from the one before, which is None for a new node."""
