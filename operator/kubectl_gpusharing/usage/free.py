"""`free [--by resource|node|policy|namespace|pod]`: who holds the GPUs, and what is free now?

The answer comes from Nodes and Pods; from policies, too, if GPUs are shared by time-slicing, and from GPUNodes if the
user may not read all Nodes and Pods. `--usage` adds what each pod uses: from the agents' metrics through the API
server, or else from Prometheus.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from math import inf
from typing import Any

from gpusharing.api.times import from_rfc3339
from gpusharing.kube.agentpods import AGENT, has_secure_metrics
from gpusharing.kube.client import GPUNODES, JSON, NAMESPACES, NODES, PODS, POLICIES
from gpusharing.kube.errors import Forbidden, KubeError
from gpusharing.kube.raw import entries, part, section, text, whole
from gpusharing.planning.vocabulary.lengths import some
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
    line,
    measure,
    prose,
    prose_of_each,
    table,
)
from kubectl_gpusharing.shell.session import Session, object_name, side_by_side
from kubectl_gpusharing.shell.terminal import Terminal
from kubectl_gpusharing.shell.troubles import CHANGES, DONE, Denied, Trouble, error_text
from kubectl_gpusharing.usage.cost import describe_doubts
from kubectl_gpusharing.usage.endpoints import find_service_endpoint
from kubectl_gpusharing.usage.holdings import (
    ANY,
    ENDED,
    NO_POLICY,
    NUMBERS,
    USED,
    Inventory,
    Row,
    read_gpunode,
    read_pod,
    read_stock,
    tell_counts,
)
from kubectl_gpusharing.usage.prometheus import Series, nodes_of, prometheus_at
from kubectl_gpusharing.usage.queries import OWN, SIMULATED, SLICES, SM
from kubectl_gpusharing.usage.workloads import Pod

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
    inventory.used, inventory.simulated_use = live, simulated = _fold(series)
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
        pod = one.pod
        home = one.node if pod is None else bound.get(pod, "")
        if (home in silent and one.node in ("", home)) or (pod is None and not home):
            about.append(one)
    stored, more = _fold(about)
    if stored:
        rest = " of the other pods" if inventory.sources else ""
        source = f"memory and SM use{rest} are from {endpoint.where}, as last scraped, because {why}"
        inventory.sources += (source, *filter(None, (endpoint.remark,)))
    inventory.used, inventory.simulated_use = {**stored, **live}, simulated | more
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
    kept = [(series.label("__name__"), series) for series in found if 0 <= series.value < inf]
    sizes = {series.label("uuid"): int(series.value) for name, series in kept if name == SIZE}
    by_pod: dict[Pod, dict[str, Row]] = {}
    for name, series in kept:
        labels, uuid = series.labels, series.label("uuid")
        if name not in (SLICES, OWN, SM) or (pod := series.pod) is None:
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


def describe(found: Inventory, now: datetime, options: PrintOptions) -> list[Line]:
    lines, rows = drawing.describe_simulated(found.simulated, options), found.rows()
    if not any(row.get("device") for row in rows):  # no node has labels of GPU Feature Discovery
        rows = [row | ({"device": ""} if "device" in row else {}) for row in rows]
    if rows:
        names, cells = found.columns, _cells(found.columns, rows)
        short = found.by in ("resource", "policy") and max(len(found.waiting), len([*found.closed])) <= MOST
        if short and not _fits(_columns(names), cells, options):
            names = tuple(name for name in names if name not in LISTED)
            cells = _cells(names, [row for row in rows if row["device"] != ANY])
        lines += _draw(names, cells, options)
    else:
        nodes = f"node{' with these labels' * found.chosen} advertises a GPU resource"
        pods = f"pod{f' in namespace {found.namespace}' * bool(found.namespace)} requests"
        nothing = f"No {nodes}, and no {pods} one." if found.by == "resource" else f"No {nodes}."
        if found.by in ("namespace", "pod"):
            nothing = f"No {pods} a GPU resource{' of these nodes' * found.chosen}."
        lines += prose(nothing, options)
    if found.by != "node":
        closed = [
            (stock.name, stock.policy * (found.by == "policy"), stock.closed, tell_counts(stock.named(unused)))
            for stock, unused in found.closed
        ]
        lines += _listed(("CLOSED NODE", "POLICY", "STATE", "NOT COUNTED AS FREE"), closed, options)
    if waiting := found.waiting:
        pending = [
            (pod.ref, tell_counts(pod.requests), age(from_rfc3339(pod.created), now), pod.message * options.wide)
            for pod in waiting
        ]
        titles = ("WAITING POD", "REQUESTS", "SINCE", "SCHEDULER")
        lines += [BLANK] if found.by == "pod" else _listed(titles, pending, options)
        why = f"To see why a pod is waiting: kubectl gpusharing why {waiting[0].ref}"
        lines += prose(why, options, hang="  ", ink=Ink.FAINT)
    notes, unknown = found.notes, found.unknown
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


def _cells(names: Sequence[str], rows: Sequence[Row]) -> list[list[Span]]:
    return [[_cell(name, row[name], row) for name in names] for row in rows]


def _columns(names: Sequence[str]) -> list[Column]:
    return [Column(TITLES.get(name, name.upper()), right=name in {*NUMBERS, *USED}) for name in names]


def _fits(columns: Sequence[Column], rows: Sequence[Sequence[Span]], options: PrintOptions) -> bool:
    widths = measure(columns, rows).values()
    return options.width is None or options.wide or sum(widths) + len(GAP) * (len(widths) - 1) <= options.width


def _draw(names: Sequence[str], rows: Sequence[Sequence[Span]], options: PrintOptions) -> list[Line]:
    """Draw a table, or a sentence for each row where the table has no room; nothing is left out."""
    columns = _columns(names)
    if _fits(columns, rows, options):
        return table(columns, rows, options)
    words = (
        [
            f"{column.title.lower()} {one.text}" if name in {*NUMBERS, *USED} or one.text == "?" else one.text
            for name, column, one in zip(names, columns, row, strict=True)
            if one.text
        ]
        for row in rows
    )
    return prose_of_each(map(", ".join, words), options)


def _listed(titles: Sequence[str], rows: Sequence[Sequence[str]], options: PrintOptions) -> list[Line]:
    shown = rows if options.wide else rows[:MOST]
    if not shown:
        return []
    lines = [BLANK, *_draw(titles, [line(*row) for row in shown], options)]
    left = len(rows) - len(shown)
    return lines + (prose(f"and {left} more; -o wide lists all", options, ink=Ink.FAINT) if left else [])


def as_data(found: Inventory) -> InventoryData:
    return {
        "by": found.by,
        "namespace": found.namespace or None,
        "rows": found.rows(),
        "closed": [{"node": one.name, "state": one.closed, "unused": unused} for one, unused in found.closed],
        "waiting": [
            {"pod": pod.ref, "requests": dict(pod.requests), "created": pod.created, "message": pod.message}
            for pod in found.waiting
        ],
        "notes": found.notes,
        "unknown": found.unknown,
        "simulated": found.simulated,
    }


def as_rows(found: Inventory) -> Iterator[Sequence[object]]:
    yield found.columns
    yield from (tuple(row.values()) for row in found.rows())


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
    inventory.by = by
    if typed.usage:
        await read_usage(session, inventory, typed.service)
    terminal.answer(
        InventoryData,
        lambda: as_data(inventory),
        lambda options: describe(inventory, session.now(), options),
        lambda: as_rows(inventory),
        (
            object_name(NAMED[by], row[by].rpartition("/")[2])
            for row in (inventory.rows() if terminal.output == "name" else ())
            if row[by] != NO_POLICY
        ),
    )
    return CHANGES if inventory.unknown else DONE


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
