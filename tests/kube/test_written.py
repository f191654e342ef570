"""Our two ConfigMaps: when their entries were written, whose they are, what they held before."""

import json
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from tests.build import NOW, at

from gpusharing.api.names import ANNOTATION_WRITTEN
from gpusharing.kube.sources import ConfigMapView
from gpusharing.kube.stackreader import OurConfigMaps, parse_repairs, parse_written
from gpusharing.planning.snapshot.nvidia import MpsRepairs
from gpusharing.planning.wanted import migfile
from gpusharing.planning.wanted.pluginconfig import key_for
from gpusharing.planning.wanted.target import known_times


def test_the_time_of_every_entry_is_read() -> None:
    text = json.dumps({"pool-b-3f9c2a1": "2026-11-20T10:00:00Z", "full-1": "2026-11-20T11:00:00+01:00"})
    ten = datetime(2026, 11, 20, 10, tzinfo=UTC)
    assert parse_written(text) == {"pool-b-3f9c2a1": ten, "full-1": ten}


@pytest.mark.parametrize("text", ["", "{}", "null", "[]", "no JSON", '{"a": "yesterday"}', '{"a": 7}'])
def test_what_cannot_be_read_counts_as_never_stamped(text: str) -> None:
    assert parse_written(text) == {}


def test_a_time_without_a_zone_counts_as_never_stamped() -> None:
    assert parse_written('{"a": "2026-11-20T10:00:00", "b": "2026-11-20T10:00:00Z"}').keys() == {"b"}


REPAIRS = {
    '{"count": 2, "plugin": "v0.20.0", "state": "uid/1"}': MpsRepairs(2, "v0.20.0", "uid/1"),
    '{"count": 2, "plugin": "v0.20.0", "state": "uid/1", "pending": true}': MpsRepairs(
        2, "v0.20.0", "uid/1", pending=True
    ),
    '{"count": Infinity, "plugin": "v0.20.0", "state": "uid/1"}': MpsRepairs(0, "v0.20.0", "uid/1"),
    '{"count": NaN}': MpsRepairs(),
    '{"count": 3, "plugin": "v0.20.0", "state": 7, "pending": 7}': MpsRepairs(3, "v0.20.0"),
    "": MpsRepairs(),
    "[]": MpsRepairs(),
    "no JSON": MpsRepairs(),
}


@pytest.mark.parametrize(("text", "repairs"), REPAIRS.items())
def test_the_repairs_of_the_mps_daemon_are_read_as_far_as_the_annotation_can_be(text: str, repairs: MpsRepairs) -> None:
    assert parse_repairs(text) == repairs


TEXT = "version: v1\n"
KEY = key_for("pool-b", TEXT)
ENTRY: migfile.Entry = [{"devices": "all", "mig-enabled": False}]
NAME = key_for("pool-b", migfile.entry_text(ENTRY))


def plugin_map(labelled: bool = False, uid: str = "1", written: str = "", **data: str) -> ConfigMapView:
    """The device-plugin ConfigMap; a name with `_` stands for one with `-`."""
    annotations = {ANNOTATION_WRITTEN: written} if written else {}
    found = {key.replace("_", "-"): text for key, text in data.items()}
    return ConfigMapView(found, annotations, uid, labelled)


def test_what_is_named_after_its_content_is_remembered_and_nothing_else() -> None:
    ours = OurConfigMaps()
    mig = ConfigMapView({"config.yaml": migfile.render({NAME: ENTRY, "all-disabled": ENTRY})}, {}, "2", True)
    ours.read(plugin_map(True, theirs="x", **{KEY: TEXT}), mig)
    ours.read(plugin_map(True, **{KEY: "edited"}), None)
    assert ours.seen_plugin_configs == {KEY: TEXT}
    assert ours.seen_mig_entries == {NAME: ENTRY}


def test_each_of_the_two_is_read_again_though_the_other_one_stayed_the_same() -> None:
    ours, plugin, first, second = (OurConfigMaps(), plugin_map(uid="1"), plugin_map(uid="2"), plugin_map(uid="3"))
    ours.read(plugin, first)
    ours.read(plugin, second)
    assert (ours.plugin, ours.mig) == (plugin, second)
    ours.read(first, second)
    assert (ours.plugin, ours.mig) == (first, second)


def test_one_of_somebody_else_has_entries_and_never_had_a_mark_of_ours() -> None:
    full = ConfigMapView({"theirs": "x"}, {}, "1")
    assert full.is_foreign
    assert not replace(full, ours=True).is_foreign
    assert not replace(full, data={}).is_foreign


def test_only_so_many_are_remembered_the_newest_ones() -> None:
    ours, texts = OurConfigMaps(), [f"version: v1 #{number}" for number in range(510)]
    for text in texts:
        ours.read(plugin_map(True, **{key_for("p", text): text}), None)
    assert list(ours.seen_plugin_configs.values()) == texts[10:]


def test_a_time_that_is_yet_to_come_counts_as_never_stamped() -> None:
    ours = OurConfigMaps()
    times = {"a": at(-1).isoformat(), "b": at(0).isoformat(), "c": at(60).isoformat()}
    ours.read(plugin_map(True, written=json.dumps(times)), None)
    assert known_times(ours.times, NOW).keys() == {"a", "b"}
