"""`status [POLICY]`: what every pool runs, what waits, why, since when and until when.

It reads what the operator published, so the rights of ClusterRole gpusharing-viewer are enough.
"""

import asyncio
import gc
from argparse import Namespace
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gpusharing.cli.pools.fleet import PoolStatus, read_pools
from gpusharing.cli.pools.statustext import as_data, describe
from gpusharing.cli.shell.drawing import Ink, Line, prose
from gpusharing.cli.shell.session import Session, no_such
from gpusharing.cli.shell.terminal import Terminal
from gpusharing.cli.shell.troubles import DONE, Trouble, said, sentence
from gpusharing.kube.client import GPUNODES, JSON, POLICIES
from gpusharing.kube.errors import KubeError, first_of
from gpusharing.kube.paging import PAGE
from gpusharing.kube.reflector import Reflector

TICK = 1.0
"""Seconds between two redraws: ages grow even when nothing happens."""
ENOUGH = 2
"""Consecutive looks without an error until the cluster counts as followed again."""


async def run(session: Session, typed: Namespace, terminal: Terminal) -> int:
    """See Verb."""
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
            from gpusharing.cli.pools.cards import read_cards  # only a page needs these
            from gpusharing.cli.pools.page import View, page

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
        Reflector(session.client, resource, lambda raw: raw, page_size=PAGE)
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
            picture.draw(*known, "" if error is None else said(error))
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
