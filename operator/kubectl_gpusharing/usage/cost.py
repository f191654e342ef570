"""`cost [--by namespace|policy|LABEL] [--window 30d]`: show what the GPUs cost and who used them, from what Prometheus has recorded. That Prometheus may be in a cluster."""

import re
from argparse import Namespace
from collections.abc import Callable

from gpusharing.kube.commandloop import run_command
from kubectl_gpusharing.shell.clusters import Answer, FleetVerb
from kubectl_gpusharing.shell.documents import BillData
from kubectl_gpusharing.shell.drawing import Column, Span
from kubectl_gpusharing.shell.session import Session
from kubectl_gpusharing.shell.terminal import Terminal
from kubectl_gpusharing.shell.troubles import CHANGES, DONE, Trouble
from kubectl_gpusharing.usage.prometheus.client import Prometheus, prometheus_at
from kubectl_gpusharing.usage.prometheus.matchers import labels_of, selector_of
from kubectl_gpusharing.usage.prometheus.services import find_endpoint
from kubectl_gpusharing.usage.prometheus.windows import span_of
from kubectl_gpusharing.usage.read.meter import CostReport, read_bill
from kubectl_gpusharing.usage.read.queries import OF_PARTS, MeterQuery
from kubectl_gpusharing.usage.say.cost import (
    as_data,
    as_rows,
    cells_of,
    columns_of,
    describe,
    total_sentence,
)


def run_offline(typed: Namespace, terminal: Terminal) -> int:
    return run_command(run(None, typed, terminal))


async def run(session: Session | None, typed: Namespace, terminal: Terminal) -> int:
    """Print the bill from a Prometheus in the cluster or, without a `session`, the one in `--prometheus`; CHANGES if it is incomplete. Mistakes in flags raise Trouble before anything is sent."""
    query_of(typed, 0.0)  # reports mistakes before anything is sent
    async with prometheus_at(await find_endpoint(session, typed)) as prometheus:
        answer = await find_answer(prometheus, typed, terminal.progress)
    terminal.answer(
        BillData, lambda: as_data(answer), lambda paper: describe(answer, paper), lambda: as_rows(answer)
    )
    return CHANGES if answer.missing else DONE


async def ask(session: Session, typed: Namespace) -> Answer:
    """Return the bill of one cluster (see FleetVerb). Its rows end with an empty cell for the column NOTE; totals, remarks and what is missing become remarks of the Answer."""
    async with prometheus_at(await find_endpoint(session, typed)) as prometheus:
        answer = await find_answer(prometheus, typed)
    status, rows = CHANGES if answer.missing else DONE, [[*cells, Span("")] for cells in cells_of(answer)]
    totals = [total_sentence(total).rstrip(".") for total in answer.bill.totals]
    remarks = [*totals, *answer.remarks, *(f"PARTIAL: {why}" for why in answer.missing)]
    return Answer(status, rows, as_data(answer), answer.simulated, remarks)


COLUMNS = (*columns_of("NAME"), Column("NOTE"))
BESIDE = FleetVerb(COLUMNS, "no GPU was metered", BillData, ask, lambda typed: query_of(typed, 0.0))


async def find_answer(
    prometheus: Prometheus, typed: Namespace, progress: Callable[[str], None] = lambda text: None
) -> CostReport:
    """Read the bill of a window that ends now, by the clock of `prometheus`, or at `--until`. `progress` is called with an empty text at the end."""
    query = query_of(typed, await prometheus.now())
    try:
        return await read_bill(prometheus, query, progress)
    finally:
        progress("")


def query_of(typed: Namespace, now: float) -> MeterQuery:
    """Return the query for these flags, with both ends rounded down to whole seconds. Raises Trouble for flags that cannot be used. If `now` is 0, an `--until` in the future is accepted."""
    start, end = map(float, map(int, span_of(typed, now)))
    if not re.fullmatch(r"[A-Z]{3}", typed.currency):
        raise Trouble(f"--currency {typed.currency}: use three capital letters, for example USD")
    if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._/-]{0,250}[A-Za-z0-9])?", typed.by):
        raise Trouble(f"--by {typed.by}: use namespace, policy, pod, or a namespace label, for example team")
    selector = selector_of(typed.selector)
    if parts := [label for label in labels_of(selector) if label in OF_PARTS]:
        raise Trouble(
            f"--selector {selector}: only some of the series that make up a bill have the label {parts[0]}, so the"
            " parts would not add up. Select by policy, node, job, or a label that your Prometheus adds, such as"
            ' cluster="east"; every tenant and resource has its own row anyway'
        )
    return MeterQuery(start, end, typed.by, selector, typed.currency)
