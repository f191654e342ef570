"""Maximal layouts and NVIDIA's named configurations, model by model, against tables written out here."""

import re
from collections.abc import Sequence

import pytest

from gpusharing.planning.cards import CARDS, Card, Profile
from gpusharing.planning.geometry import (
    Legal,
    describe,
    generated_layouts,
    judge,
    maximal_layouts,
    nearest,
    static_layouts,
)

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


# The static file of mig-manager, by model: the configurations that do there what their name says.
APPLICABLE = {
    "a30": "1g.6gb 1g.6gb.me 2g.12gb 2g.12gb.me 4g.24gb balanced",
    "a100-40gb": "1g.10gb 1g.5gb 1g.5gb.me 2g.10gb 3g.20gb 4g.20gb 7g.40gb balanced",
    "a100-80gb": "1g.10gb 1g.10gb.me 1g.20gb 2g.20gb 3g.40gb 4g.40gb 7g.80gb balanced",
    "pg506-96gb": "1g.12gb 1g.12gb.me 1g.24gb 2g.24gb 3g.48gb 4g.48gb 7g.96gb balanced",
    "h100-80gb": "1g.10gb 1g.10gb.me 1g.20gb 2g.20gb 3g.40gb 4g.40gb 7g.80gb balanced",
    "h100-nvl-94gb": "1g.12gb 1g.12gb.me 1g.24gb 2g.24gb 3g.47gb 4g.47gb 7g.94gb balanced",
    "hopper-96gb": "1g.12gb 1g.12gb.me 1g.24gb 2g.24gb 3g.48gb 4g.48gb 7g.96gb balanced",
    "gh200-144gb": "1g.18gb 1g.18gb.me 1g.36gb 2g.36gb 3g.72gb 4g.72gb 7g.144gb balanced",
    "h200-141gb": "1g.18gb 1g.18gb.me 2g.35gb 3g.71gb 4g.71gb 7g.141gb balanced",
    "b200-180gb": "1g.23gb 1g.23gb.me 1g.45gb 2g.45gb 3g.90gb 4g.90gb 7g.180gb balanced",
    "gb200-186gb": "1g.23gb 1g.23gb.me 1g.47gb 2g.47gb 3g.93gb 4g.93gb 7g.186gb balanced",
    "b300-269gb": "1g.34gb 1g.34gb.me 1g.67gb 2g.67gb 3g.135gb 4g.135gb 7g.269gb balanced",
    "gb300-278gb": "1g.35gb 1g.35gb.me 1g.70gb 2g.70gb 3g.139gb 4g.139gb 7g.278gb balanced",
    "rtx-pro-6000-blackwell": "1g.24gb 1g.24gb-me 1g.24gb.gfx 1g.24gb.me 1g.24gb.me.all 2g.48gb 2g.48gb-me "
    "2g.48gb.gfx 2g.48gb.me.all 4g.96gb 4g.96gb.gfx balanced",
    "rtx-pro-6000-blackwell-workstation": "1g.24gb 1g.24gb-me 1g.24gb.gfx 1g.24gb.me 1g.24gb.me.all 2g.48gb "
    "2g.48gb-me 2g.48gb.gfx 2g.48gb.me.all 4g.96gb 4g.96gb.gfx",
    "rtx-pro-5000-blackwell": "1g.24gb.me 1g.24gb.me.all",
    "rtx-pro-4500-blackwell": "",
    "thor-igpu": "",
}


@pytest.mark.parametrize("model", APPLICABLE)
def test_static_named_layouts_apply_on_their_own_model_only(model: str) -> None:
    card = BY_KEY[model]
    found = static_layouts(card)
    wanted = {f"all-{name}" for name in APPLICABLE[model].split()} | {"all-disabled", "all-enabled"}
    assert found.keys() == wanted
    assert found["all-disabled"] is None
    assert found["all-enabled"] == ()
    assert all(isinstance(judge(one, card.profiles), Legal) for one in found.values() if one is not None)


def test_every_named_layout_of_the_static_file_is_legal_on_a_model_but_three() -> None:
    everywhere = {name for card in MIG_CARDS for name in static_layouts(card)}
    everywhere |= static_layouts(BY_KEY["h200-141gb"], "0x233510DE").keys()
    assert len(everywhere) == 81 - 3
    assert not everywhere & {"all-3g.95gb", "all-4g.95gb", "all-7g.189gb"}  # a GB200 naming nobody has seen


def test_the_same_name_means_what_the_device_filter_says() -> None:
    assert static_layouts(BY_KEY["h100-80gb"])["all-1g.10gb"] == (("1g.10gb", 7),)
    assert static_layouts(BY_KEY["a100-40gb"])["all-1g.10gb"] == (("1g.10gb", 4),)
    h200 = BY_KEY["h200-141gb"]
    assert static_layouts(h200, "0x233510DE")["all-1g.35gb"] == (("1g.35gb", 4),)
    assert "all-1g.35gb" not in static_layouts(
        h200, "0x233B10DE"
    )  # H200 NVL: mig-parted silently does nothing
    assert static_layouts(BY_KEY["gb300-278gb"])["all-1g.35gb"] == (("1g.35gb", 7),)


@pytest.mark.parametrize("card", MIG_CARDS, ids=key)
def test_generated_layouts_are_legal_and_cover_every_profile(card: Card) -> None:
    found = generated_layouts(card.profiles)
    assert found["all-disabled"] is None
    assert found["all-enabled"] == ()
    for p in card.profiles:
        assert found["all-" + p.name.replace("+", ".")] == ((p.name, p.max_count),)
    assert all(isinstance(judge(one, card.profiles), Legal) for one in found.values() if one is not None)
    assert len(found) == len(card.profiles) + 2 + ("all-balanced" in found)


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
    assert generated_layouts(t4.profiles) == static_layouts(t4) == {}
    assert nearest((("1g.5gb", 1),), t4.profiles) is None
    assert maximal_layouts(t4.profiles) == ((),)
