"""Which existing names may have been meant by one that does not exist."""

from collections.abc import Iterable
from difflib import get_close_matches

MOST = 3


def nearest(name: str, names: Iterable[str]) -> list[str]:
    """The names that are most like this one, best first; empty when none is similar."""
    known = sorted(set(names))
    part = [one for one in known if name in one or one in name][:MOST] if name else []
    close = get_close_matches(name, known, n=MOST, cutoff=0.6)
    return list(dict.fromkeys([*close, *part]))[:MOST]
