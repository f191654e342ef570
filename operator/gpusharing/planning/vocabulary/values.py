"""How are value objects declared immutable? By `value`: only mypy enforces that no code assigns to their fields."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar, dataclass_transform, overload

Made = TypeVar("Made")


@overload
def value(cls: type[Made], /) -> type[Made]: ...


@overload
def value(*, eq: bool = True, order: bool = False, slots: bool = True) -> Callable[[type[Made]], type[Made]]: ...


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def value(
    cls: type[Made] | None = None, /, *, eq: bool = True, order: bool = False, slots: bool = True
) -> type[Made] | Callable[[type[Made]], type[Made]]:
    """Make a class a dataclass whose fields only mypy treats as frozen.

    A frozen dataclass assigns each of its own fields by calling `object.__setattr__` (dataclasses.py of Python 3.11,
    `_field_assign`), which took a fifth of the time of a whole plan.
    """
    made = dataclass(eq=eq, order=order, slots=slots, unsafe_hash=eq)
    return made if cls is None else made(cls)
