"""Builds the commands that messages tell people to run."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping

from gpusharing.planning.snapshot.stackviews import PlainStackView

Fields = Mapping[str, Mapping[str, object]]
"""Fields of ClusterPolicy's spec to set: their values by name, by block."""


def kubectl_patch(cluster_policy: str, *parts: Fields) -> str:
    """Return the kubectl command that sets all fields in one merge patch; the value None removes a field.

    If several parts set the same field of a block, such as `config` of `devicePlugin`, the last one replaces it.
    """
    spec: defaultdict[str, dict[str, object]] = defaultdict(dict)
    for part in parts:
        for block, fields in part.items():
            spec[block].update(fields)
    body = json.dumps({"spec": spec}, separators=(",", ":"))
    return f"kubectl patch clusterpolicy {cluster_policy} --type merge -p '{body}'"


def plain_upgrade(plain: PlainStackView, namespace: str, helm_value: str, *, option: str = "--set") -> str:
    """Return the command that sets one value, NAME=VALUE, of NVIDIA's device-plugin chart."""
    return (
        f"helm upgrade {plain.release or 'RELEASE'} nvdp/nvidia-device-plugin -n {namespace} --reuse-values {option}"
        f" {helm_value}"
    )


def helm_install(release: str, namespace: str, gpu_operator: str, values: Iterable[str]) -> str:
    where = [] if gpu_operator == "gpu-operator" else [f"gpuOperator.namespace={gpu_operator}"]
    sets = ",".join([*where, *values])
    return f"helm install {release} CHART -n {namespace} --create-namespace{sets and f' --set {sets}'}"
