"""What is the price of a GPU, by what OpenCost, the policies, the chart and the user say?"""

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field
from fractions import Fraction

from kubectl_gpusharing.shell.troubles import Trouble
from kubectl_gpusharing.usage.bills import MICROS, Price
from kubectl_gpusharing.usage.prometheus import Series

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
    odd: frozenset[Subject] = frozenset()

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
            subjects = {("node", node), ("policy", policy), *cards}
            invalid = not subjects.isdisjoint(self.odd)
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
    return Prices(amounts, cards, rivals, faults, frozenset(faults.values()))


def _dashed(product: str) -> str:
    """Return a product name as in GPU Feature Discovery's label: with dashes for NVML's spaces."""
    return product.replace(" ", "-")


def price_of(text: str) -> Price | None:
    """Parse `--price`, such as `3.20` (USD) or `3.20 EUR`: the price of a GPU for an hour; None if it is empty."""
    match = re.fullmatch(r"(\d{1,6}(?:\.\d{1,6})?) ?([A-Z]{3})?", text)
    if text and match is None:
        raise Trouble(f"--price {text}: pass what a GPU costs an hour, for example 3.20 or 3.20EUR")
    return Price(Fraction(match[1]), match[2] or "USD", "--price") if match else None
