"""Read the meter (docs/adr/0043-the-meter.md) from Prometheus for a window: who used how much GPU time at which price,
and what is missing.

Each query covers a few days and has a value for each of them, so that a price applies only to the days on which it was
exported, and no answer is large. `increase` extrapolates a series to both ends of the day, bridges gaps, and handles
counters that restarted.
"""

import math
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import chain, repeat
from shlex import quote

from gpusharing.cli.shell.troubles import Trouble
from gpusharing.planning.vocabulary.lengths import counted, some
from gpusharing.usage.prometheus.client import Prometheus, Series, side_by_side
from gpusharing.usage.prometheus.matchers import TARGET, braced, matcher_of, nodes_of, of_others
from gpusharing.usage.prometheus.windows import Days, days, find_gaps
from gpusharing.usage.read.absences import Sightings, Stretch, find_losses, find_silent, holes_in
from gpusharing.usage.read.pricing import CHOOSE, MOST, NO_NUMBER, REMEDY, Prices, read_prices
from gpusharing.usage.read.queries import (
    EXPORTED,
    GPUS,
    NAMESPACE,
    OF_PARTS,
    POINT,
    POLICY,
    MeterQuery,
    device_queries,
    label_of,
    presence_queries,
    queries_of,
)
from gpusharing.usage.reckon.bills import MICROS, Basis, Cell, Part, Price


@dataclass(frozen=True, slots=True)
class Teams:
    """The value of a namespace label for each namespace on one day. A bill by that label has a row for each value."""

    last: Mapping[str, str] = field(default_factory=dict)
    """The value that was last seen for each namespace. Since then the namespace may have been deleted or changed."""
    rivals: Set[str] = frozenset()
    """Namespaces that had several values at the same time, so that their owner is ambiguous."""

    def find(self, namespace: str) -> str:
        """Return the label's value for a namespace; empty if it is unknown or ambiguous."""
        return "" if namespace in self.rivals else self.last.get(namespace, "")


def read_teams(last: Iterable[Series], rivals: Iterable[Series], label: str) -> Teams:
    """Return the values of the label `label` from two answers: `last` has the time at which each value was last seen,
    and `rivals` the namespaces that had several values at one time. The value seen last wins."""
    ordered = sorted(last, key=lambda series: (series.value, series.labels.get(label, "")))
    return Teams(
        {namespace_of(series): series.labels.get(label, "") for series in ordered},
        frozenset(map(namespace_of, rivals)),
    )


def namespace_of(series: Series) -> str:
    """Return the tenant's namespace that a series is about, whether or not Prometheus renamed the label; empty if the
    series names none."""
    # A Prometheus that does not honor labels renames those of the exporter.
    return series.labels.get(EXPORTED) or series.labels.get(NAMESPACE, "")


def no_label(label: str) -> str:
    """Return the message for a label that no namespace has in Prometheus, with a remedy."""
    return (
        f"no namespace in Prometheus has the label {label}. kube-state-metrics exports only the"
        f" labels that a flag lists: --metric-labels-allowlist=namespaces=[{label}]. Otherwise use --by namespace"
    )


def describe_rivals(namespaces: Set[str], label: str) -> list[str]:
    """Return a list with one sentence about `namespaces`, which used GPUs while they had several values of the label;
    empty if there are none."""
    if not namespaces:
        return []
    several = len(namespaces) > 1
    return [
        f"{'namespaces' if several else 'namespace'} {some(sorted(namespaces))} {'have' if several else 'has'} several"
        f" values of {label} at once, for example because several clusters have {'them' if several else 'it'}, so"
        f" {'their' if several else 'its'} usage is listed under (no {label}): {CHOOSE}"
    ]


