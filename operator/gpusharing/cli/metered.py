"""What Prometheus has of the meter (docs/adr/0043-the-meter.md) in a window: who had how much at which price, what is
missing.

The window is asked for a day at a time, so that a price counts for the days on which it was told, and no answer is
large. `increase` extends a series to both ends of the day, bridges gaps and knows when a counter began anew.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import pairwise

from gpusharing.api.times import to_rfc3339
from gpusharing.cli.ages import length
from gpusharing.cli.pricing import OPENCOST_METRIC, POLICY_METRIC, PRODUCT_METRIC, REMEDY, Prices, read_prices
from gpusharing.cli.prometheus import Prometheus, Series, side_by_side
from gpusharing.cli.troubles import Trouble
from gpusharing.planning.gpus.bills import MICROS, Basis, Cell, Part, Price

DAY = 86400.0
LOOKBACK = 300.0
"""Seconds for which Prometheus goes on telling a value (--query.lookback-delta): shorter gaps nobody sees."""
MOST_POINTS = 3000
"""Of one series in an answer; Prometheus refuses more than 11,000."""
TOLERANCE = 0.01
"""Of a pool's GPU time; the ends of series that come and go in a day make less."""
OTHERS = "_others"
"""The namespace of accounts beyond the meter's bound (gpusharing/agent/meter.py)."""
TARGET = ("__name__", "instance", "pod", "container", "endpoint", "uid")
"""Labels by which an agent's series differ from those of its successor on the same node."""
NAMESPACE, POLICY = "namespace", "policy"


@dataclass(frozen=True, slots=True)
class Wish:
    """What is asked for."""

    start: float
    end: float
    """Seconds since 1970."""
    by: str = NAMESPACE
    """NAMESPACE, POLICY, or a label of namespaces."""
    selector: str = ""
    """Matchers for every series, without braces."""
    currency: str = "USD"
    """Of OpenCost's prices."""


@dataclass(slots=True)
class Metered:
    """What was found."""

    cells: Counter[Cell] = field(default_factory=Counter)
    """Microseconds."""
    missing: list[str] = field(default_factory=list)
    """Why the answer is a part of what there was; empty: it is all."""
    remarks: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Day:
    """Answers for one stretch of at most a day."""

    held: list[Series]
    idle: list[Series]
    stranded: list[Series]
    transition: list[Series]
    gpus: list[Series]
    shared: Mapping[tuple[str, str], float]
    """By node and resource: the most slices of one device."""
    prices: Prices
    teams: Mapping[str, str]
    """By namespace."""


async def read_metered(prometheus: Prometheus, wish: Wish) -> Metered:
    """Raises Trouble, also where there is nothing at all."""
    found = Metered()
    found.missing += await _gaps(prometheus, wish)
    unpriced: dict[tuple[str, str], float] = {}
    parts: dict[str, float] = {}
    gpus: dict[str, float] = {}
    for start, end in days(wish.start, wish.end):
        day = await _read_day(prometheus, wish, start, end)
        _add(found, day, wish.by, unpriced)
        found.missing += [fault for fault in day.prices.faults if fault not in found.missing]
        _sum(parts, (*day.held, *day.idle, *day.stranded, *day.transition))
        _sum(gpus, day.gpus)
    held = [cell for cell in found.cells if cell.part is Part.HELD]
    if label_of(wish.by) and held and not any(cell.tenant for cell in held):
        raise Trouble(no_label(wish.by))
    found.missing += _unpriced(unpriced)
    found.missing += _lacking(parts, gpus)
    found.missing += [f"Prometheus warns: {warning}" for warning in sorted(prometheus.warnings)]
    if any(cell.tenant == OTHERS for cell in found.cells):
        found.remarks.append(
            f"{OTHERS} is what a node metered beyond 128 accounts; whose it was nobody knows"
        )
    return found


def _sum(counts: dict[str, float], found: Iterable[Series]) -> None:
    for one in found:
        policy = one.labels.get(POLICY, "")
        counts[policy] = counts.get(policy, 0.0) + one.value


def days(start: float, end: float) -> list[tuple[float, float]]:
    """The window in stretches of at most a day, oldest first; the last ones are whole days."""
    found: list[tuple[float, float]] = []
    while end - start > DAY:
        found.append((end - DAY, end))
        end -= DAY
    return [*([(start, end)] if end > start else []), *reversed(found)]


