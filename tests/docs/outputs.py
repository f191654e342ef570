"""Compares the output that a page shows with the output that its commands really printed.

A page shows all lines of the output, in their order. Three things stand for text that differs from run to run:

- a line `...` stands for any number of lines that the page leaves out;
- the character `…` stands for any text, and as a part of a word (`chat-…`) for any part of that word;
- an age (`41d`, `2m5s`) stands for any age, and a time (`14:31:07Z`, `2026-10-05T00:00:00Z`) for any such time.

Each run of blanks counts as one blank, so columns may have other widths. Empty lines are ignored.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Self

LEFT_OUT = "..."
_WILDCARDS = {
    r"(?<!\S)…(?!\S)": r".*",
    r"…": r"\S*",
    r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ": r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ",
    r"\b\d\d:\d\d:\d\dZ\b": r"\d\d:\d\d:\d\dZ",
    r"\b(?:\d+[smhdy]){1,2}\b": r"(?:\d+[smhdy]){1,2}",
}
"""A pattern of what a page may write, and the pattern of all that it stands for."""
_WILDCARD = re.compile("|".join(f"({written})" for written in _WILDCARDS))


@dataclass(frozen=True)
class Output:
    page: str
    line: int
    text: str

    @property
    def as_part(self) -> Self:
        """Agrees with a part of a longer output too."""
        return replace(self, line=self.line - 1, text=f"{LEFT_OUT}\n{self.text}\n{LEFT_OUT}")

    def assert_printed(self, printed: str) -> None:
        shown = self.text.splitlines()
        difference = find_difference(shown, printed.splitlines())
        if difference is not None:
            index, instead = difference
            promised = shown[index].strip() if index < len(shown) else "(the end)"
            place = f"{self.page}:{self.line + 1 + index}"
            raise AssertionError(f"{place} shows\n  {promised}\nbut the command printed\n  {instead}")


def find_difference(shown: Sequence[str], printed: Sequence[str]) -> tuple[int, str] | None:
    """Return an index into `shown`, or its length, and what was printed there instead; None if they agree."""
    lines = [line for line in map(_squeeze, printed) if line]
    segments = _split(shown)
    at = 0
    for number, segment in enumerate(segments):
        is_last = number == len(segments) - 1
        starts = range(at, len(lines) + 1) if number else (at,)
        # Of places that agree equally well, we take the first. The last segment takes the last: it must reach the end.
        start = max(starts, key=lambda one: (_agreeing(segment, lines[one:]), one if is_last else 0))
        agreeing = _agreeing(segment, lines[start:])
        at = start + agreeing
        if agreeing < len(segment):
            return segment[agreeing][0], lines[at] if at < len(lines) else "(nothing more)"
    return (len(shown), lines[at]) if at < len(lines) else None


def _split(shown: Sequence[str]) -> list[list[tuple[int, re.Pattern[str]]]]:
    """Patterns by index, in segments that `...` separates; one is empty where `...` begins or ends the output."""
    segments: list[list[tuple[int, re.Pattern[str]]]] = [[]]
    for index, line in enumerate(map(_squeeze, shown)):
        if line == LEFT_OUT:
            segments.append([])
        elif line:
            segments[-1].append((index, _pattern(line)))
    return segments


def _agreeing(segment: Sequence[tuple[int, re.Pattern[str]]], lines: Sequence[str]) -> int:
    """Return how many of the first lines agree with the segment: up to a line that differs, or the end of either."""
    pairs = zip(segment, lines, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0][1].fullmatch(pair[1]), pairs))


def _squeeze(line: str) -> str:
    return " ".join(line.split())


def _pattern(line: str) -> re.Pattern[str]:
    parts, at = [], 0
    patterns = list(_WILDCARDS.values())
    for found in _WILDCARD.finditer(line):
        parts += [re.escape(line[at : found.start()]), patterns[(found.lastindex or 1) - 1]]
        at = found.end()
    return re.compile("".join([*parts, re.escape(line[at:])]))
