"""Format a bill as text, data and CSV. Pure."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from kubectl_gpusharing.shell import drawing
from kubectl_gpusharing.shell.documents import BillData, PriceData, SumData
from kubectl_gpusharing.shell.drawing import BLANK, Column, Ink, Line, Paper, Span, prose, table
from kubectl_gpusharing.usage.prometheus.windows import duration, moment
from kubectl_gpusharing.usage.read.queries import POLICY, MeterQuery
from kubectl_gpusharing.usage.read.tenants import Used
from kubectl_gpusharing.usage.reckon.bills import HOUR, Bill, Part, Price, Row, Sum, Total

UNKNOWN = "unknown"
COLUMNS = (
    "from", "until", "by", "name", "policy", "part", "resource", "basis", "gpu_hours", "cost", "currency", "partial",
    "simulated", "memory_used", "sm_used",
)  # fmt: skip
"""The header of the CSV."""
POOL_COLUMNS = (
    Column("POOL"),
    Column("GPU-HOURS", right=True),
    Column("PRICE OF A GPU-HOUR", drop=1),
    Column("COST", right=True),
)


@dataclass(frozen=True, slots=True)
class CostReport:
    """A bill, with everything that a reader must know about it."""

    where: str
    """The name of the Prometheus that was queried (`Endpoint.where`)."""
    query: MeterQuery
    """The query that the bill answers."""
    bill: Bill
    """The bill."""
    missing: Sequence[str]
    """Why the answer is incomplete; empty if it is complete."""
    remarks: Sequence[str]
    """What else a reader should know."""
    simulated: Sequence[str] = ()
    """Nodes whose GPUs are SIMULATED."""
    used: Used = field(default_factory=dict)
    """How much of what they held tenants used."""

    def used_by(self, row: Row) -> list[float | None]:
        """Return two fractions: how much of the memory, and how much of the SM time, that a row's tenant held of its
        resource was used, each rounded to four decimals. Other rows of the same tenant and resource have the same. Each
        is None if it is unknown or no tenant held the row, and can exceed 1 on shared GPUs."""
        keys = [(whose(row, self.query), row.resource, what) for what in ("memory", "sm")]
        held = row.part is Part.HELD
        return [round(self.used[key], 4) if held and key in self.used else None for key in keys]

    @property
    def cells(self) -> list[list[Span]]:
        """The cells of the rows, for `columns_of`. The column PART has each row's percentage of the GPU time of all
        rows."""
        query, rows = self.query, self.bill.rows
        whole = sum(row.micros for row in rows)
        return [
            [
                Span(name_of(row, query), Ink.PLAIN if row.part is Part.HELD else Ink.FAINT),
                Span(f"({row.part})" if query.by == POLICY and row.part is not Part.HELD else row.resource),
                Span(hours_of(row.micros)),
                Span(f"{100 * row.micros / whole:.1f}%", Ink.FAINT),
                Span(money(row.cents, row.currency), Ink.PLAIN if row.currency else Ink.WAITING),
                Span(row.basis, Ink.FAINT),
                *(Span("" if part is None else f"{part:.0%}") for part in self.used_by(row)),
            ]
            for row in rows
        ]


def describe(answer: CostReport, paper: Paper) -> list[Line]:
    """Draw a heading with the window and what the bill is by, that GPUs are SIMULATED if some are, the rows, the pools,
    the totals, the remarks, and what is missing. If there are no rows, a sentence that no GPU was metered takes the
    place of rows, pools and totals."""
    query, bill = answer.query, answer.bill
    head = f"{duration(query.end - query.start)} until {moment(query.end)}, by {query.by}"
    lines = [*prose(head, paper, ink=Ink.TITLE), *drawing.describe_simulated(answer.simulated, paper)]
    if bill.rows:
        lines += table(columns_of(query.by.upper()), answer.cells, paper)
        cells = [
            [
                Span(pool.policy or "(no policy)"),
                Span(hours_of(pool.micros)),
                Span(_priced(pool.prices)),
                Span(money(pool.cents, pool.currency), Ink.PLAIN if pool.currency else Ink.WAITING),
            ]
            for pool in bill.pools
        ]
        lines += [BLANK, *table(POOL_COLUMNS, cells, paper), BLANK]
        lines += drawing.prose_of_each(map(total_sentence, bill.totals), paper)
    else:
        lines += prose("No GPU was metered.", paper)
    return [*lines, *describe_doubts(answer.remarks, answer.missing, paper)]


def describe_doubts(remarks: Iterable[str], missing: Iterable[str], paper: Paper) -> list[Line]:
    """Draw the remarks about an answer, then, marked PARTIAL, each reason in `missing`, all in their order and with a
    period at the end. Empty if there are none."""
    lines = drawing.prose_of_each((f"{text}." for text in remarks), paper, ink=Ink.FAINT)
    return lines + drawing.prose_of_each((f"PARTIAL: {text}." for text in missing), paper, ink=Ink.WAITING)


def columns_of(name: str) -> tuple[Column, ...]:
    """Return the columns of a bill's table, in the order of `CostReport.cells`. The first column has the title
    `name`."""
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


def _priced(prices: Sequence[Price]) -> str:
    """Return the range of a pool's prices with the currency and the sources, such as `USD 2.50 to 3.20 (chart,
    policy)`, or UNKNOWN if it has none. The prices must be of one currency, the lowest first. Equal ones are shown
    once, and the sources are sorted."""
    if not prices:
        return UNKNOWN
    low, high = amount(prices[0].amount), amount(prices[-1].amount)
    span = low if low == high else f"{low} to {high}"
    return f"{prices[0].currency} {span} ({', '.join(sorted({price.source for price in prices}))})"


def total_sentence(total: Total) -> str:
    """Return a sentence about a total: its GPU-hours, their cost and the cost of each part, or that they have no
    price."""
    if not total.currency:
        return f"{hours_of(total.micros)} GPU-hours have no price."
    parts = ", ".join(f"{part} {money(cents)}" for part, cents in total.parts.items())
    return f"{hours_of(total.micros)} GPU-hours cost {money(total.cents, total.currency)}: {parts}."


def name_of(row: Row, query: MeterQuery) -> str:
    """Return the name under which a row is shown. In a bill by policy, every row has the name of its policy. In other
    bills, a row of held time has its tenant's name, and any other row its part in parentheses, such as `(idle)`. An
    empty name becomes, for example, `(no policy)`."""
    if query.by == POLICY:
        return row.policy or "(no policy)"
    if row.part is not Part.HELD:
        return f"({row.part})"
    return row.tenant or f"(no {query.by})"


def whose(row: Row, query: MeterQuery) -> str:
    """Return the policy or tenant of a row, for programs; empty if there is none or it is unknown."""
    return row.policy if query.by == POLICY else row.tenant


def hours_of(micros: int) -> str:
    """Format microseconds as GPU-hours, with one decimal and commas between thousands."""
    return f"{round(Fraction(micros * 10, HOUR)) / 10:,.1f}"


def money(cents: int | None, currency: str = "") -> str:
    """Format an amount to the cent, such as `USD 1,234.50`, from cents; the currency may be empty, and the amount must
    not be negative. Return UNKNOWN if the amount is None."""
    if cents is None:
        return UNKNOWN
    return f"{currency} {cents // 100:,}.{cents % 100:02}".lstrip()


def amount(price: Fraction) -> str:
    """Format a price with at least two decimals, and with up to six if it needs them."""
    whole, rest = f"{float(price):.6f}".split(".")
    return f"{whole}.{rest[:2]}{rest[2:].rstrip('0')}"


def as_data(answer: CostReport) -> BillData:
    """Return the bill as plain data for JSON and YAML. Amounts are numbers with at most two decimals, or None without a
    price. Prices have at most six decimals."""
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
                "name": whose(row, query),
                "part": str(row.part),
                "resource": row.resource,
                "basis": str(row.basis),
                "memoryUsed": answer.used_by(row)[0],
                "smUsed": answer.used_by(row)[1],
                **_sum(row),
            }
            for row in bill.rows
        ],
        "pools": [
            {"policy": pool.policy, "prices": list(map(_price, pool.prices)), **_sum(pool)}
            for pool in bill.pools
        ],
        "totals": [
            {**_sum(total), "parts": {str(part): cents / 100 for part, cents in total.parts.items()}}
            for total in bill.totals
        ],
    }


def _sum(part: Sum) -> SumData:
    """Return the fields `gpuHours`, `cost` (in whole units, such as 12.5) and `currency` of a row, a pool or a total;
    the last two are None if the price is unknown."""
    hours, cost = round(part.micros / HOUR, 6), None if part.cents is None else part.cents / 100
    return {"gpuHours": hours, "cost": cost, "currency": part.currency or None}


def _price(price: Price) -> PriceData:
    """Return a price of a pool, with at most six decimals."""
    return {"gpuHour": round(float(price.amount), 6), "currency": price.currency, "source": price.source}


def as_rows(answer: CostReport) -> Iterator[Sequence[object]]:
    """Yield the lines of the CSV: the header, and one line for each row of the bill, in the order of COLUMNS. GPU-hours
    have six decimals. `partial` and `simulated` are yes or no for the whole bill. Amounts are written as `12.50`. An
    unknown one is None, which becomes an empty cell."""
    query, missing, simulated = answer.query, answer.missing, answer.simulated
    yield COLUMNS
    for row in answer.bill.rows:
        cost = None if row.cents is None else money(row.cents).replace(",", "")
        yield (
            moment(query.start), moment(query.end), query.by, whose(row, query), row.policy, row.part, row.resource,
            row.basis, f"{row.micros / HOUR:.6f}", cost, row.currency, "yes" if missing else "no",
            "yes" if simulated else "no", *answer.used_by(row),
        )  # fmt: skip
