from tests.wording import lacks

from gpusharing.planning.vocabulary.findings import MAX_LINES, Blocker, culprit, explain_blockers, main_reason, merge
from gpusharing.planning.vocabulary.reasons import Reason


def test_a_line_names_budget_pods_server_text_and_remedy() -> None:
    blocker = Blocker(
        Reason.PDB_NEVER_ALLOWS,
        ("team-a/llm-0", "team-a/llm-1"),
        "team-a/llm-serving",
        "The budget allows 0 disruptions: 2 of 2 pods are healthy, and 2 must be."
        ' Server: "needs 2 healthy pods and has 2"',
    )
    (line,) = explain_blockers([blocker])
    assert line.startswith("PDBNeverAllows team-a/llm-serving: ")
    assert not lacks(
        line,
        "team-a/llm-0, team-a/llm-1",
        "0 disruptions",
        "2 of 2",
        "2 must be",
        'Server: "needs 2 healthy pods and has 2"',
        Reason.PDB_NEVER_ALLOWS.remedy,
    )


def test_a_blocker_without_pods_has_its_message_after_the_reason() -> None:
    (line,) = explain_blockers([Blocker(Reason.LIST_FAILED, message="pods is forbidden")])
    assert line.startswith("ListFailed: pods is forbidden. Remedy: ")


def test_three_pods_are_named_and_the_others_counted() -> None:
    blockers = [Blocker(Reason.UNMANAGED, (f"a/{n}",)) for n in (5, 3, 1, 4, 2)]
    (line,) = explain_blockers(blockers)
    assert line.startswith("Unmanaged: Pods a/1, a/2, a/3, ... (2 more). Remedy: "), line


def test_five_lines_at_most_sorted_by_reason_then_pod_in_any_order_of_input() -> None:
    blockers = [
        Blocker(Reason.UNMANAGED, ("a/x",)),
        *(Blocker(Reason.PDB, (f"a/{n}",), f"a/pdb-{n}") for n in range(5)),
        Blocker(Reason.DRA_CLAIM, ("z/y",)),
    ]
    lines = explain_blockers(blockers)
    assert len(lines) == MAX_LINES
    assert [line.split(":")[0] for line in lines[:-1]] == ["DRAClaim", "PDB a/pdb-0", "PDB a/pdb-1", "PDB a/pdb-2"]
    assert lines[-1] == "... (3 more)"
    assert explain_blockers(reversed(blockers)) == lines
    assert len(explain_blockers(blockers[:5])) == 5


def test_a_long_or_broken_server_text_stays_on_one_bounded_line() -> None:
    (line,) = explain_blockers([Blocker(Reason.EVICTION_ERROR, ("a/b",), message="x\ny " * 1000)])
    assert "\n" not in line
    assert len(line) < 700


def test_blockers_that_differ_in_their_pods_only_become_one() -> None:
    one, two = Blocker(Reason.PDB, ("a/2", "a/1"), "a/p"), Blocker(Reason.PDB, ("a/3", "a/1"), "a/p")
    assert merge([two, one]) == (Blocker(Reason.PDB, ("a/1", "a/2", "a/3"), "a/p"),)


def test_the_culprit_is_the_first_pod_of_what_needs_a_person() -> None:
    waits = Blocker(Reason.PDB, ("a/1", "a/2"), "a/p")
    person = Blocker(Reason.UNMANAGED, ("b/1",))
    assert culprit([waits]) == "a/1 +1"
    assert culprit([waits, person]) == "b/1 +2"
    assert main_reason([waits, person]) is Reason.UNMANAGED
    assert culprit([Blocker(Reason.LIST_FAILED)]) == ""
    assert culprit([person]) == "b/1"
    assert main_reason([]) is None
