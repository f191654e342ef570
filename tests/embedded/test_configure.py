"""The operator points ClusterPolicy at its ConfigMaps itself: once, and against nobody (docs/how-to/install.md)."""

import asyncio
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
from hack.sim.fakefaults import EVER, SILENCE, Silence
from hack.sim.workloads import SimWorkload
from structlog.testing import capture_logs
from tests.embedded.goldens import MIG, PLUGIN, point_plugin, pointers
from tests.embedded.scene import FULL, HOUR, MIXED, Scene, node, nodes, open_scene
from tests.fakes.virtualtime import virtually

from gpusharing.kube.client import CLUSTER_POLICIES, CONFIG_MAPS, JSON, NODES, POLICIES
from gpusharing.kube.errors import Conflict, Forbidden

MARK = "gpusharing.dev/configured"
BOTH = "devicePlugin.config.name,migManager.config.name"


def cluster_policy(plugin: str = "", mig: str = "") -> JSON:
    """As NVIDIA's chart leaves it, or with the names that somebody gave."""
    return {
        "metadata": {"name": "cluster-policy"},
        "spec": {
            "devicePlugin": {"config": {"name": plugin, "default": ""}},
            "migManager": {"enabled": True, "config": {"name": mig, "default": "all-disabled"}},
        },
        "status": {"state": "ready"},
    }


def found(scene: Scene) -> JSON:
    return scene.e.cluster.get(CLUSTER_POLICIES, "cluster-policy")


def asked(**more: Any) -> AbstractAsyncContextManager[Scene]:
    """One node and a ClusterPolicy as NVIDIA's chart leaves it, which the operator is asked to point."""
    return open_scene(*nodes(1), cluster_policy=cluster_policy(), configure_gpu_operator=True, **more)


async def pointed(scene: Scene) -> None:
    await scene.e.until(lambda: pointers(scene) == (PLUGIN, MIG), "both pointers", HOUR)


@virtually
async def test_the_plugins_is_set_after_the_configmaps_and_mig_managers_after_the_reports() -> None:
    async with asked() as scene:
        await pointed(scene)
        kinds = [write.call.resource.plural for write in scene.writes() if write.error is None]
        assert kinds.count("clusterpolicies") <= 2
        assert kinds.index("clusterpolicies") > kinds.index("configmaps")
        assert found(scene)["metadata"]["annotations"] == {MARK: BOTH}
        assert found(scene)["spec"]["migManager"]["config"]["default"] == "all-disabled"
        await scene.serve(MIXED)
        written = [write.call.body or {} for write in scene.writes(plural="clusterpolicies")]
        assert scene.events()["PointersSet"] == len(written)
        assert [body for body in written if "migManager" in body["spec"]] == written[-1:]


@virtually
async def test_mig_managers_waits_until_gpus_divided_by_hand_are_labeled_with_what_they_have() -> None:
    """NVIDIA/k8s-device-plugin#767: under the default label all-disabled, its start would remove the instances."""
    pods = SimWorkload("serve", 4, resource="nvidia.com/mig-1g.10gb")
    async with asked(workloads=(pods,), start=False) as scene:
        await asyncio.sleep(HOUR)  # mig-manager has done its first run
        gpus = scene.e.software.nodes["gpu-1"].gpus
        for index in range(2):
            gpus.set_mig_mode(index, True)
            for _ in range(7):
                gpus.create(index, "1g.10gb")
        with capture_logs() as logged:
            scene.e.start_operator()
            await scene.e.until(lambda: pointers(scene)[0] == PLUGIN, "the device plugin's pointer", HOUR)
            await scene.reject(MIXED, reason="LayoutsNeedConfigMap")
        label = "kubectl label node gpu-1 --overwrite nvidia.com/mig.config=all-1g.10gb"
        await scene.e.until(
            lambda: f"run: {label} && kubectl patch" in scene.condition("Accepted")["message"], "the command", HOUR
        )
        await asyncio.sleep(HOUR)
        assert [label] in [one["run"] for one in logged if one.get("subject") == "pointers" and "run" in one]
        assert pointers(scene) == (PLUGIN, "")
        assert [len(gpu.instances) for gpu in gpus.look()] == [7, 7]
        scene.e.cluster.delete(POLICIES, "pool-b")
        scene.person("gpu-1", {"metadata": {"labels": {"nvidia.com/mig.config": "all-1g.10gb"}}})
        await pointed(scene)
        await asyncio.sleep(HOUR)
        assert [len(gpu.instances) for gpu in gpus.look()] == [7, 7]
        assert scene.evicted() == []


@virtually
async def test_mig_managers_waits_for_a_node_whose_agent_is_not_ready_until_mig_manager_is_kept_off_it() -> None:
    async with asked(start=False) as scene:
        dead = node("gpu-2")
        del dead["metadata"]["labels"]["nvidia.com/gpu.product"]  # nothing simulates its software
        del dead["metadata"]["annotations"]
        scene.e.cluster.add(NODES, dead)
        scene.e.start_operator()
        await scene.e.until(lambda: pointers(scene)[0] == PLUGIN, "the device plugin's pointer", HOUR)
        await scene.reject(MIXED, reason="LayoutsNeedConfigMap")
        off = "nvidia.com/gpu.deploy.mig-manager"
        await scene.e.until(
            lambda: f"by its label {off}=false" in scene.condition("Accepted")["message"], "the way on", HOUR
        )
        await asyncio.sleep(HOUR)
        assert pointers(scene) == (PLUGIN, "")
        scene.person("gpu-2", {"metadata": {"labels": {off: "false"}}})
        await pointed(scene)


