"""The verdict for one node, each turning of judge.py by itself; whole ways: test_rollout.py, test_scenarios.py."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from tests.build import NOW, at, make_fence, make_gpu, make_gpunode, make_policy, make_stack
from tests.planning.cases import FULL, MIXED, SLICED, T4, judged, make_case, make_member
from tests.planning.changes import FENCE, changing
from tests.planning.told import PENDING, SYNCED
from tests.wording import lacks

from gpusharing.api import names
from gpusharing.api.names import (
    LABEL_GPU_PRESENT,
    LABEL_GPU_PRODUCT,
    LABEL_MIG_STATE,
    LABEL_MODE,
    LABEL_POLICY,
    DisruptionClass,
    Phase,
)
from gpusharing.planning.snapshot.actions import (
    Action,
    Actuate,
    ClearRequests,
    EnsureGPUNode,
    LabelNode,
    Release,
    UpdateFence,
)
from gpusharing.planning.snapshot.records import Fence
from gpusharing.planning.snapshot.views import NodeView, PolicyView
from gpusharing.planning.transition.cases import find_member, keeps_verdict
from gpusharing.planning.transition.judge import differs_from_target, judge
from gpusharing.planning.transition.verdict import NodeCase, Verdict
from gpusharing.planning.vocabulary.reasons import Reason

# --- what the memo and the clock of drift ask ---------------------------------------------------------------

AT_REST = make_case(FULL).node
ASKED = EnsureGPUNode("gpu-07", "uid-gpu-07", "1", quiet=False)
LASTING: dict[str, tuple[Verdict, NodeView, bool]] = {
    "it is proven": (SYNCED, AT_REST, True),
    "it is skipped": (replace(SYNCED, phase=Phase.SKIPPED), AT_REST, True),
    "it waits": (PENDING, AT_REST, True),
    "it waits for a slot": (replace(PENDING, candidate=True), AT_REST, True),
    "it is in a change": (SYNCED, replace(AT_REST, fence=make_fence()), False),
    "its fence cannot be read": (SYNCED, replace(AT_REST, fence_error="not JSON"), False),
    "something is to be written": (SYNCED.then(ASKED), AT_REST, False),
    "it is looked at again": (replace(SYNCED, wake=at(5)), AT_REST, False),
}


@pytest.mark.parametrize(("verdict", "node", "lasts"), LASTING.values(), ids=LASTING)
def test_a_verdict_holds_whatever_the_time_when(verdict: Verdict, node: NodeView, lasts: bool) -> None:
    assert keeps_verdict(make_member(node, verdict)) is lasts


DIVIDED = make_gpunode(gpus=(make_gpu(layout=(("3g.40gb", 2),)),))
TOLD_APART: dict[str, tuple[NodeCase, bool]] = {
    "it differs": (make_case(FULL, gpunode=DIVIDED), True),
    "it is as wanted": (make_case(FULL), False),
    "nobody owns it": (make_case(None), False),
    "nobody has read it": (make_case(FULL, gpunode={"observed": None}), False),
    "the agent cannot read it, and knows no GPU": (
        make_case(FULL, gpunode=make_gpunode(gpus=(), error="NVMLFailed")), False,
    ),
    "the agent cannot read it any more": (make_case(FULL, gpunode=make_gpunode(error="NVMLFailed")), False),
    "mig-manager is just mending it": (
        make_case(FULL, gpunode=DIVIDED, labels={LABEL_MIG_STATE: "pending"}), False,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("case", "apart"), TOLD_APART.values(), ids=TOLD_APART)
def test_somebody_has_seen_a_difference_when(case: NodeCase, apart: bool) -> None:
    assert differs_from_target(case) is apart


# --- a node in a change -------------------------------------------------------------------------------------

LEAVING = replace(FULL, deleting=True, force_release=True)
RELEASED: dict[str, tuple[PolicyView | None, bool]] = {
    "its policy goes and is told to": (LEAVING, True),
    "its policy goes": (replace(LEAVING, force_release=False), False),
    "its policy stays and is told to": (replace(LEAVING, deleting=False), False),
    "its policy is gone": (None, False),
    "its policy is gone, and another one that owns the node goes and is told to": (
        replace(LEAVING, name="another"),
        False,
    ),
}


@pytest.mark.parametrize("stage", ["fenced", "actuating"])
@pytest.mark.parametrize(("policy", "released"), RELEASED.values(), ids=RELEASED)
def test_a_node_is_let_go_with_its_cordon_when(policy: PolicyView | None, released: bool, stage: Any) -> None:
    case = make_case(policy, fence=make_fence(stage), node={"unschedulable": True})
    verdict = judged(case)
    kept = [action for action in verdict.actions if isinstance(action, Release) and not action.uncordon]
    assert (verdict.reason is Reason.CORDON_KEPT, bool(kept)) == (released, released)


KEPT_IN_THE_FENCE: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "its change has not begun": ({"stage": "fenced"}, {LABEL_MODE: "mig"}),
    "nobody knows what it has become": ({"stage": "actuating"}, {}),
    "it is another node of that name": ({"stage": "yielded", "proven": NOW, "node_uid": "older"}, {}),
}


@pytest.mark.parametrize(("fields", "labels"), KEPT_IN_THE_FENCE.values(), ids=KEPT_IN_THE_FENCE)
def test_which_routing_label_a_node_gets_that_force_release_lets_go_when(
    fields: dict[str, Any], labels: dict[str, str]
) -> None:
    fence = replace(make_fence(), added=(), from_mode="mig", node_uid="uid-gpu-07")
    case = make_case(LEAVING, fence=replace(fence, **fields), node={"foreign": "kured", "unschedulable": True})
    (release,) = judged(case).actions
    assert isinstance(release, Release)
    assert (release.uncordon, release.labels) == (False, labels)


def test_a_node_that_was_yielded_stays_somebody_elses_until_that_is_done() -> None:
    """Judged as one after the point of no return, it would be drained again under somebody's hands."""
    fence = replace(make_fence(), stage="yielded")
    verdict = judged(make_case(MIXED, fence=fence, node={"foreign": "kured", "unschedulable": True}))
    assert (verdict.phase, verdict.reason, verdict.actions) == (Phase.BLOCKED, Reason.FOREIGN_MAINTENANCE, ())


