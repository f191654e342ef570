"""Run a verb in each of the contexts that the user named, one after the other."""

import asyncio
from argparse import Namespace
from collections.abc import Sequence
from typing import Any, Protocol

from gpusharing.cli.shell.arguments import CSV, PAGE
from gpusharing.cli.shell.drawing import BLANK, Ink, Span, line
from gpusharing.cli.shell.session import Session, connected
from gpusharing.cli.shell.terminal import Terminal
from gpusharing.cli.shell.troubles import DONE, FAILED, Trouble


class VerbModule(Protocol):
    """A module that implements a verb; it has one of these functions, or both."""

    async def run(self, session: Session, typed: Namespace, terminal: Terminal) -> int:
        """Query a cluster, print the answer, and return the exit status. Raises Trouble."""
        ...

    def run_offline(self, typed: Namespace, terminal: Terminal) -> int:
        """Print the answer without contacting a cluster, and return the exit status. Raises Trouble."""
        ...


def carry_out(verb: Any, typed: Namespace) -> int:
    """Run the verb, either offline or in each context, and return the worst exit status. Raises Trouble if flags
    contradict each other and, after the last context, if any context raised one."""
    flags, row = vars(typed), typed.row
    named = tuple(name.strip() for name in flags.get("contexts", "").split(",") if name.strip())
    contexts = named or (flags.get("context", ""),)
    if why := _find_contradiction(typed, several=len(contexts) > 1):
        raise Trouble(why)
    terminal = Terminal.of(flags.get("output", "table"), color=not flags.get("no_color", False))
    if flags.get("prometheus") or (row.offline and not flags.get(row.asks_with)):
        module: VerbModule = verb
        return module.run_offline(typed, terminal)
    return asyncio.run(_everywhere(verb, typed, contexts, terminal))


def _find_contradiction(typed: Namespace, *, several: bool) -> str:
    """Return a message that says which flags contradict each other or the verb; empty if none do. `several` is true if
    the verb runs in more than one context."""
    flags, verb = vars(typed), typed.row
    output, watch = flags.get("output", "table"), flags.get("watch")
    contradictions = {
        "pass --context or --contexts, not both": flags.get("context") and flags.get("contexts"),
        "--watch follows one context: use --context": several and watch,
        f"{typed.verb} writes a file for one cluster: use --context": several and verb.one_file,
        f"-n cannot be used with {typed.verb}, which always covers all namespaces": (
            verb.asks_prometheus and flags.get("namespace")
        ),
        f"-o {output} cannot be used with {typed.verb}; it supports {', '.join(verb.outputs)}": (
            output not in verb.outputs
        ),
        "-o html writes one page for one context: leave out --contexts and --watch": (
            output == PAGE and (several or watch)
        ),
        "-o csv writes one table for one context: leave out --contexts": output == CSV and several,
    }
    return next((text for text, holds in contradictions.items() if holds), "")


async def _everywhere(verb: VerbModule, typed: Namespace, contexts: Sequence[str], terminal: Terminal) -> int:
    """Run the verb in each context and return FAILED if it failed in any, otherwise the highest exit status. A Trouble
    in one context does not prevent the others from running; all are combined and raised at the end."""
    troubles: list[str] = []
    statuses: list[int] = []
    for context in contexts:
        if len(contexts) > 1 and not terminal.structured:
            terminal.show([BLANK, line(Span(f"context {context}", Ink.TITLE))])
        try:
            async with connected(getattr(typed, "kubeconfig", ""), context) as session:
                statuses.append(await verb.run(session, typed, terminal))
        except Trouble as trouble:
            troubles.append(str(trouble))
    if troubles:
        raise Trouble("; ".join(troubles))
    # An error in one cluster outweighs changes in another, although CHANGES is the higher number.
    return FAILED if FAILED in statuses else max(statuses, default=DONE)
