"""What an edit of one policy does through the others: `plan -f` is the difference of two plans of the whole cluster (kubectl_gpusharing/changing/plan.py, report/proposal.py)."""

from dataclasses import replace
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hack.sim.workloads import SimWorkload
from tests.build import make_policy, make_work
from tests.cli.asking import ask, operated, written
from tests.embedded.scene import FULL, MIXED, policy
from tests.fakes.virtualtime import virtually
from tests.planning.world import World
from tests.wording import lacks

from gpusharing.api.names import STOP
from gpusharing.api.policy import GPUSharingPolicySpec
from gpusharing.kube.client import CONFIG_MAPS, POLICIES
from gpusharing.planning.report.proposal import configured, find_moves
from gpusharing.planning.rollout import RolloutPlan, plan_rollout
from gpusharing.planning.snapshot.views import ClusterSnapshot, PolicyView
from gpusharing.planning.vocabulary.reasons import Reason
from kubectl_gpusharing.shell.troubles import CHANGES, DONE, FAILED_ON

BOTH = "evictions,shortfall"
REST = policy(FULL, "rest", priority=-1, drain={"strandedPods": "Allow"})
TYPO = policy(MIXED, pool="bb")
PODS = SimWorkload("llm", 4, "nvidia.com/mig-3g.40gb")


def standing(data: Any) -> dict[str, tuple[str, str]]:
    """The owner of each node that moves, before and after."""
    return {one["name"]: (one["before"]["policy"], one["after"]["policy"]) for one in data["moves"]}


@virtually
async def test_what_a_mistyped_selector_does_through_another_policy_is_what_then_happens(tmp_path: Path) -> None:
    async with operated(3, workloads=[PODS]) as scene:
        await scene.serve(MIXED)
        scene.e.apply(REST)
        await scene.running("llm", 4)
        file = written(tmp_path, TYPO)
        told = await ask(scene.e.cluster, "plan", "-f", file, "--fail-on", BOTH)
        data = (await ask(scene.e.cluster, "plan", "-f", file, "--fail-on", BOTH, "-o", "json")).data
        scene.e.apply(TYPO)
        await scene.ready("rest", seconds=3000)
        evicted = {name for name in scene.evicted() if name.startswith("llm")}
    verdict, pools = data["verdict"], {one["name"]: one for one in data["policies"]}
    assert told.status == verdict["exitStatus"] == FAILED_ON
    assert verdict["failedOn"] == ["evictions", "shortfall"]
    assert (verdict["nodes"], verdict["leaving"]) == (3, ["gpu-1", "gpu-2", "gpu-3"])
    assert {name: one["asked"] for name, one in pools.items()} == {"pool-b": True, "rest": False}
    assert {one["name"] for one in pools["rest"]["nodes"]} == {*standing(data)} == {"gpu-1", "gpu-2", "gpu-3"}
    assert {*standing(data).values()} == {("pool-b", "rest")}
    named = {pod.rpartition("/")[2] for one in pools["rest"]["nodes"] for pod in one["pods"]}
    assert named == evicted
    assert len(named) == 4
    assert not lacks(
        " ".join(told.out.split()),
        "Changes: 3 nodes will change and",
        "3 nodes leave pool-b for policy rest: gpu-1, gpu-2, gpu-3.",
        "! by the edit of other policies: gpu-1, gpu-2, gpu-3 (without it: policy pool-b, Synced)",
    )


@virtually
async def test_an_edit_that_changes_nothing_moves_nothing_while_the_operator_is_stopped(tmp_path: Path) -> None:
    async with operated(2, serving=FULL) as scene:
        scene.e.cluster.add(CONFIG_MAPS, {"metadata": {"name": STOP, "namespace": "gpusharing"}})
        await scene.e.until(lambda: scene.e.lease is not None and scene.e.lease.stop != "", "the stop", 60)
        scene.apply(MIXED)
        await scene.reason("gpu-1", "Paused")
        told = await ask(scene.e.cluster, "plan", "-f", written(tmp_path, policy(MIXED)), "-o", "json")
    assert told.data["moves"] == []


