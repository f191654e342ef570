"""5,000 nodes (or NODES=) and 50 policies: adoption, start, idleness and a rollout of a tenth, beside a raw loop.

Only the nodes that roll have SIMULATED node software. Each measurement begins on a copy of a stored cluster.
"""

import asyncio
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from gpusharing.api import names
from gpusharing.kube.client import NODES, PODS
from gpusharing.kube.fence import MOST_CLAIMS
from gpusharing.kube.http import HttpClient
from gpusharing.kube.login import OfficialLogin
from gpusharing.planning.wanted.pluginconfig import NEUTRAL_KEY
from hack.bench import large, start
from hack.bench.machine import cpu_ms, peak_mib, reset_peak
from hack.bench.plain import MIG_OFF
from hack.bench.testbed import FULL, ROLL_FACTOR, SMALL_SLICES, Testbed, open_testbed
from hack.cluster import nodes
from hack.figures.page import Cell, Figures
from hack.launch import ROOT

POOLS, ROLLED, GPUS = 50, 5, 8
"""Pools with a policy each, how many of them roll, and GPUs of a node."""
PREFIX = "roll"
SOFTWARE = ("--node-prefix", PREFIX)
"""Arguments of the node software: only nodes whose names begin with PREFIX are simulated."""
ROLLING = [f"{PREFIX}-{number}" for number in range(ROLLED)]
STILL = [f"still-{number:02}" for number in range(POOLS - ROLLED)]
POLICIES = [*ROLLING, *STILL]
PATIENCE = 900.0
IDLE = 60.0
CREATED, ADOPTED = "created", "adopted"
"""The names of the folders of the control plane with the nodes, and with the nodes adopted (`_state`)."""
DONE = "done"
"""The file in a stored control plane without which it is incomplete."""


