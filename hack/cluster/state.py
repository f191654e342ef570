"""The record of a running control plane, by which another process can use, stop or sweep it."""

import json
import os
import platform
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path

from hack.cache import write_private
from hack.cluster.process import Component, is_ours, pid_exists

FILE = "state.json"


@dataclass(frozen=True)
class ClusterState:
    """The content of `state.json` in the folder of a control plane."""

    owner: int | None
    """The pid of the process that the control plane must not outlive, or None if it outlives its creator."""
    url: str = ""
    pids: dict[str, int] = field(default_factory=dict)
    driver: str = "cluster"
    host: str = field(default_factory=platform.node)
    """The host on which the pids are valid: containers with pids of their own may share the folder."""

    def write(self, directory: Path) -> None:
        """Write the record to `state.json` in `directory`, which must exist, in place of an earlier record."""
        write_private(directory / FILE, json.dumps(asdict(self), indent=2))


def read(directory: Path) -> ClusterState | None:
    try:
        return ClusterState(**json.loads((directory / FILE).read_text()))
    except FileNotFoundError:
        return None


def running(directory: Path) -> list[Component]:
    """Return the programs recorded in `directory` that are still running, in the order in which they were started."""
    state = read(directory)
    pids = {} if state is None else state.pids
    return [
        Component(name, pid, directory / f"{name}.log")
        for name, pid in pids.items()
        if is_ours(pid, str(directory.resolve()))
    ]


def stop_recorded(directory: Path) -> list[str]:
    """Stop the recorded programs that are still running, in the reverse order of their start, and remove the record."""
    components = running(directory)
    for component in reversed(components):
        component.stop()
    (directory / FILE).unlink(missing_ok=True)
    return [component.name for component in components]


def sweep(root: Path) -> None:
    """Stop and remove the control planes below `root` whose owner, a process of this host, has ended."""
    for file in root.glob(f"*/{FILE}"):
        state = read(file.parent)
        if state is None or state.owner is None or state.host != platform.node():
            continue
        if state.owner == os.getpid() or pid_exists(state.owner):
            continue
        stop_recorded(file.parent)
        shutil.rmtree(file.parent, ignore_errors=True)
