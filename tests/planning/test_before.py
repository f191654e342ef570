"""A fenced node before the point of no return: drain, prove idle, pass, or give up and restore.
Through it `transition/idle.py`, `transition/actuation.py`, `transition/requests.py` and `transition/attempts.py`."""

from dataclasses import replace
from datetime import timedelta
from itertools import combinations
from typing import Any

import pytest
from tests.build import JOB, NOW, SETTINGS, ask_anew, at, make_gpu, make_pod, make_policy, make_stack, make_work
from tests.planning.cases import FULL, MIXED, SLICED, SeenSince, make_case, pair_of, quiet_report
from tests.planning.drains import (
    EARLIER,
    FENCE,
    HELD,
    MIG_CONFIG,
    MIG_STATE,
    PLUGIN,
    RESTART,
    STRICT,
    fenced,
    released,
    silent,
)
from tests.wording import lacks

from gpusharing.api import names
from gpusharing.api.names import Phase
from gpusharing.api.times import NEVER
from gpusharing.planning.gpus.health import Vitals
from gpusharing.planning.snapshot.actions import Actuate, EnsureGPUNode, Evict, UpdateFence
from gpusharing.planning.snapshot.nvidia import Program
from gpusharing.planning.snapshot.podviews import NodeWork
from gpusharing.planning.snapshot.records import Deferred
from gpusharing.planning.snapshot.views import PolicyView
from gpusharing.planning.transition.attempts import proof_time
from gpusharing.planning.transition.before import before_pnr
from gpusharing.planning.transition.idle import JOBS_PACE
from gpusharing.planning.transition.verdict import NodeCase
from gpusharing.planning.vocabulary.reasons import Reason

TRAINER = make_pod("train", owner=JOB, restarts=False)
ON_PAUSE: dict[str, Any] = {"rollout": {"paused": True, "whenPaused": "Hold"}}
PAUSED = make_policy(**ON_PAUSE)

# --- draining -------------------------------------------------------------------------------------------------


def test_after_the_cordon_pods_that_were_being_bound_get_time_to_appear() -> None:
    verdict = before_pnr(fenced(fence=replace(FENCE, since=NOW, deadline=at(900)), now=at(4)))
    assert (verdict.phase, verdict.reason, verdict.wake) == (Phase.CORDONED, Reason.SETTLING, at(5))
    assert verdict.actions == ()


def test_without_a_list_of_pods_nothing_is_decided() -> None:
    verdict = before_pnr(fenced(work=None))
    assert (verdict.phase, verdict.wants_pods, verdict.actions) == (Phase.DRAINING, True, ())


def test_a_list_that_failed_is_named_and_asked_again() -> None:
    verdict = before_pnr(fenced(work=make_work(error="forbidden")))
    assert (verdict.reason, verdict.message, verdict.wake) == (Reason.LIST_FAILED, "forbidden", at(5))
    assert verdict.actions == ()


def test_pods_that_hold_a_gpu_are_evicted_by_uid() -> None:
    verdict = before_pnr(fenced(work=make_work(make_pod("a"), make_pod("b", resources={}))))
    assert (verdict.phase, verdict.pods) == (Phase.DRAINING, 1)
    assert verdict.actions == (Evict("gpu-07", "team-a", "a", "uid-team-a-a"),)


def test_a_pause_that_holds_evicts_nobody_and_keeps_cordon_and_deadline() -> None:
    verdict = before_pnr(fenced(PAUSED, work=make_work(make_pod())))
    assert (verdict.phase, verdict.reason, verdict.actions) == (Phase.CORDONED, Reason.PAUSED, ())
    assert verdict.wake == FENCE.deadline
    idle = before_pnr(fenced(PAUSED, gpunode=silent()))
    assert idle.actions == (), "nor is the point of no return passed"
    late = before_pnr(fenced(PAUSED, fence=replace(FENCE, deadline=at(-300)), work=make_work(make_pod())))
    assert late.reason is Reason.DRAIN_TIMEOUT


HELD_UP: dict[str, tuple[dict[str, Any], dict[str, Any], Reason]] = {
    "a pause holds": (ON_PAUSE, {}, Reason.PAUSED),
    "the ClusterPolicy is gone": ({}, {"stack": make_stack(MIXED, cluster_policy=None)}, Reason.CLUSTER_POLICY_MISSING),
    "the agent has not read the GPUs": ({}, {"gpunode": {"observed": None}}, Reason.OBSERVATION_PENDING),
}
"""Fields of the policy and of the case, and what is told."""


