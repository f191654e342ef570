"""The release in the GPU Operator's namespace, and the agent in one that somebody else has made and that enforces PodSecurity."""

import re
from collections.abc import Iterator

import pytest
from hack.cluster import install, nodes
from hack.cluster.api import ApiError, Object, selector
from hack.cluster.controlplane import ControlPlane, Options
from hack.cluster.process import wait_until
from tests.build import make_fence
from tests.chart.charts import CHART, IMAGE, Helm, Manifest
from tests.chart.cluster import NODES, SECONDS

from gpusharing.api.names import ANNOTATION_FENCE
from gpusharing.kube.fence import record_text

pytestmark = pytest.mark.cluster

SHARED = "gpu-operator"
AGENTS = "agents"
LEVEL = "pod-security.kubernetes.io/enforce"
CHOSEN = ("--set", f"agent.namespace={AGENTS},agent.createNamespace=false")


@pytest.fixture(scope="module")
def plane() -> Iterator[ControlPlane]:
    """Two nodes, the GPU Operator's namespace that lets privileged pods in, and one that enforces `baseline`."""
    with ControlPlane(options=Options(audit=True)) as plane:
        api = plane.api
        install.install_gpu_operator(api)
        api.merge_patch(f"/api/v1/namespaces/{SHARED}", {"metadata": {"labels": {LEVEL: "privileged"}}})
        api.create("/api/v1/namespaces", {"metadata": {"name": AGENTS, "labels": {LEVEL: "baseline"}}})
        runtime: Manifest = {"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": "nvidia"}}
        api.create("/apis/node.k8s.io/v1/runtimeclasses", runtime | {"handler": "nvidia"})
        nodes.wait_nodes_ready(api, nodes.create_nodes(api, nodes.fleet(2)))
        yield plane


def run(plane: ControlPlane, helm: Helm, *arguments: str) -> tuple[bool, str]:
    """Run helm in the GPU Operator's namespace: whether it succeeded, and what it said."""
    done = helm.run(*arguments, "-n", SHARED, environ={"KUBECONFIG": str(plane.kubeconfig)})
    return done.returncode == 0, done.stdout + done.stderr


def installs(plane: ControlPlane, helm: Helm) -> tuple[bool, str]:
    return run(plane, helm, "install", "gpusharing", str(CHART), *IMAGE, *CHOSEN)


def running(plane: ControlPlane, namespace: str, name: str) -> bool:
    label = selector({"app.kubernetes.io/name": name})
    pods = plane.api.list(f"/api/v1/namespaces/{namespace}/pods", labelSelector=label)
    return [one["status"].get("phase") for one in pods] == ["Running"] * 2


@pytest.fixture(scope="module")
def refusals(plane: ControlPlane, helm: Helm) -> dict[str, str]:
    """What helm says where the agents' namespace enforces a level, and then runs its command."""
    said = {}
    for level in ("restricted", "baseline"):
        plane.api.merge_patch(f"/api/v1/namespaces/{AGENTS}", {"metadata": {"labels": {LEVEL: level}}})
        _, said[level] = installs(plane, helm)
    command = re.search(r"run kubectl (label \S+ namespace \S+ \S+=privileged)", said["baseline"])
    assert command is not None, said["baseline"]
    plane.kubectl(*command[1].split())
    return said


@pytest.fixture(scope="module")
def notes(plane: ControlPlane, helm: Helm, refusals: dict[str, str]) -> str:
    done, said = installs(plane, helm)
    assert done, said
    return said


@pytest.mark.parametrize("level", ["restricted", "baseline"])
def test_a_namespace_that_would_refuse_the_agents_pods_is_refused_with_the_command(
    refusals: dict[str, str], level: str
) -> None:
    assert f"namespace {AGENTS} (agent.namespace) enforces PodSecurity {level}" in refusals[level]


def test_after_the_command_operator_and_agents_run(plane: ControlPlane, notes: str) -> None:
    for namespace, name in ((SHARED, "gpusharing-operator"), (AGENTS, "gpusharing-agent")):
        wait_until(lambda where=namespace, of=name: running(plane, where, of), SECONDS, f"the pods of {name}")  # type: ignore[misc]  # a default holds the loop's value


def test_the_notes_do_not_ask_to_shut_out_the_gpu_operators_pods(notes: str) -> None:
    assert f"{LEVEL}=restricted" not in notes
    assert f"Do not enforce it on namespace {SHARED}" in notes


def test_an_upgrade_is_not_refused_because_the_level_was_changed_since(
    plane: ControlPlane, helm: Helm, notes: str
) -> None:
    plane.api.merge_patch(f"/api/v1/namespaces/{AGENTS}", {"metadata": {"labels": {LEVEL: "baseline"}}})
    done, said = run(plane, helm, "upgrade", "gpusharing", str(CHART), *IMAGE, *CHOSEN, "--set", "paused=true")
    assert done, said


def test_uninstalling_is_refused_in_the_middle_of_a_change_and_leaves_what_is_others(
    plane: ControlPlane, helm: Helm, notes: str
) -> None:
    api, node = plane.api, f"{NODES}/{plane.api.list(NODES)[0]['metadata']['name']}"
    for kind in ("secrets", "configmaps", "serviceaccounts"):
        api.create(f"/api/v1/namespaces/{SHARED}/{kind}", {"metadata": {"name": "theirs"}})
    fence = record_text(make_fence())
    api.merge_patch(node, {"metadata": {"annotations": {ANNOTATION_FENCE: fence}}})

    def refused() -> bool:
        try:
            hook: Object = {"metadata": {"name": "gpusharing-uninstall-check"}}
            api.request("POST", f"/api/v1/namespaces/{SHARED}/configmaps", hook, dryRun="All")
        except ApiError as error:
            return "NOT UNINSTALLED" in error.message
        return False

    wait_until(refused, SECONDS, "the server to know of the fence")
    done, said = run(plane, helm, "uninstall", "gpusharing")
    assert not done
    assert f"helm uninstall gpusharing -n {SHARED} --no-hooks" in said
    api.merge_patch(node, {"metadata": {"annotations": {ANNOTATION_FENCE: None}}})
    wait_until(lambda: not refused(), SECONDS, "the server to know that it is gone")
    done, said = run(plane, helm, "uninstall", "gpusharing", "--wait")
    assert done, said
    for kind in ("secrets", "configmaps", "serviceaccounts"):
        assert api.get(f"/api/v1/namespaces/{SHARED}/{kind}/theirs")
    assert "deletionTimestamp" not in api.get(f"/api/v1/namespaces/{SHARED}")["metadata"]
