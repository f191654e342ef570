"""A program that keeps undoing what the operator writes: how often is it answered, and who is told? (kube/sender.py)"""

import asyncio
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from typing import Literal

import pytest
from hack.sim.fakefaults import Write
from tests.embedded.scene import FULL, MIXED, MPS, SLICED, Scene, nodes, open_scene
from tests.embedded.test_configuration import SPACE
from tests.fakes.virtualtime import virtually

from gpusharing.api import names
from gpusharing.kube.client import (
    CONFIG_MAPS,
    GPUNODES,
    JSON,
    LEASES,
    NODES,
    ApiRequest,
    PassingClient,
    Resource,
)

PROOF = names.ANNOTATION_VERIFIED
THEIRS = {
    "manager": "argocd-controller",
    "operation": "Apply",
    "time": "2026-11-01T10:00:00Z",
    "fieldsV1": {"f:metadata": {"f:annotations": {f"f:{PROOF}": {}}}, "f:data": {"f:config.yaml": {}}},
}


class Reverter:
    """Makes a change as soon as the server has a write of the operator that `touches` what it undoes."""

    def __init__(
        self,
        scene: Scene,
        touches: Callable[[JSON], bool],
        change: JSON,
        resource: Resource = NODES,
        name: str = "gpu-1",
    ) -> None:
        self.writes = 0
        self.on = True
        before = scene.e.cluster.faults.on_write
        assert before is not None

        def after_each(write: Write, when: Literal["before", "after"]) -> None:
            before(write, when)
            ours = write.call.identity == "operator" and write.call.resource == resource and write.error is None
            if when == "after" and ours and self.on and touches(write.call.body or {}):
                scene.e.cluster.patch(resource, name, change, namespace="" if resource == NODES else SPACE)
                self.writes += 1

        scene.e.cluster.faults.on_write = after_each


class Stripper(PassingClient):
    """An admission webhook that drops one field from the operator's writes of a kind, and counts these writes."""

    def __init__(self, scene: Scene, resource: Resource, *path: str) -> None:
        super().__init__(scene.e.cluster.client("operator"))
        self.resource, self.path = resource, path
        self.on, self.writes = False, 0

    async def call(self, request: ApiRequest) -> JSON:
        if self.on and request.body and request.verb in ("create", "patch") and request.resource == self.resource:
            body = found = deepcopy(request.body)
            for key in self.path[:-1]:
                found = found.get(key) or {}
            self.writes += found.pop(self.path[-1], None) is not None
            request = replace(request, body=body)
        return await self.client.call(request)


def labels(body: JSON) -> JSON:
    found: JSON = body["metadata"].get("labels", {})
    return found


@pytest.mark.parametrize("value", [None, "{}"], ids=["removed", "overwritten"])
@virtually
async def test_a_proof_that_others_keep_undoing_is_written_again_once_at_once_and_then_ever_more_rarely(
    value: str | None,
) -> None:
    theirs: JSON = {"metadata": {"annotations": {PROOF: value}, "managedFields": [THEIRS] if value else []}}
    async with open_scene(*nodes(1), serving=FULL) as scene:
        reverter = Reverter(scene, lambda body: PROOF in body["metadata"].get("annotations", {}), theirs)
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
    async with open_scene(*nodes(1), serving=SLICED) as scene:
        name = scene.e.settings.plugin_config_map
        key = scene.labels("gpu-1")[names.LABEL_PLUGIN_CONFIG]
        theirs: JSON = {"data": {key: "theirs"}}
        reverter = Reverter(scene, lambda body: key in body.get("data", {}), theirs, CONFIG_MAPS, name)
        scene.e.cluster.patch(CONFIG_MAPS, name, theirs, namespace=SPACE)
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
        reverter = Reverter(scene, lambda body: strip in labels(body), {"metadata": {"labels": {strip: None}}})
        scene.apply(FULL)
        await asyncio.sleep(600)
        assert 2 <= reverter.writes <= 10
        assert f"metadata.labels[{strip}] of nodes gpu-1" in scene.transition("gpu-1")["message"]


@virtually
async def test_a_request_that_a_webhook_strips_is_written_ever_more_rarely_though_its_id_has_the_time() -> None:
    async with open_scene(*nodes(1), start=False) as scene:
        webhook = Stripper(scene, GPUNODES, "spec", "request")
        scene.e.start_operator(webhook)
        await scene.serve(FULL)
        webhook.on = True
        scene.apply(SLICED)
        await asyncio.sleep(600)
        assert 2 <= webhook.writes <= 10
        assert "spec.request of gpunodes gpu-1" in scene.transition("gpu-1")["message"]
        before = scene.events()["CallFailed"]
        await asyncio.sleep(1800)
        assert webhook.writes <= 20
        assert scene.events()["CallFailed"] - before <= 10
        webhook.on = False
        await scene.ready(seconds=900)


@virtually
async def test_an_edit_of_the_policy_is_carried_out_at_once_although_a_program_undoes_the_same_field() -> None:
    async with open_scene(*nodes(1), serving=FULL) as scene:
        label, wait = names.LABEL_MODE, 600
        reverter = Reverter(scene, lambda body: label in labels(body), {"metadata": {"labels": {label: "theirs"}}})
        scene.person("gpu-1", {"metadata": {"labels": {label: "theirs"}}})
        await asyncio.sleep(wait)
        for edit in range(3):
            reverter.writes = 0
            scene.apply(FULL, drain={"timeout": f"{edit + 20}m"})
            await asyncio.sleep(5)
            assert reverter.writes == 1


@virtually
async def test_no_node_starts_while_a_webhook_strips_the_claims_from_the_lease() -> None:
    async with open_scene(*nodes(2), start=False) as scene:
        webhook = Stripper(scene, LEASES, "metadata", "annotations")
        scene.e.start_operator(webhook)
        await scene.serve(FULL)
        webhook.on = True
        scene.apply(SLICED)
        await asyncio.sleep(600)
        assert 2 <= webhook.writes <= 20
        assert names.ANNOTATION_CLAIMS in scene.condition("Stalled")["message"]
        assert scene.fence("gpu-1") is scene.fence("gpu-2") is None
        webhook.on = False
        await scene.ready()


@virtually
async def test_a_label_that_others_add_again_after_the_operator_removed_it_is_removed_ever_more_rarely() -> None:
    async with open_scene(*nodes(1)) as scene:
        theirs: JSON = {"metadata": {"labels": {names.LABEL_POLICY: "gone"}}}
        reverter = Reverter(scene, lambda body: labels(body).get(names.LABEL_POLICY, "") is None, theirs)
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
    async with open_scene(*nodes(1), serving=FULL) as scene:
        scene.apply(spec)
        fence = await scene.fenced("gpu-1", "actuating", seconds=900)
        scene.e.cluster.patch(NODES, "gpu-1", {"metadata": {"labels": {names.LABEL_PLUGIN_CONFIG: value}}})
        await scene.ready(seconds=1800)
        assert scene.labels("gpu-1").get(names.LABEL_PLUGIN_CONFIG, "") == fence.target_plugin_config
        assert scene.events()["NodeFailed"] == 0


@virtually
async def test_a_label_of_the_device_plugin_that_others_keep_changing_fails_the_node_and_names_the_label() -> None:
    async with open_scene(*nodes(1), serving=FULL) as scene:
        label = names.LABEL_PLUGIN_CONFIG
        reverter = Reverter(scene, lambda body: label in labels(body), {"metadata": {"labels": {label: None}}})
        shown = await scene.reach(MIXED, phase="Failed")
        assert label in shown["message"]
        assert reverter.writes <= 20
