"""`python -m hack.inpod gpusharing.controller.main` runs one of our modules without packages that a pod does not have.

Some libraries import optional packages if they are installed: the operator under test would differ from the image's.
"""

import runpy
import sys

ABSENT = ("kubernetes", "rich")
"""Optional packages that kopf and structlog import if they are installed."""


def hide() -> None:
    """Make every later import of the packages in ABSENT fail with ModuleNotFoundError."""
    if present := [name for name in ABSENT if name in sys.modules]:
        raise RuntimeError(f"{', '.join(present)} was imported before it could be hidden")
    for name in ABSENT:
        sys.modules[name] = None  # type: ignore[assignment]  # the import system's own mark for a module that cannot be imported


if __name__ == "__main__":
    hide()
    runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
