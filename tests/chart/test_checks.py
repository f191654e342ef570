"""`helm test` (checks/__main__.py) on a real API server: under its own account, on good and on broken installations."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from hack.cluster import install
from hack.cluster.api import Object, selector
from hack.cluster.controlplane import ControlPlane, Options
from hack.cluster.kubeconfig import service_account_token
from hack.cluster.process import wait_until
from tests.chart.charts import NAMESPACE, ROOT, Helm, find
from tests.chart.cluster import AGENT_NAMESPACE, SECONDS, Installed, set_up

pytestmark = pytest.mark.cluster

CLUSTER_POLICY = "/apis/nvidia.com/v1/clusterpolicies/cluster-policy"
CONFIG_MAPS = "/api/v1/namespaces/gpu-operator/configmaps"
BINDINGS = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings"
ACCOUNT = "gpusharing-checks"


@pytest.fixture(scope="module")
def installed(installed: Installed, helm: Helm) -> Iterator[Installed]:
    """One of its own, where one is possible: all of it is checked, and other tests leave pods that never run."""
    with ControlPlane(options=Options(audit=True)) as plane:
        yield set_up(plane, helm)


@pytest.fixture(scope="module")
def checks(installed: Installed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The hook's variables, its account on the server, both ConfigMaps as the operator writes them."""
    admin, folder = installed.admin, tmp_path_factory.mktemp("checks")
    hooks = installed.helm.hooks("--set", "image.tag=trial")
    container = find(hooks, "Pod", ACCOUNT)["spec"]["containers"][0]
    objects = [one for one in hooks if one["kind"] != "Pod"]
    install.apply_documents(admin, objects)
    (folder / "token").write_text(service_account_token(admin, NAMESPACE, ACCOUNT))
    (folder / "ca.crt").write_text(admin.ca_pem)
    server = urlsplit(admin.url)
    for name in ("gpusharing-device-plugin", "gpusharing-mig-parted"):
        labels = {"app.kubernetes.io/managed-by": "gpusharing-operator"}
        body = {"metadata": {"name": name, "labels": labels}, "data": {"config.yaml": "version: v1"}}
        admin.create(CONFIG_MAPS, body)
    for namespace in (NAMESPACE, AGENT_NAMESPACE):
        wait_until(lambda where=namespace: ready(installed, where), SECONDS, f"Ready pods in {namespace}")  # type: ignore[misc]  # a default holds the loop's value
    yield {
        **{one["name"]: one["value"] for one in container["env"]},
        "SERVICE_ACCOUNT": str(folder),
        "KUBERNETES_SERVICE_HOST": server.hostname or "",
        "KUBERNETES_SERVICE_PORT": str(server.port),
    }
    for name in ("gpusharing-device-plugin", "gpusharing-mig-parted"):
        admin.delete(f"{CONFIG_MAPS}/{name}")
    for one in objects:
        admin.delete(install.object_path(admin, one))


def ready(installed: Installed, namespace: str) -> bool:
    pods = installed.admin.list(f"/api/v1/namespaces/{namespace}/pods")
    conditions = [pod.get("status", {}).get("conditions") or [] for pod in pods]
    return bool(pods) and all(
        any(one["type"] == "Ready" and one["status"] == "True" for one in of_pod) for of_pod in conditions
    )


