"""`status [POLICY]`: what does each pool run, and what does it wait for?

The answer says why, since when and until when. Only what the operator published is shown, so the rights of ClusterRole
gpusharing-viewer are enough. The table, the page, the table of several clusters and the reference are made from the
columns here. JSON and its schema have the record that a column is about.
"""

import asyncio
import gc
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from operator import attrgetter
from typing import Generic, TypeVar

from gpusharing.api.names import WAY, Phase, WaitingFor
from gpusharing.api.records import to_wire
from gpusharing.api.times import from_rfc3339
from gpusharing.kube.client import EVENTS, GPUNODES, JSON, POLICIES, Filters, Resource
from gpusharing.kube.clock import loop_time
from gpusharing.kube.errors import KubeError, one_error
from gpusharing.kube.lists import PAGE
from gpusharing.kube.raw import text
from gpusharing.kube.reflector import Reflector
from gpusharing.planning.vocabulary.lengths import counted, in_minutes, some
from kubectl_gpusharing.live.files import KIND
from kubectl_gpusharing.pools.fleet import (
    Known,
    NodeStatus,
    Pools,
    PoolStatus,
    State,
    choose,
    lists_nodes,
    read_node,
    simulated_nodes,
    tell_extent,
    tell_gpus,
)
from kubectl_gpusharing.pools.timeline import MOST, describe_timeline, find_estimate
from kubectl_gpusharing.shell.arguments import Arguments
from kubectl_gpusharing.shell.documents import NodeData, PoolData, PoolListData
from kubectl_gpusharing.shell.drawing import (
    BLANK,
    Column,
    Glyph,
    Ink,
    Line,
    PrintOptions,
    Span,
    age,
    bar,
    describe_simulated,
    fold,
    length,
    line,
    prose,
    prose_of_each,
    table,
)
from kubectl_gpusharing.shell.running import Answer, FleetVerb
from kubectl_gpusharing.shell.session import Session, object_name, side_by_side
from kubectl_gpusharing.shell.terminal import Terminal
from kubectl_gpusharing.shell.troubles import DONE, error_text, sentence

T = TypeVar("T")
_AHEAD = Glyph("·", "-", Ink.FAINT)
_PROGRESS = (*WAY, Phase.SYNCED)


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusColumn(Column, Generic[T]):
    """A column about records of one kind; one whose cells are all empty is not shown."""

    key: str
    help: str
    cell: Callable[[T, datetime, PrintOptions], str | Span] | None = None
    """Returns what a cell shows; None for the field with that key, which is a string."""
    wide: bool = False
    """Whether only -o wide and the page have it."""


def describe_table(
    shown: Sequence[StatusColumn[T]], about: Sequence[T], now: datetime, options: PrintOptions, indent: str = ""
) -> list[Line]:
    shown = [one for one in shown if options.wide or not one.wide]
    return table(shown, [cells(shown, one, now, options) for one in about], options, indent)


def cells(shown: Sequence[StatusColumn[T]], about: T, now: datetime, options: PrintOptions) -> Line:
    return line(*(one.cell(about, now, options) if one.cell else getattr(about, one.key) for one in shown))


def _progress(node: NodeStatus, _: datetime, options: PrintOptions) -> str | Span:
    if options.flowing:
        return ""
    stands = node.state in (State.BLOCKED, State.FAILED)
    done = _PROGRESS.index(node.phase) + 1 if node.phase in _PROGRESS else int(stands)
    glyphs = node.state.value.on(options) * done + _AHEAD.on(options) * (len(_PROGRESS) - done)
    return Span(glyphs, node.state.value.ink)


def _deadline(node: NodeStatus, now: datetime, _: PrintOptions) -> str:
    if (end := from_rfc3339(node.deadline)) is None:
        return node.waiting_for or ""
    return f"in {length(end - now)}" if end > now else "overdue"