HEIR = make_policy("heir", "Full")


def failed(now: float = 2400, **fields: Any) -> NodeCase:
    """gpu-07, whose proof never comes; another policy owns it meanwhile."""
    return changing(**{"owner": HEIR, "now": now, "node": {"resources": {}}, **fields})


def heirs(verdict: Verdict) -> list[Fence]:
    written = [action.fence for action in verdict.actions if isinstance(action, UpdateFence)]
    return [fence for fence in written if fence.policy != "pool-b"]


def test_a_failed_node_is_handed_to_the_policy_that_owns_it_now() -> None:
    case = failed()
    assert case.node.fence is not None
    verdict = judged(case)
    assert verdict.phase is Phase.FAILED
    assert heirs(verdict) == [replace(case.node.fence, policy="heir")], "what failed was no run of the heir"
    assert not lacks(verdict.message, "Policy heir", "takes over")


NOT_HANDED_OVER: dict[str, tuple[NodeCase, Phase]] = {
    "no other policy owns it": (failed(owner=MIXED), Phase.FAILED),
    "nobody owns it": (failed(owner=""), Phase.FAILED),
    "it is of another making": (failed(fence=replace(FENCE, node_uid="uid-before")), Phase.FAILED),
    "its change goes on": (failed(now=2399), Phase.VERIFYING),
}


@pytest.mark.parametrize(("case", "phase"), NOT_HANDED_OVER.values(), ids=NOT_HANDED_OVER)
def test_a_node_in_a_change_is_handed_to_nobody_where(case: NodeCase, phase: Phase) -> None:
    verdict = judged(case)
    assert (verdict.phase, heirs(verdict)) == (phase, [])


def released(**fields: Any) -> NodeCase:
    """gpu-07 in a change, cordoned, of a policy that is released by force; another policy owns it."""
    return make_case(LEAVING, **{"fence": make_fence(), "owner": HEIR, "node": {"unschedulable": True}, **fields})


