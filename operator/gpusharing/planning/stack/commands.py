"""Builds the commands that messages tell people to run."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping

from gpusharing.planning.snapshot.stackviews import PlainStackView

Fields = Mapping[str, Mapping[str, object]]
"""Fields of ClusterPolicy's spec to set: their values by name, by block."""


def kubectl_patch(cluster_policy: str, *parts: Fields) -> str:
    """Return the kubectl command that sets the fields of all `parts` in one merge patch. If several parts set the same
    field of a block, such as `config` of `devicePlugin`, the last one replaces the whole field. A value of None removes
    its field from ClusterPolicy. `cluster_policy` is the name of the ClusterPolicy."""
    spec: defaultdict[str, dict[str, object]] = defaultdict(dict)
    for part in parts:
        for block, fields in part.items():
            spec[block].update(fields)
    body = json.dumps({"spec": spec}, separators=(",", ":"))
    return f"kubectl patch clusterpolicy {cluster_policy} --type merge -p '{body}'"


def plain_upgrade(plain: PlainStackView, namespace: str, helm_value: str, *, option: str = "--set") -> str:
    """Return the command that sets one value of NVIDIA's device-plugin chart. RELEASE stands for the name of a release
    whose name is unknown. `helm_value` has the form NAME=VALUE, and `option` is the option of helm that reads it."""
    return (
        f"helm upgrade {plain.release or 'RELEASE'} nvdp/nvidia-device-plugin -n {namespace} --reuse-values {option}"
        f" {helm_value}"
    )


def helm_install(release: str, namespace: str, gpu_operator: str, values: Iterable[str]) -> str:
    """Return the command that installs this operator as `release` in `namespace`. `gpu_operator` is the namespace of
    NVIDIA's pods, which the command sets unless it is `gpu-operator`. `values` are further values of the chart,
    each as NAME=VALUE, and may be empty. In the command, CHART stands for the chart, which a person fills in."""
    where = [] if gpu_operator == "gpu-operator" else [f"gpuOperator.namespace={gpu_operator}"]
    sets = ",".join([*where, *values])
    return f"helm install {release} CHART -n {namespace} --create-namespace{sets and f' --set {sets}'}"
