"""Raw pods, claims and budgets become views by the rules of docs/design/drain.md, rows P and G."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from tests.build import make_work
from tests.kube.damage import put
from tests.kube.objects import pdb, pod
from tests.kube.test_convert import JUNK, places_in
from tests.planning.drainpass import drain_pass, foreseen

from gpusharing.api.selectors import FIELD, matches
from gpusharing.kube.pods import (
    NO_END,
    claimed_devices,
    largest_requests,
    pdb_view,
    pod_requests,
    pod_view,
    resource_claim_names,
)
from gpusharing.planning.drain.evictions import binding_budgets
from gpusharing.planning.drain.pods import has_finished
from gpusharing.planning.snapshot.podviews import Owner, Scope

JSON = dict[str, Any]
SCOPE = Scope("gpu-operator")


def gpus(number: object, resource: str = "nvidia.com/gpu", where: str = "limits") -> JSON:
    return {"name": "c", "resources": {where: {resource: number}}}


def test_a_running_pod_of_a_replica_set_holds_its_gpu() -> None:
    view = pod_view(pod(), {})
    assert (view.ref, view.uid, view.phase, view.ready) == ("team-a/llm-0", "uid-of-llm-0", "Running", True)
    assert view.owner == Owner("apps/v1", "ReplicaSet", "llm", "rs")
    assert view.resources == {"nvidia.com/gpu": 1}
    assert (view.mirror, view.dra, view.deleted_at) == (False, "none", None)


@pytest.mark.parametrize(
    ("spec", "held"),
    [
        ({"containers": [gpus("2"), gpus("1")]}, {"nvidia.com/gpu": 3}),
        ({"containers": [{}], "initContainers": [gpus("1")]}, {"nvidia.com/gpu": 1}),
        ({"containers": [gpus("2")], "initContainers": [gpus("1")]}, {"nvidia.com/gpu": 2}),
        ({"containers": [gpus("1")], "initContainers": [gpus("3")]}, {"nvidia.com/gpu": 3}),
        (
            {
                "containers": [gpus("1")],
                "initContainers": [{**gpus("1"), "restartPolicy": "Always"}, gpus("2")],
            },
            {"nvidia.com/gpu": 3},
        ),
        ({"containers": [{}], "ephemeralContainers": [gpus("1")]}, {"nvidia.com/gpu": 1}),
        ({"containers": [gpus("1", "nvidia.com/mig-1g.10gb", "requests")]}, {"nvidia.com/mig-1g.10gb": 1}),
        ({"containers": [gpus("1", "nvidia.com/gpu.shared")]}, {"nvidia.com/gpu.shared": 1}),
        ({"containers": [gpus("0")]}, {}),
        ({"containers": [gpus("4", "nvidia.com/hostdev")]}, {}),
        ({"containers": [gpus("a few")]}, {"nvidia.com/gpu": 1}),
        ({"containers": [gpus(None)]}, {"nvidia.com/gpu": 1}),
    ],
    ids=[
        "containers are summed",
        "an init or sidecar container counts",
        "an init container gives its devices to the containers",
        "an init container takes more than all containers",
        "a sidecar runs beside those that start after it",
        "an ephemeral container counts",
        "a request counts like a limit",
        "a renamed share is a GPU",
        "zero is absent",
        "a network device is no GPU",
        "an unreadable amount holds one",
        "a missing amount holds one",
    ],
)
def test_what_a_pod_holds(spec: JSON, held: dict[str, int]) -> None:
    assert pod_view(pod(spec=spec), {}).resources == held


@pytest.mark.parametrize(
    ("init", "found"),
    [
        ([], False),
        ([{"name": "c"}], False),
        ([gpus("0")], False),
        ([gpus("4", "nvidia.com/hostdev")], False),
        ([{"name": "c"}, gpus("1")], True),
        ([{**gpus("1", "nvidia.com/mig-1g.10gb"), "restartPolicy": "Always"}], True),
        ([gpus("a few")], True),
    ],
    ids=["none", "no GPU", "zero", "a network device", "an init container", "a sidecar", "an unreadable amount"],
)
def test_whether_an_init_container_asks_for_a_gpu(init: list[JSON], found: bool) -> None:
    spec = {"containers": [gpus("1")], "initContainers": init}
    assert pod_view(pod(spec=spec), {}).init_gpus is found


@pytest.mark.parametrize(
    "metadata",
    [
        {"annotations": {"kubernetes.io/config.mirror": "hash"}},
        {"ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": "gpu-07", "controller": True}]},
    ],
    ids=["by annotation", "by owner"],
)
def test_a_static_pod_is_recognised(metadata: JSON) -> None:
    assert pod_view(pod(metadata=metadata), {}).mirror


def test_marks_that_ask_not_to_disturb_are_kept_and_no_other_annotation() -> None:
    written = {
        "annotations": {"karpenter.sh/do-not-disrupt": "5m", "team-a/secret": "x", "cluster.x-k8s.io/drain": "skip"},
        "labels": {"cluster.x-k8s.io/drain": "wait-completed", "karpenter.sh/do-not-disrupt": "true"},
    }
    view = pod_view(pod(metadata={**pod()["metadata"], **written}), {})
    assert view.marks == (("cluster.x-k8s.io/drain", "wait-completed"), ("karpenter.sh/do-not-disrupt", "5m"))


@pytest.mark.parametrize(
    ("volume", "expected"),
    [
        ({"name": "scratch", "emptyDir": {}}, True),
        ({"name": "shm", "emptyDir": {"medium": "Memory"}}, False),
        ({"name": "pages", "emptyDir": {"medium": "HugePages"}}, False),
        ({"name": "odd", "emptyDir": None}, True),
        ({"name": "data", "persistentVolumeClaim": {"claimName": "data"}}, False),
    ],
    ids=["on the disk", "in memory", "in huge pages", "unreadable", "elsewhere"],
)
def test_files_that_a_pod_would_lose(volume: JSON, expected: bool) -> None:
    assert pod_view(pod(spec={"volumes": [volume]}), {}).local_files is expected


def test_the_required_node_affinity_of_a_pod_that_asks_for_a_gpu_is_kept() -> None:
    row = {"key": "nvidia.com/gpu.product", "operator": "In", "values": ["NVIDIA-L40S"]}
    named = {"key": "metadata.name", "operator": "In", "values": ["gpu-1"]}
    terms = [{"matchExpressions": [row], "matchFields": [named]}, {}, {"matchExpressions": [{**row, "values": None}]}]
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
    spec = {"containers": [gpus("1")], "affinity": {"nodeAffinity": required}}
    product = ("nvidia.com/gpu.product", "In", ("NVIDIA-L40S",))
    name = (f"{FIELD}metadata.name", "In", ("gpu-1",))
    assert pod_view(pod(spec=spec), {}).node_terms == (
        (product, name),
        (("nvidia.com/gpu.product", "In", ()),),
    )
    none = {**spec, "containers": [{}]}
    assert pod_view(pod(spec=none), {}).node_terms == (), "it holds no GPU"
    fraction = pod(spec=none, metadata={"labels": {"runai-gpu-group": "g1"}})
    assert len(pod_view(fraction, {}).node_terms) == 2, "KAI-Scheduler gives it a fraction"
    assert pod_view(pod(), {}).node_terms == ()


def test_a_required_node_affinity_without_any_requirement_matches_no_node() -> None:
    required: JSON = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{}]}}
    spec = {"containers": [gpus("1")], "affinity": {"nodeAffinity": required}}
    (term,) = pod_view(pod(spec=spec), {}).node_terms
    assert not matches({f"{FIELD}metadata.name": "gpu-1"}, {}, term)


def test_only_the_controller_is_the_owner() -> None:
    bystander = {"apiVersion": "v1", "kind": "ConfigMap", "name": "x"}
    assert pod_view(pod(metadata={"ownerReferences": [bystander]}), {}).owner is None


def test_a_terminating_pod_tells_until_when() -> None:
    view = pod_view(pod(metadata={"deletionTimestamp": "2026-11-20T10:00:30Z", "finalizers": ["a/b"]}), {})
    assert view.deleted_at == datetime(2026, 11, 20, 10, 0, 30, tzinfo=UTC)
    assert view.finalizers == ("a/b",)


def test_an_unreadable_deletion_time_still_means_terminating() -> None:
    assert pod_view(pod(metadata={"deletionTimestamp": "soon"}), {}).deleted_at is not None


@pytest.mark.parametrize(
    "written", ["soon", 7, "9999-12-31T23:59:59Z", "0001-01-01T00:00:00Z", "0001-01-01T00:00:00+01:00"]
)
def test_a_pod_that_is_going_at_a_time_beyond_every_clock_is_waited_for_and_never_evicted(written: object) -> None:
    going = pod_view(pod(metadata={"name": "p", "deletionTimestamp": written}), {})
    work = make_work(replace(going, resources={"nvidia.com/gpu": 1}))
    assert foreseen(work) is not None
    found = drain_pass(work)
    assert (found.plan.evict, [pod.name for pod in found.waiting], found.plan.holders) == ((), ["p"], 1)


CORDON = "node.kubernetes.io/unschedulable"
TOLERATIONS: dict[str, tuple[list[JSON], bool]] = {
    "none": ([], False),
    "the cordon's taint": ([{"key": CORDON, "operator": "Exists", "effect": "NoSchedule"}], True),
    "the cordon's taint with any effect": ([{"key": CORDON, "operator": "Exists"}], True),
    "the cordon's taint by its empty value": ([{"key": CORDON, "effect": "NoSchedule"}], True),
    "the cordon's taint by another value": ([{"key": CORDON, "operator": "Equal", "value": "x"}], False),
    "the cordon's taint as it never is": ([{"key": CORDON, "operator": "Exists", "effect": "NoExecute"}], False),
    "everything": ([{"operator": "Exists"}], True),
    "nothing, by a row without key": ([{"operator": "Equal"}], False),
    "another taint": ([{"key": "nvidia.com/gpu", "operator": "Exists"}], False),
}  # fmt: skip


@pytest.mark.parametrize(("tolerations", "expected"), TOLERATIONS.values(), ids=TOLERATIONS.keys())
def test_a_pod_tells_whether_it_tolerates_the_cordon(tolerations: list[JSON], expected: bool) -> None:
    assert pod_view(pod(spec={"tolerations": tolerations}), {}).tolerates_cordon is expected


def test_a_pod_tells_since_when_it_is() -> None:
    made = pod(metadata={"creationTimestamp": "2026-11-20T10:00:30Z"})
    assert pod_view(made, {}).created == datetime(2026, 11, 20, 10, 0, 30, tzinfo=UTC)
    assert pod_view(pod(metadata={"creationTimestamp": "once"}), {}).created is None


def test_a_pod_without_a_phase_counts_as_unknown() -> None:
    raw = pod()
    del raw["status"]["phase"]
    view = pod_view(raw, {})
    budget = pdb_view({"metadata": {"name": "b", "namespace": "team-a"}, "spec": {"selector": {}}})
    assert view.phase == "Unknown"
    assert not has_finished(view)
    assert binding_budgets(view, [budget]) == (budget,)


CLAIMS: list[tuple[str, JSON, JSON, str]] = [
    ("named directly and allocated", {"name": "g", "resourceClaimName": "gpu-claim"}, {}, "gpu"),
    ("allocated by another driver", {"name": "g", "resourceClaimName": "nic-claim"}, {}, "none"),
    ("not to be read", {"name": "g", "resourceClaimName": "secret"}, {}, "unresolved"),
    (
        "made from a template",
        {"name": "g", "resourceClaimTemplateName": "t"},
        {"resourceClaimStatuses": [{"name": "g", "resourceClaimName": "gpu-claim"}]},
        "gpu",
    ),
    ("not made from its template yet", {"name": "g", "resourceClaimTemplateName": "t"}, {}, "unresolved"),
    (
        "found unnecessary",
        {"name": "g", "resourceClaimTemplateName": "t"},
        {"resourceClaimStatuses": [{"name": "g", "resourceClaimName": None}]},
        "none",
    ),
]


@pytest.mark.parametrize(("claim", "status", "use"), [c[1:] for c in CLAIMS], ids=[c[0] for c in CLAIMS])
def test_a_dra_claim_is(claim: JSON, status: JSON, use: str) -> None:
    raw = pod(spec={"containers": [{}], "resourceClaims": [claim]}, status=status)
    assert pod_view(raw, {"team-a/gpu-claim": ("gpu-0",), "team-a/nic-claim": ()}).dra == use


def test_an_extended_resource_backed_by_dra_has_a_claim_too() -> None:
    raw = pod(status={"extendedResourceClaimStatus": {"resourceClaimName": "special"}})
    assert resource_claim_names(raw) == ("special",)
    view = pod_view(raw, {"team-a/special": ("gpu-0",)})
    assert (view.dra, view.devices) == ("gpu", ()), "its requests count the device"


def test_a_pod_has_each_device_of_its_own_claims_once_and_its_affinity_counts() -> None:
    claims = [{"name": name, "resourceClaimName": name} for name in ("one", "two", "odd")]
    terms = [{"matchExpressions": [{"key": "a", "operator": "Exists"}]}]
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
    spec = {"containers": [{}], "resourceClaims": claims, "affinity": {"nodeAffinity": required}}
    raw = pod(spec=spec, status={"extendedResourceClaimStatus": {"resourceClaimName": "special"}})
    held = {"one": ("gpu-1", "gpu-0"), "two": ("gpu-1", ""), "odd": None, "special": ("gpu-7",)}
    view = pod_view(raw, {f"team-a/{name}": devices for name, devices in held.items()})
    assert (view.dra, view.devices) == ("gpu", ("gpu-1", "gpu-0"))
    assert view.node_terms == ((("a", "Exists", ()),),)


def result(driver: str, **more: Any) -> JSON:
    results = [{"driver": driver, "device": "gpu-0", **more}]
    return {"status": {"allocation": {"devices": {"results": results}}}}


def asking(device_class: str, selector: str) -> JSON:
    """A claim for one device of this class that the selector allows, which holds gpu-0."""
    exactly = {"deviceClassName": device_class, "selectors": [{"cel": {"expression": selector}}]}
    requests = [{"name": "other", "exactly": {}}, {"name": "gpu", "exactly": exactly}]
    return {**result("gpu.nvidia.com", request="gpu"), "spec": {"devices": {"requests": requests}}}


@pytest.mark.parametrize(
    ("claim", "devices"),
    [
        pytest.param(result("gpu.nvidia.com"), ("gpu-0",), id="a GPU"),
        pytest.param(
            asking("mig.nvidia.com", "device.attributes['gpu.nvidia.com'].profile == '1g.10gb'"),
            ("gpu-0",),
            id="a MIG device of a profile",
        ),
        pytest.param(asking("mig.nvidia.com", "device.driver == 'gpu.nvidia.com'"), ("",), id="any MIG device"),
        pytest.param(result("gpu.nvidia.com", request="gpu/any"), ("",), id="one of several alternatives"),
        pytest.param(result("gpu.nvidia.com", adminAccess=True), (), id="monitoring"),
        pytest.param(result("nic.example.com"), (), id="another driver"),
        pytest.param({"status": {}}, (), id="not allocated"),
        pytest.param({"status": {"allocation": {"devices": {}}}}, None, id="malformed"),
    ],
)
def test_a_claim_holds(claim: JSON, devices: tuple[str, ...] | None) -> None:
    assert claimed_devices(claim) == devices


def test_a_budget_shows_selector_and_numbers() -> None:
    view = pdb_view(pdb(selector={"matchExpressions": [{"key": "app", "operator": "In", "values": ["a", "b"]}]}))
    assert (view.namespace, view.name, view.selects_all) == ("team-a", "llm", False)
    assert view.match_expressions == (("app", "In", ("a", "b")),)
    assert (view.disruptions_allowed, view.expected_pods, view.desired_healthy) == (0, 2, 2)
    assert not view.always_allow_unhealthy


def test_an_empty_selector_takes_every_pod_and_none_takes_none() -> None:
    assert pdb_view(pdb(selector={})).selects_all
    assert not pdb_view(pdb(spec={"minAvailable": 1})).selects_all
    assert not pdb_view(pdb(selector={"matchLabels": {"app": "llm"}})).selects_all


@given(places_in(pod()), JUNK)
def test_a_pod_with_any_damaged_field_is_still_converted(path: tuple[Any, ...], junk: object) -> None:
    view = pod_view(put(pod(), path, junk), {})
    assert all(number > 0 for number in view.resources.values())


@given(places_in(pdb()), JUNK)
def test_a_budget_with_any_damaged_field_is_still_converted(path: tuple[Any, ...], junk: object) -> None:
    view = pdb_view(put(pdb(), path, junk))
    assert view.disruptions_allowed in (0, junk)


GRACES = {
    "nobody said": ({}, 30),
    "its own": ({"terminationGracePeriodSeconds": 600}, 600),
    "none": ({"terminationGracePeriodSeconds": 0}, 0),
    "beyond every clock": ({"terminationGracePeriodSeconds": 10**18}, NO_END),
    "no number": ({"terminationGracePeriodSeconds": "soon"}, NO_END),
    "yes": ({"terminationGracePeriodSeconds": True}, NO_END),
}


@pytest.mark.parametrize(("spec", "seconds"), GRACES.values(), ids=GRACES.keys())
def test_the_grace_period_of_a_pod(spec: JSON, seconds: int) -> None:
    assert pod_view(pod(spec=spec), {}).grace == seconds


GPU = "nvidia.com/gpu"


def container(count: object, **more: Any) -> JSON:
    return {"name": "c", "resources": {"limits": {GPU: count, "cpu": "2"}}, **more}


def sidecar(count: int) -> JSON:
    return container(count, restartPolicy="Always")


PODS: dict[str, tuple[JSON, int, int]] = {
    "one container": ({"containers": [container("1")]}, 1, 1),
    "two containers run side by side": ({"containers": [container(1), container("2")]}, 3, 2),
    "requests alone": ({"containers": [{"resources": {"requests": {GPU: "2"}}}]}, 2, 2),
    "limits and requests are one thing": (
        {"containers": [{"resources": {"requests": {GPU: "2"}, "limits": {GPU: "2"}}}]},
        2,
        2,
    ),
    "nothing": ({"containers": [container("0"), {"name": "plain"}]}, 0, 0),
    "a quantity that cannot be read": ({"containers": [container("many")]}, 1, 1),
    "an init container gives its GPU back": ({"initContainers": [container(1)], "containers": [container(1)]}, 1, 1),
    "an init container may need most": (
        {"initContainers": [container(1), container(4)], "containers": [container(2)]},
        4,
        4,
    ),
    "a sidecar stays": ({"initContainers": [sidecar(1)], "containers": [container(2)]}, 3, 2),
    "an init container runs beside the sidecars above it": (
        {"initContainers": [sidecar(1), container(3), sidecar(1)], "containers": [container(1)]},
        4,
        3,
    ),
    "a sidecar below it has not started yet": ({"initContainers": [container(3), sidecar(2)], "containers": []}, 3, 3),
    "overhead of the runtime": ({"containers": [container(1)], "overhead": {GPU: "1", "cpu": "1"}}, 2, 1),
}


@pytest.mark.parametrize("pod", PODS)
def test_what_a_pod_requests_of_its_node_and_in_its_largest_container_with(pod: str) -> None:
    spec, together, largest = PODS[pod]
    assert pod_requests({"spec": spec}) == ({GPU: together} if together else {})
    assert largest_requests({"spec": spec})[GPU] == largest


def test_a_pod_names_the_devices_of_other_plugins_that_it_asks_for() -> None:
    limits = {
        "slices.example.com/1g.10gb": "1",
        "rdma/hca": "1",
        "nvidia.com/gpu": "1",
        "nvidia.com/hostdev": "1",
        "hugepages-2Mi": "1Gi",
    }
    more = {"requests": {"pod.kubernetes.io/x": "1", "cpu": "2"}}
    spec = {"containers": [{"resources": {"limits": limits}}], "initContainers": [{"resources": more}]}
    assert pod_view(pod(spec=spec), {}).other_devices == ("rdma/hca", "slices.example.com/1g.10gb")
