"""Guards that are no row of a ladder: a line of the product, and what it reads without it (guards.yaml)."""

import importlib.machinery
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import CodeType

import yaml

LIST = Path(__file__).with_name("guards.yaml")


@dataclass(frozen=True, slots=True)
class Guard:
    """One line, or a part of one, that is there once in its module."""

    module: str
    line: str
    without: str
    look: tuple[str, ...]
    """Files where a killer is looked for."""

    @property
    def path(self) -> Path:
        """The module's file."""
        spec = find_spec(self.module)
        assert spec is not None, self.module
        assert spec.origin is not None, self.module
        return Path(spec.origin)

    def blind(self) -> str:
        """The text of the module without the guard.

        Raises:
            ValueError: the line does not occur exactly once, or nothing would change.
        """
        text = self.path.read_text()
        if text.count(self.line) != 1 or self.line == self.without:
            raise ValueError(
                f"{self.module} does not contain this line exactly once, or the guard changes nothing: {self.line}"
            )
        return text.replace(self.line, self.without)

    def plant(self) -> None:
        """The module is compiled without the guard when it is imported, permanently in this process."""
        if self.module in sys.modules:
            raise RuntimeError(f"{self.module} was imported with the guard")
        loaders, text = importlib.machinery.SourceFileLoader, self.blind()
        plain = loaders.get_code

        def get_code(loader: importlib.machinery.SourceFileLoader, fullname: str) -> CodeType | None:
            if fullname != self.module:
                return plain(loader, fullname)
            return compile(text, loader.path, "exec")

        loaders.get_code = get_code  # type: ignore[method-assign,assignment]  # in a child only


def read_guards() -> Mapping[str, Guard]:
    """By what holds."""
    return {
        name: Guard(
            f"gpusharing.{row['module']}",
            row["line"],
            row["without"],
            tuple(f"tests/{path}.py" for path in row["look"]),
        )
        for name, row in yaml.safe_load(LIST.read_text()).items()
    }
