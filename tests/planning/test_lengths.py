"""What is too long to be shown keeps its beginning and says that there was more."""

import pytest

from gpusharing.planning.words.lengths import cut


@pytest.mark.parametrize(
    ("text", "shown"),
    [("", ""), ("ten letter", "ten letter"), ("ten letters", "ten let...")],
    ids=["nothing stays nothing", "what just fits stays whole", "one letter too many costs four"],
)
def test_a_text_is_cut_where_it_has_to_be(text: str, shown: str) -> None:
    assert cut(text, 10) == shown
