"""The readers of the SIMULATED programs, held against the answers of NVIDIA's own parsers."""

import json

import pytest
from hack.sim import migparted, plugin
from tests.foreign.corpus import ForeignFile, load

from gpusharing.planning.gpus.geometry import normalize

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
