"""The sample holds every kind and every scenario, is the same for the same seed, and goes on where it was ended."""

import re
from pathlib import Path

from hack.generate import ROOT
from tests.faults.cases import (
    KINDS,
    ROWS,
    SAMPLE,
    WORKERS,
    FaultCase,
    Result,
    Results,
    all_cases,
    cases_in,
    load,
    outlook,
    sample,
    summary,
)

SCENARIOS = [f"scenario-{number}" for number in range(12)]


def result(case: FaultCase, *complaints: str, hits: int = 1, extra: int = 0) -> Result:
    return Result(case, complaints, hits, extra, 0, 1.0)


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


def test_all_cases_are_each_kind_at_each_write() -> None:
    cases = list(all_cases("idle", 7))
    assert len(cases) == 7 * len(KINDS)
    assert {case.write(7) for case in cases} == set(range(1, 8))
    assert FaultCase("idle", *KINDS[0], 0.999).write(3) == 3


def begun(path: Path, stamp: str, cases: int = 3) -> Results:
    """A part with so many cases."""
    results = Results(path, stamp)
    results.expect(results.cases or cases)
    return results


def test_what_has_a_good_result_is_not_played_again(tmp_path: Path) -> None:
    one, two, three = sample(SCENARIOS, "1", 3)
    path = tmp_path / "part.jsonl"
    first = begun(path, "commit")
    first.add(result(one))
    first.add(result(two, "an orphan cordon"))
    again = begun(path, "commit")
    assert again.left([one, two, three]) == [two, three]
    again.add(result(two, extra=2))
    assert begun(path, "commit").left([one, two, three]) == [three]
    assert {(found.case, found.complaints) for found in load(tmp_path)} == {(one, ()), (two, ())}


def test_who_goes_on_plays_as_many_cases_as_were_found_first(tmp_path: Path) -> None:
    path = tmp_path / "part.jsonl"
    begun(path, "commit", 989)
    assert begun(path, "commit", 966).cases == 989
    assert begun(path, "another", 966).cases == 966


def test_results_of_something_else_are_thrown_away(tmp_path: Path) -> None:
    (case,) = sample(SCENARIOS, "1", 1)
    path = tmp_path / "part.jsonl"
    begun(path, "commit").add(result(case))
    assert begun(path, "another").left([case]) == [case]
    assert load(tmp_path) == []


def test_a_full_run_that_was_ended_tells_what_is_left_and_how_long_that_takes(tmp_path: Path) -> None:
    first, second = list(all_cases("idle", 5)), list(all_cases("pods", 4))
    for number, cases in enumerate((first, second)):
        results = Results(tmp_path / f"{number}.jsonl", "commit")
        results.expect(len(cases))
        for case in cases[:10]:
            results.add(Result(case, (), 1, 0, 0, 8.0))
    total = len(first) + len(second)
    assert cases_in(tmp_path) == total
    left = total - 20
    told = outlook(load(tmp_path), cases_in(tmp_path))
    assert told == f"{left} of {total} cases are left: about {left * 8 / WORKERS / 60:.0f} minutes"
    assert outlook(load(tmp_path), 20) == ""


def test_the_closing_line_tells_the_numbers() -> None:
    one, two, three = sample(SCENARIOS, "1", 3)
    text = summary([result(one, "bad", extra=4), result(two, extra=-1), result(three, hits=0, extra=9)])
    assert text == (
        "faults: 3 runs, 1 failures, at most 4 extra writes, 0 extra evictions;"
        " 1 never came to their write; 3 s"
    )
