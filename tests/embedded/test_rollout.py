"""What a policy's rollout says about when its nodes start, with the whole operator in virtual time."""

import asyncio
from collections.abc import Callable
from datetime import timedelta
from functools import partial

import pytest
from hack.sim.fakefaults import Write
from hack.sim.gpu import SimulatedGPUs
from tests.build import H100
from tests.embedded.scene import FULL, HOUR, MIXED, RARELY, SLICED, Scene, at_once, gpu_pod, nodes, open_scene
from tests.embedded.test_people import claimed, claims
from tests.fakes.virtualtime import BEGIN, virtual_now, virtually

from gpusharing.api import names
from gpusharing.kube.client import NODES, PODS, POLICIES
from gpusharing.kube.fence import parse_record
from gpusharing.planning.snapshot.records import Verified

NIGHT = {"schedule": "0 22 * * *", "duration": "6h", "timeZone": "Pacific/Tarawa"}
LATE = BEGIN.replace(hour=10)
"""When it is 22:00 on Tarawa, an hour after the beginning of a test."""
DAY = 24 * HOUR


def note(scene: Scene, **annotations: str) -> None:
    body = {names.PREFIX + key: value for key, value in annotations.items()}
    scene.e.cluster.patch(POLICIES, "pool-b", {"metadata": {"annotations": body}})


def begun(scene: Scene, since: int = 0) -> list[Write]:
    return [write for write in scene.writes(since, "nodes") if '"stage":"fenced"' in str(write.call.body)]


@virtually
async def test_a_pool_changes_at_night_without_anybody_and_is_woken_by_the_clock() -> None:
    async with open_scene(*nodes(3), lease=RARELY) as scene:
        transition = await scene.reach(SLICED, rollout=at_once(3, windows=[NIGHT]), reason="WindowClosed")
        assert "2026-11-20T10:00:00Z" in transition["message"]
        assert scene.e.policy("pool-b")["status"]["summary"]["nextWindow"] == "2026-11-20T10:00:00Z"
        await scene.ready(seconds=2 * HOUR)
        assert LATE < virtual_now() < LATE + timedelta(minutes=15)
        assert len(begun(scene)) == 3


@virtually
async def test_a_window_that_closes_lets_the_node_in_flight_finish_and_the_rest_wait_for_the_next_one() -> None:
    short = {"schedule": "2 9,11 * * *", "duration": "45m", "timeZone": "UTC"}
    async with open_scene(*nodes(2), lease=RARELY) as scene:
        await asyncio.sleep(10)
        for name in ("gpu-1", "gpu-2"):
            scene.e.software.inject(name, "wedge-pending")
        first = await scene.begin_any(MIXED, rollout=at_once(1, windows=[short]))
        other = "gpu-2" if first == "gpu-1" else "gpu-1"
        await scene.phase(first, "Synced")
        await scene.reason(other, "WindowClosed")
        await scene.ready(seconds=3 * HOUR)
        assert virtual_now() > BEGIN.replace(hour=11, minute=2)


@virtually
async def test_the_canary_soaks_before_the_others_start_and_another_leader_knows_it() -> None:
    async with open_scene(*nodes(3)) as scene:
        first = await scene.begin_any(SLICED, rollout=at_once(3, canary={"nodes": 1, "soak": "1h"}))
        await scene.phase(first, "Synced")
        others = {"gpu-1", "gpu-2", "gpu-3"} - {first}
        for name in others:
            await scene.reason(name, "CanarySoak")
        await scene.e.kill_operator()
        scene.e.start_operator()
        await asyncio.sleep(1800)
        assert len(begun(scene)) == 1
        proof = parse_record(Verified, scene.annotations(first)[names.ANNOTATION_VERIFIED])[0]
        assert proof is not None
        assert proof.changed_at is not None
        await scene.ready(seconds=2 * HOUR)
        assert virtual_now() > proof.changed_at + timedelta(hours=1)
        assert len(begun(scene)) == 3
        await scene.serve(SLICED, rollout=at_once(3, canary={"nodes": 3, "soak": "1h"}))
        assert "the whole pool is the canary" in scene.condition("Accepted")["message"]


