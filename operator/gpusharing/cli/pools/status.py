"""`status [POLICY]`: what every pool runs, what waits, why, since when and until when.

It reads what the operator published, so the rights of ClusterRole gpusharing-viewer are enough.
"""

import asyncio
import gc
from argparse import Namespace
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from gpusharing.api.names import WAY, Phase
from gpusharing.api.times import to_rfc3339
from gpusharing.cli.pools.estimate import find_estimate
from gpusharing.cli.pools.fleet import PoolStatus, Seen, State, known_phase, read_pools, simulated_nodes
from gpusharing.cli.pools.timeline import describe_timeline
from gpusharing.cli.shell.drawing import (
    BLANK,
    Column,
    Glyph,
    Ink,
    Line,
    Paper,
    Span,
    age,
    bar,
    describe_simulated,
    length,
    line,
    prose,
    table,
)
from gpusharing.cli.shell.session import Session, no_such
from gpusharing.cli.shell.terminal import Terminal
from gpusharing.cli.shell.troubles import DONE, Trouble, error_text, sentence
from gpusharing.kube.client import GPUNODES, JSON, POLICIES
from gpusharing.kube.errors import KubeError, first_of
from gpusharing.kube.paging import PAGE
from gpusharing.kube.reflector import CacheSettings, Reflector
from gpusharing.planning.vocabulary.lengths import counted

MOST = 20
"""Nodes of a pool that are listed; -o wide lists all."""
COLUMNS = (
    Column("NODE"),
    Column("WAY", drop=5),
    Column("PHASE"),
    Column("REASON"),
    Column("PODS", drop=4),
    Column("CULPRIT", drop=1),
    Column("SINCE", drop=2),
    Column("DEADLINE", drop=3),
)
WIDE = (
    Column("STEP", drop=6),
    Column("WANTED", drop=7),
    Column("OBSERVED", drop=7),
    Column("CORDON", drop=7),
    Column("HEALTH", drop=8),
)
NOT_SEEN = "The operator has not looked at generation {} yet. If this persists, check that it is running."
_AHEAD = Glyph("·", "-", Ink.FAINT)
_CELLS = (*WAY, Phase.SYNCED)
"""What the cells of the column WAY stand for."""


def describe(
    pools: Sequence[PoolStatus], loose: Sequence[Seen], now: datetime, paper: Paper, *, timeline: bool = False
) -> list[Line]:
    """All pools; `loose`: GPU nodes of none of them; `timeline`: with the last rollout of each."""
    lines = describe_simulated(simulated_nodes(pools, loose), paper)
    if not pools:
        lines += prose(
            "There is no GPUSharingPolicy. kubectl gpusharing plan -f FILE says what one would do.", paper
        )
    else:
        for pool in pools:
            drawn = describe_timeline(pool, now, paper) if timeline else []
            lines += [*describe_pool(pool, now, paper), *drawn, BLANK]
        lines.pop()
    if loose:
        names = ", ".join(seen.name for seen in loose[:5]) + (" ..." if len(loose) > 5 else "")
        lines += [
            BLANK,
            *prose(f"{counted(len(loose), 'node')} with GPUs and no policy: {names}", paper, ink=Ink.FAINT),
        ]
    return lines


def describe_pool(pool: PoolStatus, now: datetime, paper: Paper) -> list[Line]:
    """One pool: what it runs, a cell for each node, what is in the way, and the nodes that are not done."""
    lines = [*_title(pool, paper), *_bar(pool, paper)]
    if pool.unseen:
        lines += prose(NOT_SEEN.format(pool.unseen), paper, ink=Ink.BAD)
    if pool.message and pool.status != "Synced":
        lines += prose(pool.message, paper)
    lines += [one for text in facts(pool, now) for one in prose(text, paper, hang="  ")]
    shown = pool.members if paper.wide else pool.changing[:MOST]
    if shown:
        columns = COLUMNS + (WIDE if paper.wide else ())
        lines += table(columns, [_row(seen, now, paper) for seen in shown], paper, "  ")
    if (more := len(pool.changing) - len(shown)) > 0:
        lines.append(line(Span(f"  and {more} more; -o wide lists all", Ink.FAINT)))
    return lines


def _title(pool: PoolStatus, paper: Paper) -> list[Line]:
    ink = Ink.GOOD if pool.status == "Synced" else Ink.BUSY if pool.status else Ink.FAINT
    what = " ".join(filter(None, (pool.mode, pool.layout)))
    head = line(Span(pool.name, Ink.TITLE), f"  {what}  ", Span(pool.status or "new", ink))
    tail = numbers(pool)
    if sum(len(span.text) for span in head) + len(tail) + 2 > paper.room:
        return [head, line(tail)]
    return [line(*head, "  ", tail)]


