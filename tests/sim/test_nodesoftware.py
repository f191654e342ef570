"""The node software on FakeCluster: labels and ConfigMaps in, allocatable and labels out."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
from hack.cluster.nodes import node_manifest
from hack.sim.fakecluster import FakeClient
from hack.sim.node import SimNode
from hack.sim.nodesoftware import ANNOTATION_INJECT
from hack.sim.settings import SimSettings, Times
from tests.fakes.gpus import eventually
from tests.fakes.virtualtime import virtually
from tests.sim.build import A100, H100, L40S, layouts_of
from tests.sim.stage import (
    FACTOR,
    GPU,
    MIG_CONFIG,
    NAMESPACE,
    PLUGIN_CONFIG,
    PLUGIN_FILES,
    STATE,
    TIMESTAMP,
    SimulatedCluster,
    config_map,
    playing,
    policy,
)

from gpusharing.kube.client import CLUSTER_POLICIES, CONFIG_MAPS, GPUNODES, JSON, NODES, PODS, ApiRequest
from gpusharing.kube.errors import NotFound

DEPLOY_PLUGIN = "nvidia.com/gpu.deploy.device-plugin"
DEPLOY_CLIENT = "nvidia.com/gpu.deploy.client"
REMOVAL = {"metadata": {"annotations": {ANNOTATION_INJECT: None}}}


def mig_pod(stage: SimulatedCluster) -> JSON | None:
    found = stage.cluster.objects(PODS, label_selector="app=nvidia-mig-manager")
    running = [pod for pod in found if pod.get("status", {}).get("phase") == "Running"]
    return running[0] if running else None


@asynccontextmanager
async def started(*nodes: JSON, **options: Any) -> AsyncIterator[SimulatedCluster]:
    async with playing(*nodes, **options) as stage:
        await stage.until(lambda: mig_pod(stage))
        yield stage


async def test_a_fresh_node_changes_only_by_what_its_software_adds() -> None:
    async with started() as stage:
        assert stage.offered() == {GPU: "2"}
        assert stage.labels()["nvidia.com/gpu.product"] == "NVIDIA-H100-80GB-HBM3"
        assert stage.labels()[STATE] == "success"
        await stage.until(lambda: len(stage.cluster.objects(CONFIG_MAPS)) > 1)
        generated = stage.cluster.get(CONFIG_MAPS, "n1-mig-config", NAMESPACE)
        assert generated["metadata"]["labels"]["nvidia.com/node-name"] == "n1"
        assert "all-balanced" in generated["data"]["config.yaml"]


async def test_time_slicing_comes_with_the_label_and_a_new_timestamp() -> None:
    async with playing() as stage:
        before = stage.labels()[TIMESTAMP]
        stage.patch(labels={PLUGIN_CONFIG: "ts4"})
        await stage.until(lambda: stage.offered() == {GPU: "8"} and stage.labels()[TIMESTAMP] != before)
        assert stage.labels()["nvidia.com/gpu.product"] == "NVIDIA-H100-80GB-HBM3-SHARED"
        assert stage.labels()["nvidia.com/gpu.replicas"] == "4"
        stage.patch(labels={PLUGIN_CONFIG: None})
        await stage.until(lambda: stage.offered() == {GPU: "2"})


async def test_one_patch_takes_a_node_to_mig_mixed_and_back() -> None:
    async with started() as stage:
        stage.patch(labels={PLUGIN_CONFIG: "mixed", MIG_CONFIG: "all-1g.10gb", STATE: None})
        await stage.until(lambda: stage.labels().get(STATE) == "pending")
        await stage.until(lambda: stage.offered()[GPU] == "0")
        await stage.until(lambda: stage.labels().get(STATE) == "success")
        await stage.until(lambda: stage.offered() == {GPU: "0", "nvidia.com/mig-1g.10gb": "14"})
        await stage.until(lambda: stage.labels().get("nvidia.com/mig-1g.10gb.count") == "14")
        assert stage.labels()["nvidia.com/mig.strategy"] == "mixed"
        stage.patch(labels={PLUGIN_CONFIG: "full", MIG_CONFIG: "all-disabled", STATE: None})
        await stage.until(lambda: stage.offered() == {GPU: "2", "nvidia.com/mig-1g.10gb": "0"})
        await stage.until(lambda: "nvidia.com/mig-1g.10gb.count" not in stage.labels())


async def test_mig_single_keeps_the_resource_name() -> None:
    async with started() as stage:
        stage.patch(labels={PLUGIN_CONFIG: "single", MIG_CONFIG: "all-3g.40gb", STATE: None})
        await stage.until(lambda: stage.offered() == {GPU: "4"})
        await stage.until(lambda: stage.labels()["nvidia.com/gpu.product"].endswith("-MIG-3g.40gb"))


async def test_strategy_single_on_an_unequal_layout_loses_the_resources_and_is_invalid() -> None:
    async with started() as stage:
        stage.patch(labels={PLUGIN_CONFIG: "single", MIG_CONFIG: "all-balanced", STATE: None})
        await stage.until(lambda: stage.said("more than one MIG device type"))
        await stage.until(lambda: stage.labels()["nvidia.com/gpu.product"].endswith("-MIG-INVALID"))
        assert stage.offered() == {GPU: "0"}
        assert stage.labels()[STATE] == "success"


async def test_an_unknown_key_leaves_a_running_plugin_alone() -> None:
    async with playing() as stage:
        stage.patch(labels={PLUGIN_CONFIG: "nowhere"})
        await stage.until(lambda: True)
        async with asyncio.timeout(60):
            while not stage.said("gpu-feature-discovery: config-manager crash-loops"):  # noqa: ASYNC110 - a log line is no event
                await asyncio.sleep(0.001)
        assert stage.offered() == {GPU: "2"}
        assert "nvidia.com/gpu.product" in stage.labels()


async def test_from_0_18_2_on_an_unknown_key_makes_a_running_plugin_and_a_new_one_fall_back() -> None:
    settings = SimSettings(time_factor=FACTOR, agents=False, play_daemon_sets=True, falls_back=True)
    async with started(settings=settings) as stage:
        stage.patch(labels={PLUGIN_CONFIG: "ts4"})
        await stage.until(lambda: stage.offered() == {GPU: "8"} and stage.labels()["nvidia.com/gpu.replicas"] == "4")
        stage.patch(labels={PLUGIN_CONFIG: "nowhere"})
        await stage.until(lambda: stage.offered() == {GPU: "2"} and stage.labels()["nvidia.com/gpu.replicas"] == "1")


async def test_an_unknown_key_at_a_pod_start_takes_resources_and_labels_away() -> None:
    async with started() as stage:
        stage.patch(labels={PLUGIN_CONFIG: "nowhere", MIG_CONFIG: "all-1g.10gb", STATE: None})
        await stage.until(lambda: stage.labels().get(STATE) == "success")
        await stage.until(lambda: "nvidia.com/gpu.product" not in stage.labels())
        assert stage.offered() == {GPU: "0"}
        stage.patch(labels={PLUGIN_CONFIG: "mixed"})
        await stage.until(lambda: stage.offered() == {GPU: "0", "nvidia.com/mig-1g.10gb": "14"})
        await stage.until(lambda: "nvidia.com/gpu.product" in stage.labels())


@virtually
async def test_an_edit_under_the_same_key_is_not_noticed_and_a_new_key_comes_late() -> None:
    async with playing() as stage:
        stage.patch(labels={PLUGIN_CONFIG: "ts4"})
        await stage.until(lambda: stage.offered() == {GPU: "8"})
        edited = {"ts4": PLUGIN_FILES["ts4"].replace("4}", "6}"), "ts5": PLUGIN_FILES["ts4"].replace("4}", "5}")}
        stage.cluster.patch(CONFIG_MAPS, "plugin-configs", {"data": edited}, NAMESPACE)
        stage.patch(labels={PLUGIN_CONFIG: "ts5"})
        await stage.until(lambda: stage.offered() == {GPU: "10"})
        assert stage.said("config-manager crash-loops on an unknown key")
        assert not stage.said(f"{GPU} 12")


async def test_cluster_policy_beats_the_strategy_of_the_file() -> None:
    async with started(cluster_policy=policy(mig={"strategy": "single"})) as stage:
        stage.patch(labels={PLUGIN_CONFIG: "mixed", MIG_CONFIG: "all-1g.10gb", STATE: None})
        await stage.until(lambda: stage.offered() == {GPU: "14"})


async def test_without_a_config_map_in_cluster_policy_the_label_does_nothing() -> None:
    async with playing(cluster_policy=policy(devicePlugin={})) as stage:
        before = stage.labels()[TIMESTAMP]
        stage.patch(labels={PLUGIN_CONFIG: "ts4"})
        await asyncio.sleep(0.1)
        assert stage.offered() == {GPU: "2"}
        assert stage.labels()[TIMESTAMP] == before


def _is_so(stage: SimulatedCluster, wanted: tuple[dict[str, str], bool, bool]) -> bool:
    """Whether the device plugin offers this, GFD has written labels, and mig-manager runs."""
    return (stage.offered(), TIMESTAMP in stage.labels(), mig_pod(stage) is not None) == wanted


async def test_switches_of_cluster_policy_take_operands_away_and_give_them_back() -> None:
    async with started() as stage:
        await stage.until(lambda: stage.labels().get(STATE) == "success")
        for on in (False, True):
            switches = {block: {"enabled": on} for block in ("devicePlugin", "gfd", "migManager")}
            stage.cluster.patch(CLUSTER_POLICIES, "cluster-policy", {"spec": switches})
            wanted = ({GPU: "2"}, True, True) if on else ({GPU: "0"}, False, False)
            await stage.until(partial(_is_so, stage, wanted))


STARTS: dict[str, tuple[JSON, bool, bool]] = {
    "the plugin's ConfigMap": ({"devicePlugin": {"config": {"name": ""}}}, True, False),
    "its default entry": ({"devicePlugin": {"config": {"default": "full"}}}, True, False),
    "its version": ({"devicePlugin": {"version": "v0.20.0"}}, True, False),
    "the MIG strategy": ({"mig": {"strategy": "mixed"}}, True, False),
    "mig-manager's ConfigMap": ({"migManager": {"config": {"name": "own"}}}, False, True),
    "its version too": ({"migManager": {"version": "v0.15.1"}}, False, True),
    "tolerations": ({"daemonsets": {"tolerations": [{"operator": "Exists"}]}}, True, True),
    "GFD's switch": ({"gfd": {"enabled": False}}, False, False),
}
"""Fields of ClusterPolicy, and whether the GPU Operator starts the device plugin and mig-manager again for them."""


@pytest.mark.parametrize("name", STARTS)
@virtually
async def test_a_field_of_cluster_policy_starts_the_programs_again_whose_pods_have_it(name: str) -> None:
    spec, plugin, mig = STARTS[name]
    async with started() as stage:
        await stage.until(lambda: stage.labels().get(STATE) == "success")
        gpus = stage.software.nodes["n1"].gpus
        gpus.set_mig_mode(0, True)
        gpus.create(0, "1g.10gb")
        begin = len(stage.lines)
        stage.cluster.patch(CLUSTER_POLICIES, "cluster-policy", {"spec": spec})
        await asyncio.sleep(1)
        restarted = any(f"allocatable: {GPU} 0" in line for line in stage.lines[begin:])
        assert (restarted and not mig, not gpus.look()[0].instances) == (plugin and not mig, mig)


@virtually
async def test_only_for_a_mig_manager_that_runs_a_node_without_a_label_is_labeled_all_disabled() -> None:
    """docs/design/nvidia.md#d1"""
    off = {"enabled": False, "config": {"name": "", "default": "all-disabled"}}
    node = node_manifest("n1", gpus=2)
    del node["metadata"]["labels"][MIG_CONFIG]
    async with playing(node, cluster_policy=policy(migManager=off)) as stage:
        await asyncio.sleep(1)
        assert MIG_CONFIG not in stage.labels()
        stage.cluster.patch(CLUSTER_POLICIES, "cluster-policy", {"spec": {"migManager": {"enabled": True}}})
        await stage.until(lambda: stage.labels().get(MIG_CONFIG) == "all-disabled")


