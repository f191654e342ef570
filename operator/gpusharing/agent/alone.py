"""Is this the only agent on its node? Two would both hold NVML open, and each would answer for the other's silence."""

import fcntl
import os
from pathlib import Path


class Alone:
    """A lock on a directory of the host that every agent of the node mounts; the kernel drops it when a process ends."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock: int | None = None

    def why_not(self) -> str:
        """Return that another agent runs on the node; empty if none does, or if the directory cannot be locked."""
        if self._lock is not None:
            return ""
        try:
            handle = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return ""
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(handle)
            if not isinstance(error, BlockingIOError):
                return ""
            return (
                f"another agent runs on this node (it has locked {self._directory}), so this one reads no GPU; remove the"
                " other one's DaemonSet or pod"
            )
        self._lock = handle
        return ""
