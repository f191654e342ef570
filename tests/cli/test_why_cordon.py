"""`why` of a pod that fits only behind the operator's own cordon, and what it says to do (kubectl_gpusharing/diagnosis/pod.py).
The nodes are SIMULATED and have two H100 each."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from hack.sim.workloads import SimWorkload
from tests.cli.asking import ask, operated
from tests.cli.test_why_rights import forbid
from tests.cli.test_whypod import held_pods
from tests.embedded.scene import FULL, HOUR, MIXED, SLICED, Scene, gpu_pod, node, pdb
from tests.fakes.virtualtime import virtually
from tests.wording import lacks

from gpusharing.kube.client import JSON, NODES, PDBS, PODS

STRANDED_OK: JSON = {"strandedPods": "Allow"}
UNPLACED: JSON = {"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False"}]}


@asynccontextmanager
async def deadlocked(spec: JSON, drain: JSON = STRANDED_OK) -> AsyncIterator[tuple[Scene, str]]:
    """One of two pods under a budget was evicted; its replacement is Pending, because its only node is being drained."""
    workload, budget = SimWorkload("llm", 2), pdb("keep", "llm", minAvailable=1)
    async with operated(1, workloads=[workload], budgets=[budget], serving=FULL) as scene:
        await scene.running("llm", 2)
        scene.apply(spec, drain=drain)
        await scene.reason("gpu-1", "PDBInUse")
        (waiting,) = [pod for pod in scene.pods("llm") if "nodeName" not in pod["spec"]]
        yield scene, str(waiting["metadata"]["name"])


async def told(scene: Scene, name: str) -> JSON:
    data: JSON = (await ask(scene.e.cluster, "why", f"pod/{name}", "-o", "json")).data
    return data


async def run(scene: Scene, command: str) -> None:
    await ask(scene.e.cluster, *command.split()[2:])


@virtually
async def test_a_pod_behind_our_cordon_learns_of_operator_deadline_and_deadlock_and_the_remedy_lets_it_start() -> None:
    async with deadlocked(SLICED) as (scene, name):
        data = await told(scene, name)
        deadline = scene.e.gpunode("gpu-1")["status"]["transition"]["deadline"]
        (service,) = data["services"]
        assert service["but"] == "the node is cordoned by the operator"
        said = data["conclusion"]
        assert not lacks(said, "only gpu-1", "keeps new pods off gpu-1")
        assert f"policy pool-b changes it to {scene.e.gpunode('gpu-1')['status']['transition']['wanted']}" in said
        assert f"(Draining, deadline {deadline})" in said
        assert not lacks(said, "PodDisruptionBudget default/keep", "that budget for this pod")
        assert "let default/keep allow one more eviction" in said
        (remedy,) = re.findall("kubectl gpusharing abort gpu-1", said)
        await run(scene, remedy)
        await scene.running("llm", 2)
        assert not scene.cordoned("gpu-1")


@virtually
async def test_a_budget_that_allows_one_more_eviction_ends_the_deadlock_too() -> None:
    async with deadlocked(SLICED) as (scene, name):
        assert "let default/keep allow one more eviction" in (await told(scene, name))["conclusion"]
        scene.e.cluster.patch(PDBS, "keep", {"spec": {"minAvailable": 0}}, "default")
        await scene.ready(seconds=HOUR)
        await scene.running("llm", 2)


@virtually
async def test_a_pod_that_the_new_layout_cannot_run_learns_how_the_node_stays_as_it_is() -> None:
    async with deadlocked(MIXED) as (scene, name):
        said = (await told(scene, name))["conclusion"]
        assert not lacks(said, "gpu-1 will not have")
        for command in ("kubectl gpusharing abort gpu-1", "kubectl gpusharing skip gpu-1"):
            assert command in said
            await run(scene, command)
        await scene.running("llm", 2)
        await scene.reason("gpu-1", "SkipLabel", seconds=HOUR)


@virtually
async def test_the_published_state_says_the_same_to_who_may_not_list_nodes_and_names_the_right_to_budgets() -> None:
    async with deadlocked(SLICED) as (scene, name):
        forbid(scene, NODES)
        said = (await told(scene, name))["conclusion"]
        forbid(scene, PDBS)
        blind = (await told(scene, name))["conclusion"]
    assert not lacks(
        said, "only gpu-1", "keeps new pods off gpu-1", "PodDisruptionBudget default/keep", "that budget for this pod"
    )
    assert said.endswith("To end this, let default/keep allow one more eviction, or give this pod another node")
    assert not lacks(blind, "new pods off gpu-1", "policy pool-b", "drain waits for PodDisruptionBudget default/keep")
    assert blind.endswith("The right to list poddisruptionbudgets would tell whether that budget waits for this pod")
    assert "can start" not in blind


@virtually
async def test_pods_for_which_no_drain_waits_are_told_to_wait_for_the_change_if_they_request_a_gpu() -> None:
    async with deadlocked(SLICED) as (scene, _):
        scene.e.cluster.add(PODS, {**gpu_pod("other", ""), "status": UNPLACED})
        said = (await told(scene, "other"))["conclusion"]
        scene.e.cluster.add(
            PODS, {**gpu_pod("bare", ""), "spec": {"containers": [{"name": "main"}]}, "status": UNPLACED}
        )
        bare = (await told(scene, "bare"))["conclusion"]
    assert not lacks(said, "can start on gpu-1")
    assert "abort" not in said
    assert not lacks(bare, "requests no GPU resource")


@virtually
async def test_a_drain_that_is_held_past_its_time_waits_for_a_person_and_abort_still_ends_the_deadlock() -> None:
    held: JSON = {**STRANDED_OK, "timeout": "5m", "onTimeout": "Hold"}
    async with deadlocked(SLICED, held) as (scene, name):
        await scene.reason("gpu-1", "DrainHeld")
        said = (await told(scene, name))["conclusion"]
        assert ", until a person acts)" in said
        assert "Its drain waits for PodDisruptionBudget default/keep" in said
        scene.e.cluster.add(PODS, {**gpu_pod("other", ""), "status": UNPLACED})
        other = (await told(scene, "other"))["conclusion"]
        assert (other.endswith(": kubectl gpusharing why gpu-1"), "abort" in other) == (True, False)
        scene.e.cluster.delete(PODS, "other", "default")
        await run(scene, "kubectl gpusharing abort gpu-1")
        await scene.running("llm", 2)


@virtually
async def test_a_pod_that_fits_on_another_node_too_is_not_sent_to_ours() -> None:
    async with deadlocked(SLICED) as (scene, name):
        spare = node("spare-1", pool="other")
        scene.e.cluster.add(NODES, {**spare, "spec": {"unschedulable": True}})
        said = (await told(scene, name))["conclusion"]
    assert not lacks(said, "each of gpu-1, spare-1")


@virtually
async def test_a_full_node_does_not_hide_the_deadlock_behind_our_cordon() -> None:
    async with deadlocked(SLICED) as (scene, name):
        scene.e.cluster.add(NODES, node("spare-1", pool="other"))
        for number in (1, 2):
            scene.e.cluster.add(PODS, gpu_pod(f"other-{number}", "spare-1"))
        await scene.e.until(lambda: held_pods(scene) == [1, 2], "a report of each node", 120)
        said = (await told(scene, name))["conclusion"]
        assert not lacks(said, "only gpu-1", "apart from spare-1, where other pods hold it", "Draining, deadline")
        assert not lacks(said, "that budget for this pod, so neither goes on before spare-1 has room for it")
        await run(scene, re.findall("kubectl gpusharing abort gpu-1", said)[0])
        await scene.running("llm", 2)
