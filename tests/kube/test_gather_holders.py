"""What kube/nodepods.py lists and looks up about the pods of a node: their ResourceClaims, DaemonSets and namespaces."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Literal

import pytest
from hack.sim.fakecluster import FakeCluster
from hack.sim.fakefaults import EVER, SILENCE, Silence
from tests.build import at, empty_since, make_fence
from tests.fakes.slow import SlowClient
from tests.fakes.virtualtime import virtually
from tests.kube.gathering import gathering
from tests.kube.objects import adopt, node, pdb, pod
from tests.plainchart import discovery, mig_manager, plugin
from tests.wording import lacks

from gpusharing.api import names
from gpusharing.kube.callmemory import CallMemory
from gpusharing.kube.client import (
    CLUSTER_POLICIES,
    DAEMON_SETS,
    JSON,
    NAMESPACES,
    NODES,
    PDBS,
    PODS,
    RESOURCE_CLAIMS,
    ApiRequest,
    PassingClient,
    Resource,
)
from gpusharing.kube.clock import loop_time
from gpusharing.kube.errors import Forbidden, HeldBack, KubeError, NotFound, Throttled, Unavailable
from gpusharing.kube.fanout import Workers
from gpusharing.kube.fence import record_text
from gpusharing.kube.nodepods import PATIENCE, Budgets, NodePods, PodLookups
from gpusharing.kube.pods import unclaimed_pod
from gpusharing.kube.sources import Sources
from gpusharing.kube.sourcesettings import SourceSettings
from gpusharing.kube.stackreader import StackReader
from gpusharing.planning.snapshot.podviews import NodeWork, PdbView, Scope

CLAIMS: dict[str, tuple[JSON | KubeError, str]] = {
    "allocated by the GPU driver": ({"driver": "gpu.nvidia.com"}, "gpu"),
    "with admin access": ({"driver": "gpu.nvidia.com", "adminAccess": True}, "none"),
    "allocated by another driver": ({"driver": "nic.example.com"}, "none"),
    "not there": (NotFound("gone"), "unresolved"),
    "not for us to read": (Forbidden("no right"), "unresolved"),
}


@pytest.mark.parametrize(("found", "use"), CLAIMS.values(), ids=CLAIMS.keys())
@virtually
async def test_a_claim_counts_as_a_gpu_unless_it_is_read_and_is_none(found: JSON | KubeError, use: str) -> None:
    claiming = pod(spec={"resourceClaims": [{"name": "gpu", "resourceClaimName": "c"}], "containers": []})
    async with gathering((PODS, claiming)) as stage:
        if isinstance(found, KubeError):
            stage.cluster.faults.fail("get", RESOURCE_CLAIMS, found)
        else:
            status = {"allocation": {"devices": {"results": [{"device": "gpu-0", **found}]}}}
            metadata = {"name": "c", "namespace": "team-a"}
            stage.cluster.add(RESOURCE_CLAIMS, {"metadata": metadata, "status": status})
        assert (await stage.work()).pods[0].dra == use


def owned_by_daemon_set() -> JSON:
    owner = {"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "monitor", "uid": "ds", "controller": True}
    return pod(metadata={"ownerReferences": [owner]})


def has_owner(work: NodeWork) -> bool | None:
    """What was found out about the owner of the first pod."""
    (owner, *_) = [pod.owner for pod in work.pods]
    assert owner is not None
    return owner.exists


OWNERS: dict[str, tuple[KubeError | str, bool | None]] = {
    "there": ("ds", True),
    "another one of its name": ("created-anew", False),
    "gone": (NotFound("gone"), False),
    "not for us to read": (Forbidden("no right"), None),
}


@pytest.mark.parametrize(("answer", "exists"), OWNERS.values(), ids=OWNERS.keys())
@virtually
async def test_whether_the_daemon_set_of_a_gpu_pod_exists_is_looked_up_every_30_seconds(
    answer: KubeError | str, exists: bool | None
) -> None:
    async with gathering((PODS, owned_by_daemon_set())) as stage:
        if isinstance(answer, str):
            stage.cluster.add(DAEMON_SETS, {"metadata": {"name": "monitor", "namespace": "team-a"}})
            if answer == "ds":
                adopt(stage.cluster, "monitor", stage.cluster.objects(PODS)[0]["metadata"]["name"])
        else:
            stage.cluster.faults.fail("get", DAEMON_SETS, answer, times=9)
        for seconds in (0, 3, 6, 27):
            assert has_owner(await stage.work(seconds)) is exists
        assert stage.cluster.calls["operator", "get", "daemonsets"] == 1
        await stage.work(31)
        assert stage.cluster.calls["operator", "get", "daemonsets"] == 2


@virtually
async def test_pods_that_a_new_daemon_set_has_adopted_are_not_orphans_for_30_seconds() -> None:
    async with gathering((PODS, owned_by_daemon_set())) as stage:
        metadata = {"name": "monitor", "namespace": "team-a"}
        name = stage.cluster.objects(PODS)[0]["metadata"]["name"]
        for seconds in (0, 3):
            stage.cluster.add(DAEMON_SETS, {"metadata": metadata})
            adopt(stage.cluster, "monitor", name)
            assert has_owner(await stage.work(seconds)) is True
            # As with --cascade=orphan: the pods stay.
            stage.cluster.patch(PODS, name, {"metadata": {"ownerReferences": None}}, "team-a")
            stage.cluster.delete(DAEMON_SETS, "monitor", "team-a")
        assert stage.cluster.calls["operator", "get", "daemonsets"] == 2


async def test_what_was_looked_up_is_forgotten_when_it_would_be_read_again() -> None:
    lookups = PodLookups(FakeCluster().client("operator"))
    for number in range(3):
        raw = owned_by_daemon_set()
        raw["metadata"]["namespace"] = f"team-{number}"
        await lookups.views([unclaimed_pod(raw)], Scope("gpu-operator"), at(60 * number), namespaces=True)
    assert list(lookups.owners) == [("team-2", "monitor", "ds")]


class Hasty(PassingClient):
    async def call(self, request: ApiRequest) -> JSON:
        return {}


async def test_an_answer_without_a_uid_shows_nothing_about_the_owner() -> None:
    lookups = PodLookups(Hasty(FakeCluster().client("operator")))
    (found,) = await lookups.views(
        [unclaimed_pod(owned_by_daemon_set())], Scope("gpu-operator"), at(0), namespaces=False
    )
    assert found.owner is not None
    assert found.owner.exists is None


OTHER_OWNERS = [("apps/v1", "ReplicaSet"), ("apps.kruise.io/v1alpha1", "DaemonSet")]


@pytest.mark.parametrize(("api_version", "kind"), OTHER_OWNERS, ids=["ReplicaSet", "OpenKruise's DaemonSet"])
async def test_an_owner_that_is_no_daemon_set_of_kubernetes_is_not_looked_up(api_version: str, kind: str) -> None:
    cluster, raw = FakeCluster(), owned_by_daemon_set()
    raw["metadata"]["ownerReferences"][0] |= {"apiVersion": api_version, "kind": kind}
    lookups = PodLookups(cluster.client("operator"))
    (found,) = await lookups.views([unclaimed_pod(raw)], Scope("gpu-operator"), at(0), namespaces=False)
    assert found.owner is not None
    assert (found.owner.exists, cluster.calls["operator", "get", "daemonsets"]) == (None, 0)


async def test_the_labels_of_a_namespace_are_read_once_for_each_list_and_only_for_gpu_pods() -> None:
    cluster, tiers = FakeCluster(), []
    bare = pod("bare", metadata={"namespace": "team-b"}, spec={"containers": []})
    cluster.add(NAMESPACES, {"metadata": {"name": "team-a", "labels": {"tier": "old"}}})
    lookups = PodLookups(cluster.client("operator"))
    for seconds in (0, 1):
        holder, *_ = await lookups.views(
            map(unclaimed_pod, [pod(), pod("second"), bare]), Scope("gpu-operator"), at(seconds), namespaces=True
        )
        assert holder.namespace_labels is not None
        tiers.append(holder.namespace_labels["tier"])
        cluster.patch(NAMESPACES, "team-a", {"metadata": {"labels": {"tier": "new"}}})
    assert (tiers, cluster.calls["operator", "get", "namespaces"]) == (["old", "new"], 2)


@pytest.mark.parametrize(
    ("guard", "modes"), [("mutating", ("full", "mig", "mps")), ("validating", ()), ("false", None)]
)
@virtually
async def test_with_the_guard_a_gpu_pod_gets_the_requirement_of_its_namespaces_label(
    guard: Literal["mutating", "validating", "false"], modes: tuple[str, ...] | None
) -> None:
    bare = pod("bare", spec={"containers": []})
    async with gathering((PODS, pod()), (PODS, bare), settings=SourceSettings(guard=guard)) as stage:
        labels = {names.LABEL_ISOLATION: "memory"}
        stage.cluster.add(NAMESPACES, {"metadata": {"name": "team-a", "labels": labels}})
        terms = {one.name: one.node_terms for one in (await stage.work(0)).pods}
    assert terms.pop("bare") == ()
    assert list(terms.values()) == [() if modes is None else (((names.LABEL_MODE, "In", modes),),)]


REBOOTING = {"migManager": {"env": [{"name": "WITH_REBOOT", "value": "true"}]}}
FENCED = {"metadata": {"annotations": {names.ANNOTATION_FENCE: record_text(make_fence())}}}


def _rebooting_manager() -> JSON:
    """mig-manager's DaemonSet without the GPU Operator, which may reboot the node."""
    manager = mig_manager()
    manager["spec"]["template"]["spec"]["containers"][0]["env"] = [{"name": "WITH_REBOOT", "value": "true"}]
    return manager


