"""Which facts make a GPU unhealthy, what is told, and that an unhealthy GPU is not reconfigured."""

from dataclasses import replace
from typing import Any, get_args

import pytest
from tests.build import NOW, at, make_gpu
from tests.planning.cases import FULL, MIXED, T4, make_case
from tests.planning.told import SYNCED

from gpusharing.api.gpunode import NodeCondition, RecoveryValue
from gpusharing.api.names import Phase
from gpusharing.planning.health import NO_TROUBLE, RECOVERIES, RULES, WELL, XIDS, Diagnosis, Vitals, diagnose
from gpusharing.planning.judge import judge
from gpusharing.planning.mirror import health_conditions
from gpusharing.planning.reasons import Passes, Reason
from gpusharing.planning.verdict import NodeCase
from gpusharing.planning.views import GpuView, PolicyView, Verified

OLD_DRIVER = Vitals(recovery=None)
RESET_WANTED = replace(make_gpu(), vitals=Vitals(recovery="Reset"))
LOST = replace(make_gpu(), vitals=Vitals(access="Lost"))
SICK: dict[str, tuple[Vitals, Reason, str]] = {
    "a lost GPU": (Vitals(access="Lost"), Reason.GPU_LOST, "drain and reboot the node"),
    "a GPU that NVML refuses": (Vitals(access="ResetRequired"), Reason.GPU_RESET_REQUIRED, "nvidia-smi -r"),
    "a failed row remapping": (replace(WELL, remap_failed=True), Reason.ROW_REMAP_FAILED, "replace the card"),
    "a pending row remapping": (replace(WELL, remap_pending=True), Reason.ROW_REMAP_PENDING, "nvidia-smi -r"),
    "uncorrected ECC errors": (replace(WELL, ecc_errors=True), Reason.ECC_UNCORRECTED, "nvidia-smi -r"),
    "the driver wants a reboot": (replace(WELL, recovery="Reboot"), Reason.RECOVERY_NEEDED, "reboot the node"),
    "an action that is too new": (replace(WELL, recovery="Unknown"), Reason.RECOVERY_NEEDED, "nvidia-smi -q"),
    "a critical XID under an old driver": (replace(OLD_DRIVER, xid=79), Reason.XID_SEEN, "XID 79 (GPU has fallen"),
}  # fmt: skip


@pytest.mark.parametrize(("vitals", "reason", "what_to_do"), SICK.values(), ids=SICK.keys())
def test_it_is_named_with_the_gpu_and_what_to_do(vitals: Vitals, reason: Reason, what_to_do: str) -> None:
    found = diagnose([(0, WELL), (3, vitals)])
    assert (found.reason, found.well) == (reason, False)
    assert found.message.startswith("GPU 3: ")
    assert what_to_do in found.message
    assert reason.passes is Passes.BY_A_PERSON


@pytest.mark.parametrize(
    "vitals",
    [WELL, OLD_DRIVER, replace(WELL, xid=79)],
    ids=["all is well", "a driver that says little", "an XID for which the driver asks nothing any more"],
)
def test_it_is_healthy(vitals: Vitals) -> None:
    assert diagnose([(0, vitals)]) is NO_TROUBLE


def test_the_gravest_fact_is_told_and_the_others_are_counted() -> None:
    assert [rule.reason for rule in RULES] == [
        Reason.GPU_LOST,
        Reason.GPU_RESET_REQUIRED,
        Reason.ROW_REMAP_FAILED,
        Reason.RECOVERY_NEEDED,
        Reason.ROW_REMAP_PENDING,
        Reason.XID_SEEN,
        Reason.ECC_UNCORRECTED,
    ]
    found = diagnose([(0, replace(WELL, ecc_errors=True)), (1, Vitals(access="Lost")), (2, WELL)])
    assert (found.reason, found.message[:6]) == (Reason.GPU_LOST, "GPU 1:")
    assert found.message.endswith("; 1 more GPUs are unhealthy")


