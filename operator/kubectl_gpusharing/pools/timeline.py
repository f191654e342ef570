"""A pool's last rollout over time: which node was in which phase, from when to when, and how long the rest of the
change may take, judging by past changes. It is reconstructed from the nodes' histories and drawn with characters. Pure.

A history holds the last 20 transitions of a node; older ones are unknown.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from operator import itemgetter
from statistics import median
from typing import Self

from gpusharing.api.names import Phase
from gpusharing.api.times import from_rfc3339
from gpusharing.planning.vocabulary.lengths import counted
from kubectl_gpusharing.pools.fleet import OTHERS, PERSON, NodeStatus, PoolStatus, State, state_of
from kubectl_gpusharing.shell.drawing import Glyph, Ink, Line, Paper, Span, bar, length, line, prose, shorten

REST = timedelta(days=1)
"""Changes with at most this much time between them belong to one rollout: one with windows continues each night."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """A period in which a node stayed in one phase."""

    phase: str
    """Name of the phase."""
    reason: str
    """Why the node was in the phase."""
    begin: datetime
    """When the node entered the phase."""
    end: datetime
    """When the node left the phase, or now if it is still in it."""

    @property
    def state(self) -> State:
        """The state of the node in that phase."""
        return state_of(self.phase)

    @property
    def moves(self) -> bool:
        """Whether the phase belongs to a change that has begun and is not over, as Draining, Aborting and Failed do.
        False before and after a change (Pending, Preflight, Skipped, Blocked, Synced), and for a phase that this
        version does not know."""
        return self.state in (State.MOVES, State.FAILED)


@dataclass(frozen=True, slots=True)
class Track:
    """The phases of one node during a rollout."""

    node: str
    """Name of the node."""
    stretches: tuple[Stretch, ...]
    """The periods of the node in its phases, the oldest first."""
    took: timedelta | None
    """How long the whole change took, from the first phase that belongs to it (`Stretch.moves`, so without Pending or
    Blocked) to Synced; None if it has not succeeded yet."""

    @property
    def span(self) -> tuple[datetime, datetime] | None:
        """The beginning of the first period that belongs to a change (`Stretch.moves`; Failed does), and the end of the
        last one, which is now if the node is still in it. None if there is no such period."""
        moving = [one for one in self.stretches if one.moves]
        return (moving[0].begin, moving[-1].end) if moving else None

    def within(self, begin: datetime, end: datetime) -> Self:
        """Return the track between `begin` and `end`: periods outside are left out, others are cut. `took` stays."""
        cut = (replace(one, begin=max(one.begin, begin), end=min(one.end, end)) for one in self.stretches)
        return replace(self, stretches=tuple(one for one in cut if one.begin < one.end))


@dataclass(frozen=True, slots=True)
class Timeline:
    """A rollout, from the beginning of its first change to the end of its last, or to now if it is not over."""

    begin: datetime
    """When the first change began."""
    end: datetime
    """When the last change ended, or now."""
    tracks: tuple[Track, ...]
    """The nodes, in the order in which their changes began; those whose change has not begun come last."""


def find_timeline(pool: PoolStatus, now: datetime) -> Timeline | None:
    """Return the last rollout of a pool: the nodes that are not done, also those yet to change, and the done nodes
    whose change is part of it. A node whose history is empty or shows only Synced is left out. If all are done, the
    rollout ends a twentieth of its length after the last change, so that the picture has room for Synced. A track has
    only the part of a change that lies within the rollout, but its duration is that of the whole change. Return None if
    no node's history contains a phase of a change."""
    tracks = [track for node in pool.members if (track := _last_change(node, now)).stretches]
    begin = _beginning(tracks)
    if begin is None:
        return None
    done = {node.name for node in pool.members if node.state is State.DONE}
    tracks = [one for one in tracks if one.node not in done or (one.span and one.span[0] >= begin)]
    over = done.issuperset(one.node for one in tracks)
    # Some room after a successful change makes its end visible.
    end = max(one.stretches[-1].begin if over else one.stretches[-1].end for one in tracks)
    if over:
        end += (end - begin) / 20
    tracks = [track.within(begin, end) for track in tracks]
    tracks.sort(key=lambda track: (track.span[0] if track.span else end, track.node))
    return Timeline(begin, end, tuple(tracks))


def read_stretches(node: NodeStatus, now: datetime) -> list[Stretch]:
    """Return the periods in the history of a node, the oldest first. Entries without a readable time are ignored. Each
    period lasts until the next entry, and the last until `now`; none ends before it begins."""
    steps = [(step, at) for step in node.history if (at := from_rfc3339(step.at)) is not None]
    ends = [*(at for _, at in steps), now][1:]
    return [
        Stretch(step.phase, step.reason, at, max(at, end))
        for (step, at), end in zip(steps, ends, strict=True)
    ]


