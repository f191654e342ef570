import re

import pytest

from gpusharing.planning.reasons import Passes, Reason, describe, most_urgent, priority, reason_of


@pytest.mark.parametrize("reason", Reason)
def test_a_reason_is_one_word_with_sentences(reason: Reason) -> None:
    assert re.fullmatch(r"[A-Z][A-Za-z]{1,63}", reason.value)
    assert str(reason) == reason.value
    assert reason.when.endswith(".")
    assert reason.remedy == "" or reason.remedy.endswith(".")
    assert describe(reason) == f"{reason.when} {reason.remedy}".strip()


def test_whatever_waits_for_a_person_says_what_to_do() -> None:
    assert [r for r in Reason if r.passes is Passes.BY_A_PERSON and not r.remedy] == []


def test_a_person_comes_first_then_what_lasts_longest() -> None:
    assert most_urgent([Reason.SYNCED, Reason.SETTLING, Reason.PDB, Reason.UNMANAGED]) is Reason.UNMANAGED
    assert most_urgent([Reason.SETTLING, Reason.PDB, Reason.SYNCED]) is Reason.PDB
    assert sorted(Reason, key=priority)[-1].passes is Passes.DONE


def test_a_word_is_found_and_a_foreign_one_refused() -> None:
    assert reason_of("PDB") is Reason.PDB
    with pytest.raises(ValueError, match="'pdb' is not a reason"):
        reason_of("pdb")
