"""`cost [--by namespace|policy|LABEL] [--window 30d]`: what the GPUs cost, and whom; from Prometheus alone."""

import asyncio
import re
from argparse import Namespace

from gpusharing.cli.shell.session import Session
from gpusharing.cli.shell.terminal import Terminal
from gpusharing.cli.shell.troubles import CHANGES, DONE, Trouble
from gpusharing.usage.flags import place_found, place_named
from gpusharing.usage.prometheus.client import Endpoint, Prometheus, prometheus_at
from gpusharing.usage.prometheus.matchers import selector_of
from gpusharing.usage.prometheus.windows import span_of
from gpusharing.usage.read.meter import read_metered
from gpusharing.usage.read.queries import POLICY, MeterQuery, refuse_parts
from gpusharing.usage.reckon.bills import make_bill
from gpusharing.usage.say.cost import CostReport, as_data, as_rows, describe


def run_offline(typed: Namespace, terminal: Terminal) -> int:
    """See VerbModule."""
    return asyncio.run(_answer(place_named(typed), typed, terminal))


async def run(session: Session, typed: Namespace, terminal: Terminal) -> int:
    """See VerbModule."""
    wish_of(typed, 0.0)  # a mistake is reported before anything is asked
    return await _answer(await place_found(session, typed), typed, terminal)


async def _answer(place: Endpoint, typed: Namespace, terminal: Terminal) -> int:
    wish_of(typed, 0.0)
    async with prometheus_at(place) as prometheus:
        answer = await find_answer(prometheus, typed)
    terminal.answer(lambda: as_data(answer), lambda paper: describe(answer, paper), lambda: as_rows(answer))
    return CHANGES if answer.missing else DONE


async def find_answer(prometheus: Prometheus, typed: Namespace) -> CostReport:
    """The bill. Raises Trouble."""
    wish = wish_of(typed, await prometheus.now())
    metered = await read_metered(prometheus, wish)
    bill = make_bill(metered.cells, by_policy=wish.by == POLICY)
    remarks = [*filter(None, (prometheus.place.remark,)), *metered.remarks]
    if sum(1 for total in bill.totals if total.currency) > 1:
        currencies = ", ".join(total.currency for total in bill.totals if total.currency)
        remarks.append(
            f"prices are in several currencies ({currencies}): nothing is converted, and each has its total"
        )
    return CostReport(
        prometheus.place.where,
        wish,
        bill,
        tuple(metered.missing),
        tuple(remarks),
        tuple(sorted(metered.simulated)),
    )


def wish_of(typed: Namespace, now: float) -> MeterQuery:
    """The question as typed; the window ends `now` by default. Raises Trouble."""
    start, end = span_of(typed, now)
    if not re.fullmatch(r"[A-Z]{3}", typed.currency):
        raise Trouble(f"--currency {typed.currency}: write three capital letters, such as USD")
    if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._/-]{0,250}[A-Za-z0-9])?", typed.by):
        raise Trouble(f"--by {typed.by}: write namespace, policy, or a label of namespaces, such as team")
    selector = selector_of(typed.selector)
    refuse_parts(selector)
    return MeterQuery(start, end, typed.by, selector, typed.currency)
