"""Our own pod keeps a place: no cordon of ours takes the last node that would take it."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from tests.build import NOW, at, make_fence, make_node, make_pod, make_policy, make_snapshot, make_work
from tests.planning.cases import FULL, MIXED, SLICED, assessed_of, make_case, pool_of
from tests.planning.ganging import make_gang, make_gang_view

from gpusharing.api.names import DisruptionClass, Phase
from gpusharing.planning.pools.candidates import find_places, spare
from gpusharing.planning.rollout import plan_rollout
from gpusharing.planning.snapshot.actions import FenceNode
from gpusharing.planning.snapshot.podviews import Taint
from gpusharing.planning.snapshot.views import NodeView, PlanSettings
from gpusharing.planning.vocabulary.reasons import Reason

A = make_node("a")
BEFORE: dict[str, tuple[Sequence[NodeView], int | None]] = {
    "another node is open": ((A, make_node("b")), 1),
    "the other one is cordoned": ((A, make_node("b", unschedulable=True)), 0),
    "the other one is not Ready": ((A, make_node("b", ready=False)), 0),
    "there is no other node": ((A,), None),
    "the other one keeps pods off with a taint, so that waiting would not help": (
        (A, replace(make_node("b"), taints=(Taint("dedicated"),))),
        None,
    ),
    "the other one is being deleted": ((A, make_node("b", deleting=True)), None),
    "it is no place itself": (
        (replace(make_node("a"), taints=(Taint("dedicated"),)), make_node("b", unschedulable=True)),
        None,
    ),
}


def spare_of(nodes: Sequence[NodeView]) -> int | None:
    return spare(find_places(nodes), [replace(make_case(MIXED), node=nodes[0])])


@pytest.mark.parametrize("case", BEFORE)
def test_the_last_place_is_kept_only_where_another_may_open_again(case: str) -> None:
    nodes, free = BEFORE[case]
    assert spare_of(nodes) == free


def test_nodes_that_begin_are_no_places_any_more() -> None:
    nodes = (A, make_node("b"), make_node("c"))
    places = find_places(nodes)
    assert places is not None
    places.discard("b")
    assert spare(places, [replace(make_case(MIXED), node=A)]) == 1


def test_a_change_without_a_cordon_closes_no_place() -> None:
    nodes = (A, make_node("b", unschedulable=True))
    case = make_case(SLICED, node={"labels": {}})
    restart = replace(assessed_of(case), disruption=DisruptionClass.PLUGIN_RESTART)
    assert spare(find_places(nodes), [replace(case, node=A, assessment=restart)]) is None


@pytest.mark.parametrize(("pod", "at_once"), [("operator-1", 2), ("", 3)], ids=["in a pod", "outside the cluster"])
def test_of_a_pool_that_may_be_away_as_a_whole_one_node_stays_open_for_an_operator(pod: str, at_once: int) -> None:
    world = pool_of(3)
    world.settings = replace(world.settings, pod_name=pod)
    assert SLICED.spec is not None
    rollout = SLICED.spec.rollout.model_copy(update={"max_unavailable": "100%"})
    world.set_policy(replace(SLICED, spec=SLICED.spec.model_copy(update={"rollout": rollout})))
    most, told = 0, set[str]()
    for _ in range(120):
        world.act_everywhere()
        plan = world.step()
        most = max(most, sum(node.unschedulable for node in world.nodes.values()))
        told |= {verdict.message for verdict in plan.verdicts.values() if verdict.reason is Reason.BUDGET_FULL}
        world.now += timedelta(seconds=1)
    assert most == at_once
    assert {"the operator's own pod" in message for message in told} == ({True} if pod else set())
    assert {verdict.phase for verdict in plan.verdicts.values()} == {Phase.SYNCED}


# --- a gang, and a place that comes back ------------------------------------------------------------------------------

RANK = "a rank of a JobSet"
POD = PlanSettings(pod_name="operator-1", config_propagation=10.0)
SHARED: dict[str, Any] = {"mode": "TimeSlicing", "finalizer": True, "drain": {"onTimeout": "Hold"}}
IN_FLIGHT = make_fence(since=at(-60), deadline=at(840), disruption=DisruptionClass.RESET, node_uid="uid-n0")
AWAY: dict[str, tuple[NodeView, int]] = {
    "it goes on": (make_node("n0", unschedulable=True, fence=IN_FLIGHT), 0),
    "it reboots": (make_node("n0", unschedulable=True, ready=False, fence=IN_FLIGHT), 0),
    "it is held past its time": (
        make_node("n0", unschedulable=True, fence=replace(IN_FLIGHT, deadline=at(-1))), 1),
    "it was cordoned before, and stays so": (
        make_node("n0", unschedulable=True, fence=replace(IN_FLIGHT, prior_unschedulable=True)), 1),
    "a taint keeps pods off it": (
        replace(make_node("n0", unschedulable=True, fence=IN_FLIGHT), taints=(Taint("dedicated"),)), 1),
    "nothing of ours goes on there": (make_node("n0", unschedulable=True), 1),
}  # fmt: skip


@pytest.mark.parametrize(("away", "starts"), AWAY.values(), ids=AWAY)
def test_a_gang_waits_for_the_place_of_a_node_only_if_our_change_gives_it_back_by_itself(
    away: NodeView, starts: int
) -> None:
    policy = make_policy(**SHARED, rollout={"maxUnavailable": 3})
    pods = {name: [make_pod(f"rank-{name}", gang=make_gang())] for name in ("n1", "n2")}
    view = make_gang_view(pods)
    work = {name: make_work(*pods[name], gangs=(view,)) for name in pods}
    work["n0"] = make_work(make_pod("leaves", owner=None))
    snapshot = make_snapshot([away, make_node("n1"), make_node("n2")], [policy], work=work)
    plan = plan_rollout(replace(snapshot, settings=POD), NOW)
    begun = [one for verdict in plan.verdicts.values() for one in verdict.actions if isinstance(one, FenceNode)]
    assert len(begun) == starts


def test_in_a_whole_roll_a_gang_changes_as_one_although_our_own_pod_needs_a_place() -> None:
    world = pool_of(3, FULL)
    world.settings = POD
    assert all(world.add_pod(name, RANK) for name in ("n1", "n2"))
    before = len(world.done)
    drain = {"strandedPods": "Allow"}
    world.set_policy(make_policy(mode="TimeSlicing", drain=drain, rollout={"maxUnavailable": 2}))
    world.settle()
    fences = {one.node.name: one.fence for one in world.done[before:] if isinstance(one, FenceNode)}
    assert list(fences) == ["n0", "n1", "n2"]
    assert fences["n1"].wave == fences["n2"].wave != ""
