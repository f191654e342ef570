"""Compute what GPU time costs and whom, with whole numbers and fractions, so that a bill adds up to the cent.

A cent is a hundredth of any currency, and nothing is converted. The amount of a pool is its GPU-hours times the
price, rounded once (half to even); its parts are rounded so that they add up to it (largest remainder). An amount
across pools is a sum of such parts. So tenants, idle, stranded and transition always add up to the pool, and the
pools to the total.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from fractions import Fraction
from itertools import groupby
from operator import attrgetter

from gpusharing.planning.vocabulary.values import value

MICROS = 1_000_000
"""Microseconds of a second: whole numbers, because sums of them are exact in any order."""
HOUR = 3600 * MICROS


class Part(StrEnum):
    """Where a second of a GPU went (docs/adr/0043-the-meter.md); in the order of a bill."""

    HELD = "held"
    IDLE = "idle"
    STRANDED = "stranded"
    TRANSITION = "transition"


class Basis(StrEnum):
    """How the time of a tenant was found."""

    MEASURED = "measured"
    """The tenant held a device that no other pod could use."""
    RESERVED = "reserved"
    """The tenant held replicas of a shared device, which count as reserved, whichever pod computed."""
    ESTIMATE = "estimate"
    """Whether the device was shared is unknown."""
    NONE = ""
    """No tenant held it."""


@value
class Price:
    """The price of one GPU for an hour."""

    amount: Fraction
    """In `currency`, exact."""
    currency: str
    """Currency code, as `spec.cost.currency`."""
    source: str
    """The source of the price, for people."""


@value
class Cell:
    """The finest division of a bill: time is counted by cell."""

    policy: str
    """The policy of the node at the time; empty if it had none."""
    tenant: str
    """Who is billed; empty for time that no tenant held."""
    part: Part
    """What became of the time: held, idle, stranded or in transition."""
    resource: str
    """The resource that was held or advertised; empty where no slice was advertised."""
    basis: Basis
    """What the tenant is billed by."""
    price: Price | None
    """Price of a GPU, or None if it is unknown."""


@value
class Row:
    """A line of the bill."""

    tenant: str
    """Who is billed; empty for time that no tenant held."""
    policy: str
    """Name of the policy in a bill by policies; else empty."""
    part: Part
    """What became of the time."""
    resource: str
    """The resource that was held or advertised; empty where no slice was advertised."""
    basis: Basis
    """What the tenant is billed by."""
    micros: int
    """Microseconds of whole GPUs."""
    currency: str
    """Currency of the amount; empty if the price is not known."""
    cents: int | None
    """The amount in `currency`, or None if the price is not known."""


@value
class PoolBill:
    """The bill of a policy in one currency."""

    policy: str
    """Name of the policy; empty for GPUs without one."""
    micros: int
    """Microseconds of whole GPUs."""
    currency: str
    """Currency of the amount; empty if the price is not known."""
    cents: int | None
    """The amount in `currency`, or None if the price is not known."""
    prices: tuple[Price, ...]
    """All prices that applied, cheapest first."""


@value
class Total:
    """The sum of all pools in one currency."""

    currency: str
    """Currency of the total; empty for the time whose price is not known."""
    micros: int
    """Microseconds of whole GPUs."""
    cents: int | None
    """The amount in `currency`, or None if the price is not known."""
    parts: Mapping[Part, int]
    """Cents of each part; empty if the price is not known."""


@value
class Bill:
    """Rows, pools and totals; in each currency all three add up to the same amount."""

    rows: tuple[Row, ...]
    """The lines, in the order in which they are shown."""
    pools: tuple[PoolBill, ...]
    """The policies, each in each of its currencies."""
    totals: tuple[Total, ...]
    """One for each currency."""


_Item = tuple[Cell, int, int | None]
"""A cell, its microseconds, and its cents, or None if its price is not known."""


def make_bill(counted: Mapping[Cell, int], *, by_policy: bool = False) -> Bill:
    """Return the bill for microseconds of GPUs by cell. With `by_policy`, every policy has its own rows for all of
    its parts.

    Raises ValueError for a time or a price below 0: no bill has these.
    """
    pools: list[PoolBill] = []
    items: list[_Item] = []
    for (policy, currency), cells in groupby(_in_order(counted), key=_pool):
        members = list(cells)
        prices = {cell.price for cell, _ in members if cell.price is not None}
        cents, parts = _price(members) if currency else (None, [None] * len(members))
        items += [(cell, micros, part) for (cell, micros), part in zip(members, parts, strict=True)]
        micros = sum(micros for _, micros in members)
        ordered = tuple(sorted(prices, key=attrgetter("amount", "source")))
        pools.append(PoolBill(policy, micros, currency, cents, ordered))
    return Bill(_rows(items, by_policy=by_policy), tuple(pools), _totals(pools, items))


def _in_order(counted: Mapping[Cell, int]) -> list[tuple[Cell, int]]:
    """Return the cells that have any time, in the order of a bill. Raises ValueError for a time or a price below
    0."""
    for cell, micros in counted.items():
        if micros < 0 or (cell.price is not None and cell.price.amount < 0):
            raise ValueError(f"{cell} has {micros} microseconds: neither time nor price may be below 0")
    return sorted(((cell, micros) for cell, micros in counted.items() if micros), key=_pool_key)


def _price(members: Iterable[tuple[Cell, int]]) -> tuple[int, Sequence[int | None]]:
    """Return the cents of a pool, rounded once, and those of each of its cells, which add up to them."""
    exact = [cell.price.amount * 100 * micros / HOUR for cell, micros in members if cell.price is not None]
    cents = round(sum(exact, Fraction(0)))
    return cents, apportion(exact, cents)


def apportion(exact: Sequence[Fraction], whole: int) -> list[int]:
    """Round each amount down, and give the rest of the whole to those that lost most; in a tie, to the first.

    `whole` is the rounded sum of `exact`, whose amounts are not below 0.
    """
    floors = [int(each) for each in exact]
    order = sorted(range(len(exact)), key=lambda index: (floors[index] - exact[index], index))
    for index in order[: whole - sum(floors)]:
        floors[index] += 1
    return floors


def _currency(cell: Cell) -> str:
    """Return the currency of a cell; empty if its price is not known."""
    return "" if cell.price is None else cell.price.currency


def _pool(counted: tuple[Cell, int]) -> tuple[str, str]:
    """Return policy and currency, which make a pool of the bill."""
    return counted[0].policy, _currency(counted[0])


def _pool_key(counted: tuple[Cell, int]) -> tuple[object, ...]:
    """Return the key by which the cells of a bill are sorted: the pool first, then the row, then the price."""
    cell = counted[0]
    price = cell.price
    worth = () if price is None else (price.amount, price.source)
    return (*_pool(counted), *_key(cell), worth)


_ORDER = tuple(Part)


def _key(cell: Cell) -> tuple[int, str, str, str]:
    """Return the key that sorts cells within a pool: by part, tenant, resource and basis."""
    return _ORDER.index(cell.part), cell.tenant, cell.resource, cell.basis


def _rows(items: Iterable[_Item], *, by_policy: bool) -> tuple[Row, ...]:
    """Return one row for all cells that differ only in what the bill does not show, in the order of a bill. Rows
    without a price come last."""

    def key(item: _Item) -> tuple[object, ...]:
        """Return what a row shows of a cell, in the order of the rows."""
        cell = item[0]
        policy = cell.policy if by_policy else ""
        return (_currency(cell) == "", _currency(cell), policy, *_key(cell))

    rows = []
    for _, group in groupby(sorted(items, key=key), key=key):
        members = list(group)
        cell, currency = members[0][0], _currency(members[0][0])
        micros = sum(micros for _, micros, _ in members)
        cents = sum(part or 0 for _, _, part in members) if currency else None
        policy = cell.policy if by_policy else ""
        rows.append(Row(cell.tenant, policy, cell.part, cell.resource, cell.basis, micros, currency, cents))
    return tuple(rows)


def _totals(pools: Iterable[PoolBill], items: Iterable[_Item]) -> tuple[Total, ...]:
    """Return a total for each currency, and last one for the time without a price, if there is any."""
    parts: Counter[tuple[str, Part]] = Counter()
    for cell, _, cents in items:
        parts[_currency(cell), cell.part] += cents or 0
    totals = []
    ordered = sorted(pools, key=lambda pool: (pool.currency == "", pool.currency))
    for currency, group in groupby(ordered, key=attrgetter("currency")):
        members = list(group)
        micros = sum(pool.micros for pool in members)
        if currency:
            of_parts = {part: parts[currency, part] for part in Part}
            totals.append(Total(currency, micros, sum(of_parts.values()), of_parts))
        else:
            totals.append(Total("", micros, None, {}))
    return tuple(totals)
