"""Only the GPU whose layout changes is emptied, with NVIDIA's mig-manager, mig-parted, device plugin and GFD.
SIMULATED: the GPUs, the kubelets (kwok and the registration stub) and Node Feature Discovery."""

import os
import time
from collections.abc import Iterator
from random import Random
from typing import Any

import pytest
from hack.cluster.audit import read_requests
from hack.nvidia.loop import GPUNODES, OPERATOR, PODS, NvidiaLoop, is_cordoned
from hack.nvmlsim.simulator import machine_devices
from tests.agent.nvml_machine import in_process
from tests.nvidia.conftest import short_loop

from hack import launch

pytestmark = [pytest.mark.nvidia, pytest.mark.cluster]

HALF, SEVENTH, THIRD = ("nvidia.com/mig-3g.40gb", "nvidia.com/mig-1g.10gb", "nvidia.com/mig-2g.20gb")


@pytest.fixture(scope="module")
def loop(nvidia_programs: None) -> Iterator[NvidiaLoop]:
    with short_loop("one") as made:
        yield made


def spec(*profiles: dict[str, int]) -> dict[str, Any]:
    """Each GPU by index with its own profiles, and drain.scope Changed."""
    layouts = [{"profiles": one, "devices": [index]} for index, one in enumerate(profiles)]
    drain = {"scope": "Changed", "unmanagedPods": "Evict", "strandedPods": "Allow"}
    return {"mode": "MIG", "mig": {"strategy": "mixed", "layouts": layouts}, "drain": drain}


def devices(loop: NvidiaLoop, gpu: int) -> set[str]:
    return {place.uuid for place in machine_devices(loop.nodes["one"].simulator.show()) if place.gpu == gpu}


def processes(loop: NvidiaLoop) -> set[str]:
    return {row["name"] for row in loop.nodes["one"].simulator.show()["processes"]}


def names(loop: NvidiaLoop) -> set[str]:
    return {pod["metadata"]["name"] for pod in loop.api.list(PODS) if "deletionTimestamp" not in pod["metadata"]}


def test_the_pods_of_the_other_gpu_keep_running_and_keep_their_instances(loop: NvidiaLoop) -> None:
    loop.bring(**spec({"3g.40gb": 2}, {"1g.10gb": 7}))
    kept = [loop.run_pod("one", HALF), loop.run_pod("one", HALF)]
    leaves = loop.run_pod("one", SEVENTH)
    before, evicted = devices(loop, 0), len(loop.evicted())
    loop.apply(**spec({"3g.40gb": 2}, {"2g.20gb": 3}))
    loop.wait(lambda: loop.transition("one").get("disruption") == "ChangedGPUs", "the change to be planned")
    loop.wait_ready()
    assert loop.evicted()[evicted:] == [leaves]
    assert devices(loop, 0) == before
    assert {f"SIMULATED-{name}" for name in kept} <= processes(loop)
    assert loop.profiles("one") == [["3g.40gb"] * 2, ["2g.20gb"] * 3]
    assert loop.served("one") == {HALF: 2, THIRD: 3}
    assert not is_cordoned(loop, "one")


def test_the_agent_reads_the_other_gpu_while_mig_manager_works_and_its_report_stands_still(loop: NvidiaLoop) -> None:
    loop.bring(**spec({"3g.40gb": 2}, {"2g.20gb": 3}))
    machine = loop.nodes["one"].simulator
    machine.inject("nvmlGpuInstanceDestroy", "hang", gpu=1)
    loop.apply(**spec({"3g.40gb": 2}, {"1g.10gb": 7}))
    loop.wait(lambda: machine.show()["faults"][0]["hits"] > 0, "mig-parted to be at GPU 1")
    gpunode = loop.api.get(f"{GPUNODES}/one")
    assert gpunode["spec"]["request"]["quietGPUs"] == [1]
    assert gpunode["status"]["observed"]["quiet"]
    machine.inject("nvmlDeviceGetComputeMode", "hang", gpu=0)
    loop.wait(lambda: machine.show()["faults"][1]["hits"] > 0, "the agent to read GPU 0")
    assert loop.api.get(f"{GPUNODES}/one")["status"]["observed"] == gpunode["status"]["observed"]
    machine.clear_faults()
    loop.wait_ready()
    assert loop.profiles("one") == [["3g.40gb"] * 2, ["1g.10gb"] * 7]
    assert loop.api.get(f"{GPUNODES}/one")["spec"]["request"]["quietGPUs"] == []


