"""Finds the known names that a mistyped one is most like. Pure."""

from collections.abc import Iterable
from difflib import get_close_matches

MOST_MEANT = 3
"""How many similar names are suggested for a name that does not exist."""


def nearest(name: str, names: Iterable[str]) -> list[str]:
    """Return at most MOST_MEANT of `names` that are similar to `name`, the most similar first; case-sensitive."""
    known = sorted(set(names))
    part = [other for other in known if name in other or other in name][:MOST_MEANT] if name else []
    close = get_close_matches(name, known, n=MOST_MEANT, cutoff=0.6)
    return list(dict.fromkeys([*close, *part]))[:MOST_MEANT]


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return a clause, after a semicolon, with the one of `names` that is most like `name`; empty if none is."""
    similar = nearest(name, names)
    return f"; did you mean {similar[0]}?" if similar else ""