@pytest.mark.parametrize(("policy", "fields", "reason"), HELD_UP.values(), ids=HELD_UP.keys())
def test_what_holds_a_node_up_does_not_outlast_its_jobs_and_the_time_of_the_drain(
    policy: dict[str, Any], fields: dict[str, Any], reason: Reason
) -> None:
    case, waits = fenced(make_policy(**policy), **fields), replace(FENCE, jobs=True, deadline=NEVER)
    unknown = before_pnr(fenced_again(case, fence=waits, work=None))
    assert (unknown.reason, unknown.wants_pods) == (reason, True), "somebody has to look whether they ended"
    assert unknown.wake == at(JOBS_PACE * SETTINGS.poll)
    running = before_pnr(fenced_again(case, fence=waits, work=make_work(make_pod(owner=JOB, restarts=False))))
    assert (running.reason, running.actions, running.wants_pods) == (reason, (), True)
    (action,) = before_pnr(fenced_again(case, fence=waits)).actions
    assert isinstance(action, UpdateFence)
    assert action.fence == replace(FENCE, jobs=False, deadline=at(900))
    over = before_pnr(fenced_again(case, fence=replace(FENCE, deadline=at(-3600))))
    assert over.reason is Reason.DRAIN_TIMEOUT


@pytest.mark.parametrize("work", [None, make_work()], ids=["nobody has looked", "the jobs have ended"])
def test_an_unreadable_node_is_given_back_when_the_time_of_its_jobs_is_over(work: NodeWork | None) -> None:
    late = replace(FENCE, jobs=True, deadline=at(-3600))
    over = before_pnr(fenced(fence=late, gpunode={"observed": None}, work=work))
    assert (over.reason, released(over).uncordon) == (Reason.DRAIN_TIMEOUT, True)


ON_HOLD: dict[str, Any] = {"onTimeout": "Hold"}


@pytest.mark.parametrize(("policy", "fields", "reason"), HELD_UP.values(), ids=HELD_UP.keys())
def test_what_holds_a_node_up_past_a_drain_that_is_held_waits_for_no_moment_and_says_who_ends_it(
    policy: dict[str, Any], fields: dict[str, Any], reason: Reason
) -> None:
    case = fenced(make_policy(**policy, drain=ON_HOLD), **fields)
    soon = before_pnr(fenced_again(case, fence=replace(FENCE, deadline=at(60))))
    assert (soon.reason, soon.wake, soon.deadline) == (reason, at(60), at(60))
    assert "onTimeout" not in soon.message
    for late in (NOW, at(-60)):
        held = before_pnr(fenced_again(case, fence=replace(FENCE, deadline=late)))
        assert (held.phase, held.reason, held.actions) == (Phase.CORDONED, reason, ())
        assert (held.wake, held.deadline) == (None, None), "the clock ends nothing any more"
        assert "drain.timeout keeps running" not in held.message
        assert not lacks(held.message, "drain.onTimeout is Hold", "stays cordoned", "abort")


def restarting(**drain: Any) -> NodeCase:
    """A change of the plugin's entry, which needs no cordon, past its time on a node that the agent has not read."""
    case = make_case(make_policy(drain=drain), fence=RESTART, gpunode={"observed": None})
    late = replace(RESTART, deadline=at(-3600))
    return fenced_again(case, fence=late)


def test_a_change_that_needs_no_cordon_and_is_held_past_its_time_claims_no_cordon() -> None:
    held = before_pnr(restarting(onTimeout="Hold"))
    assert (held.phase, held.reason) == (Phase.CORDONED, Reason.OBSERVATION_PENDING)
    assert not lacks(held.message, "the change waits", "abort")
    assert "cordoned" not in held.message


@pytest.mark.parametrize("work", [None, make_work()], ids=["nobody has looked", "no pods"])
def test_a_change_that_drains_nothing_is_given_up_without_a_word_about_pods(work: NodeWork | None) -> None:
    over = before_pnr(replace(restarting(), work=work))
    assert (over.phase, over.reason) == (Phase.ABORTING, Reason.DRAIN_TIMEOUT)
    assert not lacks(over.message, "deadline (drain.timeout)", "did not begin", "given up")
    drained = before_pnr(fenced(fence=replace(FENCE, deadline=NOW), work=HELD))
    assert not lacks(drained.message, "drain timed out", "restored")


