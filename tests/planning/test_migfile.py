"""The mig-parted file: our entries, anybody's entries, and what a name means on one node's GPUs."""

import pytest
import yaml
from tests.build import H100, make_gpu, make_spec

from gpusharing.planning.gpus.geometry import Layout
from gpusharing.planning.wanted import migfile

A30, A100, T4, H200 = "NVIDIA A30", "NVIDIA A100-SXM4-80GB", "Tesla T4", "NVIDIA H200"
TWO = (make_gpu(0), make_gpu(1))
HALVES: Layout = (("3g.40gb", 2),)


def entry(*rows: dict[str, object]) -> migfile.Entry:
    return [dict(row) for row in rows]


def test_our_layouts_become_rows_and_a_gpu_without_profiles_has_mig_off() -> None:
    layouts = [{"devices": [0], "profiles": {"3g.40gb": 2}}, {"devices": [1], "profiles": {}}]
    mig = make_spec(mig={"layouts": layouts}).mig
    assert mig is not None
    assert mig.layouts is not None
    assert migfile.entry_of(mig.layouts) == [
        {"devices": [0], "mig-enabled": True, "mig-devices": {"3g.40gb": 2}},
        {"devices": [1], "mig-enabled": False},
    ]


def test_a_rendered_file_reads_back_in_the_order_of_names() -> None:
    entries = {"b": entry({"devices": "all", "mig-enabled": False}), "a": entry({"devices": [0], "mig-enabled": False})}
    text = migfile.render(entries)
    assert migfile.parse(text) == entries
    assert yaml.safe_load(text)["version"] == "v1"
    assert list(yaml.safe_load(text)["mig-configs"]) == ["a", "b"]


DAMAGED = {
    "an empty text": "",
    "broken YAML": "mig-configs: [",
    "a list": "[]",
    "no entries": "{version: v1}",
    "entries that are no map": "mig-configs: [all]",
    "an entry that is no list": "mig-configs: {x: {devices: all}}",
    "rows that are no maps": "mig-configs: {x: [all]}",
}


@pytest.mark.parametrize("text", DAMAGED.values(), ids=DAMAGED.keys())
def test_a_damaged_file_has_no_entries(text: str) -> None:
    assert migfile.parse(text) == {}


