"""What a person decides about a rollout is written only on what they were shown (kubectl_gpusharing/changing/steer.py)."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from hack.sim.fakecluster import FakeClient, FakeCluster
from tests.build import make_fence
from tests.cli.asking import ME, ask, install, writes
from tests.cli.objects import gpunode
from tests.fakes.virtualtime import virtually

from gpusharing.api import names
from gpusharing.kube.client import GPUNODES, JSON, NODES, POLICIES, ApiRequest
from gpusharing.kube.fence import record_text
from gpusharing.planning.snapshot.records import Fence
from kubectl_gpusharing.changing.steer import TRIES
from kubectl_gpusharing.shell.troubles import DONE, Trouble

FENCE = make_fence()
Meddle = Callable[[FakeCluster], object]


class Meddler(FakeClient):
    """A person's client, with somebody else who writes before its calls."""

    def __init__(self, cluster: FakeCluster, *, second_get: Meddle | None = None, patches: int = 0) -> None:
        super().__init__(cluster, ME)
        self.gets, self.second_get, self.patches = 0, second_get, patches

    async def call(self, request: ApiRequest) -> JSON:
        """Before the second read of it the object changes: the person has thought about it. Before the first patches the kubelet writes."""
        if request.verb == "get":
            self.gets += request.resource != GPUNODES
            if self.gets == 2 and self.second_get is not None:
                self.second_get(self.cluster)
        elif request.verb == "patch" and self.patches:
            self.patches -= 1
            beat = {"metadata": {"labels": {"beat": str(self.patches)}}}
            self.cluster.patch(request.resource, request.name, beat)
        return await super().call(request)


def fleet(fence: Fence = FENCE) -> FakeCluster:
    """A policy and a node in flight, which is told as Failed; their operator is installed, and does nothing."""
    cluster = FakeCluster()
    install(cluster)
    cluster.add(POLICIES, {"metadata": {"name": "pool-b"}, "spec": {"mode": "Full"}})
    cluster.add(NODES, {"metadata": {"name": "gpu-1", "annotations": {names.ANNOTATION_FENCE: record_text(fence)}}})
    cluster.add(GPUNODES, gpunode("gpu-1", "Failed", "ActuatorFailed"))
    return cluster


def now_with(fence: Fence) -> Meddle:
    """The change in flight is another one, or somewhere else."""
    body = {"metadata": {"annotations": {names.ANNOTATION_FENCE: record_text(fence)}}}
    return lambda cluster: cluster.patch(NODES, "gpu-1", body)


def edit(cluster: FakeCluster) -> None:
    cluster.patch(POLICIES, "pool-b", {"spec": {"priority": 5}})


def make_anew(cluster: FakeCluster) -> None:
    cluster.delete(POLICIES, "pool-b")
    cluster.add(POLICIES, {"metadata": {"name": "pool-b"}, "spec": {"mode": "Full"}})


def renew(cluster: FakeCluster) -> None:
    cluster.delete(NODES, "gpu-1")
    cluster.add(NODES, {"metadata": {"name": "gpu-1"}})


MEANWHILE: dict[str, tuple[tuple[str, ...], Meddle, str]] = {
    "the policy was edited": (("pause", "pool-b"), edit, "gsp/pool-b changed since it was shown to you"),
    "the policy was made anew": (("pause", "pool-b"), make_anew, "gsp/pool-b changed since it was shown to you"),
    "the node was made anew": (("skip", "gpu-1"), renew, "node/gpu-1 changed since it was shown to you"),
    "the node has another change": (
        ("abort", "gpu-1"), now_with(replace(FENCE, op="op-2")), "node/gpu-1 changed since it was shown to you"),
    "the change passed the point of no return": (
        ("abort", "gpu-1"), now_with(replace(FENCE, stage="actuating")), "past the point of no return"),
    "the change to be retried went on": (
        ("retry", "gpu-1", "--yes"), now_with(replace(FENCE, stage="actuating")), "node/gpu-1 changed since"),
}  # fmt: skip


@pytest.mark.parametrize(("words", "meddle", "why"), MEANWHILE.values(), ids=MEANWHILE.keys())
@virtually
async def test_nothing_is_written_where_meanwhile(words: tuple[str, ...], meddle: Meddle, why: str) -> None:
    cluster = fleet()
    with pytest.raises(Trouble, match=why):
        await ask(cluster, *words, client=Meddler(cluster, second_get=meddle))
    assert writes(cluster) == []


@virtually
async def test_what_makes_no_difference_is_read_again_and_the_patch_sent_for_that() -> None:
    cluster = fleet()
    told = await ask(cluster, "abort", "gpu-1", client=Meddler(cluster, patches=2))
    assert (told.status, len(writes(cluster))) == (DONE, 3)
    node = cluster.get(NODES, "gpu-1")
    assert node["metadata"]["annotations"][names.ANNOTATION_ABORT] == FENCE.op


@virtually
async def test_an_object_that_is_written_all_the_time_is_left_alone_in_the_end() -> None:
    cluster = fleet()
    with pytest.raises(Trouble, match="node/gpu-1 was modified by somebody else 5 times in a row"):
        await ask(cluster, "abort", "gpu-1", client=Meddler(cluster, patches=99))
    assert len(writes(cluster)) == TRIES
    assert names.ANNOTATION_ABORT not in cluster.get(NODES, "gpu-1")["metadata"]["annotations"]


@virtually
async def test_a_node_that_is_left_to_somebody_else_is_not_given_up() -> None:
    cluster = fleet(replace(FENCE, stage="yielded"))
    with pytest.raises(Trouble, match="someone else is working on gpu-1"):
        await ask(cluster, "abort", "gpu-1")
    assert writes(cluster) == []
