"""Others who disrupt nodes work beside us on a SIMULATED cluster: one budget, and each keeps off the other's nodes (docs/design/drain.md#c5, C6). How they mark nodes is written here as their own code does it."""

import asyncio
from typing import Any

import pytest
from hack.sim.workloads import SimWorkload
from tests.embedded.scene import BEFORE_LISTS, HOUR, MIXED, SLICED, Scene, at_once, nodes, open_scene
from tests.fakes.virtualtime import virtually
from tests.nodewrites import CONFIGURED_LABEL, fence_of

from gpusharing.api import names
from gpusharing.kube.client import JSON, NODES
from gpusharing.kube.maintenance import find_marker

NEIGHBORS: dict[str, tuple[str, JSON, JSON]] = {
    "NVSentinel quarantines": (
        "NVIDIA NVSentinel",
        {"metadata": {"labels": {"dgxc.nvidia.com/nvsentinel-state": "quarantined"}}},
        {"metadata": {"labels": {"dgxc.nvidia.com/nvsentinel-state": None}}},
    ),
    "a driver upgrade": (
        "NVIDIA driver upgrade",
        {"metadata": {"labels": {"nvidia.com/gpu-driver-upgrade-state": "cordon-required"}}},
        {"metadata": {"labels": {"nvidia.com/gpu-driver-upgrade-state": "upgrade-done"}}},
    ),
    "nodewright interrupts": (
        "NVIDIA nodewright",
        {"metadata": {"annotations": {"nodewright.nvidia.com/cordon_tuning": "true"}}},
        {"metadata": {"annotations": {"nodewright.nvidia.com/cordon_tuning": None}}},
    ),
    "kured reboots": (
        "kured reboot",
        {"metadata": {"annotations": {"weave.works/kured-reboot-in-progress": "2026-11-21T10:00:00Z"}}},
        {"metadata": {"annotations": {"weave.works/kured-reboot-in-progress": None}}},
    ),
    "self node remediation": (
        "medik8s node remediation",
        {"spec": {"taints": [{"key": "remediation.medik8s.io/self-node-remediation", "effect": "NoExecute"}]}},
        {"spec": {"taints": None}},
    ),
}
everybody = pytest.mark.parametrize(("who", "mark", "unmark"), NEIGHBORS.values(), ids=NEIGHBORS)


def begin(scene: Scene, name: str, mark: JSON) -> None:
    scene.person(name, {**mark, "spec": {**mark.get("spec", {}), "unschedulable": True}})


def end(scene: Scene, name: str, unmark: JSON) -> None:
    scene.person(name, {**unmark, "spec": {**unmark.get("spec", {}), "unschedulable": None}})


@pytest.mark.parametrize("cordoned", [True, False], ids=["and has cordoned", "and has not cordoned yet"])
@everybody
@virtually
async def test_a_node_that_somebody_else_works_on_uses_up_the_budget_for_both(
    who: str, mark: JSON, unmark: JSON, cordoned: bool
) -> None:
    async with open_scene(*nodes(2)) as scene:
        begin(scene, "gpu-1", mark) if cordoned else scene.person("gpu-1", mark)
        shown = await scene.reach(SLICED, rollout=at_once(1), reason="ForeignMaintenance")
        assert shown["message"].startswith(f"{who} is working on gpu-1")
        full = await scene.reason("gpu-2", "BudgetFull")
        begun = f"to be unavailable at once ({who} has begun to work on gpu-1); waiting"
        assert cordoned or begun in full["message"], "else both are away a moment later"
        assert scene.node_writes() == {}
        end(scene, "gpu-1", unmark)
        await scene.ready()


@virtually
async def test_a_driver_upgrade_that_waits_for_weeks_takes_no_slot() -> None:
    async with open_scene(*nodes(2)) as scene:
        scene.person("gpu-1", {"metadata": {"labels": {names.LABEL_UPGRADE_STATE: "upgrade-required"}}})
        scene.apply(SLICED, rollout=at_once(1))
        await scene.phase("gpu-2", "Synced")
        await scene.reason("gpu-1", "ForeignMaintenance")


@pytest.mark.parametrize("cordons", [True, False], ids=["that cordons too", "that only marks"])
@everybody
@virtually
async def test_one_that_comes_during_the_drain_gets_the_node_and_keeps_its_mark_and_cordon(
    who: str, mark: JSON, unmark: JSON, cordons: bool
) -> None:
    async with open_scene(*nodes(1)) as scene:
        await scene.begin(SLICED)
        begin(scene, "gpu-1", mark) if cordons else scene.person("gpu-1", mark)
        await scene.fenced("gpu-1", "yielded", 30)
        assert find_marker(scene.e.node("gpu-1")).who == who, "nothing of theirs was taken away"
        assert scene.cordoned("gpu-1")
        assert names.LABEL_UPGRADE_SKIP not in scene.labels("gpu-1")
        assert not set(names.NEIGHBOR_ANNOTATIONS) & set(scene.annotations("gpu-1"))
        since = scene.mark()
        await asyncio.sleep(1800)
        assert scene.writes(since, "nodes") == []
        assert scene.transition("gpu-1")["reason"] == "ForeignMaintenance"
        end(scene, "gpu-1", unmark) if cordons else scene.person("gpu-1", unmark)
        await scene.released("gpu-1")
        assert not scene.cordoned("gpu-1")
        await scene.ready(seconds=1800)


