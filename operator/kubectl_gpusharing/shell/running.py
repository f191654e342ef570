"""Run a verb in each of the contexts that the user named: one after the other, or side by side in one table."""

from argparse import Namespace
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

from gpusharing.kube.commandloop import run_command
from kubectl_gpusharing.shell.arguments import CSV, NAMES, PAGE
from kubectl_gpusharing.shell.drawing import BLANK, Ink, Span, line
from kubectl_gpusharing.shell.session import Session, connected, find_contexts
from kubectl_gpusharing.shell.terminal import Terminal
from kubectl_gpusharing.shell.troubles import Trouble, worst


def carry_out(verb: Any, typed: Namespace) -> int:
    """Run a verb and return the worst exit status. Raises Trouble.

    Its module has `async run(session, typed, terminal)`, which queries a cluster, prints the answer and returns the
    exit status, or `run_offline(typed, terminal)`, which contacts no cluster, or both.
    """
    flags, row, kubeconfig = vars(typed), typed.row, getattr(typed, "kubeconfig", "")
    named = tuple(name.strip() for name in flags.get("contexts", "").split(",") if name.strip())
    beside = row.beside > 0 and ("contexts" in flags or "all_contexts" in flags)
    if why := next(_find_contradictions(typed, named, several=len(named) > 1 or beside), ""):
        raise Trouble(why)
    color, headers = not flags.get("no_color"), not flags.get("no_headers")
    terminal = Terminal.of(flags.get("output", "table"), color=color, headers=headers)
    if flags.get("prometheus") or (row.offline and not any(map(flags.get, row.asks_with))):
        status: int = verb.run_offline(typed, terminal)
        return status
    if beside:
        from kubectl_gpusharing.shell.clusters import carry_out_everywhere  # a single cluster does without

        return carry_out_everywhere(verb.BESIDE, typed, find_contexts(kubeconfig, named), terminal)
    contexts = named or (flags.get("context", ""),)
    if len(contexts) > 1:
        contexts = find_contexts(kubeconfig, contexts)
    headed = len(contexts) > 1 and not terminal.structured

    async def run(context: str) -> int:
        if headed:
            terminal.show([BLANK, line(Span(f"context {context}", Ink.TITLE))])
        async with connected(kubeconfig, context) as session:
            return await run_each(verb, session, typed, terminal)

    return run_command(_in_turn(run, contexts))


def _find_contradictions(typed: Namespace, named: Sequence[str], *, several: bool) -> Iterator[str]:
    flags, verb = vars(typed), typed.row
    watch, everywhere = flags.get("watch"), flags.get("all_contexts")
    output, one = (
        flags.get("output", "table").partition("=")[0],
        f"use --context {named[0] if named else 'NAME'}",
    )
    if sum(name in flags for name in ("context", "contexts", "all_contexts")) > 1:
        yield "pass only one of --context, --contexts and --all-contexts, such as --contexts east,west"
    if "contexts" in flags and not named:
        yield "--contexts contains no context: separate the names with commas, such as --contexts east,west"
    if (several or everywhere) and verb.alone:
        yield f"{typed.verb} is for one cluster: {one}"
    if everywhere and not verb.beside:
        yield f"--all-contexts does not work with {typed.verb}, only with status, doctor and cost: {one}"
    if several and watch:
        yield f"--watch follows one context: {one}"
    if several and any(map(flags.get, ("timeline", "events"))):
        yield f"--timeline and --events draw one context: {one}"
    if several and flags.get("prometheus"):
        flag = "--all-contexts" if everywhere else "--contexts"
        own = "leave out --prometheus to query each cluster's own Prometheus"
        yield f"--prometheus contacts no cluster: leave out {flag}, or {own}"
    if verb.asks_prometheus and not verb.asks_with and flags.get("namespace"):
        yield f"-n cannot be used with {typed.verb}, which always covers all namespaces"
    if output not in verb.outputs:
        yield f"-o {output} cannot be used with {typed.verb}; it supports {', '.join(verb.outputs)}"
    if output == PAGE and (several or watch):
        yield f"-o html writes one page for one context: {one}, without --watch"
    if output in (CSV, NAMES) and several:
        yield f"-o {output} answers for one context: {one}"


async def run_each(verb: Any, session: Session, typed: Namespace, terminal: Terminal) -> int:
    """Run the verb once for each value of the argument `Verb.each`. Raises Trouble at the end, if there was any."""
    each = typed.row.each
    values = tuple(dict.fromkeys(getattr(typed, each) or [""])) if each else ("",)

    async def run(value: str) -> int:
        if value != values[0] and not terminal.structured:
            terminal.show([BLANK])
        own = Namespace(**vars(typed) | ({each: value} if each else {}))
        status: int = await verb.run(session, own, terminal)
        return status

    return await _in_turn(run, values)


async def _in_turn(run: Callable[[str], Awaitable[int]], values: Sequence[str]) -> int:
    troubles, statuses = list[Trouble](), list[int]()
    for value in values:
        try:
            statuses.append(await run(value))
        except Trouble as trouble:
            troubles.append(trouble)
    if troubles:
        raise troubles[0] if len(troubles) == 1 else Trouble("; ".join(map(str, troubles)))
    return worst(statuses)
