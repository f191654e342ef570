"""A program that keeps undoing what the operator writes: how often is it answered, and who is told? (kube/sender.py)"""

import asyncio
from collections.abc import Callable
from typing import Literal

import pytest
from hack.sim.fakefaults import Write
from tests.embedded.scene import FULL, MIXED, MPS, SLICED, Scene, nodes, open_scene
from tests.embedded.test_configuration import SPACE
from tests.fakes.virtualtime import virtually

from gpusharing.api import names
from gpusharing.kube.client import CONFIG_MAPS, JSON, NODES

PROOF = names.ANNOTATION_VERIFIED
THEIRS = {
    "manager": "argocd-controller",
    "operation": "Apply",
    "time": "2026-11-01T10:00:00Z",
    "fieldsV1": {"f:metadata": {"f:annotations": {f"f:{PROOF}": {}}}, "f:data": {"f:config.yaml": {}}},
}


class Reverter:
    """Undoes each write of the operator to one field, as soon as the server has it."""

    def __init__(self, scene: Scene, kind: str, undo: Callable[[JSON], bool]) -> None:
        self.writes = 0
        self.on = True
        before = scene.e.cluster.faults.on_write
        assert before is not None

        def after_each(write: Write, when: Literal["before", "after"]) -> None:
            before(write, when)
            ours = write.call.identity == "operator" and write.call.resource.plural == kind and write.error is None
            if when == "after" and ours and self.on and undo(write.call.body or {}):
                self.writes += 1

        scene.e.cluster.faults.on_write = after_each


def undo_proof(scene: Scene, value: str | None) -> Callable[[JSON], bool]:
    def undo(body: JSON) -> bool:
        if PROOF not in body["metadata"].get("annotations", {}):
            return False
        change: JSON = {"metadata": {"annotations": {PROOF: value}, "managedFields": [THEIRS] if value else []}}
        scene.e.cluster.patch(NODES, "gpu-1", change)
        return True

    return undo


@pytest.mark.parametrize("value", [None, "{}"], ids=["removed", "overwritten"])
@virtually
async def test_a_proof_that_others_keep_undoing_is_written_again_once_at_once_and_then_ever_more_rarely(
    value: str | None,
) -> None:
    async with open_scene(*nodes(1)) as scene:
        await scene.serve(FULL)
        reverter = Reverter(scene, "nodes", undo_proof(scene, value))
        scene.e.cluster.patch(NODES, "gpu-1", {"metadata": {"annotations": {PROOF: None}}})
        await asyncio.sleep(2)
        assert reverter.writes == 1, "the first correction comes at once"
        await asyncio.sleep(28)
        assert reverter.writes <= 5
        await asyncio.sleep(3600)
        assert reverter.writes <= 24, "at most one write in five minutes"
        shown = scene.transition("gpu-1")
        assert shown["reason"] == "CallFailed"
        assert f"metadata.annotations[{PROOF}] of nodes gpu-1" in shown["message"]
        assert scene.condition("Stalled")["status"] == "True"
        assert PROOF in scene.condition("Stalled")["message"]
        assert scene.events()["CallFailed"] >= 1
        if value:
            assert "argocd-controller sets" in shown["message"]
        reverter.on = False
        await scene.phase("gpu-1", "Synced", seconds=400)
        await scene.ready()


@virtually
async def test_a_config_map_that_others_keep_undoing_is_written_ever_more_rarely_and_named_on_the_policy() -> None:
    async with open_scene(*nodes(1)) as scene:
        await scene.serve(SLICED)
        name = scene.e.settings.plugin_config_map
        key = scene.labels("gpu-1")[names.LABEL_PLUGIN_CONFIG]

        def undo(body: JSON) -> bool:
            if key not in body.get("data", {}):
                return False
            scene.e.cluster.patch(CONFIG_MAPS, name, {"data": {key: "theirs"}}, namespace=SPACE)
            return True

        reverter = Reverter(scene, "configmaps", undo)
        scene.e.cluster.patch(CONFIG_MAPS, name, {"data": {key: "theirs"}}, namespace=SPACE)
        await asyncio.sleep(30)
        assert 1 <= reverter.writes <= 5
        await asyncio.sleep(1800)
        assert reverter.writes <= 16
        row = scene.condition("Stalled")
        assert row["status"] == "True"
        assert f"data[{key}] of configmaps {SPACE}/{name}" in row["message"]
        assert scene.events()["CallFailed"] >= 1
        reverter.on = False
        await scene.e.until(lambda: scene.condition("Stalled")["status"] == "False", "the end of it", 700)


