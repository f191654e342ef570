"""Runs drain_cases.yaml and rollout_cases.yaml against the pure planner; the files explain their fields."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from tests.build import NOW, at, make_fence, make_node, make_pdb, make_pod, make_policy, make_snapshot, make_work
from tests.conformance.test_drain_rows import missing, no_decision
from tests.planning.drainpass import OPERATOR, DrainPass, roomy
from tests.yamlfiles import read_yaml

from gpusharing.api.policy import Drain
from gpusharing.planning.drain.evictions import remember
from gpusharing.planning.drain.plan import plan_drain, preflight
from gpusharing.planning.drain.pods import by_ref, classify
from gpusharing.planning.drain.standing import find_standings
from gpusharing.planning.pools.windows import find_hours
from gpusharing.planning.rollout import plan_rollout
from gpusharing.planning.snapshot.actions import FenceNode
from gpusharing.planning.snapshot.podviews import EvictionMemory, NodeWork, Owner, PodView, Scope
from gpusharing.planning.vocabulary.findings import Blocker, explain_blockers
from gpusharing.planning.vocabulary.reasons import BY_WORD

TABLE: dict[str, Any] = read_yaml(Path(__file__).with_name("drain_cases.yaml"))
ROLLOUT: dict[str, Any] = read_yaml(Path(__file__).with_name("rollout_cases.yaml"))
PLACES = ("same_as", "elsewhere", "proven", "refused")
THEN = {"evict", "delete", "waiting", "later", "ignored", "blocked", "preflight", "says", "next_wake", "idle"}
GIVEN = {"pods", "pdbs", "options", "answers", "now", "offered", "list_error", "cordoned", "forces", "end", "silent"}
LAST = {"tA": 43, "tB": 18, "tC": 27, "tD": 23, "tE": 19}
"""The last row of each table. Every fourth number is not used."""


@pytest.mark.parametrize("turned", [False, True], ids=["forwards", "reversed"])
@pytest.mark.parametrize("case", TABLE["cases"], ids=lambda case: case["id"])
def test_drain_case(case: dict[str, Any], turned: bool) -> None:
    given, then = case["given"], case["then"]
    assert given.keys() <= GIVEN
    assert then.keys() <= THEN
    work = _work(given, turned)
    options = Drain.model_validate(given.get("options", {}))
    now = at(given.get("now", 0))
    afterwards = roomy(*given.get("offered", ["nvidia.com/gpu"]))

    scope = Scope(OPERATOR, forces=given.get("forces", False), silent=given.get("silent", False))
    found = _drained(given, work, options, scope)
    before = preflight(find_standings(work, options, now, scope=scope, cordoned=False), options, afterwards, now)
    plan = found.plan

    assert [pod.name for pod in plan.evict] == then.get("evict", [])
    assert [pod.name for pod in plan.delete] == then.get("delete", [])
    assert [pod.name for pod in found.waiting] == then.get("waiting", [])
    assert [pod.name for pod in found.later] == then.get("later", [])
    assert _by_reason(plan.blockers) == then.get("blocked", {})
    assert _by_reason(before) == then.get("preflight", then.get("blocked", {}))
    text = "\n".join(explain_blockers(plan.blockers))
    assert [part for part in then.get("says", []) if part not in text] == [], text
    if "ignored" in then:
        pods = classify(work.pods, options, scope=Scope(OPERATOR))
        ignored = (pod for pod in work.pods if pod not in pods.must_leave)
        assert [pod.name for pod in sorted(ignored, key=by_ref)] == then["ignored"]
        assert plan.idle == (not pods.holders and not pods.blocked)
    if "next_wake" in then:
        assert plan.next_wake == at(then["next_wake"])
    if "idle" in then:
        assert plan.idle == then["idle"]


PROOFS: dict[str, list[str]] = TABLE["elsewhere"] | TABLE["proven"] | ROLLOUT["proven"]
REFUSED: dict[str, str] = TABLE["refused"] | ROLLOUT["refused"]


@pytest.mark.parametrize("row", PROOFS)
def test_what_proves_a_row_is_there(row: str) -> None:
    assert PROOFS[row]
    assert [problem for proof in PROOFS[row] if (problem := missing(proof))] == []


@pytest.mark.parametrize("row", REFUSED)
def test_a_row_that_nobody_builds_has_a_decision(row: str) -> None:
    assert no_decision(REFUSED[row]) == ""


def test_every_row_stands_in_one_place() -> None:
    rows = {case["id"].split()[0] for case in TABLE["cases"]} - {"own"}
    seen = Counter([*rows, *(row for place in PLACES for row in TABLE[place])])
    assert [row for row, times in seen.items() if times > 1] == []
    assert set(seen) == {f"{kind}{n}" for kind, last in LAST.items() for n in range(1, last + 1) if n % 4}
    assert set(TABLE["same_as"].values()) <= rows
    ids = Counter(case["id"] for case in TABLE["cases"])
    assert [name for name, times in ids.items() if times > 1] == []


def _drained(given: Mapping[str, Any], work: NodeWork, options: Drain, scope: Scope) -> DrainPass:
    """One pass over the pods, up to the end of the drain where the case has one."""
    now = at(given.get("now", 0))
    cordoned_at = at(given["cordoned"]) if "cordoned" in given else None
    found = find_standings(work, options, now, scope=replace(scope, cordoned_at=cordoned_at))
    return DrainPass(found, plan_drain(found, now, at(given["end"]) if "end" in given else None))


def _work(given: Mapping[str, Any], turned: bool) -> NodeWork:
    pods = [_pod(fields) for fields in given.get("pods", [])]
    return make_work(
        *(reversed(pods) if turned else pods),
        pdbs=[make_pdb(**fields) for fields in given.get("pdbs", [])],
        evictions=_memories(given.get("answers", []), pods),
        error=given.get("list_error", ""),
        # An older LIST would say nothing about pods that were asked for since.
        listed_at=at(given.get("now", 0)),
    )


def _pod(fields: Mapping[str, Any]) -> PodView:
    known = dict(fields)
    if isinstance(known.get("owner"), dict):
        known["owner"] = Owner(**known["owner"])
    if "deleted_at" in known:
        known["deleted_at"] = at(known["deleted_at"])
    if "started" in known and known["started"] is not None:
        known["started"] = at(known["started"])
    if "finalizers" in known:
        known["finalizers"] = tuple(known["finalizers"])
    return make_pod(**known)


def _memories(answers: Iterable[Mapping[str, Any]], pods: Iterable[PodView]) -> dict[str, EvictionMemory]:
    uids = {pod.name: pod.uid for pod in pods}
    memories: dict[str, EvictionMemory] = {}
    for given in answers:
        uid = uids[given["pod"]]
        memories[uid] = remember(
            BY_WORD[given["answer"]],
            given["message"],
            memories.get(uid),
            at(given.get("at", 0)),
            jitter=0.0,
            retry_after=given.get("retry_after"),
        )
    return memories


def _by_reason(blockers: Iterable[Blocker]) -> dict[str, list[str]]:
    found: dict[str, set[str]] = {}
    for blocker in blockers:
        found.setdefault(blocker.reason.value, set()).update(ref.split("/")[1] for ref in blocker.pods)
    return {reason: sorted(names) for reason, names in found.items()}


AWAY: dict[str, Any] = {
    "silent": lambda name: make_node(name, ready=False),
    "cordoned": lambda name: make_node(name, unschedulable=True),
    "fenced": lambda name: make_node(name, unschedulable=True, fence=make_fence(node_uid=f"uid-{name}")),
}


@pytest.mark.parametrize("case", ROLLOUT["budgets"], ids=lambda case: case["id"])
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


@pytest.mark.parametrize("case", ROLLOUT["hours"], ids=lambda case: case["id"])
def test_whether_nodes_may_start_now(case: dict[str, Any]) -> None:
    assert case.keys() <= {"id", "windows", "blackouts", "now", "closed", "delta"}
    rollout = {field: case[field] for field in ("windows", "blackouts") if field in case}
    policy = make_policy(rollout=rollout)
    assert policy.spec is not None
    closed = find_hours(policy.spec, policy.zones, (), datetime.fromisoformat(case["now"])).closed
    assert (None if closed is None else str(closed.reason)) == case.get("closed")


def test_every_row_of_the_reference_stands_in_one_place() -> None:
    ids = [case["id"] for kind in ("budgets", "hours") for case in ROLLOUT[kind]]
    assert [name for name, times in Counter(ids).items() if times > 1] == []
    rows = Counter([*{name.split()[0] for name in ids} - {"own"}, *ROLLOUT["proven"], *ROLLOUT["refused"]])
    assert [row for row, times in rows.items() if times > 1] == []
    left_out = {4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44, 48, 52, 56}
    assert set(rows) == {f"tF{number}" for number in range(1, 60) if number not in left_out}
