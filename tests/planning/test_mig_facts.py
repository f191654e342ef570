"""The card table and the named layouts against mig-facts.yaml, the oracle; mig-differences.yaml lists what differs.
The facts were compiled from NVIDIA's documents and from captures (sources at the top of the file); cards.py was written from them, so a value that was copied wrong, or changed later, shows here."""

import re
from collections.abc import Iterator, Mapping
from fractions import Fraction
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import pytest
from tests.planning.placing import brute_force, every_multiset
from tests.yamlfiles import read_yaml

from gpusharing.planning.gpus.cards import CARDS, Card, Profile, find_card, shares
from gpusharing.planning.gpus.geometry import (
    Layout,
    find_misfit,
    legal_layouts,
    maximal_layouts,
    normalize,
)

FACTS: dict[str, Any] = read_yaml(Path(__file__).with_name("mig-facts.yaml"))
DIFFERENCES: dict[str, Any] = read_yaml(Path(__file__).with_name("mig-differences.yaml"))
MODELS: dict[str, Any] = FACTS["models"]
MODEL_OF: dict[str, str] = DIFFERENCES["model_of"]
NAMED: dict[str, Any] = FACTS["named_layouts"]
MIG_CARDS = [card for card in CARDS if card.profiles]
BY_KEY = {card.key: card for card in CARDS}
Fields = dict[str, Any]


def key(card: Card) -> str:
    return card.key


def model_of(card: Card) -> str:
    model = MODEL_OF.get(card.key, card.key)
    assert model in MODELS, f"tests/planning/mig-facts.yaml has no model {model}"
    return model


@cache
def documented(model: str) -> tuple[Profile, ...]:
    found = []
    for name, row in MODELS[model]["profiles"].items():
        placements = row.get("placements", {"starts": [], "size": 0})
        starts, size = tuple(placements["starts"]), placements["size"]
        found.append(Profile(name, starts, size, row["max"], row["g"], row["gb"], row.get("id")))
    return tuple(found)


def legal(model: str) -> frozenset[Layout]:
    """Every legal layout of a model by the facts alone; where placements are unknown, profiles are not mixed."""
    profiles = documented(model)
    if MODELS[model]["memory_slices"] is None:
        one = {((p.name, count),) for p in profiles for count in range(1, p.max_count + 1)}
        return frozenset({(), *one})
    return brute_force(profiles)


def told(card: Card) -> Fields:
    """What the facts say about a card, in the form of cards.py."""
    facts = MODELS[model_of(card)]
    capability = re.search(r"\((\d+)\.(\d+)\)", facts["arch"])
    status = facts["status"]
    return {
        "products": facts["product_names"],
        "pci_device_ids": list(facts["pci_device_ids"]),
        "compute_capability": [int(part) for part in capability.groups()] if capability else None,
        "memory_gb": facts["memory_gb"],
        "memory_mib": facts.get("memory_total_mib_seen"),
        "compute_slices": facts["compute_slices"],
        "memory_slices": facts["memory_slices"],
        "status": [status["names_and_counts"], status["ids"], status["placements"]],
        "counts_wrong": any("wrong InstanceCount" in note for note in facts.get("notes", [])),
    }


def ours(card: Card) -> Fields:
    """The same from cards.py."""
    return {
        "products": list(card.products),
        "pci_device_ids": list(card.pci_device_ids),
        "compute_capability": list(card.compute_capability),
        "memory_gb": card.memory_gb,
        "memory_mib": card.memory_mib,
        "compute_slices": max(p.slices for p in card.profiles),
        "memory_slices": max((max(p.starts) + p.size for p in card.profiles if p.starts), default=None),
        "status": [card.source.names, card.source.ids, card.source.placements],
        "counts_wrong": card.nvml_counts_wrong,
    }


def unordered(value: Any) -> Any:
    """Names and ids stand for a set; everything else as it is."""
    return sorted(value) if isinstance(value, list) and all(isinstance(v, str) for v in value) else value


# --- cards ----------------------------------------------------------------------------------------------------


def test_every_model_of_the_facts_has_a_card_and_every_card_with_mig_a_model() -> None:
    assert {model_of(card) for card in MIG_CARDS} == MODELS.keys(), (
        "a card with MIG gets a model, with its sources, in tests/planning/mig-facts.yaml"
    )
    assert MODELS.keys() <= BY_KEY.keys()
    assert MODEL_OF.keys() <= {card.key for card in MIG_CARDS} - MODELS.keys()
    assert {row["card"] for row in DIFFERENCES["fields"]} <= {card.key for card in MIG_CARDS}


