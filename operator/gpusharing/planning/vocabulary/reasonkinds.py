"""What a reason is: a word with its group, its patience, and the sentences for people. `reasons.py` lists them all."""

from enum import IntEnum, StrEnum
from typing import Literal, Self

Group = Literal["Node", "Hardware", "Health", "Proof", "Drain", "Accepted", "Ready", "Stalled"]
"""Where a reason is seen: on a node, its hardware and its health, its proof or its drain, or on a policy condition."""


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
    """One CamelCase word, with its group, when it is used and what to do."""

    _value_: str
    group: Group
    passes: Passes
    when: str
    """The situation in which it is used."""
    remedy: str
    """What a person does next; empty when there is nothing to do."""

    def __new__(cls, value: str, group: Group, passes: Passes, when: str, remedy: str = "") -> Self:
        member = str.__new__(cls, value)
        member._value_ = value
        member.group = group
        member.passes = passes
        member.when = when
        member.remedy = remedy
        return member
