"""What did the last rollout of a pool do when, and how long may the rest of it, or a planned change, take?

A rollout is reconstructed from the nodes' histories, which hold the last 12 phases of each; older ones are unknown.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from heapq import nlargest
from itertools import chain
from operator import itemgetter
from statistics import median
from typing import Self

from gpusharing.api.names import Phase, WaitingFor
from gpusharing.api.times import from_rfc3339
from gpusharing.kube.client import GPUNODES
from gpusharing.kube.errors import KubeError
from gpusharing.planning.pools.windows import RECENT, Course
from gpusharing.planning.report.proposal import Step, foresee
from gpusharing.planning.report.transition import MAX_HISTORY
from gpusharing.planning.vocabulary.lengths import counted, in_minutes
from kubectl_gpusharing.live.cluster import LivePlan
from kubectl_gpusharing.pools.fleet import NodeStatus, PoolStatus, State, read_node, state_of
from kubectl_gpusharing.shell.documents import CourseData
from kubectl_gpusharing.shell.drawing import (
    Glyph,
    Ink,
    Line,
    PrintOptions,
    Span,
    bar,
    length,
    line,
    prose,
    shorten_name,
)
from kubectl_gpusharing.shell.session import Session, side_by_side

REST = timedelta(days=1)
"""The longest time between two changes of one rollout: one with windows continues each night."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """A period in which a node stayed in one phase."""

    phase: str
    reason: str
    begin: datetime
    end: datetime

    @property
    def state(self) -> State:
        return state_of(self.phase)

    @property
    def moves(self) -> bool:
        """Whether the phase belongs to a change that has begun and is not over; Failed does."""
        return self.state in (State.MOVES, State.FAILED)


@dataclass(frozen=True, slots=True)
class Track:
    """The phases of one node during a rollout."""

    node: str
    stretches: tuple[Stretch, ...]
    took: timedelta | None
    """How long the change took, without Pending or Blocked before it; None before its success or if its begin is lost."""

    @property
    def span(self) -> tuple[datetime, datetime] | None:
        """When the change began, and when it ended, or now; None if it has not begun."""
        moving = [one for one in self.stretches if one.moves]
        return (moving[0].begin, moving[-1].end) if moving else None

    def within(self, begin: datetime, end: datetime) -> Self:
        cut = (replace(one, begin=max(one.begin, begin), end=min(one.end, end)) for one in self.stretches)
        return replace(self, stretches=tuple(one for one in cut if one.begin < one.end))


Timeline = tuple[datetime, datetime, tuple[Track, ...]]
"""A rollout: its begin, its end (now if it is not over), and its nodes."""


def find_timeline(pool: PoolStatus, now: datetime) -> Timeline | None:
    """Return the last rollout of a pool, with the nodes that are yet to change. It is None if no node has changed."""
    past = [(node, read_stretches(node, now)) for node in pool.members]
    waits = min((since for _, one in past if (since := _waits_since(one)) is not None), default=None)
    if waits is not None and not any(one.moves and one.end > waits for _, stretches in past for one in stretches):
        # What the nodes wait for has not begun anywhere, so the last rollout is the one before.
        past = [(node, [one for one in stretches if one.begin < waits]) for node, stretches in past]
    tracks = [track for node, stretches in past if (track := _last_change(node, stretches)).stretches]
    begin: datetime | None = None
    spans = [track.span for track in tracks if track.span]
    for first, last in sorted(spans, key=lambda span: span[1], reverse=True):
        if begin is not None and begin - last > REST:
            break
        begin = first if begin is None else min(begin, first)
    if begin is None:
        return None
    done = {track.node for track in tracks if track.stretches[-1].state is State.DONE}
    tracks = [one for one in tracks if one.node not in done or (one.span and one.span[0] >= begin)]
    over = done.issuperset(one.node for one in tracks)
    # Some room after a successful change makes its end visible.
    end = max(one.stretches[-1].begin if over else one.stretches[-1].end for one in tracks)
    if over:
        end += (end - begin) / 20
    tracks = [track.within(begin, end) for track in tracks]
    tracks.sort(key=lambda track: (track.span[0] if track.span else end, track.node))
    return begin, end, tuple(tracks)


def read_stretches(node: NodeStatus, now: datetime) -> list[Stretch]:
    """Return the periods in the history of a node, the oldest first; the last one ends now."""
    phases = node.phases
    ends = [*(at for at, _, _ in phases), now][1:]
    return [Stretch(phase, reason, at, max(at, end)) for (at, phase, reason), end in zip(phases, ends, strict=True)]


def _waits_since(stretches: Sequence[Stretch]) -> datetime | None:
    """Return since when a node that was done waits for a change that has not begun; None if it does not."""
    rests = [number for number, one in enumerate(stretches) if one.state is State.DONE]
    after = stretches[rests[-1] + 1 :] if rests else ()
    return after[0].begin if after and not any(one.moves for one in after) else None


def _last_change(node: NodeStatus, stretches: Sequence[Stretch]) -> Track:
    """Return the periods since the node was last done before its last phase here; none if it has only been done."""
    rests = [number for number, one in enumerate(stretches[:-1]) if one.state is State.DONE]
    change = stretches[rests[-1] + 1 :] if rests else stretches
    moving = [one for one in change if one.moves]
    whole = bool(rests) or not _begins_midway(node, stretches)
    took = change[-1].begin - moving[0].begin if moving and whole and change[-1].state is State.DONE else None
    changed = any(one.state is not State.DONE for one in change)
    return Track(node.name, tuple(change) if changed else (), took)


def find_estimate(pool: PoolStatus, now: datetime) -> tuple[timedelta | None, str] | None:
    """Return in what time a pool's change may end, and a clause about its work and why; None if both are unknown.

    Only the end is unknown if the work does not fit into the window that is open.
    """
    left = [node for node in pool.members if node.state is not State.DONE]
    open_ended = any(
        node.state in (State.BLOCKED, State.FAILED)
        or node.waiting_for == WaitingFor.PERSON
        or node.reason in ("WindowClosed", "CanarySoak", "ConfigPropagating")  # the last one hides the others
        for node in left
    )
    if not left or pool.paused or pool.paused_by or open_ended:
        return None
    changes = [read_changes(node, now) for node in pool.members]
    took, gone = [one for past, _ in changes for one in past], [one for _, one in changes if one is not None]
    if not took:
        return None
    each = timedelta(seconds=median(one.total_seconds() for one in took))
    if any(one > max(took) for one in gone) or not (
        gone or any(node.waiting_for != WaitingFor.OTHERS for node in left)
    ):
        return None
    rounds = -(-len(left) // max(1, len(gone)))
    rest = max(each * rounds - min(gone, default=timedelta()), timedelta())
    past = "the last change took" if len(took) == 1 else f"the median of the last {len(took)} changes is"
    closes = from_rfc3339(pool.next_window.partition("open until ")[2])
    fits = closes is None or now + rest <= closes or len(gone) == len(left)  # a change may end after its window
    work = f"about {length(rest)} {'' if fits else 'of work '}left for {counted(len(left), 'node')}"
    more = "" if fits else ", which does not fit into this window"
    return rest if fits else None, f"{work}{more}: {past} {length(each)}"


def read_changes(node: NodeStatus, now: datetime) -> tuple[list[timedelta], timedelta | None]:
    """Return how long each past change of a node took, and the one under way has taken so far.

    A change that failed and was retried counts as one; the time in Failed does not count. A past change whose begin the
    history no longer has is left out.
    """
    lengths: list[timedelta] = []
    stretches = read_stretches(node, now)
    partial = _begins_midway(node, stretches)
    # The phase that the node is in may be missing in the history; its time then counts as that of the change.
    taken = now - node.entered if node.entered is not None and not node.history else None
    for stretch in stretches:
        if stretch.moves:
            lasted = timedelta() if stretch.state is State.FAILED else stretch.end - stretch.begin
            taken = lasted if taken is None else taken + lasted
            continue
        if taken is not None and stretch.state is State.DONE and not partial:
            lengths.append(taken)
        taken, partial = None, False
    return lengths, taken if node.state is State.MOVES else None


def _begins_midway(node: NodeStatus, stretches: Sequence[Stretch]) -> bool:
    """Whether the history may have lost the begin of its first change: it is full, and its first phase is in one."""
    return len(node.history) >= MAX_HISTORY and bool(stretches) and stretches[0].moves


MOST = 20
"""How many nodes of a pool, and of its newest Events, are drawn; -o wide shows them all."""
CELLS = 48
"""The number of cells in a line, if there is room."""
FEWEST = 8
NAME = 24
"""How many characters of a node's name are shown, if lines have a width."""
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
"""The letters of the phases of a change, except Failed."""