def _last_change(node: NodeStatus, now: datetime) -> Track:
    """Return the track of a node since it was last Synced, or of its whole history if it never was. If it is Synced
    again, that last period is included, because it ends the change. The track has no periods if these would be nothing
    but Synced."""
    stretches = read_stretches(node, now)
    rests = [number for number, one in enumerate(stretches[:-1]) if one.state is State.DONE]
    change = stretches[rests[-1] + 1 :] if rests else stretches
    moving = [one for one in change if one.moves]
    took = change[-1].begin - moving[0].begin if moving and change[-1].state is State.DONE else None
    changed = any(one.state is not State.DONE for one in change)
    return Track(node.name, tuple(change) if changed else (), took)


def _beginning(tracks: Iterable[Track]) -> datetime | None:
    """Return when the last rollout began, or None if no track has a phase of a change. Going back from the change that
    ended last (`Track.span`), a change belongs to the rollout if at most REST lies between its end and the beginning of
    the rollout so far."""
    spans = [track.span for track in tracks if track.span]
    begin: datetime | None = None
    for first, last in sorted(spans, key=lambda span: span[1], reverse=True):
        if begin is not None and begin - last > REST:
            break
        begin = first if begin is None else min(begin, first)
    return begin


# --- how long the change under way may still take -----------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Estimate:
    """The time that is left, and the numbers that it is based on."""

    left: timedelta
    """How long the rest of the change may take."""
    nodes: int
    """How many nodes still have to change."""
    each: timedelta
    """The median length of the past changes."""
    changes: int
    """How many past changes there were."""