REFUSED = {
    "no YAML": ("mig-configs: [", "it is not YAML"),
    "no map of entries": ("version: v1", "it has no mig-configs map"),
    "an entry that is no list": ("{x: {devices: all}}", "entry x: it is not a list of maps"),
    "a field of its own": ("{x: [{devices: all, mig-enabled: false, gpus: 2}]}", "entry x: unknown field gpus"),
    "a field of its own before devices that are none": (
        "{x: [{devices: some, mig-enabled: maybe, gpus: 2}]}", "entry x: unknown field gpus"),
    "devices by a word": ("{x: [{devices: some, mig-enabled: false}]}", "devices is neither"),
    "devices that are no numbers": ("{x: [{devices: [one], mig-enabled: false}]}", "devices is neither"),
    "no mig-enabled": ("{x: [{devices: all}]}", "mig-enabled is neither true nor false"),
    "no mig-devices": ("{x: [{devices: all, mig-enabled: true}]}", "mig-enabled needs mig-devices"),
    "MIG off with instances": (
        "{x: [{devices: all, mig-enabled: false, mig-devices: {1g.10gb: 1}}]}", "mig-devices needs mig-enabled"),
    "no profile": (
        "{x: [{devices: all, mig-enabled: true, mig-devices: {half: 2}}]}", "half: 2 in mig-devices is not a profile"),
    "no count": (
        "{x: [{devices: all, mig-enabled: true, mig-devices: {1g.10gb: all}}]}", "1g.10gb: all in mig-devices"),
    "a PCI device id without quotes, which YAML makes a number of": (
        "{x: [{devices: all, mig-enabled: false, device-filter: 0x233010DE}]}",
        "device-filter 590352606 is not a PCI device id in quotes, for example '0x233010DE'"),
    "a negative count": (
        "{x: [{devices: all, mig-enabled: true, mig-devices: {1g.10gb: -1}}]}", "1g.10gb: -1 in mig-devices"),
    "an entry without rows": ("{x: []}", "entry x: it is an empty list"),
    "an entry that is null": ("{x: }", "entry x: it is not a list of maps"),
    "counts that are all 0": (
        "{x: [{devices: all, mig-enabled: true, mig-devices: {1g.10gb: 0, 3g.40gb: 0}}]}",
        "entry x: all counts in mig-devices are 0"),
    "attributes with plus and minus": (
        "{x: [{devices: all, mig-enabled: true, mig-devices: {1g.24gb+gfx-me: 1}}]}",
        "1g.24gb+gfx-me: 1 in mig-dev"),
    "an attribute without a name": (
        "{x: [{devices: all, mig-enabled: true, mig-devices: {\"1g.24gb+,\": 1}}]}", "1g.24gb+,: 1 in mig-devices"),
    "an attribute twice": (
        "{x: [{devices: all, mig-enabled: true, mig-devices: {\"1g.24gb+me,gfx,me\": 1}}]}",
        "me,gfx,me: 1 in mig-dev"),
    "a name that is longer than any, whose search for repetitions would take minutes": (
        "{x: [{devices: all, mig-enabled: true, mig-devices: {1g.24gb+" + "a" * 100 + ": 1}}]}", "is not a profile"),
    "a list of instances": (
        "{x: [{devices: all, mig-enabled: false, mig-devices: []}]}", "mig-devices is not a map of profiles"),
    "a filter that is a map": (
        "{x: [{devices: all, mig-enabled: false, device-filter: {}}]}", "device-filter {} is not a PCI device id"),
    "a version that nobody knows": (
        "version: v2\nmig-configs: {x: []}", "its version is v2, but mig-parted reads only v1"),
    "a key that is null": ("{~: [{devices: all, mig-enabled: false}]}", "it has None as a key"),
    "a date": ("{x: 2026-11-20}", "entry x: it is not a list of maps"),
    "a date of a month that is none": ("{x: 2026-13-45}", "entry x: it is not a list of maps"),
    "lists in lists without end": ("{x: " + "[" * 2000 + "]" * 2000 + "}", "nested more than 20 levels"),
    "more levels than any configuration has": ("{x: " + "[" * 30 + "]" * 30 + "}", "nested more than 20 levels deep"),
    "a list that holds itself": ("{x: &a [*a]}", "nested more than 20 levels deep"),
    "no PCI device id": (
        "{x: [{devices: all, mig-enabled: false, device-filter: H100}]}", "device-filter H100 is not a PCI device id"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "why"), REFUSED.values(), ids=REFUSED.keys())
def test_what_mig_parted_would_refuse_stays_out_of_the_merged_file(text: str, why: str) -> None:
    text = f"mig-configs: {text}" if text.startswith("{") else text
    entries, problem = migfile.parse_admin(text)
    assert why in problem
    assert entries == {}


def test_what_mig_parted_takes_is_merged_as_it_stands() -> None:
    text = (
        'mig-configs: {1: [{devices: [0], device-filter: "0x233010DE", mig-enabled: true, mig-devices:'
        " {1c.3g.40gb: 1, 1g.10gb+me: 1}}], off: [{devices: all, mig-enabled: no}],"
        " all-enabled: [{devices: all, mig-enabled: true, mig-devices: {}}]}"
    )
    entries, problem = migfile.parse_admin(text)
    assert problem == ""
    assert entries.keys() == {"1", "false", "all-enabled"}
    assert migfile.parse_admin("") == ({}, "")


MEANINGS: dict[str, tuple[migfile.Entry, object]] = {
    "all GPUs alike": (
        entry({"devices": "all", "mig-enabled": True, "mig-devices": {"3g.40gb": 2}}),
        (HALVES, HALVES),
    ),
    "a later row wins for the GPU that it names": (
        entry(
            {"devices": "all", "mig-enabled": False},
            {"devices": [1], "mig-enabled": True, "mig-devices": {"3g.40gb": 2}},
        ),
        (None, HALVES),
    ),
    "MIG on without instances is an empty layout": (
        entry({"devices": "all", "mig-enabled": True, "mig-devices": {}}),
        ((), ()),
    ),
    "a row for the device id of the card": (
        entry({"device-filter": ["0x233010DE"], "devices": "all", "mig-enabled": False}),
        (None, None),
    ),
    "a filter in lower case and with a subsystem id": (
        entry({"device-filter": "0x233010de:0x16c110de", "devices": "all", "mig-enabled": False}),
        (None, None),
    ),
    "a row for another card covers nothing": (
        entry({"device-filter": "0x20B010DE", "devices": "all", "mig-enabled": False}),
        "it does not cover GPU 0, 1",
    ),
    "an uncovered GPU makes the entry useless, because mig-parted's assert would never succeed": (
        entry({"devices": [0], "mig-enabled": False}),
        "it does not cover GPU 1",
    ),
}


