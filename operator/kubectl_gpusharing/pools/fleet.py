"""What is the state of the pools, and when will each be done?

The operator published all of it. GPUSharingPolicies and GPUNodes are read from raw JSON without pydantic models, so
that a thousand nodes are read in a moment. A field that is missing, because an older or newer version wrote the object,
is empty; an unknown phase is shown as it is. A rollout is reconstructed from the nodes' histories, which hold the last
20 transitions of each; older ones are unknown.
"""

from argparse import Namespace
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import Enum
from operator import itemgetter
from statistics import median
from typing import Any, Self

from gpusharing.api.gpunode import Transition
from gpusharing.api.names import WAY, Phase
from gpusharing.api.policystatus import Summary
from gpusharing.api.records import from_wire
from gpusharing.api.times import from_rfc3339
from gpusharing.kube.client import JSON, POLICIES
from gpusharing.kube.raw import entries, part, section, text, whole
from gpusharing.planning.vocabulary.lengths import counted, some
from kubectl_gpusharing.shell.drawing import (
    BLANK,
    Glyph,
    Ink,
    Line,
    PrintOptions,
    Span,
    age,
    bar,
    columns,
    describe_simulated,
    fold,
    length,
    line,
    prose,
    prose_of_each,
    shorten,
    table,
)
from kubectl_gpusharing.shell.session import no_such
from kubectl_gpusharing.shell.troubles import Trouble


class State(Enum):
    """The state of a node in one word, in the order of the cells in a bar."""

    DONE = Glyph("█", "#", Ink.GOOD, "done")
    MOVES = Glyph("▒", ">", Ink.BUSY, "under way")
    WAITS = Glyph("░", ".", Ink.WAITING, "to go")
    BLOCKED = Glyph("!", "!", Ink.BAD, "blocked")
    FAILED = Glyph("x", "x", Ink.BAD, "failed")


URGENCY = (State.FAILED, State.BLOCKED, State.MOVES, State.WAITS, State.DONE)
Known = Sequence[Sequence[JSON]]
"""The policies, the GPUNodes and, if they are shown, the Events."""
PERSON, OTHERS = "person", "others"
"""The deadlines of waits that a person or others end, as published (planning/report/transition.py)."""
_STATES: Mapping[str, State] = {
    **{phase: State.MOVES for phase in Phase if phase.in_flight},
    Phase.SYNCED: State.DONE,
    Phase.BLOCKED: State.BLOCKED,
    Phase.SKIPPED: State.BLOCKED,
    Phase.FAILED: State.FAILED,
}


def state_of(word: str) -> State:
    return _STATES.get(word, State.WAITS)


@dataclass(frozen=True, slots=True)
class NodeStatus(Transition):
    """One GPUNode: its transition, and what its agent and its conditions report."""

    name: str = ""
    pods: int | None = None
    """How many pods hold a GPU, or None if that is unknown."""
    unhealthy: str = ""
    """The message of the condition Healthy if it is False."""
    simulated: bool = False

    @property
    def entered(self) -> datetime | None:
        return from_rfc3339(self.since)

    @property
    def state(self) -> State:
        return state_of(self.phase)


@dataclass(frozen=True, slots=True)
class PoolStatus(Summary):
    """One policy: its summary, and the nodes that it owns."""

    name: str = ""
    unseen: int = 0
    """The generation of the policy, if the operator has not processed it yet."""
    members: tuple[NodeStatus, ...] = ()
    plan: Mapping[str, Any] = field(default_factory=dict)
    paused: bool = False
    events: tuple[JSON, ...] | None = None
    """The Events about the policy, the oldest first; None if they were not read."""

    @property
    def state(self) -> State:
        """The most urgent state of its nodes (URGENCY), but at least BLOCKED if a node waits for a person."""
        states = {node.state for node in self.members}
        if any(node.deadline == PERSON for node in self.members):
            states.add(State.BLOCKED)
        if states <= {State.DONE} and (self.status != "Synced" or self.unseen):
            goes_on = self.unseen or self.status in ("", "Deleting", *Phase)
            states.add(State.WAITS if goes_on else State.BLOCKED)
        return min(states, key=URGENCY.index, default=State.DONE)

    @property
    def changing(self) -> tuple[NodeStatus, ...]:
        """The nodes that are not done, or wait for a person, by urgency."""
        shown = (node for node in self.members if node.state is not State.DONE or node.deadline == PERSON)
        return tuple(sorted(shown, key=lambda node: URGENCY.index(node.state)))


Pools = Sequence[PoolStatus]


