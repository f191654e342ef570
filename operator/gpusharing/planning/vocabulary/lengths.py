"""Texts that fit where they are shown, and counts whose nouns agree with them."""

from collections.abc import Sequence

MAX_TEXT = 1000
"""The most characters of a message in a status."""


def cut(text: str, most: int) -> str:
    """Return the text, shortened to its beginning and three dots if it has more than `most` characters."""
    return text if len(text) <= most else text[: most - 3] + "..."


def some(things: Sequence[str], most: int = 3) -> str:
    """Return the first `most` of these texts, joined by commas, and how many more there are, such as `a, b, c and 2
    more`."""
    more = f" and {len(things) - most} more" if len(things) > most else ""
    return ", ".join(things[:most]) + more


def counted(count: int, singular: str, plural: str = "") -> str:
    """Return a number with its noun, such as `1 node` or `2 nodes`. `plural`: the plural if it needs more than
    an s."""
    return f"{count} {singular if count == 1 else plural or singular + 's'}"