async def test_a_node_for_virtual_machines_offers_nothing_to_containers() -> None:
    async with started() as stage:
        await stage.until(lambda: any("mig-manager: success" in line for line in stage.lines))  # wrote deploy labels
        sandboxes = {"sandboxWorkloads": {"enabled": True, "defaultWorkload": "vm-passthrough"}}
        stage.cluster.patch(CLUSTER_POLICIES, "cluster-policy", {"spec": sandboxes})
        await stage.until(lambda: stage.offered() == {GPU: "0"} and mig_pod(stage) is None)
        assert DEPLOY_PLUGIN not in stage.labels()
        stage.patch(labels={"nvidia.com/gpu.workload.config": "container"})
        await stage.until(lambda: stage.offered() == {GPU: "2"} and mig_pod(stage))


@virtually
async def test_the_plugin_chart_beside_mig_manager_deploys_by_the_client_label_alone() -> None:
    plain = SimSettings(
        time_factor=FACTOR, agents=False, play_daemon_sets=True, plain_config="plugin-configs", plain_mig="own"
    )
    node = node_manifest("n1", gpus=2)
    node["metadata"]["labels"][DEPLOY_CLIENT] = "true"
    async with playing(node, settings=plain) as stage:
        await stage.until(lambda: stage.offered() == {GPU: "2"})
        stage.patch(labels={DEPLOY_CLIENT: "no"})
        await stage.until(lambda: stage.offered() == {GPU: "0"})
        stage.patch(labels={DEPLOY_CLIENT: "true"})
        await stage.until(lambda: stage.offered() == {GPU: "2"})


