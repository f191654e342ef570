"""Read the meter (docs/adr/0043-the-meter.md) from Prometheus for a window: who used how much GPU time at which price,
and what is missing.

Each query covers a few days and has a value for each of them, so that a price applies only to the days on which it was
exported, and no answer is large. On a whole day, a node's counters are only read at both ends if these show that no
counter restarted. Otherwise, `increase` extrapolates a series to both ends, bridges gaps, and handles counters that
restarted.
"""

import math
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import partial
from itertools import chain, pairwise
from shlex import quote

from gpusharing.planning.vocabulary.lengths import some
from kubectl_gpusharing.shell.troubles import Trouble
from kubectl_gpusharing.usage.prometheus.client import Prometheus, Series, side_by_side
from kubectl_gpusharing.usage.prometheus.matchers import TARGET, braced, matcher_of, nodes_of
from kubectl_gpusharing.usage.prometheus.windows import DAY, LOOKBACK, Answers, Days, batched, days, find_gaps
from kubectl_gpusharing.usage.read import queries, tenants
from kubectl_gpusharing.usage.read.absences import Sightings, find_losses, read_sightings
from kubectl_gpusharing.usage.read.pricing import (
    CHOOSE,
    MOST,
    NO_NUMBER,
    REMEDY,
    SOURCES,
    Prices,
    read_prices,
)
from kubectl_gpusharing.usage.read.queries import COUNTERS, GPUS, NAMESPACE, OF_PARTS, POLICY, MeterQuery
from kubectl_gpusharing.usage.read.series import exported_label
from kubectl_gpusharing.usage.reckon.bills import MICROS, Basis, Cell, Part, Price

TOLERANCE = 0.01
"""How far the sum of the parts may differ from a pool's GPU time, as a fraction of that time. Series that start and
end within a day cause a smaller difference."""
ENDS = 60.0
"""How far the parts may differ from the whole, in seconds of one GPU, even in a short window: `increase` extends a
series that starts or ends within the window by up to a scrape interval of 30 s at either end, but not the series of
the pool."""
ROUNDING = 1.0
"""How far the parts of a node may differ from the whole, in seconds, if both are differences of counters. An agent
computes its counters from the same turns, so only the rounding of sums differs, by less than 0.1 s in a year of 8
GPUs."""
CHOSEN = frozenset(("container", "endpoint"))
"""Labels of a target that stay the same when an agent restarts, so that they can select series."""
FEW = 8
"""How many nodes are read first to see whether Prometheus was always there: names of so many fit into a URL."""
AHEAD = 2
"""How many groups of days are queried at the same time, so that a Prometheus with several cores uses them."""
NodePool = tuple[str, str]
"""The name of a node, and the name of the policy that owned it."""
Unpriced = defaultdict[tuple[str, str], float]
"""Seconds of GPUs without a price, by policy and by the reason why there is none."""


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
    used: tenants.Used = field(default_factory=dict)
    """How much of what they held tenants used."""


async def read_metered(
    prometheus: Prometheus, query: MeterQuery, progress: Callable[[str], None]
) -> MeteredPools:
    """Read the meter's series for the window of `query` and return the time by cell, with everything known to be
    missing, which includes implausible values, which are left out, and warnings of Prometheus. `progress` is called
    with each new sentence about how much has been read. If only the use of what was held cannot be read, a remark says
    so. Raises Trouble if another query fails, if Prometheus has no data of the meter in the window, or if a node was
    metered twice. In a bill by a label, also raises Trouble if GPUs were held but no namespace had the label on any
    day."""
    metered = MeteredPools(missing=await _gaps(prometheus, query))
    unpriced = Unpriced(float)
    parts, gpus = defaultdict[NodePool, float](float), defaultdict[NodePool, float](float)
    labelled, unlabelled, teams, rivals = False, 0, tenants.Teams(query.by), set[str]()
    sightings: list[Sightings] = []
    faults: dict[str, None] = {}
    async for day, seen in _read_all(prometheus, query, progress):
        day.update({name: list(_credible(day[name], faults)) for name in COUNTERS})
        prices, teams = read_prices(day, query.currency), tenants.read_teams(day, query.by)
        _sum(parts, chain.from_iterable(day[part] for part in Part))
        _sum(gpus, day["gpus"])
        day.update(tenants.divide(day))
        holders = _add(metered, day, prices, unpriced, teams)
        rivals |= teams.rivals & holders
        faults |= dict.fromkeys(prices.faults)
        metered.simulated |= nodes_of(day["simulated"]) & seen.nodes
        sightings.append(seen)
        unlabelled += bool(queries.label_of(query.by) and holders and not teams.last)
        labelled |= bool(teams.last)
    metered.missing += faults
    metered.missing += tenants.describe_labels(unlabelled, rivals, query.by, never=not labelled)
    metered.missing += _unpriced(unpriced)
    metered.missing += _lacking(parts, gpus, query.end - query.start)
    missing, remarks = await find_losses(prometheus, query, sightings)
    metered.missing += missing
    metered.remarks += remarks
    try:
        metered.used = await tenants.read_used(prometheus, query, dict(gpus.keys()), teams)
    except Trouble as trouble:
        metered.remarks.append(f"how much was used of what was held is unknown: {trouble}")
    metered.missing += [f"Prometheus warns: {warning}" for warning in sorted(prometheus.warnings)]
    if any(tenants.OTHERS in (cell.tenant, cell.policy) for cell in metered.cells):
        metered.remarks.append(
            f"{tenants.OTHERS} is the time of further tenants or policies on a node that already had 128 combinations"
            " of policy, namespace and resource, or 16 policies; it is unknown who used it"
        )
    return metered


