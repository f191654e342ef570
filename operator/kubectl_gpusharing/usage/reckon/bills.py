"""Compute what GPU time costs and who is billed for it, with integers and fractions, so that a bill adds up to the
cent.

A cent is a hundredth of any currency, and nothing is converted. The amount of a pool is its GPU-hours times the price,
rounded once (half to even). The amounts of its parts are rounded so that they add up to it (largest remainder). An
amount across pools is a sum of such parts. So tenants, idle, stranded and transition always add up to the pool, and
the pools to the total.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
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
    """How the time of a tenant was determined."""

    MEASURED = "measured"
    """The tenant held a device that no other pod could use."""
    RESERVED = "reserved"
    """The tenant held replicas of a shared device. They count as reserved, whichever pod computed."""
    ESTIMATE = "estimate"
    """Whether the device was shared is unknown, or KAI-Scheduler divides it among pods."""
    NONE = ""
    """No tenant held the device."""


@value(order=True)
class Price:
    """The price of one GPU for an hour. Prices are ordered by amount, then by currency, then by source."""

    amount: Fraction
    """The exact amount, in `currency`."""
    currency: str
    """The currency code, as in `spec.cost.currency`."""
    source: str
    """The name of the price's source, as shown to people, such as `OpenCost`."""


@value
class Cell:
    """The attributes by which GPU time is counted; the rows of a bill are sums of cells."""

    policy: str
    """The policy of the node at the time; empty if it had none."""
    tenant: str
    """Who is billed; empty for time that no tenant held."""
    part: Part
    """How the time was used: held, idle, stranded or in transition."""
    resource: str
    """The resource that was held or advertised; empty where no slice was advertised."""
    basis: Basis
    """How the time of the tenant was determined."""
    price: Price | None
    """The price of a GPU, or None if it is unknown."""

    @property
    def currency(self) -> str:
        """The currency of the price; empty if that is not known."""
        return "" if self.price is None else self.price.currency


@value
class Sum:
    """Some GPU time and what it costs."""

    micros: int
    """Microseconds of whole GPUs."""
    currency: str
    """Currency of the amount; empty if the price is not known."""
    cents: int | None
    """The amount in `currency`, or None if the price is not known."""


@value
class Row(Sum):
    """A line of the bill."""

    tenant: str
    """Who is billed; empty for time that no tenant held."""
    policy: str
    """Name of the policy in a bill by policy; otherwise empty."""
    part: Part
    """How the time was used."""
    resource: str
    """The resource that was held or advertised; empty where no slice was advertised."""
    basis: Basis
    """How the time of the tenant was determined."""


@value
class PoolBill(Sum):
    """The bill of a policy in one currency."""

    policy: str
    """Name of the policy; empty for GPUs without one."""
    prices: tuple[Price, ...]
    """All prices that applied, cheapest first."""


@value
class Total(Sum):
    """The sum of all pools in one currency."""

    parts: Mapping[Part, int]
    """Cents of each part; empty if the price is not known."""


@value
class Bill:
    """Rows, pools and totals; in each currency all three add up to the same amount."""

    rows: tuple[Row, ...]
    """The lines, in the order in which they are shown."""
    pools: tuple[PoolBill, ...]
    """One bill for each policy and each of its currencies."""
    totals: tuple[Total, ...]
    """One total for each currency, and one for the time without a price."""


_Item = tuple[Cell, int, int]
"""A cell, its microseconds, and its cents, which are 0 if its price is not known."""


