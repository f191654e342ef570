"""Runs the machine's C compiler. If it is missing, or lacks a header or library, the error says what to install."""

import re
import shutil
import subprocess

from hack.cache import UnavailableError

INSTALL = "apt-get install --yes gcc libc6-dev"
"""Installs on Debian what a C program is built with."""


def find_compiler() -> str | None:
    """Return the path of `cc` or else `gcc`, or None if neither is on PATH."""
    return shutil.which("cc") or shutil.which("gcc")


def need_compiler(what: str) -> str:
    """Return the path of the C compiler. `what`, the thing to be built, is named in the error.

    Raises:
        UnavailableError: there is no compiler.
    """
    program = find_compiler()
    if program is None:
        raise UnavailableError(
            f"{what} must be built with a C compiler, and there is no `cc` or `gcc` on PATH: {INSTALL}"
        )
    return program


def compile_c(what: str, *arguments: str) -> None:
    """Run the C compiler with these arguments.

    `what`, the thing to be built, is named in the error.

    Raises:
        UnavailableError: there is no compiler, or it ended with an error.
    """
    program = need_compiler(what)
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return
    if absent := re.search(r"\S+\.h: No such file or directory|cannot find -l\w+", done.stderr):
        raise UnavailableError(f"{what} cannot be built, because {program} says {absent[0]!r}: {INSTALL}")
    raise UnavailableError(f"{what} cannot be built, because {program} refuses it:\n{done.stderr.strip()}")
