"""Lay out text for a given width. Each piece of text has an ink, its meaning, for which the terminal chooses a color.
Pure, so that tests compare what a person sees.

No information is in the color alone: each state has a glyph of its own, in ASCII too.
"""

import re
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from itertools import groupby
from operator import attrgetter

from gpusharing.planning.vocabulary.lengths import some

NARROW = 20
"""The narrowest width that output is laid out for."""
GAP = "  "


class Ink(StrEnum):
    """The meaning of a piece of text. `terminal.py` chooses the color for it."""

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
    """The meaning of the text, which decides its color."""


Line = tuple[Span, ...]


class Row(Line):
    """A line of a table: its indent, and then the cells with a GAP before each but the first. The first `Row` of a
    table has the headings, unless the paper has none."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table."""

    title: str
    """The heading of the column."""
    drop: int = 0
    """The order in which columns are left out if there is no room: the highest number first. A column with 0 is never
    left out."""
    right: bool = False
    """Whether the cells of the column, but not its heading, end at the same place, as numbers do."""


def columns(**drops: int) -> tuple[Column, ...]:
    """Return left-justified columns with these titles, in this order. The number of each is its `Column.drop`."""
    return tuple(Column(title, drop) for title, drop in drops.items())


@dataclass(frozen=True, slots=True)
class Paper:
    """The medium that output is drawn on: its width, the characters it can show, and whether everything is to be
    shown."""

    width: int | None = None
    """The number of characters in a line, or None if lines may be of any length, as in a file or a pipe."""
    glyphs: bool = True
    """Whether characters other than ASCII can be shown."""
    wide: bool = False
    """Whether to show everything that is known, even if lines become too long for the terminal."""
    headers: bool = True
    """Whether tables have headings."""
    flowing: bool = False
    """Whether prose is left in one line for a browser to break."""

    @property
    def room(self) -> int:
        """The number of characters in a line of prose: the width, but at least NARROW and at most 140. It is 110 if
        there is no width, and unlimited if the paper is flowing."""
        return sys.maxsize if self.flowing else max(NARROW, min(self.width or 110, 140))


def line(*parts: str | Span) -> Line:
    """Return a line that consists of these parts. A part that is a string gets plain ink."""
    return tuple(part if isinstance(part, Span) else Span(part) for part in parts)


BLANK: Line = ()


def plain(lines: Iterable[Line]) -> str:
    """Return the lines as a string without colors. Each line ends with a line feed; trailing whitespace is removed."""
    return "".join("".join(span.text for span in one).rstrip() + "\n" for one in lines)


def printable(text: str) -> str:
    """Return the string with ? in place of every unprintable character. It is meant for strings from elsewhere, which
    could otherwise control the terminal."""
    return text if text.isprintable() else "".join(one if one.isprintable() else "?" for one in text)


def prose(text: str, paper: Paper, *, indent: str = "", hang: str = "", ink: Ink = Ink.PLAIN) -> list[Line]:
    """Break a string into lines that fit the paper. All lines begin with `indent`, and all but the first with `hang`
    after it. Runs of whitespace become one space, words are not broken at hyphens, and a word that is longer than a
    line is broken anywhere; a string of whitespace alone gives no lines."""
    wrapped = textwrap.wrap(
        " ".join(text.split()),
        max(NARROW, paper.room),
        initial_indent=indent,
        subsequent_indent=indent + hang,
        break_on_hyphens=False,
    )
    return [line(Span(one, ink)) for one in wrapped]


def prose_of_each(
    texts: Iterable[str], paper: Paper, *, indent: str = "", hang: str = "  ", ink: Ink = Ink.PLAIN
) -> list[Line]:
    """Return the lines of all these strings, each broken as `prose` does."""
    return [one for text in texts for one in prose(text, paper, indent=indent, hang=hang, ink=ink)]


def fold(text: Line, paper: Paper) -> list[Line]:
    """Break a line of several inks between words into lines that fit the paper, except for a word that is itself too
    long. Each run of whitespace becomes one space. A line that fits is returned unchanged."""
    if sum(len(span.text) for span in text) <= paper.room:
        return [text]
    pieces = [Span(piece, span.ink) for span in text for piece in re.findall(r"\s+|\S+", span.text)]
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
    """Return a header, unless the paper has none, and a line for each row, in their order and each with `indent` before
    it. Every row must have one cell for each column. Columns in which every cell is empty are left out, so without rows
    the header is empty. If the paper has a width and is not wide, the columns with the highest `drop` are left out
    until the rest fits, and then long cells are cut (`shorten`)."""
    sizes = [max((len(row[i].text) for row in rows), default=0) for i in range(len(columns))]
    widths = {i: max(size, len(columns[i].title)) for i, size in enumerate(sizes) if size}
    if paper.width is not None and not paper.wide:
        widths = _fitted(columns, widths, max(NARROW, paper.width) - len(indent))
    header = tuple(Span(one.title, Ink.FAINT) for one in columns)
    drawn: list[Line] = []
    for row in (header, *rows) if paper.headers else rows:
        spans = [Span(indent)]
        for i, width in widths.items():
            pad = sizes[i] * (columns[i].right and row is not header and bool(row[i].text))
            spans += [Span(GAP), Span(shorten(row[i].text.rjust(pad), width).ljust(width), row[i].ink)]
        drawn.append(Row((spans[0], *spans[2:])))
    return drawn


