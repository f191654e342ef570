"""Golden scenarios (goldens.py) played with an operator that is killed at any write, and the state they must end in.
The way to each of many writes is played only once: until then each of these runs is the run in which nothing happens. So that one is played, the process is forked at each write, and it happens in the child, which plays on to the end and hands its run over; the parent waits for it and goes on undisturbed. `test_crash.py` compares with runs that were played from the beginning."""

import asyncio
import gc
import json
import os
import pickle
import random
import re
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, BinaryIO, NoReturn

from hack.embedded import CLUSTER_POLICY
from hack.sim.fakefaults import Crash, Write
from hack.sim.mortal import Disturbance, MortalClient, When
from tests.embedded.goldens import Golden
from tests.embedded.mpsset import DEAF, counted, reported, signalled
from tests.embedded.plainscene import with_mig_manager
from tests.embedded.scene import DRA_POLICY, Scene, nodes, open_scene
from tests.fakes.virtualtime import VirtualLoop, run_virtually, virtual_now

from gpusharing.api import names
from gpusharing.kube.client import (
    CLUSTER_POLICIES,
    CONFIG_MAPS,
    DEVICE_CLASSES,
    DEVICE_TAINT_RULES,
    GPUNODES,
    JSON,
    LEASES,
    NODES,
    POLICIES,
    RESOURCE_SLICES,
    Resource,
)
from gpusharing.kube.errors import NotFound
from gpusharing.planning.snapshot.nvidia import TAINT_TEST

TELLING = {("gpunodes", "status"), ("gpusharingpolicies", "status"), ("events", None)}
"""Writes that only tell people; nothing is decided from them."""
CHANCE = (
    (re.compile(r'("uid":")[^"]*'), r"\1"),
    (re.compile(r'("(?:r|correctedR)evision":")[^"]+'), r"\1 R"),
    (re.compile(r'("changedAt":")[^"]*'), r"\1"),
    (re.compile(r'("took":)\d+'), r"\1 0"),
)
"""The server's own choice, another one in each run in which the order of creations differs; and what a run takes."""
OURS = f"{names.LABEL_MANAGED_BY}={names.MANAGED_BY}"
"""mig-manager makes a ConfigMap, too, where ClusterPolicy names none at its start."""
REST = 5.0
"""Seconds without a write after which nothing more is to come."""


@dataclass
class CrashRun:
    """One run of a scenario."""

    end: JSON
    writes: Counter[str]
    """Accepted writes of all its operators by kind; of those to the Lease only the claims."""
    operators: int
    sent: int
    """Writes that its first operator sent, refused ones included, the Lease apart."""
    evicted: list[str] = field(default_factory=list)
    given_up: int = 0
    """Changes that were given up before the point of no return, and tried again later."""

    @property
    def acting(self) -> int:
        return sum(count for kind, count in self.writes.items() if not kind.startswith("tell "))


Prepare = Callable[[Scene, MortalClient], None]
"""Arranges what is to happen to the operator's calls."""


Happening = Callable[[Scene, MortalClient], Disturbance]
"""What happens to an operator at one of its writes."""


def dies(scene: Scene, client: MortalClient) -> Disturbance:
    """kill -9; another one waits until the Lease has run out."""

    def end(resource: Resource, name: str) -> None:
        client.die()
        raise Crash(f"at a write to {resource.plural} {name}")

    return end


def dies_and_is_back(scene: Scene, client: MortalClient) -> Disturbance:
    """As `dies`, and the next one leads at once: a container that starts again in its pod bears the same name.

    Its clock is a second behind, as far as two that were set by a Date of whole seconds may be apart (kube/clock.py).
    """
    end = dies(scene, client)

    def end_and_release(resource: Resource, name: str) -> None:
        scene.e.now = lambda: virtual_now() - timedelta(seconds=1)
        nobody = {"spec": {"holderIdentity": None}}
        with suppress(NotFound):
            scene.e.cluster.patch(LEASES, "gpusharing-operator", nobody, "gpusharing")
        end(resource, name)

    return end_and_release


def at_write(write: int, when: When, happening: Happening) -> Prepare:
    """It happens to the first operator, before or after this write."""

    def prepare(scene: Scene, client: MortalClient) -> None:
        if scene.e.operators == 1:
            client.disturb(write, when, happening(scene, client))

    return prepare


def nothing(scene: Scene, client: MortalClient) -> None:
    """The operator lives undisturbed."""


def play(golden: Golden, prepare: Prepare = nothing) -> CrashRun:
    """Play a scenario in virtual time; `prepare` is called for each operator that starts."""
    random.seed(1)
    return run_virtually(_play(golden, prepare))