@pytest.mark.parametrize(
    "stack",
    [
        [(CLUSTER_POLICIES, {"metadata": {"name": "cluster-policy"}, "spec": REBOOTING})],
        [(DAEMON_SETS, plugin()), (DAEMON_SETS, discovery()), (DAEMON_SETS, _rebooting_manager())],
        [(DAEMON_SETS, _rebooting_manager())],
    ],
    ids=["a ClusterPolicy", "mig-manager beside NVIDIA's chart", "mig-manager alone, as with a DRA driver"],
)
@virtually
async def test_before_a_reboot_the_daemon_set_of_every_pod_is_looked_up_because_every_pod_must_leave(
    stack: list[tuple[Resource, JSON]],
) -> None:
    orphan = owned_by_daemon_set()
    del orphan["spec"]["containers"][0]["resources"]
    async with gathering((PODS, orphan), *stack) as stage:
        work = await stage.work()
        assert (has_owner(work), empty_since(work)) == (False, None)
        assert stage.lists("poddisruptionbudgets") == 1
        stage.cluster.patch(NODES, "gpu-07", FENCED)
        await stage.seen()
        work = await stage.work(3)
        assert (has_owner(work), empty_since(work)) == (None, at(3)), "this change does not reboot"


@virtually
async def test_a_cluster_policy_that_the_gpu_operator_ignores_makes_no_pod_leave_for_a_reboot() -> None:
    ignored = {"metadata": {"name": "second"}, "spec": REBOOTING, "status": {"state": "ignored"}}
    bare = pod("bare", spec={"containers": []})
    followed = {"metadata": {"name": "cluster-policy"}, "spec": {}}
    async with gathering((PODS, bare), (CLUSTER_POLICIES, ignored), (CLUSTER_POLICIES, followed)) as stage:
        assert empty_since(await stage.work()) == at(0)
        assert stage.lists("poddisruptionbudgets") == 0


