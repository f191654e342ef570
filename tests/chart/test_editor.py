"""What somebody with the role gpusharing-editor, and nothing else, may do on a real API server."""

from collections.abc import Iterator
from typing import Any

import pytest
from hack.cluster.api import JSON, MERGE_PATCH, Api, ApiError
from hack.cluster.kubeconfig import service_account_token
from hack.cluster.process import wait_until
from tests.chart.cluster import GPUNODES, NODES, POLICIES, POLICY, SECONDS, Installed, denied, dry

from gpusharing.api import names

pytestmark = pytest.mark.cluster

RETRY, ABORT, SKIP = names.REQUESTS
BINDINGS = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings"


def annotated(**annotations: str | None) -> dict[str, Any]:
    """The patch of `kubectl annotate`, with our prefix."""
    return {"metadata": {"annotations": {names.PREFIX + key: value for key, value in annotations.items()}}}


@pytest.fixture(scope="module")
def editor(installed: Installed) -> Iterator[Api]:
    """A new ServiceAccount that is bound to the role, once the role and the admission policy count."""
    api, name = installed.admin, "pool-editor"
    who = {"kind": "ServiceAccount", "name": name, "namespace": "default"}
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}}
    api.create("/api/v1/namespaces/default/serviceaccounts", account)
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "gpusharing-editor"}
    api.create(BINDINGS, {"metadata": {"name": name}, "roleRef": role, "subjects": [who]})
    with api.as_token(service_account_token(api, "default", name)) as editor:
        path = f"{GPUNODES}/{installed.node_a}"
        right, wrong = annotated(retry="probe"), {"metadata": {"labels": {"probe": "x"}}}
        wait_until(
            lambda: (dry(editor, path, right), dry(editor, path, wrong)) == (200, 403),
            SECONDS,
            "the role and the admission policy to count",
        )
        yield editor
    api.delete(f"{BINDINGS}/{name}")


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


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "the request to the agent": ({"spec": {"request": {"id": "9"}}}, "you may only change the annotations"),
    "a label": ({"metadata": {"labels": {"team": "a"}}}, "you may only change the annotations"),
    "a finalizer": ({"metadata": {"finalizers": ["example.com/x"]}}, "you may only change the annotations"),
    "another annotation": (annotated(fence="{}"), "you may only change the annotations"),
    "an annotation of somebody else": (
        {"metadata": {"annotations": {"team": None}}},
        "you may only change the annotations",
    ),
    "a request together with a label": (
        {"metadata": {"annotations": {RETRY: "x"}, "labels": {"team": "a"}}},
        "you may only change the annotations",
    ),
}
ODD: dict[str, tuple[dict[str, Any], str]] = {
    "a skip that is neither true nor false": (annotated(skip="yes"), "must be true or false"),
    "a retry of endless length": (annotated(retry="x" * 129), "at most 128 characters"),
    "an abort of endless length": (annotated(abort="x" * 129), "at most 128 characters"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_an_editor_may_not_write_of_a_gpunode(installed: Installed, editor: Api, what: str) -> None:
    patch, words = REFUSED[what]
    path = f"{GPUNODES}/{installed.node_a}"
    installed.admin.merge_patch(path, {"metadata": {"annotations": {"team": "b"}}})
    assert words in denied(lambda: editor.merge_patch(path, patch))


@pytest.mark.parametrize("what", ODD)
def test_a_request_is_refused_with_an_example_when_it_is(installed: Installed, editor: Api, what: str) -> None:
    patch, words = ODD[what]
    with pytest.raises(ApiError, match=r"for example gpusharing\.dev/retry=again") as refusal:
        editor.merge_patch(f"{GPUNODES}/{installed.node_a}", patch)
    assert words in refusal.value.message


NEVER: dict[str, tuple[str, str, dict[str, Any] | None]] = {
    "patch a Node": ("PATCH", f"{NODES}/{{a}}", annotated(retry="again")),
    "list Nodes": ("GET", NODES, None),
    "write the report of an agent": ("PATCH", f"{GPUNODES}/{{a}}/status", {"status": {"observed": None}}),
    "delete a GPUNode": ("DELETE", f"{GPUNODES}/{{a}}", None),
}


@pytest.mark.parametrize("what", NEVER)
def test_an_editor_may_not(installed: Installed, editor: Api, what: str) -> None:
    method, path, body = NEVER[what]
    kind = MERGE_PATCH if method == "PATCH" else JSON
    denied(lambda: editor.request(method, path.format(a=installed.node_a), body, kind))


def test_who_may_write_the_status_is_trusted_with_the_rest(installed: Installed) -> None:
    path = f"{GPUNODES}/{installed.node_b}"
    with installed.operator() as operator:
        operator.merge_patch(path, {"spec": {"request": {"id": "op:verify:1"}}})
    installed.admin.merge_patch(path, {"metadata": {"labels": {"team": "a"}}})
