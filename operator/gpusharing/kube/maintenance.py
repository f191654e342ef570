"""NodeMaintenance objects: somebody asked another operator to maintain a node (docs/design/drain.md#c5).

Two operators have a kind of this name, and both name the node in `spec.nodeName`:

- medik8s node-maintenance-operator, cluster-scoped (its api/v1beta1/nodemaintenance_types.go at 3a54cd1);
- NVIDIA maintenance-operator, namespaced, with the asker in `spec.requestorID` (Mellanox/maintenance-operator
  api/v1alpha1/nodemaintenance_types.go at e15d07b). NVIDIA's driver upgrade can be such an asker
  (k8s-operator-libs pkg/upgrade/upgrade_requestor.go at 11e747a).

We begin with no node that has one, from its creation until it is gone, whatever its status says. Not yet begun means:
cordon and drain may come at any moment; one of NVIDIA's that is not chosen yet takes no slot. Succeeded, or Ready,
means that the node is in maintenance now; deleting the object ends it (both READMEs). Failed and being deleted count
too, because the uncordon is still to come and medik8s lifts whoever's cordon it finds (stopNodeMaintenanceImp): it
would take ours away in the middle of a drain.

None is for ever: medik8s makes the Node its owner (setOwnerRefToNode), maintenance-operator deletes what was Ready for
too long (garbage_collector_controller.go at e15d07b), and any other one is named in the message, for a person to
delete.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from gpusharing.kube.client import JSON
from gpusharing.kube.raw import entries, section, text
from gpusharing.planning.snapshot.views import NodeView


@dataclass(frozen=True, slots=True)
class Maintenance:
    """One NodeMaintenance: its node, and what people read about it."""

    node: str
    """Name of the node."""
    who: str
    """Which operator maintains it, on whose behalf, and by which object, for people."""
    waits: bool = False
    """Its operator has not chosen it yet; a large upgrade creates one for every node at once."""


def medik8s_maintenance(raw: JSON) -> Maintenance:
    """Of group nodemaintenance.medik8s.io."""
    return _maintenance(raw, "medik8s", "", failed=text(raw, "status", "phase") == "Failed")


def nvidia_maintenance(raw: JSON) -> Maintenance:
    """Of group maintenance.nvidia.com. RequestorFailed: the asker left the node in a state that a person must see."""
    failed = any(
        condition.get("type") == "RequestorFailed" and condition.get("status") == "True"
        for condition in entries(raw, "status", "conditions")
    )
    asker = text(raw, "spec", "requestorID")
    found = _maintenance(raw, "NVIDIA", f" for {asker}" if asker else "", failed=failed)
    conditions = entries(raw, "status", "conditions")
    begun = any(one.get("type") == "Ready" and text(one, "reason") not in _NOT_CHOSEN for one in conditions)
    chosen = failed or begun or "deletionTimestamp" in section(raw, "metadata")
    return found if chosen else replace(found, waits=True)


_NOT_CHOSEN = frozenset({"", "Pending"})
"""Reasons of the condition Ready before Scheduled (ConditionReasonPending of NVIDIA's nodemaintenance_types.go)."""


def _maintenance(raw: JSON, operator: str, asker: str, *, failed: bool) -> Maintenance:
    where, name = text(raw, "metadata", "namespace"), text(raw, "metadata", "name")
    deleting = "deletionTimestamp" in section(raw, "metadata")
    state = " (being deleted)" if deleting else " (failed)" if failed else ""
    name = f"{where}/{name}" if where else name
    return Maintenance(text(raw, "spec", "nodeName"), f"{operator} NodeMaintenance {name}{asker}{state}")


class Maintained:
    """Joins NodeMaintenance objects to the Nodes that they name. Views that did not change keep their identity."""

    def __init__(self, *kinds: Mapping[str, Maintenance]) -> None:
        """`kinds`: each by name, live; of several objects for a node the first kind and name counts."""
        self._kinds = kinds
        self._joined: dict[str, tuple[NodeView, NodeView]] = {}

    def by_node(self) -> dict[str, Maintenance]:
        """By node, who maintains it; one that only waits yields to others."""
        found: dict[str, Maintenance] = {}
        for kind in self._kinds:
            for name in sorted(kind):
                one = kind[name]
                if one.node not in found or (found[one.node].waits and not one.waits):
                    found[one.node] = one
        return found

    def join(self, view: NodeView) -> NodeView:
        """The node with its NodeMaintenance, which has more information than the mark of its operator on the Node."""
        found = self.by_node().get(view.name)
        return _joined(view, found) if found is not None else view

    def join_all(self, nodes: Mapping[str, NodeView]) -> dict[str, NodeView]:
        """A copy of `nodes` with every NodeMaintenance joined in."""
        copy, joined = dict(nodes), {}
        for name, found in self.by_node().items():
            if (view := nodes.get(name)) is None:
                continue
            before, after = self._joined.get(name, (None, view))
            if before is not view or (after.foreign, after.foreign_waits) != (found.who, found.waits):
                after = _joined(view, found)
            joined[name] = (view, after)
            copy[name] = after
        self._joined = joined
        return copy


def _joined(view: NodeView, found: Maintenance) -> NodeView:
    if found.waits and view.foreign_works:
        return view  # somebody else works on it already, or may
    return replace(view, foreign=found.who, foreign_waits=found.waits, foreign_queued=found.waits)
