"""What a change empties is written once: whatever is seen for a moment, no pod of a kept GPU is evicted, and the change ends.
Each world plays one change of some GPUs. At one moment of it, for one to five passes, NVML errs about a GPU, a label is lost, a report is late, or ClusterPolicy says something else."""

import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cache
from random import Random
from typing import Any

import pytest
from tests.planning.broken import Broken
from tests.planning.gpuworld import HALVES, SEVENTHS, THIRDS, GpuWorld, gpu_world, gpus_of, layouts
from tests.planning.machines import patched

from gpusharing.api import names
from gpusharing.api.names import DisruptionClass, Phase
from gpusharing.planning.gpus.health import Vitals
from gpusharing.planning.snapshot.actions import Evict, FenceNode, UpdateFence
from gpusharing.planning.snapshot.views import PolicyView

NODE = "gpu-1"
BEFORE = layouts(HALVES, HALVES, SEVENTHS, SEVENTHS)
ROLLBACK = {"onFailure": "Rollback"}
CHANGES: dict[str, PolicyView] = {
    "GPU 1": layouts(HALVES, THIRDS, SEVENTHS, SEVENTHS),
    "GPUs 0 and 2": layouts(THIRDS, HALVES, HALVES, SEVENTHS),
    "GPU 1, and back if it fails": layouts(HALVES, THIRDS, SEVENTHS, SEVENTHS, rollout=ROLLBACK),
    "all GPUs": layouts(SEVENTHS, SEVENTHS, HALVES, HALVES),
}


@dataclass
class Fault:
    """Something that is wrong from one pass to another: how it begins and ends."""

    begin: Callable[[GpuWorld, int], object]
    end: Callable[[GpuWorld, int], object]


def misread(**fields: object) -> Fault:
    def begin(world: GpuWorld, gpu: int) -> None:
        world.machine(NODE).misread[gpu] = fields

    return Fault(begin, lambda world, gpu: world.machine(NODE).misread.clear())


def relabeled(**labels: str | None) -> Fault:
    """Somebody sets labels and, unless the operator or its actuators have done so since, sets them back."""
    wrong = {label.replace("__", "/").replace("_", "."): value for label, value in labels.items()}
    kept: dict[int, dict[str, str | None]] = {}

    def begin(world: GpuWorld, gpu: int) -> None:
        kept[id(world)] = {label: world.nodes[NODE].labels.get(label) for label in wrong}
        world.nodes[NODE] = patched(world.nodes[NODE], wrong)

    def end(world: GpuWorld, gpu: int) -> None:
        now = world.nodes[NODE].labels
        back = {label: value for label, value in kept.pop(id(world)).items() if now.get(label) == wrong[label]}
        world.nodes[NODE] = patched(world.nodes[NODE], back)

    return Fault(begin, end)


def stacked(usual: Mapping[str, Any], **fields: Any) -> Fault:
    def change(world: GpuWorld, changed: Mapping[str, Any]) -> None:
        policy = world.stack.cluster_policy
        assert policy is not None
        world.stack = replace(world.stack, cluster_policy=replace(policy, **changed))

    return Fault(lambda world, gpu: change(world, fields), lambda world, gpu: change(world, usual))


FAULTS: dict[str, Fault] = {
    "NVML errs about a GPU": misread(vitals=Vitals(access="Failed", error="UNKNOWN")),
    "the agent may not list instances": misread(instances_withheld=True),
    "a MIG mode is pending": misread(mig_pending=True),
    "a GPU is read without MIG": misread(mig_enabled=False, layout=None),
    "a GPU is read without instances": misread(layout=()),
    "the label of the device plugin is lost": relabeled(nvidia_com__device_plugin_config=None),
    "the label of the device plugin is unknown": relabeled(nvidia_com__device_plugin_config="gone"),
    "the label of mig-manager is lost": relabeled(nvidia_com__mig_config=None),
    "the driver is said to be the host's": relabeled(nvidia_com__gpu_deploy_driver="pre-installed"),
    "mig-manager may reboot the node": stacked({"with_reboot": False}, with_reboot=True),
    "mig-manager stops host clients": stacked({"stops_host_clients": False}, stops_host_clients=True),
    "the driver is not NVIDIA's operator's": stacked({"switches": {}}, switches={"driver.enabled": False}),
    "reports are late": Fault(
        lambda world, gpu: setattr(world.machine(NODE), "late", True),
        lambda world, gpu: setattr(world.machine(NODE), "late", False),
    ),
}


