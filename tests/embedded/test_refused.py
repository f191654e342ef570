"""What cannot be carried out is refused with an alternative, before anything is touched."""

import asyncio
from collections.abc import Callable

import pytest
from hack.embedded import CLUSTER_POLICY
from hack.sim.workloads import SimWorkload
from tests.cli.asking import ask
from tests.drafacts import driver as dra_driver
from tests.drafacts import resource_slice, whole_gpu
from tests.embedded.scene import FULL, MIXED, SINGLE, SLICED, at_once, node, nodes, open_scene
from tests.embedded.test_changes import assert_as_wanted
from tests.fakes.virtualtime import virtually

from gpusharing.api import names
from gpusharing.kube.client import CLUSTER_POLICIES, DAEMON_SETS, EVENTS, GPU_CLUSTERS, JSON, NODES, RESOURCE_SLICES


@virtually
async def test_what_the_card_cannot_be_is_refused_with_an_alternative_before_anything_is_touched() -> None:
    async with open_scene(*nodes(1)) as scene:
        scene.apply({"mode": "MIG", "mig": {"layouts": [{"profiles": {"1g.99gb": 1}}]}})
        row = await scene.until_condition("Accepted", "False", "ProfileNotSupported")
        assert "1g.10gb" in row["message"]
        await asyncio.sleep(300)
        assert not scene.node_writes()
        assert scene.transition("gpu-1")["phase"] == "Skipped"


NEWER = {"spec": {"rollout": {"onlyInTheDark": True}}}
"""A field of a newer version: ignored, it would let nodes be drained by day."""


@virtually
async def test_a_field_of_newer_crds_is_refused_before_anything_is_touched() -> None:
    async with open_scene(*nodes(2)) as scene:
        scene.apply({**MIXED, "rollout": NEWER["spec"]["rollout"]})
        row = await scene.until_condition("Accepted", "False", "InvalidSpec")
        assert "spec.rollout.onlyInTheDark" in row["message"]
        assert "upgrade the operator" in row["message"]
        await asyncio.sleep(600)
        assert not scene.node_writes()


@virtually
async def test_a_field_of_newer_crds_in_a_running_change_lets_no_further_node_begin() -> None:
    async with open_scene(*nodes(2), serving=FULL) as scene:
        scene.apply(MIXED)
        first = await scene.any_fenced("actuating")
        scene.apply({**MIXED, "rollout": NEWER["spec"]["rollout"]})
        await scene.until_condition("Accepted", "False", "InvalidSpec")
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
        scene.apply(spec)
        await scene.until_condition("Accepted", "False", reason)
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
        scene.apply(SINGLE)
        row = await scene.until_condition("Accepted", "False", "MigStrategySet")
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
        scene.apply(SLICED)
        await scene.until_condition("Accepted", "False", "ClusterPolicyMissing")
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
        scene.apply(SLICED)
        await scene.until_condition("Accepted", "False", "UnsupportedStack")
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
