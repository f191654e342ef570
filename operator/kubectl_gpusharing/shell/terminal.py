"""Write output, in color to a person's terminal and without color to a pipe, and ask that person questions. rich is
imported only for a terminal."""

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, TextIO, TypeVar

from gpusharing.api.names import GROUP
from kubectl_gpusharing.shell.drawing import Ink, Line, Paper, Span, line, plain, shorten
from kubectl_gpusharing.shell.jsonpath import Parts, parse_template, render

Data = TypeVar("Data", bound=Mapping[str, Any])
"""The type of a document, whose name is its kind followed by Data."""
API = f"cli.{GROUP}/v1alpha1"
"""The apiVersion of all documents of the plugin."""


def ask_line(question: str, answers: TextIO) -> str:
    """Print a question on standard error, so that it is not mixed with data, and return the line that was typed,
    without surrounding whitespace. Raises EOFError at the end of the input. Ctrl-C raises KeyboardInterrupt.

    asyncio would only take note of the first Ctrl-C and keep waiting for the line to end, so Python's own handler is
    installed while the question is open, and the former handler afterwards.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        print(f"{question} ", end="", file=sys.stderr, flush=True)
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
"""The height that is assumed for a terminal of unknown size, as shutil.get_terminal_size does."""


@dataclass(slots=True)
class Terminal:
    """A stream that output is written to, in one format."""

    stream: TextIO
    """The stream that output is written to."""
    output: str = "table"
    """The output format, such as `wide` or `json`, without the template of `jsonpath`."""
    color: bool = False
    """Whether `show` writes colors."""
    width: int | None = None
    """The number of columns, or None if the stream is not a terminal, so that lines may be of any length."""
    measure: Callable[[], os.terminal_size] | None = None
    """Returns the size of the terminal, which may change during a watch, or None if the size never changes."""
    headers: bool = True
    """Whether tables have headings."""
    template: Parts = field(default_factory=list)
    """The parts of the template of -o jsonpath."""
    _live: Any = field(default=None, init=False)
    """The rich Live that draws while `redrawing` is open, otherwise None."""
    _documents: int = field(default=0, init=False)
    """How many JSON or YAML documents have been written."""

    @classmethod
    def of(cls, typed: str, *, color: bool, headers: bool = True) -> "Terminal":
        """Return a Terminal for standard output. `typed` is the value of -o. Colors are off if `color` is false or
        standard output is not a terminal, and if the environment has a NO_COLOR that is not empty
        (https://no-color.org) or TERM=dumb. The width is that of the terminal, or None without one. Raises Trouble if
        the template of -o jsonpath has a mistake."""
        output, equals, template = typed.partition("=")
        parts = parse_template(template) if equals else []
        here = cls(sys.stdout, output, headers=headers, template=parts)
        if here.stream.isatty():
            here.color = color and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
            here.measure = shutil.get_terminal_size
            here.width = here.measure().columns
        return here

    @property
    def paper(self) -> Paper:
        """The `Paper` that output is drawn on. Its width is the terminal's, measured anew while `redrawing`; a pipe has
        none. It shows only ASCII unless the stream's encoding is UTF-8, and is wide with -o wide."""
        unicode = (self.stream.encoding or "").lower().replace("-", "").startswith("utf8")
        width = self._size().columns if self.redraws else self.width
        return Paper(width, glyphs=unicode, wide=self.output == "wide", headers=self.headers)

    @property
    def structured(self) -> bool:
        """Whether the output is data for programs: JSON, YAML, what a template takes from it, or names. False for
        tables, CSV and HTML."""
        return self.output in ("json", "yaml", "jsonpath", "name")

    @property
    def redraws(self) -> bool:
        """Whether the context of `redrawing` is open, so that `show` replaces what it showed before."""
        return self._live is not None

    def data(self, kind: type[Data], value: Data, names: Iterable[str] = ()) -> None:
        """Write `value` with its apiVersion and kind, as `document` does, or with -o name, instead of it, the `names`
        of the objects that it is about, each once, in their order and on its own line. The names are ignored in other
        formats."""
        if self.output == "name":
            self.write("".join(f"{name}\n" for name in dict.fromkeys(names)))
        else:
            self.document({"apiVersion": API, "kind": kind.__name__.removesuffix("Data"), **value})

    def document(self, value: object) -> None:
        """Write a value as YAML or through the template of -o jsonpath if that is the output format, otherwise as JSON.
        Several YAML documents are separated by `---`. The stream is flushed."""
        if self.output == "jsonpath":
            text = render(self.template, value)
        elif self.output == "yaml":
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
        lines: Callable[[Paper], Sequence[Line]],
        rows: Callable[[], Iterable[Iterable[object]]] = tuple,
        names: Iterable[str] = (),
    ) -> None:
        """Write an answer in the output format: `rows` as CSV, `data` of this `kind` and `names` as the method `data`
        does, otherwise `lines`, drawn on `paper`. Only the function for that format is called."""
        if self.output == "csv":
            import csv  # only two verbs write CSV

            csv.writer(self.stream, lineterminator="\n").writerows(rows())
            self.stream.flush()
        elif self.structured:
            self.data(kind, data(), names)
        else:
            self.show(lines(self.paper))

    def write(self, text: str) -> None:
        """Write a string unchanged and flush the stream: during a watch, the next write may be hours away."""
        self.stream.write(text)
        self.stream.flush()

    def warn(self, text: str) -> None:
        """Print a warning on standard error, away from the output that programs read."""
        print(f"warning: {text}", file=sys.stderr, flush=True)

    def progress(self, text: str) -> None:
        """Show a sentence about a long wait on standard error, cut to the width of the terminal, in place of the one
        before; an empty text removes it. Does nothing unless standard error is a terminal."""
        if sys.stderr.isatty():
            print(f"\r\x1b[K{shorten(text, self._size().columns - 1)}", end="", file=sys.stderr, flush=True)

    def show(self, lines: Sequence[Line], hint: str = "", short: Sequence[Line] = ()) -> None:
        """Write the lines. While `redrawing`, they replace the lines shown before. If they do not fit on the screen
        then, `short` is shown instead unless it is empty, also cut to the screen; the last row says how many lines are
        left out, followed by `hint`. Otherwise `short` and `hint` are ignored."""
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
        """Return the size of the terminal: measured now if `measure` is set, otherwise `width` (80 if it is None)
        columns and ROWS rows."""
        return os.terminal_size((self.width or 80, ROWS)) if self.measure is None else self.measure()

    @contextmanager
    def redrawing(self) -> Iterator[None]:
        """Make `show` draw over its earlier output while the context is open. It draws on a screen of its own, which
        the terminal removes at the end. If there is no terminal, and for data (`structured`), output is appended as
        usual and `redraws` stays False."""
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
    """Return `lines` itself if all fit on a screen of this size; a line that is too wide takes several rows. Otherwise
    return the first lines that fit, and a last row that says how many lines are left out, followed by `hint`."""
    # A line that is too long takes several rows. Its line feed at the end counts as one more row in rich.
    rows = [len(_rich([one]).wrap(console, size.columns)) - 1 for one in lines]
    if sum(rows) <= size.lines:
        return lines
    shown = sum(until < size.lines for until in accumulate(rows))
    left = len(lines) - shown
    more = f"and {left} more {'line' if left == 1 else 'lines'}{hint}"
    return [*lines[:shown], line(Span(shorten(more, size.columns), Ink.FAINT))]


def _rich(lines: Sequence[Line]) -> Any:
    """Return the lines as a rich Text in the colors of their inks, with a line feed after each."""
    from rich.text import Text

    return Text.assemble(*((span.text, COLORS[span.ink]) for one in lines for span in (*one, Span("\n"))))
