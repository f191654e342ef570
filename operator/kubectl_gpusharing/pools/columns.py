"""Which columns does `status` have?

The table, the page, the table of several clusters and the reference are made from these values. JSON and its schema
have the record that a column is about.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Generic, TypeVar

from gpusharing.api.names import WAY, Phase
from gpusharing.api.times import from_rfc3339
from kubectl_gpusharing.pools.fleet import NodeStatus, PoolStatus, State
from kubectl_gpusharing.shell.drawing import Column, Glyph, Ink, Line, PrintOptions, Span, age, length, line, table

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
