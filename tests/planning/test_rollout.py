"""Named scenarios over the whole planner: state in, plan out; and whole ways from Pending to Synced in world.py.
The verdicts of planning/transition/judge.py are what most of them are about."""

from dataclasses import replace
from datetime import timedelta

import pytest
from tests.build import (
    H100,
    NOW,
    make_cluster_policy,
    make_fence,
    make_gpu,
    make_gpunode,
    make_node,
    make_pod,
    make_policy,
    make_snapshot,
    make_work,
)
from tests.planning.cases import (
    FULL,
    MIG_SLICED,
    MIXED,
    MPS,
    NODE,
    SINGLE,
    SLICED,
    T4,
    copy_of,
    edited,
    pair_of,
    pool_of,
    run_until,
    verdict_of,
    wrote,
)
from tests.planning.machines import NodeMachine
from tests.planning.rules import is_settled

from gpusharing.api import names
from gpusharing.api.names import LABEL_MIG_CONFIG, LABEL_MIG_STATE, LABEL_PLUGIN_CONFIG, DisruptionClass, Phase
from gpusharing.planning.gpus.health import Vitals
from gpusharing.planning.rollout import plan_rollout
from gpusharing.planning.snapshot.actions import (
    Actuate,
    EnsureGPUNode,
    Evict,
    FenceNode,
    LabelNode,
    Release,
    SetClaims,
    SetFinalizer,
    UpdateFence,
    WriteConfig,
)
from gpusharing.planning.snapshot.memo import Memo
from gpusharing.planning.snapshot.memory import LOOKS
from gpusharing.planning.snapshot.records import Deferred
from gpusharing.planning.snapshot.views import PolicyView
from gpusharing.planning.vocabulary.reasons import Reason
from gpusharing.planning.wanted.migfile import parse as parse_mig_file

NODE_WRITES = (FenceNode, Actuate, UpdateFence, Release, LabelNode)
MODES = {
    "Full": FULL,
    "TimeSlicing": SLICED,
    "MPS": MPS,
    "MIG mixed": MIXED,
    "MIG single": SINGLE,
    "MIG and time-slicing": MIG_SLICED,
}


# --- every ordered change -------------------------------------------------------------------------------------

CHANGES = [(a, b) for a in MODES for b in MODES if a != b]


@pytest.mark.parametrize("reboots", [False, True], ids=["reset", "reboot"])
@pytest.mark.parametrize(("before", "after"), CHANGES, ids=[f"{a} to {b}" for a, b in CHANGES])
def test_a_change_runs_to_synced_with_one_node_write_per_step_and_two_around_them(
    before: str, after: str, reboots: bool
) -> None:
    world = copy_of(MODES[before], (H100, H100))
    world.stack = replace(world.stack, cluster_policy=make_cluster_policy(with_reboot=reboots))
    world.settle()
    world.add_pod(NODE)
    world.done.clear()
    world.set_policy(edited(MODES[after]))
    across = DisruptionClass.REBOOT if reboots else DisruptionClass.RESET
    toggles = ("MIG" in before) != ("MIG" in after)
    assert verdict_of(world).disruption is (across if toggles else DisruptionClass.GPU_PODS)
    steps = 2 if toggles and "MPS" in (before, after) else 1
    plan = world.settle()
    assert plan.verdicts[NODE].phase is Phase.SYNCED
    assert wrote(world, *NODE_WRITES) == ["FenceNode", *["Actuate"] * steps, "Release"]
    assert wrote(world, Evict) == ["Evict"]
    assert wrote(world, EnsureGPUNode) == ["EnsureGPUNode"] * 2 * steps
    claimed = ["SetFinalizer", "SetClaims", "SetClaims"]  # before the fence, and past the point of no return
    assert wrote(world, SetClaims, SetFinalizer) == [*claimed, "SetFinalizer", "SetClaims"]
    assert dict(world.nodes[NODE].resources) == dict(plan.targets[NODE])
    known = after == "Full" and before.startswith(("MIG", "MPS"))  # as the stop between MPS and MIG
    assert wrote(world)[0] == ("SetFinalizer" if known else "WriteConfig")
    assert wrote(world).index("SetClaims") < wrote(world).index("FenceNode")
    assert not world.nodes[NODE].unschedulable
    assert world.claims == {}


