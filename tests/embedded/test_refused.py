"""What cannot be carried out is refused with an alternative before anything is touched, and so is what would evict protected pods or
repartition under an unsafe driver."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from hack.embedded import CLUSTER_POLICY
from hack.sim.gpu import SimulatedGPUs
from hack.sim.workloads import SimWorkload
from tests.cli.asking import ask
from tests.drafacts import driver as dra_driver
from tests.drafacts import resource_slice, whole_gpu
from tests.embedded.scene import (
    FULL,
    H100,
    MIXED,
    SINGLE,
    SLICED,
    WITH_REBOOT,
    at_once,
    gpu_pod,
    node,
    nodes,
    open_scene,
)
from tests.embedded.test_changes import assert_as_wanted
from tests.fakes.virtualtime import virtually

from gpusharing.api import names
from gpusharing.kube.client import (
    CLUSTER_POLICIES,
    DAEMON_SETS,
    EVENTS,
    GPU_CLUSTERS,
    JSON,
    NODES,
    PODS,
    RESOURCE_SLICES,
)


@virtually
async def test_what_the_card_cannot_be_is_refused_with_an_alternative_before_anything_is_touched() -> None:
    async with open_scene(*nodes(1)) as scene:
        row = await scene.reject(
            {"mode": "MIG", "mig": {"layouts": [{"profiles": {"1g.99gb": 1}}]}}, reason="ProfileNotSupported"
        )
        assert "1g.10gb" in row["message"]
        await asyncio.sleep(300)
        assert not scene.node_writes()
        assert scene.transition("gpu-1")["phase"] == "Skipped"


NEWER = {"spec": {"rollout": {"onlyInTheDark": True}}}
"""A field of a newer version: ignored, it would let nodes be drained by day."""


@virtually
async def test_a_field_of_newer_crds_is_refused_before_anything_is_touched() -> None:
    async with open_scene(*nodes(2)) as scene:
        row = await scene.reject({**MIXED, "rollout": NEWER["spec"]["rollout"]}, reason="InvalidSpec")
        assert "spec.rollout.onlyInTheDark" in row["message"]
        assert "upgrade the operator" in row["message"]
        await asyncio.sleep(600)
        assert not scene.node_writes()


@virtually
async def test_a_field_of_newer_crds_in_a_running_change_lets_no_further_node_begin() -> None:
    async with open_scene(*nodes(2), serving=FULL) as scene:
        first = await scene.begin_any(MIXED, stage="actuating")
        await scene.reject({**MIXED, "rollout": NEWER["spec"]["rollout"]}, reason="InvalidSpec")
        mark = scene.mark()
        await asyncio.sleep(1800)
        assert set(scene.node_writes(mark)) <= {first}
        await scene.serve(MIXED)


def changed(value: object, *path: str) -> JSON:
    body: JSON = {path[-1]: value}
    for step in reversed(path[:-1]):
        body = {step: body}
    return {"spec": body}


@virtually
async def test_what_is_there_stays_visible_when_a_policy_is_refused_and_an_event_says_why() -> None:
    """ClusterPolicy is pointed at a ConfigMap that does not exist: the device plugins are gone, and pods run on."""
    async with open_scene(*nodes(2), workloads=[SimWorkload("llm", 4)], serving=FULL) as scene:
        await scene.running("llm", 4)
        elsewhere = changed("gone", "devicePlugin", "config", "name")
        scene.e.cluster.patch(CLUSTER_POLICIES, "cluster-policy", elsewhere)
        row = await scene.until_condition("Accepted", "False", "PluginConfigNotOurs")
        await asyncio.sleep(600)
        summary = scene.e.policy("pool-b")["status"]["summary"]
        assert (summary["layout"], summary["gpus"], summary["used"]) == ("1x full", 4, "4/0")
        told = await ask(scene.e.cluster, "status")
        assert "pool-b  Full 1x full  PluginConfigNotOurs  0/2 nodes, 4 GPUs, 320 GB, 4/0 devices used" in told.out
        (event,) = (one for one in scene.e.cluster.objects(EVENTS) if one["reason"] == "PluginConfigNotOurs")
        assert (event["type"], event["note"]) == ("Warning", row["message"])
        assert event["regarding"]["name"] == "pool-b"


STACKS: dict[str, tuple[JSON, JSON, str, str]] = {
    "the plugin's ConfigMap is not ours": (
        changed("theirs", "devicePlugin", "config", "name"),
        SLICED,
        "PluginConfigNotOurs",
        "kubectl patch clusterpolicy",
    ),
    "the GPUs are for virtual machines unless a label says otherwise": (
        changed({"enabled": True, "defaultWorkload": "vm-passthrough"}, "sandboxWorkloads"),
        SLICED,
        "WorkloadConfig",
        "kubectl label node gpu-1 --overwrite nvidia.com/gpu.workload.config=container",
    ),
    "own layouts without our mig-parted file": (
        changed("theirs", "migManager", "config", "name"),
        MIXED,
        "LayoutsNeedConfigMap",
        "gpusharing-mig-parted",
    ),
}


@pytest.mark.parametrize(("patch", "spec", "reason", "told"), STACKS.values(), ids=STACKS.keys())
@virtually
async def test_settings_that_would_override_us_are_named_with_the_command_that_mends_them(
    patch: JSON, spec: JSON, reason: str, told: str
) -> None:
    async with open_scene(*nodes(1)) as scene:
        scene.e.cluster.patch(CLUSTER_POLICIES, "cluster-policy", patch)
        await scene.reject(spec, reason=reason)
        # No command points at our ConfigMap before the operator has written it.
        await scene.e.until(lambda: told in scene.condition("Accepted")["message"], told, 3600)
        await asyncio.sleep(200)
        assert not scene.node_writes()
        scene.e.cluster.patch(CLUSTER_POLICIES, "cluster-policy", {"spec": None})
        scene.e.cluster.patch(CLUSTER_POLICIES, "cluster-policy", {"spec": CLUSTER_POLICY["spec"]})
        await scene.ready()


@virtually
async def test_a_strategy_that_another_node_lives_by_is_not_removed_by_any_message() -> None:
    async with open_scene(*nodes(1), node("gpu-2", pool="other")) as scene:
        cluster = scene.e.cluster
        cluster.patch(CLUSTER_POLICIES, "cluster-policy", changed("mixed", "mig", "strategy"))
        scene.person("gpu-2", {"metadata": {"labels": {names.LABEL_MIG_CONFIG: "all-1g.10gb"}}})
        await asyncio.sleep(300)
        row = await scene.reject(SINGLE, reason="MigStrategySet")
        told = await ask(cluster, "doctor", "-o", "json")
        for text in (row["message"], told.out):
            assert "gpu-2 (14 nvidia.com/mig-1g.10gb)" in text
            assert '"strategy":null' not in text
        scene.person("gpu-2", {"metadata": {"labels": {names.LABEL_MIG_CONFIG: "all-disabled"}}})
        await asyncio.sleep(300)
        assert '"strategy":null' in scene.condition("Accepted")["message"]
        assert "gpu-2 (" not in (await ask(cluster, "doctor", "-o", "json")).out


@virtually
async def test_a_named_configuration_works_without_our_mig_parted_file() -> None:
    async with open_scene(*nodes(1)) as scene:
        scene.e.cluster.patch(CLUSTER_POLICIES, "cluster-policy", changed(None, "migManager", "config", "name"))
        await scene.serve(SINGLE)
        assert_as_wanted(scene, SINGLE, "gpu-1")


@virtually
async def test_without_a_cluster_policy_or_with_a_dra_stack_nothing_is_done() -> None:
    async with open_scene(*nodes(1), cluster_policy=None) as scene:
        await scene.reject(SLICED, reason="ClusterPolicyMissing")
        scene.e.cluster.add(CLUSTER_POLICIES, CLUSTER_POLICY)
        scene.e.cluster.add(GPU_CLUSTERS, {"metadata": {"name": "gpus"}})
        await scene.until_condition("Accepted", "False", "UnsupportedStack")
        await asyncio.sleep(200)
        assert not scene.node_writes()


@virtually
async def test_with_a_dra_driver_in_place_of_the_device_plugin_what_is_missing_is_named() -> None:
    async with open_scene(*nodes(1)) as scene:
        cluster = scene.e.cluster
        cluster.add(DAEMON_SETS, dra_driver())
        cluster.add(RESOURCE_SLICES, resource_slice("gpu-1", [whole_gpu(0)]))
        cluster.patch(CLUSTER_POLICIES, "cluster-policy", changed(False, "devicePlugin", "enabled"))
        cluster.patch(CLUSTER_POLICIES, "cluster-policy", changed(False, "migManager", "enabled"))
        await scene.reject(SLICED, reason="UnsupportedStack")
        assert "would require consumable capacity" in scene.condition("Accepted")["message"]
        scene.apply(MIXED)

        def names(*words: str) -> Callable[[], bool]:
            return lambda: all(word in scene.condition("Accepted")["message"] for word in words)

        twice = "a device plugin and NVIDIA's DRA driver both manage the GPUs on gpu-1"
        await scene.e.until(names("migManager.enabled is false", twice), "both are named", 100)
        cluster.patch(CLUSTER_POLICIES, "cluster-policy", changed(True, "migManager", "enabled"))
        await scene.e.until(lambda: not names("migManager")(), "one is left", 100)
        assert names(twice)()
        await asyncio.sleep(200)
        assert not scene.node_writes()


@virtually
async def test_a_change_that_was_blocked_by_the_stack_in_the_middle_gives_the_node_back() -> None:
    async with open_scene(*nodes(1)) as scene:
        await scene.begin(SLICED, rollout=at_once(1))
        scene.e.cluster.patch(CLUSTER_POLICIES, "cluster-policy", changed("theirs", "devicePlugin", "config", "name"))
        await scene.released("gpu-1")
        assert not scene.cordoned("gpu-1")
        assert scene.e.cluster.get(NODES, "gpu-1")


OWNER = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "x", "uid": "rs", "controller": True}


def pod(namespace: str, name: str, *, gpu: bool) -> JSON:
    metadata: dict[str, Any] = {"name": name, "namespace": namespace, "ownerReferences": [OWNER]}
    return gpu_pod(name, "gpu-1", metadata=metadata, spec={} if gpu else {"containers": [{"name": "main"}]})


@virtually
async def test_a_gpu_pod_in_a_protected_namespace_is_known_before_the_node_would_be_cordoned() -> None:
    async with open_scene(*nodes(1)) as scene:
        scene.e.cluster.add(PODS, pod("kube-system", "profiler", gpu=True))
        transition = await scene.reach(SLICED, reason="ProtectedNamespace")
        assert (transition["phase"], transition["culprit"]) == ("Blocked", "kube-system/profiler")
        assert "operator.protectedNamespaces" in transition["blockers"][0]
        assert not scene.cordoned("gpu-1")
        assert scene.node_writes()["gpu-1"] == 0
        scene.e.cluster.delete(PODS, "profiler", "kube-system")
        await scene.ready()
        assert scene.evicted() == []


@pytest.mark.parametrize(
    ("namespace", "name", "reason"),
    [("kube-system", "dns", "ProtectedNamespace"), ("gpusharing", "gpusharing-operator-1", "OwnPod")],
)
@virtually
async def test_before_a_reboot_a_pod_that_must_stay_keeps_the_node_from_being_cordoned(
    namespace: str, name: str, reason: str
) -> None:
    async with open_scene(*nodes(1), cluster_policy=WITH_REBOOT, pod_name="gpusharing-operator-1") as scene:
        scene.e.cluster.add(PODS, pod(namespace, name, gpu=False))
        transition = await scene.reach(MIXED, reason=reason)
        assert (transition["phase"], transition["culprit"]) == ("Blocked", f"{namespace}/{name}")
        assert not scene.cordoned("gpu-1")
        assert scene.fence("gpu-1") is None
        scene.e.cluster.delete(PODS, name, namespace)
        await scene.ready(seconds=3600)
        assert scene.evicted() == []


@virtually
async def test_before_a_reboot_every_pod_leaves_and_the_change_is_announced_as_a_reboot() -> None:
    async with open_scene(*nodes(1), cluster_policy=WITH_REBOOT) as scene:
        scene.e.cluster.add(PODS, pod("default", "web", gpu=False))
        await scene.serve(MIXED, seconds=3600)
        assert scene.evicted() == ["web"]
        notes = [event["note"] for event in scene.e.cluster.objects(EVENTS) if event["reason"] == "Reconfiguring"]
        assert [note.endswith("(class Reboot)") for note in notes] == [True, True], "of the policy and of the GPUNode"


@virtually
async def test_a_change_that_needs_no_reboot_does_not_mind_the_operators_own_pod() -> None:
    async with open_scene(*nodes(1), pod_name="gpusharing-operator-1") as scene:
        scene.e.cluster.add(PODS, pod("gpusharing", "gpusharing-operator-1", gpu=False))
        scene.e.cluster.add(PODS, pod("kube-system", "dns", gpu=False))
        await scene.serve(MIXED)
        assert scene.evicted() == []


@virtually
async def test_nothing_is_repartitioned_under_an_unsafe_driver_and_what_is_not_mig_goes_on() -> None:
    old = SimulatedGPUs("gpu-1", (H100, H100), driver_version="580.95.05")
    async with open_scene(*nodes(1), hardware={"gpu-1": old}, serving=SLICED) as scene:
        since = scene.mark()
        transition = await scene.reach(MIXED, reason="UnsafeDriver")
        assert transition["phase"] == "Blocked"
        assert "580.159.03" in transition["message"]
        assert not scene.cordoned("gpu-1")
        assert scene.node_writes(since)["gpu-1"] == 0


@virtually
async def test_a_driver_that_hangs_pods_beside_instances_gets_every_layout_but_such_a_one() -> None:
    """NVIDIA/gpu-operator#1361: such a node was Synced, and new pods stayed Pending there."""
    hanging = SimulatedGPUs("gpu-1", (H100, H100), driver_version="570.148.08")
    beside = [{"devices": [0], "profiles": {"3g.40gb": 2}}, {"devices": [1], "profiles": {}}]
    async with open_scene(*nodes(1), hardware={"gpu-1": hanging}) as scene:
        transition = await scene.reach({"mode": "MIG", "mig": {"layouts": beside}}, reason="UnsafeDriver")
        assert transition["phase"] == "Blocked"
        assert "570.172.08" in transition["message"]
        assert not scene.cordoned("gpu-1")
        assert scene.fence("gpu-1") is None
        await scene.serve(MIXED)
