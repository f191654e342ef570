"""Histories, needs and pools for the tests of `recommend`."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from fractions import Fraction

from gpusharing.planning.gpus.cards import CARDS, Card
from kubectl_gpusharing.usage.needs import GIB, Goal, History, Holding, Need, Sample, Workload, find_need
from kubectl_gpusharing.usage.recommendation import ModelPool

BY_KEY = {card.key: card for card in CARDS}
H100 = BY_KEY["h100-80gb"]
BEGIN = datetime(2026, 11, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
WHOLE = Holding()
QUARTER = Holding("nvidia.com/gpu.shared", 1, Fraction(1, 4))


def each_hour(hours: int, value: Callable[[int], float]) -> tuple[Sample, ...]:
    return tuple((BEGIN + (hour + 1) * HOUR, value(hour)) for hour in range(hours))


def history(
    name: str = "a",
    gib: float = 8.0,
    activity: float | None = 0.1,
    *,
    pods: int = 1,
    hours: int = 14 * 24,
    declared: float | None = None,
    holds: Holding = QUARTER,
    wave: float = 0.2,
) -> History:
    """Peaks that go up to `gib` each sixth hour and down by `wave` of it in between; even activity."""
    memory = each_hour(hours, lambda hour: gib * GIB * (1 - wave * (hour % 6 != 0)))
    active = None if activity is None else each_hour(hours, lambda _: activity)
    asked = None if declared is None else round(declared * GIB)
    return History(Workload("team-a", "deploy", name), pods, holds, memory, active, asked)


def need(
    name: str = "a",
    gib: float = 8.0,
    activity: float | None = 0.1,
    *,
    pods: int = 1,
    card: Card = H100,
    goal: Goal = Goal.COST,
) -> Need:
    """Of exactly so much: its owner says it, so that no headroom comes on top."""
    told = history(name, min(gib, 1.0), activity, pods=pods, hours=24, declared=gib)
    return find_need(told, card, goal)


def pool(nodes: Sequence[int] = (8,), *, card: Card = H100, used: int = 0) -> ModelPool:
    return ModelPool("pool-a", card, tuple(nodes), used or sum(nodes))
