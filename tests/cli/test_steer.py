"""`approve`, `pause`, `resume`, `retry`, `abort`, `skip`: the shipped operator does what they ask, of those too who may not patch Nodes (kubectl_gpusharing/changing/steer.py, docs/adr/0082-requests-on-the-gpunode.md)."""

import asyncio
import os
import pty
from dataclasses import fields

import pytest
from hack.sim.fakefaults import EVER
from tests.build import NOW, make_fence
from tests.cli.asking import ME, ask, install, operated, writes
from tests.cli.objects import gpunode
from tests.embedded.scene import FULL, MIXED, Scene, at_once, gpu_pod, nodes, open_scene
from tests.fakes.virtualtime import virtual_now, virtually
from tests.wording import lacks

from gpusharing.api import names
from gpusharing.kube.client import GPUNODES, NODES, PODS, POLICIES
from gpusharing.kube.errors import Forbidden, NotFound, Unavailable
from gpusharing.kube.fence import record_text
from kubectl_gpusharing.changing.steer import find_change, is_wanted
from kubectl_gpusharing.pools.fleet import read_node
from kubectl_gpusharing.shell.arguments import Arguments
from kubectl_gpusharing.shell.terminal import API
from kubectl_gpusharing.shell.troubles import DONE, Trouble

MANUAL = at_once(1, approval="Manual")


async def refused(scene: Scene, *words: str) -> str:
    before = len(writes(scene.e.cluster))
    with pytest.raises(Trouble) as raised:
        await ask(scene.e.cluster, *words)
    assert len(writes(scene.e.cluster)) == before
    return str(raised.value)


@virtually
async def test_an_approval_lets_the_plan_be_carried_out() -> None:
    async with operated(1) as scene:
        scene.apply(MIXED, rollout=MANUAL)
        await scene.reason("gpu-1", "ApprovalNeeded")
        found = scene.e.policy("pool-b")["status"]["plan"]["hash"]
        told = await ask(scene.e.cluster, "approve", "pool-b", found)
        assert told.status == DONE
        assert told.out.startswith(
            f'gsp/pool-b  {{"metadata":{{"annotations":{{"gpusharing.dev/approve":"{found}"}}}}}}\n'
        )
        assert not lacks(told.out, f"plan {found}", "Reset", "1 node", "0 pods", "Done")
        await scene.ready()


@virtually
async def test_pods_that_no_kubelet_tells_are_unknown_to_who_approves_and_not_0() -> None:
    async with operated(1, serving=FULL) as scene:
        scene.e.cluster.add(PODS, gpu_pod("train", "gpu-1"))
        scene.e.software.silence_kubelet("gpu-1")
        await scene.e.until(lambda: "pods" not in scene.e.gpunode("gpu-1")["status"]["observed"], "a report", 120)
        scene.apply(MIXED, rollout=MANUAL)
        await scene.reason("gpu-1", "ApprovalNeeded")
        await asyncio.sleep(60)
        before = len(scene.writes(plural="gpusharingpolicies"))
        effect = " ".join((await dry_run(scene, "approve", "pool-b"))[1:])
        shown = " ".join((await ask(scene.e.cluster, "status")).out.split())
        await asyncio.sleep(600)
        assert len(scene.writes(plural="gpusharingpolicies")) == before, "what is absent is no change"
    assert "pods" not in scene.e.policy("pool-b")["status"]["plan"]
    for said in (effect, shown):
        assert not lacks(said, "up to 1 node will change and an unknown number of pods be evicted")


@virtually
async def test_an_approval_of_another_plan_is_refused_and_one_without_a_hash_needs_somebody_to_ask() -> None:
    async with operated(1) as scene:
        scene.apply(MIXED, rollout=MANUAL)
        await scene.reason("gpu-1", "ApprovalNeeded")
        assert "not abcdef1. Review it again" in await refused(scene, "approve", "pool-b", "abcdef1")
        assert not lacks(await refused(scene, "approve", "pool-b"), "terminal")
        assert (await ask(scene.e.cluster, "approve", "pool-b", "--yes")).status == DONE
        await scene.ready()


