"""What is written to our two ConfigMaps, and to DeviceClasses: what changes and nothing else. And the test of the scheduler for DeviceTaintRules, against a SIMULATED scheduler."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hack.embedded import Embedded, embedded
from hack.sim.fakecluster import FakeCluster
from hack.sim.fakefaults import EVER
from tests.build import NOW, at, make_stack
from tests.controller.executing import Executing
from tests.fakes.virtualtime import virtually
from tests.planning.test_deviceclasses import plan

from gpusharing.api.names import ANNOTATION_WRITTEN
from gpusharing.controller.sharedwrites import SharedWrites, mig_patch, plugin_patch
from gpusharing.controller.tainttest import IGNORED, VALID, TaintTest
from gpusharing.kube.client import CONFIG_MAPS, DEVICE_CLASSES, DEVICE_TAINT_RULES, JSON, PODS, REPLICA_SETS
from gpusharing.kube.dra import device_class, device_class_view
from gpusharing.kube.errors import AlreadyExists, Conflict, HeldBack, Invalid, KubeError, Unavailable, Undone
from gpusharing.kube.sources import Sources
from gpusharing.kube.sourcesettings import SourceSettings
from gpusharing.planning.snapshot.actions import WriteClasses, WriteConfig
from gpusharing.planning.snapshot.memory import LASTING
from gpusharing.planning.snapshot.nvidia import TAINT_TEST, DeviceClassView
from gpusharing.planning.wanted import migfile
from gpusharing.planning.wanted.objects import wanted_class

OLD, NEW = "version: v1\nflags: {migStrategy: none}\n", "version: v1\nflags: {migStrategy: mixed}\n"
HALVES = [{"devices": "all", "mig-enabled": True, "mig-devices": {"3g.40gb": 2}}]
WHOLE = [{"devices": "all", "mig-enabled": False}]


def stamps(body: JSON | None) -> dict[str, datetime]:
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


def test_an_entry_that_somebody_edited_is_put_right_and_is_on_its_way_to_the_nodes_again() -> None:
    stack = make_stack(plugin_configs={"a": "edited", "b": NEW}, written={"a": at(-9), "b": at(-5)})
    body = plugin_patch(WriteConfig({"a": OLD, "b": NEW}, ""), stack, NOW)
    assert body is not None
    assert body["data"] == {"a": OLD}
    assert stamps(body) == {"a": NOW, "b": at(-5)}


def test_a_mig_file_that_mig_parted_would_refuse_is_on_its_way_to_the_nodes_again_as_a_whole() -> None:
    file = migfile.render({"all-disabled": WHOLE})
    edited = make_stack(mig_file=file + "mine: 1\n", written={"all-disabled": at(-100)})
    body = mig_patch(WriteConfig({}, file), edited, NOW)
    assert body is not None
    assert (body["data"], stamps(body)) == ({"config.yaml": file}, {"all-disabled": NOW})


def test_a_label_that_somebody_took_off_is_put_on_and_no_entry_is_written() -> None:
    file = migfile.render({"all-disabled": WHOLE})
    stack = make_stack(plugin_configs={"a": OLD}, mig_file=file, marked=False)
    stack = replace(stack, written={"a": at(-9), "all-disabled": at(-8)})
    for body in (
        plugin_patch(WriteConfig({"a": OLD}, file), stack, NOW),
        mig_patch(WriteConfig({"a": OLD}, file), stack, NOW),
    ):
        assert body is not None
        assert body["data"] == {}
        assert body["metadata"]["labels"] == {"app.kubernetes.io/managed-by": "gpusharing-operator"}


def test_configmaps_that_are_as_planned_get_no_patch() -> None:
    file = migfile.render({"halves": HALVES})
    times = {"a": at(-9), "halves": at(-8)}
    stack = make_stack(plugin_configs={"a": OLD}, mig_file=file, written=times)
    assert plugin_patch(WriteConfig({"a": OLD}, file), stack, NOW) is None
    assert mig_patch(WriteConfig({"a": OLD}, file), stack, NOW) is None


def test_the_plugins_config_map_is_made_even_when_nothing_is_in_it() -> None:
    """NVIDIA's pods cannot start while ClusterPolicy names a ConfigMap that is not there."""
    absent = make_stack(plugin_configs={}, plugin_map_exists=False)
    assert plugin_patch(WriteConfig({}, ""), absent, NOW) is not None
    assert plugin_patch(WriteConfig({}, ""), make_stack(plugin_configs={}), NOW) is None