@virtually
async def test_an_own_mig_file_replaces_the_generated_one() -> None:
    own = "version: v1\nmig-configs: {mine: [{devices: all, mig-enabled: true, mig-devices: {7g.80gb: 1}}]}"
    async with started(cluster_policy=policy(migManager={"config": {"name": "own"}})) as stage:
        stage.cluster.add(CONFIG_MAPS, config_map("own", {"config.yaml": own}))
        stage.patch(labels={MIG_CONFIG: "mine", STATE: None})
        await stage.until(lambda: stage.labels().get(STATE) == "failed")  # the pod does not see it yet
        pod = mig_pod(stage)
        assert pod is not None
        stage.cluster.delete(PODS, pod["metadata"]["name"], NAMESPACE)
        await stage.until(lambda: stage.labels().get(STATE) == "success")
        assert layouts_of(stage.software.nodes["n1"].gpus) == [("7g.80gb",), ("7g.80gb",)]
        with pytest.raises(NotFound):
            stage.cluster.get(CONFIG_MAPS, "n1-mig-config", NAMESPACE)


@pytest.mark.parametrize("fault", ["wedge-pending", "wedge-paused"])
async def test_a_wedge_by_annotation_is_cured_by_deleting_the_pod(fault: str) -> None:
    async with started() as stage:
        stage.patch(annotations={"sim.gpusharing.dev/inject": fault})
        await stage.until(
            lambda: "sim.gpusharing.dev/inject" not in stage.cluster.get(NODES, "n1")["metadata"]["annotations"]
        )
        stage.patch(labels={MIG_CONFIG: "all-1g.10gb", STATE: None})
        wedged = "pending" if fault == "wedge-pending" else "failed"
        await stage.until(lambda: stage.labels().get(STATE) == wedged)
        await stage.until(lambda: stage.labels()[DEPLOY_PLUGIN] == "paused-for-mig-change")
        pod = mig_pod(stage)
        assert pod is not None
        stage.cluster.delete(PODS, pod["metadata"]["name"], NAMESPACE)
        await stage.until(lambda: stage.labels().get(STATE) == "success")
        await stage.until(lambda: stage.labels()[DEPLOY_PLUGIN] == "true" and stage.offered()[GPU] == "2")


