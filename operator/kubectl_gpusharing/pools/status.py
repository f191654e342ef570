"""`status [POLICY]`: what does each pool run, and what does it wait for?

The answer says why, since when and until when. Only what the operator published is shown, so the rights of ClusterRole
gpusharing-viewer are enough.
"""

import asyncio
import gc
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from operator import attrgetter

from gpusharing.api.records import to_wire
from gpusharing.kube.client import EVENTS, GPUNODES, JSON, POLICIES, Filters, Resource
from gpusharing.kube.clock import loop_time
from gpusharing.kube.errors import KubeError, one_error
from gpusharing.kube.lists import PAGE
from gpusharing.kube.raw import text
from gpusharing.kube.reflector import Reflector
from kubectl_gpusharing.live.files import KIND
from kubectl_gpusharing.pools.fleet import Known, NodeStatus, Pools, PoolStatus, choose, read_node, simulated_nodes
from kubectl_gpusharing.pools.statustext import (
    POOL_COLUMNS,
    cells,
    describe,
    describe_health,
    describe_table,
    tell_health,
    tell_unowned,
)
from kubectl_gpusharing.pools.timeline import find_estimate
from kubectl_gpusharing.shell.arguments import Arguments
from kubectl_gpusharing.shell.documents import NodeData, PoolData, PoolListData
from kubectl_gpusharing.shell.drawing import Ink, Line, PrintOptions, prose
from kubectl_gpusharing.shell.running import Answer, FleetVerb
from kubectl_gpusharing.shell.session import Session, object_name
from kubectl_gpusharing.shell.terminal import Terminal
from kubectl_gpusharing.shell.troubles import DONE, error_text, sentence


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
    members = [{key: value for key, value in node_data(node).items() if key != "history"} for node in pool.members]
    return data | {  # type: ignore[no-any-return]  # to_wire has no type
        "unseenGeneration": data.pop("unseen") or None,
        "memoryGB": pool.memory_gb,
        "secondsLeft": None if estimate is None else round(estimate[0].total_seconds()),
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
    remarks = [tell_unowned(unowned)] if unowned else []
    rows = [cells(POOL_COLUMNS, pool, session.now(), PrintOptions()) for pool in pools]
    return Answer(DONE, rows, data, simulated, remarks)


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
    listed = not {*typed.policies} <= {pool.name for pool in pools}
    lines = [*head, *describe(pools, unowned, now, options, timeline=typed.timeline, listed=listed)]
    if len(pools) > 1:
        short = [*head, *describe_health(pools, unowned, options)]
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
