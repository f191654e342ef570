"""A pod that the API server does not let go, as with too few rights or a webhook in the way."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from hack.cluster.api import Api, ApiError, Object
from hack.cluster.install import GPU_OPERATOR_NAMESPACE
from hack.cluster.process import wait_until

ADMISSION = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolic"
POLICIES, BINDINGS = f"{ADMISSION}ies", f"{ADMISSION}ybindings"
PODS = f"/api/v1/namespaces/{GPU_OPERATOR_NAMESPACE}/pods"
SECONDS = 60.0


def create_pod(api: Api, node: str, app: str) -> str:
    """A pod of one of the GPU Operator's apps on a node, without any program; returns its name."""
    name = f"{app}-{node}"
    manifest = {
        "metadata": {"name": name, "labels": {"app": app}},
        "spec": {"nodeName": node, "containers": [{"name": "main", "image": "simulated"}]},
    }
    api.apply(f"/api/v1/namespaces/{GPU_OPERATOR_NAMESPACE}", _namespace())
    wait_until(partial(_created, api, manifest), SECONDS, f"pod {name} to be accepted")
    return name


@contextmanager
def undeletable(api: Api, pod: str) -> Iterator[None]:
    rule = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["DELETE"], "resources": ["pods"]}
    policy = {
        "matchConstraints": {"resourceRules": [rule]},
        "matchConditions": [{"name": "this-one", "expression": f"request.name == '{pod}'"}],
        "validations": [{"expression": "false", "message": f"{pod} must stay"}],
    }
    binding = {"policyName": pod, "validationActions": ["Deny"]}
    for path, kind, spec in ((POLICIES, "Policy", policy), (BINDINGS, "PolicyBinding", binding)):
        api.apply(f"{path}/{pod}", _admission(f"ValidatingAdmission{kind}", pod, spec))
    wait_until(lambda: not _can_delete(api, pod), SECONDS, f"{pod} to be protected")
    try:
        yield
    finally:
        for path in (BINDINGS, POLICIES):
            api.delete(f"{path}/{pod}")
        wait_until(lambda: _can_delete(api, pod), SECONDS, f"{pod} to be free again")


def _admission(kind: str, name: str, spec: Object) -> Object:
    version = "admissionregistration.k8s.io/v1"
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name}, "spec": spec}


def _namespace() -> Object:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": GPU_OPERATOR_NAMESPACE}}


def _created(api: Api, manifest: Object) -> bool:
    """A new namespace takes no pods until it has its service account."""
    try:
        api.create(PODS, manifest)
    except ApiError as error:
        if error.status == 403 and "serviceaccount" in error.message:
            return False
        raise
    return True


def _can_delete(api: Api, pod: str) -> bool:
    try:
        api.request("DELETE", f"{PODS}/{pod}", dryRun="All")
    except ApiError as error:
        if "must stay" not in error.message:
            raise
        return False
    return True
