"""Whose maintenance markers a Node carries besides ours (drain.md C5).

While one is there we do not start, and at the end we leave the node cordoned. Each row says how the marker is
recognised and whom a person has to ask. Our own marks are not in this table.
"""

from collections.abc import Callable, Mapping

from gpusharing.api.names import LABEL_UPGRADE_STATE
from gpusharing.kube.client import JSON
from gpusharing.kube.raw import entries, section, texts

Check = Callable[[Mapping[str, str], Mapping[str, str]], bool]
"""(labels, annotations) -> the marker is there."""

_UPGRADE_IDLE = ("", "upgrade-done")  # k8s-operator-libs pkg/upgrade/consts.go
_MCO_DESIRED = "machineconfiguration.openshift.io/desiredDrain"
_MCO_APPLIED = "machineconfiguration.openshift.io/lastAppliedDrain"

METADATA_MARKERS: tuple[tuple[str, Check], ...] = (
    ("NVIDIA driver upgrade", lambda lab, _: lab.get(LABEL_UPGRADE_STATE, "") not in _UPGRADE_IDLE),
    ("kured reboot", lambda _, ann: "weave.works/kured-reboot-in-progress" in ann),
    ("OpenShift machine-config-operator", lambda _, ann: ann.get(_MCO_DESIRED) != ann.get(_MCO_APPLIED)),
    (
        "SR-IOV network operator",
        lambda _, ann: ann.get("sriovnetwork.openshift.io/state", "Idle") != "Idle",
    ),
    ("NVIDIA Skyhook", lambda _, ann: any(key.startswith("skyhook.nvidia.com/cordon_") for key in ann)),
)
TAINT_MARKERS: Mapping[str, str] = {
    "medik8s.io/drain": "medik8s node maintenance",
    "karpenter.sh/disrupted": "Karpenter",
    "karpenter.sh/disruption": "Karpenter",
    "ToBeDeletedByClusterAutoscaler": "cluster autoscaler",
}
CONDITION_MARKERS: Mapping[str, str] = {
    # KEP-5683 node lifecycle conditions; we publish none ourselves.
    "MaintenanceInProgress": "node maintenance (condition MaintenanceInProgress)",
    "DrainInProgress": "node drain (condition DrainInProgress)",
}


def foreign_marker(node: JSON) -> str:
    """Who else works on this Node, empty when nobody does. The first row of the tables wins."""
    metadata = section(node, "metadata")
    labels, annotations = texts(metadata.get("labels")), texts(metadata.get("annotations"))
    for who, present in METADATA_MARKERS:
        if present(labels, annotations):
            return who
    for taint in entries(node, "spec", "taints"):
        if who := TAINT_MARKERS.get(str(taint.get("key")), ""):
            return who
    for condition in entries(node, "status", "conditions"):
        if condition.get("status") == "True" and (
            who := CONDITION_MARKERS.get(str(condition.get("type")), "")
        ):
            return who
    return ""