@virtually
async def test_a_claim_from_a_template_is_found_by_the_name_in_the_status() -> None:
    claiming = pod(
        spec={"resourceClaims": [{"name": "gpu", "resourceClaimTemplateName": "t"}], "containers": []},
        status={"phase": "Running", "resourceClaimStatuses": [{"name": "gpu", "resourceClaimName": "made"}]},
    )
    devices = {"results": [{"driver": "gpu.nvidia.com", "device": "gpu-0"}]}
    made = {"metadata": {"name": "made", "namespace": "team-a"}, "status": {"allocation": {"devices": devices}}}
    async with gathering((PODS, claiming), (RESOURCE_CLAIMS, made)) as stage:
        assert (await stage.work()).pods[0].dra == "gpu"


@virtually
async def test_only_a_node_whose_list_is_old_or_in_doubt_is_listed_again_and_one_that_nobody_wants_is_forgotten() -> (
    None
):
    cluster, calls, workers = FakeCluster(), CallMemory(), Workers(2)
    cluster.add(PODS, pod())
    client = cluster.client("operator")
    sources = Sources(client, SourceSettings(), lambda: None)
    stack = StackReader(sources, calls, silent=True)
    pods = NodePods(client, sources, calls, workers, Budgets(client, workers), stack)
    moments = []
    for seconds in (0, 1, 2):
        await pods.look(frozenset({"gpu-07"}), frozenset(), at(seconds), loop_time())
        moments.append(pods.work["gpu-07"].listed_at)
        calls.unsure = {"gpu-07"} if seconds == 1 else set()
    assert moments == [at(0), at(0), at(2)]
    await pods.look(frozenset(), frozenset(), at(3), loop_time())
    assert pods.work == {}


