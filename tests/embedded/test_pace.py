"""How fast pods are evicted, how often they are looked at, what that costs, and who has to wait for whom (docs/adr/0018-looks-at-blocked-nodes.md, docs/design/drain.md#p1, T2; docs/design/transition.md#idle)."""

import asyncio
from collections import Counter
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Literal

import pytest
from hack.sim.fakecluster import FakeClient
from hack.sim.fakefaults import Write
from hack.sim.workloads import SimWorkload
from tests.embedded.scene import FULL, HOUR, RARELY, SLICED, Scene, at_once, gpu_pod, nodes, open_scene, pdb
from tests.embedded.test_drain import OWNER, STRANDED_OK, busy
from tests.fakes.virtualtime import virtual_now, virtually

from gpusharing.api import names
from gpusharing.kube.client import JSON, LEASES, NODES, PDBS, PODS, ApiRequest
from gpusharing.kube.errors import Conflict
from gpusharing.planning.pools.choice import MOST_VAIN
from gpusharing.planning.snapshot.memory import LONGEST, LOOKS
from gpusharing.planning.snapshot.views import PlanSettings

OWNED = {"ownerReferences": [OWNER | {"kind": "ReplicaSet", "name": "llm"}]}


@virtually
async def test_forty_blocked_nodes_cost_a_few_lists_of_pods_per_poll_and_each_gets_its_turn() -> None:
    async with open_scene(*nodes(40)) as scene:
        for number in range(1, 41):
            scene.e.cluster.add(PODS, gpu_pod(f"alone-{number}", f"gpu-{number}"))
        scene.apply(SLICED)
        await scene.until_condition("Stalled", "True", "Blocked")
        await asyncio.sleep(120)
        before = scene.e.cluster.calls["operator", "list", "pods"]
        await asyncio.sleep(300)
        lists = scene.e.cluster.calls["operator", "list", "pods"] - before
        assert 150 <= lists <= 5 * 60 + 20, "every node once a minute, and five per poll at most"
        assert all(scene.transition(f"gpu-{n}")["culprit"] == f"default/alone-{n}" for n in range(1, 41))
        scene.e.cluster.delete(PODS, "alone-17", "default")
        await scene.phase("gpu-17", "Synced", seconds=300)


@virtually
async def test_nodes_under_one_budget_that_allows_one_pod_are_drained_one_after_the_other() -> None:
    budget = pdb("slow", "llm", maxUnavailable=1)
    async with open_scene(*nodes(6, gpus=1), workloads=[SimWorkload("llm", 4)], budgets=[budget]) as scene:
        await scene.running("llm", 4)
        await scene.serve(FULL, rollout=at_once(6))
        scene.apply(SLICED, rollout=at_once(6))
        most = 0

        def done() -> bool:
            nonlocal most
            holding = {str(pod["spec"].get("nodeName")) for pod in scene.pods("llm")}
            fenced = [f"gpu-{n}" for n in range(1, 7) if scene.fence(f"gpu-{n}") is not None]
            waiting = [name for name in fenced if name in holding and scene.transition(name).get("phase") == "Draining"]
            most = max(most, len(waiting))
            return scene.condition("Ready").get("status") == "True"

        await scene.until_condition("Ready", "False", "RolloutInProgress")
        await scene.e.until(done, "Ready", 2 * HOUR)
        assert most == 1


@virtually
async def test_a_pod_that_comes_back_to_the_cordoned_node_is_evicted_once_and_then_named() -> None:
    stubborn = SimWorkload("llm", 1, tolerations=({"operator": "Exists"},))
    async with open_scene(*nodes(1), workloads=[stubborn]) as scene:
        name = await busy(scene, 1)
        scene.apply(SLICED)
        transition = await scene.reason(name, "ToleratesCordon")
        assert "ReplicaSet llm" in transition["blockers"][0]
        await scene.reason(name, "Deferred")
        assert len(scene.evicted()) == 1
        assert not scene.cordoned(name)


@virtually
async def test_a_pod_whose_template_names_the_node_is_evicted_once_and_then_named() -> None:
    async with open_scene(*nodes(1)) as scene:
        for number in range(2):  # its controller starts the next one where the template says, cordon or not
            pod = gpu_pod(f"llm-{number}", "gpu-1", metadata=OWNED)
            scene.e.cluster.add(PODS, pod)
            if number == 0:
                scene.apply(SLICED)
                await scene.e.until(lambda: scene.evicted() == ["llm-0"], "the eviction", HOUR)
        transition = await scene.reason("gpu-1", "ToleratesCordon")
        assert "ReplicaSet llm started it here after the cordon" in transition["blockers"][0]
        await scene.reason("gpu-1", "Deferred")
        assert scene.evicted() == ["llm-0"]
        assert not scene.cordoned("gpu-1")


