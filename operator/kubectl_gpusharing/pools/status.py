"""`status [POLICY]`: show what each pool runs and what it waits for: why, since when and until when.

Only what the operator published is shown, so the rights of ClusterRole gpusharing-viewer are enough.
"""

import asyncio
import gc
from argparse import Namespace
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from operator import attrgetter

from gpusharing.api.names import WAY, Phase
from gpusharing.api.records import to_wire
from gpusharing.api.times import from_rfc3339
from gpusharing.kube.client import EVENTS, GPUNODES, JSON, POLICIES, Filters, Resource
from gpusharing.kube.clock import loop_time
from gpusharing.kube.errors import KubeError, one_error
from gpusharing.kube.lists import PAGE
from gpusharing.kube.raw import text
from gpusharing.kube.reflector import Reflector
from gpusharing.planning.vocabulary.lengths import counted, some
from kubectl_gpusharing.pools.fleet import (
    NodeStatus,
    PoolStatus,
    State,
    describe_timeline,
    find_estimate,
    read_node,
    read_pools,
    simulated_nodes,
)
from kubectl_gpusharing.shell.documents import NodeData, PoolData, PoolListData
from kubectl_gpusharing.shell.drawing import (
    BLANK,
    KIND,
    Column,
    Glyph,
    Ink,
    Line,
    Paper,
    Span,
    age,
    bar,
    columns,
    describe_simulated,
    fold,
    line,
    prose,
    prose_of_each,
    table,
)
from kubectl_gpusharing.shell.running import Answer, FleetVerb
from kubectl_gpusharing.shell.session import Session, no_such, object_name
from kubectl_gpusharing.shell.terminal import Terminal
from kubectl_gpusharing.shell.troubles import DONE, Trouble, error_text, sentence

MOST = 20
"""How many nodes of a pool, and how many of its newest Events, are listed; -o wide lists all."""
ABOUT_POLICIES: Filters = {"namespace": "default", "field_selector": f"regarding.kind={KIND}"}
Known = Sequence[Sequence[JSON]]
"""The policies, the GPUNodes and, if they are shown, the Events."""
COLUMNS = columns(NODE=0, PROGRESS=5, PHASE=0, REASON=0, PODS=4, CULPRIT=1, SINCE=2, DEADLINE=3)
WIDE = columns(STEP=6, WANTED=7, OBSERVED=7, CORDON=7, HEALTH=8)
Pools = Sequence[PoolStatus]
NOT_SEEN = (
    "The operator has not processed generation {} of this policy yet. If this persists, check that the operator is"
    " running."
)
_AHEAD = Glyph("·", "-", Ink.FAINT)
_CELLS = (*WAY, Phase.SYNCED)


def describe(
    pools: Pools, unowned: Sequence[NodeStatus], now: datetime, paper: Paper, *, timeline: bool = False
) -> list[Line]:
    lines = describe_health(pools, unowned, paper)
    for pool in pools:
        drawn = describe_timeline(pool, now, paper) if timeline else []
        lines += [BLANK, *describe_pool(pool, now, paper), *drawn]
    return [*lines, *([BLANK] if unowned else []), *prose(tell_unowned(unowned), paper, ink=Ink.FAINT)]


def describe_health(pools: Pools, unowned: Sequence[NodeStatus], paper: Paper) -> list[Line]:
    lines = describe_simulated(simulated_nodes(pools, unowned), paper)
    if not pools:
        hint = "There is no GPUSharingPolicy. kubectl gpusharing plan -f FILE shows what a policy would do."
        return [*lines, *prose(hint, paper)]
    health, totals = tell_health(pools)
    lines += prose(f"{health}.", paper, ink=pools[0].state.value.ink)
    return [*lines, *prose(totals, paper, ink=Ink.FAINT)]


def tell_health(pools: Pools) -> tuple[str, str]:
    """Return which pools need attention, and the totals of pools, nodes and GPUs."""
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


