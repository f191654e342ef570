"""hack/cluster/process.py and state.py: programs are found, stopped and swept by recorded pid, and no others.
tests/integration/nursery.py too kills only operators of its own."""

import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hack.cluster import process, state
from hack.cluster.controlplane import ControlPlane, Options
from hack.cluster.process import Component, ComponentError, text_of, wait_until
from hack.cluster.state import ClusterState
from hack.generate import ROOT
from tests.integration.nursery import Nursery, freeze

WAIT = "import time; print('up', flush=True); time.sleep(600)"
SLEEP = (sys.executable, "-c", WAIT)
STUBBORN = (sys.executable, "-c", f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {WAIT}")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "run-1"
    made.mkdir()
    return made


@pytest.fixture
def sleeper(folder: Path) -> Iterator[Component]:
    """A program with its folder in the command line, as every program of a control plane has."""
    component = process.start("sleeper", [*SLEEP, f"--data={folder}"], folder / "sleeper.log")
    wait_until(lambda: "up" in component.log.read_text(), 60, "the sleeper")
    yield component
    component.stop()


def a_dead_pid() -> int:
    gone = subprocess.Popen([sys.executable, "-c", "pass"])
    gone.wait()
    return gone.pid


def test_a_program_that_ended_is_reported_with_its_last_lines(tmp_path: Path) -> None:
    script = "print('first'); print('cannot bind'); raise SystemExit(3)"
    component = process.start("etcd", [sys.executable, "-c", script], tmp_path / "etcd.log")
    wait_until(lambda: not component.alive(), 60, "the program to end")
    with pytest.raises(ComponentError, match=r"etcd ended with status 3(.|\n)*cannot bind"):
        component.check()
    component.stop()


def test_a_program_that_ignores_term_is_killed(tmp_path: Path) -> None:
    component = process.start("stubborn", STUBBORN, tmp_path / "log")
    wait_until(lambda: "up" in component.log.read_text(), 60, "the program")
    component.stop(patience=0.2)
    assert not process.pid_exists(component.pid)


@pytest.mark.parametrize("kill", [False, True])
def test_a_program_that_is_stopped_leaves_no_children_behind(kill: bool, tmp_path: Path) -> None:
    leave = f"import subprocess; print(subprocess.Popen({list(STUBBORN)!r}).pid, flush=True); {WAIT}"
    component = process.start("parent", [sys.executable, "-c", leave], tmp_path / "log")
    wait_until(lambda: component.log.read_text().count("up") == 2, 60, "parent and child")
    child = int(next(line for line in component.log.read_text().split() if line.isdecimal()))
    component.stop(kill=kill)
    wait_until(lambda: not process.pid_exists(child), 60, "the child")


def test_another_command_finds_and_stops_what_is_recorded(folder: Path, sleeper: Component) -> None:
    ClusterState(None, "https://127.0.0.1:1", {"sleeper": sleeper.pid}).write(folder)
    assert [component.name for component in state.running(folder)] == ["sleeper"]
    assert state.stop_recorded(folder) == ["sleeper"]
    assert not sleeper.alive()
    assert state.stop_recorded(folder) == []


def test_a_recorded_pid_that_now_belongs_to_another_program_is_left_alone(folder: Path, sleeper: Component) -> None:
    elsewhere = folder.parent / "run-2"
    elsewhere.mkdir()
    ClusterState(None, pids={"etcd": sleeper.pid}).write(elsewhere)
    assert state.stop_recorded(elsewhere) == []
    assert sleeper.alive()


@pytest.mark.parametrize(
    ("owner", "host", "kept"),
    [
        pytest.param(os.getppid, platform.node(), True, id="its owner lives: kept"),
        pytest.param(lambda: None, platform.node(), True, id="made to outlive its owner: kept"),
        pytest.param(a_dead_pid, "elsewhere", True, id="of another machine: kept"),
        pytest.param(a_dead_pid, platform.node(), False, id="its owner is gone: swept"),
    ],
)
def test_a_control_plane_is_swept_only_when_its_owner_is_gone(
    folder: Path, sleeper: Component, owner: Callable[[], int | None], host: str, kept: bool
) -> None:
    ClusterState(owner(), pids={"sleeper": sleeper.pid}, host=host).write(folder)
    state.sweep(folder.parent)
    assert sleeper.alive() is kept
    assert folder.exists() is kept


def test_a_port_that_another_program_took_meanwhile_means_another_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assets = tmp_path / "assets"
    assets.mkdir()
    taken = f"echo etcd >> {tmp_path}/starts; echo bind: address already in use"
    for name in ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl"):
        (assets / name).write_text(f"#!/bin/sh\n{taken if name == 'etcd' else 'exec sleep 600'}\n")
        (assets / name).chmod(0o755)
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(assets))
    plane = ControlPlane(tmp_path / "state", Options(kwok=False))
    with pytest.raises(ComponentError, match="address already in use"):
        plane.start()
    assert (tmp_path / "starts").read_text().split().count("etcd") == 3
    assert plane.pids() == {}
    shutil.rmtree(tmp_path / "state")


