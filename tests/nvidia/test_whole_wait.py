"""mig-manager's five minutes, to the end. They pass beside the other tests (conftest.py)."""

import pytest
from tests.nvidia.mignode import GIVEN_UP, OPERANDS_WHEN_GIVEN_UP, PODS, SAYS_FAILED, MigNode

from gpusharing.kube.actuatorlogs import failure_in
from gpusharing.planning.wanted.actuators import GAVE_UP

pytestmark = [pytest.mark.nvidia, pytest.mark.cluster]


def test_a_device_plugin_that_does_not_go_in_five_minutes_is_given_up_as_this_version_does(
    stuck: tuple[MigNode, str],
) -> None:
    node, pod = stuck
    node.wait_for_log("device-plugin pod did not shutdown", "Waiting for change to", seconds=330.0)
    given_up = node.states_until(GIVEN_UP[-1])
    # The state before the last one may be over by the time the log is read.
    assert given_up in (GIVEN_UP, GIVEN_UP[-1:])
    assert node.state() == GIVEN_UP[-1]
    assert node.operands() == OPERANDS_WHEN_GIVEN_UP
    assert node.profiles() == [[], []], "nothing was touched yet"
    if SAYS_FAILED:
        assert GAVE_UP in failure_in(node.manager.log.read_text()), "by which the operator knows to restart it"
    node.api.delete(f"{PODS}/{pod}", {"gracePeriodSeconds": 0})
    node.manager.restart()
    assert node.states_until("success") == [*GIVEN_UP[1:], "pending", "success"]
    assert node.operands() == {"true"}
