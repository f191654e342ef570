"""How much memory an instance has, against the captures, and which profile is large enough."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tests.planning.histories import BY_KEY
from tests.yamlfiles import read_yaml

from gpusharing.planning.gpus.cards import CARDS, Card, memory_of, plain_profiles, usable_memory

MODELS: dict[str, Any] = read_yaml(Path(__file__).with_name("mig-facts.yaml"))["models"]
DIVIDED = [card for card in CARDS if card.profiles and card.memory_gb]
CAPTURED = [card for card in DIVIDED if "usable_gib" in str(MODELS.get(card.key))]


def key(card: Card) -> str:
    return card.key


@pytest.mark.parametrize("card", CAPTURED, ids=key)
def test_what_was_captured_is_what_an_instance_has(card: Card) -> None:
    facts = MODELS[card.key]["profiles"]
    seen = {name: row["usable_gib"] for name, row in facts.items() if "usable_gib" in row}
    assert {one.name: usable_memory(card, one) for one in card.profiles if one.name in seen} == seen


def test_there_are_captures_of_eight_cards() -> None:
    assert len(CAPTURED) == 8


@pytest.mark.parametrize("card", DIVIDED, ids=key)
def test_no_instance_has_more_than_its_name_says_or_than_the_card_has(card: Card) -> None:
    for profile in card.profiles:
        assert 0 < usable_memory(card, profile) < profile.memory_gb
        assert usable_memory(card, profile) <= memory_of(card)


@pytest.mark.parametrize("card", DIVIDED, ids=key)
def test_what_nobody_captured_is_taken_for_less_than_any_capture_shows(card: Card) -> None:
    least = min(usable_memory(one, profile) / profile.memory_gb for one in CAPTURED for profile in one.profiles)
    unseen = [one for one in card.profiles if "usable_gib" not in str(MODELS.get(card.key))]
    assert all(usable_memory(card, one) / one.memory_gb <= least for one in unseen)


def test_an_h200_has_no_room_for_17_gib_in_the_profile_whose_name_says_18() -> None:
    h200 = BY_KEY["h200-141gb"]
    room = {one.name: usable_memory(h200, one) for one in plain_profiles(h200)}
    found = [next((name for name, gib in room.items() if gib >= least), None) for least in (16.0, 17.0, 33.0, 70.0)]
    assert found == ["1g.18gb", "1g.35gb", "3g.71gb", None]


def test_a_card_that_shares_its_memory_with_the_cpu_has_none_that_anybody_could_tell() -> None:
    thor = BY_KEY["thor-igpu"]
    assert {usable_memory(thor, profile) for profile in thor.profiles} == {0.0}


@pytest.mark.parametrize("card", DIVIDED, ids=key)
def test_of_plain_profiles_a_larger_one_has_nothing_less(card: Card) -> None:
    found = plain_profiles(card)
    for small, large in pairwise(found):
        assert usable_memory(card, small) <= usable_memory(card, large)
        assert small.slices <= large.slices
        assert large.is_plain