@everybody
@virtually
async def test_one_that_comes_after_the_point_of_no_return_keeps_our_cordon_until_it_is_done(
    who: str, mark: JSON, unmark: JSON
) -> None:
    async with open_scene(*nodes(1)) as scene:
        await scene.begin(MIXED, stage="actuating")
        begin(scene, "gpu-1", mark)
        await scene.fenced("gpu-1", "yielded", HOUR)
        assert scene.cordoned("gpu-1")
        assert find_marker(scene.e.node("gpu-1")).who == who
        await scene.e.until(lambda: scene.events()["CordonKept"] == 1, "an Event that says so", 10)
        await scene.reason("gpu-1", "ForeignMaintenance")
        end(scene, "gpu-1", unmark)
        await scene.released("gpu-1", 60)
        assert not scene.cordoned("gpu-1"), "nobody else would ever lift it"
        await scene.ready()
        assert scene.events()["Reconfiguring"] == 1, "what was proven is proven"
        await scene.e.until(lambda: scene.events()["LayoutVerified"] == 1, "the Event of the proof", 60)


def upgrade(state: str | None) -> JSON:
    return {"metadata": {"labels": {names.LABEL_UPGRADE_STATE: state}}}


def sriov(state: str) -> JSON:
    return {"metadata": {"annotations": {"sriovnetwork.openshift.io/state": state}}}


ANNOUNCED = {
    "a driver upgrade of all nodes": "upgrade-required",
    "a driver upgrade that waits for a NodeMaintenance": "node-maintenance-required",
}
UNFINISHED = "has not finished with gpu-1"
UNCLEAR: dict[str, tuple[str, JSON, JSON]] = {
    "a driver upgrade that failed": (
        "NVIDIA's driver upgrade failed on gpu-1", upgrade("upgrade-failed"), upgrade("upgrade-done")),
    "a drain for SR-IOV": (f"SR-IOV network operator {UNFINISHED}", sriov("Drain_Required"), sriov("Idle")),
    "a reboot for SR-IOV": (f"SR-IOV network operator {UNFINISHED}", sriov("Reboot_Required"), sriov("Idle")),
}  # fmt: skip
announced = pytest.mark.parametrize("state", ANNOUNCED.values(), ids=ANNOUNCED)
unclear = pytest.mark.parametrize(("said", "mark", "unmark"), UNCLEAR.values(), ids=UNCLEAR)


@pytest.mark.parametrize("stage", ["fenced", "actuating"])
@announced
@virtually
async def test_one_that_is_announced_in_the_middle_of_a_change_waits_for_it_and_finds_no_cordon(
    state: str, stage: str
) -> None:
    """It finds our cordon, and would leave its own for ever because of that."""
    async with open_scene(*nodes(1)) as scene:
        scene.apply(MIXED)
        await scene.fenced("gpu-1", stage)
        scene.person("gpu-1", upgrade(state))
        scene.person("gpu-1", {"metadata": {"annotations": {names.ANNOTATION_UPGRADE_CORDONED: "true"}}})
        assert names.LABEL_UPGRADE_SKIP in scene.labels("gpu-1"), "it keeps out meanwhile"
        await scene.ready(seconds=HOUR)
        assert not scene.cordoned("gpu-1")
        assert names.LABEL_UPGRADE_SKIP not in scene.labels("gpu-1")
        assert names.ANNOTATION_UPGRADE_CORDONED not in scene.annotations("gpu-1")


@announced
@virtually
async def test_one_that_is_announced_while_we_stand_aside_for_another_does_not_keep_our_cordon(state: str) -> None:
    _, mark, unmark = NEIGHBORS["kured reboots"]
    async with open_scene(*nodes(1)) as scene:
        await scene.begin(SLICED)
        scene.person("gpu-1", mark)
        await scene.fenced("gpu-1", "yielded", 30)
        scene.person("gpu-1", upgrade(state))
        scene.person("gpu-1", unmark)
        await scene.released("gpu-1", 60)
        assert not scene.cordoned("gpu-1")
        shown = await scene.reason("gpu-1", "ForeignMaintenance")
        assert shown["message"].startswith("NVIDIA driver upgrade is waiting for gpu-1")
        scene.person("gpu-1", upgrade("upgrade-done"))
        await scene.ready(seconds=1800)


