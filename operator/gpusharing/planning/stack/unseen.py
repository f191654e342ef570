"""The topics of which something could not be read: such a topic is never reported as ok. Pure."""

from collections.abc import Iterable, Mapping

from gpusharing.planning.stack.installationviews import InstallationView
from gpusharing.planning.stack.symptoms import Topic

_POLICIES, _GPUNODES = "gpusharingpolicies.gpusharing.dev", "gpunodes.gpusharing.dev"
_STACK = frozenset({"clusterpolicies.nvidia.com", "daemonsets.apps"})
LOOKED_AT: Mapping[Topic, frozenset[str]] = {
    # A list without the right to it is refused even if the kind is not served (the API server authorizes before it
    # routes).
    Topic.API: frozenset({_POLICIES, _GPUNODES}),
    Topic.OPERATOR: frozenset({"deployments.apps", "pods"}),
    Topic.CLUSTER_POLICY: _STACK | {"gpuclusters.nvidia.com", "configmaps", "nodes", _POLICIES},
    Topic.CONFIG_MAPS: frozenset({"configmaps"}),
    Topic.AGENTS: frozenset(
        {"daemonsets.apps", "pods", "nodes", "namespaces", "runtimeclasses.node.k8s.io", _GPUNODES}
    ),
    Topic.KUBELETS: frozenset({"nodes"}),
    Topic.NODES: _STACK | {"nodes", "configmaps", _POLICIES},
}
"""The kinds that decide a topic, as kubectl takes them. An unknown right is a symptom of its own."""
Unseen = Mapping[Topic, str]
"""The parts of a topic that could not be read, as a clause."""


def find_unseen(view: InstallationView) -> Unseen:
    """By topic, in the order of the output."""
    found = {topic: sorted(LOOKED_AT.get(topic, frozenset()) & view.unread.keys()) for topic in Topic}
    return {topic: f"{', '.join(kinds)} cannot be read" for topic, kinds in found.items() if kinds}


def joined(*parts: Unseen) -> Unseen:
    """What several of these say about each topic."""
    return {topic: "; ".join(clauses) for topic in Topic if (clauses := list(_of(topic, parts)))}


def _of(topic: Topic, parts: Iterable[Unseen]) -> Iterable[str]:
    return (part[topic] for part in parts if topic in part)