@virtually
async def test_nodes_that_no_policy_selects_after_the_edit_are_named_and_harmless_in_ci(tmp_path: Path) -> None:
    async with operated(2, serving=FULL) as scene:
        file = written(tmp_path, policy(FULL, pool="bb"))
        told = await ask(scene.e.cluster, "plan", "-f", file)
        passed = await ask(scene.e.cluster, "plan", "-f", file, "--fail-on", BOTH)
        data = (await ask(scene.e.cluster, "plan", "-f", file, "-o", "json")).data
    assert (told.status, passed.status) == (CHANGES, DONE)
    assert told.out.startswith("Changes: 2 nodes leave pool-b for no policy, and keep their layouts: gpu-1, gpu-2.\n")
    assert "nothing to change" not in told.out
    assert data["policies"][0]["leaving"] == {"gpu-1": "", "gpu-2": ""}
    assert {one["after"]["reason"] for one in data["moves"]} == {"Unowned"}


@virtually
async def test_the_policy_that_loses_nodes_to_the_edited_one_is_named_also_if_nothing_changes_on_them(
    tmp_path: Path,
) -> None:
    async with operated(2, serving=FULL) as scene:
        file = written(tmp_path, policy(FULL, "over", priority=5))
        told = await ask(scene.e.cluster, "plan", "-f", file)
        data = (await ask(scene.e.cluster, "plan", "-f", file, "-o", "json")).data
        same = await ask(scene.e.cluster, "plan", "-f", written(tmp_path, policy(FULL)), "-o", "json")
    assert told.status == CHANGES
    assert told.out.startswith("Changes: 2 nodes leave pool-b for policy over: gpu-1, gpu-2.\n")
    assert {one["name"]: one["nodes"] for one in data["policies"]} == {"over": [], "pool-b": []}
    assert (same.status, same.data["moves"]) == (DONE, [])


@virtually
async def test_only_the_policies_that_are_asked_about_count_as_edited(tmp_path: Path) -> None:
    async with operated(1, serving=FULL) as scene:
        file = written(tmp_path, policy(FULL, pool="bb"), policy(FULL, "new", "nowhere"))
        new = await ask(scene.e.cluster, "plan", "new", "-f", file, "-o", "json")
        all_ = await ask(scene.e.cluster, "plan", "-f", file, "-o", "json")
    assert (new.status, new.data["moves"]) == (DONE, [])
    assert (all_.status, [*standing(all_.data)]) == (CHANGES, ["gpu-1"])


@virtually
async def test_a_node_in_flight_is_told_of_if_its_change_ends_under_another_policy(tmp_path: Path) -> None:
    async with operated(1, serving=FULL) as scene:
        scene.e.apply(REST)
        await scene.begin(MIXED, stage="actuating")
        data = (await ask(scene.e.cluster, "plan", "-f", written(tmp_path, TYPO), "-o", "json")).data
    assert standing(data) == {"gpu-1": ("pool-b", "rest")}
    assert data["verdict"]["leaving"] == ["gpu-1"]


@pytest.mark.parametrize("edits", [False, True], ids=["by its name", "by a file"])
@virtually
async def test_a_policy_that_is_being_deleted_is_not_told_to_wait_for_nodes(tmp_path: Path, edits: bool) -> None:
    async with operated(1) as scene:
        kept = policy(FULL)
        kept["metadata"]["finalizers"] = ["team.example/keep"]
        scene.e.apply(kept)
        await scene.ready()
        (raw,) = scene.e.cluster.objects(POLICIES)
        await scene.e.cluster.client("a-person").delete(POLICIES, "pool-b", uid=raw["metadata"]["uid"])
        words = ("-f", written(tmp_path, policy(MIXED))) if edits else ("pool-b",)
        told = await ask(scene.e.cluster, "plan", *words)
    said = " ".join(told.out.split())
    assert told.status == DONE
    assert said.startswith("Nothing to do: pool-b: it is being deleted and selects no node any more.")
    assert not lacks(said, "apply the policy again once it is gone", "Accepted: the spec is valid; the policy is being")
    assert "yet" not in said


