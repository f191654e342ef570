"""`import` on SIMULATED fleets that somebody configured by hand (kubectl_gpusharing/setup/importing.py, kubectl_gpusharing/setup/handmade.py, kubectl_gpusharing/shell/drawing.py, kubectl_gpusharing/live/files.py)."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml
from hack.cluster.nodes import LABEL_POOL
from hack.sim.fakecluster import FakeCluster
from hack.sim.fakefaults import EVER
from hack.sim.workloads import SimWorkload
from tests import plainchart
from tests.build import make_node, make_stack
from tests.cli.asking import ME, ask, install, writes
from tests.embedded.plainscene import bare
from tests.embedded.scene import L40S, Scene, node, open_scene
from tests.fakes.virtualtime import virtually
from tests.recipes import DOCUMENTED, MIG, NOS, PLUGIN, RECIPES, Recipe, RecipePool
from tests.wording import lacks

from gpusharing.api import names
from gpusharing.kube.client import (
    CLUSTER_POLICIES,
    CONFIG_MAPS,
    DAEMON_SETS,
    DEPLOYMENTS,
    GPUNODES,
    JSON,
    NODES,
    POLICIES,
)
from gpusharing.kube.errors import Forbidden
from gpusharing.kube.sourcesettings import AdminMaps
from gpusharing.planning.stack.effects import UPSTREAM_MIG_CONFIG
from gpusharing.planning.vocabulary.lengths import counted
from kubectl_gpusharing.live.cluster import OPERATOR
from kubectl_gpusharing.setup.handmade import presume
from kubectl_gpusharing.setup.importing import PROVEN
from kubectl_gpusharing.shell.troubles import CHANGES, DONE, FAILED, Trouble

SPACE = "gpu-operator"
STATE = "nvidia.com/mig.config.state"
ADOPTED = {names.LABEL_MODE, names.LABEL_POLICY}
QUIET = 400.0
"""Seconds after which mig-manager, device plugin, GFD and agents have nothing more to do."""


# --- fleets ------------------------------------------------------------------------------------------------------


def manifests(recipe: Recipe) -> list[JSON]:
    """Its Nodes, labelled as somebody did it, before NVIDIA's programs have seen them."""
    found = []
    for pool, one in recipe.pools.items():
        for number in range(one.count):
            raw = node(f"{pool}-{number + 1}", one.product, pool, 2)
            raw["metadata"]["labels"] |= one.labels
            found.append(raw)
    return found


@asynccontextmanager
async def by_hand(recipe: Recipe, **more: Any) -> AsyncIterator[Scene]:
    """The fleet as its owner had it, then an operator that has no policy yet."""
    policy = {"metadata": {"name": "cluster-policy"}, "spec": recipe.cluster_policy, "status": {"state": "ready"}}
    async with open_scene(*manifests(recipe), start=False, cluster_policy=policy, **more) as scene:
        for name, data in recipe.config_maps.items():
            scene.e.cluster.add(CONFIG_MAPS, {"metadata": {"name": name, "namespace": SPACE}, "data": dict(data)})
        await asyncio.sleep(QUIET)
        install(scene.e.cluster)
        scene.e.start_operator()
        await asyncio.sleep(QUIET)
        yield scene


async def do_first(scene: Scene, maps: AdminMaps) -> None:
    """What `import` says has to come first: the chart's values, then ClusterPolicy's pointers."""
    await scene.e.kill_operator()
    scene.e.settings = replace(scene.e.settings, admin_plugin_config_map=maps.plugin, admin_mig_config_map=maps.mig)
    scene.e.start_operator()
    await asyncio.sleep(QUIET)
    pointers = {
        "devicePlugin": {"config": {"name": "gpusharing-device-plugin"}},
        "migManager": {"config": {"name": "gpusharing-mig-parted"}},
    }
    scene.e.cluster.patch(CLUSTER_POLICIES, "cluster-policy", {"spec": pointers})
    await asyncio.sleep(QUIET)


def policies(text: str) -> dict[str, JSON]:
    return {one["metadata"]["name"]: one for one in yaml.safe_load_all(text) if one}


def specs(recipe: Recipe) -> dict[str, JSON]:
    pools = {pool: {"matchLabels": {LABEL_POOL: pool}} for pool in recipe.pools}
    return {f"pool-{pool}": {"nodeSelector": chosen, **recipe.pools[pool].spec} for pool, chosen in pools.items()}


