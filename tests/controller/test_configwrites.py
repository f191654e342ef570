"""Bodies for our two ConfigMaps: what changes and nothing else, with the moment of writing of every entry."""

import json
from datetime import datetime

from tests.build import NOW, at, make_stack

from gpusharing.controller.configwrites import mig_patch, plugin_patch
from gpusharing.kube.client import JSON
from gpusharing.kube.written import ANNOTATION_WRITTEN
from gpusharing.planning import migfile
from gpusharing.planning.actions import WriteConfig

OLD, NEW = "version: v1\nflags: {migStrategy: none}\n", "version: v1\nflags: {migStrategy: mixed}\n"
HALVES = [{"devices": "all", "mig-enabled": True, "mig-devices": {"3g.40gb": 2}}]
WHOLE = [{"devices": "all", "mig-enabled": False}]


def stamps(body: JSON | None) -> dict[str, datetime]:
    """The annotation that tells when each entry was written."""
    assert body is not None
    written: dict[str, str] = json.loads(body["metadata"]["annotations"][ANNOTATION_WRITTEN])
    return {key: datetime.fromisoformat(stamp) for key, stamp in written.items()}


def test_a_new_entry_is_added_with_the_present_time_and_the_old_one_keeps_its_own() -> None:
    stack = make_stack(plugin_configs={"a": OLD}, written={"a": at(-500)})
    body = plugin_patch(WriteConfig({"a": OLD, "b": NEW}, ""), stack, NOW)
    assert body is not None
    assert body["data"] == {"b": NEW}
    assert stamps(body) == {"a": at(-500), "b": NOW}


def test_an_entry_that_nobody_names_any_more_is_removed_by_name() -> None:
    stack = make_stack(plugin_configs={"a": OLD, "b": NEW}, written={"a": at(-9), "b": at(-5)})
    body = plugin_patch(WriteConfig({"b": NEW}, ""), stack, NOW)
    assert body is not None
    assert body["data"] == {"a": None}
    assert stamps(body) == {"b": at(-5)}


def test_an_entry_that_somebody_edited_is_put_right() -> None:
    stack = make_stack(plugin_configs={"a": "edited"})
    body = plugin_patch(WriteConfig({"a": OLD}, ""), stack, NOW)
    assert body is not None
    assert body["data"] == {"a": OLD}


def test_what_is_right_is_not_written() -> None:
    file = migfile.render({"halves": HALVES})
    stack = make_stack(plugin_configs={"a": OLD}, mig_file=file)
    assert plugin_patch(WriteConfig({"a": OLD}, file), stack, NOW) is None
    assert mig_patch(WriteConfig({"a": OLD}, file), stack, NOW) is None


def test_the_plugins_config_map_is_made_even_when_nothing_is_in_it() -> None:
    """NVIDIA's pods cannot start while ClusterPolicy names a ConfigMap that is not there."""
    absent = make_stack(plugin_configs={}, plugin_map_exists=False)
    assert plugin_patch(WriteConfig({}, ""), absent, NOW) is not None
    assert plugin_patch(WriteConfig({}, ""), make_stack(plugin_configs={}), NOW) is None


def test_an_entry_that_was_there_before_times_were_kept_stays_without_one() -> None:
    """It counts as written long ago: nobody waits for it to reach the nodes."""
    stack = make_stack(plugin_configs={"a": OLD}, written={})
    assert stamps(plugin_patch(WriteConfig({"a": OLD, "b": NEW}, ""), stack, NOW)) == {"b": NOW}


def test_the_mig_file_is_written_whole_and_only_what_means_something_else_gets_a_new_time() -> None:
    before = migfile.render({"all-disabled": WHOLE, "mine": HALVES, "site": HALVES})
    after = migfile.render({"all-disabled": WHOLE, "site": WHOLE, "new": HALVES})
    stack = make_stack(mig_file=before, written={"all-disabled": at(-100), "mine": at(-90), "site": at(-80)})
    body = mig_patch(WriteConfig({}, after), stack, NOW)
    assert body is not None
    assert body["data"] == {"config.yaml": after}
    assert stamps(body) == {"all-disabled": at(-100), "site": NOW, "new": NOW}
