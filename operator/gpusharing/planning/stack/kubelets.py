"""Kubelets of GPU nodes by version: which of them Kubernetes, or this operator, does not support."""

import re

from gpusharing.planning.stack.installationviews import InstallationView
from gpusharing.planning.stack.nodesymptoms import has_gpu_label
from gpusharing.planning.stack.symptoms import Symptom, Symptoms, Topic, warning
from gpusharing.planning.vocabulary.lengths import some
from gpusharing.planning.vocabulary.values import value

OLDEST = (1, 30)
"""The oldest Kubernetes that the operator is made for; the chart's kubeVersion says the same of the API server."""
MOST_BEHIND = 3
"""Minor versions: "kubelet must not be newer than kube-apiserver", and "may be up to three minor versions older"
(kubernetes.io/releases/version-skew-policy, "kubelet"). Patch versions do not count."""
_UNSUPPORTED = "the API server ({}), which Kubernetes does not support"
_UPGRADE = "upgrade the kubelet, one node after the other"
_VERSION = re.compile(r"v?(\d+)\.(\d+)")

Minor = tuple[int, int]


@value
class _Kubelet:
    node: str
    said: str
    minor: Minor


def find_minor(version: str) -> Minor | None:
    """Major and minor of `v1.33.1-eks-1-33-5`; None if it is unknown, or that of a build without a version
    (`v0.0.0-master+$Format:%H$`, component-base v0.36.3 version/base.go)."""
    found = _VERSION.match(version)
    return (int(found[1]), int(found[2])) if found and found[1] != "0" else None


def find_kubelet_symptoms(view: InstallationView, api_server: str) -> tuple[Symptom, ...]:
    """What is wrong with the versions of kubelets on nodes with GPUs. `api_server`: its version, empty if unknown.

    A kubelet is listed once, for its worst fault.
    """
    kubelets = [
        _Kubelet(one.name, version, minor)
        for one in sorted(view.nodes, key=lambda one: one.name)
        if has_gpu_label(one)
        and (minor := find_minor(version := view.kubelets.get(one.name, ""))) is not None
    ]
    server = find_minor(api_server)
    newer = [one for one in kubelets if server is not None and one.minor > server]
    behind = [one for one in kubelets if server is not None and _is_behind(one.minor, server)]
    told = {one.node for one in (*newer, *behind)}
    old = [one for one in kubelets if one.minor < OLDEST and one.node not in told]
    said = _UNSUPPORTED.format(api_server)
    return (
        *_symptom(newer, "KubeletNewer", f"is newer than {said}: upgrade the control plane"),
        *_symptom(
            behind, "KubeletBehind", f"is more than {MOST_BEHIND} minor versions behind {said}: {_UPGRADE}"
        ),
        *_symptom(
            old,
            "KubeletOld",
            f"is older than {OLDEST[0]}.{OLDEST[1]}, the oldest that the operator is made for: {_UPGRADE}",
        ),
    )


def _is_behind(kubelet: Minor, server: Minor) -> bool:
    return kubelet[0] == server[0] and server[1] - kubelet[1] > MOST_BEHIND


def _symptom(kubelets: list[_Kubelet], reason: str, said: str) -> Symptoms:
    if kubelets:
        who = f"the kubelet of {some([one.node for one in kubelets])} ({kubelets[0].said})"
        yield warning(
            Topic.KUBELETS,
            reason,
            f"{who} {said}",
            f"kubectl get node {' '.join(one.node for one in kubelets)} -o"
            " custom-columns=NODE:.metadata.name,KUBELET:.status.nodeInfo.kubeletVersion",
        )