def _sum(counts: defaultdict[NodePool, float], answer: Iterable[Series]) -> None:
    """Add the newest value of each series of the answer to `counts` under the node and policy of its series."""
    for series in answer:
        counts[_node(series)] += series.value


async def _read_all(
    prometheus: Prometheus, query: MeterQuery, progress: Callable[[str], None]
) -> AsyncIterator[tuple[Answers, Sightings]]:
    """Yield, for each stretch of the window, its answers and which nodes were seen in it, oldest first. AHEAD groups of
    days are queried at the same time; before each, `progress` is called with a sentence about how much has been read.
    Raises Trouble as `_read_days` does."""
    for batch in batched(days(query.start, query.end), AHEAD):
        share = (batch[0].start - query.start) / (query.end - query.start)
        progress(f"Reading from {prometheus.place.where}: {share:.0%}")
        for answers in await side_by_side(*(_read_days(prometheus, query, group) for group in batch)):
            for day in answers:
                yield day


async def _read_days(
    prometheus: Prometheus, query: MeterQuery, group: Days
) -> list[tuple[Answers, Sightings]]:
    """Return the answers for each stretch of `group`, and which nodes were seen in it. Nodes that may have been absent,
    were in transition, or whose growth may be wrong are queried again (`close_queries`); if their names are too long
    for a query, all nodes are, one stretch after another. The devices of all other nodes are those at the end of
    `group`. If a node has reservations of KAI-Scheduler, the pods that used these GPUs are queried too. Raises Trouble
    if a query fails or a node was metered twice."""
    days = await group.read(prometheus, queries.queries_of(query, group))
    growth, unsteady = await _read_growth(prometheus, query, group)
    simulated = queries.simulated_query(query.selector, round(LOOKBACK))
    now = {**queries.device_queries(query), "simulated": simulated}
    at_end = await side_by_side(*(prometheus.instant(promql, group.ends[-1]) for promql in now.values()))
    # Where no node changed, its devices are those at the end.
    changed = nodes_of(series for day in growth for series in day["transition"] if series.value > 0)
    others = changed.union(unsteady, *(nodes_of(day["suspects"]) for day in days))
    close_ups = [Answers(list) for _ in days]
    if others:
        close = queries.close_queries(query, group.seconds, matcher_of(others))
        if "simulated" not in growth[0]:  # not read by `increase`
            close |= queries.growth_queries(query, group.seconds, matcher_of(others))
        close_ups = await (group.read if matcher_of(others) else group.read_apart)(prometheus, close)
    found = []
    for day, far, near, end in zip(days, growth, close_ups, group.ends, strict=True):
        day.update(_combined(far, near, others))
        reserved = nodes_of(
            series for series in day["held"] if exported_label(series, NAMESPACE) in tenants.RESERVATIONS
        )
        if reserved:
            users = queries.users_query(query, group.seconds, matcher_of(reserved))
            day["users"] = await prometheus.instant(users, end)
        for name, answer in zip(now, at_end, strict=True):
            day[name] = [*answer, *day[name]]
        _refuse_doubles(day["twice"])
        found.append((day, await read_sightings(prometheus, query, day, end - group.seconds, end)))
    return found


