"""`python -m tests.embedded.fleetday`: 24 SIMULATED hours of 500 nodes, as figures for docs/explanation/performance.md.
The last line printed is JSON (`hack/figures/page.py`, Figures). Every invariant of `guard.py` is watched; a broken one is an AssertionError, and nothing is printed then."""

import asyncio
import gc
import json
import logging
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from types import AsyncGeneratorType, CoroutineType, FrameType, FunctionType, ModuleType

import structlog
from hack.cluster.nodes import LABEL_POOL
from hack.sim.fakecluster import FakeClient
from hack.sim.fakestore import StoredChange
from hack.sim.settings import Times
from hack.sim.workloads import SimWorkload
from tests.embedded.scene import FULL, HOUR, RARELY, SINGLE, Scene, node, open_scene
from tests.fakes.virtualtime import run_virtually
from tests.nodewrites import fence_of

from gpusharing.kube.client import NODES, PODS, Resource

POOLS, EACH, GPUS, PODS_EACH = 10, 50, 2, 40
"""Pools, nodes of a pool, GPUs of a node, and pods with one GPU in each pool."""
INTERVAL = 600.0
"""Seconds between two readings of an agent that nothing wakes, and between two rounds of NVIDIA's GPU Feature Discovery. The shipped 30 and 60 s would take hours to simulate."""
OUTSIDE = (
    type,
    ModuleType,
    FunctionType,
    FrameType,
    CoroutineType,
    AsyncGeneratorType,
    asyncio.Future,
    asyncio.AbstractEventLoop,
    FakeClient,
)
"""Types of objects that belong to the interpreter or to the simulation, or that lead there, as a task leads to all that wait for the same event. What only a waiting coroutine of the operator holds is not counted either."""


def footprint(*roots: object) -> int:
    """Return the bytes of all Python objects that can be reached from the roots, without those in OUTSIDE and what only these lead to."""
    counted, waiting, total = set[int](), list(roots), 0
    while waiting:
        item = waiting.pop()
        if id(item) in counted or isinstance(item, OUTSIDE):
            continue
        counted.add(id(item))
        total += sys.getsizeof(item)
        waiting += gc.get_referents(item)
    return total


def pool_of(number: int) -> str:
    return f"pool-{number}"


def workloads() -> Iterator[SimWorkload]:
    """Yield the pods of each pool. Both layouts serve the resource that they request."""
    for number in range(POOLS):
        yield SimWorkload(f"job-{number}", PODS_EACH, node_selector={LABEL_POOL: pool_of(number)})


def change(scene: Scene, number: int, *, divided: bool) -> None:
    spec = SINGLE if divided else FULL
    scene.apply(
        spec, pool_of(number), pool_of(number), rollout={"maxUnavailable": "20%"}, drain={"strandedPods": "Allow"}
    )


async def replace_node(scene: Scene, number: int, hour: int) -> None:
    name = f"{pool_of(number)}-{hour}"
    for pod in scene.e.cluster.objects(PODS):
        if pod["spec"].get("nodeName") == name and "deletionTimestamp" not in pod["metadata"]:
            scene.e.cluster.delete(PODS, pod["metadata"]["name"], pod["metadata"]["namespace"])
            scene.e.cluster.pods.finish(uid=pod["metadata"]["uid"])
    scene.e.cluster.delete(NODES, name)
    await asyncio.sleep(600)
    scene.e.cluster.add(NODES, node(f"{name}-new", pool=pool_of(number), gpus=GPUS))


def figures_of(scene: Scene, released: int, sizes: Sequence[float]) -> dict[str, object]:
    """Return the figures of a day. `sizes` are the MiB of the operator's objects after each hour. Some of them may include a list that is being read at that moment, so the least of three counts."""
    events, writes, evicted = scene.events(), scene.writes(), len(scene.evicted())
    kinds = Counter(write.call.resource.plural for write in writes if write.error is None)
    by_kind = ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common())
    rows = [
        ["nodes changed and returned to service", released],
        ["pods evicted", evicted],
        ["changes given up or failed", events["NodeFailed"] + events["ChangeGivenUp"]],
        [f"writes of the operator ({by_kind})", kinds.total()],
        ["refused writes", sum(write.error is not None for write in writes)],
        ["operator's Python objects, least of the first three hours (MiB)", min(sizes[:3])],
        ["operator's Python objects, least of the last three hours (MiB)", min(sizes[-3:])],
    ]
    return {"rows": rows}


async def day(hours: int = 24) -> dict[str, object]:
    """Play the day and return its figures. Raises AssertionError if an invariant breaks, or if a rollout takes longer than 50 minutes."""
    manifests = [node(f"{pool_of(n)}-{i}", pool=pool_of(n), gpus=GPUS) for n in range(POOLS) for i in range(EACH)]
    sizes: list[float] = []
    released = 0
    begun = time.monotonic()
    async with open_scene(
        *manifests,
        workloads=workloads(),
        lease=RARELY,
        sim={"agent_interval": INTERVAL, "times": Times(gfd_loop=INTERVAL)},
    ) as scene:

        def note_release(resource: Resource, change: StoredChange) -> None:
            nonlocal released
            if resource == NODES and change.old and change.new:
                released += fence_of(change.old) is not None and fence_of(change.new) is None

        scene.e.cluster.store.on_commit.append(note_release)
        clock = asyncio.get_running_loop().time
        start = clock()
        for number in range(POOLS):
            change(scene, number, divided=False)
        await scene.ready(*map(pool_of, range(POOLS)), seconds=HOUR)
        for hour in range(hours):
            number = hour % POOLS
            change(scene, number, divided=hour < POOLS or hour >= 2 * POOLS)
            await scene.ready(pool_of(number), seconds=3000)
            if hour % 4 == 1:
                await replace_node(scene, (number + 1) % POOLS, hour)
            await asyncio.sleep(start + (hour + 1) * HOUR - clock())
            gc.collect()
            sizes.append(footprint(scene.e.loop, scene.e.lease) / 2**20)
            print(f"hour {hour + 1}: {sizes[-1]:.1f} MiB, {time.monotonic() - begun:.0f} s", file=sys.stderr)
        return figures_of(scene, released, sizes)


if __name__ == "__main__":
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    print(json.dumps(run_virtually(day(int(sys.argv[1]) if sys.argv[1:] else 24))))
