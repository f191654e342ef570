"""A browser without a window, to look at the plugin's page: the machine's own, else Debian's, unpacked into the user's
cache and not installed.

It is not pinned, unlike all other tools: only the newest version of a browser is mended, and Debian keeps no other.
What apt fetches is checked against Debian's signatures.
"""

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from hack.apt import alone_with_apt
from hack.cache import UnavailableError, cache_root, make_once

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
"""As they are called on a PATH."""
PACKAGE = "chromium-headless-shell"
PROGRAM = Path("usr/lib/chromium/chromium-headless-shell")
SECONDS = 300.0
"""For 100 MB from a mirror."""


@dataclass(frozen=True, slots=True)
class Browser:
    """A program, and where it finds what it was linked with."""

    program: Path
    libraries: str = ""
    """As LD_LIBRARY_PATH; empty: it needs none of its own."""


def find() -> Browser | None:
    """What exists already, in the cache or on the PATH."""
    if (_folder() / PROGRAM).is_file():
        libraries = sorted(path for path in (_folder() / "usr/lib").glob("*-linux-gnu*") if path.is_dir())
        folders = [folder for path in libraries for folder in (path, path / "pulseaudio")]
        return Browser(_folder() / PROGRAM, os.pathsep.join(map(str, folders)))
    own = next((found for name in NAMES if (found := shutil.which(name))), None)
    return None if own is None else Browser(Path(own))


def ensure() -> Browser:
    """What there is, else Debian's, with the libraries that this machine lacks.

    Raises:
        UnavailableError: there is none, and apt cannot fetch one.
    """
    if (found := find()) is not None:
        return found
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise UnavailableError(f"there is no browser on the PATH: install one of {', '.join(NAMES)}")
    with alone_with_apt():
        make_once(_folder(), "browser", _unpack)
    found = find()
    assert found is not None, "it was unpacked just now"
    return found


def _folder() -> Path:
    return cache_root() / f"browser-{platform.machine()}"


def _unpack(out: Path) -> None:
    with tempfile.TemporaryDirectory(dir=out.parent) as debs:
        _run(["apt-get", "download", *_missing()], Path(debs))
        for deb in sorted(Path(debs).glob("*.deb")):
            _run(["dpkg-deb", "--extract", str(deb), str(out)], Path(debs))


def _missing() -> list[str]:
    """The packages that apt would install for it; where its lists are of old or none, they are fetched once more."""
    command = ["apt-get", "install", "--simulate", "--no-install-recommends", PACKAGE]
    try:
        told = _run(command, Path("/"))
    except UnavailableError:
        _run(["apt-get", "update"], Path("/"))
        told = _run(command, Path("/"))
    return [line.split()[1] for line in told.splitlines() if line.startswith("Inst ")]


def _run(command: list[str], folder: Path) -> str:
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=True,
            stdin=subprocess.DEVNULL,
        )
    except (subprocess.SubprocessError, OSError) as error:
        lines = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        raise UnavailableError(
            f"{' '.join(command[:2])} has no {PACKAGE} ({lines[-1]}): install a browser (apt-get install chromium), "
            "or mend apt and try again: python -m hack.browser"
        ) from error
    return done.stdout


if __name__ == "__main__":
    try:
        print(ensure().program)
    except UnavailableError as error:
        print(error, file=sys.stderr)
        sys.exit(1)
