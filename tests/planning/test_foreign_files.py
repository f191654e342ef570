"""The product's readers of files that NVIDIA's programs read, held against the answers of NVIDIA's own parsers."""

from typing import Any

import pytest
from tests.foreign.corpus import ForeignFile, load, set_only

from gpusharing.planning.wanted.migfile import parse_admin
from gpusharing.planning.wanted.pluginconfig import PluginConfig, Sharing, find_flaws, parse

MIG, PLUGIN = load("mig-parted"), load("device-plugin")


@pytest.mark.parametrize("file", MIG.values(), ids=MIG.keys())
def test_of_an_admins_file_the_operator_reads_what_mig_parted_reads_and_leaves_out_what_it_refuses(
    file: ForeignFile,
) -> None:
    entries, problem = parse_admin(file.text)
    same = not problem and set_only(_in_gos_words(entries)) == (file.read or {})
    alike = bool(problem) if file.error else same
    assert alike != bool(file.ours), (entries, problem, file.ours)


def _in_gos_words(entries: Any) -> Any:
    return {name: [dict(row) for row in rows] for name, rows in entries.items()}


@pytest.mark.parametrize("file", PLUGIN.values(), ids=PLUGIN.keys())
def test_the_operator_reads_a_configuration_as_the_device_plugin_does(file: ForeignFile) -> None:
    found = parse(file.text)
    alike = found is None if file.error else found == _meaning(file.read)
    assert alike != bool(file.ours), (found, file.ours)
    assert (found is None) == any(flaw.refused for flaw in find_flaws(file.text))


def _meaning(read: Any) -> PluginConfig:
    strategy = read.get("flags", {}).get("migStrategy", "none")
    sharing = read.get("sharing", {})
    kind, block = ("mps", "mps") if "mps" in sharing else ("time-slicing", "timeSlicing")
    if block not in sharing:
        return PluginConfig(strategy)
    shared = sharing[block]
    rows = tuple(sorted((row["name"], row["replicas"]) for row in shared["resources"]))
    rename, fails = (shared.get(key, False) for key in ("renameByDefault", "failRequestsGreaterThanOne"))
    return PluginConfig(strategy, Sharing(rows, rename, fails, kind))  # type: ignore[arg-type]  # one of the two


FLAWS = {
    "one replica in the second row": (
        "sharing.timeSlicing.resources[1].replicas: the device plugin rejects 1: it expects a whole number of at least"
        " 2, without quotes"
    ),
    "replicas in quotes": 'sharing.timeSlicing.resources[0].replicas: the device plugin rejects "4": it expects a',
    "no replicas in a row": "sharing.timeSlicing.resources[0].replicas: the device plugin needs this field",
    "no resources": "sharing.timeSlicing.resources: the device plugin needs this field",
    "time-slicing that is null": "sharing.timeSlicing.resources: the device plugin needs this field",
    "a switch in quotes": 'sharing.timeSlicing.renameByDefault: the device plugin rejects "true": it expects true',
    "a tab that indents": (
        "the device plugin cannot read it: it is not YAML (line 3: found character '\\t' that cannot start any token)"
    ),
    "a strategy that there is not": 'flags.migStrategy: the device plugin rejects "both": it expects none, single',
    "a nested text in place of a map": 'sharing: the device plugin rejects "timeSlicing:',
    "another version": 'version: the device plugin rejects "v2": it expects v1',
    "a switch of the plugin as a number": "flags.plugin.passDeviceSpecs: the device plugin rejects 1: it expects true",
}
IGNORED = {
    "a switch under flags, where it does nothing": ("flags.renameByDefault", "sharing.timeSlicing"),
    "time-slicing at the top, where it does nothing": ("timeSlicing", "sharing"),
    "a strategy under sharing, where it does nothing": ("sharing.migStrategy", "flags"),
    "resources under sharing, where they do nothing": ("sharing.resources", "sharing.timeSlicing"),
    "replicas under time-slicing, where they do nothing": ("sharing.timeSlicing.replicas", "its resources"),
    "a misspelt block": ("sharing.timeSlicng", ""),
    "an unknown key in a row": ("sharing.timeSlicing.resources[0].count", ""),
}
"""Field, and where it would belong."""
TOLD = FLAWS | {
    name: f"{field}: the device plugin ignores this field{place and f', which belongs to {place}'}"
    for name, (field, place) in IGNORED.items()
}


@pytest.mark.parametrize(("name", "text"), TOLD.items())
def test_what_the_device_plugin_refuses_or_ignores_is_told_by_field(name: str, text: str) -> None:
    first = find_flaws(PLUGIN[name].text)[0]
    assert first.text.startswith(text)
    assert first.refused == (name in FLAWS)


@pytest.mark.parametrize("name", ["all flags", "blocks in other letters", "resources of their own", "an empty text"])
def test_of_a_configuration_that_is_as_it_should_be_nothing_is_said(name: str) -> None:
    assert find_flaws(PLUGIN[name].text) == ()
