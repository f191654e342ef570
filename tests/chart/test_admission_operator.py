"""What a stolen token of the operator cannot do with pods, ConfigMaps, classes and policies, on a real API server."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from hack.cluster.api import Api, Object, selector
from hack.cluster.process import wait_until
from hack.sim.manifests import daemon_set
from tests.chart.charts import NAMESPACE
from tests.chart.cluster import AGENT_NAMESPACE, NODES, POLICIES, POLICY, SECONDS, Installed, denied, dry, forbidden
from tests.chart.cluster import mighty as granted_everything
from tests.chart.test_effects import event
from tests.minors import EXTENDED_NAMES, need

from gpusharing.api.names import API_VERSION, FINALIZER, LABEL_MANAGED_BY, MANAGED_BY
from gpusharing.kube.client import CLUSTER_POLICIES
from gpusharing.kube.dra import device_class as written
from gpusharing.planning.report.events import POD_DELETED, POD_EVICTED
from gpusharing.planning.wanted.objects import wanted_class

pytestmark = pytest.mark.cluster

ADMISSION = "ValidatingAdmissionPolicy"
OPERATOR_SPACE = "gpu-operator"
OUR_MAPS = ("gpusharing-device-plugin", "gpusharing-mig-parted")
OPERANDS = {
    "mig-manager": {"app": "nvidia-mig-manager"},
    "the MPS control daemon": {"app": "nvidia-device-plugin-mps-control-daemon"},
    "the DRA driver's kubelet plugin": {"dra-driver-nvidia-gpu-component": "kubelet-plugin"},
}
PLUGIN = "the device plugin"
CLASSES = "/apis/resource.k8s.io/v1/deviceclasses"


def pods(namespace: str) -> str:
    return f"/api/v1/namespaces/{namespace}/pods"


def maps(namespace: str) -> str:
    return f"/api/v1/namespaces/{namespace}/configmaps"


@pytest.fixture(scope="module")
def mighty(installed: Installed, operator: Api) -> Iterator[Api]:
    """The operator after somebody granted it everything: only admission is left, as for a token with a wider role."""
    with granted_everything(installed, operator, "gpusharing-operator", NAMESPACE) as api:
        yield api


@pytest.fixture(scope="module", autouse=True)
def enforced(installed: Installed, operator: Api) -> None:
    """The API server takes up admission policies a moment after they were written."""
    for namespace in (OPERATOR_SPACE, "kube-system"):
        installed.admin.create(pods(namespace), bare("probe"))
    probes: dict[str, Callable[[], object]] = {
        "ConfigMaps": lambda: create(operator, maps(OPERATOR_SPACE), {"metadata": {"name": "probe"}}),
        "Events": lambda: create(operator, events("kube-public"), told("Secret", "kube-public")),
        "pods": lambda: delete(operator, f"{pods(OPERATOR_SPACE)}/probe"),
        "evictions": lambda: evict(operator, "kube-system", "probe"),
    }
    for what, call in probes.items():
        wait_until(lambda call=call: bool(forbidden(call)), SECONDS, f"the one about {what} to be enforced")  # type: ignore[misc]  # a default binds the loop's value


@pytest.fixture(scope="module")
def operands(installed: Installed) -> dict[str, str]:
    found = {}
    for operand, labels in {**OPERANDS, PLUGIN: {"app": "nvidia-device-plugin-daemonset"}}.items():
        name = next(iter(labels.values()))
        installed.admin.create(
            f"/apis/apps/v1/namespaces/{OPERATOR_SPACE}/daemonsets", daemon_set(name, OPERATOR_SPACE, labels, {})
        )

        def own(name: str = name, query: str = selector(labels)) -> list[str]:  # other tests have such pods too
            listed = installed.admin.list(pods(OPERATOR_SPACE), labelSelector=query)
            return [one["metadata"]["name"] for one in listed if one["metadata"]["generateName"] == f"{name}-"]

        wait_until(lambda own=own: bool(own()), SECONDS, operand)  # type: ignore[misc]  # a default binds the loop's value
        found[operand] = own()[0]
    return found


def bare(name: str, **labels: str) -> Object:
    spec: Object = {"schedulerName": "nobody", "containers": [{"name": "main", "image": "x"}]}
    return {"metadata": {"name": name, "labels": labels}, "spec": spec}


def create(api: Api, path: str, manifest: Object) -> Any:
    return api.request("POST", path, manifest, dryRun="All")


def delete(api: Api, path: str) -> Any:
    return api.request("DELETE", path, dryRun="All")


def evict(api: Api, namespace: str, name: str, options: Object | None = None) -> Any:
    eviction: Object = {
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"name": name, "namespace": namespace},
    }
    if options is not None:
        eviction["deleteOptions"] = options
    return create(api, f"{pods(namespace)}/{name}/eviction", eviction)


# --- DELETE of pods ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("operand", OPERANDS)
def test_the_operator_may_delete_a_pod_of(operator: Api, operands: dict[str, str], operand: str) -> None:
    path = f"{pods(OPERATOR_SPACE)}/{operands[operand]}"
    (pod,) = operator.list(pods(OPERATOR_SPACE), fieldSelector=f"metadata.name={operands[operand]}")
    for grace in ({}, {"gracePeriodSeconds": 30}):
        preconditions = {"uid": pod["metadata"]["uid"]}
        assert operator.delete(path, {"preconditions": preconditions, "dryRun": ["All"], **grace})


def test_the_operator_may_not_delete_a_pod_of_the_device_plugin(operator: Api, operands: dict[str, str]) -> None:
    message = denied(lambda: delete(operator, f"{pods(OPERATOR_SPACE)}/{operands[PLUGIN]}"))
    assert ADMISSION in message
    assert f"not {OPERATOR_SPACE}/{operands[PLUGIN]}" in message


def test_a_label_alone_makes_no_pod_of_mig_manager(installed: Installed, operator: Api) -> None:
    """Somebody controls it already: mig-manager's DaemonSet adopts a pod with its label that nobody controls."""
    forged = bare("forged", app="nvidia-mig-manager")
    node = installed.admin.get(f"{NODES}/{installed.node_a}")
    owner = {"apiVersion": "v1", "kind": "Node", "name": installed.node_a, "uid": node["metadata"]["uid"]}
    forged["metadata"]["ownerReferences"] = [{**owner, "controller": True}]
    installed.admin.create(pods(OPERATOR_SPACE), forged)
    message = denied(lambda: delete(operator, f"{pods(OPERATOR_SPACE)}/forged"))
    assert "may only delete pods of mig-manager" in message


