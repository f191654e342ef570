"""Drift: put right once in a revision of a policy, and not once more because something else happened meanwhile."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta

import pytest
from hack.sim.workloads import SimWorkload
from tests.embedded.scene import FULL, MIXED, MODES, SLICED, Scene, nodes, open_scene
from tests.embedded.test_changes import assert_as_wanted
from tests.embedded.test_configuration import SPACE
from tests.fakes.virtualtime import virtual_now, virtually

from gpusharing.api import names
from gpusharing.kube.client import CONFIG_MAPS, JSON, NODES
from gpusharing.kube.fence import parse_record
from gpusharing.planning.snapshot.records import Verified


async def drift_again(scene: Scene) -> None:
    """The instances are lost, as after a reboot that mig-manager slept through."""
    await asyncio.sleep(60)
    scene.e.software.inject("gpu-1", "lose-instances")


async def put_right(scene: Scene) -> None:
    await drift_again(scene)
    assert (await scene.fenced("gpu-1")).drift
    await scene.ready()


@virtually
async def test_drift_is_seen_within_forty_seconds_and_stalls_the_policy_when_it_returns() -> None:
    async with open_scene(*nodes(1), serving=MIXED) as scene:
        seen = virtual_now()
        scene.e.software.inject("gpu-1", "lose-instances")
        transition = await scene.reason("gpu-1", "Drifted")
        assert virtual_now() - seen < timedelta(seconds=40)
        assert "MIG empty" in transition["message"]
        assert scene.condition("Ready")["status"] == "False"
        assert scene.e.policy("pool-b")["status"]["summary"]["status"] == "Drifted"
        assert scene.events()["Drifted"] == 1
        fence = await scene.fenced("gpu-1")
        assert fence.drift
        await scene.ready()
        assert_as_wanted(scene, MIXED, "gpu-1")
        record = parse_record(Verified, scene.annotations("gpu-1")[names.ANNOTATION_VERIFIED])[0]
        assert record is not None
        assert record.corrected_revision == scene.e.policy("pool-b")["status"]["revision"]
        await asyncio.sleep(60)
        mark = scene.mark()
        scene.e.software.inject("gpu-1", "lose-instances")
        await scene.reason("gpu-1", "DriftReturned")
        await asyncio.sleep(900)
        assert not scene.node_writes(mark)
        await scene.until_condition("Stalled", "True", "DriftReturned")
        scene.annotate("gpu-1", retry="1")
        await scene.ready()
        assert_as_wanted(scene, MIXED, "gpu-1")


@virtually
async def test_a_node_that_is_adopted_anew_keeps_that_its_drift_was_put_right() -> None:
    """A tool that strips our labels would else get a drain per drift, for ever."""
    async with open_scene(*nodes(1), serving=MIXED) as scene:
        await put_right(scene)
        scene.person("gpu-1", {"metadata": {"labels": {names.LABEL_POLICY: None, names.LABEL_MODE: None}}})
        await scene.e.until(lambda: scene.labels("gpu-1").get(names.LABEL_MODE) == "mig", "adopted", 60)
        await drift_again(scene)
        await scene.reason("gpu-1", "DriftReturned")


@virtually
async def test_an_edit_while_drift_is_put_right_leaves_its_own_correction_to_the_new_revision() -> None:
    async with open_scene(*nodes(1), serving=MIXED) as scene:
        await drift_again(scene)
        await scene.fenced("gpu-1", "actuating")
        await scene.serve(MIXED, rollout={"maxUnavailable": 1, "paused": False, "timeouts": {"actuation": "40m"}})
        await put_right(scene)
        assert_as_wanted(scene, MIXED, "gpu-1")
        await drift_again(scene)
        await scene.reason("gpu-1", "DriftReturned")


@virtually
async def test_a_drain_timeout_of_seconds_is_enough_for_a_node_without_pods() -> None:
    async with open_scene(*nodes(1), serving=FULL) as scene:
        await scene.serve(MIXED, drain={"timeout": "4s"})
        assert scene.events()["ChangeGivenUp"] == 0


UNKNOWN: JSON = {"metadata": {"labels": {names.LABEL_PLUGIN_CONFIG: "bogus"}}}
"""A person's typing error."""


@pytest.mark.parametrize("mode", MODES)
@virtually
async def test_a_label_that_names_no_entry_costs_nobody_anything_where_the_plugin_keeps_its_own(mode: str) -> None:
    serves = () if "MIG" in mode else (SimWorkload("serve", 2),)
    async with open_scene(*nodes(1), workloads=serves, serving=MODES[mode]) as scene:
        await asyncio.sleep(100)
        mark = scene.mark()
        scene.person("gpu-1", UNKNOWN)
        await scene.fenced("gpu-1", "actuating", seconds=90)
        await scene.ready(seconds=60)
        assert_as_wanted(scene, MODES[mode], "gpu-1")
        assert not scene.writes(mark, "pods")
        assert not any("unschedulable" in str(write) for write in scene.node_writes(mark))


