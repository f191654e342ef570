"""How are value objects declared immutable? By `value`: only mypy enforces that no code assigns to their fields."""

from dataclasses import dataclass, field
from typing import Any, dataclass_transform


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def value(cls: type | None = None, /, *, eq: bool = True, order: bool = False, slots: bool = True) -> Any:
    """Make a dataclass that only mypy freezes: `object.__setattr__` for each field took a fifth of a plan's time."""
    return dataclass(cls, eq=eq, order=order, slots=slots, unsafe_hash=eq)
