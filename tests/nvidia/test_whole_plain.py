"""MIG without the GPU Operator on real parts: the how-to's installation (deploy/mig-manager), every program unmodified.
SIMULATED: the GPUs, the kubelets (kwok and the registration stub), Node Feature Discovery."""

from collections.abc import Iterator

import pytest
from hack.cluster.audit import read_requests, wait_logged
from hack.nvidia.installations import MIG_MANAGER_ACCOUNT, PLAIN, PLAIN_NAMESPACE, PLUGIN_ACCOUNT
from hack.nvidia.loop import OPERATOR, WALK, NvidiaLoop
from tests.nvidia.conftest import short_loop
from tests.nvidia.test_whole_loop import reset, walk_through

from gpusharing.api import names
from hack import launch

pytestmark = [pytest.mark.nvidia, pytest.mark.cluster]

WHOLE, LAYOUT, ANOTHER = WALK[:3]
ACCOUNTS = (
    OPERATOR,
    f"system:serviceaccount:{launch.AGENT_NAMESPACE}:gpusharing-agent",
    f"system:serviceaccount:{PLAIN_NAMESPACE}:{MIG_MANAGER_ACCOUNT}",
    f"system:serviceaccount:{PLAIN_NAMESPACE}:{PLUGIN_ACCOUNT}",
)


@pytest.fixture(scope="module")
def loop(nvidia_programs: None) -> Iterator[NvidiaLoop]:
    with short_loop("one", installation=PLAIN) as made:
        yield made


def refused(loop: NvidiaLoop) -> list[tuple[str, str, str]]:
    """(account, verb, resource) of what one of the programs asked for without the right to it."""
    wait_logged(loop.plane.audit_log, loop.api)
    return [
        (account, request.verb, request.resource)
        for account in ACCOUNTS
        for request in read_requests(loop.plane.audit_log, account)
        if request.status == 403
    ]


def test_a_node_goes_to_mig_to_another_layout_and_back_with_the_rights_of_the_manifests(loop: NvidiaLoop) -> None:
    walk_through(loop, (WHOLE, LAYOUT, ANOTHER, WHOLE))
    log = loop.nodes["one"].programs.mig_manager.log.read_text()
    assert "Waiting for" in log
    assert names.LABEL_DEPLOY_CLIENT in log
    assert loop.labels("one")[names.LABEL_DEPLOY_CLIENT] == "true"
    assert refused(loop) == []


def test_a_policy_that_is_deleted_with_reset_leaves_whole_gpus_that_are_served_without_our_labels(
    loop: NvidiaLoop,
) -> None:
    reset(loop)