def no_label(label: str) -> str:
    """What to say where no namespace has the label."""
    return (
        f"Prometheus knows no namespace with the label {label}. kube-state-metrics tells labels that it is told to:"
        f" --metric-labels-allowlist=namespaces=[{label}]. Without it: --by namespace"
    )


def _queries(wish: Wish, seconds: int) -> list[str]:
    """What is asked of one stretch, in the order in which `_read_day` takes it apart."""
    span, chosen = f"[{seconds}s]", f"{{{wish.selector}}}" if wish.selector else ""

    def grown(name: str, *labels: str) -> str:
        return f"sum by (node, {', '.join(labels)}) (increase({name}{chosen}{span}))"

    def mean(name: str, *labels: str) -> str:
        return f"avg by ({', '.join(labels)}) (avg_over_time({name}{chosen}{span}))"

    queries = [
        grown("gpusharing_slice_seconds_total", POLICY, NAMESPACE, "exported_namespace", "resource"),
        grown("gpusharing_idle_slice_seconds_total", POLICY, "resource"),
        grown("gpusharing_stranded_slice_seconds_total", POLICY),
        grown("gpusharing_transition_slice_seconds_total", POLICY),
        grown("gpusharing_gpu_seconds_total", POLICY),
        f"max by (node, resource) (max_over_time(gpusharing_device_slices{chosen}{span}))",
        mean(OPENCOST_METRIC, "node"),
        mean(POLICY_METRIC, POLICY, "currency"),
        mean(PRODUCT_METRIC, "product", "currency"),
        f"max by (node, product) (max_over_time(gpusharing_agent_gpu_info{chosen}{span}))",
        f"count by (node, {POLICY}) (gpusharing_gpu_seconds_total{chosen}) > 1",
    ]
    if label := label_of(wish.by):
        matchers = ",".join(filter(None, (wish.selector, f'{label}!=""')))
        # When each label was last seen: a namespace may have gone, or have changed hands.
        last = f"timestamp(kube_namespace_labels{{{matchers}}})[{seconds}s:5m]"
        queries.append(f"max by ({NAMESPACE}, {label}) (max_over_time({last}))")
    return queries


async def _read_day(prometheus: Prometheus, wish: Wish, start: float, end: float) -> _Day:
    queries = _queries(wish, round(end - start))
    (
        held,
        idle,
        stranded,
        transition,
        gpus,
        shared,
        opencost,
        policies,
        products,
        cards,
        twice,
        *teams,
    ) = await side_by_side(*(prometheus.instant(query, end) for query in queries))
    if twice:
        await _refuse_doubles(prometheus, wish, twice, end)
    return _Day(
        held,
        idle,
        stranded,
        transition,
        gpus,
        {(one.labels.get("node", ""), one.labels.get("resource", "")): one.value for one in shared},
        read_prices(opencost, policies, products, cards, currency=wish.currency),
        _teams(teams[0], label_of(wish.by)) if teams else {},
    )


def label_of(by: str) -> str:
    """How kube-state-metrics calls a label of namespaces; empty: none is asked for."""
    return "" if by in (NAMESPACE, POLICY) else f"label_{re.sub('[^a-zA-Z0-9_]', '_', by)}"


def _teams(found: Sequence[Series], label: str) -> dict[str, str]:
    """The last that was seen of each namespace."""
    ordered = sorted(found, key=lambda one: (one.value, one.labels.get(label, "")))
    return {one.labels.get(NAMESPACE, ""): one.labels.get(label, "") for one in ordered}


def _add(found: Metered, day: _Day, by: str, unpriced: dict[tuple[str, str], float]) -> None:
    for part, answer in zip(Part, (day.held, day.idle, day.stranded, day.transition), strict=True):
        for one in answer:
            node, policy = one.labels.get("node", ""), one.labels.get(POLICY, "")
            resource = one.labels.get("resource", "")
            price = day.prices.find(node, policy)
            if not isinstance(price, Price):
                key = (policy, price)
                unpriced[key] = unpriced.get(key, 0.0) + one.value
            tenant, basis = "", Basis.NONE
            if part is Part.HELD:
                tenant = _tenant(one, day, by)
                basis = _basis(resource, day.shared.get((node, resource)))
            cell = Cell(policy, tenant, part, resource, basis, price if isinstance(price, Price) else None)
            found.cells[cell] += max(0, round(one.value * MICROS))


