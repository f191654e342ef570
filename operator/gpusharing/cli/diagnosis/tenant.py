"""Explain what the guard for tenants means for a pod that waits: the modes that its namespace's label admits, and what
the nodes with these modes lack. Pure."""

from collections import defaultdict
from collections.abc import Mapping

from gpusharing.api.names import LABEL_MODE
from gpusharing.cli.diagnosis.rooms import NodeRoom
from gpusharing.cli.live.cluster import LivePlan
from gpusharing.kube.client import JSON
from gpusharing.kube.convert_pods import node_terms
from gpusharing.kube.podrequests import pod_requests
from gpusharing.kube.raw import part, text, texts
from gpusharing.planning.drain.isolation import describe_guard, find_admitted
from gpusharing.planning.vocabulary.lengths import some


def explain_guard(
    raw: JSON, rooms: Mapping[str, NodeRoom], live: LivePlan, namespace_labels: Mapping[str, str]
) -> str:
    """Return sentences about the isolation label of the namespace of a pod, and about nodes with an admitted mode that
    do not have what the pod requests (`rooms`). The last sentence has no period. Empty if the namespace has no such
    label, if the pod requests no GPU resource, or if it already has a node. Empty also if neither its node selector nor
    its required node affinity names the routing label, as in a pod that is older than the isolation label."""
    asks, admitted = pod_requests(raw), find_admitted(namespace_labels)
    if admitted is None or not asks or text(raw, "spec", "nodeName") or not _requires_mode(raw):
        return ""
    guard = describe_guard(text(raw, "metadata", "namespace"), namespace_labels)
    sentences = [guard[:1].upper() + guard[1:]]
    modes = {name: found for name in sorted(rooms) if (found := _find_modes(live, name) & {*admitted})}
    if admitted and not modes:
        sentences.append(
            f"No node has mode {' or '.join(admitted)}, and none will under the existing policies"
        )
    lacking: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name, found in modes.items():
        absent = sorted(asks.keys() - rooms[name].names)
        if absent:
            lacking[", ".join(absent), " or ".join(sorted(found))].append(name)
    for (resources, mode), nodes in sorted(lacking.items()):
        verb = "does" if len(nodes) == 1 else "do"
        sentences.append(f"{some(nodes)} (mode {mode}) {verb} not advertise {resources}")
    return ". ".join(sentences)


def _find_modes(live: LivePlan, name: str) -> set[str]:
    """Return the values of the routing label (LABEL_MODE) that the node has now or may have after the changes; empty if
    it never has the label."""
    node, becomes = live.snapshot.nodes[name], live.plan.afterwards.find_node(name)
    labels = (node.labels, *(() if becomes is None else becomes.labels))
    return {one[LABEL_MODE] for one in labels if LABEL_MODE in one}


def _requires_mode(raw: JSON) -> bool:
    """Whether the pod's node selector or required node affinity is about the routing label."""
    rows = (row for term in node_terms(raw) for row in term)
    return LABEL_MODE in texts(part(raw, "spec", "nodeSelector")) or any(row[0] == LABEL_MODE for row in rows)