@pytest.mark.parametrize("card", MIG_CARDS, ids=key)
def test_a_card_has_the_profiles_of_the_facts_with_counts_ids_and_placements(card: Card) -> None:
    by_name = {profile.name: profile for profile in card.profiles}
    assert len(by_name) == len(card.profiles)
    assert by_name == {profile.name: profile for profile in documented(model_of(card))}, (
        "cards.py or tests/planning/mig-facts.yaml was copied wrong: see the sources at the top of the latter"
    )


@pytest.mark.parametrize("card", MIG_CARDS, ids=key)
def test_a_card_differs_from_the_facts_only_where_that_is_listed_with_a_reason(card: Card) -> None:
    listed = {row["field"]: row for row in DIFFERENCES["fields"] if row["card"] == card.key}
    assert all(row["why"] for row in listed.values())
    facts, table = told(card), ours(card)
    if card.key in MODEL_OF and facts["memory_mib"] is not None:
        facts["memory_mib"] = None  # seen on the model itself, not on this relative of it
    differing = {name for name in facts if name != "status" and unordered(facts[name]) != unordered(table[name])}
    differing |= {"status"} if facts["status"] != table["status"] else set()
    assert differing == listed.keys(), "cards.py and mig-facts.yaml differ; mig-differences.yaml may say why"
    for name, row in listed.items():
        assert (row["facts"], row["ours"]) == (facts[name], table[name])


def test_a_card_that_the_facts_call_not_mig_capable_has_no_profiles() -> None:
    for row in FACTS["not_mig_capable"]:
        if "pci" in row:
            card = find_card(row["name"])
            assert card is not None
            assert (card.pci_device_ids, card.memory_mib) == ((row["pci"],), row["memory_total_mib"])
            assert card.profiles == ()
    words = " ".join(row["name"] for row in FACTS["not_mig_capable"])
    without = {card.key.split("-")[-1 if "rtx" in card.key else 0].upper() for card in CARDS if not card.profiles}
    unnamed = {word for word in without if not re.search(rf"\b{word}\b", words)}
    assert not unnamed, "a card without MIG is named under not_mig_capable of tests/planning/mig-facts.yaml"


# --- layouts --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS)
def test_every_multiset_of_every_model_is_checked_as_brute_force_over_the_facts_says(model: str) -> None:
    profiles, truth = documented(model), legal(model)
    checked = 0
    for layout in every_multiset(profiles):
        assert (not find_misfit(layout, BY_KEY[model].profiles)) == (layout in truth), layout
        checked += 1
    assert checked == prod(profile.max_count + 1 for profile in profiles)
    assert truth == set(legal_layouts(BY_KEY[model].profiles))
    assert truth <= set(every_multiset(profiles))


@pytest.mark.parametrize("model", MODELS)
def test_more_than_the_most_of_a_profile_is_refused_in_any_company(model: str) -> None:
    for layout in legal(model):
        counts = dict(layout)
        for profile in documented(model):
            too_many = normalize(counts | {profile.name: profile.max_count + 1})
            assert "the card has room for at most" in find_misfit(too_many, BY_KEY[model].profiles)


@pytest.mark.parametrize(("family", "model"), [
    ("seven_slice", "h100-80gb"), ("four_slice_a30", "a30"), ("four_slice_rtx_pro_6000", "rtx-pro-6000-blackwell"),
])  # fmt: skip
def test_the_maximal_layouts_are_those_of_the_facts(family: str, model: str) -> None:
    facts = FACTS["families"][family]
    base = [p for p in documented(model) if re.fullmatch(r"\d+g\.\d+gb", p.name)]
    short = {p.name: _short(p, base) for p in base}
    single = [p for p in base if short[p.name] != "1g-2xmem"]
    assert _shortened(single, short) == _read(facts["maximal_layouts"])
    doubled = facts.get("maximal_layouts_with_double_memory_1g", [])
    assert _shortened(base, short) == _read(facts["maximal_layouts"]) | _read(doubled)
    assert MODELS[model]["family"] == family


