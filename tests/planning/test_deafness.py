"""An MPS daemon that would not read the configuration of a label (docs/design/nvidia.md#b5), at each door to a run."""

from dataclasses import replace

import pytest
from tests.build import at, make_cluster_policy, make_pod, make_stack, make_work
from tests.planning.cases import MIXED, MPS, SLICED, assessed_of, closed_gate, edited, make_case, pair_of
from tests.planning.changes import (
    MIG_CONFIG,
    MIG_STATE,
    PLUGIN,
    VERIFY,
    answering,
    changing,
    fence_to,
    only,
    proven_idle,
)
from tests.planning.drains import fenced, released
from tests.planning.promises import all_are_values
from tests.wording import lacks

from gpusharing.api.names import Phase
from gpusharing.api.policy import Rollout
from gpusharing.planning.snapshot.actions import Actuate, UpdateFence
from gpusharing.planning.snapshot.nvidia import MpsDaemonView, StackView
from gpusharing.planning.snapshot.views import PolicyView
from gpusharing.planning.transition.after import after_pnr
from gpusharing.planning.transition.before import before_pnr
from gpusharing.planning.transition.gates import find_gate
from gpusharing.planning.transition.verdict import NodeCase
from gpusharing.planning.vocabulary.reasons import Reason

HEARS, DEAF = "v0.18.1", "v0.19.3"


def under(version: str, *policies: PolicyView) -> StackView:
    """With the GPU Operator's MPS daemon, as it is up to v26.7."""
    daemon = MpsDaemonView(version, "mps-control-daemon", "/usr/bin/mps-control-daemon", sees_host=True)
    return make_stack(*policies, cluster_policy=replace(make_cluster_policy(), mps_daemon=daemon))


def test_no_change_to_mps_begins() -> None:
    case = make_case(MPS, stack=under(DEAF, MPS))
    gate = closed_gate(case)
    assert gate.reason is Reason.MPS_NOT_SWITCHABLE
    remedy = "to v0.20.0 or newer, then run `kubectl -n gpu-operator set env daemonset/nvidia-device-plugin-mps-"
    assert remedy in gate.message
    assert not lacks(gate.message, "all MPS daemons", "clients")


@pytest.mark.parametrize(
    "case",
    [make_case(MPS, stack=under(HEARS, MPS)), make_case(MPS), make_case(SLICED, stack=under(DEAF, SLICED))],
    ids=["an older plugin", "a daemon that nobody has seen", "another mode"],
)
def test_nothing_else_is_kept_from_beginning(case: NodeCase) -> None:
    assert find_gate(case, assessed_of(case)) is None


def test_a_drain_that_is_to_lead_to_mps_now_is_given_up_and_the_node_back() -> None:
    evicting = make_work(make_pod())
    assert before_pnr(fenced(MPS, stack=under(HEARS, MPS), work=evicting)).phase is Phase.DRAINING
    verdict = before_pnr(fenced(MPS, stack=under(DEAF, MPS), work=evicting))
    assert (verdict.phase, verdict.reason) == (Phase.ABORTING, Reason.MPS_NOT_SWITCHABLE)
    action = released(verdict)
    assert (action.uncordon, action.deferred is not None) == (True, True)


def test_a_node_past_its_point_of_no_return_is_not_led_on_to_mps() -> None:
    idle = {"was": SLICED, "fence": fence_to(SLICED), **proven_idle(60, SLICED)}
    led = after_pnr(changing(MPS, stack=under(HEARS, MPS, SLICED), **idle))
    assert any(isinstance(action, Actuate) for action in led.actions), led
    held = after_pnr(changing(MPS, stack=under(DEAF, MPS, SLICED), **idle))
    assert held.reason is Reason.MPS_NOT_SWITCHABLE
    assert not any(isinstance(action, Actuate) for action in held.actions)
    assert held.phase is Phase.VERIFYING_IDLE
    again = after_pnr(changing(MPS, stack=under(HEARS, MPS, SLICED), **idle))
    assert any(isinstance(action, Actuate) for action in again.actions), "it goes on by itself"


BACK = Rollout(on_failure="Rollback")


def test_a_way_back_from_mps_is_gone_though_the_policy_wants_mps() -> None:
    wants = edited(MPS, rollout=BACK)
    stack = under(DEAF, wants, SLICED)
    fence = fence_to(wants, to_layout="4x shared", deadline=at(30), version=wants.version)
    labels = {PLUGIN: fence.target_plugin_config}
    late = changing(wants, was=SLICED, fence=fence, stack=stack, labels=labels, gpunode=answering(VERIFY, SLICED))
    turned = only(after_pnr(late))
    assert isinstance(turned, UpdateFence)
    assert turned.fence.rolls_back
    idle = {"was": SLICED, "fence": turned.fence, **proven_idle(60, SLICED)}
    led = only(after_pnr(changing(wants, stack=stack, labels=labels, **idle)))
    assert isinstance(led, Actuate)
    assert led.labels == {PLUGIN: pair_of(SLICED)[1]}


@pytest.mark.parametrize(("version", "goes"), [(HEARS, True), (DEAF, False)])
def test_a_way_back_to_mps_is_gone_only_where_the_daemon_would_hear_of_it(version: str, goes: bool) -> None:
    wants = edited(MIXED, rollout=BACK)
    fence = fence_to(wants, version=wants.version)
    labels = {MIG_CONFIG: fence.target_mig_config, PLUGIN: fence.target_plugin_config, MIG_STATE: "failed"}
    stack = under(version, MIXED, MPS)
    verdict = after_pnr(
        changing(wants, was=MPS, fence=fence, stack=stack, labels=labels, gpunode=answering(VERIFY, MPS))
    )
    assert [action.fence.rolls_back for action in verdict.actions if isinstance(action, UpdateFence)] == [True] * goes
    assert ("last proven mode is MPS" in verdict.message) is not goes
    assert (verdict.phase is Phase.FAILED) is not goes
    all_are_values(verdict.message, verdict.commands)