NODE_COLUMNS: tuple[StatusColumn[NodeStatus], ...] = (
    StatusColumn("NODE", key="name", help="the node"),
    StatusColumn("PROGRESS", 5, key="state", help="how many of the phases are behind it", cell=_progress),
    StatusColumn("PHASE", key="phase", help="how far its change has come",
        cell=lambda node, *_: Span(node.phase or "-", node.state.value.ink)),
    StatusColumn("REASON", key="reason", help="why, in [one word](reasons.md)"),
    StatusColumn("PODS", 4, key="pods", help="how many pods hold a GPU",
        cell=lambda node, *_: "" if node.pods is None else str(node.pods)),
    StatusColumn("CULPRIT", 1, key="culprit", help="what it waits for"),
    StatusColumn("SINCE", 2, key="since", help="how long it has been so",
        cell=lambda node, now, _: age(node.entered, now)),
    StatusColumn("DEADLINE", 3, key="deadline", help="when the wait ends, or who ends it (`waitingFor`)", cell=_deadline),
    StatusColumn("STEP", 6, key="step", help="the present step and how many there are", wide=True),
    StatusColumn("WANTED", 7, key="wanted", help="the layout that the policy wants", wide=True),
    StatusColumn("OBSERVED", 7, key="observed", help="the layout that the GPUs have", wide=True),
    StatusColumn("CORDON", 7, key="cordonedBy", help="who cordoned it", wide=True,
        cell=lambda node, *_: node.cordoned_by or ""),
    StatusColumn("HEALTH", 8, key="unhealthy", help="what is wrong with its GPUs", wide=True),
)  # fmt: skip
POOL_COLUMNS: tuple[StatusColumn[PoolStatus], ...] = (
    StatusColumn("POOL", key="name", help="the policy"),
    StatusColumn("MODE", 4, key="mode", help="how its GPUs are shared"),
    StatusColumn("LAYOUT", 5, key="layout", help="the layout of each GPU"),
    StatusColumn("STATUS", key="status", help="its state in one word", cell=lambda pool, *_: status_of(pool)),
    StatusColumn("NODES", 1, key="nodes", help="how many nodes serve it, and how many it has"),
    StatusColumn("GPUS", 6, True, key="gpus", help="how many GPUs it has",
        cell=lambda pool, *_: "?" if pool.gpus is None else str(pool.gpus)),
    StatusColumn("USED", 3, key="used", help="how many devices pods hold, and how many there are"),
    StatusColumn("PENDING", 2, True, key="pendingPods", help="how many Pending pods ask for its resources",
        cell=lambda pool, *_: str(pool.pending_pods or "")),
    StatusColumn("MESSAGE", key="message", help="its most urgent fact", cell=lambda pool, *_: pool.news),
)  # fmt: skip


def status_of(pool: PoolStatus) -> Span:
    ink = Ink.GOOD if pool.status == "Synced" else Ink.BUSY if pool.status else Ink.FAINT
    return Span(pool.status or "new", ink)


MOST_NAMED = 8
_NAME = "\0"
"""Stands for the name of a node, and for its pods, in the message that several share."""
_PODS = re.compile(r"(?<=: )Pods? (\S*\w(?:, \S*\w)*(?:, \.\.\. \(\d+ more\))?)(?=\.(?: |$))")


def describe(
    pools: Pools,
    unowned: Sequence[NodeStatus],
    now: datetime,
    options: PrintOptions,
    *,
    timeline: bool = False,
    listed: bool = False,
    selector: str = "",
) -> list[Line]:
    """Describe the pools; `listed` says that nodes were named, so that they are listed whatever their state."""
    lines = [] if listed and not pools else describe_health(pools, unowned, options, selector, listed=listed)
    for pool in pools:
        drawn = describe_timeline(pool, now, options) if timeline else []
        lines += [BLANK, *describe_pool(pool, now, options, listed=listed), *drawn]
    lines += [*([BLANK] if unowned else []), *prose(tell_unowned(unowned), options, ink=Ink.FAINT)]
    return lines + prose_of_each(tell_misfits(unowned), options, ink=Ink.WAITING)


def describe_health(
    pools: Pools,
    unowned: Sequence[NodeStatus],
    options: PrintOptions,
    selector: str = "",
    *,
    listed: bool = False,
) -> list[Line]:
    lines = describe_simulated(simulated_nodes(pools, unowned), options)
    if not pools and selector:
        return [*lines, *prose("No GPUSharingPolicy has these labels.", options)]
    if not pools:
        hint = "There is no GPUSharingPolicy. kubectl gpusharing plan -f FILE shows what a policy would do."
        return [*lines, *prose(hint, options)]
    health, totals = tell_health(pools, unowned, listed=listed)
    ink = Ink.BAD if tell_stuck(unowned) else pools[0].state.value.ink
    lines += prose(f"{health}.", options, ink=ink)
    return [*lines, *prose(totals, options, ink=Ink.FAINT)]


