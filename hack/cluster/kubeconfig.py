"""Kubeconfig files: self-contained, private to the user, with a name that says which cluster it is."""

import base64
from pathlib import Path
from typing import Any

import yaml

from hack.cluster.api import Credentials
from hack.cluster.paths import write_private

CLUSTER_NAME = "gpusharing-dev"


def write_kubeconfig(
    path: Path, url: str, ca: Path, user: str, credentials: Credentials, namespace: str = "default"
) -> Path:
    """Write a kubeconfig for `user` to `path` and return the path."""
    who: dict[str, Any] = {}
    if credentials.cert and credentials.key:
        who["client-certificate-data"] = _encoded(credentials.cert)
        who["client-key-data"] = _encoded(credentials.key)
    if credentials.token:
        who["token"] = credentials.token
    context = {"cluster": CLUSTER_NAME, "user": user, "namespace": namespace}
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {"name": CLUSTER_NAME, "cluster": {"server": url, "certificate-authority-data": _encoded(ca)}}
        ],
        "users": [{"name": user, "user": who}],
        "contexts": [{"name": CLUSTER_NAME, "context": context}],
        "current-context": CLUSTER_NAME,
    }
    return write_private(path, yaml.safe_dump(document, sort_keys=False))


def _encoded(file: Path) -> str:
    return base64.b64encode(file.read_bytes()).decode()
