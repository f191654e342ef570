"""The price of a node's GPUs: OpenCost's metric if it has one, else the policy's price, else the price of the product
in the chart's map. Pure.

`node_gpu_hourly_cost` is the "hourly cost for each gpu on this node" (opencost, pkg/costmodel/metrics.go at 02e0666)
with the label `node`, without a currency, and 0 for a node whose price OpenCost does not know.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction

from gpusharing.usage.prometheus.client import Series
from gpusharing.usage.reckon.bills import MICROS, Price

OPENCOST, POLICY, CHART = "OpenCost", "policy", "chart"
OPENCOST_METRIC = "node_gpu_hourly_cost"
POLICY_METRIC = "gpusharing_policy_gpu_hourly_price"
PRODUCT_METRIC = "gpusharing:product_gpu_hourly_price"
REMEDY = (
    'set spec.cost.gpuHourlyPrice in the policy, for example "3.20", or monitoring.gpuHourlyPrices in the chart; a'
    " price applies from the time at which Prometheus first scrapes it"
)
"""What to do about an unknown price."""
MOST = 1e15
"""The highest plausible price, and the highest plausible number of seconds in a counter. Higher values are left out.
"""
NO_NUMBER = "that is not a number"
"""The reason given for a value that is NaN."""
CHOOSE = "choose one with --selector"
"""The remedy if several clusters have an object of the same name."""

_Fault = tuple[tuple[str, str], str]
"""The label and value of a subject with an impossible price, such as `node` and its name, and the sentence that
reports it."""


@dataclass(slots=True)
class Prices:
    """The prices that Prometheus has for one stretch of time."""

    opencost: Mapping[str, Fraction] = field(default_factory=dict)
    """OpenCost's price of each node."""
    policies: Mapping[str, Mapping[str, Fraction]] = field(default_factory=dict)
    """Prices of policies, by policy and currency."""
    products: Mapping[str, Mapping[str, Fraction]] = field(default_factory=dict)
    """Prices of the chart's map, by product and currency."""
    cards: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """The GPU products of each node."""
    rivals: frozenset[tuple[str, str]] = frozenset()
    """The label and value of each node, policy and product that had several prices at once. The mean of these is not a
    real price."""
    currency: str = "USD"
    """Currency of OpenCost's prices."""
    faults: tuple[str, ...] = ()
    """A sentence for each impossible price that was left out."""
    odd: frozenset[tuple[str, str]] = frozenset()
    """The label and value of each node, policy and product that has an impossible price."""

    def find(self, node: str, policy: str) -> Price | str:
        """Return the price of a GPU of this node under this policy, or a clause that says why there is none. The
        sources are tried in the order OpenCost, policy, chart. The first source that has a price decides, even if
        its price is ambiguous. The chart must have a price for every product of the node, and these prices must be
        the same."""
        if node in self.opencost:
            if ("node", node) in self.rivals:
                return _rivalry(f"node {node}")
            return Price(self.opencost[node], self.currency, OPENCOST)
        if policy in self.policies:
            return self._only(("policy", policy), self.policies[policy], POLICY)
        by_product = {
            product: self.products[product]
            for product in self.cards.get(node, ())
            if product in self.products
        }
        if not by_product or len(by_product) < len(self.cards[node]):
            odd = {
                ("node", node),
                ("policy", policy),
                *(("product", card) for card in self.cards.get(node, ())),
            }
            return (
                "the price in Prometheus is invalid and is left out"
                if odd & self.odd
                else "Prometheus has none"
            )
        prices = [
            self._only(("product", product), by_currency, CHART)
            for product, by_currency in sorted(by_product.items())
        ]
        if any(price != prices[0] for price in prices):
            return f"its GPUs ({', '.join(sorted(by_product))}) have different prices"
        return prices[0]

    def _only(self, key: tuple[str, str], by_currency: Mapping[str, Fraction], source: str) -> Price | str:
        """Return the only price in `by_currency`, which must not be empty, or a clause that says why it is ambiguous.
        `key` is the label and value that the prices belong to, such as `policy` and its name."""
        subject = " ".join(key)
        if len(by_currency) > 1:
            several = f"{subject} had several currencies on that day ({', '.join(sorted(by_currency))})"
            return f"{several}, for example because several clusters have it, or because it was changed: {CHOOSE}"
        if key in self.rivals:
            return _rivalry(subject)
        ((currency, amount),) = by_currency.items()
        return Price(amount, currency, source)