def test_with_every_right_it_still_may_not_delete_pods_elsewhere(installed: Installed, mighty: Api) -> None:
    for namespace in ("default", "kube-system", AGENT_NAMESPACE):
        installed.admin.create(pods(namespace), bare("elsewhere", app="nvidia-mig-manager"))
        message = denied(lambda space=namespace: delete(mighty, f"{pods(space)}/elsewhere"))  # type: ignore[misc]  # a default binds the loop's value
        assert ADMISSION in message


# --- evictions ---------------------------------------------------------------------------------------------


def test_the_operator_may_evict_a_pod_of_a_workload(installed: Installed, operator: Api) -> None:
    uid = installed.admin.create(pods("default"), bare("work"))["metadata"]["uid"]
    assert evict(operator, "default", "work", {"preconditions": {"uid": uid}})


OTHER_EVICTIONS: dict[str, Callable[[str], Object | None]] = {
    "by name alone": lambda _: None,
    "with options but no UID": lambda _: {"preconditions": {}},
    "by its version alone": lambda _: {"preconditions": {"resourceVersion": "1"}},
    "without a grace period": lambda uid: {"preconditions": {"uid": uid}, "gracePeriodSeconds": 0},
    "with another grace period": lambda uid: {"preconditions": {"uid": uid}, "gracePeriodSeconds": 600},
    "without what it owns": lambda uid: {"preconditions": {"uid": uid}, "propagationPolicy": "Orphan"},
    "without what it owns, in old words": lambda uid: {"preconditions": {"uid": uid}, "orphanDependents": True},
}


@pytest.mark.parametrize("how", OTHER_EVICTIONS)
def test_the_operator_may_not_evict_a_pod(installed: Installed, operator: Api, how: str) -> None:
    uid = installed.admin.create(pods("default"), bare("bystander"))["metadata"]["uid"]
    try:
        message = denied(lambda: evict(operator, "default", "bystander", OTHER_EVICTIONS[how](uid)))
    finally:
        installed.admin.delete(f"{pods('default')}/bystander", {"gracePeriodSeconds": 0})
    assert ADMISSION in message
    assert "by its UID and with the pod's own grace period" in message
    assert "for default/bystander" in message