def describe_pool(pool: PoolStatus, now: datetime, paper: Paper) -> list[Line]:
    states = Counter(node.state for node in pool.members)
    glyphs = [state.value for state in State for _ in range(states[state])]
    cells = list(bar(glyphs, paper, min(60, paper.room)))
    for glyph in dict.fromkeys(glyphs):
        cells.append(Span(f"  {glyph.on(paper)} {states[State(glyph)]} {glyph.word}", glyph.ink))
    lines = describe_title(pool, paper) + (fold(tuple(cells), paper) if cells else [])
    lines += describe_facts(pool, now, paper)
    shown = pool.members if paper.wide else pool.changing[:MOST]
    if shown:
        lines += describe_nodes(shown, now, paper)
    if (more := len(pool.changing) - len(shown)) > 0:
        lines.append(line(Span(f"  and {counted(more, 'more node')}; -o wide lists all", Ink.FAINT)))
    return lines + describe_events(pool, now, paper)


def describe_nodes(nodes: Sequence[NodeStatus], now: datetime, paper: Paper) -> list[Line]:
    shown = COLUMNS + (WIDE if paper.wide else ()) + (columns(MESSAGE=0) if paper.flowing else ())
    rows = []
    for node in nodes:
        ink, pods = node.state.value.ink, "" if node.pods is None else str(node.pods)
        progress = ""
        if not paper.flowing:
            stands = node.state in (State.BLOCKED, State.FAILED)
            done = _CELLS.index(node.phase) + 1 if node.phase in _CELLS else int(stands)
            progress = node.state.value.on(paper) * done + _AHEAD.on(paper) * (len(_CELLS) - done)
        texts = [node.reason, pods, node.culprit, age(node.entered, now), node.deadline]
        texts += [node.step, node.wanted, node.observed, node.cordon, node.unhealthy] if paper.wide else []
        if paper.flowing:
            texts.append(" ".join(dict.fromkeys(filter(None, (node.message, *node.blockers)))))
        rows.append(line(node.name, Span(progress, ink), Span(node.phase or "-", ink), *texts))
    return table(shown, rows, paper, "  ")


def describe_facts(pool: PoolStatus, now: datetime, paper: Paper) -> list[Line]:
    """Draw the pool's message and what is about to happen."""
    lines = prose(NOT_SEEN.format(pool.unseen), paper, ink=Ink.BAD) if pool.unseen else []
    if pool.message and pool.status != "Synced":
        lines += prose(pool.message, paper)
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
    return lines + prose_of_each(texts, paper)


def describe_events(pool: PoolStatus, now: datetime, paper: Paper) -> list[Line]:
    lines: list[Line] = []
    for event in (pool.events or ())[0 if paper.wide else -MOST :]:
        ink = Ink.WAITING if text(event, "type") == "Warning" else Ink.FAINT
        when = age(from_rfc3339(text(event, "eventTime")), now) or "?"
        said = f"{when} ago {text(event, 'reason')}: {text(event, 'note')}"
        lines += prose(said, paper, indent="  ", hang="  ", ink=ink)
    return lines


def describe_title(pool: PoolStatus, paper: Paper) -> list[Line]:
    ink = Ink.GOOD if pool.status == "Synced" else Ink.BUSY if pool.status else Ink.FAINT
    what = " ".join(filter(None, (pool.mode, pool.layout)))
    texts = [f"{pool.nodes or '0/0'} nodes", counted(pool.gpus, "GPU")]
    texts += [f"{pool.used} devices used"] * bool(pool.used)
    texts += [f"{counted(pool.pending_pods, 'pod')} pending"] * bool(pool.pending_pods)
    title, status = Span(pool.name, Ink.TITLE), Span(pool.status or "new", ink)
    return fold(line(title, f"  {what}  ", status, f"  {', '.join(texts)}"), paper)


# --- as data ---------------------------------------------------------------------------------------------


def as_data(pools: Pools, unowned: Sequence[NodeStatus], where: str, now: datetime) -> PoolListData:
    return {
        "context": where,
        "health": tell_health(pools)[0],
        "pools": [pool_data(pool, now) for pool in pools],
        "nodesWithoutPolicy": [node.name for node in unowned],
        "simulated": simulated_nodes(pools, unowned),
    }


