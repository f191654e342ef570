"""Which claims without a fence stay: those of nodes that wait a moment, and of no others."""

from dataclasses import replace
from typing import Any

import pytest
from tests.build import (
    NOW,
    at,
    make_claim,
    make_gpunode,
    make_node,
    make_policy,
    make_snapshot,
    make_stack,
    make_work,
)
from tests.planning.cases import pair_of

from gpusharing.planning.actions import FenceNode, SetClaims, SetFinalizer
from gpusharing.planning.reasons import Reason
from gpusharing.planning.records import Deferred, Verified
from gpusharing.planning.rollout import RolloutPlan, plan_rollout
from gpusharing.planning.slots import find_resumed
from gpusharing.planning.views import ClusterSnapshot, PolicyView

POLICY = make_policy(finalizer=True)
CLAIMS = {"gpu-07": make_claim()}
JUST_WRITTEN = at(-119)
"""The kubelet may need one second more."""


def left_by_a_crash(policy: PolicyView = POLICY, **fields: Any) -> ClusterSnapshot:
    """gpu-07 is claimed and not fenced, and its configuration has a second to go."""
    stack = make_stack(policy, written_at=JUST_WRITTEN)
    known = {"nodes": [make_node()], "stack": stack, "claims": CLAIMS}
    return make_snapshot(policies=[policy], **{**known, **fields})


def shared(plan: RolloutPlan) -> dict[type, Any]:
    """What the plan does with claims and finalizers, by kind of action."""
    return {type(action): action for action in plan.shared}


MOMENTS = {
    "for its configuration": (left_by_a_crash(), Reason.CONFIG_PROPAGATING),
    "after a try that was given up": (
        left_by_a_crash(nodes=[make_node(deferred=Deferred(1, at(1), "DrainTimeout", 1))]),
        Reason.DEFERRED,
    ),
    "for drift that it sees for the first time": (
        left_by_a_crash(
            stack=make_stack(POLICY), nodes=[make_node(verified=Verified("pool-b", *pair_of(POLICY)))]
        ),
        Reason.DRIFTED,
    ),
}


@pytest.mark.parametrize(("snapshot", "reason"), MOMENTS.values(), ids=MOMENTS.keys())
def test_a_claimed_node_that_waits_a_moment_keeps_its_claim_and_the_finalizer(
    snapshot: ClusterSnapshot, reason: Reason
) -> None:
    plan = plan_rollout(snapshot, NOW)
    assert plan.verdicts["gpu-07"].reason is reason
    assert plan.shared == ()


def test_after_that_moment_its_change_begins() -> None:
    plan = plan_rollout(left_by_a_crash(work={"gpu-07": make_work()}), at(2))
    assert any(isinstance(action, FenceNode) for action in plan.verdicts["gpu-07"].actions)
    assert shared(plan).keys() == {SetClaims}, "of this try; the finalizer is there"


GIVEN_BACK = {
    "it waits for an agent, who knows how long": left_by_a_crash(agents=[]),
    "it waits for an answer that may never come": left_by_a_crash(gpunodes=[make_gpunode(quiet=True)]),
    "its configuration was written anew meanwhile": left_by_a_crash(
        stack=make_stack(POLICY, written_at=at(-5))
    ),
    "it waits for long": left_by_a_crash(nodes=[make_node(deferred=Deferred(2, at(3600), "PDB", 1))]),
    "its policy was paused meanwhile": left_by_a_crash(make_policy(finalizer=True, rollout={"paused": True})),
    "the node is another one of that name": left_by_a_crash(claims={"gpu-07": make_claim("uid-before")}),
    "another policy owns it now": left_by_a_crash(claims={"gpu-07": make_claim(policy="pool-old")}),
}


@pytest.mark.parametrize("snapshot", GIVEN_BACK.values(), ids=GIVEN_BACK.keys())
def test_a_claim_without_a_fence_is_given_back_where(snapshot: ClusterSnapshot) -> None:
    done = shared(plan_rollout(snapshot, NOW))
    assert done[SetClaims].claims == {}
    assert done[SetFinalizer] == SetFinalizer("pool-b", present=False)


def test_the_claim_of_a_node_that_is_gone_does_not_stay() -> None:
    assert find_resumed(CLAIMS, {}, {}, NOW) == {}


def test_a_policy_that_is_being_deleted_does_not_wait_for_such_a_node() -> None:
    done = shared(plan_rollout(left_by_a_crash(replace(POLICY, deleting=True)), NOW))
    assert done[SetFinalizer] == SetFinalizer("pool-b", present=False)


@pytest.mark.parametrize(("cap", "starts"), [(1, False), (2, True)])
def test_a_claim_that_stays_counts_in_the_operator_wide_cap(cap: int, starts: bool) -> None:
    pool = {"gpusharing.dev/pool": "a"}
    ready = make_policy("pool-a", "TimeSlicing", nodeSelector={"matchLabels": pool})
    stack = make_stack(POLICY, ready)
    stack = replace(
        stack, written={key: JUST_WRITTEN if "pool-b" in key else at(-600) for key in stack.written}
    )
    nodes = [make_node(), make_node("gpu-01", labels=pool)]
    snapshot = make_snapshot(nodes, [POLICY, ready], stack=stack, claims=CLAIMS, work={"gpu-01": make_work()})
    settings = replace(snapshot.settings, max_in_flight=cap)
    plan = plan_rollout(replace(snapshot, settings=settings), NOW)
    assert plan.verdicts["gpu-07"].reason is Reason.CONFIG_PROPAGATING
    begun = any(isinstance(action, FenceNode) for action in plan.verdicts["gpu-01"].actions)
    assert begun is starts