BREAKS: dict[str, Callable[[Scene, str], object]] = {
    "a person cordons it": lambda scene, name: scene.cordon(name),
    "its kubelet is silent": lambda scene, name: scene.e.cluster.patch(
        NODES, name, {"status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}}, subresource="status"
    ),
}


@pytest.mark.parametrize("broken", BREAKS.values(), ids=BREAKS)
@virtually
async def test_no_other_node_starts_after_the_soak_when_the_canary_breaks_in_it_because(
    broken: Callable[[Scene, str], object],
) -> None:
    async with open_scene(*nodes(3)) as scene:
        first = await scene.begin_any(SLICED, rollout=at_once(2, canary={"nodes": 1, "soak": "1h"}))
        await scene.phase(first, "Synced")
        await asyncio.sleep(300)
        broken(scene, first)
        other = next(name for name in ("gpu-1", "gpu-2", "gpu-3") if name != first)
        transition = await scene.reason(other, "CanaryNotServing", seconds=HOUR)
        assert f"{first}, a canary (spec.rollout.canary), no longer serves" in transition["message"]
        await asyncio.sleep(1.5 * HOUR)  # the soak would have ended after an hour
        assert [write.call.name for write in begun(scene)] == [first]


@virtually
async def test_a_plan_is_carried_out_under_one_approval_and_an_edit_needs_another() -> None:
    async with open_scene(*nodes(3)) as scene:
        await scene.reach(SLICED, rollout=at_once(1, approval="Manual"), reason="ApprovalNeeded")
        await asyncio.sleep(60)
        plan = scene.e.policy("pool-b")["status"]["plan"]["hash"]
        note(scene, approve=plan)
        await scene.ready()
        scene.apply(FULL, rollout=at_once(1, approval="Manual"))
        transition = await scene.reason("gpu-2", "ApprovalNeeded")
        assert (
            f"the plan goes beyond {plan}, which was approved: that plan is done, or the policy asks"
            in transition["message"]
        )


@virtually
async def test_a_proven_node_whose_gpu_is_lost_takes_no_approval_with_it() -> None:
    hardware = {name: SimulatedGPUs(name, [H100]) for name in ("gpu-1", "gpu-2")}
    async with open_scene(*nodes(2, gpus=1), hardware=hardware, serving=FULL) as scene:
        canary = {"nodes": 1, "soak": "1h"}
        await scene.reach(MIXED, rollout=at_once(1, approval="Manual", canary=canary), reason="ApprovalNeeded")
        await asyncio.sleep(60)
        plan = scene.e.policy("pool-b")["status"]["plan"]["hash"]
        note(scene, approve=plan)
        first = await scene.any_fenced()
        await scene.phase(first, "Synced")
        hardware[first].lose(0)
        other = "gpu-2" if first == "gpu-1" else "gpu-1"
        await scene.reason(other, "CanaryNotServing")
        assert scene.transition(first)["phase"] == "Blocked"
        assert scene.e.policy("pool-b")["status"]["plan"]["hash"] == plan


@virtually
async def test_who_is_to_approve_a_plan_sees_what_would_keep_it_from_being_carried_out() -> None:
    async with open_scene(*nodes(2)) as scene:
        scene.e.cluster.add(PODS, gpu_pod("bare", "gpu-1"))
        await scene.reach(SLICED, rollout=at_once(1, approval="Manual"), reason="ApprovalNeeded")

        def plan() -> dict[str, list[str]]:
            found: dict[str, list[str]] = scene.e.policy("pool-b")["status"]["plan"]
            return found

        await scene.e.until(lambda: bool(plan()["blockers"]), "what would block to be named", 60)
        assert plan()["podNames"] == [], "it would not be evicted"
        (line,) = plan()["blockers"]
        assert line.startswith("Unmanaged: Pod ")
        assert "/bare." in line
        assert not begun(scene)


async def first_failed(scene: Scene, *names_of_all: str) -> str:
    """The node on which mig-manager failed first; it would on the others too."""
    await asyncio.sleep(10)
    for name in names_of_all:
        scene.e.software.inject(name, "failed")
    first = await scene.begin_any(MIXED, rollout=at_once(1), stage="actuating")
    await scene.phase(first, "Failed")
    return first


@virtually
async def test_a_failed_node_halts_the_policy_until_a_person_resumes_this_halt() -> None:
    async with open_scene(*nodes(3)) as scene:
        first = await first_failed(scene, "gpu-1", "gpu-2", "gpu-3")
        scene.annotate(first, retry="again")
        await scene.phase(first, "Synced")
        other = next(name for name in ("gpu-1", "gpu-2", "gpu-3") if name != first)
        transition = await scene.reason(other, "Halted")
        assert f"{first} failed in this revision of the policy" in transition["message"]
        await asyncio.sleep(600)
        assert len(begun(scene)) == 1
        note(scene, resume=scene.e.policy("pool-b")["status"]["halt"])
        await scene.e.until(lambda: len(begun(scene)) == 2, "another node starts", HOUR)


def halted(scene: Scene) -> list[str]:
    shown = [scene.transition(f"gpu-{number}") for number in range(1, 5)]
    return [one["message"] for one in shown if one.get("reason") == "Halted"]


def are_halted(scene: Scene, count: int) -> bool:
    return len(halted(scene)) == count


@virtually
async def test_a_rollout_that_goes_on_after_a_failure_halts_again_after_as_many() -> None:
    """Or one look at the first failure would let every further node break, or go back, unseen."""
    async with open_scene(*nodes(4)) as scene:
        await scene.serve(SLICED, rollout=at_once(4), seconds=2 * HOUR)
        before = len(begun(scene))
        for number in range(1, 5):
            scene.e.software.inject(f"gpu-{number}", "refuse")
        scene.apply(MIXED, rollout=at_once(1, onFailure="Rollback"))
        hashes = set[str]()
        for count in (1, 2):
            await scene.e.until(partial(are_halted, scene, 4 - count), f"{count} failed, others halted", 3 * HOUR)
            await asyncio.sleep(600)
            assert len(begun(scene)) == before + count
            asked = scene.e.policy("pool-b")["status"]["halt"]
            hashes.add(asked)
            assert all(text.endswith(f"gpusharing.dev/resume={asked}") for text in halted(scene))
            note(scene, resume=asked)
        assert len(hashes) == 2


@virtually
async def test_a_policy_is_halted_when_a_node_is_deleted_in_the_middle_of_its_change() -> None:
    async with open_scene(*nodes(2)) as scene:
        first = await scene.begin_any(MIXED, stage="actuating")
        await scene.e.until(lambda: claimed(scene)[first].version is not None, "what would have failed", 60)
        scene.e.cluster.delete(NODES, first)
        other = "gpu-2" if first == "gpu-1" else "gpu-1"
        transition = await scene.reason(other, "Halted")
        assert f"{first} (deleted in the middle of its change) failed" in transition["message"]
        await asyncio.sleep(600)
        assert (len(begun(scene)), claims(scene)) == (1, set())
        note(scene, resume=scene.e.policy("pool-b")["status"]["halt"])
        await scene.ready()


@virtually
async def test_a_person_gives_up_one_change_by_its_name_before_the_point_of_no_return() -> None:
    async with open_scene(*nodes(1)) as scene:
        scene.e.cluster.add(PODS, gpu_pod("bare", "gpu-1"))
        fence = await scene.begin(SLICED, drain={"unmanagedPods": "Evict"})
        scene.annotate("gpu-1", abort="another")
        await asyncio.sleep(5)
        assert scene.fence("gpu-1") is not None, "another change was meant"
        scene.annotate("gpu-1", abort=fence.op)
        await scene.released("gpu-1", seconds=5)
        assert not scene.cordoned("gpu-1")
        transition = await scene.reason("gpu-1", "Deferred")
        assert "AbortRequested" in transition["message"]
        await scene.ready(seconds=HOUR)


@virtually
async def test_a_drain_that_a_pause_held_goes_on_when_the_pause_ends() -> None:
    async with open_scene(*nodes(1)) as scene:
        scene.e.cluster.add(PODS, gpu_pod("bare", "gpu-1"))
        evict = {"unmanagedPods": "Evict"}
        await scene.begin(SLICED, drain=evict)
        await scene.reach(SLICED, drain=evict, rollout=at_once(1, paused=True, whenPaused="Hold"), reason="Paused")
        await asyncio.sleep(300)
        assert scene.cordoned("gpu-1")
        assert scene.evicted() == []
        await scene.serve(SLICED, drain=evict)
        assert scene.evicted() == ["bare"]


@virtually
async def test_a_pause_that_aborts_restores_the_node_at_once_and_lets_it_start_when_it_ends() -> None:
    async with open_scene(*nodes(1)) as scene:
        await scene.begin(SLICED)
        scene.apply(SLICED, rollout=at_once(1, paused=True, whenPaused="Abort"))
        await scene.released("gpu-1", seconds=5)
        assert not scene.cordoned("gpu-1")
        await scene.reason("gpu-1", "Paused")
        resumed = virtual_now()
        await scene.serve(SLICED)
        assert virtual_now() - resumed < timedelta(minutes=5), "nothing was put off"


@virtually
async def test_a_skipped_node_is_shown_and_keeps_its_place_in_the_pool() -> None:
    async with open_scene(*nodes(2)) as scene:
        scene.person("gpu-1", {"metadata": {"labels": {names.LABEL_SKIP: "true"}}})
        scene.apply(SLICED, rollout=at_once("50%"))
        await scene.phase("gpu-2", "Synced")
        assert (await scene.reason("gpu-1", "SkipLabel"))["phase"] == "Skipped"
        assert scene.e.policy("pool-b")["status"]["summary"]["nodes"] == "1/2"
        assert scene.node_writes()["gpu-1"] == 0
        scene.person("gpu-1", {"metadata": {"labels": {names.LABEL_SKIP: None}}})
        await scene.ready()


@virtually
async def test_five_attempts_that_were_given_up_ask_for_a_person_and_stop_nobody_else() -> None:
    async with open_scene(*nodes(2), abort_backoff=10.0, lease=RARELY) as scene:
        scene.e.cluster.faults.on_write = lambda write, when: lift(scene, write, when)
        transition = await scene.reach(SLICED, rollout=at_once(1), reason="NeedsAttention", seconds=DAY)
        assert "attempt 5 was abandoned (UncordonedExternally)" in transition["message"]
        await scene.phase("gpu-2", "Synced")
        scene.e.cluster.faults.on_write = lambda write, when: None
        await scene.ready(seconds=DAY)


def lift(scene: Scene, write: Write, when: str) -> None:
    fenced = write.call.name == "gpu-1" and '"stage":"fenced"' in str(write.call.body)
    if fenced and when == "after" and scene.cordoned("gpu-1"):
        scene.cordon("gpu-1", on=False)