def read_pools(
    policies: Iterable[JSON], nodes: Iterable[NodeStatus], events: Iterable[JSON] | None = None
) -> tuple[tuple[PoolStatus, ...], tuple[NodeStatus, ...]]:
    """Return a pool for each policy, the most urgent first, and the nodes that belong to none, sorted by name."""
    by_name = sorted(nodes, key=lambda node: node.name)
    members: dict[str, list[NodeStatus]] = {}
    for node in by_name:
        members.setdefault(node.policy, []).append(node)
    ordered = None if events is None else sorted(events, key=lambda event: text(event, "eventTime"))
    pools: list[PoolStatus] = []
    for raw in policies:
        name, status = text(raw, "metadata", "name"), section(raw, "status")
        generation = whole(raw, "metadata", "generation")
        summary = from_wire(PoolStatus, section(status, "summary"))
        about = (event for event in ordered or () if text(event, "regarding", "name") == name)
        pool = replace(
            summary,
            name=name,
            mode=summary.mode or text(raw, "spec", "mode"),
            unseen=generation if whole(status, "observedGeneration") < generation else 0,
            members=tuple(members.get(name, ())),
            plan=section(status, "plan"),
            paused=part(raw, "spec", "rollout", "paused") is True,
            events=None if ordered is None else tuple(about),
        )
        pools.append(pool)
    pools.sort(key=lambda pool: URGENCY.index(pool.state))
    unowned = members.keys() - {pool.name for pool in pools}
    return tuple(pools), tuple(node for node in by_name if node.policy in unowned)


def read_node(raw: JSON) -> NodeStatus:
    observed = section(raw, "status", "observed")
    healthy = next((row for row in entries(raw, "status", "conditions") if row.get("type") == "Healthy"), {})
    more = {
        "name": text(raw, "metadata", "name"),
        "pods": observed.get("pods"),
        "unhealthy": text(healthy, "message") if healthy.get("status") == "False" else "",
        "simulated": observed.get("simulated"),
    }
    return from_wire(NodeStatus, section(raw, "status", "transition") | more)


def simulated_nodes(pools: Iterable[PoolStatus], unowned: Iterable[NodeStatus]) -> list[str]:
    every = (*unowned, *(node for pool in pools for node in pool.members))
    return sorted(node.name for node in every if node.simulated)


def choose(
    typed: Namespace, where: str, policies: Iterable[JSON], nodes: Iterable[NodeStatus], events: Known = ()
) -> tuple[Pools, Sequence[NodeStatus]]:
    """Return the pools that the user named, or all, and the nodes without a policy. Raises Trouble."""
    if typed.policy and typed.selector:
        raise Trouble("pass either names of policies or -l LABELS, not both")
    pools, unowned = read_pools(policies, nodes, *events)
    chosen = [find_pool(pools, name, where) for name in dict.fromkeys(typed.policy)]
    return chosen or pools, () if typed.policy or typed.selector else unowned


def find_pool(pools: Pools, name: str, where: str) -> PoolStatus:
    """Return the pool with this name. Raises Trouble if the cluster `where` has none."""
    named = {pool.name: pool for pool in pools}
    if name not in named:
        raise Trouble(no_such(POLICIES, name, list(named), where))
    return named[name]


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
    """How long the change took, without Pending or Blocked before it; None until it has succeeded."""

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
    tracks = [track for node in pool.members if (track := _last_change(node, now)).stretches]
    begin: datetime | None = None
    spans = [track.span for track in tracks if track.span]
    for first, last in sorted(spans, key=lambda span: span[1], reverse=True):
        if begin is not None and begin - last > REST:
            break
        begin = first if begin is None else min(begin, first)
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
    return begin, end, tuple(tracks)


def read_stretches(node: NodeStatus, now: datetime) -> list[Stretch]:
    """Return the periods in the history of a node, the oldest first; the last one ends now."""
    steps = [(step, at) for step in node.history if (at := from_rfc3339(step.at)) is not None]
    ends = [*(at for _, at in steps), now][1:]
    return [Stretch(step.phase, step.reason, at, max(at, end)) for (step, at), end in zip(steps, ends, strict=True)]


def _last_change(node: NodeStatus, now: datetime) -> Track:
    """Return the periods since the node was last done before its present phase; none if it has only been done."""
    stretches = read_stretches(node, now)
    rests = [number for number, one in enumerate(stretches[:-1]) if one.state is State.DONE]
    change = stretches[rests[-1] + 1 :] if rests else stretches
    moving = [one for one in change if one.moves]
    took = change[-1].begin - moving[0].begin if moving and change[-1].state is State.DONE else None
    changed = any(one.state is not State.DONE for one in change)
    return Track(node.name, tuple(change) if changed else (), took)


# --- how long the change under way may still take -----------------------------------------------------------


