"""What FakeCluster has besides the contract: faults, crashes, the write log, clocks, budgets in percent."""

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest
from hack.sim.fakefaults import EVER, SILENCE
from hack.sim.selectors import matcher, selects
from tests.fakes.cluster import Crash, FakeCluster, Write
from tests.fakes.running import running
from tests.fakes.virtualtime import virtually

from gpusharing.kube import errors
from gpusharing.kube.client import GPUNODES, NODES, PDBS, PODS, POLICIES

JSON = dict[str, Any]


def node(name: str, **metadata: Any) -> JSON:
    return {"metadata": {"name": name, **metadata}}


def pod(name: str, *, ready: bool = True, **metadata: Any) -> JSON:
    return {
        "metadata": {"namespace": "team-a", "name": name, "labels": {"app": "llm"}, **metadata},
        "spec": {"nodeName": "gpu-07"},
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": str(ready)}]},
    }


def budget(**spec: Any) -> JSON:
    return {
        "metadata": {"namespace": "team-a", "name": "llm"},
        "spec": {"selector": {"matchLabels": {"app": "llm"}}, **spec},
    }


@pytest.mark.parametrize(("lines", "log"), [(0, ""), (1, "b\n"), (2, "a\nb\n"), (3, "a\nb\n")])
async def test_the_end_of_a_log_has_as_many_lines_as_are_asked_for(lines: int, log: str) -> None:
    cluster = FakeCluster()
    cluster.add(PODS, pod("llm-1"))
    cluster.logs["team-a", "llm-1"] = "a\nb\n"
    assert await cluster.client("operator").log("team-a", "llm-1", lines) == log


async def test_a_patch_without_metadata_leaves_what_watchers_got_before_as_it_was() -> None:
    cluster, policy = FakeCluster(), {"metadata": {"name": "a"}, "spec": {"mode": "Full"}}
    client, generations = cluster.client("operator"), []
    begin = await client.list_page(POLICIES)
    await client.create(POLICIES, policy)
    await client.patch(POLICIES, "a", {"spec": {"mode": "MIG"}})
    async for event in client.watch(POLICIES, begin.resource_version):
        generations.append(event.object["metadata"]["generation"])
        if len(generations) == 2:
            break
    assert generations == [1, 2]


async def test_writes_are_logged_with_who_what_and_how_it_ended() -> None:
    cluster = FakeCluster()
    operator, person = cluster.client("operator"), cluster.client("person")
    await operator.create(NODES, node("a"))
    await person.patch(NODES, "a", {"spec": {"unschedulable": True}})
    with pytest.raises(errors.NotFound):
        await operator.patch(NODES, "b", {})
    assert [(w.call.identity, w.number, w.call.verb, w.call.path) for w in cluster.writes] == [
        ("operator", 1, "create", "/api/v1/nodes/a"),
        ("person", 1, "patch", "/api/v1/nodes/a"),
        ("operator", 2, "patch", "/api/v1/nodes/b"),
    ]
    assert cluster.writes[1].call.body == {"spec": {"unschedulable": True}}
    assert isinstance(cluster.writes[2].error, errors.NotFound)
    assert cluster.calls["operator", "patch", "nodes"] == 1


@pytest.mark.parametrize(("when", "applied"), [("before", False), ("after", True)])
async def test_a_process_can_be_killed_at_its_kth_write(when: str, applied: bool) -> None:
    cluster = FakeCluster()
    cluster.faults.crash("operator", **{when: 2})
    operator, other = cluster.client("operator"), cluster.client("other")
    await operator.create(NODES, node("a"))
    await other.create(NODES, node("b"))
    with pytest.raises(Crash):
        await operator.create(NODES, node("c"))
    assert [obj["metadata"]["name"] for obj in cluster.objects(NODES)] == (["a", "b", "c"] if applied else ["a", "b"])
    await operator.create(NODES, node("d"))


async def test_a_hook_sees_every_write_before_and_after() -> None:
    seen: list[tuple[int, str]] = []

    def hook(write: Write, when: str) -> None:
        seen.append((write.number, when))

    cluster = FakeCluster(on_write=hook)
    await cluster.client("operator").create(NODES, node("a"))
    assert seen == [(1, "before"), (1, "after")]


async def test_scripted_faults_hit_the_next_calls_of_their_kind() -> None:
    cluster = FakeCluster()
    cluster.add(NODES, node("a"))
    cluster.faults.fail("patch", NODES, errors.Conflict("once"), identity="operator")
    operator = cluster.client("operator")
    await cluster.client("other").patch(NODES, "a", {})
    await operator.get(NODES, "a")
    with pytest.raises(errors.Conflict):
        await operator.patch(NODES, "a", {})
    await operator.patch(NODES, "a", {})


