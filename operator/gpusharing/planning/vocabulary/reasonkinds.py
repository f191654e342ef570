"""The columns of the table of reasons in `reasons.py`."""

from enum import IntEnum, StrEnum
from typing import Literal, Self

Group = Literal["Node", "Hardware", "Health", "Proof", "Drain", "Accepted", "Ready", "Stalled"]
"""Where a reason is seen: on a node, its hardware and its health, its proof or its drain, or on a policy condition."""

Keeper = Literal[
    "", "policy", "node", "pods", "foreign", "kubelet", "kube-apiserver", "ClusterPolicy", "ConfigMap", "operator",
    "agent", "GPUs", "mig-manager", "device-plugin", "gpu-feature-discovery", "mps-control-daemon",
]  # fmt: skip
"""The object or program that keeps a node waiting; foreign: whoever else maintains the node; empty: nobody does."""


class Passes(IntEnum):
    """When the situation that a reason names comes to an end."""

    BY_A_PERSON = 0
    """Not before somebody acts."""
    LATER = 1
    """When others are done or a back-off is over: minutes to hours."""
    SOON = 2
    """Automatically, within seconds or minutes."""
    DONE = 3
    """Already: it is an end state, and nothing is waited for."""


class Worded(StrEnum):
    """One CamelCase word with the columns of its row, when it is used and what to do."""

    _value_: str
    group: Group
    passes: Passes
    keeper: Keeper
    when: str
    """The situation in which it is used."""
    remedy: str
    """What a person does next; empty when there is nothing to do."""

    def __new__(cls, columns: tuple[str, Group, Passes, Keeper], when: str, remedy: str = "") -> Self:
        word, group, passes, keeper = columns
        member = str.__new__(cls, word)
        member._value_ = word
        member.group = group
        member.passes = passes
        member.keeper = keeper
        member.when = when
        member.remedy = remedy
        return member