def find_estimate(pool: PoolStatus, now: datetime) -> tuple[timedelta, str] | None:
    """Return how long the rest of a pool's change may take, and a clause that says why; None if that is unknown."""
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
    rest = max(each * rounds - min(gone, default=timedelta()), timedelta())
    past = "the last change took" if len(took) == 1 else f"the median of the last {len(took)} changes is"
    return rest, f"about {length(rest)} left for {counted(len(left), 'node')}: {past} {length(each)}"


def read_changes(node: NodeStatus, now: datetime) -> tuple[list[timedelta], timedelta | None]:
    """Return how long each past change of a node took, and the one under way has taken so far.

    A change that failed and was retried counts as one; the time in Failed does not count.
    """
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
        row: list[str | Span] = ["  ", shorten(track.node, name).ljust(name), "  ", *drawn]
        lines.append(line(*row, "  ", Span(end, Ink.FAINT)) if tail else line(*row))
    if (more := len(every) - len(tracks)) > 0:
        lines.append(line(Span(f"  and {counted(more, 'more node')}; -o wide shows them all", Ink.FAINT)))
    legend = "; ".join(f"{glyph.on(options)} {glyph.word}" for glyph in glyphs_of(tracks))
    return [*lines, *prose(legend, options, indent="  ", ink=Ink.FAINT)]


def glyph_of(stretch: Stretch) -> Glyph:
    """Return the letter of the phase, or the glyph of the node's state if the phase has none."""
    letter = LETTERS.get(stretch.phase)
    return stretch.state.value if letter is None else Glyph(letter, letter, Ink.BUSY, stretch.phase)


def moment(at: datetime, other: datetime) -> str:
    """Format a time in UTC, with the date if `other` is on another day."""
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
    """Return each glyph that occurs in the tracks once, in the order of LETTERS and `State`."""
    glyphs = {glyph.drawn: glyph for track in tracks for glyph in map(glyph_of, track.stretches)}
    order = [*LETTERS.values(), *(state.value.drawn for state in State)]
    return [glyphs[key] for key in order if key in glyphs]


COLUMNS = columns(NODE=0, PROGRESS=5, PHASE=0, REASON=0, PODS=4, CULPRIT=1, SINCE=2, DEADLINE=3)
WIDE = columns(STEP=6, WANTED=7, OBSERVED=7, CORDON=7, HEALTH=8)
NOT_SEEN = (
    "The operator has not processed generation {} of this policy yet. If this persists, check that the operator is"
    " running."
)
_AHEAD = Glyph("·", "-", Ink.FAINT)
_PROGRESS = (*WAY, Phase.SYNCED)


def describe(
    pools: Pools, unowned: Sequence[NodeStatus], now: datetime, options: PrintOptions, *, timeline: bool = False
) -> list[Line]:
    lines = describe_health(pools, unowned, options)
    for pool in pools:
        drawn = describe_timeline(pool, now, options) if timeline else []
        lines += [BLANK, *describe_pool(pool, now, options), *drawn]
    return [*lines, *([BLANK] if unowned else []), *prose(tell_unowned(unowned), options, ink=Ink.FAINT)]


def describe_health(pools: Pools, unowned: Sequence[NodeStatus], options: PrintOptions) -> list[Line]:
    lines = describe_simulated(simulated_nodes(pools, unowned), options)
    if not pools:
        hint = "There is no GPUSharingPolicy. kubectl gpusharing plan -f FILE shows what a policy would do."
        return [*lines, *prose(hint, options)]
    health, totals = tell_health(pools)
    lines += prose(f"{health}.", options, ink=pools[0].state.value.ink)
    return [*lines, *prose(totals, options, ink=Ink.FAINT)]


def tell_health(pools: Pools) -> tuple[str, str]:
    """Return which pools need attention, and the numbers of pools, nodes and GPUs."""
    names = [pool.name for pool in pools if pool.state in (State.FAILED, State.BLOCKED)]
    health = f"{counted(len(names), 'pool needs', 'pools need')} attention{': ' * bool(names)}{some(names)}"
    members = [node for pool in pools for node in pool.members]
    gpus = counted(sum(pool.gpus for pool in pools), "GPU")
    return health, f"{count_states('pool', pools)}; {count_states('node', members)}; {gpus}"


def tell_unowned(unowned: Sequence[NodeStatus]) -> str:
    names = some([node.name for node in unowned], 5)
    return f"{counted(len(unowned), 'node')} with GPUs and no policy: {names}" if unowned else ""


def count_states(noun: str, members: Sequence[NodeStatus | PoolStatus]) -> str:
    """Return how many nodes or pools there are, and in which states, such as `4 nodes: 3 done, 1 blocked`."""
    states = Counter(one.state for one in members)
    counts = ", ".join(f"{states[state]} {state.value.word}" for state in State if states[state])
    return ": ".join(filter(None, (counted(len(members), noun), counts)))


