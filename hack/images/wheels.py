"""The locked wheels and our own wheel, installed into a tree for any architecture and compiled by the tree's Python."""

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

from gpusharing.planning.vocabulary.lengths import counted
from hack.cache import UnavailableError, cache_root
from hack.generate import ROOT
from hack.images.debian import PYTHON
from hack.release import package

LOCK = ROOT / "requirements.lock"
PLUGIN = "kubectl_gpusharing"
"""The package that no image has."""
SITE = f"usr/local/lib/python{PYTHON}/dist-packages"
"""The folder in which Debian's Python looks for packages by default."""
STDLIB = f"usr/lib/python{PYTHON}"
MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}
"""The name of each architecture in Debian, and its name in wheels and uname."""
UNCHECKED = b"\1\0\0\0"
"""The flags of bytecode that is never compared with its source (PEP 552)."""
GLIBC = ("manylinux_2_17", "manylinux2014", "manylinux_2_28", "manylinux_2_34")
"""The platform tags of wheels that run on the tree's glibc (2.41)."""


class WheelError(UnavailableError):
    """A wheel cannot be downloaded or installed; the message says which one and why."""


def native() -> str:
    for name, machine in MACHINES.items():
        if platform.machine() == machine:
            return name
    raise WheelError(f"this machine is {platform.machine()}; images are built on {' and '.join(MACHINES.values())}")


def download(architecture: str) -> list[Path]:
    """Return the locked wheels for this architecture, from the cache or the package index."""
    text = LOCK.read_bytes()
    folder = cache_root() / "wheels" / f"{architecture}-{hashlib.sha256(text + PYTHON.encode()).hexdigest()[:16]}"
    if not (folder / "complete").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        _pip("download", "--require-hashes", "--no-deps", "--dest", str(folder), *target(architecture), "-r", str(LOCK))
        (folder / "complete").touch()
    return sorted(folder.glob("*.whl"))


def hashes(files: Sequence[Path]) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def target(architecture: str) -> list[str]:
    """Return pip's options for wheels of this architecture and of the image's Python."""
    tags = [f"--platform={kind}_{MACHINES[architecture]}" for kind in GLIBC]
    return ["--only-binary=:all:", f"--python-version={PYTHON}", "--implementation=cp", *tags]


def own_wheel(folder: Path, epoch: int, source: str) -> Path:
    """Build our wheel from this checkout in `folder`, which is emptied first, and return its path."""
    shutil.rmtree(folder, ignore_errors=True)
    try:
        wheel, _ = package.build(package.write_source(folder / "source", source), folder, epoch)
    except package.PackageError as error:
        raise WheelError(str(error)) from error
    return wheel


def install(wheels: Sequence[Path], architecture: str, tree: Path) -> None:
    site = tree / SITE
    site.mkdir(parents=True)
    _pip(
        "install",
        "--no-deps",
        "--no-index",
        "--no-compile",
        f"--target={site}",
        *target(architecture),
        *map(str, wheels),
    )
    shutil.rmtree(site / "bin", ignore_errors=True)  # the scripts' first line has the path of this machine's Python
    for record in site.glob("*.dist-info"):
        (record / "RECORD").unlink(missing_ok=True)  # it lists those scripts
        (record / "direct_url.json").unlink(missing_ok=True)  # it contains a path of this machine
    (site / ".lock").unlink(missing_ok=True)
    shutil.rmtree(site / PLUGIN, ignore_errors=True)  # runs at a person's terminal, from krew or pip


def entry_points(tree: Path) -> None:
    folder = tree / "usr/local/bin"
    folder.mkdir(parents=True, exist_ok=True)
    for name, place in scripts().items():
        module, function = place.split(":")
        file = folder / name
        file.write_text(
            f"#!/usr/bin/python{PYTHON}\nimport sys\n\nfrom {module} import {function}\n\nsys.exit({function}())\n"
        )
        file.chmod(0o755)


def scripts() -> Mapping[str, str]:
    """Return `module:function` of each console script in pyproject.toml that a pod runs, by the script's name."""
    table: dict[str, str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    return {name: place for name, place in table.items() if not place.startswith(f"{PLUGIN}.")}


def compile_all(interpreter: Sequence[str], environ: Mapping[str, str], folder: Path, shown: str) -> int:
    """Compile every module, without times and unchecked, so that equal sources give equal bytes."""
    options = ["-B", "-m", "compileall", "-q", "-f", "--invalidation-mode", "unchecked-hash"]
    moved = ["-s", str(folder), "-p", f"/{shown}"]
    command = [*interpreter, *options, *moved, str(folder)]
    done = subprocess.run(command, env=dict(environ), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise WheelError(f"{folder} cannot be compiled:\n{done.stdout}{done.stderr}")
    files = sorted(folder.rglob("*.pyc"))
    if timed := [file for file in files if file.read_bytes()[4:8] != UNCHECKED]:
        raise WheelError(
            f"{counted(len(timed), 'compiled file')} would be compared with their source, such as {timed[0]}"
        )
    return len(files)


def interpreter(tree: Path) -> tuple[list[str], dict[str, str]]:
    """Return the command of the tree's own Python by way of its loader, which needs no chroot and no root."""
    machine = MACHINES[native()]
    libraries = tree / f"usr/lib/{machine}-linux-gnu"
    loader = next(iter(sorted((tree / "usr").glob("lib*/ld-linux-*.so.*"))))
    command = [str(loader), "--library-path", str(libraries), str(tree / f"usr/bin/python{PYTHON}")]
    return command, {"PYTHONHOME": str(tree / "usr"), "PYTHONHASHSEED": "0", "PATH": os.environ.get("PATH", "")}


def _pip(verb: str, *arguments: str, environ: Mapping[str, str] = os.environ) -> None:
    command = [sys.executable, "-m", "pip", verb, "--quiet", "--no-input", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, env=dict(environ), capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return
    missing = re.findall(r"No matching distribution found for ([^\s(]+)", done.stderr)
    if broken := re.search(r"connection broken by '(.*)'", done.stderr):
        raise WheelError(f"pip {verb} failed ({broken[1]}): check the network, PIP_INDEX_URL and the proxy")
    if missing:
        remedy = "pin a version that has one and run `make lock`"
        raise WheelError(f"there is no wheel of {', '.join(missing)} for this platform: {remedy}")
    raise WheelError(f"pip {verb} failed; its output says why:\n{done.stderr.strip()}")
