"""Under which drivers no GPU is repartitioned: CVE-2026-24197 as NVIDIA's own record has it, what admins name, and those that hang pods (NVIDIA/gpu-operator#1361; NVIDIA/cloud-native-docs#205, #219 and #221 list them)."""

from dataclasses import replace
from typing import Any

import pytest
from tests.build import H100, SETTINGS, at, make_policy, make_stack
from tests.planning.cases import FULL, MIXED, SINGLE, SLICED, assessed_of, closed_gate, edited, judged, make_case
from tests.planning.changes import emptied, fence_to, only
from tests.planning.drains import FENCE, IDLE, released

from gpusharing.api import names
from gpusharing.api.names import DisruptionClass, Phase
from gpusharing.api.policy import Rollout
from gpusharing.planning.gpus.drivers import FIXED, HANGING, NOT_HANGING, find_driver_flaw, find_hanging
from gpusharing.planning.gpus.geometry import Layout
from gpusharing.planning.snapshot.actions import EnsureGPUNode
from gpusharing.planning.snapshot.views import PolicyView
from gpusharing.planning.transition.after import after_pnr
from gpusharing.planning.transition.attempts import owed_for
from gpusharing.planning.transition.before import before_pnr
from gpusharing.planning.transition.gates import find_gate, first_closed, target_gates
from gpusharing.planning.transition.verdict import NodeCase
from gpusharing.planning.vocabulary.reasons import Reason

AFFECTED = {
    "535.0": "535.309.01",
    "535.288.01": "535.309.01",
    "535.309": "535.309.01",
    "580.95.05": "580.159.03",
    "580.159.02": "580.159.03",
    "595.58.03": "595.71.05",
}


@pytest.mark.parametrize("version", AFFECTED)
def test_an_affected_driver_is_named_with_the_version_that_is_fixed(version: str) -> None:
    flaw = find_driver_flaw(version, (), refuse_affected=True)
    assert version in flaw
    assert "CVE-2026-24197" in flaw
    assert flaw.endswith(f"update it to {AFFECTED[version]}")
    assert find_driver_flaw(version, (), refuse_affected=False) == ""


FIXED_OR_NEWER = [*FIXED.values(), "580.173.02", "595.91.07", "610.43.02"]
OF_OTHER_BRANCHES = ["450.80.02", "570.195.03", "590.48.01"]


@pytest.mark.parametrize("version", FIXED_OR_NEWER + OF_OTHER_BRANCHES)
def test_what_is_fixed_or_of_a_branch_that_nvidia_does_not_list_is_refused_by_nobody(version: str) -> None:
    assert find_driver_flaw(version, (), refuse_affected=True) == ""


@pytest.mark.parametrize("version", ["", "unknown", "580.x", "580.", ".580", "9" * 5000, "580.-1"])
def test_a_version_that_cannot_be_read_is_judged_by_nobody(version: str) -> None:
    assert find_driver_flaw(version, ("570", version), refuse_affected=True) == ""


@pytest.mark.parametrize(
    ("version", "named", "refused"),
    [
        ("570.86.10", "570", True),
        ("570.86.10", "570.86", True),
        ("570.86.10", "570.86.10", True),
        ("570.86.10", "570.8", False),
        ("570.86", "570.86.10", False),
        ("5700.1", "570", False),
        ("595.91.07", "595.91.7", True),
    ],
)
@pytest.mark.parametrize("refuse_affected", [True, False])
def test_an_admin_names_versions_or_their_beginnings(
    version: str, named: str, refused: bool, refuse_affected: bool
) -> None:
    flaw = find_driver_flaw(version, ("111", named), refuse_affected=refuse_affected)
    assert (f"operator.unsafeDrivers ({named})" in flaw) is refused


# --- whole GPUs beside MIG instances (docs/design/hardware.md#mixed-nodes) -------------------------------------------

ROWS = [{"devices": [0], "profiles": {"3g.40gb": 2}}, {"devices": [1], "profiles": {}}]
BESIDE = make_policy(mig={"strategy": "mixed", "layouts": ROWS})
"""GPU 0 is divided, and GPU 1 stays whole."""
BESIDE_SLICED = make_policy(mig={"strategy": "mixed", "layouts": ROWS}, timeSlicing={"replicas": 2})
BAD = "570.148.08"
HALVES: Layout = (("3g.40gb", 2),)


def driven(driver: str, policy: PolicyView = BESIDE, **fields: Any) -> NodeCase:
    """gpu-07 with two GPUs under this driver, judged against the policy."""
    gpunode = make_case(policy, products=(H100, H100), **fields).gpunode
    assert gpunode is not None
    assert gpunode.observed is not None
    report = replace(gpunode, observed=replace(gpunode.observed, driver_version=driver))
    return make_case(policy, products=(H100, H100), gpunode=report, **fields)


def reason_of(case: NodeCase) -> Reason | None:
    """Why no change begins; None: it may begin."""
    gate = find_gate(case, assessed_of(case))
    return None if gate is None else gate.reason


