"""The geometry check: what is legal shows how, what is not says why (brute force over it: test_mig_facts.py)."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.planning.placing import placement_sets

from gpusharing.planning.gpus.cards import CARDS, Card, Profile
from gpusharing.planning.gpus.geometry import (
    Layout,
    describe,
    find_misfit,
    generated_layouts,
    legal_layouts,
    maximal_layouts,
    nearest_layout,
    normalize,
    place,
    resource_name,
    tell_misfit,
)

BY_KEY = {card.key: card for card in CARDS}
MIG_CARDS = [card for card in CARDS if card.profiles]
PLACED = [card for card in MIG_CARDS if card.source.placements != "unknown"]
UNPLACED = [card for card in MIG_CARDS if card.source.placements == "unknown"]


def layout(text: str) -> Layout:
    """``"1x3g.40gb 2x2g.20gb"`` as a layout."""
    parts = (item.partition("x") for item in text.split())
    return normalize({name: int(count) for count, _, name in parts})


def key(card: Card) -> str:
    return card.key


@pytest.mark.parametrize("card", PLACED, ids=key)
def test_the_compute_slice_limit_holds_by_the_placements_alone(card: Card) -> None:
    most = max(p.slices for p in card.profiles)
    assert max(sum(p.slices for p in chosen) for chosen in placement_sets(card.profiles)) == most


@pytest.mark.parametrize("card", PLACED, ids=key)
def test_a_legal_verdict_shows_a_placement_without_overlap(card: Card) -> None:
    by_name = {p.name: p for p in card.profiles}
    for candidate in legal_layouts(card.profiles):
        placements = place(candidate, card.profiles)
        assert not find_misfit(candidate, card.profiles)
        assert normalize(Counter(name for name, _ in placements)) == candidate
        assert all(start in by_name[name].starts for name, start in placements)
        used = [u for name, start in placements for u in range(start, start + by_name[name].size)]
        assert len(used) == len(set(used))


@pytest.mark.parametrize("card", MIG_CARDS, ids=key)
def test_one_more_than_the_maximum_is_refused(card: Card) -> None:
    for p in card.profiles:
        assert not find_misfit(((p.name, p.max_count),), card.profiles)
        misfit = find_misfit(((p.name, p.max_count + 1),), card.profiles)
        assert "the card has room for at most" in misfit


# --- rules that no real card needs, or that placements cannot say ---


SLICES, OVERLAP = "compute slices, but the card has", "overlap in every placement"
TWO = [Profile("2g.20gb", (1,), 2, 1, 2, 20), Profile("1g.10gb", (0, 1, 2), 1, 3, 1, 10)]
MADE_UP: dict[str, tuple[list[Profile], str, str, str]] = {
    "eight places for 1g do not make eight compute slices": (
        [Profile("1g.10gb", tuple(range(8)), 1, 8, 1, 10), Profile("7g.80gb", (0,), 8, 1, 7, 80)],
        "7x1g.10gb", "8x1g.10gb", SLICES),
    "there is room in sum but not in place": (
        [*TWO, Profile("4g.40gb", (0,), 4, 1, 4, 40)], "1x2g.20gb 1x1g.10gb", "1x2g.20gb 2x1g.10gb", OVERLAP),
    "not all sets of so many places can be tried": (
        [Profile("1g.10gb", tuple(range(5, 64)), 10, 7, 1, 10), Profile("7g.80gb", (0,), 73, 1, 7, 80)],
        "6x1g.10gb", "7x1g.10gb", OVERLAP),
}  # fmt: skip


@pytest.mark.parametrize(("made_up", "fits", "refused", "says"), MADE_UP.values(), ids=MADE_UP)
def test_on_a_card_that_somebody_made_up(made_up: list[Profile], fits: str, refused: str, says: str) -> None:
    assert not find_misfit(layout(fits), made_up)
    assert says in find_misfit(layout(refused), made_up)


@pytest.mark.parametrize(
    ("model", "wanted", "fits"),
    [
        ("h100-80gb", "1x1g.10gb+me 6x1g.10gb", True),
        ("h100-80gb", "1x1g.10gb+me 7x1g.10gb", False),
        ("a30", "1x2g.12gb+me 2x1g.6gb", True),
        ("a30", "1x2g.12gb+me 1x1g.6gb+me", False),
        ("rtx-pro-6000-blackwell", "1x1g.24gb+me.all 3x1g.24gb-me", True),
        ("rtx-pro-6000-blackwell", "1x1g.24gb+me.all 1x1g.24gb", False),
        ("rtx-pro-6000-blackwell", "1x2g.48gb+me.all 1x1g.24gb+me.all", False),
        ("rtx-pro-6000-blackwell", "1x2g.48gb+gfx 1x1g.24gb+me 1x1g.24gb-me", True),
    ],
)
def test_media_engines_go_to_one_instance(model: str, wanted: str, fits: bool) -> None:
    assert bool(find_misfit(layout(wanted), BY_KEY[model].profiles)) is not fits


@pytest.mark.parametrize("card", UNPLACED, ids=key)
def test_without_known_placements_profiles_are_not_mixed(card: Card) -> None:
    first, second = card.profiles[0], card.profiles[1]
    assert place(((first.name, first.max_count),), card.profiles) == ()
    mixed = normalize({first.name: 1, second.name: 1})
    assert "placements on this card are unknown" in find_misfit(mixed, card.profiles)
    assert "placements on this card are unknown" in tell_misfit(mixed, card.profiles)
    near = nearest_layout(mixed, card.profiles)
    assert near is not None
    assert not find_misfit(near, card.profiles)


# --- what people get wrong ---

H100_OFFERS = (
    "the card offers 1g.10gb (max 7), 1g.10gb+me (max 1), 1g.20gb (max 4), 2g.20gb (max 3), 3g.40gb (max 2), "
    "4g.40gb (max 1), 7g.80gb (max 1)"
)
H200_OFFERS = (
    "the card offers 1g.18gb (max 7), 1g.18gb+me (max 1), 1g.35gb (max 4), 2g.35gb (max 3), 3g.71gb (max 2), "
    "4g.71gb (max 1), 7g.141gb (max 1)"
)


@pytest.mark.parametrize(
    ("model", "wanted", "message"),
    [
        (
            "h100-80gb",
            "7x1g.20gb",
            f"7x1g.20gb does not fit: the card has room for at most 4x1g.20gb; {H100_OFFERS}; "
            "nearest legal layout: 4x1g.20gb",
        ),
        (
            "h100-80gb",
            "2x3g.40gb 1x1g.10gb",
            f"2x3g.40gb+1x1g.10gb does not fit: it needs 9 memory units, but the card has 8; {H100_OFFERS}; "
            "nearest legal layout: 2x3g.40gb",
        ),
        (
            "h100-80gb",
            "1x4g.40gb 2x2g.20gb",
            f"1x4g.40gb+2x2g.20gb does not fit: it needs 8 compute slices, but the card has 7; {H100_OFFERS}; "
            "nearest legal layout: 1x4g.40gb+1x2g.20gb+1x1g.20gb",
        ),
        (
            "h200-141gb",
            "7x1g.20gb",
            f"this card has no profile 1g.20gb; {H200_OFFERS}; nearest legal layout: 7x1g.18gb",
        ),
        (
            "h200-141gb",
            "1x4g.80gb 3x1g.20gb",
            f"this card has no profile 4g.80gb, 1g.20gb; {H200_OFFERS}; nearest legal layout: 1x4g.71gb+3x1g.18gb",
        ),
        ("l40s", "1x1g.10gb", "this card has no profile 1g.10gb; the card has no MIG profiles"),
    ],
)
def test_a_mistake_is_refused_with_what_the_card_offers(model: str, wanted: str, message: str) -> None:
    assert tell_misfit(layout(wanted), BY_KEY[model].profiles) == message


@pytest.mark.parametrize(
    ("model", "wanted", "offer"),
    [
        ("h100-80gb", "1x3g.40gb 5x1g.10gb", "1x3g.40gb+4x1g.10gb"),
        ("h100-80gb", "1000000x1g.10gb", "7x1g.10gb"),
        ("h100-80gb", "1x7g.79gb", "1x7g.80gb"),
        ("h100-80gb", "2x1c.3g.40gb", "2x3g.40gb"),
        ("h100-80gb", "1x1g.5gb+me", "1x1g.10gb+me"),
        ("h100-80gb", "2x4g.40gb", "1x4g.40gb+1x3g.40gb"),
        ("h100-80gb", "4x2g.20gb", "3x2g.20gb+1x1g.20gb"),
        ("h100-80gb", "2x3g.40 1xhalf", "2x3g.40gb"),
        ("h100-80gb", "1xmig-3g.40gb 1x1g.20GB", "1x3g.40gb+1x1g.20gb"),
        ("h200-141gb", "1x1g.30gb", "1x1g.35gb"),
        ("a30", "2x3g.20gb", "1x4g.24gb"),
        ("a100-40gb", "3x2g.20gb 1x1g.5gb", "3x2g.10gb+1x1g.5gb"),
        ("rtx-pro-6000-blackwell", "7x1g.24gb", "4x1g.24gb"),
        ("rtx-pro-6000-blackwell", "1x1g.24gb+me.all 3x1g.24gb", "3x1g.24gb"),
        ("rtx-pro-4500-blackwell", "1x2g.32gb 1x1g.16gb", "1x2g.32gb"),
    ],
)
def test_the_nearest_legal_layout_is_what_one_would_expect(model: str, wanted: str, offer: str) -> None:
    found = nearest_layout(layout(wanted), BY_KEY[model].profiles)
    assert found is not None
    assert describe(found) == offer


@given(
    card=st.sampled_from(MIG_CARDS),
    picks=st.dictionaries(st.integers(0, 10), st.integers(1, 9), max_size=5),
    foreign=st.dictionaries(
        st.sampled_from(["1g.20gb", "3g.47gb", "4g.80gb", "2g.48gb-me", "nonsense"]), st.integers(1, 9), max_size=2
    ),
)
def test_nearest_is_always_legal_and_keeps_what_is_legal(
    card: Card, picks: dict[int, int], foreign: dict[str, int]
) -> None:
    names = [p.name for p in card.profiles]
    wanted = normalize({**{names[i % len(names)]: n for i, n in picks.items()}, **foreign})
    found = nearest_layout(wanted, card.profiles)
    if found is None:
        assert [name for name, _ in wanted] == ["nonsense"]
        return
    assert not find_misfit(found, card.profiles)
    assert (found == wanted) == (not find_misfit(wanted, card.profiles))
    assert found or not wanted


def test_nothing_is_near_a_name_that_is_like_no_profile() -> None:
    wanted, profiles = layout("1xhalf"), BY_KEY["h100-80gb"].profiles
    assert nearest_layout(wanted, profiles) is None
    assert tell_misfit(wanted, profiles) == f"this card has no profile half; {H100_OFFERS}"


# --- names ---


def test_a_layout_is_the_same_in_whatever_order_it_is_written() -> None:
    one = normalize({"1g.10gb": 2, "3g.40gb": 1, "1g.10gb+me": 1, "2g.20gb": 0})
    assert one == normalize({"1g.10gb+me": 1, "3g.40gb": 1, "1g.10gb": 2})
    assert describe(one) == "1x3g.40gb+2x1g.10gb+1x1g.10gb+me"
    assert describe(normalize({})) == "empty"
    with pytest.raises(ValueError, match=r"2g\.20gb is negative"):
        normalize({"2g.20gb": -1})


def test_resource_names_are_those_of_the_device_plugin() -> None:
    assert resource_name("1g.10gb") == "nvidia.com/mig-1g.10gb"
    assert resource_name("1g.10gb+me") == "nvidia.com/mig-1g.10gb.me"
    assert resource_name("1g.24gb-me") == "nvidia.com/mig-1g.24gb-me"
    assert resource_name("1g.24gb+me.all", shared=True) == "nvidia.com/mig-1g.24gb.me.all.shared"


# --- maximal layouts and NVIDIA's named configurations ----------------------------------------------------------------

SEVEN_SLICE_MAXIMAL = """
    2g+5*1g | 3g+2g+2*1g | 3g+2*2g | 3g+4*1g | 4g+2g+1g | 4g+3g | 4g+3*1g | 7g | 2*2g+3*1g | 2*3g
    | 3*2g+1g | 7*1g