def test_a_change_within_mig_keeps_mig_on_and_needs_no_reset() -> None:
    world = copy_of(MIXED)
    world.set_policy(make_policy(mig={"layouts": [{"profiles": {"1g.10gb": 7}}]}))
    assert verdict_of(world).disruption is DisruptionClass.GPU_PODS
    assert world.settle().verdicts[NODE].observed == "7x1g.10gb"


def test_a_change_that_keeps_every_resource_disturbs_no_pod_and_cordons_nothing() -> None:
    world = copy_of(SLICED)
    world.add_pod(NODE)
    world.done.clear()
    strict = make_policy(mode="TimeSlicing", timeSlicing={"replicas": 4, "failRequestsGreaterThanOne": True})
    world.set_policy(strict)
    assert verdict_of(world).disruption is DisruptionClass.PLUGIN_RESTART
    run_until(world, Phase.RECONFIGURING)
    assert not world.nodes[NODE].unschedulable
    assert world.settle().verdicts[NODE].phase is Phase.SYNCED
    assert wrote(world, *NODE_WRITES) == ["FenceNode", "Actuate", "Release"]
    assert len(world.pods[NODE]) == 1


# --- adoption ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", MODES.values(), ids=MODES.keys())
def test_a_node_already_as_wanted_is_adopted_by_our_own_labels_only(policy: PolicyView) -> None:
    world = copy_of(policy)
    node = world.nodes[NODE]
    ours = {names.LABEL_MODE, names.LABEL_POLICY}
    bare = {key: value for key, value in node.labels.items() if key not in ours}
    world.nodes[NODE] = replace(node, labels=bare, verified=None)
    world.add_pod(NODE)
    world.done.clear()
    assert verdict_of(world).reason is Reason.ADOPTABLE
    assert verdict_of(world).disruption is DisruptionClass.NONE
    assert world.settle().verdicts[NODE].phase is Phase.SYNCED
    assert wrote(world) == ["LabelNode"]


def test_a_node_whose_admin_named_the_same_configuration_differently_is_adopted() -> None:
    world = copy_of(MIXED)
    node, stack = world.nodes[NODE], world.stack
    theirs = {names.LABEL_MIG_CONFIG: "all-3g.40gb", names.LABEL_PLUGIN_CONFIG: "mig"}
    key = node.labels[names.LABEL_PLUGIN_CONFIG]
    world.stack = replace(stack, plugin_configs={**stack.plugin_configs, "mig": stack.plugin_configs[key]})
    world.nodes[NODE] = replace(node, labels={**node.labels, **theirs}, verified=None)
    world.done.clear()
    assert world.settle().verdicts[NODE].phase is Phase.SYNCED
    assert wrote(world, *NODE_WRITES) == ["LabelNode"]
    assert world.nodes[NODE].labels[names.LABEL_MIG_CONFIG] == "all-3g.40gb"
    assert "mig" in world.stack.plugin_configs


def test_a_cordoned_node_that_is_as_wanted_is_adopted_and_stays_cordoned() -> None:
    world = copy_of(FULL)
    world.nodes[NODE] = replace(world.nodes[NODE], verified=None, unschedulable=True)
    assert world.settle().verdicts[NODE].phase is Phase.SYNCED
    assert world.nodes[NODE].unschedulable


def test_a_node_for_virtual_machines_says_so_instead_of_blaming_its_agent() -> None:
    world = copy_of(FULL)
    node = world.nodes[NODE]
    world.nodes[NODE] = replace(node, labels={**node.labels, names.LABEL_WORKLOAD_CONFIG: "vm-passthrough"})
    world.agents_down = {NODE}
    del world.gpunodes[NODE]
    world.set_policy(MIXED)
    verdict = verdict_of(world)
    assert (verdict.phase, verdict.reason) == (Phase.BLOCKED, Reason.WORKLOAD_CONFIG)


# --- ownership --------------------------------------------------------------------------------------------------


def test_a_node_moves_to_a_strictly_higher_priority_as_a_budgeted_change() -> None:
    world = copy_of(FULL)
    world.set_policy(make_policy("urgent", "TimeSlicing", priority=1, rollout={"maxUnavailable": 0}))
    assert verdict_of(world).reason is Reason.CONFIG_PROPAGATING
    assert world.settle().verdicts[NODE].reason is Reason.FROZEN
    assert world.nodes[NODE].labels[names.LABEL_POLICY] == "pool-b"
    world.set_policy(make_policy("urgent", "TimeSlicing", priority=1))
    assert world.settle().verdicts[NODE].policy == "urgent"
    assert world.nodes[NODE].labels[names.LABEL_POLICY] == "urgent"


