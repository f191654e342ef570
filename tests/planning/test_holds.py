"""What keeps every node of a policy from starting: their order, halting, canary and windows in whole ways."""

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from tests.build import NOW, ask_anew, at, make_fence, make_node, make_policy
from tests.planning.cases import FULL, make_member, pass_time, pool_of, run_until
from tests.planning.machines import patched
from tests.planning.world import World
from tests.wording import lacks

from gpusharing.api import names
from gpusharing.api.names import Phase
from gpusharing.api.policy import Canary, Rollout, Timeouts
from gpusharing.api.times import NEVER
from gpusharing.planning.pools.holds import find_canary, find_halt, find_hold, find_note, wait_for_canaries
from gpusharing.planning.pools.pool import Pool
from gpusharing.planning.pools.windows import ALWAYS
from gpusharing.planning.report.status import policy_status
from gpusharing.planning.report.transition import who_ends, who_keeps
from gpusharing.planning.snapshot.records import Deferred, Verified
from gpusharing.planning.snapshot.views import NodeView, PolicyView
from gpusharing.planning.transition.cases import Member
from gpusharing.planning.transition.verdict import Verdict
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.vocabulary.reasons import Reason

POOL = make_policy(generation=3)
LENIENT = {"strandedPods": "Allow"}


def member(name: str, phase: Phase = Phase.PENDING, reason: Reason | None = None, **node: Any) -> Member:
    reason = reason or (Reason.SYNCED if phase is Phase.SYNCED else Reason.PROGRESSING)
    return make_member(make_node(name, **node), Verdict(name, "pool-b", phase, reason, ""))


def pooled(*members: Member, policy: PolicyView = POOL, seconds: float = 0, **rollout: Any) -> Pool:
    assert policy.spec is not None
    spec = policy.spec.model_copy(update={"rollout": Rollout.model_validate(rollout)})
    return Pool(replace(policy, spec=spec), members=list(members), hours=ALWAYS, now=at(seconds))


def hold_of(pool: Pool) -> Finding:
    hold = find_hold(pool)
    assert hold is not None
    return hold


# --- halting --------------------------------------------------------------------------------------------------

EARLIER = ask_anew(POOL).version
OURS: dict[str, Any] = {"version": POOL.version}
ACTUATING = make_fence("actuating", **OURS)
PROVEN = Verified("pool-b", "x", "y", layout="1x full", gpus=1, version=POOL.version, changed_at=NOW, took=60)
FAILED = {
    "it is Failed": (member("n1", Phase.FAILED, fence=ACTUATING), True),
    "it was Failed, and the clock was set back": (
        member("n1", Phase.RECONFIGURING, fence=replace(ACTUATING, failed=NOW)), True),
    "it is tried again after it failed": (
        member("n1", Phase.RECONFIGURING, fence=replace(ACTUATING, failed_version=POOL.version)), True),
    "it was proven after it had failed": (
        member("n1", Phase.SYNCED, verified=replace(PROVEN, failed_version=POOL.version)), True),
    "it was given back after it had failed, to begin anew": (
        member("n1", deferred=Deferred(0, NOW, "PodsLeaving", POOL.version, "again", POOL.version)), True),
    "its next try was given up without a failure": (
        member("n1", deferred=Deferred(1, NOW, "DrainTimeout", POOL.version)), False),
    "it is on its way": (member("n1", Phase.RECONFIGURING, fence=ACTUATING), False),
    "it is proven": (member("n1", Phase.SYNCED, verified=PROVEN), False),
    "it failed in another revision": (member("n1", Phase.FAILED, fence=replace(ACTUATING, version=EARLIER)), False),
    "it had failed in another revision": (member("n1", verified=replace(PROVEN, failed_version=EARLIER)), False),
    "another policy of this name failed on it": (
        member("n1", verified=replace(PROVEN, failed_version=replace(POOL, uid="old").version)), False),
    "its calls failed before the point of no return": (member("n1", Phase.FAILED, fence=make_fence(**OURS)), False),
    "it was given up before the point of no return": (member("n1", Phase.ABORTING, fence=make_fence(**OURS)), False),
}  # fmt: skip


@pytest.mark.parametrize(("node", "halts"), FAILED.values(), ids=FAILED.keys())
def test_a_failure_of_this_revision_halts_the_policy(node: Member, halts: bool) -> None:
    hold = find_hold(pooled(node, member("n2")))
    assert (hold is not None and hold.reason is Reason.HALTED) is halts


