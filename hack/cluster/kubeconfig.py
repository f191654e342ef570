"""Kubeconfig files, with all data inline and readable by the user only, and tokens of service accounts.

The TokenRequest API gives the tokens, so that tools and tests act with the shipped RBAC and not as admin.
"""

import base64
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from hack.cache import write_private
from hack.cluster.api import Api, ApiError, Credentials, Object

CLUSTER_NAME = "gpusharing-dev"


class KubeconfigError(Exception):
    """There is no kubeconfig, or we cannot use its kind of credentials. The message says what to do."""


def write_kubeconfig(
    path: Path, url: str, ca_pem: str, user: str, credentials: Credentials, *, namespace: str = "default"
) -> Path:
    who: dict[str, Any] = {}
    if credentials.cert and credentials.key:
        who["client-certificate-data"] = _encoded(credentials.cert.read_bytes())
        who["client-key-data"] = _encoded(credentials.key.read_bytes())
    if credentials.token:
        who["token"] = credentials.token
    cluster = {"server": url, "certificate-authority-data": _encoded(ca_pem.encode())}
    context = {"cluster": CLUSTER_NAME, "user": user, "namespace": namespace}
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": CLUSTER_NAME, "cluster": cluster}],
        "users": [{"name": user, "user": who}],
        "contexts": [{"name": CLUSTER_NAME, "context": context}],
        "current-context": CLUSTER_NAME,
    }
    return write_private(path, yaml.safe_dump(document, sort_keys=False))


def kubeconfig_path(environ: Mapping[str, str] = os.environ) -> Path:
    """Return the path in $KUBECONFIG. ~/.kube/config is never used, because it may be for production."""
    if chosen := environ.get("KUBECONFIG"):
        return Path(chosen)
    raise KubeconfigError(
        "KUBECONFIG is not set.\nStart a cluster with `make cluster` and run the line that it prints last."
    )


def open_api(path: Path) -> Api:
    """Return a client that acts as the current user, who needs a token or an inline certificate."""
    try:
        document = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise KubeconfigError(f"there is no kubeconfig {path}.\nStart a cluster: make cluster") from None
    context = _named(document["contexts"], document["current-context"])["context"]
    cluster = _named(document["clusters"], context["cluster"])["cluster"]
    user = _named(document["users"], context["user"])["user"]
    ca_pem = _decoded(cluster["certificate-authority-data"]).decode()
    if token := user.get("token"):
        return Api(cluster["server"], ca_pem, Credentials(token=token))
    if "client-certificate-data" not in user:
        raise KubeconfigError(f"{path}: the current user has neither a token nor client-certificate-data")
    with tempfile.TemporaryDirectory() as folder:  # ssl reads key material from files only
        cert = write_private(Path(folder) / "crt", _decoded(user["client-certificate-data"]))
        key = write_private(Path(folder) / "key", _decoded(user["client-key-data"]))
        return Api(cluster["server"], ca_pem, Credentials(cert=cert, key=key))


def _named(entries: list[dict[str, Any]], name: str) -> dict[str, Any]:
    return next(entry for entry in entries if entry["name"] == name)


def _encoded(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def _decoded(text: str) -> bytes:
    return base64.b64decode(text)


LIFETIME_SECONDS = 7 * 24 * 3600
NODE_BINDING = "ServiceAccountTokenNodeBinding"
"""The feature gate that an API server names when it refuses to bind a token to a Node. On by default since 1.31."""


def service_account_token(api: Api, namespace: str, name: str, *, bound_to: Object | None = None) -> str:
    """Request a token for an existing service account, valid for a week."""
    spec: dict[str, Any] = {"expirationSeconds": LIFETIME_SECONDS}
    if bound_to is not None:
        spec["boundObjectRef"] = bound_to
    request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
    path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token"
    return str(api.create(path, request)["status"]["token"])


def node_bound_token(api: Api, namespace: str, name: str, node: str) -> str:
    """Return a token bound to a Node or, on Kubernetes 1.30, to a running pod of the account there."""
    uid = api.get(f"/api/v1/nodes/{node}")["metadata"]["uid"]
    bound_to = {"apiVersion": "v1", "kind": "Node", "name": node, "uid": uid}
    try:
        return service_account_token(api, namespace, name, bound_to=bound_to)
    except ApiError as error:
        if NODE_BINDING not in error.message:
            raise
        running = f"spec.nodeName={node},spec.serviceAccountName={name},status.phase=Running"
        pods = api.list(f"/api/v1/namespaces/{namespace}/pods", fieldSelector=running)
        if not pods:
            raise
    return pod_bound_token(api, namespace, pods[0]["metadata"]["name"])


def pod_bound_token(api: Api, namespace: str, pod: str) -> str:
    """Request the token that a kubelet would request for this pod."""
    existing = api.get(f"/api/v1/namespaces/{namespace}/pods/{pod}")
    bound_to = {"apiVersion": "v1", "kind": "Pod", "name": pod, "uid": existing["metadata"]["uid"]}
    account = existing["spec"].get("serviceAccountName", "default")
    return service_account_token(api, namespace, account, bound_to=bound_to)


def write_token_kubeconfig(api: Api, path: Path, namespace: str, name: str) -> Path:
    """Write a kubeconfig to `path` that acts as a service account, and return `path`."""
    token = service_account_token(api, namespace, name)
    user = f"system:serviceaccount:{namespace}:{name}"
    return write_kubeconfig(path, api.url, api.ca_pem, user, Credentials(token=token), namespace=namespace)
