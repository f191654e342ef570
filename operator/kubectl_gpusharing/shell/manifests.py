"""Policies as files that `kubectl apply -f` accepts."""

from collections.abc import Mapping
from typing import Any

from gpusharing.api.names import API_VERSION
from gpusharing.kube.client import JSON
from kubectl_gpusharing.shell.drawing import printable

KIND = "GPUSharingPolicy"


def policy_manifest(name: str, spec: Mapping[str, Any], **metadata: object) -> JSON:
    """Return a policy as `kubectl apply` accepts it. `metadata` has further fields for its metadata."""
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"name": name, **metadata},
        "spec": dict(spec),
    }


def comment(text: str) -> str:
    """Return the string as one comment line of a YAML file, including the final line break. Line breaks in the string
    become spaces and unprintable characters become ?, because parts of the string come from elsewhere."""
    return f"# {printable(' '.join(text.splitlines()))}\n"