def test_a_held_drain_that_is_past_its_time_shows_no_deadline_whatever_it_waits_for() -> None:
    late = replace(FENCE, deadline=at(-60))
    pods = before_pnr(fenced(make_policy(drain=ON_HOLD), fence=late, work=HELD))
    assert (pods.reason, pods.deadline, pods.wake) == (Reason.DRAIN_HELD, None, at(5))
    agent = before_pnr(fenced(make_policy(drain=ON_HOLD), fence=late))
    assert (agent.reason, agent.deadline) == (Reason.OBSERVATION_PENDING, None)


def fenced_again(case: NodeCase, **fields: Any) -> NodeCase:
    return replace(case, node=replace(case.node, fence=fields.pop("fence")), **fields)


def test_jobs_have_their_time_and_then_the_drain_has_all_of_its_own() -> None:
    policy = make_policy(drain={"timeout": "10m", "jobs": {"timeout": "2h"}})
    (action,) = before_pnr(fenced(policy, work=make_work(TRAINER))).actions
    assert isinstance(action, UpdateFence)
    assert (action.fence.jobs, action.fence.deadline) == (True, EARLIER + timedelta(hours=2))
    (action,) = before_pnr(fenced(policy, fence=action.fence, work=HELD)).actions
    assert isinstance(action, UpdateFence)
    assert (action.fence.jobs, action.fence.deadline) == (False, at(600))


def test_a_pause_that_lets_finish_changes_nothing_and_another_change_is_not_given_up() -> None:
    paused = make_policy(rollout={"paused": True})
    verdict = before_pnr(fenced(paused, work=make_work(make_pod("a")), node={"abort": "op-0"}))
    assert verdict.actions == (Evict("gpu-07", "team-a", "a", "uid-team-a-a"),)


@pytest.mark.parametrize("held", [False, True], ids=["as it goes", "held up"])
def test_a_drain_whose_time_is_over_is_not_given_up_before_somebody_has_looked(held: bool) -> None:
    over = replace(FENCE, deadline=at(-60))
    policy = PAUSED if held else MIXED
    unseen = before_pnr(fenced(policy, fence=over, work=None))
    assert (unseen.phase is Phase.ABORTING, unseen.wants_pods) == (held, not held)
    assert before_pnr(fenced(policy, fence=over, work=HELD)).phase is Phase.ABORTING
    if not held:
        assert before_pnr(fenced(fence=over, gpunode=silent())).phase is Phase.RECONFIGURING, "they are gone"


def test_the_next_look_is_not_after_the_deadline() -> None:
    late = replace(FENCE, deadline=at(2))
    assert before_pnr(fenced(fence=late, work=make_work(make_pod()))).wake == at(2)


# --- the point of no return -------------------------------------------------------------------------------------


def passed(case: NodeCase) -> Actuate:
    (action,) = before_pnr(case).actions
    assert isinstance(action, Actuate)
    return action


def test_the_pnr_writes_stage_labels_and_target_in_one_patch() -> None:
    action = passed(fenced(gpunode=silent(), labels={MIG_CONFIG: "all-disabled", MIG_STATE: "success"}))
    fence = action.fence
    assert (fence.stage, fence.stage_since, fence.attempt) == ("actuating", NOW, 1)
    assert fence.deadline == NOW + timedelta(minutes=40)
    assert action.labels == {MIG_CONFIG: fence.target_mig_config, MIG_STATE: None, PLUGIN: fence.target_plugin_config}
    assert fence.to_layout == "2x3g.40gb"
    assert fence.gfd_timestamp == action.node.labels[names.LABEL_GFD_TIMESTAMP]
    assert fence.restart_uid == ""


LABELS: dict[str, tuple[dict[str, str | None], set[str]]] = {
    "a first value needs no null": ({MIG_CONFIG: None, MIG_STATE: None}, {MIG_CONFIG, PLUGIN}),
    "a failed state is cleared": ({MIG_CONFIG: "x", MIG_STATE: "failed"}, {MIG_CONFIG, MIG_STATE, PLUGIN}),
    "rebooting is never cleared": ({MIG_CONFIG: "x", MIG_STATE: "rebooting"}, {MIG_CONFIG, PLUGIN}),
}


@pytest.mark.parametrize(("labels", "written"), LABELS.values(), ids=LABELS.keys())
def test_the_state_goes_to_null_only_with_a_new_value(labels: dict[str, str | None], written: set[str]) -> None:
    case = fenced(gpunode=silent(), labels=labels, seen_since=at(-1200))
    assert passed(case).labels.keys() == written