@pytest.mark.parametrize("driver", ["570.124.06", "570.133.20", "570.148.08", "570.158.01"])
def test_no_change_to_whole_gpus_beside_instances_begins_under_a_driver_that_hangs_pods_there(driver: str) -> None:
    case = driven(driver)
    gate = closed_gate(case)
    assert gate.reason is Reason.UNSAFE_DRIVER
    assert f"under driver {driver}, pods hang" in gate.message
    assert "update the driver to 570.172.08" in gate.message
    verdict = judged(case)
    assert (verdict.phase, verdict.reason) == (Phase.BLOCKED, Reason.UNSAFE_DRIVER)
    assert not [one for one in verdict.actions if not isinstance(one, EnsureGPUNode)], "only the agent is asked"


OTHERS = ["570.86.15", "570.124", "570.172.08", "575.57.08", "580.159.03", "", "unknown"]
BEGINS: dict[str, NodeCase] = {
    **{f"the driver is {version or 'not told'}": driven(version) for version in OTHERS},
    "all GPUs are divided": driven(BAD, MIXED),
    "all GPUs are alike": driven(BAD, SINGLE),
    "no GPU is divided": driven(BAD, SLICED),
    "the node leaves such a layout": driven(BAD, FULL, was=BESIDE),
    "an admin accepts unsafe drivers": replace(driven(BAD), settings=replace(SETTINGS, refuse_unsafe_drivers=False)),
}


@pytest.mark.parametrize("case", BEGINS.values(), ids=BEGINS)
def test_a_change_begins_where(case: NodeCase) -> None:
    assert reason_of(case) is None


@pytest.mark.parametrize(
    ("layouts", "hangs"),
    [((HALVES, None), True), ((None, HALVES), True), ((HALVES, HALVES), False), ((None, None), False), ((), False)],
)
def test_only_whole_gpus_beside_instances_hang_pods(layouts: tuple[Layout | None, ...], hangs: bool) -> None:
    found = {version: bool(find_hanging(version, layouts)) for version in HANGING}
    assert found == dict.fromkeys(HANGING, hangs)
    assert find_hanging(NOT_HANGING, layouts) == ""


def test_a_node_that_is_so_already_is_as_wanted_and_has_not_drifted() -> None:
    case = driven(BAD, was=BESIDE)
    assert assessed_of(case).drift is None
    verdict = judged(case)
    assert (verdict.phase, verdict.reason, verdict.actions) == (Phase.SYNCED, Reason.SYNCED, ())


def test_a_node_that_is_so_already_is_not_drained_to_come_back_to_it() -> None:
    """Its pods would hang as soon as they started again."""
    assert reason_of(driven(BAD, BESIDE_SLICED, was=BESIDE)) is Reason.UNSAFE_DRIVER
    assert reason_of(driven(NOT_HANGING, BESIDE_SLICED, was=BESIDE)) is None


def test_a_drain_that_is_to_lead_there_since_an_edit_is_given_up_and_the_node_back() -> None:
    more: dict[str, Any] = {"fence": FENCE, "work": IDLE, "node": {"unschedulable": True}}
    verdict = before_pnr(driven(BAD, **more))
    assert (verdict.phase, verdict.reason) == (Phase.ABORTING, Reason.UNSAFE_DRIVER)
    assert released(verdict).uncordon
    assert before_pnr(driven(NOT_HANGING, **more)).phase is not Phase.ABORTING


def test_a_node_past_its_point_of_no_return_is_not_led_on_there_by_an_edit() -> None:
    done = {names.LABEL_MIG_CONFIG: "all-disabled", names.LABEL_MIG_STATE: "success"}
    more: dict[str, Any] = {
        "fence": fence_to(FULL, disruption=DisruptionClass.RESET),
        "labels": done,
        "work": IDLE,
        "node": {"unschedulable": True},
    }
    held = after_pnr(driven(BAD, **more))
    assert (held.reason, held.actions) == (Reason.UNSAFE_DRIVER, ())
    assert after_pnr(driven(NOT_HANGING, **more)).reason is not Reason.UNSAFE_DRIVER


def test_a_node_that_an_edit_leads_there_too_late_goes_back_where_the_policy_says_so() -> None:
    """No driver is replaced on a node in flight: it would stay cordoned, although what it serves is known."""
    back = edited(BESIDE, rollout=Rollout(on_failure="Rollback"))
    fence = fence_to(FULL, disruption=DisruptionClass.RESET, owed=owed_for(assessed_of(driven(BAD)).target))
    more: dict[str, Any] = {"was": SLICED, "stack": make_stack(BESIDE, SLICED), "work": emptied(2400), "now": at(2400)}
    turned = after_pnr(driven(BAD, back, fence=fence, node={"unschedulable": True}, **more))
    assert (turned.phase, turned.reason) == (Phase.RECONFIGURING, Reason.ROLLING_BACK), turned.message
    assert only(turned).fence.rolls_back


def test_a_way_back_to_such_a_layout_stays_open() -> None:
    """The node had it before the change that failed, and would otherwise stay cordoned."""
    back = fence_to(FULL, version=BESIDE.version, rolls_back=True)
    case = driven(BAD, was=FULL, fence=back, node={"unschedulable": True})
    assert first_closed(target_gates(case, assessed_of(case))) is None