def test_more_failures_may_be_allowed_and_a_person_may_let_it_go_on() -> None:
    two = [member(name, Phase.FAILED, fence=ACTUATING) for name in ("n1", "n2")]
    assert find_hold(pooled(*two[:1], maxFailures=2)) is None
    hold = hold_of(pooled(*two, maxFailures=2))
    assert "n1, n2 failed" in hold.message
    halt = find_halt(pooled(*two, maxFailures=2))
    assert halt is not None
    assert f"kubectl annotate gsp pool-b --overwrite {names.ANNOTATION_RESUME}={halt[0]}" in hold.message
    assert find_hold(pooled(*two, maxFailures=2, policy=replace(POOL, resumed=halt[0]))) is None


def test_a_failure_halts_a_policy_of_which_most_is_done_too() -> None:
    hold = hold_of(pooled(*map(proven, "abcdef"), member("n1", Phase.FAILED, fence=ACTUATING), *MANY[2:]))
    assert hold.reason is Reason.HALTED


ROLLOUT: dict[str, dict[str, Any]] = {
    "a pause": {"paused": True},
    "a budget": {"maxUnavailable": 2},
    "a canary": {"canary": {"nodes": 1}},
    "approvals": {"approval": "Manual"},
    "another end of failures": {"onFailure": "Rollback"},
    "windows": {"windows": [{"schedule": "0 22 * * *", "duration": "6h"}]},
    "blackouts": {"blackouts": [{"schedule": "0 22 * * *", "duration": "6h"}]},
}
NOTHING_NEW: dict[str, PolicyView] = {
    "a price": make_policy(generation=4, cost={"gpuHourlyPrice": "3.20"}),
    "what deletion would do": make_policy(generation=4, deletionPolicy="Reset"),
    "the same words again": make_policy(generation=4),
    **{edit: make_policy(generation=4, rollout=rollout) for edit, rollout in ROLLOUT.items()},
}


@pytest.mark.parametrize("policy", NOTHING_NEW.values(), ids=NOTHING_NEW)
def test_a_halt_outlasts_an_edit_of(policy: PolicyView) -> None:
    assert policy.spec is not None
    failed = member("n1", Phase.FAILED, fence=ACTUATING)
    hold = find_hold(Pool(policy, members=[failed], hours=ALWAYS, now=NOW))
    halt = find_halt(pooled(failed))
    assert hold is not None
    assert hold.reason is Reason.HALTED
    assert halt is not None
    resumed = replace(policy, resumed=halt[0])
    assert "failed in this revision" not in str(find_hold(Pool(resumed, members=[failed], hours=ALWAYS, now=NOW)))


def test_a_halt_ends_when_the_policy_asks_for_something_else_or_allows_more_failures() -> None:
    failed = member("n1", Phase.FAILED, fence=ACTUATING)
    assert find_hold(pooled(failed, policy=ask_anew(POOL))) is None
    assert find_hold(pooled(failed, policy=replace(POOL, uid="made anew"))) is None
    assert find_hold(pooled(failed, maxFailures=2)) is None


# --- canary ---------------------------------------------------------------------------------------------------

CANARY = {"nodes": 2, "soak": "10m"}
MANY = [member(f"n{number}") for number in range(5)]


def proven(name: str, seconds: float = 0) -> Member:
    return member(name, Phase.SYNCED, verified=replace(PROVEN, changed_at=at(seconds)))


def test_only_so_many_nodes_start_before_the_others() -> None:
    begun = member("n8", fence=ACTUATING)
    assert find_canary(pooled(*MANY)) is None
    assert find_canary(pooled(*MANY, canary=CANARY)) == 2
    assert find_canary(pooled(*MANY, begun, canary=CANARY)) == 1
    assert find_canary(pooled(*MANY, proven("n9"), canary=CANARY)) == 1
    waiting = find_canary(pooled(*MANY, begun, proven("n9"), canary=CANARY))
    assert isinstance(waiting, Finding)
    assert (waiting.reason, waiting.until) == (Reason.CANARY_SOAK, None)


IN_FLIGHT: dict[str, tuple[Phase, int]] = {
    "goes on, and turns to this revision": (Phase.RECONFIGURING, 1),
    "drains, and turns to this revision": (Phase.DRAINING, 1),
    "is being given back": (Phase.ABORTING, 2),
    "has failed, and may never go on": (Phase.FAILED, 2),
}


