"""Kubeconfig files: written self-contained and private to the user, read as far as our tools need it."""

import base64
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from hack.cache import write_private
from hack.cluster.api import Api, Credentials

CLUSTER_NAME = "gpusharing-dev"


class KubeconfigError(Exception):
    """There is no kubeconfig, or it has nothing that we can use. The text says what to do."""


def write_kubeconfig(
    path: Path, url: str, ca_pem: str, user: str, credentials: Credentials, *, namespace: str = "default"
) -> Path:
    """Write a kubeconfig for `user` to `path` and return the path."""
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
    """The file that `$KUBECONFIG` names.

    Raises:
        KubeconfigError: it is unset. The user's own ~/.kube/config is never taken: that may be production.
    """
    if chosen := environ.get("KUBECONFIG"):
        return Path(chosen)
    raise KubeconfigError("KUBECONFIG is not set.\nStart a cluster and run its last line: make cluster")


def open_api(path: Path) -> Api:
    """A client for the current context of a kubeconfig with inline certificates or a token.

    Raises:
        KubeconfigError: the file is not there, or its user has other means (an exec plugin, say).
    """
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
    with tempfile.TemporaryDirectory() as folder:  # ssl takes key material from files only
        cert = write_private(Path(folder) / "crt", _decoded(user["client-certificate-data"]))
        key = write_private(Path(folder) / "key", _decoded(user["client-key-data"]))
        return Api(cluster["server"], ca_pem, Credentials(cert=cert, key=key))


def _named(entries: list[dict[str, Any]], name: str) -> dict[str, Any]:
    return next(entry for entry in entries if entry["name"] == name)


def _encoded(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def _decoded(text: str) -> bytes:
    return base64.b64decode(text)
