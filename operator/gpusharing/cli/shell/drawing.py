"""Text with ink, laid out for a width: pure, so that what a person sees is compared with a file.

Nothing depends on colour alone: each state has a glyph of its own, in ASCII too.
"""

import re
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from itertools import groupby
from operator import attrgetter

from gpusharing.planning.vocabulary.lengths import some

NARROW = 20
"""Nothing is laid out for less, however narrow the terminal is."""
GAP = "  "


class Ink(StrEnum):
    """What a piece of text is; what colour that has is the terminal's business."""

    PLAIN = ""
    TITLE = "title"
    GOOD = "good"
    BUSY = "busy"
    WAITING = "waiting"
    BAD = "bad"
    FAINT = "faint"


@dataclass(frozen=True, slots=True)
class Span:
    """A piece of text in one ink."""

    text: str
    """The characters."""
    ink: Ink = Ink.PLAIN
    """How they are coloured."""


Line = tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table."""

    title: str
    """Its heading."""
    drop: int = 0
    """Where there is no room, the column with the highest goes first; 0 stays."""


@dataclass(frozen=True, slots=True)
class Paper:
    """What is written on."""

    width: int | None = None
    """Characters of a line; None: as many as it takes, as for a file or a pipe."""
    glyphs: bool = True
    """It shows more than ASCII."""
    wide: bool = False
    """Everything that is known, and nothing left out for want of room."""

    @property
    def room(self) -> int:
        """Characters of a line of prose."""
        return max(NARROW, min(self.width or 110, 140))


def line(*parts: str | Span) -> Line:
    """A line of these parts; what is plain text has plain ink."""
    return tuple(part if isinstance(part, Span) else Span(part) for part in parts)


BLANK: Line = ()


def plain(lines: Iterable[Line]) -> str:
    """The same without ink; each line ends with a line feed, and none with blanks."""
    return "".join("".join(span.text for span in one).rstrip() + "\n" for one in lines)


def printable(text: str) -> str:
    """Return the text with ? in place of every character that cannot be printed: others wrote parts of it."""
    return text if text.isprintable() else "".join(one if one.isprintable() else "?" for one in text)


def prose(text: str, paper: Paper, *, indent: str = "", hang: str = "", ink: Ink = Ink.PLAIN) -> list[Line]:
    """A text in lines; all but the first also begin with `hang`."""
    wrapped = textwrap.wrap(
        " ".join(text.split()),
        max(NARROW, paper.room),
        initial_indent=indent,
        subsequent_indent=indent + hang,
        break_on_hyphens=False,
    )
    return [line(Span(one, ink)) for one in wrapped]


def fold(one: Line, paper: Paper) -> list[Line]:
    """A line of several inks; if it is too long, broken into lines between words."""
    if sum(len(span.text) for span in one) <= paper.room:
        return [one]
    pieces = [Span(piece, span.ink) for span in one for piece in re.findall(r"\s+|\S+", span.text)]
    words = [
        list(word) for blank, word in groupby(pieces, key=lambda piece: piece.text.isspace()) if not blank
    ]
    lines: list[list[Span]] = [[]]
    taken = 0
    for word in words:
        length = sum(len(span.text) for span in word)
        if lines[-1] and taken + 1 + length > paper.room:
            lines.append([])
            taken = 0
        lines[-1] += [Span(" "), *word] if lines[-1] else word
        taken += length + (taken > 0)
    return [tuple(one) for one in lines]


def table(
    columns: Sequence[Column], rows: Sequence[Sequence[Span]], paper: Paper, indent: str = ""
) -> list[Line]:
    """Rows under a header. Columns without any text are left out, and so are those that do not fit; then texts are
    cut."""
    kept = [index for index in range(len(columns)) if any(row[index].text for row in rows)]
    widths = {
        index: max(len(columns[index].title), *(len(row[index].text) for row in rows)) for index in kept
    }
    room = None if paper.width is None or paper.wide else max(NARROW, paper.width) - len(indent)
    if room is not None:
        kept = _fitting(columns, kept, widths, room)
        widths = _cut(kept, widths, room)
    drawn = [
        line(indent, *_row([Span(columns[i].title, Ink.FAINT) for i in kept], [widths[i] for i in kept]))
    ]
    drawn += [line(indent, *_row([row[i] for i in kept], [widths[i] for i in kept])) for row in rows]
    return drawn


def _fitting(columns: Sequence[Column], kept: list[int], widths: dict[int, int], room: int) -> list[int]:
    kept = list(kept)
    while _total(kept, widths) > room:
        loose = [index for index in kept if columns[index].drop]
        if not loose:
            break
        kept.remove(max(loose, key=lambda index: (columns[index].drop, index)))
    return kept


def _cut(kept: Sequence[int], widths: dict[int, int], room: int) -> dict[int, int]:
    """The widest column gives way until all fit, or none can give more."""
    found = dict(widths)
    while kept and _total(kept, found) > room:
        widest = max(kept, key=lambda index: found[index])
        if found[widest] <= 5:
            break
        found[widest] -= 1
    return found


def _total(kept: Sequence[int], widths: dict[int, int]) -> int:
    return sum(widths[index] for index in kept) + len(GAP) * max(0, len(kept) - 1)


def _row(cells: Sequence[Span], widths: Sequence[int]) -> list[Span]:
    spans: list[Span] = []
    for number, (cell, width) in enumerate(zip(cells, widths, strict=True)):
        if number:
            spans.append(Span(GAP))
        spans.append(Span(shorten(cell.text, width).ljust(width), cell.ink))
    return spans


def shows(row: Line, text: str) -> bool:
    """Whether a drawn row of a table has this cell whole: it was neither cut nor left out for want of room."""
    return not text or any(span.text.rstrip() == text for span in row)


def shorten(text: str, width: int) -> str:
    """The text, cut where it is too long."""
    return text if len(text) <= width else text[: max(0, width - 2)] + ".."


@dataclass(frozen=True, slots=True)
class Glyph:
    """One cell of a bar."""

    drawn: str
    """The character."""
    ascii: str
    """The same where only ASCII can be shown."""
    ink: Ink
    """How it is coloured."""
    word: str = field(default="")
    """What it stands for, in a legend."""

    def on(self, paper: Paper) -> str:
        """The character that the paper can show."""
        return self.drawn if paper.glyphs else self.ascii


def bar(glyphs: Sequence[Glyph], paper: Paper, room: int) -> Line:
    """A cell for each glyph; where there is no room for all, each cell stands for several and shows the worst of them.

    Worse is what comes later in the order in which inks are defined, as a failure after success.
    """
    most = max(1, room)
    if len(glyphs) > most:
        share = len(glyphs) / most
        parts = [glyphs[int(i * share) : max(int(i * share) + 1, int((i + 1) * share))] for i in range(most)]
        glyphs = [max(part, key=lambda glyph: _BADNESS.index(glyph.ink)) for part in parts]
    return tuple(
        Span("".join(glyph.on(paper) for glyph in alike), ink)
        for ink, alike in groupby(glyphs, key=attrgetter("ink"))
    )


_BADNESS = (Ink.PLAIN, Ink.TITLE, Ink.FAINT, Ink.GOOD, Ink.WAITING, Ink.BUSY, Ink.BAD)


def simulated_sentence(nodes: Sequence[str]) -> str:
    """The sentence about these nodes; empty: there are none."""
    if not nodes:
        return ""
    have, them = ("have", "them") if len(nodes) > 1 else ("has", "it")
    names = some([node or "a node without a name" for node in nodes])
    return f"SIMULATED: {names} {have} no real GPUs, and the numbers about {them} here come from a simulator"


def describe_simulated(nodes: Sequence[str], paper: Paper) -> list[Line]:
    """The same as lines."""
    return prose(f"{simulated_sentence(nodes)}.", paper, hang="  ", ink=Ink.WAITING) if nodes else []


def age(since: datetime | None, now: datetime) -> str:
    """How long ago, as kubectl writes it: 42s, 5m, 3h, 41d; empty when unknown. A clock that is behind gives 0s."""
    return "" if since is None else length(now - since)


def length(time: timedelta) -> str:
    """In the largest unit that is full, and the next one where the number is small."""
    seconds = max(0, int(time.total_seconds()))
    for unit, size, below, small in (("d", 86400, "h", 3600), ("h", 3600, "m", 60), ("m", 60, "s", 1)):
        count, rest = divmod(seconds, size)
        if count >= 1:
            finer = rest // small if count < 5 else 0
            return f"{count}{unit}{finer}{below}" if finer else f"{count}{unit}"
    return f"{seconds}s"
