"""Whatever one node holds, the others are judged, and it is left exactly as it is (planning/transition/cases.py). So are the others whatever one policy holds (planning/pools/choice.py)."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from tests.build import (
    NOW,
    at,
    make_claim,
    make_fence,
    make_gpunode,
    make_node,
    make_pod,
    make_policy,
    make_snapshot,
    make_work,
)
from tests.wording import lacks

from gpusharing.api.names import LABEL_MIG_STATE, Mode, Phase
from gpusharing.planning.report.status import tell_status
from gpusharing.planning.rollout import plan_rollout
from gpusharing.planning.snapshot.actions import EnsureGPUNode, FenceNode, SetClaims
from gpusharing.planning.snapshot.memo import Memo
from gpusharing.planning.snapshot.podviews import PodView
from gpusharing.planning.snapshot.records import Deferred, Verified
from gpusharing.planning.snapshot.views import ClusterSnapshot, NodeView, PolicyView
from gpusharing.planning.vocabulary.reasons import Reason

FAULT = "a fault of the planner"


class Faulty:
    """A value that no reader lets through: whoever reads a field that it does not have fails."""

    def __init__(self, **fields: object) -> None:
        vars(self).update(fields)

    def __getattr__(self, name: str) -> object:
        raise ArithmeticError(FAULT)


class Poisoned(dict[str, str]):
    """Labels of which one makes its reader fail, as a fault in a parser would."""

    def get(self, key: str, default: str | None = None) -> str | None:  # type: ignore[override]  # dict's overloads
        if key == LABEL_MIG_STATE:
            raise ArithmeticError(FAULT)
        return super().get(key, default)


class PoisonedPods(tuple[PodView, ...]):
    __slots__ = ()

    def __iter__(self) -> Iterator[PodView]:
        raise OverflowError("date value out of range")


def poison(node: NodeView) -> NodeView:
    return replace(node, labels=Poisoned(node.labels))


def test_a_node_that_nobody_can_judge_stops_only_itself() -> None:
    nodes = [poison(make_node("gpu-01")), make_node("gpu-02")]
    snapshot = make_snapshot(nodes, [make_policy()], work={"gpu-02": make_work()})
    memo = Memo()
    for _ in range(2):
        plan = plan_rollout(snapshot, NOW, memo)
        broken = plan.verdicts["gpu-01"]
        assert (broken.phase, broken.reason, broken.actions) == (Phase.BLOCKED, Reason.NODE_NOT_JUDGED, ())
        assert (broken.candidate, broken.wants_pods) == (False, False)
        assert broken.message.startswith(f"ArithmeticError: {FAULT} (")
        assert "line" in broken.message
        assert any(isinstance(action, FenceNode) for action in plan.verdicts["gpu-02"].actions)


def test_what_nobody_can_look_up_is_told_as_what_it_is() -> None:
    report = make_gpunode("gpu-01")
    assert report.observed is not None
    broken = replace(report, observed=replace(report.observed, gpus=(Faulty(),)))  # type: ignore[arg-type]  # a fault
    snapshot = make_snapshot([make_node("gpu-01")], [make_policy()], gpunodes=[broken])
    verdict = plan_rollout(snapshot, NOW).verdicts["gpu-01"]
    assert verdict.reason is Reason.NODE_NOT_JUDGED
    assert verdict.message.startswith(f"ArithmeticError: {FAULT} (")


def test_such_a_node_needs_no_policy() -> None:
    plan = plan_rollout(make_snapshot([poison(make_node("gpu-01"))], []), NOW)
    assert plan.verdicts["gpu-01"].reason is Reason.NODE_NOT_JUDGED


def test_the_fence_and_the_slot_of_such_a_node_stay() -> None:
    fence = make_fence("actuating", node_uid="uid-gpu-01", target_mig_config="halves")
    fenced = make_node("gpu-01", unschedulable=True, fence=fence)
    nodes = [poison(fenced), make_node("gpu-02")]
    plan = plan_rollout(make_snapshot(nodes, [make_policy()], work={"gpu-02": make_work()}), NOW)
    assert plan.verdicts["gpu-01"].reason is Reason.NODE_NOT_JUDGED
    assert plan.verdicts["gpu-01"].policy == "pool-b"
    assert plan.verdicts["gpu-02"].reason is Reason.BUDGET_FULL
    claims = next(action.claims for action in plan.shared if isinstance(action, SetClaims))
    assert claims.keys() == {"gpu-01"}


def test_a_node_whose_pods_nobody_can_judge_stops_only_itself() -> None:
    works = {"gpu-01": replace(make_work(), pods=PoisonedPods([make_pod()])), "gpu-02": make_work()}
    nodes = [make_node("gpu-01"), make_node("gpu-02")]
    plan = plan_rollout(make_snapshot(nodes, [make_policy()], work=works), NOW)
    assert plan.verdicts["gpu-01"].reason is Reason.NODE_NOT_JUDGED
    assert not [action for action in plan.verdicts["gpu-01"].actions if not isinstance(action, EnsureGPUNode)]
    assert any(isinstance(action, FenceNode) for action in plan.verdicts["gpu-02"].actions)


def test_a_node_that_nobody_can_judge_any_more_stays_its_policys_and_takes_its_slot() -> None:
    nodes = {name: make_node(name) for name in ("gpu-01", "gpu-02")}
    snapshot = make_snapshot(nodes.values(), [make_policy()], work={"gpu-02": make_work()})
    memo = Memo()
    plan_rollout(snapshot, NOW, memo)
    away = poison(make_node("gpu-01", unschedulable=True))
    plan = plan_rollout(replace(snapshot, nodes={**nodes, "gpu-01": away}), NOW, memo)
    assert (plan.verdicts["gpu-01"].reason, plan.verdicts["gpu-01"].policy) == (Reason.NODE_NOT_JUDGED, "pool-b")
    assert plan.pools["pool-b"].used == 1
    assert not any(isinstance(action, FenceNode) for action in plan.verdicts["gpu-02"].actions)


def test_the_slot_of_a_node_that_a_crash_left_without_a_fence_stays_taken_while_nobody_can_judge_it() -> None:
    nodes = [poison(make_node("gpu-01")), make_node("gpu-02")]
    claims = {"gpu-01": make_claim("uid-gpu-01")}
    for claimed, used in ((claims, 1), ({}, 0)):
        plan = plan_rollout(make_snapshot(nodes, [make_policy()], claims=claimed), NOW)
        assert plan.verdicts["gpu-01"].reason is Reason.NODE_NOT_JUDGED
        assert plan.pools["pool-b"].used == used


def test_a_pool_in_which_nobody_can_be_chosen_stops_only_itself() -> None:
    """Readers keep such a time out (test_fence.py); whatever else a pool meets, the others go on."""
    end = datetime.max.replace(tzinfo=UTC)
    broken = make_policy("pool-b", rollout={"canary": {"nodes": 1, "soak": "10m"}})
    proof = Verified("pool-b", "x", "y", layout="1x full", gpus=1, changed_at=end, version=broken.version)
    sound = make_policy("pool-c", nodeSelector={"matchLabels": {"gpusharing.dev/pool": "c"}})
    nodes = [make_node("gpu-01", verified=proof), make_node("gpu-02")]
    nodes.append(make_node("gpu-03", labels={"gpusharing.dev/pool": "c"}))
    snapshot = make_snapshot(nodes, [broken, sound], work={"gpu-03": make_work()})
    plan = plan_rollout(snapshot, NOW)
    for name in ("gpu-01", "gpu-02"):
        assert (plan.verdicts[name].reason, plan.verdicts[name].candidate) == (Reason.NODE_NOT_JUDGED, False)
        assert "find_canary" in plan.verdicts[name].message
    assert any(isinstance(action, FenceNode) for action in plan.verdicts["gpu-03"].actions)


def test_a_pool_whose_candidates_nobody_can_sort_stops_only_itself() -> None:
    uncounted: Any = "twice"
    policy = make_policy()
    sound = make_policy("pool-c", nodeSelector={"matchLabels": {"gpusharing.dev/pool": "c"}})
    given_up = Deferred(uncounted, NOW, "DrainTimeout", policy.version)
    nodes = [make_node("gpu-01", deferred=given_up), make_node("gpu-02", labels={"gpusharing.dev/pool": "c"})]
    snapshot = make_snapshot(nodes, [policy, sound], work={"gpu-02": make_work()})
    plan = plan_rollout(snapshot, NOW, Memo())
    assert plan.verdicts["gpu-01"].reason is Reason.NODE_NOT_JUDGED
    assert any(isinstance(action, FenceNode) for action in plan.verdicts["gpu-02"].actions)


SOUND = make_policy("pool-c", "TimeSlicing", nodeSelector={"matchLabels": {"gpusharing.dev/pool": "c"}})
FAULTY: dict[str, tuple[dict[str, Any], str]] = {
    "what it asks for": ({"mig": Faulty()}, ""),
    "what it may ask for here": ({"mode": Mode.FULL, "mig": Faulty(layouts=None, config=None)}, "single"),
}


def broken(**fields: Any) -> PolicyView:
    policy = make_policy("pool-b")
    assert policy.spec is not None, "it was readable"
    return replace(policy, spec=policy.spec.model_copy(update=fields))


def beside(policy: PolicyView, strategy: str = "", **node: Any) -> ClusterSnapshot:
    nodes = [make_node("gpu-01"), make_node("gpu-02", **node)]
    nodes.append(make_node("gpu-03", labels={"gpusharing.dev/pool": "c"}))
    work = {"gpu-01": make_work(), "gpu-03": make_work()}
    snapshot = make_snapshot(nodes, [make_policy("pool-b"), SOUND], work=work)
    known = snapshot.stack.cluster_policy
    assert known is not None, "it exists"
    stack = replace(snapshot.stack, cluster_policy=replace(known, mig_strategy=strategy))
    return replace(snapshot, policies=(policy, SOUND), stack=stack)


@pytest.mark.parametrize(("fields", "strategy"), FAULTY.values(), ids=FAULTY)
def test_a_policy_that_nobody_can_judge_stops_only_its_own_nodes_and_says_so(
    fields: dict[str, Any], strategy: str
) -> None:
    fence = make_fence("actuating", node_uid="uid-gpu-02", target_mig_config="halves")
    snapshot = beside(broken(**fields), strategy, unschedulable=True, fence=fence)
    memo = Memo()
    for _ in range(2):
        plan = plan_rollout(snapshot, NOW, memo)
        for name in ("gpu-01", "gpu-02"):
            left = plan.verdicts[name]
            assert (left.phase, left.reason, left.actions) == (Phase.BLOCKED, Reason.POLICY_NOT_JUDGED, ())
            assert (left.policy, left.candidate, left.wants_pods) == ("pool-b", False, False)
            assert not lacks(left.message, "policy pool-b", f"ArithmeticError: {FAULT}")
            assert left.message.endswith("; the node is left unchanged")
        assert any(isinstance(action, FenceNode) for action in plan.verdicts["gpu-03"].actions)
        assert plan.objections.keys() == {"pool-b"}
        claims = next(action.claims for action in plan.shared if isinstance(action, SetClaims))
        assert claims.keys() == {"gpu-02", "gpu-03"}, "what is in flight keeps its slot"
    before = {"summary": {"nodes": "2/2"}, "observedGeneration": 0}
    for seen in (snapshot, beside(broken(**fields), strategy)):
        policy, plan = seen.policies[0], plan_rollout(seen, NOW)
        status = tell_status(policy, plan, seen, before, NOW)
        told = {row["type"]: (row["status"], row["reason"]) for row in status["conditions"]}
        assert told["Accepted"] == ("False", "PolicyNotJudged")
        assert told["Ready"] == ("False", "NotAccepted")
        assert told["Stalled"] == ("True", "PolicyNotJudged")
        assert all(FAULT in row["message"] for row in status["conditions"] if row["type"] != "Reconciling")
        assert status["observedGeneration"] == 1
        assert tell_status(policy, plan, seen, status, at(60)) == status, "the same is not written again"


def test_no_node_starts_by_windows_that_nobody_can_follow_and_other_policies_go_on() -> None:
    spec = make_policy("pool-b").spec
    assert spec is not None, "it is readable"
    policy = broken(rollout=spec.rollout.model_copy(update={"windows": (Faulty(),)}))
    plan = plan_rollout(beside(policy), NOW)
    for name in ("gpu-01", "gpu-02"):
        held = plan.verdicts[name]
        assert (held.phase, held.reason) == (Phase.BLOCKED, Reason.POLICY_NOT_JUDGED)
        assert not lacks(held.message, "policy pool-b", f"ArithmeticError: {FAULT}")
    assert plan.objections["pool-b"].reason is Reason.POLICY_NOT_JUDGED
    assert any(isinstance(action, FenceNode) for action in plan.verdicts["gpu-03"].actions)
