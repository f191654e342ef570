"""What a real API server refuses to the tokens of Helm's hooks, and to that of somebody who runs the kubectl plugin with read-only roles."""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from hack.cluster import install
from hack.cluster.api import JSON, MERGE_PATCH, Api, Object, selector
from hack.cluster.kubeconfig import service_account_token
from hack.cluster.process import wait_until
from tests.chart.charts import NAMESPACE
from tests.chart.cluster import AGENT_NAMESPACE, GPUNODES, NODES, POLICIES, POLICY, SECONDS, Installed, denied

from gpusharing.api import names

pytestmark = pytest.mark.cluster

BINDINGS = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings"
SPACE = f"/api/v1/namespaces/{NAMESPACE}"
EVICTION = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "any"}}
ATTACKS: dict[str, tuple[str, str, Object | None]] = {
    "cordon a Node": ("PATCH", f"{NODES}/{{a}}", {"spec": {"unschedulable": True}}),
    "remove the fence of a Node": (
        "PATCH",
        f"{NODES}/{{a}}",
        {"metadata": {"annotations": {names.ANNOTATION_FENCE: None}}},
    ),
    "evict a pod": ("POST", "/api/v1/namespaces/default/pods/any/eviction", EVICTION),
    "delete a pod": ("DELETE", f"{SPACE}/pods/any", None),
    "start a pod": ("POST", f"{SPACE}/pods", {"metadata": {"name": "any"}}),
    "run a program in an agent": ("POST", f"/api/v1/namespaces/{AGENT_NAMESPACE}/pods/any/exec?command=sh", None),
    "write a policy": ("POST", POLICIES, {**POLICY, "metadata": {"name": "made-up"}}),
    "delete a policy": ("DELETE", f"{POLICIES}/any", None),
    "report that all is well": ("PATCH", f"{POLICIES}/any/status", {"status": {"observedGeneration": 1}}),
    "request a retry": ("PATCH", f"{GPUNODES}/{{a}}", {"metadata": {"annotations": {names.ANNOTATION_RETRY: "again"}}}),
    "speak for an agent": ("PATCH", f"{GPUNODES}/{{a}}/status", {"status": {"observed": None}}),
    "write a configuration of the device plugin": (
        "POST",
        "/api/v1/namespaces/gpu-operator/configmaps",
        {"metadata": {"name": "gpusharing-device-plugin"}},
    ),
    "read Secrets": ("GET", f"{SPACE}/secrets", None),
    "get a token of the operator": (
        "POST",
        f"{SPACE}/serviceaccounts/gpusharing-operator/token",
        {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}},
    ),
    "replace the operator's image": (
        "PATCH",
        f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/gpusharing-operator",
        {"spec": {"replicas": 0}},
    ),
    "take the operator's Lease": (
        "PATCH",
        f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases/gpusharing-operator",
        {"spec": {"holderIdentity": "x"}},
    ),
    "grant itself a role": ("POST", BINDINGS, {"metadata": {"name": "made-up"}}),
}
"""Requests by what they would do: method, path and body. `{a}` stands for a node."""


def attack(api: Api, what: str, node: str) -> str:
    """Try this, and return the words with which the server refuses it."""
    method, path, body = ATTACKS[what]
    kind = MERGE_PATCH if method == "PATCH" else JSON
    return denied(lambda: api.request(method, path.format(a=node), body, kind))


@pytest.fixture(scope="module")
def hooks(installed: Installed) -> Iterator[dict[str, Api]]:
    """Clients with the token of each account that exists only while a hook of Helm's runs, by its name."""
    admin = installed.admin
    objects = [one for one in installed.helm.hooks() if one["kind"] not in ("Pod", "Job")]
    install.apply_documents(admin, objects)
    accounts = [one["metadata"] for one in objects if one["kind"] == "ServiceAccount"]
    with ExitStack() as stack:
        yield {
            one["name"]: stack.enter_context(
                admin.as_token(service_account_token(admin, one["namespace"], one["name"]))
            )
            for one in accounts
        }
    for one in objects:
        admin.delete(install.object_path(admin, one))


@pytest.mark.parametrize("what", ATTACKS)
def test_with_the_token_of_a_hook_nobody_may(installed: Installed, hooks: dict[str, Api], what: str) -> None:
    assert {"gpusharing-checks"} <= hooks.keys()
    for name, api in hooks.items():
        assert f'"system:serviceaccount:{NAMESPACE}:{name}" cannot' in attack(api, what, installed.node_a)


@pytest.fixture(scope="module")
def reader(installed: Installed) -> Iterator[Api]:
    """A client with the token of an account that is bound to the built-in role `view` and to gpusharing-planner, as docs/how-to/install.md says for people who run the plugin, once both count."""
    api, name = installed.admin, "plugin-reader"
    who = {"kind": "ServiceAccount", "name": name, "namespace": "default"}
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}}
    api.create("/api/v1/namespaces/default/serviceaccounts", account)
    for role in ("view", "gpusharing-planner"):
        reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role}
        body = {"metadata": {"name": f"{name}-{role}"}, "roleRef": reference, "subjects": [who]}
        api.create(BINDINGS, body)
    with api.as_token(service_account_token(api, "default", name)) as reader:
        wait_until(lambda: reads(reader), SECONDS, "the roles to count")
        yield reader
    for role in ("view", "gpusharing-planner"):
        api.delete(f"{BINDINGS}/{name}-{role}")


def reads(api: Api) -> bool:
    reviews = [
        {"group": group, "resource": resource, "verb": "list"}
        for group, resource in (("", "pods"), ("", "nodes"), ("gpusharing.dev", "gpusharingpolicies"))
    ]
    path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
    return all(api.create(path, {"spec": {"resourceAttributes": review}})["status"]["allowed"] for review in reviews)


@pytest.mark.parametrize("what", ATTACKS)
def test_with_the_token_of_somebody_who_only_reads_the_plugin_may_not(
    installed: Installed, reader: Api, what: str
) -> None:
    assert '"system:serviceaccount:default:plugin-reader" cannot' in attack(reader, what, installed.node_a)


SECRET = "hunter2"


def test_who_may_list_pods_sees_what_somebody_writes_into_their_environment(installed: Installed, reader: Api) -> None:
    """What docs/explanation/security.md says of the operator's right to list pods, and of `view`."""
    label = {"app": "careless"}
    spec: Object = {
        "schedulerName": "nobody",
        "containers": [
            {"name": "main", "image": "x", "env": [{"name": "PASSWORD", "value": SECRET}]},
            {
                "name": "careful",
                "image": "x",
                "env": [{"name": "PASSWORD", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}],
            },
        ],
    }
    pods = "/api/v1/namespaces/default/pods"
    secret = {"metadata": {"name": "s"}, "stringData": {"k": "not-seen"}}
    installed.admin.create("/api/v1/namespaces/default/secrets", secret)
    installed.admin.create(pods, {"metadata": {"name": "careless", "labels": label}, "spec": spec})
    try:
        with installed.operator() as operator:
            for api in (operator, reader):
                text = str(api.list("/api/v1/pods", labelSelector=selector(label)))
                assert SECRET in text
                assert "not-seen" not in text
    finally:
        installed.admin.delete(f"{pods}/careless", {"gracePeriodSeconds": 0})
        installed.admin.delete("/api/v1/namespaces/default/secrets/s")