def _combined(far: Answers, near: Answers, nodes: Set[str]) -> Answers:
    """Return the answers of both. If both have the growth of a counter, the result has that of `near` for `nodes`, and
    that of `far` for all others. Any other answer that both have is that of `far`. Neither argument is changed."""
    answers = near | far
    for name in COUNTERS:
        if name in near:
            answers[name] = [series for series in far[name] if series.node not in nodes]
            answers[name] += [series for series in near[name] if series.node in nodes]
    return answers


async def _read_growth(
    prometheus: Prometheus, query: MeterQuery, group: Days
) -> tuple[list[Answers], frozenset[str]]:
    """Return how much each of COUNTERS grew in each stretch of `group`, by its name, and the nodes for which that may
    be wrong (`find_unsteady`). On whole days, counters are only read at both ends. In other stretches, and if no node
    has a counter at one of the ends, `increase` is queried: then the second part is empty, and the first also has
    `simulated`, the nodes with SIMULATED GPUs. Raises Trouble if a query fails."""
    times = (group.start, *group.ends) if group.seconds == DAY else ()
    marks = await side_by_side(*(prometheus.instant(queries.mark_query(query), at) for at in times))
    nodes = [
        nodes_of(one for one in mark if one.labels.get("what") != queries.INFO_OF_GPUS) for mark in marks
    ]
    # A Thanos that keeps raw samples for a short time only answers nothing about an older moment.
    if not nodes or not all(nodes):
        return await group.read(prometheus, queries.growth_queries(query, group.seconds)), frozenset()
    growth = [find_growth(before, after) for before, after in pairwise(marks)]
    there = [first | last for first, last in pairwise(nodes)]
    return growth, frozenset[str]().union(*map(find_unsteady, there, growth))


def find_growth(before: Iterable[Series], after: Iterable[Series]) -> Answers:
    """Return the series of `after` by their label `what` (`mark_query`). Each has the difference to its value in
    `before`, which is 0 if it is not there, but the number of GPUs (INFO_OF_GPUS) is that of `after`. Series are the
    same if all labels are. Series that only `before` has are left out."""
    old = {frozenset(series.labels.items()): series.value for series in before}
    growth: Answers = defaultdict(list)
    for series in after:
        name, (at, value) = series.labels.get("what", ""), series.points[-1]
        less = 0.0 if name == queries.INFO_OF_GPUS else old.get(frozenset(series.labels.items()), 0.0)
        growth[name].append(Series(series.labels, ((at, value - less),)))
    return growth


def find_unsteady(nodes: Iterable[str], growth: Answers) -> set[str]:
    """Return those of `nodes` whose counters may have grown by more than the `growth` of a day shows (`find_growth`),
    because a counter restarted or vanished. Such a counter's growth is too low. It is right if the GPU time of the node
    is a day of each of its GPUs, give or take ENDS for each, and the parts add up to that time, give or take ROUNDING.
    A node whose number of GPUs is unknown at the end of the day is included."""
    gpus, whole, parts = (defaultdict[str, float](float) for _ in range(3))
    for name, answer in growth.items():
        for series in answer:
            sums = gpus if name == queries.INFO_OF_GPUS else whole if name == "gpus" else parts
            sums[series.node] += series.value
    return {
        node
        for node in nodes
        if not gpus[node]
        or abs(whole[node] - DAY * gpus[node]) > ENDS * gpus[node]
        or abs(parts[node] - whole[node]) > ROUNDING
    }


def _most_slices(answer: Iterable[Series]) -> dict[tuple[str, str], float]:
    """Return the highest number of slices that a device has in the answer, by node and resource. Values that are
    infinite or not a number are ignored."""
    most: dict[tuple[str, str], float] = {}
    for series in answer:
        key = series.node, series.labels.get("resource", "")
        if math.isfinite(series.value):
            most[key] = max(series.value, most.get(key, 0.0))
    return most


async def read_price(prometheus: Prometheus, query: MeterQuery, nodes: Iterable[str]) -> Price | None:
    """Return the mean price of a GPU on these nodes in the window of `query`, with the source of the first node's
    price. Each node counts once, however many GPUs it has. None if there are no nodes, if the price of one is unknown
    or ambiguous, or if they have prices in several currencies. Raises Trouble if a query fails."""
    window = Days((query.end,), round(query.end - query.start))
    promql = queries.queries_of(query, window) | queries.growth_queries(query, window.seconds)
    promql |= queries.device_queries(query, span=f"[{window.seconds}s]")
    names = (*SOURCES, "cards", "rivals", "gpus")
    (answers,) = await window.read(prometheus, {name: promql[name] for name in names})
    known, policies = read_prices(answers, query.currency), dict(map(_node, answers["gpus"]))
    found = [known.find(node, policies.get(node, "")) for node in nodes]
    exact = [price for price in found if isinstance(price, Price)]
    if not exact or len(exact) < len(found) or len({price.currency for price in exact}) > 1:
        return None
    return replace(exact[0], amount=sum((price.amount for price in exact), Fraction()) / len(exact))


