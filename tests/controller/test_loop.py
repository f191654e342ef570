"""When the loop looks, when it does not, what ends a pass, and that every reason for idleness is told at its beginning and its end. In virtual time, without node software.
Its parts and clocks and what it tells its metrics (controller/metrics.py) are tested through it."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Set
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import cast

import pytest
from hack.sim.fakecluster import FakeCluster
from hack.sim.fakefaults import EVER
from structlog.testing import capture_logs
from tests.fakes.virtualtime import virtual_now, virtually
from tests.kube.objects import node, pod

from gpusharing.controller.complaints import Complaints
from gpusharing.controller.execute import Executor, Outcome
from gpusharing.controller.loop import RETRY, Loop, report_held
from gpusharing.controller.metrics import Metrics
from gpusharing.controller.settings import Settings
from gpusharing.kube.client import CLUSTER_POLICIES, GPUNODES, JSON, NODES, PODS, POLICIES
from gpusharing.kube.errors import Forbidden, KubeError, Throttled, Unauthorized, Unavailable
from gpusharing.kube.lease import LeaderLease
from gpusharing.planning.rollout import RolloutPlan
from gpusharing.planning.snapshot.records import Claim, Consent, FailedNode
from gpusharing.planning.snapshot.views import ClusterSnapshot
from gpusharing.planning.vocabulary.commands import Effect, Loss

POLICY: JSON = {
    "metadata": {"name": "pool-b"},
    "spec": {"mode": "Full", "nodeSelector": {"matchLabels": {"gpusharing.dev/pool": "b"}}},
}


@dataclass
class Leader:
    identity: str = "operator"
    is_leader: bool = True
    claims: Mapping[str, Claim] = field(default_factory=dict)
    claims_error: str = ""
    stop: str = ""
    room: int = 200_000
    restores: int = 0

    failed_nodes: Mapping[str, FailedNode] = field(default_factory=dict)
    consents: Mapping[str, Consent] = field(default_factory=dict)

    async def set_claims(
        self, claims: Mapping[str, Claim], failed_nodes: Mapping[str, FailedNode], consents: Mapping[str, Consent]
    ) -> None:
        self.claims, self.failed_nodes, self.consents = claims, failed_nodes, consents


class Passes(Metrics):
    def __init__(self) -> None:
        super().__init__()
        self.passes: list[float] = []
        self.steps: set[str] = set()
        self.first_passes = 0

    def first_pass(self) -> None:
        self.first_passes += 1

    def passed(self, seconds: Mapping[str, float], plan: RolloutPlan, snapshot: ClusterSnapshot) -> None:
        self.passes.append(asyncio.get_running_loop().time())
        self.steps |= seconds.keys()


@dataclass
class Running:
    cluster: FakeCluster
    loop: Loop
    leader: Leader
    observer: Passes
    task: asyncio.Task[None]

    def look(self) -> None:
        """Something happened: the policies are to be listed anew, in a pass that begins now."""
        self.loop.sources.policies.touch()
        self.loop.wake.set()

    def writes(self) -> int:
        return len(self.cluster.writes)

    def calls(self, verb: str, plural: str) -> int:
        return self.cluster.calls["operator", verb, plural]


@asynccontextmanager
async def running(
    cluster: FakeCluster | None = None, leader: Leader | None = None, pending_period: float = 60.0
) -> AsyncIterator[Running]:
    """A loop that had ten seconds to come to rest."""
    cluster, leader, observer = cluster or FakeCluster(now=virtual_now), leader or Leader(), Passes()
    cluster.add(NODES, node())
    settings = replace(Settings(), pending_period=pending_period)
    loop = Loop(
        cluster.client("operator"),
        cast(LeaderLease, leader),
        settings,
        observer,
        now=virtual_now,
        on_first_pass=observer.first_pass,
    )
    task = asyncio.create_task(loop.run())
    try:
        await asyncio.sleep(10)
        yield Running(cluster, loop, leader, observer, task)
    finally:
        task.cancel()
        await asyncio.wait({task})


@virtually
async def test_who_does_not_lead_asks_for_nothing_and_writes_nothing() -> None:
    cluster = FakeCluster(now=virtual_now)
    cluster.add(POLICIES, POLICY)
    async with running(cluster, Leader(is_leader=False)) as stage:
        assert (stage.writes(), stage.observer.passes) == (0, [])
        assert stage.calls("list", "gpusharingpolicies") == 0
        stage.leader.is_leader = True
        await asyncio.sleep(RETRY)
        assert stage.writes() > 0


@virtually
async def test_nothing_is_decided_before_everything_was_listed() -> None:
    cluster = FakeCluster(now=virtual_now)
    cluster.faults.fail("list", GPUNODES, Forbidden("not allowed to list gpunodes"), times=5)
    async with running(cluster) as stage:
        assert stage.observer.passes == []
        assert stage.loop.sources.missing() == {"gpunodes": "not allowed to list gpunodes"}
        assert stage.observer.first_passes == 0
        await asyncio.sleep(120)
        assert len(stage.observer.passes) > 1
        assert stage.observer.first_passes == 1
        assert stage.observer.steps == {"gather", "plan", "execute", "publish"}


@virtually
async def test_an_edit_is_answered_within_a_debounce_of_200_ms() -> None:
    async with running() as stage:
        begun = virtual_now()
        added = stage.cluster.add(POLICIES, POLICY)
        assert stage.loop.sources.policies.touch("pool-b", added["metadata"]["resourceVersion"])
        stage.loop.wake.set()
        while not any(write.call.resource == POLICIES for write in stage.cluster.writes):
            await stage.cluster.changed()
        assert (virtual_now() - begun).total_seconds() <= 0.25


@virtually
async def test_a_burst_of_events_is_looked_at_in_few_passes() -> None:
    async with running() as stage:
        before = len(stage.observer.passes)
        for number in range(100):
            stage.cluster.patch(NODES, "gpu-07", {"metadata": {"labels": {"burst": str(number)}}})
            await asyncio.sleep(0.01)
        await asyncio.sleep(1)
        assert len(stage.observer.passes) - before <= 8


@virtually
async def test_a_resting_loop_looks_every_ten_seconds_and_asks_the_server_nothing() -> None:
    async with running(pending_period=10_000.0) as stage:
        calls, passes = Counter(stage.cluster.calls), len(stage.observer.passes)
        await asyncio.sleep(59)
        asked = stage.cluster.calls - calls
        # Of Events there are no bookmarks, so their watch ends before it counts as dead, and another one begins.
        assert asked in (Counter(), Counter({("operator", "watch", "events"): 1}))
        assert len(stage.observer.passes) - passes in (5, 6)


@virtually
async def test_policies_are_listed_again_after_ten_minutes_even_when_no_event_came() -> None:
    async with running() as stage:
        before = stage.calls("list", "gpusharingpolicies")
        stage.cluster.add(POLICIES, POLICY)  # and the event is lost
        await asyncio.sleep(600)
        assert stage.calls("list", "gpusharingpolicies") == before + 1
        assert stage.cluster.get(POLICIES, "pool-b")["status"]["observedGeneration"] == 1


@pytest.mark.parametrize("error", [Unavailable("no leader"), Unauthorized("401")], ids=["server", "credentials"])
@virtually
async def test_a_pass_that_the_server_ended_is_made_again_two_seconds_later(error: KubeError) -> None:
    async with running() as stage:
        stage.cluster.add(POLICIES, POLICY)
        stage.cluster.faults.fail("list", POLICIES, error, times=3)
        stage.look()
        await asyncio.sleep(RETRY * 2)
        assert "status" not in stage.cluster.get(POLICIES, "pool-b")
        await asyncio.sleep(RETRY * 2)
        assert stage.cluster.get(POLICIES, "pool-b")["status"]["observedGeneration"] == 1


@virtually
async def test_status_that_could_not_be_written_is_written_when_the_server_is_back() -> None:
    async with running() as stage:
        stage.cluster.add(POLICIES, POLICY)
        stage.cluster.faults.fail("patch", POLICIES, Unavailable("no leader"), times=2)
        stage.look()
        await asyncio.sleep(30)
        assert stage.cluster.get(POLICIES, "pool-b")["status"]["observedGeneration"] == 1


@virtually
async def test_a_mistake_of_ours_ends_the_process_and_is_not_swallowed() -> None:
    async with running() as stage:
        stage.cluster.faults.fail("list", POLICIES, ZeroDivisionError("a bug"))
        stage.look()
        done, _ = await asyncio.wait({stage.task}, timeout=5)
        assert done
        with pytest.raises(ExceptionGroup) as caught:
            stage.task.result()
        assert caught.group_contains(ZeroDivisionError)


@virtually
async def test_pods_that_wait_are_counted_every_minute_by_the_leader_only() -> None:
    async with running(pending_period=60.0) as stage:
        waiting = pod("waiting")
        del waiting["spec"]["nodeName"]
        stage.cluster.add(PODS, waiting | {"status": {"phase": "Pending"}})
        await asyncio.sleep(60)
        assert stage.loop.gatherer.pending[0] == {"nvidia.com/gpu": 1}
        stage.leader.is_leader = False
        before = stage.calls("list", "pods")
        await asyncio.sleep(300)
        assert stage.calls("list", "pods") == before


@virtually
async def test_a_count_of_waiting_pods_that_failed_stops_nothing() -> None:
    async with running(pending_period=60.0) as stage:
        stage.cluster.faults.fail("list", PODS, Forbidden("no right"), identity="operator")
        before = len(stage.observer.passes)
        await asyncio.sleep(120)
        assert len(stage.observer.passes) > before


@virtually
async def test_a_node_whose_calls_ended_while_the_snapshot_was_made_is_left_to_the_next_pass() -> None:
    async with running() as stage:
        before, told = stage.loop.executor, list[Set[str]]()

        class Ending(Executor):
            async def execute(
                self, plan: RolloutPlan, snapshot: ClusterSnapshot, unseen: Set[str] = frozenset()
            ) -> Outcome:
                told.append(unseen)
                return Outcome()

        def ends() -> datetime:
            """The call ends when the snapshot begins, which asks for the time first."""
            executor.workers.busy.clear()
            return virtual_now()

        executor = Ending(before.client, before.sources, stage.leader.set_claims, virtual_now)
        executor.workers.busy.add("gpu-07")
        stage.loop.executor, stage.loop.now = executor, ends
        await stage.loop.once()
        await stage.loop.once()
        assert told == [{"gpu-07"}, set()]


def test_pointers_that_stay_unset_are_logged_once_though_their_numbers_change() -> None:
    complaints, waits = (
        Complaints(),
        "the operator does not set ClusterPolicy's pointers, because nodes would lose by it",
    )
    with capture_logs() as lines:
        for number in (1, 2):
            report_held(complaints, [Effect("gpu-07", Loss.DEVICES, f"{number} nvidia.com/gpu")])
        report_held(complaints, ())
    begun, ended = lines
    assert (begun["event"], begun["nodes"]) == (waits, ["gpu-07"])
    assert begun["why"] == "devices would go on gpu-07 (1 nvidia.com/gpu)"
    assert ended["event"] == f"resolved: {waits}"


class Endless(Executor):
    """Seems to have done something in every pass, as a plan does that never comes to rest."""

    async def execute(self, plan: RolloutPlan, snapshot: ClusterSnapshot, unseen: Set[str] = frozenset()) -> Outcome:
        return Outcome(done=1)


@virtually
async def test_a_plan_that_never_comes_to_rest_is_slowed_down() -> None:
    async with running() as stage:
        loop, client = stage.loop, stage.cluster.client("operator")
        loop.executor = Endless(client, loop.sources, stage.leader.set_claims, virtual_now)
        loop.wake.set()
        before = len(stage.observer.passes)
        await asyncio.sleep(60)
        assert 30 <= len(stage.observer.passes) - before <= 80


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
                stage.look()
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
                stage.look()
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
            stage.look()
            await asyncio.sleep(1)
        assert len(asyncio.all_tasks()) <= before
