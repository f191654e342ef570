"""What Prometheus has of the meter (docs/adr/0043-the-meter.md) in a window: who had how much at which price, what is
missing.

The window is asked for a day at a time, so that a price counts for the days on which it was exported, and no answer is
large. `increase` extends a series to both ends of the day, bridges gaps and knows when a counter began anew.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from itertools import chain
from shlex import quote

from gpusharing.cli.shell.troubles import Trouble
from gpusharing.planning.vocabulary.lengths import counted, some
from gpusharing.usage.prometheus.client import Prometheus, Series, side_by_side
from gpusharing.usage.prometheus.matchers import TARGET, braced, nodes_of
from gpusharing.usage.prometheus.windows import days, find_gaps
from gpusharing.usage.read.absences import find_losses
from gpusharing.usage.read.pricing import CHOOSE, MOST, NO_NUMBER, REMEDY, Prices, read_prices
from gpusharing.usage.read.queries import (
    EXPORTED,
    GPUS,
    NAMESPACE,
    OF_PARTS,
    POLICY,
    MeterQuery,
    label_of,
    queries_of,
)
from gpusharing.usage.reckon.bills import MICROS, Basis, Cell, Part, Price


@dataclass(frozen=True, slots=True)
class Teams:
    """Of one day."""

    last: Mapping[str, str] = field(default_factory=dict)
    """By namespace the value that was seen last: it may have gone, or have changed hands."""
    rivals: Set[str] = frozenset()
    """Namespaces that had several values at a time: whose they are nobody can tell."""

    def find(self, namespace: str) -> str:
        """Empty: unknown."""
        return "" if namespace in self.rivals else self.last.get(namespace, "")


def read_teams(last: Iterable[Series], rivals: Iterable[Series], label: str) -> Teams:
    """From answers: when each value was seen last, and which namespaces had several."""
    ordered = sorted(last, key=lambda one: (one.value, one.labels.get(label, "")))
    return Teams(
        {namespace_of(one): one.labels.get(label, "") for one in ordered},
        frozenset(map(namespace_of, rivals)),
    )


def namespace_of(one: Series) -> str:
    """The namespace that a series is about."""
    # A Prometheus that does not honour labels renames the one that was told.
    return one.labels.get(EXPORTED) or one.labels.get(NAMESPACE, "")


def no_label(label: str) -> str:
    """What to say where no namespace has the label."""
    return (
        f"Prometheus knows no namespace with the label {label}. kube-state-metrics exports only labels that"
        f" it is told to: --metric-labels-allowlist=namespaces=[{label}]. Without it: --by namespace"
    )


def describe_rivals(namespaces: Set[str], label: str) -> list[str]:
    """A sentence, if there is something to say. `namespaces`: those that used GPUs while whose they are was unknown."""
    if not namespaces:
        return []
    several = len(namespaces) > 1
    return [
        f"{'namespaces' if several else 'namespace'} {some(sorted(namespaces))} {'have' if several else 'has'} several"
        f" values of {label} at once, as when several clusters have {'them' if several else 'it'}, so"
        f" {'their' if several else 'its'} usage is listed under (no {label}): {CHOOSE}"
    ]


TOLERANCE = 0.01
"""Of a pool's GPU time; the ends of series that come and go in a day make less."""
ENDS = 60.0
"""Seconds of a GPU by which the parts of a window may differ from its whole, however short it is: `increase` extends a
part that came or went in it by up to a scrape interval of 30 s at either end, and its pool not."""
OTHERS = "_others"
"""The namespace, or the policy, of what is beyond the meter's bounds (gpusharing/agent/meter.py)."""
CHOSEN = frozenset(("container", "endpoint"))
"""Labels of a target that stay the same when an agent restarts, so that series can be chosen by them."""
MISSED = 3600.0
"""GPU-seconds of a node that are worth reporting; a scrape interval at the end of each day is less."""
COUNTED = (*Part, "gpus", "firsts", "lasts")
"""Answers of `queries_of` that the meter counted: each Part of the GPU time, all of it, and the least and the most of a
node's counters of it."""
NodePool = tuple[str, str]
"""Name of a node, and of the policy that owned it."""