def test_an_entry_whose_time_somebody_removed_counts_as_written_now() -> None:
    """Nobody knows how long it has been there, and a label must not point at what did not arrive."""
    stack = make_stack(plugin_configs={"a": OLD}, written={})
    assert stamps(plugin_patch(WriteConfig({"a": OLD, "b": NEW}, ""), stack, NOW)) == {"a": NOW, "b": NOW}


def test_the_mig_file_is_written_whole_and_only_what_means_something_else_gets_a_new_time() -> None:
    before = migfile.render({"all-disabled": WHOLE, "mine": HALVES, "site": HALVES})
    after = migfile.render({"all-disabled": WHOLE, "site": WHOLE, "new": HALVES})
    stack = make_stack(mig_file=before, written={"all-disabled": at(-100), "mine": at(-90), "site": at(-80)})
    body = mig_patch(WriteConfig({}, after), stack, NOW)
    assert body is not None
    assert body["data"] == {"config.yaml": after}
    assert stamps(body) == {"all-disabled": at(-100), "site": NOW, "new": NOW}


async def test_a_write_of_a_config_map_that_fails_once_is_tried_again_and_told_only_when_it_lasts() -> None:
    stage = Executing()
    stage.cluster.faults.fail("create", CONFIG_MAPS, Unavailable("502"), times=2 * LASTING)
    write = WriteConfig({"k": "version: v1"}, "")
    for failures in range(1, LASTING + 1):
        await stage.run(shared=(write,))
        assert "502" in stage.failures()["our ConfigMaps"]
        assert stage.executor.calls.write_error == (
            "ConfigMap gpu-operator/gpusharing-device-plugin: 502" if failures == LASTING else ""
        )
        stage.seconds += 300.0
    await stage.run(shared=(write,))
    assert stage.executor.calls.write_error == ""


async def test_a_write_of_a_config_map_that_was_not_sent_because_the_server_asked_to_wait_is_no_error() -> None:
    stage = Executing()
    stage.cluster.faults.fail("create", CONFIG_MAPS, HeldBack("the API server asked to wait", 9.0))
    write = WriteConfig({"k": "version: v1"}, "")
    outcome = await stage.run(shared=(write,))
    assert (outcome.done, stage.executor.calls.write_error) == (0, "")
    assert (stage.told, stage.failures()) == ([("WriteConfig", "HeldBack")], {})
    assert (await stage.run(shared=(write,))).done == 1


@pytest.mark.parametrize("reason", [Undone("somebody changes it"), Unavailable("502")])
async def test_a_config_map_that_cannot_be_written_does_not_hold_up_the_other_one(reason: KubeError) -> None:
    """NVIDIA's programs read them one without the other."""
    stage = Executing()
    stage.cluster.faults.fail("create", CONFIG_MAPS, reason)
    write = WriteConfig({"k": "version: v1"}, migfile.render({"halves": HALVES}))
    await stage.run(shared=(write,))
    (written,) = stage.cluster.objects(CONFIG_MAPS)
    assert written["metadata"]["name"] == "gpusharing-mig-parted"
    assert "ConfigMap gpu-operator/gpusharing-device-plugin: " in stage.failures()["our ConfigMaps"]


async def test_the_config_map_that_cannot_be_written_is_the_one_that_is_named() -> None:
    stage = Executing()
    write = WriteConfig({"k": "version: v1"}, migfile.render({"halves": HALVES}))
    stage.cluster.faults.fail("create", CONFIG_MAPS, Unavailable("502"), times=9, name="gpusharing-mig-parted")
    await stage.run(shared=(write,))
    assert "ConfigMap gpu-operator/gpusharing-mig-parted: " in stage.failures()["our ConfigMaps"]


