"""What the chart's admission policies refuse to have removed: the release in the middle of a change, by its pre-delete hook, and a policy that says Reset before the operator holds it."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hack.cluster import install, toolchain
from hack.cluster.api import APPLY_PATCH, ApiError
from hack.cluster.process import wait_until
from tests.build import make_fence
from tests.chart.charts import HOOK, NAMESPACE, Helm, find
from tests.chart.cluster import NODES, POLICIES, POLICY, SECONDS, Installed

from gpusharing.api.names import ANNOTATION_FENCE, ANNOTATION_FORCE_RELEASE, FINALIZER
from gpusharing.kube.fence import record_text

pytestmark = pytest.mark.cluster

NAME = "gpusharing-uninstall-check"
DEPLOYMENT = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/gpusharing-operator"


def maps(namespace: str) -> str:
    return f"/api/v1/namespaces/{namespace}/configmaps"


def answer(
    installed: Installed,
    helm: Helm,
    name: str = NAME,
    namespace: str = NAMESPACE,
    manager: str = "helm",
    apply: bool = False,
) -> str:
    """What the server would answer to helm's first step; empty if it would go on. Helm 3 creates, Helm 4 applies."""
    hook = find(helm.hooks(), "ConfigMap", NAME)
    hook["metadata"] |= {"name": name, "namespace": namespace}
    query = {"dryRun": "All", "fieldManager": manager}
    try:
        if apply:
            installed.admin.request("PATCH", f"{maps(namespace)}/{name}", hook, APPLY_PATCH, **query)
        else:
            installed.admin.request("POST", maps(namespace), hook, **query)
    except ApiError as error:
        if "gpusharing-uninstall-" not in error.message:
            raise
        return error.message
    return ""


@pytest.fixture
def fenced(installed: Installed, helm: Helm) -> Iterator[str]:
    def annotate(text: str | None) -> None:
        patch = {"metadata": {"annotations": {ANNOTATION_FENCE: text}}}
        installed.admin.merge_patch(f"{NODES}/{installed.node_a}", patch)

    annotate(record_text(make_fence()))
    wait_until(lambda: answer(installed, helm) != "", SECONDS, "the server to know of the fence")
    yield installed.node_a
    annotate(None)
    wait_until(lambda: answer(installed, helm) == "", SECONDS, "the server to know that it is gone")


def test_a_node_in_the_middle_of_a_change_refuses_it_by_name_and_with_every_way_out(
    installed: Installed, helm: Helm, fenced: str
) -> None:
    refused = answer(installed, helm)
    assert f"NOT UNINSTALLED: node {fenced} is in the middle of a change" in refused
    for way in (
        "kubectl gpusharing pause --all",
        "kubectl describe gpun NODE",
        f"helm uninstall gpusharing -n {NAMESPACE} --no-hooks",
        f"helm rollback gpusharing REVISION -n {NAMESPACE}",
    ):
        assert way in refused


def test_only_that_configmap_of_that_namespace_is_refused(installed: Installed, helm: Helm, fenced: str) -> None:
    assert answer(installed, helm, name="another") == ""
    assert answer(installed, helm, namespace="default") == ""


@pytest.mark.parametrize("apply", [False, True])
@pytest.mark.parametrize("manager", ["helm", "helm-controller", "terraform-provider-helm_v3"])
def test_it_is_refused_to_helm_whatever_program_has_it_as_its_library(
    installed: Installed, helm: Helm, fenced: str, manager: str, apply: bool
) -> None:
    assert "NOT UNINSTALLED" in answer(installed, helm, manager=manager, apply=apply)


APPLIERS = [
    ("kubectl-create", False),
    ("kubectl-client-side-apply", False),
    ("kubectl", True),
    ("kustomize-controller", True),
    ("argocd-controller", False),
    ("argocd-controller", True),
]
"""Field managers of programs that do not uninstall by the ConfigMap, and whether they apply on the server."""


@pytest.mark.parametrize(("manager", "apply"), APPLIERS)
def test_it_is_not_refused_to_those_who_only_apply_what_somebody_else_rendered(
    installed: Installed, helm: Helm, fenced: str, manager: str, apply: bool
) -> None:
    assert answer(installed, helm, manager=manager, apply=apply) == ""


@pytest.mark.parametrize("manager", sorted({manager for manager, apply in APPLIERS if apply}))
def test_what_helm_template_renders_has_no_hook_and_is_taken_in_the_middle_of_a_change(
    installed: Installed, helm: Helm, fenced: str, manager: str
) -> None:
    query = {"dryRun": "All", "force": "true", "fieldManager": manager, "fieldValidation": "Strict"}
    objects = helm.template()
    assert [one["metadata"]["name"] for one in objects if HOOK in str(one)] == []
    for one in objects:
        installed.admin.request("PATCH", install.object_path(installed.admin, one), one, APPLY_PATCH, **query)


