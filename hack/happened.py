"""How often each thing happened in the random world, for the end of a run of the tests.

A test hangs its counts, by what happened, on its `user_properties` under PROPERTY; `hack.report` prints them.
"""

from collections.abc import Iterable, Iterator, Mapping

PROPERTY = "what happened in the random world"
WIDTH = 110


def lines(properties: Iterable[tuple[str, object]]) -> Iterator[str]:
    """Several counts in one line, in the order of their names."""
    row = ""
    for name, counts in properties:
        if name != PROPERTY or not isinstance(counts, Mapping):
            continue
        for what, count in sorted(counts.items()):
            part = f"{count} x {what}"
            if row and len(row) + len(part) > WIDTH:
                yield row
                row = ""
            row = f"{row}; {part}" if row else part
    if row:
        yield row
