"""Whatever keeps a policy from starting nodes keeps everything back: pods that nothing else could run, Failed nodes, and nodes of other policies that wait for a slot."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from tests.build import NOW, make_fence, make_node, make_snapshot, make_work
from tests.planning.cases import agreed, make_member
from tests.planning.habits import person_approves, with_habits
from tests.planning.recovery import WAITS, lenient, request, wanted
from tests.planning.test_holds import ACTUATING, POOL, member, pooled
from tests.planning.told import verdict
from tests.planning.world import World
from tests.wording import lacks

from gpusharing.api import names
from gpusharing.api.names import ConditionType, Phase
from gpusharing.api.policy import LabelSelector
from gpusharing.api.times import NEVER
from gpusharing.planning.drain.stranded import Afterwards
from gpusharing.planning.pools.candidates import PassState
from gpusharing.planning.pools.holds import agree, find_capped, find_halt, find_hold, propose
from gpusharing.planning.report.status import policy_status
from gpusharing.planning.rollout import RolloutPlan
from gpusharing.planning.snapshot.records import Consent
from gpusharing.planning.snapshot.views import PlanSettings, PolicyView
from gpusharing.planning.transition.cases import Member
from gpusharing.planning.vocabulary.reasons import Reason

FULL, HALVES, MIXTURE = 0, 3, 5
"""Numbers of modes in tests/planning/recovery.py."""
STOPS: dict[str, tuple[Callable[[PolicyView], PolicyView], Reason]] = {
    "paused": (lambda policy: lenient(policy, paused=True, when_paused="Hold"), Reason.PAUSED),
    "frozen": (lambda policy: lenient(policy, max_unavailable=0), Reason.FROZEN),
    "not approved": (lambda policy: with_habits(policy, (), ("by approval",)), Reason.APPROVAL_NEEDED),
    "its window is closed": (lambda policy: with_habits(policy, (), ("at night",)), Reason.WINDOW_CLOSED),
    "behind its canary": (
        lambda policy: with_habits(policy, (), ("more canaries than nodes",)),
        Reason.CANARY_TOO_LARGE,
    ),
}


def policy(pool: str, mode: int) -> PolicyView:
    made = wanted(f"pool-{pool}", mode, 1, 0, "Hold")
    assert made.spec is not None
    chosen = LabelSelector.model_validate({"matchLabels": {"gpusharing.dev/pool": pool}})
    return replace(made, spec=made.spec.model_copy(update={"node_selector": chosen}))


def settled(settings: PlanSettings = WAITS, **pools: tuple[int, int]) -> World:
    """A number of nodes in a mode, by pool; they are called b-0, b-1 …"""
    world = World(settings=settings)
    for pool, (count, mode) in pools.items():
        labels: dict[str, Any] = {"gpusharing.dev/pool": pool}
        for number in range(count):
            world.add_node(f"{pool}-{number}", **labels)
        world.set_policy(policy(pool, mode))
    world.settle()
    return world


def turn(world: World, passes: int) -> RolloutPlan:
    for _ in range(passes):
        for name in world.nodes:
            world.act(name)
        plan = world.step()
        world.now += timedelta(seconds=2)
    return plan


def stalled(world: World, plan: RolloutPlan, name: str) -> dict[str, Any]:
    one = next(known for known in world.policies if known.name == name)
    rows = policy_status(one, plan, world.snapshot(), {}, world.now)["conditions"]
    return next(row for row in rows if row["type"] == ConditionType.STALLED)


def failed(world: World, name: str, mode: int) -> None:
    world.machines[name].temper = "fails"
    world.set_policy(policy(name[0], mode))
    assert turn(world, 100).verdicts[name].phase is Phase.FAILED


@pytest.mark.parametrize("stop", STOPS)
def test_no_pod_is_evicted_for_devices_of_a_pool_that_may_not_change(stop: str) -> None:
    stopped, reason = STOPS[stop]
    world = settled(b=(2, HALVES), c=(2, FULL))
    assert all(world.add_pod(name, "a pod of a ReplicaSet") for name in ("b-0", "b-1"))
    world.set_policy(stopped(policy("c", HALVES)))
    world.set_policy(policy("b", FULL))
    told = turn(world, 60).verdicts["b-0"]
    assert (told.phase, told.reason) == (Phase.BLOCKED, Reason.STRANDED_PODS)
    assert not lacks(told.message, "before c-0", f"({reason})")
    assert {name for name, pods in world.pods.items() if pods} == {"b-0", "b-1"}
    world.set_policy(policy("c", HALVES))
    plan = turn(world, 300)
    assert {one.phase for one in plan.verdicts.values()} == {Phase.SYNCED}


def test_no_pod_is_evicted_for_devices_of_a_node_that_failed() -> None:
    world = settled(b=(1, HALVES), c=(1, FULL))
    assert world.add_pod("b-0", "a pod of a ReplicaSet")
    failed(world, "c-0", HALVES)
    world.set_policy(policy("b", FULL))
    told = turn(world, 60).verdicts["b-0"]
    assert (told.phase, told.reason) == (Phase.BLOCKED, Reason.STRANDED_PODS)


@pytest.mark.parametrize("habit", [(), ("one canary",)], ids=["at once", "each behind its canary"])
def test_two_pools_that_swap_do_not_hold_each_other(habit: tuple[str, ...]) -> None:
    world = settled(b=(2, HALVES), c=(2, FULL))
    assert all(world.add_pod(name, "a pod of a ReplicaSet") for name in world.nodes)
    world.set_policy(with_habits(policy("b", FULL), (), habit))
    world.set_policy(with_habits(policy("c", HALVES), (), habit))
    assert {one.phase for one in turn(world, 600).verdicts.values()} == {Phase.SYNCED}


def test_who_waits_for_the_window_of_another_policy_waits_for_the_clock() -> None:
    world = settled(b=(1, HALVES), c=(1, FULL))
    assert world.add_pod("b-0", "a pod of a ReplicaSet")
    world.set_policy(with_habits(policy("c", HALVES), (), ("at night",)))
    world.set_policy(policy("b", FULL))
    plan = turn(world, 60)
    assert plan.verdicts["b-0"].deadline == plan.pools["pool-c"].hours.change
    assert stalled(world, plan, "pool-b")["status"] == "False"


def test_a_plan_that_waits_for_approval_is_told_with_what_it_brings_itself() -> None:
    world = settled(c=(2, FULL))
    assert world.add_pod("c-0", "a pod of a ReplicaSet")
    world.set_policy(with_habits(policy("c", HALVES), (), ("by approval",)))
    plan = turn(world, 30)
    assert plan.verdicts["c-0"].reason is Reason.APPROVAL_NEEDED
    assert plan.afterwards.find_demand("nvidia.com/mig-3g.40gb").remain == 0
    assert plan.afterwards.once("pool-c").find_demand("nvidia.com/mig-3g.40gb").remain > 0


# --- Failed nodes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", STOPS)
@pytest.mark.parametrize("moves", [True, False], ids=["its label is moved", "its policy is edited"])
def test_a_failed_node_starts_no_other_run_that_its_policy_may_not_start(*, stop: str, moves: bool) -> None:
    stopped, _ = STOPS[stop]
    world = settled(a=(1, FULL), b=(2, FULL))
    failed(world, "a-0", HALVES)
    heir = stopped(policy("b" if moves else "a", MIXTURE))
    if moves:
        node = world.nodes["a-0"]
        world.nodes["a-0"] = replace(node, labels={**node.labels, "gpusharing.dev/pool": "b"})
    world.set_policy(heir)
    world.machines["a-0"].temper = "works"
    told = turn(world, 60).verdicts["a-0"]
    assert (told.phase, told.policy) == (Phase.FAILED, heir.name)
    assert "does not get 1x3g.40gb+1x2g.20gb+2x1g.10gb yet" in told.message
    assert world.nodes["a-0"].unschedulable
    retried = told.message.rpartition("gpusharing.dev/retry=")[2]
    assert request(world, "a-0", retry=retried)
    assert turn(world, 100).verdicts["a-0"].phase is Phase.SYNCED


def test_a_failed_node_starts_once_its_plan_is_approved_or_its_pause_ends() -> None:
    world = settled(a=(1, FULL), b=(1, FULL))
    failed(world, "a-0", HALVES)
    failed(world, "b-0", HALVES)
    world.set_policy(with_habits(policy("a", MIXTURE), (), ("by approval",)))
    world.set_policy(lenient(policy("b", MIXTURE), paused=True))
    for machine in world.machines.values():
        machine.temper = "works"
    plan = turn(world, 20)
    assert {one.phase for one in plan.verdicts.values()} == {Phase.FAILED}
    assert person_approves(world, "pool-a", plan)
    world.set_policy(policy("b", MIXTURE))
    assert {one.phase for one in turn(world, 150).verdicts.values()} == {Phase.SYNCED}


def test_a_failed_node_that_joins_a_pool_waits_for_an_approval_of_its_own() -> None:
    world = settled(a=(1, FULL), b=(1, FULL))
    heir = with_habits(policy("b", MIXTURE), (), ("by approval",))
    world.set_policy(heir)
    assert person_approves(world, "pool-b", turn(world, 20))
    assert turn(world, 100).verdicts["b-0"].phase is Phase.SYNCED
    failed(world, "a-0", HALVES)
    node = world.nodes["a-0"]
    world.nodes["a-0"] = replace(node, labels={**node.labels, "gpusharing.dev/pool": "b"})
    world.machines["a-0"].temper = "works"
    plan = turn(world, 60)
    assert plan.verdicts["a-0"].phase is Phase.FAILED
    assert "a-0 was not in it" in plan.verdicts["a-0"].message
    assert person_approves(world, "pool-b", plan)
    assert turn(world, 100).verdicts["a-0"].phase is Phase.SYNCED


def test_of_several_failed_nodes_only_as_many_start_as_the_canary_has() -> None:
    world = settled(a=(3, FULL))
    for machine in world.machines.values():
        machine.temper = "fails"
    world.set_policy(lenient(policy("a", HALVES), max_unavailable=3, max_failures=3))
    assert {one.phase for one in turn(world, 100).verdicts.values()} == {Phase.FAILED}
    for machine in world.machines.values():
        machine.temper = "works"
    world.set_policy(with_habits(policy("a", MIXTURE), (), ("one canary",)))
    plan = turn(world, 40)
    phases = [one.phase for one in plan.verdicts.values()]
    assert (phases.count(Phase.SYNCED), phases.count(Phase.FAILED)) == (1, 2)
    assert plan.wake_at is not None, "the end of the soak"
    assert {one.phase for one in turn(world, 200).verdicts.values()} == {Phase.SYNCED}


def test_a_rollback_goes_on_when_its_policy_is_edited_and_may_start_nothing() -> None:
    world = settled(a=(1, FULL))
    world.machines["a-0"].temper = "fails"
    world.set_policy(with_habits(policy("a", HALVES), (), ("goes back",)))
    for _ in range(100):
        plan = turn(world, 1)
        if (fence := world.nodes["a-0"].fence) is not None and fence.rolls_back:
            break
    world.set_policy(with_habits(policy("a", MIXTURE), (), ("goes back", "by approval")))
    world.machines["a-0"].temper = "works"
    plan = turn(world, 100)
    assert plan.verdicts["a-0"].reason is Reason.APPROVAL_NEEDED
    assert (world.nodes["a-0"].fence, world.nodes["a-0"].labels[names.LABEL_MODE]) == (None, "full")


# --- slots -------------------------------------------------------------------------------------------------------


def test_a_cap_that_another_policys_failed_node_holds_stalls_whoever_waits_for_it() -> None:
    world = settled(replace(WAITS, max_in_flight=1), a=(1, FULL), b=(2, FULL))
    failed(world, "a-0", HALVES)
    world.set_policy(policy("b", HALVES))
    plan = turn(world, 30)
    assert plan.verdicts["b-0"].stands
    row = stalled(world, plan, "pool-b")
    assert row["status"] == "True"
    assert row["message"].endswith(": kubectl gpusharing why a-0")
    assert not lacks(row["message"], "(a-0 has failed)", "slot")


def test_a_drain_that_is_held_past_its_time_takes_no_room_in_a_budget() -> None:
    node = make_node(fence=make_fence(deadline=NEVER), unschedulable=True)
    held = make_member(node, verdict(Phase.DRAINING, Reason.DRAIN_HELD, needs=(("team-a/llm", 1),)))
    state = PassState(Afterwards(tuple), NOW)
    snapshot = make_snapshot([node], work={"gpu-07": make_work()})
    state.add_in_flight(snapshot, held)
    assert state.crowd == {}
    assert find_capped(snapshot, {"gpu-07": held}, reserved=0).keeper == "node/gpu-07"


def test_a_record_without_the_hash_that_was_approved_approves_nothing() -> None:
    world = settled(b=(1, FULL))
    world.set_policy(with_habits(policy("b", HALVES), (), ("by approval",)))
    pool = turn(world, 20).pools["pool-b"]
    recorded = Consent(pool.policy.version.revision, changes=propose(pool).changes)
    assert not propose(replace(pool, consent=recorded)).approved


# --- a person lets a rollout go on after these failures and no others --------------------------------------------------

FAILED = tuple(member(f"n{number}", Phase.FAILED, fence=ACTUATING) for number in range(1, 7))


def resumed(*failed: Member, most: int = 1, consent: Consent | None = None) -> tuple[PolicyView, Consent]:
    pool = pooled(*failed, maxFailures=most)
    pool.consent = consent
    halt = find_halt(pool)
    assert halt is not None
    assert halt[1].message.endswith(f"gpusharing.dev/resume={halt[0]}")
    policy = replace(POOL, resumed=halt[0])
    return policy, agreed(replace(pooled(*failed, policy=policy, maxFailures=most), consent=consent))


def halts(*failed: Member, policy: PolicyView, consent: Consent, most: int = 1) -> bool:
    pool = pooled(*failed, policy=policy, maxFailures=most)
    pool.consent = agree(replace(pool, consent=consent))
    return find_hold(pool) is not None


@pytest.mark.parametrize(("most", "first"), [(1, 1), (1, 4), (2, 2), (2, 3), (3, 3)])
def test_a_resume_lets_the_rollout_go_on_until_as_many_have_failed_again(most: int, first: int) -> None:
    policy, consent = resumed(*FAILED[:first], most=most)
    assert not halts(*FAILED[: first + most - 1], policy=policy, consent=consent, most=most)
    assert halts(*FAILED[: first + most], policy=policy, consent=consent, most=most)
    again, consent = resumed(*FAILED[: first + most], most=most, consent=consent)
    assert again.resumed != policy.resumed
    assert not halts(*FAILED[: first + most], policy=again, consent=consent, most=most)


def test_after_a_repair_neither_that_node_nor_the_next_fails_without_another_halt() -> None:
    policy, consent = resumed(FAILED[0])
    repaired = agreed(replace(pooled(policy=policy), consent=consent))
    for failed in FAILED[:2]:
        assert halts(failed, policy=policy, consent=repaired)


def test_a_higher_limit_counts_from_what_was_seen() -> None:
    policy, consent = resumed(FAILED[0])
    assert not halts(*FAILED[:3], policy=policy, consent=consent, most=3)
    assert halts(*FAILED[:4], policy=policy, consent=consent, most=3)


@pytest.mark.parametrize("value", ["3", POOL.version.revision, f"{POOL.version.revision}.7", "0123456"])
def test_a_value_that_is_not_for_this_halt_has_no_effect_and_is_named(value: str) -> None:
    hold = find_hold(pooled(FAILED[0], policy=replace(POOL, resumed=value)))
    assert hold is not None
    assert hold.reason is Reason.HALTED
    assert not lacks(hold.message, f'gpusharing.dev/resume "{value}"', "not for this halt")
