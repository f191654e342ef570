"""What `doctor` tells people to do, done: on clusters as people have them, with any part of the operator installed (stack/installation.py)."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from tests.cli.asking import Answered, ask, install
from tests.cli.printed import QUIET, CommandPlayer, changes
from tests.cli.test_import import manifests
from tests.embedded.scene import L40S, MPS, nodes, open_scene
from tests.fakes.virtualtime import virtually
from tests.recipes import DOCUMENTED, PLUGIN, Recipe, RecipePool, time_slicing
from tests.wording import lacks

from gpusharing.kube.client import ACCESS_REVIEWS, CONFIG_MAPS, GPUNODES, JSON, POLICIES
from kubectl_gpusharing.shell.troubles import DONE

STATES = ("nothing", "CRDs only", "a chart without operator", "everything")
BEFORE = STATES[:2]
OURS = "gpusharing-device-plugin"
INSTALL = "helm install gpusharing CHART -n gpusharing --create-namespace"
MIG_MANAGER: JSON = {"enabled": True, "config": {"default": "all-disabled"}}
SLICED = {"any": time_slicing({"nvidia.com/gpu": 4})}


def pointed(name: str, default: str = "", **maps: dict[str, str]) -> Recipe:
    """Two nodes without MIG under a ClusterPolicy that names this ConfigMap for the device plugin."""
    config = {"name": name} | ({"default": default} if default else {})
    policy: JSON = {"devicePlugin": {"config": config} if name else {}, "migManager": MIG_MANAGER}
    return Recipe(policy, maps, {"a": RecipePool({}, {}, L40S, count=2)})


RECIPES: dict[str, tuple[Recipe, str]] = {
    "a fresh GPU Operator": (pointed(""), ""),
    "an entry for all nodes": (
        pointed("time-slicing-config-all", "any", **{"time-slicing-config-all": SLICED}),
        " --set gpuOperator.adminPluginConfigMap=time-slicing-config-all",
    ),
    "entries by label, and a mig-parted file": (
        DOCUMENTED,
        " --set gpuOperator.adminPluginConfigMap=time-slicing-config-fine,"
        "gpuOperator.adminMigConfigMap=custom-mig-config",
    ),
    "a ConfigMap that does not exist": (pointed("time-slicing-config"), ""),
    "ours, which does not exist yet": (pointed(OURS), ""),
    "somebody else's under the name of ours": (pointed(OURS, "any", **{OURS: SLICED}), ""),
}
"""What ClusterPolicy names, and with which values our chart is then installed."""


@asynccontextmanager
async def stage(recipe: Recipe, state: str, space: str = "gpu-operator") -> AsyncIterator[CommandPlayer]:
    """The fleet with so much of our operator. `space`: the namespace of the GPU Operator."""
    policy = {
        "metadata": {"name": "cluster-policy"},
        "spec": recipe.cluster_policy,
        "status": {"state": "ready", "namespace": space},
    }
    sim = {"gpu_operator_namespace": space}
    async with open_scene(*manifests(recipe), start=False, cluster_policy=policy, sim=sim) as scene:
        cluster, player = scene.e.cluster, CommandPlayer(scene)
        for name, data in recipe.config_maps.items():
            cluster.add(CONFIG_MAPS, {"metadata": {"name": name, "namespace": space}, "data": dict(data)})
        cluster.uninstalled |= {ACCESS_REVIEWS} | ({POLICIES, GPUNODES} if state == "nothing" else set())
        if state not in BEFORE:
            player.values |= {} if state == "everything" else {"operator.replicaCount": "0"}
            await player.roll_out()
        await asyncio.sleep(QUIET)
        yield player
        cluster.uninstalled.clear()


async def follow(player: CommandPlayer) -> Answered:
    """Do what `doctor` says until it has nothing more to do; returns its last answer. No node may lose a device."""
    for _ in range(8):
        told = await ask(player.scene.e.cluster, "doctor", "-o", "json")
        commands = dict.fromkeys(one["command"] for one in told.data["symptoms"])
        todo = [command for command in commands if changes(command)]
        if not todo:
            return told
        for command in todo:
            before = player.allocatable()
            await player.play(command)
            after = player.allocatable()
            fallen = [key for key, count in before.items() if after.get(key, 0) < count]
            assert not fallen, f"{command}: {before} -> {after}"
    raise AssertionError(f"doctor says the same again and again: {commands}")


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("name", RECIPES)
@virtually
async def test_whoever_does_what_doctor_says_loses_no_device_and_has_no_error_in_the_end(name: str, state: str) -> None:
    """NVIDIA/gpu-operator#835 and NVIDIA/k8s-device-plugin#582 are such clusters."""
    recipe, values = RECIPES[name]
    async with stage(recipe, state) as player:
        first = await ask(player.scene.e.cluster, "doctor", "-o", "json")
        if state in BEFORE:
            # A device plugin that cannot start offers no device, which is shown, too.
            printed = {one["command"] for one in first.data["symptoms"] if one["reason"] != "DeviceUnhealthy"}
            assert printed == {f"{INSTALL}{values}"}
            assert not first.data["installed"]
        told = await follow(player)
        assert [one for one in told.data["symptoms"] if one["severity"] == "ERROR"] == []
        assert told.status == DONE
        served = {node for node, _ in player.allocatable()}
        assert served == set(player.scene.e.software.nodes), "every node serves GPUs"