def test_free_ports_are_distinct_and_the_system_gives_them_to_nobody_by_itself() -> None:
    ports = process.free_ports(20)
    assert len(set(ports)) == 20
    with socket.create_server(("127.0.0.1", 0)) as given:
        assert max(ports) < given.getsockname()[1] or sys.platform != "linux"


def test_the_end_of_a_group_ends_the_children_that_its_leader_left_behind(tmp_path: Path) -> None:
    told = tmp_path / "pid"
    leave = f"import subprocess; open({str(told)!r}, 'w').write(str(subprocess.Popen({list(SLEEP)!r}).pid))"
    leader = subprocess.Popen([sys.executable, "-c", leave], start_new_session=True)
    leader.wait(60)
    child = int(told.read_text())
    assert process.pid_exists(child)
    process.end_group(leader)
    wait_until(lambda: not process.pid_exists(child), 60, "the child")


def test_a_program_that_has_the_pid_of_one_that_ended_is_left_alone() -> None:
    ended = subprocess.Popen([sys.executable, "-c", "pass"], start_new_session=True)
    ended.wait(60)
    other = subprocess.Popen(SLEEP, start_new_session=True, stdout=subprocess.DEVNULL)
    try:
        ended.pid = other.pid  # what the system does when it has counted once around
        process.end_group(ended)
        with pytest.raises(subprocess.TimeoutExpired):
            other.wait(0.2)
    finally:
        process.end_group(other)
        other.wait(60)


def test_a_run_of_tests_sweeps_at_its_end_what_a_worker_of_it_left(folder: Path, sleeper: Component) -> None:
    ClusterState(a_dead_pid(), pids={"sleeper": sleeper.pid}).write(folder)
    command = [sys.executable, "-m", "pytest", "-q", "--collect-only", "tests/test_citations.py"]
    run = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"GPUSHARING_STATE": str(folder.parent)}, capture_output=True, check=False
    )
    assert run.returncode == 0, run.stdout
    assert not sleeper.alive()
    assert not folder.exists()


def test_what_a_test_starts_hears_ctrl_c_even_where_a_script_has_started_the_tests_with_an_ampersand() -> None:
    asleep = subprocess.Popen(["sleep", "1000"])
    asleep.send_signal(signal.SIGINT)
    try:
        assert asleep.wait(30) == -signal.SIGINT
    finally:
        asleep.kill()


def test_the_pid_of_an_operator_that_ended_is_kept_until_it_was_waited_for(tmp_path: Path) -> None:
    log = tmp_path / "operator.log"
    with Nursery() as nursery:
        pid = nursery.start({"GPUSHARING_LOG_LEVEL": "loud"}, log)  # no level: it ends at once
        wait_until(lambda: "LOG_LEVEL" in text_of(log), 60, "its complaint")
        nursery.strike(pid)
        os.kill(pid, 0)  # nobody else can have it
        nursery.wait(pid)
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
        nursery.kill(pid)
        with pytest.raises(ValueError, match=f"{pid} is not an operator of ours"):
            nursery.strike(pid)


def test_who_has_ended_by_itself_is_noticed_and_signalled_no_more(tmp_path: Path) -> None:
    with Nursery() as nursery:
        pid = nursery.start({"GPUSHARING_LOG_LEVEL": "loud"}, tmp_path / "operator.log")
        wait_until(lambda: nursery.has_ended(pid), 60, "its end")
        assert nursery.has_ended(pid)
        with pytest.raises(ValueError, match=f"{pid} is not an operator of ours"):
            nursery.freeze(pid)


@pytest.mark.parametrize(
    ("work", "waits"),
    [("await asyncio.sleep(60)", True), ("while True:\n        pass", False), ("time.sleep(60)", False)],
    ids=["at rest", "computing", "in another system call"],
)
def test_who_is_frozen_is_told_from_one_that_has_something_in_hand(work: str, waits: bool) -> None:
    program = f"""
import asyncio, time
async def main():
    print("at work", flush=True)
    {work}
asyncio.run(main())
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "at work\n"
        try:
            wait_until(lambda: told(process) is waits, 30, "what it says of its work")
        finally:
            process.kill()


def told(process: subprocess.Popen[str]) -> bool:
    found = freeze(process.pid)
    process.send_signal(signal.SIGCONT)
    return found
