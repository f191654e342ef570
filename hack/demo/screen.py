"""The output of the demo: plain lines of at most 100 columns, and a check mark for each check that passed."""

import sys
import textwrap
import time
from typing import TextIO

WIDTH = 100


class DemoFailed(Exception):
    """A check of the demo failed; the message says what was expected."""


class Screen:
    def __init__(self, out: TextIO | None = None, *, color: bool = True, quiet: bool = False) -> None:
        self.out = out or sys.stdout
        self.color = color and self.out.isatty()
        self.quiet = quiet
        self.checks = 0
        self.begin = time.monotonic()
        encoding = (self.out.encoding or "ascii").lower()
        self._tick = "✓" if encoding.startswith("utf") else "ok"

    def heading(self, text: str) -> None:
        """Print the heading of a new chapter, with the seconds since the demo began, even with `quiet`."""
        seconds = time.monotonic() - self.begin
        self._line("")
        self._line(self._paint(f"{text:<{WIDTH - 10}} {seconds:7.1f} s", "1"))

    def banner(self, text: str) -> None:
        """Print a highlighted notice, even with `quiet`."""
        for line in textwrap.wrap(text, WIDTH):
            self._line(self._paint(line, "33"))

    def say(self, text: str) -> None:
        """Print a sentence that says what happens and why, unless `quiet` is set."""
        if not self.quiet:
            for line in textwrap.wrap(text, WIDTH):
                self._line(line)

    def command(self, text: str) -> None:
        """Print a command after a prompt, broken with backslashes if it is too long."""
        if self.quiet:
            return
        lines = textwrap.wrap(f"$ {text}", WIDTH - 2, subsequent_indent="    ", break_on_hyphens=False)
        self._line(self._paint(" \\\n".join(lines), "36"))

    def output(self, text: str) -> None:
        """Print the output of a program, indented, or nothing with `quiet`."""
        if self.quiet:
            return
        lines = text.rstrip().splitlines()
        indent = last_column(lines[0]) if lines else 0
        for line in lines:
            for part in fold(line, indent):
                self._line(f"  {part}")

    def check(self, what: str, condition: bool) -> None:
        """Count and print `what` as a check that passed, even with `quiet`."""
        if not condition:
            raise DemoFailed(what)
        self.checks += 1
        first, *rest = textwrap.wrap(what, WIDTH - len(self._tick) - 3)
        self._line(f"  {self._paint(self._tick, '32')} {first}")
        for line in rest:
            self._line(f"  {' ' * len(self._tick)} {line}")

    def _paint(self, text: str, code: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.color else text

    def _line(self, text: str) -> None:
        print(text, file=self.out, flush=True)


def last_column(header: str) -> int:
    """Return the offset at which the last column of a table with this header line begins."""
    gap = header.rstrip().rfind("   ")
    return gap + 3 if header.isupper() and 0 < gap < WIDTH * 2 // 3 else 4


def fold(line: str, indent: int) -> list[str]:
    """Split a line, without its trailing spaces, into pieces that fit on the screen."""
    line = line.rstrip()
    if len(line) <= WIDTH - 2:
        return [line]
    head = line[:indent]
    folded = textwrap.wrap(line[indent:], WIDTH - 2 - indent, break_on_hyphens=False)
    return [head + folded[0], *(" " * indent + part for part in folded[1:])]