# --- the difference ----------------------------------------------------------------------------------------------

IDLE = make_policy("idle", "Full", nodeSelector={"matchLabels": {"gpusharing.dev/pool": "a"}})
CHANGES_C = make_policy("pool-c", "TimeSlicing", nodeSelector={"matchLabels": {"gpusharing.dev/pool": "c"}})


@cache
def with_two_pools() -> World:
    world = World()
    for pool in "ac":
        world.add_node(pool, None, gated=False, **{"gpusharing.dev/pool": pool})
    full = make_policy("pool-c", "Full", nodeSelector={"matchLabels": {"gpusharing.dev/pool": "c"}})
    for one in (IDLE, full):
        world.set_policy(one)
    world.settle()
    return world


def planned(*policies: PolicyView) -> tuple[RolloutPlan, ClusterSnapshot]:
    """The plan for two settled pools after these edits, when the configuration is there; one node may change at a time."""
    world = with_two_pools()
    snapshot = world.snapshot()
    edited = {one.name: one for one in snapshot.policies} | {one.name: one for one in policies}
    work = {name: make_work() for name in world.nodes}
    settings = replace(snapshot.settings, max_in_flight=1)
    snapshot = replace(snapshot, policies=tuple(edited.values()), work=work, settings=settings)
    later = configured(snapshot, plan_rollout(snapshot, world.now), world.now - timedelta(hours=1))
    assert later is not None
    return plan_rollout(later, world.now), later


def edit(policy: PolicyView, **fields: Any) -> PolicyView:
    """The policy with other drain or rollout rules, as on the wire."""
    assert policy.spec is not None
    spec = {**policy.spec.model_dump(by_alias=True, exclude_unset=True), **fields}
    return replace(policy, spec=GPUSharingPolicySpec.model_validate(spec))


MOVES: dict[str, tuple[PolicyView, PolicyView, set[str], str]] = {
    "nothing differs": (CHANGES_C, CHANGES_C, set(), ""),
    "the drain has more time": (CHANGES_C, edit(CHANGES_C, drain={"timeout": "2h"}), {"c"}, ""),
    "the policy is paused": (CHANGES_C, edit(CHANGES_C, rollout={"paused": True}), {"c"}, "Paused"),
    "the target has more replicas": (CHANGES_C, edit(CHANGES_C, timeSlicing={"replicas": 6}), {"c"}, ""),
    "a drain that nobody needs differs": (IDLE, edit(IDLE, drain={"timeout": "2h"}), set(), ""),
}


@pytest.mark.parametrize(("before", "after", "moved", "reason"), MOVES.values(), ids=MOVES)
def test_a_node_moves_if_its_target_its_drain_or_its_wait_differs(
    before: PolicyView, after: PolicyView, moved: set[str], reason: str
) -> None:
    found = find_moves(planned(before), planned(after))
    assert {one.node for one in found} == moved
    assert [one.owners for one in found] == [("pool-c", "pool-c")] * len(moved)
    assert not reason or [one.after and str(one.after.reason) for one in found] == [reason]


def test_a_node_of_another_policy_that_has_to_wait_by_the_edit_moves_too() -> None:
    first = edit(IDLE, mode="TimeSlicing", timeSlicing={"replicas": 4})
    found = {one.node: one for one in find_moves(planned(CHANGES_C), planned(CHANGES_C, first))}
    assert {*found} == {"a", "c"}
    waits = found["c"]
    assert waits.before is not None
    assert waits.before.starts
    assert waits.after is not None
    assert waits.after.reason is Reason.BUDGET_FULL
    assert not waits.leaves
