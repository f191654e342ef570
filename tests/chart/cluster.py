"""A control plane with the chart installed by helm, and the people who call it."""

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from hack.cluster import install, nodes
from hack.cluster.api import JSON, MERGE_PATCH, Api, ApiError, Object
from hack.cluster.controlplane import ControlPlane
from hack.cluster.kubeconfig import node_bound_token, service_account_token
from hack.cluster.process import wait_until
from tests.chart.charts import CHART, IMAGE, NAMESPACE, Helm

RELEASE = "gpusharing"
AGENT_NAMESPACE = "gpusharing-agent"
POLICIES = "/apis/gpusharing.dev/v1alpha1/gpusharingpolicies"
GPUNODES = "/apis/gpusharing.dev/v1alpha1/gpunodes"
NODES = "/api/v1/nodes"
BINDINGS = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings"
Call = tuple[str, str, Object | None]
"""Method, path and body."""
SECONDS = 60.0

OBSERVED: dict[str, Any] = {
    "requestID": "1",
    "quiet": False,
    "simulated": True,
    "error": "",
    "driverVersion": "",
    "models": [],
    "computeModes": "",
    "programs": "",
    "gpus": [],
    "allocated": {},
    "pods": 0,
}
POLICY: dict[str, Any] = {
    "apiVersion": "gpusharing.dev/v1alpha1",
    "kind": "GPUSharingPolicy",
    "metadata": {"name": "pool-d"},
    "spec": {
        "nodeSelector": {"matchLabels": {"gpusharing.dev/pool": "d"}},
        "mode": "TimeSlicing",
        "timeSlicing": {"replicas": 4},
    },
}