def pool_size(environ: Mapping[str, str] = os.environ) -> int:
    """Return how many nodes each pool has, by $NODES or 5,000 in all. Raises ValueError for people."""
    text = environ.get("NODES") or "5000"
    if not (text.isascii() and text.isdecimal() and 1 <= int(text) // POOLS <= MOST_CLAIMS):
        most = POOLS * (MOST_CLAIMS + 1) - 1
        raise ValueError(f"NODES={text} is not a number from {POOLS} to {most}: use NODES=1000")
    return int(text) // POOLS


def _count() -> int:
    return POOLS * pool_size()


def _state(name: str) -> Path:
    return ROOT / "build" / "figures" / f"{_count()}" / name


def measure(name: str) -> Figures:
    """Return the figures `name`, after creating and adopting the nodes as far as that is missing."""
    if not (_state(CREATED) / DONE).exists():
        _create()
    if name == "adopt" or not (_state(ADOPTED) / DONE).exists():
        adopted = _adopt()
        if name == "adopt":
            return adopted
    with tempfile.TemporaryDirectory() as folder, _testbed(Path(folder) / "plane", _state(ADOPTED)) as testbed:
        testbed.wait_silent(seconds=10, at_most=PATIENCE)
        return STEPS[name](testbed)


@contextmanager
def _testbed(folder: Path, begin: Path | None = None) -> Iterator[Testbed]:
    if begin is not None:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(begin, folder, ignore=shutil.ignore_patterns("*.log", DONE))
    at_once = str(pool_size())
    with open_testbed(ROLL_FACTOR, arguments=SOFTWARE, directory=folder, max_in_flight=at_once) as testbed:
        yield testbed


def _create() -> None:
    _state(CREATED).parent.mkdir(parents=True, exist_ok=True)
    with _testbed(_state(CREATED)) as testbed:
        testbed.create_nodes(_manifests(ROLLING, "NVIDIA H100 80GB HBM3"))
        nodes.create_nodes(testbed.api, _manifests(STILL, start.PRODUCT))
        start.report(testbed, _count(), PATIENCE)
        testbed.wait_silent(at_most=PATIENCE)
    (_state(CREATED) / DONE).touch()


def _adopt() -> Figures:
    with _testbed(_state(ADOPTED), _state(CREATED)) as testbed:
        testbed.wait_silent(seconds=10, at_most=PATIENCE)
        with spending(testbed) as costs:
            for pool in POLICIES:
                testbed.apply_policy(pool, pool, {**FULL, "rollout": {"maxUnavailable": pool_size()}})
            testbed.wait_ready(POLICIES, PATIENCE)
        testbed.wait_silent(at_most=PATIENCE)
    (_state(ADOPTED) / DONE).touch()
    how = "" if _count() == 5000 else "5,000 nodes are not measured yet: `make report`"
    return Figures([["adopt", "operator", _count(), *costs]], how)


def _manifests(pools: Sequence[str], product: str) -> list[dict[str, object]]:
    return [
        large.as_kubelets_report(nodes.node_manifest(name, pool=pool, product=product, gpus=GPUS))
        for pool in pools
        for name in _nodes_of([pool])
    ]


def _nodes_of(pools: Sequence[str]) -> list[str]:
    return [f"{pool}-{index:04}" for pool in pools for index in range(pool_size())]


@contextmanager
def spending(testbed: Testbed, *, stopped: bool = False) -> Iterator[list[Cell]]:
    """Yield a list that gets the costs of the block at its end. With `stopped` it starts the operator."""
    used = 0.0
    if not stopped:
        reset_peak(testbed.operator.pid)
        used = cpu_ms(testbed.operator.pid)
    span = testbed.span(stopped=stopped)
    costs: list[Cell] = []
    yield costs
    seconds, cpu = time.monotonic() - span.begun, (cpu_ms(testbed.operator.pid) - used) / 1000
    counts = testbed.counts(span)
    costs += [seconds, cpu, peak_mib(testbed.operator.pid), counts.writes, counts.reads + counts.polls]


def _adopt_by_loop(testbed: Testbed) -> Figures:
    everyone = _nodes_of(POLICIES)
    begun, used = time.monotonic(), time.process_time()
    asyncio.run(large.relabel(testbed, everyone))
    costs = [time.monotonic() - begun, time.process_time() - used, None, len(everyone), 0]
    return Figures([["adopt", "raw loop", len(everyone), *costs]])


def _start(testbed: Testbed) -> Figures:
    testbed.operator.stop()
    with spending(testbed, stopped=True) as costs:
        testbed.operator.start()
        start.wait_planned(testbed, PATIENCE)
    return Figures([["start", "operator", _count(), *costs]])


def _idle(testbed: Testbed) -> Figures:
    with spending(testbed) as costs:
        time.sleep(IDLE)
    return Figures([["idle", "operator", _count(), *costs]])


def _roll(testbed: Testbed) -> Figures:
    with spending(testbed) as costs:
        span = testbed.span()
        for pool in ROLLING:
            testbed.edit(pool, SMALL_SLICES)
        testbed.wait_ready(ROLLING, PATIENCE)
    rolled = _nodes_of(ROLLING)
    counted = large.efficiency("", testbed, span, len(rolled), pool_size())
    testbed.operator.stop()
    raw = asyncio.run(_loop(testbed, rolled))
    rows = [["roll", "operator", len(rolled), *costs], ["roll", "raw loop", len(rolled), *raw]]
    return Figures(rows, f"{counted.how}; at most {pool_size()} at once; {_count():,} nodes in all")


STEPS: Mapping[str, Callable[[Testbed], Figures]] = {
    "adopt-loop": _adopt_by_loop,
    "start": _start,
    "idle": _idle,
    "roll": _roll,
}
"""The measurements on a copy of the adopted cluster, each with the function that takes it on an idle testbed."""


async def _loop(testbed: Testbed, node_names: Sequence[str]) -> list[Cell]:
    slots, verbs = asyncio.Semaphore(pool_size()), list[str]()
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
    async with slots:
        await client.patch(NODES, name, {"spec": {"unschedulable": True}})
        await client.list_page(PODS, field_selector=f"spec.nodeName={name}")
        labels = {names.LABEL_MIG_CONFIG: MIG_OFF, names.LABEL_PLUGIN_CONFIG: NEUTRAL_KEY, names.LABEL_MIG_STATE: None}
        node = await client.patch(NODES, name, {"metadata": {"labels": labels}})
        version = node["metadata"]["resourceVersion"]
        async for event in client.watch(NODES, version, field_selector=f"metadata.name={name}"):
            state = event.object["metadata"].get("labels", {}).get(names.LABEL_MIG_STATE)
            resources = event.object.get("status", {}).get("allocatable", {})
            if state == "success" and resources.get(names.RESOURCE_GPU) == str(GPUS):
                break
        await client.patch(NODES, name, {"spec": {"unschedulable": None}})
