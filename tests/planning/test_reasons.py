"""Every reason is one word that says what to do; long texts keep their beginning; values are equal by content, and frozen by mypy, which costs the running program nothing."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from gpusharing import planning
from gpusharing.planning.vocabulary.lengths import cut, cut_bytes, some
from gpusharing.planning.vocabulary.reasons import BY_WORD, Mark, Passes, Reason, most_urgent
from gpusharing.planning.vocabulary.values import value


@pytest.mark.parametrize("reason", Reason)
def test_a_reason_is_one_word_with_sentences(reason: Reason) -> None:
    assert re.fullmatch(r"[A-Z][A-Za-z]{1,63}", reason.value)
    assert str(reason) == reason.value
    assert reason.when.endswith(".")
    assert reason.remedy == "" or reason.remedy.endswith(".")


def test_a_card_that_does_not_suit_the_policy_is_unsupported_and_a_node_in_a_bad_state_is_not() -> None:
    supported = {r for r in Reason if r.group == "Hardware" and Mark.UNSUPPORTED not in r.marks}
    states = {Reason.COMPUTE_MODE, Reason.GPU_MISSING, Reason.MIG_MODE_PENDING}
    assert supported == states, "a reason of group Hardware has Mark.UNSUPPORTED, or is about a state and listed here"


def test_no_mark_of_a_reason_contradicts_another_and_whatever_waits_for_a_person_says_what_to_do() -> None:
    assert [r for r in Reason if r.passes is Passes.BY_A_PERSON and not r.remedy] == []
    marks = {reason: reason.marks for reason in Reason}
    assert [r for r in marks if {Mark.RETRIED, Mark.NOT_RETRIED} <= marks[r]] == []
    assert [r for r in marks if {Mark.FORCIBLE, Mark.DENIED} <= marks[r]] == []
    assert [r for r in marks if Mark.DENIED in marks[r] and Mark.ANSWER not in marks[r]] == []
    assert [r for r in marks if Mark.STALLS in marks[r] and r.passes is not Passes.BY_A_PERSON] == []


def test_a_person_comes_first_then_what_lasts_longest() -> None:
    assert most_urgent([Reason.SYNCED, Reason.SETTLING, Reason.PDB, Reason.UNMANAGED]) is Reason.UNMANAGED
    assert most_urgent([Reason.SETTLING, Reason.PDB, Reason.SYNCED]) is Reason.PDB
    assert sorted(Reason, key=lambda reason: reason.urgency)[-1].passes is Passes.DONE


LONGEST_FIRST = {
    "both need a person": (Reason.ORPHAN_FENCE, Reason.ALREADY_CORDONED),
    "both pass by themselves": (Reason.JOBS_RUNNING, Reason.PDB),
    "both pass soon": (Reason.THROTTLED, Reason.PODS_LEAVING),
}


@pytest.mark.parametrize(("longer", "shorter"), LONGEST_FIRST.values(), ids=LONGEST_FIRST.keys())
def test_of_two_reasons_the_one_that_lasts_longer_is_shown_where(longer: Reason, shorter: Reason) -> None:
    assert longer.passes is shorter.passes
    assert most_urgent([longer, shorter]) is longer
    assert most_urgent([shorter, longer]) is longer


# --- docs/reference/reasons.md -------------------------------------------------------------

ROOT = Path(__file__).resolve().parent.parent.parent


def test_the_page_of_reasons_has_a_row_for_every_reason_and_each_says_what_to_do() -> None:
    lines = [
        line for line in (ROOT / "docs" / "reference" / "reasons.md").read_text().splitlines() if line.startswith("| `")
    ]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    named = sorted(row[0].strip("`") for row in rows)
    assert named == sorted(reason.value for reason in Reason), "run `make gen`"
    assert [row for row in rows if len(row) != 4 or not all(row)] == []


# --- docs/reference/bad-input.md -------------------------------------------------------------------

PAGE = (ROOT / "docs" / "reference" / "bad-input.md").read_text()
ROWS = [line.split(" | ") for line in PAGE.splitlines() if line.startswith("| ") and "What is wrong" not in line]


def test_the_page_on_bad_input_names_every_reason_that_refuses_a_policy_or_a_card() -> None:
    named = {word for row in ROWS for word in re.findall(r"`([A-Z][A-Za-z]+)`", row[1])}
    assert named <= {reason.value for reason in Reason}
    refusing = {r.value for r in Reason if r.group in ("Hardware", "Accepted") and r is not Reason.VALID}
    assert refusing - named == set(), "each needs a row in docs/reference/bad-input.md"


def test_every_row_of_that_page_says_what_to_do_and_which_test_proves_it() -> None:
    for row in ROWS:
        wrong, answer, remedy, proof = (cell.strip(" |") for cell in row)
        assert wrong
        assert answer
        assert remedy
        files = re.findall(r"`([a-z_/]+\.py)`", proof)
        assert files
        proofs = "".join((ROOT / "tests" / file).read_text() for file in files)
        for word in re.findall(r"`([A-Z][A-Za-z]+)`", answer):
            assert f'"{word}"' in proofs or f"Reason.{BY_WORD[word].name}" in proofs, f"{word} not in {files}"


# --- texts that are too long, and values -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [("", ""), ("ten letter", "ten letter"), ("ten letters", "ten let...")],
    ids=["nothing stays nothing", "what just fits stays whole", "one letter too many costs four"],
)
def test_a_text_is_cut_where_it_has_to_be(text: str, shown: str) -> None:
    assert cut(text, 10) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("éééééé", "éééé..."),
        ("éééxééé", "éééx..."),
        ("ééééé!", "ééééé!"),
        ("\ud800" * 3, "\ud800" * 3),
        ("\ud800" * 4, "..."),
    ],
    ids=["too long", "no character is divided", "what just fits", "surrogates", "too many surrogates"],
)
def test_a_text_is_cut_by_its_bytes_between_two_characters(text: str, shown: str) -> None:
    assert cut_bytes(text, 11) == shown


@pytest.mark.parametrize(
    ("things", "shown"),
    [([], ""), (["b", "a"], "b, a"), (["c", "b", "a"], "c, b and 1 more")],
    ids=["nothing", "all that fit, in their order", "of more, how many"],
)
def test_of_many_things_some_are_named(things: list[str], shown: str) -> None:
    assert some(things, 2) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("MIG is on; run: kubectl label node gpu-1 a=all-1g.10gb", "MIG is on; run: ..."),
        ("run: kubectl label node gpu-1 a=b; MIG is on and on and on", "run: kubectl label node gpu-1 a=b; MI..."),
        ("see (kubectl gpusharing import) where all of them are", "see (kubectl gpusharing import) where..."),
    ],
    ids=["the first part of a command does something else", "a whole command stays", "a whole one in parentheses"],
)
def test_a_text_is_not_cut_within_a_command(text: str, shown: str) -> None:
    assert cut(text, 40) == cut_bytes(text, 40) == shown


# --- values ------------------------------------------------------------------------------------------------------------


@value
class Point:
    x: int
    y: int = 0


@value(eq=False)
class Named:
    name: str


@value(order=True)
class Rank:
    number: int


def test_values_are_equal_and_hashed_by_content_unless_they_say_otherwise() -> None:
    assert Point(1) == Point(1, 0)
    assert len({Point(1), replace(Point(2), x=1), Point(1, 1)}) == 2
    assert Named("a") != Named("a")
    assert len({Named("a"), Named("a")}) == 2
    assert Rank(1) < Rank(2)


def test_mypy_sees_who_assigns_a_field() -> None:
    point = Point(1)
    point.x = 2  # type: ignore[misc]  # if mypy said nothing here, it would call this comment unused, and CI would fail
    assert point == Point(2)


def test_the_planner_makes_its_values_in_one_way() -> None:
    files = sorted(Path(planning.__file__).parent.rglob("*.py"))
    assert len(files) > 60
    assert [path.name for path in files if "frozen=True" in path.read_text()] == []
