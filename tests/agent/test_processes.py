"""Who a process is, as far as procfs tells (agent/processes.py)."""

import os
import subprocess
import tracemalloc
from pathlib import Path
from shutil import rmtree

import pytest
from tests.wording import lacks

from gpusharing.agent.library import PodID, Process
from gpusharing.agent.processes import MPS_CONTROL, MPS_SERVER, Processes, pod_names

SERVER, CONTROL = 42, 41


class Proc:
    def __init__(self, root: Path) -> None:
        self.root = root

    def start(
        self, pid: int, program: str, parent: int = 1, *, exe: bool = True, comm: str = "", began: int | None = None
    ) -> None:
        """A process; without `exe` its executable may not be looked at, `comm` is what it calls itself since, `began` when that was, in clock ticks; None: procfs does not tell."""
        folder = self.root / str(pid)
        if folder.exists():
            self.end(pid)
        folder.mkdir()
        if exe:
            (folder / "exe").symlink_to(program)
        name = comm or Path(program).name[:15]
        (folder / "comm").write_text(f"{name}\n")
        rest = "1 1 0 -1" if began is None else f"{'0 ' * 17}{began} 0 0"
        (folder / "stat").write_text(f"{pid} ({name}) ) S {parent} {rest}\n")

    def end(self, pid: int) -> None:
        """The process ends. An open file of procfs says nothing any more then, which a plain one does when it is emptied."""
        (self.root / str(pid) / "stat").write_text("")
        rmtree(self.root / str(pid))

    def place(self, pid: int, uid: str) -> None:
        (self.root / str(pid) / "cgroup").write_text(f"0::/kubepods/pod{uid}/{CONTAINER}\n")

    def name(self, pid: int, reported: str) -> str:
        return Processes(self.root).of(pid, ask=lambda _: reported).name


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


@pytest.mark.parametrize("exe", [True, False], ids=["its executable can be seen", "only comm can be read"])
def test_a_name_that_is_not_utf_8_can_be_sent_and_comes_back_the_same(proc: Proc, exe: bool) -> None:
    """The API server would store U+FFFD for a lone surrogate, and the agent would send the name again for ever."""
    proc.start(SERVER, os.fsdecode(b"/usr/bin/tr\xe4in"), exe=exe, comm="train")
    (proc.root / str(SERVER) / "comm").write_bytes(b"tr\xe4in\n")
    assert proc.name(SERVER, "") == "tr\N{REPLACEMENT CHARACTER}in"


def test_a_process_that_nobody_knows_has_no_name(proc: Proc) -> None:
    assert (proc.name(43, ""), proc.name(0, "python3")) == ("", "")


@pytest.mark.parametrize("exe", [True, False], ids=["its executable can be seen", "only comm can be read"])
def test_the_mps_server_is_known_by_its_program_and_its_parent(proc: Proc, exe: bool) -> None:
    proc.start(CONTROL, f"/usr/bin/{MPS_CONTROL}", exe=exe)
    proc.start(SERVER, f"/usr/bin/{MPS_SERVER}", CONTROL, exe=exe)
    assert proc.name(SERVER, MPS_SERVER) == MPS_SERVER
    assert proc.name(CONTROL, f"/usr/bin/{MPS_CONTROL} -d") == MPS_CONTROL


BY_CONTROL = f"/usr/bin/{MPS_CONTROL}"
FAKED = f"{MPS_SERVER} (program python3.11, started by {MPS_CONTROL})"
COPIED = f"{MPS_SERVER} (program {MPS_SERVER}, started by bash)"
STARTED: dict[str, tuple[str, str, str, str]] = {
    "its image was replaced": (
        f"/usr/bin/{MPS_SERVER} (deleted)",
        f"{BY_CONTROL} (deleted)",
        "[Not Found]",
        MPS_SERVER,
    ),
    "it calls itself otherwise": (f"/usr/bin/{MPS_SERVER}", BY_CONTROL, "/usr/bin/python3", MPS_SERVER),
    "another one calls itself so": ("/usr/bin/python3.11", BY_CONTROL, f"{MPS_SERVER} --fake", FAKED),
    "a copy that somebody else started": (f"/tmp/{MPS_SERVER}", "/usr/bin/bash", MPS_SERVER, COPIED),
    "a copy without a name": (f"/tmp/{MPS_SERVER}", "/usr/bin/bash", "", COPIED),
}


@pytest.mark.parametrize(("program", "parent", "reported", "name"), STARTED.values(), ids=STARTED)
def test_only_the_program_that_its_daemon_started_is_the_mps_server(
    proc: Proc, program: str, parent: str, reported: str, name: str
) -> None:
    proc.start(CONTROL, parent)
    proc.start(SERVER, program, CONTROL)
    assert proc.name(SERVER, reported) == name