def _credible(answer: Iterable[Series], faults: dict[str, None]) -> Iterator[Series]:
    """Yield the series whose value is plausible: between -MOST and MOST. For each other series, add a sentence to the
    keys of `faults`."""
    for series in answer:
        if abs(series.value) <= MOST:
            yield series
        else:
            why = NO_NUMBER if math.isnan(series.value) else "no node has that many GPUs"
            value = f"the value {series.value:g} s of a meter counter on {series.node or 'a node'}"
            faults[f"{value} is ignored: {why}"] = None


def _add(
    metered: MeteredPools, day: Answers, prices: Prices, unpriced: Unpriced, teams: tenants.Teams
) -> set[str]:
    """Add the time of a day to the cells of `metered`; a negative time counts as 0. Held time has the basis in the
    label `basis` if its series has one (`tenants.divide`), else that of `_basis`; other time has neither a basis nor a
    tenant. Seconds without a price, even negative ones, are also added to `unpriced`. Return the namespaces with a
    positive time of held GPUs."""
    slices = _most_slices(day["shared"])
    for part in Part:
        for series in day[part]:
            (node, policy), resource = _node(series), series.labels.get("resource", "")
            price: Price | str | None = prices.find(node, policy)
            if isinstance(price, str):
                unpriced[policy, price] += series.value
                price = None
            tenant, basis = "", Basis.NONE
            if part is Part.HELD:
                tenant = teams.tenant_of((exported_label(series, NAMESPACE), series.labels.get("pod", "")))
                how = series.labels.get("basis")
                basis = Basis(how) if how else _basis(resource, slices.get((node, resource)))
            cell = Cell(policy, tenant, part, resource, basis, price)
            metered.cells[cell] += max(0, round(series.value * MICROS))
    return {exported_label(series, NAMESPACE) for series in day[Part.HELD] if series.value > 0}


def _basis(resource: str, most: float | None) -> Basis:
    """Return how the time of a tenant was determined: RESERVED if the device has several slices, MEASURED if it has
    one. `most` is the number of slices. If it is unknown (None), the result is RESERVED for a resource whose name
    ends in `.shared`, and ESTIMATE for any other."""
    if most is not None:
        return Basis.RESERVED if most > 1 else Basis.MEASURED
    return Basis.RESERVED if resource.endswith(".shared") else Basis.ESTIMATE


def _unpriced(unpriced: Unpriced) -> list[str]:
    """Return a sentence for each policy and each reason why some of its time has no price, sorted by both. It has the
    number of GPU-hours and a remedy, unless the reason ends with one. Pairs without a positive time are left out."""
    return [
        f"no price is known for {seconds / 3600:,.1f} GPU-hours of {policy or 'nodes without a policy'}: {why}"
        + ("" if why.endswith(CHOOSE) else f"; {REMEDY}")
        for (policy, why), seconds in sorted(unpriced.items())
        if seconds > 0
    ]


def _lacking(
    parts: Mapping[NodePool, float], gpus: Mapping[NodePool, float], seconds: float
) -> Iterator[str]:
    """Yield a sentence for each policy whose parts of the GPU time do not add up, node by node, to the time of its
    GPUs, which means that some series are missing. The differences of all its nodes together must exceed a fraction of
    the GPU time: TOLERANCE or, if that is more, ENDS divided by `seconds`, the length of the window. `parts` and `gpus`
    have seconds by node and policy."""
    tolerance = max(TOLERANCE, ENDS / seconds)
    pools = defaultdict[str, list[NodePool]](list)
    for key in sorted(parts.keys() | gpus.keys()):
        pools[key[1]].append(key)
    lacks = "some of the series that this sum needs are missing in Prometheus"
    for policy, nodes in sorted(pools.items()):
        off = {key[0]: abs(parts.get(key, 0.0) - gpus.get(key, 0.0)) for key in nodes}
        of_parts, whole = (sum(counts.get(key, 0.0) for key in nodes) for counts in (parts, gpus))
        if sum(off.values()) <= tolerance * whole:
            continue
        pool = policy or "nodes without a policy"
        time = f"the allocated, idle, stranded and transition time of {pool}"
        if abs(of_parts - whole) > tolerance * whole:
            hours = f"{of_parts / 3600:,.1f} GPU-hours, but its GPUs were metered for {whole / 3600:,.1f}"
            yield f"{time} adds up to {hours}: {lacks}"
        else:  # one node has too little, and another too much
            most = sorted(off, key=lambda node: (-off[node], node))
            yield (
                f"{time} on {some([node or 'a node' for node in most if off[node] > 0])} differs from the metered time"
                f" of the GPUs there by {sum(off.values()) / 3600:,.1f} GPU-hours: {lacks}"
            )


