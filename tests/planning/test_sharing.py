"""When sharing whole GPUs takes fewer of them than a layout (kubectl_gpusharing/usage/recommendation.py), and how that is told."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.planning.histories import BY_KEY, H100, need, pool
from tests.wording import lacks

from gpusharing.api.names import Mode
from gpusharing.planning.gpus.cards import TURNS, Card, memory_of
from kubectl_gpusharing.usage.needs import GIB, Goal, Need
from kubectl_gpusharing.usage.recommend import shared_of
from kubectl_gpusharing.usage.recommendation import Shared, find_shared, recommend

L4 = BY_KEY["l4"]


def shared(*needs: Need, card: Card = H100, goal: Goal = Goal.COST) -> Shared | None:
    return find_shared(recommend(pool((8,), card=card), needs, goal=goal))


def test_who_uses_too_little_for_the_smallest_instance_is_on_fewer_gpus_with_mps() -> None:
    found = shared(need("tiny", 2.0, 0.02, pods=20))
    assert found is not None
    assert (found.mode, found.replicas, found.gpus, found.instead) == (Mode.MPS, 20, 1, 3)
    assert found.needed == 2 * GIB
    assert found.there == pytest.approx(memory_of(H100) * GIB / 20)
    text = shared_of(found)
    assert not lacks(text, "fewer GPUs", "MPS", "20 clients", "20 pods", "1 GPU", "3", "2.0Gi of 4.0Gi", "2%")
    assert not lacks(text, "nothing isolates them", "fatal fault")
    assert "kubectl gpusharing advise" in text


def test_a_client_has_no_more_compute_than_its_part() -> None:
    """By memory one GPU would do."""
    found = shared(need("busy", 2.0, 0.1, pods=20))
    assert found is not None
    assert (found.mode, found.replicas, found.gpus) == (Mode.MPS, 10, 2)


def test_pods_of_very_different_sizes_take_turns_where_no_layout_holds_them_as_densely() -> None:
    found = shared(need("large", 36.0, 0.3), need("small", 13.0, 0.1, pods=3))
    assert found is not None
    assert (found.mode, found.replicas, found.gpus, found.instead) == (Mode.TIME_SLICING, 4, 1, 2)
    assert found.needed == 75 * GIB
    assert found.busy == pytest.approx(0.6, rel=0.06)
    text = shared_of(found)
    assert "with time-slicing and 4 replicas on each" in text
    assert "4 pods would use 75.0Gi of 79." in text
    assert "Gi and 60% of the compute)" in text
    assert not lacks(text, "too much memory", "others fail")


def test_where_activity_is_not_known_only_memory_counts_and_that_is_told() -> None:
    found = shared(need("tiny", 2.0, None, pods=20))
    assert found is not None
    assert (found.gpus, found.busy) == (1, None)
    assert "; the compute is unknown)" in shared_of(found)


@pytest.mark.parametrize(
    "needs",
    [
        (need("one", 9.0, 0.1),),
        (need("full", 9.0, 0.14, pods=7),),
        (need("whole", 75.0, 0.5, pods=3),),
        (need("busy", 13.0, 0.9), need("also", 13.0, 0.9)),
    ],
    ids=["one pod", "a layout that is full", "whole GPUs", "more compute than there is"],
)
def test_where_the_layout_is_as_good_nothing_is_said(needs: tuple[Need, ...]) -> None:
    assert shared(*needs) is None


def test_who_asks_for_room_is_not_told_to_share() -> None:
    assert shared(need("tiny", 2.0, 0.02, pods=20, goal=Goal.PERFORMANCE), goal=Goal.PERFORMANCE) is None


def test_a_card_without_mig_can_still_be_shared() -> None:
    found = shared(need("tiny", 4.0, 0.1, pods=5, card=L4), card=L4)
    assert found is not None
    assert (found.mode, found.replicas, found.gpus, found.instead) == (Mode.MPS, 5, 1, 5)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(0.5, 78.0), st.floats(0.01, 1.0), st.integers(1, 9)), min_size=1, max_size=4))
def test_whoever_shares_fits_in_the_worst_case_and_takes_fewer_gpus(wanted: list[tuple[float, float, int]]) -> None:
    needs = [need(f"w{index}", gib, active, pods=pods) for index, (gib, active, pods) in enumerate(wanted)]
    result = recommend(pool((8,) * 4), needs, goal=Goal.COST)
    found = find_shared(result)
    if found is None:
        return
    assert 0 < found.gpus < found.instead <= result.gpus
    assert found.gpus * found.replicas >= found.pods
    assert found.needed <= found.there
    assert found.busy is not None
    pods = [one.need for one in result.placed if one.profile for _ in range(one.pods)]
    memory = sorted((float(one.memory or 0) for one in pods), reverse=True)
    if found.mode is Mode.MPS:
        assert memory[0] <= memory_of(H100) * GIB / found.replicas
        assert found.busy <= 1 / found.replicas + 1e-6
    else:
        assert 2 <= found.replicas <= TURNS
        assert sum(memory[: found.replicas]) <= memory_of(H100) * GIB


def test_old_cards_take_fewer_clients() -> None:
    old = replace(L4, compute_capability=(7, 0), device_ids="27B8", family=())
    found = shared(need("tiny", 0.5, 0.01, pods=40, card=old), card=old)
    assert found is None or found.replicas <= old.mps_max_clients
