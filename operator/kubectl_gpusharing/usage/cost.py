"""`cost [--by namespace|policy|LABEL] [--window 30d]`: what did the GPUs cost, and who used them?

The answer is what a Prometheus, in a cluster or not, has recorded.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from itertools import starmap

from gpusharing.kube.background import run_command
from kubectl_gpusharing.shell import drawing
from kubectl_gpusharing.shell.arguments import Arguments
from kubectl_gpusharing.shell.documents import BillData, SumData
from kubectl_gpusharing.shell.drawing import BLANK, Column, Ink, Line, PrintOptions, Span, line, prose, table
from kubectl_gpusharing.shell.running import Answer, FleetVerb
from kubectl_gpusharing.shell.session import Session
from kubectl_gpusharing.shell.terminal import Terminal
from kubectl_gpusharing.shell.troubles import CHANGES, DONE, Trouble
from kubectl_gpusharing.usage.bills import HOUR, Cell, Part, Sum
from kubectl_gpusharing.usage.endpoints import find_endpoint
from kubectl_gpusharing.usage.meter import CostReport, read_bill
from kubectl_gpusharing.usage.prometheus import Prometheus, prometheus_at
from kubectl_gpusharing.usage.queries import OF_PARTS, POLICY, MeterQuery, labels_of, selector_of
from kubectl_gpusharing.usage.windows import duration, moment, span_of

UNKNOWN = "unknown"
CSV_COLUMNS = (
    "from", "until", "by", "name", "policy", "part", "resource", "basis", "gpu_hours", "cost", "currency", "partial",
    "simulated", "memory_used", "sm_used",
)  # fmt: skip
POOL_COLUMNS = (
    Column("POOL"),
    Column("GPU-HOURS", right=True),
    Column("PRICE OF A GPU-HOUR", drop=1),
    Column("COST", right=True),
)


def used_by(answer: CostReport, cell: Cell) -> list[float | None]:
    """Return how much of the memory and the SM time of a row's resource its tenant used; above 1 on some shared GPUs.

    It is None if it is unknown or no tenant held the row.
    """
    keys = [(whose(cell, answer.query), cell.resource, what) for what in ("memory", "sm")]
    held = cell.part is Part.HELD
    return [round(answer.used[key], 4) if held and key in answer.used else None for key in keys]


def cells_of(answer: CostReport) -> list[Line]:
    by, cells = answer.query.by, []
    whole = sum(row.micros for _, row in answer.bill.rows)
    for cell, row in answer.bill.rows:
        held = cell.part is Part.HELD
        name = cell.tenant or f"(no {by})"
        if by == POLICY:
            name = cell.policy or "(no policy)"
        elif not held:
            name = f"({cell.part})"
        cells.append(
            line(
                Span(name, Ink.PLAIN if held else Ink.FAINT),
                f"({cell.part})" if by == POLICY and not held else cell.resource,
                hours_of(row.micros),
                Span(f"{100 * row.micros / whole:.1f}%", Ink.FAINT),
                _cost(row),
                Span(cell.basis, Ink.FAINT),
                *("" if part is None else f"{part:.0%}" for part in used_by(answer, cell)),
            )
        )
    return cells


def _cost(part: Sum) -> Span:
    return Span(money(part.cents, part.currency), Ink.PLAIN if part.currency else Ink.WAITING)


def describe(answer: CostReport, options: PrintOptions) -> list[Line]:
    query, bill = answer.query, answer.bill
    head = f"{duration(query.end - query.start)} until {moment(query.end)}, by {query.by}"
    lines = [*prose(head, options, ink=Ink.TITLE), *drawing.describe_simulated(answer.simulated, options)]
    if bill.rows:
        lines += table(columns_of(query.by.upper()), cells_of(answer), options)
        cells = []
        for policy, prices, pool in bill.pools:
            priced = UNKNOWN
            if prices:
                low, high = amount(prices[0].amount), amount(prices[-1].amount)
                sources = ", ".join(sorted({price.source for price in prices}))
                priced = f"{pool.currency} {low if low == high else f'{low} to {high}'} ({sources})"
            cells.append(line(policy or "(no policy)", hours_of(pool.micros), priced, _cost(pool)))
        lines += [BLANK, *table(POOL_COLUMNS, cells, options), BLANK]
        lines += drawing.prose_of_each(starmap(total_sentence, bill.totals), options)
    else:
        lines += prose("No GPU was metered.", options)
    return [*lines, *describe_doubts(answer.remarks, answer.missing, options)]


def describe_doubts(remarks: Iterable[str], missing: Iterable[str], options: PrintOptions) -> list[Line]:
    """Draw the remarks about an answer and, marked PARTIAL, why it is incomplete."""
    lines = drawing.prose_of_each((f"{text}." for text in remarks), options, ink=Ink.FAINT)
    return lines + drawing.prose_of_each((f"PARTIAL: {text}." for text in missing), options, ink=Ink.WAITING)


def columns_of(name: str) -> tuple[Column, ...]:
    return (
        Column(name),
        Column("RESOURCE", drop=3),
        Column("GPU-HOURS", right=True),
        Column("PART", drop=2, right=True),
        Column("COST", right=True),
        Column("BASIS", drop=1),
        Column("MEM USED", drop=4, right=True),
        Column("SM USED", drop=5, right=True),
    )


def total_sentence(total: Sum, parts: Mapping[Part, int]) -> str:
    if not total.currency:
        return f"{hours_of(total.micros)} GPU-hours have no price."
    costs = ", ".join(f"{part} {money(cents)}" for part, cents in parts.items())
    return f"{hours_of(total.micros)} GPU-hours cost {money(total.cents, total.currency)}: {costs}."


def whose(cell: Cell, query: MeterQuery) -> str:
    """Return the policy or tenant of a row, for programs; empty if there is none or it is unknown."""
    return cell.policy if query.by == POLICY else cell.tenant


def hours_of(micros: int) -> str:
    return f"{round(Fraction(micros * 10, HOUR)) / 10:,.1f}"


def money(cents: int | None, currency: str = "") -> str:
    """Format cents, which must not be negative, such as `USD 1,234.50`."""
    if cents is None:
        return UNKNOWN
    return f"{currency} {cents // 100:,}.{cents % 100:02}".lstrip()


def amount(price: Fraction) -> str:
    whole, rest = f"{float(price):.6f}".split(".")
    return f"{whole}.{rest[:2]}{rest[2:].rstrip('0')}"


def as_data(answer: CostReport) -> BillData:
    query, bill = answer.query, answer.bill
    return {
        "prometheus": answer.where,
        "from": moment(query.start),
        "until": moment(query.end),
        "by": query.by,
        "partial": bool(answer.missing),
        "missing": list(answer.missing),
        "remarks": list(answer.remarks),
        "simulated": list(answer.simulated),
        "rows": [
            {
                "name": whose(cell, query),
                "part": str(cell.part),
                "resource": cell.resource,
                "basis": str(cell.basis),
                "memoryUsed": used_by(answer, cell)[0],
                "smUsed": used_by(answer, cell)[1],
                **_sum(row),
            }
            for cell, row in bill.rows
        ],
        "pools": [
            {
                "policy": policy,
                "prices": [
                    {"gpuHour": round(float(one.amount), 6), "currency": one.currency, "source": one.source}
                    for one in prices
                ],
                **_sum(pool),
            }
            for policy, prices, pool in bill.pools
        ],
        "totals": [
            {**_sum(total), "parts": {str(part): cents / 100 for part, cents in parts.items()}}
            for total, parts in bill.totals
        ],
    }


def _sum(part: Sum) -> SumData:
    hours, cost = round(part.micros / HOUR, 6), None if part.cents is None else part.cents / 100
    return {"gpuHours": hours, "cost": cost, "currency": part.currency or None}


def as_rows(answer: CostReport) -> Iterator[Sequence[object]]:
    query, missing, simulated = answer.query, answer.missing, answer.simulated
    yield CSV_COLUMNS
    for cell, row in answer.bill.rows:
        cost = None if row.cents is None else money(row.cents).replace(",", "")
        yield (
            moment(query.start), moment(query.end), query.by, whose(cell, query), cell.policy, cell.part,
            cell.resource, cell.basis, f"{row.micros / HOUR:.6f}", cost, row.currency, "yes" if missing else "no",
            "yes" if simulated else "no", *used_by(answer, cell),
        )  # fmt: skip


def run_offline(typed: Arguments, terminal: Terminal) -> int:
    return run_command(run(None, typed, terminal))


async def run(session: Session | None, typed: Arguments, terminal: Terminal) -> int:
    """Print the bill that a Prometheus in the cluster has or, without a `session`, the one in `--prometheus`."""
    query_of(typed, 0.0)  # reports mistakes before anything is sent
    async with prometheus_at(await find_endpoint(session, typed)) as prometheus:
        answer = await find_answer(prometheus, typed, terminal.progress)
    terminal.answer(
        BillData, lambda: as_data(answer), lambda options: describe(answer, options), lambda: as_rows(answer)
    )
    return CHANGES if answer.missing else DONE


async def ask(session: Session, typed: Arguments) -> Answer:
    """Return the bill of one cluster (see FleetVerb). Its rows end with an empty cell for the column NOTE."""
    async with prometheus_at(await find_endpoint(session, typed)) as prometheus:
        answer = await find_answer(prometheus, typed)
    status, rows = CHANGES if answer.missing else DONE, [[*cells, Span("")] for cells in cells_of(answer)]
    totals = [total_sentence(total, parts).rstrip(".") for total, parts in answer.bill.totals]
    remarks = [*totals, *answer.remarks, *(f"PARTIAL: {why}" for why in answer.missing)]
    return Answer(status, rows, as_data(answer), answer.simulated, remarks)


COLUMNS = (*columns_of("NAME"), Column("NOTE"))
FLEET = FleetVerb(COLUMNS, "no GPU was metered", BillData, ask, lambda typed: query_of(typed, 0.0), 300.0)


async def find_answer(
    prometheus: Prometheus, typed: Arguments, progress: Callable[[str], None] = lambda text: None
) -> CostReport:
    """Read the bill of a window that ends at `--until`, or now by the clock of `prometheus`."""
    query = query_of(typed, await prometheus.now())
    try:
        return await read_bill(prometheus, query, progress)
    finally:
        progress("")


def query_of(typed: Arguments, now: float) -> MeterQuery:
    """Return the query for these flags, with both ends rounded down to whole seconds. Raises Trouble.

    If `now` is 0, an `--until` in the future is accepted.
    """
    start, end = map(float, map(int, span_of(typed, now)))
    if not re.fullmatch(r"[A-Z]{3}", typed.currency):
        raise Trouble(f"--currency {typed.currency}: use three capital letters, for example USD")
    if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._/-]{0,250}[A-Za-z0-9])?", typed.by):
        raise Trouble(f"--by {typed.by}: use namespace, policy, pod, or a namespace label, for example team")
    selector = selector_of(typed.match)
    if parts := [label for label in labels_of(selector) if label in OF_PARTS]:
        raise Trouble(
            f"--match {selector}: only some of the series that make up a bill have the label {parts[0]}, so the"
            " parts would not add up. Select by policy, node, job, or a label that your Prometheus adds, such as"
            ' cluster="east"; every tenant and resource has its own row anyway'
        )
    return MeterQuery(start, end, typed.by, selector, typed.currency)
