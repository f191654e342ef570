"""onFailure Rollback: where a failed change goes back to, when it does, and when it is held instead."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from tests.build import H100, ask_anew, at, make_gpu, make_policy, make_stack
from tests.planning.cases import (
    FULL,
    MIG_SLICED,
    MIXED,
    MPS,
    SINGLE,
    SLICED,
    T4,
    assessed_of,
    copy_of,
    edited,
    make_case,
    run_until,
)
from tests.planning.changes import MIG_CONFIG, MIG_STATE, PLUGIN, VERIFY, answering, changing, emptied, fence_to, only
from tests.wording import lacks

from gpusharing.api import names
from gpusharing.api.names import DisruptionClass, Phase
from gpusharing.api.policy import Cost, Rollout
from gpusharing.planning.snapshot.actions import UpdateFence
from gpusharing.planning.snapshot.memory import DRIFTS
from gpusharing.planning.snapshot.records import Verified
from gpusharing.planning.snapshot.views import NodeView, PolicyView
from gpusharing.planning.transition.actuation import find_way_back, turn_back
from gpusharing.planning.transition.after import after_pnr
from gpusharing.planning.transition.attempts import owed_for, was_rolled_back
from gpusharing.planning.transition.gates import find_gate
from gpusharing.planning.transition.judge import differs_from_target
from gpusharing.planning.transition.verdict import NodeCase, Verdict
from gpusharing.planning.vocabulary.commands import Command
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.vocabulary.reasons import Mark, Reason
from gpusharing.planning.wanted.target import Target, find_last_proven

BACK = edited(MIXED, rollout=Rollout(on_failure="Rollback"))
STACK = make_stack(MIXED, SLICED)
FENCE = fence_to(MIXED, version=BACK.version)
FAILED = {MIG_CONFIG: FENCE.target_mig_config, PLUGIN: FENCE.target_plugin_config, MIG_STATE: "failed"}


def failing(policy: PolicyView = BACK, **fields: Any) -> NodeCase:
    """gpu-07 was proven to slice time; mig-manager failed to divide its GPU."""
    known: dict[str, Any] = {
        "was": SLICED,
        "fence": FENCE,
        "labels": FAILED,
        "stack": STACK,
        "gpunode": answering(VERIFY, SLICED),
    }
    return changing(policy, **{**known, **fields})


# --- where to ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "card"),
    [*((one, H100) for one in (FULL, SLICED, MPS, MIXED, SINGLE, MIG_SLICED)), (FULL, T4), (SLICED, T4)],
)
def test_the_record_of_a_proof_is_read_back_as_the_target_that_was_proven(policy: PolicyView, card: str) -> None:
    world = copy_of(policy, (card,))
    node, stack = world.nodes["gpu-07"], make_stack(policy)
    observed = world.gpunodes["gpu-07"].observed
    assert observed is not None
    found = find_last_proven(node, observed, stack)
    assert isinstance(found, Target), found
    assert found.routing == node.labels[names.LABEL_MODE]
    assert found.resources == {name: count for name, count in node.resources.items() if count}
    assert found.layouts == observed.hardware.layouts
    assert found.configured is not None


def record(node: NodeView, **fields: Any) -> NodeView:
    assert isinstance(node.verified, Verified)
    return replace(node, verified=replace(node.verified, **fields))


LOST: dict[str, tuple[Callable[..., Any], str]] = {
    "nothing was proven": (lambda n, o, s: (replace(n, verified=None), o, s), "no earlier proven layout"),
    "a GPU is missing": (lambda n, o, s: (record(n, gpus=2), o, s), "the last proof covered 2 GPUs"),
    "the plugin's entry is gone": (
        lambda n, o, s: (
            n, o, replace(s, plugin_configs={k: v for k, v in s.plugin_configs.items() if k != n.verified.plugin_config})),
        "no longer exists"),
    "somebody edited the plugin's entry": (
        lambda n, o, s: (n, o, replace(s, plugin_configs={n.verified.plugin_config: "version: v1\n"})),
        "no longer exists"),
    "the mig-parted entry is gone": (lambda n, o, s: (record(n, mig_config="gone"), o, s), "is no longer usable"),
    "the entry means something else": (
        lambda n, o, s: (record(n, layout="7x1g.10gb"), o, s), "now means 2x3g.40gb, but 7x1g.10gb was proven"),
    "nobody would end MIG": (lambda n, o, s: (record(n, mig_config=""), o, s), "MIG is on"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "told"), LOST.values(), ids=LOST.keys())
def test_nobody_goes_back_to_what_no_longer_means_what_was_proven(change: Callable[..., Any], told: str) -> None:
    world = copy_of(MIXED)
    found = find_last_proven(*change(world.nodes["gpu-07"], world.gpunodes["gpu-07"].observed, make_stack(MIXED)))
    assert isinstance(found, str)
    assert told in found


def test_an_entry_that_was_deleted_a_moment_ago_is_known_and_not_yet_on_the_node() -> None:
    world = copy_of(MIXED)
    node, stack = world.nodes["gpu-07"], make_stack(MIXED)
    observed = world.gpunodes["gpu-07"].observed
    assert observed is not None
    seen = replace(stack, plugin_configs={}, seen_plugin_configs=stack.plugin_configs)
    found = find_last_proven(node, observed, seen)
    assert isinstance(found, Target)
    assert found.configured is None


# --- when ----------------------------------------------------------------------------------------------------------


def test_a_failed_change_is_turned_back_in_one_write_that_says_so() -> None:
    verdict = after_pnr(failing())
    action = only(verdict)
    assert isinstance(action, UpdateFence)
    assert (verdict.phase, verdict.reason) == (Phase.RECONFIGURING, Reason.ROLLING_BACK)
    assert (action.fence.attempt, action.fence.step) == (1, 1)
    assert (action.fence.rolls_back, action.fence.failed_version) == (True, BACK.version)
    assert "mig-manager failed to apply" in action.fence.failure
    assert action.fence.deadline > at(60)
    assert not action.cordon


def test_a_record_keeps_no_command_which_may_not_fit_on_the_day_that_somebody_reads_it() -> None:
    command = Command.of("kubectl uncordon gpu-07")
    failure = Finding(Reason.MPS_NOT_SWITCHABLE, f"it is deaf. To mend it, run: {command}", commands=(command,))
    turned = turn_back(failing(), failure, known=True)
    assert isinstance(turned, Verdict)
    action = only(turned)
    assert isinstance(action, UpdateFence)
    assert action.fence.failure == "it is deaf"


def test_what_is_turned_back_for_a_new_owner_has_failed_under_the_policy_whose_run_it_was() -> None:
    """Otherwise it would halt a rollout of which it was never a part."""
    theirs = replace(BACK, uid="uid-of-the-former-owner").version
    action = only(after_pnr(failing(fence=replace(FENCE, version=theirs))))
    assert (action.fence.rolls_back, action.fence.version) == (True, BACK.version)
    assert action.fence.failed_version == theirs


def test_the_node_then_goes_to_what_was_proven_and_not_to_what_the_policy_wants() -> None:
    turned = only(after_pnr(failing())).fence
    verdict = after_pnr(failing(fence=turned, now=61))
    assert verdict.wants_pods, "it is proven idle anew"
    assert verdict.message.startswith("rolling back after a failure: ")
    assert verdict.wanted == "2x3g.40gb"


@pytest.mark.parametrize(("answered", "told"), [("", "=again"), ("again", "=once-more"), ("once-more", "=again")])
def test_the_command_for_another_try_works_every_time(answered: str, told: str) -> None:
    case = failing(edited(MIXED), node={"retry": answered}, fence=replace(FENCE, retry=answered))
    assert held(case).endswith(f"{names.ANNOTATION_RETRY}{told}")


def rolled_back(**node: Any) -> str:
    """What keeps a node from starting that went back when a retry of the value `again` had failed."""
    case = make_case(BACK, was=SLICED, stack=STACK)
    known = {"rolled_back": True, "failure": "it broke", "retry": "again"}
    view = record(case.node, version=BACK.version, **known)
    found = find_gate(replace(case, node=replace(view, **node)), assessed_of(case))
    return found.message if found is not None and found.reason is Reason.ROLLED_BACK else ""


def test_a_node_that_went_back_waits_for_another_value_of_the_retry_annotation() -> None:
    """Who only takes the annotation away asks for nothing: the node serves, and would be drained."""
    assert rolled_back(retry="again").endswith(f"{names.ANNOTATION_RETRY}=once-more")
    assert rolled_back(retry="").endswith(f"{names.ANNOTATION_RETRY}=once-more")
    assert not rolled_back(retry="once-more")


def test_only_a_node_that_was_turned_back_is_on_its_way_back() -> None:
    assert find_way_back(failing()) is None
    turned = failing(fence=only(after_pnr(failing())).fence)
    back = find_way_back(turned)
    assert back is not None
    assert assessed_of(back).target.text == "4x shared"


@pytest.mark.parametrize(
    "reason",
    [
        Reason.NODE_NOT_READY,
        Reason.OBSERVATION_PENDING,
        Reason.GPU_UNHEALTHY,
        Reason.AGENT_ERROR,
        Reason.ACTUATOR_BUSY,
    ],
)
def test_what_says_that_nobody_knows_turns_nothing_back(reason: Reason) -> None:
    assert Mark.TURNS_BACK not in reason.marks


def held(case: NodeCase) -> str:
    verdict = after_pnr(case)
    assert verdict.phase is Phase.FAILED
    assert not any(isinstance(action, UpdateFence) for action in verdict.actions)
    return verdict.message


def test_by_default_a_failed_change_is_held() -> None:
    assert "onFailure" not in held(failing(edited(MIXED)))


def going_back(now: float = 200, state: str = "failed") -> NodeCase:
    """The run that leads back has begun; this is what mig-manager says about it."""
    verified = failing().node.verified
    assert verified is not None, "it was at rest"
    mig, plugin = verified.mig_config, verified.plugin_config
    turned = replace(only(after_pnr(failing())).fence, stage_since=at(60), owed="", deadline=at(2000))
    fence = replace(turned, target_mig_config=mig, target_plugin_config=plugin, to_layout="4x shared")
    return failing(fence=fence, labels={MIG_CONFIG: mig, PLUGIN: plugin, MIG_STATE: state}, now=now)


def test_a_change_that_fails_on_its_way_back_is_held() -> None:
    assert "the rollback to 4x shared failed too" in held(going_back())


def fenced_as(case: NodeCase, **fence: Any) -> NodeCase:
    return replace(case, node=replace(case.node, fence=replace(case.fence, **fence)))


LEFT: dict[str, Callable[[NodeCase], NodeCase]] = {
    "the configuration is gone": lambda case: replace(case, stack=replace(case.stack, plugin_configs={})),
    "pods came": lambda case: fenced_as(
        replace(
            case,
            node=replace(case.node, unschedulable=False, labels={**case.node.labels, MIG_CONFIG: "other"}),
        ),
        disruption=DisruptionClass.PLUGIN_RESTART,
        target_plugin_config="other",
    ),
}


@pytest.mark.parametrize("left", LEFT.values(), ids=LEFT.keys())
def test_where_no_way_back_is_left_the_message_has_the_command_for_another_try(
    left: Callable[[NodeCase], NodeCase],
) -> None:
    verdict = after_pnr(left(going_back(state="success")))
    assert (verdict.phase, verdict.reason) == (Phase.FAILED, Reason.ROLLING_BACK)
    assert f"run: kubectl annotate gpunode gpu-07 --overwrite {names.ANNOTATION_RETRY}=again" in verdict.message
    assert not lacks(verdict.message, "2x3g.40gb again")


def test_what_was_proven_last_and_failed_now_is_not_gone_back_to() -> None:
    case = failing(was=MIXED, gpunode=answering(VERIFY, MIXED))
    assert not lacks(held(case), "layout that failed", "last one proven")


SUCCESS = {**FAILED, MIG_STATE: "success"}
NOT_KNOWN: dict[str, dict[str, Any]] = {
    "mig-manager still works": {"labels": {**FAILED, MIG_STATE: "rebooting"}},
    "the agent does not answer": {"labels": SUCCESS, "gpunode": replace(answering("old", SLICED), request_id=VERIFY)},
    "the kubelet is away, after a failure": {"node": {"ready": False}},
    "the kubelet is away, after success": {"labels": SUCCESS, "node": {"ready": False}},
    "the agent is away, after a failure": {"agent_ready": False},
    "the agent is away, after success": {"labels": SUCCESS, "agent_ready": False},
}


@pytest.mark.parametrize("fields", NOT_KNOWN.values(), ids=NOT_KNOWN)
def test_nothing_is_turned_back_for_what_was_said_before_while(fields: dict[str, Any]) -> None:
    assert not lacks(held(failing(now=2400, **fields)), "state of the node")


def test_a_node_whose_label_another_controller_has_taken_goes_back_where_that_is_possible() -> None:
    """It has put back the value that was proven here last: nothing is left that would be set against it."""
    owner = {"label_owners": {MIG_CONFIG: "Node Feature Discovery sets it"}}
    owed = owed_for(assessed_of(failing()).target)
    fence = replace(FENCE, owed=owed, attempt=2, disruption=DisruptionClass.RESET)
    taken = {MIG_CONFIG: "all-disabled", MIG_STATE: "success"}
    late = after_pnr(failing(node=owner, fence=fence, labels=taken, now=2400, work=emptied(2400)))
    assert (late.phase, late.reason) == (Phase.RECONFIGURING, Reason.ROLLING_BACK), late.message
    assert only(late).fence.rolls_back


def test_a_plugin_restart_that_would_have_to_drain_to_go_back_is_held() -> None:
    fence = replace(FENCE, disruption=DisruptionClass.PLUGIN_RESTART)
    assert "need more pods to leave" in held(failing(fence=fence, node={"unschedulable": False}))


TURNS: dict[str, Callable[[NodeCase], NodeCase]] = {
    "another revision": lambda case: fenced_as(case, version=ask_anew(BACK).version),
    "a policy made anew": lambda case: fenced_as(case, version=replace(BACK, uid="before").version),
    "a person's retry": lambda case: replace(case, node=replace(case.node, retry="again")),
}


@pytest.mark.parametrize("turn", TURNS.values(), ids=TURNS.keys())
def test_a_node_on_its_way_back_turns_to_the_policys_layout_after(turn: Callable[[NodeCase], NodeCase]) -> None:
    verdict = after_pnr(turn(going_back()))
    assert verdict.wants_pods, "it is proven idle, for a run to the other layout"
    assert "rolling back" not in verdict.message


STAYS: dict[str, PolicyView] = {
    "the policy is deleted": replace(BACK, generation=BACK.generation + 1, deleting=True),
    "the policy gets a price": edited(BACK, cost=Cost(gpu_hourly_price="3.20")),
    "the policy is paused": edited(BACK, rollout=Rollout(on_failure="Rollback", paused=True)),
    "the policy is paused with the edit": ask_anew(edited(BACK, rollout=Rollout(on_failure="Rollback", paused=True))),
}


@pytest.mark.parametrize("policy", STAYS.values(), ids=STAYS.keys())
def test_an_edit_that_asks_for_nothing_new_or_pauses_turns_no_node_round(policy: PolicyView) -> None:
    case = going_back()
    found = assessed_of(case)
    stopped = policy.spec is not None and policy.spec.rollout.paused
    now = replace(case, assessment=replace(found, policy=policy), held=Finding(Reason.PAUSED, "") if stopped else None)
    assert "the rollback to 4x shared failed too" in held(now)


def test_an_edit_before_the_deletion_does_turn_it_round() -> None:
    policy = replace(ask_anew(BACK), deleting=True)
    case = going_back()
    assert find_way_back(replace(case, assessment=replace(assessed_of(case), policy=policy))) is None


def test_a_rolled_back_node_counts_for_its_own_revision_of_its_own_policy_only() -> None:
    policy = make_policy(uid="u-1")
    node = record(copy_of(SLICED).nodes["gpu-07"], rolled_back=True, version=policy.version)
    assert was_rolled_back(node, policy)
    assert was_rolled_back(node, replace(policy, generation=4))
    assert not was_rolled_back(node, ask_anew(policy))
    assert not was_rolled_back(node, replace(policy, uid="u-2"))
    assert not was_rolled_back(record(node, rolled_back=False), policy)


# --- drift of a node that went back ------------------------------------------------------------------------------------


def gone_back(**fields: Any) -> NodeCase:
    """gpu-07 serves the single profile that it went back to, because MIXED failed there."""
    was = copy_of(SINGLE).nodes["gpu-07"].verified
    assert was is not None
    record = replace(was, version=BACK.version, rolled_back=True, failure="mig-manager failed")
    return make_case(BACK, was=SINGLE, node={"verified": record}, **fields)


EMPTIED: dict[str, Any] = {"observed": answering(VERIFY, SINGLE, gpus=(make_gpu(layout=()),)).observed}


def test_a_node_that_went_back_and_serves_that_has_not_drifted() -> None:
    case = gone_back()
    assert not differs_from_target(case)
    assert "no longer matches" not in kept_by_its_failure(case).message


def test_a_node_that_went_back_and_lost_that_too_is_reported_as_drifted() -> None:
    fresh = gone_back(gpunode=EMPTIED)
    assert differs_from_target(fresh)
    gate = gate_of(fresh)
    assert gate.reason is Reason.DRIFTED
    assert "NVML shows" in gate.message
    lasting = replace(fresh, seen_since={DRIFTS: at(-3600)})
    assert "It no longer matches 7x1g.10gb: NVML shows" in kept_by_its_failure(lasting).message


def test_a_retry_of_such_a_node_is_no_correction_of_drift() -> None:
    case = gone_back(gpunode=EMPTIED, drifting_since=at(-3600))
    asked = replace(case, node=replace(case.node, retry="again"))
    assert find_gate(asked, assessed_of(asked)) is None
    world = copy_of(SINGLE)
    world.set_policy(BACK)
    (policy,), was = world.policies, world.nodes["gpu-07"].verified
    assert was is not None
    record = replace(was, version=policy.version, rolled_back=True)
    world.nodes["gpu-07"] = replace(world.nodes["gpu-07"], verified=record, retry="again")
    world.machines["gpu-07"].layouts = [()]
    world.gpunodes["gpu-07"] = replace(world.gpunodes["gpu-07"], **EMPTIED)
    run_until(world, Phase.CORDONED)
    fence = world.nodes["gpu-07"].fence
    assert fence is not None
    assert not fence.drift


def gate_of(case: NodeCase) -> Finding:
    gate = find_gate(case, assessed_of(case))
    assert gate is not None
    return gate


def kept_by_its_failure(case: NodeCase) -> Finding:
    gate = gate_of(case)
    assert gate.reason is Reason.ROLLED_BACK, gate
    return gate
