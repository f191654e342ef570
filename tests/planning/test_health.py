"""Which facts make a GPU unhealthy, what is told, and that an unhealthy GPU is not reconfigured."""

from dataclasses import replace
from itertools import islice
from typing import Any, get_args

import pytest
from pydantic import TypeAdapter
from tests.build import NOW, at, make_gpu, make_stack, make_work
from tests.planning.cases import FULL, MIXED, SINGLE, T4, assessed_of, judged, make_case, quiet_report
from tests.planning.changes import answering, changing
from tests.planning.told import SYNCED

from gpusharing.api.gpunode import NodeCondition, RecoveryAction
from gpusharing.api.names import Phase
from gpusharing.planning.gpus.health import (
    GRAVEST_FIRST,
    HEALTHY,
    NO_TROUBLE,
    RECOVERIES,
    XIDS,
    Vitals,
    diagnose,
    find_problems,
    is_healthy,
)
from gpusharing.planning.report.transition import health_conditions
from gpusharing.planning.snapshot.actions import Actuate
from gpusharing.planning.snapshot.records import Verified
from gpusharing.planning.snapshot.views import GPUNodeView, GpuView, PolicyView
from gpusharing.planning.transition.after import after_pnr
from gpusharing.planning.transition.verdict import NodeCase, find_health
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.vocabulary.reasons import Passes, Reason

RESET_WANTED = replace(make_gpu(), vitals=Vitals(recovery="Reset"))
LOST = replace(make_gpu(), vitals=Vitals(access="Lost"))
SICK: dict[str, tuple[Vitals, Reason, str]] = {
    "a lost GPU": (Vitals(access="Lost"), Reason.GPU_LOST, "drain and reboot the node"),
    "a GPU that NVML refuses": (Vitals(access="ResetRequired"), Reason.GPU_RESET_REQUIRED, "nvidia-smi -r"),
    "a GPU whose power is not enough": (
        Vitals(access="Failed", error="Insufficient External Power"), Reason.GPU_UNREADABLE, "Insufficient External"),
    "a failed row remapping": (replace(HEALTHY, remap_failed=True), Reason.ROW_REMAP_FAILED, "replace the card"),
    "a pending row remapping": (replace(HEALTHY, remap_pending=True), Reason.ROW_REMAP_PENDING, "nvidia-smi -r"),
    "uncorrected ECC errors": (replace(HEALTHY, ecc_errors=True), Reason.ECC_UNCORRECTED, "nvidia-smi -r"),
    "the driver wants a reboot": (replace(HEALTHY, recovery="Reboot"), Reason.RECOVERY_NEEDED, "reboot the node"),
    "an action that is too new": (replace(HEALTHY, recovery="Unknown"), Reason.RECOVERY_NEEDED, "nvidia-smi -q"),
    "a critical XID under an old driver": (Vitals(xid=79), Reason.XID_SEEN, "XID 79 (GPU has fallen"),
}  # fmt: skip


@pytest.mark.parametrize(("vitals", "reason", "what_to_do"), SICK.values(), ids=SICK.keys())
def test_it_is_named_with_the_gpu_and_what_to_do(vitals: Vitals, reason: Reason, what_to_do: str) -> None:
    found = diagnose([(0, HEALTHY), (3, vitals)])
    assert (found.reason, is_healthy(found)) == (reason, False)
    assert found.message.startswith("GPU 3: ")
    assert what_to_do in found.message
    assert reason.passes is Passes.BY_A_PERSON


def test_it_is_healthy() -> None:
    assert diagnose([(0, HEALTHY)]) is NO_TROUBLE


def test_the_gravest_fact_is_told_and_the_others_are_counted() -> None:
    everything = Vitals("Lost", "Reset", ecc_errors=True, remap_pending=True, remap_failed=True, xid=79)
    reasons = [
        *(reason for access in ("Lost", "Failed") for reason, _ in islice(find_problems(Vitals(access)), 1)),
        *(reason for reason, _ in find_problems(replace(everything, access="ResetRequired"))),
    ]
    assert tuple(reasons) == GRAVEST_FIRST
    assert GRAVEST_FIRST == (
        Reason.GPU_LOST,
        Reason.GPU_UNREADABLE,
        Reason.GPU_RESET_REQUIRED,
        Reason.ROW_REMAP_FAILED,
        Reason.RECOVERY_NEEDED,
        Reason.ROW_REMAP_PENDING,
        Reason.XID_SEEN,
        Reason.ECC_UNCORRECTED,
    )
    found = diagnose([(0, replace(HEALTHY, ecc_errors=True)), (1, Vitals(access="Lost")), (2, HEALTHY)])
    assert (found.reason, found.message[:6]) == (Reason.GPU_LOST, "GPU 1:")
    assert found.message.endswith("; 1 more GPU is unhealthy")


def test_every_action_of_the_driver_has_an_advice() -> None:
    assert RECOVERIES.keys() == set(get_args(RecoveryAction))
    assert all(XIDS.values())
    assert set(XIDS) == {48, 64, 79, 95, 119, 120, 140, 143}, "as NVIDIA numbers them"


def sick(policy: PolicyView = MIXED, gpu: GpuView = RESET_WANTED, **fields: Any) -> NodeCase:
    """gpu-07 at rest as whole GPUs, with this GPU, judged against a policy."""
    case = make_case(policy, **fields)
    assert case.gpunode is not None
    assert case.gpunode.observed is not None
    report = replace(case.gpunode, observed=replace(case.gpunode.observed, gpus=(gpu,)))
    return make_case(policy, gpunode=report, **fields)