@pytest.mark.parametrize(("phase", "left"), IN_FLIGHT.values(), ids=IN_FLIGHT)
def test_a_node_in_flight_since_another_revision_is_a_canary_where_it(phase: Phase, left: int) -> None:
    """Or another one would start in the very pass in which it turns."""
    earlier = member("n8", phase, fence=replace(ACTUATING, version=EARLIER))
    assert find_canary(pooled(*MANY, earlier, canary=CANARY)) == left


def test_the_others_start_when_all_canaries_have_soaked() -> None:
    done = (*MANY, proven("n8", 0), proven("n9", 60))
    soaking = find_canary(pooled(*done, canary=CANARY, seconds=659))
    assert isinstance(soaking, Finding)
    assert (soaking.reason, soaking.until) == (Reason.CANARY_SOAK, at(660))
    assert find_canary(pooled(*done, canary=CANARY, seconds=660)) is None


def test_what_another_revision_proved_is_no_canary() -> None:
    old = member("n9", verified=replace(PROVEN, version=EARLIER))
    assert find_canary(pooled(*MANY, old, canary={"nodes": 1})) == 1


def test_a_canary_as_large_as_the_pool_is_the_whole_pool_and_says_so() -> None:
    whole = pooled(*MANY, canary={"nodes": 5})
    assert find_canary(whole) is None
    assert find_hold(whole) is None
    assert not lacks(find_note(whole), "spec.rollout.canary.nodes is 5", "5 nodes", "whole pool")
    assert find_note(pooled(*MANY, canary=CANARY)) == ""


LARGE = {"nodes": 7, "soak": "10m"}


def test_a_canary_larger_than_the_pool_freezes_it_and_names_object_value_and_an_example() -> None:
    whole = pooled(*MANY, canary=LARGE)
    hold = hold_of(whole)
    assert hold.reason is Reason.CANARY_TOO_LARGE
    assert not lacks(
        hold.message, "pool-b", "spec.rollout.canary.nodes is 7", "5 nodes", "5", "canary: {nodes: 1, soak: 10m}"
    )
    assert hold.reason.waiting_phase is Phase.BLOCKED
    assert find_note(whole) == hold.message
    assert find_hold(pooled(canary=LARGE)) is None, "of an empty pool there is nothing to say"
    assert find_note(pooled(canary=LARGE)) == ""


def test_a_canary_larger_than_the_pool_keeps_no_policy_from_being_deleted() -> None:
    whole = pooled(*MANY, canary=LARGE)
    resetting = replace(whole, policy=replace(whole.policy, resetting=True))
    assert find_hold(resetting) is None
    assert find_canary(resetting) == 7, "each node of the pool may start"
    assert not lacks(find_note(resetting), "spec.rollout.canary.nodes is 7", "5 nodes", "whole pool")


SMALLER: dict[str, tuple[Member, Reason | None]] = {
    "serves as its canary for long enough": (proven("n9", -600), None),
    "has not served for long enough": (proven("n9", -599), Reason.CANARY_SOAK),
    "is not proven yet": (member("n9", Phase.DRAINING, fence=ACTUATING), Reason.CANARY_SOAK),
    "began by another spec": (
        member("n9", Phase.RECONFIGURING, fence=replace(ACTUATING, turned=True)), Reason.CANARY_TOO_LARGE),
    "is still to turn to this spec": (
        member("n9", Phase.DRAINING, fence=replace(ACTUATING, version=EARLIER)), Reason.CANARY_TOO_LARGE),
    "was a canary of another revision": (
        member("n9", Phase.SYNCED, verified=replace(PROVEN, version=EARLIER)), Reason.CANARY_TOO_LARGE),
    "went back": (member("n9", verified=replace(PROVEN, rolled_back=True)), Reason.CANARY_TOO_LARGE),
    "only joined": (
        member("n9", Phase.SYNCED, verified=replace(PROVEN, apart=True, changed_at=at(-600))),
        Reason.CANARY_TOO_LARGE),
    "is only joining": (member("n9", Phase.DRAINING, fence=replace(ACTUATING, newcomer=True)), Reason.CANARY_TOO_LARGE),
}  # fmt: skip


