"""Which actuator changes the nodes of a cluster? Other modules call it without knowing which it is."""

from gpusharing.planning.snapshot.nvidia import StackView
from gpusharing.planning.wanted.actuators.actuator import Actuator
from gpusharing.planning.wanted.actuators.dra import DRA
from gpusharing.planning.wanted.actuators.labels import LABELS


def find_actuator(stack: StackView) -> Actuator:
    """Return the cluster's actuator; if none can change nodes, any, because every policy is refused then."""
    return DRA if stack.by_dra else LABELS
