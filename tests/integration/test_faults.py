"""The fault matrix: F1 to F12 in 16 scenarios, at one object and at everything (docs/design/faults.md#matrix).
`make test-faults` plays a sample of SAMPLE runs (or RUNS=), another one for each commit (or SEED=). `make test-faults FULL=1` first records each scenario twice (FAULTS=points) to find its points (tests/faults/points.py), and then plays every fault once for each sort of write. `FULL=2` does so in each scenario, and `FULL=3` plays every fault at each point. Each scenario is a part with a file in build/faults that begins with the cases of all depths. A full run that was ended goes on there, also with FULL=2 after FULL=1, and on another commit that changes nothing of what is PLAYED."""

import hashlib
import os
import subprocess
import time
from collections.abc import Iterator

import pytest
from hack.figures.page import operator_commit
from hack.generate import ROOT
from tests.faults.cases import REACHED, SAMPLE, CaseResults, FaultCase, Result, sample, summary
from tests.faults.points import all_cases, find_points, in_both
from tests.integration.crash import Scenario
from tests.integration.faultruns import FaultTheatre, fault_theatre
from tests.integration.faultscenarios import LATER, MATRIX
from tests.integration.product import Product
from tests.integration.stages import OTHERS

ONLY_POINTS = os.environ.get("FAULTS") == "points"
"""Find out what a full run has to play, and play nothing."""
FULL = ONLY_POINTS or os.environ.get("FAULTS") == "full"
DEPTH = 3 if ONLY_POINTS else int(os.environ.get("FAULTS_DEPTH") or 1)
"""Of a full run: the number in FULL=. What is recorded is for each of them."""
FOLDER = ROOT / "build" / "faults" / ("full" if FULL else "sample")

pytestmark = pytest.mark.faults

PLAYED = ("crds", "deploy", "hack", "operator", "pyproject.toml", "requirements-dev.lock", "tests")


def git(*arguments: str) -> str:
    """What it says of the checkout; empty outside of one."""
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def played() -> str:
    name = hashlib.sha256(git("rev-parse", *(f"HEAD:{folder}" for folder in PLAYED)).encode())
    name.update(git("diff", "HEAD", "--", *PLAYED).encode())
    for path in git("ls-files", "--others", "--exclude-standard", "--", *PLAYED).splitlines():
        name.update(path.encode() + (ROOT / path).read_bytes())
    return name.hexdigest()[:12]


RUNS = int(os.environ.get("FAULTS_RUNS") or SAMPLE)
SEED = os.environ.get("FAULTS_SEED") or git("rev-parse", "--short=12", "HEAD") or "none"


@pytest.fixture(scope="module")
def usual_theatre(product: Product, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultTheatre]:
    with fault_theatre(product, tmp_path_factory.mktemp("faults")) as found:
        yield found


@pytest.fixture
def own_theatre(scenario: Scenario, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultTheatre]:
    """A control plane for one scenario: it ends with it, so that nothing of it takes time from the others."""
    directory, stage = tmp_path_factory.mktemp(scenario.stage), OTHERS[scenario.stage]
    with stage.open(directory) as product, fault_theatre(product, directory, stage.environment) as found:
        yield found


def cases_of(scenario: Scenario, theatre: FaultTheatre) -> list[FaultCase]:
    """What is played of a scenario; of a full run at every depth, as another recording would have other points."""
    if FULL:
        writes = theatre.record(scenario)
        points = find_points(in_both(writes, theatre.record(scenario)))
        return list(all_cases(scenario.name, points, len(writes)))
    names, later = [one.name for one in MATRIX], [one.name for one in LATER]
    return [case for case in sample(names, SEED, RUNS, later=later) if case.scenario == scenario.name]


def part(scenario: Scenario) -> CaseResults:
    """The results of a scenario; of a full run those from before, when they are of the same."""
    path = FOLDER / f"{scenario.name}.jsonl"
    if not FULL:
        path.unlink(missing_ok=True)
    return CaseResults(path, f"{played()} {'full' if FULL else SEED}", DEPTH, operator_commit())


def play(theatre: FaultTheatre, scenario: Scenario, case: FaultCase) -> Result:
    """One case; whatever goes wrong is a complaint, so that the others are played all the same."""
    began, reference = time.monotonic(), theatre.reference(scenario)
    try:
        run, complaints = theatre.judge(scenario, case)
    except (TimeoutError, AssertionError) as error:
        return Result(case, (str(error)[:2000],), 1, 0, 0, time.monotonic() - began)
    more = reference.extra(run), reference.extra_evictions(run)
    return Result(case, tuple(complaints), run.hits, *more, time.monotonic() - began, run.reached)


@pytest.mark.parametrize("scenario", [*MATRIX, *LATER], ids=lambda scenario: scenario.name)
def test_whatever_fails_the_end_is_the_same_and_no_invariant_breaks(
    request: pytest.FixtureRequest, scenario: Scenario
) -> None:
    results = part(scenario)
    if not (results.expected and ONLY_POINTS):  # what is known needs no control plane
        fixture = "usual_theatre" if scenario.stage == "usual" else "own_theatre"
        theatre: FaultTheatre = request.getfixturevalue(fixture)
    if not results.expected:
        results.expect(cases_of(scenario, theatre))
    if ONLY_POINTS:
        pytest.skip(f"not played, only recorded: {len(results.expected)} runs")
    for case in results.left():
        results.add(play(theatre, scenario, case))
    spent = ", ".join(f"{part} {seconds:.0f} s" for part, seconds in theatre.spent.items())
    print(f"\n{scenario.name}, seed {SEED}: {summary(results.done)}; so far {spent}")
    failed = [f"{one.case.title}: {'; '.join(one.complaints)}" for one in results.done if one.complaints]
    assert results.done, "a scenario without a case proves nothing"
    assert not failed, "\n".join(failed)
    aimed = [one.reached for one in results.done if one.case.number]
    assert sum(aimed) >= REACHED * len(aimed), "too many faults never struck: the points aim at something else"