def test_a_process_whose_thread_name_is_that_of_the_mps_server_is_busy(proc: Proc) -> None:
    proc.start(SERVER, "/usr/bin/python3.11", CONTROL, comm=MPS_SERVER[:15])
    proc.start(CONTROL, BY_CONTROL)
    assert proc.name(SERVER, "python3") == "python3"


def test_an_mps_server_of_which_procfs_tells_nothing_is_busy(proc: Proc) -> None:
    assert not lacks(proc.name(SERVER, MPS_SERVER), MPS_SERVER, "unknown")


def test_a_parent_that_procfs_does_not_tell_is_no_proof(proc: Proc) -> None:
    proc.start(SERVER, f"/usr/bin/{MPS_SERVER}", CONTROL)
    (proc.root / str(SERVER) / "stat").write_text("42 (nvidia-cuda-mps")
    assert proc.name(SERVER, MPS_SERVER) != MPS_SERVER


def test_alone_in_its_own_pid_namespace_the_agent_knows_nobody(proc: Proc) -> None:
    proc.start(SERVER, "/usr/bin/python3.11")
    blind = Processes(proc.root, own_pid=1)
    assert (blind.blind, Processes(proc.root).blind) == (True, False)
    assert blind.of(SERVER, "MIG-1", lambda _: "python3") == Process(0, "", "MIG-1")


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


def test_of_a_file_that_is_far_too_large_the_first_64_kib_are_read(proc: Proc) -> None:
    proc.start(SERVER, "/usr/bin/python3")
    (proc.root / str(SERVER) / "cgroup").write_text(f"{'x' * 65536}/kubepods/pod{UID}\n")
    assert Processes(proc.root).pod_of(SERVER) is None


def test_however_many_processes_use_the_gpus_256_files_stay_open_for_them(proc: Proc) -> None:
    processes, before = Processes(proc.root), len(os.listdir("/proc/self/fd"))
    for pid in range(1000, 1300):
        proc.start(pid, "/usr/bin/python3")
        assert processes.of(pid).name == "python3"
    assert len(os.listdir("/proc/self/fd")) - before == 256


def test_a_process_that_has_ended_is_in_no_pod(proc: Proc) -> None:
    assert Processes(proc.root).pod_of(SERVER) is None


class Readings:
    def __init__(self, proc: Proc) -> None:
        self._processes = Processes(proc.root)

    def tell(self, pid: int, reported: str = "") -> tuple[str, str]:
        self._processes.begin()
        name, pod = self._processes.of(pid, ask=lambda _: reported).name, self._processes.pod_of(pid)
        return name, pod.uid if pod else ""


def known(proc: Proc) -> Readings:
    """Who SERVER is has been read once."""
    readings = Readings(proc)
    proc.start(SERVER, "/usr/bin/python3", began=7)
    proc.place(SERVER, UID)
    assert readings.tell(SERVER) == ("python3", UID)
    return readings


def test_a_process_that_is_still_the_same_is_looked_at_once(proc: Proc) -> None:
    readings = known(proc)
    for file in ("exe", "comm", "cgroup"):
        (proc.root / str(SERVER) / file).unlink()
    assert readings.tell(SERVER) == ("python3", UID)
    assert readings.tell(SERVER, "[Not Found]") == ("python3", UID), "asked again until NVML tells"
    assert readings.tell(SERVER, "/opt/train.py --lr 1") == ("train.py", UID)
    assert readings.tell(SERVER, "/opt/another.py") == ("train.py", UID), "and then no more"
    proc.start(SERVER, "/usr/bin/python3", began=8)
    assert readings.tell(SERVER, "/opt/another.py")[0] == "another.py"


def test_the_file_that_stays_open_tells_of_a_process_and_is_not_opened_again(proc: Proc) -> None:
    readings = known(proc)
    for file in ("stat", "exe", "comm", "cgroup"):
        (proc.root / str(SERVER) / file).unlink()
    assert readings.tell(SERVER) == ("python3", UID)


@pytest.mark.parametrize(
    ("began", "comm", "parent"),
    [(8, "python3", 1), (7, "julia", 1), (7, "python3", 2)],
    ids=["another process with its number", "another program in its place", "its parent has ended"],
)
def test_a_process_that_is_no_longer_the_same_is_looked_at_anew(proc: Proc, began: int, comm: str, parent: int) -> None:
    readings = known(proc)
    proc.start(SERVER, "/usr/bin/julia", parent, comm=comm, began=began)
    proc.place(SERVER, OTHER_UID)
    assert readings.tell(SERVER) == ("julia", OTHER_UID)


