"""Does somebody else maintain a node, by a mark on it or a NodeMaintenance (docs/design/drain.md#c5)?

While somebody does, no change of ours begins there, and one that ends leaves the node cordoned. Two operators have a
kind NodeMaintenance, and both name the node in `spec.nodeName`: medik8s node-maintenance-operator, cluster-scoped
(api/v1beta1/nodemaintenance_types.go at 3a54cd1), and NVIDIA maintenance-operator, namespaced, with the requestor in
`spec.requestorID` (Mellanox/maintenance-operator api/v1alpha1/nodemaintenance_types.go at e15d07b).
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

from gpusharing.api import names
from gpusharing.api.rules import LABEL_KEY
from gpusharing.kube.client import JSON
from gpusharing.kube.raw import entries, has_condition, section, text, texts
from gpusharing.planning.snapshot.views import NodeView


class Maintenance(NamedTuple):
    """Somebody else's work on a Node, from a mark on it or from a NodeMaintenance; empty if there is none.

    A NodeMaintenance counts from its creation until it is gone, whatever its status says. Before the maintenance
    begins, cordon and drain may come at any moment; Succeeded, or Ready, means that the node is in maintenance now, and
    deleting the object ends it (both READMEs). Failed and being deleted count too, because the uncordon is still to
    come and medik8s lifts any cordon that it finds (stopNodeMaintenanceImp): it would lift ours in the middle of a
    drain.

    No such object stays forever: medik8s makes the Node its owner (setOwnerRefToNode), maintenance-operator deletes
    what was Ready for too long (garbage_collector_controller.go at e15d07b), and any other one is named in the message,
    for a person to delete.
    """

    who: str = ""
    """Who maintains the node, for whom and by which object, for people who want to ask; empty if nobody."""
    waits: bool = False
    """Whether the work has not begun or has stopped, which may stay so for weeks."""
    queued: bool = False
    """Whether the work has certainly not begun, so that no cordon belongs to it yet. A large upgrade creates a
    NodeMaintenance for every node at once."""
    node: str = ""


def medik8s_maintenance(raw: JSON) -> Maintenance:
    return _maintenance(raw, "medik8s", "", failed=text(raw, "status", "phase") == "Failed")


def nvidia_maintenance(raw: JSON) -> Maintenance:
    """Convert a raw NodeMaintenance of maintenance.nvidia.com; it waits until its operator has chosen it."""
    # The requestor left the node in a state that a person must look at.
    failed = has_condition(raw, "RequestorFailed")
    requestor = text(raw, "spec", "requestorID")
    maintenance = _maintenance(raw, "NVIDIA", f" for {requestor}" if requestor else "", failed=failed)
    # Ready is Pending before the operator has scheduled the maintenance (ConditionReasonPending,
    # Mellanox/maintenance-operator api/v1alpha1/nodemaintenance_types.go at e15d07b).
    begun = any(
        condition.get("type") == "Ready" and text(condition, "reason") not in ("", "Pending")
        for condition in entries(raw, "status", "conditions")
    )
    chosen = failed or begun or "deletionTimestamp" in section(raw, "metadata")
    return maintenance if chosen else maintenance._replace(waits=True, queued=True)


def _maintenance(raw: JSON, operator: str, behalf: str, *, failed: bool) -> Maintenance:
    where, name = text(raw, "metadata", "namespace"), text(raw, "metadata", "name")
    deleting = "deletionTimestamp" in section(raw, "metadata")
    state = " (being deleted)" if deleting else " (failed)" if failed else ""
    name = f"{where}/{name}" if where else name
    return Maintenance(f"{operator} NodeMaintenance {name}{behalf}{state}", node=text(raw, "spec", "nodeName"))


def as_last_read(maintenances: Mapping[str, Maintenance]) -> dict[str, Maintenance]:
    """Return these with a note that they may have ended, because their kind may no longer be read."""
    note = "as last read, because the operator may no longer read this kind"
    return {name: row._replace(who=f"{row.who} ({note})") for name, row in maintenances.items()}


def find_maintained(*kinds: Mapping[str, Maintenance]) -> dict[str, Maintenance]:
    """Return the maintenance of each node that has one: the first that does not wait, else the first."""
    chosen: dict[str, Maintenance] = {}
    for kind in kinds:
        for name in sorted(kind):
            row = kind[name]
            if row.node not in chosen or (chosen[row.node].waits and not row.waits):
                chosen[row.node] = row
    return chosen


def with_maintenance(view: NodeView, maintenance: Maintenance | None) -> NodeView:
    """Return the view with this maintenance, unless it only waits and somebody's work may have begun."""
    if maintenance is None or (maintenance.waits and view.foreign_works):
        return view
    who, waits, queued, _ = maintenance
    return replace(view, foreign=who, foreign_waits=waits, foreign_queued=queued)


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
_MCO_DESIRED = "machineconfiguration.openshift.io/desiredDrain"
_MCO_APPLIED = "machineconfiguration.openshift.io/lastAppliedDrain"
_SRIOV = "sriovnetwork.openshift.io/state"
_BY_VALUE = frozenset({names.LABEL_UPGRADE_STATE, _MCO_DESIRED, _MCO_APPLIED, _SRIOV})
_OURS = frozenset(
    {
        *names.NEIGHBOR_ANNOTATIONS,
        names.ANNOTATION_UPGRADE_CORDONED,
        *names.REWRITTEN_LABELS,
        "node.kubernetes.io/unschedulable",  # the taint that the control plane adds to every cordoned Node
    }
)


