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
