"""What is written down about a running control plane, so that another process can use, stop or sweep it."""

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
    """The record `state.json` in the folder of a control plane."""

    owner: int | None
    """Pid of the process that must live as long as the control plane; None when it outlives its maker."""
    url: str = ""
    pids: dict[str, int] = field(default_factory=dict)
    driver: str = "cluster"
    host: str = field(default_factory=platform.node)
    """Where the pids mean something: the folder may be shared with containers, each with pids of its own."""

    def write(self, directory: Path) -> None:
        """Write the record to its folder."""
        write_private(directory / FILE, json.dumps(asdict(self), indent=2))


def read(directory: Path) -> ClusterState | None:
    """The record in `directory`, or None when there is none."""
    try:
        return ClusterState(**json.loads((directory / FILE).read_text()))
    except FileNotFoundError:
        return None


def running(directory: Path) -> list[Component]:
    """The recorded programs of `directory` that still run and are still ours, in the order of their start."""
    state = read(directory)
    pids = {} if state is None else state.pids
    return [
        Component(name, pid, directory / f"{name}.log")
        for name, pid in pids.items()
        if is_ours(pid, str(directory.resolve()))
    ]


def stop_recorded(directory: Path) -> list[str]:
    """Stop what still runs there, the last started first; return the names of what was stopped."""
    components = running(directory)
    for component in reversed(components):
        component.stop()
    (directory / FILE).unlink(missing_ok=True)
    return [component.name for component in components]


def sweep(root: Path) -> None:
    """Stop and remove control planes whose owner was killed before it could do so itself."""
    for file in root.glob(f"*/{FILE}"):
        state = read(file.parent)
        if state is None or state.owner is None or state.host != platform.node():
            continue
        if state.owner == os.getpid() or pid_exists(state.owner):
            continue
        stop_recorded(file.parent)
        shutil.rmtree(file.parent, ignore_errors=True)