async def test_an_answer_can_be_lost_after_the_write() -> None:
    cluster = FakeCluster()
    cluster.faults.fail("create", None, errors.Unavailable("reset"), after=True)
    with pytest.raises(errors.Unavailable):
        await cluster.client("operator").create(NODES, node("a"))
    assert cluster.get(NODES, "a")


async def test_a_fault_hits_one_object_for_ever_and_no_other() -> None:
    cluster = FakeCluster()
    for namespace in ("team-a", "team-b"):
        cluster.add(PODS, pod("llm-0", namespace=namespace))
    sick = cluster.faults.fail(
        "patch", PODS, errors.Unavailable("502"), namespace="team-a", name="llm-0", subresource="", times=EVER
    )
    operator = cluster.client("operator")
    for _ in range(100):
        with pytest.raises(errors.Unavailable):
            await operator.patch(PODS, "llm-0", {}, namespace="team-a")
    await operator.patch(PODS, "llm-0", {}, namespace="team-b")
    await operator.patch(PODS, "llm-0", {}, namespace="team-a", subresource="status")
    assert sick.hits == 100
    sick.lift()
    await operator.patch(PODS, "llm-0", {}, namespace="team-a")


async def test_the_list_of_one_node_can_fail_alone() -> None:
    cluster = FakeCluster()
    cluster.faults.fail("list", PODS, errors.Forbidden("no"), selector="spec.nodeName=gpu-1", times=EVER)
    operator = cluster.client("operator")
    with pytest.raises(errors.Forbidden):
        await operator.list_page(PODS, field_selector="spec.nodeName=gpu-1")
    await operator.list_page(PODS, field_selector="spec.nodeName=gpu-2")
    await operator.list_page(PODS)


@virtually
async def test_a_call_without_an_answer_hangs_until_the_callers_deadline() -> None:
    cluster = FakeCluster()
    cluster.add(NODES, node("a"))
    cluster.faults.fail("patch", NODES, SILENCE, name="a", after=True)
    operator, clock = cluster.client("operator"), asyncio.get_running_loop().time
    began = clock()
    with pytest.raises(errors.Unavailable, match="no answer within 10 s"):
        await operator.patch(NODES, "a", {"spec": {"unschedulable": True}})
    assert clock() - began == 10.0
    assert cluster.get(NODES, "a")["spec"]["unschedulable"]
    cluster.faults.fail("get", NODES, SILENCE, name="a")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(2.0):
            await operator.get(NODES, "a")


async def test_what_a_caller_holds_is_not_what_the_server_holds() -> None:
    cluster = FakeCluster()
    body = node("a", labels={"x": "1"})
    cluster.add(NODES, body)
    body["metadata"]["labels"]["x"] = "2"
    cluster.get(NODES, "a")["metadata"]["labels"]["x"] = "3"
    assert cluster.get(NODES, "a")["metadata"]["labels"] == {"x": "1"}


async def test_what_a_node_owned_goes_with_it() -> None:
    cluster = FakeCluster()
    uid = cluster.add(NODES, node("a"))["metadata"]["uid"]
    cluster.add(GPUNODES, node("a", ownerReferences=[{"kind": "Node", "name": "a", "uid": uid}]))
    cluster.add(GPUNODES, node("b"))
    cluster.delete(NODES, "a")
    assert [obj["metadata"]["name"] for obj in cluster.objects(GPUNODES)] == ["b"]


async def test_the_clock_is_the_callers() -> None:
    cluster = FakeCluster(now=lambda: datetime(2026, 11, 20, 10, tzinfo=UTC), grace=30)
    assert cluster.add(PODS, pod("llm-0"))["metadata"]["creationTimestamp"] == "2026-11-20T10:00:00Z"
    cluster.delete(PODS, "llm-0", "team-a")
    going = cluster.get(PODS, "llm-0", "team-a")["metadata"]
    assert going["deletionTimestamp"] == "2026-11-20T10:00:30Z"


@virtually
async def test_evicted_pods_vanish_after_their_grace_period_by_an_injected_scheduler() -> None:
    cluster = FakeCluster(grace=30, later=asyncio.get_running_loop().call_later)
    uid = cluster.add(PODS, pod("llm-0"))["metadata"]["uid"]
    await cluster.client("operator").evict("team-a", "llm-0", uid)
    await asyncio.sleep(29)
    assert cluster.objects(PODS)
    await asyncio.sleep(2)
    assert not cluster.objects(PODS)