def describe_pool(pool: PoolStatus, now: datetime, options: PrintOptions) -> list[Line]:
    states = Counter(node.state for node in pool.members)
    glyphs = [state.value for state in State for _ in range(states[state])]
    cells = list(bar(glyphs, options, min(60, options.room)))
    for glyph in dict.fromkeys(glyphs):
        cells.append(Span(f"  {glyph.on(options)} {states[State(glyph)]} {glyph.word}", glyph.ink))
    lines = describe_title(pool, options) + (fold(tuple(cells), options) if cells else [])
    lines += describe_facts(pool, now, options)
    shown = pool.members if options.wide else pool.changing[:MOST]
    if shown:
        lines += describe_nodes(shown, now, options)
    if (more := len(pool.changing) - len(shown)) > 0:
        lines.append(line(Span(f"  and {counted(more, 'more node')}; -o wide lists all", Ink.FAINT)))
    return lines + describe_events(pool, now, options)


def describe_nodes(nodes: Sequence[NodeStatus], now: datetime, options: PrintOptions) -> list[Line]:
    shown = COLUMNS + (WIDE if options.wide else ()) + (columns(MESSAGE=0) if options.flowing else ())
    rows = []
    for node in nodes:
        ink, pods = node.state.value.ink, "" if node.pods is None else str(node.pods)
        progress = ""
        if not options.flowing:
            stands = node.state in (State.BLOCKED, State.FAILED)
            done = _PROGRESS.index(node.phase) + 1 if node.phase in _PROGRESS else int(stands)
            progress = node.state.value.on(options) * done + _AHEAD.on(options) * (len(_PROGRESS) - done)
        texts = [node.reason, pods, node.culprit, age(node.entered, now), node.deadline]
        texts += [node.step, node.wanted, node.observed, node.cordon, node.unhealthy] if options.wide else []
        if options.flowing:
            texts.append(" ".join(dict.fromkeys(filter(None, (node.message, *node.blockers)))))
        rows.append(line(node.name, Span(progress, ink), Span(node.phase or "-", ink), *texts))
    return table(shown, rows, options, "  ")


def describe_facts(pool: PoolStatus, now: datetime, options: PrintOptions) -> list[Line]:
    """Draw the pool's message and what is about to happen."""
    lines = prose(NOT_SEEN.format(pool.unseen), options, ink=Ink.BAD) if pool.unseen else []
    if pool.message and pool.status != "Synced":
        lines += prose(pool.message, options)
    texts: list[str] = []
    if plan := pool.plan:
        nodes, pods = counted(plan.get("nodeCount", 0), "node"), counted(plan.get("pods", 0), "pod")
        head = f"plan {plan.get('hash', '')}, disruption class {plan.get('disruption', '')}"
        texts.append(f"{head}: {nodes} will change and {pods} will be evicted")
    if pool.paused:
        texts.append(
            f"paused: no further node will start to change; to continue: kubectl gpusharing resume {pool.name}"
        )
    if pool.next_window:
        head = "window" if pool.next_window.startswith("open") else "next window"
        texts.append(f"{head}: {pool.next_window}")
    if (estimate := find_estimate(pool, now)) is not None:
        texts.append(estimate[1])
    return lines + prose_of_each(texts, options)


def describe_events(pool: PoolStatus, now: datetime, options: PrintOptions) -> list[Line]:
    lines: list[Line] = []
    for event in (pool.events or ())[0 if options.wide else -MOST :]:
        ink = Ink.WAITING if text(event, "type") == "Warning" else Ink.FAINT
        when = age(from_rfc3339(text(event, "eventTime")), now) or "?"
        said = f"{when} ago {text(event, 'reason')}: {text(event, 'note')}"
        lines += prose(said, options, indent="  ", hang="  ", ink=ink)
    return lines


def describe_title(pool: PoolStatus, options: PrintOptions) -> list[Line]:
    ink = Ink.GOOD if pool.status == "Synced" else Ink.BUSY if pool.status else Ink.FAINT
    what = " ".join(filter(None, (pool.mode, pool.layout)))
    texts = [f"{pool.nodes or '0/0'} nodes", counted(pool.gpus, "GPU")]
    texts += [f"{pool.used} devices used"] * bool(pool.used)
    texts += [f"{counted(pool.pending_pods, 'pod')} pending"] * bool(pool.pending_pods)
    title, status = Span(pool.name, Ink.TITLE), Span(pool.status or "new", ink)
    return fold(line(title, f"  {what}  ", status, f"  {', '.join(texts)}"), options)