def pool_data(pool: PoolStatus, now: datetime) -> PoolData:
    """Return one pool as plain data, without the histories of its nodes."""
    estimate, keys = find_estimate(pool, now), ("eventTime", "type", "reason", "note")
    data = to_wire(replace(pool, members=()))
    members = [
        {key: value for key, value in node_data(node).items() if key != "history"} for node in pool.members
    ]
    return data | {  # type: ignore[no-any-return]  # to_wire has no type
        "unseenGeneration": data.pop("unseen") or None,
        "secondsLeft": None if estimate is None else round(estimate[0].total_seconds()),
        "plan": data["plan"] or None,
        "members": members,
        "events": pool.events and [{key: text(event, key) for key in keys} for event in pool.events],
    }


def node_data(node: NodeStatus) -> NodeData:
    return to_wire(node) | {"state": node.state.value.word}  # type: ignore[no-any-return]  # to_wire has no type


LOST = "The last output may be out of date; kubectl gpusharing keeps trying to reconnect"
TICK = 1.0
"""Seconds between two redraws."""
ENOUGH = 2
"""After this many ticks without an error, the cluster counts as followed again."""


async def run(session: Session, typed: Namespace, terminal: Terminal) -> int:
    """Show the pools once, or with --watch until the user ends it."""
    known = await session.lists(POLICIES, GPUNODES, policies=typed.selector)
    if typed.events:
        known.append(await session.all(EVENTS, **ABOUT_POLICIES))
    if not typed.watch:
        draw(session, typed, terminal, known)
        return DONE
    drawn: Drawn = None, ()
    ticks = ENOUGH
    try:
        with terminal.redrawing():
            async with followed(session, known, typed.selector) as cluster:
                while True:
                    error = cluster.error
                    before, ticks = ticks, 0 if error else ticks + 1
                    if error is not None and before >= ENOUGH and not terminal.redraws:
                        terminal.warn(f"{sentence(error, session.where)}. {LOST}")
                    elif ticks == ENOUGH and not terminal.redraws:
                        terminal.warn(f"following {session.where} again")
                    stale = "" if error is None else error_text(error)
                    drawn = draw(session, typed, terminal, cluster.known(), drawn, stale)
                    await asyncio.sleep(TICK)
    finally:
        if terminal.width is not None and drawn[1]:
            # The terminal shows its former screen again; print the whole last picture there.
            terminal.show(drawn[1])


# --- of several clusters --------------------------------------------------------------------------------


async def ask(session: Session, typed: Namespace) -> Answer:
    policies = await session.all(POLICIES, label_selector=typed.selector)
    nodes = [read_node(raw) async for page in session.each_page(GPUNODES) for raw in page]
    pools, unowned = choose(typed, session.where, policies, nodes)
    data, simulated = as_data(pools, unowned, session.name, session.now()), simulated_nodes(pools, unowned)
    remarks = [tell_unowned(unowned)] if unowned else []
    return Answer(DONE, [*map(_cluster_row, pools)], data, simulated, remarks)


def _cluster_row(pool: PoolStatus) -> Line:
    message = NOT_SEEN.format(pool.unseen) if pool.unseen else pool.message if pool.status != "Synced" else ""
    cells = (pool.nodes, str(pool.gpus), pool.used, str(pool.pending_pods or ""), message)
    status = Span(pool.status or "new", Ink.GOOD if pool.status == "Synced" else Ink.BUSY)
    return line(pool.name, pool.mode, pool.layout, status, *cells)


FLEET = FleetVerb(
    (
        Column("POOL"), Column("MODE", 4), Column("LAYOUT", 5), Column("STATUS"), Column("NODES", 1),
        Column("GPUS", 6, right=True), Column("USED", 3), Column("PENDING", 2, right=True), Column("MESSAGE"),
    ),
    "there is no GPUSharingPolicy",
    PoolListData,
    ask,
)  # fmt: skip


