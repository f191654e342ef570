"""How is a GPUSharingPolicy written, for kubectl apply?"""

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
    return f"# {printable(' '.join(text.splitlines()))}\n"
