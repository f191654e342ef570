"""What does the GPU time of a pool cost, and who is billed for it?

Integers and fractions make a bill add up to the cent, a hundredth of any currency; nothing is converted. The amount of
a pool is its GPU-hours times the price, rounded once (half to even), and the amounts of its parts are rounded so that
they add up to it (`apportion`). An amount across pools is a sum of such parts.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from enum import StrEnum
from fractions import Fraction
from itertools import groupby

from gpusharing.planning.vocabulary.values import value

MICROS = 1_000_000
"""Microseconds in a second. Times are integers, because their sums are exact in any order."""
HOUR = 3600 * MICROS


class Part(StrEnum):
    """How a second of a GPU was used (docs/adr/0043-the-meter.md), in the order of a bill."""

    HELD = "held"
    IDLE = "idle"
    STRANDED = "stranded"
    TRANSITION = "transition"


class Basis(StrEnum):
    MEASURED = "measured"
    """The tenant held a device that no other pod could use."""
    RESERVED = "reserved"
    """The tenant held replicas of a shared device, whichever pod computed."""
    ESTIMATE = "estimate"
    """It is unknown whether the device was shared, or KAI-Scheduler divides it among pods."""
    NONE = ""


@value(order=True)
class Price:
    amount: Fraction
    currency: str
    source: str
    """The source's name as shown to people, such as `OpenCost`."""


@value
class Cell:
    """The attributes by which GPU time is counted; the rows of a bill are sums of cells."""

    policy: str
    tenant: str
    """Who is billed; empty for time that no tenant held."""
    part: Part
    resource: str
    """The resource that was held or advertised; empty where no slice was advertised."""
    basis: Basis
    price: Price | None

    @property
    def currency(self) -> str:
        return "" if self.price is None else self.price.currency


@value
class Sum:
    """Some GPU time and what it costs."""

    micros: int
    """Microseconds of whole GPUs."""
    currency: str
    """The currency of the cost; empty if the price is not known."""
    cents: int | None
    """The cost in hundredths of the currency; None if the price is not known."""


@value
class Bill:
    """Rows, pools and totals; in each currency all three add up to the same amount."""

    rows: tuple[tuple[Cell, Sum], ...]
    """Each row's subject and sum; the subject has no price, and a policy only in a bill by policy."""
    pools: tuple[tuple[str, tuple[Price, ...], Sum], ...]
    """Each policy in each of its currencies, with all prices that applied, cheapest first."""
    totals: tuple[tuple[Sum, Mapping[Part, int]], ...]
    """The total of each currency with the cents of each part, then that of the time without a price."""


def make_bill(counted: Mapping[Cell, int], *, by_policy: bool = False) -> Bill:
    """Return the bill for the microseconds in each cell; without `by_policy`, a row sums up all policies.

    Raises ValueError if a time or a price is negative.
    """
    for cell, micros in counted.items():
        if micros < 0 or (cell.price is not None and cell.price.amount < 0):
            raise ValueError(f"{cell} has {micros} microseconds: neither time nor price may be negative")
    # Of cells with one currency, all have a price or none has, so that a price is only compared with a price.
    cells = sorted(counted, key=lambda cell: (cell.policy, cell.currency, _key(cell), cell.price))
    pools: list[tuple[str, tuple[Price, ...], Sum]] = []
    cents: dict[Cell, int] = {}
    times, parts = Counter[str](), Counter[tuple[str, Part]]()
    for (policy, currency), group in groupby(filter(counted.get, cells), key=lambda cell: (cell.policy, cell.currency)):
        pool = list(group)
        micros = sum(counted[cell] for cell in pool)
        exact = [cell.price.amount * 100 * counted[cell] / HOUR if cell.price else Fraction(0) for cell in pool]
        whole = round(sum(exact, Fraction(0)))
        cents |= zip(pool, apportion(exact, whole), strict=True)
        prices = tuple(sorted({cell.price for cell in pool if cell.price is not None}))
        pools.append((policy, prices, Sum(micros, currency, whole if currency else None)))
        times[currency] += micros
        for cell in pool:
            parts[currency, cell.part] += cents[cell]

    def key(cell: Cell) -> tuple[bool, str, str, tuple[int, str, str, str]]:
        return cell.currency == "", cell.currency, cell.policy if by_policy else "", _key(cell)

    rows = []
    for (_, currency, policy, _), group in groupby(sorted(cents, key=key), key=key):
        row = list(group)
        micros = sum(counted[cell] for cell in row)
        paid = sum(cents[cell] for cell in row) if currency else None
        rows.append((replace(row[0], policy=policy, price=None), Sum(micros, currency, paid)))
    totals = []
    for currency in sorted(times, key=lambda code: (code == "", code)):
        of_parts = {part: parts[currency, part] for part in Part} if currency else {}
        amount = sum(of_parts.values()) if currency else None
        totals.append((Sum(times[currency], currency, amount), of_parts))
    return Bill(tuple(rows), tuple(pools), tuple(totals))


def apportion(exact: Sequence[Fraction], whole: int) -> list[int]:
    """Round the amounts so that they add up to `whole`, their rounded sum (largest remainder; ties go to the first)."""
    floors = [int(each) for each in exact]
    order = sorted(range(len(exact)), key=lambda index: (floors[index] - exact[index], index))
    for index in order[: whole - sum(floors)]:
        floors[index] += 1
    return floors


def _key(cell: Cell) -> tuple[int, str, str, str]:
    return [*Part].index(cell.part), cell.tenant, cell.resource, cell.basis
