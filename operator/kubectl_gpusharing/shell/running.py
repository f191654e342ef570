"""Run a verb in each of the contexts that the user named, in turn or concurrently.

The answers of several clusters are one table. A cluster that gives no answer in time is a row with the reason, and
delays no other beyond its time-out.
"""

import asyncio
import resource
import textwrap
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from gpusharing.kube.background import CommandLoop, run_command
from gpusharing.kube.client import NAMESPACES
from gpusharing.kube.errors import Forbidden, NotFound
from gpusharing.kube.raw import text
from gpusharing.planning.vocabulary.lengths import counted
from kubectl_gpusharing.shell.arguments import CSV, NAMES, PAGE, VERBS, Arguments
from kubectl_gpusharing.shell.documents import FailureData
from kubectl_gpusharing.shell.drawing import (
    BLANK,
    GAP,
    NARROW,
    Column,
    Ink,
    Line,
    PrintOptions,
    Span,
    describe_simulated,
    fit_columns,
    line,
    measure,
    prose_of_each,
    table,
)
from kubectl_gpusharing.shell.session import Session, connected, find_contexts
from kubectl_gpusharing.shell.terminal import Terminal
from kubectl_gpusharing.shell.troubles import FAILED, Trouble, explained, worst

T = TypeVar("T")
FIRST = 30.0
"""Seconds within which a cluster must give its first answer; a login program must end by then, too."""
LOGINS = 24
"""How many clusters are logged in to at once; each may start a login program, which can take 60 MiB."""
ASKS = 24
"""How many clusters are asked at once after their first answer."""
FILES = 16
"""How many open files a cluster may need: at most 8 connections, a login program's, and those of a name's lookup."""
LEGIBLE = 32
"""How many characters the last column of the table should have."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What one of several clusters answers, or why it does not."""

    status: int
    rows: Sequence[Sequence[Span]] = ()
    """A cell for each of the verb's columns; empty if there is nothing to show."""
    data: Mapping[str, Any] = field(default_factory=dict)
    simulated: Sequence[str] = ()
    remarks: Sequence[str] = ()
    nothing: str = ""
    """What to say of a cluster without rows, if that is not what the verb says otherwise."""
    context: str = ""
    """The context that was asked, which `ask_clusters` adds."""
    cluster: str = ""
    """UID of the namespace kube-system, which identifies the cluster; empty if it could not be read."""
    error: str = ""


@dataclass(frozen=True, slots=True)
class FleetVerb:
    """How a verb is carried out for several clusters."""

    columns: Sequence[Column]
    nothing: str
    """What to say of a cluster without rows."""
    kind: type[Mapping[str, Any]]
    ask: Callable[[Session, Any], Awaitable[Answer]]
    check: Callable[[Any], object] = lambda _typed: None
    """Raises Trouble if the flags are wrong, before any cluster is asked."""
    seconds: float = 60.0
    """How long each cluster may take to answer."""


def carry_out_everywhere(verb: FleetVerb, typed: Arguments, contexts: Sequence[str], terminal: Terminal) -> int:
    """Print the answers of all clusters as one table, or as a document for each. Raises Trouble if one gave none."""
    verb.check(typed)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES * len(contexts)
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):  # macOS has a lower limit than the one that it reports
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    answers = run_command(ask_clusters(verb, typed, contexts))
    if not terminal.structured:
        terminal.show(describe_clusters(verb, answers, terminal.options))
    for one in answers if terminal.structured else ():
        kind, data = (FailureData, {"error": one.error}) if one.error else (verb.kind, one.data)
        terminal.data(kind, {"context": one.context, "clusterUID": one.cluster or None, **data})
    if silent := [f"{one.context}: {one.error}" for one in answers if one.error]:
        raise Trouble(f"{len(silent)} of {counted(len(answers), 'cluster')} did not respond. {'; '.join(silent)}")
    return worst([one.status for one in answers])


