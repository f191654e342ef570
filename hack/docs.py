"""`make docs`: docs/ as a site in build/site, strictly: a link, an anchor or a page that does not fit fails.

Built in an environment of its own, build/docs-venv, from requirements-docs.lock: nothing of it is imported by us.
"""

import hashlib
import os
import subprocess
import sys
import venv

from hack.generate import ROOT

LOCK = ROOT / "requirements-docs.lock"
VENV = ROOT / "build" / "docs-venv"
SITE = ROOT / "build" / "site"


def main() -> int:
    """The exit status of mkdocs, or of pip where it cannot install what is locked."""
    stamp, wanted = (
        VENV / "set-up.sha256",
        hashlib.sha256(sys.version.encode() + LOCK.read_bytes()).hexdigest(),
    )
    if not stamp.is_file() or stamp.read_text() != wanted:
        venv.create(VENV, clear=True, with_pip=True)
        install = ["-m", "pip", "install", "--quiet", "--require-hashes", "--requirement", str(LOCK)]
        if (status := run(*install)) != 0:
            return status
        stamp.write_text(wanted)
    return run("-m", "mkdocs", "build", "--strict", "--clean", "--site-dir", str(SITE))


def run(*arguments: str) -> int:
    """Run the environment's Python at the root of the checkout."""
    # The theme's makers advertise their next product in the terminal of whoever builds.
    environ = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "DISABLE_MKDOCS_2_WARNING": "true"}
    return subprocess.call([str(VENV / "bin" / "python"), *arguments], cwd=ROOT, env=environ)


if __name__ == "__main__":
    sys.exit(main())
