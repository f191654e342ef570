"""Which maintenance markers of others a Node carries (docs/design/drain.md#c5).

While one is present we do not start, and at the end we leave the node cordoned. Each row says how the marker is
recognised and whom to ask about it. Our own marks are not in this table. NodeMaintenance objects, which name a Node
from outside: `maintenance.py`.
"""

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from gpusharing.api import names
from gpusharing.api.rules import LABEL_KEY
from gpusharing.kube.client import JSON
from gpusharing.kube.raw import entries, section, texts

Check = Callable[[Mapping[str, str], Mapping[str, str]], bool]
"""(labels, annotations) -> the marker is there."""

_UPGRADE = "NVIDIA driver upgrade"
_UPGRADE_IDLE = ("", "upgrade-done")  # k8s-operator-libs pkg/upgrade/consts.go at 11e747a
_UPGRADE_QUEUED = ("upgrade-required", "node-maintenance-required")
"""All nodes of an upgrade reach the first at once, or the second, and then a NodeMaintenance each, which says when it
begins (k8s-operator-libs pkg/upgrade/upgrade_requestor.go at 11e747a). One that has failed keeps its cordon until its
driver pod runs (ProcessUpgradeFailedNodes of common_manager.go)."""
_MCO_DESIRED = "machineconfiguration.openshift.io/desiredDrain"
_MCO_APPLIED = "machineconfiguration.openshift.io/lastAppliedDrain"
_SRIOV_OPERATOR = "SR-IOV network operator"
_SRIOV = "sriovnetwork.openshift.io/state"
_SRIOV_WAITS = ("Drain_Required", "Reboot_Required")
"""All nodes ask at once, and few are drained at a time; a node that is drained is also cordoned. The request stays
until the work is done, and only its SriovNetworkNodeState says when the drain begins; whoever's cordon is there at the
end is lifted (sriov-network-operator v1.6.0, pkg/consts, controllers/drain_controller.go and pkg/drain/drainer.go)."""

_NVSENTINEL = "dgxc.nvidia.com/nvsentinel-state"
"""quarantined, draining ... remediation-failed; absent on a node that it considers healthy (NVIDIA/NVSentinel
commons/pkg/statemanager at 20fe8e0)."""
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
WAITING: Mapping[str, Check] = {
    _UPGRADE: lambda lab, _: lab[names.LABEL_UPGRADE_STATE] in {*_UPGRADE_QUEUED, *names.UPGRADE_LASTING},
    _SRIOV_OPERATOR: lambda _, ann: ann[_SRIOV] in _SRIOV_WAITS,
}
"""The markers that may only wait for their turn, or have given up."""
QUEUED: Mapping[str, Check] = {
    _UPGRADE: lambda lab, _: lab[names.LABEL_UPGRADE_STATE] in _UPGRADE_QUEUED,
}
"""Those of them that show for certain that nothing has begun. SR-IOV's do not, once the node is cordoned."""
TAINT_MARKERS: Mapping[str, str] = {
    "medik8s.io/drain": "medik8s node maintenance",
    "remediation.medik8s.io/self-node-remediation": "medik8s node remediation",
    "node.kubernetes.io/out-of-service": "whoever took the node out of service",
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
"""A DNS prefix of 253 characters, a slash and a name of 63."""
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
    """Why an admin may not name this key as a further marker; empty when nothing speaks against it."""
    if len(key) > MAX_KEY or not re.fullmatch(LABEL_KEY, key):
        return f"{key!r} is not a key of a label, annotation or taint"
    if key in _OURS or key.startswith(_OUR_PREFIXES):
        return f"{key} comes and goes with the operator's own changes, so they would stop each other"
    if key in _BY_VALUE:
        return f"{key} is checked already, by its value: nodes that nobody maintains carry it too"
    return ""


class Marker(NamedTuple):
    """Somebody's marker on a Node."""

    who: str = ""
    """Whom to ask; empty when nobody works on the node."""
    waits: bool = False
    """The work has not begun or has stopped, and that may stay so for weeks."""
    queued: bool = False
    """The work has certainly not begun: no cordon is for it yet."""


def find_marker(node: JSON, keys: frozenset[str] = frozenset()) -> Marker:
    """Who else works on this Node. The first row of the tables wins, then `keys`; markers that only wait come last,
    and of these the ones that have certainly not begun."""
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
        f"somebody ({kind} {min(marks)})"
        for kind, there in (("label", labels), ("annotation", annotations), ("taint", taints))
        if (marks := keys.intersection(there))
    ]
    if working:
        return Marker(working[0])
    return min(markers, key=lambda marker: marker.queued, default=Marker())


def _metadata_marker(who: str, labels: Mapping[str, str], annotations: Mapping[str, str]) -> Marker:
    """The marker of a row of METADATA_MARKERS that is present."""
    waits = who in WAITING and WAITING[who](labels, annotations)
    return Marker(who, waits, waits and who in QUEUED and QUEUED[who](labels, annotations))
