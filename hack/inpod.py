"""Runs a module of ours without what a pod has not: `python -m hack.inpod gpusharing.controller.main`.

Libraries import what they find. Here they would find packages of the development environment, and the operator under
test would be another one than the image's, which has what requirements.lock names: bigger, slower to start, and free
to lean on what is not there.
"""

import runpy
import sys

ABSENT = ("kubernetes", "rich")
"""Packages that kopf and structlog import where they are installed."""


def hide() -> None:
    """From now on an import of these raises ModuleNotFoundError."""
    if present := [name for name in ABSENT if name in sys.modules]:
        raise RuntimeError(f"{', '.join(present)} was imported before")
    for name in ABSENT:
        sys.modules[name] = None  # type: ignore[assignment]  # the import system's own way to say that it is not there


if __name__ == "__main__":
    hide()
    runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