def numbers(pool: PoolStatus) -> str:
    """How many nodes and GPUs a pool has, how many are in use, and how many pods wait for them."""
    texts = [f"{pool.nodes or '0/0'} nodes", counted(pool.gpus, "GPU")]
    if pool.used:
        texts.append(f"{pool.used} used")
    if pool.pending_pods:
        texts.append(f"{counted(pool.pending_pods, 'pod')} waiting")
    return ", ".join(texts)


def _bar(pool: PoolStatus, paper: Paper) -> list[Line]:
    """A cell for each node, and what the cells are."""
    if not pool.members:
        return []
    states = Counter(seen.state for seen in pool.members)
    legend: list[Span | str] = []
    for state in State:
        if count := states[state]:
            glyph = state.value
            legend += ["  ", Span(f"{glyph.on(paper)} {count} {glyph.word}", glyph.ink)]
    order = sorted(pool.members, key=lambda seen: list(State).index(seen.state))
    # The legend stands on a line of its own where the bar leaves it no room.
    cells = bar([seen.state.value for seen in order], paper, min(60, paper.room))
    words = sum(len(one if isinstance(one, str) else one.text) for one in legend)
    if sum(len(span.text) for span in cells) + words > paper.room:
        return [cells, line(*legend[1:])]
    return [line(*cells, *legend)]


def facts(pool: PoolStatus, now: datetime) -> list[str]:
    """What is about to happen, when, and how long it may take."""
    facts = []
    plan = pool.plan
    if plan:
        nodes, pods = counted(plan.get("nodeCount", 0), "node"), counted(plan.get("pods", 0), "pod")
        facts.append(f"plan {plan.get('hash', '')}: {plan.get('disruption', '')}, {nodes}, {pods} to leave")
    if pool.paused:
        facts.append("paused: no further node starts (kubectl gpusharing resume)")
    if pool.next_window:
        head = "window" if pool.next_window.startswith("open") else "next window"
        facts.append(f"{head}: {pool.next_window}")
    if (found := find_estimate(pool, now)) is not None:
        facts.append(
            f"about {length(found.left)} left: {counted(found.nodes, 'node')}, {length(found.each)} each by the last"
            f" {'change' if found.changes == 1 else f'{found.changes} changes'}"
        )
    return facts


def _row(seen: Seen, now: datetime, paper: Paper) -> list[Span]:
    ink = seen.state.value.ink
    cells = [
        Span(seen.name),
        Span(_way(seen, paper), ink),
        Span(seen.phase or "-", ink),
        Span(seen.reason),
        Span("" if seen.pods is None else str(seen.pods)),
        Span(seen.culprit),
        Span(age(seen.entered, now), Ink.FAINT),
        Span(seen.deadline),
    ]
    if not paper.wide:
        return cells
    more = (seen.step, seen.wanted, seen.observed, seen.cordon, seen.unhealthy)
    return [*cells, *(Span(text) for text in more)]


def _way(seen: Seen, paper: Paper) -> str:
    """How far the change of a node is: a cell for each phase of a change that goes well."""
    phase = known_phase(seen.phase)
    done = _CELLS.index(phase) + 1 if phase in _CELLS else 0
    glyph = seen.state.value
    if seen.state in (State.BLOCKED, State.FAILED):
        return glyph.on(paper) + _AHEAD.on(paper) * (len(_CELLS) - 1)
    return glyph.on(paper) * done + _AHEAD.on(paper) * (len(_CELLS) - done)


# --- as data ---------------------------------------------------------------------------------------------


def as_data(pools: Sequence[PoolStatus], loose: Sequence[Seen], where: str, now: datetime) -> dict[str, Any]:
    """The same for programs; times as the API has them."""
    return {
        "context": where,
        "pools": [_pool_data(pool, now) for pool in pools],
        "nodesWithoutPolicy": [seen.name for seen in loose],
        "simulated": simulated_nodes(pools, loose),
    }


def _pool_data(pool: PoolStatus, now: datetime) -> dict[str, Any]:
    found = find_estimate(pool, now)
    return {
        "name": pool.name,
        "status": pool.status,
        "message": pool.message,
        "mode": pool.mode,
        "layout": pool.layout,
        "nodes": pool.nodes,
        "gpus": pool.gpus,
        "used": pool.used,
        "pendingPods": pool.pending_pods,
        "product": pool.product,
        "nextWindow": pool.next_window,
        "paused": pool.paused,
        "unseenGeneration": pool.unseen or None,
        "secondsLeft": None if found is None else round(found.left.total_seconds()),
        "plan": dict(pool.plan) or None,
        "members": [node_data(seen) for seen in pool.members],
    }


def node_data(seen: Seen) -> Mapping[str, Any]:
    """One node for programs."""
    return {
        "name": seen.name,
        "state": seen.state.value.word,
        "phase": seen.phase,
        "reason": seen.reason,
        "message": seen.message,
        "since": None if seen.entered is None else to_rfc3339(seen.entered),
        "deadline": seen.deadline,
        "disruption": seen.disruption,
        "wanted": seen.wanted,
        "observed": seen.observed,
        "pods": seen.pods,
        "culprit": seen.culprit,
        "blockers": list(seen.blockers),
        "cordon": seen.cordon,
        "unhealthy": seen.unhealthy,
    }