def test_a_node_moves_between_policies_that_want_the_same_by_our_labels_only() -> None:
    world = copy_of(FULL)
    world.set_policy(make_policy("urgent", "Full", priority=1))
    world.done.clear()
    assert world.settle().verdicts[NODE].policy == "urgent"
    assert wrote(world, *NODE_WRITES)[0] == "LabelNode"
    assert "FenceNode" not in wrote(world)


def test_a_node_that_no_policy_selects_any_more_keeps_its_layout_and_loses_the_mark() -> None:
    world = copy_of(MIXED)
    before = world.nodes[NODE].labels
    world.delete_policy("pool-b")
    world.done.clear()
    verdict = world.settle().verdicts[NODE]
    assert (verdict.phase, verdict.reason) == (Phase.SKIPPED, Reason.UNOWNED)
    assert wrote(world, *NODE_WRITES) == ["LabelNode"]
    assert world.policies == ()
    assert world.nodes[NODE].labels == {key: value for key, value in before.items() if key != names.LABEL_POLICY}
    assert world.machines[NODE].layouts == [(("3g.40gb", 2),)]
    kept = {world.nodes[NODE].labels[label] for label in (names.LABEL_MIG_CONFIG, names.LABEL_PLUGIN_CONFIG)}
    assert kept <= {*world.stack.plugin_configs, *parse_mig_file(world.stack.mig_file)}


def test_a_node_without_gpu_is_skipped_when_selected_and_not_even_named_otherwise() -> None:
    plain, other = (
        make_node("cpu-1", resources={}),
        make_node("cpu-2", resources={}, labels={"gpusharing.dev/pool": "x"}),
    )
    plan = plan_rollout(make_snapshot([plain, other], [FULL], gpunodes=[]), NOW)
    assert {name: v.reason for name, v in plan.verdicts.items()} == {"cpu-1": Reason.NO_GPU}
    assert plan.verdicts["cpu-1"].actions == ()


# --- two card models --------------------------------------------------------------------------------------------


def test_a_second_card_model_is_handled_node_by_node() -> None:
    world = copy_of(FULL)
    world.add_node("t4", NodeMachine("t4", (T4,)))
    world.add_node("h200", NodeMachine("h200", ("NVIDIA H200",)))
    world.set_policy(make_policy(mig={"config": "all-balanced"}))
    plan = world.settle()
    assert {name: (v.phase, v.reason) for name, v in plan.verdicts.items()} == {
        "gpu-07": (Phase.SYNCED, Reason.SYNCED),
        "h200": (Phase.SYNCED, Reason.SYNCED),
        "t4": (Phase.SKIPPED, Reason.NOT_MIG_CAPABLE),
    }
    assert plan.verdicts["h200"].wanted == "1x3g.71gb+1x2g.35gb+2x1g.18gb"


def test_two_card_models_in_one_node_are_both_divided() -> None:
    world = copy_of(FULL, (H100, "NVIDIA A30"))
    world.set_policy(make_policy(mig={"config": "all-balanced"}))
    assert world.settle().verdicts[NODE].phase is Phase.SYNCED
    assert "nvidia.com/mig-1g.6gb" in world.nodes[NODE].resources
    assert "nvidia.com/mig-1g.10gb" in world.nodes[NODE].resources


def test_a_layout_that_does_not_fit_is_refused_before_anything_is_touched() -> None:
    world = copy_of(FULL)
    world.set_policy(make_policy(mig={"layouts": [{"profiles": {"1g.20gb": 7}}]}))
    world.done.clear()
    verdict = world.settle().verdicts[NODE]
    assert (verdict.phase, verdict.reason) == (Phase.SKIPPED, Reason.LAYOUT_DOES_NOT_FIT)
    assert "nearest legal layout: 4x1g.20gb" in verdict.message
    assert wrote(world, *NODE_WRITES) == []


# --- the front door -----------------------------------------------------------------------------------------------


def test_a_settled_cluster_gives_an_empty_plan_with_any_memo_and_in_any_order() -> None:
    world = pool_of(3)
    snapshot = world.snapshot()
    memo = Memo()
    plans = [plan_rollout(snapshot, world.now, memo) for _ in range(2)]
    reverse = replace(snapshot, nodes=dict(sorted(snapshot.nodes.items(), reverse=True)))
    plans += [plan_rollout(reverse, world.now), plan_rollout(reverse, world.now, memo)]
    assert all(plan == plans[0] for plan in plans)
    assert is_settled(plans[0])
    assert plans[0].wake_at is None
    assert list(plans[0].verdicts) == ["n0", "n1", "n2"]


