"""The readers of the SIMULATED programs, held against the answers of NVIDIA's own parsers."""

import json

import pytest
from hack.sim import migparted, plugin
from tests.foreign.corpus import ForeignFile, load

from gpusharing.planning.gpus.geometry import normalise

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
        assert [(entry.devices, entry.target) for entry in found[name]] == [
            (
                None if row.get("devices") == "all" else frozenset(row.get("devices", ())),
                normalise(row.get("mig-devices", {})) if row.get("mig-enabled") else None,
            )
            for row in rows
        ]


@pytest.mark.parametrize("file", PLUGIN.values(), ids=PLUGIN.keys())
def test_the_simulated_device_plugin_reads_a_configuration_as_the_real_one_does(file: ForeignFile) -> None:
    if file.error:
        with pytest.raises(plugin.PluginError):
            plugin.read(file.text)
        return
    found, sharing = plugin.read(file.text), file.read.get("sharing", {})
    block = sharing.get("mps") or sharing.get("timeSlicing")
    assert found.strategy == file.read.get("flags", {}).get("migStrategy", "")
    assert (found.shared is None) == (block is None)
    if found.shared is not None:
        assert found.shared.kind == ("mps" if "mps" in sharing else "time-slicing")
        assert dict(found.shared.replicas) == {row["name"]: row["replicas"] for row in block["resources"]}
        assert found.shared.rename == block.get("renameByDefault", False)


def test_the_corpus_is_text_that_a_configmap_can_hold() -> None:
    for file in (*MIG.values(), *PLUGIN.values()):
        assert json.loads(json.dumps(file.text)) == file.text
        assert not (file.error and file.read), file.name
