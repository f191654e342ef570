"""The maintenance markers of others on a Node (docs/design/drain.md#c5).

While a Node has one, no change of ours begins there, and one that ends leaves the node cordoned. Each row says how the
marker is recognized and who can be asked about it. Our own marks are not in this table. NodeMaintenance objects, which
name a Node from outside, are read by `maintenance.py`.
"""

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from gpusharing.api import names
from gpusharing.api.rules import LABEL_KEY
from gpusharing.kube.client import JSON
from gpusharing.kube.raw import entries, section, texts

Check = Callable[[Mapping[str, str], Mapping[str, str]], bool]
"""Returns whether a marker is among the labels and annotations of a Node."""

_UPGRADE = "NVIDIA driver upgrade"
_UPGRADE_IDLE = ("", "upgrade-done")  # k8s-operator-libs pkg/upgrade/consts.go at 11e747a
_UPGRADE_QUEUED = ("upgrade-required", "node-maintenance-required")
"""States of a node that waits for its upgrade."""
_MCO_DESIRED = "machineconfiguration.openshift.io/desiredDrain"
_MCO_APPLIED = "machineconfiguration.openshift.io/lastAppliedDrain"
_SRIOV_OPERATOR = "SR-IOV network operator"
_SRIOV = "sriovnetwork.openshift.io/state"
_SRIOV_WAITS = ("Drain_Required", "Reboot_Required")
"""States of a node that requests a drain."""

_NVSENTINEL = "dgxc.nvidia.com/nvsentinel-state"
"""A label with a state such as quarantined, draining or remediation-failed; absent on a node that is healthy (NVIDIA/NVSentinel commons/pkg/statemanager at 20fe8e0)."""
_NODEWRIGHT = (
    "nodewright.nvidia.com/cordon_",
    "nodewright.nvidia.com/runtimeRequiredCordon",
    "skyhook.nvidia.com/cordon_",  # its name until 2026
)

METADATA_MARKERS: tuple[tuple[str, Check], ...] = (
    (_UPGRADE, lambda lab, _: lab.get(names.LABEL_UPGRADE_STATE, "") not in _UPGRADE_IDLE),
    ("kured reboot", lambda _, ann: "weave.works/kured-reboot-in-progress" in ann),
    ("OpenShift machine-config-operator", lambda _, ann: ann.get(_MCO_DESIRED) != ann.get(_MCO_APPLIED)),
    (_SRIOV_OPERATOR, lambda _, ann: ann.get(_SRIOV, "Idle") != "Idle"),
    ("NVIDIA NVSentinel", lambda lab, _: bool(lab.get(_NVSENTINEL))),
    ("NVIDIA nodewright", lambda _, ann: any(key.startswith(_NODEWRIGHT) for key in ann)),
)
WAIT_CHECKS: Mapping[str, Check] = {
    _UPGRADE: lambda lab, _: lab[names.LABEL_UPGRADE_STATE] in {*_UPGRADE_QUEUED, *names.UPGRADE_LASTING},
    _SRIOV_OPERATOR: lambda _, ann: ann[_SRIOV] in _SRIOV_WAITS,
}
"""The markers whose work may not have begun or may have stopped, each with a check that returns whether that is so."""
QUEUE_CHECKS: Mapping[str, Check] = {
    _UPGRADE: lambda lab, _: lab[names.LABEL_UPGRADE_STATE] in _UPGRADE_QUEUED,
}
"""The markers of WAIT_CHECKS that can prove that no work has begun, each with a check that returns whether that is so."""
TAINT_MARKERS: Mapping[str, str] = {
    "medik8s.io/drain": "medik8s node maintenance",
    "remediation.medik8s.io/self-node-remediation": "medik8s node remediation",
    "node.kubernetes.io/out-of-service": "someone (taint node.kubernetes.io/out-of-service)",
    "karpenter.sh/disrupted": "Karpenter",
    "karpenter.sh/disruption": "Karpenter",
    "ToBeDeletedByClusterAutoscaler": "cluster autoscaler",
}
CONDITION_MARKERS: Mapping[str, str] = {
    # KEP-5683 node lifecycle conditions; we publish none ourselves.
    "MaintenanceInProgress": "node maintenance (condition MaintenanceInProgress)",
    "DrainInProgress": "node drain (condition DrainInProgress)",
}


MAX_KEY = 317
"""The maximum length of a key: a DNS prefix of 253 characters, a slash and a name of 63."""
_BY_VALUE = frozenset({names.LABEL_UPGRADE_STATE, _MCO_DESIRED, _MCO_APPLIED, _SRIOV})
_OURS = frozenset(
    {
        *names.NEIGHBOUR_ANNOTATIONS,
        names.ANNOTATION_UPGRADE_CORDONED,
        *names.REWRITTEN_LABELS,
        "node.kubernetes.io/unschedulable",  # the taint that the control plane adds to every cordoned Node
    }
)
_OUR_PREFIXES = (names.PREFIX, *names.REWRITTEN_PREFIXES)


def find_problem(key: str) -> str:
    """Return the reason why an admin may not name `key` as a further marker, or an empty string if it may be used."""
    if len(key) > MAX_KEY or not re.fullmatch(LABEL_KEY, key):
        return f"{key!r} is not a key of a label, annotation or taint"
    if key in _OURS or key.startswith(_OUR_PREFIXES):
        return f"{key} is added and removed by the operator's own changes, so as a marker it would block them"
    if key in _BY_VALUE:
        return (
            f"{key} is already checked by its value, because nodes that are not under maintenance have it too"
        )
    return ""


class Marker(NamedTuple):
    """The marker of somebody who maintains a Node, or an empty one."""

    who: str = ""
    """Who maintains the node, for people who want to ask them; empty when nobody does."""
    waits: bool = False
    queued: bool = False


def find_marker(node: JSON, keys: frozenset[str] = frozenset()) -> Marker:
    """Return the marker of whoever else is maintaining this Node, or an empty marker if nobody is."""
    metadata = section(node, "metadata")
    labels, annotations = texts(metadata.get("labels")), texts(metadata.get("annotations"))
    taints = [str(taint.get("key")) for taint in entries(node, "spec", "taints")]
    conditions = [
        str(condition.get("type"))
        for condition in entries(node, "status", "conditions")
        if condition.get("status") == "True"
    ]
    markers = [
        _metadata_marker(who, labels, annotations)
        for who, present in METADATA_MARKERS
        if present(labels, annotations)
    ]
    working = [marker.who for marker in markers if not marker.waits]
    working += [TAINT_MARKERS[taint] for taint in taints if taint in TAINT_MARKERS]
    working += [CONDITION_MARKERS[kind] for kind in conditions if kind in CONDITION_MARKERS]
    working += [
        f"someone ({kind} {min(marks)})"
        for kind, there in (("label", labels), ("annotation", annotations), ("taint", taints))
        if (marks := keys.intersection(there))
    ]
    if working:
        return Marker(working[0])
    return min(markers, key=lambda marker: marker.queued, default=Marker())


def _metadata_marker(who: str, labels: Mapping[str, str], annotations: Mapping[str, str]) -> Marker:
    waits = who in WAIT_CHECKS and WAIT_CHECKS[who](labels, annotations)
    return Marker(who, waits, waits and who in QUEUE_CHECKS and QUEUE_CHECKS[who](labels, annotations))