TOLERANCE = 0.01
"""How far the sum of the parts may differ from a pool's GPU time, as a fraction of that time. Series that start and
end within a day cause a smaller difference."""
ENDS = 60.0
"""How far the parts may differ from the whole, in seconds of one GPU, even in a short window: `increase` extends a
series that starts or ends within the window by up to a scrape interval of 30 s at either end, but not the series of
the pool."""
OTHERS = "_others"
"""The namespace or policy under which the meter counts time that exceeds its bounds (gpusharing/agent/meter.py)."""
CHOSEN = frozenset(("container", "endpoint"))
"""Labels of a target that stay the same when an agent restarts, so that they can select series."""
MISSED = 3600.0
"""The smallest loss of a node that is reported, in GPU-seconds. The loss of one scrape interval at the end of each day
is below it."""
COUNTED = (*Part, "gpus", "firsts", "lasts")
"""The names of the answers that come from the meter: one for each Part of the GPU time, one for all of it (`gpus`), and
the lowest and the highest value of the counters of suspects (`firsts`, `lasts`)."""
AHEAD = 3
"""How many groups of days are queried at the same time, so that a Prometheus with several cores uses them."""
NodePool = tuple[str, str]
"""The name of a node, and the name of the policy that owned it."""


@dataclass(slots=True)
class MeteredPools:
    """What the meter counted in a window, and what is known to be missing."""

    cells: Counter[Cell] = field(default_factory=Counter)
    """Microseconds of whole GPUs, by cell."""
    missing: list[str] = field(default_factory=list)
    """Why the answer is incomplete; empty if it is complete."""
    remarks: list[str] = field(default_factory=list)
    """What else a reader should know."""
    simulated: set[str] = field(default_factory=set)
    """Metered nodes whose GPUs are SIMULATED."""


@dataclass(slots=True)
class _Day:
    """The answers for one stretch of about a day."""

    counted: Mapping[str, list[Series]]
    """The answers that come from the meter, by their names in COUNTED."""
    shared: Mapping[tuple[str, str], float]
    """The highest number of slices that a device had, by node and resource."""
    prices: Prices
    """The prices of that day."""
    teams: Teams
    """The value of the bill's label for each namespace on that day."""
    simulated: frozenset[str]
    """Nodes whose GPUs are SIMULATED."""
    sightings: Sightings
    """Which nodes were metered, and which of them were perhaps absent for a while."""
    faults: Sequence[str] = ()
    """A sentence for each impossible number that was left out."""


async def read_metered(
    prometheus: Prometheus, query: MeterQuery, progress: Callable[[str], None]
) -> MeteredPools:
    """Read the meter's series for the window of `query` and return the time by cell, with everything known to be
    missing. `progress` is called with a sentence each time that some days were read. Raises Trouble if a query
    fails, if Prometheus has no data of the meter in the window, or if a node was metered twice. In a bill by a
    label, also raises Trouble if GPUs were held but no namespace had the label on any day."""
    metered = MeteredPools()
    metered.missing += await _gaps(prometheus, query)
    silent = await find_silent(prometheus, query)
    unpriced: dict[tuple[str, str], float] = {}
    parts: dict[NodePool, float] = {}
    gpus: dict[NodePool, float] = {}
    rivals: set[str] = set()
    unseen, unlabelled, labelled = _Unseen(), 0, False
    sightings: list[Sightings] = []
    async for day in _read_all(prometheus, query, silent, progress):
        _add(metered, day, query.by, unpriced)
        faults = dict.fromkeys((*day.faults, *day.prices.faults))
        metered.missing += [fault for fault in faults if fault not in metered.missing]
        _sum(parts, chain.from_iterable(day.counted[part] for part in Part))
        _sum(gpus, day.counted["gpus"])
        rivals |= day.teams.rivals & {
            namespace_of(series) for series in day.counted["held"] if series.value > 0
        }
        metered.simulated |= day.simulated & day.sightings.nodes
        sightings.append(day.sightings)
        unseen.add(day.counted["gpus"], day.counted["firsts"], day.counted["lasts"])
        unlabelled += bool(label_of(query.by) and day.counted["held"] and not day.teams.last)
        labelled |= bool(day.teams.last)
    if unlabelled and not labelled:
        raise Trouble(no_label(query.by))
    if unlabelled:
        metered.missing.append(
            f"on {counted(unlabelled, 'day')}, no namespace in Prometheus had the label {query.by}: usage on"
            f" {'those days' if unlabelled > 1 else 'that day'} is listed under (no {query.by})"
        )
    metered.missing += describe_rivals(rivals, query.by)
    metered.missing += _unpriced(unpriced)
    metered.missing += [*_lacking(parts, gpus, query.end - query.start), *unseen.describe()]
    missing, remarks = await find_losses(prometheus, query, sightings, silent)
    metered.missing += missing
    metered.remarks += remarks
    metered.missing += [f"Prometheus warns: {warning}" for warning in sorted(prometheus.warnings)]
    if any(OTHERS in (cell.tenant, cell.policy) for cell in metered.cells):
        metered.remarks.append(
            f"{OTHERS} is time that a node metered beyond 128 accounts or 16 policies; it is unknown who used it"
        )
    return metered


