"""Which pod does a process on a GPU belong to, and is it one of NVIDIA's MPS daemons?

procfs and the folders of the pods' logs tell. What is unknown counts as busy, never as idle.
"""

import os
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path, PurePosixPath

from gpusharing.agent.library import UNKNOWN_PROCESS, PodID, Process
from gpusharing.planning.vocabulary.values import value

PAUSE = 5.0
"""Seconds between two listings of the folders: a reading may look up many UIDs without a folder."""


def pod_names(logs: Path, clock: Callable[[], float] = time.monotonic) -> Callable[[str], PodID]:
    """Return a function that finds a pod of this node by its UID, without a name if no folder shows it.

    The agent may not read pods: a token that may list them would show a thief what runs on every node. The kubelet
    calls the folder of a pod's logs NAMESPACE_NAME_UID (kubernetes v1.36.3 pkg/kubelet/kuberuntime/helpers.go,
    BuildPodLogsDirectory), and only the names of these folders are read.
    """
    known: dict[str, PodID] = {}
    listed_at = -PAUSE

    def find(uid: str) -> PodID:
        nonlocal known, listed_at
        if uid not in known and clock() - listed_at >= PAUSE:
            known = {uid: PodID(uid, namespace, name) for namespace, name, uid in _folders(logs)}
            listed_at = clock()
        return known.get(uid) or PodID(uid)

    return find


def pod_uids(logs: Path) -> Mapping[tuple[str, str], str]:
    """Return the UIDs of this node's pods by namespace and name, without those of which several have had one name."""
    folders = _folders(logs)
    often = Counter((namespace, name) for namespace, name, _ in folders)
    return {(namespace, name): uid for namespace, name, uid in folders if often[namespace, name] == 1}


def _folders(logs: Path) -> list[list[str]]:
    with suppress(OSError):
        # Kubernetes names are ASCII. A name that is not even UTF-8 comes with surrogates, which no label can hold.
        return [folder.split("_") for folder in os.listdir(logs) if folder.isascii() and folder.count("_") == 2]
    return []


MPS_SERVER, MPS_CONTROL = "nvidia-cuda-mps-server", "nvidia-cuda-mps-control"
_COMM = 15  # TASK_COMM_LEN without the terminating null
_CUT = "…"
_DAEMONS = (MPS_SERVER, MPS_CONTROL)
_PROGRAMS = {*_DAEMONS, *(daemon[:_COMM] + _CUT for daemon in _DAEMONS)}
_PARENT, _START_TIME = 1, 19  # fields 4 and 22 of `stat` (proc(5)), after the name
_MOST = 1 << 16  # bytes of a file; a cgroup's path has at most 4096, on each of a dozen hierarchies
_MOST_OPEN = 256  # files that stay open; the `stat` of any further process is opened at each reading
_GONE = " (deleted)"
_POD = re.compile(r"[/-]pod([0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12}|[0-9a-f]{32})(?=[./\n]|$)")
"""The kubelet's cgroup of a pod: `/pod<uid>`, or `-pod<uid>.slice` with `_` for `-` under systemd.

kubernetes v1.36.3 pkg/kubelet/cm/cgroup_manager_linux.go names them. A static pod's uid is a plain MD5."""


@value
class _Known:
    """What procfs showed of a process when it was last read in full."""

    stat: tuple[bytes, ...]
    """Id with `comm`, parent, and start in clock ticks since the boot; empty if procfs does not show them."""
    program: str
    pod: str | None
    """UID of the pod whose cgroup the process is in; None if it is in no pod."""
    reported_name: str = ""
    """The name that NVML reported, without path and arguments."""


