"""`make docs` builds docs/ as a site in build/site. It fails if a link, an anchor or a page is wrong.

The site is built in an environment of its own, build/docs-venv, from requirements-docs.lock, because nothing of it is
imported by our code.
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
    """Recreate the environment if its lock or our Python has changed, build the site in SITE, which is emptied first,
    and return the exit status of mkdocs, for which a warning is a failure, or of pip if it cannot install the lock;
    then no site is built, and the next call tries again."""
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
    """Run the environment's Python with these arguments in the root of the checkout, and return its exit status."""
    # The theme would print an advertisement for its successor.
    environ = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "DISABLE_MKDOCS_2_WARNING": "true"}
    return subprocess.call([str(VENV / "bin" / "python"), *arguments], cwd=ROOT, env=environ)


if __name__ == "__main__":
    sys.exit(main())
