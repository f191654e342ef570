"""The planner's ladders: tuples of rows, of which the first that applies decides. A mutant is a row that never
applies.

The row is changed in place, so that every reference to its tuple sees the change. Its name and its position stay the
same, so that a test that only pins the order of a ladder does not count as noticing the mutant.
"""

import pkgutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from importlib import import_module
from types import FunctionType
from typing import Any

PLANNING = "gpusharing.planning"


@dataclass(frozen=True, slots=True)
class Ladder:
    """A tuple of rows in the planner, and how to disable one of them."""

    module: str
    """The module's name below `gpusharing.planning`."""
    name: str
    part: str
    """The field of a row that holds the function which says whether the row applies. Empty if the row is the
    function."""
    blind: object
    """The value that this function returns if the row does not apply."""
    tests: tuple[str, ...]
    """The test files that are searched for a killer: NAME means tests/planning/test_NAME.py."""

    def rows(self) -> tuple[Any, ...]:
        """Return the rows of the tuple in the product."""
        rows: tuple[Any, ...] = getattr(import_module(f"{PLANNING}.{self.module}"), self.name)
        return rows

    def names(self) -> list[str]:
        """Return the names of the rows, in order. No two rows have the same name."""
        return [self._name(row) for row in self.rows()]

    def _name(self, row: Any) -> str:
        """Return the name of a row: the name of its function (the row itself if `part` is empty) or, if the function is
        a lambda, the row's reason."""
        name: str = (getattr(row, self.part) if self.part else row).__name__
        return str(row.reason) if name == "<lambda>" else name

    def plant(self, name: str) -> None:
        """Make the row with this name never apply in this process: its function returns `blind` whatever its arguments,
        and keeps its name. This cannot be undone. Raises ValueError unless exactly one row has the name."""
        (row,) = [row for row in self.rows() if self._name(row) == name]
        if self.part:
            object.__setattr__(row, self.part, _blind(self.blind, getattr(row, self.part).__name__))
        else:
            row.__code__ = (_find_nothing if self.blind is None else _say_nothing).__code__


def _blind(answer: object, name: str) -> Callable[..., object]:
    """Return a function named `name` that ignores its arguments and returns `answer`."""

    def never(*_: object, **__: object) -> object:
        """Return `answer`, whatever the arguments."""
        return answer

    never.__name__ = name
    return never


def _say_nothing(*_: object, **__: object) -> str:
    """Return an empty string, whatever the arguments."""
    return ""


def _find_nothing(*_: object, **__: object) -> None:
    """Return None, whatever the arguments."""


LADDERS = (
    Ladder(
        "transition.gates",
        "GATES",
        "find",
        "",
        ("gates", "doubts", "health", "drivers", "agents", "nodeswitches"),
    ),
    Ladder("transition.before", "ENDINGS", "find", "", ("before", "holds", "attempts", "yielding", "rules")),
    Ladder("transition.after", "HELD", "follow", None, ("after", "reruns")),
    Ladder("transition.after", "AIMLESS", "follow", None, ("after", "reruns")),
    Ladder("transition.after", "AIMED", "follow", None, ("after", "reruns", "two_steps")),
    Ladder("wanted.actuators.labels", "OBJECTIONS", "find", "", ("gates", "deafness")),
    Ladder("wanted.actuators.labels", "OBSTACLES", "find", "", ("gates",)),
    Ladder("wanted.actuators.labels", "SIGNS", "find", "", ("after", "reruns")),
    Ladder("wanted.actuators.dra", "SIGNS", "find", "", ("dra",)),
    Ladder("snapshot.agents", "HINDRANCES", "find", None, ("agents",)),
    Ladder("wanted.verify", "CHECKS", "find", "", ("verify", "doubts", "assess")),
    Ladder("wanted.migfile", "ROW_FAULTS", "", None, ("migfile",)),
    Ladder("drain.holders", "FILTERS", "applies", False, ("holders", "protection", "rules", "kai")),
    Ladder("pools.holds", "HOLDS", "find", "", ("holds", "hours")),
    Ladder("pools.keepers", "KEEPERS", "holds", False, ("keepers",)),
    Ladder("pools.canary", "LAPSES", "holds", False, ("broken_canaries",)),
    Ladder("stack.acceptance", "OBJECTIONS", "find", "", ("acceptance",)),
    Ladder("stack.acceptance", "FIELDS", "find", None, ("acceptance",)),
    Ladder("stack.mpsrepair", "RESTRAINTS", "", "", ("mpsrepair",)),
    Ladder("stack.drastack", "NEEDS", "", None, ("drastack",)),
    Ladder("stack.pointers", "RESTRAINTS", "", "", ("pointers",)),
    Ladder(
        "stack.installation", "INSPECTIONS", "find", (), ("installation", "startgate", "agents", "rights")
    ),
    Ladder("report.headline", "HEADLINES", "find", None, ("status", "status_columns", "reset")),
    Ladder("report.status", "ACCEPTANCES", "find", None, ("status", "status_columns", "doubts")),
    Ladder("report.status", "STALLS", "find", None, ("status", "status_columns", "approval")),
    Ladder("gpus.health", "RULES", "holds", False, ("health",)),
)


@dataclass(frozen=True, slots=True)
class LadderRow:
    """One row of a ladder, as a mutant in which it never applies."""

    look: tuple[str, ...]
    """The test files that are searched for a killer."""
    plant: Callable[[], None]
    """A function that disables the row in this process."""


def read_rows() -> Mapping[str, LadderRow]:
    """Return every row of all ladders by its id, `module.LADDER: row`."""
    return {
        f"{ladder.module}.{ladder.name}: {name}": LadderRow(
            tuple(f"tests/planning/test_{test}.py" for test in ladder.tests), partial(ladder.plant, name)
        )
        for ladder in LADDERS
        for name in ladder.names()
    }


def find_strays(ladders: Iterable[Ladder] = LADDERS) -> list[str]:
    """Return the names, as `module.TUPLE`, of the planner's tuples that look like a ladder (`_asks` is true of every
    row) and contain a row that none of `ladders` contains."""
    known = {id(row) for ladder in ladders for row in ladder.rows()}
    return [
        f"{module}.{name}"
        for module, name, rows in _tuples()
        if all(_asks(row) for row in rows) and not known.issuperset(map(id, rows))
    ]


def _tuples() -> Iterator[tuple[str, str, tuple[Any, ...]]]:
    """Yield (module, name, tuple) for each tuple of at least two elements among the top-level names of the planner's
    modules. A tuple that a module imports is yielded there, too."""
    package = import_module(PLANNING)
    for module in pkgutil.walk_packages(package.__path__, f"{PLANNING}."):
        for name, value in vars(import_module(module.name)).items():
            if isinstance(value, tuple) and len(value) > 1:
                yield module.name, name, value


def _asks(row: Any) -> bool:
    """Whether the row is a function, or an instance of a dataclass with a function (not another callable) in a
    field."""
    if is_dataclass(row) and not isinstance(row, type):
        return any(isinstance(getattr(row, field.name), FunctionType) for field in fields(row))
    return isinstance(row, FunctionType)
