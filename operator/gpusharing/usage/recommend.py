"""`recommend [-l NODES | --policy NAME] [--window 14d]`: which layout a pool should have, by what its workloads used.

From Prometheus alone, without the operator: dcgm-exporter is enough. Where the operator is installed, the plan of the
policy is shown too. Nothing is applied: `--write FILE` writes a policy that waits for an approval.
"""

import asyncio
from argparse import Namespace
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

from gpusharing.cli.changing.plan import propose
from gpusharing.cli.setup.layouts import pick
from gpusharing.cli.shell.session import Session
from gpusharing.cli.shell.terminal import Terminal
from gpusharing.cli.shell.troubles import CHANGES, DONE, Trouble, said
from gpusharing.planning.vocabulary.lengths import counted
from gpusharing.usage.flags import place_found, place_named
from gpusharing.usage.prometheus.client import Endpoint, Prometheus, prometheus_at
from gpusharing.usage.prometheus.matchers import selector_of
from gpusharing.usage.prometheus.windows import DAY, span_of
from gpusharing.usage.read.histories import ObservedPool, find_seen
from gpusharing.usage.read.poolnodes import NodeScope, ask_cluster, ask_prometheus, narrowed, rows_of
from gpusharing.usage.read.usage import UsageQuery, read_usage
from gpusharing.usage.reckon.needs import MIN_POINTS, MIN_SPAN, Confidence, Doubt, Goal, Need, find_need
from gpusharing.usage.reckon.recommendation import ModelPool, recommend
from gpusharing.usage.say.recommend import (
    Effect,
    RecommendReport,
    as_csv,
    as_data,
    as_file,
    describe,
    policy_of,
)

MOST = round(30 * DAY)
"""Seconds of a window: what is older than some days has almost no weight."""
Choose = Callable[[Prometheus, float], Awaitable[NodeScope]]
"""The nodes that are meant, at the end of the window."""


def tell(typed: Namespace, terminal: Terminal) -> int:
    """See Offline."""

    async def choose(prometheus: Prometheus, end: float) -> NodeScope:
        return await ask_prometheus(prometheus, typed, selector_of(typed.selector), end)

    _check(typed)
    return asyncio.run(_tell(place_named(typed), typed, terminal, choose, None))


async def run(session: Session, typed: Namespace, terminal: Terminal) -> int:
    """See Verb."""

    async def choose(prometheus: Prometheus, end: float) -> NodeScope:
        return await ask_cluster(session, typed)

    _check(typed)
    return await _tell(await place_found(session, typed), typed, terminal, choose, session)


def _check(typed: Namespace) -> None:
    """Raise Trouble for what cannot be meant, before anything is asked."""
    span_of(typed, 0.0, MOST)
    selector_of(typed.selector)
    if typed.policy and typed.nodes:
        raise Trouble("give --policy or -l, not both")
    if typed.nodes:
        rows_of(typed.nodes)
    if typed.card:
        pick(typed.card)
    try:
        exists = bool(typed.write) and Path(typed.write).exists()
    except (OSError, ValueError) as error:
        raise Trouble(f"--write {typed.write[:200]}: {said(error)}") from error
    if exists:
        raise Trouble(f"--write {typed.write}: the file exists already; name another")


async def _tell(
    place: Endpoint, typed: Namespace, terminal: Terminal, choose: Choose, session: Session | None
) -> int:
    async with prometheus_at(place) as prometheus:
        answer = await find_answer(prometheus, typed, choose)
    if answer.policy is not None and terminal.output != "csv":
        answer = replace(answer, effect=await find_effect(session, answer.scope, answer.policy))
    if typed.write and answer.policy is not None:
        try:
            with Path(typed.write).open("x") as file:  # noqa: ASYNC230 - nothing else goes on here
                file.write(as_file(answer))
        except OSError as error:
            raise Trouble(f"--write {typed.write}: {said(error)}") from error
    if terminal.output == "csv":
        terminal.write(as_csv(answer))
    else:
        terminal.answer(
            lambda: as_data(answer),
            lambda paper: describe(answer, paper, verbose=typed.verbose, written=typed.write),
        )
    if typed.write and answer.policy is None:
        why = "none has a place for any workload" if answer.found is not None else _unknown(answer.seen)
        raise Trouble(f"--write {typed.write}: there is no layout to write, because {why}")
    return CHANGES if answer.missing else DONE


async def find_answer(prometheus: Prometheus, typed: Namespace, choose: Choose) -> RecommendReport:
    """The recommendation. Raises Trouble, also where the history is too short to say anything."""
    start, end = span_of(typed, await prometheus.now(), MOST)
    scope = await choose(prometheus, end)
    card = pick(typed.card) if typed.card else None
    usage = await read_usage(
        prometheus, UsageQuery(start, end, selector_of(typed.selector), scope.nodes, card)
    )
    seen = find_seen(usage, scope.where)
    if not seen.histories:
        raise Trouble(
            f"no pod used a GPU of {scope.where} in this window, or dcgm-exporter does not report which"
            " (DCGM_EXPORTER_KUBERNETES=true)"
        )
    scope, unseen = narrowed(scope, len(seen.nodes), "" if card is None else card.key)
    goal = Goal(typed.goal)
    missing, remarks = (
        list(usage.missing),
        [*filter(None, (prometheus.place.remark,)), *scope.remarks, *unseen, *seen.remarks],
    )
    needs: tuple[Need, ...] = ()
    found = None
    if seen.card is None or not seen.card.memory_gb:
        missing.append(f"{_unknown(seen)}, so there is nothing to recommend")
    else:
        needs = tuple(find_need(one, seen.card, goal) for one in seen.histories)
        _refuse_too_little(needs)
        pool = ModelPool(scope.name, seen.card, seen.nodes, seen.used)
        found = recommend(pool, needs, seen.occupied, goal=goal)
    # A layout that serves no workload is not worth applying.
    policy = policy_of(scope, found) if found is not None and found.placed else None
    return RecommendReport(
        prometheus.place.where, start, end, scope, seen, needs, found, policy, tuple(missing), tuple(remarks)
    )


async def find_effect(session: Session | None, scope: NodeScope, policy: dict[str, object]) -> Effect:
    """What the policy would do, by the code of `plan -f`; whatever prevents a plan is reported, and is not an error."""
    if session is None:
        return Effect(why_not="with --prometheus no cluster is asked; --service names a Prometheus in one")
    if scope.unlabelled:
        return Effect(
            why_not="no node has the label that the policy selects by yet; set it, then run plan -f FILE"
        )
    try:
        planned = await propose(session, (policy,), {scope.name})
    except Trouble as trouble:
        return Effect(why_not=str(trouble))
    return Effect(planned, session.name)


def _refuse_too_little(needs: tuple[Need, ...]) -> None:
    """Raises Trouble where no workload has been seen for long enough."""
    if any(one.confidence is not Confidence.NONE or Doubt.TOO_LITTLE not in one.doubts for one in needs):
        return
    best = max(needs, key=lambda one: (one.samples, one.workload))
    whose = best.workload
    raise Trouble(
        f"too little history to recommend anything: of {counted(len(needs), 'workload')} {whose.namespace}/{whose.name}"
        f" has the most, {best.samples} hourly peaks over {round(best.span.total_seconds() / 3600)} h, and"
        f" {MIN_POINTS} over {round(MIN_SPAN.total_seconds() / 3600)} h are needed. Ask again later, or give"
        " a longer --window"
    )


def _unknown(seen: ObservedPool) -> str:
    return f"the layouts that {seen.model or 'a GPU of unknown model'} can have are unknown"
