"""Runs rollout_cases.yaml, table F of the reference, against the pure planner; the file explains its fields."""

from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.build import NOW, make_policy
from tests.conformance.test_drain_rows import missing, no_decision
from tests.planning.test_pool import candidate, fenced

from gpusharing.planning.pools.hours import find_hours
from gpusharing.planning.pools.ledger import Ledger
from gpusharing.planning.pools.pool import Pool, select

TABLE: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("rollout_cases.yaml").read_text())
OFFERED = frozenset({"nvidia.com/gpu", "nvidia.com/mig-3g.40gb"})


@pytest.mark.parametrize("case", TABLE["budgets"], ids=lambda case: case["id"])
def test_how_many_more_nodes_start(case: dict[str, Any]) -> None:
    assert case.keys() <= {"id", "maxUnavailable", "nodes", "away", "starts", "delta"}
    away, total = case.get("away", 0), case["nodes"]
    rollout = {"maxUnavailable": case["maxUnavailable"]} if "maxUnavailable" in case else {}
    waiting = [candidate(f"c{number}") for number in range(total - away)]
    pool = Pool(make_policy(rollout=rollout), [f"n{number}" for number in range(total)], away, waiting)
    assert len(fenced(select(pool.ask_windows(NOW), 100, Ledger(OFFERED)))) == case["starts"]


@pytest.mark.parametrize("case", TABLE["hours"], ids=lambda case: case["id"])
def test_whether_nodes_may_start_now(case: dict[str, Any]) -> None:
    assert case.keys() <= {"id", "windows", "blackouts", "now", "closed", "delta"}
    rollout = {field: case[field] for field in ("windows", "blackouts") if field in case}
    spec = make_policy(rollout=rollout).spec
    assert spec is not None
    closed = find_hours(spec, (), datetime.fromisoformat(case["now"])).closed
    assert (None if closed is None else str(closed.reason)) == case.get("closed")


@pytest.mark.parametrize("row", TABLE["proven"])
def test_what_proves_a_row_is_there(row: str) -> None:
    assert missing(TABLE["proven"][row]) == ""


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
