"""Maximal layouts and NVIDIA's named configurations, model by model, against tables written out here."""

import re
from collections.abc import Sequence
from dataclasses import replace

import pytest

from gpusharing.planning.gpus.cards import CARDS, Card, Profile
from gpusharing.planning.gpus.geometry import describe, find_misfit, generated_layouts, maximal_layouts, nearest_layout

BY_KEY = {card.key: card for card in CARDS}
MIG_CARDS = [card for card in CARDS if card.profiles]
PLACED = [card for card in MIG_CARDS if card.source.placements != "unknown"]


def key(card: Card) -> str:
    return card.key


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
