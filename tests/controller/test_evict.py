"""What the API server answers to an eviction, and what is remembered of it (docs/design/drain.md, rows E).
Tested through the executor: controller/evict.py."""

import pytest
from structlog.testing import capture_logs
from tests.build import at, make_node, make_snapshot, make_work
from tests.controller.executing import Executing, plan_of

from gpusharing.kube.client import PODS
from gpusharing.kube.errors import (
    Conflict,
    EvictionBlocked,
    EvictionFailed,
    Forbidden,
    HeldBack,
    Invalid,
    KubeError,
    NotFound,
    ServerAway,
    Throttled,
    Unauthorized,
    Unavailable,
)
from gpusharing.kube.lease import LeaseLost
from gpusharing.planning.snapshot.actions import Evict, ForceDelete, SetClaims
from gpusharing.planning.vocabulary.reasons import Reason

ANSWERS: dict[str, tuple[KubeError | None, Reason, float]] = {
    "E1: 201": (None, Reason.EVICTED, 0),
    "E5: 429 of a budget": (EvictionBlocked("needs 2 healthy pods and has 2"), Reason.PDB, 5),
    "E6: 429 of a budget that is behind": (EvictionBlocked("processing", 10.0), Reason.PDB_NOT_OBSERVED, 10),
    "E7: 429 without that cause": (Throttled("slow down", 3.0), Reason.THROTTLED, 3),
    "E8: 500": (EvictionFailed("more than one PodDisruptionBudget"), Reason.EVICTION_ERROR, 5),
    "no answer": (Unavailable("timed out"), Reason.EVICTION_ERROR, 5),
    "E12: 403 of a terminating namespace": (
        Forbidden("being terminated", namespace_terminating=True),
        Reason.NAMESPACE_TERMINATING,
        5,
    ),
    "E13: 403": (Forbidden("not allowed to create pods/eviction"), Reason.FORBIDDEN, 300),
    "E15: 400": (Invalid("name in URL does not match"), Reason.INTERNAL_ERROR, 300),
}


@pytest.mark.parametrize(("error", "reason", "wait"), ANSWERS.values(), ids=ANSWERS.keys())
async def test_every_answer_to_an_eviction_is_remembered_as_what_it_means(
    error: KubeError | None, reason: Reason, wait: float
) -> None:
    stage = Executing(fenced=True)
    if error is not None:
        stage.cluster.faults.fail("evict", PODS, error)
    outcome = await stage.run(stage.eviction)
    memory = stage.executor.calls.evictions["gpu-07"][stage.eviction.uid]
    assert memory.reason == reason
    assert memory.message == ("" if error is None else str(error))
    if error is not None:
        assert memory.next_try == at(wait)
    assert outcome.done == (1 if error is None else 0)
    assert stage.failures() == {}
    assert stage.told == [("Evict", "done" if error is None else str(reason))]


async def test_a_refusal_is_logged_when_it_is_news() -> None:
    stage = Executing(fenced=True)
    for error in (EvictionBlocked("no"), EvictionBlocked("not yet"), EvictionFailed("two"), EvictionBlocked("no")):
        stage.cluster.faults.fail("evict", PODS, error)
    with capture_logs() as lines:
        for _ in range(4):
            await stage.run(stage.eviction)
    told = [line["reason"] for line in lines if line["event"] == "the API server rejected the eviction of a pod"]
    assert told == [Reason.PDB, Reason.EVICTION_ERROR, Reason.PDB]


DELETIONS: dict[str, tuple[KubeError | None, Reason, float]] = {
    "200": (None, Reason.FORCE_DELETE, 0),
    "no answer": (Unavailable("timed out"), Reason.FORCE_DELETE_FAILED, 5),
    "403": (Forbidden("not allowed to delete pods"), Reason.FORBIDDEN, 300),
    "422": (Invalid("no"), Reason.INTERNAL_ERROR, 300),
    "429": (Throttled("slow down", 3.0), Reason.THROTTLED, 3),
}


