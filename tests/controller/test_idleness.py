"""Every reason for idleness is one line at its beginning and one at its end (controller/loop.py)."""

import asyncio

import pytest
from hack.sim.fakecluster import FakeCluster
from hack.sim.fakefaults import EVER
from structlog.testing import capture_logs
from tests.controller.test_loop import Leader, running
from tests.fakes.virtualtime import virtual_now, virtually
from tests.kube.objects import node

from gpusharing.controller.complaints import Complaints
from gpusharing.kube.client import CLUSTER_POLICIES, GPUNODES, NODES, POLICIES
from gpusharing.kube.errors import Forbidden, Throttled, Unavailable

HOUR = 3600.0


@virtually
async def test_where_everything_is_forbidden_each_reason_is_said_once() -> None:
    cluster = FakeCluster(now=virtual_now)
    sick = [cluster.faults.fail("list", None, Forbidden("no right"), times=EVER)]
    with capture_logs() as said:
        async with running(cluster):
            await asyncio.sleep(HOUR)
            begun = [line["event"] for line in said]
            warnings = "Warning events about the agent's pods cannot be read; trying again"
            assert sorted(begun) == [
                warnings,
                "some objects cannot be read; the operator changes nothing until it can read them",
            ]
            for fault in sick:
                fault.lift()
            await asyncio.sleep(120)
    ended = [line["event"] for line in said if line["event"] != "the ConfigMap was written"][2:]
    over = ["resolved: some objects cannot be read", "resolved: Warning events about the agent's pods cannot be read"]
    assert sorted(ended) == sorted(over)


@virtually
async def test_a_server_that_is_away_is_said_once_and_its_return_too() -> None:
    async with running() as stage:
        with capture_logs() as said:
            sick = [
                stage.cluster.faults.fail(verb, None, Unavailable("connection refused"), times=EVER)
                for verb in ("get", "list", "watch", "patch", "create")
            ]
            stage.cluster.close_watches()
            for _ in range(300):
                stage.loop.sources.policies.touch()
                stage.loop.wake.set()
                await asyncio.sleep(2)
            for fault in sick:
                fault.lift()
            await asyncio.sleep(60)
    lines = [line["event"] for line in said if line["event"] != "statuses and Events cannot be written; trying again"]
    assert (
        1
        <= lines.count("passes fail; trying again")
        + lines.count("the cached policies may be out of date, so the operator does not start a change on any node")
        <= 2
    )
    assert len(lines) <= 8, "what failed by itself is said once more when the server counts as away"
    assert any(line.startswith("resolved: ") for line in lines)


@virtually
async def test_a_server_that_asks_for_no_call_at_all_gets_none_and_that_is_said_once() -> None:
    async with running() as stage:
        busy = [
            stage.cluster.faults.fail(verb, None, Throttled("too many requests", 30.0), times=EVER)
            for verb in ("get", "list", "patch", "create")
        ]
        stage.cluster.add(POLICIES, {"metadata": {"name": "pool-b"}, "spec": {"mode": "Full"}})
        stage.cluster.add(NODES, node("gpu-08"))
        with capture_logs() as said:
            before = stage.cluster.calls.total()
            for resource in (NODES, GPUNODES):
                for number in range(3):
                    with pytest.raises(Throttled):
                        await stage.loop.calls.get(resource, f"gpu-{number}")
            for _ in range(29):
                stage.loop.sources.policies.touch()
                stage.loop.wake.set()
                await asyncio.sleep(1)
            assert stage.cluster.calls.total() - before == 6, "nothing but what was refused"
            for fault in busy:
                fault.lift()
            await asyncio.sleep(60)
        assert stage.cluster.get(POLICIES, "pool-b")["status"]["observedGeneration"] == 1
    lines, waits = (
        [line["event"] for line in said],
        "the API server asked the operator to back off, so no pass starts for now",
    )
    assert (lines.count(waits), lines.count(f"resolved: {waits}")) == (1, 1), "its end is said once too"


@virtually
async def test_damaged_claims_are_said() -> None:
    leader = Leader(claims_error="claims: no JSON")
    with capture_logs() as said:
        async with running(leader=leader):
            await asyncio.sleep(HOUR)
    assert [line["error"] for line in said if "on the Lease cannot be read" in line["event"]] == ["claims: no JSON"]


@virtually
async def test_a_right_that_was_taken_away_is_said_once_and_stops_no_pass() -> None:
    async with running() as stage:
        with capture_logs() as said:
            taken = [
                stage.cluster.faults.fail(verb, CLUSTER_POLICIES, Forbidden("no right"), times=EVER)
                for verb in ("list", "watch")
            ]
            stage.cluster.close_watches()
            await asyncio.sleep(HOUR)
            stage.cluster.add(POLICIES, {"metadata": {"name": "pool-b"}, "spec": {"mode": "Full"}})
            await asyncio.sleep(HOUR)
            assert stage.cluster.get(POLICIES, "pool-b")["status"]["observedGeneration"] == 1
            for fault in taken:
                fault.lift()
            await asyncio.sleep(HOUR)
    lines = [line for line in said if line.get("subject") == "revoked rights"]
    assert [line.get("sources") for line in lines] == [{"clusterpolicies": "no right"}, None]
    trouble, resolved = (line["event"] for line in lines)
    assert resolved.startswith("resolved: ")
    assert trouble.startswith(resolved.removeprefix("resolved: "))


def test_a_complaint_is_said_again_only_when_it_is_another_one() -> None:
    complaints = Complaints()
    with capture_logs() as said:
        for number in range(5):
            complaints.begins("node", "action failed", "Conflict", error=f"version {number}")
        complaints.begins("node", "action failed", "Forbidden", error="no right")
        complaints.ends("node")
        complaints.ends("node")
    assert [line["event"] for line in said] == ["action failed", "action failed", "resolved: action failed"]


@virtually
async def test_tasks_do_not_become_more_over_failed_passes() -> None:
    async with running() as stage:
        before = len(asyncio.all_tasks())
        stage.cluster.faults.fail("list", POLICIES, Unavailable("502"), times=EVER)
        stage.cluster.faults.fail("patch", GPUNODES, Unavailable("502"), times=EVER)
        stage.cluster.faults.fail("patch", NODES, Unavailable("502"), times=EVER)
        for _ in range(60):
            stage.loop.sources.policies.touch()
            stage.loop.wake.set()
            await asyncio.sleep(1)
        assert len(asyncio.all_tasks()) <= before