def test_without_its_time_of_birth_a_process_is_looked_at_each_time(proc: Proc) -> None:
    readings = Readings(proc)
    for program, uid in (("python3", UID), ("julia", OTHER_UID)):
        proc.start(SERVER, f"/usr/bin/{program}", comm="same")
        proc.place(SERVER, uid)
        assert readings.tell(SERVER) == (program, uid)


def test_a_process_that_ends_is_in_no_pod_any_more(proc: Proc) -> None:
    readings = known(proc)
    proc.end(SERVER)
    assert readings.tell(SERVER) == ("", "")


def test_a_process_that_is_moved_into_a_pod_is_found_there(proc: Proc) -> None:
    readings = Readings(proc)
    proc.start(SERVER, "/usr/bin/python3", began=7)
    assert readings.tell(SERVER) == ("python3", "")
    proc.place(SERVER, UID)
    assert readings.tell(SERVER) == ("python3", UID)


def test_that_a_process_is_an_mps_daemon_is_asked_each_time(proc: Proc) -> None:
    readings = Readings(proc)
    proc.start(CONTROL, f"/usr/bin/{MPS_CONTROL}", began=1)
    proc.start(SERVER, f"/usr/bin/{MPS_SERVER}", CONTROL, comm="same", began=7)
    assert readings.tell(SERVER, MPS_SERVER)[0] == MPS_SERVER
    proc.start(SERVER, "/usr/bin/bash", CONTROL, comm="same", began=7)
    assert readings.tell(SERVER, MPS_SERVER)[0] == (f"{MPS_SERVER} (program bash, started by {MPS_CONTROL})")


def test_who_is_not_seen_is_forgotten(proc: Proc) -> None:
    processes = Processes(proc.root)
    tracemalloc.start()
    try:
        for number in range(1000):
            processes.begin()
            processes.of(1_000_000 + number)
            if number == 10:
                before = tracemalloc.get_traced_memory()[0]
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert grown < 16 * 1024, "one of them takes 300 bytes and more"


def test_the_folders_of_the_pods_logs_name_them(tmp_path: Path) -> None:
    clock = [1000.0]
    names = pod_names(tmp_path, lambda: clock[0])
    assert names(UID) == PodID(UID)
    (tmp_path / f"team-a_train-0_{UID}").mkdir()
    (tmp_path / "not-a-pod").mkdir()
    clock[0] += 4.5
    assert names(UID) == PodID(UID), "one reading asks for every process, and lists the folders once"
    clock[0] += 0.5
    assert names(UID) == PodID(UID, "team-a", "train-0")
    (tmp_path / f"team-a_train-0_{UID}").rmdir()
    clock[0] += 5.0
    assert names(UID).name == "train-0", "it was known, and the folder is not looked at again for it"
    assert names(OTHER_UID) == PodID(OTHER_UID)
    assert names(UID) == PodID(UID), "what is gone is forgotten at the next list"


def test_a_folder_whose_name_is_no_text_names_no_pod(tmp_path: Path) -> None:
    os.mkdir(os.fsencode(tmp_path) + b"/team-\xff_train-0_" + UID.encode())
    assert pod_names(tmp_path)(UID) == PodID(UID), "Prometheus's labels are UTF-8, or there are no metrics at all"


def test_without_the_folders_a_pod_is_known_by_its_uid_only(tmp_path: Path) -> None:
    assert pod_names(tmp_path / "absent")(UID) == PodID(UID)


# --- files that stay open, on this machine's procfs -------------------------------------------------------------


def test_an_open_file_of_a_process_that_has_ended_says_nothing_and_is_closed() -> None:
    processes = Processes()
    before = set(os.listdir("/proc/self/fd"))
    with subprocess.Popen(["sleep", "infinity"]) as running:
        for _ in range(3):
            processes.begin()
            assert processes.of(running.pid).name == "sleep"
        assert len(set(os.listdir("/proc/self/fd")) - before) == 1, "one file, however often it is read"
        running.kill()
    processes.begin()
    assert processes.of(running.pid).name == ""
    assert set(os.listdir("/proc/self/fd")) == before


def test_files_of_processes_that_use_no_gpu_any_more_are_closed() -> None:
    processes = Processes()
    before = set(os.listdir("/proc/self/fd"))
    processes.of(os.getpid())
    assert len(set(os.listdir("/proc/self/fd")) - before) == 1
    processes.begin()
    processes.begin()
    assert set(os.listdir("/proc/self/fd")) == before
    processes.of(os.getpid())
    del processes
    assert set(os.listdir("/proc/self/fd")) == before