@pytest.mark.parametrize(("error", "reason", "wait"), DELETIONS.values(), ids=DELETIONS.keys())
async def test_every_answer_to_a_deletion_by_force_is_remembered_as_what_it_means(
    error: KubeError | None, reason: Reason, wait: float
) -> None:
    stage = Executing(fenced=True)
    if error is not None:
        stage.cluster.faults.fail("delete", PODS, error)
    one = stage.eviction
    action = ForceDelete(one.node, one.namespace, one.name, one.uid)
    outcome = await stage.run(action)
    memory = stage.executor.calls.evictions["gpu-07"][one.uid]
    assert (memory.reason, memory.message) == (reason, "" if error is None else str(error))
    assert memory.next_try == at(wait) or error is None
    assert (outcome.done, stage.failures()) == (1 if error is None else 0, {})
    leaves = "deletionTimestamp" in stage.cluster.get(PODS, "llm-0", "team-a")["metadata"]
    assert leaves == (error is None)
    if error is None:
        assert (await stage.run(action)).done == 0, "never twice"
        assert (await stage.run(one)).done == 0, "nor evicted after it"


async def test_the_pod_that_took_the_name_is_not_deleted_and_a_grace_period_is_passed_on() -> None:
    stage = Executing(fenced=True)
    outcome = await stage.run(ForceDelete("gpu-07", "team-a", "llm-0", "uid-of-somebody-else"))
    assert outcome.done == 0
    assert "deletionTimestamp" not in stage.cluster.get(PODS, "llm-0", "team-a")["metadata"]
    await stage.run(ForceDelete("gpu-07", "team-a", "llm-0", stage.eviction.uid, grace=1))
    bodies = [write.call.body or {} for write in stage.cluster.writes if write.call.verb == "delete"]
    sent = [(body["preconditions"]["uid"], body.get("gracePeriodSeconds")) for body in bodies]
    assert (sent[-1], sent[0]) == ((stage.eviction.uid, 1), ("uid-of-somebody-else", None))


@pytest.mark.parametrize("error", [NotFound("gone"), Conflict("another uid")], ids=["E2: 404", "E3: 409"])
async def test_a_pod_that_is_gone_or_replaced_is_remembered_as_answered_until_the_next_list(error: KubeError) -> None:
    stage = Executing(fenced=True)
    stage.cluster.faults.fail("evict", PODS, error)
    outcome = await stage.run(stage.eviction)
    assert (outcome.done, stage.failures(), stage.told) == (0, {}, [("Evict", "PodsLeaving")])
    memory = stage.executor.calls.evictions["gpu-07"][stage.eviction.uid]
    assert (memory.reason, memory.asked_at, memory.next_try) == (Reason.PODS_LEAVING, at(0), at(0))


async def test_an_eviction_that_lost_the_race_over_its_budget_can_be_asked_for_again() -> None:
    stage = Executing(fenced=True)
    stage.cluster.faults.fail("evict", PODS, Conflict("the object has been modified; please apply your changes"))
    assert (await stage.run(stage.eviction)).done == 0
    assert "deletionTimestamp" not in stage.cluster.get(PODS, "llm-0", "team-a")["metadata"]
    assert (await stage.run(stage.eviction)).done == 1
    assert "deletionTimestamp" in stage.cluster.get(PODS, "llm-0", "team-a")["metadata"]


async def test_the_pod_that_took_the_name_is_not_evicted() -> None:
    stage = Executing(fenced=True)
    outcome = await stage.run(Evict("gpu-07", "team-a", "llm-0", "uid-of-somebody-else"))
    assert outcome.done == 0
    assert "deletionTimestamp" not in stage.cluster.get(PODS, "llm-0", "team-a")["metadata"]


