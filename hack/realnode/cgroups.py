"""The cgroups below which a node's kubelet makes its own: made at the start, removed with all below at the end."""

import contextlib
import os
from functools import partial
from pathlib import Path

from hack.cluster.process import pid_exists, wait_until

ROOT = Path("/sys/fs/cgroup")
PREFIX = "gso-"
REMOVE_SECONDS = 120.0


def hierarchies() -> list[Path]:
    """The mounted hierarchies: one per controller with cgroup v1, the one of cgroup v2."""
    if (ROOT / "cgroup.controllers").exists():
        return [ROOT]
    return [folder for folder in sorted(ROOT.iterdir()) if (folder / "cgroup.procs").exists()]


def make(node: str) -> str:
    """Make the cgroup of a node in every hierarchy; its path below each of them."""
    path = f"{PREFIX}{os.getpid()}/{node}"
    for hierarchy in hierarchies():
        for folder in (hierarchy / f"{PREFIX}{os.getpid()}", hierarchy / path):
            folder.mkdir(exist_ok=True)
            _inherit_cpuset(folder)
    return f"/{path}"


def remove(path: str) -> None:
    """Remove a cgroup of ours and all below it; its processes must have been ended.

    Raises:
        TimeoutError: a process in it lives on.
    """
    for hierarchy in hierarchies():
        folder = hierarchy / path.lstrip("/")
        wait_until(partial(_removed, folder), REMOVE_SECONDS, f"{folder} to be empty")
        with contextlib.suppress(OSError):  # another node of ours is still in it
            folder.parent.rmdir()


def sweep() -> list[Path]:
    """Remove what owners left behind that were killed; what is still busy, because their processes are ending."""
    left = []
    for hierarchy in hierarchies():
        for folder in hierarchy.glob(f"{PREFIX}*"):
            owner = folder.name.removeprefix(PREFIX)
            if owner.isdigit() and not pid_exists(int(owner)) and not _removed(folder):
                left.append(folder)
    return left


def _inherit_cpuset(folder: Path) -> None:
    """cgroup v1 refuses processes in a cpuset that names no CPU."""
    for file in ("cpuset.cpus", "cpuset.mems"):
        if (folder / file).exists() and not (folder / file).read_text().strip():
            (folder / file).write_text((folder.parent / file).read_text())


def _removed(folder: Path) -> bool:
    if not folder.exists():
        return True
    for below, _, _ in os.walk(folder, topdown=False):
        with contextlib.suppress(OSError):  # busy for a moment after its last process ended
            Path(below).rmdir()
    return not folder.exists()
