"""Which columns does `status` have, and how are pools and their nodes drawn with characters?

The table, the page, the table of several clusters and the reference are made from these columns. JSON and its schema
have the record that a column is about.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Generic, TypeVar

from gpusharing.api.names import WAY, Phase
from gpusharing.api.times import from_rfc3339
from gpusharing.kube.raw import text
from gpusharing.planning.vocabulary.lengths import counted, in_minutes, some
from kubectl_gpusharing.pools.fleet import NodeStatus, Pools, PoolStatus, State, simulated_nodes, tell_gpus
from kubectl_gpusharing.pools.timeline import MOST, describe_timeline, find_estimate
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
"""Stands for the name of a node in the message that several share."""


def describe(
    pools: Pools,
    unowned: Sequence[NodeStatus],
    now: datetime,
    options: PrintOptions,
    *,
    timeline: bool = False,
    listed: bool = False,
) -> list[Line]:
    """Describe the pools; `listed` says that nodes were named, so that they are listed whatever their state."""
    lines = [] if listed and not pools else describe_health(pools, unowned, options)
    for pool in pools:
        drawn = describe_timeline(pool, now, options) if timeline else []
        lines += [BLANK, *describe_pool(pool, now, options, listed=listed), *drawn]
    lines += [*([BLANK] if unowned else []), *prose(tell_unowned(unowned), options, ink=Ink.FAINT)]
    return lines + prose_of_each(tell_misfits(unowned), options, ink=Ink.WAITING)


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
    known = [pool.gpus for pool in pools if pool.gpus is not None]
    unknown = f", without those of {counted(len(pools) - len(known), 'new pool')}" if len(known) < len(pools) else ""
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

    Of the message that is `above`, and without `every` of no other, it is only said for which nodes it holds too.
    """
    groups: dict[str, list[NodeStatus]] = {}
    for node in nodes:
        if said := " ".join((node.message, *(one for one in node.blockers if one not in node.message))).strip():
            groups.setdefault(said.replace(node.name, _NAME), []).append(node)
    texts = []
    for shared, alike in groups.items():
        names = [node.name for node in alike]
        told = [one for one in alike if one.message and above.startswith((one.message, f"{one.name}: {one.message}"))]
        first = (told or alike)[0].name
        others = some([name for name in names if name != first], MOST_NAMED)
        also = f"The same holds for {others}." if others else ""
        if told:
            texts.append(also)
        elif every and _NAME in shared:
            texts.append(f"{first}: {shared.replace(_NAME, first)} {also}")
        elif every:
            texts.append(f"{some(names, MOST_NAMED)}: {shared}")
    return [one.rstrip() for one in texts if one]


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
        nodes, pods = counted(plan.get("nodeCount", 0), "node"), counted(plan.get("pods", 0), "pod")
        head = f"plan {plan.get('hash', '')}, disruption class {plan.get('disruption', '')}"
        texts.append(f"{head}: up to {nodes} will change and up to {pods} be evicted")
    if pool.paused:
        texts.append(
            f"paused: no further node will start to change; to continue: kubectl gpusharing resume {pool.name}"
        )
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