"""
WITH_DOUBLE_MEMORY = """
    1G+6*1g | 2g+1G+4*1g | 2g+2*1G+2*1g | 2g+3*1G | 3g+1G+2*1g | 3g+2g+1G | 3g+2*1G | 4g+1G+2*1g | 4g+2g+1G
    | 4g+2*1G | 2*1G+4*1g | 2*2g+1G+2*1g | 2*2g+2*1G | 3*1G+2*1g | 3*2g+1G | 4*1G
"""
FOUR_SLICE_MAXIMAL = "4*1g | 2g+2*1g | 2*2g | 4g"


def maximal_texts(card: Card, profiles: Sequence[Profile]) -> set[frozenset[tuple[str, int]]]:
    """Maximal layouts with profiles as 7g, 4g, 3g, 2g, 1g and 1G for the 1g with double memory."""
    smallest = min(p.size for p in profiles)
    short = {p.name: "1G" if p.slices == 1 and p.size > smallest else f"{p.slices}g" for p in profiles}
    return {frozenset((short[name], count) for name, count in found) for found in maximal_layouts(profiles)}


def expected(text: str) -> set[frozenset[tuple[str, int]]]:
    found = set()
    for one in text.split("|"):
        items = [item.strip().rpartition("*") for item in one.split("+")]
        found.add(frozenset((name, int(count or 1)) for count, _, name in items))
    return found


@pytest.mark.parametrize("card", PLACED, ids=key)
def test_maximal_layouts_are_the_known_ones(card: Card) -> None:
    base = [p for p in card.profiles if re.fullmatch(r"\d+g\.\d+gb", p.name)]
    if max(p.slices for p in base) == 4:
        assert maximal_texts(card, base) == expected(FOUR_SLICE_MAXIMAL)
        return
    single = [p for p in base if not (p.slices == 1 and p.size == 2)]
    assert len(maximal_layouts(single)) == 12
    assert maximal_texts(card, single) == expected(SEVEN_SLICE_MAXIMAL)
    assert len(maximal_layouts(base)) == 28
    assert maximal_texts(card, base) == expected(SEVEN_SLICE_MAXIMAL + "|" + WITH_DOUBLE_MEMORY)


@pytest.mark.parametrize("card", MIG_CARDS, ids=key)
def test_generated_layouts_are_legal_and_cover_every_profile(card: Card) -> None:
    found = generated_layouts(card.profiles)
    assert found["all-disabled"] is None
    assert found["all-enabled"] == ()
    for p in card.profiles:
        assert found["all-" + p.name.replace("+", ".")] == ((p.name, p.max_count),)
    assert all(not find_misfit(one, card.profiles) for one in found.values() if one is not None)
    assert len(found) == len(card.profiles) + 2 + ("all-balanced" in found)


def test_a_profile_of_which_a_card_reports_no_instance_has_no_configuration() -> None:
    """mig-parted refuses a whole file for an entry whose counts are all 0 (docs/design/nvidia.md#a10)."""
    whole, *others = BY_KEY["h100-80gb"].profiles
    layouts = generated_layouts([replace(whole, max_count=0), *others])
    assert layouts.keys() == generated_layouts(others).keys()
    assert all(count > 0 for layout in layouts.values() for _, count in layout or ())
    assert generated_layouts([replace(whole, max_count=0)]) == {}


def test_balanced_depends_on_the_compute_slices() -> None:
    def balanced(model: str) -> str:
        return describe(generated_layouts(BY_KEY[model].profiles).get("all-balanced") or ())

    assert balanced("h100-80gb") == "1x3g.40gb+1x2g.20gb+2x1g.10gb"
    assert balanced("h200-141gb") == "1x3g.71gb+1x2g.35gb+2x1g.18gb"
    assert balanced("a30") == "1x2g.12gb+2x1g.6gb"
    assert balanced("rtx-pro-6000-blackwell") == "1x2g.48gb+2x1g.24gb"
    assert balanced("rtx-pro-5000-blackwell") == "empty"


def test_a_card_without_mig_has_no_named_layouts() -> None:
    t4 = BY_KEY["t4"]
    assert generated_layouts(t4.profiles) == {}
    assert nearest_layout((("1g.5gb", 1),), t4.profiles) is None
    assert maximal_layouts(t4.profiles) == ((),)
