"""What krew installs: an archive for each platform, with the plugin and all that it imports, and the manifest.

python -m hack.krew https://HOST/TEAM/NAME   writes build/krew; it fetches wheels of other platforms from the index

krew unpacks an archive and links one program of it, so everything lies in the archive: nothing is installed, and
nothing is fetched at the first start. Compiled modules are there once for each Python; the rest is shared.
"""

import argparse
import gzip
import hashlib
import io
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from hack.generate_krew import NAME, PLATFORMS, PROGRAM, archive, manifest

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements-dev.lock"
TARGET = ROOT / "build" / "krew"
PROJECT = "gpu-sharing-operator"
EXTRA = "cli"
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
MACHINES: Mapping[str, str] = {
    "linux/amd64": "x86_64-unknown-linux-gnu",
    "linux/arm64": "aarch64-unknown-linux-gnu",
    "darwin/amd64": "x86_64-apple-darwin",
    "darwin/arm64": "aarch64-apple-darwin",
}
"""As uv calls them."""
COMPLETER = "kubectl_complete-gpusharing"
ENTRIES = {PROGRAM: "gpusharing.cli.main", COMPLETER: "gpusharing.cli.shell.completing"}
SHIM = """\
#!/bin/sh
# Runs the plugin by the first Python for which there are modules here; krew links this program from its own folder.
self=$0
while [ -h "$self" ]; do
  link=$(readlink "$self")
  case $link in
    /*) self=$link ;;
    *) self=$(dirname "$self")/$link ;;
  esac
done
here=$(cd "$(dirname "$self")" && pwd) || exit 1
for python in "$GPUSHARING_PYTHON" python3 python3.14 python3.13 python3.12 python3.11; do
  command -v "$python" >/dev/null 2>&1 || continue
  version=$("$python" -I -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue
  [ -d "$here/lib/$version" ] && exec "$python" -I "$here/run.py" {module} "$@"
done
echo "error: kubectl gpusharing needs one of {pythons} on the PATH, or named by GPUSHARING_PYTHON" >&2
exit 1
"""
RUN = '''\
"""Starts a module of the plugin with what lies beside this file, and with nothing that is installed elsewhere."""

import sys
from importlib import import_module
from pathlib import Path

lib = Path(__file__).resolve().parent / "lib"
version = f"{sys.version_info.major}.{sys.version_info.minor}"
sys.path[:0] = [str(lib / version), str(lib / "any")]
import_module(sys.argv.pop(1)).main()
'''


TRACES = frozenset({"RECORD", "direct_url.json", "uv_cache.json", "INSTALLER", "REQUESTED"})
"""Who installed what from where: of no use where nothing can be uninstalled, and it names this machine."""


