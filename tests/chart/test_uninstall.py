"""What keeps `helm uninstall` from going on: the chart's pre-delete hook, and the admission policies that refuse it."""

from collections.abc import Iterator

import pytest
from hack.cluster.api import ApiError
from hack.cluster.process import wait_until
from tests.build import make_fence
from tests.chart.charts import NAMESPACE, Helm, find
from tests.chart.cluster import NODES, POLICIES, POLICY, SECONDS, Installed

from gpusharing.api.names import ANNOTATION_FENCE, FINALIZER
from gpusharing.kube.fence import record_text

pytestmark = pytest.mark.cluster

HOOK = "gpusharing-uninstall-check"
DEPLOYMENT = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/gpusharing-operator"


def maps(namespace: str) -> str:
    return f"/api/v1/namespaces/{namespace}/configmaps"


def answer(installed: Installed, helm: Helm, name: str = HOOK, namespace: str = NAMESPACE) -> str:
    """What the server would answer to helm's first step; empty if it would go on."""
    hook = find(helm.template("--show-only", "templates/uninstall-check.yaml"), "ConfigMap", HOOK)
    hook["metadata"] |= {"name": name, "namespace": namespace}
    try:
        installed.admin.request("POST", maps(namespace), hook, dryRun="All")
    except ApiError as error:
        if "gpusharing-uninstall-" not in error.message:
            raise
        return error.message
    return ""


@pytest.fixture
def fenced(installed: Installed, helm: Helm) -> Iterator[str]:
    """A node in the middle of a change."""

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


def test_only_that_configmap_of_that_namespace_is_refused(
    installed: Installed, helm: Helm, fenced: str
) -> None:
    assert answer(installed, helm, name="another") == ""
    assert answer(installed, helm, namespace="default") == ""


@pytest.fixture
def resetting(installed: Installed, helm: Helm) -> Iterator[str]:
    """A policy at rest that holds our finalizer."""
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


def test_helm_deletes_nothing_then_and_the_rollback_of_its_message_makes_the_release_usable(
    installed: Installed, fenced: str
) -> None:
    before = installed.admin.get(DEPLOYMENT)["metadata"]["uid"]
    done = installed.run_helm("uninstall")
    assert done.returncode != 0
    assert f"NOT UNINSTALLED: node {fenced}" in done.stderr
    assert installed.admin.get(DEPLOYMENT)["metadata"]["uid"] == before
    assert [one for one in installed.admin.list(maps(NAMESPACE)) if one["metadata"]["name"] == HOOK] == []
    last = installed.run_helm("history", "--max", "1").stdout.splitlines()[-1]
    assert "uninstalling" in last
    done = installed.run_helm("rollback", last.split()[0])
    assert done.returncode == 0, done.stderr
    assert "deployed" in installed.run_helm("history", "--max", "1").stdout.splitlines()[-1]
    assert installed.admin.get(DEPLOYMENT)["metadata"]["uid"] == before
