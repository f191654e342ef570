"""What kube/nodepods.py looks up about the pods of a node: their ResourceClaims, DaemonSets and namespaces."""

from typing import Literal

import pytest
from hack.sim.fakecluster import FakeCluster
from tests.build import at, empty_since, make_fence
from tests.fakes.virtualtime import virtually
from tests.kube.gathering import gathering
from tests.kube.objects import adopt, pod
from tests.plainchart import discovery, mig_manager, plugin

from gpusharing.api import names
from gpusharing.kube.client import (
    CLUSTER_POLICIES,
    DAEMON_SETS,
    JSON,
    NAMESPACES,
    NODES,
    PODS,
    RESOURCE_CLAIMS,
    ApiRequest,
    PassingClient,
    Resource,
)
from gpusharing.kube.errors import Forbidden, KubeError, NotFound
from gpusharing.kube.fence import record_text
from gpusharing.kube.nodepods import PodLookups
from gpusharing.kube.sourcesettings import SourceSettings
from gpusharing.planning.snapshot.podviews import Scope

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
            owner = (await stage.work(seconds)).pods[0].owner
            assert owner is not None
            assert owner.exists is exists
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
            owner = (await stage.work(seconds)).pods[0].owner
            assert owner is not None
            assert owner.exists is True
            # As with --cascade=orphan: the pods stay.
            stage.cluster.patch(PODS, name, {"metadata": {"ownerReferences": None}}, "team-a")
            stage.cluster.delete(DAEMON_SETS, "monitor", "team-a")
        assert stage.cluster.calls["operator", "get", "daemonsets"] == 2


async def test_what_was_looked_up_is_forgotten_when_it_would_be_read_again() -> None:
    lookups = PodLookups(FakeCluster().client("operator"))
    for number in range(3):
        raw = owned_by_daemon_set()
        raw["metadata"]["namespace"] = f"team-{number}"
        await lookups.views([raw], Scope("gpu-operator"), at(60 * number), namespaces=True)
    assert list(lookups.owners) == [("team-2", "monitor", "ds")]
    assert list(lookups.namespaces) == ["team-2"]


class Hasty(PassingClient):
    """A server whose answers are empty."""

    async def call(self, request: ApiRequest) -> JSON:
        return {}


async def test_an_answer_without_a_uid_shows_nothing_about_the_owner() -> None:
    lookups = PodLookups(Hasty(FakeCluster().client("operator")))
    (found,) = await lookups.views([owned_by_daemon_set()], Scope("gpu-operator"), at(0), namespaces=False)
    assert found.owner is not None
    assert found.owner.exists is None


OTHER_OWNERS = [("apps/v1", "ReplicaSet"), ("apps.kruise.io/v1alpha1", "DaemonSet")]


@pytest.mark.parametrize(("api_version", "kind"), OTHER_OWNERS, ids=["ReplicaSet", "OpenKruise's DaemonSet"])
async def test_an_owner_that_is_no_daemon_set_of_kubernetes_is_not_looked_up(api_version: str, kind: str) -> None:
    cluster, raw = FakeCluster(), owned_by_daemon_set()
    raw["metadata"]["ownerReferences"][0] |= {"apiVersion": api_version, "kind": kind}
    lookups = PodLookups(cluster.client("operator"))
    (found,) = await lookups.views([raw], Scope("gpu-operator"), at(0), namespaces=False)
    assert found.owner is not None
    assert (found.owner.exists, cluster.calls["operator", "get", "daemonsets"]) == (None, 0)


async def test_the_labels_of_a_namespace_are_read_again_after_30_seconds_and_only_for_gpu_pods() -> None:
    cluster, tiers = FakeCluster(), []
    bare = pod("bare", metadata={"namespace": "team-b"}, spec={"containers": []})
    cluster.add(NAMESPACES, {"metadata": {"name": "team-a", "labels": {"tier": "old"}}})
    lookups = PodLookups(cluster.client("operator"))
    for seconds in (0, 30, 31):
        holder, _ = await lookups.views([pod(), bare], Scope("gpu-operator"), at(seconds), namespaces=True)
        assert holder.namespace_labels is not None
        tiers.append(holder.namespace_labels["tier"])
        cluster.patch(NAMESPACES, "team-a", {"metadata": {"labels": {"tier": "new"}}})
    assert (tiers, cluster.calls["operator", "get", "namespaces"]) == (["old", "old", "new"], 2)


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
        assert work.pods[0].owner is not None
        assert (work.pods[0].owner.exists, empty_since(work)) == (False, None)
        assert stage.lists("poddisruptionbudgets") == 1
        stage.cluster.patch(NODES, "gpu-07", FENCED)
        await stage.seen()
        work = await stage.work(3)
        assert work.pods[0].owner is not None
        assert (work.pods[0].owner.exists, empty_since(work)) == (None, at(3)), "this change does not reboot"


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