class KrewError(Exception):
    """An archive cannot be made. The text says which and why."""


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0 when all is written; prints the paths."""
    parser = argparse.ArgumentParser(prog="python -m hack.krew", description=__doc__.splitlines()[0])
    parser.add_argument("source", help="address of the repository, for example https://HOST/TEAM/NAME")
    parser.add_argument(
        "--platform",
        action="append",
        choices=PLATFORMS,
        help="only this one; can be given several times; default: all",
    )
    options = parser.parse_args(arguments)
    shutil.rmtree(TARGET, ignore_errors=True)
    TARGET.mkdir(parents=True)
    hashes = {}
    try:
        for platform in options.platform or PLATFORMS:
            path = TARGET / archive(platform)
            with tempfile.TemporaryDirectory() as scratch:
                libraries = {python: fetch(platform, python, Path(scratch) / python) for python in PYTHONS}
                hashes[platform] = pack(libraries, path)
            print(path)
    except KrewError as error:
        print(error, file=sys.stderr)
        return 1
    path = TARGET / f"{NAME}.yaml"
    path.write_text(manifest(options.source, hashes))
    print(path)
    return 0


# --- what is needed --------------------------------------------------------------------------------------------


def needed(name: str = PROJECT, extras: Iterable[str] = (EXTRA,)) -> set[str]:
    """The distributions that the plugin imports on any platform, itself left out, by what is installed here."""
    found: set[str] = set()
    todo = [(name, frozenset(extras))]
    while todo:
        one, wanted = todo.pop()
        try:
            requirements = metadata.requires(one) or []
        except (
            metadata.PackageNotFoundError
        ):  # of another platform: the lock knows it, and it needs nothing more
            continue
        for requirement in map(Requirement, requirements):
            key = canonicalize_name(requirement.name)
            if key not in found and _applies(requirement, wanted):
                found.add(key)
                todo.append((key, frozenset(requirement.extras)))
    return found - {canonicalize_name(name)}


def _applies(requirement: Requirement, extras: Iterable[str]) -> bool:
    """Whether it is needed on any of the platforms by any of the Pythons."""
    if requirement.marker is None:
        return True
    places = [
        {
            "python_version": python,
            "python_full_version": f"{python}.0",
            "sys_platform": system,
            "extra": extra,
        }
        for python in PYTHONS
        for system in ("linux", "darwin")
        for extra in ("", *extras)
    ]
    return any(requirement.marker.evaluate(place) for place in places)


def locked(names: Iterable[str]) -> str:
    """The part of the lock that pins these, with its hashes and markers."""
    wanted = set(names)
    entries = re.split(r"^(?=\S)", LOCK.read_text(), flags=re.MULTILINE)
    return "".join(one for one in entries if canonicalize_name(re.split(r"[=;\s]", one)[0]) in wanted)


def fetch(platform: str, python: str, target: Path) -> Path:
    """The modules for one Python on one platform, from locked wheels. Raises KrewError."""
    target.mkdir(parents=True)
    pins = target.with_suffix(".txt")
    pins.write_text(locked(needed()))
    where = ("--target", str(target), "--python-version", python, "--python-platform", MACHINES[platform])
    _uv(*where, "--no-deps", "--only-binary", ":all:", "--require-hashes", "--requirements", str(pins))
    _uv(*where, "--no-deps", "--no-build-isolation", str(ROOT))
    return target


def _uv(*arguments: str) -> None:
    command = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--no-config", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise KrewError(f"uv could not install what is locked for {arguments[3]}: {done.stderr.strip()}")


# --- the archive -----------------------------------------------------------------------------------------------


def pack(libraries: Mapping[str, Path], path: Path) -> str:
    """Write the archive and return its sha256; equal modules give equal bytes.

    `libraries`: folder of modules by Python.
    """
    files: dict[str, tuple[bytes, int]] = {
        "LICENSE": ((ROOT / "LICENSE").read_bytes(), 0o644),
        "run.py": (RUN.encode(), 0o644),
    }
    pythons = ", ".join(f"Python {python}" for python in libraries)
    for program, module in ENTRIES.items():
        shim = SHIM.replace("{module}", module).replace("{pythons}", pythons)
        files[program] = (shim.encode(), 0o755)
    shared = _shared(libraries)
    for python, folder in libraries.items():
        for name, data in _modules(folder):
            place = "any" if name.split("/")[0] in shared else python
            files[f"lib/{place}/{name}"] = (data, 0o644)
    data = _tar(files)
    path.write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def _shared(libraries: Mapping[str, Path]) -> set[str]:
    """Top-level names that are the same for every Python; a package is never divided."""
    if len(libraries) < 2:
        return set()
    marks: list[dict[str, str]] = []
    for folder in libraries.values():
        digests: dict[str, list[str]] = {}
        for name, data in _modules(folder):
            digests.setdefault(name.split("/")[0], []).append(f"{name} {hashlib.sha256(data).hexdigest()}")
        marks.append({top: "\n".join(rows) for top, rows in digests.items()})
    first, *others = marks
    return {top for top, mark in first.items() if all(other.get(top) == mark for other in others)}


def _modules(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Files by name; bytecode and console scripts are left out."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        wanted = "__pycache__" not in name and not name.startswith(("bin/", ".")) and path.name not in TRACES
        if wanted and path.is_file():
            yield name, path.read_bytes()


def _tar(files: Mapping[str, tuple[bytes, int]]) -> bytes:
    buffer = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT) as tar,
    ):
        for name, (data, mode) in sorted(files.items()):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), mode
            tar.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


if __name__ == "__main__":
    sys.exit(main())