def told(environment: dict[str, str]) -> tuple[int, str]:
    own = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT / "operator"), **environment}
    done = subprocess.run(
        [str(Path(sys.executable).with_name("gpusharing-checks"))],
        env=own,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return done.returncode, done.stdout + done.stderr


@contextmanager
def without(installed: Installed, path: str) -> Iterator[None]:
    found = installed.admin.get(path)
    installed.admin.delete(path)
    try:
        yield
    finally:
        kept = {key: found["metadata"].get(key) for key in ("name", "labels", "annotations")}
        metadata = {key: value for key, value in kept.items() if value}
        installed.admin.create(path.rpartition("/")[0], {**found, "metadata": metadata})


@contextmanager
def patched(installed: Installed, path: str, change: Object, back: Object) -> Iterator[None]:
    installed.admin.merge_patch(path, change)
    try:
        yield
    finally:
        installed.admin.merge_patch(path, back)


def test_a_good_installation_can_work(checks: dict[str, str]) -> None:
    status, screen = told(checks)
    assert status == 0, screen
    assert [line.split()[0] for line in screen.splitlines()[:6]] == ["ok"] * 6, screen
    assert screen.endswith("This installation can work: errors 0, warnings 0.\n")


def test_a_role_that_is_gone_is_told_with_the_rights_that_lack(installed: Installed, checks: dict[str, str]) -> None:
    with without(installed, f"{BINDINGS}/gpusharing-agent"):
        wait_until(lambda: told(checks)[0] == 1, SECONDS, "the authorizer to hear of it")
        _, screen = told(checks)
    assert "service account gpusharing-agent/gpusharing-agent is not allowed to" in screen
    for right in ("create subjectaccessreviews.authorization.k8s.io", "list gpunodes.gpusharing.dev"):
        assert right in screen
    assert "--set rbac.create=true" in screen
    wait_until(lambda: told(checks)[0] == 0, SECONDS, "the rights to be back")


def test_pointers_that_are_not_ours_are_told_with_the_patch(installed: Installed, checks: dict[str, str]) -> None:
    change = {"spec": {"devicePlugin": {"config": None}, "mig": {"strategy": "single"}}}
    back = {"spec": {"devicePlugin": {"config": {"name": "gpusharing-device-plugin"}}, "mig": None}}
    with patched(installed, CLUSTER_POLICY, change, back):
        status, screen = told(checks)
    assert status == 1
    assert "ERROR    ClusterPolicy: ClusterPolicy devicePlugin.config.name is not set" in screen
    command = next(line for line in screen.splitlines() if '"devicePlugin"' in line)
    assert command.strip().startswith("-> kubectl patch clusterpolicy cluster-policy --type merge -p ")
    assert "WARNING  ClusterPolicy: ClusterPolicy mig.strategy is single" in screen


def test_a_configmap_that_is_gone_is_told(installed: Installed, checks: dict[str, str]) -> None:
    with without(installed, f"{CONFIG_MAPS}/gpusharing-mig-parted"):
        status, screen = told(checks)
    assert status == 1
    assert "gpusharing-mig-parted does not exist in namespace gpu-operator" in screen


def test_a_namespace_that_refuses_agents_is_told(installed: Installed, checks: dict[str, str]) -> None:
    path = f"/api/v1/namespaces/{AGENT_NAMESPACE}"
    key = "pod-security.kubernetes.io/enforce"
    change, back = ({"metadata": {"labels": {key: level}}} for level in ("restricted", "privileged"))
    with patched(installed, path, change, back):
        status, screen = told(checks)
    assert status == 1
    assert f"namespace {AGENT_NAMESPACE} enforces PodSecurity restricted" in screen


def test_an_agent_that_is_gone_is_told(installed: Installed, checks: dict[str, str]) -> None:
    """A node that no kubelet serves: the DaemonSet's pod there never becomes Ready."""
    labels = {"nvidia.com/gpu.present": "true"}
    node = {"metadata": {"name": "gpu-dead", "labels": labels}, "spec": {"unschedulable": True}}
    installed.admin.create("/api/v1/nodes", node)
    try:
        status, screen = told(checks)
    finally:
        installed.admin.delete("/api/v1/nodes/gpu-dead")
    assert status == 0, screen
    warning = "the agent is not Ready on 1 of 3 GPU nodes, so the operator does not change them: gpu-dead"
    assert f"WARNING  agents: {warning}" in screen
    agents = selector({"app.kubernetes.io/name": "gpusharing-agent"})
    path = f"/api/v1/namespaces/{AGENT_NAMESPACE}/pods"

    def left() -> bool:
        pods = installed.admin.list(path, labelSelector=agents)
        return all(pod["spec"].get("nodeName") != "gpu-dead" for pod in pods)

    wait_until(left, SECONDS * 3, "the pod of the node to be gone")


def test_its_own_missing_rights_are_told_and_not_guessed(installed: Installed, checks: dict[str, str]) -> None:
    with without(installed, f"{BINDINGS}/{ACCOUNT}"):
        wait_until(lambda: "WARNING" in told(checks)[1], SECONDS, "the authorizer to hear of it")
        _, screen = told(checks)
    assert "could not be read, so they were not checked" in screen
    assert "could not check the rights of service account gpusharing/gpusharing-operator" in screen


def test_without_a_server_it_says_so(checks: dict[str, str]) -> None:
    status, screen = told({**checks, "KUBERNETES_SERVICE_PORT": "1"})
    assert status == 2
    assert "cannot query the API server" in screen
