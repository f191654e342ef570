"""When the pods of a node are looked at: by LIST, at every look, and when (docs/design/drain.md#p1, T2; docs/design/transition.md#idle)."""

from datetime import datetime, timedelta
from itertools import pairwise

from hack.sim.fakecluster import FakeClient
from hack.sim.workloads import SimWorkload
from tests.embedded.scene import FULL, HOUR, SLICED, nodes, open_scene
from tests.fakes.virtualtime import virtual_now, virtually

from gpusharing.kube.client import JSON, PODS, ApiRequest
from gpusharing.planning.snapshot.views import PlanSettings

LLM = SimWorkload("llm", 2)
SETTLE, IDLE, POLL = (timedelta(seconds=getattr(PlanSettings(), name)) for name in ("settle", "idle", "poll"))
A_MOMENT = timedelta(seconds=1)
"""What passes make of a wait in virtual time: the debounce and the answers of the agent."""


class Looking(FakeClient):
    looks: list[tuple[str, datetime]]

    async def call(self, request: ApiRequest) -> JSON:
        if (request.verb, request.resource) == ("list", PODS):
            self.looks.append((request.query.get("fieldSelector", ""), virtual_now()))
        return await super().call(request)

    def at(self, node: str, begin: datetime, end: datetime) -> list[datetime]:
        """The looks at one node after `begin` and not after `end`."""
        found = [moment for selector, moment in self.looks if selector == f"spec.nodeName={node}"]
        return [moment for moment in found if begin < moment <= end]


@virtually
async def test_pods_are_listed_at_every_look_and_two_empty_lists_come_before_the_point_of_no_return() -> None:
    async with open_scene(*nodes(2), workloads=[LLM], start=False) as scene:
        client = Looking(scene.e.cluster, "operator")
        client.looks = []
        scene.e.start_operator(client)
        await scene.running("llm", 2)
        await scene.serve(FULL)
        name = str(scene.pods("llm")[0]["spec"]["nodeName"])
        scene.apply(SLICED)
        fenced = (await scene.fenced(name)).since
        await scene.e.until(lambda: len(scene.evicted()) == 2, "evictions", 600)
        evicted = virtual_now()
        running = scene.e.cluster.objects
        await scene.e.until(
            lambda: not running(PODS, label_selector="app=llm", field_selector=f"spec.nodeName={name}"), "idle", 600
        )
        gone = virtual_now()
        actuated = (await scene.fenced(name, "actuating")).stage_since
        await scene.ready()

    assert client.at(name, fenced, fenced + SETTLE - timedelta(microseconds=1)) == [], "the race with the scheduler"
    draining = client.at(name, fenced, gone)
    assert timedelta(0) <= draining[0] - fenced - SETTLE <= A_MOMENT
    assert evicted < gone
    assert len(draining) >= 6, "thirty seconds of grace, and a look every five"
    gaps = [later - earlier for earlier, later in pairwise(draining)]
    assert max(gaps) <= POLL + A_MOMENT, "not one look, and not a watch: a LIST at every tick"
    empty = client.at(name, gone, actuated)
    assert empty[-1] - empty[0] >= IDLE, "two empty LISTs, and not the clock, prove it"
    assert actuated - empty[-1] <= IDLE, "the last look is right before the change"


@virtually
async def test_an_idle_node_is_proven_idle_by_two_lists_after_its_cordon() -> None:
    async with open_scene(*nodes(1), start=False) as scene:
        client = Looking(scene.e.cluster, "operator")
        client.looks = []
        scene.e.start_operator(client)
        fenced = (await scene.begin(SLICED)).since
        actuated = (await scene.fenced("gpu-1", "actuating")).stage_since
        await scene.ready()
    empty = client.at("gpu-1", fenced, actuated)
    assert empty[0] - fenced >= SETTLE
    assert empty[-1] - empty[0] >= IDLE, "what was seen before the cordon proves nothing"


@virtually
async def test_an_operator_that_starts_after_the_last_holder_left_proves_the_node_idle_from_scratch() -> None:
    async with open_scene(*nodes(1), workloads=[SimWorkload("llm", 1)]) as scene:
        await scene.running("llm", 1)
        fenced = (await scene.begin(SLICED, drain={"strandedPods": "Allow"})).since
        there = scene.e.cluster.objects

        def nearly_proven() -> bool:
            holders = there(PODS, label_selector="app=llm", field_selector="spec.nodeName=gpu-1")
            return not holders and bool(scene.e.gpunode("gpu-1")["status"]["observed"].get("quiet"))

        await scene.e.until(nearly_proven, "the agent's answer on an empty node", 600)
        await scene.e.kill_operator()
        fence = scene.fence("gpu-1")
        assert fence is not None
        assert fence.stage == "fenced"
        client = Looking(scene.e.cluster, "operator")
        client.looks = []
        scene.e.start_operator(client)
        actuated = (await scene.fenced("gpu-1", "actuating")).stage_since
        await scene.ready(seconds=HOUR)
        assert len(scene.evicted()) == 1
    empty = client.at("gpu-1", fenced, actuated)
    assert empty[-1] - empty[0] >= IDLE, "the LISTs of the one before prove nothing"
    assert actuated - empty[-1] <= IDLE