@pytest.fixture
def resetting(installed: Installed, helm: Helm) -> Iterator[str]:
    metadata = {"name": "uninstall-resets", "finalizers": [FINALIZER]}
    spec = {**POLICY["spec"], "deletionPolicy": "Reset"}
    installed.admin.create(POLICIES, {**POLICY, "metadata": metadata, "spec": spec})
    wait_until(lambda: answer(installed, helm) != "", SECONDS, "the server to know of the policy")
    yield "uninstall-resets"
    path = f"{POLICIES}/uninstall-resets"
    released = {"metadata": {"finalizers": None}, "spec": {"deletionPolicy": "Retain"}}
    installed.admin.merge_patch(path, released)
    installed.admin.delete(path)
    wait_until(lambda: answer(installed, helm) == "", SECONDS, "the server to know that it is gone")


def test_a_policy_that_could_not_be_deleted_any_more_refuses_it_by_name_and_with_every_way_out(
    installed: Installed, helm: Helm, resetting: str
) -> None:
    refused = answer(installed, helm)
    assert f"NOT UNINSTALLED: policy {resetting} has the finalizer {FINALIZER}" in refused
    for way in (
        f"kubectl delete gsp {resetting} --wait=false",
        f'kubectl patch gsp {resetting} --type merge -p \'{{"spec":{{"deletionPolicy":"Retain"}}}}\'',
        f"kubectl annotate gsp {resetting} gpusharing.dev/force-release=true",
        f"helm uninstall gpusharing -n {NAMESPACE} --no-hooks",
        f"helm rollback gpusharing REVISION -n {NAMESPACE}",
    ):
        assert way in refused


@pytest.mark.parametrize("major", ["helm3", "helm"])
def test_helm_deletes_nothing_then_and_the_rollback_of_its_message_makes_the_release_usable(
    installed: Installed, fenced: str, major: str, tmp_path: Path
) -> None:
    installed = replace(installed, helm=Helm(toolchain.program(major), tmp_path))
    before = installed.admin.get(DEPLOYMENT)["metadata"]["uid"]
    done = installed.run_helm("uninstall")
    assert done.returncode != 0
    assert f"NOT UNINSTALLED: node {fenced}" in done.stderr
    assert installed.admin.get(DEPLOYMENT)["metadata"]["uid"] == before
    assert [one for one in installed.admin.list(maps(NAMESPACE)) if one["metadata"]["name"] == NAME] == []
    last = installed.run_helm("history", "--max", "1").stdout.splitlines()[-1]
    assert "uninstalling" in last
    installed.must("rollback", last.split()[0])
    assert "deployed" in installed.run_helm("history", "--max", "1").stdout.splitlines()[-1]
    assert installed.admin.get(DEPLOYMENT)["metadata"]["uid"] == before


PATH = f"{POLICIES}/goes"


@pytest.fixture
def goes(installed: Installed) -> Iterator[None]:
    yield
    try:
        installed.admin.merge_patch(PATH, {"spec": {"deletionPolicy": "Retain"}, "metadata": {"finalizers": None}})
        installed.admin.delete(PATH)
    except ApiError as error:
        if error.status != 404:
            raise


def stored(installed: Installed, deletion: str, **metadata: Any) -> None:
    spec = {**POLICY["spec"], "deletionPolicy": deletion}
    installed.admin.create(POLICIES, {**POLICY, "metadata": {"name": "goes", **metadata}, "spec": spec})


@pytest.mark.usefixtures("goes")
def test_before_the_operator_holds_it_a_deletion_is_refused_and_says_what_to_do(installed: Installed) -> None:
    stored(installed, "Reset", finalizers=["example.com/theirs"])
    with pytest.raises(ApiError, match="is not on the policy yet: wait until the operator") as refused:
        installed.admin.delete(PATH)
    assert "or set deletionPolicy to Retain" in str(refused.value)
    assert "deletionTimestamp" not in installed.admin.get(PATH)["metadata"]


GOES: dict[str, tuple[str, dict[str, Any]]] = {
    "it says Retain": ("Retain", {}),
    "the operator holds it": ("Reset", {"finalizers": ["example.com/theirs", FINALIZER]}),
    "a person gave it up": ("Reset", {"annotations": {ANNOTATION_FORCE_RELEASE: "true"}}),
}


@pytest.mark.usefixtures("goes")
@pytest.mark.parametrize("why", GOES)
def test_a_policy_is_deleted_where(installed: Installed, why: str) -> None:
    deletion, metadata = GOES[why]
    stored(installed, deletion, **metadata)
    installed.admin.delete(PATH)
    left = [one for one in installed.admin.list(POLICIES) if one["metadata"]["name"] == "goes"]
    assert [bool(one["metadata"]["deletionTimestamp"]) for one in left] == [True] * bool(metadata.get("finalizers"))


@pytest.mark.usefixtures("goes")
def test_a_second_deletion_of_what_is_going_is_none_of_its_business(installed: Installed) -> None:
    stored(installed, "Reset", finalizers=["example.com/theirs", FINALIZER])
    installed.admin.delete(PATH)
    installed.admin.merge_patch(PATH, {"metadata": {"finalizers": ["example.com/theirs"]}})
    installed.admin.delete(PATH)
