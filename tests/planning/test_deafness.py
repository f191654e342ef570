"""An MPS daemon that would not read the configuration of a label (docs/design/nvidia.md#b5), at each door to a run."""

from dataclasses import replace

import pytest
from tests.build import make_cluster_policy, make_pod, make_stack, make_work
from tests.planning.cases import MPS, SLICED, assessed_of, make_case
from tests.planning.changes import changing, fence_to, proven_idle
from tests.planning.drains import fenced, released

from gpusharing.api.names import Phase
from gpusharing.planning.actions import Actuate
from gpusharing.planning.snapshot.stackviews import MpsDaemonView, StackView
from gpusharing.planning.snapshot.views import PolicyView
from gpusharing.planning.way.after import after_pnr
from gpusharing.planning.way.before import before_pnr
from gpusharing.planning.way.gates import find_gate
from gpusharing.planning.way.verdict import NodeCase
from gpusharing.planning.words.reasons import Reason

HEARS, DEAF = "v0.18.1", "v0.19.3"


def under(version: str, *policies: PolicyView) -> StackView:
    """With the GPU Operator's MPS daemon, as it is up to v26.7."""
    daemon = MpsDaemonView(version, "mps-control-daemon", "/usr/bin/mps-control-daemon", sees_host=True)
    return make_stack(*policies, cluster_policy=replace(make_cluster_policy(), mps_daemon=daemon))


def test_no_change_to_mps_begins() -> None:
    case = make_case(MPS, stack=under(DEAF, MPS))
    gate = find_gate(case, assessed_of(case))
    assert gate is not None
    assert gate.reason is Reason.MPS_NOT_SWITCHABLE
    assert "devicePlugin.version to v0.18.1" in gate.message


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
    assert (action.uncordon, action.deferred) == (True, None), "the gate keeps it from beginning again"


def test_a_node_past_its_point_of_no_return_is_not_led_on_to_mps() -> None:
    """It stays fenced and says so; it goes on by itself when the daemon is one that hears."""
    idle = {"was": SLICED, "fence": fence_to(SLICED), **proven_idle(60, SLICED)}
    led = after_pnr(changing(MPS, stack=under(HEARS, MPS, SLICED), **idle))
    assert any(isinstance(action, Actuate) for action in led.actions), led
    held = after_pnr(changing(MPS, stack=under(DEAF, MPS, SLICED), **idle))
    assert held.reason is Reason.MPS_NOT_SWITCHABLE
    assert not any(isinstance(action, Actuate) for action in held.actions)
