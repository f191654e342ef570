"""The files of NVIDIA's programs: device-plugin configurations and the mig-parted file, what we render, what we read of others, and how no text of theirs can harm us."""

import sys

import pytest
import yaml
from tests.build import H100, make_gpu, make_spec
from tests.configs import make_shared
from tests.kube.damage import ODD_YAML

from gpusharing.planning.gpus.geometry import Layout
from gpusharing.planning.wanted import migfile
from gpusharing.planning.wanted.pluginconfig import (
    MAX_DEPTH,
    PluginConfig,
    Sharing,
    Unreadable,
    dump_yaml,
    find_line,
    key_for,
    parse,
    parse_yaml,
    render,
)

SHARED = make_shared(4, fails=True)

BOTH_WAYS = {
    "whole GPUs": PluginConfig(),
    "MIG instances under their own names": PluginConfig("mixed"),
    "MIG instances under the name of a GPU": PluginConfig("single"),
    "four shares of each GPU that refuse requests for two": SHARED,
    "clients of MPS": make_shared(4, fails=True, mps=True),
    "two shares of each small instance": PluginConfig("mixed", Sharing((("nvidia.com/mig-1g.10gb", 2),))),
    "shares under the name nvidia.com/gpu.shared": make_shared(2, rename=True),
}


@pytest.mark.parametrize("config", BOTH_WAYS.values(), ids=BOTH_WAYS.keys())
def test_what_we_render_we_read_back(config: PluginConfig) -> None:
    assert parse(render(config)) == config


def test_the_text_is_nvidias_format_version_1() -> None:
    assert yaml.safe_load(render(SHARED)) == {
        "version": "v1",
        "flags": {"migStrategy": "none"},
        "sharing": {
            "timeSlicing": {
                "renameByDefault": False,
                "failRequestsGreaterThanOne": True,
                "resources": [{"name": "nvidia.com/gpu", "replicas": 4}],
            }
        },
    }


FOREIGN: dict[str, tuple[str, PluginConfig | None]] = {
    "an empty map means whole GPUs": ("{}", PluginConfig()),
    "so does an empty text": ("", PluginConfig()),
    "a resource name without a domain is nvidia.com": (
        "sharing: {timeSlicing: {resources: [{name: gpu, replicas: 3}]}}",
        PluginConfig("none", Sharing((("nvidia.com/gpu", 3),))),
    ),
    "time-slicing of nothing is refused by the plugin": ("sharing: {timeSlicing: {resources: []}}", None),
    "null blocks count as absent": ("{flags: null, sharing: null}", PluginConfig()),
    "MPS refuses requests for two unless told otherwise": (
        "sharing: {mps: {resources: [{name: gpu, replicas: 3}]}}",
        make_shared(3, fails=True, mps=True),
    ),
    "with MPS and time-slicing the plugin takes MPS": (
        "sharing: {timeSlicing: {resources: [{name: gpu, replicas: 2}]},"
        " mps: {failRequestsGreaterThanOne: false, resources: [{name: gpu, replicas: 3}]}}",
        make_shared(3, mps=True),
    ),
    "an unknown strategy is not understood": ("flags: {migStrategy: both}", None),
    "broken YAML is not understood": ("flags: [", None),
    "a list is not understood": ("[]", None),
    "flags that are no map are not understood": ("flags: [mixed]", None),
}


@pytest.mark.parametrize(("text", "config"), FOREIGN.values(), ids=FOREIGN.keys())
def test_reading_somebody_elses_configuration(text: str, config: PluginConfig | None) -> None:
    assert parse(text) == config


EFFECT = {
    "the strategy makes no difference without MIG instances": (
        PluginConfig("single"),
        PluginConfig("none"),
        False,
        True,
    ),
    "the strategy makes a difference with them": (PluginConfig("single"), PluginConfig("mixed"), True, False),
    "the number of shares always does": (SHARED, make_shared(5, fails=True), False, False),
    "so does refusing requests for two": (SHARED, make_shared(4), False, False),
}


ROWS = Sharing(tuple((f"nvidia.com/{name}", count) for name, count in (("gpu", 8), ("mig-1g.5gb", 2))))
"""As in NVIDIA's documentation: one configuration for whole GPUs and for instances."""


@pytest.mark.parametrize(("name", "count"), ROWS.replicas)
def test_rows_for_resources_that_a_node_lacks_do_nothing_there(name: str, count: int) -> None:
    found = PluginConfig("mixed", ROWS).on({name, "nvidia.com/mig-7g.40gb"})
    assert found == PluginConfig("mixed", Sharing(((name, count),)))


def test_a_configuration_without_a_row_for_a_node_shares_nothing_there() -> None:
    assert PluginConfig("mixed", ROWS).on({"nvidia.com/mig-7g.40gb"}) == PluginConfig("mixed")


@pytest.mark.parametrize(("one", "other", "with_mig", "same"), EFFECT.values(), ids=EFFECT.keys())
def test_two_configurations_serve_the_same(one: PluginConfig, other: PluginConfig, with_mig: bool, same: bool) -> None:
    assert one.same_effect(other, with_mig=with_mig) is same
    assert other.same_effect(one, with_mig=with_mig) is same


def test_a_key_follows_the_content_and_fits_a_label_value() -> None:
    assert key_for("pool-b", "x") == key_for("pool-b", "x")
    assert key_for("pool-b", "x") != key_for("pool-b", "y")
    long = key_for("p" * 54 + "." + "q" * 200, "x")
    assert len(long) <= 63
    assert long.startswith("p" * 54 + "-")


# --- YAML of others ----------------------------------------------------------------------------------------------------