@pytest.mark.parametrize(("spec", "stage"), [(SLICED, "fenced"), (MIXED, "actuating")], ids=["drained", "done"])
@unclear
@virtually
async def test_one_that_failed_or_may_have_begun_keeps_the_cordon_of_a_node_that_is(
    said: str, mark: JSON, unmark: JSON, spec: JSON, stage: str
) -> None:
    async with open_scene(*nodes(1)) as scene:
        await scene.begin(spec, stage=stage)
        scene.person("gpu-1", mark)
        await scene.fenced("gpu-1", "yielded", 30 if stage == "fenced" else HOUR)
        await asyncio.sleep(HOUR)
        assert scene.cordoned("gpu-1")
        assert said in scene.transition("gpu-1")["message"]
        scene.person("gpu-1", unmark)
        await scene.released("gpu-1", 60)
        assert not scene.cordoned("gpu-1")
        await scene.ready(seconds=1800 if stage == "fenced" else BEFORE_LISTS)


# --- labels that a cluster's own agents heed ------------------------------------------------------------------


@virtually
async def test_a_label_of_a_clusters_own_is_on_a_node_while_it_changes_and_stays_where_somebody_had_set_it() -> None:
    async with open_scene(*nodes(2), neighbor_labels=(f"{CONFIGURED_LABEL}=true",)) as scene:
        scene.person("gpu-1", {"metadata": {"labels": {CONFIGURED_LABEL: "since-monday"}}})
        seen: dict[str, set[tuple[bool, str]]] = {"gpu-1": set(), "gpu-2": set()}

        def look(resource: Any, change: Any) -> None:
            if resource == NODES and change.new is not None:
                label = change.new["metadata"]["labels"].get(CONFIGURED_LABEL, "")
                seen[change.new["metadata"]["name"]].add((fence_of(change.new) is not None, label))

        scene.e.cluster.store.on_commit.append(look)
        await scene.serve(MIXED, rollout=at_once(1), seconds=HOUR)
        assert seen == {
            "gpu-1": {(False, "since-monday"), (True, "since-monday")},
            "gpu-2": {(False, ""), (True, "true")},
        }


KEY = "example.com/maintenance"


@pytest.mark.parametrize(
    ("kind", "mark", "lift"),
    [
        ("label", {"metadata": {"labels": {KEY: "planned"}}}, {"metadata": {"labels": {KEY: None}}}),
        (
            "taint",
            {"spec": {"taints": [{"key": KEY, "effect": "PreferNoSchedule"}]}},
            {"spec": {"taints": []}},
        ),
    ],
    ids=["label", "taint"],
)
@virtually
async def test_a_node_that_carries_a_key_of_the_admins_is_left_alone_until_it_goes(
    kind: str, mark: JSON, lift: JSON
) -> None:
    async with open_scene(*nodes(1), maintenance_keys=(KEY,)) as scene:
        scene.person("gpu-1", mark)
        transition = await scene.reach(SLICED, reason="ForeignMaintenance")
        assert transition["message"].startswith(f"someone ({kind} {KEY}) is working on gpu-1")
        assert scene.node_writes()["gpu-1"] == 0
        scene.person("gpu-1", lift)
        await scene.ready(seconds=HOUR)


# --- who repairs nodes when DCGM stops ------------------------------------------------------------------------


def nvsentinel_repairs(node: JSON) -> bool:
    """Its rules match every node but one with either label (fault-quarantine, default rule sets)."""
    found = node["metadata"].get("labels") or {}
    keys = ("nvsentinel.dgxc.nvidia.com/managed", "k8saas.nvidia.com/ManagedByNVSentinel")
    return not any(found.get(key) == "false" for key in keys)


def medik8s_repairs(node: JSON) -> bool:
    """NodeHealthCheck and self-node-remediation skip a node with this label."""
    found = node["metadata"].get("labels") or {}
    return found.get("remediation.medik8s.io/exclude-from-remediation") != "true"


@pytest.mark.parametrize("repairs", [nvsentinel_repairs, medik8s_repairs])
@virtually
async def test_a_health_agent_that_sees_dcgm_stop_does_not_repair_the_node(repairs: Any) -> None:
    async with open_scene(*nodes(1), workloads=[SimWorkload("llm", 1)]) as scene:
        await scene.running("llm", 1)
        stopped: list[bool] = []

        def look(resource: Any, change: Any) -> None:
            node = change.new
            if resource == NODES and node is not None:
                switch = (node["metadata"].get("labels") or {}).get("nvidia.com/gpu.deploy.dcgm")
                if switch != "true":
                    stopped.append(repairs(node))

        scene.e.cluster.store.on_commit.append(look)
        assert repairs(scene.e.node("gpu-1")), "an ordinary node is looked after"
        await scene.serve(MIXED, drain={"strandedPods": "Allow"}, seconds=HOUR)
        assert stopped, "mig-manager paused DCGM"
        assert not any(stopped)
        assert repairs(scene.e.node("gpu-1")), "and looked after again"
