"""What a snapshot holds beside node and policy reaches the decision about the node."""

from dataclasses import replace

import pytest
from tests.build import (
    NOW,
    make_fence,
    make_gpu,
    make_gpunode,
    make_node,
    make_pod,
    make_policy,
    make_snapshot,
    make_work,
)
from tests.planning.cases import pair_of

from gpusharing.api.names import LABEL_MIG_CONFIG, LABEL_MIG_STATE, LABEL_PLUGIN_CONFIG, Phase
from gpusharing.planning.gpus.health import Vitals
from gpusharing.planning.rollout import plan_rollout
from gpusharing.planning.snapshot.actions import FenceNode
from gpusharing.planning.vocabulary.reasons import Reason

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