@pytest.mark.parametrize(("left", "reason"), SMALLER.values(), ids=SMALLER)
def test_a_pool_that_became_smaller_than_its_canary_goes_by_what_is_left_of_it_which(
    left: Member, reason: Reason | None
) -> None:
    smaller = pooled(*MANY, left, canary=LARGE)
    hold = find_hold(smaller)
    assert (hold.reason if hold is not None else None) is reason
    assert ("of the remaining nodes is the canary" in find_note(smaller)) is (reason is not Reason.CANARY_TOO_LARGE)


BROKEN = member("n9", Phase.SYNCED, ready=False, verified=PROVEN)
ONE = {"nodes": 1, "soak": "10m"}
TOGETHER: dict[str, tuple[list[Member], dict[str, Any], bool, Reason]] = {
    "no node may be unavailable, and one has failed": (
        [member("n1", Phase.FAILED, fence=ACTUATING)], {"maxUnavailable": 0}, False, Reason.FROZEN),
    "a node has failed, and the canary is too large": (
        [member("n1", Phase.FAILED, fence=ACTUATING)], {"canary": LARGE}, False, Reason.HALTED),
    "the canary is too large, and nobody has approved": (
        [], {"canary": LARGE, "approval": "Manual"}, False, Reason.CANARY_TOO_LARGE),
    "nobody has approved, and a canary does not serve": (
        [BROKEN], {"canary": ONE, "approval": "Manual"}, False, Reason.APPROVAL_NEEDED),
    "a canary does not serve, and no window is open": ([BROKEN], {"canary": ONE}, True, Reason.CANARY_NOT_SERVING),
    "no window is open, and a canary soaks": ([proven("n9")], {"canary": ONE}, True, Reason.WINDOW_CLOSED),
}  # fmt: skip


@pytest.mark.parametrize(("nodes", "rollout", "closed", "reason"), TOGETHER.values(), ids=TOGETHER)
def test_what_a_person_has_to_end_is_told_before_what_the_clock_ends(
    nodes: list[Member], rollout: dict[str, Any], closed: bool, reason: Reason
) -> None:
    pool = pooled(*MANY[2:], *nodes, **rollout)
    if closed:
        pool = replace(pool, hours=replace(ALWAYS, closed=Finding(Reason.WINDOW_CLOSED, "no window is open")))
    hold = hold_of(pool)
    assert hold.reason is reason


# --- whole ways -------------------------------------------------------------------------------------------------


def rolling(size: int, **rollout: Any) -> World:
    """A pool of whole GPUs at rest whose policy has just been changed to time-slicing."""
    world = pool_of(size, FULL)
    world.set_policy(make_policy(mode="TimeSlicing", rollout={"maxUnavailable": 3, **rollout}))
    return world


def shared(world: World) -> list[str]:
    return [name for name, verdict in world.plan().verdicts.items() if verdict.phase is Phase.SYNCED]


def fences(world: World) -> list[NodeView]:
    return [node for node in world.nodes.values() if node.fence is not None]


def test_a_roll_waits_for_its_window_and_then_needs_nobody() -> None:
    world = rolling(3, windows=[{"schedule": "0 22 * * *", "duration": "6h"}])
    pass_time(world, 15)
    plan = world.plan()
    assert {verdict.reason for verdict in plan.verdicts.values()} == {Reason.WINDOW_CLOSED}
    opening = NOW.replace(hour=22)
    assert plan.wake_at is not None
    assert plan.wake_at <= opening
    world.settle()
    assert len(shared(world)) == 3
    proofs = [node.verified for node in world.nodes.values()]
    assert all(proof is not None and proof.changed_at is not None and proof.changed_at > opening for proof in proofs)


def test_a_window_that_is_closed_during_a_roll_lets_those_in_flight_finish() -> None:
    world = rolling(2, maxUnavailable=1, windows=[{"schedule": "0 10 * * *", "duration": "60m"}])
    run_until(world, Phase.RECONFIGURING, node=first_of(world))
    world.now = NOW + timedelta(minutes=40)
    pass_time(world, 600)
    assert len(shared(world)) == 1
    assert not fences(world)
    reasons = {verdict.reason for verdict in world.plan().verdicts.values()}
    assert reasons == {Reason.SYNCED, Reason.WINDOW_CLOSED}


def first_of(world: World) -> str:
    for _ in range(60):
        if found := fences(world):
            return found[0].name
        pass_time(world, 1)
    raise AssertionError("nobody starts")