async def test_however_fast_time_runs_mig_manager_waits_for_calls_that_take_real_time() -> None:
    hasty = SimSettings(time_factor=FACTOR, agents=False, play_daemon_sets=True, times=Times(pod_wait=0.001))
    async with started(settings=hasty) as stage:
        stage.patch(labels={MIG_CONFIG: "all-1g.10gb", STATE: None})
        await stage.until(lambda: stage.labels().get(STATE) == "success")
        assert not stage.said("timed out waiting for operand pods")


async def test_a_wedge_that_is_lifted_does_not_come_either() -> None:
    async with started() as stage:
        stage.software.inject("n1", "wedge-pending")
        stage.patch(labels={MIG_CONFIG: "all-1g.10gb", STATE: None})
        await stage.until(lambda: stage.labels()[DEPLOY_PLUGIN] == "paused-for-mig-change")
        stage.software.inject("n1", "unwedge")
        await stage.until(lambda: stage.labels().get(STATE) == "success")
        await stage.until(lambda: stage.labels()[DEPLOY_PLUGIN] == "true")
        stage.software.inject("n1", "wedge-pending")
        stage.software.inject("n1", "unwedge")
        stage.patch(labels={MIG_CONFIG: "all-disabled", STATE: None})
        await stage.until(lambda: stage.labels().get(STATE) == "success")
        await stage.until(lambda: stage.offered() == {GPU: "2"})