def test_what_is_yaml_is_read() -> None:
    assert parse_yaml("") is None
    assert parse_yaml("a: [1, {b: c}]") == {"a": [1, {"b": "c"}]}


@pytest.mark.parametrize("text", ODD_YAML, ids=lambda text: text[:24].encode("unicode_escape").decode())
def test_whatever_the_text_is_no_other_error_is_raised(text: str) -> None:
    assert 1 <= find_line(text, "a.b[0]") <= max(1, len(text.splitlines()))
    try:
        parse_yaml(text)
    except Unreadable as error:
        assert str(error).startswith(("it is ", "it contains "))  # noqa: PT017 - what else it may be is the question


def test_depth_and_size_are_bounded_also_where_aliases_repeat() -> None:
    assert parse_yaml("[" * (MAX_DEPTH - 1) + "]" * (MAX_DEPTH - 1)) is not None
    with pytest.raises(Unreadable, match="nested more than 20 levels"):
        parse_yaml("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1))
    with pytest.raises(Unreadable, match="more than 100000 values"):
        parse_yaml(ODD_YAML[-1])


def test_a_few_lines_that_merge_keys_into_millions_are_refused_before_they_fill_the_memory() -> None:
    lines = ["a0: &a0 {k: 1, l: 2}"]
    for level in range(1, 7):
        lines.append(f"a{level}: &a{level} {{<<: [{', '.join([f'*a{level - 1}'] * 9)}]}}")
    assert parse_yaml("\n".join(lines[:4])) == {f"a{level}": {"k": 1, "l": 2} for level in range(4)}
    with pytest.raises(Unreadable, match="more than 100000 values"):
        parse_yaml("\n".join(lines))


@pytest.mark.parametrize("text", ["[" * 3000, "a: " + "[" * 100_000, "{a: " * 1500], ids=["[", "a: [", "{a: "])
def test_brackets_without_end_do_not_hold_the_process_up(text: str) -> None:
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    sys.setprofile(count)
    try:
        with pytest.raises(Unreadable, match="nested more than 20 levels"):
            parse_yaml(text)
    finally:
        sys.setprofile(None)
    assert calls < 10_000, "of functions, and returns; PyYAML alone comes to more than ten times that, and takes 0.9 s"


LINES = """\
# a comment
data:
  config.yaml: {a: 1}
  config: b

rows:
- name: x
- name: y
  1g.10gb: 7
twice: 1
twice: 2
"""


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("data", 2),
        ("data.config.yaml", 3),
        ("data.config.yaml.a", 3),
        ("data.config", 4),
        ("data.missing", 2),
        ("rows[1]", 8),
        ("rows[1].1g.10gb", 9),
        ("rows[2].name", 6),
        ("rows.name", 6),
        ("nowhere", 1),
        ("", 1),
    ],
)
def test_a_value_is_found_by_its_path_and_a_missing_one_by_what_should_hold_it(path: str, line: int) -> None:
    assert find_line(LINES, path) == line


def test_a_text_that_is_not_yaml_has_its_line_too() -> None:
    assert find_line("a: 1\nb: [\nc: 2\n", "a") == 3
    assert find_line("a: 1\nb: {", "a") == 2
    assert find_line("", "a") == 1


@pytest.mark.parametrize("text", ["a: .inf", "a: -.INF", "a: .NaN", "a: !!set {b}", "a: !!binary aGk="])
def test_what_json_cannot_hold_is_refused(text: str) -> None:
    with pytest.raises(Unreadable, match=r"it contains |could not determine a constructor for the tag"):
        parse_yaml(text)


def test_a_number_that_is_too_large_is_a_text_as_in_go() -> None:
    assert parse_yaml("a: 1e999") == {"a": "1e999"}
    assert parse_yaml("a: 2026-11-27") == {"a": "2026-11-27"}


def test_a_value_that_occurs_twice_is_written_twice_without_an_anchor() -> None:
    rows = [{"devices": "all"}]
    assert dump_yaml({"a": rows, "b": rows}) == "a:\n- devices: all\nb:\n- devices: all\n"


# --- the mig-parted file: our entries, anybody's entries, and what a name means on one node's GPUs ---------------------

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


MEANINGS: dict[str, tuple[str, object]] = {
    "all GPUs alike": ("[{devices: all, mig-enabled: true, mig-devices: {3g.40gb: 2}}]", (HALVES, HALVES)),
    "a later row wins for the GPU that it names": (
        "[{devices: all, mig-enabled: false}, {devices: [1], mig-enabled: true, mig-devices: {3g.40gb: 2}}]",
        (None, HALVES)),
    "MIG on without instances is an empty layout": (
        "[{devices: all, mig-enabled: true, mig-devices: {}}]", ((), ())),
    "a row for the device id of the card": (
        "[{device-filter: ['0x233010DE'], devices: all, mig-enabled: false}]", (None, None)),
    "a filter in lower case and with a subsystem id": (
        "[{device-filter: '0x233010de:0x16c110de', devices: all, mig-enabled: false}]", (None, None)),
    "a row for another card covers nothing": (
        "[{device-filter: '0x20B010DE', devices: all, mig-enabled: false}]", "it does not cover GPU 0, 1"),
    "an uncovered GPU makes the entry useless, because mig-parted's assert would never succeed": (
        "[{devices: [0], mig-enabled: false}]", "it does not cover GPU 1"),
}  # fmt: skip


@pytest.mark.parametrize(("rows", "meaning"), MEANINGS.values(), ids=MEANINGS.keys())
def test_what_an_entry_makes_of_two_h100(rows: str, meaning: object) -> None:
    assert migfile.resolve(yaml.safe_load(rows), TWO) == meaning


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
