"""A pool's last rollout in time: which node was in which phase from when to when, from the nodes' histories, and drawn
with characters. Pure.

A history holds the last 20 transitions of a node, so what is older than these is not there.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from gpusharing.api.names import Phase
from gpusharing.api.times import from_rfc3339
from gpusharing.cli.pools.fleet import PoolStatus, Seen, State, known_phase, state_of
from gpusharing.cli.shell.drawing import Glyph, Ink, Line, Paper, Span, bar, length, line, prose, shorten
from gpusharing.planning.vocabulary.lengths import counted

REST = timedelta(days=1)
"""Changes with less than this between them are one rollout: with windows it continues each night."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """A node in one phase."""

    phase: str
    """The phase."""
    reason: str
    """Why the node was in it."""
    begin: datetime
    """When it entered it."""
    end: datetime
    """When it left it, or now."""

    @property
    def state(self) -> State:
        """How the node stood."""
        return state_of(self.phase)

    @property
    def moves(self) -> bool:
        """The change was under way: in a phase of one, or failed in it."""
        phase = known_phase(self.phase)
        return phase is not None and phase.in_flight


@dataclass(frozen=True, slots=True)
class Track:
    """One node on its way."""

    node: str
    """Name of the node."""
    stretches: tuple[Stretch, ...]
    """One after the other, the oldest first."""
    took: timedelta | None
    """From the beginning of the change to its good end; None: it has not succeeded, or not begun."""


@dataclass(frozen=True, slots=True)
class Timeline:
    """A rollout from its first change to its last, or to now if it is not over."""

    begin: datetime
    """When the first change began."""
    end: datetime
    """When the last change ended, or now."""
    tracks: tuple[Track, ...]
    """In the order in which the changes began; nodes whose change has not begun come last."""


def find_timeline(pool: PoolStatus, now: datetime) -> Timeline | None:
    """The last rollout of a pool. None: the histories show no change."""
    changes = [(seen, change) for seen in pool.members if (change := _last_change(seen, now))]
    begin = _beginning([moving for _, change in changes if (moving := _moving(change))])
    if begin is None:
        return None
    shown = [(seen, change) for seen, change in changes if _belongs(seen, change, begin)]
    over = all(seen.state is State.DONE for seen, _ in shown)
    # A change that ended well leaves room for its end to be seen.
    end = max(change[-1].begin if over else change[-1].end for _, change in shown)
    if over:
        end += (end - begin) / 20
    tracks = [_track(seen.name, change, begin, end) for seen, change in shown]
    return Timeline(begin, end, tuple(sorted(tracks, key=lambda track: _order(track, end))))


def _last_change(seen: Seen, now: datetime) -> tuple[Stretch, ...]:
    """What the history shows after the state of rest before the last one; empty: nothing but rest."""
    steps = [(step, at) for step in seen.history if (at := from_rfc3339(step.at)) is not None]
    ends = [*(at for _, at in steps), now][1:]
    stretches = [
        Stretch(step.phase, step.reason, at, max(at, end))
        for (step, at), end in zip(steps, ends, strict=True)
    ]
    rests = [number for number, one in enumerate(stretches[:-1]) if one.state is State.DONE]
    change = stretches[rests[-1] + 1 :] if rests else stretches
    return tuple(change) if any(one.state is not State.DONE for one in change) else ()


def _moving(change: Sequence[Stretch]) -> tuple[datetime, datetime] | None:
    """From when to when something was done on the node."""
    moving = [one for one in change if one.moves]
    return (moving[0].begin, moving[-1].end) if moving else None


def _beginning(spans: Iterable[tuple[datetime, datetime]]) -> datetime | None:
    """Of the last rollout; None: there was none."""
    begin: datetime | None = None
    for first, last in sorted(spans, key=lambda span: span[1], reverse=True):
        if begin is not None and begin - last > REST:
            break
        begin = first if begin is None else min(begin, first)
    return begin


def _belongs(seen: Seen, change: Sequence[Stretch], begin: datetime) -> bool:
    moving = _moving(change)
    return seen.state is not State.DONE or (moving is not None and moving[0] >= begin)


def _order(track: Track, end: datetime) -> tuple[datetime, str]:
    return next((one.begin for one in track.stretches if one.moves), end), track.node


def _track(node: str, change: Sequence[Stretch], begin: datetime, end: datetime) -> Track:
    """Return what a change of a node shows of a rollout from `begin` to `end`."""
    cut = (replace(one, begin=max(one.begin, begin), end=min(one.end, end)) for one in change)
    moving = _moving(change)
    took = None if moving is None or change[-1].state is not State.DONE else change[-1].begin - moving[0]
    return Track(node, tuple(one for one in cut if one.begin < one.end), took)


def busiest(track: Track, begin: datetime, end: datetime) -> Stretch | None:
    """What a cell of this time shows: what needs a person, else what lasted longest. None: nothing is known of it."""
    found: Stretch | None = None
    most = (False, timedelta(0))
    for one in track.stretches:
        lasted = min(one.end, end) - max(one.begin, begin)
        weight = (one.state in (State.BLOCKED, State.FAILED), lasted)
        if lasted > timedelta(0) and weight >= most:
            found, most = one, weight
    return found


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
    ends = {track.node: _outcome(track) for track in tracks}
    tail = max(map(len, ends.values()))
    cells = CELLS if paper.width is None else min(CELLS, paper.width - name - tail - 6)
    if cells < FEWEST and paper.width is not None:
        tail, cells = 0, max(FEWEST, paper.width - name - 4)
    cell = (found.end - found.begin) / cells
    period = f"{moment(found.begin, found.end)} to {moment(found.end, found.begin)}"
    lines = prose(f"{period}; a cell is {length(cell)}", paper, indent="  ", ink=Ink.FAINT)
    for track in tracks:
        drawn = _cells(track, found.begin, cell, cells, paper)
        row: list[str | Span] = ["  ", shorten(track.node, name).ljust(name), "  ", *drawn]
        lines.append(line(*row, "  ", Span(ends[track.node], Ink.FAINT)) if tail else line(*row))
    if (more := len(found.tracks) - len(tracks)) > 0:
        lines.append(line(Span(f"  and {counted(more, 'more node')}; -o wide draws all", Ink.FAINT)))
    return [*lines, *prose(_legend(tracks, paper), paper, indent="  ", ink=Ink.FAINT)]


def glyph_of(stretch: Stretch) -> Glyph:
    """How a phase is drawn."""
    phase = known_phase(stretch.phase)
    letter = LETTERS.get(phase) if phase is not None else None
    return stretch.state.value if letter is None else Glyph(letter, letter, Ink.BUSY, stretch.phase)


def moment(at: datetime, beside: datetime) -> str:
    """A time of day in UTC, with the date if the other one is on another day."""
    return at.strftime("%H:%M:%SZ" if at.date() == beside.date() else "%Y-%m-%d %H:%M:%SZ")


def _outcome(track: Track) -> str:
    """How long the change took, or which phase the node is in."""
    if track.took is not None:
        return length(track.took)
    return track.stretches[-1].phase if track.stretches else ""


def _cells(track: Track, begin: datetime, cell: timedelta, cells: int, paper: Paper) -> Line:
    shown = (busiest(track, begin + number * cell, begin + (number + 1) * cell) for number in range(cells))
    glyphs = [Glyph(" ", " ", Ink.PLAIN) if one is None else glyph_of(one) for one in shown]
    return bar(glyphs, paper, cells)


def _legend(tracks: tuple[Track, ...], paper: Paper) -> str:
    """What the characters stand for, of those that are there: the phases in their order, then the states."""
    seen = {glyph_of(one).drawn: glyph_of(one) for track in tracks for one in track.stretches}
    order = [*LETTERS.values(), *(state.value.drawn for state in State)]
    return "; ".join(f"{seen[key].on(paper)} {seen[key].word}" for key in order if key in seen)