async def test_terminations_end_by_node_and_a_finalizer_keeps_its_pod() -> None:
    cluster = FakeCluster()
    for name, finalizers in (("llm-0", []), ("llm-1", ["a.b/c"])):
        cluster.add(PODS, pod(name, finalizers=finalizers))
        cluster.delete(PODS, name, "team-a")
    assert cluster.finish_terminations("gpu-08") == []
    assert cluster.finish_terminations("gpu-07") == ["team-a/llm-0"]
    assert [obj["metadata"]["name"] for obj in cluster.objects(PODS)] == ["llm-1"]


@pytest.mark.parametrize(
    ("spec", "allowed"),
    [
        ({"minAvailable": 2}, 1),
        ({"minAvailable": "50%"}, 1),
        ({"maxUnavailable": 1}, 1),
        ({"maxUnavailable": 0}, 0),
        ({"maxUnavailable": "34%"}, 2),
        ({"minAvailable": "100%"}, 0),
    ],
    ids=str,
)
def test_a_budget_over_three_ready_pods_allows(spec: JSON, allowed: int) -> None:
    cluster = FakeCluster()
    cluster.add(PDBS, budget(**spec))
    for number in range(3):
        cluster.add(PODS, pod(f"llm-{number}"))
    assert cluster.get(PDBS, "llm", "team-a")["status"]["disruptionsAllowed"] == allowed


async def test_a_replacement_that_is_ready_makes_room_for_the_next_eviction() -> None:
    cluster = FakeCluster()
    cluster.add(PDBS, budget(minAvailable=1))
    uids = [cluster.add(PODS, pod(f"llm-{number}"))["metadata"]["uid"] for number in range(2)]
    operator = cluster.client("operator")
    await operator.evict("team-a", "llm-0", uids[0])
    with pytest.raises(errors.EvictionBlocked):
        await operator.evict("team-a", "llm-1", uids[1])
    cluster.add(PODS, pod("llm-2"))
    await operator.evict("team-a", "llm-1", uids[1])


async def test_an_unready_pod_may_always_go_when_its_budget_says_so() -> None:
    cluster = FakeCluster()
    cluster.add(PDBS, budget(minAvailable=1, unhealthyPodEvictionPolicy="AlwaysAllow"))
    uid = cluster.add(PODS, pod("llm-0", ready=False))["metadata"]["uid"]
    await cluster.client("operator").evict("team-a", "llm-0", uid)


async def test_an_eviction_in_a_terminating_namespace_is_no_lack_of_rights() -> None:
    cluster = FakeCluster()
    uid = cluster.add(PODS, pod("llm-0"))["metadata"]["uid"]
    cluster.terminating_namespaces.add("team-a")
    with pytest.raises(errors.Forbidden) as refused:
        await cluster.client("operator").evict("team-a", "llm-0", uid)
    assert refused.value.namespace_terminating


@virtually
async def test_a_bookmark_never_passes_over_an_event_of_the_same_moment() -> None:
    cluster = FakeCluster(bookmark_every=60)
    seen: list[str] = []

    async def follow() -> None:
        async for event in cluster.client("operator").watch(NODES, str(cluster.store.version)):
            seen.append(event.object["metadata"].get("name", "bookmark"))

    async with running(follow()):
        for number in range(3):
            await asyncio.sleep(60)
            cluster.add(NODES, node(f"gpu-{number}"))
        await asyncio.sleep(1)
    assert [name for name in seen if name != "bookmark"] == ["gpu-0", "gpu-1", "gpu-2"]
    assert "bookmark" in seen


@pytest.mark.parametrize("selector", ["a in (", "a==b c", "a,,b"])
def test_a_selector_that_cannot_be_read_is_refused(selector: str) -> None:
    with pytest.raises(ValueError, match="selector"):
        matcher(selector)


@pytest.mark.parametrize(
    ("selector", "cordoned", "plain"),
    [
        ("spec.unschedulable=true", True, False),
        ("spec.unschedulable!=true", False, True),
        ("spec.unschedulable=false", False, True),
        ("spec.unschedulable=", False, False),
        ("spec.providerID=", True, True),
    ],
)
def test_a_boolean_field_is_selected_as_the_server_does(selector: str, cordoned: bool, plain: bool) -> None:
    matches = matcher("", selector)
    assert matches({"metadata": {}, "spec": {"unschedulable": True}}) is cordoned
    assert matches({"metadata": {}, "spec": {}}) is plain


def test_a_selector_object_is_matched_like_the_servers() -> None:
    rows = [{"key": "tier", "operator": "NotIn", "values": ["web"]}, {"key": "app", "operator": "Exists"}]
    assert selects({"matchExpressions": rows}, {"app": "llm"})
    assert not selects({"matchExpressions": rows}, {"app": "llm", "tier": "web"})
    assert selects({}, {})
    assert not selects(None, {})
