"""Names of processes on the host. A process that cannot be named counts as busy, so nothing is guessed."""

from pathlib import Path, PurePosixPath


class ProcessNames:
    """Executable names by process id. NVML gives host ids: the agent's pod needs hostPID for them to mean much."""

    def __init__(self, proc: Path = Path("/proc")) -> None:
        """`proc` is where procfs is mounted."""
        self._proc = proc

    def of(self, pid: int, reported: str = "") -> str:
        """Name without path and arguments: from what NVML reported, else from procfs; empty when neither knows."""
        reported = reported.strip()
        if reported and not reported.startswith("["):  # NVML says [Not Found] in a foreign PID namespace
            return PurePosixPath(reported.split()[0]).name
        if pid <= 0:
            return ""
        try:
            return (self._proc / str(pid) / "comm").read_text(errors="replace").strip()
        except OSError:
            return ""