def test_a_clock_that_is_set_back_asks_anew_whatever_the_memo_holds() -> None:
    """A wait that was over is not over any more; an answer from then would be another one than without a memo."""
    paused = replace(SLICED, spec=make_policy("pool-b", "TimeSlicing", rollout={"paused": True}).spec)
    world = pool_of(1)
    world.set_policy(paused)
    world.settle()
    later = world.now + timedelta(seconds=600)
    deferred = Deferred(1, later, "DrainTimeout", world.policies[0].version)
    world.nodes["n0"] = replace(world.nodes["n0"], deferred=deferred)
    memo, snapshot = Memo(), world.snapshot()
    moments = (later, later - timedelta(seconds=60))
    reasons = [plan_rollout(snapshot, moment, memo).verdicts["n0"].reason for moment in moments]
    assert reasons == [Reason.PAUSED, Reason.DEFERRED]


def test_a_node_that_is_gone_leaves_nothing_behind_in_the_memo() -> None:
    world = pool_of(2)
    memo = Memo()
    plan_rollout(world.snapshot(), world.now, memo)
    world.remove_node("n0")
    plan = plan_rollout(world.snapshot(), world.now, memo)
    assert plan.targets.keys() == {"n1"}
    assert plan == plan_rollout(world.snapshot(), world.now)


def test_a_fence_that_cannot_be_read_is_left_exactly_as_it_is() -> None:
    world = copy_of(FULL)
    world.nodes[NODE] = replace(world.nodes[NODE], fence_error="annotation gpusharing.dev/fence: not JSON")
    world.set_policy(MIXED)
    verdict = world.settle().verdicts[NODE]
    assert (verdict.phase, verdict.reason, verdict.actions) == (Phase.BLOCKED, Reason.FENCE_UNREADABLE, ())


def test_a_change_whose_fence_a_newer_operator_wrote_keeps_its_claim_and_its_place() -> None:
    world = pool_of(2, FULL)
    world.set_policy(MIXED)
    run_until(world, Phase.CORDONED, node="n0")
    claim = world.claims["n0"]
    world.nodes["n0"] = replace(world.nodes["n0"], fence=None, fence_error="version 9", unschedulable=False)
    plan = world.settle()
    assert world.claims == {"n0": claim}
    assert plan.verdicts["n1"].reason is Reason.BUDGET_FULL
    assert world.nodes["n1"].fence is None


def test_an_unaccepted_policy_moves_nothing_and_says_why_on_every_node() -> None:
    world = copy_of(FULL)
    world.stack = replace(world.stack, cluster_policy=make_cluster_policy("theirs"))
    world.set_policy(MIXED)
    plan = world.settle()
    assert plan.objections["pool-b"].reason is Reason.PLUGIN_CONFIG_NOT_OURS
    assert plan.verdicts[NODE].reason is Reason.PLUGIN_CONFIG_NOT_OURS
    assert wrote(world, FenceNode) == []


def test_the_configuration_of_a_policy_is_written_before_any_label_names_it_and_goes_when_nobody_does() -> None:
    world = copy_of(MIXED)
    old = world.nodes[NODE].labels[names.LABEL_PLUGIN_CONFIG]
    world.set_policy(SLICED)
    world.done.clear()
    world.step()
    assert wrote(world)[0] == "WriteConfig"
    assert old in world.stack.plugin_configs
    world.settle()
    assert old not in world.stack.plugin_configs
    assert len(wrote(world, WriteConfig)) == 2


def test_the_pods_of_few_nodes_are_asked_for_at_once() -> None:
    world = pool_of(20)
    world.set_policy(edited(SLICED))
    for name in world.nodes:
        world.pods[name] = {f"uid-{name}": make_pod(name, uid=f"uid-{name}")}
    asked = []
    for _ in range(3):
        world.now += timedelta(seconds=30)
        asked.append(len(world.step().memory.wants_pods))
    assert max(asked) > 0
    assert all(count <= 3 + LOOKS for count in asked)


# --- what a snapshot holds beside node and policy ----------------------------------------------------------------------

