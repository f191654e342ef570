"""Each platform's values meet its admission on a real API server: PodSecurity is the server's own, the rest SIMULATED.
Namespaces with labels say which platform they are on: there count the stand-ins for what OpenShift and GKE refuse (platform-admission.yaml)."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from hack.cluster import install
from hack.cluster.api import Api, ApiError, Object
from hack.cluster.controlplane import ControlPlane
from hack.cluster.process import wait_until
from tests.chart.charts import PLATFORMS, Helm, Manifest, find
from tests.chart.cluster import SECONDS
from tests.chart.test_accepted import crds

pytestmark = pytest.mark.cluster

SIMULATED = Path(__file__).with_name("platform-admission.yaml")
PLATFORM = "simulated.gpusharing.dev/platform"
ENFORCE = "pod-security.kubernetes.io/enforce"
UIDS = {"openshift.io/sa.scc.uid-range": "1000680000/10000"}
BEFORE_PODS = (
    "Namespace",
    "ServiceAccount",
    "Role",
    "RoleBinding",
    "ResourceQuota",
    "SecurityContextConstraints",
)
FILES = {path.stem: path for path in PLATFORMS}
CIS = {"rke2"}
"""Platforms that enforce PodSecurity restricted where a namespace says nothing else."""


@pytest.fixture(scope="module")
def api(control_plane: ControlPlane) -> Iterator[Api]:
    """An API server with the stand-ins enforced; the kinds are taken away again, for others there are none."""
    admin = control_plane.api
    install.apply_documents(admin, [*crds(), *install.documents(SIMULATED)])
    runtime = {"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "handler": "nvidia"}
    install.apply_documents(admin, [{**runtime, "metadata": {"name": "nvidia"}}])
    for name in ("gpu-operator", "nvidia-gpu-operator", "nvidia-device-plugin"):
        namespace(admin, name)
    for platform in ("openshift", "gke"):
        namespace(admin, f"probe-{platform}", **{PLATFORM: platform})
        wait_until(lambda p=platform: _enforced(admin, p), SECONDS, f"{platform} to be enforced")  # type: ignore[misc]  # a default binds the loop's value
    yield admin
    for one in (*crds(), *install.documents(SIMULATED)):
        admin.delete(install.object_path(admin, one))


def _enforced(api: Api, platform: str) -> bool:
    spec = {
        "containers": [{"name": "main", "image": "x"}],
        "priorityClassName": "system-node-critical",
        "hostPID": True,
        "serviceAccountName": "default",
    }
    return f"simulated-{platform}" in refusal(api, f"probe-{platform}", {"spec": spec})


def namespace(api: Api, name: str, **labels: str) -> None:
    metadata = {"name": name, "labels": labels, "annotations": UIDS}
    install.apply_documents(api, [{"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}])
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": name}}
    install.apply_documents(api, [account])


def refusal(api: Api, space: str, template: Object) -> str:
    """Why the server would not create a pod of this template; empty when it would."""
    pod = {"metadata": {**template.get("metadata", {}), "name": "checked"}, "spec": template["spec"]}
    path = f"/api/v1/namespaces/{space}/pods"
    try:
        api.request("POST", path, pod, dryRun="All", fieldValidation="Strict")
    except ApiError as error:
        return error.message
    return ""


def refusals(api: Api, helm: Helm, space: str, platform: str, *values: str) -> dict[str, str]:
    """What the platform says to both pods of the chart; empty texts: they may come.

    All that the chart brings for them is there before.
    """
    agents = f"{space}-agent"
    labels = {PLATFORM: platform} | ({ENFORCE: "restricted"} if platform in CIS else {})
    namespace(api, space, **labels)
    namespace(api, agents, **labels)
    done = helm.template("-n", space, "--set", f"agent.namespace={agents}", *values)
    brought = [one for one in done if one["kind"] in BEFORE_PODS]
    install.apply_documents(api, [in_platform(one, labels) for one in brought])
    for one in brought:
        if one["kind"] == "ResourceQuota":
            path = install.object_path(api, one)
            wait_until(lambda p=path: "hard" in api.get(p).get("status", {}), SECONDS, path)  # type: ignore[misc]  # a default binds the loop's value
    found = {}
    for kind, name, where in (
        ("Deployment", "gpusharing-operator", space),
        ("DaemonSet", "gpusharing-agent", agents),
    ):
        found[name] = refusal(api, where, find(done, kind, name)["spec"]["template"])
    return found


def in_platform(one: Manifest, labels: dict[str, str]) -> Manifest:
    """A namespace of the chart is on the platform too; what the chart says itself wins."""
    if one["kind"] != "Namespace":
        return one
    metadata = one["metadata"]
    return {**one, "metadata": {**metadata, "annotations": UIDS, "labels": labels | metadata["labels"]}}


@pytest.mark.parametrize("platform", FILES)
def test_the_platform_takes_both_pods_with_its_values(api: Api, helm: Helm, platform: str) -> None:
    values = ("-f", str(FILES[platform]))
    if platform == "rke2":
        assert "gpusharing-agent" in yaml.safe_load(FILES[platform].read_text())["agent"]["namespace"]
    said: dict[str, str] = {}

    def taken() -> bool:
        said.update(refusals(api, helm, f"on-{platform}", platform, *values))
        return not any(said.values())

    try:
        wait_until(taken, SECONDS, "both pods to be taken")  # roles and quotas count a moment later
    except TimeoutError as error:
        raise AssertionError(f"{error}: {said}") from None


REFUSED = {
    "OpenShift: a fixed user, for the operator": (
        "openshift", (), "gpusharing-operator", "outside of the namespace's range"),
    "OpenShift: the host, without an SCC": ("openshift", (), "gpusharing-agent", "SIMULATED OpenShift"),
    "OpenShift: an SELinux type, without an SCC": (
        "openshift",
        ("-f", str(FILES["openshift"]), "--set", "openshift.createSCC=false"),
        "gpusharing-agent",
        "SIMULATED OpenShift",
    ),
    "GKE: a critical pod without a quota": (
        "gke", ("--set", "priorityClassQuota=false"), "gpusharing-agent", "simulated-gke"),
    "CIS: the agent in a namespace without a label": (
        "rke2",
        ("--set", "agent.createNamespace=false"),
        "gpusharing-agent",
        "violates PodSecurity",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_the_platform_refuses_what_it_would(api: Api, helm: Helm, case: str) -> None:
    platform, values, pod, words = REFUSED[case]
    space = f"no-{list(REFUSED).index(case)}"
    assert words in refusals(api, helm, space, platform, *values)[pod]


BEYOND: dict[str, tuple[Object, Object, str]] = {
    "nothing": ({}, {}, ""),
    "a user of the range": ({}, {"runAsUser": 1000680001}, ""),
    "a user outside of it": ({}, {"runAsUser": 65532}, "outside of the namespace's range"),
    "an SELinux type": ({}, {"seLinuxOptions": {"type": "spc_t"}}, "seLinuxOptions"),
    "privileges": ({}, {"privileged": True}, "out of reach"),
    "the host's processes": ({"hostPID": True}, {}, "out of reach"),
    "the host's files": ({"volumes": [{"name": "all", "hostPath": {"path": "/"}}]}, {}, "out of reach"),
}
"""What a pod asks for on OpenShift, of the node and for its container, and the answer without an SCC."""


@pytest.mark.parametrize("asked", BEYOND)
def test_without_an_scc_the_stand_in_of_openshift_gives_what_restricted_v2_gives(api: Api, asked: str) -> None:
    pod, context, words = BEYOND[asked]
    container = {"name": "main", "image": "x", "securityContext": context}
    said = refusal(
        api, "probe-openshift", {"spec": {"serviceAccountName": "default", "containers": [container], **pod}}
    )
    assert words in said
    assert bool(said) == bool(words)
