"""A bill as text, data and CSV. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from gpusharing.cli.shell.drawing import (
    BLANK,
    Column,
    Ink,
    Line,
    Paper,
    Span,
    describe_simulated,
    prose,
    table,
)
from gpusharing.usage.prometheus.windows import duration, moment
from gpusharing.usage.read.queries import NAMESPACE, POLICY, MeterQuery
from gpusharing.usage.reckon.bills import HOUR, Bill, Part, PoolBill, Price, Row, Total

UNKNOWN = "unknown"
COLUMNS = (
    "from", "until", "by", "name", "policy", "part", "resource", "basis", "gpu_hours", "cost", "currency", "partial",
    "simulated",
)  # fmt: skip
"""Of the CSV."""


@dataclass(frozen=True, slots=True)
class CostReport:
    """What was found out."""

    where: str
    """Which Prometheus."""
    wish: MeterQuery
    """What was asked for."""
    bill: Bill
    """The bill."""
    missing: tuple[str, ...]
    """Why the answer is incomplete; empty: it is complete."""
    remarks: tuple[str, ...]
    """What else a reader should know."""
    simulated: tuple[str, ...] = ()
    """Nodes whose GPUs are SIMULATED."""


def describe(answer: CostReport, paper: Paper) -> list[Line]:
    """Who had what, the pools, the totals, and what is not known."""
    wish, bill = answer.wish, answer.bill
    head = f"{duration(wish.end - wish.start)} until {moment(wish.end)}, by {wish.by}"
    lines = [*prose(head, paper, ink=Ink.TITLE), *describe_simulated(answer.simulated, paper)]
    if bill.rows:
        lines += _of_rows(answer, paper)
        lines += [BLANK, *_of_pools(bill.pools, paper), BLANK]
        for total in bill.totals:
            lines += prose(_sentence(total), paper, hang="  ")
    else:
        lines += prose("No GPU was metered.", paper)
    return [*lines, *describe_doubts(answer.remarks, answer.missing, paper)]


def describe_doubts(remarks: Iterable[str], missing: Iterable[str], paper: Paper) -> list[Line]:
    """Draw what is worth knowing about an answer, then why a part of it is unknown (PARTIAL)."""
    lines = [one for text in remarks for one in prose(f"{text}.", paper, hang="  ", ink=Ink.FAINT)]
    for text in missing:
        lines += prose(f"PARTIAL: {text}.", paper, hang="  ", ink=Ink.WAITING)
    return lines


def _of_rows(answer: CostReport, paper: Paper) -> list[Line]:
    wish, rows = answer.wish, answer.bill.rows
    whole = sum(row.micros for row in rows)
    hours = _right([hours_of(row.micros) for row in rows])
    parts = _right([f"{100 * row.micros / whole:.1f}%" for row in rows])
    costs = _right([money(row.cents, row.currency) for row in rows])
    told = [
        [
            Span(name_of(row, wish), Ink.PLAIN if row.part is Part.HELD else Ink.FAINT),
            Span(f"({row.part})" if wish.by == POLICY and row.part is not Part.HELD else row.resource),
            Span(hours[index]),
            Span(parts[index], Ink.FAINT),
            Span(costs[index], Ink.PLAIN if row.currency else Ink.WAITING),
            Span(row.basis, Ink.FAINT),
        ]
        for index, row in enumerate(rows)
    ]
    columns = (
        Column(wish.by.upper()),
        Column("RESOURCE", drop=3),
        Column("GPU-HOURS"),
        Column("PART", drop=2),
        Column("COST"),
        Column("BASIS", drop=1),
    )
    return table(columns, told, paper)


def _of_pools(pools: Sequence[PoolBill], paper: Paper) -> list[Line]:
    hours = _right([hours_of(pool.micros) for pool in pools])
    costs = _right([money(pool.cents, pool.currency) for pool in pools])
    told = [
        [
            Span(pool.policy or "(no policy)"),
            Span(hours[index]),
            Span(_priced(pool.prices)),
            Span(costs[index], Ink.PLAIN if pool.currency else Ink.WAITING),
        ]
        for index, pool in enumerate(pools)
    ]
    columns = (Column("POOL"), Column("GPU-HOURS"), Column("PRICE OF A GPU-HOUR", drop=1), Column("COST"))
    return table(columns, told, paper)


def _priced(prices: Sequence[Price]) -> str:
    if not prices:
        return UNKNOWN
    low, high = amount(prices[0].amount), amount(prices[-1].amount)
    told = low if low == high else f"{low} to {high}"
    return f"{prices[0].currency} {told} ({', '.join(sorted({price.source for price in prices}))})"


def _sentence(total: Total) -> str:
    if not total.currency:
        return f"{hours_of(total.micros)} GPU-hours have no price."
    parts = ", ".join(f"{part} {money(cents)}" for part, cents in total.parts.items())
    return f"{hours_of(total.micros)} GPU-hours cost {money(total.cents, total.currency)}: {parts}."


def name_of(row: Row, wish: MeterQuery) -> str:
    """Who the row is about."""
    if wish.by == POLICY:
        return row.policy or "(no policy)"
    if row.part is not Part.HELD:
        return f"({row.part})"
    return row.tenant or ("(no namespace)" if wish.by == NAMESPACE else f"(no {wish.by})")


def _whose(row: Row, wish: MeterQuery) -> str:
    """Who the row is about, for programs; empty: nobody, or nobody known."""
    return row.policy if wish.by == POLICY else row.tenant


def hours_of(micros: int) -> str:
    """GPU-hours, to a tenth."""
    return f"{round(Fraction(micros * 10, HOUR)) / 10:,.1f}"


def money(cents: int | None, currency: str = "") -> str:
    """An amount, to the cent."""
    if cents is None:
        return UNKNOWN
    return f"{currency} {cents // 100:,}.{cents % 100:02}".lstrip()


def amount(price: Fraction) -> str:
    """A price, to the cent, or as much finer as it is."""
    whole, rest = f"{float(price):.6f}".split(".")
    return f"{whole}.{rest[:2]}{rest[2:].rstrip('0')}"


def _right(texts: Sequence[str]) -> list[str]:
    width = max(map(len, texts), default=0)
    return [text.rjust(width) for text in texts]


def as_data(answer: CostReport) -> dict[str, Any]:
    """For programs: amounts are texts, because a float is no amount of money."""
    wish, bill = answer.wish, answer.bill
    return {
        "prometheus": answer.where,
        "from": moment(wish.start),
        "until": moment(wish.end),
        "by": wish.by,
        "partial": bool(answer.missing),
        "missing": list(answer.missing),
        "remarks": list(answer.remarks),
        "simulated": list(answer.simulated),
        "rows": [
            {
                "name": _whose(row, wish),
                "part": str(row.part),
                "resource": row.resource,
                "basis": str(row.basis),
                **_sum(row.micros, row.cents, row.currency),
            }
            for row in bill.rows
        ],
        "pools": [
            {
                "policy": pool.policy,
                "prices": [
                    {"gpuHour": amount(one.amount), "currency": one.currency, "source": one.source}
                    for one in pool.prices
                ],
                **_sum(pool.micros, pool.cents, pool.currency),
            }
            for pool in bill.pools
        ],
        "totals": [
            {
                **_sum(total.micros, total.cents, total.currency),
                "parts": {str(part): _plain(cents) for part, cents in total.parts.items()},
            }
            for total in bill.totals
        ],
    }


def _sum(micros: int, cents: int | None, currency: str) -> dict[str, Any]:
    return {"gpuHours": round(micros / HOUR, 6), "cost": _plain(cents), "currency": currency or None}


def _plain(cents: int | None) -> str | None:
    return None if cents is None else f"{cents // 100}.{cents % 100:02}"


def as_rows(answer: CostReport) -> list[tuple[object, ...]]:
    """A header and a row for each row of the bill, for CSV; an amount that is not known is empty."""
    wish, partial, simulated = answer.wish, answer.missing, answer.simulated
    rows = [
        (
            moment(wish.start), moment(wish.end), wish.by, _whose(row, wish), row.policy, row.part, row.resource,
            row.basis, f"{row.micros / HOUR:.6f}", _plain(row.cents), row.currency,
            "yes" if partial else "no", "yes" if simulated else "no",
        )
        for row in answer.bill.rows
    ]  # fmt: skip
    return [COLUMNS, *rows]
