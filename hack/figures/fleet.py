"""5,000 nodes (or NODES=) and 50 policies on a real control plane: adoption, start, idleness and a rollout of a tenth
of the nodes, beside a raw loop.

Node software is SIMULATED for the nodes that roll. Nothing changes on the others, so this module writes their agents'
reports once. The created and the adopted cluster are stored, and each measurement begins on a copy of one of them.
"""

import asyncio
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

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
from hack.launch import ROOT

POOLS, ROLLED, GPUS = 50, 5, 8
"""Pools with a policy each, how many of them roll, and GPUs of a node."""


def divided(nodes: str) -> int:
    """Return how many nodes each of the POOLS has, from the number of all nodes; a remainder is left out. Exits with a
    message if the number is not decimal or below POOLS."""
    if not (nodes.isascii() and nodes.isdecimal() and int(nodes) >= POOLS):
        sys.exit(f"NODES={nodes} is not a number of at least {POOLS}, one node for each pool: use NODES=1000")
    return int(nodes) // POOLS


EACH = AT_ONCE = divided(os.environ.get("NODES") or "5000")
"""Nodes of each pool, and how many nodes change at once."""
COUNT = POOLS * EACH
FEWER = "" if COUNT == 5000 else "5,000 nodes are not measured yet: `make report`"
"""What the page says about the size of the fleet."""
PREFIX = "roll"
SOFTWARE = ("--node-prefix", PREFIX)
"""Arguments of the node software: only nodes whose names begin with PREFIX are simulated."""
ROLLING = [f"{PREFIX}-{number}" for number in range(ROLLED)]
STILL = [f"still-{number:02}" for number in range(POOLS - ROLLED)]
POLICIES = [*ROLLING, *STILL]
PATIENCE = 900.0
IDLE = 60.0
STATES = ROOT / "build" / "figures" / f"{COUNT}"
CREATED, ADOPTED = STATES / "created", STATES / "adopted"
"""The folders of the control plane with the nodes, and with the nodes adopted. Incomplete without the file DONE."""
DONE = "done"


def measure(name: str) -> Figures:
    """Create and adopt the nodes, as far as that was not done before or `name` is `adopt`, and return the figures
    `name`. Raises TimeoutError if a step takes longer than PATIENCE."""
    if not (CREATED / DONE).exists():
        _create()
    if name == "adopt" or not (ADOPTED / DONE).exists():
        adopted = _adopt()
        if name == "adopt":
            return adopted
    with tempfile.TemporaryDirectory() as folder, _testbed(Path(folder) / "plane", ADOPTED) as testbed:
        testbed.wait_silent(seconds=10, at_most=PATIENCE)
        return STEPS[name](testbed)


@contextmanager
def _testbed(folder: Path, begin: Path | None = None) -> Iterator[Testbed]:
    """Open a testbed whose control plane has its files in `folder`. It continues there, or begins on a copy of `begin`
    if that is not None."""
    if begin is not None:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(begin, folder, ignore=shutil.ignore_patterns("*.log", DONE))
    with open_testbed(ROLL_FACTOR, arguments=SOFTWARE, directory=folder) as testbed:
        yield testbed


def _create() -> None:
    """Create the nodes with their agents' reports, except those that an earlier call created before it was ended,
    and store the cluster in CREATED."""
    STATES.mkdir(parents=True, exist_ok=True)
    with _testbed(CREATED) as testbed:
        testbed.create_nodes(_manifests(ROLLING, "NVIDIA H100 80GB HBM3"))
        nodes.create_nodes(testbed.api, _manifests(STILL, start.PRODUCT))
        start.report(testbed, COUNT, PATIENCE)
        testbed.wait_silent(at_most=PATIENCE)
    (CREATED / DONE).touch()


def _adopt() -> Figures:
    """Let the operator adopt the nodes, store the cluster in ADOPTED, and return the figures `adopt`."""
    with _testbed(ADOPTED, CREATED) as testbed:
        testbed.wait_silent(seconds=10, at_most=PATIENCE)
        with spending(testbed) as costs:
            for pool in POLICIES:
                testbed.apply_policy(pool, pool, {**FULL, "rollout": {"maxUnavailable": AT_ONCE}})
            testbed.wait_ready(POLICIES, PATIENCE)
        testbed.wait_silent(at_most=PATIENCE)
    (ADOPTED / DONE).touch()
    return Figures([["adopt", "operator", COUNT, *costs]], FEWER)


