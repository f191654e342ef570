"""5,000 nodes and 50 policies on a real control plane: adoption, start, idleness and a rollout of 500 nodes, two of
them beside a raw loop.

Node software is SIMULATED for the nodes that roll. Nothing changes on the others, so this module writes their agents'
reports once.
"""

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from gpusharing.api import names
from gpusharing.kube.client import NODES, PODS
from gpusharing.kube.http import HttpClient
from gpusharing.kube.login import OfficialLogin
from gpusharing.planning.wanted.pluginconfig import NEUTRAL_KEY
from hack.bench import large, start
from hack.bench.machine import cpu_ms, peak_mib, reset_peak
from hack.bench.plain import MIG_OFF
from hack.bench.testbed import FULL, ROLL_FACTOR, SMALL_SLICES, Spent, Testbed, open_testbed
from hack.cluster import nodes
from hack.figures.page import Cell, Figures

NAMES = ("adopt", "start", "idle", "roll")
POOLS, EACH, ROLLED, AT_ONCE, GPUS = 50, 100, 5, 100, 8
"""Pools, nodes of each, how many of the pools roll, how many nodes change at once, and GPUs of a node."""
PREFIX = "roll"
"""The names of the nodes with SIMULATED node software begin with it."""
PATIENCE = 600.0
IDLE = 60.0


def measure(wanted: frozenset[str]) -> Iterator[tuple[str, Figures]]:
    """Open a testbed, let the operator adopt all nodes, and yield the figures of the wanted steps, one after another.
    Raises TimeoutError if a step takes longer than PATIENCE."""
    with open_testbed(ROLL_FACTOR, arguments=("--node-prefix", PREFIX)) as testbed:
        pools = _create_nodes(testbed)
        with spending(testbed) as adopted:
            for pool in pools:
                testbed.apply_policy(pool, pool, {**FULL, "rollout": {"maxUnavailable": AT_ONCE}})
            testbed.wait_ready(pools, PATIENCE)
        testbed.wait_silent(at_most=PATIENCE)
        if "adopt" in wanted:
            everyone = [f"{pool}-{index:04}" for pool in pools for index in range(EACH)]
            span, used, begun = testbed.span(), time.process_time(), time.monotonic()
            asyncio.run(large.relabel(testbed, everyone))
            raw = [time.monotonic() - begun, time.process_time() - used, None, len(everyone), 0]
            yield "adopt", Figures([["adopt", "operator", *adopted], ["adopt", "raw loop", *raw]], "")
        if "start" in wanted:
            testbed.operator.stop()
            with spending(testbed, stopped=True) as spent:
                testbed.operator.start()
                start.wait_planned(testbed, PATIENCE)
            yield "start", Figures([["start", "operator", *spent]], "")
        if "idle" in wanted:
            testbed.wait_silent(seconds=10, at_most=PATIENCE)
            with spending(testbed) as spent:
                time.sleep(IDLE)
            yield "idle", Figures([["idle", "operator", *spent]], "")
        if "roll" in wanted:
            yield "roll", _roll(testbed, pools[:ROLLED])


def _create_nodes(testbed: Testbed) -> list[str]:
    """Create the nodes of all pools, wait until each has an agent's report, and return the names of the pools. Those
    that roll come first. Raises TimeoutError after PATIENCE."""
    rolled = [f"{PREFIX}-{number}" for number in range(ROLLED)]
    still = [f"still-{number:02}" for number in range(POOLS - ROLLED)]
    for pools, product in ((still, start.PRODUCT), (rolled, "NVIDIA H100 80GB HBM3")):
        made = [
            nodes.node_manifest(f"{pool}-{index:04}", pool=pool, product=product, gpus=GPUS)
            for pool in pools
            for index in range(EACH)
        ]
        if pools is still:
            nodes.create_nodes(testbed.api, map(large.as_kubelets_report, made))
            start.report(testbed, len(made), PATIENCE)
        else:
            testbed.create_nodes([large.as_kubelets_report(one) for one in made])
    return [*rolled, *still]


