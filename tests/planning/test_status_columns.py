"""A policy's columns, plan and failures; and its whole status over a change: it neither flaps nor overflows."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from tests.build import ask_anew, at, make_fence, make_gpu, make_node, make_policy
from tests.planning.cases import FULL, copy_of, pool_of
from tests.planning.machines import NodeMachine
from tests.planning.told import (
    BAD_SPEC,
    DRAINING,
    FAILED,
    HALVES,
    PASSED_OVER,
    PENDING,
    POOL,
    REFUSED,
    STATUS,
    SYNCED,
    StatusInput,
    answers,
    message,
    verdict,
)
from tests.planning.world import World
from tests.wording import lacks

from gpusharing.api.names import DisruptionClass, Phase
from gpusharing.planning.report.status import MAX_LISTED, policy_status
from gpusharing.planning.rollout import plan_rollout
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.vocabulary.lengths import MAX_TEXT
from gpusharing.planning.vocabulary.reasons import Reason


def test_the_columns_tell_layout_nodes_gpus_used_pending_strategy_and_product() -> None:
    cordoned = make_node("gpu-08", resources=HALVES, unschedulable=True)
    given = StatusInput(
        [SYNCED, replace(SYNCED, node="gpu-08")],
        nodes={"gpu-07": make_node(resources=HALVES), "gpu-08": cordoned},
        reports={
            "gpu-07": {"gpus": [make_gpu(0), make_gpu(1)], "allocated": HALVES},
            "gpu-08": {"allocated": {"nvidia.com/gpu": 1, "nvidia.com/mig-3g.40gb": 1}},
        },
        pending={"nvidia.com/mig-3g.40gb": 3, "nvidia.com/gpu": 5},
    )
    assert given.status()["summary"] == {
        "mode": "MIG",
        "layout": "2x3g.40gb",
        "nodes": "1/2",
        "gpus": 3,
        "used": "3/4",
        "pendingPods": 3,
        "product": "NVIDIA-H100-80GB-HBM3",
        "nextWindow": "",
        "pausedBy": "",
        "status": "Synced",
        "message": "2x3g.40gb proven",
    }


def test_mig_with_time_slicing_is_a_mode_of_its_own_in_the_columns() -> None:
    shown = {
        StatusInput([SYNCED], policy).status()["summary"]["mode"]
        for policy in (make_policy(), make_policy(timeSlicing={"replicas": 2}), make_policy(mode="MPS"))
    }
    assert shown == {"MIG", "MIG+TS", "MPS"}


def test_a_pool_whose_policy_is_refused_shows_what_is_there() -> None:
    """Its device plugins are gone as well, so that nodes serve nothing; pods keep the devices that they hold."""
    refused = verdict(Phase.BLOCKED, Reason.PLUGIN_CONFIG_NOT_OURS, wanted="", observed="4x shared")
    given = StatusInput(
        [refused, replace(refused, node="gpu-08")],
        nodes={"gpu-07": make_node(resources={"nvidia.com/gpu": 4}), "gpu-08": make_node("gpu-08", resources={})},
        reports={
            "gpu-07": {"allocated": {"nvidia.com/gpu": 3, "nvidia.com/mig-3g.40gb": 1}},
            "gpu-08": {"allocated": {"nvidia.com/gpu": 2, "example.com/nic": 1}},
        },
        objection=Finding(Reason.PLUGIN_CONFIG_NOT_OURS, "it is x"),
    )
    summary = given.status()["summary"]
    shown = {key: summary[key] for key in ("layout", "nodes", "gpus", "used", "status")}
    assert shown == {"layout": "4x shared", "nodes": "0/2", "gpus": 2, "used": "5/4", "status": "PluginConfigNotOurs"}


WANTED, OTHER = replace(PENDING, observed="1x full"), replace(REFUSED, observed="4x shared")
UNTOLD: dict[str, dict[str, Any]] = {
    "gpu-07": {"allocated": {"nvidia.com/gpu": 1}},
    "gpu-08": {"holdings_known": False},
}
MANY = [replace(SYNCED, node=f"gpu-{number}", wanted=text) for number, text in enumerate("baacaab")]
COLUMNS: dict[str, tuple[StatusInput, dict[str, object]]] = {
    "a spec that cannot be read has no mode": (
        StatusInput((), replace(POOL, spec=None), objection=BAD_SPEC), {"mode": "", "status": "InvalidSpec"}),
    "what is wanted comes before what is there": (StatusInput([WANTED, OTHER]), {"layout": "2x3g.40gb"}),
    "nodes of other cards leave every count": (
        StatusInput([SYNCED, PASSED_OVER]), {"nodes": "1/1", "gpus": 1, "used": "0/1"}),
    "a node that never reported has no GPUs": (
        StatusInput([SYNCED], reports={"gpu-07": {"observed": False}}), {"gpus": 0, "used": "0+?/1", "product": ""}),
    "what the kubelet did not tell is unknown": (
        StatusInput([SYNCED, replace(SYNCED, node="gpu-08")], reports=UNTOLD), {"used": "1+?/2"}),
    "two layouts are there by how many nodes have them": (StatusInput(MANY), {"layout": "a, b"}),
}  # fmt: skip


@pytest.mark.parametrize(("given", "shown"), COLUMNS.values(), ids=COLUMNS)
def test_the_columns_show(given: StatusInput, shown: dict[str, object]) -> None:
    assert given.status()["summary"].items() >= shown.items()


# --- plan and failures ---------------------------------------------------------------------------------------


def test_the_plan_tells_the_worst_class_the_nodes_pods_and_capacities() -> None:
    reset = replace(PENDING, disruption=DisruptionClass.RESET)
    given = StatusInput(
        [SYNCED, reset, replace(FAILED, disruption=DisruptionClass.GPU_PODS, pods=2), REFUSED],
        nodes={"gpu-07": make_node("gpu-07", resources=HALVES)},
        targets={"gpu-07": HALVES, "gpu-08": HALVES, "gpu-09": HALVES},
        reports={"gpu-08": {"pods": 3}},
    )
    plan = given.status()["plan"]
    assert plan.pop("hash").isalnum()
    assert plan == {
        "disruption": "Reset",
        "nodes": ["gpu-08", "gpu-09"],
        "nodeCount": 2,
        "pods": 5,
        "podNames": [],
        "budgets": [],
        "gangs": [],
        "blockers": [],
        "shortages": [],
        "windows": [],
        "capacityBefore": {"nvidia.com/gpu": 3, "nvidia.com/mig-3g.40gb": 2},
        "capacityAfter": {"nvidia.com/gpu": 2, "nvidia.com/mig-3g.40gb": 4},
    }, "the card that refuses keeps serving what it serves, and so does the node that failed"


def test_there_is_no_plan_when_nothing_changes() -> None:
    assert StatusInput([SYNCED, REFUSED]).status()["plan"] is None


def test_the_hash_of_a_plan_says_nothing_of_pods_and_progress() -> None:
    """What it does say: tests/planning/test_approval.py."""
    one = replace(PENDING, disruption=DisruptionClass.RESET)
    two = replace(one, node="gpu-01")
    told = StatusInput([one, two]).status()["plan"]["hash"]
    later = StatusInput([replace(two, message="other", pods=4), replace(one, phase=DRAINING.phase)])
    assert later.status(None, at(60))["plan"]["hash"] == told
    assert StatusInput([one, two], replace(POOL, generation=8)).status()["plan"]["hash"] == told
    assert StatusInput([one, two], ask_anew(POOL)).status()["plan"]["hash"] != told


def test_failures_are_told_by_name_and_capped() -> None:
    failed = [replace(FAILED, node=f"gpu-{number:03d}") for number in range(50)]
    failures = StatusInput(failed).status()["failures"]
    assert failures[0] == {"node": "gpu-000", "reason": "ActuatorFailed", "message": "something is so"}
    assert [row["node"] for row in failures] == [f"gpu-{number:03d}" for number in range(MAX_LISTED)]
    assert StatusInput([SYNCED, DRAINING]).status()["failures"] == []


@pytest.mark.parametrize("reason", [Reason.LABEL_MISMATCH, Reason.GPU_STILL_BUSY])
def test_a_node_that_goes_back_is_a_failure_whatever_it_waits_for(reason: Reason) -> None:
    """It would come and go in the list, with each write of the status."""
    node = make_node("gpu-08", fence=make_fence("actuating", rolls_back=True))
    going = verdict(Phase.VERIFYING, reason, "gpu-08")
    assert [row["node"] for row in StatusInput([going], nodes={"gpu-08": node}).status()["failures"]] == ["gpu-08"]
    assert StatusInput([going]).status()["failures"] == []


def test_five_thousand_nodes_with_endless_messages_fit_into_the_crd() -> None:
    endless = replace(FAILED, message="x" * 9000, wanted="y" * 3000, disruption=DisruptionClass.RESET)
    status = StatusInput([replace(endless, node=f"gpu-{number:04d}") for number in range(5000)]).status()
    texts = [row["message"] for row in status["conditions"]] + [status["summary"]["message"]]
    assert max(len(text) for text in texts) == MAX_TEXT
    assert status["plan"]["nodeCount"] == 5000
    assert len(status["plan"]["nodes"]) == len(status["failures"]) == MAX_LISTED
    assert len(str(status)) < 40_000, "far below what etcd takes"
    objected = StatusInput([], objection=Finding(Reason.INVALID_SPEC, "z" * 9000)).status()
    assert {len(text) for text in (message(objected, "Accepted"), message(objected, "Ready"))} == {MAX_TEXT}


# --- with the planner ----------------------------------------------------------------------------------------


def test_a_whole_change_is_told_without_flapping() -> None:
    world = pool_of(2)
    world.set_policy(make_policy())
    status: dict[str, Any] = {}
    words: list[str] = []
    for _ in range(400):
        snapshot, policy = world.snapshot(), world.policies[0]
        plan = plan_rollout(snapshot, world.now)
        status = policy_status(policy, plan, snapshot, status, world.now)
        STATUS.validate_python(status)
        later = plan_rollout(snapshot, world.now + timedelta(milliseconds=1))
        if {n: (v.phase, v.reason) for n, v in later.verdicts.items()} == {
            n: (v.phase, v.reason) for n, v in plan.verdicts.items()
        }:
            assert policy_status(policy, later, snapshot, status, at(9000)) == status
        words += [status["summary"]["status"]] if status["summary"]["status"] not in words[-1:] else []
        if answers(status)["Ready"] == "True Synced":
            break
        assert status["plan"] is None or status["plan"]["capacityAfter"] == {"nvidia.com/mig-3g.40gb": 4}
        for node in world.nodes:
            world.act(node)
        world.step()
        world.now += timedelta(seconds=1)
    assert status["summary"]["nodes"] == "2/2"
    assert status["plan"] is None
    assert [word for word in words if word in ("Draining", "Reconfiguring", "Verifying", "Synced")][-1] == "Synced"
    assert {"Reconfiguring", "Verifying"} <= set(words)


def test_a_failed_node_is_told_once_and_not_on_every_pass() -> None:
    world = copy_of(FULL)
    world.machines["gpu-07"].temper = "hangs"
    world.set_policy(make_policy())
    world.settle()
    snapshot, policy = world.snapshot(), world.policies[0]
    status = policy_status(policy, plan_rollout(snapshot, world.now), snapshot, {}, world.now)
    assert answers(status)["Stalled"] == "True NodesFailed"
    later = world.now + timedelta(hours=1)
    assert policy_status(policy, plan_rollout(snapshot, later), snapshot, status, later) == status


def test_a_policy_is_not_ready_while_another_policys_change_keeps_one_of_its_nodes() -> None:
    world = World()
    world.add_node("gpu-07", NodeMachine("gpu-07"))
    world.add_node("gpu-08", NodeMachine("gpu-08", temper="hangs"))
    world.set_policy(make_policy(rollout={"maxUnavailable": 2}))
    seen = []
    for _ in range(200):
        if (fence := world.nodes["gpu-08"].fence) is not None and fence.stage == "actuating":
            world.set_policy(
                make_policy("rival", "Full", priority=10, created="2026-11-02T00:00:00Z", rollout={"maxUnavailable": 2})
            )
        snapshot, plan = world.snapshot(), world.step()
        for policy in (one for one in world.policies if one.name == "rival"):
            status = policy_status(policy, plan, snapshot, {}, world.now)
            seen.append((answers(status)["Ready"], status["summary"]["nodes"], status["summary"]["status"]))
        for node in world.nodes:
            world.act(node)
        world.now += timedelta(seconds=1)
    assert world.nodes["gpu-08"].fence is not None
    assert world.nodes["gpu-08"].fence.policy == "pool-b", "that is still under way"
    assert answers(status) == {
        "Accepted": "True Valid",
        "Ready": "False RolloutInProgress",
        "Reconciling": "True RolloutInProgress",
        "Stalled": "False Progressing",
    }
    assert not lacks(status["summary"]["message"], "gpu-08", "another policy")
    assert seen[0] == ("False RolloutInProgress", "0/2", "Pending"), "it owns both and has none yet"
    assert seen[-1] == ("False RolloutInProgress", "1/2", "Pending")
    world.machines["gpu-08"].temper = "works"
    world.settle()
    status = policy_status(policy, plan_rollout(world.snapshot(), world.now), world.snapshot(), {}, world.now)
    assert (answers(status)["Ready"], status["summary"]["nodes"]) == ("True Synced", "2/2")