ROOT = Path(__file__).resolve().parent.parent.parent
SMALL = wanted_class("1g.10gb")


def present(cluster: FakeCluster) -> dict[str, DeviceClassView]:
    return {one["metadata"]["name"]: device_class_view(one) for one in cluster.objects(DEVICE_CLASSES)}


def writer(cluster: FakeCluster) -> SharedWrites:
    client = cluster.client("operator")
    return SharedWrites(client, Sources(client, SourceSettings(), lambda: None), lambda: NOW)


async def carry_out(cluster: FakeCluster, *profiles: str) -> WriteClasses | None:
    """Plan for these profiles, and write; returns the plan."""
    writes = plan(list(profiles), list(present(cluster).values()))
    if writes is not None:
        await writer(cluster).write_classes(writes)
    return writes


async def test_what_is_written_is_right_and_goes_when_nobody_uses_it() -> None:
    cluster = FakeCluster()
    cluster.add(DEVICE_CLASSES, {"metadata": {"name": "gpu.nvidia.com"}, "spec": {}})
    await carry_out(cluster, "1g.10gb", "3g.40gb")
    assert (await carry_out(cluster, "1g.10gb", "3g.40gb")) is None
    await carry_out(cluster, "1g.10gb")
    assert set(present(cluster)) == {"gpu.nvidia.com", SMALL.name}
    await carry_out(cluster)
    assert set(present(cluster)) == {"gpu.nvidia.com"}


async def test_what_was_written_is_known_before_an_event_tells_of_it() -> None:
    cluster = FakeCluster()
    by_operator = writer(cluster)
    await by_operator.write_classes(WriteClasses(create=(SMALL,)))
    assert by_operator.sources.device_classes.items == present(cluster)


@pytest.mark.parametrize(
    "change",
    [
        {"selectors": [{"cel": {"expression": "true"}}]},
        {"extendedResourceName": "example.com/x"},
        {"config": [{"opaque": {"driver": "gpu.nvidia.com", "parameters": {}}}]},
    ],
    ids=["another selector", "another extended resource", "a configuration"],
)
async def test_what_somebody_changed_is_put_right(change: dict[str, Any]) -> None:
    cluster = FakeCluster()
    await carry_out(cluster, "1g.10gb")
    cluster.patch(DEVICE_CLASSES, SMALL.name, {"spec": change})
    writes = await carry_out(cluster, "1g.10gb")
    assert writes is not None
    assert writes.correct
    assert (await carry_out(cluster, "1g.10gb")) is None


async def test_what_changed_or_came_since_it_was_read_is_left_to_the_next_pass() -> None:
    cluster = FakeCluster()
    await carry_out(cluster, "1g.10gb")
    with pytest.raises(AlreadyExists):
        await writer(cluster).write_classes(WriteClasses(create=(SMALL,)))
    before = present(cluster)[SMALL.name]
    cluster.patch(DEVICE_CLASSES, SMALL.name, {"metadata": {"labels": {"example.com/a": "b"}}})
    with pytest.raises(Conflict):
        await writer(cluster).write_classes(WriteClasses(correct=((SMALL, before),)))
    with pytest.raises(Conflict):
        await writer(cluster).write_classes(WriteClasses(remove=(replace(before, uid="another"),)))
    assert set(present(cluster)) == {SMALL.name}


async def test_a_class_that_is_refused_for_ever_keeps_no_other_from_being_written() -> None:
    cluster = FakeCluster()
    await carry_out(cluster, "4g.40gb")
    refused = wanted_class("3g.40gb")
    cluster.faults.fail("create", DEVICE_CLASSES, Invalid("a webhook"), name=refused.name, times=EVER)
    with pytest.raises(Invalid, match="a webhook"):
        await carry_out(cluster, "1g.10gb", "3g.40gb", "7g.80gb")
    assert set(present(cluster)) == {SMALL.name, wanted_class("7g.80gb").name}