def test_others_may_evict_a_pod_with_any_grace_period_and_from_a_protected_namespace(installed: Installed) -> None:
    assert evict(installed.admin, "kube-system", "probe")
    installed.admin.create(pods("default"), bare("theirs"))
    for options in (None, {"gracePeriodSeconds": 0}):
        assert evict(installed.admin, "default", "theirs", options)


def test_the_operator_may_not_evict_in_a_protected_namespace_whatever_the_pod_holds(
    installed: Installed, operator: Api
) -> None:
    holder = bare("profiler")
    holder["spec"]["containers"][0]["resources"] = {"limits": {"nvidia.com/gpu": "1"}}
    uid = installed.admin.create(pods("kube-system"), holder)["metadata"]["uid"]
    message = denied(lambda: evict(operator, "kube-system", "profiler", {"preconditions": {"uid": uid}}))
    assert ADMISSION in message
    assert "may not evict pods in namespace kube-system (value operator.protectedNamespaces" in message


# --- Events ------------------------------------------------------------------------------------------------


CLUSTER_SCOPED = {
    "Node": "v1",
    "GPUSharingPolicy": API_VERSION,
    "GPUNode": API_VERSION,
    "ClusterPolicy": CLUSTER_POLICIES.api_version,
}
"""The apiVersion of each kind of which the operator tells in namespace `default`."""


def told(kind: str, namespace: str, **other: Any) -> Object:
    """An Event as the operator writes it about an object of this kind, with these fields in place of its own."""
    where: Object = {"namespace": namespace} if kind in ("Pod", "Secret") else {}
    about = {"apiVersion": CLUSTER_SCOPED.get(kind, "v1"), "kind": kind, "name": "x", **where}
    return {**event("probe", kind), "regarding": about, **other}


def events(namespace: str, group: str = "events.k8s.io/v1") -> str:
    return f"/{'api' if group == 'v1' else 'apis'}/{group}/namespaces/{namespace}/events"


@pytest.mark.parametrize("reason", [POD_EVICTED, POD_DELETED])
def test_the_operator_may_tell_the_owner_of_a_pod_of_its_eviction(operator: Api, reason: str) -> None:
    assert create(operator, events("kube-public"), told("Pod", "kube-public", reason=reason))


@pytest.mark.parametrize("kind", CLUSTER_SCOPED)
def test_of_a_cluster_scoped_object_the_operator_may_tell_in_default_alone(operator: Api, kind: str) -> None:
    assert create(operator, events("default"), told(kind, "default", reason="DrainStarted"))
    message = denied(lambda: create(operator, events("kube-system"), told(kind, "kube-system")))
    assert ADMISSION in message
    assert "not in namespace kube-system" in message


OTHER_EVENTS: dict[str, Object] = {
    "about a Secret": told("Secret", "default"),
    "about a pod, with another reason": told("Pod", "default", reason="Killing"),
    "in the scheduler's name": told("Pod", "default", reportingController="default-scheduler"),
    "about a kind of another group with the name Pod": told("Pod", "default") | {"regarding": {"kind": "Pod"}},
}


@pytest.mark.parametrize("what", OTHER_EVENTS)
def test_the_operator_may_not_write_an_event(operator: Api, what: str) -> None:
    assert ADMISSION in denied(lambda: create(operator, events("default"), OTHER_EVENTS[what]))


def test_the_older_name_of_the_kind_opens_no_other_way(installed: Installed, mighty: Api) -> None:
    about = {"apiVersion": "v1", "kind": "Secret", "name": "x", "namespace": "kube-public"}
    old = {"metadata": {"name": "probe"}, "involvedObject": about, "reason": "x", "message": "x", "type": "Normal"}
    assert create(installed.admin, events("kube-public", "v1"), old)
    assert ADMISSION in denied(lambda: create(mighty, events("kube-public", "v1"), old))


# --- ConfigMaps --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OUR_MAPS)
def test_the_operator_may_create_and_change_its_own_configmap(installed: Installed, operator: Api, name: str) -> None:
    assert create(operator, maps(OPERATOR_SPACE), {"metadata": {"name": name}, "data": {}})
    installed.admin.create(maps(OPERATOR_SPACE), {"metadata": {"name": name}, "data": {}})
    data = {"config.yaml": "version: v1\n"}
    changed = operator.merge_patch(f"{maps(OPERATOR_SPACE)}/{name}", {"data": data})
    assert changed["data"] == data
    installed.admin.delete(f"{maps(OPERATOR_SPACE)}/{name}")


