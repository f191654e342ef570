"""The promises about last resorts see their faults: deletions by force, ways back, canaries larger than a pool.
As in test_invariants_can_fail.py a call is right, then it is spoilt."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from tests.build import make_policy
from tests.planning import podkinds, promises
from tests.planning.broken import Broken
from tests.planning.budgets import Budget
from tests.planning.cases import FULL, NODE, copy_of
from tests.planning.habits import with_habits
from tests.planning.test_invariants_can_fail import ReachedError, call, fence, mate_protected, policy
from tests.planning.world import World

from gpusharing.api import names
from gpusharing.api.policy import Canary
from gpusharing.planning.snapshot.actions import Action, Actuate, FenceNode, ForceDelete, Release, UpdateFence
from gpusharing.planning.snapshot.views import PolicyView

Spoil = Callable[[World, Any], Action | None]
"""(world, action) → the action that is looked at then; None: the same."""
FORCED = make_policy(drain={"strandedPods": "Allow", "timeout": "2m", "onTimeout": "ForceDelete"})
GOES_BACK = make_policy(drain={"strandedPods": "Allow"}, rollout={"onFailure": "Rollback"})


def reached(policy: PolicyView, stop: Callable[[Action], bool]) -> tuple[World, Any]:
    """The world in which the first such call is sent on the way from whole GPUs to this policy, and that call.

    A pod is under a budget that lets nobody go, and the operator may delete it. mig-manager fails until the node goes back.
    """

    class Stopped(World):
        def carry_out(self, action: Action) -> None:
            if stop(action):
                raise ReachedError(action)
            super().carry_out(action)

    world = Stopped(**vars(copy_of(FULL)))
    world.settings = replace(world.settings, force_delete=True)
    if policy is FORCED:
        world.budgets = (Budget("all", "llm", 3),)
        assert world.add_pod(NODE)
    world.set_policy(policy)
    for _ in range(600):
        before = world.nodes[NODE].fence
        back = before is not None and before.rolls_back
        world.machines[NODE].temper = "works" if back else "fails"
        world.act_everywhere()
        try:
            world.step()
        except ReachedError as found:
            return world, found.action
        world.now += timedelta(seconds=1)
    raise AssertionError("no such call")


def deletes(action: Action) -> bool:
    return isinstance(action, ForceDelete)


def starts(action: Action) -> bool:
    return isinstance(action, FenceNode)


def turns_back(action: Action) -> bool:
    before = action.node.fence if isinstance(action, UpdateFence) else None
    return isinstance(action, UpdateFence) and action.fence.rolls_back and before is not None and not before.rolls_back


def runs_back(action: Action) -> bool:
    return isinstance(action, Actuate) and action.fence.rolls_back


def gives_back(action: Action) -> bool:
    return isinstance(action, Release) and action.verified is not None and action.verified.rolled_back


# --- what spoils it ---------------------------------------------------------------------------------------------


def forbidden(world: World, action: Any) -> None:
    world.settings = replace(world.settings, force_delete=False)


def later(seconds: int) -> Spoil:
    def spoil(world: World, action: Any) -> None:
        world.now += timedelta(seconds=seconds)

    return spoil


def pod(**fields: Any) -> Spoil:
    def spoil(world: World, action: Any) -> None:
        world.pods[NODE][action.uid] = replace(world.pods[NODE][action.uid], **fields)

    return spoil


def ruled(world: World, action: Any) -> None:
    world.policies = tuple(
        with_habits(one, ["what stays is deleted, but for what a rule keeps"]) for one in world.policies
    )
    pod(labels={"app": "free"})(world, action)
    world.budgets = (Budget("all", "free", 3),)


def plain(world: World, action: Any) -> None:
    drain = {"on_timeout": "Abort"}
    world.policies = tuple(
        replace(one, spec=one.spec.model_copy(update={"drain": one.spec.drain.model_copy(update=drain)}))
        for one in world.policies
        if one.spec is not None
    )


def at_once(world: World, action: Any) -> None:
    pod(grace=0)(world, action)
    later(30)(world, action)


def unasked(world: World, action: Any) -> None:
    world.refused.clear()


def kept_beside(world: World, action: Any) -> None:
    """Another pod must not be evicted."""
    other = podkinds.make("a protected pod", "other", "free", "nvidia.com/gpu", world.now)
    world.pods[NODE][other.uid], world.kinds[other.uid] = other, "a protected pod"


def fenced(**fields: Any) -> Spoil:
    def spoil(world: World, action: Any) -> Action:
        before = world.nodes[NODE].fence
        assert before is not None, "it is in flight"
        world.nodes[NODE] = replace(world.nodes[NODE], fence=replace(before, **fields))
        if isinstance(action, ForceDelete):
            return action
        on_it: Action = replace(action, node=world.nodes[NODE])
        return on_it

    return spoil


def unproven(world: World, action: Any) -> Action:
    world.nodes[NODE] = replace(world.nodes[NODE], verified=None)
    on_it: Action = replace(action, node=world.nodes[NODE])
    return on_it


def again(world: World, action: Any) -> None:
    world.ledger.turns.add((action.node.uid, action.fence.version, action.node.retry))


def recorded(**fields: Any) -> Spoil:
    return lambda world, action: replace(action, verified=replace(action.verified, **fields))


FAULTS: Mapping[str, tuple[PolicyView, Callable[[Action], bool], Spoil, str]] = {
    "a deletion without the chart's switch": (FORCED, deletes, forbidden, "(t)"),
    "a deletion that no policy asks for": (FORCED, deletes, plain, "the policy does not ask"),
    "a deletion before its moment": (FORCED, deletes, later(-60), "before its moment"),
    "a deletion that comes too late": (FORCED, deletes, later(200), "outlive the drain"),
    "a deletion of a pod of another UID": (FORCED, deletes, call(uid="another"), "gone"),
    "a deletion of a pod that is leaving": (
        FORCED, deletes, lambda world, action: pod(deleted_at=world.now)(world, action), "leaving already"),
    "a deletion of a pod that a rule keeps": (FORCED, deletes, ruled, "nobody may evict"),
    "a deletion of a protected pod": (
        FORCED, deletes, pod(marks=((names.ANNOTATION_DO_NOT_DISRUPT, "true"),)), "nobody may evict"),
    "a deletion of a pod that nobody asked to go": (FORCED, deletes, unasked, "nobody refused"),
    "a deletion of a rank while another one is protected": (FORCED, deletes, mate_protected, "(t) deletes a rank"),
    "a deletion for a node that would not be empty": (FORCED, deletes, kept_beside, "would not be empty"),
    "a deletion with a shorter grace period": (FORCED, deletes, call(grace=5), "cuts a grace period"),
    "a deletion that ends containers by their object": (FORCED, deletes, at_once, "no time to end"),
    "a deletion while jobs have their time": (FORCED, deletes, fenced(jobs=True), "jobs"),
    "a deletion after the point of no return": (FORCED, deletes, fenced(stage="actuating"), "being drained"),
    "a way back that nobody wants": (GOES_BACK, turns_back, policy(on_failure="Hold"), "does not want that"),
    "a way back to what was never proven": (GOES_BACK, turns_back, unproven, "nothing was proven"),
    "a way back to something else": (GOES_BACK, turns_back, fence(owed="x y z"), "was proven there last"),
    "a second way back": (GOES_BACK, turns_back, again, "a second time"),
    "a run to something else": (GOES_BACK, runs_back, fence(target_mig_config="x"), "was proven there last"),
    "a node that turns round by itself": (GOES_BACK, runs_back, fence(rolls_back=False), "turns round"),
    "a return to something else": (GOES_BACK, gives_back, recorded(mig_config="x"), "not proven there last"),
    "a return that forgets the failure": (GOES_BACK, gives_back, recorded(failed_version=None), "forgets"),
    "a return that is called a way back": (GOES_BACK, gives_back, fenced(rolls_back=False), "that is none"),
    "a start in a pool that is smaller than its canary": (
        GOES_BACK, starts, policy(canary=Canary(nodes=5)), "(n)"),
}  # fmt: skip
"""By what it is: what the policy asks for, the call that is waited for, what spoils it, and what must be said."""


@pytest.mark.parametrize("what", FAULTS)
def test_a_promise_sees(what: str) -> None:
    asked, stop, spoil, said = FAULTS[what]
    world, action = reached(asked, stop)
    promises.check(world, action)  # as the planner has it nothing is wrong
    world.ledger.turns.clear()
    spoilt = spoil(world, action)
    with pytest.raises(Broken) as broken:
        promises.check(world, action if spoilt is None else spoilt)
    assert said in str(broken.value), broken.value
