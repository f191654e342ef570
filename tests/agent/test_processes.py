"""Who a process is, as far as procfs tells (agent/processes.py)."""

from pathlib import Path

import pytest

from gpusharing.agent.library import Process
from gpusharing.agent.processes import MPS_CONTROL, MPS_SERVER, Processes

SERVER, CONTROL, SHELL = 42, 41, 40


class Proc:
    """A procfs of our own."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def start(self, pid: int, program: str, parent: int = 1, *, exe: bool = True, comm: str = "") -> None:
        """A process; without `exe` its executable may not be looked at, `comm` is what it calls itself since."""
        folder = self.root / str(pid)
        folder.mkdir()
        if exe:
            (folder / "exe").symlink_to(program)
        name = comm or Path(program).name[:15]
        (folder / "comm").write_text(f"{name}\n")
        (folder / "stat").write_text(f"{pid} ({name}) ) S {parent} 1 1 0 -1\n")

    def name(self, pid: int, reported: str) -> str:
        """What the agent calls it."""
        return Processes(self.root).of(pid, reported).name


@pytest.fixture
def proc(tmp_path: Path) -> Proc:
    return Proc(tmp_path)


@pytest.mark.parametrize(
    ("reported", "name"),
    [
        ("/usr/bin/python3 train.py", "python3"),
        ("[Not Found]", "python3.11"),
        ("", "python3.11"),
        ("  ", "python3.11"),
    ],
    ids=["path and arguments", "NVML in a foreign PID namespace", "nothing", "blanks"],
)
def test_a_process_is_named_by_nvml_or_procfs(proc: Proc, reported: str, name: str) -> None:
    proc.start(SERVER, "/usr/bin/python3.11")
    assert proc.name(SERVER, reported) == name


def test_a_process_that_nobody_knows_has_no_name(proc: Proc) -> None:
    assert (proc.name(43, ""), proc.name(0, "python3")) == ("", "")


@pytest.mark.parametrize("exe", [True, False], ids=["its executable can be seen", "only comm can be read"])
def test_the_mps_server_is_known_by_its_program_and_its_parent(proc: Proc, exe: bool) -> None:
    proc.start(CONTROL, f"/usr/bin/{MPS_CONTROL}", exe=exe)
    proc.start(SERVER, f"/usr/bin/{MPS_SERVER}", CONTROL, exe=exe)
    assert proc.name(SERVER, MPS_SERVER) == MPS_SERVER
    assert proc.name(CONTROL, f"/usr/bin/{MPS_CONTROL} -d") == MPS_CONTROL


def test_the_mps_server_is_known_after_its_image_was_replaced(proc: Proc) -> None:
    proc.start(CONTROL, f"/usr/bin/{MPS_CONTROL} (deleted)")
    proc.start(SERVER, f"/usr/bin/{MPS_SERVER} (deleted)", CONTROL)
    assert proc.name(SERVER, "[Not Found]") == MPS_SERVER


def test_a_process_that_calls_itself_mps_server_is_busy(proc: Proc) -> None:
    proc.start(CONTROL, f"/usr/bin/{MPS_CONTROL}")
    proc.start(SERVER, "/usr/bin/python3.11", CONTROL)
    assert proc.name(SERVER, f"{MPS_SERVER} --fake") == (
        "nvidia-cuda-mps-server (program python3.11, started by nvidia-cuda-mps-control)"
    )


def test_a_process_whose_thread_name_is_that_of_the_mps_server_is_busy(proc: Proc) -> None:
    proc.start(SERVER, "/usr/bin/python3.11", CONTROL, comm=MPS_SERVER[:15])
    proc.start(CONTROL, f"/usr/bin/{MPS_CONTROL}")
    assert proc.name(SERVER, "python3") == "python3"


def test_a_copy_of_the_server_that_somebody_else_started_is_busy(proc: Proc) -> None:
    proc.start(SHELL, "/usr/bin/bash")
    proc.start(SERVER, f"/tmp/{MPS_SERVER}", SHELL)
    assert proc.name(SERVER, MPS_SERVER) == f"{MPS_SERVER} (program {MPS_SERVER}, started by bash)"
    assert proc.name(SERVER, "") == f"{MPS_SERVER} (program {MPS_SERVER}, started by bash)"


def test_an_mps_server_of_which_procfs_tells_nothing_is_busy(proc: Proc) -> None:
    assert proc.name(SERVER, MPS_SERVER) == f"{MPS_SERVER} (program unknown, started by nobody known)"


def test_a_parent_that_procfs_does_not_tell_is_no_proof(proc: Proc) -> None:
    proc.start(SERVER, f"/usr/bin/{MPS_SERVER}", CONTROL)
    (proc.root / str(SERVER) / "stat").write_text("42 (nvidia-cuda-mps")
    assert proc.name(SERVER, MPS_SERVER) != MPS_SERVER


def test_alone_in_its_own_pid_namespace_the_agent_knows_nobody(proc: Proc) -> None:
    proc.start(SERVER, "/usr/bin/python3.11")
    blind = Processes(proc.root, own_pid=1)
    assert (blind.blind, Processes(proc.root).blind) == (True, False)
    assert blind.of(SERVER, "python3", "MIG-1") == Process(0, "", "MIG-1")