@virtually
async def test_a_pod_that_is_pinned_to_its_node_and_tolerates_the_cordon_is_named_before_it() -> None:
    pinned = SimWorkload(
        "llm", 1, node_selector={"kubernetes.io/hostname": "gpu-1"}, tolerations=({"operator": "Exists"},)
    )
    async with open_scene(*nodes(1), workloads=[pinned]) as scene:
        name = await busy(scene, 1)
        scene.apply(SLICED)
        transition = await scene.reason(name, "ToleratesCordon")
        assert transition["phase"] == "Blocked"
        assert scene.evicted() == []
        assert scene.fence(name) is None


@virtually
async def test_a_node_full_of_pods_is_drained_at_five_evictions_a_second() -> None:
    async with open_scene(*nodes(1)) as scene:
        for number in range(45):
            pod = gpu_pod(f"llm-{number}", "gpu-1", metadata=OWNED)
            scene.e.cluster.add(PODS, pod)
        moments: list[datetime] = []
        watched = scene.e.cluster.faults.on_write
        assert watched is not None

        def note(write: Write, when: Literal["before", "after"]) -> None:
            if when == "before" and write.call.verb == "evict":
                moments.append(virtual_now())
            watched(write, when)

        scene.e.cluster.faults.on_write = note
        await scene.serve(SLICED, drain=STRANDED_OK)
        assert len(moments) == 45
        pace = timedelta(seconds=2)
        busiest = max(sum(start <= moment < start + pace for moment in moments) for start in moments)
        assert busiest <= 10
        assert moments[-1] - moments[0] < timedelta(seconds=15)


@virtually
async def test_a_pod_that_is_asked_for_in_vain_is_asked_for_once_per_list() -> None:
    async with open_scene(*nodes(1)) as scene:
        for number in range(3):
            pod = gpu_pod(f"llm-{number}", "gpu-1", metadata=OWNED)
            scene.e.cluster.add(PODS, pod)
        calls = scene.e.cluster.calls
        scene.e.cluster.faults.fail("evict", PODS, Conflict("uid"), times=3, identity="operator")
        scene.apply(SLICED, drain=STRANDED_OK)
        await scene.e.until(lambda: calls["operator", "evict", "pods"] == 3, "three evictions", 1000)
        lists = calls["operator", "list", "pods"]
        await scene.e.until(lambda: calls["operator", "evict", "pods"] > 3, "a fourth eviction", 1000)
        assert calls["operator", "list", "pods"] > lists
        await scene.ready()


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
    async with open_scene(*nodes(2), workloads=[SimWorkload("llm", 2)], start=False) as scene:
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
        await scene.fenced("gpu-1", seconds=0)
        client = Looking(scene.e.cluster, "operator")
        client.looks = []
        scene.e.start_operator(client)
        actuated = (await scene.fenced("gpu-1", "actuating")).stage_since
        await scene.ready(seconds=HOUR)
        assert len(scene.evicted()) == 1
    empty = client.at("gpu-1", fenced, actuated)
    assert empty[-1] - empty[0] >= IDLE, "the LISTs of the one before prove nothing"
    assert actuated - empty[-1] <= IDLE


MINUTES = 3
POLLS = 60 / PlanSettings().poll
"""Polls in a minute."""


class Counting(FakeClient):
    """Counts the calls by verb and kind, those about the Lease apart."""

    counted: Counter[str]

    async def call(self, request: ApiRequest) -> JSON:
        if request.resource != LEASES:
            one = " of a node" * request.query.get("fieldSelector", "").startswith("spec.nodeName=gpu-")
            self.counted[f"{request.verb} {request.resource.plural}{one}"] += 1
        return await super().call(request)


