"""Who the processes are that NVML lists, as far as procfs tells. What cannot be told counts as busy: no guesses.

NVML's own name is the first word of the command line, which every process may choose. It is shown to people; that a
process is one of NVIDIA's MPS daemons, which an idle GPU may have, is believed of its executable and its parent only.
Without the right to look at an executable (CAP_SYS_PTRACE), `comm` must do, which the kernel takes from the executable
and cuts to 15 bytes (proc(5)).
"""

import os
import re
from pathlib import Path, PurePosixPath

from gpusharing.agent.library import UNKNOWN_PROCESS, PodID, Process
from gpusharing.agent.podnames import PodNames

MPS_SERVER, MPS_CONTROL = "nvidia-cuda-mps-server", "nvidia-cuda-mps-control"
_COMM = 15  # TASK_COMM_LEN without its end
_CUT = "…"
_GONE = " (deleted)"
_POD = re.compile(r"[/-]pod([0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12}|[0-9a-f]{32})(?=[./\n]|$)")
"""The kubelet's cgroup of a pod: `/pod<uid>`, or `-pod<uid>.slice` with `_` for `-` under systemd (kubernetes
pkg/kubelet/cm/cgroup_manager_linux.go). A static pod's uid is a plain MD5."""


class Processes:
    """Processes by the id that NVML tells. Both must mean the same: the agent's pod needs hostPID."""

    def __init__(
        self, proc: Path = Path("/proc"), own_pid: int | None = None, names: PodNames | None = None
    ) -> None:
        """`proc` is where procfs is mounted; `own_pid` is this process's id as it sees it itself; without `names`
        pods are known by their uids only."""
        self._proc = proc
        self._names = names or PodNames(None)
        self.blind = (os.getpid() if own_pid is None else own_pid) == 1
        """Alone in a PID namespace of its own container: the driver drops all other processes from its lists."""

    def of(self, pid: int, reported: str = "", device: str = "") -> Process:
        """A process that uses a device; `reported` is what NVML calls it."""
        if pid <= 0 or self.blind:
            return Process(UNKNOWN_PROCESS.pid, UNKNOWN_PROCESS.name, device)
        return Process(pid, self._name(pid, reported.strip()), device)

    def pod_of(self, pid: int) -> PodID | None:
        """The pod whose cgroup a process is in; None: in none, or the process has ended.

        The outermost pod of the path counts: what lies below it, the pod may have made itself.
        """
        found = _POD.search(self._read(pid, "cgroup"))
        return self._names.of(found[1].replace("_", "-")) if found else None

    def _name(self, pid: int, reported: str) -> str:
        """Without path and arguments; empty when nobody knows."""
        program, parent = self._program(pid), self._program(self._parent(pid))
        named = program
        if reported and not reported.startswith("["):  # NVML says [Not Found] in a foreign PID namespace
            named = PurePosixPath(reported.split()[0]).name
        daemon = next((name for name in (MPS_SERVER, MPS_CONTROL) if self._is(program, name, named)), "")
        if daemon == MPS_CONTROL or (daemon and self._is(parent, MPS_CONTROL, MPS_CONTROL)):
            return daemon
        if named not in (MPS_SERVER, MPS_CONTROL):
            return named
        return f"{named} (program {program or 'unknown'}, started by {parent or 'nobody known'})"

    @staticmethod
    def _is(program: str, daemon: str, named: str) -> bool:
        """Whether a program is that daemon; `named` decides between two whose names are cut."""
        return program == daemon or (program == daemon[:_COMM] + _CUT and named == daemon)

    def _program(self, pid: int) -> str:
        """Name of the executable, else what the kernel kept of it, else empty."""
        try:
            path = os.readlink(self._proc / str(pid) / "exe")
        except OSError:
            name = self._read(pid, "comm").strip()
            return name + _CUT if len(name) >= _COMM else name
        return PurePosixPath(path.removesuffix(_GONE)).name

    def _parent(self, pid: int) -> int:
        """0 when nobody knows. The second field of `stat` is a name in brackets that may hold anything."""
        after = self._read(pid, "stat").rpartition(")")[2].split()
        return int(after[1]) if len(after) > 1 and after[1].isdecimal() else 0

    def _read(self, pid: int, name: str) -> str:
        try:
            return (self._proc / str(pid) / name).read_text(errors="replace")
        except OSError:
            return ""