def _manifests(pools: Sequence[str], product: str) -> list[dict[str, object]]:
    """Return the Nodes of these pools, each as large as a kubelet reports it."""
    return [
        large.as_kubelets_report(nodes.node_manifest(name, pool=pool, product=product, gpus=GPUS))
        for pool in pools
        for name in _nodes_of([pool])
    ]


def _nodes_of(pools: Sequence[str]) -> list[str]:
    """Return the names of all nodes of these pools."""
    return [f"{pool}-{index:04}" for pool in pools for index in range(EACH)]


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


def _adopt_by_loop(testbed: Testbed) -> Figures:
    """Let the raw loop write a label and an annotation to every node, as the adoption does."""
    everyone = _nodes_of(POLICIES)
    begun, used = time.monotonic(), time.process_time()
    asyncio.run(large.relabel(testbed, everyone))
    costs = [time.monotonic() - begun, time.process_time() - used, None, len(everyone), 0]
    return Figures([["adopt", "raw loop", COUNT, *costs]])


def _start(testbed: Testbed) -> Figures:
    """Replace the operator with a new process, until it has planned once."""
    testbed.operator.stop()
    with spending(testbed, stopped=True) as costs:
        testbed.operator.start()
        start.wait_planned(testbed, PATIENCE)
    return Figures([["start", "operator", COUNT, *costs]])


def _idle(testbed: Testbed) -> Figures:
    """Wait for IDLE seconds in which nothing changes."""
    with spending(testbed) as costs:
        time.sleep(IDLE)
    return Figures([["idle", "operator", COUNT, *costs]])


def _roll(testbed: Testbed) -> Figures:
    """Measure how the operator, which must be running, changes the pools ROLLING to MIG. Then stop the operator, and
    measure how the raw loop changes the same nodes back to whole GPUs. Returns the figures of both. Raises TimeoutError
    if a pool or the raw loop takes longer than PATIENCE."""
    with spending(testbed) as costs:
        span = testbed.span()
        for pool in ROLLING:
            testbed.edit(pool, SMALL_SLICES)
        testbed.wait_ready(ROLLING, PATIENCE)
    rolled = _nodes_of(ROLLING)
    counted = large.efficiency("", testbed, span, len(rolled), AT_ONCE)
    testbed.operator.stop()
    raw = asyncio.run(_loop(testbed, rolled))
    rows = [["roll", "operator", len(rolled), *costs], ["roll", "raw loop", len(rolled), *raw]]
    return Figures(rows, f"{counted.how}; {COUNT:,} nodes in all")


STEPS: Mapping[str, Callable[[Testbed], Figures]] = {
    "adopt-loop": _adopt_by_loop,
    "start": _start,
    "idle": _idle,
    "roll": _roll,
}
"""The measurements on a copy of the adopted cluster, each with the function that takes it on an idle testbed."""
NAMES = ("adopt", *STEPS)


async def _loop(testbed: Testbed, node_names: Sequence[str]) -> list[Cell]:
    """Change the nodes to whole GPUs as a script would that knows NVIDIA's labels, AT_ONCE at a time and as admin.
    Returns seconds, CPU seconds, None, and the numbers of writes and reads. Raises KubeError if a call fails, and
    TimeoutError after PATIENCE."""
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
    seconds, cpu = time.monotonic() - begun, time.process_time() - used
    return [seconds, cpu, None, verbs.count("patch"), verbs.count("list")]


async def _change(client: HttpClient, name: str, slots: asyncio.Semaphore) -> None:
    """Once a slot is free, cordon a node, list its pods, set NVIDIA's labels for whole GPUs, watch until mig-manager
    has succeeded and the GPUs are allocatable, and uncordon the node. Evicts nothing. Raises KubeError if a call
    fails."""
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
