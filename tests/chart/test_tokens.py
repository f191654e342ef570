"""What a real API server refuses to the tokens of Helm's hooks, of somebody who runs the kubectl plugin with read-only roles, and of somebody with the role gpusharing-editor and no other."""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from hack.cluster import install
from hack.cluster.api import Api, ApiError, Object, selector
from hack.cluster.kubeconfig import service_account_token
from hack.cluster.process import wait_until
from tests.chart.charts import NAMESPACE
from tests.chart.cluster import (
    AGENT_NAMESPACE,
    BINDINGS,
    GPUNODES,
    NODES,
    POLICIES,
    POLICY,
    SECONDS,
    Call,
    Installed,
    attempt,
    denied,
    dry,
    somebody,
)

from gpusharing.api import names

pytestmark = pytest.mark.cluster

SPACE = f"/api/v1/namespaces/{NAMESPACE}"
EVICTION = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "any"}}
ATTACKS: dict[str, Call] = {
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
        assert f'"system:serviceaccount:{NAMESPACE}:{name}" cannot' in attempt(api, ATTACKS[what], installed.node_a)


@pytest.fixture(scope="module")
def reader(installed: Installed) -> Iterator[Api]:
    """With the built-in role `view` and gpusharing-planner, as docs/how-to/install.md says for people who run the plugin, once both count."""
    with somebody(installed.admin, "plugin-reader", "view", "gpusharing-planner") as reader:
        wait_until(lambda: reads(reader), SECONDS, "the roles to count")
        yield reader


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
    assert '"system:serviceaccount:default:plugin-reader" cannot' in attempt(reader, ATTACKS[what], installed.node_a)


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


# --- editors -------------------------------------------------------------------------------------------------


def annotated(**annotations: str | None) -> Object:
    """The patch of `kubectl annotate`, with our prefix."""
    return {"metadata": {"annotations": {names.PREFIX + key: value for key, value in annotations.items()}}}


@pytest.fixture(scope="module")
def editor(installed: Installed) -> Iterator[Api]:
    """Once the role and the admission policy count."""
    path = f"{GPUNODES}/{installed.node_a}"
    right, wrong = annotated(retry="probe"), {"metadata": {"labels": {"probe": "x"}}}
    with somebody(installed.admin, "pool-editor", "gpusharing-editor") as editor:
        wait_until(
            lambda: (dry(editor, path, right), dry(editor, path, wrong)) == (200, 403),
            SECONDS,
            "the role and the admission policy to count",
        )
        yield editor


def test_an_editor_may_read_what_a_request_is_about_and_write_policies(installed: Installed, editor: Api) -> None:
    assert editor.get(f"{NODES}/{installed.node_a}")["metadata"]["name"] == installed.node_a
    assert editor.list(GPUNODES)
    path = f"{POLICIES}/edited"
    editor.create(POLICIES, {**POLICY, "metadata": {"name": "edited"}})
    editor.merge_patch(path, {"spec": {"rollout": {"paused": True}}})
    editor.delete(path)


REQUESTS = {
    "a retry": annotated(retry="again"),
    "an abort": annotated(abort="op-1"),
    "a skip": annotated(skip="true"),
    "the end of a skip": annotated(skip="false"),
    "none of them any more": annotated(retry=None, abort=None, skip=None),
}


@pytest.mark.parametrize("what", REQUESTS)
def test_an_editor_may_request_on_a_gpunode(installed: Installed, editor: Api, what: str) -> None:
    editor.merge_patch(f"{GPUNODES}/{installed.node_a}", REQUESTS[what])


REFUSED: dict[str, Object] = {
    "the request to the agent": {"spec": {"request": {"id": "9"}}},
    "a label": {"metadata": {"labels": {"team": "a"}}},
    "a finalizer": {"metadata": {"finalizers": ["example.com/x"]}},
    "another annotation": annotated(fence="{}"),
    "an annotation of somebody else": {"metadata": {"annotations": {"team": None}}},
    "a request together with a label": {
        "metadata": {"annotations": {names.ANNOTATION_RETRY: "x"}, "labels": {"team": "a"}}
    },
}
ODD: dict[str, tuple[Object, str]] = {
    "a skip that is neither true nor false": (annotated(skip="yes"), "must be true or false"),
    "a retry of endless length": (annotated(retry="x" * 129), "at most 128 characters"),
    "an abort of endless length": (annotated(abort="x" * 129), "at most 128 characters"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_an_editor_may_not_write_of_a_gpunode(installed: Installed, editor: Api, what: str) -> None:
    path = f"{GPUNODES}/{installed.node_a}"
    installed.admin.merge_patch(path, {"metadata": {"annotations": {"team": "b"}}})
    assert "you may only change the annotations" in denied(lambda: editor.merge_patch(path, REFUSED[what]))


@pytest.mark.parametrize("what", ODD)
def test_a_request_is_refused_with_an_example_when_it_is(installed: Installed, editor: Api, what: str) -> None:
    patch, words = ODD[what]
    with pytest.raises(ApiError, match=r"for example gpusharing\.dev/retry=again") as refusal:
        editor.merge_patch(f"{GPUNODES}/{installed.node_a}", patch)
    assert words in refusal.value.message


NEVER: dict[str, Call] = {
    "patch a Node": ("PATCH", f"{NODES}/{{a}}", annotated(retry="again")),
    "list Nodes": ("GET", NODES, None),
    "write the report of an agent": ("PATCH", f"{GPUNODES}/{{a}}/status", {"status": {"observed": None}}),
    "delete a GPUNode": ("DELETE", f"{GPUNODES}/{{a}}", None),
}


@pytest.mark.parametrize("what", NEVER)
def test_an_editor_may_not(installed: Installed, editor: Api, what: str) -> None:
    attempt(editor, NEVER[what], installed.node_a)


def test_who_may_write_the_status_is_trusted_with_the_rest(installed: Installed) -> None:
    path = f"{GPUNODES}/{installed.node_b}"
    with installed.operator() as operator:
        operator.merge_patch(path, {"spec": {"request": {"id": "op:verify:1"}}})
    installed.admin.merge_patch(path, {"metadata": {"labels": {"team": "a"}}})
