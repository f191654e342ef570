"""The sample holds every kind and every scenario, is the same for the same seed, and goes on where it was ended."""

import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from hack.generate import ROOT
from tests.faults.cases import (
    KINDS,
    ROWS,
    SAMPLE,
    WORKERS,
    CaseResults,
    FaultCase,
    Result,
    expected_in,
    figures,
    load,
    missing,
    sample,
    summary,
    tell,
)
from tests.integration.faultscenarios import LATER, MATRIX

SCENARIOS = [f"scenario-{number}" for number in range(12)]


def result(case: FaultCase, *complaints: str, hits: int = 1, extra: int = 0, reached: bool = True) -> Result:
    return Result(case, complaints, hits, extra, 0, 1.0, reached)


def test_every_kind_at_both_scopes_and_every_scenario_is_in_a_sample() -> None:
    for seed in ("1", "2", "d28df34"):
        cases = sample(SCENARIOS, seed)
        assert len(cases) == len(set(cases)) == SAMPLE
        assert {(case.kind, case.scope) for case in cases} == set(KINDS)
        counts = [sum(case.scenario == name for case in cases) for name in SCENARIOS]
        assert (min(counts), max(counts)) == (12, 13)


def test_scenarios_that_came_later_have_their_share_and_leave_the_others_as_they_were() -> None:
    cases = sample(SCENARIOS, "1", later=["gang"])
    gangs = [case for case in cases if case.scenario == "gang"]
    assert len(cases) == len(set(cases)) == SAMPLE
    assert (len(gangs), cases[: -len(gangs)]) == (12, sample(SCENARIOS, "1")[:138])
    assert {(case.kind, case.scope) for case in cases} == set(KINDS)
    shorter = sample(SCENARIOS, "1", 40, later=["gang"])
    assert [case for case in shorter if case.scenario == "gang"] == gangs[:3]


def test_a_sample_is_the_same_for_the_same_seed_only() -> None:
    assert sample(SCENARIOS, "1") == sample(SCENARIOS, "1") != sample(SCENARIOS, "2")


def test_a_shorter_sample_is_the_beginning_of_a_longer_one_and_still_holds_every_kind() -> None:
    shorter = sample(SCENARIOS, "1", 100)
    assert shorter == sample(SCENARIOS, "1")[:100]
    assert {(case.kind, case.scope) for case in shorter} == set(KINDS)


def test_every_fault_of_the_specification_is_played() -> None:
    page = (ROOT / "docs" / "design" / "faults.md").read_text()
    assert set(re.findall(r'<a id="f\d+"></a>(F\d+)', page)) == set(ROWS.values())


def test_the_sample_of_ci_stays_what_it_was() -> None:
    cases = sample([one.name for one in MATRIX], "1", later=[one.name for one in LATER])
    told = "\n".join(f"{case.scenario} {case.kind} {case.scope} {case.place}" for case in cases)
    assert hashlib.sha256(told.encode()).hexdigest()[:12] == "8402788b5c0f"
    assert not any(case.number for case in cases)


def test_a_case_is_at_its_place_or_at_its_turn_even_where_a_run_is_shorter() -> None:
    assert FaultCase("idle", *KINDS[0], 0.0).write(3) == 1
    assert FaultCase("idle", *KINDS[0], 0.999).write(3) == 3
    assert FaultCase("idle", *KINDS[0], 0.9, 7, "POST gpunodes", 4).write(3) == 4


def test_the_title_of_a_case_says_where_it_is() -> None:
    assert FaultCase("idle", "refused", "all", 0.25).title == "idle: refused (F7) at all from 0.250"
    numbered = FaultCase("idle", "refused", "all", 0.25, 7, "PATCH nodes: label gpusharing.dev/mode", 2)
    assert numbered.title == "idle: refused (F7) at all from write 7 (PATCH nodes: label mode, no. 2)"


def begun(path: Path, stamp: str, cases: Sequence[FaultCase]) -> CaseResults:
    results = CaseResults(path, stamp)
    results.expect(results.expected or cases)
    return results


def test_what_has_passed_is_not_played_again(tmp_path: Path) -> None:
    one, two, three = cases = sample(SCENARIOS, "1", 3)
    path = tmp_path / "part.jsonl"
    first = begun(path, "commit", cases)
    first.add(result(one))
    first.add(result(two, "an orphan cordon"))
    again = begun(path, "commit", cases)
    assert again.left() == [two, three]
    again.add(result(two, extra=2))
    assert begun(path, "commit", cases).left() == [three]
    passed = {(one, ()), (two, ())}
    assert {(found.case, found.complaints) for found in load(tmp_path)} == passed
    assert {(found.case, found.complaints) for found in begun(path, "commit", cases).done} == passed