async def test_refusals_in_a_row_wait_twice_as_long_each_time() -> None:
    stage = Executing(fenced=True)
    stage.cluster.faults.fail("evict", PODS, EvictionBlocked("no"), times=3)
    waits = []
    for _ in range(3):
        await stage.run(stage.eviction)
        memory = stage.executor.calls.evictions["gpu-07"][stage.eviction.uid]
        waits.append((memory.next_try - at(stage.seconds)).total_seconds())
        stage.seconds = (memory.next_try - at(0)).total_seconds()
    assert waits == [5.0, 10.0, 20.0]
    assert (memory.tries, memory.since) == (3, at(0))


async def test_refusals_are_forgotten_when_the_fence_is_gone() -> None:
    stage = Executing(fenced=True)
    stage.cluster.faults.fail("evict", PODS, EvictionBlocked("no"))
    await stage.run(stage.eviction)
    await stage.executor.execute(plan_of({}), make_snapshot([make_node("gpu-07")]))
    assert stage.executor.calls.evictions == {}


async def test_an_accepted_eviction_is_not_sent_again_by_a_plan_from_before_it() -> None:
    stage = Executing(fenced=True)
    await stage.run(stage.eviction)
    await stage.run(stage.eviction)
    assert stage.told == [("Evict", "done")]
    assert len([write for write in stage.cluster.writes if write.call.verb == "evict"]) == 1


async def test_an_accepted_eviction_is_remembered_beyond_the_drain_until_a_list_begun_after_it() -> None:
    stage = Executing(seconds=10)
    await stage.run(stage.eviction)
    unfenced = [make_node("gpu-07")]
    for work in (
        None,
        make_work(listed_at=at(9)),
        make_work(listed_at=at(10)),
        make_work(listed_at=at(11), error="no"),
    ):
        seen = make_snapshot(unfenced, work={"gpu-07": work} if work is not None else {})
        await stage.executor.execute(plan_of({}), seen)
        assert stage.eviction.uid in stage.executor.calls.evictions["gpu-07"]
    seen = make_snapshot(unfenced, work={"gpu-07": make_work(listed_at=at(11))})
    await stage.executor.execute(plan_of({}), seen)
    assert stage.executor.calls.evictions == {}


async def test_what_is_known_of_a_node_that_is_gone_is_forgotten() -> None:
    stage = Executing(fenced=True)
    await stage.run(stage.eviction)
    await stage.executor.execute(plan_of({}), make_snapshot([]))
    assert stage.executor.calls.evictions == {}


@pytest.mark.parametrize("error", [ServerAway("refused"), Unauthorized("401"), LeaseLost("not ours")])
async def test_a_lost_server_lost_credentials_and_a_lost_lease_end_the_pass(error: Exception) -> None:
    stage = Executing(fenced=True)
    if isinstance(error, LeaseLost):
        stage.claims.error = error
    else:
        stage.cluster.faults.fail("evict", PODS, error)
    with pytest.raises(ExceptionGroup) as caught:
        await stage.run(stage.eviction, shared=(SetClaims({}),))
    assert caught.value.exceptions == (error,)
    assert stage.executor.calls.evictions == {}


async def test_an_eviction_without_an_answer_makes_the_pods_be_listed_anew() -> None:
    stage = Executing(fenced=True)
    stage.cluster.faults.fail("evict", PODS, Unavailable("timed out"), after=True)
    await stage.run(stage.eviction)
    assert stage.executor.calls.unsure == {"gpu-07"}
    memory = stage.executor.calls.evictions["gpu-07"][stage.eviction.uid]
    assert (memory.reason, memory.message) == (Reason.EVICTION_ERROR, "timed out")


async def test_an_eviction_that_had_to_wait_is_no_refusal() -> None:
    stage = Executing(fenced=True)
    stage.cluster.faults.fail("evict", PODS, HeldBack("not sent", 3.0))
    outcome = await stage.run(stage.eviction)
    assert (outcome.done, stage.failures(), stage.executor.calls.evictions) == (0, {}, {})
