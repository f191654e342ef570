"""`free [--by resource|node|policy|namespace|pod]`: show who holds the GPUs and what is free now, from Nodes and Pods
alone, with whatever rights the user has. `--usage` adds what each pod uses, as the agents report it."""

import asyncio
from argparse import Namespace
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from gpusharing.cli.shell.session import Session
from gpusharing.cli.shell.terminal import Terminal
from gpusharing.cli.shell.troubles import CHANGES, DONE, Denied, Trouble
from gpusharing.kube.client import GPUNODES, JSON, NODES, PODS
from gpusharing.kube.errors import first_of
from gpusharing.planning.vocabulary.lengths import counted
from gpusharing.usage.read.present import AgentPlace, UsageNow, agent_place, read_usage
from gpusharing.usage.reckon.holdings import (
    ENDED,
    GPUPod,
    Inventory,
    NodeStock,
    read_gpunode,
    read_pod,
    read_stock,
)
from gpusharing.usage.say.free import FreeReport, as_data, as_rows, describe

NOT_ENDED = ",".join(f"status.phase!={phase}" for phase in ENDED)
"""A field selector for the pods that may hold something."""


async def run(session: Session, typed: Namespace, terminal: Terminal) -> int:
    """Read nodes and pods, print the answer, and return DONE, or CHANGES if a part is unknown (see VerbModule). Raises
    Trouble if neither nodes nor pods can be read, or if a flag cannot be used."""
    by = typed.by or ("pod" if typed.usage else "resource")
    if typed.usage and by != "pod":
        raise Trouble(f"--usage shows what each pod uses: leave out --by {by}, or write --by pod")
    if typed.service and not typed.usage:
        raise Trouble("--service names the Prometheus for --usage: add --usage, or leave out --service")
    report = await read_report(session, typed, by)
    terminal.answer(lambda: as_data(report), lambda paper: describe(report, paper), lambda: as_rows(report))
    return CHANGES if report.unknown else DONE


@dataclass(slots=True)
class PodsRead:
    """What the pods that the user may read say."""

    namespace: str | None = None
    """The namespace that was read; None for all."""
    requesting: list[GPUPod] = field(default_factory=list)
    """The pods that hold or wait for GPU resources."""
    agents: list[AgentPlace] = field(default_factory=list)
    """The pods of our agent."""
    with_claims: int = 0
    """How many pods have ResourceClaims."""
    denied: str = ""
    """Why the pods of all namespaces were not read; empty if they were."""
    none: bool = False
    """Whether the user may not read the pods of `namespace` either."""

    def add(self, pods: Iterable[JSON]) -> None:
        """Record what these raw Pods say."""
        for raw in pods:
            if (pod := read_pod(raw)) is not None:
                self.requesting.append(pod)
            elif (agent := agent_place(raw)) is not None:
                self.agents.append(agent)
            self.with_claims += "resourceClaims" in raw.get("spec", {})


async def read_report(session: Session, typed: Namespace, by: str) -> FreeReport:
    """Read nodes and pods side by side and return the answer. Raises Trouble if neither can be read, for -l if nodes
    cannot be read, and for every error other than a missing permission."""
    namespace, labels = getattr(typed, "namespace", ""), typed.nodes
    try:
        async with asyncio.TaskGroup() as group:
            asked_nodes = group.create_task(_read_nodes(session, labels))
            asked_pods = group.create_task(_read_pods(session, namespace or session.namespace))
    except BaseExceptionGroup as errors:
        raise first_of(errors) from None
    (stocks, no_nodes), pods = asked_nodes.result(), asked_pods.result()
    if no_nodes and (pods.none or labels):
        raise Trouble(f"-l {labels} selects nodes, but {no_nodes}" if labels else no_nodes)
    if no_nodes or pods.denied:
        stocks |= await _read_gpunodes(session, stocks, known=not no_nodes)
    inventory = Inventory(
        stocks,
        sorted(pods.requesting, key=lambda pod: (pod.namespace, pod.name)),
        complete=not pods.denied,
        nodes_known=not no_nodes,
        chosen=bool(labels),
        namespace=namespace if not pods.denied else (pods.namespace or ""),
        blind=pods.none,
    )
    usage = None
    if typed.usage:
        nodes = {pod.node for pod in inventory.subjects if pod.node}
        usage = await read_usage(session, pods.agents, nodes, typed.service) if nodes else UsageNow()
    return FreeReport(
        inventory,
        by,
        session.now(),
        (*_unknown(inventory, no_nodes, pods), *(() if usage is None else usage.unknown)),
        usage,
        _notes(pods),
    )


async def _read_nodes(session: Session, labels: str) -> tuple[dict[str, NodeStock], str]:
    """Return the nodes with these labels by name, and an empty string; or no nodes, and why the user may not read
    them. Raises Trouble for every other error."""
    stocks: dict[str, NodeStock] = {}
    try:
        async for page in session.each_page(NODES, labels=labels):
            stocks |= {stock.name: stock for stock in map(read_stock, page)}
    except Denied as error:
        return {}, str(error)
    return stocks, ""


async def _read_pods(session: Session, own: str) -> PodsRead:
    """Return what the pods of all namespaces say or, if the user may not read these, those of the namespace `own`.
    Raises Trouble for every error other than a missing permission."""
    denied = ""
    for namespace in (None, own):
        pods = PodsRead(namespace, denied=denied)
        try:
            async for page in session.each_page(PODS, namespace, NOT_ENDED):
                pods.add(page)
        except Denied as error:
            denied = denied or str(error)
        else:
            return pods
    return PodsRead(own, denied=denied, none=True)


async def _read_gpunodes(
    session: Session, stocks: dict[str, NodeStock], *, known: bool
) -> dict[str, NodeStock]:
    """Return what GPUNodes say, by name: each of `stocks` with what its agent reports as allocated or, if the nodes are
    not `known`, all nodes. Nodes without a GPUNode are missing. Empty if GPUNodes cannot be read for whatever
    reason."""
    try:
        reports = [read_gpunode(raw) for raw in await session.all(GPUNODES)]
    except Trouble:
        return {}
    if not known:
        return {report.name: report for report in reports}
    return {
        report.name: replace(stocks[report.name], allocated=report.allocated, simulated=report.simulated)
        for report in reports
        if report.name in stocks
    }


def _unknown(inventory: Inventory, no_nodes: str, pods: PodsRead) -> list[str]:
    """Return a sentence for each kind of object that the user may not read: what is unknown because of that, and the
    API server's words. `no_nodes` is why the nodes could not be read, or empty."""
    sentences = [f"what is allocatable and free is unknown, because {no_nodes}"] if no_nodes else []
    if pods.denied:
        seen = "no pods are" if pods.none else f"only the pods of namespace {pods.namespace} are"
        reported = [stock.allocated is not None for stock in inventory.stocks.values() if stock.allocatable]
        if no_nodes:
            rest = ""
        elif reported and all(reported):
            rest = ", and what is free is computed from what the agents report as allocated"
        else:
            rest = ", so what is free is unknown"
        sentences.append(f"{seen} counted (-n NAME chooses another namespace){rest}: {pods.denied}")
    return sentences


def _notes(pods: PodsRead) -> tuple[str, ...]:
    """Return a sentence about pods that use devices without requesting a GPU resource, if there are any."""
    if not pods.with_claims:
        return ()
    have = "has" if pods.with_claims == 1 else "have"
    return (f"{counted(pods.with_claims, 'pod')} {have} ResourceClaims, whose devices are not counted here",)
