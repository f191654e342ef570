"""Chooses the actuator of a cluster. Other modules call the chosen one without knowing which it is.

Terms: docs/design/glossary.md#actuator.
"""

from gpusharing.planning.snapshot.stackviews import StackView
from gpusharing.planning.wanted.actuators.actuator import Actuator
from gpusharing.planning.wanted.actuators.dra import DRA
from gpusharing.planning.wanted.actuators.labels import LABELS


def find_actuator(stack: StackView) -> Actuator:
    """Return the actuator that changes the nodes of a cluster with this installation: DRA if NVIDIA's DRA stack serves
    the GPUs, else LABELS. If no actuator can change them, the result has no effect, because every policy is refused
    (stack/acceptance.py)."""
    return DRA if stack.by_dra else LABELS
