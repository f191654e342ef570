"""A fenced node on which somebody else begins to work: we stand aside with our cordon, and lift it afterwards.
`planning/transition/actuation.py`."""

import json
from dataclasses import replace
from typing import Any

import pytest
from tests.build import NOW, at, make_operand, make_pod, make_policy, make_snapshot, make_work
from tests.planning.cases import MIXED, pool_of
from tests.planning.drains import FENCE, fenced, released
from tests.wording import lacks

from gpusharing.api import names
from gpusharing.api.names import Phase
from gpusharing.kube.fence import parse_record, patch_for, record_text
from gpusharing.planning.rollout import plan_rollout
from gpusharing.planning.snapshot.actions import EnsureGPUNode, FenceNode, SetFinalizer, UpdateFence
from gpusharing.planning.snapshot.records import Fence
from gpusharing.planning.transition.actuation import yielded
from gpusharing.planning.transition.before import before_pnr
from gpusharing.planning.transition.judge import judge
from gpusharing.planning.transition.verdict import NodeCase, Verdict
from gpusharing.planning.vocabulary.reasons import Reason

ADDED = (names.LABEL_UPGRADE_SKIP, *names.NEIGHBOR_ANNOTATIONS)
OURS = replace(FENCE, added=ADDED)
ASIDE = replace(OURS, stage="yielded", added=(), stage_since=at(-60))


def given_way(case: NodeCase) -> UpdateFence:
    (action,) = before_pnr(case).actions
    assert isinstance(action, UpdateFence)
    return action


def test_a_foreign_marker_takes_our_marks_away_and_leaves_fence_and_cordon() -> None:
    """NVIDIA's driver upgrade skips a node that carries them."""
    verdict = before_pnr(fenced(fence=OURS, node={"foreign": "driver upgrade"}, work=make_work(make_pod())))
    assert (verdict.phase, verdict.reason) == (Phase.ABORTING, Reason.FOREIGN_MAINTENANCE)
    (action,) = verdict.actions
    assert isinstance(action, UpdateFence)
    assert (action.fence.stage, action.fence.added, action.cordon) == ("yielded", (), False)
    body = patch_for(action, "7")
    assert body["metadata"]["labels"] == {names.LABEL_UPGRADE_SKIP: None}
    annotations = dict(body["metadata"]["annotations"])
    assert parse_record(Fence, annotations.pop(names.ANNOTATION_FENCE))[0] == action.fence
    assert annotations == dict.fromkeys(names.NEIGHBOR_ANNOTATIONS)
    assert "spec" not in body


@pytest.mark.parametrize("fields", [{"owner": "other"}, {"policy": None}, {"fence": replace(OURS, deadline=at(-900))}])
def test_whatever_ends_a_change_leaves_the_cordon_to_somebody_else_for_a_while_only(fields: dict[str, Any]) -> None:
    policy = fields.get("policy", MIXED)
    known = {"fence": OURS, "node": {"foreign": "kured"}, **fields}
    known.pop("policy", None)
    assert given_way(fenced(policy, **known)).fence.stage == "yielded"


QUEUED = {"foreign": "driver upgrade", "foreign_waits": True, "foreign_queued": True}


def test_who_only_waits_for_its_turn_ends_no_change() -> None:
    """Our marks keep it away until the change is done: a driver upgrade marks every node at once."""
    verdict = before_pnr(fenced(fence=OURS, node=QUEUED, work=make_work(make_pod())))
    assert verdict.phase is Phase.DRAINING


def test_a_change_that_ends_lifts_its_cordon_under_a_mark_that_only_waits() -> None:
    late = replace(OURS, deadline=at(-900))
    assert released(before_pnr(fenced(fence=late, node=QUEUED))).uncordon


def aside(**fields: Any) -> NodeCase:
    """gpu-07, left to somebody else a minute ago."""
    return fenced(**{"fence": ASIDE, "work": None, **fields})


def test_while_the_marker_is_there_nothing_is_done_whatever_the_time() -> None:
    verdict = yielded(aside(node={"foreign": "kured"}, now=at(10**6)))
    assert (verdict.phase, verdict.reason) == (Phase.BLOCKED, Reason.FOREIGN_MAINTENANCE)
    assert (verdict.actions, verdict.wants_pods, verdict.deadline) == ((), False, None)


@pytest.mark.parametrize(
    ("waits", "said"),
    [(False, "kured is working on gpu-07"), (True, "kured has not finished with gpu-07")],
    ids=["at work", "stopped in the middle, or nobody can tell"],
)
def test_it_says_how_far_the_other_one_is(waits: bool, said: str) -> None:
    message = yielded(aside(node={"foreign": "kured", "foreign_waits": waits})).message
    assert not lacks(message, said, "uncordons")


def test_a_node_whose_marker_only_waits_again_is_given_back() -> None:
    verdict = yielded(aside(node=QUEUED))
    assert (verdict.phase, released(verdict).uncordon) == (Phase.UNCORDONING, True)


def test_when_the_marker_goes_our_own_cordon_is_lifted_and_the_next_try_waits() -> None:
    verdict = yielded(aside())
    assert (verdict.phase, verdict.reason) == (Phase.UNCORDONING, Reason.FOREIGN_MAINTENANCE)
    action = released(verdict)
    assert (action.uncordon, action.labels, action.annotations) == (True, {names.LABEL_MODE: "full"}, {})
    assert action.deferred is not None
    assert action.deferred.until > NOW


