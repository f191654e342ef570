"""`free [--by resource|node|policy|namespace|pod]`: who holds the GPUs, and what is free now?

The answer comes from Nodes and Pods; from policies, too, if GPUs are shared by time-slicing, and from GPUNodes if the
user may not read all Nodes and Pods. `--usage` adds what each pod uses: from the agents' metrics through the API
server, or else from Prometheus.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from math import inf
from typing import Any

from gpusharing.api.times import from_rfc3339
from gpusharing.kube.client import GPUNODES, JSON, NAMESPACES, NODES, PODS, POLICIES
from gpusharing.kube.daemonsets import AGENT, has_secure_metrics
from gpusharing.kube.errors import Forbidden, KubeError
from gpusharing.kube.raw import entries, part, section, text, whole
from gpusharing.planning.vocabulary.lengths import counted, some
from kubectl_gpusharing.shell import drawing
from kubectl_gpusharing.shell.arguments import Arguments
from kubectl_gpusharing.shell.documents import InventoryData
from kubectl_gpusharing.shell.drawing import (
    BLANK,
    GAP,
    Column,
    Ink,
    Line,
    PrintOptions,
    Span,
    age,
    prose,
    prose_of_each,
    table,
)
from kubectl_gpusharing.shell.session import Session, object_name
from kubectl_gpusharing.shell.terminal import Terminal
from kubectl_gpusharing.shell.troubles import CHANGES, DONE, Denied, Trouble, error_text
from kubectl_gpusharing.usage.cost import describe_doubts
from kubectl_gpusharing.usage.holdings import (
    ANY,
    ENDED,
    NO_POLICY,
    NUMBERS,
    USED,
    GPUPod,
    Inventory,
    NodeStock,
    Row,
    count_rows,
    read_gpunode,
    read_pod,
    read_stock,
    share_nodes,
)
from kubectl_gpusharing.usage.prometheus import Series, find_service_endpoint, nodes_of, prometheus_at, side_by_side
from kubectl_gpusharing.usage.queries import OWN, SIMULATED, SLICES, SM
from kubectl_gpusharing.usage.workloads import Pod, pod_of

PORT = 8080
"""The port with the metrics of an agent whose pod names none."""
MOST_ASKED = 100
"""The most agents that are queried one by one; if there are more, only Prometheus is used."""
SIZE = "gpusharing_device_memory_bytes"
METRICS = (SLICES, OWN, SM, SIZE, SIMULATED)
"""Metrics of the agent (docs/reference/metrics.md)."""
_SAMPLE = re.compile(rf"^({'|'.join(METRICS)})(?:{{(.*)}})? (\d+(?:\.\d+)?(?:[eE][-+]?\d+)?)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')

Reason = tuple[str, str]
"""Why agents did not say what pods use: the words before and after the names of their nodes."""


async def read_usage(session: Session, inventory: Inventory, service: str) -> None:
    """Read what the pods of the answer use now.

    Raises no Trouble: what could not be read is in `Inventory.usage_unknown`.
    """
    bound = {(pod.namespace, pod.name): pod.node for pod in inventory.subjects if pod.node}
    nodes = set(bound.values())
    series, silent = await _ask_agents(session, inventory.agents, nodes)
    inventory.used, inventory.simulated = live, simulated = _fold(series)
    if nodes - set(silent):
        inventory.sources = ("memory and SM use are from the agents, read a moment ago",)
    if not silent:
        return
    # At most three reasons are given, each with up to three of its nodes, and the number of the others.
    nodes_of_reason: dict[Reason, list[str]] = {}
    for node, reason in sorted(silent.items()):
        nodes_of_reason.setdefault(reason, []).append(node)
    why = some([f"{before} {some(names)}{after}" for (before, after), names in nodes_of_reason.items()])
    missing = f"memory and SM use{' of some pods' if live else ''} are unknown: {why}"
    try:
        endpoint = await find_service_endpoint(session, service)
        async with prometheus_at(endpoint) as prometheus:
            answer = await prometheus.instant(f'{{__name__=~"{"|".join(METRICS)}"}}', None)
    except Trouble as trouble:
        inventory.usage_unknown = (f"{missing}. Prometheus could not be used instead: {trouble}".rstrip("."),)
        return
    about = []
    for one in answer:
        # A series that names no node may be about any; one that names another node than the pod's is not.
        pod = pod_of(one.labels)
        home = one.node if pod is None else bound.get(pod, "")
        if (home in silent and one.node in ("", home)) or (pod is None and not home):
            about.append(one)
    stored, more = _fold(about)
    if stored:
        rest = " of the other pods" if inventory.sources else ""
        source = f"memory and SM use{rest} are from {endpoint.where}, as last scraped, because {why}"
        inventory.sources += (source, *filter(None, (endpoint.remark,)))
    inventory.used, inventory.simulated = {**stored, **live}, simulated | more
    if left := {node for pod, node in bound.items() if node in silent and pod not in inventory.used}:
        some_pods = " of some pods" if inventory.used else ""
        lacks = f"{endpoint.where} has no series {SLICES} of pods on {some(sorted(left))}"
        inventory.usage_unknown = (f"memory and SM use{some_pods} are unknown: {lacks}, and {why}",)


async def _ask_agents(
    session: Session, agents: Iterable[JSON], nodes: set[str]
) -> tuple[list[Series], dict[str, Reason]]:
    asked = [agent for agent in agents if text(agent, "spec", "nodeName") in nodes]
    if len(asked) > MOST_ASKED:
        reason = "the agents on", f" are too many ({len(asked)}) to be asked one by one"
        return [], dict.fromkeys(nodes, reason)
    silent = dict.fromkeys(nodes, ("no pod of the agent (gpusharing-agent) was seen on", ""))
    found: list[Series] = []
    for node, page, reason in await side_by_side(*(_ask_agent(session, agent) for agent in asked)):
        silent[node] = reason
        found += page
    reported = nodes_of(series for series in found if series.labels["__name__"] == SLICES)
    return found, {node: reason for node, reason in silent.items() if node not in reported}


async def _ask_agent(session: Session, agent: JSON) -> tuple[str, list[Series], Reason]:
    """Return the agent's node, its series, and why none of them is about a pod.

    The reason is to be ignored if one is. An agent that gives its metrics only to a token is not queried, because the
    API server's proxy removes the user's token.
    """
    node, metadata = text(agent, "spec", "nodeName"), section(agent, "metadata")
    if has_secure_metrics(section(agent, "spec")):
        reason = "the metrics on", " need a token, which the API server does not pass on to the agent"
        return node, [], reason
    ports = [port for one in entries(agent, "spec", "containers") for port in entries(one, "ports")]
    port = next((whole(port, "containerPort") for port in ports if text(port, "name") == "metrics"), PORT)
    try:
        page = await session.client.scrape(text(metadata, "namespace"), text(metadata, "name"), port)
    except Forbidden as error:
        return node, [], ("you may not ask the agent on", f": {error_text(error)}")
    except KubeError as error:
        return node, [], ("the agent on", f" did not respond: {error_text(error)}")
    found = [
        Series({**dict(_LABEL.findall(labels)), "node": node, "__name__": name}, ((0.0, float(value)),))
        for name, labels, value in _SAMPLE.findall(page)
    ]
    return node, found, ("the agent on", " reports no pods")


def _fold(found: Iterable[Series]) -> tuple[dict[Pod, dict[str, Row]], frozenset[str]]:
    kept = [(series.labels.get("__name__", ""), series) for series in found if 0 <= series.value < inf]
    sizes = {series.labels.get("uuid", ""): int(series.value) for name, series in kept if name == SIZE}
    by_pod: dict[Pod, dict[str, Row]] = {}
    for name, series in kept:
        labels, uuid = series.labels, series.labels.get("uuid", "")
        if name not in (SLICES, OWN, SM) or (pod := pod_of(labels)) is None:
            continue
        gpu, profile = labels.get("gpu", ""), labels.get("profile", "")
        device = {"gpu": int(gpu) if gpu.isdecimal() else None, "profile": profile}
        device |= {"memoryBytes": None, "deviceMemoryBytes": sizes.get(uuid), "smRatio": None}
        use = by_pod.setdefault(pod, {}).setdefault(uuid, device)
        if name == OWN:
            use["memoryBytes"] = int(series.value)
        elif name == SM:
            use["smRatio"] = series.value
        elif labels.get("resource"):
            use["resource"] = labels["resource"]
    return by_pod, nodes_of(series for name, series in kept if name == SIMULATED and series.value)


MOST = 20
"""How many pods that wait, and nodes that are closed, are listed; -o wide lists all."""
TITLES = {
    "requested": "HELD",
    "allocatable": "TOTAL",
    "largest": "LARGEST FIT",
    "memoryBytes": "MEMORY",
    "deviceMemoryBytes": "OF",
    "smRatio": "SM",
}
LISTED = frozenset({"closed", "waiting"})
"""Columns about what is also listed below the table, with its nodes and pods."""


@dataclass(frozen=True, slots=True)
class FreeReport:
    inventory: Inventory
    by: str
    now: datetime

    @property
    def waiting(self) -> list[GPUPod]:
        return sorted((pod for pod in self.inventory.subjects if not pod.node), key=lambda pod: pod.created)

    @property
    def simulated(self) -> list[str]:
        names = {name for name, stock in self.inventory.stocks.items() if stock.simulated}
        return sorted(names | self.inventory.simulated)

    @property
    def unknown(self) -> list[str]:
        """Sentences about what is unknown, and why; empty if the answer is complete."""
        found, sentences = self.inventory, []
        if found.no_nodes:
            sentences.append(f"what is allocatable and free is unknown, because {found.no_nodes}")
        if found.no_pods:
            seen = "no pods are" if found.blind else f"only the pods of namespace {found.namespace} are"
            agents = all(stock.allocated is not None for stock in found.stocks.values() if stock.allocatable)
            free = "computed from what the agents report as allocated" if agents else "unknown"
            rest = "" if found.no_nodes else f"; what is free is {free}"
            sentences.append(f"{seen} counted (-n NAME chooses another namespace){rest}: {found.no_pods}")
        return [*sentences, *found.usage_unknown]

    @property
    def notes(self) -> list[str]:
        free = defaultdict[str, Counter[str]](Counter)
        for stock, shares in share_nodes(self.inventory):
            for taint in () if stock.closed else stock.taints:
                free[taint].update({_name(stock, name): share[3] or 0 for name, share in shares.items()})
        notes = [
            f"{_counts(counts)} of the free devices are only for pods that tolerate the taint {taint}"
            for taint, counts in sorted(free.items())
            if any(counts.values())
        ]
        if claims := self.inventory.with_claims:
            have = "has" if claims == 1 else "have"
            notes.append(f"{counted(claims, 'pod')} {have} ResourceClaims, whose devices are not counted here")
        unread = sorted({one.sliced_by for one in self.inventory.stocks.values()} - {""})
        if unread and "largest" in self.columns:
            notes.append(
                "the largest request that fits may be 1 on time-sliced nodes: whether containers may request more than"
                f" one share is in policies that could not be read ({some(unread)})"
            )
        pods = self.inventory.pods
        if kept := sorted(pod.ref for pod in pods if pod.reserves and self.inventory.counts(pod)):
            notes.append(
                f"with {some(kept)}, KAI-Scheduler reserves GPUs for pods that request fractions, which may be in other"
                " namespaces; the GPUs count as held by the reservation, and the fractions are not counted here"
            )
        return [*notes, *self.inventory.sources]

    @property
    def columns(self) -> tuple[str, ...]:
        return (*self.inventory.columns(self.by), *(() if self.inventory.used is None else USED))

    def rows(self) -> list[Row]:
        """Return the rows by `by`.

        With --usage, a row is repeated for every device that the pod holds as this resource; a device of unknown
        resource belongs to the pod's first row.
        """
        rows, pairs = count_rows(self.inventory, self.by), []
        if self.inventory.used is None:
            return rows
        left = {"/".join(pod): dict(devices) for pod, devices in self.inventory.used.items()}
        for row in rows:
            known = left.get(row["pod"], {}) if row["node"] else {}
            devices = {
                uuid: known.pop(uuid)
                for uuid, use in list(known.items())
                if use.get("resource", row["resource"]) == row["resource"]
            }
            for uuid, use in (devices or {"": dict.fromkeys(USED)}).items():
                pairs.append(((row["node"], use["gpu"] or 0, uuid, row["pod"]), row | use))
        return [row for _, row in sorted(pairs, key=lambda pair: pair[0])]


def describe(report: FreeReport, options: PrintOptions) -> list[Line]:
    lines, rows = drawing.describe_simulated(report.simulated, options), report.rows()
    if not any(row.get("device") for row in rows):  # no node has labels of GPU Feature Discovery
        rows = [row | ({"device": ""} if "device" in row else {}) for row in rows]
    if rows:
        cells = {name: [_cell(name, row[name], row) for row in rows] for name in report.columns}
        if report.by in ("resource", "policy") and len(report.waiting) <= MOST and not _fits(cells, options):
            rows = [row for row in rows if row["device"] != ANY]
            few = [name for name in report.columns if name not in LISTED]
            cells = {name: [_cell(name, row[name], row) for row in rows] for name in few}
        lines += _draw(cells, options)
    else:
        found = report.inventory
        nodes = f"node{' with these labels' * found.chosen} advertises a GPU resource"
        pods = f"pod{f' in namespace {found.namespace}' * bool(found.namespace)} requests"
        nothing = f"No {nodes}, and no {pods} one." if report.by == "resource" else f"No {nodes}."
        if report.by in ("namespace", "pod"):
            nothing = f"No {pods} a GPU resource{' of these nodes' * found.chosen}."
        lines += prose(nothing, options)
    if report.by != "node":
        closed = [(stock.name, stock.closed, _counts(unused)) for stock, unused in report.inventory.closed]
        lines += _listed(("CLOSED NODE", "STATE", "NOT COUNTED AS FREE"), closed, options)
    if waiting := report.waiting:
        pending = [
            (pod.ref, _counts(pod.requests), age(from_rfc3339(pod.created), report.now), pod.message * options.wide)
            for pod in waiting
        ]
        titles = ("WAITING POD", "REQUESTS", "SINCE", "SCHEDULER")
        lines += [BLANK] if report.by == "pod" else _listed(titles, pending, options)
        why = f"To see why a pod is waiting: kubectl gpusharing why {waiting[0].ref}"
        lines += prose(why, options, hang="  ", ink=Ink.FAINT)
    notes, unknown = report.notes, report.unknown
    return [*lines, *([BLANK] if notes or unknown else []), *describe_doubts(notes, unknown, options)]


def _cell(column: str, value: Any, row: Row) -> Span:
    if value is None:
        return Span("?" if row.get("node", True) else "", Ink.WAITING)
    if column.endswith("Bytes"):
        return Span(f"{value / 2**30:.1f}Gi")
    if column == "smRatio":
        return Span(f"{value:.0%}")
    good = Ink.GOOD if column == "free" and value else Ink.PLAIN
    return Span(str(value), Ink.WAITING if column in ("state", "taints") else good)


def _name(stock: NodeStock, resource: str) -> str:
    device = stock.devices.get(resource)
    return f"{resource} ({device})" if device else resource


def _counts(counts: Mapping[str, int]) -> str:
    return " and ".join(f"{number} {name}" for name, number in sorted(counts.items()) if number)


Cells = Mapping[str, Sequence[Span]]
"""A table by its columns, in order."""


def _fits(cells: Cells, options: PrintOptions) -> bool:
    widths = [max([len(_title(name)), *(len(one.text) for one in column)]) for name, column in cells.items()]
    shown = [width for width, column in zip(widths, cells.values(), strict=True) if any(one.text for one in column)]
    return options.width is None or options.wide or sum(shown) + len(GAP) * (len(shown) - 1) <= options.width


def _draw(cells: Cells, options: PrintOptions) -> list[Line]:
    """Draw a table, or a sentence for each row where the table has no room; nothing is left out."""
    rows = [list(row) for row in zip(*cells.values(), strict=True)]
    if _fits(cells, options):
        return table([Column(_title(name), right=name in {*NUMBERS, *USED}) for name in cells], rows, options)
    words = (
        [
            f"{_title(name).lower()} {one.text}" if name in NUMBERS or one.text == "?" else one.text
            for name, one in row
            if one.text
        ]
        for row in (zip(cells, row, strict=True) for row in rows)
    )
    return prose_of_each(map(", ".join, words), options)


def _title(name: str) -> str:
    return TITLES.get(name, name.upper())


def _listed(titles: Sequence[str], rows: Sequence[Sequence[str]], options: PrintOptions) -> list[Line]:
    shown = rows if options.wide else rows[:MOST]
    if not shown:
        return []
    cells = {title: [Span(row[number]) for row in shown] for number, title in enumerate(titles)}
    lines = [BLANK, *_draw(cells, options)]
    left = len(rows) - len(shown)
    return lines + (prose(f"and {left} more; -o wide lists all", options, ink=Ink.FAINT) if left else [])


def as_data(report: FreeReport) -> InventoryData:
    found = report.inventory
    return {
        "by": report.by,
        "namespace": found.namespace or None,
        "rows": report.rows(),
        "closed": [{"node": one.name, "state": one.closed, "unused": unused} for one, unused in found.closed],
        "waiting": [
            {"pod": pod.ref, "requests": dict(pod.requests), "created": pod.created, "message": pod.message}
            for pod in report.waiting
        ],
        "notes": report.notes,
        "unknown": report.unknown,
        "simulated": report.simulated,
    }


def as_rows(report: FreeReport) -> Iterator[Sequence[object]]:
    yield report.columns
    yield from (tuple(row.values()) for row in report.rows())


NOT_ENDED = ",".join(f"status.phase!={phase}" for phase in ENDED)
"""A field selector for the pods that may hold something."""
NAMED = {"node": NODES, "policy": POLICIES, "namespace": NAMESPACES, "pod": PODS}
"""The kinds whose names -o name prints, by what the rows are about."""


async def run(session: Session, typed: Arguments, terminal: Terminal) -> int:
    """Print who holds the GPUs; return CHANGES if a part of the answer is unknown."""
    by = typed.by or ("pod" if typed.usage else "resource")
    if typed.usage and by != "pod":
        raise Trouble(f"--usage shows what each pod uses: leave out --by {by}, or write --by pod")
    if typed.service and not typed.usage:
        raise Trouble("--service only works with --usage: add --usage, or leave out --service")
    if terminal.output == "name" and by not in NAMED:
        raise Trouble("-o name prints names of objects: add --by node, policy, namespace or pod")
    inventory = await read_inventory(session, typed.namespace, typed.selector)
    if typed.usage:
        await read_usage(session, inventory, typed.service)
    report = FreeReport(inventory, by, session.now())
    terminal.answer(
        InventoryData,
        lambda: as_data(report),
        lambda options: describe(report, options),
        lambda: as_rows(report),
        (
            object_name(NAMED[by], row[by].rpartition("/")[2])
            for row in (report.rows() if terminal.output == "name" else ())
            if row[by] != NO_POLICY
        ),
    )
    return CHANGES if report.unknown else DONE


async def read_inventory(session: Session, namespace: str, labels: str) -> Inventory:
    """Read nodes with these labels and pods, and GPUNodes too if the user may not read all of them.

    Raises Trouble if the user may read neither nodes nor any pods.
    """
    inventory = Inventory(namespace=namespace, chosen=bool(labels))
    await side_by_side(_read_nodes(session, inventory, labels), _read_pods(session, inventory))
    if sliced := [stock for stock in inventory.stocks.values() if stock.sliced_by]:
        with suppress(Trouble):
            strict = {
                text(raw, "metadata", "name")
                for raw in await session.all(POLICIES)
                if part(raw, "spec", "timeSlicing", "failRequestsGreaterThanOne") is True
            }
            inventory.stocks |= {one.name: one.sliced(strict=one.sliced_by in strict) for one in sliced}
    if inventory.no_nodes and labels:
        raise Trouble(f"-l {labels} selects nodes, but {inventory.no_nodes}")
    if inventory.no_nodes and inventory.blind:
        raise Trouble(
            f"{inventory.no_nodes}. You are not allowed to list pods in namespace {inventory.namespace} either; choose"
            " another namespace with -n NAME"
        )
    if not (inventory.no_nodes or inventory.no_pods):
        return inventory
    stocks = inventory.stocks
    with suppress(Trouble):
        for report in map(read_gpunode, await session.all(GPUNODES)):
            stock = report if inventory.no_nodes else stocks.get(report.name)
            if stock is not None:
                stocks[report.name] = replace(stock, allocated=report.allocated, simulated=report.simulated)
    return inventory


async def _read_nodes(session: Session, inventory: Inventory, labels: str) -> None:
    try:
        async for page in session.each_page(NODES, label_selector=labels):
            inventory.stocks |= {stock.name: stock for stock in map(read_stock, page)}
    except Denied as error:
        inventory.stocks, inventory.no_nodes = {}, str(error)


async def _read_pods(session: Session, inventory: Inventory) -> None:
    own = inventory.namespace or session.namespace
    for namespace in (None, own):
        try:
            async for page in session.each_page(PODS, namespace=namespace, field_selector=NOT_ENDED):
                for raw in page:
                    if (pod := read_pod(raw)) is not None:
                        inventory.pods.append(pod)
                    elif part(raw, "metadata", "labels", "app.kubernetes.io/name") == AGENT:
                        inventory.agents.append(raw)
                    inventory.with_claims += bool(part(raw, "spec", "resourceClaims"))
        except Denied as error:  # perhaps only after some pages, whose pods the next namespace may have again
            inventory.pods, inventory.agents, inventory.with_claims = [], [], 0
            inventory.no_pods = inventory.no_pods or str(error)
            inventory.blind, inventory.namespace = namespace is not None, own
        else:
            return
