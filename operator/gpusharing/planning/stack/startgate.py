"""May NVIDIA's pods run behind the start-up taint (docs/design/way.md#gate)? If not, no node there is ever proven."""

import json
from typing import Any

from gpusharing.api import names
from gpusharing.planning.snapshot.stackviews import ClusterPolicyView
from gpusharing.planning.stack.commands import kubectl_patch
from gpusharing.planning.words.values import value

TOLERATION: dict[str, Any] = {"key": names.TAINT_UNPROVEN, "operator": "Exists", "effect": "NoSchedule"}
"""The toleration that everything needs that proves a node."""


@value
class Untolerated:
    """What must tolerate the taint and does not."""

    said: str
    """What does not tolerate it, for people."""
    command: str
    """The command that corrects it. It restarts the pods that it changes, on every node."""


def find_untolerated(policy: ClusterPolicyView, namespace: str) -> Untolerated | None:
    """What keeps NVIDIA's operands off; None: nothing. `namespace`: theirs."""
    if policy.tolerates_gate:
        return None
    tolerations = widened(policy.tolerations)
    if (plain := policy.plain) is not None:
        release, value = plain.release or "RELEASE", _dump(tolerations)
        return Untolerated(
            f"tolerations of NVIDIA's device-plugin chart lack {names.TAINT_UNPROVEN}",
            f"helm upgrade {release} nvdp/nvidia-device-plugin -n {namespace} --reuse-values"
            f" --set-json 'tolerations={value}'",
        )
    command = kubectl_patch(policy.name, {"daemonsets": {"tolerations": tolerations}})
    return Untolerated(f"ClusterPolicy daemonsets.tolerations lacks {names.TAINT_UNPROVEN}", command)


def finder_command(release: str, tolerations: str, namespace: str, *, plain: bool) -> str:
    """The command that lets the worker of Node Feature Discovery, installed with NVIDIA's chart, run behind the
    taint."""
    chart, value = (
        ("nvdp/nvidia-device-plugin", "nfd") if plain else ("nvidia/gpu-operator", "node-feature-discovery")
    )
    return (
        f"helm upgrade {release or 'RELEASE'} {chart} -n {namespace} --reuse-values"
        f" --set-json '{value}.worker.tolerations={_dump(widened(tolerations))}'"
    )


def _dump(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


def widened(tolerations: str) -> list[Any]:
    """These tolerations, given as JSON, and ours."""
    return [*json.loads(tolerations), TOLERATION]
