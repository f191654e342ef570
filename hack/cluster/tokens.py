"""Service-account tokens from the TokenRequest API: tools and tests act under shipped RBAC, not as admin."""

from pathlib import Path
from typing import Any

from hack.cluster.api import Api, Credentials, Object
from hack.cluster.kubeconfig import write_kubeconfig

LIFETIME_SECONDS = 7 * 24 * 3600


def service_account_token(
    api: Api, namespace: str, name: str, *, bound_to: Object | None = None, seconds: int = LIFETIME_SECONDS
) -> str:
    """A token of an existing service account, valid for `seconds`; `bound_to` is a boundObjectRef.

    Raises:
        ApiError: 404 when the service account (or the bound object) does not exist.
    """
    spec: dict[str, Any] = {"expirationSeconds": seconds}
    if bound_to is not None:
        spec["boundObjectRef"] = bound_to
    request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
    path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token"
    return str(api.create(path, request)["status"]["token"])


def node_bound_token(api: Api, namespace: str, name: str, node: str) -> str:
    """A token bound to a Node: its bearer carries the claim `authentication.kubernetes.io/node-name`.

    A kubelet requests pod-bound tokens, which carry the same claim; `pod_bound_token` makes such a one.
    """
    uid = api.get(f"/api/v1/nodes/{node}")["metadata"]["uid"]
    bound_to = {"apiVersion": "v1", "kind": "Node", "name": node, "uid": uid}
    return service_account_token(api, namespace, name, bound_to=bound_to)


def pod_bound_token(api: Api, namespace: str, pod: str) -> str:
    """The token that a kubelet would give to this pod: of its service account, bound to the pod."""
    found = api.get(f"/api/v1/namespaces/{namespace}/pods/{pod}")
    bound_to = {"apiVersion": "v1", "kind": "Pod", "name": pod, "uid": found["metadata"]["uid"]}
    account = found["spec"].get("serviceAccountName", "default")
    return service_account_token(api, namespace, account, bound_to=bound_to)


def write_token_kubeconfig(
    api: Api, path: Path, namespace: str, name: str, *, node: str | None = None
) -> Path:
    """Write a kubeconfig that acts as a service account, with a token bound to `node` when given."""
    if node is None:
        token = service_account_token(api, namespace, name)
    else:
        token = node_bound_token(api, namespace, name, node)
    user = f"system:serviceaccount:{namespace}:{name}"
    return write_kubeconfig(path, api.url, api.ca_pem, user, Credentials(token=token), namespace=namespace)