@dataclass(slots=True)
class MeteredPools:
    """What was found."""

    cells: Counter[Cell] = field(default_factory=Counter)
    """Microseconds."""
    missing: list[str] = field(default_factory=list)
    """Why the answer is incomplete; empty: it is complete."""
    remarks: list[str] = field(default_factory=list)
    simulated: set[str] = field(default_factory=set)
    """Nodes that were metered and whose GPUs are SIMULATED."""


@dataclass(slots=True)
class _Day:
    """Answers for one stretch of at most a day."""

    counted: Mapping[str, list[Series]]
    """What the meter counted, by COUNTED."""
    shared: Mapping[tuple[str, str], float]
    """By node and resource: the most slices of one device."""
    prices: Prices
    teams: Teams
    simulated: frozenset[str]
    """Nodes."""
    faults: Sequence[str] = ()
    """Numbers that cannot be: they are left out."""


async def read_metered(prometheus: Prometheus, wish: MeterQuery) -> MeteredPools:
    """Raises Trouble, also where there is nothing at all."""
    found = MeteredPools()
    found.missing += await _gaps(prometheus, wish)
    unpriced: dict[tuple[str, str], float] = {}
    parts: dict[NodePool, float] = {}
    gpus: dict[NodePool, float] = {}
    rivals: set[str] = set()
    unseen, unlabelled, labelled = _Unseen(), 0, False
    for start, end in days(wish.start, wish.end):
        day = await _read_day(prometheus, wish, start, end)
        _add(found, day, wish.by, unpriced)
        faults = dict.fromkeys((*day.faults, *day.prices.faults))
        found.missing += [fault for fault in faults if fault not in found.missing]
        _sum(parts, chain.from_iterable(day.counted[part] for part in Part))
        _sum(gpus, day.counted["gpus"])
        rivals |= day.teams.rivals & {namespace_of(one) for one in day.counted["held"] if one.value > 0}
        found.simulated |= day.simulated & {node for node, _ in map(_node, day.counted["gpus"])}
        unseen.add(day.counted["gpus"], day.counted["firsts"], day.counted["lasts"])
        unlabelled += bool(label_of(wish.by) and day.counted["held"] and not day.teams.last)
        labelled |= bool(day.teams.last)
    if unlabelled and not labelled:
        raise Trouble(no_label(wish.by))
    if unlabelled:
        found.missing.append(
            f"on {counted(unlabelled, 'day')} Prometheus knew no namespace with the label {wish.by}: usage on"
            f" those days is listed under (no {wish.by})"
        )
    found.missing += describe_rivals(rivals, wish.by)
    found.missing += _unpriced(unpriced)
    found.missing += [*_lacking(parts, gpus, wish.end - wish.start), *unseen.describe()]
    missing, remarks = await find_losses(prometheus, wish, unseen.nodes)
    found.missing += missing
    found.remarks += remarks
    found.missing += [f"Prometheus warns: {warning}" for warning in sorted(prometheus.warnings)]
    if any(OTHERS in (cell.tenant, cell.policy) for cell in found.cells):
        found.remarks.append(
            f"{OTHERS} is what a node metered beyond 128 accounts or 16 policies; its owners are unknown"
        )
    return found


def _sum(counts: dict[NodePool, float], found: Iterable[Series]) -> None:
    for one in found:
        counts[_node(one)] = counts.get(_node(one), 0.0) + one.value