def _sum(counts: dict[NodePool, float], answer: Iterable[Series]) -> None:
    """Add each value of the answer to `counts` under the node and policy of its series."""
    for series in answer:
        counts[_node(series)] = counts.get(_node(series), 0.0) + series.value


async def _read_all(
    prometheus: Prometheus, query: MeterQuery, silent: frozenset[str], progress: Callable[[str], None]
) -> AsyncIterator[_Day]:
    """Yield the answers for each stretch of the window, oldest first, and report the `progress` as `read_metered` does.
    Raises Trouble as `_read_days` does."""
    groups = days(query.start, query.end)
    for at in range(0, len(groups), AHEAD):
        share = (groups[at].start - query.start) / (query.end - query.start)
        progress(f"Reading from {prometheus.place.where}: {share:.0%}")
        batch = groups[at : at + AHEAD]
        for read in await side_by_side(*(_read_days(prometheus, query, group, silent) for group in batch)):
            for day in read:
                yield day


async def _read_days(
    prometheus: Prometheus, query: MeterQuery, group: Days, silent: frozenset[str]
) -> list[_Day]:
    """Query the meter and return the answers for each stretch of `group`; impossible values are left out and reported
    in `faults`. `silent` is the answer of `find_silent`. Raises Trouble if a query fails or a node was metered
    twice."""
    queries = queries_of(query, group)
    answers = dict(zip(queries, await group.read_all(prometheus, queries.values()), strict=True))
    suspects = [nodes_of(answer) for answer in answers["suspects"]]
    doubtful = silent.union(*suspects)
    presence = presence_queries(query, group.seconds, matcher_of(doubtful))
    looked = await group.read_all(prometheus, presence.values() if doubtful else ())
    answers |= dict(zip(presence, looked or repeat([[]] * len(group.ends)), strict=False))
    shared, cards = await _read_devices(prometheus, query, group, answers["held"], doubtful)
    metered = [nodes_of(answer) for answer in answers["gpus"]]
    holes: Sequence[Stretch] = ()
    if any(nodes <= others for nodes, others in zip(metered, suspects, strict=True)):
        holes = await _find_holes(prometheus, query, group)
    found = []
    for index, end in enumerate(group.ends):
        day = {name: answer[index] for name, answer in answers.items()}
        _refuse_doubles(day["twice"])
        faults: list[str] = []
        opencost, policies, products = (day[name] for name in ("opencost", "policies", "products"))
        found.append(
            _Day(
                {name: list(_credible(day[name], faults)) for name in COUNTED},
                shared,
                read_prices(
                    opencost, policies, products, cards, rivals=day["rivals"], currency=query.currency
                ),
                read_teams(day.get("labels", ()), day.get("rival labels", ()), label_of(query.by)),
                nodes_of(day["simulated"]),
                Sightings(
                    end - group.seconds, end, metered[index], suspects[index], day, holes if not index else ()
                ),
                faults,
            )
        )
    return found


async def _find_holes(prometheus: Prometheus, query: MeterQuery, group: Days) -> list[Stretch]:
    """Return the times of `group` in which Prometheus saw no node at all, of whatever policy. Raises Trouble."""
    chosen = braced(of_others(query.selector, frozenset({POLICY})))
    begin, end = group.start, group.ends[-1]
    return holes_in(begin, end, await prometheus.between(f"count({GPUS}{chosen})", begin, end, POINT))