@pytest.mark.parametrize("count", [20, 120])
@virtually
async def test_blocked_nodes_share_their_looks_and_nothing_is_written(count: int) -> None:
    async with open_scene(*nodes(count, gpus=1), start=False, lease=RARELY) as scene:
        client = Counting(scene.e.cluster, "operator")
        client.counted = Counter()
        scene.e.cluster.add(PDBS, pdb("llm", "llm", maxUnavailable=0))
        scene.e.start_operator(client)
        await scene.serve(FULL)
        for number in range(count):
            scene.e.cluster.add(
                PODS, gpu_pod(f"llm-{number}", f"gpu-{number + 1}", metadata={"labels": {"app": "llm"}, **OWNED})
            )
        scene.apply(SLICED, rollout=at_once(1))
        await asyncio.sleep(60 + 60 * count / (LOOKS * POLLS))
        await asyncio.sleep(3 * LONGEST.total_seconds())  # no back-off grows any more
        reasons = {scene.transition(f"gpu-{number + 1}")["reason"] for number in range(count)}
        assert reasons == {"PDBNeverAllows"}
        client.counted.clear()
        since, begun = scene.mark(), virtual_now()
        while virtual_now() - begun < timedelta(minutes=MINUTES):
            # Passes for other reasons, which must not put the looks off.
            scene.person("gpu-1", {"metadata": {"annotations": {"example.com/heartbeat": str(virtual_now())}}})
            await asyncio.sleep(3)
        calls = {kind: number / MINUTES for kind, number in client.counted.items()}
        loop = scene.e.loop
        assert loop is not None
        assert loop.plan is not None
        before = loop.plan.verdicts
        await asyncio.sleep(4 * PlanSettings().poll)
        after = loop.plan.verdicts
        assert scene.writes(since) == []
    looks = calls.pop("list pods of a node")
    assert looks == pytest.approx(min(count, LOOKS * POLLS), rel=0.1), "a look a minute, and five per poll together"
    assert calls.pop("list poddisruptionbudgets") <= 2 * POLLS + 1, "one for each pass that looks"
    # Pending pods once a minute, and every ten minutes what is watched, in pages.
    assert sum(calls.values()) <= 5 + count / 25, calls
    news = [name for name, verdict in after.items() if before[name] != verdict]
    assert len(news) <= 2 * 5 * LOOKS, "of nodes that were looked at or are about to be, whatever the clock says"


class Lookout(FakeClient):
    """When the pods of gpu-1 are listed, gpu-2 becomes a candidate, and 59 passes were in vain; the first list of its pods is slow. `missing` are nodes whose pods were wanted, too, and have not come."""

    scene: Scene
    missing = frozenset[str]()
    armed = False

    async def call(self, request: ApiRequest) -> JSON:
        listed = (request.verb, request.resource) == ("list", PODS)
        node = request.query.get("fieldSelector", "").removeprefix("spec.nodeName=") if listed else ""
        if node == "gpu-2":
            await asyncio.sleep(5)
        if node == "gpu-1" and self.armed:
            self.armed = False
            self.cluster.patch(NODES, "gpu-2", {"metadata": {"labels": {names.LABEL_SKIP: None}}})
            await asyncio.sleep(0.5)
            loop = self.scene.e.loop
            assert loop is not None
            # The pass that lists these pods has the memory already: it is changed in place.
            object.__setattr__(loop.memory, "vain_passes", {"pool-b": MOST_VAIN - 1})
            object.__setattr__(loop.memory, "wants_pods", loop.memory.wants_pods | self.missing)
        return await super().call(request)


@pytest.mark.parametrize(("missing", "told"), [((), True), (("gpu-3",), False)], ids=["no wait", "a wait"])
@virtually
async def test_after_sixty_passes_in_vain_the_policy_is_stalled_unless_pods_of_a_node_have_not_come(
    missing: tuple[str, ...], told: bool
) -> None:
    async with open_scene(*nodes(2), start=False) as scene:
        client = Lookout(scene.e.cluster, "operator")
        client.scene, client.missing = scene, frozenset(missing)
        scene.e.start_operator(client)
        await scene.serve(FULL)
        scene.e.cluster.add(PODS, gpu_pod("notebook", "gpu-1"))
        scene.person("gpu-2", {"metadata": {"labels": {names.LABEL_SKIP: "true"}}})
        await scene.reach(SLICED, rollout=at_once(2), drain={"strandedPods": "Allow"}, reason="Unmanaged")
        since = scene.mark()
        client.armed = True
        await scene.fenced("gpu-2", seconds=HOUR)
        bodies = [write.call.body or {} for write in scene.writes(since, "gpusharingpolicies")]
        rows = [row for body in bodies for row in (body.get("status") or {}).get("conditions") or ()]
        stalled = {(row["status"], row["reason"]) for row in rows if row["type"] == "Stalled"}
        assert (("True", "NoProgress") in stalled) is told, stalled