def test_the_cordon_of_a_proven_node_is_lifted_when_the_other_one_is_done_and_nothing_else_changes() -> None:
    proven = replace(ASIDE, proven=at(-60), from_mode="mig")
    waiting = yielded(aside(fence=proven, node={"foreign": "kured"}))
    assert (waiting.phase, waiting.reason) == (Phase.BLOCKED, Reason.FOREIGN_MAINTENANCE)
    verdict = yielded(aside(fence=proven))
    assert not lacks(verdict.message, "gpu-07", "returned to service")
    action = released(verdict)
    assert (action.uncordon, action.labels) == (True, {names.LABEL_MODE: "mig"})
    assert action.deferred is None, "there is no next try"


KEPT: dict[str, dict[str, Any]] = {
    "a person wants it": {"node": {"hold_cordon": True}},
    "it was there before us": {"fence": replace(ASIDE, prior_unschedulable=True)},
    "it is the cordon of a new node": {"fence": replace(ASIDE, node_uid="old")},
    "the node is being deleted": {"node": {"deleting": True}},
    "somebody lifted it": {"node": {"unschedulable": False}},
    "somebody lifted it, and the other one still works": {"node": {"unschedulable": False, "foreign": "kured"}},
}


def test_a_new_node_of_the_name_does_not_get_the_routing_label_of_the_one_before_it() -> None:
    """Nothing is proven on it: pods that need the mode would land on whatever it is."""
    assert released(yielded(aside(fence=replace(ASIDE, node_uid="old")))).labels == {}


@pytest.mark.parametrize("fields", KEPT.values(), ids=KEPT.keys())
def test_no_other_cordon_is_lifted(fields: dict[str, Any]) -> None:
    assert not released(yielded(aside(**fields))).uncordon


@pytest.mark.parametrize(
    ("foreign", "said"),
    [
        ("", "nobody else is working on gpu-07 anymore; it is being restored"),
        ("kured", "someone uncordoned gpu-07; kured decides what happens next"),
    ],
    ids=["nobody", "somebody"],
)
def test_a_node_that_is_given_back_says_whether_somebody_still_works_on_it(foreign: str, said: str) -> None:
    assert yielded(aside(node={"unschedulable": False, "foreign": foreign})).message == said


def test_the_agent_reads_on_while_somebody_else_works() -> None:
    case = aside(node={"foreign": "kured"})
    assert case.gpunode is not None
    verdict: Verdict | None = judge(replace(case, gpunode=replace(case.gpunode, quiet=True)))
    assert verdict is not None
    (request,) = verdict.actions
    assert isinstance(request, EnsureGPUNode)
    assert not request.quiet


def test_the_agent_keeps_nvml_closed_while_the_driver_is_replaced() -> None:
    labels = {names.LABEL_UPGRADE_STATE: "pod-restart-required"}
    case = aside(node={"foreign": "driver upgrade"}, labels=labels)
    assert case.gpunode is not None
    verdict = judge(replace(case, gpunode=replace(case.gpunode, quiet=False)))
    assert verdict is not None
    (request,) = verdict.actions
    assert isinstance(request, EnsureGPUNode)
    assert request.quiet


def test_a_fence_of_an_older_operator_is_readable() -> None:
    record = json.loads(record_text(FENCE))
    del record["owed"]
    assert parse_record(Fence, json.dumps(record)) == (FENCE, "")
    assert parse_record(Fence, record_text(ASIDE)) == (ASIDE, "")


def test_a_yielded_node_takes_a_slot_of_its_pool_and_none_of_the_whole_operator() -> None:
    world = pool_of(3)
    world.set_policy(make_policy(rollout={"maxUnavailable": 2}))
    world.settings = replace(world.settings, max_in_flight=1, config_propagation=0)
    node = world.nodes["n0"]
    known = replace(ASIDE, node_uid=node.uid, policy="pool-b")
    world.nodes["n0"] = replace(node, fence=known, unschedulable=True, foreign="kured")
    began: set[str] = set()
    for _ in range(20):
        plan = world.step()
        began |= {v.node for v in plan.verdicts.values() for a in v.actions if isinstance(a, FenceNode)}
    assert len(began) == 1, "one more by maxUnavailable, although the operator may have one in flight only"


def test_a_deleted_policy_does_not_wait_for_what_somebody_else_does() -> None:
    gone = replace(MIXED, deleting=True, finalizer=True)
    case = aside(node={"foreign": "kured"})
    assert case.gpunode is not None
    snapshot = make_snapshot([case.node], [gone], gpunodes=[case.gpunode], mig_managers={"gpu-07": make_operand()})
    assert SetFinalizer("pool-b", False, gone.uid) in plan_rollout(snapshot, NOW).shared


def test_a_policy_released_by_force_does_not_leave_our_cordon_behind_where_somebody_else_works() -> None:
    gone = replace(MIXED, deleting=True, finalizer=True, force_release=True)
    waiting = judge(aside(node={"foreign": "kured"}, policy=gone))
    assert waiting is not None
    assert (waiting.phase, waiting.reason, waiting.actions) == (Phase.BLOCKED, Reason.FOREIGN_MAINTENANCE, ())
    freed = judge(aside(policy=gone))
    assert freed is not None
    assert released(freed).uncordon