async def ask_clusters(
    verb: FleetVerb, typed: Arguments, contexts: Sequence[str], first: float = FIRST, at_once: int = ASKS
) -> list[Answer]:
    """Ask all clusters concurrently; each must give its first answer within `first` seconds."""
    logins, asks = asyncio.Semaphore(LOGINS), asyncio.Semaphore(at_once)
    seconds = verb.seconds

    async def ask(context: str) -> Answer:
        late = f"its login program did not finish within {first:g} s. Log in to context {context} first"
        try:
            async with AsyncExitStack() as stack:
                async with logins:
                    limit = await stack.enter_async_context(asyncio.timeout(first))
                    session = await stack.enter_async_context(connected(typed.kubeconfig, context))
                late = f"the API server of context {context} did not respond within {first:g} s"
                cluster = ""
                with explained(session.where), suppress(Forbidden, NotFound):
                    cluster = text(await session.client.get(NAMESPACES, "kube-system"), "metadata", "uid")
                late = f"it took longer than {seconds:g} s. Use --context {context}, which has no such limit"
                limit.reschedule(None)
                async with asks:
                    limit.reschedule(asyncio.get_running_loop().time() + seconds)
                    return replace(await verb.ask(session, typed), context=context, cluster=cluster)
        except TimeoutError:
            why = late
        except Trouble as trouble:
            why = str(trouble)
        except Exception as error:  # noqa: BLE001 - a fault of one cluster must not hide the other answers
            why = f"unexpected error: {type(error).__name__}: {error}; please report it"
        return Answer(FAILED, context=context, error=why)

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(ask(context)) for context in contexts]
    finally:
        loop = asyncio.get_running_loop()
        if isinstance(loop, CommandLoop):
            await loop.end_programs()
    return [task.result() for task in tasks]


def describe_clusters(verb: FleetVerb, answers: Sequence[Answer], options: PrintOptions) -> list[Line]:
    columns = (Column("CLUSTER"), *verb.columns)
    rows: list[Sequence[Span]] = []
    for one in answers:
        why = Span(f"no answer: {one.error}", Ink.BAD) if one.error else Span(one.nothing or verb.nothing, Ink.FAINT)
        empty = [[*([Span("")] * (len(verb.columns) - 1)), why]]
        rows += [[Span(one.context), *row] for row in one.rows or empty]
    simulated = [f"{one.context}/{node}" for one in answers for node in one.simulated]
    remarks = [f"{one.context}: {remark}" for one in answers for remark in one.remarks]
    first: dict[str, str] = {}
    for one in answers:
        other = first.setdefault(one.cluster or one.context, one.context)
        if other != one.context:
            remarks.append(f"{one.context} is the same cluster as {other}, so its rows appear twice")
    lines = [*describe_simulated(simulated, options), *table(columns, _wrapped(columns, rows, options), options)]
    return lines + prose_of_each((f"{text}." for text in remarks), options, ink=Ink.FAINT)


