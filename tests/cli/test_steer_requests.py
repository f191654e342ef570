"""Whoever may not patch Nodes retries, aborts and skips all the same, by a request on the GPUNode (kubectl_gpusharing/changing/steer.py, docs/adr/0082-requests-on-the-gpunode.md)."""

import pytest
from hack.sim.fakefaults import EVER
from tests.cli.asking import ME, ask, operated, writes
from tests.embedded.scene import FULL, MIXED, Scene
from tests.fakes.virtualtime import virtually

from gpusharing.kube.client import GPUNODES, NODES
from gpusharing.kube.errors import Forbidden, NotFound
from kubectl_gpusharing.shell.terminal import API
from kubectl_gpusharing.shell.troubles import DONE, Trouble

NO_NODES = Forbidden('User "me" cannot patch resource "nodes"')
ASKED = "Done: requested on the GPUNode, because you may not patch Nodes; the operator writes it to the Node."


def as_editor(scene: Scene) -> None:
    scene.e.cluster.faults.fail("patch", NODES, NO_NODES, times=EVER, identity=ME)


@virtually
async def test_an_editor_gives_a_change_up_leaves_the_node_out_takes_it_in_and_tries_again() -> None:
    async with operated(1, serving=FULL) as scene:
        as_editor(scene)
        scene.apply(MIXED)
        await scene.fenced("gpu-1")
        told = await ask(scene.e.cluster, "abort", "gpu-1", width=200)
        assert (told.status, told.out.splitlines()[-1]) == (DONE, ASKED)
        await scene.reason("gpu-1", "Deferred")
        await ask(scene.e.cluster, "skip", "gpu-1")
        await scene.reason("gpu-1", "SkipLabel")
        assert scene.labels("gpu-1")["gpusharing.dev/skip"] == "true"
        assert "already skipped" in await refused(scene, "skip", "gpu-1")
        await ask(scene.e.cluster, "skip", "gpu-1", "--undo", "--yes")
        await scene.reason("gpu-1", "Deferred")
        await ask(scene.e.cluster, "retry", "gpu-1", "--yes")
        await scene.ready(seconds=250)
        assert scene.requests("gpu-1") == {}


async def refused(scene: Scene, *words: str) -> str:
    with pytest.raises(Trouble) as raised:
        await ask(scene.e.cluster, *words)
    return str(raised.value)


@virtually
async def test_json_names_the_gpunode_and_the_patch_that_it_got() -> None:
    async with operated(1, serving=FULL) as scene:
        as_editor(scene)
        told = await ask(scene.e.cluster, "skip", "gpu-1", "-o", "json")
        patch = {"metadata": {"annotations": {"gpusharing.dev/skip": "true"}}}
        assert told.data == {
            "apiVersion": API,
            "kind": "Patch",
            "resource": "gpunodes",
            "name": "gpu-1",
            "patch": patch,
            "done": True,
        }
        await scene.e.until(lambda: not scene.requests("gpu-1"), "the request moved to the Node", 10)
        told = await ask(scene.e.cluster, "skip", "gpu-1", "--undo", "--yes", "-o", "json")
        assert told.data["patch"] == {"metadata": {"annotations": {"gpusharing.dev/skip": "false"}}}


REFUSALS = {
    "they may not patch GPUNodes either": (
        Forbidden('User "me" cannot patch resource "gpunodes"'),
        'cannot patch resource "gpunodes"',
    ),
    "the node has no GPUNode": (NotFound('gpunodes "gpu-1" not found'), 'cannot patch resource "nodes"'),
}


@pytest.mark.parametrize(("error", "words"), REFUSALS.values(), ids=REFUSALS)
@virtually
async def test_nothing_is_done_and_that_is_said_where(error: Exception, words: str) -> None:
    async with operated(1, serving=FULL) as scene:
        as_editor(scene)
        scene.e.cluster.faults.fail("patch", GPUNODES, error, times=EVER, identity=ME)
        assert words in await refused(scene, "skip", "gpu-1")
        assert writes(scene.e.cluster) == []
        assert "gpusharing.dev/skip" not in scene.labels("gpu-1")


@virtually
async def test_whoever_may_patch_nodes_writes_to_the_node() -> None:
    async with operated(1, serving=FULL) as scene:
        await ask(scene.e.cluster, "skip", "gpu-1")
        assert scene.requests("gpu-1") == {}
        assert scene.labels("gpu-1")["gpusharing.dev/skip"] == "true"
