"""Ask several clusters side by side, and draw one table of their answers.

A cluster that gives no answer in time is a row with the reason, and delays no other beyond its time-out.
"""

import asyncio
import resource
import textwrap
from argparse import Namespace
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, replace
from typing import Any

from gpusharing.kube.client import NAMESPACES
from gpusharing.kube.commandloop import CommandLoop, run_command
from gpusharing.kube.errors import Forbidden, NotFound
from gpusharing.kube.raw import text
from gpusharing.planning.vocabulary.lengths import counted
from kubectl_gpusharing.shell.documents import FailureData
from kubectl_gpusharing.shell.drawing import (
    GAP,
    NARROW,
    Column,
    Ink,
    Line,
    Paper,
    Span,
    describe_simulated,
    prose_of_each,
    table,
)
from kubectl_gpusharing.shell.session import Session, connected
from kubectl_gpusharing.shell.terminal import Terminal
from kubectl_gpusharing.shell.troubles import Trouble, explained, worst

FIRST = 30.0
"""Seconds within which a cluster must give its first answer. A login program must have ended by then, too."""
LOGINS = 24
"""How many clusters are logged in to at once. Each may start a login program, which can take 60 MiB."""
ASKS = 24
"""How many clusters are asked at once after their first answer. They share one CPU, and each has a limited time."""
FILES = 16
"""How many open files a cluster may need: at most 8 connections, and those of a login program and a name's lookup."""
LEGIBLE = 32
"""How many characters the last column of the table should have. Other columns are left out for it."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer of one cluster, as the verb read it."""

    status: int
    """The exit status that the verb would have for this cluster alone."""
    rows: Sequence[Sequence[Span]]
    """The rows of the table, with a cell for each of the verb's columns; empty if there is nothing to show."""
    data: Mapping[str, Any]
    """The answer as plain data, as the verb shows it for this cluster alone."""
    simulated: Sequence[str]
    """Names of nodes whose GPUs are SIMULATED."""
    remarks: Sequence[str]
    """Sentences for below the table, without their period."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A context, and its answer or the reason why there is none."""

    context: str
    """Name of the context."""
    answer: Answer | None = None
    """The answer, or None if there is none."""
    error: str = ""
    """Why there is no answer; empty if there is one."""
    cluster: str = ""
    """UID of the namespace kube-system, which identifies the cluster; empty if it could not be read."""


@dataclass(frozen=True, slots=True)
class FleetVerb:
    """How a verb is carried out for several clusters."""

    columns: Sequence[Column]
    """The columns of the table after CLUSTER. The last one also shows why a cluster gave no answer."""
    nothing: str
    """The text for a cluster whose answer has no rows."""
    kind: type[Mapping[str, Any]]
    """The type of an answer's data."""
    ask: Callable[[Session, Namespace], Awaitable[Answer]]
    """Returns the answer of one cluster, and prints nothing. Raises Trouble."""
    check: Callable[[Namespace], object] = lambda _typed: None
    """Raises Trouble for flags that cannot be used, before any cluster is asked."""


def carry_out_everywhere(
    verb: FleetVerb, typed: Namespace, contexts: Sequence[str], terminal: Terminal
) -> int:
    """Ask all clusters (`ask_clusters`) and print their answers: one table (`describe_clusters`), or in JSON and YAML a
    document for each context, with the reason in place of a missing answer. Return the `worst` status. Raises Trouble
    before anything is asked if the flags cannot be used, and after the printing, with all reasons, if a cluster gave no
    answer."""
    verb.check(typed)
    _allow_files(FILES * len(contexts))
    replies = run_command(ask_clusters(verb, typed, contexts))
    if not terminal.structured:
        terminal.show(describe_clusters(verb, replies, terminal.paper))
    for reply in replies if terminal.structured else ():
        kind, data = (verb.kind, reply.answer.data) if reply.answer else (FailureData, {"error": reply.error})
        terminal.data(kind, {"context": reply.context, "clusterUID": reply.cluster or None, **data})
    if silent := [f"{reply.context}: {reply.error}" for reply in replies if reply.answer is None]:
        raise Trouble(
            f"{len(silent)} of {counted(len(replies), 'cluster')} did not respond. {'; '.join(silent)}"
        )
    return worst([reply.answer.status for reply in replies if reply.answer])


