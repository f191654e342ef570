"""Tables, prose and bars as lines of text that fit a width.

Each piece of text has an ink, its meaning, for which the terminal chooses a color. No information is in the color
alone: each state has a glyph of its own, in ASCII too.
"""

import re
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from itertools import groupby
from operator import attrgetter

from gpusharing.planning.vocabulary.lengths import some

NARROW = 20
"""The narrowest width that output is laid out for, in characters."""
GAP = "  "


class Ink(StrEnum):
    """The meaning of a piece of text."""

    PLAIN = ""
    TITLE = "title"
    GOOD = "good"
    BUSY = "busy"
    WAITING = "waiting"
    BAD = "bad"
    FAINT = "faint"


@dataclass(frozen=True, slots=True)
class Span:
    text: str
    ink: Ink = Ink.PLAIN


Line = tuple[Span, ...]


class Row(Line):
    """A line of a table: its indent, and then the cells with a GAP before each but the first."""


@dataclass(frozen=True, slots=True)
class Column:
    title: str
    drop: int = 0
    """Where room is short, the column with the highest number is left out first; one with 0 never is."""
    right: bool = False


def columns(**drops: int) -> tuple[Column, ...]:
    return tuple(Column(title, drop) for title, drop in drops.items())


@dataclass(frozen=True, slots=True)
class PrintOptions:
    """What output may use: its width, its characters, and how much of it is shown."""

    width: int | None = None
    """The number of characters in a line; None, as for a file or a pipe, means any number."""
    glyphs: bool = True
    """Whether more than ASCII can be shown."""
    wide: bool = False
    """Whether nothing is left out, as with -o wide."""
    headers: bool = True
    flowing: bool = False
    """Whether the reader breaks lines, as a browser does."""

    @property
    def room(self) -> int:
        return sys.maxsize if self.flowing else max(NARROW, min(self.width or 110, 140))


def line(*parts: str | Span) -> Line:
    return tuple(part if isinstance(part, Span) else Span(part) for part in parts)


BLANK: Line = ()


def plain(lines: Iterable[Line]) -> str:
    return "".join("".join(span.text for span in one).rstrip() + "\n" for one in lines)


def printable(text: str) -> str:
    """Return the string with ? for unprintable characters, with which others could control the terminal."""
    return text if text.isprintable() else "".join(one if one.isprintable() else "?" for one in text)


def prose(text: str, options: PrintOptions, *, indent: str = "", hang: str = "", ink: Ink = Ink.PLAIN) -> list[Line]:
    """Break a string into lines of the given width; all but the first begin with `hang` after the indent."""
    wrapped = textwrap.wrap(
        " ".join(text.split()),
        max(NARROW, options.room),
        initial_indent=indent,
        subsequent_indent=indent + hang,
        break_long_words=False,  # a name or a command that is cut cannot be pasted
        break_on_hyphens=False,
    )
    return [line(Span(one, ink)) for one in wrapped]


def prose_of_each(
    texts: Iterable[str], options: PrintOptions, *, indent: str = "", hang: str = "  ", ink: Ink = Ink.PLAIN
) -> list[Line]:
    return [one for text in texts for one in prose(text, options, indent=indent, hang=hang, ink=ink)]


def fold(text: Line, options: PrintOptions) -> list[Line]:
    if sum(len(span.text) for span in text) <= options.room:
        return [text]
    pieces = [Span(piece, span.ink) for span in text for piece in re.findall(r"\s+|\S+", span.text)]
    words = [list(word) for blank, word in groupby(pieces, key=lambda piece: piece.text.isspace()) if not blank]
    lines: list[list[Span]] = [[]]
    taken = 0
    for word in words:
        length = sum(len(span.text) for span in word)
        if lines[-1] and taken + 1 + length > options.room:
            lines.append([])
            taken = 0
        lines[-1] += [Span(" "), *word] if lines[-1] else word
        taken += length + (taken > 0)
    return [tuple(one) for one in lines]


def measure(columns: Sequence[Column], rows: Sequence[Sequence[Span]]) -> dict[int, int]:
    """Return the width of each column, by index, without those that are empty."""
    sizes = [max((len(row[i].text) for row in rows), default=0) for i in range(len(columns))]
    return {i: max(size, len(columns[i].title)) for i, size in enumerate(sizes) if size}


def fit_columns(columns: Sequence[Column], widths: Mapping[int, int], room: int) -> dict[int, int]:
    """Return the widths, by index, of the columns that remain. Those with the highest `drop` are left out first."""
    kept = dict(widths)
    while sum(kept.values()) + len(GAP) * (len(kept) - 1) > room:
        if not (loose := [index for index in kept if columns[index].drop]):
            break
        del kept[max(loose, key=lambda index: (columns[index].drop, index))]
    return kept


