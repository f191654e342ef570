"""The memo saves work and changes no answer: what changed is asked anew, what did not is not."""

from dataclasses import replace
from typing import Any

import pytest
from tests.build import (
    NOW,
    SETTINGS,
    at,
    make_gpunode,
    make_node,
    make_policy,
    make_snapshot,
    make_stack,
)
from tests.planning.cases import pair_of

from gpusharing.api.names import LABEL_MIG_STATE, LABEL_POLICY
from gpusharing.api.validation import Problem
from gpusharing.planning.rollout import Memo, plan_rollout
from gpusharing.planning.snapshot.records import Verified
from gpusharing.planning.snapshot.views import ClusterSnapshot
from gpusharing.planning.words.reasons import Reason

PAUSED = make_policy(rollout={"paused": True})
OTHER_POOL = {"gpusharing.dev/pool": "c"}
OTHER = make_policy(
    "pool-c", "TimeSlicing", nodeSelector={"matchLabels": OTHER_POOL}, rollout={"paused": True}
)


def waiting(**fields: Any) -> ClusterSnapshot:
    """gpu-07 is to be changed, and its policy is paused."""
    return make_snapshot(**{"nodes": [make_node()], "policies": [PAUSED], **fields})


SEEN = make_gpunode()
DRIVEN = replace(SEEN, observed=replace(SEEN.observed, driver_version="570.86.15") if SEEN.observed else None)
RETURNED = Verified("pool-b", *pair_of(PAUSED), corrected_generation=1, policy_uid="uid-pool-b")
DRIFTED = waiting(nodes=[make_node(verified=RETURNED)], drifting_since={"gpu-07": at(-600)})
WORKING = waiting(nodes=[make_node(labels={LABEL_MIG_STATE: "pending"})], at_work_since={"gpu-07": at(-9999)})
CIRCUMSTANCES: dict[str, tuple[ClusterSnapshot, Reason, dict[str, Any], Reason]] = {
    "its agent goes": (waiting(), Reason.PAUSED, {"agents": frozenset()}, Reason.AGENT_NOT_READY),
    "its mig-manager goes": (waiting(), Reason.PAUSED, {"mig_managers": {}}, Reason.ACTUATOR_MISSING),
    "mig-manager begins anew": (
        WORKING, Reason.PAUSED, {"at_work_since": {"gpu-07": NOW}}, Reason.ACTUATOR_BUSY,
    ),
    "its drift begins anew": (DRIFTED, Reason.DRIFT_RETURNED, {"drifting_since": {}}, Reason.DRIFTED),
    "the settings refuse its driver": (
        waiting(gpunodes=[DRIVEN]),
        Reason.PAUSED,
        {"settings": replace(SETTINGS, unsafe_drivers=("570",))},
        Reason.UNSAFE_DRIVER,
    ),
    "its policy goes on": (
        waiting(), Reason.PAUSED, {"policies": (make_policy(rollout={"maxUnavailable": 0}),)}, Reason.FROZEN,
    ),
    "the stack is another one": (
        waiting(), Reason.PAUSED, {"stack": replace(make_stack(PAUSED), gpu_cluster=True)}, Reason.UNSUPPORTED_STACK,
    ),
    "its GPUs are as wanted": (
        waiting(), Reason.PAUSED, {"gpunodes": {"gpu-07": make_gpunode(gpus=())}}, Reason.AGENT_ERROR,
    ),
    "it is cordoned": (
        waiting(), Reason.PAUSED, {"nodes": {"gpu-07": make_node(unschedulable=True)}}, Reason.ALREADY_CORDONED,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("before", "said", "changed", "says"), CIRCUMSTANCES.values(), ids=CIRCUMSTANCES)
def test_a_node_that_waits_is_judged_anew_when(
    before: ClusterSnapshot, said: Reason, changed: dict[str, Any], says: Reason
) -> None:
    memo = Memo()
    assert plan_rollout(before, NOW, memo).verdicts["gpu-07"].reason is said
    after = replace(before, **changed)
    assert plan_rollout(after, NOW, memo).verdicts["gpu-07"].reason is says
    assert plan_rollout(after, NOW, memo) == plan_rollout(after, NOW)


def test_a_node_that_is_labelled_into_another_pool_has_its_new_owner_at_once() -> None:
    memo, snapshot = Memo(), waiting(policies=[PAUSED, OTHER])
    assert plan_rollout(snapshot, NOW, memo).verdicts["gpu-07"].policy == "pool-b"
    moved = replace(snapshot, nodes={"gpu-07": make_node(labels=OTHER_POOL)})
    plan = plan_rollout(moved, NOW, memo)
    assert plan.verdicts["gpu-07"].policy == "pool-c"
    assert plan == plan_rollout(moved, NOW)


def test_another_selector_gives_a_node_that_did_not_change_another_owner() -> None:
    memo, snapshot = Memo(), waiting(nodes=[make_node(labels={"tier": "gold"})])
    plan_rollout(snapshot, NOW, memo)
    urgent = make_policy("urgent", priority=1, nodeSelector={"matchLabels": {"tier": "gold"}})
    plan = plan_rollout(replace(snapshot, policies=(PAUSED, urgent)), NOW, memo)
    assert plan.verdicts["gpu-07"].policy == "urgent"


def test_what_did_not_change_is_not_judged_again() -> None:
    nodes = [make_node("gpu-07"), make_node("gpu-08", labels=OTHER_POOL), make_node("cpu-1", resources={})]
    gpunodes = [make_gpunode("gpu-07"), make_gpunode("gpu-08")]
    memo, snapshot = Memo(), waiting(nodes=nodes, policies=[PAUSED, OTHER], gpunodes=gpunodes)
    first = plan_rollout(snapshot, NOW, memo)
    kept = {**memo.known, **memo.targets, "owners": memo.owners, "configuration": memo.config_settled}
    assert all(kept.values())
    for later in (NOW, at(1)):
        plan = plan_rollout(snapshot, later, memo)
        now = {**memo.known, **memo.targets, "owners": memo.owners, "configuration": memo.config_settled}
        assert [name for name in kept if now[name] is not kept[name]] == []
        assert [name for name, verdict in first.verdicts.items() if plan.verdicts[name] is not verdict] == []


def test_policies_that_are_listed_again_and_select_as_before_choose_no_owner_anew() -> None:
    memo, snapshot = Memo(), waiting()
    plan_rollout(snapshot, NOW, memo)
    owners = memo.owners
    plan_rollout(replace(snapshot, policies=(replace(PAUSED, finalizer=True),)), NOW, memo)
    assert memo.owners is owners


def test_a_new_stack_gives_a_policy_new_targets_and_keeps_its_wish() -> None:
    memo, snapshot = Memo(), waiting()
    plan_rollout(snapshot, NOW, memo)
    old = memo.targets["pool-b"]
    stack = replace(snapshot.stack)
    plan_rollout(replace(snapshot, stack=stack), NOW, memo)
    new = memo.targets["pool-b"]
    assert (new.stack is stack, new is old, new.wish is old.wish) == (True, False, True)


def test_a_policy_that_nobody_can_read_says_so_on_its_node_and_keeps_no_other_waiting() -> None:
    unread = replace(PAUSED, spec=None, problems=(Problem("spec.mode", "is missing"),))
    mine = make_node(labels={LABEL_POLICY: "pool-b"})
    snapshot = waiting(
        nodes=[mine, make_node("gpu-08", labels=OTHER_POOL)],
        policies=[unread, OTHER],
        stack=make_stack(OTHER),
    )
    memo = Memo()
    for _ in range(2):
        verdicts = plan_rollout(snapshot, NOW, memo).verdicts
        assert {name: verdict.reason for name, verdict in verdicts.items()} == {
            "gpu-07": Reason.INVALID_SPEC,
            "gpu-08": Reason.PAUSED,
        }