@virtually
async def test_without_a_plan_it_is_said_whether_no_node_needs_to_change_or_why_none_is_known_to() -> None:
    window = {"schedule": "0 22 * * *", "duration": "6h", "timeZone": "UTC"}
    async with open_scene(*nodes(1)) as scene:
        install(scene.e.cluster)
        scene.apply(FULL, rollout={**MANUAL, "windows": [window]})
        await scene.reason("gpu-1", "AgentNotReady")
        status = scene.e.policy("pool-b")["status"]
        assert status["summary"]["nextWindow"], "the spec alone tells of it"
        assert "plan" not in status
        assert not lacks(await refused(scene, "approve", "pool-b"), "no plan to approve: gpu-1: no Ready agent pod")
        await scene.ready()
        assert "no node needs to change" in await refused(scene, "approve", "pool-b")


async def dry_run(scene: Scene, *words: str) -> list[str]:
    """Type a verb as a dry run, which writes nothing; returns the lines above the last one, which says so."""
    before = len(writes(scene.e.cluster))
    told = await ask(scene.e.cluster, *words, "--dry-run")
    assert (told.status, len(writes(scene.e.cluster))) == (DONE, before)
    *lines, last = told.out.splitlines()
    assert last == "Nothing was changed."
    return lines


@virtually
async def test_a_dry_run_of_each_verb_shows_the_patch_says_what_it_would_do_and_sends_nothing() -> None:
    async with operated(1) as scene:
        scene.apply(MIXED, rollout=MANUAL)
        await scene.reason("gpu-1", "ApprovalNeeded")
        digest = scene.e.policy("pool-b")["status"]["plan"]["hash"]
        patch, *effect = await dry_run(scene, "approve", "pool-b")
        assert patch == f'gsp/pool-b  {{"metadata":{{"annotations":{{"gpusharing.dev/approve":"{digest}"}}}}}}'
        assert not lacks(" ".join(effect), f"plan {digest}", "Reset", "1 node", "0 pods")
        patch, *effect = await dry_run(scene, "pause", "pool-b")
        assert patch == 'gsp/pool-b  {"spec":{"rollout":{"paused":true}}}'
        assert not lacks(" ".join(effect), "No further node", "in flight are completed")
        patch, *effect = await dry_run(scene, "skip", "gpu-1")
        assert patch == 'node/gpu-1  {"metadata":{"labels":{"gpusharing.dev/skip":"true"}}}'
        assert not lacks(" ".join(effect), "No new change", "in flight continues")
        await ask(scene.e.cluster, "approve", "pool-b", "--yes")
        op = (await scene.fenced("gpu-1")).op
        patch, *effect = await dry_run(scene, "abort", "gpu-1")
        assert patch == f'node/gpu-1  {{"metadata":{{"annotations":{{"gpusharing.dev/abort":"{op}"}}}}}}'
        assert not lacks(" ".join(effect), "abort", "return the node to service")
        await ask(scene.e.cluster, "abort", "gpu-1")
        await scene.reason("gpu-1", "Deferred")
        patch, *effect = await dry_run(scene, "retry", "gpu-1")
        assert patch == (
            f'node/gpu-1  {{"metadata":{{"annotations":{{"gpusharing.dev/retry":"{virtual_now():%Y%m%dT%H%M%SZ}"}}}}}}'
        )
        assert not lacks(" ".join(effect), "retry", "drain")
        await ask(scene.e.cluster, "pause", "pool-b")
        await scene.reason("gpu-1", "Paused")
        patch, *effect = await dry_run(scene, "resume", "pool-b")
        assert patch == 'gsp/pool-b  {"spec":{"rollout":{"paused":false}}}'
        assert not lacks(" ".join(effect), "start to change again")


