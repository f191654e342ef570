"""A picture of `kubectl gpusharing` (SVG), drawn by the plugin's own code from a fleet that is written down here.

SIMULATED: the fleet. What the plugin says of a real API server's objects is held by tests/integration/golden.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from xml.sax.saxutils import escape

from gpusharing.cli.drawing import BLANK, Ink, Line, Paper, Span, line
from gpusharing.cli.fleet import read_pools
from gpusharing.cli.layouts import find_answer, pick, wanted_of
from gpusharing.cli.layoutstext import describe as describe_layouts
from gpusharing.cli.statustext import describe
from hack.generate_screenshot import CELL, LINE, MARGIN, terminal

PATH = "docs/images/plugin.svg"
TITLE = "kubectl gpusharing on a SIMULATED fleet"
PAPER = Paper(100)
NOW = datetime(2026, 11, 20, 14, 22, tzinfo=UTC)
COLORS: Mapping[Ink, str] = {
    Ink.PLAIN: "#e6e6e6",
    Ink.TITLE: "#ffffff",
    Ink.GOOD: "#8fce00",
    Ink.BUSY: "#5fd7ff",
    Ink.WAITING: "#ffd75f",
    Ink.BAD: "#ff6b6b",
    Ink.FAINT: "#a0a0a0",
}
JSON = dict[str, Any]


def picture() -> Mapping[str, str]:
    """{path: SVG}."""
    pools, loose = read_pools(*_fleet())
    answer = find_answer(pick("h100-80gb"), wanted_of("3g.40gb,1g.20gb"), everything=False)
    lines = [
        _command("kubectl gpusharing status"),
        *describe(pools, loose, NOW, PAPER),
        BLANK,
        _command("kubectl gpusharing layouts h100-80gb --fits 3g.40gb,1g.20gb"),
        *describe_layouts(answer, PAPER)[:-2],
    ]
    return {PATH: svg(lines)}


def _command(text: str) -> Line:
    return line(Span("$ ", Ink.FAINT), Span(text, Ink.TITLE))


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


# --- the fleet -----------------------------------------------------------------------------------------------


def _fleet() -> tuple[list[JSON], list[JSON]]:
    """Four pools; pool-b changes from seven small instances to two large ones, and a budget is in the way."""
    done = [("Cordoned", 40), ("Reconfiguring", 33), ("Synced", 31)]
    nodes = [_node(f"gpu-a-{number}", "pool-a", "4x1g.20gb") for number in range(4)]
    nodes += [_node("gpu-b-0", "pool-b", "2x3g.40gb", history=_history(done))]
    nodes += [
        _node(
            "gpu-b-1",
            "pool-b",
            "2x3g.40gb",
            phase="Draining",
            reason="PDB",
            since=_ago(4),
            deadline="14:31:07Z",
            culprit="team-b/ranker-7c4 +1",
        ),
        _node(
            "gpu-b-2",
            "pool-b",
            "2x3g.40gb",
            phase="Pending",
            reason="BudgetFull",
            since=_ago(9),
            deadline="others",
        ),
    ]
    nodes += [_node(f"gpu-c-{number}", "pool-c", "1x full") for number in range(2)]
    nodes += [_node(f"gpu-d-{number}", "pool-d", "4x shared") for number in range(2)]
    policies = [
        _policy("pool-a", mode="MIG", layout="4x1g.20gb", nodes="4/4", gpus=32, used="97/128"),
        _policy(
            "pool-b",
            mode="MIG",
            layout="2x3g.40gb",
            nodes="1/3",
            gpus=24,
            used="27/32",
            status="Draining",
            message="gpu-b-1: 2 GPU pods left to go; PDB team-b/ranker allows 0 disruptions",
        ),
        _policy("pool-c", mode="Full", layout="1x full", nodes="2/2", gpus=16, used="16/16"),
        _policy("pool-d", mode="TimeSlicing", layout="4x shared", nodes="2/2", gpus=8, used="21/32"),
    ]
    return policies, nodes


def _policy(name: str, **summary: object) -> JSON:
    return {
        "metadata": {"name": name, "generation": 1},
        "spec": {"mode": summary["mode"]},
        "status": {"observedGeneration": 1, "summary": {"status": "Synced", **summary}},
    }


def _node(name: str, policy: str, wanted: str, **told: object) -> JSON:
    transition = {
        "policy": policy,
        "phase": "Synced",
        "reason": "Synced",
        "wanted": wanted,
        "since": _ago(60),
        **told,
    }
    observed: JSON = {"gpus": [{}] * 8, "pods": 0 if transition["phase"] == "Pending" else 2}
    return {"metadata": {"name": name}, "status": {"transition": transition, "observed": observed}}


def _history(steps: Sequence[tuple[str, float]]) -> list[JSON]:
    return [{"phase": phase, "reason": phase, "at": _ago(minutes)} for phase, minutes in steps]


def _ago(minutes: float) -> str:
    return (NOW - timedelta(minutes=minutes)).strftime("%Y-%m-%dT%H:%M:%SZ")