def opened(golden: Golden) -> AbstractAsyncContextManager[Scene]:
    if golden.plain:
        return with_mig_manager(count=golden.nodes)
    return open_scene(
        *nodes(golden.nodes, gpus=golden.gpus, plugin=not golden.dra),
        workloads=golden.workloads,
        budgets=golden.budgets,
        sim={"dra": golden.dra, "device_taints": golden.tainted, **(DEAF if golden.repairs else {})},
        cluster_policy=golden.cluster_policy or (DRA_POLICY if golden.dra else CLUSTER_POLICY),
        configure_gpu_operator=golden.cluster_policy is not None,
        force_delete=golden.forces,
        repair_mps=golden.repairs,
        device_taints=golden.tainted,
    )


async def _play(golden: Golden, prepare: Prepare) -> CrashRun:
    async with opened(golden) as scene:
        client = scene.e.client
        assert client is not None
        prepare(scene, client)
        doctor = asyncio.create_task(_replace_the_dead(scene, prepare))
        try:
            await golden.script(scene)
            await asyncio.sleep(1)  # a death in this moment is noticed
            await settled(scene)
        finally:
            doctor.cancel()
            with suppress(asyncio.CancelledError):
                await doctor
        return CrashRun(
            end_state(scene),
            kinds(scene),
            scene.e.operators,
            client.writes,
            scene.evicted(),
            scene.events()["ChangeGivenUp"],
        )


async def _replace_the_dead(scene: Scene, prepare: Prepare) -> None:
    """The Deployment's controller: one process ends, another one starts."""
    while scene.e.client is not None:
        await scene.e.client.died.wait()
        await scene.e.kill_operator()
        scene.e.start_operator()
        prepare(scene, scene.e.client)


async def settled(scene: Scene) -> None:
    """Until an operator leads that has nothing to write any more."""
    while True:
        lease, mark = scene.e.lease, len(scene.writes())
        assert lease is not None
        await lease.acquired.wait()
        await asyncio.sleep(REST)
        if lease.is_leader and lease is scene.e.lease and mark == len(scene.writes()):
            return


def kinds(scene: Scene) -> Counter[str]:
    """Accepted writes by kind; of those to the Lease only the claims. The test of the scheduler is left out, because every leader makes it."""
    found: Counter[str] = Counter()
    for write in [*scene.writes(), *_claimings(scene)]:
        name = write.call.name or ((write.call.body or {}).get("metadata") or {}).get("name")
        if write.error is None and name != TAINT_TEST:
            plural, sub = write.call.resource.plural, write.call.subresource
            telling = "tell " if (plural, sub) in TELLING else ""
            found[f"{telling}{write.call.verb} {plural}" + (f"/{sub}" if sub else "")] += 1
    return found


def _claimings(scene: Scene) -> list[Write]:
    return [
        write
        for write in scene.e.cluster.writes
        if write.call.resource == LEASES and ((write.call.body or {}).get("metadata") or {}).get("annotations")
    ]


# --- the end, without times and generated names ----------------------------------------------------


def end_state(scene: Scene) -> JSON:
    """What must be the same however often the operator died on the way.

    How many pods are Pending is counted once a minute by the clock of each operator, so that number is left out.
    """
    cluster = scene.e.cluster
    return {
        "nodes": {raw["metadata"]["name"]: _node(raw) for raw in cluster.objects(NODES)},
        "gpunodes": {raw["metadata"]["name"]: _gpunode(raw) for raw in cluster.objects(GPUNODES)},
        "policies": {raw["metadata"]["name"]: _policy(raw) for raw in cluster.objects(POLICIES)},
        "configmaps": {
            raw["metadata"]["name"]: raw["data"] for raw in cluster.objects(CONFIG_MAPS, label_selector=OURS)
        },
        "clusterpolicies": [
            {"spec": raw["spec"], "marks": raw["metadata"].get("annotations", {})}
            for raw in cluster.objects(CLUSTER_POLICIES)
        ],
        "mps": (signalled(scene), counted(scene), reported(scene)) if scene.guard.repairs else None,
        "devices": {
            raw["spec"]["nodeName"]: [device["name"] for device in raw["spec"]["devices"]]
            for raw in cluster.objects(RESOURCE_SLICES)
        },
        "taintrules": sorted(raw["metadata"]["name"] for raw in cluster.objects(DEVICE_TAINT_RULES)),
        "deviceclasses": {raw["metadata"]["name"]: raw["spec"] for raw in cluster.objects(DEVICE_CLASSES)},
        "claims": _claims(scene),
        "pods": dict(Counter(f"{app} {pod['status']['phase']}" for app in ("free", "kept") for pod in scene.pods(app))),
        "gpus": {
            name: [sorted(i.profile for i in gpu.instances) for gpu in node.gpus.look()]
            for name, node in sorted(scene.e.software.nodes.items())
        },
    }


def _settled(text: str) -> str:
    for pattern, instead in CHANCE:
        text = pattern.sub(instead, text)
    return text


