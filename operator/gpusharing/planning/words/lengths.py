"""Texts that fit where they are shown."""

MAX_TEXT = 1000
"""Characters of a message in a status."""


def cut(text: str, most: int) -> str:
    """The text, or its beginning and three dots, in `most` characters."""
    return text if len(text) <= most else text[: most - 3] + "..."