def table(
    columns: Sequence[Column], rows: Sequence[Sequence[Span]], options: PrintOptions, indent: str = ""
) -> list[Line]:
    """Lay out the rows under their headings, without empty columns; what does not fit is left out or cut."""
    widths = measure(columns, rows)
    sizes = {i: max(len(row[i].text) for row in rows) for i in widths if columns[i].right}
    if options.width is not None and not options.wide:
        room = max(NARROW, options.width) - len(indent)
        widths = fit_columns(columns, widths, room)
        for _ in range(sum(widths.values()) + len(GAP) * (len(widths) - 1) - room):
            widest = max(widths, key=lambda index: widths[index])
            widths[widest] -= widths[widest] > 5
    header = tuple(Span(one.title, Ink.FAINT) for one in columns)
    drawn: list[Line] = []
    for row in (header, *rows) if options.headers else rows:
        spans = [Span(indent)]
        for i, width in widths.items():
            pad = sizes.get(i, 0) if row is not header and row[i].text else 0
            cut = shorten if i or " " in row[i].text else shorten_name  # a row is about the name in its first cell
            spans += [Span(GAP), Span(cut(row[i].text.rjust(pad), width).ljust(width), row[i].ink)]
        drawn.append(Row((spans[0], *spans[2:])))
    return drawn


def shows(row: Line, text: str) -> bool:
    """Whether a drawn row has a cell with this text, neither cut nor left out for lack of room."""
    return not text or any(span.text.rstrip() == text for span in row)


def shorten(text: str, width: int) -> str:
    return text if len(text) <= width else text[: max(0, width - 2)] + ".."


def shorten_name(name: str, width: int) -> str:
    """Cut a name in its middle, because names of one pool often differ only at their end; the width is at least 4."""
    head = (width - 2) // 2
    return name if len(name) <= width else f"{name[:head]}..{name[head + 2 - width :]}"


@dataclass(frozen=True, slots=True)
class Glyph:
    """One cell of a bar."""

    drawn: str
    ascii: str
    ink: Ink
    word: str = ""

    def on(self, options: PrintOptions) -> str:
        return self.drawn if options.glyphs else self.ascii


def bar(glyphs: Sequence[Glyph], options: PrintOptions, room: int) -> Line:
    """Return a line with one character for each glyph, or for the worst of several if room is short."""
    most = max(1, room)
    if len(glyphs) > most:
        share = len(glyphs) / most
        parts = [glyphs[int(i * share) : max(int(i * share) + 1, int((i + 1) * share))] for i in range(most)]
        glyphs = [max(part, key=lambda glyph: _BADNESS.index(glyph.ink)) for part in parts]
    return tuple(
        Span("".join(glyph.on(options) for glyph in alike), ink)
        for ink, alike in groupby(glyphs, key=attrgetter("ink"))
    )


_BADNESS = (Ink.PLAIN, Ink.TITLE, Ink.FAINT, Ink.GOOD, Ink.WAITING, Ink.BUSY, Ink.BAD)


def simulated_sentence(nodes: Sequence[str]) -> str:
    """Return a sentence, without a period, that says that these nodes have no real GPUs."""
    if not nodes:
        return ""
    have, them = ("have", "them") if len(nodes) > 1 else ("has", "it")
    names = some([node or "a node without a name" for node in nodes])
    return f"SIMULATED: {names} {have} no real GPUs, and the numbers about {them} here come from a simulator"


def describe_simulated(nodes: Sequence[str], options: PrintOptions) -> list[Line]:
    return prose(f"{simulated_sentence(nodes)}.", options, hang="  ", ink=Ink.WAITING) if nodes else []


def age(since: datetime | None, now: datetime) -> str:
    """Return the time since a moment; empty if that is unknown."""
    return "" if since is None else length(now - since)


def length(time: timedelta) -> str:
    """Format a length of time as kubectl does, such as 41d or 2h5m."""
    seconds = max(0, int(time.total_seconds()))
    for unit, size, below, small in (("d", 86400, "h", 3600), ("h", 3600, "m", 60), ("m", 60, "s", 1)):
        count, rest = divmod(seconds, size)
        if count >= 1:
            finer = rest // small if count < 5 else 0
            return f"{count}{unit}{finer}{below}" if finer else f"{count}{unit}"
    return f"{seconds}s"
