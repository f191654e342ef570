"""Policies as files that `kubectl apply -f` accepts."""

from collections.abc import Mapping
from typing import Any

from gpusharing.api.names import API_VERSION
from gpusharing.kube.client import JSON
from kubectl_gpusharing.shell.drawing import printable

KIND = "GPUSharingPolicy"


def policy_manifest(name: str, spec: Mapping[str, Any], **metadata: object) -> JSON:
    about = {"name": name, **metadata}
    return {"apiVersion": API_VERSION, "kind": KIND, "metadata": about, "spec": dict(spec)}


def comment(text: str) -> str:
    """Return the string as one comment line of a YAML file."""
    return f"# {printable(' '.join(text.splitlines()))}\n"
