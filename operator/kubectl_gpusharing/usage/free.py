"""`free [--by resource|node|policy|namespace|pod]`: show who holds the GPUs and what is free now, from Nodes and Pods;
from policies, too, if GPUs are shared by time-slicing, and from GPUNodes if the user may not read all Nodes and Pods.
`--usage` adds what each pod uses, as the agents report it."""

from argparse import Namespace
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

from gpusharing.kube.agentpods import AGENT
from gpusharing.kube.client import GPUNODES, NAMESPACES, NODES, PODS, POLICIES
from gpusharing.kube.raw import part, text
from kubectl_gpusharing.shell.documents import InventoryData
from kubectl_gpusharing.shell.session import Session, object_name
from kubectl_gpusharing.shell.terminal import Terminal
from kubectl_gpusharing.shell.troubles import CHANGES, DONE, Denied, Trouble
from kubectl_gpusharing.usage.prometheus.client import side_by_side
from kubectl_gpusharing.usage.read.present import read_usage
from kubectl_gpusharing.usage.reckon.holdings import (
    ENDED,
    NO_POLICY,
    Inventory,
    read_gpunode,
    read_pod,
    read_stock,
)
from kubectl_gpusharing.usage.say.free import FreeReport, as_data, as_rows, describe

NOT_ENDED = ",".join(f"status.phase!={phase}" for phase in ENDED)
"""A field selector for the pods that may hold something."""
NAMED = {"node": NODES, "policy": POLICIES, "namespace": NAMESPACES, "pod": PODS}
"""The kinds whose names -o name prints, by what the rows are about."""


async def run(session: Session, typed: Namespace, terminal: Terminal) -> int:
    """Read nodes and pods, with --usage also what those pods of the answer use that have a node, print the answer, and
    return DONE, or CHANGES if a part of the answer is unknown (see VerbModule). The rows are about what --by says, or
    else about pods with --usage and about resources without it. Raises Trouble for --usage with another --by, for
    --service without --usage, for -o name if the rows are about resources, and wherever `read_inventory` does."""
    by = typed.by or ("pod" if typed.usage else "resource")
    if typed.usage and by != "pod":
        raise Trouble(f"--usage shows what each pod uses: leave out --by {by}, or write --by pod")
    if typed.service and not typed.usage:
        raise Trouble("--service only works with --usage: add --usage, or leave out --service")
    if terminal.output == "name" and by not in NAMED:
        raise Trouble("-o name prints names of objects: add --by node, policy, namespace or pod")
    inventory = await read_inventory(session, getattr(typed, "namespace", ""), typed.nodes)
    usage = None
    if typed.usage:
        bound = {(pod.namespace, pod.name): pod.node for pod in inventory.subjects if pod.node}
        usage = await read_usage(session, inventory.agents, bound, typed.service)
    report = FreeReport(inventory, by, session.now(), usage)
    terminal.answer(
        InventoryData,
        lambda: as_data(report),
        lambda paper: describe(report, paper),
        lambda: as_rows(report),
        _names(report),
    )
    return CHANGES if report.unknown else DONE


def _names(report: FreeReport) -> Iterator[str]:
    """Yield the name of the object that each row is about, as kubectl prints it, without a namespace and once for each
    row. The rows must be about a key of NAMED; those about nodes without a policy have no name. The rows are counted
    only when the first name is taken."""
    for row in report.rows():
        if row[report.by] != NO_POLICY:
            yield object_name(NAMED[report.by], row[report.by].rpartition("/")[2])


async def read_inventory(session: Session, namespace: str, labels: str) -> Inventory:
    """Read nodes and pods concurrently, and GPUNodes too if the user may not read all of them. `namespace` and
    `labels` are those that the user typed, or empty. If Nodes could not be read, all GPUNodes count as nodes. Otherwise
    they add to the nodes in the inventory what the agent reports as allocated and whether the GPUs are SIMULATED; if
    GPUNodes cannot be read for any reason, nothing is added. Raises Trouble if the user may read neither nodes nor any
    pods, if labels are given and nodes cannot be read, and if one of these two reads fails other than by a missing
    permission."""
    inventory = Inventory(namespace=namespace, chosen=bool(labels))
    await side_by_side(_read_nodes(session, inventory, labels), _read_pods(session, inventory))
    await _read_limits(session, inventory)
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
    """Add the nodes with these labels to the inventory. If the user may not read nodes, set `no_nodes` to the reason
    and leave the inventory without nodes. Raises Trouble for every other error."""
    try:
        async for page in session.each_page(NODES, label_selector=labels):
            inventory.stocks |= {stock.name: stock for stock in map(read_stock, page)}
    except Denied as error:
        inventory.stocks, inventory.no_nodes = {}, str(error)


async def _read_limits(session: Session, inventory: Inventory) -> None:
    """Set `one_each` of the nodes where it is None, to whether their policy refuses containers that request more than
    one share. Nothing is read if there are none, and it stays None if policies cannot be read for any reason."""
    if sliced := [stock for stock in inventory.stocks.values() if stock.one_each is None]:
        with suppress(Trouble):
            strict = {
                text(raw, "metadata", "name")
                for raw in await session.all(POLICIES)
                if part(raw, "spec", "timeSlicing", "failRequestsGreaterThanOne") is True
            }
            inventory.stocks |= {one.name: replace(one, one_each=one.policy in strict) for one in sliced}


async def _read_pods(session: Session, inventory: Inventory) -> None:
    """Read the pods of all namespaces that have not ended. Add to the inventory those that request GPUs, the agent's
    pods, unless these request GPUs, and how many pods of any kind have ResourceClaims. If the user may not read all
    namespaces, set `no_pods` to the reason, and read one namespace instead: that of the inventory, by default that of
    the context, which then becomes the inventory's. If its pods may not be read either, set `blind`. Raises Trouble for
    every other error."""
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
