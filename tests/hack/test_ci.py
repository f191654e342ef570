""".ci/run: which steps run, and which turn it into a failure. `make` and our Python are stand-ins that take notes."""

import hashlib
import os
import re
import shutil
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from hack.cluster.process import pid_exists, text_of, wait_until
from hack.generate import ROOT
from hack.report import LONG as LONG_RUN
from hack.report import pace_of
from hack.verbs import MakeVerb
from tests.wording import lacks

NEEDS, SWEEP = "hack.realnode.needs", "hack.realnode.sweep"
PARTS = ("setup", "toolchain", "promtool", "browser", "verify", "docs", "test", "test-long", "test-hack", "test-nvidia")
MORE_PARTS = ("needs", "e2e", "sweep", "test-crash", "test-cluster", "test-faults")
NOT_THOROUGH = "ARGS=-m 'not thorough'"
RUNG3, E2E = f"make test-nvidia {NOT_THOROUGH}", f"make e2e {NOT_THOROUGH}"
FAULTS = f"make test-faults SEED=1 RUNS=30 {NOT_THOROUGH}"
LONG = f"make test-long WORKERS=logical {NOT_THOROUGH}"
RUNG2 = f"make test-cluster WORKERS=auto {NOT_THOROUGH}"
CRASH = f"make test-crash WORKERS=4 {NOT_THOROUGH}"
VERIFY, TOOLS = "hack.verify", "hack.cluster.toolchain"
SECONDS = 60.0
# A stand-in notes how it was called, says what is in the file of its name, and ends with the status in another one;
# where there is a third one, only when it is told to.
STAND_IN = """#!/bin/sh
case $0 in */make) call="make $*" ;; *) call=$2 ;; esac
echo "$call" >>"$NOTES/calls"
cat "$NOTES/$call.says" 2>/dev/null
[ ! -e "$NOTES/$call.reports" ] || cp "$NOTES/$call.reports" "build/report-${call#make }.txt"
[ ! -e "$NOTES/$call.stays" ] || { echo $$ >>"$NOTES/stay" && exec sleep 1000; }
exit "$(cat "$NOTES/$call.status" 2>/dev/null || echo 0)"
"""


@dataclass(frozen=True)
class Run:
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
    for name in (".ci/run", "hack/ci.py"):
        (checkout / name).parent.mkdir()
        shutil.copy(ROOT / name, checkout / name)
    (made / f"{RUNG2}.reports").write_text("rung 2 (control plane): 7 passed, 1 skipped\n")
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


def told_to_end(
    notes: Path, *steps: str, call: str = "make setup", number: signal.Signals = signal.SIGTERM
) -> list[str]:
    """What was called by a run that is told to end when it is at these steps and has called this; it ends them."""
    for step in steps:
        (notes / f"{step}.stays").touch()
    stay = notes / "stay"
    with start(notes) as script:
        wait_until(lambda: call in calls(notes) and text_of(stay).count("\n") == len(steps), SECONDS, f"{steps} to run")
        script.send_signal(number)
        script.communicate(timeout=SECONDS)
    assert script.returncode != 0
    assert [pid for pid in stay.read_text().split() if pid_exists(int(pid))] == []
    return calls(notes)


def test_rung_4_follows_rung_3_beside_all_others_and_what_it_leaves_is_swept(notes: Path) -> None:
    in_turn = [RUNG3, NEEDS, E2E, SWEEP]
    assert [call for call in told_to_end(notes, FAULTS, call=SWEEP) if call in in_turn] == in_turn


def test_rungs_3_and_4_wait_for_the_programs_and_for_nothing_else(notes: Path) -> None:
    called = told_to_end(notes, VERIFY, call=SWEEP)
    assert "make docs" not in called, "verify has not ended"
    assert called.index("hack.browser") < called.index(RUNG3)


@pytest.mark.parametrize("failed", [RUNG3, NEEDS])
def test_rung_4_is_tried_although_rung_3_failed_and_not_without_its_needs(notes: Path, failed: str) -> None:
    (notes / f"{failed}.status").write_text("3")
    done = run(notes)
    assert done.status == 1
    assert (E2E in done.calls) == (failed != NEEDS)


def test_every_verb_that_plays_tests_is_called_once(notes: Path) -> None:
    done = run(notes)
    verbs = [call.split()[1] for call in done.calls if call.startswith("make ")]
    assert sorted(verbs) == sorted({"setup", "docs", *MakeVerb} - {MakeVerb.GPU})


@pytest.mark.parametrize(
    ("only", "called"),
    [
        ("verify", ["make setup", VERIFY]),
        ("docs", ["make setup", "make docs"]),
        ("test-long", ["make setup", LONG]),
        ("test-cluster", ["make setup", TOOLS, "hack.promtool", "hack.browser", RUNG2]),
        ("e2e", ["make setup", NEEDS, E2E, SWEEP]),
    ],
)
def test_a_part_that_is_named_is_run_alone(notes: Path, only: str, called: list[str]) -> None:
    for call in (LONG, E2E):
        (notes / f"{call}.reports").write_text("rung 0 (pure): 1 passed\n")
    done = run(notes, CI_ONLY=only)
    assert (done.status, done.calls) == (0, called)


def test_a_part_that_does_not_exist_is_named_and_nothing_runs(notes: Path) -> None:
    with start(notes, CI_ONLY="docs tset") as script:
        _, said = script.communicate(timeout=SECONDS)
    assert script.returncode == 2
    assert not lacks(said, "'tset'", "verify, docs, test")
    assert calls(notes) == []


