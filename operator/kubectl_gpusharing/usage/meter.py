"""What did each tenant hold and use of each pool, at which price, and what is missing?

The meter (docs/adr/0043-the-meter.md) is read from Prometheus. Each query covers a few days and has a value for each of
them, so that a price applies only to the days on which it was exported, and no answer is large. On a whole day, a
node's counters are only read at both ends if these show that no counter restarted. Otherwise, `increase` extrapolates a
series to both ends, bridges gaps, and handles restarts.
"""

import math
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from itertools import chain, pairwise
from math import inf
from shlex import quote

from gpusharing.api.names import RESOURCE_GPU
from gpusharing.planning.vocabulary.lengths import counted, some
from kubectl_gpusharing.shell.session import side_by_side
from kubectl_gpusharing.shell.troubles import Trouble
from kubectl_gpusharing.usage import queries
from kubectl_gpusharing.usage.absences import Sightings, find_losses, read_sightings
from kubectl_gpusharing.usage.bills import (
    CHOOSE,
    MICROS,
    MOST,
    NO_NUMBER,
    REMEDY,
    SOURCES,
    Basis,
    Bill,
    Cell,
    Part,
    Price,
    Prices,
    make_bill,
    read_prices,
)
from kubectl_gpusharing.usage.prometheus import PARALLEL, Prometheus, Series, nodes_of
from kubectl_gpusharing.usage.queries import (
    COUNTERS,
    GPUS,
    NAMESPACE,
    OF_PARTS,
    POD,
    POLICY,
    TARGET,
    MeterQuery,
    braced,
    label_of,
    labels_of,
    matcher_of,
    use_query,
)
from kubectl_gpusharing.usage.windows import DAY, LOOKBACK, Answers, Days, batched, days, find_gaps
from kubectl_gpusharing.usage.workloads import Pod

RESERVATIONS = frozenset(("kai-resource-reservation", "runai-reservation"))
"""The default namespaces of KAI-Scheduler's reservation pods. They are from kai-scheduler/KAI-Scheduler v0.17.0,
pkg/common/constants/constants.go; until v0.6 the second one (docs/migrationguides/v0.6.0)."""
FEWEST, MOST_LOOKS, NODES_AT_ONCE = 13, 37, 4_000
"""At how many moments the use is read, so that about NODES_AT_ONCE nodes are read in all. FEWEST and MOST_LOOKS are
prime, so that the moments lie at many times of day."""
OTHERS = "_others"
"""The namespace or policy of time that exceeds the meter's bounds (gpusharing/agent/meter.py)."""
Used = Mapping[tuple[str, str, str], float]
"""Which part of the devices that a tenant held it used, by tenant (or policy), resource, and `memory` or `sm`. What is
unknown is missing. The value is above 1 if pods used more than their part."""


def find_tenant(by: str, teams: Mapping[str, str], pod: Pod) -> str:
    """Return who is billed for the time of a pod; empty if nobody is known, and in a bill by policy.

    `teams` has the value of the namespace label `by`, by namespace.
    """
    namespace, name = pod
    if by == POLICY:
        return ""
    if by == POD:
        return f"{namespace}/{name or '(unknown)'}"
    return namespace if by == NAMESPACE or namespace == OTHERS else teams.get(namespace, "")


def read_teams(answers: Mapping[str, Iterable[Series]], by: str) -> tuple[dict[str, str], Set[str]]:
    """Return the value of the label `by` for each namespace, and the namespaces with rival values.

    A namespace may have been deleted since. The value that was seen last wins and, of several, the last by name.
    """
    label = label_of(by)
    ordered = sorted(answers["labels"], key=lambda series: (series.value, series.label(label)))
    last = {series.exported(NAMESPACE): series.label(label) for series in ordered}
    rivals = frozenset(series.exported(NAMESPACE) for series in answers["rival labels"])
    return {name: "" if name in rivals else value for name, value in last.items()}, rivals


