"""Where the text goes: a person's terminal in colour, or a pipe without; and questions to that person. rich is imported
only for the terminal."""

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Literal, TextIO

from gpusharing.cli.shell.drawing import Ink, Line, Paper, Span, line, plain, shorten


def ask_line(question: str, answers: TextIO) -> str:
    """What was typed; the question goes to standard error, so that it is not mixed with data. Ctrl-C raises
    KeyboardInterrupt.

    asyncio would only note a first Ctrl-C and keep waiting for the line to end. So it no longer gets the signal from
    the moment the question can be read.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        print(f"{question} ", end="", file=sys.stderr, flush=True)
        return answers.readline().strip()
    finally:
        signal.signal(signal.SIGINT, before)


def agrees(question: str, answers: TextIO) -> bool:
    """Only a yes is a yes."""
    return ask_line(f"{question} [y/N]", answers).lower() in ("y", "yes")


Output = Literal["table", "wide", "json", "yaml", "html", "csv"]
COLORS: Mapping[Ink, str] = {
    Ink.PLAIN: "",
    Ink.TITLE: "bold",
    Ink.GOOD: "green",
    Ink.BUSY: "cyan",
    Ink.WAITING: "yellow",
    Ink.BAD: "bold red",
    Ink.FAINT: "dim",
}
ROWS = 24
"""Size of a terminal that cannot be asked: that of a VT100, which shutil.get_terminal_size uses too."""


@dataclass(slots=True)
class Terminal:
    """One place that text goes to."""

    stream: TextIO
    output: Output = "table"
    color: bool = False
    width: int | None = None
    """None: it is no terminal, and lines are as long as they are."""
    measure: Callable[[], os.terminal_size] | None = None
    """Asks how large it is now, since a person may change that during a watch; None: it stays as it is."""
    _live: Any = field(default=None, init=False)
    _documents: int = field(default=0, init=False)
    """How many documents were written so far; YAML separates them by a line."""

    @classmethod
    def of(cls, output: Output, *, color: bool, environment: Mapping[str, str] = os.environ) -> "Terminal":
        """Standard output, as it is: https://no-color.org says what NO_COLOR means."""
        stream = sys.stdout
        if not stream.isatty():
            return cls(stream, output)
        wanted = color and not environment.get("NO_COLOR") and environment.get("TERM") != "dumb"
        measure = shutil.get_terminal_size
        return cls(stream, output, wanted, measure().columns, measure)

    @property
    def paper(self) -> Paper:
        """What is written on."""
        unicode = (self.stream.encoding or "").lower().replace("-", "").startswith("utf8")
        width = self._size().columns if self.redraws else self.width
        return Paper(width, glyphs=unicode, wide=self.output == "wide")

    @property
    def structured(self) -> bool:
        """Data is wanted, not text."""
        return self.output in ("json", "yaml")

    @property
    def redraws(self) -> bool:
        """A `redrawing` is under way: what is shown takes the place of what was."""
        return self._live is not None

    def data(self, value: object) -> None:
        """Write it as JSON or YAML, whichever was asked for."""
        if self.output == "yaml":
            import yaml  # costs as much as all the rest of a short command

            self.stream.write("---\n" if self._documents else "")
            self.stream.write(yaml.safe_dump(value, sort_keys=False, allow_unicode=True))
        else:
            self.stream.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
        self._documents += 1
        self.stream.flush()  # a watch may write the next one in hours

    def answer(
        self,
        data: Callable[[], object],
        lines: Callable[[Paper], Sequence[Line]],
        rows: Callable[[], Iterable[Iterable[object]]] = tuple,
    ) -> None:
        """Write an answer as it is wanted: `data`, `lines`, or for CSV `rows`, of which the others are not made."""
        if self.output == "csv":
            import csv  # which only two verbs write

            csv.writer(self.stream, lineterminator="\n").writerows(rows())
            self.stream.flush()
        elif self.structured:
            self.data(data())
        else:
            self.show(lines(self.paper))

    def write(self, text: str) -> None:
        """Write a text as it is."""
        self.stream.write(text)
        self.stream.flush()

    def warn(self, text: str) -> None:
        """Say it on standard error, so that a program that reads our output does not get it."""
        print(f"warning: {text}", file=sys.stderr, flush=True)

    def show(self, lines: Sequence[Line], hint: str = "") -> None:
        """Write the lines; in a `redrawing`, instead of those before, as many as there is room for. `hint`: what shows
        the others.
        """
        if self._live is not None:
            self._live.console.size = size = self._size()
            self._live.update(_rich(_fitting(lines, size, hint, self._live.console)), refresh=True)
        elif self.color:
            from rich.console import Console

            Console(file=self.stream, width=self.width, force_terminal=True, highlight=False).print(
                _rich(lines), soft_wrap=True, end=""
            )
        else:
            self.write(plain(lines))

    def _size(self) -> os.terminal_size:
        return os.terminal_size((self.width or 80, ROWS)) if self.measure is None else self.measure()

    @contextmanager
    def redrawing(self) -> Iterator[None]:
        """While it lasts, `show` draws over what it drew before. On a pipe it continues below, and so do data, which
        are to be read later.
        """
        if self.width is None or self.structured:
            yield
            return
        from rich.console import Console
        from rich.live import Live

        console = Console(file=self.stream, force_terminal=True, no_color=not self.color, highlight=False)
        with Live(console=console, auto_refresh=False, screen=True, vertical_overflow="crop") as live:
            self._live = live
            try:
                yield
            finally:
                self._live = None


def _fitting(lines: Sequence[Line], size: os.terminal_size, hint: str, console: Any) -> Sequence[Line]:
    """The lines that fit on the screen; if that is not all, the last row says how many more there are."""
    # A line that is too long takes several rows. The text of one ends with a line feed: behind it is one row more.
    rows = [len(_rich([one]).wrap(console, size.columns)) - 1 for one in lines]
    if sum(rows) <= size.lines:
        return lines
    taken = list(accumulate(rows))
    shown = sum(until < size.lines for until in taken)
    left = len(lines) - shown
    more = f"and {left} more {'line' if left == 1 else 'lines'}{hint}"
    return [*lines[:shown], line(Span(shorten(more, size.columns), Ink.FAINT))]


def _rich(lines: Sequence[Line]) -> Any:
    from rich.text import Text

    text = Text()
    for one in lines:
        for span in one:
            text.append(span.text, style=COLORS[span.ink])
        text.append("\n")
    return text