@virtually
async def test_a_paused_policy_starts_no_node_until_it_is_resumed() -> None:
    async with operated(2, serving=FULL) as scene:
        assert "needs no approval" in await refused(scene, "approve", "pool-b")
        told = await ask(scene.e.cluster, "pause", "pool-b", "--when-paused", "Hold", "--dry-run", "-o", "json")
        assert told.data["patch"]["spec"] == {"rollout": {"paused": True, "whenPaused": "Hold"}}
        assert not told.data["done"]
        await ask(scene.e.cluster, "pause", "pool-b")
        scene.e.cluster.patch(POLICIES, "pool-b", {"spec": MIXED})
        await scene.reason("gpu-1", "Paused")
        assert "already paused" in await refused(scene, "pause", "pool-b")
        await ask(scene.e.cluster, "resume", "pool-b", "--yes")
        await scene.ready()
        assert "neither paused nor halted" in await refused(scene, "resume", "pool-b")


@virtually
async def test_a_rollout_that_failures_have_halted_goes_on_after_a_resume() -> None:
    async with operated(2) as scene:
        for name in ("gpu-1", "gpu-2"):
            scene.e.software.inject(name, "failed")
        scene.apply(MIXED, rollout=at_once(1))
        first = await scene.any_fenced("actuating")
        await scene.phase(first, "Failed")
        await ask(scene.e.cluster, "retry", first, "--yes")
        await scene.phase(first, "Synced")
        other = "gpu-1" if first == "gpu-2" else "gpu-2"
        await scene.reason(other, "Halted")
        assert "no policy for which this would change" in await refused(scene, "resume", "--all", "--yes")
        told = await ask(scene.e.cluster, "resume", "pool-b", "--yes")
        assert not lacks(told.out, "no longer halt 1 node")
        await scene.fenced(other)


def test_a_resume_sets_the_hash_of_the_halt() -> None:
    policy = {"metadata": {"name": "p", "generation": 3}, "status": {"observedGeneration": 3, "halt": "4a38df3"}}
    halted = gpunode("gpu-1", "Pending", "Halted")
    patch = find_change(Arguments(verb="resume"), policy, [read_node(halted)], NOW).body
    assert patch == {"metadata": {"annotations": {names.ANNOTATION_RESUME: "4a38df3"}}}


@virtually
async def test_a_change_in_flight_is_given_up_before_the_point_of_no_return_only() -> None:
    async with operated(1, serving=FULL) as scene:
        assert "no change is in flight on gpu-1" in await refused(scene, "abort", "gpu-1")
        scene.apply(MIXED)
        await scene.fenced("gpu-1")
        assert (await ask(scene.e.cluster, "abort", "gpu-1")).status == DONE
        await scene.released("gpu-1")
        assert not scene.cordoned("gpu-1")
        await scene.reason("gpu-1", "Deferred")
        await ask(scene.e.cluster, "retry", "gpu-1", "--yes")
        await scene.fenced("gpu-1", "actuating")
        assert "past the point of no return" in await refused(scene, "abort", "gpu-1")


@virtually
async def test_a_node_that_was_given_up_is_tried_again_at_once_by_a_retry() -> None:
    async with operated(1) as scene:
        scene.apply(MIXED)
        await scene.fenced("gpu-1")
        await ask(scene.e.cluster, "abort", "gpu-1")
        await scene.reason("gpu-1", "Deferred")
        told = await ask(scene.e.cluster, "retry", "gpu-1", "--yes")
        assert told.status == DONE
        assert "The operator will retry this node" in told.out
        await scene.ready(seconds=250)


