"""An environment of its own, in build/, for a tool of which nothing is imported by the product or its tests."""

import hashlib
import subprocess
import sys
import venv
from pathlib import Path


def make_venv(folder: Path, lock: Path) -> Path:
    """Return the environment's Python; set it up first if its lock or our Python has changed."""
    stamp = folder / "set-up.sha256"
    wanted = hashlib.sha256(sys.version.encode() + lock.read_bytes()).hexdigest()
    python = folder / "bin" / "python"
    if not stamp.is_file() or stamp.read_text() != wanted:
        venv.create(folder, clear=True, with_pip=True)
        install = ["pip", "install", "--quiet", "--require-hashes", "--requirement", str(lock)]
        subprocess.run([python, "-m", *install], check=True)
        stamp.write_text(wanted)
    return python