OTHER_MAPS: dict[str, Object] = {
    "of NVIDIA": {"metadata": {"name": "default-mig-parted-config"}},
    "of any name": {"metadata": {"name": "made-up"}},
    "whose name begins as its own": {"metadata": {"name": "gpusharing-device-plugin-2"}},
    "whose name the server makes": {"metadata": {"generateName": "gpusharing-"}},
}


@pytest.mark.parametrize("what", OTHER_MAPS)
def test_the_operator_may_not_create_a_configmap(operator: Api, what: str) -> None:
    message = denied(lambda: create(operator, maps(OPERATOR_SPACE), OTHER_MAPS[what]))
    assert ADMISSION in message
    assert f"{OUR_MAPS[0]} and {OUR_MAPS[1]}" in message


def test_with_every_right_it_still_may_not_write_other_configmaps_or_remove_its_own(
    installed: Installed, mighty: Api
) -> None:
    installed.admin.create(maps(OPERATOR_SPACE), {"metadata": {"name": "theirs"}, "data": {}})
    installed.admin.create(maps(OPERATOR_SPACE), {"metadata": {"name": OUR_MAPS[0]}, "data": {}})
    ours_elsewhere: Object = {"metadata": {"name": OUR_MAPS[0]}}
    for call in (
        lambda: mighty.merge_patch(f"{maps(OPERATOR_SPACE)}/theirs", {"data": {"x": "y"}}),
        lambda: create(mighty, maps("default"), ours_elsewhere),
        lambda: delete(mighty, f"{maps(OPERATOR_SPACE)}/{OUR_MAPS[0]}"),
    ):
        assert ADMISSION in denied(call)
    installed.admin.delete(f"{maps(OPERATOR_SPACE)}/{OUR_MAPS[0]}")


# --- DeviceClasses -----------------------------------------------------------------------------------------


def device_class(name: str = "gpusharing-mig-1g.10gb", *, ours: bool = True, **spec: Any) -> Object:
    """A DeviceClass as the operator writes it; `spec` replaces parts of its spec."""
    labels = {LABEL_MANAGED_BY: MANAGED_BY} if ours else {}
    selectors = [{"cel": {"expression": wanted_class("1g.10gb").selectors[0]}}]
    whole = {"selectors": selectors, "extendedResourceName": "nvidia.com/mig-1g.10gb", **spec}
    return {"metadata": {"name": name, "labels": labels}, "spec": whole}


@pytest.fixture(scope="module")
def classes(operator: Api) -> None:
    """The API server serves DeviceClasses and has taken up the policy about them."""
    need(EXTENDED_NAMES, "DeviceClass with extendedResourceName")
    made = partial(create, operator, CLASSES, device_class(ours=False))
    wait_until(lambda: bool(forbidden(made)), SECONDS, "the one about DeviceClasses to be enforced")


@pytest.mark.usefixtures("classes")
def test_the_operator_may_create_change_and_delete_its_own_deviceclass(installed: Installed, operator: Api) -> None:
    assert create(operator, CLASSES, device_class())
    assert create(operator, CLASSES, device_class(extendedResourceName=None)), "without DRAExtendedResource"
    for profile in ("1g.10gb+me", "1c.2g.20gb", "1g.24gb+me.all", "1g.24gb-me"):
        assert create(operator, CLASSES, written(wanted_class(profile)))
    installed.admin.create(CLASSES, device_class(extendedResourceName="example.com/other"))
    path = f"{CLASSES}/gpusharing-mig-1g.10gb"
    right: Object = {"spec": {"extendedResourceName": "nvidia.com/mig-1g.10gb"}}
    assert operator.merge_patch(path, right)["spec"]["extendedResourceName"] == "nvidia.com/mig-1g.10gb"
    assert delete(operator, path)
    installed.admin.delete(path)


CONFIG = [{"opaque": {"driver": "gpu.nvidia.com", "parameters": {}}}]
OTHER_CLASSES: dict[str, Object] = {
    "without its label": device_class(ours=False),
    "of any name": device_class("made-up"),
    "of no MIG profile": device_class("gpusharing-mig-a", extendedResourceName="nvidia.com/mig-a"),
    "for another profile than its name": device_class(extendedResourceName="nvidia.com/mig-2g.20gb"),
    "that configures devices": device_class(config=CONFIG),
    "for whole GPUs": device_class(extendedResourceName="nvidia.com/gpu"),
}