async def _read_day(prometheus: Prometheus, wish: MeterQuery, start: float, end: float) -> _Day:
    queries = queries_of(wish, round(end - start))
    found = await side_by_side(*(prometheus.instant_all(query, end) for query in queries.values()))
    answers = dict(zip(queries, found, strict=True))
    _refuse_doubles(answers["twice"])
    faults: list[str] = []
    prices = (answers[name] for name in ("opencost", "policies", "products", "cards"))
    return _Day(
        {name: list(_credible(answers[name], faults)) for name in COUNTED},
        {
            (one.labels.get("node", ""), one.labels.get("resource", "")): one.value
            for one in answers["shared"]
            if math.isfinite(one.value)
        },
        read_prices(*prices, rivals=answers["rivals"], currency=wish.currency),
        read_teams(answers.get("labels", ()), answers.get("rival labels", ()), label_of(wish.by)),
        nodes_of(answers["simulated"]),
        faults,
    )


def _credible(found: Iterable[Series], faults: list[str]) -> Iterator[Series]:
    for one in found:
        if abs(one.value) <= MOST:
            yield one
        else:
            why = NO_NUMBER if math.isnan(one.value) else "no node has that many GPUs"
            faults.append(
                f"a counter of the meter on {_node(one)[0] or 'a node'} shows {one.value:g} s, which is left out: {why}"
            )


def _add(found: MeteredPools, day: _Day, by: str, unpriced: dict[tuple[str, str], float]) -> None:
    for part in Part:
        for one in day.counted[part]:
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
    namespace = namespace_of(one)
    if by == POLICY:
        return ""
    return namespace if by == NAMESPACE or namespace == OTHERS else day.teams.find(namespace)


def _basis(resource: str, most: float | None) -> Basis:
    if most is not None:
        return Basis.RESERVED if most > 1 else Basis.MEASURED
    return Basis.RESERVED if resource.endswith(".shared") else Basis.ESTIMATE


def _unpriced(unpriced: Mapping[tuple[str, str], float]) -> list[str]:
    return [
        f"no price is known for {seconds / 3600:,.1f} GPU-hours of {_pool(policy)}: {why}"
        + ("" if why.endswith(CHOOSE) else f"; {REMEDY}")
        for (policy, why), seconds in sorted(unpriced.items())
        if seconds > 0
    ]


def _pool(policy: str) -> str:
    return policy or "nodes without a policy"


def _lacking(
    parts: Mapping[NodePool, float], gpus: Mapping[NodePool, float], seconds: float
) -> Iterator[str]:
    """Pools of which some series are not there. `seconds`: of the window."""
    tolerance = max(TOLERANCE, ENDS / seconds)
    pools: dict[str, list[NodePool]] = {}
    for key in sorted(parts.keys() | gpus.keys()):
        pools.setdefault(key[1], []).append(key)
    lacks = "Prometheus lacks some of the meter's series"
    for policy, nodes in sorted(pools.items()):
        off = {key[0]: abs(parts.get(key, 0.0) - gpus.get(key, 0.0)) for key in nodes}
        told, whole = (sum(counts.get(key, 0.0) for key in nodes) for counts in (parts, gpus))
        if sum(off.values()) <= tolerance * whole:
            continue
        if abs(told - whole) > tolerance * whole:
            yield (
                f"the parts of {_pool(policy)} add up to {told / 3600:,.1f} GPU-hours, but its GPUs were metered for"
                f" {whole / 3600:,.1f}: {lacks}"
            )
        else:  # what one node has too little another has too much
            most = sorted(off, key=lambda node: (-off[node], node))
            yield (
                f"the parts of {_pool(policy)} on {some([node or 'a node' for node in most if off[node] > 0])} differ"
                f" by {sum(off.values()) / 3600:,.1f} GPU-hours from what the GPUs there were metered for: {lacks}"
            )


