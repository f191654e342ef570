"""mig-parted's file: its grammar, and what an entry means for a node (docs/design/nvidia.md#a10)."""

import json

import pytest
from hack.sim import migparted, plugin
from hack.sim.gpu import SimulatedGPUs
from hack.sim.migparted import ConfigError, applied, entries, generated, mode_applied, parse, targets
from tests.foreign.corpus import ForeignFile, load
from tests.sim.build import A100, H100, L40S, make_reading

from gpusharing.planning.gpus.geometry import normalize

SEVEN = normalize({"1g.10gb": 7})


def file(items: str, name: str = "x") -> str:
    return f"version: v1\nmig-configs:\n  {name}: [{items}]\n"


def test_every_named_configuration_of_the_hardware_is_generated() -> None:
    found = parse(generated(make_reading(None, None)))
    assert {"all-disabled", "all-enabled", "all-balanced", "all-1g.10gb", "all-1g.10gb.me"} <= found.keys()
    (balanced,) = found["all-balanced"]
    assert balanced.target == normalize({"1g.10gb": 2, "2g.20gb": 1, "3g.40gb": 1})


def test_a_card_without_mig_generates_nothing() -> None:
    assert generated(make_reading(None, product=L40S)) == ""


def test_mixed_cards_get_a_device_filter() -> None:
    reading = SimulatedGPUs("n", [H100, A100]).read()
    wanted = targets(entries(generated(reading), "all-1g.10gb"), reading.gpus)
    assert [(gpu.index, target) for gpu, target in wanted] == [(0, SEVEN), (1, normalize({"1g.10gb": 4}))]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        pytest.param("mig-configs: [", "not YAML", id="not YAML"),
        pytest.param("version: v2\nmig-configs: {}", "version", id="another version"),
        pytest.param("version: v1\nextra: 1\nmig-configs: {}", "nothing else", id="an unknown field"),
        pytest.param(file("{devices: all, mig-enabled: true}"), "compulsory", id="no mig-devices"),
        pytest.param(file("{devices: some, mig-enabled: false}"), "devices is", id="devices is a word"),
        pytest.param(file("{devices: all, mig-enabled: false, a: 1}"), "item has", id="an unknown item field"),
        pytest.param(file("{devices: all, mig-enabled: 1}"), "true or false", id="mig-enabled is a number"),
        pytest.param(file("{devices: all, mig-enabled: true, mig-devices: {1g: 1}}"), "bad mig-d", id="a bad profile"),
        pytest.param(file("{device-filter: 5, devices: all, mig-enabled: false}"), "device-f", id="a bad filter"),
        pytest.param("mig-configs: {x: [{devices: all, mig-enabled: false}]}", "unknown version", id="no version"),
        pytest.param(file("{devices: all, mig-enabled: false}", "y"), "no mig-config named", id="an unknown name"),
    ],
)
def test_a_bad_file_or_name_is_told(text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        entries(text, "x")


def test_a_configuration_called_off_becomes_false() -> None:
    assert parse(file("{devices: all, mig-enabled: false}", "off")).keys() == {"false"}


def test_an_assert_fails_when_a_gpu_is_not_covered() -> None:
    gpus = make_reading(None, None).gpus
    assert applied(entries(file("{devices: [0, 1], mig-enabled: false}"), "x"), gpus)
    assert not applied(entries(file("{devices: [0], mig-enabled: false}"), "x"), gpus)
    assert not mode_applied(entries(file('{device-filter: "0x2339", devices: all, mig-enabled: false}'), "x"), gpus)


def test_a_gpu_without_mig_is_fine_under_all_and_an_error_by_name() -> None:
    gpus = make_reading(None, product=L40S).gpus
    on = "mig-enabled: true, mig-devices: {1g.10gb: 7}"
    assert applied(entries(file(f"{{devices: all, {on}}}"), "x"), gpus)
    with pytest.raises(ConfigError, match="no MIG"):
        applied(entries(file(f"{{devices: [0], {on}}}"), "x"), gpus)


MIG, PLUGIN = load("mig-parted"), load("device-plugin")


@pytest.mark.parametrize("file", MIG.values(), ids=MIG.keys())
def test_the_simulated_mig_parted_reads_a_file_as_the_real_one_does(file: ForeignFile) -> None:
    if file.error:
        with pytest.raises(migparted.ConfigError):
            migparted.parse(file.text)
        return
    found = migparted.parse(file.text)
    assert found.keys() == (file.read or {}).keys()
    for name, rows in (file.read or {}).items():
        assert [(entry.filters, entry.devices, entry.target) for entry in found[name]] == [
            (
                _ids(row.get("device-filter")),
                None if row.get("devices") == "all" else frozenset(row.get("devices", ())),
                normalize(row.get("mig-devices", {})) if row.get("mig-enabled") else None,
            )
            for row in rows
        ]


def _ids(device_filter: str | list[str] | None) -> tuple[str, ...]:
    ids = [device_filter] if isinstance(device_filter, str) else device_filter or []
    return tuple(migparted.normal_id(item) for item in ids)


@pytest.mark.parametrize("file", PLUGIN.values(), ids=PLUGIN.keys())
def test_the_simulated_device_plugin_reads_a_configuration_as_the_real_one_does(file: ForeignFile) -> None:
    if file.error:
        with pytest.raises(plugin.PluginError):
            plugin.parse_config(file.text, "none")
        return
    strategy, sharing = file.read.get("flags", {}).get("migStrategy") or "none", file.read.get("sharing", {})
    known = strategy in plugin.STRATEGIES
    found = plugin.parse_config(file.text, "" if known else "none")
    block = sharing.get("mps") or sharing.get("timeSlicing")
    assert found.mig_strategy == (strategy if known else "none")
    assert (found.replicas is None) == (block is None)
    if found.replicas is not None:
        assert found.sharing == ("mps" if "mps" in sharing else "time-slicing")
        assert dict(found.replicas) == {row["name"]: row["replicas"] for row in block["resources"]}
        assert found.rename == block.get("renameByDefault", False)


def test_the_corpus_is_text_that_a_configmap_can_hold() -> None:
    for file in (*MIG.values(), *PLUGIN.values()):
        assert json.loads(json.dumps(file.text)) == file.text
        assert not (file.error and file.read), file.name
