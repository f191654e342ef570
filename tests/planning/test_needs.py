"""What a workload needs, by its history: numbers, doubts and refusals."""

from dataclasses import replace
from datetime import timedelta
from fractions import Fraction
from math import ceil, nan

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.planning.histories import BEGIN, H100, HOUR, QUARTER, WHOLE, each_hour, history
from tests.wording import lacks

from kubectl_gpusharing.usage.needs import GIB, LEVELS, RARE, Confidence, Doubt, Goal, History, Holding, Need, find_need


def told(asked: History, goal: Goal = Goal.COST) -> Need:
    return find_need(asked, H100, goal)


@pytest.mark.parametrize(("goal", "headroom"), [(Goal.COST, 1.2), (Goal.PERFORMANCE, 1.3)])
def test_memory_is_the_peak_with_headroom(goal: Goal, headroom: float) -> None:
    found = told(history(gib=10), goal)
    assert found.peak == found.highest == 10 * GIB
    assert found.memory == round(headroom * 10 * GIB)


def test_a_rare_peak_is_still_held_after_days_of_less() -> None:
    rare = each_hour(14 * 24, lambda hour: (30 if hour == 5 else 10) * GIB)
    found = told(replace(history(), memory=rare))
    assert found.peak == pytest.approx(10 * GIB, rel=0.05)
    assert found.highest == 30 * GIB
    assert found.memory == ceil(RARE * 30 * GIB)


def test_compute_is_what_95_percent_of_the_time_did_not_exceed_or_98() -> None:
    busy = each_hour(14 * 24, lambda hour: 0.9 if hour % 25 == 0 else 0.1)
    one = replace(history(), activity=busy)
    cost, performance = told(one), told(one, Goal.PERFORMANCE)
    assert cost.compute == pytest.approx(0.1, rel=0.05)
    assert performance.compute == 0.9


CONFIDENCE = {6: "none", 23: "none", 24: "low", 71: "low", 72: "medium", 167: "medium", 168: "high", 336: "high"}


@pytest.mark.parametrize("hours", CONFIDENCE)
def test_confidence_grows_with_the_hours_that_were_seen(hours: int) -> None:
    assert told(history(hours=hours)).confidence == CONFIDENCE[hours]


def test_a_few_hours_of_each_day_are_worth_as_much_as_there_are_hours() -> None:
    daily = tuple(one for one in history().memory if one[0].hour in (1, 2, 3))
    found = told(replace(history(), memory=daily))
    assert (found.samples, found.span, found.confidence) == (42, timedelta(hours=315), Confidence.LOW)
    assert found.coverage == pytest.approx(42 / 315)
    assert Doubt.GAPS in found.doubts


@pytest.mark.parametrize("hours", [0, 1, 23])
def test_too_little_history_is_refused_and_says_what_is_missing(hours: int) -> None:
    found = told(history(hours=hours))
    assert found.memory is None
    assert found.confidence is Confidence.NONE
    assert Doubt.TOO_LITTLE in found.doubts
    assert not lacks(found.reason, f"{hours} hourly peaks", f"{hours} h", "24", "24 h")


def test_many_points_of_one_hour_are_no_history() -> None:
    found = told(replace(history(), memory=tuple((BEGIN, GIB) for _ in range(200))))
    assert found.memory is None
    assert Doubt.TOO_LITTLE in found.doubts


PREALLOCATED = {
    "it computes little": history(gib=72, activity=0.38, wave=0.0, holds=WHOLE),
    "it computes": history(gib=72, activity=0.8, wave=0.0, holds=WHOLE),
    "nobody knows its activity": history(gib=72, activity=None, wave=0.0, holds=WHOLE),
    "it fills a time-sliced GPU": history(gib=72, activity=0.8, wave=0.0, holds=QUARTER),
    "it fills its part of a GPU": history(gib=18, activity=0.4, wave=0.0, holds=QUARTER),
    "it takes half of its device and computes little": history(gib=45, activity=0.1, wave=0.0, holds=WHOLE),
}


@pytest.mark.parametrize("name", PREALLOCATED)
def test_flat_memory_is_likely_preallocated_and_nothing_is_guessed_where(name: str) -> None:
    found = told(PREALLOCATED[name])
    assert (found.memory, found.confidence) == (None, Confidence.NONE)
    assert Doubt.PREALLOCATED in found.doubts
    assert "declare what it needs" in found.reason


NOT_PREALLOCATED = {
    "memory goes up and down": history(gib=72, activity=0.1, wave=0.3, holds=WHOLE),
    "it computes, and headroom fits on its device": history(gib=60, activity=0.8, wave=0.0, holds=WHOLE),
    "nobody knows its activity, and headroom fits on its device": history(gib=60, activity=None, wave=0.0, holds=WHOLE),
    "it takes a small part of its device": history(gib=6, activity=0.01, wave=0.0, holds=QUARTER),
    "it computes, and takes more than its part of a GPU": history(gib=30, activity=0.4, wave=0.0, holds=QUARTER),
}