def _node(series: Series) -> NodePool:
    """Return the names of the node and of the policy that a series is about. Each is empty if the series has no such
    label."""
    return series.node, series.labels.get(POLICY, "")


async def _gaps(prometheus: Prometheus, query: MeterQuery) -> list[str]:
    """Return sentences about the parts of the window without data of the meter (`find_gaps`). Up to FEW nodes that were
    there at both ends are read first. If at each moment one of them was seen, the result is empty and the others are
    not read. Raises Trouble if there is no data at all, or if a query fails."""
    chosen = braced(query.selector)
    where = f" for {chosen}" if chosen else ""
    nothing = (
        f"{prometheus.place.where} has no data from the meter in this window ({GPUS}){where}: does it scrape the"
        " agents? In the chart: monitoring.podMonitor.enabled=true, with the labels by which your Prometheus selects"
        " PodMonitors"
    )
    read = partial(find_gaps, nothing=nothing, lost="usage during that time is only partly known")
    offset = f" offset {query.end - query.start:.0f}s"
    both = " and ".join(f"group by (node) ({GPUS}{chosen}{moved})" for moved in ("", offset))
    if few := nodes_of(await prometheus.instant(f"topk({FEW}, {both})", query.end)):
        seen = f"count({GPUS}{braced(query.selector, matcher_of(few))})"
        if not await read(prometheus, seen, query.start, query.end):
            return []
    return await read(prometheus, f"count({GPUS}{chosen})", query.start, query.end)


def _refuse_doubles(twice: Iterable[Series]) -> None:
    """Raise Trouble for the first node and policy, by name, that was metered twice at one time by series with different
    labels. `twice` has all series of such nodes on that day. Returns without raising if there are none, or if the
    series of one node and policy do not differ in any label."""
    by_pool = defaultdict[NodePool, list[Mapping[str, str]]](list)
    for each in twice:
        by_pool[_node(each)].append(each.labels)
    for (node, _), series in sorted(by_pool.items()):
        labels = sorted({name for each in series for name in each} - {"__name__"})
        differ = {label: sorted({each.get(label, "") for each in series}) for label in labels}
        _refuse(node, {label: values for label, values in differ.items() if len(values) > 1})


def _refuse(node: str, differ: Mapping[str, Sequence[str]]) -> None:
    """Raise Trouble for a node that was metered twice; an empty name means that the series have no label `node`, which
    the message then says. `differ` has the values of the labels in which its series differ; the remedy depends on the
    label that is the most likely reason: one that is neither in TARGET nor in OF_PARTS if there is one, otherwise one
    of OF_PARTS, then of CHOSEN, then any other, and of equally likely ones the first by name. Returns without raising
    if `differ` is empty."""
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
        others = [f", and {name} ({', '.join(differ[name][:5])})" for name in sorted(differ) if name != label]
        raise Trouble(
            f"{twice}{''.join(others)}, and several were scraped at the same time, for example because two agents run"
            " there or one is scraped at two addresses. Stop one, then use a window that begins later, such as --window"
            " 1d. Do not select by these labels: they may change when an agent restarts"
        )
    if label in OF_PARTS:
        raise Trouble(
            f"{twice}, for example because two installations of the agent run there. Remove one, and use a window in"
            " which there was only one, such as --window 1d: series of tenants cannot be selected by that label"
        )
    escaped = differ[label][0].replace("\\", r"\\").replace('"', r"\"")
    matcher = f'{label}="{escaped}"'
    raise Trouble(
        f"{twice}, for example because two Prometheus servers scrape the same agents, or one does so twice. Choose one:"
        f" --selector {quote(matcher)}"
    )