def _wrapped(
    columns: Sequence[Column], rows: Sequence[Sequence[Span]], options: PrintOptions
) -> Sequence[Sequence[Span]]:
    if options.width is None or options.wide:
        return rows
    last = len(columns) - 1
    kept = fit_columns(columns, {**measure(columns, rows), last: LEGIBLE}, options.room)
    room = options.room - sum(width + len(GAP) for index, width in kept.items() if index != last)
    wrapped: list[Sequence[Span]] = []
    for *cells, long in rows:
        parts = textwrap.wrap(long.text, max(NARROW // 2, room), break_on_hyphens=False) or [""]
        first = [*cells, Span(parts[0], long.ink)]
        wrapped += [first, *([*([Span("")] * last), Span(part, long.ink)] for part in parts[1:])]
    return wrapped


def carry_out(verb: Any, typed: Arguments) -> int:
    """Run a verb and return the worst exit status. Raises Trouble.

    Its module has `async run(session, typed, terminal)`, which queries a cluster, prints the answer and returns the
    exit status, or `run_offline(typed, terminal)`, which contacts no cluster, or both.
    """
    named = tuple(name.strip() for name in (typed.contexts or "").split(",") if name.strip())
    fleet = VERBS[typed.verb].fleet and (typed.contexts is not None or typed.all_contexts)
    if why := next(_find_contradictions(typed, named, several=len(named) > 1 or fleet), ""):
        raise Trouble(why)
    terminal = Terminal.of(typed.output, color=not typed.no_color, headers=not typed.no_headers)
    if typed.offline:
        status: int = verb.run_offline(typed, terminal)
        return status
    if fleet:
        return carry_out_everywhere(verb.FLEET, typed, find_contexts(typed.kubeconfig, named), terminal)
    contexts = named or (typed.context,)
    if len(contexts) > 1:
        contexts = find_contexts(typed.kubeconfig, contexts)
    headed = len(contexts) > 1 and not terminal.structured

    async def run(context: str) -> int:
        if headed:
            terminal.show([BLANK, line(Span(f"context {context}", Ink.TITLE))])
        async with connected(typed.kubeconfig, context) as session:
            return await run_each(verb, session, typed, terminal)

    return run_command(_in_turn(run, contexts))


def _find_contradictions(typed: Arguments, named: Sequence[str], *, several: bool) -> Iterator[str]:
    verb, everywhere, output = VERBS[typed.verb], typed.all_contexts, typed.output
    one = f"use --context {named[0] if named else 'NAME'}"
    if sum((bool(typed.context), typed.contexts is not None, everywhere)) > 1:
        yield "pass only one of --context, --contexts and --all-contexts, such as --contexts east,west"
    if typed.contexts is not None and not named:
        yield "--contexts contains no context: separate the names with commas, such as --contexts east,west"
    if (several or everywhere) and verb.alone:
        yield f"{typed.verb} is for one cluster: {one}"
    if everywhere and not verb.fleet:
        yield f"--all-contexts does not work with {typed.verb}, only with status, doctor and cost: {one}"
    if several and typed.watch:
        yield f"--watch follows one context: {one}"
    if several and (typed.timeline or typed.events):
        yield f"--timeline and --events draw one context: {one}"
    if several and typed.prometheus:
        flag = "--all-contexts" if everywhere else "--contexts"
        own = "leave out --prometheus to query each cluster's own Prometheus"
        yield f"--prometheus contacts no cluster: leave out {flag}, or {own}"
    if typed.namespace and typed.verb in ("cost", "recommend"):
        yield f"-n cannot be used with {typed.verb}, which always covers all namespaces"
    if output not in verb.outputs:
        yield f"-o {output} cannot be used with {typed.verb}; it supports {', '.join(verb.outputs)}"
    if output == PAGE and (several or typed.watch):
        yield f"-o html writes one page for one context: {one}, without --watch"
    if output in (CSV, NAMES) and several:
        yield f"-o {output} answers for one context: {one}"


async def run_each(verb: Any, session: Session, typed: Arguments, terminal: Terminal) -> int:
    """Run the verb once for each name that was typed. Raises Trouble at the end, if there was any."""
    each = typed.each()

    async def run(own: Arguments) -> int:
        if own is not each[0] and not terminal.structured:
            terminal.show([BLANK])
        status: int = await verb.run(session, own, terminal)
        return status

    return await _in_turn(run, each)


async def _in_turn(run: Callable[[T], Awaitable[int]], values: Sequence[T]) -> int:
    troubles, statuses = list[Trouble](), list[int]()
    for value in values:
        try:
            statuses.append(await run(value))
        except Trouble as trouble:
            troubles.append(trouble)
    if troubles:
        raise troubles[0] if len(troubles) == 1 else Trouble("; ".join(map(str, troubles)))
    return worst(statuses)
