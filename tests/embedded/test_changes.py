"""Every ordered change between modes, adoption, second card models, configurations of all kinds."""

import asyncio
import itertools

import pytest
from hack.sim.gpu import SimulatedGPUs
from tests.embedded.oracle import difference
from tests.embedded.scene import (
    A100,
    FULL,
    H100,
    L40S,
    MIXED,
    MODES,
    OTHER_MIXED,
    SLICED,
    Scene,
    at_once,
    node,
    nodes,
    open_scene,
)
from tests.fakes.virtualtime import virtually

from gpusharing.api import names
from gpusharing.kube.client import CONFIG_MAPS, JSON, POLICIES
from gpusharing.planning.wanted.pluginconfig import NEUTRAL_KEY

CHANGES = list(itertools.permutations(MODES, 2))


def assert_as_wanted(scene: Scene, spec: JSON, *node_names: str, owner: str = "pool-b") -> None:
    routing = {"Full": "full", "MIG": "mig", "MPS": "mps", "TimeSlicing": "time-slicing"}[spec["mode"]]
    if spec["mode"] == "MIG" and "timeSlicing" in spec:
        routing = "mig-time-slicing"
    for name in node_names:
        assert difference(spec, scene.e.node(name), scene.e.software.nodes[name]) == ""
        assert scene.labels(name)[names.LABEL_MODE] == routing
        assert scene.labels(name)[names.LABEL_POLICY] == owner
        assert not scene.cordoned(name)
        assert scene.fence(name) is None
        assert names.LABEL_UPGRADE_SKIP not in scene.labels(name)


@pytest.mark.parametrize(("before", "after"), CHANGES, ids=[f"{a} to {b}" for a, b in CHANGES])
@virtually
async def test_a_pool_goes_from_one_mode_to_another_with_one_node_write_per_step_and_two_more(
    before: str, after: str
) -> None:
    async with open_scene(*nodes(2), serving=MODES[before]) as scene:
        mark = scene.mark()
        await scene.serve(MODES[after])
        assert_as_wanted(scene, MODES[after], "gpu-1", "gpu-2")
        writes = 2 + (2 if "MPS" in (before, after) and "MIG" in before + after else 1)
        assert scene.node_writes(mark) == {"gpu-1": writes, "gpu-2": writes}
        assert scene.guard.largest["pool-b"] == 1


@virtually
async def test_a_node_that_is_as_wanted_is_adopted_with_one_write_of_our_own_labels() -> None:
    async with open_scene(*nodes(2), serving=FULL) as scene:
        assert_as_wanted(scene, FULL, "gpu-1", "gpu-2")
        writes = scene.writes(plural="nodes")
        assert {write.call.name for write in writes} == {"gpu-1", "gpu-2"}
        for write in writes:
            assert write.call.body is not None
            metadata = write.call.body["metadata"]
            assert metadata["labels"] == {names.LABEL_MODE: "full", names.LABEL_POLICY: "pool-b"}
            assert metadata["annotations"].keys() == {names.ANNOTATION_VERIFIED}
        assert len(writes) == 2
        assert not scene.evicted()


@virtually
async def test_a_node_of_no_policy_shows_what_is_there() -> None:
    async with open_scene(*nodes(1)) as scene:
        await scene.e.until(lambda: scene.transition("gpu-1").get("observed") == "1x full", "OBSERVED", 120)
        assert scene.transition("gpu-1")["reason"] == "Unowned"
        assert scene.transition("gpu-1")["wanted"] == ""
        await scene.serve(MIXED)
        scene.e.cluster.delete(POLICIES, "pool-b")
        await scene.e.until(lambda: scene.transition("gpu-1").get("reason") == "Unowned", "it to be let go", 120)
        assert scene.transition("gpu-1")["observed"] == "2x3g.40gb"


@virtually
async def test_a_policy_of_another_name_adopts_what_the_first_one_left_behind() -> None:
    async with open_scene(*nodes(2), serving=MIXED) as scene:
        scene.e.cluster.delete(POLICIES, "pool-b")
        await scene.e.until(
            lambda: all(names.LABEL_POLICY not in scene.labels(n) for n in ("gpu-1", "gpu-2")), "unowned", 60
        )
        mark = scene.mark()
        await scene.serve(MIXED, name="pool-c")
        writes = [write.call.body for write in scene.writes(mark, "nodes")]
        assert all("spec" not in (body or {}) for body in writes)
        assert scene.labels("gpu-1")[names.LABEL_POLICY] == "pool-c"


KURED = {"metadata": {"annotations": {"weave.works/kured-reboot-in-progress": "1"}}}


@pytest.mark.parametrize("how", ["renamed", "of higher priority"])
@pytest.mark.parametrize("stage", ["actuating", "yielded"])
@virtually
async def test_a_policy_that_takes_over_in_the_middle_of_a_rollout_counts_the_node_that_is_away(
    stage: str, how: str
) -> None:
    async with open_scene(*nodes(3)) as scene:
        await scene.serve(FULL, "old")
        for name in scene.e.software.nodes if stage == "actuating" else ():
            scene.e.software.inject(name, "wedge-pending")
        scene.apply(MIXED, "old", drain={"strandedPods": "Allow"})
        changing = await scene.any_fenced("actuating" if stage == "actuating" else "fenced")
        if stage == "yielded":
            scene.person(changing, KURED)
            await scene.fenced(changing, "yielded")
        if how == "renamed":
            scene.e.cluster.delete(POLICIES, "old")
        scene.apply(MIXED, "new", priority=5, drain={"strandedPods": "Allow"})
        others = scene.e.software.nodes.keys() - {changing}
        for name in others:
            await scene.reason(name, "BudgetFull", seconds=600)
        await asyncio.sleep(300)
        assert not any(scene.cordoned(name) for name in others)


