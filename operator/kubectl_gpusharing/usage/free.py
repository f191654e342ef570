"""`free [--by resource|node|policy|namespace|pod]`: show who holds the GPUs and what is free now, from Nodes and Pods; from policies, too, if GPUs are shared by time-slicing, and from GPUNodes if the user may not read all Nodes and Pods. `--usage` adds what each pod uses, as the agents report it."""

from argparse import Namespace
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
    """Print who holds the GPUs; CHANGES if a part of the answer is unknown."""
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
        (
            object_name(NAMED[by], row[by].rpartition("/")[2])
            for row in (report.rows() if terminal.output == "name" else ())
            if row[by] != NO_POLICY
        ),
    )
    return CHANGES if report.unknown else DONE


async def read_inventory(session: Session, namespace: str, labels: str) -> Inventory:
    """Read nodes with these labels and pods, and GPUNodes too if the user may not read all of them. Raises Trouble if the user may read neither nodes nor any pods."""
    inventory = Inventory(namespace=namespace, chosen=bool(labels))
    await side_by_side(_read_nodes(session, inventory, labels), _read_pods(session, inventory))
    if sliced := [stock for stock in inventory.stocks.values() if stock.one_each is None]:
        with suppress(Trouble):
            strict = {
                text(raw, "metadata", "name")
                for raw in await session.all(POLICIES)
                if part(raw, "spec", "timeSlicing", "failRequestsGreaterThanOne") is True
            }
            inventory.stocks |= {one.name: replace(one, one_each=one.policy in strict) for one in sliced}
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