def tell_stuck(unowned: Sequence[NodeStatus]) -> str:
    """Return which nodes without a policy only a person can help; empty if none is."""
    names = [node.name for node in unowned if node.waiting_for == WaitingFor.PERSON]
    nodes = counted(len(names), "node without a policy needs", "nodes without a policy need")
    return f"{nodes} attention: {some(names)}" if names else ""


def tell_health(pools: Pools, unowned: Sequence[NodeStatus], *, listed: bool = False) -> tuple[str, str]:
    """Return which pools, and nodes without one, need attention, and the numbers of pools, nodes and GPUs.

    `listed` says that pools may have only some of their nodes, whose GPUs count then instead of the pool's.
    """
    names = [pool.name for pool in pools if pool.state in (State.FAILED, State.BLOCKED)]
    health = f"{counted(len(names), 'pool needs', 'pools need')} attention{': ' * bool(names)}{some(names)}"
    health = "; ".join(filter(None, (health, tell_stuck(unowned))))
    members = [node for pool in pools for node in pool.members]
    what, counts = ("new pool", "new pools"), [pool.gpus for pool in pools]
    if listed:
        what, counts = ("node without a report", "nodes without a report"), [node.gpus for node in members]
        pools = [replace(pool, gpus=sum(node.gpus or 0 for node in pool.members)) for pool in pools]
    known = [count for count in counts if count is not None]
    unknown = f", without those of {counted(len(counts) - len(known), *what)}" if len(known) < len(counts) else ""
    sizes = [pool.memory_gb for pool in pools if pool.gpus]
    memory = None if unknown or None in sizes else sum(filter(None, sizes))
    gpus = f"{tell_gpus(sum(known), memory)}{unknown}"
    return health, f"{count_states('pool', pools)}; {count_states('node', members)}; {gpus}"


def tell_unowned(unowned: Sequence[NodeStatus]) -> str:
    names = some([node.name for node in unowned], 5)
    return f"{counted(len(unowned), 'node')} with GPUs and no policy: {names}" if unowned else ""


def count_states(noun: str, members: Sequence[NodeStatus | PoolStatus]) -> str:
    """Return how many nodes or pools there are, and in which states, such as `4 nodes: 3 done, 1 blocked`."""
    states = Counter(one.state for one in members)
    counts = ", ".join(f"{states[state]} {state.value.word}" for state in State if states[state])
    return ": ".join(filter(None, (counted(len(members), noun), counts)))


def tell_misfits(unowned: Sequence[NodeStatus]) -> list[str]:
    """Return what somebody has to do about nodes although they have no policy."""
    return tell_each([node for node in unowned if node.waiting_for])


def tell_each(nodes: Sequence[NodeStatus], above: str = "", *, every: bool = True) -> list[str]:
    """Return the messages of these nodes, once for all that share one.

    Of the message that is `above`, it is only said for which nodes it holds too; without `every`, nothing else is said.
    """
    texts, shared = list[str](), dict[str, str]()
    told = next(
        (one for one in nodes if one.message and above.startswith((one.message, f"{one.name}: {one.message}"))), None
    )
    if told is not None:
        shared = {
            one.name: one.message for one in nodes if _abstract(one, one.message) == _abstract(told, told.message)
        }
        texts.append(_same_holds(shared, told.name))
    groups: dict[str, dict[str, str]] = {}
    for node in nodes if every else ():
        blockers = [one for one in node.blockers if one not in node.message]
        if said := " ".join(blockers if node.name in shared else (node.message, *blockers)).strip():
            groups.setdefault(_abstract(node, said), {})[node.name] = said
    for alike in groups.values():
        first, said = next(iter(alike.items()))
        if len({*alike.values()}) > 1:
            texts.append(f"{first}: {said} {_same_holds(alike, first)}")
        else:
            texts.append(f"{some([*alike], MOST_NAMED)}: {said}")
    return [one for one in texts if one]


def _abstract(node: NodeStatus, said: str) -> str:
    own = rf"(?<![\w./-]){re.escape(node.name)}(?![\w/-]|\.\w)"  # gpu-1, and not a part of gpu-10
    return re.sub(own, _NAME, _PODS.sub(_NAME, said))


