"""Runs rollout_cases.yaml, table F of the reference, against the pure planner; the file explains its fields."""

from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from tests.build import NOW, make_fence, make_node, make_policy, make_snapshot, make_work
from tests.conformance.test_drain_rows import missing, no_decision
from tests.yamlfiles import read_yaml

from gpusharing.planning.pools.windows import find_hours
from gpusharing.planning.rollout import plan_rollout
from gpusharing.planning.snapshot.actions import FenceNode

TABLE: dict[str, Any] = read_yaml(Path(__file__).with_name("rollout_cases.yaml"))
AWAY: dict[str, Any] = {
    "silent": lambda name: make_node(name, ready=False),
    "cordoned": lambda name: make_node(name, unschedulable=True),
    "fenced": lambda name: make_node(name, unschedulable=True, fence=make_fence(node_uid=f"uid-{name}")),
}


@pytest.mark.parametrize("case", TABLE["budgets"], ids=lambda case: case["id"])
def test_how_many_more_nodes_start(case: dict[str, Any]) -> None:
    assert case.keys() <= {"id", "maxUnavailable", "nodes", "starts", "delta"} | AWAY.keys()
    rollout = {"maxUnavailable": case["maxUnavailable"]} if "maxUnavailable" in case else {}
    nodes = [make(f"{kind}-{number}") for kind, make in AWAY.items() for number in range(case.get(kind, 0))]
    nodes += [make_node(f"c{number}") for number in range(case["nodes"] - len(nodes))]
    work = {node.name: make_work() for node in nodes if node.fence is None}
    policy = make_policy(mode="TimeSlicing", rollout=rollout)
    plan = plan_rollout(make_snapshot(nodes, [policy], work=work), NOW)
    actions = [action for verdict in plan.verdicts.values() for action in verdict.actions]
    started = [action.node.name for action in actions if isinstance(action, FenceNode)]
    assert len(started) == case["starts"]
    assert [name for name in started if name.split("-")[0] in AWAY] == []


@pytest.mark.parametrize("case", TABLE["hours"], ids=lambda case: case["id"])
def test_whether_nodes_may_start_now(case: dict[str, Any]) -> None:
    assert case.keys() <= {"id", "windows", "blackouts", "now", "closed", "delta"}
    rollout = {field: case[field] for field in ("windows", "blackouts") if field in case}
    policy = make_policy(rollout=rollout)
    assert policy.spec is not None
    closed = find_hours(policy.spec, policy.zones, (), datetime.fromisoformat(case["now"])).closed
    assert (None if closed is None else str(closed.reason)) == case.get("closed")


@pytest.mark.parametrize("row", TABLE["proven"])
def test_what_proves_a_row_is_there(row: str) -> None:
    assert TABLE["proven"][row]
    assert [problem for proof in TABLE["proven"][row] if (problem := missing(proof))] == []


@pytest.mark.parametrize("row", TABLE["refused"])
def test_a_row_that_nobody_builds_has_a_decision(row: str) -> None:
    assert no_decision(TABLE["refused"][row]) == ""


def test_every_row_of_the_reference_stands_in_one_place() -> None:
    ids = [case["id"] for kind in ("budgets", "hours") for case in TABLE[kind]]
    assert [name for name, times in Counter(ids).items() if times > 1] == []
    rows = Counter([*{name.split()[0] for name in ids} - {"own"}, *TABLE["proven"], *TABLE["refused"]])
    assert [row for row, times in rows.items() if times > 1] == []
    left_out = {4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44, 48, 52, 56}
    assert set(rows) == {f"tF{number}" for number in range(1, 60) if number not in left_out}
