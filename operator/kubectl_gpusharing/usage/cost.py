"""`cost [--by namespace|policy|LABEL] [--window 30d]`: show what the GPUs cost and who used them, from what Prometheus
has recorded. That Prometheus may be in a cluster."""

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
from kubectl_gpusharing.usage.read.meter import read_metered
from kubectl_gpusharing.usage.read.queries import OF_PARTS, POLICY, MeterQuery
from kubectl_gpusharing.usage.reckon.bills import make_bill
from kubectl_gpusharing.usage.say.cost import (
    CostReport,
    as_data,
    as_rows,
    columns_of,
    describe,
    total_sentence,
)


def run_offline(typed: Namespace, terminal: Terminal) -> int:
    """Print the bill from the Prometheus at the address in `--prometheus`, as `run` does, without a cluster. Return the
    exit status and raise Trouble as `run` does."""
    return run_command(run(None, typed, terminal))


async def run(session: Session | None, typed: Namespace, terminal: Terminal) -> int:
    """Print the bill from a Prometheus in the cluster or, without a `session`, the one in `--prometheus`, and how much
    has been read so far. Return DONE, or CHANGES if the bill is incomplete. Mistakes in flags raise Trouble before
    anything is sent, except an `--until` in the future, which is only found by the clock of the Prometheus. Also raises
    Trouble as `find_endpoint` and `find_answer` do."""
    query_of(typed, 0.0)  # reports mistakes before anything is sent
    async with prometheus_at(await find_endpoint(session, typed)) as prometheus:
        answer = await find_answer(prometheus, typed, terminal.progress)
    terminal.answer(
        BillData, lambda: as_data(answer), lambda paper: describe(answer, paper), lambda: as_rows(answer)
    )
    return CHANGES if answer.missing else DONE


async def ask(session: Session, typed: Namespace) -> Answer:
    """Return the bill of one cluster (see FleetVerb), with the status CHANGES if it is incomplete, else DONE. Its rows
    end with an empty cell for the column NOTE. Its totals, its remarks and a `PARTIAL:` line for each thing that is
    missing become remarks of the Answer. Raises Trouble if no Prometheus is found, or as `find_answer` does."""
    async with prometheus_at(await find_endpoint(session, typed)) as prometheus:
        answer = await find_answer(prometheus, typed)
    status, rows = CHANGES if answer.missing else DONE, [[*cells, Span("")] for cells in answer.cells]
    totals = [total_sentence(total).rstrip(".") for total in answer.bill.totals]
    remarks = [*totals, *answer.remarks, *(f"PARTIAL: {why}" for why in answer.missing)]
    return Answer(status, rows, as_data(answer), answer.simulated, remarks)


COLUMNS = (*columns_of("NAME"), Column("NOTE"))
BESIDE = FleetVerb(COLUMNS, "no GPU was metered", BillData, ask, lambda typed: query_of(typed, 0.0))


async def find_answer(
    prometheus: Prometheus, typed: Namespace, progress: Callable[[str], None] = lambda text: None
) -> CostReport:
    """Read the meter's series and return the bill with its remarks, one of which says so if prices are in several
    currencies. The window ends now, by the clock of `prometheus`, or at `--until`. `progress` gets each new sentence
    about how much has been read, and at the end an empty one. Raises Trouble for an unusable flag, a failed query, no
    data, a node metered twice, or a label that no namespace has."""
    place, query = prometheus.place, query_of(typed, await prometheus.now())
    try:
        metered = await read_metered(prometheus, query, progress)
    finally:
        progress("")
    bill = make_bill(metered.cells, by_policy=query.by == POLICY)
    remarks = [*filter(None, (place.remark,)), *metered.remarks]
    if sum(1 for total in bill.totals if total.currency) > 1:
        currencies = ", ".join(total.currency for total in bill.totals if total.currency)
        remarks.append(
            f"prices are in several currencies ({currencies}); amounts are not converted, and each currency has its"
            " own total"
        )
    simulated = sorted(metered.simulated)
    return CostReport(place.where, query, bill, metered.missing, remarks, simulated, metered.used)


def query_of(typed: Namespace, now: float) -> MeterQuery:
    """Return the query for these flags; its window ends at `now` unless `--until` names another time. Both ends are
    rounded down to whole seconds. Raises Trouble for flags that cannot be used: a window (`span_of`), a currency other
    than three capital letters, a --by that cannot be the key of a label, or a selector that cannot be parsed or selects
    by a label that only some of the series have (OF_PARTS), the first of which is named. If `now` is 0, an `--until` in
    the future is accepted."""
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
