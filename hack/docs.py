"""`make docs` builds docs/ as a site in build/site. It fails if a link, an anchor or a page is wrong."""

import os
import subprocess
import sys

from hack.generate import ROOT
from hack.ownvenv import make_venv

SITE = ROOT / "build" / "site"


def main() -> int:
    """Build the site in SITE, which is emptied first, and return the exit status of mkdocs; a warning is a failure."""
    python = make_venv(ROOT / "build" / "docs-venv", ROOT / "requirements-docs.lock")
    # The theme would print an advertisement for its successor.
    environ = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "DISABLE_MKDOCS_2_WARNING": "true"}
    build = ["-m", "mkdocs", "build", "--strict", "--clean", "--site-dir", str(SITE)]
    return subprocess.call([python, *build], cwd=ROOT, env=environ)


if __name__ == "__main__":
    sys.exit(main())