@cache
def _at_rest() -> GpuWorld:
    world = gpu_world(BEFORE, NODE)
    for gpu in range(4):
        assert world.add_pod(NODE, gpu=gpu)
    world.settle()
    return world


def play(number: int, happened: Counter[str]) -> bool:
    """Play one world, hold it to the record, and return whether its change ended without a person, if none is due."""
    dice = Random(number)
    world = _at_rest().copy()
    change, what = dice.choice(sorted(CHANGES)), dice.choice(sorted(FAULTS))
    fault, gpu, machine = FAULTS[what], dice.randrange(4), world.machine(NODE)
    machine.temper = dice.choice(("works", "works", "hangs", "fails", "forgets"))
    fails = machine.temper == "fails"
    moment, lasts, kill = dice.randrange(1, 90), dice.randrange(1, 6), dice.randrange(200)
    before, began = gpus_of(world, NODE), len(world.done)
    world.set_policy(CHANGES[change])
    mended = moment + lasts + dice.randrange(60)
    for turn in range(400):
        if turn == moment:
            fence = world.nodes[NODE].fence
            happened[f"{what}, {fence.stage if fence is not None else 'no change'}"] += 1
            fault.begin(world, gpu)
        if turn == moment + lasts:
            fault.end(world, gpu)
        if turn == mended:
            machine.temper = "works"
        world.act_everywhere()
        world.step(limit=1 if turn == kill else None)
        world.now += timedelta(seconds=dice.choice((1, 1, 2, 5)))
        if turn > max(mended, moment + lasts) and world.nodes[NODE].fence is None and not world.claims:
            break
    verdict = world.settle(rounds=3000).verdicts[NODE]
    records: dict[str, FenceNode] = {}
    allowed = set[int]()
    for action in world.done[began:]:
        if isinstance(action, FenceNode):
            records[action.fence.op] = action
            allowed = set(action.fence.gpus) or set(range(4))
        elif isinstance(action, Evict):
            assert before.get(action.uid, min(allowed)) in allowed, f"world {number}: {change}, {what}, {action}"
    happened[f"{change}: {verdict.phase}"] += 1
    return verdict.phase is Phase.SYNCED or fails  # after a failure of mig-manager a person decides


LONG = os.environ.get("PROPERTIES") == "long"
"""`make test-random` sets it: 10,000 worlds."""
WORLDS = 1000 if LONG else 30
SEEDS = range(10) if LONG else range(2)
pytestmark = [pytest.mark.timeout(7200, method="signal")] if LONG else []


@pytest.mark.parametrize("seed", SEEDS, ids=lambda seed: f"seed-{seed}")
def test_what_is_seen_for_a_moment_evicts_nobody_and_the_change_ends(seed: int) -> None:
    happened = Counter[str]()
    stuck = [number for number in range(seed * WORLDS, (seed + 1) * WORLDS) if not play(number, happened)]
    print(f"{WORLDS} worlds of seed {seed}, {len(stuck)} of which need a person: {stuck}; {sorted(happened.items())}")
    assert len(stuck) * 100 <= max(WORLDS, 100)


def test_the_world_notices_a_record_that_nobody_widened() -> None:
    world = _at_rest().copy()
    world.set_policy(CHANGES["GPU 1"])
    for _ in range(60):
        world.act_everywhere()
        world.step()
        if (fence := world.nodes[NODE].fence) is not None:
            break
        world.now += timedelta(seconds=1)
    assert fence is not None
    wider = replace(fence, disruption=DisruptionClass.GPU_PODS, gpus=())
    with pytest.raises(Broken, match=r"\(x\)"):
        world.carry_out(UpdateFence(world.nodes[NODE], wider))
    named = replace(world.nodes[NODE], retry="gpu-pods.2")
    world.nodes[NODE] = named
    world.carry_out(UpdateFence(named, wider))
    assert names.RETRIES_THAT_EMPTY["gpu-pods"] is wider.disruption