@contextmanager
def spending(testbed: Testbed, *, stopped: bool = False) -> Iterator[list[Cell]]:
    """Yield a list to which the operator's costs of the block are added at its end: seconds, CPU seconds, peak memory
    in MiB, writes and reads. With `stopped` the operator does not run yet, and the block starts it."""
    if stopped:
        span, used = Spent(testbed.plane.audit_log.stat().st_size, 0, time.monotonic()), 0.0
    else:
        reset_peak(testbed.operator.pid)
        span, used = testbed.span(), cpu_ms(testbed.operator.pid)
    costs: list[Cell] = []
    yield costs
    seconds, cpu = time.monotonic() - span.begun, (cpu_ms(testbed.operator.pid) - used) / 1000
    counts = testbed.counts(span)
    costs += [seconds, cpu, peak_mib(testbed.operator.pid), counts.writes, counts.reads + counts.polls]


def _roll(testbed: Testbed, pools: Sequence[str]) -> Figures:
    """Let the operator change the pools to MIG, and then, without an operator, the raw loop change them back. Raises
    TimeoutError if either takes longer than PATIENCE."""
    with spending(testbed) as spent:
        span = testbed.span()
        for pool in pools:
            testbed.edit(pool, SMALL_SLICES)
        testbed.wait_ready(pools, PATIENCE)
    counted = large.efficiency("", testbed, span, len(pools) * EACH, AT_ONCE)
    testbed.operator.stop()
    raw = asyncio.run(_loop(testbed, [f"{pool}-{index:04}" for pool in pools for index in range(EACH)]))
    return Figures([["roll", "operator", *spent], ["roll", "raw loop", *raw]], f"{counted.how}.")


async def _loop(testbed: Testbed, node_names: Sequence[str]) -> list[Cell]:
    """Change the nodes to whole GPUs as a script would that knows NVIDIA's labels, AT_ONCE at a time and with the rights
    of an admin. Returns seconds, CPU seconds, None, and the numbers of writes and reads. Raises KubeError if a call
    fails, and TimeoutError after PATIENCE."""
    slots, verbs = asyncio.Semaphore(AT_ONCE), list[str]()
    begun, used = time.monotonic(), time.process_time()
    login = OfficialLogin(testbed.plane.kubeconfig)
    async with (
        asyncio.timeout(PATIENCE),
        HttpClient(login, name="raw-loop", on_call=lambda request, _: verbs.append(request.verb)) as client,
        asyncio.TaskGroup() as tasks,
    ):
        for name in node_names:
            tasks.create_task(_change(client, name, slots))
    writes = verbs.count("patch")
    reads = verbs.count("list")
    return [time.monotonic() - begun, time.process_time() - used, None, writes, reads]


async def _change(client: HttpClient, name: str, slots: asyncio.Semaphore) -> None:
    """Once a slot is free, cordon a node, list its pods, set NVIDIA's labels for whole GPUs, watch until mig-manager has
    succeeded and the GPUs are allocatable, and uncordon the node. Evicts nothing. Raises KubeError if a call fails."""
    async with slots:
        await client.patch(NODES, name, {"spec": {"unschedulable": True}})
        await client.list_page(PODS, field_selector=f"spec.nodeName={name}")
        labels = {
            names.LABEL_MIG_CONFIG: MIG_OFF,
            names.LABEL_PLUGIN_CONFIG: NEUTRAL_KEY,
            names.LABEL_MIG_STATE: None,
        }
        node = await client.patch(NODES, name, {"metadata": {"labels": labels}})
        version = node["metadata"]["resourceVersion"]
        async for event in client.watch(NODES, version, field_selector=f"metadata.name={name}"):
            state = event.object["metadata"].get("labels", {}).get(names.LABEL_MIG_STATE)
            resources = event.object.get("status", {}).get("allocatable", {})
            if state == "success" and resources.get(names.RESOURCE_GPU) == str(GPUS):
                break
        await client.patch(NODES, name, {"spec": {"unschedulable": None}})
