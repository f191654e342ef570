"""Who a process is, as far as procfs tells (agent/processes.py)."""

import os
from pathlib import Path

import pytest

from gpusharing.agent.library import PodID, Process
from gpusharing.agent.podnames import PAUSE, PodNames
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


UID = "0f3c1de2-54a1-4f6c-9a0e-3b1f2c4d5e6f"
OTHER_UID = "11111111-2222-3333-4444-555555555555"
STATIC_UID = "0123456789abcdef0123456789abcdef"
CONTAINER = "a" * 64
SYSTEMD = UID.replace("-", "_")


@pytest.mark.parametrize(
    ("cgroup", "uid"),
    [
        (f"0::/kubepods.slice/kubepods-pod{SYSTEMD}.slice/cri-containerd-{CONTAINER}.scope", UID),
        (f"0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{SYSTEMD}.slice/crio-{CONTAINER}", UID),
        (f"0::/kubepods/besteffort/pod{UID}/{CONTAINER}", UID),
        (f"12:memory:/kubepods/pod{UID}/{CONTAINER}\n1:name=systemd:/kubepods/pod{UID}/{CONTAINER}", UID),
        (f"0::/kubepods/pod{STATIC_UID}/{CONTAINER}", STATIC_UID),
        (f"0::/../../kubepods-pod{SYSTEMD}.slice/cri-containerd-{CONTAINER}.scope", UID),
        (f"0::/kubepods/pod{UID}", UID),
        (f"0::/kubepods/pod{UID}/{CONTAINER}/pod{OTHER_UID}", UID),
        ("0::/system.slice/nvidia-persistenced.service", None),
        (f"0::/user.slice/podman-{CONTAINER}.scope", None),
        ("0::/", None),
    ],
    ids=[
        "systemd, guaranteed", "systemd, burstable, CRI-O", "cgroupfs, best effort", "cgroup v1", "a static pod",
        "seen from another cgroup namespace", "the pod's own cgroup", "a pod that calls a cgroup of its own a pod",
        "a daemon of the host", "a container of podman's", "no cgroup at all",
    ],
)  # fmt: skip
def test_the_cgroup_tells_the_pod_of_a_process(proc: Proc, cgroup: str, uid: str | None) -> None:
    proc.start(SERVER, "/usr/bin/python3")
    (proc.root / str(SERVER) / "cgroup").write_text(cgroup + "\n")
    pod = Processes(proc.root).pod_of(SERVER)
    assert pod == (PodID(uid) if uid else None)


def test_a_process_that_has_ended_is_in_no_pod(proc: Proc) -> None:
    assert Processes(proc.root).pod_of(SERVER) is None


def test_the_folders_of_the_pods_logs_name_them(tmp_path: Path) -> None:
    clock = [1000.0]
    names = PodNames(tmp_path, lambda: clock[0])
    assert names.of(UID) == PodID(UID)
    (tmp_path / f"team-a_train-0_{UID}").mkdir()
    (tmp_path / "not-a-pod").mkdir()
    clock[0] += PAUSE / 2
    assert names.of(UID) == PodID(UID), "one reading asks for every process, and lists the folders once"
    clock[0] += PAUSE
    assert names.of(UID) == PodID(UID, "team-a", "train-0")
    (tmp_path / f"team-a_train-0_{UID}").rmdir()
    clock[0] += PAUSE
    assert names.of(UID).name == "train-0", "it was known, and the folder is not looked at again for it"
    assert names.of(OTHER_UID) == PodID(OTHER_UID)
    assert names.of(UID) == PodID(UID), "what is gone is forgotten at the next list"


def test_a_folder_whose_name_is_no_text_names_no_pod(tmp_path: Path) -> None:
    os.mkdir(os.fsencode(tmp_path) + b"/team-\xff_train-0_" + UID.encode())
    assert PodNames(tmp_path).of(UID) == PodID(UID), (
        "Prometheus's labels are UTF-8, or there are no metrics at all"
    )


def test_without_the_folders_a_pod_is_known_by_its_uid_only(tmp_path: Path) -> None:
    assert PodNames(None).of(UID) == PodNames(tmp_path / "absent").of(UID) == PodID(UID)