async def test_a_fault_that_is_asked_for_before_the_end_of_the_last_one_was_answered_is_played() -> None:
    answer = asyncio.Event()

    class LateAnswers(FakeClient):
        async def call(self, request: ApiRequest) -> JSON:
            """Whoever watches knows of the removal before the one who asked for it."""
            written = await super().call(request)
            if request.body == REMOVAL:
                await answer.wait()
            return written

    def asked(stage: SimulatedCluster) -> str:
        return str(stage.cluster.get(NODES, "n1")["metadata"]["annotations"].get(ANNOTATION_INJECT, ""))

    async with started(client=LateAnswers) as stage:
        node = stage.software.nodes["n1"]
        stage.patch(annotations={ANNOTATION_INJECT: "wedge-pending"})
        await stage.until(lambda: not asked(stage))
        stage.patch(annotations={ANNOTATION_INJECT: "wedge-paused"})
        await eventually(lambda: node.object.annotations.get(ANNOTATION_INJECT) == "wedge-paused")
        answer.set()
        await stage.until(lambda: not asked(stage))
        assert (node.faults.wedge_pending, node.faults.wedge_paused) == (True, True)


async def test_a_reboot_takes_the_node_down_and_ends_in_success_on_ampere() -> None:
    async with started(node_manifest("n1", product=A100, gpus=2)) as stage:
        stage.software.inject("n1", "reboot")
        stage.patch(labels={PLUGIN_CONFIG: "mixed", MIG_CONFIG: "all-1g.5gb", STATE: None})
        await stage.until(lambda: stage.labels().get(STATE) == "rebooting")

        def ready() -> str:
            conditions = stage.cluster.get(NODES, "n1")["status"].get("conditions", [])
            return next((row["status"] for row in conditions if row["type"] == "Ready"), "")

        await stage.until(lambda: ready() == "Unknown")
        assert stage.cluster.get(NODES, "n1")["metadata"]["annotations"]["sim.gpusharing.dev/rebooting"] == "true"
        await stage.until(lambda: ready() == "True")
        await stage.until(lambda: stage.labels().get(STATE) == "pending")
        await stage.until(lambda: stage.labels().get(STATE) == "success")
        await stage.until(lambda: stage.offered() == {GPU: "0", "nvidia.com/mig-1g.5gb": "14"})