def test_what_is_left_out_on_purpose_is_said_at_the_end(notes: Path) -> None:
    done = run(notes, LEAVE_OUT="rung4 browser")
    assert "!! LEFT OUT ON PURPOSE, so this is no full check: rung4 browser" in done.said.splitlines()[-2:]


def test_only_a_full_run_of_a_commit_leaves_that_commit_for_a_release(notes: Path) -> None:
    passed = notes.parent / "checkout/build/passed.txt"
    assert run(notes).status == 0
    assert not passed.exists(), "there is no commit"
    git = ["git", "-C", str(notes.parent / "checkout"), "-c", "user.name=x", "-c", "user.email=x@example.test"]
    for command in (["init", "-q"], ["add", "hack/ci.py"], ["commit", "-q", "-m", "x"]):
        subprocess.run([*git, *command], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout
    (passed.parent / "images").mkdir()
    (passed.parent / "images" / "x.tar").write_text("tested")
    assert run(notes).status == 0
    assert passed.read_text() == f"{head}{hashlib.sha256(b'tested').hexdigest()}\n"
    assert run(notes, LEAVE_OUT="rung4").status == 0
    assert not passed.exists(), "something was left out"
    assert run(notes, CI_ONLY="test-cluster").status == 0
    assert not passed.exists(), "only one part was run"
    subprocess.run(["python3", "hack/ci.py", "--passed"], cwd=passed.parent.parent, check=True)
    assert passed.read_text().startswith(head), "each part passed in a job of its own"


@pytest.mark.parametrize(
    "steps",
    [["make setup"], [VERIFY], ["hack.promtool"], [RUNG3, RUNG2], [NEEDS, RUNG2], [FAULTS]],
    ids=lambda steps: steps[0],
)
def test_a_run_that_is_told_to_end_ends_the_steps_that_it_is_at_and_fails(notes: Path, steps: list[str]) -> None:
    assert (FAULTS in told_to_end(notes, *steps)) is (FAULTS in steps)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_told_to_end_leaves_nothing_behind(notes: Path, number: signal.Signals) -> None:
    assert told_to_end(notes, E2E, RUNG2, number=number)[-1] == SWEEP


def test_the_end_says_the_status_and_the_seconds_of_each_part_and_counts_the_tests_of_all(notes: Path) -> None:
    (notes / "make docs.status").write_text("3")
    for call, line in {
        "make test WORKERS=logical": "rung 0 (pure): 40 passed, 1 failed",
        E2E: f"rung 4 (real nodes): 2 passed\n{''.join(pace_of(LONG_RUN, lambda: 140.0))}",
    }.items():
        (notes / f"{call}.reports").write_text(f"{line}\nmore\n")
    done = run(notes)
    table = done.said[done.said.index("part           status") :].splitlines()
    played = {line.split()[0]: line.split()[1] for line in table[1:-3]}
    assert set(played) == {*PARTS, *MORE_PARTS}
    assert {name for name, status in played.items() if status != "0"} == {"docs"}
    assert (took := re.fullmatch(r"in all: (\d+) s", table[-3]))
    assert table[-2] == "tests: 49 passed, 1 failed, 1 skipped"
    assert (even := re.fullmatch(r"in all at the pace of the aims \(.*\): (\d+) s", table[-1]))
    assert abs(int(even[1]) - int(took[1]) / 2) <= 1


@pytest.mark.parametrize(
    "step",
    [
        NEEDS,
        E2E,
        SWEEP,
        VERIFY,
        "make docs",
        "make test WORKERS=logical",
        LONG,
        "make test-hack WORKERS=logical",
        CRASH,
        RUNG3,
        RUNG2,
        FAULTS,
    ],
)
def test_a_step_that_fails_lets_the_others_go_on_and_the_run_fail(notes: Path, step: str) -> None:
    (notes / f"{step}.status").write_text("3")
    done = run(notes)
    assert done.status == 1
    assert {RUNG3, SWEEP if step != NEEDS else NEEDS, RUNG2, FAULTS} <= set(done.calls)


def test_a_run_that_counted_no_test_fails(notes: Path) -> None:
    (notes / f"{RUNG2}.reports").unlink()
    done = run(notes)
    assert done.status == 1
    assert done.said.splitlines()[-1] == "!! no test was played"


def test_nodes_that_are_ended_for_their_time_are_swept_and_told(notes: Path) -> None:
    (notes / f"{E2E}.status").write_text("124")
    done = run(notes)
    assert done.status == 1
    assert not lacks(done.said, "rung 4", "45 minutes")
    assert {SWEEP, RUNG2} <= set(done.calls)


def test_faults_are_played_after_the_other_tests_of_rung_2_and_say_what_came_of_them(notes: Path) -> None:
    (notes / f"{FAULTS}.says").write_text("faults: 30 runs, 0 failures\n")
    done = run(notes)
    assert [call for call in done.calls if call in (RUNG2, FAULTS)] == [RUNG2, FAULTS]
    assert "faults: 30 runs, 0 failures\n" in done.said


def test_programs_that_cannot_be_built_are_told_and_the_tests_judge(notes: Path) -> None:
    (notes / f"{TOOLS}.says").write_text("there is no `go` on PATH\n")
    (notes / f"{TOOLS}.status").write_text("1")
    done = run(notes)
    assert done.status == 0
    assert "there is no `go` on PATH\n" in done.said
    assert done.calls.index(TOOLS) < done.calls.index(RUNG3)


@pytest.mark.parametrize("verb", ["test", "test-cluster", "test-crash", "test-faults", "test-nvidia", "e2e"])
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