JOINED: dict[str, tuple[NodeCase, str]] = {
    "it is let go with its cordon": (released(), "heir"),
    "it is let go, and its cordon has been lifted": (released(node={}), "heir"),
    "it is let go with its cordon, and nobody else owns it": (released(owner=LEAVING), ""),
    "it was yielded": (
        released(fence=replace(make_fence(), stage="yielded"), node={"foreign": "kured", "unschedulable": True}),
        "heir",
    ),
    "it failed and is handed over": (failed(), "heir"),
    "it failed, and nobody else owns it": (failed(owner=MIXED), ""),
    "its change goes on": (failed(now=2399), "heir"),
    "it is in no change": (make_case(FULL, owner=HEIR), ""),
}


@pytest.mark.parametrize(("case", "heir"), JOINED.values(), ids=JOINED)
def test_which_other_pool_a_node_in_a_change_counts_in_when(case: NodeCase, heir: str) -> None:
    assert find_member(case, judged(case)).heir == heir


# --- a node without a change --------------------------------------------------------------------------------

BARE = {LABEL_GPU_PRESENT: None, LABEL_GPU_PRODUCT: None}


def unowned(*, gpu: bool, marked: bool) -> Verdict | None:
    labels = {**({} if gpu else BARE), LABEL_POLICY: "pool-b" if marked else None}
    return judge(make_case(None, labels=labels, node={} if gpu else {"resources": {}}))


@pytest.mark.parametrize("gpu", [True, False], ids=["with a GPU", "without one"])
def test_the_mark_of_a_former_owner_goes(gpu: bool) -> None:
    verdict = unowned(gpu=gpu, marked=True)
    assert verdict is not None
    assert [action.labels for action in verdict.actions if isinstance(action, LabelNode)] == [{LABEL_POLICY: None}]


def test_a_node_that_nobody_owns_is_left_alone_and_without_a_gpu_not_even_named() -> None:
    verdict = unowned(gpu=True, marked=False)
    assert verdict is not None
    assert (verdict.reason, verdict.actions) == (Reason.UNOWNED, ())
    assert unowned(gpu=False, marked=False) is None


UNREAD: dict[str, tuple[dict[str, Any], Phase, Reason]] = {
    "the agent has not reported": ({"gpunode": {"observed": None}}, Phase.PENDING, Reason.OBSERVATION_PENDING),
    "there is no agent": (
        {"gpunode": {"observed": None}, "agent_ready": False}, Phase.BLOCKED, Reason.AGENT_NOT_READY,
    ),
    "the agent finds nothing": ({"gpunode": make_gpunode(gpus=())}, Phase.BLOCKED, Reason.AGENT_ERROR),
}  # fmt: skip


@pytest.mark.parametrize(("fields", "phase", "reason"), UNREAD.values(), ids=UNREAD)
def test_a_node_that_nobody_reads_waits_or_is_blocked_and_says_why(
    fields: dict[str, Any], phase: Phase, reason: Reason
) -> None:
    verdict = judged(make_case(MIXED, **fields))
    assert (verdict.phase, verdict.reason) == (phase, reason)


def marks(case: NodeCase) -> list[Action]:
    return [action for action in judged(case).actions if isinstance(action, LabelNode)]


def test_a_node_as_wanted_is_adopted_until_it_is_marked_and_proven() -> None:
    proven = make_case(FULL)
    assert (judged(proven).reason, marks(proven)) == (Reason.SYNCED, [])
    for label in (LABEL_MODE, LABEL_POLICY):
        (written,) = marks(make_case(FULL, labels={label: None}))
        assert isinstance(written, LabelNode)
        assert written.labels.keys() == {label}
    was = proven.node.verified
    assert was is not None
    proofs: list[dict[str, Any]] = [{"policy": "pool-a"}, {"mig_config": "x"}, {"plugin_config": "x"}]
    for other in proofs:
        (written,) = marks(make_case(FULL, node={"verified": replace(was, **other)}))
        assert isinstance(written, LabelNode)
        assert (written.labels, written.verified) != ({}, None)