async def test_a_process_killed_in_the_middle_begins_again() -> None:
    async with started() as stage:
        stage.patch(labels={MIG_CONFIG: "all-1g.10gb", STATE: None})
        await stage.until(lambda: stage.labels()[DEPLOY_PLUGIN] == "paused-for-mig-change")
        stage.software.inject("n1", "kill-mig-manager")
        await stage.until(lambda: stage.labels().get(STATE) == "success")
        assert layouts_of(stage.software.nodes["n1"].gpus) == [("1g.10gb",) * 7] * 2


async def test_instances_lost_by_hand_show_in_the_labels_only() -> None:
    async with started() as stage:
        stage.patch(labels={PLUGIN_CONFIG: "mixed", MIG_CONFIG: "all-1g.10gb", STATE: None})
        await stage.until(lambda: stage.labels().get("nvidia.com/mig-1g.10gb.count") == "14")
        await stage.until(lambda: stage.offered().get("nvidia.com/mig-1g.10gb") == "14")
        stage.software.inject("n1", "lose-instances")
        await stage.until(lambda: "nvidia.com/mig-1g.10gb.count" not in stage.labels())
        assert stage.offered()["nvidia.com/mig-1g.10gb"] == "14"


async def test_a_node_that_is_deleted_in_the_middle_of_a_restart_leaves_no_task_behind() -> None:
    tasks: list[asyncio.Task[None]] = []

    def spawn(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        tasks.append(asyncio.create_task(work))
        return tasks[-1]

    async with playing() as stage:
        known = stage.software.nodes["n1"]
        node = SimNode(known.cluster, node_manifest("n2"), known.gpus, spawn)
        node.start()
        node.policy_changed(plugin=True, mig=False)
        node.stop()
        async with asyncio.timeout(60):
            await asyncio.gather(*tasks, return_exceptions=True)
        assert [task for task in tasks if not task.done()] == []


async def test_a_card_without_mig_has_no_mig_manager() -> None:
    async with playing(node_manifest("n1", product=L40S, gpus=4)) as stage:
        await asyncio.sleep(0.05)
        assert mig_pod(stage) is None
        assert MIG_CONFIG not in stage.labels()
        assert stage.offered() == {GPU: "4"}


async def test_an_idle_world_writes_nothing() -> None:
    async with playing(*(node_manifest(f"n{i}") for i in range(5))) as stage:
        await stage.until(lambda: len(stage.cluster.objects(CONFIG_MAPS)) == 6)
        async with asyncio.timeout(60):
            before = -1
            while len(stage.cluster.writes) != before:  # until it is idle, however slow this machine is
                before = len(stage.cluster.writes)
                await asyncio.sleep(0.2)  # 200 simulated seconds


async def test_the_shipped_agent_answers_requests_and_counts_what_pods_hold() -> None:
    settings = SimSettings(time_factor=FACTOR, play_daemon_sets=True, agent_interval=0.05)
    async with playing(settings=settings) as stage:
        pod = {
            "metadata": {"name": "train", "namespace": "ml"},
            "spec": {"nodeName": "n1", "containers": [{"name": "m", "resources": {"limits": {GPU: "1"}}}]},
            "status": {"phase": "Running"},
        }
        stage.cluster.add(PODS, pod)
        stage.cluster.add(GPUNODES, {"metadata": {"name": "n1"}, "spec": {"request": {"id": "r1", "quiet": False}}})

        def observed() -> JSON:
            found: JSON = stage.cluster.get(GPUNODES, "n1").get("status", {}).get("observed", {})
            return found

        await stage.until(lambda: observed().get("requestID") == "r1" and observed()["allocated"] == {GPU: 1})
        assert observed()["simulated"] is True
        assert [model["product"] for model in observed()["models"]] == [H100]
        assert len(observed()["gpus"]) == 2
        stage.cluster.patch(GPUNODES, "n1", {"spec": {"request": {"id": "r2", "quiet": True}}})
        await stage.until(lambda: observed()["requestID"] == "r2" and observed()["quiet"] is True)
        assert stage.software.nodes["n1"].gpus.open_sessions == 0