def find_estimate(pool: PoolStatus, now: datetime) -> Estimate | None:
    """Return how long the rest of a pool's change may take, in which all nodes that are not done still change. Return
    None if nothing is left, if no past change is known, or if the end cannot be foreseen: the pool is paused, a node is
    blocked, skipped or failed, a node waits for a person, a window or the canary's soak, a node has been changing for
    longer than any past change took, or no node is changing and all wait for other nodes or programs. Otherwise as many
    nodes as are changing now are assumed to change at a time, at least one, each for the median of the past changes;
    the least time that a change under way has taken already is subtracted."""
    left = [node for node in pool.members if node.state is not State.DONE]
    open_ended = any(
        node.state in (State.BLOCKED, State.FAILED)
        or node.deadline == PERSON
        or node.reason in ("WindowClosed", "CanarySoak")
        for node in left
    )
    if not left or pool.paused or open_ended:
        return None
    changes = [read_changes(node, now) for node in pool.members]
    took, gone = [one for past, _ in changes for one in past], [one for _, one in changes if one is not None]
    if not took:
        return None
    each = timedelta(seconds=median(one.total_seconds() for one in took))
    if any(one > max(took) for one in gone) or not (gone or any(node.deadline != OTHERS for node in left)):
        return None
    rounds = -(-len(left) // max(1, len(gone)))
    rest = each * rounds - min(gone, default=timedelta())
    return Estimate(max(rest, timedelta()), len(left), each, len(took))


def read_changes(node: NodeStatus, now: datetime) -> tuple[list[timedelta], timedelta | None]:
    """Return how long each past change of a node took, from its first phase to Synced, and how long the one that is
    under way has taken so far. Both are without the time in Failed: a change that failed and was then retried to Synced
    counts as one. A change that does not end in Synced, such as one that was given up, is left out. If the history no
    longer includes the beginning of a change, it is measured from the oldest phase. The second result is None unless
    the node is in the state MOVES. Without a history, that change began when the node entered its phase."""
    lengths: list[timedelta] = []
    # The phase that the node is in may be missing in the history; its time then counts as that of the change.
    taken = now - node.entered if node.entered is not None and not node.history else None
    for stretch in read_stretches(node, now):
        if stretch.moves:
            lasted = timedelta() if stretch.state is State.FAILED else stretch.end - stretch.begin
            taken = lasted if taken is None else taken + lasted
            continue
        if taken is not None and stretch.state is State.DONE:
            lengths.append(taken)
        taken = None
    return lengths, taken if node.state is State.MOVES else None


# --- drawn with characters -----------------------------------------------------------------------------------

MOST = 20
"""How many nodes are drawn; -o wide shows them all."""
CELLS = 48
"""The number of cells in a line, if there is room."""
FEWEST = 8
NAME = 24
"""How many characters of a node's name are shown, if the paper has a width."""
LETTERS: Mapping[str, str] = {
    Phase.CORDONED: "c",
    Phase.WAITING_FOR_JOBS: "w",
    Phase.DRAINING: "d",
    Phase.VERIFYING_IDLE: "i",
    Phase.RECONFIGURING: "r",
    Phase.VERIFYING: "v",
    Phase.UNCORDONING: "u",
    Phase.ABORTING: "a",
}
"""The letters of the phases of a change, except Failed. The other phases are drawn as the state of the node."""


def describe_timeline(pool: PoolStatus, now: datetime, paper: Paper) -> list[Line]:
    """Draw the last rollout of a pool: its period, a line for each node, and a legend. A line ends with how long the
    change took or the phase that the node is in, unless the paper is too narrow for that beside FEWEST cells of
    drawing. At most MOST nodes are drawn, or all on wide paper. If no node's history contains a change, a sentence says
    so."""
    timeline = find_timeline(pool, now)
    if timeline is None:
        return prose("The node histories contain no changes.", paper, indent="  ", ink=Ink.FAINT)
    tracks = timeline.tracks if paper.wide else timeline.tracks[:MOST]
    name = max(len(track.node) for track in tracks)
    name = name if paper.width is None else min(name, NAME, paper.width // 3)
    ends = [_outcome(track) for track in tracks]
    tail = max(map(len, ends))
    cells = CELLS if paper.width is None else min(CELLS, paper.width - name - tail - 6)
    if cells < FEWEST and paper.width is not None:
        tail, cells = 0, max(FEWEST, paper.width - name - 4)
    cell = (timeline.end - timeline.begin) / cells
    period = f"{moment(timeline.begin, timeline.end)} to {moment(timeline.end, timeline.begin)}"
    lines = prose(f"{period}; each cell stands for {length(cell)}", paper, indent="  ", ink=Ink.FAINT)
    for track, end in zip(tracks, ends, strict=True):
        drawn = bar(_cells(track, timeline.begin, cell, cells), paper, cells)
        row: list[str | Span] = ["  ", shorten(track.node, name).ljust(name), "  ", *drawn]
        lines.append(line(*row, "  ", Span(end, Ink.FAINT)) if tail else line(*row))
    if (more := len(timeline.tracks) - len(tracks)) > 0:
        lines.append(line(Span(f"  and {counted(more, 'more node')}; -o wide shows them all", Ink.FAINT)))
    legend = "; ".join(f"{glyph.on(paper)} {glyph.word}" for glyph in glyphs_of(tracks))
    return [*lines, *prose(legend, paper, indent="  ", ink=Ink.FAINT)]


def glyph_of(stretch: Stretch) -> Glyph:
    """Return the glyph of a period: the letter of its phase (LETTERS) with the phase as its word, or the glyph of the
    node's state if the phase has no letter or is unknown to this version."""
    letter = LETTERS.get(stretch.phase)
    return stretch.state.value if letter is None else Glyph(letter, letter, Ink.BUSY, stretch.phase)


def moment(at: datetime, beside: datetime) -> str:
    """Format a time of day to the second, with Z for UTC, in which `at` must be, and with the date if `beside` is on
    another day."""
    return at.strftime("%H:%M:%SZ" if at.date() == beside.date() else "%Y-%m-%d %H:%M:%SZ")


def _outcome(track: Track) -> str:
    """Return how long the change took if it succeeded, otherwise the last phase of the track, which the node is in;
    empty if the track has no phases."""
    if track.took is not None:
        return length(track.took)
    return track.stretches[-1].phase if track.stretches else ""


def _cells(track: Track, begin: datetime, cell: timedelta, cells: int) -> list[Glyph]:
    """Return the glyphs of a number of `cells`, each of which stands for a period as long as `cell`; the first starts
    at `begin`. The glyph is that of the longest phase in which the node was blocked, skipped or failed, otherwise of
    the longest of all. Only the time within the cell counts. Of two that are equally long, the later is taken, and a
    phase that only touches the cell does not count. The glyph is a space if the track has no phase in that period."""
    glyphs, stands = [], (State.BLOCKED, State.FAILED)
    for number in range(cells):
        first, last = begin + number * cell, begin + (number + 1) * cell
        times = [(min(one.end, last) - max(one.begin, first), one) for one in reversed(track.stretches)]
        inside = [(one.state in stands, lasted, one) for lasted, one in times if lasted > timedelta()]
        shown = max(inside, key=itemgetter(0, 1), default=None)
        glyphs.append(Glyph(" ", " ", Ink.PLAIN) if shown is None else glyph_of(shown[2]))
    return glyphs


def glyphs_of(tracks: Iterable[Track]) -> list[Glyph]:
    """Return each glyph that occurs in the tracks once: first those of the phases in the order of LETTERS, then those
    of the states in the order of `State`."""
    glyphs = {glyph.drawn: glyph for track in tracks for glyph in map(glyph_of, track.stretches)}
    order = [*LETTERS.values(), *(state.value.drawn for state in State)]
    return [glyphs[key] for key in order if key in glyphs]
