"""Our own pod keeps a place: no cordon of ours takes the last node that would take it."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

import pytest
from tests.build import make_node
from tests.planning.cases import MIXED, SLICED, assessed_of, make_case, pool_of

from gpusharing.api.names import DisruptionClass, Phase
from gpusharing.planning.pools.places import Places
from gpusharing.planning.snapshot.views import NodeView
from gpusharing.planning.words.reasons import Reason

A = make_node("a")
BEFORE: dict[str, tuple[Sequence[NodeView], int | None]] = {
    "another node is open": ((A, make_node("b")), 1),
    "the other one is cordoned": ((A, make_node("b", unschedulable=True)), 0),
    "the other one is not Ready": ((A, make_node("b", ready=False)), 0),
    "there is no other node": ((A,), None),
    "the other one keeps pods off with a taint, so that waiting would not help": (
        (A, replace(make_node("b"), barred=True)),
        None,
    ),
    "the other one is being deleted": ((A, make_node("b", deleting=True)), None),
    "it is no place itself": (
        (replace(make_node("a"), barred=True), make_node("b", unschedulable=True)),
        None,
    ),
}


def spare(nodes: Sequence[NodeView]) -> int | None:
    """How many may go, where the first of them waits for its turn."""
    return Places.of(nodes).spare([replace(make_case(MIXED), node=nodes[0])])


@pytest.mark.parametrize("case", BEFORE)
def test_the_last_place_is_kept_only_where_another_may_open_again(case: str) -> None:
    nodes, free = BEFORE[case]
    assert spare(nodes) == free


def test_nodes_that_begin_are_no_places_any_more() -> None:
    nodes = (A, make_node("b"), make_node("c"))
    places = Places.of(nodes)
    places.close(["b"])
    assert places.spare([replace(make_case(MIXED), node=A)]) == 1


def test_a_change_without_a_cordon_closes_no_place() -> None:
    nodes = (A, make_node("b", unschedulable=True))
    case = make_case(SLICED, node={"labels": {}})
    restart = replace(assessed_of(case), disruption=DisruptionClass.PLUGIN_RESTART)
    assert Places.of(nodes).spare([replace(case, node=A, assessment=restart)]) is None


@pytest.mark.parametrize(
    ("pod", "at_once"), [("operator-1", 2), ("", 3)], ids=["in a pod", "outside the cluster"]
)
def test_of_a_pool_that_may_be_away_as_a_whole_one_node_stays_open_for_an_operator(
    pod: str, at_once: int
) -> None:
    world = pool_of(3)
    world.settings = replace(world.settings, pod_name=pod)
    assert SLICED.spec is not None
    rollout = SLICED.spec.rollout.model_copy(update={"max_unavailable": "100%"})
    world.set_policy(replace(SLICED, spec=SLICED.spec.model_copy(update={"rollout": rollout})))
    most, told = 0, set[str]()
    for _ in range(120):
        for name in world.nodes:
            world.act(name)
        plan = world.step()
        most = max(most, sum(node.unschedulable for node in world.nodes.values()))
        told |= {
            verdict.message for verdict in plan.verdicts.values() if verdict.reason is Reason.BUDGET_FULL
        }
        world.now += timedelta(seconds=1)
    assert most == at_once
    assert {"the operator's own pod" in message for message in told} == ({True} if pod else set())
    assert {verdict.phase for verdict in plan.verdicts.values()} == {Phase.SYNCED}