@pytest.mark.parametrize("mode", MODES)
@virtually
async def test_a_node_whose_plugin_fell_back_over_a_label_that_names_no_entry_is_brought_back(mode: str) -> None:
    async with open_scene(*nodes(1), serving=MODES[mode], sim={"falls_back": True}) as scene:
        scene.person("gpu-1", UNKNOWN)
        await scene.fenced("gpu-1", "actuating", seconds=200)
        await scene.ready(seconds=200)
        assert_as_wanted(scene, MODES[mode], "gpu-1")


@pytest.mark.parametrize("mode", MODES)
@virtually
async def test_a_node_whose_plugin_cannot_start_over_a_label_that_names_no_entry_is_brought_back(mode: str) -> None:
    async with open_scene(*nodes(1), serving=MODES[mode]) as scene:
        scene.person("gpu-1", UNKNOWN)
        scene.e.software.inject("gpu-1", "reboot")
        await scene.fenced("gpu-1", "actuating", seconds=400)
        await scene.ready(seconds=400)
        assert_as_wanted(scene, MODES[mode], "gpu-1")


@pytest.mark.parametrize("falls_back", [False, True], ids=["keeps its own", "falls back"])
@pytest.mark.parametrize("mode", ["TimeSlicing", "MPS", "MIG mixed"])
@virtually
async def test_a_label_that_names_no_entry_for_a_moment_in_mid_change_delays_nobody(
    mode: str, falls_back: bool
) -> None:
    for delay in (1, 6, 11):
        async with open_scene(*nodes(1), serving=FULL, sim={"falls_back": falls_back}) as scene:
            scene.apply(MODES[mode])
            await scene.fenced("gpu-1", "actuating", seconds=900)
            await asyncio.sleep(delay)
            scene.person("gpu-1", UNKNOWN)
            await scene.ready(seconds=300)
            assert_as_wanted(scene, MODES[mode], "gpu-1")


FOUR = "version: v1\nsharing: {timeSlicing: {resources: [{name: nvidia.com/gpu, replicas: 4}]}}\n"


@asynccontextmanager
async def adopted(setter: str = "") -> AsyncIterator[Scene]:
    """One node with two pods, adopted under the name that an admin gave the device plugin's configuration; `setter` is the field manager that set the label."""
    async with open_scene(*nodes(1), start=False, workloads=(SimWorkload("serve", 2),)) as scene:
        scene.e.settings = replace(scene.e.settings, admin_plugin_config_map="site")
        entries = {"metadata": {"name": "site", "namespace": SPACE}, "data": {"four": FOUR}}
        scene.e.cluster.add(CONFIG_MAPS, entries)
        scene.e.start_operator()
        await asyncio.sleep(200)  # the kubelet delivers the merged configurations
        fields: JSON = {"f:metadata": {"f:labels": {f"f:{names.LABEL_PLUGIN_CONFIG}": {}}}}
        row = {"manager": setter, "operation": "Apply", "time": "2026-11-01T10:00:00Z", "fieldsV1": fields}
        labels = {names.LABEL_PLUGIN_CONFIG: "four"}
        scene.person("gpu-1", {"metadata": {"labels": labels, "managedFields": [row] if setter else []}})
        await asyncio.sleep(60)
        await scene.serve(SLICED)
        await scene.running("serve", 2)
        assert scene.labels("gpu-1")[names.LABEL_PLUGIN_CONFIG] == "four", "adopted as it is"
        yield scene


@virtually
async def test_no_pod_is_evicted_from_an_adopted_node_because_the_device_plugin_is_down() -> None:
    """A change would only give the node another name for the configuration that it has."""
    async with adopted() as scene:
        mark, nothing = scene.mark(), {"status": {"allocatable": {"nvidia.com/gpu": "0"}}}
        for _ in range(60):
            scene.e.cluster.patch(NODES, "gpu-1", nothing, subresource="status")
            await asyncio.sleep(5)
        shown = scene.transition("gpu-1")
        assert (shown["phase"], shown["reason"]) == ("Blocked", "GPUUnhealthy")
        assert "A change would not help, so none starts" in shown["message"]
        assert not scene.evicted()
        assert not scene.node_writes(mark)


@virtually
async def test_no_pod_is_evicted_from_a_node_because_one_of_its_devices_is_unhealthy() -> None:
    """A person labeled the node for the policy's mode; nothing differs but the device that the plugin withdrew."""
    async with open_scene(*nodes(1), workloads=(SimWorkload("serve", 1),)) as scene:
        await scene.running("serve", 1)
        mark, short = scene.mark(), {"capacity": {"nvidia.com/gpu": "2"}, "allocatable": {"nvidia.com/gpu": "1"}}
        scene.e.cluster.patch(NODES, "gpu-1", {"status": short}, subresource="status")
        scene.apply(FULL)
        for _ in range(80):
            scene.e.cluster.patch(NODES, "gpu-1", {"status": short}, subresource="status")
            await asyncio.sleep(5)
        shown = scene.transition("gpu-1")
        assert (shown["phase"], shown["reason"]) == ("Synced", "GPUUnhealthy")
        assert "1 of 2 nvidia.com/gpu is unhealthy according to the device plugin" in shown["message"]
        assert not scene.evicted()
        assert not any("unschedulable" in str(write) for write in scene.node_writes(mark))
