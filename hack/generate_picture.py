"""Pictures of a terminal (SVG), for the docs and the chart's page on Artifact Hub.

One shows the middle of `make demo`, and one is a recording of the rollout in it. Both are drawn by the plugin's own
code from what hack/demo/record.py wrote. The fleet is SIMULATED, and runs 100 times as fast as a real one is assumed
to. The third shows the output of `kubectl get`. Its text is that of tests/integration/golden, which a test compares
with kubectl's output on a real API server.
"""

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from xml.sax.saxutils import escape

from gpusharing.kube.client import JSON
from hack.demo.record import RECORD
from kubectl_gpusharing.pools.fleet import read_node, read_pools
from kubectl_gpusharing.pools.status import describe
from kubectl_gpusharing.setup.layouts import describe as describe_layouts
from kubectl_gpusharing.setup.layouts import find_answer, pick, wanted_of
from kubectl_gpusharing.shell.drawing import BLANK, Ink, Line, PrintOptions, Span, line

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "integration" / "golden"
PATH = "docs/images/plugin.svg"
TITLE = "make demo, half way: kubectl gpusharing on a SIMULATED fleet, 100 times as fast as we assume a real one to be"
ROLLOUT_PATH = "docs/images/rollout.svg"
ROLLOUT_TITLE = "A rollout in make demo: SIMULATED nodes, 100 times as fast as we assume real ones to be"
FRAME_SECONDS = 2.0
"""How long the recording of a rollout shows each state."""
SCREENSHOT_PATH = "docs/images/kubectl-get.svg"
SCREENSHOT_TITLE = "kubectl get on nodes with SIMULATED GPUs; columns of times are left out"
COMMANDS = {"kubectl get gpusharingpolicies": "get-gsp.txt", "kubectl get gpunodes": "get-gpun.txt"}
TIMES = {"AGE", "SINCE", "DEADLINE"}
"""Columns that differ from run to run, which the golden files mask."""
CELL, LINE, MARGIN = 8.4, 20, 20
"""The width of a character at 14 px, the height of a line, and the margin, in pixels."""
OPTIONS = PrintOptions(100)
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
    """Return the pictures of the demo as SVG files, by their paths: its middle, where `status` shows the fleet and
    `layouts` the ones of a card, without the two lines with which that output ends; and the recording of a rollout,
    with the states of pool-b."""
    answer = find_answer(pick("h100-80gb"), wanted_of("3g.40gb,1g.20gb"), everything=False)
    recorded = json.loads(RECORD.read_text())
    lines = [
        _command("kubectl gpusharing status"),
        *status(recorded["fleet"]),
        BLANK,
        _command("kubectl gpusharing layouts h100-80gb --fits 3g.40gb,1g.20gb"),
        *describe_layouts(answer, OPTIONS)[:-2],
    ]
    watching = _command("kubectl gpusharing status pool-b --watch")
    frames = [[watching, *status(state)] for state in recorded["rollout"]]
    return {
        PATH: svg([lines], TITLE, "hack/generate_picture.py"),
        ROLLOUT_PATH: svg(frames, ROLLOUT_TITLE, "hack/generate_picture.py"),
    }


def status(state: JSON) -> list[Line]:
    """Return the lines that the present `kubectl gpusharing status` prints for the policies and GPUNodes of a recorded
    state, as of the time when it was taken (hack/demo/record.py)."""
    pools, unowned = read_pools(state["policies"], map(read_node, state["gpunodes"]))
    return describe(pools, unowned, datetime.fromisoformat(state["taken"]), OPTIONS)


def screenshot() -> Mapping[str, str]:
    """Return one item: the path of the picture and its content, an SVG file."""
    lines: list[Line] = []
    for command, file in COMMANDS.items():
        table = without_times((GOLDEN / file).read_text().splitlines())
        lines += [line(Span(f"$ {command}", Ink.GOOD)), *map(line, table), BLANK]
    return {SCREENSHOT_PATH: svg([lines[:-1]], SCREENSHOT_TITLE, "tests/integration/golden")}


def without_times(table: list[str]) -> list[str]:
    """Return the rows of a table that kubectl printed, without the columns in TIMES."""
    header = [(match.group(), match.start()) for match in re.finditer(r"\S+", table[0])]
    ends = [start for _, start in header[1:]] + [None]
    columns = [(start, end) for (name, start), end in zip(header, ends, strict=True) if name not in TIMES]
    return ["".join(row[start:end].ljust((end or start) - start) for start, end in columns).rstrip() for row in table]


def _command(text: str) -> Line:
    return line(Span("$ ", Ink.FAINT), Span(text, Ink.TITLE))


def svg(frames: Sequence[Sequence[Line]], title: str, source: str) -> str:
    """Return an SVG that shows several frames in turn; a viewer without animations gets the frame with the most
    lines."""
    columns = max(sum(len(span.text) for span in text) for lines in frames for text in lines)
    most = max(map(len, frames))
    width, height = round(columns * CELL) + 2 * MARGIN, most * LINE + 3 * MARGIN
    return "\n".join(
        [
            f"<!-- generated by `make gen` from {source}; do not edit -->",
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}"'
            f' viewBox="0 0 {width} {height}" font-family="monospace" font-size="14">',
            f"<title>{title}</title>",
            f'<rect width="{width}" height="{height}" rx="8" fill="#1e1e1e"/>',
            f'<text x="{MARGIN}" y="{MARGIN + 6}" font-size="12" fill="#a0a0a0">{title}</text>',
            *(_rows(frames[0]) if len(frames) == 1 else _animation(frames)),
            "</svg>\n",
        ]
    )


def _animation(frames: Sequence[Sequence[Line]]) -> list[str]:
    still = max(range(len(frames)), key=lambda number: len(frames[number]))
    seconds = len(frames) * FRAME_SECONDS
    elements = [
        "<style>",
        f".frame{{visibility:hidden;animation:show {seconds:g}s step-end infinite}}",
        f"@keyframes show{{0%{{visibility:visible}}{100 / len(frames):.4f}%{{visibility:hidden}}}}",
        ".still{visibility:visible}",
        "@media (prefers-reduced-motion:reduce){.frame{animation:none}}",
        "</style>",
    ]
    for number, lines in enumerate(frames):
        names = "frame still" if number == still else "frame"
        # Below 0, so that every frame's animation runs from the first moment.
        delay = number * FRAME_SECONDS - seconds
        elements += [f'<g class="{names}" style="animation-delay:{delay:g}s">', *_rows(lines), "</g>"]
    return elements


def _rows(lines: Sequence[Line]) -> list[str]:
    return [row for number, text in enumerate(lines) for row in _row(text, 3 * MARGIN + number * LINE)]


def _row(text: Line, y: int) -> list[str]:
    rows, at = [], 0
    for span in text:
        if span.text.strip():
            x, length = MARGIN + at * CELL, len(span.text) * CELL
            rows.append(
                f'<text x="{x:.1f}" y="{y}" xml:space="preserve" textLength="{length:.1f}"'
                f' lengthAdjust="spacingAndGlyphs" fill="{COLORS[span.ink]}">{escape(span.text)}</text>'
            )
        at += len(span.text)
    return rows