def test_a_wrong_window_holds_its_policy_and_no_other() -> None:
    world = rolling(1, windows=[{"schedule": "0 22 * * *", "duration": "6h", "timeZone": "Mars/Olympus"}])
    world.add_node("other", pool="c")
    other = {"matchLabels": {"pool": "c"}}
    world.set_policy(make_policy("pool-c", mode="TimeSlicing", nodeSelector=other))
    world.settle()
    verdicts = world.plan().verdicts
    assert (verdicts["n0"].phase, verdicts["n0"].reason) == (Phase.BLOCKED, Reason.INVALID_WINDOW)
    assert world.nodes["n0"].fence is None


def test_a_canary_is_proven_and_soaks_before_the_others_start_and_a_restart_changes_nothing() -> None:
    world = rolling(4, canary={"nodes": 1, "soak": "30m"})
    seen = 0
    for second in range(1500):
        pass_time(world, 1)
        seen = max(seen, len(fences(world)))
        if second % 50 == 0:
            world.restart()
    assert seen == 1
    assert len(shared(world)) == 1
    assert {v.reason for v in world.plan().verdicts.values()} == {Reason.SYNCED, Reason.CANARY_SOAK}
    world.settle()
    assert len(shared(world)) == 4


def rolled(world: World, **rollout: Any) -> None:
    (policy,) = world.policies
    assert policy.spec is not None
    changed = policy.spec.rollout.model_copy(update=rollout)
    world.set_policy(replace(policy, spec=policy.spec.model_copy(update={"rollout": changed})))


@pytest.mark.parametrize("moment", ["while the canary changes", "while it serves"])
def test_a_pause_does_not_begin_the_canary_anew(moment: str) -> None:
    world = rolling(4, canary={"nodes": 1, "soak": "30m"})
    first = first_of(world)
    if moment == "while it serves":
        pass_time(world, 300)
        assert shared(world) == [first]
    rolled(world, paused=True)
    pass_time(world, 30)
    rolled(world, paused=False, when_paused="Hold")
    pass_time(world, 600)
    assert shared(world) == [first], "another node changed before the canary had served"
    world.settle()
    assert len(shared(world)) == 4


def test_only_an_edit_that_asks_for_something_new_begins_the_canary_anew() -> None:
    world = rolling(4, canary={"nodes": 1, "soak": "30m"})
    pass_time(world, 300)
    assert len(shared(world)) == 1
    rolled(world, max_unavailable=2)
    pass_time(world, 600)
    assert len(shared(world)) == 1, "the canary serves what is asked for"
    rolled(world, timeouts=Timeouts(actuation="31m"))
    pass_time(world, 600)
    assert len(shared(world)) == 2


def test_a_pool_that_shrinks_after_its_canary_goes_on_and_one_that_never_had_a_canary_waits_for_a_person() -> None:
    world = rolling(4, maxUnavailable=1, canary={"nodes": 3, "soak": "10m"})
    while len(shared(world)) < 3:
        pass_time(world, 10)
    (last,) = set(world.nodes) - set(shared(world))
    for name in shared(world)[1:]:
        world.remove_node(name)
    world.settle()
    assert len(world.nodes) == 2
    assert shared(world) == sorted(world.nodes)
    world.set_policy(make_policy(rollout={"maxUnavailable": 2, "canary": {"nodes": 3}}))
    world.settle()
    assert {one.reason for one in world.plan().verdicts.values()} == {Reason.CANARY_TOO_LARGE}
    assert not fences(world)
    rolled(world, canary=Canary(nodes=1))
    world.settle()
    assert shared(world) == sorted(world.nodes)
    assert world.nodes[last].labels[names.LABEL_MODE] == "mig"


def test_a_canary_that_becomes_too_large_in_the_middle_freezes_the_nodes_that_have_not_begun() -> None:
    world = rolling(3, maxUnavailable=1, canary={"nodes": 1, "soak": "1m"})
    first = first_of(world)
    rolled(world, canary=Canary(nodes=5, soak="1m"), timeouts=Timeouts(actuation="31m"))
    world.settle()
    assert shared(world) == [first], "what had begun by another spec shows nothing of this canary"
    told = {one.reason for name, one in world.plan().verdicts.items() if name != first}
    assert told == {Reason.CANARY_TOO_LARGE}


# --- a pool and its windows -----------------------------------------------------------------------------------