@virtually
async def test_a_retry_is_refused_while_a_change_goes_on_and_when_it_is_done() -> None:
    async with operated(1) as scene:
        scene.apply(MIXED)
        await scene.phase("gpu-1", "Cordoned")
        said = await refused(scene, "retry", "gpu-1", "--yes")
        assert not lacks(said, "nothing to retry", "gpu-1", "Cordoned")
        assert "kubectl gpusharing why gpu-1" in said
        await scene.phase("gpu-1", "Synced")
        said = await refused(scene, "retry", "gpu-1", "--dry-run")
        assert not lacks(said, "nothing to retry", "gpu-1", "Synced (Synced)")


@virtually
async def test_a_retry_of_a_skipped_node_is_refused_with_what_lets_changes_begin() -> None:
    async with operated(1) as scene:
        await ask(scene.e.cluster, "skip", "gpu-1")
        scene.apply(MIXED)
        await scene.reason("gpu-1", "SkipLabel")
        said = await refused(scene, "retry", "gpu-1", "--yes")
        assert not lacks(said, "Skipped (SkipLabel)", "kubectl gpusharing skip gpu-1 --undo")


@virtually
async def test_a_retry_of_a_node_that_somebody_else_blocks_says_what_it_waits_for() -> None:
    async with operated(1) as scene:
        scene.e.cluster.patch(NODES, "gpu-1", {"spec": {"unschedulable": True}})
        scene.apply(MIXED)
        await scene.reason("gpu-1", "AlreadyCordoned")
        told = await ask(scene.e.cluster, "retry", "gpu-1", "--yes")
        said = " ".join(told.out.split())
        assert not lacks(said, "Blocked (AlreadyCordoned)", "Done")


@virtually
async def test_a_retry_is_for_a_node_with_gpus_however_it_stands_but_not_where_nobody_answers() -> None:
    async with operated(1, serving=FULL) as scene:
        scene.e.cluster.add(NODES, {"metadata": {"name": "cpu-1"}})
        assert not lacks(await refused(scene, "retry", "cpu-1", "--yes"), "nothing to retry", "cpu-1", "no GPUNode")
        away = scene.e.cluster.faults.fail("get", GPUNODES, Unavailable("no answer"), times=EVER, identity=ME)
        assert "does not respond: no answer" in await refused(scene, "retry", "gpu-1", "--yes")
        away.lift()
        refusal = Forbidden('User "me" cannot get resource "gpunodes"')
        scene.e.cluster.faults.fail("get", GPUNODES, refusal, times=EVER, identity=ME)
        assert (await ask(scene.e.cluster, "retry", "gpu-1", "--yes")).status == DONE, "who may not see it may try it"


PHASES = {
    "failed": ("Failed", "ActuatorFailed", True),
    "given up": ("Pending", "Deferred", True),
    "given up often": ("Blocked", "NeedsAttention", True),
    "went back": ("Blocked", "RolledBack", True),
    "drifted": ("Pending", "Drifted", True),
    "drifted again": ("Blocked", "DriftReturned", True),
    "of a newer operator": ("Thinking", "Deeply", True),
    "not judged yet": ("", "", True),
    "its policy vanished": ("Failed", "OrphanFence", False),
    "nobody can read its fence": ("Blocked", "FenceUnreadable", False),
    "waits for others": ("Pending", "BudgetFull", False),
    "not ours": ("Skipped", "Unowned", False),
    "drains": ("Draining", "PDB", False),
    "is sick but done": ("Synced", "GPUUnhealthy", False),
}


@pytest.mark.parametrize(("phase", "reason", "tried"), PHASES.values(), ids=PHASES.keys())
def test_a_retry_is_for_what_the_operator_would_try_again(phase: str, reason: str, tried: bool) -> None:
    status = [read_node(gpunode("gpu-1", phase, reason))]
    node = {"metadata": {"name": "gpu-1"}}
    if tried:
        assert find_change(Arguments(verb="retry"), node, status, NOW).moves
    else:
        with pytest.raises(Trouble, match="there is nothing to retry on gpu-1"):
            find_change(Arguments(verb="retry"), node, status, NOW)


