"""What people see is written when it changed: ends at once, what moves after a period, Events once per transition."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import pytest
from hack.sim.fakecluster import FakeCluster
from hack.sim.fakefaults import EVER, SILENCE
from structlog.testing import capture_logs
from tests.build import NOW, at, make_fence, make_gpunode, make_node, make_policy, make_snapshot
from tests.fakes.virtualtime import virtual_now, virtually
from tests.planning.told import CHANGING, DRAINING, FAILED, PENDING, SYNCED, verdict
from tests.wording import lacks

from gpusharing.api.names import ConditionType, Phase
from gpusharing.controller.publish import MOVING_FACTOR, POOL_FACTOR, Publisher
from gpusharing.kube.client import EVENTS, GPUNODES, JSON, POLICIES, Resource
from gpusharing.kube.errors import (
    Forbidden,
    HeldBack,
    Invalid,
    KubeError,
    NotFound,
    ServerAway,
    Throttled,
    Unauthorized,
    Unavailable,
    Undone,
)
from gpusharing.kube.sources import Sources
from gpusharing.kube.sourcesettings import SourceSettings
from gpusharing.planning.pools.pool import Pool
from gpusharing.planning.rollout import RolloutPlan
from gpusharing.planning.snapshot.actions import Evict, ForceDelete
from gpusharing.planning.snapshot.memory import PassMemory
from gpusharing.planning.snapshot.nvidia import Operand
from gpusharing.planning.snapshot.records import Fence
from gpusharing.planning.snapshot.views import PolicyView
from gpusharing.planning.stack.mps import count_lapses
from gpusharing.planning.transition.verdict import Verdict
from gpusharing.planning.vocabulary.findings import Finding
from gpusharing.planning.vocabulary.reasons import Reason

PERIOD = 1.0
POLICY = make_policy(generation=7)
WAITING, MOVING = replace(DRAINING, node="gpu-07"), replace(CHANGING, node="gpu-07", deadline=NOW)


@dataclass
class Publishing:
    """A publisher on a FakeCluster that holds the policy pool-b and the GPUNode of gpu-07."""

    cluster: FakeCluster = field(default_factory=FakeCluster)
    changes: list[tuple[Verdict | None, Verdict]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.cluster.objects(POLICIES):
            self.cluster.add(POLICIES, {"metadata": {"name": "pool-b"}, "spec": {}})
            self.cluster.add(GPUNODES, {"metadata": {"name": "gpu-07"}, "spec": {}})
        self.sources = Sources(self.cluster.client("sources"), SourceSettings(), lambda: None)
        self.publisher = Publisher(
            self.cluster.client("operator"),
            self.sources,
            PERIOD,
            "operator-1",
            on_verdict=lambda before, after: self.changes.append((before, after)),
        )

    async def read(self) -> None:
        self.sources.policies.touch()
        await self.sources.policies.refresh()
        for raw in self.cluster.objects(GPUNODES):
            self.sources.gpunodes.accept(raw)

    def told(self) -> list[JSON]:
        """The Events on the server, without the second copies on GPUNodes."""
        return [one for one in self.cluster.objects(EVENTS) if one["regarding"]["kind"] != "GPUNode"]

    def status(self) -> JSON:
        status: JSON = self.cluster.get(POLICIES, "pool-b").get("status") or {}
        return status

    async def publish(
        self,
        verdict: Verdict,
        seconds: float = 0.0,
        policy: PolicyView = POLICY,
        targets: Mapping[str, Mapping[str, int]] | None = None,
        *,
        gpunodes: bool = True,
        resources: Mapping[str, int] | None = None,
        objection: Finding | None = None,
        fence: Fence | None = None,
        cordoned: bool = False,
    ) -> float | None:
        """One pass; returns the seconds at which more is due."""
        await self.read()
        node = make_node(verdict.node, resources=resources, fence=fence, unschedulable=cordoned)
        reports = [make_gpunode(verdict.node)] if gpunodes else []
        snapshot = make_snapshot([node], [policy], gpunodes=reports)
        pool = Pool(policy, names=[verdict.node]).with_hours(NOW)
        plan = RolloutPlan(
            {verdict.node: verdict},
            {policy.name: pool},
            {policy.name: objection} if objection else {},
            (),
            targets or {},
            PassMemory(),
            None,
        )
        due = await self.publisher.publish(plan, snapshot, at(seconds))
        return None if due is None else (due - NOW).total_seconds()

    def written(self, resource: Resource = GPUNODES) -> list[JSON]:
        return [write.call.body or {} for write in self.cluster.writes if write.call.resource == resource]

    def phases(self) -> list[str]:
        return [body["status"]["transition"]["phase"] for body in self.written()]

    def words(self) -> list[str]:
        return [body["status"]["summary"]["status"] for body in self.written(POLICIES)]


async def test_what_is_new_is_written_once_and_never_again() -> None:
    stage = Publishing()
    for seconds in (0, 1, 100):
        assert await stage.publish(SYNCED, seconds) is None
    assert (stage.phases(), stage.words()) == (["Synced"], ["Synced"])


async def test_an_equal_verdict_of_a_restarted_operator_writes_nothing() -> None:
    stage = Publishing()
    await stage.publish(SYNCED)
    again = Publishing(cluster=stage.cluster)
    before = len(stage.cluster.writes)
    await again.publish(replace(SYNCED), 60)
    assert len(stage.cluster.writes) == before


async def test_a_phase_that_moves_is_shown_a_period_after_it_came_and_a_quicker_one_never() -> None:
    stage = Publishing()
    await stage.publish(SYNCED)
    assert await stage.publish(WAITING, 10) == 11
    assert await stage.publish(MOVING, 10.5) == 11
    assert stage.phases() == ["Synced"]
    await stage.publish(MOVING, 11)
    assert stage.phases() == ["Synced", "Reconfiguring"]


async def test_what_moves_already_is_shown_after_two_periods_with_what_was_passed_over() -> None:
    stage = Publishing()
    await stage.publish(MOVING)
    await stage.publish(MOVING, 1)
    verifying = replace(MOVING, phase=Phase.VERIFYING, observed="2x3g.40gb")
    assert await stage.publish(WAITING, 10) == 10 + PERIOD * MOVING_FACTOR
    assert await stage.publish(verifying, 11.5) == 10 + PERIOD * MOVING_FACTOR
    assert stage.phases() == ["Reconfiguring"]
    await stage.publish(verifying, 12)
    assert stage.phases() == ["Reconfiguring", "Verifying"]
    assert stage.sources.shown("gpu-07")[0]["observed"] == "2x3g.40gb"


@pytest.mark.parametrize("end", [SYNCED, FAILED], ids=["Synced", "Failed"])
async def test_an_end_is_shown_at_once(end: Verdict) -> None:
    stage = Publishing()
    await stage.publish(MOVING)
    await stage.publish(MOVING, 2)
    await stage.publish(replace(end, node="gpu-07"), 2.1)
    assert stage.phases()[-1] == str(end.phase)


async def test_a_change_that_was_taken_back_within_the_period_is_not_written() -> None:
    stage = Publishing()
    await stage.publish(SYNCED)
    await stage.publish(MOVING, 10)
    await stage.publish(SYNCED, 10.5)
    assert stage.phases() == ["Synced"]
    assert await stage.publish(MOVING, 20) == 21, "the period begins anew"


async def test_a_condition_that_turns_is_written_at_once_and_a_message_after_two_periods() -> None:
    stage = Publishing()
    await stage.publish(SYNCED)
    await stage.publish(MOVING, 10)
    assert stage.words() == ["Synced", "Reconfiguring"]
    other = replace(MOVING, message="mig-manager is at work")
    await stage.publish(other, 20)
    assert len(stage.words()) == 2
    await stage.publish(other, 20 + PERIOD * POOL_FACTOR)
    assert len(stage.words()) == 3


async def test_the_answer_to_an_edit_is_written_at_once() -> None:
    stage = Publishing()
    await stage.publish(MOVING)
    await stage.publish(MOVING, 0.1, make_policy(generation=8))
    assert [body["status"]["observedGeneration"] for body in stage.written(POLICIES)] == [7, 8]


async def test_times_of_conditions_that_did_not_turn_stay() -> None:
    stage = Publishing()
    await stage.publish(SYNCED)
    await stage.publish(MOVING, 60)
    rows = stage.status()["conditions"]
    times = {row["type"]: row["lastTransitionTime"] for row in rows}
    assert times[ConditionType.ACCEPTED] == "2026-11-20T10:00:00Z"
    assert times[ConditionType.READY] == "2026-11-20T10:01:00Z"


async def test_resources_that_go_vanish_from_the_plan_as_well() -> None:
    """A merge patch merges maps: a name that is not told to go would stay for ever."""
    stage = Publishing()
    await stage.publish(MOVING, targets={"gpu-07": {"nvidia.com/gpu": 8}}, resources={"nvidia.com/gpu": 2})
    await stage.publish(
        MOVING,
        10,
        make_policy(generation=8),
        {"gpu-07": {"nvidia.com/mig-3g.40gb": 2}},
        resources={"nvidia.com/mig-1g.10gb": 7},
    )
    plan = stage.status()["plan"]
    assert plan["capacityBefore"] == {"nvidia.com/mig-1g.10gb": 7}
    assert plan["capacityAfter"] == {"nvidia.com/mig-3g.40gb": 2}
    await stage.publish(SYNCED, 20)
    assert "plan" not in stage.status()


async def test_a_transition_is_written_when_its_gpunode_is_there() -> None:
    stage = Publishing()
    await stage.publish(SYNCED, gpunodes=False)
    assert stage.phases() == []
    await stage.publish(SYNCED, 1)
    assert stage.phases() == ["Synced"]


async def test_a_status_that_was_held_back_is_due_when_the_server_lets_it() -> None:
    stage = Publishing()
    stage.cluster.faults.fail("patch", GPUNODES, HeldBack("not sent", 9.0))
    assert await stage.publish(SYNCED) == 9.0
    await stage.publish(SYNCED, 9.0)
    assert stage.phases() == ["Synced"]


async def test_objects_that_are_gone_are_no_trouble() -> None:
    stage = Publishing()
    stage.cluster.faults.fail("patch", GPUNODES, NotFound("gone"))
    stage.cluster.faults.fail("patch", POLICIES, NotFound("gone"))
    assert await stage.publish(SYNCED) is None


@pytest.mark.parametrize(
    "error",
    [
        Throttled("slow down", 1.0),
        Forbidden("no right"),
        Invalid("too long"),
        Unavailable("timed out"),
        Unauthorized("401"),
        ServerAway("refused"),
    ],
)
@pytest.mark.parametrize("resources", [[GPUNODES], [POLICIES], [GPUNODES, POLICIES]], ids=["node", "policy", "both"])
async def test_nothing_that_the_server_does_ends_the_round(error: KubeError, resources: list[Resource]) -> None:
    stage = Publishing()
    for resource in resources:
        stage.cluster.faults.fail("patch", resource, error)
    assert await stage.publish(SYNCED) == 1
    refused = {GPUNODES: stage.phases(), POLICIES: stage.words()}
    assert [refused[resource] for resource in resources] == [[]] * len(resources)
    await stage.publish(SYNCED, 1)
    assert (stage.phases(), stage.words()) == (["Synced"], ["Synced"])


async def test_a_status_that_cannot_be_worked_out_is_tried_again_and_holds_up_no_other() -> None:
    stage = Publishing()
    odd: JSON = {"status": {"conditions": ["no condition"]}}
    stage.cluster.patch(POLICIES, "pool-b", odd, subresource="status")
    assert await stage.publish(SYNCED) == 1
    assert (stage.phases(), stage.words()) == (["Synced"], [])
    stage.cluster.patch(POLICIES, "pool-b", {"status": {"conditions": None}}, subresource="status")
    await stage.publish(SYNCED, 1)
    assert stage.words() == ["Synced"]


async def test_an_object_that_is_refused_for_ever_is_asked_for_more_and_more_seldom() -> None:
    stage = Publishing()
    sick = stage.cluster.faults.fail("patch", GPUNODES, Forbidden("no right"), name="gpu-07", times=EVER)
    due: list[float] = []
    for second in range(300):
        if (later := await stage.publish(SYNCED, second)) is not None:
            due.append(later - second)
    assert sick.hits == 10, "1, 3, 7, 15, 31, 63 s, and every minute from then on"
    assert stage.words() == ["Synced"] * 2, "the policy shows the failure when it lasts"
    stalled = stage.cluster.get(POLICIES, "pool-b")["status"]["conditions"][-1]
    assert (stalled["type"], stalled["status"], stalled["reason"]) == ("Stalled", "True", "CallFailed")
    assert not lacks(stalled["message"], "GPUNode", "no right")


@virtually
async def test_a_status_that_hangs_does_not_hold_up_the_others() -> None:
    stage = Publishing()
    stage.cluster.faults.fail("patch", GPUNODES, SILENCE, name="gpu-07", times=EVER)
    begun = virtual_now()
    await stage.publish(SYNCED)
    assert (virtual_now() - begun).total_seconds() <= 1.0
    assert stage.words() == ["Synced"]
    await stage.publisher.workers.close()


# --- Events ----------------------------------------------------------------------------------------


async def test_an_event_speaks_about_policy_and_node_and_comes_once_per_transition() -> None:
    stage = Publishing()
    await stage.publish(WAITING)
    for seconds in (1, 2, 3):
        await stage.publish(MOVING, seconds)
    events = stage.told()
    assert [event["reason"] for event in events] == ["Reconfiguring"]
    event = events[0]
    assert event["metadata"]["namespace"] == "default"
    assert event["regarding"]["uid"] == POLICY.uid
    assert event["related"] == {"apiVersion": "v1", "kind": "Node", "name": "gpu-07"}
    assert event["eventTime"] == "2026-11-20T10:00:01.000000Z"
    assert stage.changes == [(None, WAITING), (WAITING, MOVING)]
    (copy,) = [one for one in stage.cluster.objects(EVENTS) if one["regarding"]["kind"] == "GPUNode"]
    report = make_gpunode("gpu-07")
    about = {"apiVersion": "gpusharing.dev/v1alpha1", "kind": "GPUNode", "name": "gpu-07", "uid": report.uid}
    assert (copy["regarding"], copy["note"]) == (about, event["note"]), "kubectl describe looks for kind, name and uid"


async def test_a_warning_is_logged_as_one_with_the_words_of_its_event() -> None:
    stage = Publishing()
    await stage.publish(SYNCED)
    with capture_logs() as lines:
        await stage.publish(replace(FAILED, node="gpu-07"), 10)
        await stage.publish(SYNCED, 60)
    notes = {event["reason"]: event["note"] for event in stage.told()}
    assert [(line["event"], line["log_level"]) for line in lines] == [
        ("NodeFailed", "warning"),
        ("LayoutVerified", "info"),
    ]
    assert lines[0] == {
        "event": "NodeFailed",
        "log_level": "warning",
        "node": "gpu-07",
        "policy": POLICY.name,
        "phase": "Failed",
        "note": notes["NodeFailed"],
    }


Containers = tuple[int, int, bool]
"""The restarts of config-manager and of the MPS daemon, and whether config-manager runs."""
RESTARTED: dict[str, tuple[list[Containers], int]] = {
    "a reboot after the daemon crashed": ([(0, 3, True), (0, 4, False), (1, 4, True)], 0),
    "a shutdown after the daemon crashed": ([(0, 3, True), (0, 3, False)], 0),
    "config-manager once after the daemon crashed": ([(0, 3, True), (0, 3, False), (1, 3, True)], 1),
    "a reboot that starts the daemon first": ([(2, 0, True), (2, 1, False), (3, 1, True)], 0),
    "config-manager twice": ([(0, 0, True), (1, 0, False), (2, 0, True)], 2),
    "a reboot that an operator sees from its middle on": ([(0, 4, False), (0, 4, False), (1, 4, True)], 0),
}


@pytest.mark.parametrize(("steps", "ended"), RESTARTED.values(), ids=RESTARTED.keys())
async def test_only_restarts_of_config_manager_alone_end_mps_clients(steps: list[Containers], ended: int) -> None:
    stage = Publishing()
    for second, (manager, daemon, runs) in enumerate(steps):
        pod = Operand("gpu-operator", "mps-x", "uid-1", True, lone_restarts=manager - daemon, settling=not runs)
        await stage.publish(replace(SYNCED, mps_pod=pod), second)
    counted = [
        count_lapses(before.mps_pod, after.mps_pod)
        for before, after in stage.changes
        if before is not None and after.mps_pod is not None
    ]
    assert sum(counted) == ended
    events = [event["reason"] for event in stage.told()]
    assert events == ["MPSClientsEnded"] * bool(ended)


async def test_a_first_publication_has_no_earlier_state_and_posts_no_event() -> None:
    stage = Publishing()
    await stage.publish(FAILED_HERE := replace(FAILED, node="gpu-07"))
    assert stage.changes == [(None, FAILED_HERE)]
    assert stage.told() == []


async def test_an_event_that_is_refused_keeps_nothing_from_being_written_and_is_told_later() -> None:
    stage = Publishing()
    await stage.publish(SYNCED)
    stage.cluster.faults.fail("create", EVENTS, Forbidden("not allowed to create events"))
    await stage.publish(replace(FAILED, node="gpu-07"), 10)
    assert stage.phases() == ["Synced", "Failed"]
    assert stage.told() == []
    await stage.publish(replace(FAILED, node="gpu-07"), 11)
    assert [event["reason"] for event in stage.told()] == ["NodeFailed"]


async def test_an_event_whose_answer_was_lost_is_told_once() -> None:
    stage = Publishing()
    await stage.publish(SYNCED)
    stage.cluster.faults.fail("create", EVENTS, Unavailable("reset"), after=True)
    for second in (10, 11, 12):
        await stage.publish(replace(FAILED, node="gpu-07"), second)
    assert [event["reason"] for event in stage.told()] == ["NodeFailed"]


async def test_an_event_that_the_server_never_takes_makes_room_for_the_next() -> None:
    stage = Publishing()
    await stage.publish(SYNCED)
    stage.cluster.faults.fail("create", EVENTS, Invalid("note: too long"))
    await stage.publish(replace(FAILED, node="gpu-07"), 10)
    await stage.publish(SYNCED, 11)
    assert [event["reason"] for event in stage.told()] == ["LayoutVerified"]


async def test_a_node_that_vanished_and_comes_back_is_told_about_as_new() -> None:
    stage = Publishing()
    await stage.publish(SYNCED)
    empty = RolloutPlan({}, {"pool-b": Pool(POLICY).with_hours(NOW)}, {}, (), {}, PassMemory(), None)
    await stage.publisher.publish(empty, make_snapshot([], [POLICY]), at(1))
    await stage.publish(SYNCED, 2)
    assert [before for before, _ in stage.changes] == [None, None]


async def test_a_waiting_node_is_a_phase_that_moves() -> None:
    stage = Publishing()
    assert await stage.publish(replace(PENDING, node="gpu-07")) == 1
    assert stage.phases() == []


async def test_the_start_of_a_drain_is_told_once_although_its_pods_are_lost_from_sight() -> None:
    stage, listed = Publishing(), replace(WAITING, pods=2)
    for second, shown in enumerate((WAITING, listed, WAITING, listed, replace(listed, pods=1))):
        await stage.publish(shown, second, fence=make_fence())
    await stage.publish(replace(PENDING, node="gpu-07"), 9)
    await stage.publish(listed, 10, fence=make_fence(op="op-2"))
    assert [event["reason"] for event in stage.told()] == ["DrainStarted"] * 2


async def test_cordon_and_release_are_told_on_the_node_as_a_kubelet_tells_its_own_events() -> None:
    stage = Publishing()
    await stage.publish(SYNCED)
    for second in (1, 2):
        await stage.publish(SYNCED, second, fence=make_fence(), cordoned=True)
    await stage.publish(SYNCED, 3)
    events = stage.told()
    assert [event["reason"] for event in events] == ["NodeCordoned", "NodeReleased"]
    node = {"apiVersion": "v1", "kind": "Node", "name": "gpu-07", "uid": "gpu-07"}
    assert [event["regarding"] for event in events] == [node, node]


def evictions(count: int, namespace: str = "tenant") -> list[Evict]:
    return [Evict("gpu-07", namespace, f"train-{number}", f"uid-{number}") for number in range(count)]


async def test_an_evicted_pod_has_an_event_in_its_own_namespace_that_names_policy_node_and_change() -> None:
    stage = Publishing()
    (eviction,) = evictions(1)
    stage.publisher.report_eviction(eviction, MOVING, at(3))
    forced = ForceDelete("gpu-07", "tenant", "x" * 219 + "-" + "y" * 30, "uid-x")
    stage.publisher.report_eviction(forced, WAITING, at(4))
    assert await stage.publish(SYNCED, 5) is None
    event, deletion = sorted(stage.told(), key=lambda one: str(one["eventTime"]))
    pod = {"apiVersion": "v1", "kind": "Pod", "namespace": "tenant", "name": "train-0", "uid": "uid-0"}
    assert (event["metadata"]["namespace"], event["regarding"]) == ("tenant", pod)
    assert event["related"] == {"apiVersion": "v1", "kind": "Node", "name": "gpu-07"}
    assert (event["type"], event["reason"]) == ("Normal", "PodEvicted")
    assert event["eventTime"] == "2026-11-20T10:00:03.000000Z", "when the API server accepted the eviction"
    for word in ("gpu-07", f"policy {WAITING.policy}", f"from {MOVING.observed} to {MOVING.wanted}"):
        assert word in event["note"]
    assert (deletion["type"], deletion["reason"]) == ("Warning", "PodForceDeleted")
    assert deletion["metadata"]["name"].startswith("x" * 219 + "."), "no name of an object ends one part with a dash"
    assert len(deletion["metadata"]["name"]) <= 253


async def test_ten_events_about_evicted_pods_are_posted_in_a_second_and_the_rest_later() -> None:
    stage = Publishing()
    for eviction in evictions(25):
        stage.publisher.report_eviction(eviction, WAITING, at(0))
    assert await stage.publish(SYNCED) == 1
    assert await stage.publish(SYNCED, 0.5) == 1
    assert len(stage.told()) == 10
    assert await stage.publish(SYNCED, 1) == 2
    assert await stage.publish(SYNCED, 2) is None
    assert len({event["regarding"]["uid"] for event in stage.told()}) == 25


@pytest.mark.parametrize("error", [Throttled("slow down", 1.0), Forbidden("no right"), Unavailable("502")])
async def test_an_event_about_an_evicted_pod_is_sent_once_and_its_failure_is_logged_once(error: KubeError) -> None:
    stage = Publishing()
    fault = stage.cluster.faults.fail("create", EVENTS, error, namespace="tenant", times=2)
    for eviction in evictions(3):
        stage.publisher.report_eviction(eviction, WAITING, at(0))
    with capture_logs() as lines:
        for seconds in range(5):
            await stage.publish(SYNCED, seconds)
    assert fault.hits == 2
    assert [event["regarding"]["uid"] for event in stage.told()] == ["uid-2"]
    dropped = "an Event about an evicted pod cannot be posted; it is dropped"
    told = [dropped, "resolved: an Event about an evicted pod cannot be posted"]
    assert [line["event"] for line in lines if line.get("subject") == "events in tenant"] == told


async def test_an_event_in_a_namespace_that_is_being_deleted_is_dropped_in_silence_and_one_held_back_waits() -> None:
    stage = Publishing()
    gone = Forbidden("because it is being terminated", namespace_terminating=True)
    stage.cluster.faults.fail("create", EVENTS, gone, namespace="tenant")
    stage.cluster.faults.fail("create", EVENTS, HeldBack("not sent", 1.0), namespace="other")
    for eviction in (*evictions(1), *evictions(1, "other")):
        stage.publisher.report_eviction(eviction, WAITING, at(0))
    with capture_logs() as lines:
        assert await stage.publish(SYNCED) == 1
        assert await stage.publish(SYNCED, 1) is None
    assert [event["metadata"]["namespace"] for event in stage.told()] == ["other"]
    assert [line for line in lines if line["log_level"] == "warning"] == []


async def test_a_cordon_from_before_the_operator_started_is_not_told_again() -> None:
    stage = Publishing()
    await stage.publish(SYNCED, fence=make_fence(), cordoned=True)
    assert stage.told() == []


NOT_OURS = Finding(Reason.PLUGIN_CONFIG_NOT_OURS, "it is x; run: y")
REFUSED = verdict(Phase.BLOCKED, Reason.PLUGIN_CONFIG_NOT_OURS, wanted="")


async def test_a_refusal_is_told_once_about_the_policy_whoever_leads() -> None:
    stage = Publishing()
    with capture_logs() as lines:
        assert await stage.publish(REFUSED, objection=NOT_OURS) == 0, "the Event waits for the next round"
        for seconds in (1, 2):
            assert await stage.publish(REFUSED, seconds, objection=NOT_OURS) is None
    where = {"policy": POLICY.name, "note": "it is x; run: y"}
    assert lines == [{"event": "PluginConfigNotOurs", "log_level": "warning", **where}]
    again = Publishing(cluster=stage.cluster)
    await again.publish(REFUSED, 60, objection=NOT_OURS)
    await again.publish(REFUSED, 61, objection=NOT_OURS)
    (event,) = stage.cluster.objects(EVENTS)
    assert (event["type"], event["reason"], event["note"]) == ("Warning", "PluginConfigNotOurs", "it is x; run: y")
    assert (event["regarding"]["uid"], "related" in event) == (POLICY.uid, False)


async def test_a_refusal_whose_status_could_not_be_written_is_told_when_it_is() -> None:
    stage = Publishing()
    stage.cluster.faults.fail("patch", POLICIES, Forbidden("may not patch"))
    await stage.publish(REFUSED, objection=NOT_OURS)
    assert stage.cluster.objects(EVENTS) == []
    for seconds in (10, 11, 12):
        await stage.publish(REFUSED, seconds, objection=NOT_OURS)
    assert [event["reason"] for event in stage.cluster.objects(EVENTS)] == ["PluginConfigNotOurs"]


async def test_a_policy_whose_own_status_is_refused_says_so_in_an_event_with_the_servers_words() -> None:
    stage = Publishing()
    stage.cluster.faults.fail("patch", POLICIES, Forbidden("a webhook denies it"), times=5)
    for minutes in range(6):
        await stage.publish(REFUSED, 60 * minutes, objection=NOT_OURS)
    events = [one for one in stage.cluster.objects(EVENTS) if one["reason"] == "CallFailed"]
    assert len(events) == 1, "told once"
    assert events[0]["note"].startswith("the policy's status cannot be written")
    assert "a webhook denies it" in events[0]["note"]
    assert events[0]["regarding"]["uid"] == POLICY.uid


async def test_a_status_that_others_keep_undoing_is_told_at_once_with_their_name() -> None:
    stage = Publishing()
    stage.cluster.faults.fail("patch", POLICIES, Undone("tool sets status.summary of gpusharingpolicies pool-b"))
    for seconds in (0, 10, 11, 12):
        await stage.publish(REFUSED, seconds, objection=NOT_OURS)
    events = [one["note"] for one in stage.cluster.objects(EVENTS) if one["reason"] == "CallFailed"]
    assert len(events) == 1
    assert "tool sets status.summary" in events[0]