async def _read_devices(
    prometheus: Prometheus,
    query: MeterQuery,
    group: Days,
    held: Iterable[Iterable[Series]],
    suspects: frozenset[str],
) -> tuple[dict[tuple[str, str], float], list[Series]]:
    """Return the highest number of slices that a device had, by node and resource, and the products of each node's
    GPUs. Both are read at the beginning and at the end of `group` and, for `suspects` and for nodes where that does not
    explain what was `held`, for all of the time. Raises Trouble if a query fails."""
    now = device_queries(query)
    looks = [prometheus.instant(promql, at) for at in (group.start, group.ends[-1]) for promql in now]
    slices, cards, *later = await side_by_side(*looks)
    slices += later[0]
    cards += later[1]
    known = {_device(series) for series in slices}
    others = {
        node for node, resource in map(_device, chain.from_iterable(held)) if (node, resource) not in known
    }
    others |= suspects
    if others:
        closer = device_queries(query, matcher_of(others), round(group.ends[-1] - group.start))
        more = await side_by_side(*(prometheus.instant(promql, group.ends[-1]) for promql in closer))
        slices += more[0]
        cards += more[1]
    shared: dict[tuple[str, str], float] = {}
    for series in slices:
        shared[_device(series)] = max(series.value, shared.get(_device(series), 0.0))
    return shared, cards


def _device(series: Series) -> tuple[str, str]:
    """Return the node and the resource that a series is about; each is empty if the series has no such label."""
    return series.labels.get("node", ""), series.labels.get("resource", "")


async def read_price(prometheus: Prometheus, query: MeterQuery, nodes: Iterable[str]) -> Price | None:
    """Return the mean price of a GPU on these nodes in the window of `query`. None if the price of a node is unknown or
    ambiguous, or if the nodes have prices in several currencies. Raises Trouble if a query fails."""
    window = Days((query.end,), round(query.end - query.start))
    queries = queries_of(query, window) | {"cards": device_queries(query, seconds=window.seconds)[1]}
    names = ("opencost", "policies", "products", "cards", "rivals", "gpus")
    answers = await window.read_all(prometheus, [queries[name] for name in names])
    *prices, rivals, owners = (answer for (answer,) in answers)
    known = read_prices(*prices, rivals=rivals, currency=query.currency)
    policies = dict(map(_node, owners))
    found = [known.find(node, policies.get(node, "")) for node in nodes]
    exact = [price for price in found if isinstance(price, Price)]
    if not exact or len(exact) < len(found) or len({price.currency for price in exact}) > 1:
        return None
    return replace(exact[0], amount=sum((price.amount for price in exact), Fraction()) / len(exact))


def _credible(answer: Iterable[Series], faults: list[str]) -> Iterator[Series]:
    """Yield the series whose value is plausible (at most MOST). For each other series, add a sentence to `faults`."""
    for series in answer:
        if abs(series.value) <= MOST:
            yield series
        else:
            why = NO_NUMBER if math.isnan(series.value) else "no node has that many GPUs"
            faults.append(
                f"the value {series.value:g} s of a meter counter on {_node(series)[0] or 'a node'} is ignored:"
                f" {why}"
            )


def _add(metered: MeteredPools, day: _Day, by: str, unpriced: dict[tuple[str, str], float]) -> None:
    """Add the time of a day to the cells of `metered`; a negative time counts as 0. Seconds without a price, even
    negative ones, are also added to `unpriced`, by policy and by the reason why there is no price."""
    for part in Part:
        for series in day.counted[part]:
            node, policy = series.labels.get("node", ""), series.labels.get(POLICY, "")
            resource = series.labels.get("resource", "")
            price = day.prices.find(node, policy)
            if not isinstance(price, Price):
                key = (policy, price)
                unpriced[key] = unpriced.get(key, 0.0) + series.value
            tenant, basis = "", Basis.NONE
            if part is Part.HELD:
                tenant = _tenant(series, day, by)
                basis = _basis(resource, day.shared.get((node, resource)))
            cell = Cell(policy, tenant, part, resource, basis, price if isinstance(price, Price) else None)
            metered.cells[cell] += max(0, round(series.value * MICROS))


def _tenant(series: Series, day: _Day, by: str) -> str:
    """Return who is billed for a series: the namespace in a bill by namespace, or the namespace's label value on that
    day in a bill by a label. Empty in a bill by policy, and if the label value is unknown or ambiguous. The
    namespace OTHERS is billed under its own name in a bill by a label, too."""
    namespace = namespace_of(series)
    if by == POLICY:
        return ""
    return namespace if by == NAMESPACE or namespace == OTHERS else day.teams.find(namespace)