@virtually
async def test_a_webhook_that_strips_a_label_is_a_program_that_undoes_it() -> None:
    async with open_scene(*nodes(1)) as scene:
        strip = names.LABEL_MODE

        def undo(body: JSON) -> bool:
            if strip not in body["metadata"].get("labels", {}):
                return False
            scene.e.cluster.patch(NODES, "gpu-1", {"metadata": {"labels": {strip: None}}})
            return True

        reverter = Reverter(scene, "nodes", undo)
        scene.apply(FULL)
        await asyncio.sleep(600)
        assert 2 <= reverter.writes <= 10
        assert f"metadata.labels[{strip}] of nodes gpu-1" in scene.transition("gpu-1")["message"]


@virtually
async def test_a_label_that_others_add_again_after_the_operator_removed_it_is_removed_ever_more_rarely() -> None:
    async with open_scene(*nodes(1)) as scene:
        theirs: JSON = {"metadata": {"labels": {names.LABEL_POLICY: "gone"}}}

        def undo(body: JSON) -> bool:
            if body["metadata"].get("labels", {}).get(names.LABEL_POLICY, "") is not None:
                return False
            scene.e.cluster.patch(NODES, "gpu-1", theirs)
            return True

        reverter = Reverter(scene, "nodes", undo)
        scene.e.cluster.patch(NODES, "gpu-1", theirs)
        await asyncio.sleep(30)
        assert 2 <= reverter.writes <= 5
        await asyncio.sleep(3600)
        assert reverter.writes <= 24
        shown = scene.transition("gpu-1")
        assert shown["reason"] == "CallFailed"
        assert f"metadata.labels[{names.LABEL_POLICY}] of nodes gpu-1" in shown["message"]
        reverter.on = False
        await scene.e.until(lambda: names.LABEL_POLICY not in scene.labels("gpu-1"), "the end of it", 400)


@pytest.mark.parametrize("spec", [SLICED, MIXED, MPS], ids=["time-slicing", "mig", "mps"])
@pytest.mark.parametrize("value", [None, "theirs"], ids=["lost", "overwritten"])
@virtually
async def test_a_label_of_the_device_plugin_that_others_change_once_in_mid_change_is_written_again(
    spec: JSON, value: str | None
) -> None:
    async with open_scene(*nodes(1)) as scene:
        await scene.serve(FULL)
        scene.apply(spec)
        fence = await scene.fenced("gpu-1", "actuating", seconds=900)
        scene.e.cluster.patch(NODES, "gpu-1", {"metadata": {"labels": {names.LABEL_PLUGIN_CONFIG: value}}})
        await scene.ready(seconds=1800)
        assert scene.labels("gpu-1").get(names.LABEL_PLUGIN_CONFIG, "") == fence.target_plugin_config
        assert scene.events()["NodeFailed"] == 0


@virtually
async def test_a_label_of_the_device_plugin_that_others_keep_changing_fails_the_node_and_names_the_label() -> None:
    async with open_scene(*nodes(1)) as scene:
        label = names.LABEL_PLUGIN_CONFIG

        def undo(body: JSON) -> bool:
            if label not in body["metadata"].get("labels", {}):
                return False
            scene.e.cluster.patch(NODES, "gpu-1", {"metadata": {"labels": {label: None}}})
            return True

        await scene.serve(FULL)
        reverter = Reverter(scene, "nodes", undo)
        scene.apply(MIXED)
        shown = await scene.phase("gpu-1", "Failed")
        assert label in shown["message"]
        assert reverter.writes <= 20
