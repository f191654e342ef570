"""When the agent of a node that we do not change keeps NVML closed (planning/transition/attempts.py), and what that decides."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from tests.build import NOW, make_fence
from tests.planning.cases import MIXED, SLICED, copy_of, judged, make_case
from tests.planning.world import World

from gpusharing.api import names
from gpusharing.api.names import Phase
from gpusharing.planning.snapshot.actions import EnsureGPUNode, FenceNode
from gpusharing.planning.transition.attempts import UNLOADING, find_quiet
from gpusharing.planning.transition.verdict import NodeCase
from gpusharing.planning.vocabulary.reasons import Reason

STATE, UPGRADE = names.LABEL_MIG_STATE, names.LABEL_UPGRADE_STATE
PAUSED = {f"{names.LABEL_DEPLOY_PREFIX}device-plugin": "true_paused-for-driver-upgrade"}
ALL_STATES = (
    "upgrade-required", "cordon-required", "wait-for-jobs-required", "pod-deletion-required", "drain-required",
    "node-maintenance-required", "post-maintenance-required", "pod-restart-required", "validation-required",
    "uncordon-required", "upgrade-done", "upgrade-failed",
)  # fmt: skip
"""In their order (k8s-operator-libs pkg/upgrade/consts.go at 11e747a; docs/design/nvidia.md#d4)."""


def at(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


QUIET: dict[str, tuple[Mapping[str, str], Reason]] = {
    "mig-manager works on an admin's own label": ({STATE: "pending"}, Reason.ACTUATOR_BUSY),
    "a reboot switches MIG on": ({STATE: "rebooting"}, Reason.ACTUATOR_BUSY),
    "the operands are paused for a driver upgrade": (PAUSED, Reason.FOREIGN_MAINTENANCE),
    **{f"a driver upgrade is at {state}": ({UPGRADE: state}, Reason.FOREIGN_MAINTENANCE) for state in ALL_STATES[3:8]},
}
OPEN: dict[str, Mapping[str, str]] = {
    "nothing happens": {},
    "mig-manager is done": {STATE: "success"},
    "mig-manager failed": {STATE: "failed"},
    "mig-manager paused the operands, and nobody unloads a driver": {
        f"{names.LABEL_DEPLOY_PREFIX}dcgm": "paused-for-mig-change"
    },
    "an upgrade that failed left the operands paused": {UPGRADE: "upgrade-failed", **PAUSED},
    "an upgrade is asked for, and an older one left the operands paused": {
        UPGRADE: "upgrade-required",
        **PAUSED,
    },
    **{f"a driver upgrade is at {state}": {UPGRADE: state} for state in (*ALL_STATES[:3], *ALL_STATES[8:])},
}


def test_the_states_of_a_driver_upgrade_are_those_of_nvidia() -> None:
    assert set(ALL_STATES[3:8]) == UNLOADING
    assert {ALL_STATES[0], ALL_STATES[-1]} == names.UPGRADE_LASTING


@pytest.mark.parametrize(("labels", "reason"), QUIET.values(), ids=QUIET.keys())
def test_nvml_stays_closed(labels: Mapping[str, str], reason: Reason) -> None:
    quiet = find_quiet(make_case(MIXED, was=MIXED, labels=labels))
    assert quiet is not None
    assert quiet.reason is reason
    assert "keeps NVML closed" in quiet.message


def test_nvml_may_be_opened_until_the_maintenance_that_an_upgrade_asked_for_begins() -> None:
    queued = {"foreign": "NVIDIA NodeMaintenance a/b", "foreign_waits": True, "foreign_queued": True}
    asked = {UPGRADE: "node-maintenance-required"}
    assert find_quiet(make_case(MIXED, was=MIXED, labels=asked, node=queued)) is None
    later = {UPGRADE: "pod-restart-required"}
    assert find_quiet(make_case(MIXED, was=MIXED, labels=later, node=queued)) is not None


@pytest.mark.parametrize("labels", OPEN.values(), ids=OPEN.keys())
def test_nvml_may_be_opened(labels: Mapping[str, str]) -> None:
    assert find_quiet(make_case(MIXED, was=MIXED, labels=labels)) is None


def test_a_mig_manager_that_does_not_end_is_looked_at_in_the_end() -> None:
    def waiting(seconds: float) -> NodeCase:
        return make_case(MIXED, was=MIXED, labels={STATE: "pending"}, seen_since=NOW, now=at(seconds))

    quiet = find_quiet(waiting(1199))
    assert quiet is not None
    assert quiet.until == at(1200)
    assert find_quiet(waiting(1200)) is None


def test_in_a_change_of_ours_the_change_says_when_to_be_quiet() -> None:
    assert find_quiet(make_case(MIXED, labels={STATE: "pending"}, fence=make_fence())) is None


def asked(case: NodeCase) -> tuple[str, bool] | None:
    for action in judged(case).actions:
        if isinstance(action, EnsureGPUNode):
            return action.request_id, action.quiet
    return None


def test_the_agent_is_asked_to_close_and_to_open_again_and_not_twice() -> None:
    closing = make_case(MIXED, was=MIXED, labels={STATE: "pending"})
    assert closing.gpunode is not None
    request = asked(closing)
    assert request == (f"{closing.gpunode.request_id}:close", True)
    closed = replace(closing.gpunode, request_id=request[0], quiet=True)
    assert asked(make_case(MIXED, was=MIXED, labels={STATE: "pending"}, gpunode=closed)) is None
    again = asked(make_case(MIXED, was=MIXED, gpunode=closed))
    assert again == (f"{closing.gpunode.request_id}:resume", False)


def test_the_name_of_a_request_does_not_grow_with_every_turn() -> None:
    gpunode = make_case(MIXED, was=MIXED).gpunode
    assert gpunode is not None
    for labels in ({STATE: "pending"}, {STATE: "success"}) * 50:
        request = asked(make_case(MIXED, was=MIXED, labels=labels, gpunode=gpunode))
        assert request is not None
        gpunode = replace(gpunode, request_id=request[0], quiet=request[1])
    assert len(gpunode.request_id) < 64


def test_an_agent_that_comes_while_the_driver_is_replaced_is_told_to_be_quiet() -> None:
    case = replace(make_case(MIXED, was=MIXED, labels=PAUSED), gpunode=None)
    assert asked(case) == ("new:uid-gpu-07", True)


def test_an_agent_that_loses_its_request_in_the_middle_of_a_change_is_told_to_be_quiet() -> None:
    case = replace(make_case(MIXED, fence=make_fence("actuating")), gpunode=None)
    assert asked(case) == ("new:uid-gpu-07", True)


def test_a_node_that_no_policy_selects_is_kept_quiet_as_well() -> None:
    request = asked(make_case(None, labels={STATE: "pending"}))
    assert request is not None
    assert request[1]


@pytest.mark.parametrize(("labels", "reason"), QUIET.values(), ids=QUIET.keys())
def test_nothing_begins_meanwhile_and_the_status_says_who_works(labels: Mapping[str, str], reason: Reason) -> None:
    verdict = judged(make_case(MIXED, labels=labels))
    assert (verdict.phase, verdict.reason, verdict.candidate) == (Phase.BLOCKED, reason, False)


# --- in a world whose clock runs ---------------------------------------------------------------------------


def label(world: World, **labels: str) -> None:
    node = world.nodes["gpu-07"]
    kept = {**node.labels, **labels}
    world.nodes["gpu-07"] = replace(node, labels=kept)


def walk(world: World, seconds: int) -> list[tuple[str, str]]:
    seen: list[tuple[str, str]] = []
    for _ in range(seconds):
        plan = world.step()
        verdict = plan.verdicts["gpu-07"]
        assert not any(isinstance(action, FenceNode) for action in verdict.actions)
        told = (str(verdict.phase), str(verdict.reason))
        if not seen or seen[-1] != told:
            seen.append(told)
        world.now += timedelta(seconds=1)
        world.agent("gpu-07")
    return seen


def test_a_node_that_was_only_looked_away_from_is_no_drift() -> None:
    world = copy_of(MIXED)
    label(world, **{STATE: "pending"})
    assert walk(world, 600) == [("Blocked", "ActuatorBusy")]
    label(world, **{STATE: "success"})
    assert walk(world, 120)[-1] == ("Synced", "Synced")


def test_what_is_seen_after_the_quiet_has_its_own_grace() -> None:
    world = copy_of(SLICED)
    label(world, **{STATE: "pending"})
    walk(world, 600)
    node = world.nodes["gpu-07"]
    world.nodes["gpu-07"] = replace(node, resources={})
    label(world, **{STATE: "success"})
    assert ("Pending", "Drifted") in walk(world, 50)
