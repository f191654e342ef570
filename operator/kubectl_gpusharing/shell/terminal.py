"""What is printed: text, JSON or YAML, wide or narrow, in color or not?

Output to a pipe has no color. rich is imported only for a terminal.
"""

import json
import os
import select
import shutil
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, TextIO, TypeVar

from gpusharing.api.names import GROUP
from kubectl_gpusharing.shell.drawing import Ink, Line, PrintOptions, Span, line, plain, shorten

Data = TypeVar("Data", bound=Mapping[str, Any])
"""The type of a document, whose name is its kind followed by Data."""
API = f"cli.{GROUP}/v1alpha1"


def ask_line(question: str, answers: TextIO) -> str:
    """Ask on standard error, so that the question is not mixed with data. Raises EOFError at the end of the input.

    asyncio would only take note of the first Ctrl-C and keep waiting for the line to end, so Python's own handler is
    installed while the question is open. A Ctrl-C just before a read would be noticed only after it, so no read begins
    before there is something to read.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        print(f"{question} ", end="", file=sys.stderr, flush=True)
        while answers.isatty() and not select.select([answers], [], [], 0.2)[0]:
            pass
        if not (answer := answers.readline()):
            raise EOFError
        return answer.strip()
    finally:
        signal.signal(signal.SIGINT, before)


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
"""The assumed height of a terminal of unknown size, as in shutil.get_terminal_size."""


@dataclass(slots=True)
class Terminal:
    """A stream that output is written to, in one format."""

    stream: TextIO
    output: str = "table"
    color: bool = False
    width: int | None = None
    """The number of columns, or None if the stream is not a terminal."""
    measure: Callable[[], os.terminal_size] | None = None
    """Returns the size of the terminal, which may change during a watch; None if it never changes."""
    headers: bool = True
    _live: Any = field(default=None, init=False)
    """The rich Live that draws while `redrawing` is open."""
    _documents: int = field(default=0, init=False)

    @classmethod
    def of(cls, output: str, *, color: bool, headers: bool = True) -> "Terminal":
        """Return a Terminal for standard output, without colors if NO_COLOR is set (https://no-color.org)."""
        here = cls(sys.stdout, output, headers=headers)
        if here.stream.isatty():
            here.color = color and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
            here.measure = shutil.get_terminal_size
            here.width = here.measure().columns
        return here

    @property
    def options(self) -> PrintOptions:
        unicode = (self.stream.encoding or "").lower().replace("-", "").startswith("utf8")
        width = self._size().columns if self.redraws else self.width
        return PrintOptions(width, glyphs=unicode, wide=self.output == "wide", headers=self.headers)

    @property
    def structured(self) -> bool:
        return self.output in ("json", "yaml", "name")

    @property
    def redraws(self) -> bool:
        """Whether the context of `redrawing` is open, so that `show` replaces what it showed before."""
        return self._live is not None

    def data(self, kind: type[Data], value: Data, names: Iterable[str] = ()) -> None:
        """Write `value` with its apiVersion and kind or, with -o name, the `names` of the objects that it is about."""
        if self.output == "name":
            self.write("".join(f"{name}\n" for name in dict.fromkeys(names)))
        else:
            self.document({"apiVersion": API, "kind": kind.__name__.removesuffix("Data"), **value})

    def document(self, value: object) -> None:
        if self.output == "yaml":
            import yaml  # importing it takes as long as all the rest of a short command

            text = yaml.safe_dump(value, sort_keys=False, allow_unicode=True)
            text = f"---\n{text}" if self._documents else text
        else:
            text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
        self._documents += 1
        self.write(text)

    def answer(
        self,
        kind: type[Data],
        data: Callable[[], Data],
        lines: Callable[[PrintOptions], Sequence[Line]],
        rows: Callable[[], Iterable[Iterable[object]]] = tuple,
        names: Iterable[str] = (),
    ) -> None:
        """Write an answer in the output format; only what that format needs is computed."""
        if self.output == "csv":
            import csv  # only two verbs write CSV

            csv.writer(self.stream, lineterminator="\n").writerows(rows())
            self.stream.flush()
        elif self.structured:
            self.data(kind, data(), names)
        else:
            self.show(lines(self.options))

    def write(self, text: str) -> None:
        self.stream.write(text)
        self.stream.flush()  # during a watch, the next write may be hours away

    def warn(self, text: str) -> None:
        print(f"warning: {text}", file=sys.stderr, flush=True)

    def progress(self, text: str) -> None:
        """Show a sentence about a long wait on standard error, in place of the one before; an empty one removes it."""
        if sys.stderr.isatty():
            print(f"\r\x1b[K{shorten(text, self._size().columns - 1)}", end="", file=sys.stderr, flush=True)

    def show(self, lines: Sequence[Line], hint: str = "", short: Sequence[Line] = ()) -> None:
        """Write the lines. On a screen that is too small, write `short` or their beginning, and the hint."""
        if self._live is not None:
            self._live.console.size = size = self._size()
            fitting = _fitting(lines, size, hint, self._live.console)
            if short and fitting is not lines:
                fitting = _fitting(short, size, hint, self._live.console)
            self._live.update(_rich(fitting), refresh=True)
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
        """Make `show` draw over its earlier output while the context is open."""
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
    # A line that is too long takes several rows. Its line feed at the end counts as one more row in rich.
    rows = [len(_rich([one]).wrap(console, size.columns)) - 1 for one in lines]
    if sum(rows) <= size.lines:
        return lines
    shown = sum(until < size.lines for until in accumulate(rows))
    left = len(lines) - shown
    more = f"and {left} more {'line' if left == 1 else 'lines'}{hint}"
    return [*lines[:shown], line(Span(shorten(more, size.columns), Ink.FAINT))]


def _rich(lines: Sequence[Line]) -> Any:
    from rich.text import Text

    return Text.assemble(*((span.text, COLORS[span.ink]) for one in lines for span in (*one, Span("\n"))))
