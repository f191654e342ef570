"""Why mig-manager failed: what its log says, when it is read, and what happens when it cannot be."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from hack.sim.fakefaults import SILENCE
from tests.build import make_fence, make_node, make_operand
from tests.fakes.cluster import FakeCluster
from tests.fakes.virtualtime import virtual_now, virtually

from gpusharing.api.names import LABEL_MIG_STATE
from gpusharing.kube.actuatorlogs import RETRY, ActuatorLogs, failure_in
from gpusharing.kube.client import PODS
from gpusharing.kube.fanout import Workers
from gpusharing.planning.snapshot.nvidia import Operand
from gpusharing.planning.snapshot.views import NodeView

NOW = datetime(2026, 11, 20, tzinfo=UTC)
LOG = """\
time="2026-11-20T10:54:00Z" level=info msg="Updating to MIG config: before"
time="2026-11-20T10:54:01Z" level=error msg="Error of an earlier run"
time="2026-11-20T10:55:20Z" level=info msg="Updating to MIG config: halves"
level=fatal msg="Assertion failure: selected configuration not currently applied"
time="2026-11-20T10:55:26Z" level=debug msg="    MIG capable: true\\n"
time="2026-11-20T10:55:26Z" level=error msg="Error creating GPU instance for '3g.40gb': ERROR_UNKNOWN"
time="2026-11-20T10:55:26Z" level=error msg="Error creating GPU instance for '1g.10gb': ERROR_UNKNOWN"
level=fatal msg="Error applying MIG configuration: error setting MIGConfig: all orderings failed"
time="2026-11-20T10:55:26Z" level=error msg="Error: failed to apply MIG configuration: exit status 1"
time="2026-11-20T10:55:26Z" level=info msg="Waiting for change to 'nvidia.com/mig.config' label"
"""
WHY = (
    "Error creating GPU instance for '3g.40gb': ERROR_UNKNOWN; "
    "Error applying MIG configuration: error setting MIGConfig: all orderings failed"
)


WORKERS = Workers(parallel=4)


def failed_node(attempt: int = 1) -> NodeView:
    return make_node(labels={LABEL_MIG_STATE: "failed"}, fence=make_fence(attempt=attempt))


def cluster_with(pod: Operand, log: str) -> FakeCluster:
    cluster = FakeCluster()
    cluster.add(PODS, {"metadata": {"name": pod.name, "namespace": pod.namespace}})
    cluster.logs[pod.namespace, pod.name] = log
    return cluster


def test_the_first_error_and_the_last_line_of_the_last_run_are_told() -> None:
    assert failure_in(LOG) == WHY


def test_mig_managers_own_line_stands_in_where_mig_parted_said_nothing() -> None:
    line = 'level=error msg="Error: failed to apply MIG configuration: signal: killed"'
    assert failure_in(line) == "Error: failed to apply MIG configuration: signal: killed"


def test_no_more_than_400_characters_of_an_error_are_told() -> None:
    assert failure_in(f'level=error msg="{"x" * 1000}"') == "x" * 400


async def test_of_a_log_the_last_200_lines_are_read() -> None:
    node, pod = failed_node(), make_operand("gpu-07")
    for more, told in ((199, {node.name: "why"}), (200, {})):
        cluster = cluster_with(pod, 'level=error msg="why"\n' + "level=debug\n" * more)
        logs = ActuatorLogs(cluster.client("operator"))
        assert await logs.read({node.name: node}, {node.name: pod}, NOW, WORKERS) == told


@virtually
async def test_a_kubelet_that_does_not_answer_is_given_up_after_two_seconds() -> None:
    node, pod, workers = failed_node(), make_operand("gpu-07"), Workers(parallel=4)
    cluster = cluster_with(pod, LOG)
    cluster.faults.fail("log", PODS, SILENCE)
    logs, begun = ActuatorLogs(cluster.client("operator")), virtual_now()
    while not begun < virtual_now() or workers.busy:
        assert await logs.read({node.name: node}, {node.name: pod}, NOW, workers) == {}
        await asyncio.sleep(0.25)
    assert 2.0 <= (virtual_now() - begun).total_seconds() <= 2.5


async def test_a_node_whose_mig_manager_has_no_pod_any_more_has_no_reason() -> None:
    assert await ActuatorLogs(FakeCluster().client("operator")).read({"gpu-07": failed_node()}, {}, NOW, WORKERS) == {}


def test_a_log_without_an_error_tells_nothing() -> None:
    assert failure_in("") == failure_in('level=info msg="Updating to MIG config: halves"') == ""


async def test_the_log_is_read_once_per_failure() -> None:
    node, pod = failed_node(), make_operand("gpu-07")
    cluster = cluster_with(pod, LOG)
    logs = ActuatorLogs(cluster.client("operator"))
    for _ in range(3):
        assert await logs.read({node.name: node}, {node.name: pod}, NOW, WORKERS) == {node.name: WHY}
    assert cluster.calls["operator", "log", "pods"] == 1
    again = failed_node(attempt=2)
    await logs.read({again.name: again}, {again.name: pod}, NOW, WORKERS)
    assert cluster.calls["operator", "log", "pods"] == 2


async def test_nothing_is_read_where_mig_manager_did_not_fail_for_us() -> None:
    node, pod = failed_node(), make_operand("gpu-07")
    cluster = cluster_with(pod, LOG)
    logs = ActuatorLogs(cluster.client("operator"))
    others = (replace(node, fence=None), replace(node, labels={LABEL_MIG_STATE: "success"}))
    for other in others:
        assert await logs.read({node.name: other}, {node.name: pod}, NOW, WORKERS) == {}
    assert cluster.calls["operator", "log", "pods"] == 0


async def test_a_log_that_cannot_be_read_is_asked_for_again_after_a_while() -> None:
    node, pod = failed_node(), make_operand("gpu-07")
    cluster = FakeCluster()
    logs = ActuatorLogs(cluster.client("operator"))
    for moment in (NOW, NOW + RETRY / 2, NOW + RETRY + timedelta(seconds=1)):
        assert await logs.read({node.name: node}, {node.name: pod}, moment, WORKERS) == {}
    assert cluster.calls["operator", "log", "pods"] == 2


async def test_a_log_that_is_never_answered_is_asked_for_more_and_more_seldom() -> None:
    node, pod = failed_node(), make_operand("gpu-07")
    cluster = FakeCluster()
    logs = ActuatorLogs(cluster.client("operator"))
    for seconds in range(0, 7200, 10):
        moment = NOW + timedelta(seconds=seconds)
        assert await logs.read({node.name: node}, {node.name: pod}, moment, WORKERS) == {}
    assert cluster.calls["operator", "log", "pods"] == 5 + (7200 - 930) // 600 + 1
    again = failed_node(attempt=2)
    await logs.read({again.name: again}, {again.name: pod}, moment, WORKERS)
    await logs.read({again.name: again}, {again.name: pod}, moment + RETRY, WORKERS)
    assert cluster.calls["operator", "log", "pods"] == 18, "another attempt begins anew"