@pytest.mark.parametrize("state", ["pending", "rebooting"])
def test_the_pnr_is_not_passed_in_the_middle_of_a_run_that_we_did_not_start(state: str) -> None:
    """The node was rebooted during the drain: its mig-manager applies the old label, and would report success."""
    running = fenced(gpunode=silent(), labels={MIG_STATE: state})
    verdict = before_pnr(running)
    assert (verdict.phase, verdict.reason) == (Phase.VERIFYING_IDLE, Reason.ACTUATOR_BUSY)
    assert verdict.actions == ()
    assert passed(replace(running, seen_since=SeenSince(at(-1200)))), "it never ends"


def test_nvml_is_closed_while_a_run_that_we_did_not_start_goes_on() -> None:
    (action,) = before_pnr(fenced(labels={MIG_STATE: "pending"})).actions
    assert isinstance(action, EnsureGPUNode)
    assert (action.request_id.endswith(":close"), action.quiet) == (True, True)


def test_the_same_value_is_not_written_again_mig_manager_is_restarted_instead() -> None:
    config = passed(fenced(gpunode=silent())).fence.target_mig_config
    case = fenced(gpunode=silent(), labels={MIG_CONFIG: config, MIG_STATE: "failed"})
    action = passed(case)
    assert action.labels.keys() == {PLUGIN}
    assert action.fence.restart_uid == case.operands[Program.MIG_MANAGER].uid


def test_a_plugin_restart_passes_without_a_look_at_pods() -> None:
    labels = {MIG_CONFIG: "all-disabled", MIG_STATE: "success"}
    case = make_case(STRICT, was=SLICED, fence=RESTART, labels=labels)
    assert passed(case).labels.keys() == {PLUGIN}


@pytest.mark.parametrize("work", [None, make_work(make_pod())], ids=["nobody has looked", "a pod has a GPU"])
def test_a_plugin_restart_gets_the_time_of_its_proof_whatever_pods_were_listed(work: NodeWork | None) -> None:
    case = make_case(STRICT, was=SLICED, fence=replace(RESTART, deadline=at(-1)), work=work)
    case = replace(case, old_views="nodes")  # so that it does not begin at once
    assert before_pnr(case).phase is Phase.PREFLIGHT
    over = make_case(STRICT, was=SLICED, fence=replace(RESTART, deadline=NOW - proof_time(case)))
    assert before_pnr(replace(over, work=work, old_views="nodes")).reason is Reason.DRAIN_TIMEOUT


@pytest.mark.parametrize(
    ("tainted", "closed"), [(False, "cordoned"), (True, "closed to GPU pods by a DeviceTaintRule")]
)
def test_what_keeps_pods_off_the_node_is_named_as_it_is(closed: str, *, tainted: bool) -> None:
    fence = replace(FENCE, tainted=tainted, deadline=at(-1))
    rule = {"rule_since": EARLIER, "unschedulable": not tainted}
    draining = before_pnr(fenced(make_policy(drain=ON_HOLD), fence=fence, node=rule, work=make_work(make_pod())))
    assert f"so the node stays {closed};" in draining.message
    paused = before_pnr(fenced(make_policy(drain=ON_HOLD, **ON_PAUSE), fence=fence, node=rule))
    assert (paused.phase, f"so the node stays {closed} until" in paused.message) == (Phase.CORDONED, True)


# --- giving up --------------------------------------------------------------------------------------------------

OTHER = make_policy("other", priority=1)