def _basis(resource: str, most: float | None) -> Basis:
    """Return how the time of a tenant was determined: RESERVED if the device has several slices, MEASURED if it has
    one. `most` is the number of slices. If it is unknown (None), the result is RESERVED for a resource whose name
    ends in `.shared`, and ESTIMATE for any other."""
    if most is not None:
        return Basis.RESERVED if most > 1 else Basis.MEASURED
    return Basis.RESERVED if resource.endswith(".shared") else Basis.ESTIMATE


def _unpriced(unpriced: Mapping[tuple[str, str], float]) -> list[str]:
    """Return a sentence for each policy and each reason why some of its time has no price, sorted by both. It has the
    number of GPU-hours and a remedy, unless the reason ends with one. Pairs without a positive time are left out."""
    return [
        f"no price is known for {seconds / 3600:,.1f} GPU-hours of {_pool(policy)}: {why}"
        + ("" if why.endswith(CHOOSE) else f"; {REMEDY}")
        for (policy, why), seconds in sorted(unpriced.items())
        if seconds > 0
    ]


def _pool(policy: str) -> str:
    """Return the policy's name for a message, or `nodes without a policy` if the name is empty."""
    return policy or "nodes without a policy"


def _lacking(
    parts: Mapping[NodePool, float], gpus: Mapping[NodePool, float], seconds: float
) -> Iterator[str]:
    """Yield a sentence for each policy whose parts of the GPU time do not add up, node by node, to the time of its
    GPUs, which means that some series are missing. The differences of all its nodes together must exceed the
    tolerance, which is TOLERANCE or, in a short window, ENDS. `parts` and `gpus` have seconds by node and policy;
    `seconds` is the length of the window."""
    tolerance = max(TOLERANCE, ENDS / seconds)
    pools: dict[str, list[NodePool]] = {}
    for key in sorted(parts.keys() | gpus.keys()):
        pools.setdefault(key[1], []).append(key)
    lacks = "Prometheus lacks some of the meter's series"
    for policy, nodes in sorted(pools.items()):
        off = {key[0]: abs(parts.get(key, 0.0) - gpus.get(key, 0.0)) for key in nodes}
        of_parts, whole = (sum(counts.get(key, 0.0) for key in nodes) for counts in (parts, gpus))
        if sum(off.values()) <= tolerance * whole:
            continue
        if abs(of_parts - whole) > tolerance * whole:
            yield (
                f"the allocated, idle, stranded and transition time of {_pool(policy)} adds up to"
                f" {of_parts / 3600:,.1f} GPU-hours, but its GPUs were metered for {whole / 3600:,.1f}: {lacks}"
            )
        else:  # one node has too little, and another too much
            most = sorted(off, key=lambda node: (-off[node], node))
            yield (
                f"the allocated, idle, stranded and transition time of {_pool(policy)} on"
                f" {some([node or 'a node' for node in most if off[node] > 0])} differs from the"
                f" metered time of the GPUs there by {sum(off.values()) / 3600:,.1f} GPU-hours: {lacks}"
            )


class _Unseen:
    """GPU time that agents counted while Prometheus did not scrape them: a counter starts a day at a higher value than
    it had at the end of the day before.

    If the counter restarted in the meantime, the lost time is unknown and is not counted here.
    """

    def __init__(self) -> None:
        """Begin with no counters seen and nothing lost."""
        self._ended: dict[NodePool, float] = {}
        self._seen: Counter[NodePool] = Counter()
        self._lost: Counter[NodePool] = Counter()

    def add(self, growth: Iterable[Series], firsts: Iterable[Series], lasts: Iterable[Series]) -> None:
        """Add the answers for the next day: the growth of each node's counter, and its lowest and its highest value.
        If the lowest value exceeds the highest one of the last day with that counter, the difference is counted as
        lost."""
        for series in growth:
            self._seen[_node(series)] += round(series.value)
        for series in firsts:
            self._lost[_node(series)] += max(
                0, round(series.value - self._ended.get(_node(series), series.value))
            )
        self._ended |= {_node(series): series.value for series in lasts}

    def describe(self) -> list[str]:
        """Return a list with one sentence about the lost time. Only nodes that lost more than MISSED seconds and more
        than the fraction TOLERANCE of their metered time count; without such a node, the list is empty."""
        lost = {
            key: count
            for key, count in self._lost.items()
            if count > MISSED and count > TOLERANCE * self._seen[key]
        }
        if not lost:
            return []
        names = some(sorted({node or "a node" for node, _ in lost}))
        return [
            f"Prometheus did not scrape {names} for a while, and {sum(lost.values()) / 3600:,.1f} GPU-hours that were"
            " metered during that time are not billed to anyone"
        ]