def test_a_policy_without_a_readable_spec_moves_nothing() -> None:
    pool = Pool(replace(POOL, spec=None), ["a", "b"]).with_hours(NOW)
    assert (pool.limit, pool.hours) == (0, ALWAYS)
    with pytest.raises(ValueError, match="the spec of policy pool-b cannot be read"):
        _ = pool.spec


def test_no_node_starts_while_it_is_unknown_what_the_windows_say() -> None:
    hold = hold_of(Pool(POOL))
    assert hold.reason is Reason.WINDOW_CLOSED


# --- canaries that no longer serve what was proven on them ------------------------------------------------------------


def served(phase: Phase = Phase.SYNCED, reason: Reason | None = None, **node: Any) -> Member:
    return member("n9", phase, reason, verified=PROVEN, **node)


NOT_SERVING: dict[str, tuple[Member, str]] = {
    "is not Ready": (served(ready=False), "it is not Ready"),
    "is cordoned": (served(unschedulable=True), "it is cordoned"),
    "is being deleted": (served(deleting=True), "its Node is being deleted"),
    "has an unhealthy GPU": (served(Phase.SYNCED, Reason.GPU_UNHEALTHY), "GPUUnhealthy"),
    "has lost a GPU": (served(Phase.BLOCKED, Reason.GPU_MISSING), "GPUMissing"),
    "is being put right": (served(Phase.DRAINING, fence=ACTUATING), "it is being changed"),
    "could not be put right": (served(Phase.FAILED, fence=ACTUATING), "it has failed"),
    "could not be put right, and is cordoned and not Ready": (
        served(Phase.FAILED, fence=ACTUATING, ready=False, unschedulable=True), "it has failed"),
    "is being put right, and is cordoned": (
        served(Phase.DRAINING, fence=ACTUATING, unschedulable=True), "it is being changed"),
    "is being deleted, and is not Ready": (served(deleting=True, ready=False), "its Node is being deleted"),
    "is not Ready, and is cordoned": (served(ready=False, unschedulable=True), "it is not Ready"),
}  # fmt: skip


@pytest.mark.parametrize("seconds", [60, 700], ids=["while it soaks", "after its soak"])
@pytest.mark.parametrize(("canary", "why"), NOT_SERVING.values(), ids=NOT_SERVING)
def test_the_others_do_not_start_while_a_canary(canary: Member, why: str, seconds: float) -> None:
    one = {"nodes": 1, "soak": "10m"}
    assert find_hold(pooled(*MANY, proven("n9"), canary=one, seconds=700)) is None
    hold = hold_of(pooled(*MANY, canary, canary=one, maxFailures=2, seconds=seconds))
    assert (hold.reason, hold.keeper) == (Reason.CANARY_NOT_SERVING, "node/n9")
    assert not lacks(hold.message, "n9", "spec.rollout.canary", why)
    assert hold.reason.waiting_phase is Phase.BLOCKED


OTHERS: dict[str, tuple[Member, bool]] = {
    "began before the soak was over": (member("n8", Phase.DRAINING, fence=replace(ACTUATING, since=at(599))), True),
    "was proven before the soak was over": (proven("n8", 300), True),
    "has begun since": (member("n8", Phase.DRAINING, fence=replace(ACTUATING, since=at(600))), False),
    "was proven since": (proven("n8", 650), False),
    "failed since and went back": (member("n8", verified=replace(PROVEN, changed_at=at(650), rolled_back=True)), True),
}  # fmt: skip


@pytest.mark.parametrize(("other", "waits"), OTHERS.values(), ids=OTHERS)
def test_a_canary_that_breaks_keeps_the_others_waiting_unless_one_of_them(other: Member, waits: bool) -> None:
    broken = served(ready=False)
    hold = find_hold(pooled(*MANY, broken, other, canary={"nodes": 1, "soak": "10m"}, seconds=700))
    assert (hold is not None and hold.reason is Reason.CANARY_NOT_SERVING) is waits


def test_a_canary_that_is_gone_is_followed_by_the_next_one_and_a_deletion_waits_for_none() -> None:
    assert find_canary(pooled(*MANY, canary={"nodes": 1})) == 1
    resetting = replace(POOL, resetting=True)
    served = replace(PROVEN, version=resetting.version)
    broken = member("n9", Phase.SYNCED, ready=False, verified=served)
    assert find_canary(pooled(*MANY, broken, policy=resetting, canary={"nodes": 1}, seconds=7200)) is None