GIVEN_UP: dict[str, tuple[NodeCase, Reason, bool, bool]] = {
    "the node was created again": (fenced(fence=replace(FENCE, node_uid="old")), Reason.CORDON_KEPT, False, False),
    "the policy is gone": (fenced(None), Reason.DELETING, True, False),
    "the policy is going": (fenced(replace(MIXED, deleting=True), owner=""), Reason.DELETING, True, False),
    "a person asks for it by the name of the change": (
        fenced(node={"abort": "op-1"}), Reason.ABORT_REQUESTED, True, True),
    "the policy was paused, and aborts what is in flight": (
        fenced(make_policy(rollout={"paused": True, "whenPaused": "Abort"})), Reason.PAUSED, True, False),
    "the policy was edited, and its new plan needs an approval": (
        fenced(make_policy(generation=2, rollout={"approval": "Manual"})), Reason.APPROVAL_NEEDED, True, False),
    "another policy owns the node now": (fenced(owner="other"), Reason.SUPERSEDED, True, True),
    "nobody owns the node any more": (fenced(owner=""), Reason.SUPERSEDED, True, True),
    "the policy is not accepted any more": (
        fenced(stack=make_stack(MIXED, gpu_cluster=True)), Reason.UNSUPPORTED_STACK, True, True),
    "the card cannot take the new layout": (
        fenced(make_policy(mig={"layouts": [{"profiles": {"1g.20gb": 7}}]})), Reason.LAYOUT_DOES_NOT_FIT, True, True),
    "the policy wants what is there again": (fenced(FULL), Reason.SYNCED, True, False),
    "somebody lifted the cordon": (fenced(node={"unschedulable": False}), Reason.UNCORDONED_EXTERNALLY, False, True),
    "somebody else began to maintain a node that needs no cordon": (
        make_case(STRICT, was=SLICED, fence=RESTART, node={"foreign": "kured"}),
        Reason.FOREIGN_MAINTENANCE, False, True),
    "a GPU turned unhealthy": (
        fenced(gpunode=quiet_report(FULL, gpus=(replace(make_gpu(), vitals=Vitals(recovery="Reboot")),))),
        Reason.GPU_UNHEALTHY, True, True),
    "the time is up": (fenced(fence=replace(FENCE, deadline=NOW), work=HELD), Reason.DRAIN_TIMEOUT, True, True),
    "the time is up, that of a proof as well, and nobody could list the pods": (
        fenced(fence=replace(FENCE, deadline=at(-240)), work=make_work(error="x")), Reason.DRAIN_TIMEOUT, True, True),
    "the time of the proof is up as well": (
        fenced(fence=replace(FENCE, deadline=at(-240))), Reason.DRAIN_TIMEOUT, True, True),
    "the node is being deleted": (fenced(node={"deleting": True}), Reason.NODE_NOT_READY, False, False),
    "the time is up and a person wants the cordon": (
        fenced(fence=replace(FENCE, deadline=NOW), work=HELD, node={"hold_cordon": True}),
        Reason.DRAIN_TIMEOUT, False, True),
    "the time is up and the cordon was there before": (
        fenced(fence=replace(FENCE, deadline=NOW, prior_unschedulable=True), work=HELD),
        Reason.DRAIN_TIMEOUT, False, True),
    "a plugin restart turned into a change that needs an idle node": (
        make_case(MIXED, fence=replace(RESTART, version=FULL.version, to_layout="1x full")), Reason.PODS_LEAVING, False, False),
    "a plugin restart turned into such a change while the policy is paused": (
        make_case(PAUSED, fence=replace(RESTART, version=FULL.version, to_layout="1x full")), Reason.PODS_LEAVING, False, False),
    "a job did not end in its time": (
        fenced(make_policy(drain={"jobs": {"timeout": "5m"}}), work=make_work(TRAINER)),
        Reason.JOBS_TIMEOUT, True, True),
}  # fmt: skip


@pytest.mark.parametrize(("case", "reason", "uncordon", "deferred"), GIVEN_UP.values(), ids=GIVEN_UP.keys())
def test_the_change_is_given_up(case: NodeCase, reason: Reason, uncordon: bool, deferred: bool) -> None:
    verdict = before_pnr(case)
    assert (verdict.phase, verdict.reason) == (Phase.ABORTING, reason), verdict.message
    action = released(verdict)
    assert (action.uncordon, action.deferred is not None) == (uncordon, deferred)
    assert action.labels[names.LABEL_UPGRADE_SKIP] is None
    assert action.verified is None


UNHEALTHY = quiet_report(FULL, gpus=(replace(make_gpu(), vitals=Vitals(recovery="Reboot")),))
IN_TURN: tuple[tuple[Reason, dict[str, Any]], ...] = (
    (Reason.CORDON_KEPT, {"fence": {"node_uid": "old"}}),
    (Reason.NODE_NOT_READY, {"node": {"deleting": True}}),
    (Reason.DELETING, {"deleting": True}),
    (Reason.ABORT_REQUESTED, {"node": {"abort": "op-1"}}),
    (Reason.SUPERSEDED, {"owner": "other"}),
    (Reason.UNSUPPORTED_STACK, {"stack": make_stack(MIXED, gpu_cluster=True)}),
    (Reason.PAUSED, {"rollout": {"paused": True, "whenPaused": "Abort"}}),
    (Reason.APPROVAL_NEEDED, {"generation": 2, "rollout": {"approval": "Manual"}}),
    (Reason.UNCORDONED_EXTERNALLY, {"node": {"unschedulable": False}}),
    (Reason.GPU_UNHEALTHY, {"gpunode": UNHEALTHY}),
    (Reason.DRAIN_TIMEOUT, {"fence": {"deadline": NOW}, "work": HELD}),
)
"""What ends a change before the point of no return, by its reason. Of two that apply, the earlier one is told."""


