"""A picture of `make demo` (SVG), drawn by the plugin's own code from what stood in the middle of a run of it.

SIMULATED: the fleet, 100 times as fast as we assume a real one to be. What the plugin says of a real API server's
objects is held by tests/integration/golden.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from xml.sax.saxutils import escape

from gpusharing.cli.pools.fleet import read_pools
from gpusharing.cli.pools.status import describe
from gpusharing.cli.setup.layouts import describe as describe_layouts
from gpusharing.cli.setup.layouts import find_answer, pick, wanted_of
from gpusharing.cli.shell.drawing import BLANK, Ink, Line, Paper, TextSpan, line
from hack.demo.record import RECORD
from hack.generate_screenshot import CELL, LINE, MARGIN, terminal

PATH = "docs/images/plugin.svg"
TITLE = "make demo, half way: kubectl gpusharing on a SIMULATED fleet, 100 times as fast as we assume a real one to be"
PAPER = Paper(100)
COLORS: Mapping[Ink, str] = {
    Ink.PLAIN: "#e6e6e6",
    Ink.TITLE: "#ffffff",
    Ink.GOOD: "#8fce00",
    Ink.BUSY: "#5fd7ff",
    Ink.WAITING: "#ffd75f",
    Ink.BAD: "#ff6b6b",
    Ink.FAINT: "#a0a0a0",
}


def picture() -> Mapping[str, str]:
    """{path: SVG}."""
    answer = find_answer(pick("h100-80gb"), wanted_of("3g.40gb,1g.20gb"), everything=False)
    lines = [
        _command("kubectl gpusharing status"),
        *status(RECORD),
        BLANK,
        _command("kubectl gpusharing layouts h100-80gb --fits 3g.40gb,1g.20gb"),
        *describe_layouts(answer, PAPER)[:-2],
    ]
    return {PATH: svg(lines)}


def status(record: Path) -> list[Line]:
    """What `kubectl gpusharing status` said when the record was taken (hack/demo/record.py)."""
    taken = json.loads(record.read_text())
    pools, loose = read_pools(taken["policies"], taken["gpunodes"])
    return describe(pools, loose, datetime.fromisoformat(taken["taken"]), PAPER)


def _command(text: str) -> Line:
    return line(TextSpan("$ ", Ink.FAINT), TextSpan(text, Ink.TITLE))


def svg(lines: Sequence[Line]) -> str:
    """The lines as a terminal would show them; each piece of text is as wide as its characters."""
    rows = (row for number, one in enumerate(lines) for row in _row(one, 3 * MARGIN + number * LINE))
    columns = max(sum(len(span.text) for span in one) for one in lines)
    return terminal(TITLE, "hack/generate_picture.py", rows, columns=columns, lines=len(lines))


def _row(one: Line, y: int) -> list[str]:
    rows, at = [], 0
    for span in one:
        if span.text.strip():
            x, length = MARGIN + at * CELL, len(span.text) * CELL
            rows.append(
                f'<text x="{x:.1f}" y="{y}" xml:space="preserve" textLength="{length:.1f}"'
                f' lengthAdjust="spacingAndGlyphs" fill="{COLORS[span.ink]}">{escape(span.text)}</text>'
            )
        at += len(span.text)
    return rows
