"""A headless browser that renders the plugin's page in tests: an installed one, or Debian's, unpacked into the cache.

It is not pinned: only the newest browser gets security fixes, and Debian keeps no other. apt checks the signatures.
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
PACKAGE = "chromium-headless-shell"
PROGRAM = Path("usr/lib/chromium/chromium-headless-shell")
SECONDS = 300.0
"""How long a command may take; a mirror sends 100 MB."""


@dataclass(frozen=True, slots=True)
class Browser:
    """A browser's program, and the folders with the libraries that it needs."""

    program: Path
    libraries: str = ""
    """The value of LD_LIBRARY_PATH for it, or empty if it needs no libraries of its own."""


def find() -> Browser | None:
    """Return the browser in the cache with its libraries, or else the first of NAMES on PATH."""
    if (_folder() / PROGRAM).is_file():
        libraries = sorted(path for path in (_folder() / "usr/lib").glob("*-linux-gnu*") if path.is_dir())
        folders = [folder for path in libraries for folder in (path, path / "pulseaudio")]
        return Browser(_folder() / PROGRAM, os.pathsep.join(map(str, folders)))
    own = next((path for name in NAMES if (path := shutil.which(name))), None)
    return None if own is None else Browser(Path(own))


def ensure() -> Browser:
    """Return the browser; Debian's is unpacked into the cache if there is none."""
    if (browser := find()) is not None:
        return browser
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise UnavailableError(f"there is no browser on the PATH: install one of {', '.join(NAMES)}")

    def unpack(out: Path) -> None:
        with tempfile.TemporaryDirectory(dir=out.parent) as debs:
            _run(["apt-get", "download", *_missing()], Path(debs))
            for deb in sorted(Path(debs).glob("*.deb")):
                _run(["dpkg-deb", "--extract", str(deb), str(out)], Path(debs))

    with alone_with_apt():
        make_once(_folder(), "browser", unpack)
    browser = find()
    assert browser is not None, "it was unpacked just now"
    return browser


def _folder() -> Path:
    return cache_root() / f"browser-{platform.machine()}"


def _missing() -> list[str]:
    command = ["apt-get", "install", "--simulate", "--no-install-recommends", PACKAGE]
    try:
        listing = _run(command, Path("/"))
    except UnavailableError:
        _run(["apt-get", "update"], Path("/"))
        listing = _run(command, Path("/"))
    return [line.split()[1] for line in listing.splitlines() if line.startswith("Inst ")]


def _run(command: list[str], folder: Path) -> str:
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=SECONDS, check=True, stdin=subprocess.DEVNULL
        )
    except (subprocess.SubprocessError, OSError) as error:
        lines = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        raise UnavailableError(
            f"{' '.join(command[:2])} has no {PACKAGE} ({lines[-1]}): install a browser (apt-get install chromium), "
            "or repair apt and try again: python -m hack.browser"
        ) from error
    return done.stdout


if __name__ == "__main__":
    try:
        print(ensure().program)
    except UnavailableError as error:
        print(error, file=sys.stderr)
        sys.exit(1)
