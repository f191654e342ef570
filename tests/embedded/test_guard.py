"""The guard finds what breaks the rules about pods and foreign marks: one that never barks guards nothing."""

import json
from typing import Any

import pytest
from hack.embedded import embedded
from tests.embedded.guard import PromiseGuard
from tests.embedded.scene import gpu_pod, node, policy
from tests.fakes.virtualtime import virtually
from tests.nodewrites import foreign_marks
from tests.podrules import must_leave, wrong_in_eviction

from gpusharing.kube.client import CLUSTER_POLICIES, JSON, PODS, POLICIES
from gpusharing.kube.errors import Conflict

DAEMON_SET: JSON = {"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "exporter", "controller": True}
GPU: JSON = {"name": "main", "resources": {"limits": {"nvidia.com/mig-1g.10gb": "1"}}}
CPU: JSON = {"name": "main"}
CLAIM: JSON = {"status": {"allocation": {"devices": {"results": [{"driver": "gpu.nvidia.com"}]}}}}
CLAIMS = {"default/gpu": CLAIM}
CLAIMING: JSON = {"containers": [CPU], "resourceClaims": [{"name": "a", "resourceClaimName": "gpu"}]}


def pod(**more: Any) -> JSON:
    """A pod that holds a GPU; `more` replaces parts of metadata and spec."""
    return gpu_pod("p", "gpu-1", **more)


def finished() -> JSON:
    return pod() | {"status": {"phase": "Succeeded"}}


HOLDERS = {
    "a plain pod": pod(),
    "an init container": pod(spec={"containers": [CPU], "initContainers": [GPU]}),
    "an ephemeral container": pod(spec={"containers": [CPU], "ephemeralContainers": [GPU]}),
    "a claim": pod(spec=CLAIMING),
    "a DaemonSet": pod(metadata={"ownerReferences": [DAEMON_SET]}),
    "a static pod": pod(metadata={"annotations": {"kubernetes.io/config.mirror": "x"}}),
    "a pod that leaves": pod(metadata={"deletionTimestamp": "2026-11-20T10:00:00Z"}),
}
NO_HOLDERS = {
    "a CPU pod": pod(spec={"containers": [CPU]}),
    "a finished pod": finished(),
    "a pod of NVIDIA's": pod(metadata={"namespace": "gpu-operator", "ownerReferences": [DAEMON_SET]}),
    "a pod that mig-manager removes": pod(
        metadata={"ownerReferences": [DAEMON_SET]}, spec={"nodeSelector": {"nvidia.com/gpu.deploy.client": "true"}}
    ),
}


@pytest.mark.parametrize("name", HOLDERS)
def test_a_holder_of_every_kind_must_leave_before_the_point_of_no_return(name: str) -> None:
    assert must_leave(HOLDERS[name], CLAIMS, reboot=False)


@pytest.mark.parametrize("name", NO_HOLDERS)
def test_a_pod_without_a_gpu_may_stay(name: str) -> None:
    assert not must_leave(NO_HOLDERS[name], CLAIMS, reboot=False)


def test_before_a_reboot_every_pod_must_leave_but_finished_and_pinned_ones() -> None:
    must = [name for name, raw in NO_HOLDERS.items() if must_leave(raw, CLAIMS, reboot=True)]
    assert must == ["a CPU pod"]


@pytest.mark.parametrize("name", ["a claim", "a DaemonSet", "a static pod", "a pod that leaves"])
def test_some_holders_may_not_be_evicted(name: str) -> None:
    assert list(wrong_in_eviction(HOLDERS[name], CLAIMS, reboot=False))


@pytest.mark.parametrize("name", ["a plain pod", "an init container"])
def test_the_others_may(name: str) -> None:
    assert not list(wrong_in_eviction(HOLDERS[name], CLAIMS, reboot=False))


@pytest.mark.parametrize(
    "marked",
    [
        {"metadata": {"annotations": {"weave.works/kured-reboot-in-progress": "x"}}},
        {"metadata": {"labels": {"nvidia.com/gpu-driver-upgrade-state": "drain-required"}}},
        {"metadata": {"annotations": {"machineconfiguration.openshift.io/desiredDrain": "drain-1"}}},
        {"metadata": {}, "spec": {"taints": [{"key": "medik8s.io/drain", "effect": "NoSchedule"}]}},
        {"metadata": {}, "status": {"conditions": [{"type": "DrainInProgress", "status": "True"}]}},
    ],
)
def test_the_marks_of_other_controllers_are_known(marked: JSON) -> None:
    assert len(foreign_marks(marked)) == 1
    idle: JSON = {"metadata": {"labels": {"nvidia.com/gpu-driver-upgrade-state": "upgrade-done"}}}
    assert not foreign_marks(idle)


@virtually
async def test_an_eviction_and_a_restart_on_a_node_in_use_are_noticed() -> None:
    raw = node("gpu-1")
    fence = {"stage": "actuating", "disruption": "Reset", "policy": "p", "targetMigConfig": "x"}
    raw["metadata"]["annotations"] = {
        "gpusharing.dev/fence": json.dumps(fence | {"targetPluginConfig": "", "fromMode": ""})
    }
    async with embedded([raw], factor=1.0) as environment:
        guard = PromiseGuard(environment.cluster, environment.software)
        operator = environment.cluster.client("operator")
        environment.cluster.add(PODS, pod(metadata={"ownerReferences": [DAEMON_SET]}))
        held = environment.cluster.get(PODS, "p", "default")
        await operator.evict("default", "p", held["metadata"]["uid"])
        named = gpu_pod("nvidia-mig-manager-x", "gpu-1", metadata={"namespace": "gpu-operator"})
        uid = environment.cluster.add(PODS, named)["metadata"]["uid"]
        await operator.delete(PODS, "nvidia-mig-manager-x", namespace="gpu-operator", uid=uid)
    said = "\n".join(guard.wrong)
    assert "a DaemonSet brings it back" in said
    assert "evicted p from a schedulable node" in said
    assert "restarted nvidia-mig-manager-x on a schedulable node" in said
    assert "nvidia-mig-manager-x restarted with ['p'" in said


CLUSTER_POLICY = "cluster-policy"


def pointing(version: str, **blocks: str) -> JSON:
    return {
        "metadata": {"resourceVersion": version, "annotations": {"gpusharing.dev/configured": "x"}},
        "spec": {block: {"config": {"name": name}} for block, name in blocks.items()},
    }


@virtually
async def test_a_pointer_that_is_set_twice_or_taken_from_somebody_is_noticed() -> None:
    theirs: JSON = {
        "metadata": {"name": CLUSTER_POLICY},
        "spec": {"devicePlugin": {"config": {"name": ""}}, "migManager": {"config": {"name": "theirs"}}},
    }
    async with embedded([node("gpu-1")], factor=1.0, cluster_policy=theirs) as environment:
        guard = PromiseGuard(environment.cluster, environment.software, configures=True)
        operator = environment.cluster.client("operator")

        def version() -> str:
            found = environment.cluster.get(CLUSTER_POLICIES, CLUSTER_POLICY)
            return str(found["metadata"]["resourceVersion"])

        first = pointing(version(), devicePlugin="gpusharing-device-plugin")
        await operator.patch(CLUSTER_POLICIES, CLUSTER_POLICY, first)
        assert guard.wrong == []
        with pytest.raises(Conflict):
            await operator.patch(CLUSTER_POLICIES, CLUSTER_POLICY, first)
        assert guard.wrong == [], "the server refused it"
        environment.cluster.patch(
            CLUSTER_POLICIES, CLUSTER_POLICY, {"spec": {"devicePlugin": {"config": {"name": ""}}}}
        )
        again = pointing(version(), devicePlugin="gpusharing-device-plugin")
        await operator.patch(CLUSTER_POLICIES, CLUSTER_POLICY, again)
        taken = pointing(version(), migManager="gpusharing-mig-parted")
        await operator.patch(CLUSTER_POLICIES, CLUSTER_POLICY, taken)
    assert guard.wrong == ["devicePlugin pointed twice", "migManager pointed away from theirs"]


@virtually
async def test_a_spec_that_is_not_the_persons_any_more_is_noticed() -> None:
    async with embedded([node("gpu-1")], factor=1.0) as environment:
        guard = PromiseGuard(environment.cluster, environment.software)
        environment.apply(policy({"mode": "Full"}))
        operator = environment.cluster.client("operator")
        await operator.patch(POLICIES, "pool-b", {"metadata": {"finalizers": ["gpusharing.dev/release"]}})
        assert guard.wrong == []
        await operator.patch(POLICIES, "pool-b", {"spec": {"priority": 7}})
        await operator.patch(POLICIES, "pool-b", {"metadata": {"labels": {"a": "b"}}})
    said = "\n".join(guard.wrong)
    assert "wrote spec of a policy" in said
    assert "wrote ['labels'] of a policy's metadata" in said