@virtually
async def test_a_pool_of_two_mig_models_gets_the_layout_that_each_offers() -> None:
    async with open_scene(node("gpu-1", H100), node("gpu-2", A100)) as scene:
        await scene.serve({"mode": "MIG", "mig": {"config": "all-balanced"}}, rollout=at_once(2))
        balanced = {"mode": "MIG", "mig": {"config": "all-balanced"}}
        assert_as_wanted(scene, balanced, "gpu-1")
        instances = [sorted(i.profile for i in gpu.instances) for gpu in scene.e.software.nodes["gpu-2"].gpus.look()]
        assert instances == [["1g.10gb", "1g.10gb", "2g.20gb", "3g.40gb"]] * 2


@virtually
async def test_a_card_without_mig_in_the_pool_is_refused_and_the_others_are_changed() -> None:
    async with open_scene(node("gpu-1", H100), node("gpu-2", L40S)) as scene:
        await scene.reach(MIXED, phase="Synced")
        row = await scene.until_condition("Ready", "False", "NotMigCapable")
        assert "gpu-2" in row["message"]
        assert "1 of 2 nodes cannot serve the policy" in scene.condition("Accepted")["message"]
        assert_as_wanted(scene, MIXED, "gpu-1")
        assert scene.node_writes()["gpu-2"] == 0


@virtually
async def test_a_card_that_spec_products_leaves_out_is_skipped_and_does_not_keep_the_pool_from_ready() -> None:
    async with open_scene(node("gpu-1", H100), node("gpu-2", L40S)) as scene:
        await scene.serve(MIXED, products=["NVIDIA-H100-80GB-HBM3"])
        assert scene.transition("gpu-2")["reason"] == "ProductSkipped"
        assert scene.e.policy("pool-b")["status"]["summary"]["nodes"] == "1/1"
        assert scene.node_writes() == {"gpu-1": 3}


@virtually
async def test_cards_with_and_without_mig_time_slice_together_and_the_latter_never_get_mig_labels() -> None:
    async with open_scene(node("gpu-1", H100), node("gpu-2", L40S), serving=SLICED) as scene:
        assert_as_wanted(scene, SLICED, "gpu-1", "gpu-2")
        assert not [label for label in scene.labels("gpu-2") if label.startswith("nvidia.com/mig.config")]


@virtually
async def test_own_layouts_may_differ_from_gpu_to_gpu_and_leave_one_whole() -> None:
    spec: JSON = {
        "mode": "MIG",
        "mig": {
            "layouts": [{"devices": [0], "profiles": {"1g.10gb": 4, "3g.40gb": 1}}, {"devices": [1], "profiles": {}}]
        },
    }
    async with open_scene(*nodes(1), serving=spec) as scene:
        assert_as_wanted(scene, spec, "gpu-1")


@virtually
async def test_mixed_cards_inside_one_node_take_what_fits_them_both() -> None:
    hardware = {"gpu-1": SimulatedGPUs("gpu-1", [H100, A100])}
    async with open_scene(*nodes(1), hardware=hardware, serving=MIXED) as scene:
        assert_as_wanted(scene, MIXED, "gpu-1")


@virtually
async def test_a_change_of_geometry_only_restarts_the_plugin_and_keeps_nvml_clients() -> None:
    """Same resource names and counts: class PluginRestart, no cordon, no drain."""
    plain: JSON = {"mode": "TimeSlicing", "timeSlicing": {"replicas": 4}}
    strict: JSON = {"mode": "TimeSlicing", "timeSlicing": {"replicas": 4, "failRequestsGreaterThanOne": True}}
    async with open_scene(*nodes(1), serving=plain) as scene:
        mark = scene.mark()
        await scene.serve(strict)
        bodies = [write.call.body or {} for write in scene.writes(mark, "nodes")]
        assert not any("spec" in body for body in bodies)
        assert len(bodies) == 3
        assert_as_wanted(scene, strict, "gpu-1")


@virtually
async def test_a_settled_cluster_is_left_alone_for_an_hour() -> None:
    async with open_scene(*nodes(2), serving=MIXED) as scene:
        await asyncio.sleep(1)
        mark = scene.mark()
        await asyncio.sleep(3600)
        assert scene.writes(mark) == []


@virtually
async def test_config_maps_hold_what_is_used_and_nothing_else() -> None:
    async with open_scene(*nodes(1)) as scene:
        for spec in (MIXED, OTHER_MIXED, SLICED):
            await scene.serve(spec)
        await asyncio.sleep(5)
        plugin = scene.e.cluster.get(CONFIG_MAPS, "gpusharing-device-plugin", "gpu-operator")["data"]
        assert set(plugin) == {scene.labels("gpu-1")[names.LABEL_PLUGIN_CONFIG], NEUTRAL_KEY}
        mig = scene.e.cluster.get(CONFIG_MAPS, "gpusharing-mig-parted", "gpu-operator")["data"]["config.yaml"]
        assert "pool-b-" not in mig
        assert "all-disabled" in mig
