"""Which price a node's GPUs have: OpenCost's metric, else the policy's, else that of the chart's map. Pure.

`node_gpu_hourly_cost` is the "hourly cost for each gpu on this node" (opencost, pkg/costmodel/metrics.go at
02e0666) with the label `node`, without a currency, and 0 for a node of which OpenCost knows no price.
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
    'set spec.cost.gpuHourlyPrice of the policy, such as "3.20", or monitoring.gpuHourlyPrices of the chart; a price'
    " counts from the moment at which Prometheus sees it"
)
"""What to do about an unknown price."""
MOST = 1e15
"""Of a price, and of the seconds of a counter: what is above that nobody metered, and it is left out."""
NO_NUMBER = "that is no number"
"""Why NaN is left out."""
CHOOSE = "choose one by --selector"
"""What to do about what several clusters have."""

_Fault = tuple[tuple[str, str], str]
"""Label and value of what has a price that cannot be, and what to say about it."""


@dataclass(slots=True)
class Prices:
    """The prices that Prometheus has for a stretch of time."""

    opencost: Mapping[str, Fraction] = field(default_factory=dict)
    """By node."""
    policies: Mapping[str, Mapping[str, Fraction]] = field(default_factory=dict)
    """By policy and currency."""
    products: Mapping[str, Mapping[str, Fraction]] = field(default_factory=dict)
    """By product and currency."""
    cards: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """The products of each node."""
    rivals: frozenset[tuple[str, str]] = frozenset()
    """Label and value of nodes, policies and products that have several prices at once: their mean is no real price."""
    currency: str = "USD"
    """Of OpenCost's prices."""
    faults: tuple[str, ...] = ()
    """Prices that cannot be: they are left out."""
    odd: frozenset[tuple[str, str]] = frozenset()
    """Label and value of the nodes, policies and products whose prices these are."""

    def find(self, node: str, policy: str) -> Price | str:
        """The price, or why there is none."""
        if node in self.opencost:
            if ("node", node) in self.rivals:
                return _rivalry(f"node {node}")
            return Price(self.opencost[node], self.currency, OPENCOST)
        if policy in self.policies:
            return self._only(("policy", policy), self.policies[policy], POLICY)
        found = {
            product: self.products[product]
            for product in self.cards.get(node, ())
            if product in self.products
        }
        if not found or len(found) < len(self.cards[node]):
            odd = {
                ("node", node),
                ("policy", policy),
                *(("product", card) for card in self.cards.get(node, ())),
            }
            return "the one that Prometheus has is left out" if odd & self.odd else "Prometheus has none"
        prices = [self._only(("product", product), told, CHART) for product, told in sorted(found.items())]
        if any(price != prices[0] for price in prices):
            return f"its GPUs ({', '.join(sorted(found))}) have several"
        return prices[0]

    def _only(self, key: tuple[str, str], told: Mapping[str, Fraction], source: str) -> Price | str:
        whose = " ".join(key)
        if len(told) > 1:
            several = f"{whose} had several currencies on that day ({', '.join(sorted(told))})"
            return f"{several}, as when several clusters have it, or it was changed: {CHOOSE}"
        if key in self.rivals:
            return _rivalry(whose)
        ((currency, amount),) = told.items()
        return Price(amount, currency, source)


def _rivalry(whose: str) -> str:
    return f"{whose} has several prices at once, as when several clusters have it: {CHOOSE}"


def read_prices(
    opencost: Iterable[Series],
    policies: Iterable[Series],
    products: Iterable[Series],
    cards: Iterable[Series],
    *,
    currency: str,
    rivals: Iterable[Series] = (),
) -> Prices:
    """From answers; a price that cannot be is left out, and reported. `rivals`: series that have several prices."""
    faults: list[_Fault] = []
    by_node: dict[str, Fraction] = {}
    for one in opencost:
        node = one.labels.get("node", "")
        if 0 < one.value <= MOST:
            by_node[node] = _exact(one.value)
        elif one.value != 0:
            faults.append(_fault(OPENCOST_METRIC, "node", node, one.value))
    on_nodes: dict[str, set[str]] = {}
    for one in cards:
        # A GPU that could not be read for a moment has no product then: it is still one of its node's.
        if product := one.labels.get("product"):
            on_nodes.setdefault(one.labels.get("node", ""), set()).add(_dashed(product))
    return Prices(
        by_node,
        _by(policies, "policy", POLICY_METRIC, faults),
        {_dashed(name): told for name, told in _by(products, "product", PRODUCT_METRIC, faults).items()},
        {node: frozenset(found) for node, found in on_nodes.items()},
        frozenset(
            (name, _dashed(one.labels[name]))
            for one in rivals
            for name in ("node", "policy", "product")
            if name in one.labels
        ),
        currency,
        tuple(told for _, told in faults),
        frozenset(whose for whose, _ in faults),
    )


def _dashed(product: str) -> str:
    """GFD's label of a product has dashes where NVML's name has blanks."""
    return product.replace(" ", "-")


def _by(
    told: Iterable[Series], label: str, metric: str, faults: list[_Fault]
) -> dict[str, dict[str, Fraction]]:
    found: dict[str, dict[str, Fraction]] = {}
    for one in told:
        whose, currency = one.labels.get(label, ""), one.labels.get("currency", "")
        if not 0 <= one.value <= MOST or not currency:
            faults.append(_fault(metric, label, whose, one.value, currency))
        else:
            found.setdefault(whose, {})[currency] = _exact(one.value)
    return found


def _fault(metric: str, label: str, whose: str, value: float, currency: str = "-") -> _Fault:
    why = (
        "it names no currency"
        if not currency
        else NO_NUMBER
        if math.isnan(value)
        else "a price is 0 or more"
        if value < 0
        else "no price is that high"
    )
    return (label, _dashed(whose)), f"{metric} of {label} {whose} is {value:g}, which is left out: {why}"


def _exact(value: float) -> Fraction:
    """To the millionth: averages of Prometheus are off by less."""
    return Fraction(round(value * MICROS), MICROS)
