"""The operator as its image runs it: compiled, with the distributions of requirements.lock only, and logged in as a pod.

Some libraries import optional ones that only the development environment has, so that the program is larger there.
"""

import compileall
import re
import shutil
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from hack import launch
from hack.images import local

LOCK = launch.ROOT / "requirements.lock"
PACKAGE = launch.ROOT / "operator" / "gpusharing"


def locked_names(text: str) -> list[str]:
    """Return the names of the distributions that a lock file with hashes pins."""
    return re.findall(r"^([A-Za-z0-9][A-Za-z0-9._-]*)==", text, re.MULTILINE)


def glibc_settings() -> dict[str, str]:
    """Return the environment variables for glibc's allocator (MALLOC_...) that the image sets, by name."""
    settings = (entry.partition("=") for entry in local.RUN["Env"])
    return {name: value for name, _, value in settings if name.startswith("MALLOC_")}


def make_site(folder: Path) -> None:
    """Copy the locked distributions and our package into the new `folder`, compiled as in the image."""
    folder.mkdir()
    for name in locked_names(LOCK.read_text()):
        package = distribution(name)
        if package.files is None:
            raise PackageNotFoundError(name)
        for top in {file.parts[0] for file in package.files if file.parts[0] not in ("..", "__pycache__")}:
            _copy(Path(str(package.locate_file(top))), folder / top)
    _copy(PACKAGE, folder / PACKAGE.name)
    compileall.compile_dir(folder, quiet=2, workers=0)


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
    else:
        shutil.copy2(source, target)


def operator(kubeconfig: Path, directory: Path, factor: float, **settings: str) -> launch.LaunchedProcess:
    """Return the shipped operator, not started, with only the packages of its image (`make_site`)."""
    make_site(site := directory / "site")
    shipped = launch.operator(kubeconfig, directory, factor, **settings)
    environment = {**shipped.environment, **glibc_settings(), "PYTHONPATH": str(site)}
    return replace(shipped, arguments=("-S", "-m", "gpusharing.controller.main"), environment=environment)