def _tenant(one: Series, day: _Day, by: str) -> str:
    # A Prometheus with overrideHonorLabels renames the label that the agent gave.
    namespace = one.labels.get("exported_namespace") or one.labels.get(NAMESPACE, "")
    if by == POLICY:
        return ""
    return namespace if by == NAMESPACE or namespace == OTHERS else day.teams.get(namespace, "")


def _basis(resource: str, most: float | None) -> Basis:
    if most is not None:
        return Basis.RESERVED if most > 1 else Basis.MEASURED
    return Basis.RESERVED if resource.endswith(".shared") else Basis.ESTIMATE


def _unpriced(unpriced: Mapping[tuple[str, str], float]) -> list[str]:
    return [
        f"no price is known for {seconds / 3600:,.1f} GPU-hours of {_pool(policy)}: {why}; {REMEDY}"
        for (policy, why), seconds in sorted(unpriced.items())
        if seconds > 0
    ]


def _pool(policy: str) -> str:
    return policy or "nodes without a policy"


def _lacking(parts: Mapping[str, float], gpus: Mapping[str, float]) -> list[str]:
    """Pools of which some series are not there."""
    return [
        f"the parts of {_pool(policy)} add up to {parts.get(policy, 0.0) / 3600:,.1f} GPU-hours,"
        f" and its GPUs were metered for {whole / 3600:,.1f}: Prometheus lacks some of the meter's series"
        for policy, whole in sorted(gpus.items())
        if abs(parts.get(policy, 0.0) - whole) > TOLERANCE * whole
    ]


async def _gaps(prometheus: Prometheus, wish: Wish) -> list[str]:
    """What of the window Prometheus has nothing of. Raises Trouble where that is all of it."""
    step = max(60.0, (wish.end - wish.start) / MOST_POINTS)
    chosen = f"{{{wish.selector}}}" if wish.selector else ""
    query = f"count(gpusharing_gpu_seconds_total{chosen})"
    found = await prometheus.between(query, wish.start, wish.end, step)
    seen = [at for one in found for at, _ in one.points]
    if not seen:
        where = f" for {chosen}" if chosen else ""
        raise Trouble(
            f"{prometheus.place.where} has nothing of the meter in this window (gpusharing_gpu_seconds_total){where}:"
            " does it scrape the agents? In the chart: monitoring.podMonitor.enabled=true, with the labels that it"
            " selects by"
        )
    told: list[str] = []
    least = LOOKBACK + 2 * step
    if seen[0] - wish.start > least:
        told.append(
            f"history begins at {moment(seen[0])}: {_length(wish.end - seen[0])} of {_length(wish.end - wish.start)}"
        )
    holes = [(a, b) for a, b in pairwise(seen) if b - a > 2 * step + 1]
    if holes:
        (first, last), lost = holes[0], sum(b - a for a, b in holes)
        told.append(
            f"Prometheus has nothing for {_length(lost)} in all, in {len(holes)} gaps, the first of them from"
            f" {moment(first)} to {moment(last)}; what was metered meanwhile is only in part known"
        )
    if wish.end - seen[-1] > least:
        told.append(f"Prometheus has had nothing since {moment(seen[-1])}")
    return told


async def _refuse_doubles(prometheus: Prometheus, wish: Wish, twice: Sequence[Series], at: float) -> None:
    """Raises Trouble where a node is in Prometheus twice, but not where an agent has just followed another."""
    node = min(one.labels.get("node", "") for one in twice)
    matchers = ",".join(filter(None, (wish.selector, f'node="{node}"')))
    found = await prometheus.instant(f"gpusharing_gpu_seconds_total{{{matchers}}}", at)
    values: dict[str, set[str]] = {}
    for label in sorted({name for one in found for name in one.labels}):
        values[label] = {one.labels.get(label, "") for one in found}
    differ = [name for name, told in values.items() if len(told) > 1 and name not in (*TARGET, POLICY)]
    if not differ:
        return
    label = differ[0]
    told = sorted(values[label])
    raise Trouble(
        f"{node or 'a node'} would be billed twice: its series differ in the label {label} ({', '.join(told[:5])}),"
        f" as where two Prometheus scrape the same agents. Choose one: --selector '{label}=\"{told[0]}\"'"
    )


def moment(at: float) -> str:
    """A time, to the second, in UTC."""
    return to_rfc3339(datetime.fromtimestamp(round(at), UTC))


def _length(seconds: float) -> str:
    return length(timedelta(seconds=seconds))