@pytest.mark.parametrize("drain", ["", *names.RETRIES_THAT_EMPTY])
def test_a_retry_says_what_it_drains_in_its_value(drain: str) -> None:
    status = [read_node(gpunode("gpu-1", "Failed", "WiderDrainNeeded"))]
    failed = {names.ANNOTATION_FENCE: record_text(make_fence("actuating"))}
    node = {"metadata": {"name": "gpu-1", "annotations": failed}}
    change = find_change(Arguments(verb="retry", drain=drain), node, status, NOW)
    value = change.body["metadata"]["annotations"][names.ANNOTATION_RETRY]
    assert value.partition(".")[0] == (drain or f"{NOW:%Y%m%dT%H%M%SZ}")


def test_a_retry_that_drains_more_is_refused_where_no_change_has_failed() -> None:
    status = [read_node(gpunode("gpu-1", "Pending", "Deferred"))]
    with pytest.raises(Trouble, match="gpu-1 has no failed change, so --drain has no effect there"):
        find_change(Arguments(verb="retry", drain="all-pods"), {"metadata": {"name": "gpu-1"}}, status, NOW)


def test_the_flag_offers_each_retry_that_drains_more() -> None:
    (drain,) = (one for one in fields(Arguments) if one.name == "drain")
    assert drain.metadata["options"]["choices"] == (*names.RETRIES_THAT_EMPTY,)


def test_a_retry_turns_a_node_round_that_goes_back_after_a_failure() -> None:
    status = [read_node(gpunode("gpu-1", "Verifying", "LayoutMismatch"))]
    back = {names.ANNOTATION_FENCE: record_text(make_fence("actuating", rolls_back=True))}
    find_change(Arguments(verb="retry"), {"metadata": {"name": "gpu-1", "annotations": back}}, status, NOW)
    onward = {names.ANNOTATION_FENCE: record_text(make_fence("actuating"))}
    with pytest.raises(Trouble, match="its change continues"):
        find_change(Arguments(verb="retry"), {"metadata": {"name": "gpu-1", "annotations": onward}}, status, NOW)


@virtually
async def test_a_skipped_node_begins_no_change_until_that_is_undone() -> None:
    async with operated(1, serving=FULL) as scene:
        await ask(scene.e.cluster, "skip", "gpu-1")
        assert (scene.requests("gpu-1"), scene.labels("gpu-1")["gpusharing.dev/skip"]) == ({}, "true")
        assert "already skipped" in await refused(scene, "skip", "gpu-1")
        scene.apply(MIXED)
        await scene.reason("gpu-1", "SkipLabel")
        await ask(scene.e.cluster, "skip", "gpu-1", "--undo", "--yes")
        await scene.ready()
        assert "gpusharing.dev/skip" not in scene.labels("gpu-1")


@pytest.mark.parametrize(("answer", "wanted"), [("y\n", True), ("YES\n", True), ("n\n", False), ("\x04", False)])
def test_only_yes_is_a_yes(answer: str, wanted: bool) -> None:
    person, theirs = pty.openpty()
    os.write(person, answer.encode())
    with open(theirs, encoding="utf-8") as answers:
        assert is_wanted(answers) is wanted
    os.close(person)


@virtually
async def test_where_no_operator_is_installed_nobody_would_try_again_and_that_is_said() -> None:
    async with open_scene(*nodes(1)) as scene:
        said = await refused(scene, "retry", "gpu-1", "--yes")
        assert not lacks(said, "no operator", "context test", "gpu-1")
        told = await ask(scene.e.cluster, "skip", "gpu-1", width=200)
        assert not lacks(told.out, "no operator", "context test", "no effect")
        assert "Done." not in told.out
        assert scene.labels("gpu-1")["gpusharing.dev/skip"] == "true"


# --- by a request on the GPUNode --------------------------------------------------------------------------------

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
        assert "gpusharing.dev/skip" not in scene.labels("gpu-1")