def test_every_action_of_the_driver_has_an_advice() -> None:
    assert {"None", *RECOVERIES} == set(get_args(RecoveryValue))
    assert all(XIDS.values())


def sick(policy: PolicyView = MIXED, gpu: GpuView = RESET_WANTED, **fields: Any) -> NodeCase:
    """gpu-07 at rest as whole GPUs, with this GPU, judged against a policy."""
    case = make_case(policy, **fields)
    assert case.gpunode is not None
    assert case.gpunode.observed is not None
    report = replace(case.gpunode, observed=replace(case.gpunode.observed, gpus=(gpu,)))
    return make_case(policy, gpunode=report, **fields)


def test_an_unhealthy_gpu_is_not_reconfigured_and_the_node_says_why() -> None:
    verdict = judge(sick(), {})
    assert verdict is not None
    assert (verdict.phase, verdict.reason, verdict.candidate) == (Phase.BLOCKED, Reason.GPU_UNHEALTHY, False)
    assert verdict.actions == ()
    assert "the driver asks for Reset; drain the node" in verdict.message


def test_a_node_as_wanted_stays_synced_and_shows_its_unhealthy_gpu() -> None:
    record = make_case(FULL).assessment
    assert record is not None
    assert record.target is not None
    proven = Verified(FULL.name, record.target.mig_config, record.target.plugin_key)
    labels = {"gpusharing.dev/mode": "full", "gpusharing.dev/policy": FULL.name}
    verdict = judge(sick(FULL, node={"verified": proven}, labels=labels), {})
    assert verdict is not None
    assert (verdict.phase, verdict.reason, verdict.actions) == (Phase.SYNCED, Reason.GPU_UNHEALTHY, ())
    assert verdict.message.startswith("1x full proven; GPU 0: ")


def test_a_gpu_that_does_not_answer_proves_nothing_even_if_it_last_was_as_wanted() -> None:
    verdict = judge(sick(FULL, LOST), {})
    assert verdict is not None
    assert (verdict.phase, verdict.reason) == (Phase.BLOCKED, Reason.GPU_UNHEALTHY)
    assert "fell off the bus" in verdict.message


def test_a_gpu_that_was_lost_before_anybody_knew_it_blocks_too() -> None:
    verdict = judge(sick(FULL, replace(LOST, product="", uuid="", profiles=())), {})
    assert verdict is not None
    assert (verdict.phase, verdict.reason) == (Phase.BLOCKED, Reason.GPU_UNHEALTHY)


def test_a_card_without_any_health_counters_is_not_called_ill() -> None:
    verdict = judge(make_case(FULL, products=(T4,), was=FULL), {})
    assert verdict is not None
    assert verdict.health is NO_TROUBLE


def test_the_condition_changes_its_time_only_with_its_status() -> None:
    ill = Diagnosis(Reason.ECC_UNCORRECTED, "GPU 0: errors")
    first = health_conditions(replace(SYNCED, health=ill), [], NOW)
    (row,) = first
    NodeCondition.model_validate(row)
    assert (row["status"], row["reason"], row["message"]) == ("False", "ECCUncorrected", "GPU 0: errors")
    worse = replace(SYNCED, health=Diagnosis(Reason.GPU_LOST, "GPU 0: lost"))
    assert health_conditions(worse, first, at(60))[0]["lastTransitionTime"] == row["lastTransitionTime"]
    (healed,) = health_conditions(replace(SYNCED, health=NO_TROUBLE), first, at(60))
    assert (healed["status"], healed["reason"]) == ("True", "NoTrouble")
    assert healed["lastTransitionTime"] == "2026-11-20T10:01:00Z"


def test_without_a_report_the_condition_stays_as_it_was() -> None:
    known = health_conditions(replace(SYNCED, health=NO_TROUBLE), [], NOW)
    assert health_conditions(SYNCED, known, at(60)) == known
    assert health_conditions(SYNCED, [], NOW) == []