@asynccontextmanager
async def budgets(seconds: float = 0.0) -> AsyncIterator[tuple[Budgets, FakeCluster]]:
    cluster, workers = FakeCluster(), Workers(2)
    cluster.add(PDBS, pdb())
    yield Budgets(SlowClient(cluster.client("operator"), seconds), workers), cluster
    await workers.close()


async def each_second(stage: Budgets, count: int) -> list[tuple[PdbView, ...] | str | None]:
    found = []
    for _ in range(count):
        found.append(await stage.find())
        await asyncio.sleep(1)
    return found


@virtually
async def test_an_answer_on_its_way_is_no_trouble_and_counts_when_it_is_there() -> None:
    async with budgets(5.0) as (stage, _):
        found = await each_second(stage, 8)
        assert set(found[:4]) == {None}
        assert isinstance(found[-1], tuple)
        assert [row.name for row in found[-1]] == ["llm"]


@virtually
async def test_an_old_list_counts_no_more() -> None:
    async with budgets() as (stage, cluster):
        assert isinstance(await stage.find(), tuple)
        cluster.faults.fail("list", PDBS, SILENCE, times=EVER)
        await asyncio.sleep(15.0)
        assert isinstance(await stage.find(), tuple)
        await asyncio.sleep(0.1)
        assert await stage.find() is None


@virtually
async def test_a_list_counts_for_two_minutes_while_the_server_asks_us_to_wait_for_the_next() -> None:
    async with budgets() as (stage, cluster):
        assert isinstance(await stage.find(), tuple)
        cluster.faults.fail("list", PDBS, Throttled("slow down", 30.0))
        await asyncio.sleep(60)
        assert isinstance(await stage.find(), tuple)
        cluster.faults.fail("list", PDBS, HeldBack("not sent", 30.0))
        await asyncio.sleep(60)
        assert isinstance(await stage.find(), tuple)
        cluster.faults.fail("list", PDBS, Throttled("slow down", 30.0))
        await asyncio.sleep(1)
        assert await stage.find() == "the PodDisruptionBudgets cannot be listed: slow down"
        assert isinstance(await stage.find(), tuple)
        cluster.faults.fail("list", PDBS, Unavailable("502"))
        await asyncio.sleep(16)
        assert await stage.find() == "the PodDisruptionBudgets cannot be listed: 502"


