"""NodeMaintenance objects, by which somebody asks another operator to maintain a node (docs/design/drain.md#c5).

Two operators have a kind of this name, and both name the node in `spec.nodeName`:

- medik8s node-maintenance-operator, cluster-scoped (its api/v1beta1/nodemaintenance_types.go at 3a54cd1);
- NVIDIA maintenance-operator, namespaced, with the requestor in `spec.requestorID` (Mellanox/maintenance-operator api/v1alpha1/nodemaintenance_types.go at e15d07b). NVIDIA's driver upgrade can be such a requestor (k8s-operator-libs pkg/upgrade/upgrade_requestor.go at 11e747a).

We begin no change on a node that has one, from its creation until it is gone, whatever its status says. Before the maintenance begins, cordon and drain may come at any moment; one of NVIDIA's that is not chosen yet takes no slot. Succeeded, or Ready, means that the node is in maintenance now; deleting the object ends it (both READMEs). Failed and being deleted count too, because the uncordon is still to come and medik8s lifts any cordon that it finds (stopNodeMaintenanceImp): it would lift ours in the middle of a drain.

No such object stays forever: medik8s makes the Node its owner (setOwnerRefToNode), maintenance-operator deletes what was Ready for too long (garbage_collector_controller.go at e15d07b), and any other one is named in the message, for a person to delete.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from gpusharing.kube.client import JSON
from gpusharing.kube.raw import entries, has_condition, section, text
from gpusharing.planning.snapshot.views import NodeView


@dataclass(frozen=True, slots=True)
class Maintenance:
    """One NodeMaintenance."""

    node: str
    """Name of the node that is to be maintained."""
    who: str
    """Which operator maintains the node, on whose behalf, and by which object; for people."""
    waits: bool = False
    """Whether the maintenance operator has not yet chosen this object; a large upgrade creates one for every node at once."""


def medik8s_maintenance(raw: JSON) -> Maintenance:
    return _maintenance(raw, "medik8s", "", failed=text(raw, "status", "phase") == "Failed")


def nvidia_maintenance(raw: JSON) -> Maintenance:
    """Convert a raw NodeMaintenance of the group maintenance.nvidia.com. It waits until its operator has chosen it."""
    # The requestor left the node in a state that a person must look at.
    failed = has_condition(raw, "RequestorFailed")
    requestor = text(raw, "spec", "requestorID")
    maintenance = _maintenance(raw, "NVIDIA", f" for {requestor}" if requestor else "", failed=failed)
    # Ready is Pending before the operator has scheduled the maintenance (ConditionReasonPending of NVIDIA's
    # nodemaintenance_types.go).
    begun = any(
        condition.get("type") == "Ready" and text(condition, "reason") not in ("", "Pending")
        for condition in entries(raw, "status", "conditions")
    )
    chosen = failed or begun or "deletionTimestamp" in section(raw, "metadata")
    return maintenance if chosen else replace(maintenance, waits=True)


def _maintenance(raw: JSON, operator: str, behalf: str, *, failed: bool) -> Maintenance:
    where, name = text(raw, "metadata", "namespace"), text(raw, "metadata", "name")
    deleting = "deletionTimestamp" in section(raw, "metadata")
    state = " (being deleted)" if deleting else " (failed)" if failed else ""
    name = f"{where}/{name}" if where else name
    return Maintenance(text(raw, "spec", "nodeName"), f"{operator} NodeMaintenance {name}{behalf}{state}")


def as_last_read(maintenances: Mapping[str, Maintenance]) -> dict[str, Maintenance]:
    """Return these maintenances with a note that they may have ended, because their kind may no longer be read."""
    note = "as last read, because the operator may no longer read this kind"
    return {name: replace(row, who=f"{row.who} ({note})") for name, row in maintenances.items()}


def find_maintained(*kinds: Mapping[str, Maintenance]) -> dict[str, Maintenance]:
    """Return the maintenance of each node that has one, by node name: the first that does not wait, else the first."""
    chosen: dict[str, Maintenance] = {}
    for kind in kinds:
        for name in sorted(kind):
            row = kind[name]
            if row.node not in chosen or (chosen[row.node].waits and not row.waits):
                chosen[row.node] = row
    return chosen


def with_maintenance(view: NodeView, maintenance: Maintenance | None) -> NodeView:
    """Return the view with this maintenance in place of the marker on the Node, which says less.

    One that only waits does not replace the marker of somebody whose work may have begun.
    """
    if maintenance is None or (maintenance.waits and view.foreign_works):
        return view
    waits = maintenance.waits
    return replace(view, foreign=maintenance.who, foreign_waits=waits, foreign_queued=waits)
