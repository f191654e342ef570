"""What a workload needs, by its history: numbers, doubts and refusals; and on how few GPUs instances fit."""

from collections import Counter
from dataclasses import replace
from datetime import timedelta
from fractions import Fraction
from functools import cache
from itertools import combinations_with_replacement, product
from math import ceil, nan

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.planning.histories import BEGIN, BY_KEY, H100, HOUR, QUARTER, WHOLE, each_hour, history
from tests.planning.placing import brute_force
from tests.wording import lacks

from gpusharing.planning.gpus.cards import CARDS, Card
from gpusharing.planning.gpus.geometry import Layout, describe, find_misfit, normalize
from kubectl_gpusharing.usage.needs import GIB, LEVELS, RARE, Confidence, Doubt, Goal, History, Holding, Need, find_need
from kubectl_gpusharing.usage.packing import Counts, Packer


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


# --- on how few GPUs instances fit, against brute force over placements ------------------------------------------------

PACKERS = {card.key: Packer(card) for card in CARDS if card.profiles and card.memory_gb}
PLACED = [card for card in CARDS if card.key in PACKERS and card.source.placements != "unknown"]


def counts(packer: Packer, text: str) -> Counts:
    """`2x3g.40gb 1x1g.10gb` in the packer's order."""
    found = dict.fromkeys((profile.name for profile in packer.profiles), 0)
    for part in text.split():
        number, _, name = part.partition("x")
        found[name] += int(number)
    return tuple(found.values())


@cache
def supplies(card: Card, gpus: int) -> frozenset[Counts]:
    names = [profile.name for profile in PACKERS[card.key].profiles]
    single = [dict(one) for one in brute_force(card.profiles) if {name for name, _ in one} <= set(names)]
    vectors = {tuple(one.get(name, 0) for name in names) for one in single}
    full = [one for one in vectors if not any(one != more and within(one, more) for more in vectors)]
    sets = combinations_with_replacement(sorted(full), gpus)
    return frozenset(tuple(map(sum, zip(*chosen, strict=True))) for chosen in sets)


def within(part: Counts, whole: Counts) -> bool:
    return all(one <= other for one, other in zip(part, whole, strict=True))


def fewest(packer: Packer, wanted: Counts, most: int) -> int | None:
    return next((gpus for gpus in range(most + 1) if packer.fits(wanted, gpus)), None)


SMALL = ["a30", "h100-80gb", "rtx-pro-6000-blackwell"]


@pytest.mark.parametrize("key", SMALL)
@given(st.data())
def test_no_brute_force_finds_fewer_gpus(key: str, data: st.DataObject) -> None:
    packer, card = PACKERS[key], BY_KEY[key]
    most = [2 * profile.max_count for profile in packer.profiles]
    wanted = data.draw(st.tuples(*(st.integers(0, count) for count in most)))
    enough = (gpus for gpus in range(1, 4) if any(within(wanted, supply) for supply in supplies(card, gpus)))
    assert fewest(packer, wanted, 3) == (next(enough, None) if any(wanted) else 0)


@pytest.mark.parametrize("card", PLACED, ids=lambda card: card.key)
def test_on_one_gpu_it_is_the_geometry(card: Card) -> None:
    packer = PACKERS[card.key]
    for wanted in product(*(range(min(profile.max_count, 3) + 2) for profile in packer.profiles)):
        layout = normalize({one.name: count for one, count in zip(packer.profiles, wanted, strict=True)})
        legal = not find_misfit(layout, card.profiles)
        assert (fewest(packer, wanted, 1) is not None) == legal, describe(layout)


wanted_of_many = st.tuples(*(st.integers(0, 4 * profile.max_count) for profile in PACKERS[H100.key].profiles))


@given(wanted_of_many, st.integers(1, 16))
def test_what_is_packed_is_what_was_wanted_on_legal_layouts(wanted: Counts, most: int) -> None:
    packer = PACKERS[H100.key]
    gpus = fewest(packer, wanted, most)
    if gpus is None:
        assert packer.least(wanted) > most or fewest(packer, wanted, 64) is not None
        return
    assert packer.least(wanted) <= gpus <= most
    layouts = packer.pack(wanted, gpus)
    assert len(layouts) == gpus
    held: Counter[str] = Counter()
    for layout in layouts:
        assert not find_misfit(layout, H100.profiles)
        held.update(dict(layout))
    assert tuple(held[profile.name] for profile in packer.profiles) == wanted


def test_slices_that_add_up_do_not_make_a_layout_and_what_does_not_fit_is_not_packed() -> None:
    packer = PACKERS[H100.key]
    wanted = counts(packer, "2x3g.40gb 1x1g.10gb")
    assert fewest(packer, wanted, 1) is None
    assert fewest(packer, wanted, 2) == 2
    with pytest.raises(ValueError, match="does not fit on so few GPUs"):
        packer.pack(counts(packer, "3x3g.40gb"), 1)


@pytest.mark.parametrize(
    ("layout", "wanted", "full", "lost"),
    [
        ("3x2g.20gb", (), "3x2g.20gb 1x1g.20gb", (0, 0)),
        ("1x3g.40gb", ("1g.10gb", "1g.20gb"), "1x3g.40gb 4x1g.10gb", (0, 0)),
        ("2x3g.40gb", ("1g.10gb",), "2x3g.40gb", (0, 1)),
        ("7x1g.10gb", (), "7x1g.10gb", (1, 0)),
    ],
    ids=str,
)
def test_what_fits_for_nothing_is_added_and_the_rest_is_stranded(
    layout: str, wanted: tuple[str, ...], full: str, lost: tuple[int, int]
) -> None:
    packer = PACKERS[H100.key]

    def read(text: str) -> Layout:
        found = counts(packer, text)
        return normalize({one.name: count for one, count in zip(packer.profiles, found, strict=True)})

    filled = packer.fill_up(read(layout), set(wanted))
    assert filled == read(full)
    assert packer.stranded(filled) == lost


def test_where_placements_are_unknown_profiles_are_not_mixed() -> None:
    packer = PACKERS["rtx-pro-5000-blackwell"]
    assert fewest(packer, (2,), 1) == 1
    assert fewest(packer, (5,), 3) == 3
