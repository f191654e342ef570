"""Guards that are not rows of a ladder: a line of the product, and what replaces the line (guards.yaml)."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import yaml

from hack.mutants.transplant import plant_source

LIST = Path(__file__).with_name("guards.yaml")


@dataclass(frozen=True, slots=True)
class Guard:
    """A line of a module, or a part of one, that occurs there only once, and the source that replaces it if the guard
    is removed."""

    module: str
    line: str
    without: str
    look: tuple[str, ...]
    """The test files that are searched for a killer."""

    @property
    def path(self) -> Path:
        """The path of the module's source file. To find it, the packages that contain the module are imported. Raises
        AssertionError if they have no such module, and ModuleNotFoundError if a package does not exist."""
        spec = find_spec(self.module)
        assert spec is not None, self.module
        assert spec.origin is not None, self.module
        return Path(spec.origin)

    def blind(self) -> str:
        """Return the source of the module without the guard. Raises ValueError if the line does not occur exactly
        once, or if its replacement is the same."""
        text = self.path.read_text()
        if text.count(self.line) != 1 or self.line == self.without:
            raise ValueError(
                f"{self.module} does not contain this line exactly once, or the guard changes nothing: {self.line}"
            )
        return text.replace(self.line, self.without)

    def plant(self) -> None:
        """Remove the guard from the module that this process has imported. This cannot be undone. Raises ValueError if
        the line does not occur exactly once, or if its replacement is the same, and any exception that the module's new
        source raises when it runs."""
        plant_source(self.module, self.blind())


def read_guards() -> Mapping[str, Guard]:
    """Return all guards in guards.yaml by their names. A name says what the guard ensures."""
    return {
        name: Guard(
            f"gpusharing.{row['module']}",
            row["line"],
            row["without"],
            tuple(f"tests/{path}.py" for path in row["look"]),
        )
        for name, row in yaml.safe_load(LIST.read_text()).items()
    }
