"""How are messages and lists shortened to the space available, nouns put after counts, and durations written?"""

import re
from collections.abc import Sequence
from datetime import timedelta

MAX_TEXT = 1000
"""The most characters that a message in a status may have."""
_PART_OF_COMMAND = re.compile(r"\b(?:kubectl|helm) [^;)`\n]*\Z")


def cut(text: str, most: int) -> str:
    """Return the text, cut to `most` characters (at least 3) with three dots at the end, but not within a command.

    Somebody might paste the first part of a command, which may do something else.
    """
    return text if len(text) <= most else _PART_OF_COMMAND.sub("", text[: most - 3]) + "..."


def cut_bytes(text: str, most: int) -> str:
    """Return the text, cut to `most` bytes of UTF-8 (at least 3) with three dots; lone surrogates are lost then."""
    raw = text.encode(errors="surrogatepass")
    return text if len(raw) <= most else _PART_OF_COMMAND.sub("", raw[: most - 3].decode(errors="ignore")) + "..."


def some(things: Sequence[str], most: int = 3) -> str:
    """Return the first `most` of these strings in the given order, such as `a, b, c and 2 more`."""
    more = f" and {len(things) - most} more" if len(things) > most else ""
    return ", ".join(things[:most]) + more


def counted(count: int, singular: str, plural: str = "") -> str:
    return f"{count} {singular if count == 1 else plural or singular + 's'}"


def in_minutes(length: timedelta) -> str:
    """Format a duration in whole minutes, rounded up, such as `1h30m`."""
    hours, minutes = divmod(-(-int(length.total_seconds()) // 60), 60)
    return f"{hours}h{minutes}m" if hours and minutes else f"{hours}h" if hours else f"{minutes}m"
