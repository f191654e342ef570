"""The cgroup below which a node's kubelet creates its own cgroups. It is created when the node starts, and removed
with everything below it when the node ends."""

import contextlib
import os
from functools import partial
from pathlib import Path

from hack.cluster.process import pid_exists, wait_until

ROOT = Path("/sys/fs/cgroup")
PREFIX = "gso-"
REMOVE_SECONDS = 120.0


def hierarchies() -> list[Path]:
    """Return the mounted hierarchies: one per controller with cgroup v1, or ROOT with v2."""
    if (ROOT / "cgroup.controllers").exists():
        return [ROOT]
    return [folder for folder in sorted(ROOT.iterdir()) if (folder / "cgroup.procs").exists()]


def make(node: str) -> str:
    """Create the cgroup of a node in every hierarchy, and return its path, /gso-PID/NODE."""
    path = f"{PREFIX}{os.getpid()}/{node}"
    for hierarchy in hierarchies():
        for folder in (hierarchy / f"{PREFIX}{os.getpid()}", hierarchy / path):
            folder.mkdir(exist_ok=True)
            _inherit_cpuset(folder)
    return f"/{path}"


def remove(path: str) -> None:
    """Remove the cgroup of a node, and that of our process around it if it is empty."""
    for hierarchy in hierarchies():
        folder = hierarchy / path.lstrip("/")
        wait_until(partial(_removed, folder), REMOVE_SECONDS, f"{folder} to be empty")
        with contextlib.suppress(OSError):  # another of our nodes is still in it
            folder.parent.rmdir()


def sweep() -> list[Path]:
    """Remove the cgroups of processes that have ended, and return those that are in use."""
    left = []
    for hierarchy in hierarchies():
        for folder in hierarchy.glob(f"{PREFIX}*"):
            owner = folder.name.removeprefix(PREFIX)
            if owner.isdigit() and not pid_exists(int(owner)) and not _removed(folder):
                left.append(folder)
    return left


def _inherit_cpuset(folder: Path) -> None:
    """Give an empty cpuset its parent's, because cgroup v1 refuses processes in an empty one."""
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
