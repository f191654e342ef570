"""A rollout's timeline, drawn with characters. Pure: a cell is a stretch of time, and a letter is a phase."""

from collections.abc import Mapping
from datetime import datetime, timedelta

from gpusharing.api.names import Phase
from gpusharing.cli.pools.fleet import PoolStatus, State, known_phase
from gpusharing.cli.pools.timeline import Stretch, Timeline, Track, busiest, find_timeline
from gpusharing.cli.shell.ages import counted, length
from gpusharing.cli.shell.drawing import Glyph, Ink, Line, Paper, TextSpan, line, prose, shorten

MOST = 20
"""Nodes that are drawn; -o wide draws all."""
CELLS = 48
"""Of a line, where there is room."""
FEWEST = 8
NAME = 24
"""Characters of a node's name, where room is scarce."""
LETTERS: Mapping[Phase, str] = {
    Phase.CORDONED: "c",
    Phase.WAITING_FOR_JOBS: "w",
    Phase.DRAINING: "d",
    Phase.VERIFYING_IDLE: "i",
    Phase.RECONFIGURING: "r",
    Phase.VERIFYING: "v",
    Phase.UNCORDONING: "u",
    Phase.ABORTING: "a",
}
"""For the phases in which something is done; the others are drawn as the state of the node."""


def describe_timeline(pool: PoolStatus, now: datetime, paper: Paper) -> list[Line]:
    """The last rollout of a pool: a line for each node, from the first change to the last or to now."""
    found = find_timeline(pool, now)
    if found is None:
        return prose("No change of a node is in the histories.", paper, indent="  ", ink=Ink.FAINT)
    tracks = found.tracks if paper.wide else found.tracks[:MOST]
    name = max(len(track.node) for track in tracks)
    name = name if paper.width is None else min(name, NAME, paper.width // 3)
    ends = {track.node: _end(track) for track in tracks}
    tail = max(map(len, ends.values()))
    cells = CELLS if paper.width is None else min(CELLS, paper.width - name - tail - 6)
    if cells < FEWEST and paper.width is not None:
        tail, cells = 0, max(FEWEST, paper.width - name - 4)
    cell = (found.end - found.begin) / cells
    lines = prose(f"{_period(found)}; a cell is {length(cell)}", paper, indent="  ", ink=Ink.FAINT)
    for track in tracks:
        drawn = _cells(track, found.begin, cell, cells, paper)
        row: list[str | TextSpan] = ["  ", shorten(track.node, name).ljust(name), "  ", *drawn]
        lines.append(line(*row, "  ", TextSpan(ends[track.node], Ink.FAINT)) if tail else line(*row))
    if (more := len(found.tracks) - len(tracks)) > 0:
        lines.append(line(TextSpan(f"  and {counted(more, 'more node')}; -o wide draws all", Ink.FAINT)))
    return [*lines, *prose(_legend(tracks, paper), paper, indent="  ", ink=Ink.FAINT)]


def glyph_of(stretch: Stretch) -> Glyph:
    """How a phase is drawn."""
    phase = known_phase(stretch.phase)
    letter = LETTERS.get(phase) if phase is not None else None
    return stretch.state.value if letter is None else Glyph(letter, letter, Ink.BUSY, stretch.phase)


def moment(at: datetime, beside: datetime) -> str:
    """A time of day in UTC, with the date if the other one is on another day."""
    return at.strftime("%H:%M:%SZ" if at.date() == beside.date() else "%Y-%m-%d %H:%M:%SZ")


def _period(found: Timeline) -> str:
    return f"{moment(found.begin, found.end)} to {moment(found.end, found.begin)}"


def _end(track: Track) -> str:
    """The outcome: how long it took, or which phase the node is in."""
    if track.took is not None:
        return length(track.took)
    return track.stretches[-1].phase if track.stretches else ""


def _cells(track: Track, begin: datetime, cell: timedelta, cells: int, paper: Paper) -> Line:
    spans: list[TextSpan] = []
    for number in range(cells):
        shown = busiest(track, begin + number * cell, begin + (number + 1) * cell)
        glyph = Glyph(" ", " ", Ink.PLAIN) if shown is None else glyph_of(shown)
        if spans and spans[-1].ink is glyph.ink:
            spans[-1] = TextSpan(spans[-1].text + glyph.on(paper), glyph.ink)
        else:
            spans.append(TextSpan(glyph.on(paper), glyph.ink))
    return tuple(spans)


def _legend(tracks: tuple[Track, ...], paper: Paper) -> str:
    """What the characters stand for, of those that are there: the phases in their order, then the states."""
    seen = {glyph_of(one).drawn: glyph_of(one) for track in tracks for one in track.stretches}
    order = [*LETTERS.values(), *(state.value.drawn for state in State)]
    return "; ".join(f"{seen[key].on(paper)} {seen[key].word}" for key in order if key in seen)