TICK = 1.0
"""Seconds between two redraws: ages grow even when nothing happens."""
ENOUGH = 2
"""Consecutive looks without an error until the cluster counts as followed again."""


async def run(session: Session, typed: Namespace, terminal: Terminal) -> int:
    """See VerbModule."""
    policies, nodes = await session.lists(POLICIES, GPUNODES)
    picture = Picture(session, typed.policy, terminal, typed.timeline)
    if typed.watch:
        await _watch(session, picture, (policies, nodes))
    else:
        picture.draw(policies, nodes)
    return DONE


@dataclass(slots=True)
class Picture:
    """What is drawn, and what was drawn last."""

    session: Session
    policy: str
    terminal: Terminal
    timeline: bool = False
    last: object = None
    lines: Sequence[Line] = ()

    def draw(self, policies: Iterable[JSON], nodes: Sequence[JSON], stale: str = "") -> None:
        """Draw the pools, or only the one of `self.policy`. On a pipe nothing is drawn unless something has changed.
        `stale`: why the data may be out of date. Raises Trouble if there is no policy of that name.
        """
        pools, loose = read_pools(policies, nodes)
        if self.policy:
            pools, loose = (self._find_pool(pools),), ()
        if not self.terminal.redraws and self.last == (pools, loose):
            return
        self.last = pools, loose
        if self.terminal.structured:
            self.terminal.data(as_data(pools, loose, self.session.name, self.session.now()))
        elif self.terminal.output == "html":
            from gpusharing.cli.pools.page import View, page, read_cards  # only a page needs these

            view = View(self.session.name, self.session.now(), pools, loose, read_cards(nodes))
            self.terminal.write(page(view))
        else:
            paper = self.terminal.paper
            lines = prose(f"This may be old: {stale}", paper, ink=Ink.BAD) if stale else []
            drawn = describe(pools, loose, self.session.now(), paper, timeline=self.timeline)
            self.lines = [*lines, *drawn]
            hint = "; name a POLICY" if len(pools) > 1 else "; a taller terminal shows them"
            self.terminal.show(self.lines, hint)

    def _find_pool(self, pools: Sequence[PoolStatus]) -> PoolStatus:
        named = {pool.name: pool for pool in pools}
        if self.policy not in named:
            raise Trouble(no_such(POLICIES, self.policy, list(named), self.session.where))
        return named[self.policy]


def _in_order(reflector: Reflector[JSON]) -> list[JSON]:
    return [raw for _, raw in sorted(reflector.items.items())]


@dataclass(slots=True)
class Notices:
    """What goes to standard error, on a pipe or as data: there, nothing may be written for a long time. A redrawn
    picture shows it above."""

    session: Session
    terminal: Terminal
    away: bool = False
    """The user was told that the cluster cannot be followed."""
    looks: int = 0
    """Consecutive looks since then in which it could be."""

    def look(self, error: KubeError | None) -> None:
        """`error`: why the cluster cannot be followed now. Each end and each beginning is reported once."""
        if self.terminal.redraws:
            return
        if error is not None:
            self.looks = 0
            if not self.away:
                self.away = True
                self.terminal.warn(
                    f"{sentence(error, self.session.where)}. The last output may be out of date; this keeps trying"
                )
        elif self.away:
            self.looks += 1
            # Who may list and not watch is let in for a moment at each try.
            if self.looks == ENOUGH:
                self.away = False
                self.terminal.warn(f"following {self.session.where} again")


async def _watch(session: Session, picture: Picture, first: tuple[Sequence[JSON], Sequence[JSON]]) -> None:
    """Draw at every change and every TICK, until Ctrl-C. `first`: policies and nodes, as they are before the watch."""
    gc.enable()  # this may go on for days
    policies, nodes = (
        Reflector(session.client, resource, lambda raw: raw, settings=CacheSettings(page_size=PAGE))
        for resource in (POLICIES, GPUNODES)
    )
    notices = Notices(session, picture.terminal)

    async def draw() -> None:
        known = first
        while True:
            if policies.synced.is_set() and nodes.synced.is_set():
                known = _in_order(policies), _in_order(nodes)
            error = policies.error or nodes.error
            notices.look(error)
            picture.draw(*known, "" if error is None else error_text(error))
            await asyncio.sleep(TICK)

    try:
        with picture.terminal.redrawing():
            async with asyncio.TaskGroup() as group:
                for task in (policies.run(), nodes.run(), draw()):
                    group.create_task(task)
    except BaseExceptionGroup as group:
        raise first_of(group) from None
    finally:
        if picture.terminal.width is not None and picture.lines:
            # The screen is as it was before: the last picture stays there, whole.
            picture.terminal.show(picture.lines)
