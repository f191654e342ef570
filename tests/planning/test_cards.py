"""The card table finds a card by every name it goes by, and says what is known of it; test_mig_facts.py compares it with NVIDIA's documents."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hack.cards import mig_mode_needs_reset

from gpusharing.planning.gpus.cards import CARDS, Card, bare_product, find_card

BY_KEY = {card.key: card for card in CARDS}
REAL_NODES: dict[str, dict[str, Any]] = yaml.safe_load(Path(__file__).with_name("real-nodes.yaml").read_text())


def card(key: str) -> Card:
    return BY_KEY[key]


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
    assert find_card(label) is card("h100-80gb")


@pytest.mark.parametrize("name", ["NVIDIA H100", "H100", "NVIDIA-H100-80GB", "", "NVIDIA H200 NVL 2"])
def test_a_name_that_nvml_does_not_print_is_unknown(name: str) -> None:
    assert find_card(name) is None


def test_0x2339_is_not_an_h200_and_h200_has_two_ids() -> None:
    assert not any("0x233910DE" in c.pci_device_ids for c in CARDS)
    assert card("h200-141gb").pci_device_ids == ("0x233510DE", "0x233B10DE")


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