def describe_labels(days: int, rivals: Set[str], label: str, *, never: bool) -> Iterator[str]:
    """Yield sentences about days on which GPUs were held and no namespace had the label, and about rival values.

    Raises Trouble if no namespace ever had it.
    """
    if days and never:
        raise Trouble(
            f"no namespace in Prometheus has the label {label}. kube-state-metrics exports only the"
            f" labels that a flag lists: --metric-labels-allowlist=namespaces=[{label}]. Otherwise use --by namespace"
        )
    if days:
        yield (
            f"on {counted(days, 'day')}, no namespace in Prometheus had the label {label}: usage on"
            f" {'those days' if days > 1 else 'that day'} is listed under (no {label})"
        )
    if rivals:
        several = len(rivals) > 1
        yield (
            f"{'namespaces' if several else 'namespace'} {some(sorted(rivals))} {'have' if several else 'has'} several"
            f" values of {label} at once, for example because {'they exist' if several else 'it exists'} in several"
            f" clusters, so {'their' if several else 'its'} usage is listed under (no {label}): {CHOOSE}"
        )


def divide(answers: Mapping[str, Iterable[Series]]) -> dict[str, list[Series]]:
    """Return the held and the stranded time of one stretch, divided among pods where possible.

    KAI-Scheduler and HAMi divide whole GPUs among pods by themselves. KAI holds each of these GPUs with a pod of its
    own; each is divided by used memory, and the time of one that nobody uses stays with the reservation. HAMi's device ids are not those of GPUs, so the meter counts its GPUs as
    stranded; they are divided by allocations, and then count as held. All other devices are divided by slices.
    """
    slices, users = weigh(answers["slices"], "resource"), weigh(answers["users"])
    fractions, whole = weigh(answers["fractions"]), defaultdict[str, float](float)
    reserved = {series.node: series.value for series in answers["reserved"]}
    for series in answers[Part.STRANDED]:
        whole[series.node] += series.value
    held: list[Series] = []
    stranded: list[Series] = []
    for series in answers[Part.HELD]:
        namespace, resource = series.exported(NAMESPACE), series.label("resource")
        if namespace in RESERVATIONS:
            weights = users.get((series.node,), {})
            used, estimate = sum(weights.values()), {"basis": Basis.ESTIMATE}
            most = max(used, reserved.get(series.node, 0.0))
            held += (parts := _split(series, weights, most, estimate))
            if not parts:
                held.append(series)
            elif (rest := series.value * (1 - used / most)) > ROUNDING:
                held.append(series.changed(rest, **estimate))
            continue
        among = slices.get((series.node, resource), {})
        weights = {pod: each for pod, each in among.items() if pod[0] == namespace}
        held += _split(series, weights, sum(weights.values()), {}) or [series]
    for series in answers[Part.STRANDED]:
        weights = fractions.get((series.node,), {})
        most = max(sum(weights.values()), whole[series.node])
        parts = _split(series, weights, most, {"basis": Basis.RESERVED, "resource": RESOURCE_GPU})
        held += parts
        stranded.append(series.changed(series.value - sum(part.value for part in parts)))
    return {Part.HELD: held, Part.STRANDED: stranded}


def weigh(answer: Iterable[Series], *labels: str) -> dict[tuple[str, ...], dict[Pod, float]]:
    """Return the values of an answer, summed by the node and these labels, and then by the pod."""
    weights: dict[tuple[str, ...], dict[Pod, float]] = {}
    for series in answer:
        pod = series.pod
        if pod is not None and 0 < series.value < inf:
            key = tuple(series.exported(label) for label in ("node", *labels))
            weights.setdefault(key, defaultdict(float))[pod] += series.value
    return weights


def _split(series: Series, weights: Mapping[Pod, float], whole: float, more: Mapping[str, str]) -> list[Series]:
    return [
        series.changed(series.value * each / whole, **more, exported_namespace="", namespace=namespace, pod=name)
        for (namespace, name), each in weights.items()
    ]