@pytest.mark.parametrize("name", NOT_PREALLOCATED)
def test_it_is_no_preallocation_where(name: str) -> None:
    found = told(NOT_PREALLOCATED[name])
    assert Doubt.PREALLOCATED not in found.doubts
    assert found.memory is not None


SEVENTH = Holding("nvidia.com/mig-1g.10gb", 1, Fraction(1, 8), Fraction(1, 7))
THREE = Holding("nvidia.com/mig-3g.40gb", 1, Fraction(1, 2), Fraction(3, 7))
HELD_BACK = {
    "takes all of its instance": (SEVENTH, 0.98 / 7, True),
    "takes all of a larger one": (THREE, 0.95 * 3 / 7, True),
    "takes all of an instance that others share": (replace(SEVENTH, share=Fraction(1, 32)), 0.98 / 7, True),
    "takes all of a GPU that others share": (QUARTER, 0.97, True),
    "takes four fifths of its instance": (SEVENTH, 0.8 / 7, False),
    "takes as much as a smaller one has": (THREE, 1 / 7, False),
    "takes all of a GPU of its own": (WHOLE, 1.0, False),
    "takes its part of a GPU that others share": (QUARTER, 0.25, False),
}


@pytest.mark.parametrize("name", HELD_BACK)
def test_who_takes_all_compute_of_a_slice_may_need_more(name: str) -> None:
    holds, activity, held_back = HELD_BACK[name]
    found = told(history(activity=activity, holds=holds))
    assert (Doubt.HELD_BACK in found.doubts) == held_back
    assert found.memory is not None, "it has its place all the same"


def test_how_often_compute_was_full_is_counted() -> None:
    busy = each_hour(100, lambda hour: (0.99 if hour % 10 < 3 else 0.2) / 7)
    found = told(replace(history(hours=100, holds=SEVENTH), activity=busy))
    assert (found.full, found.doubts) == (0.3, (Doubt.HELD_BACK,))
    assert told(history(activity=None)).full is None


def test_what_the_owner_says_wins_and_gets_no_headroom() -> None:
    found = told(history(gib=72, activity=0.38, wave=0.0, holds=WHOLE, declared=24))
    assert found.memory == 24 * GIB
    assert found.doubts == (Doubt.PREALLOCATED,)
    assert found.reason == "its owner declared what it needs"


def test_what_the_owner_says_is_enough_without_any_history_and_not_much_to_rest_on() -> None:
    found = told(history(hours=0, declared=24))
    assert (found.memory, found.confidence) == (24 * GIB, Confidence.LOW)
    assert found.compute is None


@pytest.mark.parametrize("points", [None, 0, 23])
def test_without_enough_activity_compute_is_unknown_and_not_zero(points: int | None) -> None:
    some = None if points is None else history().activity
    found = told(replace(history(), activity=None if some is None else some[:points]))
    assert found.compute is None
    assert found.doubts == (Doubt.NO_ACTIVITY,)
    assert found.memory is not None


def test_gaps_are_told() -> None:
    whole = history().memory
    found = told(replace(history(), memory=whole[:100] + whole[200:]))
    assert found.doubts == (Doubt.GAPS,)
    assert found.coverage == pytest.approx(236 / 336)


def test_it_tells_how_much_of_the_time_nothing_computed() -> None:
    night = each_hour(14 * 24, lambda hour: 0.0 if hour % 24 < 18 else 0.3)
    assert told(replace(history(), activity=night)).idle == 0.75


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("memory", -1.0, "memory: -1.0 at"),
        ("memory", nan, "memory: nan at"),
        ("activity", 35.0, "activity: 35.0 is not a fraction of a card; pass a number from 0 to 1, for example 0.35"),
    ],
)
def test_what_nobody_can_have_measured_is_refused(field: str, value: float, said: str) -> None:
    samples = (*history().memory[:30], (BEGIN + 500 * HOUR, value))
    if field == "activity":
        samples = tuple((at, 0.1) for at, _ in samples[:-1]) + samples[-1:]
    wrong = history()
    wrong = replace(wrong, memory=samples) if field == "memory" else replace(wrong, activity=samples)
    with pytest.raises(ValueError, match=said):
        told(wrong)


@given(st.lists(st.floats(0, 80 * GIB), min_size=24, max_size=100), st.sampled_from(Goal))
def test_a_need_is_never_below_any_peak_nor_above_the_highest_with_headroom(peaks: list[float], goal: Goal) -> None:
    memory = each_hour(len(peaks), peaks.__getitem__)
    one = replace(history(), memory=memory)
    found = told(one, goal)
    if found.memory is not None:
        assert max(peaks) <= found.memory <= LEVELS[goal][0] * max(peaks) + 1
    assert told(replace(one, memory=memory[::-1]), goal).memory == found.memory
