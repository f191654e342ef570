"""The Protocol of whoever is told what the loop does: in the shipped process, the metrics."""

from collections.abc import Mapping
from typing import Protocol

from gpusharing.controller.execute import Outcome
from gpusharing.planning.actions import Action
from gpusharing.planning.rollout import RolloutPlan
from gpusharing.planning.snapshot.views import ClusterSnapshot
from gpusharing.planning.way.verdict import Verdict


class Observer(Protocol):
    """Is told what happens, and answers nothing."""

    def passed(
        self, seconds: Mapping[str, float], plan: RolloutPlan, snapshot: ClusterSnapshot, outcome: Outcome
    ) -> None:
        """One pass: the seconds of its steps, what it decided, what of, and what came of it."""
        ...

    def acted(self, action: Action, result: str) -> None:
        """One action and its result."""
        ...

    def changed(self, before: Verdict | None, after: Verdict) -> None:
        """One verdict changed."""
        ...