@pytest.mark.usefixtures("classes")
@pytest.mark.parametrize("what", OTHER_CLASSES)
def test_the_operator_may_not_create_a_deviceclass(operator: Api, what: str) -> None:
    assert ADMISSION in denied(lambda: create(operator, CLASSES, OTHER_CLASSES[what]))


@pytest.mark.usefixtures("classes")
def test_with_every_right_it_still_may_not_take_over_change_or_delete_the_class_of_somebody_else(
    installed: Installed, mighty: Api
) -> None:
    installed.admin.create(CLASSES, device_class("gpusharing-mig-theirs", ours=False))
    path = f"{CLASSES}/gpusharing-mig-theirs"
    labels: Object = {"metadata": {"labels": {LABEL_MANAGED_BY: MANAGED_BY}}}
    other: Object = {"spec": {"selectors": []}}
    for call in (
        lambda: mighty.merge_patch(path, labels),
        lambda: mighty.merge_patch(path, other),
        lambda: delete(mighty, path),
    ):
        assert f"label {LABEL_MANAGED_BY}={MANAGED_BY}, not gpusharing-mig-theirs" in denied(call)
    installed.admin.delete(path)


COPIES: dict[str, Object] = {
    "another name": device_class("gpusharing-mig-team-a"),
    "another extended resource": device_class(extendedResourceName="example.com/team-a"),
}


@pytest.mark.usefixtures("classes")
@pytest.mark.parametrize("what", COPIES)
def test_with_every_right_it_still_may_not_delete_a_labelled_copy_under(
    installed: Installed, mighty: Api, what: str
) -> None:
    path = f"{CLASSES}/{COPIES[what]['metadata']['name']}"
    installed.admin.create(CLASSES, COPIES[what])
    assert ADMISSION in denied(lambda: delete(mighty, path))
    installed.admin.delete(path)


# --- GPUSharingPolicies ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guarded(installed: Installed, operator: Api, enforced: None) -> Iterator[str]:
    """Path of a policy with a finalizer of somebody else, once the server guards it."""
    path = f"{POLICIES}/guarded"
    metadata = {"name": "guarded", "finalizers": ["example.test/theirs"]}
    installed.admin.create(POLICIES, {**POLICY, "metadata": metadata})
    paused: Object = {"spec": {"rollout": {"paused": True}}}
    wait_until(lambda: dry(operator, path, paused) == 403, SECONDS, "the one about policies to be enforced")
    yield path
    installed.admin.merge_patch(path, {"metadata": {"finalizers": None}})
    installed.admin.delete(path)


def test_the_operator_may_set_and_remove_its_finalizer_and_write_the_status(operator: Api, guarded: str) -> None:
    both = ["example.test/theirs", FINALIZER]
    for wanted in (both, both[:1]):
        patched = operator.merge_patch(guarded, {"metadata": {"finalizers": wanted}})
        assert patched["metadata"]["finalizers"] == wanted
    assert dry(operator, f"{guarded}/status", {"status": {"observedGeneration": 1}}) == 200


FOREIGN_PATCHES: dict[str, Object] = {
    "the mode": {"spec": {"mode": "Full", "timeSlicing": None}},
    "which nodes it is for": {"spec": {"nodeSelector": {"matchLabels": {"any": "other"}}}},
    "how fast it rolls": {"spec": {"rollout": {"maxUnavailable": "100%"}}},
    "what becomes of stranded pods": {"spec": {"drain": {"strandedPods": "Allow"}}},
    "a label": {"metadata": {"labels": {"a": "b"}}},
    "an annotation": {"metadata": {"annotations": {"gpusharing.dev/force-release": "true"}}},
    "the finalizer of somebody else": {"metadata": {"finalizers": []}},
    "its owners": {
        "metadata": {"ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": "none", "uid": "1-2-3"}]}
    },
}


@pytest.mark.parametrize("what", FOREIGN_PATCHES)
def test_the_operator_may_not_change_of_a_policy(operator: Api, guarded: str, what: str) -> None:
    message = denied(lambda: operator.merge_patch(guarded, FOREIGN_PATCHES[what]))
    assert ADMISSION in message
    assert "may only change the finalizer gpusharing.dev/in-flight" in message


def test_others_may_change_a_policy_as_they_like(installed: Installed, guarded: str) -> None:
    for patch in FOREIGN_PATCHES.values():
        assert dry(installed.admin, guarded, patch) != 403