def test_what_was_not_reached_has_not_passed_and_is_played_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = [FaultCase("idle", "refused", "one", 0.99, 43, "POST events", 3), FaultCase("idle", *KINDS[0], 0.5)]
    results = begun(tmp_path / "idle.jsonl", "commit", cases)
    results.add(result(cases[0], hits=0, reached=False))
    results.add(result(cases[1]))
    assert begun(tmp_path / "idle.jsonl", "commit", cases).left() == [cases[0]]
    tell(tmp_path)
    told = capsys.readouterr().out
    assert "1 not reached" in told
    assert "not reached, so not passed: idle: refused (F7) at one from write 43 (POST events, no. 3)" in told
    assert "incomplete" not in told


def test_who_goes_on_plays_the_cases_that_were_found_first(tmp_path: Path) -> None:
    path, cases = tmp_path / "part.jsonl", sample(SCENARIOS, "1", 9)
    begun(path, "commit", cases)
    assert begun(path, "commit", cases[:8]).expected == tuple(cases)
    assert begun(path, "another", cases[:8]).expected == tuple(cases[:8])


def test_results_of_something_else_are_thrown_away(tmp_path: Path) -> None:
    (case,) = sample(SCENARIOS, "1", 1)
    path = tmp_path / "part.jsonl"
    begun(path, "commit", [case]).add(result(case))
    assert begun(path, "another", [case]).left() == [case]
    assert load(tmp_path) == []


def test_a_file_of_something_else_beside_them_does_not_count(tmp_path: Path) -> None:
    old, new = sample(SCENARIOS, "1", 2)
    begun(tmp_path / "gone.jsonl", "commit", [old]).add(result(old))
    os.utime(tmp_path / "gone.jsonl", (1, 1))
    begun(tmp_path / "there.jsonl", "another", [new]).add(result(new))
    assert [found.case for found in load(tmp_path)] == [new]
    assert expected_in(tmp_path) == {"there": (new,)}


def test_a_full_run_that_was_ended_says_what_is_missing_and_how_long_that_takes(tmp_path: Path) -> None:
    first, second = sample(SCENARIOS, "1", 80), sample(SCENARIOS, "2", 70)
    for number, cases in enumerate((first, second)):
        results = begun(tmp_path / f"{number}.jsonl", "commit", cases)
        for case in cases[: 10 * number]:
            results.add(Result(case, (), 1, 0, 0, 8.0))
    expected = expected_in(tmp_path)
    assert {part: len(cases) for part, cases in expected.items()} == {"0": 80, "1": 70}
    told = missing(load(tmp_path), expected)
    assert told == f"incomplete: 140 of 150 cases have not been played: about {140 * 8 / WORKERS / 60:.0f} minutes"
    assert missing([], expected) == "incomplete: 150 of 150 cases have not been played"
    assert missing([result(case) for case in (*first, *second)], expected) == ""


def test_the_closing_line_tells_the_numbers() -> None:
    one, two, three, four = sample(SCENARIOS, "1", 4)
    bad, good = result(one, "bad", extra=4), result(two, extra=-1)
    late, idle = result(three, hits=0, extra=9, reached=False), result(four, hits=0)
    assert summary([bad, good, late, idle]) == (
        "faults: 4 runs, 1 failures, at most 4 extra writes, 0 extra evictions;"
        " 1 not reached, 1 without anything to disturb; 4 s"
    )


def test_the_counts_of_a_folder_are_one_row_and_an_empty_one_is_refused(tmp_path: Path) -> None:
    one, two, _ = cases = sample(["a"], "1", 3)
    path = tmp_path / "sample" / "a.jsonl"
    results = CaseResults(path, "stamp", commit="1234abc")
    results.expect(cases)
    results.add(result(one, "bad", extra=4))
    results.add(result(two, reached=False))
    kinds = len({one.kind, two.kind})
    os.utime(path, (1_700_000_000, 1_700_000_000))
    assert figures(tmp_path / "sample", "1234abc") == {
        "rows": [["sample", 1, kinds, 2, 2, 1, 1, 4, 0]],
        "how": "last run on 2023-11-14; incomplete: 1 of 3 cases have not been played",
    }
    with pytest.raises(SystemExit, match="has no results: run make test-faults"):
        figures(tmp_path, "1234abc")


@pytest.mark.parametrize(("commit", "named"), [("1234abc", "1234abc"), ("", "unknown")])
def test_counts_of_another_operator_than_that_of_the_checkout_are_refused(
    tmp_path: Path, commit: str, named: str
) -> None:
    (one,) = cases = sample(["a"], "1", 1)
    results = CaseResults(tmp_path / "a.jsonl", "stamp", commit=commit)
    results.expect(cases)
    results.add(result(one))
    with pytest.raises(
        SystemExit, match=rf"has results of the operator of commit {named}, and not of 99: run make test-f"
    ):
        figures(tmp_path, "99")