@virtually
async def test_a_value_of_somebody_else_stays_and_the_condition_says_whose_it_is() -> None:
    theirs = cluster_policy(plugin="theirs")
    helm: JSON = {"f:spec": {"f:devicePlugin": {"f:config": {"f:name": {}}}}}
    theirs["metadata"]["managedFields"] = [
        {"manager": "helm", "time": "2026-11-20T10:00:00Z", "fieldsV1": helm},
        {"manager": "gpu-operator", "time": "2026-11-20T11:00:00Z", "fieldsV1": {"f:status": {}}},
    ]
    async with open_scene(*nodes(1), cluster_policy=theirs, configure_gpu_operator=True) as scene:
        row = await scene.reject(FULL, reason="PluginConfigNotOurs")
        assert "devicePlugin.config.name is theirs (set by helm)" in row["message"]
        await scene.e.until(lambda: pointers(scene) == ("theirs", MIG), "the other pointer", HOUR)
        patch = "run: kubectl patch clusterpolicy cluster-policy --type merge"
        await scene.e.until(lambda: patch in scene.condition("Accepted")["message"], "the command", HOUR)
        await asyncio.sleep(HOUR)
        assert pointers(scene) == ("theirs", MIG)
        assert len(scene.writes(plural="clusterpolicies")) == 1


@virtually
async def test_what_somebody_sets_back_is_not_set_again_by_this_operator_or_the_next() -> None:
    async with asked() as scene:
        await pointed(scene)
        since = scene.mark()
        point_plugin(scene, "")
        row = await scene.reject(FULL, reason="PluginConfigNotOurs")
        assert (
            "the operator set it once (chart value gpuOperator.configure); someone has changed it since"
            in row["message"]
        )
        await scene.e.kill_operator()
        scene.e.start_operator()
        await asyncio.sleep(HOUR)
        assert scene.writes(since, "clusterpolicies") == []
        assert pointers(scene) == ("", MIG)


@virtually
async def test_a_new_clusterpolicy_is_pointed_at_them_again() -> None:
    async with asked() as scene:
        await pointed(scene)
        scene.e.cluster.delete(CLUSTER_POLICIES, "cluster-policy")
        scene.e.cluster.add(CLUSTER_POLICIES, cluster_policy())
        await pointed(scene)
        await scene.e.until(lambda: scene.events()["PointersSet"] == 2, "an Event for each", HOUR)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (Forbidden("not allowed to patch clusterpolicies"), "not allowed to patch clusterpolicies"),
        (SILENCE, "no answer"),
    ],
    ids=["no right", "no answer"],
)
@virtually
async def test_where_it_cannot_be_written_the_condition_says_why_and_other_writes_go_on(
    answer: Exception | Silence, words: str
) -> None:
    ours = cluster_policy(plugin=PLUGIN)
    async with open_scene(*nodes(1), cluster_policy=ours, configure_gpu_operator=True, start=False) as scene:
        scene.e.cluster.faults.fail("patch", CLUSTER_POLICIES, answer, times=EVER)
        scene.e.start_operator()
        await scene.serve(FULL)
        scene.apply(MIXED)
        await scene.e.until(
            lambda: words in scene.condition("Accepted").get("message", ""), "the condition to say why", HOUR
        )
        message = scene.condition("Accepted")["message"]
        assert "could not set it" in message
        assert "run: kubectl patch clusterpolicy cluster-policy" in message
        assert pointers(scene) == (PLUGIN, "")


@pytest.mark.parametrize("conflicts", [1, 5])
@virtually
async def test_a_write_that_somebody_came_before_is_decided_anew(conflicts: int) -> None:
    async with asked(start=False) as scene:
        scene.e.cluster.faults.fail("patch", CLUSTER_POLICIES, Conflict("it changed"), times=conflicts)
        scene.e.start_operator()
        await pointed(scene)
        assert [w for w in scene.writes(plural="configmaps") if w.error is not None] == []


@virtually
async def test_the_write_carries_the_version_that_it_was_decided_on() -> None:
    async with asked() as scene:
        before = found(scene)["metadata"]["resourceVersion"]
        await pointed(scene)
        body = scene.writes(plural="clusterpolicies")[0].call.body
        assert body is not None
        assert body["metadata"]["resourceVersion"] == before
        assert scene.e.cluster.get(CONFIG_MAPS, PLUGIN, "gpu-operator")["data"]


@virtually
async def test_of_two_the_one_that_is_not_ignored_counts_and_where_nobody_can_tell_nothing_is_touched() -> None:
    theirs = cluster_policy(plugin="theirs")
    theirs["metadata"]["name"] = "a-second"
    async with open_scene(*nodes(1), cluster_policy=cluster_policy(PLUGIN, MIG)) as scene:
        scene.e.cluster.add(CLUSTER_POLICIES, theirs | {"status": {"state": "ignored"}})
        await scene.serve(FULL)
        scene.e.cluster.patch(CLUSTER_POLICIES, "a-second", {"status": {"state": ""}})
        row = await scene.until_condition("Accepted", "False", "SeveralClusterPolicies")
        assert "a-second, cluster-policy" in row["message"]
        since = scene.mark()
        await scene.reject(MIXED, reason="SeveralClusterPolicies")
        await asyncio.sleep(HOUR)
        assert scene.node_writes(since) == {}
        scene.e.cluster.delete(CLUSTER_POLICIES, "a-second")
        await scene.ready()
