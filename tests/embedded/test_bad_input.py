"""Whatever is wrong about a rollout freezes its own policy: object and value are named, nobody leaves, others go on."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hack.sim.workloads import SimWorkload
from tests.embedded.scene import FULL, HOUR, RARELY, SLICED, Scene, gpu_pod, node, open_scene, pdb
from tests.fakes.virtualtime import virtually

from gpusharing.kube.client import JSON, PDBS, PODS, POLICIES

CALM: JSON = {"drain": {"unmanagedPods": "Evict", "strandedPods": "Allow"}}


@dataclass(frozen=True)
class Wrong:
    """Something that is wrong: in the policy, or in what a person makes beside it."""

    reason: str
    said: tuple[str, ...]
    spec: JSON
    arrange: Callable[[Scene], None] = lambda scene: None


def ruled(**rollout: object) -> JSON:
    return {**SLICED, **CALM, "rollout": rollout}


def windowed(**fields: str) -> JSON:
    return ruled(windows=[{"schedule": "0 2 * * *", "duration": "6h", **fields}])


def approve(scene: Scene) -> None:
    scene.e.cluster.patch(POLICIES, "wrong", {"metadata": {"annotations": {"gpusharing.dev/approve": "0ldha5h"}}})


def mark(scene: Scene) -> None:
    metadata = {"annotations": {"gpusharing.dev/do-not-disrupt": "a while"}}
    scene.e.cluster.add(PODS, gpu_pod("marked", "gpu-1", metadata=metadata))


def guard(scene: Scene) -> None:
    scene.e.cluster.add(PDBS, pdb("keep", "llm", minAvailable=1))


def guard_twice(scene: Scene) -> None:
    scene.e.cluster.add(PDBS, pdb("one", "llm", minAvailable=0))
    scene.e.cluster.add(PDBS, pdb("two", "llm", minAvailable=0))


WRONG: dict[str, Wrong] = {
    "a selector with an operator that there is none": Wrong(
        "InvalidSpec", (
            'spec.drain.rules[0].podSelector.matchExpressions[0].operator "Gt": ',
            "for example {key: tier, operator: In, values: [batch]}"),
        {**SLICED, "drain": {"rules": [
            {"behavior": "Evict", "podSelector": {"matchExpressions": [{"key": "tier", "operator": "Gt"}]}}]}}),
    "a cron that does not exist": Wrong(
        "InvalidWindow", ("spec.rollout.windows[0].schedule", "0 25 * * *"), windowed(schedule="0 25 * * *")),
    "a zone that does not exist": Wrong(
        "InvalidWindow", ("spec.rollout.windows[0].timeZone", "Mars/Olympus"), windowed(timeZone="Mars/Olympus")),
    "a percentage of nonsense": Wrong(
        "InvalidSpec", ('spec.rollout.maxUnavailable "1000a%": ', 'for example 1 or "25%"'),
        ruled(maxUnavailable="1000a%")),
    "a behaviour that there is none": Wrong(
        "InvalidSpec", ('spec.drain.rules[0].behavior "Skip": ', "for example behavior: WaitCompleted"),
        {**SLICED, "drain": {"rules": [{"behavior": "Skip"}]}}),
    "a window that is never open long enough": Wrong(
        "WindowTooShort", ("spec.rollout.windows", "5m"), windowed(duration="5m")),
    "a canary larger than the pool": Wrong(
        "CanaryTooLarge", ("policy wrong", "spec.rollout.canary.nodes is 3", "{nodes: 1"), ruled(canary={"nodes": 3})),
    "an approval of an old hash": Wrong("ApprovalNeeded", ("0ldha5h",), ruled(approval="Manual"), approve),
    "a mark whose duration cannot be read": Wrong(
        "DoNotDisrupt", ("default/marked", "a while"), {**SLICED, **CALM}, mark),
    "two budgets on one pod": Wrong(
        "PDBConflict", ("default/llm-", "default/one, default/two"), {**SLICED, **CALM}, guard_twice),
    "a budget that never allows": Wrong(
        "PDBNeverAllows", ("default/llm-", "default/keep"), {**SLICED, **CALM},
        guard),
}  # fmt: skip


async def told_of(scene: Scene, reason: str) -> str:
    """The message of this reason: a spec that nobody can read owns no node, so its policy says it."""
    if reason == "InvalidSpec":
        row = await scene.until_condition("Accepted", "False", reason, "wrong")
    else:
        row = await scene.reason("gpu-1", reason)
    return str(row["message"])


@pytest.mark.parametrize("case", [case for case, wrong in WRONG.items() if wrong.reason == "InvalidSpec"])
@virtually
async def test_an_edit_that_nobody_can_read_freezes_the_nodes_of_its_policy_until_it_is_corrected(case: str) -> None:
    llm = SimWorkload("llm", 1, node_selector={"gpusharing.dev/pool": "b"})
    async with open_scene(node("gpu-1"), workloads=[llm], lease=RARELY) as scene:
        await scene.serve({**FULL, **CALM}, "wrong", seconds=HOUR)
        await scene.running("llm", 1)
        mark = scene.mark()
        scene.apply(WRONG[case].spec, "wrong")
        told = await told_of(scene, "InvalidSpec")
        assert [text for text in WRONG[case].said if text not in told] == [], told
        await asyncio.sleep(HOUR)
        assert (dict(scene.node_writes(mark)), scene.evicted()) == ({}, [])
        await scene.running("llm", 1)
        await scene.serve({**SLICED, **CALM}, "wrong", seconds=HOUR)
        assert len(scene.evicted()) == 1, "what the edit was about"


@pytest.mark.parametrize("case", WRONG)
@virtually
async def test_it_freezes_its_own_policy_is_named_with_its_value_and_holds_up_no_other(case: str) -> None:
    wrong = WRONG[case]
    llm = SimWorkload("llm", 1, node_selector={"gpusharing.dev/pool": "b"})
    async with open_scene(node("gpu-1"), node("gpu-2", pool="c"), workloads=[llm], lease=RARELY) as scene:
        await scene.running("llm", 1)
        if wrong.arrange is not approve:
            wrong.arrange(scene)
        scene.apply(wrong.spec, "wrong")
        if wrong.arrange is approve:
            wrong.arrange(scene)
        await scene.serve({**SLICED, **CALM}, "right", "c", seconds=HOUR)
        told = await told_of(scene, wrong.reason)
        assert [text for text in wrong.said if text not in told] == [], told
        await asyncio.sleep(HOUR)
        assert await told_of(scene, wrong.reason) == told
        assert not scene.node_writes()["gpu-1"]
        assert scene.evicted() == []
        await scene.running("llm", 1)
