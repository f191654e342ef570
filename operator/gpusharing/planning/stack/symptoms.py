"""What `helm test` finds wrong with an installation: one symptom, and how a check makes one."""

from collections.abc import Iterable, Mapping
from enum import StrEnum

from gpusharing.planning.stack.installationviews import InstallationView
from gpusharing.planning.vocabulary.values import value


class Topic(StrEnum):
    """What is checked, in the order of the output."""

    API = "API"
    RIGHTS = "rights"
    OPERATOR = "operator"
    CLUSTER_POLICY = "ClusterPolicy"
    CONFIG_MAPS = "ConfigMaps"
    AGENTS = "agents"
    KUBELETS = "kubelets"
    NODES = "labels of Nodes"


ASKED_BY_PEOPLE = frozenset({Topic.KUBELETS, Topic.NODES})
"""`kubectl gpusharing doctor` looks at these, `helm test` does not."""


class Severity(StrEnum):
    """How bad it is."""

    ERROR = "ERROR"
    """Policies cannot be carried out, or only some of them."""
    WARNING = "WARNING"
    """It works, or that is unknown; one day it may not."""


@value
class Symptom:
    """One fault."""

    topic: Topic
    """What was checked."""
    severity: Severity
    """How bad it is."""
    reason: str
    """One CamelCase word, for tools; never changes its meaning."""
    message: str
    """What is wrong, and what follows from it."""
    command: str
    """The one command that corrects it, or that shows what a person has to decide. CAPITALS are for you to fill in."""


Symptoms = Iterable[Symptom]


def error(topic: Topic, reason: str, message: str, command: str) -> Symptom:
    """A symptom that keeps policies from being carried out."""
    return Symptom(topic, Severity.ERROR, reason, message, command)


def warning(topic: Topic, reason: str, message: str, command: str) -> Symptom:
    """A symptom with which the installation works today, or whose effect is unknown."""
    return Symptom(topic, Severity.WARNING, reason, message, command)


def upgrade(view: InstallationView, values: str) -> str:
    """The command that sets values of the release."""
    place = view.place
    return f"helm upgrade {place.release} CHART -n {place.namespace} --reset-then-reuse-values --set {values}"


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
