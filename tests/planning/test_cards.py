"""The card table finds a card by every name it goes by, and says what is known of it; test_mig_facts.py compares it with NVIDIA's documents."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from hack.cards import mig_mode_needs_reset
from tests.build import H100, NOW, make_gpu, make_gpunode, make_node, make_policy, make_snapshot, make_spec
from tests.yamlfiles import read_yaml

from gpusharing.planning.gpus.cards import (
    CARDS,
    Card,
    Profile,
    bare_product,
    find_card,
    find_doubt,
    memory_of,
    plain_profiles,
    usable_memory,
)
from gpusharing.planning.report.status import policy_status
from gpusharing.planning.rollout import plan_rollout
from gpusharing.planning.snapshot.views import GpuView
from gpusharing.planning.vocabulary.reasons import Reason

BY_KEY = {card.key: card for card in CARDS}
REAL_NODES: dict[str, dict[str, Any]] = yaml.safe_load(Path(__file__).with_name("real-nodes.yaml").read_text())


def test_keys_products_and_device_ids_are_unique() -> None:
    for values in (
        [c.key for c in CARDS],
        [product for c in CARDS for product in c.products],
        [device_id for c in CARDS for device_id in c.pci_device_ids],
    ):
        assert len(values) == len(set(values))


def test_every_card_is_found_by_each_of_its_names() -> None:
    for c in CARDS:
        for product in c.products:
            assert find_card(product) is c
            assert find_card(product.replace(" ", "-") + "-SHARED") is c


@pytest.mark.parametrize(
    "label",
    [
        "NVIDIA H100 80GB HBM3",
        "NVIDIA-H100-80GB-HBM3",
        "NVIDIA-H100-80GB-HBM3-SHARED",
        "NVIDIA-H100-80GB-HBM3-MIG-1g.10gb",
        "NVIDIA-H100-80GB-HBM3-MIG-1g.10gb.me-SHARED",
        "NVIDIA-H100-80GB-HBM3-MIG-1g.10gb-me",
        "NVIDIA-H100-80GB-HBM3-MIG-INVALID",
    ],
)
def test_gfd_suffixes_do_not_hide_the_product(label: str) -> None:
    assert bare_product(label) == "NVIDIA-H100-80GB-HBM3"
    assert find_card(label) is BY_KEY["h100-80gb"]


@pytest.mark.parametrize("name", ["NVIDIA H100", "H100", "NVIDIA-H100-80GB", "", "NVIDIA H200 NVL 2"])
def test_a_name_that_nvml_does_not_print_is_unknown(name: str) -> None:
    assert find_card(name) is None


def test_0x2339_is_not_an_h200_and_h200_has_two_ids() -> None:
    assert not any("0x233910DE" in c.pci_device_ids for c in CARDS)
    assert BY_KEY["h200-141gb"].pci_device_ids == ("0x233510DE", "0x233B10DE")


def test_the_plugin_takes_48_mps_clients_from_compute_capability_7_5_on() -> None:
    limits = {c.key: c.mps_max_clients for c in CARDS}
    assert {key for key, limit in limits.items() if limit == 16} == {"v100-16gb", "v100-32gb", "p100-16gb"}
    assert limits["t4"] == 48
    assert set(limits.values()) == {16, 48}


def test_only_ampere_needs_a_reset_to_change_the_mig_mode() -> None:
    needs_reset = {c.key for c in CARDS if mig_mode_needs_reset(c)}
    assert needs_reset >= {"a30", "a100-40gb", "a100-80gb", "pg506-96gb"}
    assert needs_reset.isdisjoint({"a10", "a40", "h100-80gb", "b200-180gb", "rtx-pro-6000-blackwell"})


def test_a_profile_id_means_different_profiles_on_different_cards() -> None:
    named_14 = {c.key: next((p.name for p in c.profiles if p.profile_id == 14), None) for c in CARDS}
    assert (named_14["a30"], named_14["h100-80gb"]) == ("1g.6gb", "2g.20gb")
    assert named_14["rtx-pro-6000-blackwell"] == "1g.24gb"


@pytest.mark.parametrize("c", [c for c in CARDS if c.profiles], ids=lambda c: c.key)
def test_placements_and_ids_are_present_exactly_when_their_source_is_known(c: Card) -> None:
    for profile in c.profiles:
        assert bool(profile.starts) == (profile.size > 0) == (c.source.placements != "unknown")
        assert (profile.profile_id is not None) == (c.source.ids != "unknown")
        assert len(profile.starts) >= profile.max_count or not profile.starts
    assert c.source.cite


def test_unverified_placements_say_so() -> None:
    family = {c.key for c in CARDS if c.profiles and c.source.placements == "family"}
    assert {"h200-141gb", "b200-180gb", "gb200-186gb", "b300-269gb", "gb300-278gb"} <= family


@pytest.mark.parametrize("seen", REAL_NODES.values(), ids=REAL_NODES)
def test_a_real_node_shows_the_card_that_the_table_has(seen: dict[str, Any]) -> None:
    found = find_card(seen["product"])
    assert found is not None
    assert seen["product"] in found.products
    assert seen["pci"] in found.pci_device_ids
    assert found.memory_mib == seen["memory_mib"]
    assert bool(found.profiles) == (seen["mig"] != "N/A")
    assert found.source.card == "real"


def test_a_card_that_only_a_configuration_names_is_not_called_seen() -> None:
    seen = {seen["product"] for seen in REAL_NODES.values()}
    only = {c.key for c in CARDS if c.source.names == "cfg" and not seen.intersection(c.products)}
    assert {c.key for c in CARDS if c.source.card == "cfg"} == only >= {"gh200-144gb", "b300-269gb"}


# --- what a card reports of its MIG profiles against our table: the card wins, and the difference is named ----------

CARD = find_card(H100)
assert CARD is not None
PROFILES = CARD.profiles


def with_profile(name: str, **fields: object) -> tuple[Profile, ...]:
    return tuple(replace(p, **fields) if p.name == name else p for p in PROFILES)  # type: ignore[arg-type]  # any field


DIFFERENT: dict[str, tuple[tuple[Profile, ...], str]] = {
    "an unknown profile": (
        (*PROFILES, replace(PROFILES[0], name="5g.50gb")),
        "5g.50gb, which the operator's table does not have",
    ),
    "other places": (
        with_profile("3g.40gb", starts=(0,)),
        "3g.40gb at 0 (size 4), but the operator's table has 0, 4 (size 4)",
    ),
    "another size": (with_profile("3g.40gb", size=3), "3g.40gb at 0, 4 (size 3)"),
    "another number": (with_profile("1g.10gb", max_count=8), "at most 8 of 1g.10gb, but the operator's table has 7"),
}


@pytest.mark.parametrize(("listed", "told"), DIFFERENT.values(), ids=DIFFERENT.keys())
def test_the_card_contradicts_the_table(listed: tuple[Profile, ...], told: str) -> None:
    doubt = find_doubt(H100, listed)
    assert doubt is not None
    assert doubt.reason is Reason.CARD_DIFFERS
    assert told in doubt.message


def test_a_driver_that_lists_no_profiles_leaves_them_to_the_table() -> None:
    doubt = find_doubt(H100, ())
    assert doubt is not None
    assert doubt.reason is Reason.PROFILES_FROM_TABLE


def test_what_one_of_them_leaves_open_is_no_contradiction() -> None:
    assert find_doubt(H100, PROFILES[:2]) is None
    assert find_doubt(H100, with_profile("3g.40gb", starts=())) is None
    assert find_doubt("NVIDIA X9000", PROFILES) is None
    assert find_doubt("NVIDIA L40S", ()) is None


def test_no_card_contradicts_itself_and_one_that_counts_wrong_is_not_asked() -> None:
    named = [card for card in CARDS if card.profiles and card.products]
    assert [card.key for card in named if find_doubt(card.products[0], card.profiles)] == []
    wrong = next(card for card in CARDS if card.nvml_counts_wrong)
    assert find_doubt(wrong.products[0], tuple(replace(p, max_count=99) for p in wrong.profiles)) is None


def accepted(gpu: GpuView, mode: str) -> tuple[str, str, str]:
    policy = replace(make_policy(), spec=make_spec(mode))
    snapshot = make_snapshot([make_node()], [policy], gpunodes=[make_gpunode(gpus=[gpu])])
    status = policy_status(policy, plan_rollout(snapshot, NOW), snapshot, {}, NOW)
    row = next(row for row in status["conditions"] if row["type"] == "Accepted")
    return row["status"], row["reason"], row["message"]


def test_the_policy_tells_it_where_mig_is_wanted_and_is_accepted_all_the_same() -> None:
    doubt = find_doubt(H100, DIFFERENT["an unknown profile"][0])
    status, reason, message = accepted(replace(make_gpu(), doubt=doubt), "MIG")
    assert (status, reason) == ("True", "CardDiffers")
    assert "5g.50gb" in message
    assert accepted(replace(make_gpu(), doubt=doubt), "Full")[:2] == ("True", "Valid")
    assert accepted(make_gpu(), "MIG")[:2] == ("True", "Valid")


# --- how much memory an instance has, against the captures, and which profile is large enough -------------------------

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
