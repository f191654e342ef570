"""The columns USED and PENDING (planning/told/counts.py, through the status)."""

from dataclasses import replace
from typing import Any

import pytest
from tests.build import NOW, make_node, make_pod, make_policy
from tests.planning.told import HALVES, SYNCED, StatusInput

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
    assert used(NodeWork((), (), NOW, error="the pods of the node cannot be listed")) == "2/4"


@pytest.mark.parametrize(("stranded", "counted"), [("Hold", 3), ("Allow", 7)])
def test_pods_that_no_node_can_run_count_where_the_policy_may_strand_them(
    stranded: str, counted: int
) -> None:
    given = StatusInput(
        [SYNCED, replace(SYNCED, node="gpu-08", policy="another")],
        make_policy(drain={"strandedPods": stranded}),
        nodes={
            "gpu-07": make_node(resources=HALVES),
            "gpu-08": make_node("gpu-08", resources={"nvidia.com/gpu": 1}),
        },
        pending={"nvidia.com/mig-3g.40gb": 3, "nvidia.com/gpu": 5, "nvidia.com/mig-1g.10gb": 4},
    )
    assert given.status()["summary"]["pendingPods"] == counted
