"""What is the price of a GPU, what does the GPU time of a pool cost, and who is billed for it?

Integers and fractions make a bill add up to the cent, a hundredth of any currency; nothing is converted. The amount of
a pool is its GPU-hours times the price, rounded once (half to even), and the amounts of its parts are rounded so that
they add up to it (`apportion`). An amount across pools is a sum of such parts.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from enum import StrEnum
from fractions import Fraction
from itertools import groupby

from gpusharing.planning.vocabulary.values import value
from kubectl_gpusharing.shell.troubles import Trouble
from kubectl_gpusharing.usage.prometheus import Series

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


OPENCOST_METRIC = "node_gpu_hourly_cost"
POLICY_METRIC = "gpusharing_policy_gpu_hourly_price"
PRODUCT_METRIC = "gpusharing:product_gpu_hourly_price"
REMEDY = (
    'set spec.cost.gpuHourlyPrice in the policy, for example "3.20", or monitoring.gpuHourlyPrices in the chart; a'
    " price applies from the time at which Prometheus first scrapes it"
)
MOST = 1e15
"""The highest plausible price, and the highest plausible seconds in a counter."""
NO_NUMBER = "that is not a number"
CHOOSE = "choose a cluster with --match"
Subject = tuple[str, str]
"""What a price is for: `node`, `policy` or `product`, and its name. Dashes replace the spaces in the name."""
SOURCES = {
    "opencost": ("node", OPENCOST_METRIC),
    "policies": ("policy", POLICY_METRIC),
    "products": ("product", PRODUCT_METRIC),
}
"""The label that names the subject of a price, and the metric, by the name of the answer. `node_gpu_hourly_cost` is for
each GPU of the node, has no currency, and is 0 for a node whose price OpenCost does not know (opencost,
pkg/costmodel/metrics.go at 02e0666)."""


@dataclass(slots=True)
class Prices:
    """The prices that Prometheus has for one stretch of time."""

    amounts: Mapping[Subject, Mapping[str, Fraction]] = field(default_factory=dict)
    cards: Mapping[str, Set[str]] = field(default_factory=dict)
    rivals: frozenset[Subject] = frozenset()
    """Subjects that had several prices at once; the mean of these is not a real price."""
    faults: Mapping[str, Subject] = field(default_factory=dict)
    """The subject of each sentence about an impossible price that was left out."""

    def find(self, node: str, policy: str) -> Price | str:
        """Return the price of a GPU of this node under this policy, or a clause that says why there is none.

        The first source that has a price decides, even if its price is ambiguous.
        """
        if ("node", node) in self.amounts:
            return self._only(("node", node), "OpenCost")
        if ("policy", policy) in self.amounts:
            return self._only(("policy", policy), "policy")
        cards = [("product", card) for card in sorted(self.cards.get(node, ()))]
        if not cards or any(card not in self.amounts for card in cards):
            invalid = not {("node", node), ("policy", policy), *cards}.isdisjoint(self.faults.values())
            return "the price in Prometheus is invalid and is left out" if invalid else "Prometheus has none"
        prices = [self._only(card, "chart") for card in cards]
        if any(price != prices[0] for price in prices):
            return f"its GPUs ({', '.join(name for _, name in cards)}) have different prices"
        return prices[0]

    def _only(self, subject: Subject, source: str) -> Price | str:
        by_currency, name = self.amounts[subject], " ".join(subject)
        if len(by_currency) > 1:
            several = f"{name} had several currencies on that day ({', '.join(sorted(by_currency))})"
            return f"{several}, for example because it exists in several clusters, or because it was changed: {CHOOSE}"
        if subject in self.rivals:
            several = f"{name} has several prices at once"
            return f"{several}, for example because it exists in several clusters: {CHOOSE}"
        ((currency, amount),) = by_currency.items()
        return Price(amount, currency, source)


def read_prices(answers: Mapping[str, Iterable[Series]], currency: str) -> Prices:
    """Read the prices from the answers of SOURCES, `rivals` and `cards`; `currency` is that of OpenCost's prices."""
    amounts: dict[Subject, dict[str, Fraction]] = {}
    faults: dict[str, Subject] = {}
    for answer, (label, metric) in SOURCES.items():
        for series in answers[answer]:
            name, price = series.label(label), series.value
            unit = currency if label == "node" else series.label("currency")
            flaws = {
                "it names no currency": not unit,
                NO_NUMBER: math.isnan(price),
                "a price cannot be negative": price < 0,
                "no plausible price is that high": price > MOST,
            }
            if flaw := next((why for why, holds in flaws.items() if holds), ""):
                sentence = f"{metric} of {label} {name} is {price:g}, which is left out: {flaw}"
                faults[sentence] = label, _dashed(name)
            elif price or label != "node":
                # The averages that Prometheus computes are more precise than a millionth.
                amount = Fraction(round(price * MICROS), MICROS)
                amounts.setdefault((label, _dashed(name)), {})[unit] = amount
    rivals = frozenset(
        (label, _dashed(series.labels[label]))
        for series in answers["rivals"]
        for label, _ in SOURCES.values()
        if label in series.labels
    )
    cards = defaultdict[str, set[str]](set)
    for series in answers["cards"]:
        if product := series.labels.get("product"):  # a GPU that cannot be read has none
            cards[series.node].add(_dashed(product))
    return Prices(amounts, cards, rivals, faults)


def _dashed(product: str) -> str:
    return product.replace(" ", "-")


def price_of(text: str) -> Price | None:
    """Parse `--price`, such as `3.20` (USD) or `3.20 EUR`: the price of a GPU for an hour; None if it is empty."""
    match = re.fullmatch(r"(\d{1,6}(?:\.\d{1,6})?) ?([A-Z]{3})?", text)
    if text and match is None:
        raise Trouble(f"--price {text}: pass what a GPU costs an hour, for example 3.20 or 3.20EUR")
    return Price(Fraction(match[1]), match[2] or "USD", "--price") if match else None