@pytest.mark.parametrize(("rows", "meaning"), MEANINGS.values(), ids=MEANINGS.keys())
def test_what_an_entry_makes_of_two_h100(rows: migfile.Entry, meaning: object) -> None:
    assert migfile.resolve(rows, TWO) == meaning


def test_a_generated_name_means_what_it_says_on_each_card() -> None:
    assert migfile.well_known(TWO, "all-3g.40gb") == (HALVES, HALVES)
    assert migfile.well_known(TWO, "all-disabled") == (None, None)
    mixed = (make_gpu(0), make_gpu(1, product=H200))
    balanced = migfile.well_known(mixed, "all-balanced")
    assert balanced == (
        (("3g.40gb", 1), ("2g.20gb", 1), ("1g.10gb", 2)),
        (("3g.71gb", 1), ("2g.35gb", 1), ("1g.18gb", 2)),
    )


def test_a_name_that_one_card_lacks_is_refused_with_the_names_that_it_has() -> None:
    found = migfile.well_known((make_gpu(0), make_gpu(1, product=H200)), "all-1g.10gb")
    assert isinstance(found, str)
    assert found.startswith("NVIDIA H200 has only all-1g.18gb, ")


def test_a_card_without_known_profiles_has_no_names_to_list() -> None:
    found = migfile.well_known((make_gpu(0), make_gpu(1, product=T4)), "all-3g.40gb")
    assert found == f"no MIG profiles of {T4} are known"


def test_one_card_model_needs_no_device_filter() -> None:
    entries = migfile.well_known_entries({H100: [make_gpu()]})
    assert not any("device-filter" in row for rows in entries.values() for row in rows)
    assert migfile.resolve(entries["all-3g.40gb"], TWO) == (HALVES, HALVES)


def test_two_card_models_share_a_name_by_their_device_ids() -> None:
    models = {H100: [make_gpu()], A30: [make_gpu(product=A30)]}
    entries = migfile.well_known_entries(models)
    assert len(entries["all-balanced"]) == 2
    node = (make_gpu(0), make_gpu(1, product=A30))
    assert migfile.resolve(entries["all-balanced"], node) == migfile.well_known(node, "all-balanced")
    assert entries[migfile.ALL_DISABLED] == [{"devices": "all", "mig-enabled": False}]


def test_two_card_models_for_which_a_name_means_the_same_still_name_their_device_ids_for_the_rest() -> None:
    models = {H100: [make_gpu()], T4: [make_gpu(product=T4)]}
    entries = migfile.well_known_entries(models)
    assert all("device-filter" in row for row in entries["all-3g.40gb"])
    assert migfile.resolve(entries[migfile.ALL_DISABLED], (make_gpu(product=T4),)) == (None,)


def test_every_generated_name_of_every_two_models_together_means_what_it_means_alone() -> None:
    models = {product: [make_gpu(product=product)] for product in (H100, H200, A100, A30)}
    entries = migfile.well_known_entries(models)
    for product, gpus in models.items():
        for name, rows in entries.items():
            if not isinstance(alone := migfile.well_known(gpus, name), str):
                assert migfile.resolve(rows, gpus) == alone, (product, name)


@pytest.mark.parametrize("name", ["y", "n", "1e3", "0o10", "off", "1_000", "0x10", "=", "2026-11-20", "~", "1:30"])
def test_an_entry_keeps_its_name_whatever_go_would_take_the_bare_name_for(name: str) -> None:
    """PyYAML writes y, 1e3 and 0o10 without quotes, and NVIDIA's programs read true, 1000 and 8."""
    text = migfile.render({name: entry({"devices": "all", "mig-enabled": False})})
    assert migfile.parse(text).keys() == {name}
    assert f"'{name}':" in text