def _same_holds(alike: Mapping[str, str], first: str) -> str:
    """Say for which other nodes holds what is said of the first, with the pods that it is about there."""
    pods = {name: ", ".join(dict.fromkeys(_PODS.findall(said))) for name, said in alike.items()}
    others = [name if held == pods[first] else f"{name} ({held})" for name, held in pods.items() if name != first]
    return f"The same holds for {some(others, MOST_NAMED)}." if others else ""


def describe_pool(pool: PoolStatus, now: datetime, options: PrintOptions, *, listed: bool = False) -> list[Line]:
    states = Counter(node.state for node in pool.members)
    glyphs = [state.value for state in State for _ in range(states[state])]
    cells = list(bar(glyphs, options, min(60, options.room)))
    for glyph in dict.fromkeys(glyphs):
        cells.append(Span(f"  {glyph.on(options)} {states[State(glyph)]} {glyph.word}", glyph.ink))
    lines = describe_title(pool, options) + (fold(tuple(cells), options) if cells else [])
    lines += describe_facts(pool, now, options)
    lines += prose_of_each(tell_each(pool.changing, pool.message, every=options.wide or listed), options)
    shown = pool.members if options.wide or listed else pool.changing[:MOST]
    if shown:
        lines += describe_table(NODE_COLUMNS, shown, now, options, "  ")
    if (more := len(pool.changing) - len(shown)) > 0:
        lines.append(line(Span(f"  and {counted(more, 'more node')}; -o wide lists all", Ink.FAINT)))
    return lines + describe_events(pool, now, options)


def describe_facts(pool: PoolStatus, now: datetime, options: PrintOptions) -> list[Line]:
    lines = prose(pool.news, options, ink=Ink.BAD) if pool.unseen else []
    if pool.message and pool.status != "Synced":
        lines += prose(pool.message, options)
    texts: list[str] = []
    if plan := pool.plan:
        head = f"plan {plan.get('hash', '')}, disruption class {plan.get('disruption', '')}"
        texts.append(f"{head}: {tell_extent(plan)}")
    if pool.paused:
        texts.append(
            f"paused: no further node will start to change; to continue: kubectl gpusharing resume {pool.name}"
        )
    if pool.paused_by:
        texts.append(f"paused: {pool.paused_by}, so no further node will start to change")
    if pool.next_window:
        opens = from_rfc3339(pool.next_window)  # None while it is open
        wait = f", in {in_minutes(opens - now)}" if opens is not None and opens > now else ""
        texts.append(f"{'window' if opens is None else 'next window'}: {pool.next_window}{wait}")
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
    what = " ".join(filter(None, (pool.mode, pool.layout)))
    texts = [] if pool.gpus is None else [f"{pool.nodes or '0/0'} nodes", counted(pool.gpus, "GPU")]
    texts += [f"{pool.memory_gb} GB"] * bool(pool.memory_gb)
    texts += [f"{pool.used} devices used"] * bool(pool.used)
    texts += [f"{counted(pool.pending_pods, 'pod')} pending"] if pool.pending_pods else []
    return fold(line(Span(pool.name, Ink.TITLE), f"  {what}  ", status_of(pool), f"  {', '.join(texts)}"), options)


# --- once, or again and again --------------------------------------------------------------------------------


def as_data(pools: Pools, unowned: Sequence[NodeStatus], where: str, now: datetime) -> PoolListData:
    return {
        "context": where,
        "health": tell_health(pools, unowned)[0],
        "pools": [pool_data(pool, now) for pool in pools],
        "nodesWithoutPolicy": [node.name for node in unowned],
        "simulated": simulated_nodes(pools, unowned),
    }


def pool_data(pool: PoolStatus, now: datetime) -> PoolData:
    estimate, keys = find_estimate(pool, now), ("eventTime", "type", "reason", "note")
    data = to_wire(replace(pool, members=()))
    members = [{key: value for key, value in node_data(node).items() if key != "history"} for node in pool.members]
    return data | {  # type: ignore[no-any-return]  # to_wire has no type
        "unseenGeneration": data.pop("unseen") or None,
        "memoryGB": pool.memory_gb,
        "secondsLeft": round(estimate[0].total_seconds()) if estimate and estimate[0] is not None else None,
        "plan": data["plan"] or None,
        "members": members,
        "events": pool.events and [{key: text(event, key) for key in keys} for event in pool.events],
    }