@pytest.mark.parametrize("recipe", [*RECIPES.values(), NOS], ids=[*RECIPES, "that nos divided"])
@virtually
async def test_a_fleet_by_hand_is_taken_over_without_disturbing_anybody(recipe: Recipe, tmp_path: Path) -> None:
    pods = SimWorkload("llm", 2, node_selector={LABEL_POOL: "c"})
    async with by_hand(recipe, workloads=[pods]) as scene:
        told = await ask(scene.e.cluster, "import")
        found = policies(told.out)
        assert (told.status, writes(scene.e.cluster)) == (DONE, [])
        assert {one: found[one]["spec"] for one in found} == specs(recipe)
        entries = [text for data in recipe.config_maps.values() for text in data.values()]
        more = any("passDeviceSpecs" in text for text in entries)
        assert ("cannot express" in told.out) == more
        said = told.out
        maps = AdminMaps(*[name for name in (*recipe.config_maps, "") if name != UPSTREAM_MIG_CONFIG][:2])
        for wanted in filter(None, (maps.plugin, maps.mig)):
            assert f"ConfigMap={wanted}" in said
        assert "kubectl patch clusterpolicy cluster-policy" in said
        before = {one["metadata"]["name"]: dict(scene.labels(one["metadata"]["name"])) for one in manifests(recipe)}
        await do_first(scene, maps)
        (tmp_path / "proposed.yaml").write_text(told.out)
        planned = await ask(scene.e.cluster, "plan", "-f", str(tmp_path / "proposed.yaml"))
        assert planned.status == DONE
        assert planned.out.count("nothing to change") == len(found)
        assert "stays as it is" not in planned.out
        for count in (one.count for one in recipe.pools.values()):
            assert not lacks(planned.out, counted(count, "node"), "already up to date")
        since = scene.mark()
        for one in found.values():
            scene.e.apply(one)
        await scene.ready(*found)
        await asyncio.sleep(QUIET)
        assert (scene.evicted(), scene.events()["Drifted"]) == ([], 0)
        assert scene.node_writes(since) == dict.fromkeys(before, 1)
        for write in scene.writes(since, "nodes"):
            assert write.call.body is not None
            assert write.call.body["metadata"]["labels"].keys() == ADOPTED
            assert "spec" not in write.call.body
        for node_name, labels in before.items():
            assert {key: scene.labels(node_name).get(key) for key in (MIG, PLUGIN, STATE)} == {
                key: labels.get(key) for key in (MIG, PLUGIN, STATE)
            }


