"""mig-manager's five minutes, to the end. They pass beside the other tests (conftest.py)."""

import pytest
from tests.nvidia.conftest import Count
from tests.nvidia.mignode import MigNode
from tests.nvidia.undeletable import PODS

pytestmark = [pytest.mark.nvidia, pytest.mark.cluster]

SECONDS = 330.0


def test_a_device_plugin_that_does_not_go_in_five_minutes_leaves_it_pending_for_ever(
    stuck: tuple[MigNode, str], count: Count
) -> None:
    node, pod = stuck
    node.count = count
    node.wait_for_log("device-plugin pod did not shutdown", "Waiting for change to", seconds=SECONDS)
    assert (node.states_until("pending"), node.state()) == (["pending"], "pending")
    assert node.operands() == {"paused-for-mig-change"}
    assert node.profiles() == [[], []], "nothing was touched yet"
    node.api.delete(f"{PODS}/{pod}", {"gracePeriodSeconds": 0})
    node.manager.restart()
    assert node.states_until("success") == ["pending", "success"]
    assert node.operands() == {"true"}