def _allow_files(most: int) -> None:
    """Let this process have `most` open files, or as many as the system allows it. Does nothing if it may already have
    that many. macOS allows 256 by default."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = most if hard == resource.RLIM_INFINITY else min(most, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):  # macOS has a lower limit than the one that it reports
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


async def ask_clusters(
    verb: FleetVerb, typed: Namespace, contexts: Sequence[str], first: float = FIRST, at_once: int = ASKS
) -> list[Reply]:
    """Ask all clusters concurrently, and return a reply for each context in their order. Each cluster has `first`
    seconds to log in and give its first answer, and then `Verb.beside` seconds for the rest. At most LOGINS log in at a
    time, and at most `at_once` are asked for the rest; nothing else of a cluster delays another. A cluster without an
    answer has a reply with the reason (`_reply`). Login programs that still run at the end are killed."""
    logins, asks = asyncio.Semaphore(LOGINS), asyncio.Semaphore(at_once)
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(_reply(verb, typed, context, logins, asks, first)) for context in contexts
            ]
    finally:
        loop = asyncio.get_running_loop()
        if isinstance(loop, CommandLoop):
            await loop.end_programs()
    return [task.result() for task in tasks]


async def _reply(
    verb: FleetVerb,
    typed: Namespace,
    context: str,
    logins: asyncio.Semaphore,
    asks: asyncio.Semaphore,
    first: float,
) -> Reply:
    """Ask one cluster, and return its answer with the cluster's UID. It logs in as soon as `logins` has a free place,
    and gives the place back when it has logged in or failed to; with the UID it waits for a place of `asks`, and holds
    that to the end. A time-out, a Trouble or any unexpected error becomes the error of the reply. The cluster has
    `first` seconds to log in and give the UID, and then `Verb.beside` seconds for the rest. The time until there is a
    place does not count."""
    late = f"its login program did not finish within {first:g} s. Log in to context {context} first"
    kubeconfig = getattr(typed, "kubeconfig", "")
    try:
        async with AsyncExitStack() as stack:
            async with logins:
                limit = await stack.enter_async_context(asyncio.timeout(first))
                session = await stack.enter_async_context(connected(kubeconfig, context))
            late = f"the API server of context {context} did not respond within {first:g} s"
            cluster = ""
            with explained(session.where), suppress(Forbidden, NotFound):
                cluster = text(await session.client.get(NAMESPACES, "kube-system"), "metadata", "uid")
            seconds = typed.row.beside
            late = f"it took longer than {seconds:g} s. Use --context {context}, which has no such limit"
            limit.reschedule(None)
            async with asks:
                limit.reschedule(asyncio.get_running_loop().time() + seconds)
                return Reply(context, await verb.ask(session, typed), cluster=cluster)
    except TimeoutError:
        return Reply(context, error=late)
    except Trouble as trouble:
        return Reply(context, error=str(trouble))
    except Exception as error:  # noqa: BLE001 - a fault of one cluster must not hide the other answers
        return Reply(context, error=f"unexpected error: {type(error).__name__}: {error}; please report it")


def describe_clusters(verb: FleetVerb, replies: Sequence[Reply], paper: Paper) -> list[Line]:
    """Draw one table of all replies, in their order. SIMULATED nodes are named above it, as CONTEXT/NODE. Remarks
    follow below it, including one for each context that leads to the same cluster, by its UID, as an earlier context. A
    context whose UID is unknown is not compared."""
    columns = (Column("CLUSTER"), *verb.columns)
    rows = [[Span(reply.context), *row] for reply in replies for row in _rows(verb, reply)]
    answers = [(reply.context, reply.answer) for reply in replies if reply.answer]
    simulated = [f"{name}/{node}" for name, answer in answers for node in answer.simulated]
    remarks = [f"{name}: {remark}" for name, answer in answers for remark in answer.remarks]
    first: dict[str, str] = {}
    for reply in replies:
        other = first.setdefault(reply.cluster or reply.context, reply.context)
        if other != reply.context:
            remarks.append(f"{reply.context} is the same cluster as {other}, so its rows appear twice")
    lines = [*describe_simulated(simulated, paper), *table(columns, _wrapped(columns, rows, paper), paper)]
    return lines + prose_of_each((f"{text}." for text in remarks), paper, ink=Ink.FAINT)


def _rows(verb: FleetVerb, reply: Reply) -> Sequence[Sequence[Span]]:
    """Return the rows of a reply without the column CLUSTER. If there are none, return a single row that has only a
    last cell with text: `verb.nothing` if the cluster answered, else the error."""
    if reply.answer and reply.answer.rows:
        return reply.answer.rows
    why = Span(verb.nothing, Ink.FAINT) if reply.answer else Span(f"no answer: {reply.error}", Ink.BAD)
    return [[*([Span("")] * (len(verb.columns) - 1)), why]]


def _wrapped(
    columns: Sequence[Column], rows: Sequence[Sequence[Span]], paper: Paper
) -> Sequence[Sequence[Span]]:
    """Break the last cell of each row into several rows, whose other cells are empty, so that `table` need not cut it.
    If it would have fewer than LEGIBLE characters, the room of the columns that `table` leaves out first is counted as
    its own. On wide paper, and if the paper has no width, the rows are returned unchanged. There must be at least one
    row."""
    if paper.width is None or paper.wide:
        return rows
    sizes = [max(len(row[i].text) for row in rows) for i in range(len(columns) - 1)]
    sizes = [max(size, len(columns[i].title)) + len(GAP) if size else 0 for i, size in enumerate(sizes)]
    room = paper.room - sum(sizes)
    for drop, _, size in sorted(((columns[i].drop, i, size) for i, size in enumerate(sizes)), reverse=True):
        room += size if drop and room < LEGIBLE else 0  # `table` leaves the same columns out
    wrapped: list[Sequence[Span]] = []
    for *cells, last in rows:
        parts = textwrap.wrap(last.text, max(NARROW // 2, room), break_on_hyphens=False) or [""]
        first = [*cells, replace(last, text=parts[0])]
        wrapped += [first, *([*([Span("")] * len(cells)), replace(last, text=part)] for part in parts[1:])]
    return wrapped