def choose(
    typed: Namespace, where: str, policies: Iterable[JSON], nodes: Iterable[NodeStatus], events: Known = ()
) -> tuple[Pools, Sequence[NodeStatus]]:
    """Return the pools that the user named, or all, and the nodes without a policy. Raises Trouble for an unknown name."""
    if typed.policy and typed.selector:
        raise Trouble("pass either names of policies or -l LABELS, not both")
    pools, unowned = read_pools(policies, nodes, *events)
    chosen = [find_pool(pools, name, where) for name in dict.fromkeys(typed.policy)]
    return chosen or pools, () if typed.policy or typed.selector else unowned


Drawn = tuple[tuple[Pools, Sequence[NodeStatus]] | None, Sequence[Line]]
"""The pools and the nodes without a policy that were drawn, and the lines, also those that did not fit on the screen; no lines for data."""


def draw(
    session: Session,
    typed: Namespace,
    terminal: Terminal,
    known: Known,
    before: Drawn = (None, ()),
    stale: str = "",
) -> Drawn:
    """Draw the pools that the user chose, unless they are as `before` and not on a screen; `stale` says why they may be out of date."""
    if terminal.output == "html":
        from kubectl_gpusharing.pools.page import page  # only a page needs it

        terminal.write(page(session, known, typed))
        return before
    policies, nodes, *events = known
    pools, unowned = choose(typed, session.where, policies, map(read_node, nodes), events)
    if not terminal.redraws and before[0] == (pools, unowned):
        return before
    now, paper = session.now(), terminal.paper
    if terminal.structured:
        data = as_data(pools, unowned, session.name, now)
        terminal.data(PoolListData, data, [object_name(POLICIES, pool.name) for pool in pools])
        return (pools, unowned), ()
    head = prose(f"This may be out of date: {stale}", paper, ink=Ink.BAD) if stale else []
    lines = [*head, *describe(pools, unowned, now, paper, timeline=typed.timeline)]
    if len(pools) > 1:
        rows = table(FLEET.columns, [*map(_cluster_row, pools)], paper)
        short = [*head, *describe_health(pools, unowned, paper), *rows]
        terminal.show(lines, "; pass a POLICY to see one pool", short)
    else:
        terminal.show(lines, "; make the terminal taller to see them")
    return (pools, unowned), lines


def find_pool(pools: Pools, name: str, where: str) -> PoolStatus:
    """Return the pool with this name. Raises Trouble if the cluster `where` has none."""
    named = {pool.name: pool for pool in pools}
    if name not in named:
        raise Trouble(no_such(POLICIES, name, list(named), where))
    return named[name]


@dataclass(slots=True)
class Followed:
    reflectors: Sequence[Reflector[JSON]]
    first: Known
    begin: float = field(default_factory=loop_time)
    """When `first` was complete, by the clock of the event loop."""

    def known(self) -> Known:
        """Return the newest objects of each kind; `first` until all kinds have been listed again."""
        if not all(one.synced.is_set() for one in self.reflectors):
            return self.first
        return [[raw for _, raw in sorted(one.items.items())] for one in self.reflectors]

    @property
    def error(self) -> KubeError | None:
        """Why the cluster cannot be followed now, or None if it can."""
        return next(filter(None, map(attrgetter("error"), self.reflectors)), None)

    @property
    def silence(self) -> timedelta:
        """The longest time since the server answered about a kind that cannot be followed now; 0 if all can."""
        contacts = (max(one.last_contact, self.begin) for one in self.reflectors if one.error is not None)
        return timedelta(seconds=max((loop_time() - contact for contact in contacts), default=0.0))


@asynccontextmanager
async def followed(session: Session, first: Known, selector: str = "") -> AsyncIterator[Followed]:
    """Yield the kinds that `first` has, and keep them up to date while the context is open."""
    gc.enable()  # the context may be open for days
    kinds: tuple[tuple[Resource, Filters], ...] = (
        (POLICIES, {"label_selector": selector}),
        (GPUNODES, {}),
        (EVENTS, ABOUT_POLICIES),
    )
    reflectors = [
        Reflector(session.client, kind, lambda raw: raw, page_size=PAGE, **where)
        for (kind, where), _ in zip(kinds, first, strict=False)
    ]
    with one_error():
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one.run()) for one in reflectors]
            try:
                yield Followed(reflectors, first)
            finally:
                for task in tasks:
                    task.cancel()
