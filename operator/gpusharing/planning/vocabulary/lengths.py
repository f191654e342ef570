"""Texts that fit where they are shown, and counts whose nouns agree with them."""

from collections.abc import Sequence

MAX_TEXT = 1000
"""Characters of a message in a status."""


def cut(text: str, most: int) -> str:
    """The text, or its beginning and three dots, in at most `most` characters."""
    return text if len(text) <= most else text[: most - 3] + "..."


def some(things: Sequence[str], most: int = 3) -> str:
    """The first `most` of them, and how many more there are."""
    more = f" and {len(things) - most} more" if len(things) > most else ""
    return ", ".join(things[:most]) + more


def counted(count: int, one: str, many: str = "") -> str:
    """Return a number with its noun, such as `1 node` or `2 nodes`. `many`: the plural if it needs more than an s."""
    return f"{count} {one if count == 1 else many or one + 's'}"
