"""Nodes of a gang for which there was no room come directly after the others, in a whole roll.
A roll without them would have another order: the rest of the gang is the node with the most pods."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from tests.build import H100, at, make_fence, make_node, make_pod, make_policy, make_work
from tests.planning.cases import FULL, MIXED, make_member, pass_time
from tests.planning.gangs import make_gang, make_gang_view
from tests.planning.machines import NodeMachine
from tests.planning.test_holds import rolled
from tests.planning.test_pool import candidate, chosen, fenced
from tests.planning.told import verdict
from tests.planning.world import World

from gpusharing.api import names
from gpusharing.api.names import Phase
from gpusharing.api.policy import Timeouts
from gpusharing.planning.pools.candidates import find_cost
from gpusharing.planning.pools.waves import find_following
from gpusharing.planning.snapshot.actions import FenceNode
from gpusharing.planning.snapshot.podviews import NodeWork
from gpusharing.planning.snapshot.records import SpecVersion, Verified
from gpusharing.planning.vocabulary.reasons import Reason

RANK = "a rank of a JobSet"
SHARED: dict[str, Any] = {"mode": "TimeSlicing", "drain": {"strandedPods": "Allow"}}


def busy(ranks: int, **more: int) -> World:
    """Nodes of eight whole GPUs, n0 and so on: a gang has ranks on the first, and so many pods run besides it."""
    world = World()
    for number in range(ranks + 2):
        world.add_node(f"n{number}", NodeMachine(f"n{number}", (H100,) * 8))
    world.set_policy(FULL)
    world.settle()
    start_gang(world, ranks)
    for name, pods in more.items():
        for _ in range(pods):
            assert world.add_pod(name)
    return world


def start_gang(world: World, ranks: int) -> None:
    for number in range(ranks):
        assert world.add_pod(f"n{number}", RANK)


def begun(world: World) -> list[str]:
    return [one.node.name for one in world.done if isinstance(one, FenceNode)]


def roll(
    ranks: int,
    more: dict[str, int],
    rollout: dict[str, Any],
    between: Callable[[World], object] = lambda world: None,
    turns: int = 150,
) -> list[str]:
    """The order of a roll in which the gang is started again as soon as the first of its nodes are given back. `between`: what happens then."""
    world = busy(ranks, **more)
    before = len(begun(world))
    world.set_policy(make_policy(**SHARED, rollout=rollout))
    pass_time(world, 200, until=lambda world: world.nodes["n0"].fence is not None)
    pass_time(world, 200, until=lambda world: world.nodes["n0"].fence is None)
    start_gang(world, ranks)
    between(world)
    pass_time(world, turns)
    return begun(world)[before:]


OF_TWO = {"n1": 6, "n2": 5, "n3": 5}
CANARY = {"nodes": 1, "soak": "1m"}
ROLLS: dict[str, tuple[int, dict[str, int], dict[str, Any], list[str]]] = {
    "one node may be away": (2, OF_TWO, {}, ["n0", "n1"]),
    "two of the three may be away": (
        3, {"n2": 6, "n3": 5, "n4": 5}, {"maxUnavailable": 2}, ["n0", "n1", "n2"]),
    "one node is the canary": (2, OF_TWO, {"maxUnavailable": 2, "canary": CANARY}, ["n0", "n1"]),
}  # fmt: skip


@pytest.mark.parametrize(("ranks", "more", "rollout", "first"), ROLLS.values(), ids=ROLLS)
def test_nodes_of_a_gang_for_which_there_is_no_room_come_directly_after_the_others_where(
    ranks: int, more: dict[str, int], rollout: dict[str, Any], first: list[str]
) -> None:
    order = roll(ranks, more, rollout)
    assert order[: len(first)] == first
    assert sorted(order) == sorted({*more, "n0", "n1"}), "each node starts once"


def unlabel(world: World) -> None:
    """Somebody removes a label of ours, so that the node is adopted anew."""
    node = world.nodes["n0"]
    kept = {key: value for key, value in node.labels.items() if key != names.LABEL_MODE}
    world.nodes["n0"] = replace(node, labels=kept)


def pause(world: World) -> None:
    rolled(world, paused=True)
    pass_time(world, 30)
    rolled(world, paused=False)


BETWEEN: dict[str, Callable[[World], None]] = {
    "another operator goes on": World.restart,
    "the node that was first is adopted anew": unlabel,
    "the policy was paused": pause,
}


@pytest.mark.parametrize("between", BETWEEN.values(), ids=BETWEEN)
def test_the_rest_of_a_gang_still_comes_next_when(between: Callable[[World], None]) -> None:
    assert roll(2, OF_TWO, {}, between)[:2] == ["n0", "n1"]


IN_VAIN: dict[str, Callable[[World], object]] = {
    "is blocked": lambda world: world.add_pod("n1", "a bare pod"),
    "is gone": lambda world: world.remove_node("n1"),
}


@pytest.mark.parametrize("between", IN_VAIN.values(), ids=IN_VAIN)
def test_nobody_waits_for_the_rest_of_a_gang_that(between: Callable[[World], object]) -> None:
    assert set(roll(2, OF_TWO, {}, between)[1:]) == {"n2", "n3"}


def test_after_an_edit_of_what_is_asked_for_the_order_begins_anew_as_the_canary_does() -> None:
    order = roll(2, OF_TWO, {}, lambda world: rolled(world, timeouts=Timeouts(actuation="31m")))
    assert (order[0], order[-1]) == ("n0", "n1")


def worker_and_driver(node: str) -> NodeWork:
    """A pod with a GPU and one without, which are a gang of their own."""
    gang = make_gang(f"run-{node}")
    pods = [make_pod(f"worker-{node}", gang=gang), make_pod(f"driver-{node}", gang=gang, resources={})]
    return make_work(*pods, gangs=(make_gang_view({node: pods}, gang),))


def test_one_of_the_rest_of_a_gang_whose_pods_are_known_starts_before_the_others_are_looked_at() -> None:
    """A gang counts as a whole only once its pods are listed, so each node that was looked at would come after those that were not: they would take turns at the only slot for ever."""
    fence = make_fence(version=MIXED.version, mates=("a", "b", "c"))
    mate = make_member(make_node("m", fence=fence), verdict(Phase.SYNCED, node="m"))
    listed: set[str] = set()
    for _ in range(3):
        cases = [candidate(name, worker_and_driver(name) if name in listed else None, pods=1) for name in "abc"]
        selection = chosen(*cases, limit=1, members=[mate])
        if started := fenced(selection):
            break
        listed = {name for name, one in selection.verdicts.items() if one.wants_pods}
    assert len(started) == 1
    assert started[0] in listed


def test_pods_that_have_finished_cost_nothing() -> None:
    gang = make_gang("run")
    over = [make_pod(f"over-{phase}", gang=gang, phase=phase) for phase in ("Succeeded", "Failed")]
    left = [make_pod("rank", gang=gang), make_pod("alone"), make_pod("done", phase="Succeeded")]
    view = make_gang_view({"a": [*over, left[0]], "b": [make_pod("elsewhere", gang=gang)]}, gang)
    case = candidate("a", make_work(*over, *left, gangs=(view,)))
    assert find_cost(case, 9) == 3, "two ranks of the gang that run, and one pod besides it"


# --- what the proofs say -------------------------------------------------------------------------------------------

POLICY = make_policy(**SHARED)
PROOF = Verified(POLICY.name, "", "", layout="1x full", gpus=1, version=POLICY.version, changed_at=at(0), mates=("n1",))
SAYS: dict[str, tuple[Verified, Verified | None, bool]] = {
    "the other one was never changed": (PROOF, None, True),
    "the other one was changed before": (PROOF, replace(PROOF, changed_at=at(-60), mates=()), True),
    "the other one was changed since": (PROOF, replace(PROOF, changed_at=at(60), mates=()), False),
    "it was proven by another revision": (replace(PROOF, version=SpecVersion(POLICY.uid, "another")), None, False),
    "it was proven for a policy of this name that is gone": (
        replace(PROOF, version=replace(POLICY, uid="gone").version), None, False),
    "an older operator wrote it": (replace(PROOF, mates=()), None, False),
}  # fmt: skip


@pytest.mark.parametrize(("proof", "other", "next_"), SAYS.values(), ids=SAYS)
def test_a_proof_says_who_comes_next_where(proof: Verified, other: Verified | None, next_: bool) -> None:
    member = make_member(make_node("n0", verified=proof), verdict(Phase.SYNCED, node="n0"))
    assert find_following(POLICY, [member], [make_node("n1", verified=other), make_node("n2")]) == (
        {"n1"} if next_ else set()
    )


def test_nobody_takes_the_slot_of_the_rest_of_a_gang_while_its_pods_are_looked_at() -> None:
    fence = make_fence(version=MIXED.version, mates=("a",))
    mate = make_member(make_node("m", unschedulable=True, fence=fence), verdict(Phase.DRAINING, node="m"))
    selection = chosen(candidate("a", None), candidate("z"), limit=1, members=[mate])
    assert fenced(selection) == []
    told = {name: (verdict.phase, verdict.reason) for name, verdict in selection.verdicts.items()}
    assert told == {"a": (Phase.PREFLIGHT, Reason.PROGRESSING), "z": (Phase.PENDING, Reason.BUDGET_FULL)}
    assert fenced(chosen(candidate("a", make_work()), candidate("z"), limit=1, members=[mate])) == ["a"]
