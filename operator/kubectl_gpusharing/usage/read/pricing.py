"""The price of a node's GPUs: OpenCost's metric if it has one, else the policy's price, else the price of the product in the chart's map; and the price in `--price`. Pure.

`node_gpu_hourly_cost` is the "hourly cost for each gpu on this node" (opencost, pkg/costmodel/metrics.go at 02e0666) with the label `node`, without a currency, and 0 for a node whose price OpenCost does not know.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field
from fractions import Fraction

from kubectl_gpusharing.shell.troubles import Trouble
from kubectl_gpusharing.usage.prometheus.client import Series
from kubectl_gpusharing.usage.reckon.bills import MICROS, Price

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
CHOOSE = "choose a cluster with --selector"
Subject = tuple[str, str]
"""What a price is for: `node`, `policy` or `product`, and its name, with dashes in place of spaces."""
SOURCES = {
    "opencost": ("node", OPENCOST_METRIC),
    "policies": ("policy", POLICY_METRIC),
    "products": ("product", PRODUCT_METRIC),
}
"""The label that names the subject of a price, and the metric, by the name of the answer."""


@dataclass(slots=True)
class Prices:
    """The prices that Prometheus has for one stretch of time."""

    amounts: Mapping[Subject, Mapping[str, Fraction]] = field(default_factory=dict)
    """By currency."""
    cards: Mapping[str, Set[str]] = field(default_factory=dict)
    """The GPU products of each node."""
    rivals: frozenset[Subject] = frozenset()
    """Subjects that had several prices at once. The mean of these is not a real price."""
    faults: tuple[str, ...] = ()
    """About the impossible prices that were left out."""
    odd: frozenset[Subject] = frozenset()
    """The subjects of these prices."""

    def find(self, node: str, policy: str) -> Price | str:
        """Return the price of a GPU of this node under this policy, or a clause that says why there is none. The first source that has a price decides, even if its price is ambiguous."""
        if ("node", node) in self.amounts:
            return self._only(("node", node), "OpenCost")
        if ("policy", policy) in self.amounts:
            return self._only(("policy", policy), "policy")
        cards = [("product", card) for card in sorted(self.cards.get(node, ()))]
        if not cards or any(card not in self.amounts for card in cards):
            invalid = not self.odd.isdisjoint([("node", node), ("policy", policy), *cards])
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
    """Read the prices from the answers of SOURCES, `rivals` and `cards`, rounded to a millionth; `currency` is that of OpenCost's prices."""
    amounts: dict[Subject, dict[str, Fraction]] = {}
    faults: dict[str, Subject] = {}
    for answer, (label, metric) in SOURCES.items():
        for series in answers[answer]:
            name, price = series.labels.get(label, ""), series.value
            unit = currency if label == "node" else series.labels.get("currency", "")
            flaw = ""
            if not unit:
                flaw = "it names no currency"
            elif math.isnan(price):
                flaw = NO_NUMBER
            elif price < 0:
                flaw = "a price cannot be negative"
            elif price > MOST:
                flaw = "no plausible price is that high"
            if flaw:
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
    return Prices(amounts, cards, rivals, tuple(faults), frozenset(faults.values()))


def _dashed(product: str) -> str:
    """Return a product name as GPU Feature Discovery writes it in its label: with dashes in place of NVML's spaces."""
    return product.replace(" ", "-")


def price_of(text: str) -> Price | None:
    """Parse the value of `--price`, such as `3.20` (USD) or `3.20 EUR`: the price of a GPU for an hour; None if it is empty."""
    match = re.fullmatch(r"(\d{1,6}(?:\.\d{1,6})?) ?([A-Z]{3})?", text)
    if text and match is None:
        raise Trouble(f"--price {text}: pass what a GPU costs an hour, for example 3.20 or 3.20EUR")
    return Price(Fraction(match[1]), match[2] or "USD", "--price") if match else None