def _node(raw: JSON) -> JSON:
    labels = {key: value for key, value in raw["metadata"]["labels"].items() if key != names.LABEL_GFD_TIMESTAMP}
    ours = {
        key: _settled(value)
        for key, value in raw["metadata"].get("annotations", {}).items()
        if key.startswith(names.PREFIX)
    }
    return {
        "labels": labels,
        "annotations": ours,
        "unschedulable": raw.get("spec", {}).get("unschedulable", False),
        "allocatable": raw["status"]["allocatable"],
    }


def _gpunode(raw: JSON) -> JSON:
    transition = raw["status"]["transition"]
    shown = ("phase", "reason", "message", "cordonedBy", "culprit", "blockers", "observed")
    return {key: transition.get(key) for key in shown} | {"quiet": raw["spec"]["request"]["quiet"]}


def _policy(raw: JSON) -> JSON:
    rows: Iterable[JSON] = raw["status"]["conditions"]
    conditions = [{key: value for key, value in row.items() if key != "lastTransitionTime"} for row in rows]
    summary = {key: value for key, value in raw["status"]["summary"].items() if key != "pendingPods"}
    # The hashes are of the UID, too, which is another one in each run.
    hashes = {"revision": "", "halt": ""}
    status: dict[str, Any] = {**raw["status"], "conditions": conditions, "summary": summary, **hashes}
    return {"finalizers": raw["metadata"].get("finalizers", []), "spec": raw["spec"], "status": status}


def _claims(scene: Scene) -> JSON:
    try:
        lease = scene.e.cluster.get(LEASES, "gpusharing-operator", "gpusharing")
    except NotFound:
        return {}
    claims: JSON = json.loads(lease["metadata"]["annotations"][names.ANNOTATION_CLAIMS])
    failed = claims.pop("failedNodes", {})
    return {**claims, "failed": sorted(one["node"] for one in failed.values())}


def differences(expected: Any, found: Any, path: str = "") -> Iterator[str]:
    if isinstance(expected, dict) and isinstance(found, dict):
        for key in expected.keys() | found.keys():
            yield from differences(expected.get(key), found.get(key), f"{path}.{key}")
    elif expected != found:
        yield f"{path}: {found!r} instead of {expected!r}"


@dataclass(frozen=True)
class Writes:
    """The writes of the first operator at which it happens: every `step`-th from `first` on, counted from 1."""

    when: When
    first: int = 1
    step: int = 1


@dataclass
class _Forks:
    """What the process knows of its children, and a child of its parent."""

    runs: dict[int, CrashRun | str] = field(default_factory=dict)
    """By the write at which it happened; a text: what the run failed of."""
    parent: BinaryIO | None = None
    """Takes the result of the child that this process is."""

    def fork(self, write: int) -> bool:
        """Whether this process goes on as the child, in which it happens at that write."""
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        loop.finish_threads()  # a child has none but the one that forks
        reader, writer = os.pipe()
        if (pid := _fork()) == 0:
            os.close(reader)
            self.parent = os.fdopen(writer, "wb")
            asyncio._set_running_loop(loop)  # asyncio forgets it in a child, or takes it for the parent's
            return True
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            told = pipe.read()
        _, status = os.waitpid(pid, 0)
        self.runs[write] = pickle.loads(told) if told else f"the child ended with status {status}"
        return False

    def hand_over(self, result: CrashRun | str) -> NoReturn:
        """The end of a child: nothing of pytest's may run in it."""
        assert self.parent is not None
        try:
            with self.parent as pipe:
                pickle.dump(result, pipe)
        finally:
            os._exit(0)


def play_all(golden: Golden, writes: Writes, happening: Happening) -> tuple[CrashRun, dict[int, CrashRun | str]]:
    """The run in which nothing happens, and those in which it does, by the write; a text where one failed."""
    forks = _Forks()

    def prepare(scene: Scene, client: MortalClient) -> None:
        if scene.e.operators == 1:
            _happen_in_children(client, writes, happening(scene, client), forks)

    try:
        run = play(golden, prepare)
    except BaseException:
        if forks.parent is None:
            raise
        forks.hand_over(traceback.format_exc())
    if forks.parent is not None:
        forks.hand_over(run)
    return run, forks.runs


def _happen_in_children(client: MortalClient, writes: Writes, happens: Disturbance, forks: _Forks) -> None:
    def arm(write: int) -> None:
        def reached(resource: Resource, name: str) -> None:
            if forks.fork(write):
                happens(resource, name)
            else:
                arm(write + writes.step)

        client.disturb(write, writes.when, reached)

    arm(writes.first)


def _fork() -> int:
    gc.freeze()  # in the child for good: collecting garbage would copy all of the parent's memory
    with warnings.catch_warnings():
        # Python warns of other threads that may hold locks (a worker of pytest-xdist has one). The child takes none
        # that it shares with them: it computes, writes to one pipe and ends by _exit.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid != 0:
        gc.unfreeze()
    return pid