@virtually
async def test_after_the_first_steps_nothing_more_has_to_come_first_and_the_policies_are_the_same(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with by_hand(DOCUMENTED) as scene:
        first = await ask(scene.e.cluster, "import", "-o", "json")
        maps = AdminMaps("time-slicing-config-fine", "custom-mig-config")
        await do_first(scene, maps)
        capsys.readouterr()
        again = await ask(scene.e.cluster, "import", "-o", "json")
    assert (first.data["kind"], len(first.data["items"])) == ("List", 4)
    assert again.data == first.data
    said, beyond = capsys.readouterr().err.splitlines()
    assert said.startswith("SIMULATED: a-1, a-2, b-1 and 2 more ")
    assert "pool-b has flags.plugin.passDeviceSpecs" in beyond


@virtually
async def test_without_the_merge_the_nodes_whose_labels_name_entries_would_lose_their_gpus() -> None:
    async with by_hand(DOCUMENTED) as scene:
        await do_first(scene, AdminMaps())
        assert scene.e.node("d-1")["status"]["allocatable"].get("nvidia.com/gpu", "0") == "0"


@virtually
async def test_nodes_that_have_a_policy_are_left_to_it() -> None:
    async with by_hand(DOCUMENTED) as scene:
        scene.apply({"mode": "Full"}, "mine", "c")
        await asyncio.sleep(QUIET)
        told = await ask(scene.e.cluster, "import")
    assert set(policies(told.out)) == {"pool-a", "pool-b", "pool-d"}


HALF = replace(DOCUMENTED, pools={"c": RecipePool({}, {"mode": "Full"}, count=2)})
BROKEN: dict[str, tuple[Mapping[str, str | None], str]] = {
    "mig-manager at work": ({STATE: "pending"}, "mig-manager is applying all-disabled (state pending)"),
    "mig-manager that failed": ({STATE: "failed"}, "mig-manager failed to apply all-disabled"),
    "a label that contradicts the hardware": (
        {MIG: "all-balanced", STATE: "success"},
        "nvidia.com/mig.config is all-balanced, but its GPUs have 1x full: mig-manager would change them at its next"
        " start. Run: kubectl label node c-2 --overwrite nvidia.com/mig.config=all-disabled",
    ),
    "a label that names no entry": (
        {PLUGIN: "ts-8"},
        "its device plugin is configured to use entry ts-8, but ConfigMap time-slicing-config-fine has no"
        " entry with that name",
    ),
    "labels of GFD that say something else": (
        {"nvidia.com/gpu.replicas": "3"},
        "it would be changed (disruption class PluginRestart): label nvidia.com/gpu.replicas is 3, but should be 1",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
@virtually
async def test_a_node_is_left_out_and_the_selector_with_it(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    labels, words = BROKEN[name]
    async with by_hand(HALF) as scene:
        scene.person("c-2", {"metadata": {"labels": dict(labels)}})
        told = await ask(scene.e.cluster, "import")
    (one,) = policies(told.out).values()
    assert told.status == CHANGES
    assert one["spec"]["nodeSelector"] == {
        "matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": ["c-1"]}]
    }
    assert told.out.count(f"# c-2 is left out: {words}") == 1
    assert "1 policy for 1 node" in (said := capsys.readouterr().err)
    assert "1 node left out" in said
    assert words not in said, "each comment is printed once"


@virtually
async def test_on_the_plain_stack_the_chart_of_the_device_plugin_is_upgraded() -> None:
    machine = bare(node("gpu-1", L40S))
    machine["metadata"]["labels"][PLUGIN] = "l40s"
    theirs = "time-slicing-config-fine"
    async with open_scene(machine, cluster_policy=None, sim={"plain_config": theirs}, start=False) as scene:
        for one in (plainchart.plugin(theirs), plainchart.discovery(theirs)):
            scene.e.cluster.add(DAEMON_SETS, one)
        data = dict(DOCUMENTED.config_maps[theirs])
        scene.e.cluster.add(CONFIG_MAPS, {"metadata": {"name": theirs, "namespace": SPACE}, "data": data})
        install(scene.e.cluster)
        scene.e.start_operator()
        await asyncio.sleep(QUIET)
        told = await ask(scene.e.cluster, "import")
    (one,) = policies(told.out).values()
    assert (told.status, one["spec"]["timeSlicing"]) == (DONE, {"replicas": 4})
    assert f"gpuOperator.adminPluginConfigMap={theirs}" in told.out
    assert "helm upgrade nvdp nvdp/nvidia-device-plugin" in told.out
    assert "config.name=gpusharing-device-plugin" in told.out


@virtually
async def test_without_a_clusterpolicy_there_is_nothing_to_apply() -> None:
    async with by_hand(HALF) as scene:
        scene.e.cluster.delete(CLUSTER_POLICIES, "cluster-policy")
        await asyncio.sleep(10)
        told = await ask(scene.e.cluster, "import")
    assert (told.status, policies(told.out)) == (FAILED, {})
    assert "ClusterPolicyMissing" in told.out


@virtually
async def test_without_the_configmap_that_clusterpolicy_names_its_entries_are_missing() -> None:
    async with by_hand(DOCUMENTED) as scene:
        scene.e.cluster.delete(CONFIG_MAPS, "time-slicing-config-fine", SPACE)
        told = await ask(scene.e.cluster, "import")
    assert set(policies(told.out)) == {"pool-a", "pool-c"}
    assert not lacks(told.out, "d-1", "l40s", "time-slicing-config-fine", "gpu-operator")


# --- before the operator is installed ---------------------------------------------------------------------------


@asynccontextmanager
async def untouched(recipe: Recipe) -> AsyncIterator[FakeCluster]:
    """The fleet, and nothing of ours: neither kinds nor a Deployment."""
    async with by_hand(recipe) as scene:
        cluster = scene.e.cluster
        await scene.e.kill_operator()
        cluster.delete(DEPLOYMENTS, OPERATOR, "gpusharing")
        for name in ("gpusharing-device-plugin", "gpusharing-mig-parted"):
            cluster.delete(CONFIG_MAPS, name, SPACE)
        cluster.uninstalled |= {POLICIES, GPUNODES}
        yield cluster
        cluster.uninstalled.clear()


@pytest.mark.parametrize("name", RECIPES)
@virtually
async def test_before_the_installation_the_same_policies_are_proposed_and_not_said_to_be_proven(name: str) -> None:
    recipe = RECIPES[name]
    async with untouched(recipe) as cluster:
        told = await ask(cluster, "import")
        assert writes(cluster) == []
    said = told.out
    found = policies(told.out)
    assert {one: found[one]["spec"] for one in found} == specs(recipe)
    assert told.status == DONE
    assert "nothing has been proven yet" in told.out
    assert PROVEN not in told.out
    assert "helm install gpusharing CHART -n gpusharing --create-namespace --set gpuOperator.admin" in said
    assert "kubectl gpusharing import > policies.yaml" in said
    assert "kubectl patch clusterpolicy" not in said


@virtually
async def test_a_node_that_nobody_labeled_is_left_out_with_the_layout_that_it_advertises() -> None:
    async with untouched(HALF) as cluster:
        cluster.patch(NODES, "c-2", {"metadata": {"labels": {MIG: None}}})
        shown = {"nvidia.com/gpu": "0", "nvidia.com/mig-1g.10gb": "14"}
        cluster.patch(NODES, "c-2", {"status": {"allocatable": shown}}, "", "status")
        told = await ask(cluster, "import")
    (one,) = policies(told.out).values()
    assert told.status == CHANGES
    assert one["spec"]["nodeSelector"]["matchExpressions"][0]["values"] == ["c-1"]
    why = "its GPUs are divided into 14x1g.10gb, and nvidia.com/mig.config is not set"
    assert f"c-2 is left out: {why}" in told.out
    assert not lacks(told.out, "unknown", "mig-manager", "c-2")
    assert "Run: kubectl label node c-2" not in told.out, "its agent has to read the GPUs first, as doctor says"


@pytest.mark.parametrize(
    ("product", "unhealthy", "presumed"),
    [("NVIDIA-H100-80GB-HBM3-MIG-1g.10gb", 0, None), ("NVIDIA-H100-80GB-HBM3", 0, 7), ("NVIDIA-H100-80GB-HBM3", 1, 8)],
)
def test_instances_that_are_served_as_gpus_are_not_presumed_to_be_whole(
    product: str, unhealthy: int, presumed: int | None
) -> None:
    """Of one GPU that somebody divided into seven, under strategy single and without mig-manager."""
    labels = {names.LABEL_GPU_PRODUCT: product, names.LABEL_GPU_PRESENT: "true"}
    served = make_node(labels=labels, resources={"nvidia.com/gpu": 7})
    found = presume(replace(served, unhealthy={"nvidia.com/gpu": unhealthy} if unhealthy else {}), make_stack())
    assert (len(found.observed.gpus) if found and found.observed else None) == presumed


@virtually
async def test_before_the_installation_a_right_that_is_missing_is_named_without_a_role_of_ours() -> None:
    async with untouched(HALF) as cluster:
        refusal = Forbidden('User "me" cannot list resource "nodes"')
        cluster.faults.fail("list", NODES, refusal, times=EVER, identity=ME)
        with pytest.raises(Trouble, match='cannot list resource "nodes"') as told:
            await ask(cluster, "import")
    assert "gpusharing-planner" not in str(told.value)


@virtually
async def test_a_fleet_is_taken_over_without_a_right_to_kinds_that_are_not_there_yet() -> None:
    """The API server refuses before it looks whether it serves a kind."""
    async with untouched(DOCUMENTED) as cluster:
        for resource, verb in product((POLICIES, GPUNODES), ("list", "watch")):
            refusal = Forbidden(f'User "me" cannot {verb} resource "{resource.plural}"')
            cluster.faults.fail(verb, resource, refusal, times=EVER, identity=ME)
        told = await ask(cluster, "import")
    assert (told.status, len(policies(told.out))) == (DONE, len(DOCUMENTED.pools))


@virtually
async def test_an_operator_whose_kinds_are_of_another_version_is_not_taken_for_none() -> None:
    async with by_hand(HALF) as scene:
        scene.e.cluster.uninstalled |= {POLICIES, GPUNODES}
        with pytest.raises(Trouble, match=r"no gpunodes\.gpusharing\.dev"):
            await ask(scene.e.cluster, "import")
        scene.e.cluster.uninstalled.clear()


@virtually
async def test_without_gpu_nodes_there_is_nothing_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    async with by_hand(replace(DOCUMENTED, pools={})) as scene:
        told = await ask(scene.e.cluster, "import")
    assert (told.status, policies(told.out)) == (DONE, {})
    assert "There is no GPU node" in capsys.readouterr().err
