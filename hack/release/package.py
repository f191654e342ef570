"""The Python package as it is published: a copy of its sources in which the repository has an address.

The checkout does not know where it will be published. pyproject.toml names UNKNOWN_SOURCE, and README.md has relative
links, which an index of packages cannot follow.
"""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROJECT = ROOT / "pyproject.toml"
UNKNOWN_SOURCE = "https://HOST/TEAM/gpu-sharing-operator"
"""The address of the repository in pyproject.toml and in krew's committed manifest."""
LINK = re.compile(r"(!?\[(?:[^\[\]]|\[[^\]]*\])*\])\((?!\w+:)([^)\s]+)\)")
"""A link or picture of Markdown whose target has no scheme: its text in brackets, and the target."""


class PackageError(Exception):
    """The package cannot be built; the message has the build backend's output."""


def version() -> str:
    """Return the project's version, of which pyproject.toml is the only source."""
    return str(tomllib.loads(PROJECT.read_text())["project"]["version"])


def with_absolute_links(text: str, source: str, tag: str) -> str:
    """Return README.md's text with each relative link as a URL of the repository `source` at `tag`."""

    def absolute(match: re.Match[str]) -> str:
        label, target = match[1], match[2]
        path = f"README.md{target}" if target.startswith("#") else target
        kind = "raw" if label.startswith("!") else "blob"
        return f"{label}({source}/{kind}/{tag}/{path})"

    return LINK.sub(absolute, text)


def write_source(target: Path, source: str) -> Path:
    """Copy the files from which the package is built to `target`, and return `target`."""
    shutil.rmtree(target, ignore_errors=True)
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "operator", target / "operator", ignore=ignored)
    shutil.copy(ROOT / "LICENSE", target)
    project, readme = PROJECT.read_text(), (ROOT / "README.md").read_text()
    if source:
        project = project.replace(UNKNOWN_SOURCE, source)
        readme = with_absolute_links(readme, source, f"v{version()}")
    else:
        project = re.sub(r"^#.*\n\[project\.urls\]\n(?:\w.*\n)+\n", "", project, flags=re.MULTILINE)
    (target / "pyproject.toml").write_text(project)
    (target / "README.md").write_text(readme)
    return target


def build(source: Path, out: Path, epoch: int) -> tuple[Path, Path]:
    """Build wheel and sdist of the sources that `write_source` wrote, and return their paths."""
    # The backend runs in `source`, so a relative path would mean another folder there.
    folder = str(out.resolve())
    command = [sys.executable, "-m", "hatchling", "build", "-d", folder, "-t", "wheel", "-t", "sdist"]
    environ = {**os.environ, "SOURCE_DATE_EPOCH": str(epoch)}
    done = subprocess.run(command, cwd=source, env=environ, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PackageError(f"hatchling cannot build the package:\n{done.stdout}{done.stderr}".strip())
    (wheel,), (sdist,) = out.glob("*.whl"), out.glob("gpu_sharing_operator-*.tar.gz")
    return wheel, sdist
