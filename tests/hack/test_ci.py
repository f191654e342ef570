""".ci/run: which steps run, and which turn it into a failure. `make` and our Python are stand-ins that take notes."""

import os
import shutil
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from hack.cluster.process import pid_exists, text_of, wait_until
from hack.generate import ROOT

NEEDS, SWEEP = "hack.realnode.needs", "hack.realnode.sweep"
E2E = "make e2e"
RUNG2 = "make test WORKERS=logical ARGS=-m 'cluster and not faults and not nvidia and not e2e and not gpu'"
FAULTS = "make test-faults SEED=1"
VERIFY, TOOLS = "hack.verify", "hack.cluster.toolchain"
SECONDS = 60.0
# A stand-in notes how it was called, says what is in the file of its name, and ends with the status in another one;
# where there is a third one, only when it is told to.
STAND_IN = """#!/bin/sh
case $0 in */make) call="make $*" ;; *) call=$2 ;; esac
echo "$call" >>"$NOTES/calls"
cat "$NOTES/$call.says" 2>/dev/null
[ ! -e "$NOTES/$call.stays" ] || { echo $$ >>"$NOTES/stay" && exec sleep 1000; }
exit "$(cat "$NOTES/$call.status" 2>/dev/null || echo 0)"
"""


@dataclass(frozen=True)
class Run:
    """One run, at its end."""

    status: int
    said: str
    calls: list[str]


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    """A folder for what stand-ins say (NAME.says) and end with (NAME.status); a checkout with .ci/run lies beside."""
    made = tmp_path / "notes"
    made.mkdir()
    checkout = tmp_path / "checkout"
    for path in (checkout / ".venv/bin/python", tmp_path / "bin/make"):
        path.parent.mkdir(parents=True)
        path.write_text(STAND_IN)
        path.chmod(0o755)
    (checkout / ".ci").mkdir()
    shutil.copy(ROOT / ".ci/run", checkout / ".ci/run")
    return made


