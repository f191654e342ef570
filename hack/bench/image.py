"""What the image holds: the distributions of requirements.lock and nothing else, as a folder for PYTHONPATH.

The development environment has more (rich, for one), and libraries import what they find: the same program is bigger
there than where it runs.
"""

import re
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from hack.stage import ROOT

LOCK = ROOT / "requirements.lock"


def locked_names(text: str) -> list[str]:
    """The distributions that a lock with hashes names."""
    return re.findall(r"^([A-Za-z0-9][A-Za-z0-9._-]*)==", text, re.MULTILINE)


def make_site(folder: Path) -> str:
    """Link the locked distributions into `folder`; returns PYTHONPATH for `python -S`.

    Raises:
        PackageNotFoundError: the environment lacks one of them; `make setup` installs it.
    """
    folder.mkdir()
    for name in locked_names(LOCK.read_text()):
        found = distribution(name)
        if found.files is None:
            raise PackageNotFoundError(name)
        for top in {file.parts[0] for file in found.files if file.parts[0] not in ("..", "__pycache__")}:
            target = folder / top
            if not target.exists():
                target.symlink_to(Path(str(found.locate_file(top))).resolve())
    return f"{folder}:{ROOT / 'operator'}"
