"""The columns USED and PENDING, through the status, and what the metrics count (planning/report/counts.py)."""

from dataclasses import replace
from typing import Any

import pytest
from tests.build import NOW, make_gpunode, make_node, make_pod, make_policy, make_snapshot
from tests.planning.told import HALVES, SYNCED, StatusInput

from gpusharing.planning.report.counts import MOST_WAITED_FOR, OTHERS, count_slices, waited_for
from gpusharing.planning.snapshot.nvidia import NodeDevices
from gpusharing.planning.snapshot.podviews import NodeWork


def test_of_a_node_in_work_the_pods_that_were_just_listed_are_counted_and_not_the_agents_last_word() -> None:
    pods = (
        make_pod("here", resources={"nvidia.com/gpu": 1}),
        make_pod("over", resources={"nvidia.com/gpu": 1}, phase="Succeeded"),
        make_pod("web", resources={}),
    )
    reports: dict[str, dict[str, Any]] = {"gpu-07": {"allocated": {"nvidia.com/gpu": 2}}}
    nodes = {"gpu-07": make_node(resources={"nvidia.com/gpu": 4})}

    def used(work: NodeWork) -> str:
        given = StatusInput([SYNCED], nodes=nodes, reports=reports, work={"gpu-07": work})
        return str(given.status()["summary"]["used"])

    assert used(NodeWork(pods, (), NOW)) == "1/4"
    assert used(NodeWork((), (), NOW, error="the pods on the node cannot be listed")) == "2/4"


@pytest.mark.parametrize(("stranded", "counted"), [("Hold", 3), ("Allow", 7)])
def test_pods_that_no_node_can_run_count_where_the_policy_may_strand_them(stranded: str, counted: int) -> None:
    given = StatusInput(
        [SYNCED, replace(SYNCED, node="gpu-08", policy="another")],
        make_policy(drain={"strandedPods": stranded}),
        nodes={"gpu-07": make_node(resources=HALVES), "gpu-08": make_node("gpu-08", resources={"nvidia.com/gpu": 1})},
        pending={"nvidia.com/mig-3g.40gb": 3, "nvidia.com/gpu": 5, "nvidia.com/mig-1g.10gb": 4},
    )
    assert given.status()["summary"]["pendingPods"] == counted


SHARED = {"nvidia.com/gpu.shared": 4}
ONE_HELD = {"nvidia.com/gpu.shared": 1}


@pytest.mark.parametrize(
    ("node", "known", "idle"),
    [
        ({}, True, 3),
        ({"unschedulable": True}, True, 0),
        ({"ready": False}, True, 0),
        ({"gated": True}, True, 0),
        ({}, False, None),
    ],
    ids=["takes pods", "is cordoned", "is not Ready", "is behind the start-up taint", "tells no holdings"],
)
def test_idle_is_what_a_pod_could_be_given_now(node: dict[str, bool], known: bool, idle: int | None) -> None:
    given = make_node(resources=SHARED, **node)  # type: ignore[arg-type]  # flags only
    agent = make_gpunode(allocated=ONE_HELD, holdings_known=known)
    found = count_slices([given], make_snapshot([given], gpunodes=[agent]))
    assert found == (SHARED, {} if idle is None else {"nvidia.com/gpu.shared": idle})


def test_what_claims_hold_of_a_dra_driver_is_unknown() -> None:
    node = replace(make_node(resources={}), devices=NodeDevices((None, None)))
    found = count_slices([node], make_snapshot([node], gpunodes=[make_gpunode(allocated={})]))
    assert found == ({"nvidia.com/gpu": 2}, {})
    reports: dict[str, dict[str, Any]] = {"gpu-07": {"allocated": {}}}
    given = StatusInput([SYNCED], nodes={"gpu-07": node}, reports=reports)
    assert given.status()["summary"]["used"] == "0+?/2"


def test_a_pod_that_the_scheduler_has_just_put_there_leaves_no_less_than_nothing() -> None:
    node = make_node(resources={"nvidia.com/gpu": 1})
    agent = make_gpunode(allocated={"nvidia.com/gpu": 2})
    assert count_slices([node], make_snapshot([node], gpunodes=[agent]))[1] == {"nvidia.com/gpu": 0}


def test_names_that_pods_invent_are_told_up_to_a_bound() -> None:
    strange = {f"nvidia.com/gpu-{number:02}": number + 1 for number in range(MOST_WAITED_FOR + 2)}
    told = waited_for(make_snapshot([make_node()], pending={"nvidia.com/gpu": 1, **strange}))
    assert len(told) == MOST_WAITED_FOR + 2
    assert told["nvidia.com/gpu"] == 1, "a name that a node serves is told, however few wait for it"
    assert told[OTHERS] == strange["nvidia.com/gpu-00"] + strange["nvidia.com/gpu-01"]
    assert sum(told.values()) == 1 + sum(strange.values())