async def read_used(
    prometheus: Prometheus, query: MeterQuery, nodes: Mapping[str, str], tenant_of: Callable[[Pod], str]
) -> Used:
    """Return which part of what it held each tenant used, on average; `nodes` has the policy of each node."""
    looks = min(MOST_LOOKS, max(FEWEST, NODES_AT_ONCE // max(1, len(nodes))))
    step = (query.end - query.start) / looks
    # The series of pods do not name the policy.
    promql = use_query(query, matcher_of(nodes) if POLICY in labels_of(query.selector) else "")
    sums = defaultdict[tuple[str, str, str], float](float)
    for batch in batched([query.start + step * (look + 0.5) for look in range(looks)], PARALLEL):
        answers = await side_by_side(*(prometheus.instant(promql, at) for at in batch))
        for series in chain.from_iterable(answers):
            pod = series.pod or (series.exported(NAMESPACE), "")
            tenant = tenant_of(pod) or nodes.get(series.node, "")
            sums[tenant, series.label("resource"), series.label("what")] += series.value
    return {
        (tenant, resource, what): amount / held
        for (tenant, resource, what), amount in sums.items()
        if (held := sums.get((tenant, resource, f"{what} held"), 0.0)) > 0
    }


TOLERANCE = 0.01
"""How far the sum of the parts may differ, as a fraction of a pool's GPU time: series start and end in a day."""
ENDS = 60.0
"""How far the parts may differ from the whole, in seconds of one GPU. `increase` extends a series that starts or ends
within the window by up to a scrape interval of 30 s at either end, but not the series of the pool."""
ROUNDING = 1.0
"""How far the parts of a node may differ from the whole, in seconds, if both are differences of counters. An agent
computes its counters from the same turns, so only rounding differs, by less than 0.1 s in a year of 8 GPUs."""
CHOSEN = frozenset(("container", "endpoint"))
"""Labels of a target that stay the same when an agent restarts, so that they can select series."""
FEW = 8
"""How many nodes are read first to see whether Prometheus was always there. The names of so many fit into a URL."""
AHEAD = 2
"""How many groups of days are queried concurrently, so that a Prometheus with several cores uses them."""
NodePool = tuple[str, str]
"""The name of a node, and the name of the policy that owned it."""


@dataclass(frozen=True, slots=True)
class CostReport:
    """A bill, with everything that a reader must know about it."""

    where: str
    query: MeterQuery
    bill: Bill
    missing: Sequence[str]
    remarks: Sequence[str]
    simulated: Sequence[str]
    used: Used


async def read_bill(prometheus: Prometheus, query: MeterQuery, progress: Callable[[str], None]) -> CostReport:
    """Read the bill for the window of `query`; `progress` gets sentences about how much has been read.

    Raises Trouble for a failed query, no data, a node metered twice, or a label that no namespace has.
    """
    missing = await _gaps(prometheus, query)
    cells, simulated = Counter[Cell](), set[str]()
    unpriced = defaultdict[tuple[str, str], float](float)  # seconds by policy, and by the reason
    parts, gpus = defaultdict[NodePool, float](float), defaultdict[NodePool, float](float)
    labelled, unlabelled, rivals = False, 0, set[str]()
    tenant_of = partial(find_tenant, query.by, {})
    sightings: list[Sightings] = []
    faults: dict[str, None] = {}
    async for day, seen in _read_all(prometheus, query, progress):
        for name in COUNTERS:
            for series in day[name]:
                if not abs(series.value) <= MOST:
                    why = NO_NUMBER if math.isnan(series.value) else "no node has that many GPUs"
                    value = f"the value {series.value:g} s of a meter counter on {series.node or 'a node'}"
                    faults[f"{value} is ignored: {why}"] = None
            day[name] = [series for series in day[name] if abs(series.value) <= MOST]
        prices, (teams, several) = read_prices(day, query.currency), read_teams(day, query.by)
        tenant_of = partial(find_tenant, query.by, teams)
        for series in chain.from_iterable(day[part] for part in Part):
            parts[_node(series)] += series.value
        for series in day["gpus"]:
            gpus[_node(series)] += series.value
        day.update(divide(day))
        _count(cells, day, prices, unpriced, tenant_of)
        holders = {series.exported(NAMESPACE) for series in day[Part.HELD] if series.value > 0}
        rivals |= several & holders
        faults |= dict.fromkeys(prices.faults)
        simulated |= nodes_of(day["simulated"]) & seen.nodes
        sightings.append(seen)
        unlabelled += bool(queries.label_of(query.by) and holders and not teams)
        labelled |= bool(teams)
    missing += [
        *faults,
        *describe_labels(unlabelled, rivals, query.by, never=not labelled),
        *(
            f"no price is known for {seconds / 3600:,.1f} GPU-hours of {policy or 'nodes without a policy'}: {why}"
            + ("" if why.endswith(CHOOSE) else f"; {REMEDY}")
            for (policy, why), seconds in sorted(unpriced.items())
            if seconds > 0
        ),
        *_lacking(parts, gpus, query.end - query.start),
    ]
    lost, remarks = await find_losses(prometheus, query, sightings)
    missing += lost
    remarks = [*filter(None, (prometheus.endpoint.remark,)), *remarks]
    used: Used = {}
    try:
        used = await read_used(prometheus, query, dict(gpus.keys()), tenant_of)
    except Trouble as trouble:
        remarks.append(f"how much was used of what was held is unknown: {trouble}")
    missing += [f"Prometheus warns: {warning}" for warning in sorted(prometheus.warnings)]
    if any(OTHERS in (cell.tenant, cell.policy) for cell in cells):
        remarks.append(
            f"{OTHERS} is the time of further tenants or policies on a node that already had 128 combinations"
            " of policy, namespace and resource, or 16 policies; it is unknown who used it"
        )
    bill = make_bill(cells, by_policy=query.by == POLICY)
    if len(currencies := [total.currency for total, _ in bill.totals if total.currency]) > 1:
        remarks.append(
            f"prices are in several currencies ({', '.join(currencies)}); amounts are not converted, and each currency"
            " has its own total"
        )
    return CostReport(prometheus.endpoint.where, query, bill, missing, remarks, sorted(simulated), used)


async def _read_all(
    prometheus: Prometheus, query: MeterQuery, progress: Callable[[str], None]
) -> AsyncIterator[tuple[Answers, Sightings]]:
    for batch in batched(days(query.start, query.end), AHEAD):
        share = (batch[0].start - query.start) / (query.end - query.start)
        progress(f"Reading from {prometheus.endpoint.where}: {share:.0%}")
        for answers in await side_by_side(*(_read_days(prometheus, query, group) for group in batch)):
            for day in answers:
                yield day


async def _read_days(prometheus: Prometheus, query: MeterQuery, group: Days) -> list[tuple[Answers, Sightings]]:
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
        day.update(near | far)
        for name in COUNTERS:
            if name in near:
                day[name] = [series for series in far[name] if series.node not in others]
                day[name] += [series for series in near[name] if series.node in others]
        reserved = nodes_of(series for series in day["held"] if series.exported(NAMESPACE) in RESERVATIONS)
        if reserved:
            of_kai = queries.reservation_queries(query, group.seconds, matcher_of(reserved), sorted(RESERVATIONS))
            for name, promql in of_kai.items():
                day[name] = await prometheus.instant(promql, end)
        for name, answer in zip(now, at_end, strict=True):
            day[name] = [*answer, *day[name]]
        _refuse_doubles(day["twice"])
        found.append((day, await read_sightings(prometheus, query, day, end - group.seconds, end)))
    return found


async def _read_growth(prometheus: Prometheus, query: MeterQuery, group: Days) -> tuple[list[Answers], frozenset[str]]:
    times = (group.start, *group.ends) if group.seconds == DAY else ()
    marks = await side_by_side(*(prometheus.instant(queries.mark_query(query), at) for at in times))
    nodes = [nodes_of(one for one in mark if one.labels.get("what") != queries.INFO_OF_GPUS) for mark in marks]
    # A Thanos that keeps raw samples for a short time only answers nothing about an older moment.
    if not nodes or not all(nodes):
        return await group.read(prometheus, queries.growth_queries(query, group.seconds)), frozenset()
    growth = [find_growth(before, after) for before, after in pairwise(marks)]
    there = [first | last for first, last in pairwise(nodes)]
    return growth, frozenset[str]().union(*map(find_unsteady, there, growth))


def find_growth(before: Iterable[Series], after: Iterable[Series]) -> Answers:
    """Return the differences between these series of `mark_query`, by `what`; a number of GPUs is that of `after`.

    A series that is new counts from 0.
    """
    old = {frozenset(series.labels.items()): series.value for series in before}
    growth: Answers = defaultdict(list)
    for series in after:
        name = series.label("what")
        less = 0.0 if name == queries.INFO_OF_GPUS else old.get(frozenset(series.labels.items()), 0.0)
        growth[name].append(series.changed(series.value - less))
    return growth


def find_unsteady(nodes: Iterable[str], growth: Answers) -> set[str]:
    """Return the nodes on which a counter restarted or vanished, so that `growth` (`find_growth`) is too low."""
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


async def read_price(prometheus: Prometheus, query: MeterQuery, nodes: Iterable[str]) -> Price | None:
    """Return the mean price of a GPU on these nodes in the window, with the source of the first node's price.

    It is None if a price is unknown or they have several currencies.
    """
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


def _count(
    cells: Counter[Cell],
    day: Answers,
    prices: Prices,
    unpriced: defaultdict[tuple[str, str], float],
    tenant_of: Callable[[Pod], str],
) -> None:
    slices = defaultdict[tuple[str, str], float](float)
    for series in day["shared"]:
        if math.isfinite(series.value):
            key = series.node, series.label("resource")
            slices[key] = max(series.value, slices[key])
    for part in Part:
        for series in day[part]:
            (node, policy), resource = _node(series), series.label("resource")
            price: Price | str | None = prices.find(node, policy)
            if isinstance(price, str):
                unpriced[policy, price] += series.value
                price = None
            tenant, basis = "", Basis.NONE
            if part is Part.HELD:
                tenant = tenant_of((series.exported(NAMESPACE), series.label("pod")))
                if how := series.labels.get("basis"):  # of `divide`
                    basis = Basis(how)
                elif (most := slices.get((node, resource))) is not None:
                    basis = Basis.RESERVED if most > 1 else Basis.MEASURED
                else:
                    basis = Basis.RESERVED if resource.endswith(".shared") else Basis.ESTIMATE
            cells[Cell(policy, tenant, part, resource, basis, price)] += max(0, round(series.value * MICROS))


def _lacking(parts: Mapping[NodePool, float], gpus: Mapping[NodePool, float], seconds: float) -> Iterator[str]:
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
    return series.node, series.label(POLICY)


async def _gaps(prometheus: Prometheus, query: MeterQuery) -> list[str]:
    chosen = braced(query.selector)
    where = f" for {chosen}" if chosen else ""
    nothing = (
        f"{prometheus.endpoint.where} has no data from the meter in this window ({GPUS}){where}: does it scrape the"
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
    by_pool = defaultdict[NodePool, list[Mapping[str, str]]](list)
    for each in twice:
        by_pool[_node(each)].append(each.labels)
    for (node, _), series in sorted(by_pool.items()):
        labels = sorted({name for each in series for name in each} - {"__name__"})
        differ = {label: sorted({each.get(label, "") for each in series}) for label in labels}
        differ = {label: values for label, values in differ.items() if len(values) > 1}
        if not differ:
            continue
        # Labels of a target also differ between an agent and its successor, so any other label is the likelier reason.
        label = min(differ, key=lambda name: (name in TARGET, name in OF_PARTS, name not in CHOSEN, name))
        values = ", ".join(differ[label][:5])
        if not node:
            raise Trouble(
                f"some series of the meter have no node label and differ in the label {label} ({values}): two nodes cannot"
                " be distinguished from one node that is scraped twice. The chart's monitors set the node label from"
                " __meta_kubernetes_pod_node_name; make your scrape configuration do the same"
            )
        billed = f"{node} would be billed twice: its series differ in the label {label} ({values})"
        if label in TARGET and label not in CHOSEN:
            others = [f", and {name} ({', '.join(differ[name][:5])})" for name in sorted(differ) if name != label]
            raise Trouble(
                f"{billed}{''.join(others)}, and several were scraped at the same time, for example because two agents run"
                " there or one is scraped at two addresses. Stop one, then use a window that begins later, such as --window"
                " 1d. Do not select by these labels: they may change when an agent restarts"
            )
        if label in OF_PARTS:
            raise Trouble(
                f"{billed}, for example because two installations of the agent run there. Remove one, and use a window in"
                " which there was only one, such as --window 1d: series of tenants cannot be selected by that label"
            )
        escaped = differ[label][0].replace("\\", r"\\").replace('"', r"\"")
        matcher = f'{label}="{escaped}"'
        raise Trouble(
            f"{billed}, for example because two Prometheus servers scrape the same agents, or one does so twice. Choose one:"
            f" --match {quote(matcher)}"
        )
