"""What is too long to be shown keeps its beginning and says that there was more."""

import pytest

from gpusharing.planning.vocabulary.lengths import cut, cut_bytes, some


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