async def test_a_class_that_is_gone_already_counts_as_removed() -> None:
    cluster = FakeCluster()
    await carry_out(cluster, "1g.10gb", "3g.40gb")
    removal = plan([], list(present(cluster).values()))
    assert removal is not None
    await writer(cluster).write_classes(removal)
    await writer(cluster).write_classes(removal)
    assert present(cluster) == {}


@pytest.mark.parametrize("page", ["dra", "uninstall"])
def test_the_pages_delete_the_classes_that_stayed_by_the_label_that_they_have(page: str) -> None:
    ((label, label_value),) = device_class(SMALL)["metadata"]["labels"].items()
    text = (ROOT / "docs" / "how-to" / f"{page}.md").read_text()
    assert f"kubectl delete deviceclass -l {label}={label_value}\n" in text


def test_a_bare_class_has_empty_parts() -> None:
    raw: JSON = {"metadata": {"name": "x", "uid": "u", "resourceVersion": "1"}}
    assert device_class_view(raw) == DeviceClassView("x", "u", "1", ours=False, resource="", selectors=())
    assert device_class(SMALL)["metadata"]["labels"] == {"app.kubernetes.io/managed-by": "gpusharing-operator"}


@asynccontextmanager
async def played(*, gate: bool = True) -> AsyncIterator[tuple[Embedded, TaintTest]]:
    """A cluster whose scheduler has the feature gate or not, and the test."""
    async with embedded([], factor=1.0, sim={"dra": True, "device_taints": gate}) as environment:
        yield environment, TaintTest(environment.cluster.client("operator"), "gpusharing")


def count_tests(environment: Embedded) -> int:
    scaled = (write.call.body for write in environment.cluster.writes if write.call.subresource == "scale")
    return sum(body == {"spec": {"replicas": 1}} for body in scaled)


@virtually
async def test_a_scheduler_that_obeys_is_tested_again_after_six_hours_or_under_another_version_only() -> None:
    async with played() as (environment, test):
        assert await test.repeat() == await test.repeat() == (True, "")
        assert count_tests(environment) == 1
        assert environment.cluster.objects(DEVICE_TAINT_RULES) == []
        await environment.until(lambda: environment.cluster.objects(PODS) == [], "the pod to go")
        environment.cluster.version = "v1.37.0"
        assert (await test.repeat())[0]
        assert count_tests(environment) == 2
        await asyncio.sleep(VALID)
        assert (await test.repeat())[0]
        assert count_tests(environment) == 3


@virtually
async def test_a_scheduler_without_the_gate_is_tried_three_times_and_each_time_anew() -> None:
    async with played(gate=False) as (environment, test):
        assert await test.repeat() == (False, IGNORED)
        assert count_tests(environment) == 3
        await test.repeat()
        assert count_tests(environment) == 6


@virtually
async def test_what_an_interrupted_test_left_behind_shows_nothing_and_is_removed() -> None:
    async with played() as (environment, test):
        cluster = environment.cluster
        cluster.patch(REPLICA_SETS, TAINT_TEST, {"spec": {"replicas": 1}}, "gpusharing")
        await environment.until(lambda: len(cluster.objects(PODS)) == 1, "a pod that saw no rule")
        assert await test.repeat() == (True, "")
        assert cluster.objects(DEVICE_TAINT_RULES) == []
        await environment.until(lambda: cluster.objects(PODS) == [], "the pod to go")


@virtually
async def test_a_test_that_cannot_be_made_is_an_error_and_leaves_no_rule() -> None:
    async with played() as (environment, test):
        environment.cluster.delete(REPLICA_SETS, TAINT_TEST, "gpusharing")
        assert "the scheduler could not be tested" in (await test.repeat())[1]
        assert environment.cluster.objects(DEVICE_TAINT_RULES) == []
