"""Shortens messages and lists to the space available, and puts nouns after counts."""

from collections.abc import Sequence

MAX_TEXT = 1000
"""The most characters that a message in a status may have."""


def cut(text: str, most: int) -> str:
    """Return the text. If it is longer than `most` characters, three dots replace its end, so that exactly `most` are
    left. `most` must be at least 3."""
    return text if len(text) <= most else text[: most - 3] + "..."


def cut_bytes(text: str, most: int) -> str:
    """Return the text. If it is longer than `most` bytes in UTF-8, three dots replace its end, so that at most `most`
    bytes are left; no character is divided. A lone surrogate, which UTF-8 cannot express, counts as three bytes; a text
    that is cut loses it. `most` must be at least 3."""
    raw = text.encode(errors="surrogatepass")
    return text if len(raw) <= most else raw[: most - 3].decode(errors="ignore") + "..."


def some(things: Sequence[str], most: int = 3) -> str:
    """Return the first `most` of these strings in the given order, separated by commas, and the number of the others,
    such as `a, b, c and 2 more`. Empty if there are no strings."""
    more = f" and {len(things) - most} more" if len(things) > most else ""
    return ", ".join(things[:most]) + more


def counted(count: int, singular: str, plural: str = "") -> str:
    """Return a number with its noun, such as `1 node` or `2 nodes`. `plural` is only needed if the plural is not the
    singular with an s."""
    return f"{count} {singular if count == 1 else plural or singular + 's'}"