POLICY = make_policy()
PAUSED = {
    "false": ({"paused": True, "whenPaused": "Hold"}, (True, "Hold")),
    "true": ({"whenPaused": "Abort"}, (True, "Abort")),
    "Finish": ({"paused": True, "whenPaused": "Hold"}, (True, "Finish")),
    "Hold": ({}, (True, "Hold")),
    "Abort": ({"whenPaused": "Hold"}, (True, "Abort")),
}
"""By the chart's value: what a policy says, and what then holds."""
ELSEWHERE = {"gpusharing.dev/pool": "nobody's"}


@pytest.mark.parametrize(("word", "rollout", "held"), [(word, *row) for word, row in PAUSED.items()], ids=PAUSED)
def test_the_charts_value_pauses_a_policy_whatever_it_says_itself_and_changes_nothing_else(
    word: str, rollout: dict[str, object], held: tuple[bool, str]
) -> None:
    policy = make_policy(rollout={"maxUnavailable": 3, **rollout})
    found = policy.paused_by(word)
    assert found.spec is not None
    assert (found.spec.rollout.paused, found.spec.rollout.when_paused) == held
    assert found.version == policy.version
    assert found.generation == policy.generation


def test_a_policy_that_cannot_be_read_has_nothing_to_pause() -> None:
    policy = replace(POLICY, spec=None)
    assert policy.paused_by("Hold") == policy


def test_a_gpu_that_is_lost_is_told_of_the_node() -> None:
    lost = make_gpunode(gpus=(replace(make_gpu(), vitals=Vitals(access="Lost")),))
    verdict = plan_rollout(make_snapshot([make_node()], [POLICY], gpunodes=[lost]), NOW).verdicts["gpu-07"]
    assert verdict.health is not None
    assert (verdict.reason, verdict.health.reason) == (Reason.GPU_UNHEALTHY, Reason.GPU_LOST)


def test_what_the_log_of_mig_manager_says_is_told_of_the_node_that_failed() -> None:
    mig_config, plugin = pair_of(POLICY)
    labels = {LABEL_MIG_CONFIG: mig_config, LABEL_MIG_STATE: "failed", LABEL_PLUGIN_CONFIG: plugin}
    fence = make_fence("actuating", attempt=3, target_mig_config=mig_config, target_plugin_config=plugin)
    node = make_node(fence=fence, labels=labels, unschedulable=True)
    said = "Error creating GPU instance: ERROR_IN_USE"
    plan = plan_rollout(make_snapshot([node], [POLICY], mig_failures={"gpu-07": said}), NOW)
    assert plan.verdicts["gpu-07"].phase is Phase.FAILED
    assert said in plan.verdicts["gpu-07"].message


def test_pods_are_not_stranded_while_a_node_that_nobody_owns_offers_what_they_ask_for() -> None:
    work = {"gpu-07": make_work(make_pod())}
    alone = plan_rollout(make_snapshot([make_node()], [POLICY], work=work), NOW)
    assert alone.verdicts["gpu-07"].reason is Reason.STRANDED_PODS
    nodes = [make_node(), make_node("gpu-09", labels=ELSEWHERE)]
    plan = plan_rollout(make_snapshot(nodes, [POLICY], work=work), NOW)
    assert plan.verdicts["gpu-09"].reason is Reason.UNOWNED
    assert any(isinstance(action, FenceNode) for action in plan.verdicts["gpu-07"].actions)
    served_none = [make_node(), make_node("gpu-09", labels=ELSEWHERE, resources={"nvidia.com/gpu": 0})]
    plan = plan_rollout(make_snapshot(served_none, [POLICY], work=work), NOW)
    assert plan.verdicts["gpu-07"].reason is Reason.STRANDED_PODS
    changing_too = [make_node(), make_node("gpu-08")]
    plan = plan_rollout(make_snapshot(changing_too, [POLICY], work=work), NOW)
    assert plan.verdicts["gpu-07"].reason is Reason.STRANDED_PODS, "it will not offer them for long"


def test_the_views_that_are_too_old_for_a_point_of_no_return_are_named() -> None:
    snapshot = make_snapshot([make_node()], [POLICY])
    assert snapshot.old_views == ""
    ages = {"nodes": 150.1, "gpunodes": 150.0, "agent pods": float("inf"), "configmaps": 0.0}
    assert replace(snapshot, view_ages=ages).old_views == "agent pods, nodes"