def start(notes: Path, **more: str) -> subprocess.Popen[str]:
    beside = notes.parent
    environ = {**os.environ, "NOTES": str(notes), "PATH": f"{beside / 'bin'}:{os.environ['PATH']}", **more}
    script = str(beside / "checkout/.ci/run")
    return subprocess.Popen([script], env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def calls(notes: Path) -> list[str]:
    return text_of(notes / "calls").splitlines()


def run(notes: Path, **more: str) -> Run:
    with start(notes, **more) as script:
        said, _ = script.communicate(timeout=SECONDS)
    return Run(script.returncode, said, calls(notes))


def test_rung_4_runs_beside_rung_2_and_what_it_leaves_is_swept(notes: Path) -> None:
    done = run(notes)
    assert done.status == 0
    assert set(done.calls[-5:-1]) == {NEEDS, E2E, SWEEP, RUNG2}
    assert [call for call in done.calls if call in (NEEDS, E2E, SWEEP)] == [NEEDS, E2E, SWEEP]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_told_to_end_leaves_nothing_behind(notes: Path, number: signal.Signals) -> None:
    for step in (E2E, RUNG2):
        (notes / f"{step}.stays").touch()
    with start(notes) as script:
        stay = notes / "stay"
        wait_until(lambda: len(text_of(stay).split()) == 2, SECONDS, "both to run")
        script.send_signal(number)
        script.communicate(timeout=SECONDS)
    assert script.returncode != 0
    assert [pid for pid in stay.read_text().split() if pid_exists(int(pid))] == []
    assert calls(notes)[-1] == SWEEP


def test_a_machine_without_kubelets_is_told_loudly_and_goes_without_rung_4(notes: Path) -> None:
    (notes / f"{NEEDS}.says").write_text("a real kubelet needs root")
    done = run(notes)
    assert done.status == 0
    assert "!! RUNG 4 NOT RUN, so this is no full check: a real kubelet needs root\n" in done.said
    assert set(done.calls[-3:-1]) == {NEEDS, RUNG2}


@pytest.mark.parametrize("step", [NEEDS, E2E, SWEEP, VERIFY, "make docs", "make test-nvidia", FAULTS])
def test_a_step_that_fails_lets_the_others_go_on_and_the_run_fail(notes: Path, step: str) -> None:
    (notes / f"{step}.status").write_text("3")
    done = run(notes)
    assert done.status != 0
    assert RUNG2 in done.calls


def test_nodes_that_are_ended_for_their_time_are_swept_and_told(notes: Path) -> None:
    (notes / f"{E2E}.status").write_text("124")
    done = run(notes)
    assert done.status == 124
    assert "!! rung 4 was ended after 35 minutes\n" in done.said
    assert {SWEEP, RUNG2} <= set(done.calls)


def test_faults_are_played_when_nothing_else_runs_and_say_what_came_of_them(notes: Path) -> None:
    (notes / f"{FAULTS}.says").write_text("faults: 150 runs, 0 failures\n")
    done = run(notes)
    assert done.calls[-1] == FAULTS
    assert "faults: 150 runs, 0 failures\n" in done.said


@pytest.mark.parametrize(
    ("begun", "played", "told"),
    [
        ("2600", FAULTS, ""),
        (
            "2700",
            f"{FAULTS} RUNS=50",
            "ONLY 50 OF 150 FAULT RUNS, so this is no full check: all before them took 45 minutes",
        ),
        (
            "4300",
            None,
            "FAULT RUNS NOT PLAYED, so this is no full check: all before them took 71 minutes",
        ),
    ],
)
def test_a_slow_machine_plays_fewer_faults_and_says_so(
    notes: Path, begun: str, played: str | None, told: str
) -> None:
    done = run(notes, SECONDS=begun)  # bash counts on from what it inherits
    assert done.status == 0
    assert [call for call in done.calls if call.startswith(FAULTS)] == ([played] if played else [])
    loud = [line for line in done.said.splitlines() if "!!" in line]
    assert loud == ([f"!! {told}. All of them: {FAULTS}"] if told else [])


def test_programs_that_cannot_be_built_are_told_and_the_tests_judge(notes: Path) -> None:
    (notes / f"{TOOLS}.says").write_text("there is no `go` on PATH\n")
    (notes / f"{TOOLS}.status").write_text("1")
    done = run(notes)
    assert done.status == 0
    assert "there is no `go` on PATH\n" in done.said
    assert done.calls.index(TOOLS) < done.calls.index("make test-nvidia")


def test_faults_that_are_told_to_end_leave_nothing_behind(notes: Path) -> None:
    (notes / f"{FAULTS}.stays").touch()
    with start(notes) as script:
        stay = notes / "stay"
        wait_until(lambda: text_of(stay).endswith("\n"), SECONDS, "them to run")
        script.terminate()
        script.communicate(timeout=SECONDS)
    assert script.returncode != 0
    assert not pid_exists(int(stay.read_text()))


@pytest.mark.parametrize("verb", ["test", "test-crash", "test-faults", "test-nvidia", "e2e"])
def test_a_verb_that_is_told_to_end_ends_its_tests(notes: Path, verb: str) -> None:
    checkout, stay = notes.parent / "checkout", notes / "stay"
    shutil.copy(ROOT / "Makefile", checkout)
    (checkout / "build").mkdir()
    (notes / "pytest.stays").touch()
    command = ["make", verb, "PYTHON=true"]
    with subprocess.Popen(command, cwd=checkout, env={**os.environ, "NOTES": str(notes)}) as make:
        wait_until(lambda: text_of(stay).endswith("\n"), SECONDS, "pytest to run")
        make.terminate()
        make.wait(SECONDS)
    wait_until(lambda: not pid_exists(int(stay.read_text())), SECONDS, "pytest to end")


def test_the_last_words_are_those_of_rung_2(notes: Path) -> None:
    (notes / f"{RUNG2}.says").write_text("578 passed\n")
    (notes / f"{FAULTS}.says").write_text("faults: 150 runs, 0 failures\n13 passed\n")
    (notes / f"{RUNG2}.status").write_text("1")
    done = run(notes)
    assert done.status == 1
    assert done.said.splitlines()[-1] == "578 passed"