NOT_ADOPTED: dict[str, tuple[dict[str, Any], Reason]] = {
    "no agent could prove it": ({"agent_ready": False}, Reason.AGENT_NOT_READY),
    "it is not Ready": ({"node": {"verified": None, "ready": False}}, Reason.NODE_NOT_READY),
}


@pytest.mark.parametrize(("fields", "reason"), NOT_ADOPTED.values(), ids=NOT_ADOPTED)
def test_a_node_as_wanted_is_not_adopted_and_says_why_where(fields: dict[str, Any], reason: Reason) -> None:
    verdict = judged(make_case(FULL, **{"node": {"verified": None}, **fields}))
    assert (verdict.phase, verdict.reason, verdict.actions) == (Phase.BLOCKED, reason, ())


def test_a_wait_that_ends_by_itself_wakes_the_loop_then_and_no_other_does() -> None:
    paused = make_policy(mode="TimeSlicing", rollout={"paused": True})
    assert judged(make_case(paused)).wake is None
    fresh = make_case(SLICED, stack=make_stack(FULL, SLICED, written_at=at(-60)))
    verdict = judged(fresh)
    assert (verdict.phase, verdict.reason, verdict.wake) == (Phase.PENDING, Reason.CONFIG_PROPAGATING, at(60))


def test_a_policy_that_is_not_accepted_blocks_and_a_card_that_does_not_fit_is_skipped() -> None:
    refused = make_case(MIXED, stack=make_stack(MIXED, cluster_policy=None))
    assert judged(refused).phase is Phase.BLOCKED
    assert judged(make_case(MIXED, products=(T4,))).phase is Phase.SKIPPED


def test_a_candidate_says_from_what_to_what_it_is_to_be_changed() -> None:
    assert not lacks(judged(make_case(MIXED)).message, "from 1x full to 2x3g.40gb")


# --- what a verdict takes from the fence -------------------------------------------------------------------------------

SECOND_STEP = make_fence("actuating", policy="pool-a", attempt=3, step=2, steps=2, disruption=DisruptionClass.RESET)


def said(case: NodeCase) -> Verdict:
    return case.verdict(Phase.RECONFIGURING, Reason.PROGRESSING, "on its way")


def test_a_node_in_a_change_tells_whose_change_it_is_how_far_and_until_when() -> None:
    verdict = said(make_case(MIXED, fence=SECOND_STEP))
    assert (verdict.policy, verdict.deadline) == ("pool-a", SECOND_STEP.deadline)
    assert (verdict.attempt, verdict.step, verdict.disruption) == (3, "2/2", DisruptionClass.RESET)
    assert (verdict.wanted, verdict.observed, verdict.candidate) == ("2x3g.40gb", "1x full", False)


def test_a_node_without_a_change_tells_none_of_it() -> None:
    verdict = said(make_case(FULL))
    assert (verdict.policy, verdict.deadline) == ("pool-b", None)
    assert (verdict.attempt, verdict.step, verdict.disruption) == (0, "", DisruptionClass.NONE)
    assert (verdict.wanted, verdict.observed, verdict.candidate) == ("1x full", "1x full", False)


def test_a_node_whose_policy_is_gone_tells_what_its_fence_was_to_lead_to() -> None:
    assert said(make_case(None, fence=SECOND_STEP)).wanted == SECOND_STEP.to_layout == "2x3g.40gb"
    assert said(make_case(None)).wanted == ""


def test_pods_that_came_after_the_cordon_are_told_from_those_before_by_the_time_of_the_fence() -> None:
    assert make_case(MIXED, fence=SECOND_STEP).scope.cordoned_at == NOW
    assert make_case(MIXED).scope.cordoned_at is None


# --- requests on the GPUNode (docs/adr/0082-requests-on-the-gpunode.md) ------------------------------------------------

RETRY, ABORT, SKIP = names.REQUESTS


def with_requests(case: NodeCase, **requests: str) -> NodeCase:
    assert case.gpunode is not None
    asked = {names.PREFIX + key: value for key, value in requests.items()}
    return replace(case, gpunode=replace(case.gpunode, requests=asked))