class Processes:
    """Finds processes by the process id that NVML reports.

    The id must mean the same to procfs: the agent's pod needs hostPID. The name that NVML reports is the first word of
    the command line, which every process may choose. Whether a process is one of NVIDIA's MPS daemons, which an idle
    GPU may have, is decided only by its executable and its parent. Without the right to read an executable
    (CAP_SYS_PTRACE), `comm` is used instead, which the kernel takes from the executable and cuts to 15 bytes (proc(5)).

    For an unchanged process only `stat` is read again, from a file that stays open, and NVML is not queried again for a
    name that is only displayed. Another program in its place (execve) has another `comm`. A process in no pod may still
    be moved into one, so its cgroup is read each time. A possible MPS daemon matters to drains, so `of` reads its
    program and its parent each time.
    """

    def __init__(
        self, proc: Path = Path("/proc"), own_pid: int | None = None, pod_named: Callable[[str], PodID] = PodID
    ) -> None:
        self._proc = str(proc)
        self._pod_named = pod_named
        self._seen: dict[int, _Known] = {}
        self._before: dict[int, _Known] = {}
        self._open: dict[int, int] = {}
        """File descriptor of the open `stat` of each process, by its id."""
        self.blind = (os.getpid() if own_pid is None else own_pid) == 1
        """Whether the agent has a PID namespace of its own: the driver lists no others, and no id can be trusted."""

    def begin(self) -> None:
        """Begin a new reading: forget the processes that were not in the last one, and close their files."""
        self._before, self._seen = self._seen, {}
        for pid in self._open.keys() - self._before.keys():
            os.close(self._open.pop(pid))

    def __del__(self) -> None:
        for file in self._open.values():
            os.close(file)

    def of(self, pid: int, device: str = "", ask: Callable[[int], str] = lambda pid: "") -> Process:
        """Return the process, or UNKNOWN_PROCESS if no id can be trusted. `ask` returns the name that NVML reports."""
        if pid <= 0 or self.blind:
            return Process(UNKNOWN_PROCESS.pid, UNKNOWN_PROCESS.name, device)
        return Process(pid, self._name(pid, ask), device)

    def pod_of(self, pid: int) -> PodID | None:
        """Return the pod of a process; None if it is in none, has ended, or its cgroup cannot be read."""
        uid = (self._seen.get(pid) or self._examine(pid)).pod
        return None if uid is None else self._pod_named(uid)

    def _examine(self, pid: int) -> _Known:
        head, _, tail = self._stat(pid).rpartition(b")")
        fields = tail.split(None, _START_TIME + 1)
        stat = (head, fields[_PARENT], fields[_START_TIME]) if len(fields) > _START_TIME else ()
        known = self._seen.get(pid) or self._before.get(pid)
        if known is None or not stat or known.stat != stat:
            known = _Known(stat, self._program(pid), self._pod(pid))
        elif known.pod is None:
            known = replace(known, pod=self._pod(pid))
        self._seen[pid] = known
        return known

    def _name(self, pid: int, ask: Callable[[int], str]) -> str:
        known = self._examine(pid)
        if not known.reported_name and (reported := _first_word(ask(pid))):
            self._seen[pid] = known = replace(known, reported_name=reported)
        reported, program = known.reported_name, known.program
        if reported not in _DAEMONS and program not in _PROGRAMS:
            return reported or program
        program = self._program(pid)
        # The name in parentheses may contain anything, so only what follows the last parenthesis is parsed.
        after = self._read(pid, "stat").rpartition(b")")[2].split()
        parent_pid = int(after[_PARENT]) if len(after) > _PARENT and after[_PARENT].isdigit() else 0
        parent = self._program(parent_pid)
        named = reported or program
        daemon = next((name for name in _DAEMONS if _is(program, name, named)), "")
        if daemon == MPS_CONTROL or (daemon and _is(parent, MPS_CONTROL, MPS_CONTROL)):
            return daemon
        if named not in _DAEMONS:
            return named
        return f"{named} (program {program or 'unknown'}, started by {parent or 'an unknown process'})"

    def _program(self, pid: int) -> str:
        """Return the name of the executable, or else `comm`, followed by _CUT if it may have been cut."""
        try:
            path = os.readlink(f"{self._proc}/{pid}/exe")
        except OSError:
            name = self._read(pid, "comm").decode(errors="replace").strip()  # JSON cannot carry other bytes
            return name + _CUT if len(name) >= _COMM else name
        return PurePosixPath(os.fsencode(path).decode(errors="replace").removesuffix(_GONE)).name

    def _pod(self, pid: int) -> str | None:
        match = _POD.search(self._read(pid, "cgroup").decode(errors="replace"))
        return match[1].replace("_", "-") if match else None

    def _stat(self, pid: int) -> bytes:
        # If the process of an open file has ended, a new process may have the same id.
        if (known := self._open.get(pid)) is not None:
            if stat := _contents(known):
                return stat
            os.close(self._open.pop(pid))
        return self._read(pid, "stat", keep=len(self._open) < _MOST_OPEN)

    def _read(self, pid: int, name: str, *, keep: bool = False) -> bytes:
        """Return a file of procfs, empty if it cannot be read; with `keep` it stays open as the process's `stat`."""
        try:
            file = os.open(f"{self._proc}/{pid}/{name}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return b""
        content = _contents(file)
        if content and keep:
            self._open[pid] = file
        else:
            os.close(file)
        return content


def _contents(file: int) -> bytes:
    try:
        return os.pread(file, _MOST, 0)
    except OSError:
        return b""  # for example because the process has ended (ESRCH)


def _is(program: str, daemon: str, named: str) -> bool:
    # Cut to 15 bytes, both daemons have the same name; then the name that the process has given itself decides.
    return program == daemon or (program == daemon[:_COMM] + _CUT and named == daemon)


def _first_word(reported: str) -> str:
    # NVML reports [Not Found] in a foreign PID namespace.
    words = reported.split(maxsplit=1)
    return PurePosixPath(words[0]).name if words and not words[0].startswith("[") else ""