def make_bill(counted: Mapping[Cell, int], *, by_policy: bool = False) -> Bill:
    """Return the bill for the microseconds of GPU time in each cell. Cells without time are left out. With `by_policy`,
    the rows are divided by policy; otherwise a row sums up all policies. The pools are by policy and currency and
    sorted so; the time without a price is a pool of its own, with an empty currency and no amount. Their amounts are
    rounded to cents, to which the rows and totals add up. Raises ValueError if a time or a price is negative."""
    pools: list[PoolBill] = []
    items: list[_Item] = []
    in_order = _in_order(counted)
    for (policy, currency), cells in groupby(in_order, key=lambda one: (one[0].policy, one[0].currency)):
        members = list(cells)
        exact = [
            cell.price.amount * 100 * micros / HOUR if cell.price is not None else Fraction(0)
            for cell, micros in members
        ]
        cents = round(sum(exact, Fraction(0)))
        parts = apportion(exact, cents)
        items += [(cell, micros, part) for (cell, micros), part in zip(members, parts, strict=True)]
        micros = sum(micros for _, micros in members)
        prices = {cell.price for cell, _ in members if cell.price is not None}
        pools.append(PoolBill(micros, currency, cents if currency else None, policy, tuple(sorted(prices))))
    return Bill(_rows(items, by_policy=by_policy), tuple(pools), _totals(items))


def _in_order(counted: Mapping[Cell, int]) -> list[tuple[Cell, int]]:
    """Return the cells with a positive time, each with its time, sorted by pool (policy and currency), then by row,
    then by price. Raises ValueError if a time or a price is negative."""
    for cell, micros in counted.items():
        if micros < 0 or (cell.price is not None and cell.price.amount < 0):
            raise ValueError(f"{cell} has {micros} microseconds: neither time nor price may be negative")
    # Of cells with one currency, all have a price or none has, so that a price is only compared with a price.
    cells = sorted(counted, key=lambda cell: (cell.policy, cell.currency, _key(cell), cell.price))
    return [(cell, counted[cell]) for cell in cells if counted[cell]]


def apportion(exact: Sequence[Fraction], whole: int) -> list[int]:
    """Round every amount down, then add 1 to the amounts that lost most by the rounding, the first ones in a tie,
    until the result adds up to `whole`.

    `whole` must be the rounded sum of `exact`, and no amount may be negative.
    """
    floors = [int(each) for each in exact]
    order = sorted(range(len(exact)), key=lambda index: (floors[index] - exact[index], index))
    for index in order[: whole - sum(floors)]:
        floors[index] += 1
    return floors


def _key(cell: Cell) -> tuple[int, str, str, str]:
    """Return the key that sorts cells within a pool: by part, tenant, resource and basis."""
    return [*Part].index(cell.part), cell.tenant, cell.resource, cell.basis


def _rows(items: Iterable[_Item], *, by_policy: bool) -> tuple[Row, ...]:
    """Return one row for each group of cells that differ only in what the bill does not show: the amount and source of
    the price and, unless `by_policy`, the policy. Rows are sorted by currency, those without a price last, and then
    by policy, part, tenant, resource and basis."""

    def key(item: _Item) -> tuple[bool, str, str, tuple[int, str, str, str]]:
        """Return the values by which cells are grouped into rows and rows are sorted."""
        cell = item[0]
        return cell.currency == "", cell.currency, cell.policy if by_policy else "", _key(cell)

    rows = []
    for (_, currency, policy, _), group in groupby(sorted(items, key=key), key=key):
        members = list(group)
        cell, micros = members[0][0], sum(micros for _, micros, _ in members)
        cents = sum(part for _, _, part in members) if currency else None
        rows.append(Row(micros, currency, cents, cell.tenant, policy, cell.part, cell.resource, cell.basis))
    return tuple(rows)


def _totals(items: Iterable[_Item]) -> tuple[Total, ...]:
    """Return one total for each currency, sorted by its code, and then one for the time without a price if there is
    any. A total with a currency has the cents of every part, also 0, and their sum; the one without has neither."""
    times, parts = Counter[str](), Counter[tuple[str, Part]]()
    for cell, micros, cents in items:
        times[cell.currency] += micros
        parts[cell.currency, cell.part] += cents
    totals = []
    for currency in sorted(times, key=lambda code: (code == "", code)):
        of_parts = {part: parts[currency, part] for part in Part} if currency else {}
        whole = sum(of_parts.values()) if currency else None
        totals.append(Total(times[currency], currency, whole, of_parts))
    return tuple(totals)