def _short(profile: Profile, base: list[Profile]) -> str:
    """`1g`, or `1g-2xmem` for the one with double memory."""
    smallest = min(p.memory_gb for p in base if p.slices == profile.slices)
    return f"{profile.slices}g" + ("" if profile.memory_gb == smallest else "-2xmem")


def _shortened(profiles: list[Profile], short: Mapping[str, str]) -> set[frozenset[tuple[str, int]]]:
    return {frozenset((short[name], n) for name, n in layout) for layout in maximal_layouts(profiles)}


def _read(texts: list[str]) -> set[frozenset[tuple[str, int]]]:
    parts = [[item.strip().partition("x") for item in text.split("+")] for text in texts]
    return {frozenset((name, int(count)) for count, _, name in items) for items in parts}


# --- named layouts --------------------------------------------------------------------------------------------


def plain() -> dict[str, Layout]:
    """The facts' named layouts without a device filter, those with instances."""
    return {
        name: normalize(row) for name, row in NAMED["plain"].items() if not {"mig_enabled", "mig_devices"} & row.keys()
    }


def filtered() -> Iterator[tuple[str, list[str], Layout]]:
    for name, entries in NAMED["filtered"].items():
        for entry in entries:
            yield name, entry["device_filter"], normalize(entry["mig_devices"])


@pytest.mark.parametrize("card", MIG_CARDS, ids=key)
def test_every_named_layout_is_checked_right_on_every_model(card: Card) -> None:
    offered = {profile.name for profile in documented(model_of(card))}
    for name, layout in (*plain().items(), *((name, layout) for name, _, layout in filtered())):
        misfit = find_misfit(layout, card.profiles)
        assert (not misfit) == (layout in legal(model_of(card))), name
        unknown = {profile for profile, _ in layout} - offered
        lacks = "has no profile" in misfit
        assert lacks == bool(unknown), name


def test_every_named_layout_is_legal_on_its_own_model() -> None:
    somewhere = {layout for model in MODELS for layout in legal(model)}
    assert {name for name, layout in plain().items() if layout not in somewhere} == DIFFERENCES["nowhere"].keys()
    for name, devices, layout in filtered():
        owners = [card for card in MIG_CARDS if set(card.pci_device_ids) & set(devices)]
        assert {device for card in owners for device in card.pci_device_ids} >= set(devices), name
        for card in owners:
            assert not find_misfit(layout, card.profiles), (name, card.key)


# --- the part of a GPU that an instance is -----------------------------------------------------------------------------

H100 = (7, 8)
EXTENTS = {"1g": (1, 1), "1g.20gb": (1, 2), "2g": (2, 2), "3g": (3, 4), "4g": (4, 4)}


@pytest.mark.parametrize(
    ("layout", "told"),
    [
        (["1g"] * 7, [Fraction(1, 7)] * 7),
        (["1g.20gb"] * 4, [Fraction(1, 4)] * 4),
        (["3g", "3g"], [Fraction(1, 2)] * 2),
        (["2g"] * 3, [Fraction(2, 7)] * 3),
        (["4g", "3g"], [Fraction(8, 15), Fraction(7, 15)]),
        ([], []),
    ],
    ids=lambda value: " ".join(map(str, value)) or "nothing",
)
def test_the_larger_of_compute_and_memory_counts_and_no_gpu_is_billed_more_than_once(
    layout: list[str], told: list[Fraction]
) -> None:
    assert list(shares([EXTENTS[name] for name in layout], H100)) == told


def test_an_instance_whose_size_nobody_knows_has_no_share() -> None:
    assert shares([(0, 0), (3, 4)], H100) == (Fraction(0), Fraction(1, 2))
    assert shares([(1, 1)], (0, 0)) == (Fraction(0),)


@pytest.mark.parametrize("card", [card for card in CARDS if card.profiles], ids=lambda card: card.key)
def test_no_layout_of_any_card_is_more_than_its_gpu_and_none_is_free(card: Card) -> None:
    whole = (max(p.slices for p in card.profiles), max(p.size for p in card.profiles))
    profiles = {profile.name: (profile.slices, profile.size) for profile in card.profiles}
    for layout in maximal_layouts(card.profiles):
        parts = shares([profiles[name] for name, count in layout for _ in range(count)], whole)
        assert 0 < sum(parts) <= 1
        assert min(parts) > 0