def test_an_unhealthy_gpu_is_not_reconfigured_and_the_node_says_why() -> None:
    verdict = judged(sick())
    assert (verdict.phase, verdict.reason, verdict.candidate) == (Phase.BLOCKED, Reason.GPU_UNHEALTHY, False)
    assert verdict.actions == ()
    assert "the driver recommends Reset; drain the node" in verdict.message


def test_a_node_as_wanted_stays_synced_and_shows_its_unhealthy_gpu() -> None:
    target = assessed_of(make_case(FULL)).target
    proven = Verified(FULL.name, target.mig_config, target.plugin_key, layout="1x full", gpus=1)
    labels = {"gpusharing.dev/mode": "full", "gpusharing.dev/policy": FULL.name}
    verdict = judged(sick(FULL, node={"verified": proven}, labels=labels))
    assert (verdict.phase, verdict.reason, verdict.actions) == (Phase.SYNCED, Reason.GPU_UNHEALTHY, ())
    assert verdict.message.startswith("1x full proven; GPU 0: ")


def test_a_gpu_that_does_not_answer_proves_nothing_even_if_it_last_was_as_wanted() -> None:
    verdict = judged(sick(FULL, LOST))
    assert (verdict.phase, verdict.reason) == (Phase.BLOCKED, Reason.GPU_UNHEALTHY)
    assert "fell off the bus" in verdict.message


def test_a_gpu_that_was_lost_before_anybody_knew_it_blocks_too() -> None:
    verdict = judged(sick(FULL, replace(LOST, product="", profiles=())))
    assert (verdict.phase, verdict.reason) == (Phase.BLOCKED, Reason.GPU_UNHEALTHY)


def test_a_card_without_any_health_counters_is_not_called_unhealthy() -> None:
    verdict = judged(make_case(FULL, products=(T4,), was=FULL))
    assert verdict.health is NO_TROUBLE


@pytest.mark.parametrize("report", [None, answering(gpus=()), quiet_report(MIXED, gpus=())])
def test_where_no_gpu_was_reported_nobody_says_that_all_are_healthy(report: GPUNodeView | None) -> None:
    assert find_health(report) is None


def test_the_condition_changes_its_time_only_with_its_status() -> None:
    unhealthy = Finding(Reason.ECC_UNCORRECTED, "GPU 0: errors")
    first = health_conditions(replace(SYNCED, health=unhealthy), [], NOW)
    (row,) = first
    TypeAdapter(NodeCondition).validate_python(row)
    assert (row["status"], row["reason"], row["message"]) == ("False", "ECCUncorrected", "GPU 0: errors")
    worse = replace(SYNCED, health=Finding(Reason.GPU_LOST, "GPU 0: lost"))
    assert health_conditions(worse, first, at(60))[0]["lastTransitionTime"] == row["lastTransitionTime"]
    (healed,) = health_conditions(replace(SYNCED, health=NO_TROUBLE), first, at(60))
    assert (healed["status"], healed["reason"]) == ("True", "NoTrouble")
    assert healed["lastTransitionTime"] == "2026-11-20T10:01:00Z"


def test_without_a_report_the_condition_stays_as_it_was() -> None:
    known = health_conditions(replace(SYNCED, health=NO_TROUBLE), [], NOW)
    assert health_conditions(SYNCED, known, at(60)) == known
    assert health_conditions(SYNCED, [], NOW) == []


# --- past the point of no return ---------------------------------------------------------------------------


def with_first_gpu(report: GPUNodeView, **fields: Any) -> GPUNodeView:
    assert report.observed is not None
    first, *others = report.observed.gpus
    return replace(report, observed=replace(report.observed, gpus=(replace(first, **fields), *others)))


def test_a_readable_gpu_that_asks_for_a_reset_does_not_keep_the_node_from_its_proof() -> None:
    verdict = after_pnr(changing(gpunode=with_first_gpu(answering(), vitals=Vitals(recovery="Reset"))))
    assert verdict.phase is Phase.UNCORDONING
    assert verdict.health is not None
    assert verdict.health.reason is Reason.RECOVERY_NEEDED


@pytest.mark.parametrize("known", [{}, {"product": "", "profiles": ()}], ids=["seen before", "never seen"])
def test_a_gpu_that_is_lost_midway_proves_nothing_and_the_node_is_failed_at_the_deadline(known: dict[str, Any]) -> None:
    report = with_first_gpu(answering(), vitals=Vitals(access="Lost"), **known)
    waiting, late = after_pnr(changing(gpunode=report)), after_pnr(changing(gpunode=report, now=2400))
    assert (waiting.phase, waiting.reason, waiting.wake) == (Phase.VERIFYING, Reason.GPU_UNHEALTHY, at(2400))
    assert (late.phase, late.reason, late.actions) == (Phase.FAILED, Reason.GPU_UNHEALTHY, ())
    assert "is not responding" in late.message
    assert "stays cordoned" in late.message


def test_nobody_takes_a_lost_gpu_for_idle_when_the_target_changes_midway() -> None:
    silent = with_first_gpu(quiet_report(MIXED, "op-1:quiet:after-1:9999999999"), vitals=Vitals(access="Lost"))
    case = changing(
        SINGLE, stack=make_stack(MIXED, SINGLE), gpunode=silent, work=make_work(listed_at=at(60), empty_since=at(50))
    )
    verdict = after_pnr(case)
    assert (verdict.phase, verdict.reason) == (Phase.VERIFYING_IDLE, Reason.GPU_STILL_BUSY)
    assert "GPU 0 does not respond" in verdict.message
    assert not any(isinstance(action, Actuate) for action in verdict.actions)