@dataclass(frozen=True)
class Installed:
    """A control plane, the chart on it, two nodes with a GPUNode each."""

    plane: ControlPlane
    helm: Helm
    node_a: str
    node_b: str

    @property
    def admin(self) -> Api:
        return self.plane.api

    def operator(self) -> Api:
        token = service_account_token(self.admin, NAMESPACE, "gpusharing-operator")
        return self.admin.as_token(token)

    def agent(self, node: str) -> Api:
        """The agent's service account, with the token that its pod on `node` has."""
        return self.admin.as_token(node_bound_token(self.admin, AGENT_NAMESPACE, "gpusharing-agent", node))

    def agent_of_no_node(self) -> Api:
        """The agent's service account, with a token that somebody made by hand."""
        return self.admin.as_token(service_account_token(self.admin, AGENT_NAMESPACE, "gpusharing-agent"))

    def run_helm(self, verb: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run helm against the control plane in the release's namespace; it may fail."""
        image = IMAGE if verb in ("install", "upgrade") else ()
        environ = {"KUBECONFIG": str(self.plane.kubeconfig)}
        return self.helm.run(verb, RELEASE, "-n", NAMESPACE, *image, *arguments, environ=environ)

    def must(self, verb: str, *arguments: str) -> str:
        """As `run_helm`, which must succeed; returns what it printed."""
        done = self.run_helm(verb, *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def wait_enforced(self) -> None:
        """Wait until the admission policies are enforced: the API server takes them up a moment later."""
        taint = {"spec": {"taints": [{"key": "probe", "effect": "NoSchedule"}]}}
        foreign = f"{GPUNODES}/{self.node_b}/status"
        with self.agent(self.node_a) as agent, self.operator() as operator:

            def both() -> bool:
                report = dry(agent, foreign, {"status": {"observed": OBSERVED}})
                return report == 403 and dry(operator, f"{NODES}/{self.node_a}", taint) == 403

            wait_until(both, SECONDS, "the admission policies to be enforced")
        self._wait_no_deletion()

    def _wait_no_deletion(self) -> None:
        """Wait until a policy that says Reset is not deleted without the operator's finalizer."""
        path = f"{POLICIES}/probe"
        spec = {**POLICY["spec"], "deletionPolicy": "Reset"}
        self.admin.create(POLICIES, {**POLICY, "metadata": {"name": "probe"}, "spec": spec})

        def refused() -> bool:
            try:
                self.admin.delete(path, {"dryRun": ["All"]})
            except ApiError as error:
                return "deletionPolicy is Reset" in error.message
            return False

        wait_until(refused, SECONDS, "the one about deletions to be enforced")
        self.admin.merge_patch(path, {"spec": {"deletionPolicy": "Retain"}})
        self.admin.delete(path)


def bind(admin: Api, name: str, role: str, account: str, namespace: str = "default") -> str:
    """Grant a service account a ClusterRole everywhere; returns the path of the binding."""
    who = {"kind": "ServiceAccount", "name": account, "namespace": namespace}
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role}
    admin.create(BINDINGS, {"metadata": {"name": name}, "roleRef": reference, "subjects": [who]})
    return f"{BINDINGS}/{name}"


def create_account(admin: Api, name: str, *roles: str) -> list[str]:
    """Create a service account with these ClusterRoles in namespace default; returns the paths of the bindings."""
    admin.create("/api/v1/namespaces/default/serviceaccounts", {"metadata": {"name": name}})
    return [bind(admin, f"{name}-{role}", role, name) for role in roles]


@contextmanager
def somebody(admin: Api, name: str, *roles: str) -> Iterator[Api]:
    """A client with the token of a new account that has these ClusterRoles, which may count a moment later."""
    bindings = create_account(admin, name, *roles)
    with admin.as_token(service_account_token(admin, "default", name)) as api:
        yield api
    for path in bindings:
        admin.delete(path)


@contextmanager
def mighty(installed: Installed, api: Api, account: str, namespace: str) -> Iterator[Api]:
    """The service account whose token `api` sends, while somebody has granted it everything: only admission is left."""

    def reads_secrets() -> bool:
        try:
            api.list("/api/v1/secrets")
        except ApiError:
            return False
        return True

    binding = bind(installed.admin, f"mighty-{account}", "cluster-admin", account, namespace)
    wait_until(reads_secrets, SECONDS, "the new binding to count")
    yield api
    installed.admin.delete(binding)
    wait_until(lambda: not reads_secrets(), SECONDS, "the deleted binding to count no more")


def refusal(api: Api, policy: dict[str, Any]) -> str:
    """Why the server would not create a GPUSharingPolicy; empty when it would."""
    try:
        api.request("POST", POLICIES, policy, dryRun="All", fieldValidation="Strict")
    except ApiError as error:
        return error.message
    return ""


def dry(api: Api, path: str, patch: dict[str, Any]) -> int:
    """The HTTP status of a merge patch that changes nothing."""
    try:
        api.request("PATCH", path, patch, MERGE_PATCH, dryRun="All")
    except ApiError as error:
        return error.status
    return 200


def find_object(api: Api, path: str) -> Object | None:
    """The object at this path; None if there is none."""
    try:
        found: Object = api.get(path)
    except ApiError as error:
        if error.status != 404:
            raise
        return None
    return found


def is_there(api: Api, path: str) -> bool:
    return find_object(api, path) is not None


def forbidden(call: Callable[[], object]) -> str:
    """The words with which the server forbids this call; empty when it would do it."""
    try:
        call()
    except ApiError as error:
        if error.status != 403:
            raise
        return error.message
    return ""


def denied(call: Callable[[], object]) -> str:
    said = forbidden(call)
    assert said, "the server would do it"
    return said


def attempt(api: Api, call: Call, node: str) -> str:
    """The words with which the server forbids a call of a table, in whose path `{a}` stands for the node."""
    method, path, body = call
    kind = MERGE_PATCH if method == "PATCH" else JSON
    return denied(lambda: api.request(method, path.format(a=node), body, kind))


def set_up(plane: ControlPlane, helm: Helm) -> Installed:
    """Install the chart into a namespace that enforces PodSecurity `restricted`, and add two GPU nodes."""
    api = plane.api
    install.install_gpu_operator(api)
    enforce = {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}}
    api.merge_patch(f"/api/v1/namespaces/{NAMESPACE}", enforce)
    handler = {
        "apiVersion": "node.k8s.io/v1",
        "kind": "RuntimeClass",
        "metadata": {"name": "nvidia"},
        "handler": "nvidia",
    }
    api.create("/apis/node.k8s.io/v1/runtimeclasses", handler)
    created = nodes.create_nodes(api, nodes.fleet(2))
    nodes.wait_nodes_ready(api, created)
    installed = Installed(plane, helm, created[0], created[1])
    installed.must("install", str(CHART))
    for name in created:
        gpunode = {"apiVersion": "gpusharing.dev/v1alpha1", "kind": "GPUNode", "metadata": {"name": name}}
        wait_until(lambda: _served(api), SECONDS, "the GPUNode CRD to be served")
        api.create(GPUNODES, {**gpunode, "spec": {"request": {"id": "1", "quiet": False}}})
    installed.wait_enforced()
    return installed


def _served(api: Api) -> bool:
    try:
        api.list(GPUNODES)
    except ApiError as error:
        if error.status not in (404, 429):  # 429: storage is (re)initializing
            raise
        return False
    return True