def test_a_kept_gpu_that_somebody_divides_meanwhile_leaves_the_node_failed_with_its_pods_named(
    loop: NvidiaLoop,
) -> None:
    loop.bring(**spec({"3g.40gb": 2}, {"2g.20gb": 3}))
    kept = sorted(names(loop))
    assert len(kept) == 2
    machine = loop.nodes["one"].simulator
    machine.inject("nvmlDeviceCreateGpuInstance", "hang", gpu=1)
    loop.apply(**spec({"3g.40gb": 2}, {"1g.10gb": 7}))
    loop.wait(lambda: not loop.profiles("one")[1], "mig-parted to be at GPU 1")
    for name in kept:
        for row in machine.show()["processes"]:
            if row["name"] == f"SIMULATED-{name}":
                machine.remove_process(row["pid"])
    in_process(machine, "destroy", "0")
    in_process(machine, "partition", "0", "4g.40gb", "3g.40gb")  # their UUIDs are the same
    machine.clear_faults()
    loop.wait(lambda: loop.transition("one").get("reason") == "KeptGPUsChanged", "the node to be Failed")
    message = loop.transition("one")["message"]
    assert all(name in message for name in kept)
    assert is_cordoned(loop, "one")
    loop.plane.kubectl("annotate", "gpunode", "one", "--overwrite", "gpusharing.dev/retry=gpu-pods")
    loop.wait_ready()
    assert loop.profiles("one") == [["3g.40gb"] * 2, ["1g.10gb"] * 7]
    assert loop.api.get(f"{GPUNODES}/one")["status"]["transition"]["phase"] == "Synced"


def test_an_operator_that_is_killed_after_each_write_of_a_change_leaves_the_pods_of_the_other_gpu_alone(
    loop: NvidiaLoop,
) -> None:
    loop.bring(**spec({"3g.40gb": 2}, {"1g.10gb": 7}))
    kept = [loop.run_pod("one", HALF) for _ in range(2 - len(names(loop)))] or sorted(names(loop))
    leaves, evicted, before = loop.run_pod("one", SEVENTH), len(loop.evicted()), devices(loop, 0)
    start = loop.plane.audit_log.stat().st_size

    def writes() -> int:
        asked = read_requests(loop.plane.audit_log, OPERATOR, start=start)
        made = [one.resource for one in asked if one.is_write]
        # Each successor may ask the agent anew, because a reading is a proof for a minute only.
        return made.count("nodes") + made.count("pods/eviction") + min(3, made.count("gpunodes"))

    def is_ready() -> bool:
        try:
            launch.wait_ready(loop.api, "real", 0.0)
        except TimeoutError:
            return False
        return True

    loop.apply(**spec({"3g.40gb": 2}, {"2g.20gb": 3}))
    seen, kills = 0, 0
    while not is_ready():
        loop.wait(lambda seen=seen: writes() > seen or is_ready(), "the next write")
        loop.operator.kill()
        seen, kills = writes(), kills + 1
        loop.operator.start()
    assert kills >= 6
    assert loop.evicted()[evicted:] == [leaves]
    assert devices(loop, 0) == before
    assert {f"SIMULATED-{name}" for name in kept} <= processes(loop)
    assert not is_cordoned(loop, "one")


MOMENTS = 20 if os.environ.get("PROPERTIES") == "long" else 3
PLUGIN = "nvidia.com/device-plugin.config"


def disturb(loop: NvidiaLoop, dice: Random) -> None:
    """Something is wrong with the kept GPU or the node's labels, for a reading or a few."""
    machine, what = (
        loop.nodes["one"].simulator,
        dice.choice(("mode", "instances", "processes", "lost", "unknown", "driver")),
    )
    labels = loop.api.get("/api/v1/nodes/one")["metadata"]["labels"]
    if what in ("lost", "unknown", "driver"):
        label = "nvidia.com/gpu.deploy.driver" if what == "driver" else PLUGIN
        wrong = {"lost": f"{PLUGIN}-", "unknown": f"{PLUGIN}=gone", "driver": f"{label}=pre-installed"}[what]
        loop.plane.kubectl("label", "node", "one", "--overwrite", wrong)
        time.sleep(dice.uniform(0.2, 3))
        now = loop.api.get("/api/v1/nodes/one")["metadata"]["labels"].get(label)
        if now in (None, "gone", "pre-installed"):  # else the operator has set it since
            back = f"{label}={labels[label]}" if label in labels else f"{label}-"
            loop.plane.kubectl("label", "node", "one", "--overwrite", back)
        return
    call = {
        "mode": "nvmlDeviceGetMigMode",
        "instances": "nvmlDeviceGetGpuInstances",
        "processes": "nvmlDeviceGetComputeRunningProcesses_v3",
    }[what]
    machine.inject(call, "UNKNOWN", gpu=0, count=dice.randrange(1, 4))
    time.sleep(dice.uniform(0.2, 3))
    machine.clear_faults()


@pytest.mark.timeout(3600, method="signal")
def test_what_is_wrong_for_a_moment_evicts_no_pod_of_the_kept_gpu(loop: NvidiaLoop) -> None:
    loop.bring(**spec({"3g.40gb": 2}, {"1g.10gb": 7}))
    kept = sorted(names(loop)) + [loop.run_pod("one", HALF) for _ in range(2 - len(names(loop)))]
    before, evicted = devices(loop, 0), len(loop.evicted())
    for moment in range(MOMENTS):
        dice = Random(moment)
        loop.apply(**spec({"3g.40gb": 2}, ({"2g.20gb": 3}, {"1g.10gb": 7})[moment % 2]))
        time.sleep(dice.uniform(0, 25))
        disturb(loop, dice)
        loop.wait_ready()
        assert not {*kept} & {*loop.evicted()[evicted:]}, f"moment {moment}"
        assert devices(loop, 0) == before, f"moment {moment}"
    assert {f"SIMULATED-{name}" for name in kept} <= processes(loop)