@virtually
async def test_what_the_server_said_stands_while_it_is_asked_again() -> None:
    async with budgets(5.0) as (stage, cluster):
        sick = cluster.faults.fail("list", PDBS, Unavailable("502"), times=EVER)
        said = await each_second(stage, 30)
        first = next(number for number, words in enumerate(said) if words is not None)
        assert set(said[first:]) == {"the PodDisruptionBudgets cannot be listed: 502"}
        sick.lift()
        assert isinstance((await each_second(stage, 12))[-1], tuple)


@virtually
async def test_an_error_of_long_ago_is_not_told_again() -> None:
    async with budgets() as (stage, cluster):
        cluster.faults.fail("list", PDBS, Unavailable("502"))
        assert isinstance(await stage.find(), str)
        cluster.faults.fail("list", PDBS, SILENCE)
        await asyncio.sleep(PATIENCE + 1)
        assert await stage.find() is None


@virtually
async def test_a_list_that_may_not_be_sent_is_waited_for_half_a_minute() -> None:
    async with budgets() as (stage, cluster):
        cluster.faults.fail("list", PDBS, HeldBack("not sent", 60.0), times=EVER)
        assert await stage.find() is None
        await asyncio.sleep(PATIENCE)
        assert await stage.find() is None
        await asyncio.sleep(1)
        assert not lacks(await stage.find(), "PodDisruptionBudgets", "30 s")


@virtually
async def test_a_refusal_stands_while_nothing_may_be_sent() -> None:
    async with budgets() as (stage, cluster):
        cluster.faults.fail("list", PDBS, Unavailable("502"))
        await stage.find()
        cluster.faults.fail("list", PDBS, HeldBack("not sent", 60.0), times=EVER)
        for _ in range(5):
            await asyncio.sleep(PATIENCE / 2)
            assert await stage.find() == "the PodDisruptionBudgets cannot be listed: 502"


@virtually
async def test_a_node_keeps_what_was_seen_of_it_until_its_budgets_are_known() -> None:
    async with gathering((PDBS, pdb())) as stage:
        empty = await stage.work(0)
        stage.cluster.add(PODS, pod())
        sick = stage.cluster.faults.fail("list", PDBS, SILENCE, times=EVER)
        assert await stage.work(3) == empty
        lists = stage.lists("pods")
        assert await stage.work(6) == empty
        assert stage.lists("pods") == lists, "its pods are known already"
        sick.lift()
        stage.gatherer.pods.forget()
        await asyncio.sleep(11)
        later = await stage.work(12)
        assert ([row.name for row in later.pdbs], later.error) == (["llm"], "")


NO_BUDGETS = {
    "refused": (Unavailable("502"), {"gpu-07": "the PodDisruptionBudgets cannot be listed: 502", "gpu-08": ""}),
    "silent": (SILENCE, {"gpu-08": ""}),
}


@pytest.mark.parametrize(("fault", "told"), NO_BUDGETS.values(), ids=NO_BUDGETS.keys())
@virtually
async def test_budgets_that_cannot_be_listed_keep_only_pods_that_they_may_guard(
    fault: KubeError | Silence, told: Mapping[str, str]
) -> None:
    bare = pod("bare", "gpu-08", spec={"containers": []})
    async with gathering((NODES, node("gpu-08")), (PODS, pod()), (PODS, bare)) as stage:
        stage.cluster.faults.fail("list", PDBS, fault, times=EVER)
        work = (await stage.snapshot(0, frozenset({"gpu-07", "gpu-08"}))).work
        assert {name: one.error for name, one in work.items()} == told
        assert (empty_since(work["gpu-08"]), work["gpu-08"].pdbs) == (at(0), ())
        await stage.gatherer.shared.close()