def test_a_canary_that_has_drifted_is_put_right_and_serves_anew_before_the_others_start() -> None:
    world = rolling(4, canary={"nodes": 1, "soak": "30m"})
    first = first_of(world)
    while not shared(world):
        pass_time(world, 1)
    before = world.nodes[first].verified
    assert before is not None
    assert before.changed_at is not None
    world.nodes[first] = patched(world.nodes[first], {names.LABEL_PLUGIN_CONFIG: None})
    pass_time(world, 600)
    after = world.nodes[first].verified
    assert after is not None
    assert after.changed_at is not None
    assert after.changed_at > before.changed_at, "its own repair waits for nothing"
    assert shared(world) == [first], "another node changed beside a canary that was being put right"
    world.settle()
    assert len(shared(world)) == 4
    last = [node.verified.changed_at for node in world.nodes.values() if node.verified is not None]
    assert sum(at is not None and at > after.changed_at + timedelta(minutes=30) for at in last) == 3


# --- canaries that are never proven ---------------------------------------------------------------------------------


def begun(phase: Phase, reason: Reason = Reason.PROGRESSING, *, deadline: datetime | None = None) -> Member:
    node = make_node("n9", fence=ACTUATING, unschedulable=True)
    return make_member(node, Verdict("n9", "pool-b", phase, reason, "", deadline=deadline))


UNPROVEN: dict[str, tuple[Member, str, str, bool]] = {
    "is changing": (begun(Phase.RECONFIGURING, deadline=at(60)), "", "", False),
    "drains": (begun(Phase.DRAINING, deadline=at(60)), "", "", False),
    "has failed": (begun(Phase.FAILED), " (n9 has failed)", "node/n9", True),
    "is held past its time": (
        begun(Phase.DRAINING, Reason.DRAIN_HELD), " (the change on n9 is on hold)", "node/n9", True),
    "waits for jobs that may run for ever": (
        begun(Phase.WAITING_FOR_JOBS, deadline=NEVER), " (the change on n9 is on hold)", "node/n9", False),
}  # fmt: skip


@pytest.mark.parametrize("nodes", [1, 2], ids=["the whole canary", "one of two"])
@pytest.mark.parametrize(("canary", "why", "keeper", "stands"), UNPROVEN.values(), ids=UNPROVEN)
def test_the_others_name_a_canary_that_no_clock_ends_and_say_who_does_where_it(
    canary: Member, why: str, keeper: str, stands: bool, nodes: int
) -> None:
    """Not the one that is changing: each waiting node would be written again whenever one begins."""
    told = pooled(*MANY, canary, maxFailures=2, canary={"nodes": nodes})
    found = hold_of(told) if nodes == 1 else wait_for_canaries(told)
    assert (found.reason, found.keeper, found.stands) == (Reason.CANARY_SOAK, keeper, stands)
    assert not lacks(
        found.message,
        "spec.rollout.canary",
        f"canary of {nodes} node{'s'[: nodes - 1]}",
        "to be proven" if nodes == 1 else "before this node",
    )


@pytest.mark.parametrize("nodes", [1, 2])
def test_behind_a_canary_whose_drain_is_held_every_node_waits_for_a_person_and_names_it(nodes: int) -> None:
    world = pool_of(4, FULL)
    for name in world.nodes:
        assert world.add_pod(name)
    world.refusing = True
    rollout = {"maxUnavailable": 3, "canary": {"nodes": nodes, "soak": "10m"}}
    world.set_policy(
        make_policy(mode="TimeSlicing", drain={"onTimeout": "Hold", "strandedPods": "Allow"}, rollout=rollout)
    )
    pass_time(world, 100, seconds=15)
    plan = world.plan()
    held = [name for name, one in plan.verdicts.items() if one.reason is Reason.DRAIN_HELD]
    assert len(held) == nodes
    others = {
        (one.reason, who_keeps(one, world.nodes[name]), who_ends(one))
        for name, one in plan.verdicts.items()
        if name not in held
    }
    assert others == {(Reason.CANARY_SOAK, f"node/{min(held)}", "Person")}
    (policy,) = world.policies
    told = policy_status(policy, plan, world.snapshot(), {}, NOW)["conditions"]
    assert {one["type"]: one["status"] for one in told}["Stalled"] == "True"