MOVED: dict[str, tuple[NodeCase, Mapping[str, str | None], Mapping[str, str]]] = {
    "a retry": (with_requests(make_case(), retry="again"), {}, {RETRY: "again"}),
    "a retry, over another value of the Node": (
        with_requests(make_case(node={"retry": "once-more"}), retry="again"), {}, {RETRY: "again"},
    ),
    "an abort": (with_requests(make_case(MIXED, fence=make_fence()), abort="op-1"), {}, {ABORT: "op-1"}),
    "a skip": (with_requests(make_case(), skip="true"), {SKIP: "true"}, {}),
    "the end of a skip": (with_requests(make_case(labels={SKIP: "true"}), skip="false"), {SKIP: None}, {}),
    "the end of a skip, by an empty value": (
        with_requests(make_case(labels={SKIP: "yes"}), skip=""), {SKIP: None}, {},
    ),
    "a skip, in another spelling": (with_requests(make_case(), skip="True"), {SKIP: "true"}, {}),
    "a skip, over a label that skips nothing": (
        with_requests(make_case(labels={SKIP: "false"}), skip="1"), {SKIP: "true"}, {},
    ),
    "all at once, without what the Node has already": (
        with_requests(make_case(node={"retry": "again"}), retry="again", abort="op-1", skip="true"),
        {SKIP: "true"},
        {ABORT: "op-1"},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("case", "labels", "annotations"), MOVED.values(), ids=MOVED)
def test_a_request_is_written_to_the_node_and_then_removed(
    case: NodeCase, labels: Mapping[str, str | None], annotations: Mapping[str, str]
) -> None:
    assert case.gpunode is not None
    assert judged(case).actions == (
        LabelNode(case.node, labels, requests=annotations),
        ClearRequests("gpu-07", case.gpunode.requests),
    )


HAD: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "a retry": ({"node": {"retry": "again"}}, {"retry": "again"}),
    "an abort": ({"node": {"abort": "op-1"}}, {"abort": "op-1"}),
    "a skip": ({"labels": {SKIP: "true"}}, {"skip": "true"}),
    "a skip, which comes once more in another spelling": ({"labels": {SKIP: "true"}}, {"skip": "True"}),
    "a skip, which comes once more as yes": ({"labels": {SKIP: "true"}}, {"skip": "yes"}),
    "a skip, which comes once more as 1": ({"labels": {SKIP: "true"}}, {"skip": "1"}),
    "a skip, which the Node has in another spelling": ({"labels": {SKIP: "True"}}, {"skip": "true"}),
    "the end of a skip that nobody wanted": ({}, {"skip": "false"}),
    "the end of a skip whose label skips nothing": ({"labels": {SKIP: "false"}}, {"skip": "false"}),
}


@pytest.mark.parametrize(("fields", "requests"), HAD.values(), ids=HAD)
def test_a_request_that_the_node_has_already_is_only_removed(fields: dict[str, Any], requests: dict[str, str]) -> None:
    case = with_requests(make_case(**fields), **requests)
    assert case.gpunode is not None
    assert judged(case).actions == (ClearRequests("gpu-07", case.gpunode.requests),)


def test_no_node_starts_before_its_request_is_known() -> None:
    pending = make_case(MIXED)
    assert judged(pending).candidate
    asked = judged(with_requests(pending, skip="true"))
    assert (asked.candidate, asked.reason, asked.phase) == (False, judged(pending).reason, judged(pending).phase)


def test_no_step_of_a_change_is_taken_before_its_abort_is_known() -> None:
    released = make_case(MIXED, fence=make_fence(), node={"unschedulable": False})
    assert any(isinstance(action, Release) for action in judged(released).actions)
    asked = judged(with_requests(released, abort="op-1")).actions
    assert not any(isinstance(action, Release | Actuate) for action in asked)


@pytest.mark.parametrize(
    ("node", "reason"),
    [({"fence_error": "not JSON"}, Reason.FENCE_UNREADABLE), ({"deleting": True}, None)],
    ids=["its fence cannot be read", "it is being deleted"],
)
def test_a_request_stays_where_it_is_on_a_node_where(node: dict[str, Any], reason: Reason | None) -> None:
    verdict = judged(with_requests(make_case(MIXED, node=node), retry="again"))
    assert verdict.actions == ()
    assert reason in (None, verdict.reason)