def _fitted(columns: Sequence[Column], widths: Mapping[int, int], room: int) -> dict[int, int]:
    """Return the width of each column that is drawn, by its index. `widths` are the widths that the cells need. While a
    row does not fit into `room`, the column with the highest `drop` is left out, the rightmost of several; once all
    others have 0, the widest is narrowed by one character, the leftmost of several. No column becomes narrower than 5
    characters, even if the row is then too long."""
    fitted = dict(widths)
    while sum(fitted.values()) + len(GAP) * max(0, len(fitted) - 1) > room:
        loose = [index for index in fitted if columns[index].drop]
        widest = max(fitted, key=lambda index: fitted[index])
        if loose:
            del fitted[max(loose, key=lambda index: (columns[index].drop, index))]
        elif fitted[widest] <= 5:
            break
        else:
            fitted[widest] -= 1
    return fitted


def shows(row: Line, text: str) -> bool:
    """Whether `text` is a complete cell of a drawn row, apart from spaces at the cell's end: it was neither cut nor
    left out for lack of room. True for an empty string."""
    return not text or any(span.text.rstrip() == text for span in row)


def shorten(text: str, width: int) -> str:
    """Return the string if it is at most `width` characters long. Otherwise cut it so that it has this length with two
    dots at its end. The dots stay even if `width` is less than 2."""
    return text if len(text) <= width else text[: max(0, width - 2)] + ".."


@dataclass(frozen=True, slots=True)
class Glyph:
    """One cell of a bar."""

    drawn: str
    """The character that is drawn."""
    ascii: str
    """The character that is drawn if only ASCII can be shown."""
    ink: Ink
    """The ink of the cell."""
    word: str = field(default="")
    """The meaning of the character in a legend."""

    def on(self, paper: Paper) -> str:
        """Return the character that is drawn on `paper`: the glyph's own, or its ASCII substitute if `paper` shows only
        ASCII."""
        return self.drawn if paper.glyphs else self.ascii


def bar(glyphs: Sequence[Glyph], paper: Paper, room: int) -> Line:
    """Return a line with one character for each glyph, in this order; neighbors of the same ink form one span. If there
    are more glyphs than `room`, the line has `room` characters; each stands for several neighboring glyphs and is the
    worst of them, the first of several that are equally bad. A `room` below 1 counts as 1.

    A glyph is worse if its ink comes later in _BADNESS: a failure is worse than a success.
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
    """Return a sentence, without a period, that says that these nodes have no real GPUs, and names the first three of
    them, with `a node without a name` for an empty name. Empty if there are no nodes."""
    if not nodes:
        return ""
    have, them = ("have", "them") if len(nodes) > 1 else ("has", "it")
    names = some([node or "a node without a name" for node in nodes])
    return f"SIMULATED: {names} {have} no real GPUs, and the numbers about {them} here come from a simulator"


def describe_simulated(nodes: Sequence[str], paper: Paper) -> list[Line]:
    """Return `simulated_sentence` as lines; empty if there are no nodes."""
    return prose(f"{simulated_sentence(nodes)}.", paper, hang="  ", ink=Ink.WAITING) if nodes else []


def age(since: datetime | None, now: datetime) -> str:
    """Return the time since a moment as kubectl formats it: 42s, 5m, 3h, 41d. Empty if the moment is unknown, and 0s
    if it is in the future, because clocks differ."""
    return "" if since is None else length(now - since)


def length(time: timedelta) -> str:
    """Format a length of time in its largest full unit of d, h, m and s, such as 41d. If the count is below 5, the next
    smaller unit follows unless it is 0, such as 1h5m. What is smaller still is dropped, not rounded. Negative lengths
    become 0s."""
    seconds = max(0, int(time.total_seconds()))
    for unit, size, below, small in (("d", 86400, "h", 3600), ("h", 3600, "m", 60), ("m", 60, "s", 1)):
        count, rest = divmod(seconds, size)
        if count >= 1:
            finer = rest // small if count < 5 else 0
            return f"{count}{unit}{finer}{below}" if finer else f"{count}{unit}"
    return f"{seconds}s"
