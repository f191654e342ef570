"""A real API server admits what `recommend` writes (kubectl_gpusharing/usage/recommend.py)."""

from datetime import UTC, datetime, timedelta

import pytest
from hack.cluster.controlplane import ControlPlane
from tests.integration.product import POLICIES

from gpusharing.planning.gpus.cards import find_card
from kubectl_gpusharing.usage.needs import GIB, Goal, History, Holding, Workload, find_need
from kubectl_gpusharing.usage.recommend import policy_of
from kubectl_gpusharing.usage.recommendation import ModelPool, recommend
from kubectl_gpusharing.usage.scopes import whole_fleet

pytestmark = pytest.mark.cluster
BEGIN = datetime(2026, 10, 1, tzinfo=UTC)


def history(name: str, gib: float, pods: int) -> History:
    hours = [BEGIN + timedelta(hours=hour) for hour in range(48)]
    memory = tuple((at, gib * GIB * (0.8 + 0.2 * (at.hour % 2))) for at in hours)
    return History(Workload("team-a", "deployment", name), pods, Holding(), memory)


@pytest.mark.parametrize("goal", Goal)
@pytest.mark.parametrize(
    "needed",
    [[("small", 5.0, 7)], [("small", 5.0, 3), ("middle", 27.0, 2)], [("middle", 15.0, 3), ("large", 70.0, 1)]],
    ids=str,
)
def test_what_is_written_is_admitted(
    control_plane: ControlPlane, needed: list[tuple[str, float, int]], goal: Goal
) -> None:
    card = find_card("NVIDIA H100 80GB HBM3")
    assert card is not None
    needs = [find_need(history(*one), card, goal) for one in needed]
    found = recommend(ModelPool("pool", card, (4, 4), 8), needs, goal=goal)
    assert found.placed
    policy = policy_of(whole_fleet(""), found)
    policy["metadata"] = {"name": f"recommended-{goal}"}
    created = control_plane.api.create(POLICIES, policy)
    try:
        assert created["spec"]["rollout"]["approval"] == "Manual"
        assert (created["spec"].get("mig") or {}).get("layouts") == (policy["spec"].get("mig") or {}).get("layouts")
        assert (policy["spec"]["mode"] == "MIG") is (goal is Goal.COST), "8 GPUs are enough for whole ones"
    finally:
        control_plane.api.delete(f"{POLICIES}/{policy['metadata']['name']}")