def find_problem(key: str) -> str:
    """Return why an admin may not name `key` as a further marker; empty if it may be used."""
    # At most a DNS prefix of 253 characters, a slash and a name of 63.
    if len(key) > 317 or not re.fullmatch(LABEL_KEY, key):
        return f"{key!r} is not a key of a label, annotation or taint"
    if key in _OURS or key.startswith((names.PREFIX, *names.REWRITTEN_PREFIXES)):
        return f"{key} is added and removed by the operator's own changes, so as a marker it would block them"
    if key in _BY_VALUE:
        return f"{key} is already checked by its value, because nodes that are not under maintenance have it too"
    return ""


def find_marker(node: JSON, keys: frozenset[str] = frozenset()) -> Maintenance:
    """Return the marker of whoever maintains this Node, working before waiting; `keys` are further markers."""
    metadata = section(node, "metadata")
    labels, annotations = texts(metadata.get("labels")), texts(metadata.get("annotations"))
    taints = [str(taint.get("key")) for taint in entries(node, "spec", "taints")]
    conditions = [
        str(condition.get("type"))
        for condition in entries(node, "status", "conditions")
        if condition.get("status") == "True"
    ]
    markers = list(_find_known(labels, annotations))
    working = [marker.who for marker in markers if not marker.waits]
    working += [TAINT_MARKERS[taint] for taint in taints if taint in TAINT_MARKERS]
    working += [CONDITION_MARKERS[kind] for kind in conditions if kind in CONDITION_MARKERS]
    working += [
        f"someone ({kind} {min(marks)})"
        for kind, there in (("label", labels), ("annotation", annotations), ("taint", taints))
        if (marks := keys.intersection(there))
    ]
    if working:
        return Maintenance(working[0])
    return min(markers, key=lambda marker: marker.queued, default=Maintenance())


def _find_known(labels: Mapping[str, str], annotations: Mapping[str, str]) -> Iterator[Maintenance]:
    state = labels.get(names.LABEL_UPGRADE_STATE, "")
    # k8s-operator-libs pkg/upgrade/consts.go, upgrade_requestor.go and common_manager.go at 11e747a: all nodes of an
    # upgrade reach the first queued state at once. Or they reach the second, and each gets a NodeMaintenance, which
    # says when its upgrade begins. A node whose upgrade has failed keeps its cordon until its driver pod runs
    # (ProcessUpgradeFailedNodes).
    if state not in ("", "upgrade-done"):
        queued = state in (names.UPGRADE_REQUIRED, "node-maintenance-required")
        yield Maintenance("NVIDIA driver upgrade", queued or state in names.UPGRADE_LASTING, queued)
    if "weave.works/kured-reboot-in-progress" in annotations:
        yield Maintenance("kured reboot")
    if annotations.get(_MCO_DESIRED) != annotations.get(_MCO_APPLIED):
        yield Maintenance("OpenShift machine-config-operator")
    # All nodes request a drain at once, and few are drained at a time; a node that is drained is also cordoned. The
    # request stays until the work is done, and only the SriovNetworkNodeState says when the drain begins, so such a
    # node never counts as queued. At the end any cordon is lifted, even one of somebody else (sriov-network-operator
    # v1.6.0, pkg/consts, controllers/drain_controller.go and pkg/drain/drainer.go).
    if (state := annotations.get(_SRIOV, "Idle")) != "Idle":
        yield Maintenance("SR-IOV network operator", state in ("Drain_Required", "Reboot_Required"))
    # A state such as quarantined, draining or remediation-failed; absent on a node that is healthy (NVIDIA/NVSentinel
    # commons/pkg/statemanager at 20fe8e0).
    if labels.get("dgxc.nvidia.com/nvsentinel-state"):
        yield Maintenance("NVIDIA NVSentinel")
    nodewright = (
        "nodewright.nvidia.com/cordon_",
        "nodewright.nvidia.com/runtimeRequiredCordon",
        "skyhook.nvidia.com/cordon_",  # its name until 2026
    )
    if any(key.startswith(nodewright) for key in annotations):
        yield Maintenance("NVIDIA nodewright")
