"""Runs a verb in each of the contexts that were named, one after the other."""

import asyncio
from argparse import Namespace
from dataclasses import dataclass
from typing import Any, Protocol

from gpusharing.cli.shell.arguments import CSV, PAGE
from gpusharing.cli.shell.drawing import BLANK, Ink, TextSpan, line
from gpusharing.cli.shell.session import Session, connected
from gpusharing.cli.shell.terminal import Terminal
from gpusharing.cli.shell.troubles import DONE, FAILED, Trouble


class VerbModule(Protocol):
    """A module of this package that carries out a verb."""

    async def run(self, session: Session, typed: Namespace, terminal: Terminal) -> int:
        """Ask, print, and return the exit status. Raises Trouble."""
        ...


class Offline(Protocol):
    """A module that carries out a verb without any cluster."""

    def tell(self, typed: Namespace, terminal: Terminal) -> int:
        """Print, and return the exit status. Raises Trouble."""
        ...


@dataclass(frozen=True, slots=True)
class Flags:
    """Those of every verb, with their defaults."""

    kubeconfig: str
    """`--kubeconfig`; empty: as kubectl finds it."""
    contexts: tuple[str, ...]
    """Names of contexts, at least one; an empty name is the current one."""
    terminal: Terminal
    """Where the answer goes."""

    @classmethod
    def of(cls, typed: Namespace) -> "Flags":
        """As they were typed. Raises Trouble where two contradict each other."""
        given, verb = vars(typed), typed.row
        context, contexts = given.get("context", ""), given.get("contexts", "")
        if context and contexts:
            raise Trouble("give --context or --contexts, not both")
        names = tuple(name.strip() for name in contexts.split(",") if name.strip()) or (context,)
        if len(names) > 1 and given.get("watch"):
            raise Trouble("--watch follows one context: use --context")
        if len(names) > 1 and verb.one_file:
            raise Trouble(f"{typed.verb} writes a file for one cluster: use --context")
        if verb.asks_prometheus and given.get("namespace"):
            raise Trouble(f"-n does not work here: {typed.verb} always answers for all namespaces")
        if given.get("output", "table") not in verb.outputs:
            raise Trouble(f"-o {typed.output} does not work here; {typed.verb} has {', '.join(verb.outputs)}")
        if given.get("output") == PAGE and (len(names) > 1 or given.get("watch")):
            raise Trouble("-o html writes one page for one context: leave out --contexts and --watch")
        if given.get("output") == CSV and len(names) > 1:
            raise Trouble("-o csv writes one table for one context: leave out --contexts")
        terminal = Terminal.of(given.get("output", "table"), color=not given.get("no_color", False))
        return cls(given.get("kubeconfig", ""), names, terminal)


def carry_out(verb: Any, typed: Namespace) -> int:
    """The worst exit status of all contexts. Raises Trouble after the last one, where one could not be asked."""
    flags = Flags.of(typed)
    given, row = vars(typed), typed.row
    if given.get("prometheus") or (row.offline and not given.get(row.asks_with)):
        offline: Offline = verb
        return offline.tell(typed, flags.terminal)
    return asyncio.run(_everywhere(verb, typed, flags))


async def _everywhere(verb: VerbModule, typed: Namespace, flags: Flags) -> int:
    troubles: list[str] = []
    statuses: list[int] = []
    several = len(flags.contexts) > 1
    for context in flags.contexts:
        if several and not flags.terminal.structured:
            flags.terminal.show([BLANK, line(TextSpan(f"context {context}", Ink.TITLE))])
        try:
            async with connected(flags.kubeconfig, context) as session:
                statuses.append(await verb.run(session, typed, flags.terminal))
        except Trouble as trouble:
            troubles.append(str(trouble))
    if troubles:
        raise Trouble("; ".join(troubles))
    # An error in one cluster is not made good by changes in another, although 2 is more than 1.
    return FAILED if FAILED in statuses else max(statuses, default=DONE)