def _node(series: Series) -> NodePool:
    """Return the names of the node and of the policy that a series is about. Each is empty if the series has no such
    label."""
    return series.labels.get("node", ""), series.labels.get(POLICY, "")


async def _gaps(prometheus: Prometheus, query: MeterQuery) -> list[str]:
    """Return sentences about the parts of the window without data of the meter. Raises Trouble if there is no data at
    all."""
    chosen = braced(query.selector)
    where = f" for {chosen}" if chosen else ""
    return await find_gaps(
        prometheus,
        f"count({GPUS}{chosen})",
        query.start,
        query.end,
        nothing=f"{prometheus.place.where} has no data from the meter in this window ({GPUS}){where}: does it scrape"
        " the agents? In the chart: monitoring.podMonitor.enabled=true, with the labels by which your Prometheus"
        " selects PodMonitors",
        lost="usage during that time is only partly known",
    )


def _refuse_doubles(twice: Iterable[Series]) -> None:
    """Raise Trouble for the first node, by name, that was metered twice at one time. `twice` has all series of such
    nodes on that day. Returns without raising if there are none, or if their series do not differ in any label."""
    by_pool: dict[NodePool, list[Mapping[str, str]]] = {}
    for each in twice:
        by_pool.setdefault(_node(each), []).append(each.labels)
    for (node, _), series in sorted(by_pool.items()):
        labels = sorted({name for each in series for name in each} - {"__name__"})
        differ = {label: sorted({each.get(label, "") for each in series}) for label in labels}
        _refuse(node, {label: values for label, values in differ.items() if len(values) > 1})


def _refuse(node: str, differ: Mapping[str, Sequence[str]]) -> None:
    """Raise Trouble for a node that was metered twice. `differ` has the values of the labels in which its series
    differ; the remedy depends on the label that is the most likely reason. Returns without raising if `differ` is
    empty."""
    # Labels of a target also differ between an agent and its successor, so any other label is the likelier reason.
    label = min(
        differ, key=lambda name: (name in TARGET, name in OF_PARTS, name not in CHOSEN, name), default=""
    )
    if not label:
        return
    values = ", ".join(differ[label][:5])
    if not node:
        raise Trouble(
            f"some series of the meter have no node label and differ in the label {label} ({values}): two nodes cannot"
            " be distinguished from one node that is scraped twice. The chart's monitors set the node label from"
            " __meta_kubernetes_pod_node_name; make your scrape configuration do the same"
        )
    twice = f"{node} would be billed twice: its series differ in the label {label} ({values})"
    if label in TARGET and label not in CHOSEN:
        others = "".join(
            f", and {name} ({', '.join(differ[name][:5])})" for name in sorted(differ) if name != label
        )
        raise Trouble(
            f"{twice}{others}, and several were scraped at the same time, for example because two agents run there or"
            " one"
            " is scraped at two addresses. Stop one, then use a window that begins later, such as --window 1d. Do not"
            " select by these labels: they may change when an agent restarts"
        )
    if label in OF_PARTS:
        raise Trouble(
            f"{twice}, for example because two installations of the agent run there. Remove one, and use a window in"
            " which"
            " there was only one, such as --window 1d: series of tenants cannot be selected by that label"
        )
    escaped = differ[label][0].replace("\\", r"\\").replace('"', r"\"")
    matcher = f'{label}="{escaped}"'
    raise Trouble(
        f"{twice}, for example because two Prometheus servers scrape the same agents, or one does so twice. Choose one:"
        f" --selector {quote(matcher)}"
    )