@pytest.mark.parametrize("state", STATES)
@virtually
async def test_our_configmaps_go_where_the_gpu_operator_is(state: str) -> None:
    """NVIDIA/gpu-operator#1606 has it in namespace nvidia."""
    async with stage(pointed(""), state, "nvidia") as player:
        first = await ask(player.scene.e.cluster, "doctor", "-o", "json")
        commands = {one["command"] for one in first.data["symptoms"]}
        if state in BEFORE:
            assert commands == {f"{INSTALL} --set gpuOperator.namespace=nvidia"}
        else:
            (one,) = (one for one in first.data["symptoms"] if one["reason"] == "GPUOperatorElsewhere")
            assert "NVIDIA's pods run in namespace nvidia" in one["message"]
            assert one["command"].endswith(" --reset-then-reuse-values --set gpuOperator.namespace=nvidia")
            assert not any("patch clusterpolicy" in command for command in commands)
        told = await follow(player)
        assert (told.status, len(player.allocatable())) == (DONE, 2)


@pytest.mark.parametrize("state", STATES)
@virtually
async def test_a_pointer_at_nothing_is_an_error_and_its_configmap_is_merged_nowhere(state: str) -> None:
    async with stage(pointed("time-slicing-config"), state) as player:
        assert player.allocatable() == {}
        told = await ask(player.scene.e.cluster, "doctor", "-o", "json")
        (one,) = (one for one in told.data["symptoms"] if one["reason"] == "PluginConfigNotOurs")
        assert one["severity"] == "ERROR"
        assert not lacks(one["message"], "time-slicing-config", "namespace gpu-operator")
        assert not any("admin" in each["command"] for each in told.data["symptoms"])


@virtually
async def test_a_label_that_names_no_entry_is_not_taken_off_while_its_node_serves_more_than_by_default() -> None:
    recipe = replace(DOCUMENTED, pools={"d": DOCUMENTED.pools["d"]})
    async with stage(recipe, "everything") as player:
        player.scene.person("d-1", {"metadata": {"labels": {PLUGIN: "gone"}}})
        await asyncio.sleep(QUIET)
        before = player.allocatable()
        told = await follow(player)
        assert player.allocatable() == before
        left = {one["reason"] for one in told.data["symptoms"] if one["severity"] == "ERROR"}
        assert left == {"PluginConfigNotOurs", "PluginConfigUnknown"}, "a person has to name an entry"


@virtually
async def test_whoever_mends_the_mps_daemon_as_doctor_says_gets_mps() -> None:
    """docs/design/nvidia.md#b5, with a device plugin that needs no upgrade."""
    sim = {"mps_signals": "/usr/bin/mps-control-daemon"}
    async with open_scene(*nodes(1, product=L40S), sim=sim) as scene:
        cluster, player = scene.e.cluster, CommandPlayer(scene)
        install(cluster)
        scene.apply(MPS)
        await scene.reason("gpu-1", "MPSNotSwitchable")
        told = await ask(cluster, "doctor", "-o", "json")
        (command,) = (row["command"] for row in told.data["symptoms"] if row["reason"] == "MPSNotSwitchable")
        assert changes(command)
        await player.play(command)
        await scene.ready()
        told = await ask(cluster, "doctor", "-o", "json")
        assert "MPSNotSwitchable" not in {row["reason"] for row in told.data["symptoms"]}