def _rivalry(subject: str) -> str:
    """Return the clause about a subject that has several prices at the same time."""
    return f"{subject} has several prices at once, for example because several clusters have it: {CHOOSE}"


def read_prices(
    opencost: Iterable[Series],
    policies: Iterable[Series],
    products: Iterable[Series],
    cards: Iterable[Series],
    *,
    currency: str,
    rivals: Iterable[Series] = (),
) -> Prices:
    """Read the prices from the answers to the queries of `queries_of`; `cards` has the products of each node.
    Impossible prices (negative, too high or not a number) and those without a currency are left out and reported in
    `faults`; an OpenCost price of 0 is left out silently. `rivals` has a series for each subject with several prices at
    once. `currency` is that of OpenCost's prices."""
    faults: list[_Fault] = []
    by_node: dict[str, Fraction] = {}
    for series in opencost:
        node = series.labels.get("node", "")
        if 0 < series.value <= MOST:
            by_node[node] = _exact(series.value)
        elif series.value != 0:
            faults.append(_fault(OPENCOST_METRIC, "node", node, series.value))
    on_nodes: dict[str, set[str]] = {}
    for series in cards:
        # A GPU that cannot be read has no product for that time.
        if product := series.labels.get("product"):
            on_nodes.setdefault(series.labels.get("node", ""), set()).add(_dashed(product))
    return Prices(
        by_node,
        _by(policies, "policy", POLICY_METRIC, faults),
        {
            _dashed(name): by_currency
            for name, by_currency in _by(products, "product", PRODUCT_METRIC, faults).items()
        },
        {node: frozenset(names) for node, names in on_nodes.items()},
        frozenset(
            (name, _dashed(series.labels[name]))
            for series in rivals
            for name in ("node", "policy", "product")
            if name in series.labels
        ),
        currency,
        tuple(text for _, text in faults),
        frozenset(subject for subject, _ in faults),
    )


def _dashed(product: str) -> str:
    """Return a product name as GPU Feature Discovery writes it in its label: with dashes in place of NVML's spaces."""
    return product.replace(" ", "-")


def _by(
    answer: Iterable[Series], label: str, metric: str, faults: list[_Fault]
) -> dict[str, dict[str, Fraction]]:
    """Return the prices of an answer, by the value of `label` and then by currency. Prices that are impossible or
    without a currency are left out, and each adds a fault to `faults`."""
    prices: dict[str, dict[str, Fraction]] = {}
    for series in answer:
        subject, currency = series.labels.get(label, ""), series.labels.get("currency", "")
        if not 0 <= series.value <= MOST or not currency:
            faults.append(_fault(metric, label, subject, series.value, currency))
        else:
            prices.setdefault(subject, {})[currency] = _exact(series.value)
    return prices


def _fault(metric: str, label: str, subject: str, value: float, currency: str = "-") -> _Fault:
    """Return the label and value of a subject with an impossible price, and the sentence that reports it. If
    `currency` is empty, the reason is that the price names no currency."""
    why = (
        "it names no currency"
        if not currency
        else NO_NUMBER
        if math.isnan(value)
        else "a price cannot be negative"
        if value < 0
        else "no plausible price is that high"
    )
    return (label, _dashed(subject)), f"{metric} of {label} {subject} is {value:g}, which is left out: {why}"


def _exact(value: float) -> Fraction:
    """Return the value rounded to the millionth; the averages that Prometheus computes are more precise than that."""
    return Fraction(round(value * MICROS), MICROS)