def node_data(node: NodeStatus) -> NodeData:
    return to_wire(node) | {"state": node.state.value.word}  # type: ignore[no-any-return]  # to_wire has no type


ABOUT_POLICIES: Filters = {"namespace": "default", "field_selector": f"regarding.kind={KIND}"}
LOST = "The last output may be out of date; kubectl gpusharing keeps trying to reconnect"
TICK = 1.0
"""Seconds between two redraws; ages grow even when nothing happens."""
ENOUGH = 2
"""Ticks without an error after which the cluster counts as followed again: to list but not watch succeeds briefly."""


async def run(session: Session, typed: Arguments, terminal: Terminal) -> int:
    known = await side_by_side(session.all(POLICIES, label_selector=typed.selector), session.all(GPUNODES))
    if typed.events:
        known.append(await session.all(EVENTS, **ABOUT_POLICIES))
    if not typed.watch:
        there = {text(raw, "metadata", "name") for raws in known[:2] for raw in raws}
        right = tuple(name for name in typed.policies if name in there)
        draw(session, replace(typed, policies=right or typed.policies), terminal, known)
        if len(right) < len(typed.policies):
            choose(typed, session.where, known[0], map(read_node, known[1]))  # raises Trouble about the other names
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
                    drawn = draw(session, typed, terminal, cluster.known(), drawn, stale=stale)
                    await asyncio.sleep(TICK)
    finally:
        if terminal.width is not None and drawn[1]:
            # The terminal shows its former screen again; print the whole last picture there.
            terminal.show(drawn[1])


# --- of several clusters --------------------------------------------------------------------------------


async def ask(session: Session, typed: Arguments) -> Answer:
    policies = await session.all(POLICIES, label_selector=typed.selector)
    nodes = [read_node(raw) async for page in session.each_page(GPUNODES) for raw in page]
    pools, unowned = choose(typed, session.where, policies, nodes)
    data, simulated = as_data(pools, unowned, session.name, session.now()), simulated_nodes(pools, unowned)
    remarks = [*filter(None, (tell_unowned(unowned), tell_stuck(unowned)))]
    rows = [cells(POOL_COLUMNS, pool, session.now(), PrintOptions()) for pool in pools]
    nothing = "no GPUSharingPolicy has these labels" if typed.selector else ""
    return Answer(DONE, rows, data, simulated, remarks, nothing)


FLEET = FleetVerb(POOL_COLUMNS, "there is no GPUSharingPolicy", PoolListData, ask)


Drawn = tuple[tuple[Pools, Sequence[NodeStatus]] | None, Sequence[Line]]
"""What was drawn: the pools and the nodes without a policy, and all lines, also those that did not fit the screen."""


def draw(
    session: Session,
    typed: Arguments,
    terminal: Terminal,
    known: Known,
    before: Drawn = (None, ()),
    *,
    stale: str = "",
) -> Drawn:
    """Draw the pools that the user chose, unless they are as `before` and not on a screen.

    `stale` says why they may be out of date.
    """
    if terminal.output == "html":
        from kubectl_gpusharing.pools.page import page  # only a page needs it

        terminal.write(page(session, known, typed))
        return before
    policies, nodes, *events = known
    pools, unowned = choose(typed, session.where, policies, map(read_node, nodes), events)
    if not terminal.redraws and before[0] == (pools, unowned):
        return before
    now, options = session.now(), terminal.options
    if terminal.structured:
        data = as_data(pools, unowned, session.name, now)
        terminal.data(PoolListData, data, [object_name(POLICIES, pool.name) for pool in pools])
        return (pools, unowned), ()
    head = prose(f"This may be out of date: {stale}", options, ink=Ink.BAD) if stale else []
    listed = lists_nodes(typed, pools, unowned)
    lines = [
        *head,
        *describe(pools, unowned, now, options, timeline=typed.timeline, listed=listed, selector=typed.selector),
    ]
    if len(pools) > 1:
        short = [*head, *describe_health(pools, unowned, options, listed=listed)]
        short += describe_table(POOL_COLUMNS, pools, now, options)
        terminal.show(lines, "; pass a POLICY to see one pool", short)
    else:
        terminal.show(lines, "; make the terminal taller to see them")
    return (pools, unowned), lines


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
