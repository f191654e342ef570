"""Regenerate all requirement locks from pyproject.toml: pinned, with hashes, for every platform.

There is no uv.lock, because that would contain the registry of the person who wrote it.
"""

import subprocess
import sys

from hack.generate import ROOT

FLAGS = ("--quiet", "--universal", "--generate-hashes", "--no-annotate", "--no-header")
LOCKS = {
    "requirements.lock": ("pyproject.toml",),
    "requirements-dev.lock": ("pyproject.toml", "--group", "dev"),
    "requirements-docs.lock": ("--group", "docs", "--python-version", "3.11"),
    "requirements-mutants.lock": ("--group", "mutants", "--python-version", "3.11"),
}
"""uv's arguments for each lock: the project's dependencies, these with a group, or a group alone."""


def main(arguments: list[str]) -> int:
    """Write the locks; `arguments` are passed on to every `uv pip compile`."""
    for name, sources in LOCKS.items():
        command = ["uv", "pip", "compile", *FLAGS, *arguments, *sources, "-o", name]
        done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, check=False)
        if done.returncode != 0:
            return done.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