def ended_by(*causes: dict[str, Any]) -> NodeCase:
    fields: dict[str, Any] = {}
    for key, change in (item for cause in causes for item in cause.items()):
        fields[key] = {**fields.get(key, {}), **change} if isinstance(change, dict) else change
    made = {key: fields.pop(key) for key in ("rollout", "generation") if key in fields}
    policy = replace(make_policy(**made), deleting=fields.pop("deleting", False))
    return fenced(policy, replace(FENCE, **fields.pop("fence", {})), **fields)


@pytest.mark.parametrize(("first", "second"), [*combinations(IN_TURN, 2)], ids=lambda one: str(one[0]))
def test_of_two_reasons_to_give_up_a_change_the_earlier_one_is_told(
    first: tuple[Reason, dict[str, Any]], second: tuple[Reason, dict[str, Any]]
) -> None:
    alone, both = before_pnr(ended_by(second[1])), before_pnr(ended_by(first[1], second[1]))
    assert (alone.reason, both.reason) == (second[0], first[0])


def test_an_abort_puts_back_the_routing_label_and_takes_away_only_the_marks_that_we_added() -> None:
    assert released(before_pnr(fenced(owner="other"))).labels == {
        names.LABEL_UPGRADE_SKIP: None,
        names.LABEL_MODE: "full",
    }
    theirs = released(before_pnr(fenced(owner="other", fence=replace(FENCE, added=(), from_mode=""))))
    assert theirs.labels == {}


BACKOFF = {
    "the first": (None, 1, 300),
    "the second": (1, 2, 600),
    "the third": (2, 3, 1200),
    "the tenth": (9, 10, 19200),
}


@pytest.mark.parametrize(("earlier", "count", "wait"), BACKOFF.values(), ids=BACKOFF.keys())
def test_the_wait_after_each_abort_doubles(earlier: int | None, count: int, wait: int) -> None:
    record = None if earlier is None else Deferred(earlier, EARLIER, "PDB", MIXED.version)
    case = fenced(fence=replace(FENCE, deadline=NOW), work=HELD, node={"deferred": record, "retry": "x"})
    assert released(before_pnr(case)).deferred == Deferred(count, at(wait), "DrainTimeout", MIXED.version, "x")


@pytest.mark.parametrize(
    "before", [ask_anew(MIXED), replace(MIXED, uid="uid-of-the-deleted-one")], ids=["revision", "policy of the name"]
)
def test_aborts_are_counted_anew_for_another(before: PolicyView) -> None:
    earlier = Deferred(5, EARLIER, "DrainTimeout", before.version)
    case = fenced(fence=replace(FENCE, deadline=NOW), work=HELD, node={"deferred": earlier})
    deferred = released(before_pnr(case)).deferred
    assert deferred is not None
    assert (deferred.count, deferred.version.uid) == (1, "uid-pool-b")


def test_the_time_for_pods_to_leave_is_none_for_the_proof_that_follows() -> None:
    case = fenced(fence=replace(FENCE, deadline=at(-10)), gpunode=silent())
    assert before_pnr(case).phase is Phase.RECONFIGURING
    waiting = before_pnr(fenced(fence=replace(FENCE, deadline=at(-10))))
    assert (waiting.phase, waiting.wake) == (Phase.VERIFYING_IDLE, at(5))


def test_a_timeout_says_what_blocked() -> None:
    stuck = make_work(make_pod("db-0", owner=None))
    message = before_pnr(fenced(fence=replace(FENCE, deadline=NOW), work=stuck)).message
    assert "Unmanaged: Pod team-a/db-0" in message


def test_without_an_observation_it_waits_for_the_agent_and_for_the_deadline() -> None:
    assert make_case().gpunode is not None
    case = fenced(gpunode=replace(silent(), observed=None))
    verdict = before_pnr(case)
    assert (verdict.phase, verdict.reason) == (Phase.CORDONED, Reason.OBSERVATION_PENDING)
    assert verdict.wake == FENCE.deadline


def test_an_edit_before_the_pnr_changes_the_target_and_nothing_else() -> None:
    stack = make_stack(SLICED)
    action = passed(fenced(SLICED, gpunode=silent(), stack=stack))
    assert (action.fence.target_mig_config, action.fence.target_plugin_config) == pair_of(SLICED)
    assert action.fence.op == FENCE.op