class _Unseen:
    """What agents counted while Prometheus did not see them: a counter begins a day above where it ended one before.

    Where it began anew meanwhile, nobody knows how much that was.
    """

    def __init__(self) -> None:
        self._ended: dict[NodePool, float] = {}
        self._seen: Counter[NodePool] = Counter()
        self._lost: Counter[NodePool] = Counter()

    def add(self, grown: Iterable[Series], firsts: Iterable[Series], lasts: Iterable[Series]) -> None:
        """Answers for the day after those of before."""
        for one in grown:
            self._seen[_node(one)] += round(one.value)
        for one in firsts:
            self._lost[_node(one)] += max(0, round(one.value - self._ended.get(_node(one), one.value)))
        self._ended |= {_node(one): one.value for one in lasts}

    @property
    def nodes(self) -> set[str]:
        """Those of which something was metered."""
        return {node for node, _ in self._seen}

    def describe(self) -> list[str]:
        """A sentence, if there is something to say."""
        lost = {
            key: count
            for key, count in self._lost.items()
            if count > MISSED and count > TOLERANCE * self._seen[key]
        }
        if not lost:
            return []
        names = some(sorted({node or "a node" for node, _ in lost}))
        return [
            f"Prometheus did not see {names} for a while, and {sum(lost.values()) / 3600:,.1f} GPU-hours that were"
            " metered meanwhile are billed to nobody"
        ]


def _node(one: Series) -> NodePool:
    return one.labels.get("node", ""), one.labels.get(POLICY, "")


async def _gaps(prometheus: Prometheus, wish: MeterQuery) -> list[str]:
    """The parts of the window for which Prometheus has no data. Raises Trouble when that is all of it."""
    chosen = braced(wish.selector)
    where = f" for {chosen}" if chosen else ""
    return await find_gaps(
        prometheus,
        f"count({GPUS}{chosen})",
        wish.start,
        wish.end,
        nothing=f"{prometheus.place.where} has no data of the meter in this window ({GPUS}){where}: does it scrape the"
        " agents? In the chart: monitoring.podMonitor.enabled=true, with the labels that your Prometheus"
        " selects PodMonitors by",
        lost="the metered amount for that time is known only in part",
    )


def _refuse_doubles(twice: Iterable[Series]) -> None:
    """Raises Trouble where a node was metered twice at one time. `twice`: all its series of that day."""
    found: dict[NodePool, list[Mapping[str, str]]] = {}
    for one in twice:
        found.setdefault(_node(one), []).append(one.labels)
    for (node, _), series in sorted(found.items()):
        labels = sorted({name for one in series for name in one} - {"__name__"})
        differ = {label: sorted({one.get(label, "") for one in series}) for label in labels}
        _refuse(node, {label: values for label, values in differ.items() if len(values) > 1})


def _refuse(node: str, differ: Mapping[str, Sequence[str]]) -> None:
    """By the labels in which series of one node differ, and their values."""
    # Labels of a target differ between an agent and its successor too, so they are the reason only without another.
    label = min(differ, key=lambda one: (one in TARGET, one in OF_PARTS, one not in CHOSEN, one), default="")
    if not label:
        return
    told = ", ".join(differ[label][:5])
    if not node:
        raise Trouble(
            f"series of the meter do not name their node, and differ in the label {label} ({told}): two nodes cannot be"
            " told from one that is scraped twice. The chart's monitors set the label node, from"
            " __meta_kubernetes_pod_node_name; make your scrape configuration do the same"
        )
    twice = f"{node} would be billed twice: its series differ in the label {label} ({told})"
    if label in TARGET and label not in CHOSEN:
        others = "".join(
            f", and {one} ({', '.join(differ[one][:5])})" for one in sorted(differ) if one != label
        )
        raise Trouble(
            f"{twice}{others}, and several were scraped at the same time, as when two agents run there or one is"
            " scraped at two addresses. Stop one, then ask for a window that begins later, such as --window 1d. Do not"
            " select by these labels: they may change when an agent restarts"
        )
    if label in OF_PARTS:
        raise Trouble(
            f"{twice}, as when two installations of the agent run there. Remove one, and ask for a time in"
            " which there was one, such as --window 1d: series of tenants cannot be chosen by that label"
        )
    escaped = differ[label][0].replace("\\", r"\\").replace('"', r"\"")
    matcher = f'{label}="{escaped}"'
    raise Trouble(
        f"{twice}, as when two Prometheus servers scrape the same agents, or one does so twice. Choose one:"
        f" --selector {quote(matcher)}"
    )
