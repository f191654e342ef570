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
    """Return the mounted hierarchies: below ROOT one per controller with cgroup v1, sorted by path, or ROOT alone with
    cgroup v2. A folder counts as a hierarchy if it has the file cgroup.procs."""
    if (ROOT / "cgroup.controllers").exists():
        return [ROOT]
    return [folder for folder in sorted(ROOT.iterdir()) if (folder / "cgroup.procs").exists()]


def make(node: str) -> str:
    """Create the cgroup of a node in every hierarchy that does not have it yet, and return its path `/gso-PID/NODE`,
    which is the same in every hierarchy. Raises OSError if this machine does not permit it."""
    path = f"{PREFIX}{os.getpid()}/{node}"
    for hierarchy in hierarchies():
        for folder in (hierarchy / f"{PREFIX}{os.getpid()}", hierarchy / path):
            folder.mkdir(exist_ok=True)
            _inherit_cpuset(folder)
    return f"/{path}"


def remove(path: str) -> None:
    """Remove the cgroup of a node and everything below it, and then the cgroup of our process around it if that is
    empty. Its processes must have been ended. Raises TimeoutError if a process in it is still running after
    REMOVE_SECONDS."""
    for hierarchy in hierarchies():
        folder = hierarchy / path.lstrip("/")
        wait_until(partial(_removed, folder), REMOVE_SECONDS, f"{folder} to be empty")
        with contextlib.suppress(OSError):  # another of our nodes is still in it
            folder.parent.rmdir()


def sweep() -> list[Path]:
    """Remove the cgroups in every hierarchy whose name is PREFIX and a pid that no running process has, with everything
    in them. Returns those that could not be removed yet, because processes in them are still ending; empty if all are
    gone."""
    left = []
    for hierarchy in hierarchies():
        for folder in hierarchy.glob(f"{PREFIX}*"):
            owner = folder.name.removeprefix(PREFIX)
            if owner.isdigit() and not pid_exists(int(owner)) and not _removed(folder):
                left.append(folder)
    return left


def _inherit_cpuset(folder: Path) -> None:
    """Give an empty cpuset its parent's CPUs and memory nodes, because cgroup v1 refuses processes in an empty one.
    Does nothing to a cpuset that is not empty, or if the cgroup has none."""
    for file in ("cpuset.cpus", "cpuset.mems"):
        if (folder / file).exists() and not (folder / file).read_text().strip():
            (folder / file).write_text((folder.parent / file).read_text())


def _removed(folder: Path) -> bool:
    """Try to remove a cgroup and everything below it, the deepest first, and return whether it is gone, also if it did
    not exist before. Cgroups that are busy stay."""
    if not folder.exists():
        return True
    for below, _, _ in os.walk(folder, topdown=False):
        with contextlib.suppress(OSError):  # busy for a moment after its last process ended
            Path(below).rmdir()
    return not folder.exists()
