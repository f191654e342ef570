"""`advise --from-prometheus`, or `recommend`: which layout suits a pool, by what its workloads used?

It needs only Prometheus with dcgm-exporter, not the operator. Where the operator is installed, it also shows the plan
of the policy. Nothing is applied: `--write FILE` writes a policy that waits for an approval.
"""

from dataclasses import replace
from pathlib import Path

from gpusharing.kube.background import run_command
from gpusharing.planning.vocabulary.lengths import counted
from kubectl_gpusharing.changing.plan import Planned, propose
from kubectl_gpusharing.setup.layouts import pick
from kubectl_gpusharing.shell.arguments import Arguments
from kubectl_gpusharing.shell.documents import RecommendationData
from kubectl_gpusharing.shell.session import Session
from kubectl_gpusharing.shell.terminal import Terminal
from kubectl_gpusharing.shell.troubles import CHANGES, DONE, Trouble, error_text
from kubectl_gpusharing.usage.histories import (
    NodeScope,
    ObservedPool,
    find_in_cluster,
    find_in_prometheus,
    find_pool,
    narrow,
    read_usage,
    rows_of,
)
from kubectl_gpusharing.usage.matchers import selector_of
from kubectl_gpusharing.usage.meter import read_price
from kubectl_gpusharing.usage.needs import MIN_POINTS, MIN_SPAN, Confidence, Doubt, Goal, find_need
from kubectl_gpusharing.usage.prices import price_of
from kubectl_gpusharing.usage.prometheus import Prometheus, find_endpoint, prometheus_at
from kubectl_gpusharing.usage.queries import HOUR, MeterQuery
from kubectl_gpusharing.usage.recommendation import ModelPool, recommend
from kubectl_gpusharing.usage.recommendtext import RecommendReport, as_data, as_file, as_rows, describe, policy_of
from kubectl_gpusharing.usage.windows import DAY, span_of
from kubectl_gpusharing.usage.workloads import Fold

MOST = round(30 * DAY)
"""The longest window, in seconds. Samples older than a few days have almost no weight."""


def run_offline(typed: Arguments, terminal: Terminal) -> int:
    return run_command(run(None, typed, terminal))


async def run(session: Session | None, typed: Arguments, terminal: Terminal) -> int:
    """Print a recommendation with the plan of its policy; without a `session`, from the URL in `--prometheus`."""
    _check(typed)
    async with prometheus_at(await find_endpoint(session, typed)) as prometheus:
        answer = await find_answer(prometheus, typed, session)
    if answer.policy is not None and terminal.output != "csv":
        effect = await find_effect(session, answer.scope, answer.policy)
        answer = replace(answer, effect=effect, context="" if session is None else session.name)
    if typed.write and answer.policy is not None:
        try:
            with Path(typed.write).open("x") as file:  # noqa: ASYNC230 - nothing else goes on here
                file.write(as_file(answer))
        except OSError as error:
            raise Trouble(f"--write {typed.write}: {error_text(error)}") from error
    terminal.answer(
        RecommendationData,
        lambda: as_data(answer),
        lambda options: describe(answer, options, verbose=typed.verbose, written=typed.write),
        lambda: as_rows(answer),
    )
    if typed.write and answer.policy is None:
        room = "no layout has room for any workload"
        why = _unknown(answer.observed) if answer.recommendation is None else room
        raise Trouble(f"--write {typed.write}: there is no layout to write, because {why}")
    return CHANGES if answer.missing else DONE


def _check(typed: Arguments) -> None:
    span_of(typed, 0.0, MOST)
    selector_of(typed.match)
    price_of(typed.price)
    if typed.policy and typed.selector:
        raise Trouble("pass either --policy or -l, not both")
    if typed.selector:
        rows_of(typed.selector)
    if typed.card:
        pick(typed.card)
    try:
        if typed.write and Path(typed.write).exists():
            raise Trouble(f"--write {typed.write}: the file already exists; choose another name")
    except (OSError, ValueError) as error:
        raise Trouble(f"--write {typed.write[:200]}: {error_text(error)}") from error


async def find_answer(prometheus: Prometheus, typed: Arguments, session: Session | None) -> RecommendReport:
    start, end = span_of(typed, await prometheus.now(), MOST)
    # Hours are those of the clock, so that the answer does not depend on the minute at which it is asked for.
    start, end = start - end % HOUR, end - end % HOUR
    selector = selector_of(typed.match)
    inside = None if session is None else await find_in_cluster(session, typed)
    scope = inside or await find_in_prometheus(prometheus, typed, selector, end)
    card = pick(typed.card) if typed.card else None
    fold = Fold(end, max(1, round((end - start) / HOUR)), scope.nodes, card)
    missing = await read_usage(prometheus, fold, start, selector)
    observed = find_pool(fold, scope.where)
    if not observed.histories:
        raise Trouble(
            f"no pod used a GPU of {scope.where} during this window, or dcgm-exporter does not report pods (set"
            " DCGM_EXPORTER_KUBERNETES=true)"
        )
    scope, unseen = narrow(scope, len(observed.nodes), "" if card is None else card.key)
    goal = Goal(typed.goal or "cost")
    remarks = [*filter(None, (prometheus.endpoint.remark,)), *scope.remarks, *unseen, *observed.remarks]
    recommendation, policy = None, None
    if observed.card is None or not observed.card.memory_gb:
        missing.append(f"{_unknown(observed)}, so there is nothing to recommend")
    else:
        needs = tuple(find_need(history, observed.card, goal) for history in observed.histories)
        if all(need.confidence is Confidence.NONE and Doubt.TOO_LITTLE in need.doubts for need in needs):
            best = max(needs, key=lambda need: (need.samples, need.workload))
            hours, least = best.span.total_seconds() / 3600, MIN_SPAN.total_seconds() / 3600
            raise Trouble(
                f"too little history to recommend anything: {MIN_POINTS} hourly peaks over {round(least)} h are needed; of"
                f" {counted(len(needs), 'workload')}, {best.workload.ref} has the most, with"
                f" {best.samples} over {round(hours)} h. Try again later, or use a longer --window"
            )
        pool = ModelPool(scope.name, observed.card, observed.nodes, observed.used)
        recommendation = recommend(pool, needs, observed.occupied, goal=goal)
        # A layout that serves no workload is not worth applying.
        policy = policy_of(scope, recommendation) if recommendation.placed else None
    lately = MeterQuery(max(start, end - DAY), end, selector=selector)
    price = price_of(typed.price) or await read_price(prometheus, lately, observed.names)
    where = prometheus.endpoint.where
    return RecommendReport(where, start, end, scope, observed, recommendation, policy, missing, remarks, price)


async def find_effect(session: Session | None, scope: NodeScope, policy: dict[str, object]) -> Planned | str:
    if session is None:
        return "with --prometheus, the cluster is not contacted; use --service for a Prometheus inside one"
    if scope.unlabelled:
        return "no node has the policy's selector label yet; set the label, then run plan -f FILE"
    try:
        return await propose(session, (policy,), {scope.name})
    except Trouble as trouble:
        return str(trouble)


def _unknown(observed: ObservedPool) -> str:
    return f"the possible layouts of {observed.model or 'a GPU of unknown model'} are unknown"