def describe_timeline(pool: PoolStatus, now: datetime, options: PrintOptions) -> list[Line]:
    timeline = find_timeline(pool, now)
    if timeline is None:
        return prose("The node histories contain no changes.", options, indent="  ", ink=Ink.FAINT)
    start, stop, every = timeline
    tracks = every if options.wide else every[:MOST]
    name = max(len(track.node) for track in tracks)
    name = name if options.width is None else min(name, NAME, options.width // 3)
    ends = [
        length(track.took) if track.took is not None else track.stretches[-1].phase if track.stretches else ""
        for track in tracks
    ]
    tail = max(map(len, ends))
    cells = CELLS if options.width is None else min(CELLS, options.width - name - tail - 6)
    if cells < FEWEST and options.width is not None:
        tail, cells = 0, max(FEWEST, options.width - name - 4)
    cell = (stop - start) / cells
    period = f"{moment(start, stop)} to {moment(stop, start)}"
    lines = prose(f"{period}; each cell stands for {length(cell)}", options, indent="  ", ink=Ink.FAINT)
    for track, end in zip(tracks, ends, strict=True):
        drawn = bar(_cells(track, start, cell, cells), options, cells)
        row: list[str | Span] = ["  ", shorten_name(track.node, name).ljust(name), "  ", *drawn]
        lines.append(line(*row, "  ", Span(end, Ink.FAINT)) if tail else line(*row))
    if (more := len(every) - len(tracks)) > 0:
        lines.append(line(Span(f"  and {counted(more, 'more node')}; -o wide shows them all", Ink.FAINT)))
    legend = "; ".join(f"{glyph.on(options)} {glyph.word}" for glyph in glyphs_of(tracks))
    return [*lines, *prose(legend, options, indent="  ", ink=Ink.FAINT)]


def glyph_of(stretch: Stretch) -> Glyph:
    letter = LETTERS.get(stretch.phase)
    return stretch.state.value if letter is None else Glyph(letter, letter, Ink.BUSY, stretch.phase)


def moment(at: datetime, other: datetime) -> str:
    return at.strftime("%H:%M:%SZ" if at.date() == other.date() else "%Y-%m-%d %H:%M:%SZ")


def _cells(track: Track, begin: datetime, cell: timedelta, cells: int) -> list[Glyph]:
    glyphs, stands = [], (State.BLOCKED, State.FAILED)
    for number in range(cells):
        first, last = begin + number * cell, begin + (number + 1) * cell
        times = [(min(one.end, last) - max(one.begin, first), one) for one in reversed(track.stretches)]
        inside = [(one.state in stands, lasted, one) for lasted, one in times if lasted > timedelta()]
        shown = max(inside, key=itemgetter(0, 1), default=None)
        glyphs.append(Glyph(" ", " ", Ink.PLAIN) if shown is None else glyph_of(shown[2]))
    return glyphs


def glyphs_of(tracks: Iterable[Track]) -> list[Glyph]:
    glyphs = {glyph.drawn: glyph for track in tracks for glyph in map(glyph_of, track.stretches)}
    order = [*LETTERS.values(), *(state.value.drawn for state in State)]
    return [glyphs[key] for key in order if key in glyphs]


async def read_courses(
    session: Session, live: LivePlan, policy: str, steps: Sequence[Step], most: int = RECENT
) -> tuple[Course, ...]:
    """Foresee these changes of a pool by the histories of the `most` nodes that changed last, those of the pool first.

    Empty if the course is unknown.
    """
    pool = live.plan.pools[policy]
    own = {*pool.names}

    async def read_past(node: str) -> list[timedelta]:
        try:
            return read_changes(read_node(await session.client.get(GPUNODES, node)), session.now())[0]
        except KubeError:
            return []

    dated = [
        (node.name in own, node.verified.changed_at, node.name)
        for node in live.snapshot.nodes.values()
        if node.verified is not None and node.verified.changed_at is not None
    ]
    histories = await side_by_side(*(read_past(name) for _, _, name in (nlargest(most, dated) if steps else ())))
    return foresee(pool, live.snapshot, live.now, steps, [*chain.from_iterable(histories)])


def tell_courses(courses: Sequence[Course], now: datetime, *, apart: bool = False) -> str:
    """Return as a clause when the first change may start and how long the work takes; `apart`: pools begin at other times."""
    begins = min(one.begins for one in courses)
    wait = f"the first change may start in {in_minutes(begins - now)}, " if begins > now else ""
    end = " to ".join(dict.fromkeys(in_minutes(one.ends - now) for one in courses))
    if apart or max(one.spans for one in courses) > 1:
        unfit = "this does not fit into one window: " if max(one.spans for one in courses) > 1 else ""
        return f"{unfit}{wait}{'and ' * bool(wait)}the last change ends in about {end}"
    work = " to ".join(dict.fromkeys(length(one.ends - begins) for one in courses))
    return f"{wait}{'then ' * bool(wait)}this takes about {work}"


def tell_seconds(courses: Sequence[Course], now: datetime) -> CourseData:
    starts = int((min(one.begins for one in courses) - now).total_seconds()) if courses else None
    low, high = [int((one.ends - now).total_seconds()) for one in courses] or (None, None)
    return {"secondsToStart": starts, "secondsAtLeast": low, "secondsAtMost": high}
