"""What `helm test` finds wrong with an installation: one symptom, and how a check makes one."""

from collections.abc import Iterable
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
