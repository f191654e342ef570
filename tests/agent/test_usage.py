"""Which pod uses what of which device, and what Prometheus is told of it, in every mode of sharing; the most of an hour (agent/meter.py)."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hack.sim.gpu import SimulatedGPUs
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.registry import CollectorRegistry
from tests.agent.test_meter import H100
from tests.fakes.gpus import FixedPods, OneNode, eventually

from gpusharing.agent.gpunode import Observation
from gpusharing.agent.library import DeviceUse, Instance, PodID, ProcessUse, Reading, Use
from gpusharing.agent.loop import AgentLoop, LoopSettings
from gpusharing.agent.meter import HOUR, HourPeaks
from gpusharing.agent.metrics import FAMILIES, AgentCollector, UsageCollector, of_meter
from gpusharing.agent.podresources import Holdings, PodDevices
from gpusharing.agent.usage import MOST_DEVICES, MOST_HOLDERS, MOST_RESOURCES, DeviceUsage, Sum, usage
from gpusharing.api.gpunode import Request

GIB = 1024**3
GPU = DeviceUse(0, "GPU-0", "GPU-0", 30 * GIB, 80 * GIB, reports_sm=True)
SMALL = DeviceUse(1, "GPU-1", "MIG-a", 0, 10 * GIB, Instance("1g.10gb", 6, 1, 13, "MIG-a"))
LARGE = DeviceUse(1, "GPU-1", "MIG-b", 7 * GIB, 40 * GIB, Instance("3g.40gb", 0, 4, 2, "MIG-b"))
TRAIN, SERVE = ("team-a", "train"), ("team-b", "serve")
TRAIN_ID, SERVE_ID, NAMELESS = PodID("1", *TRAIN), PodID("2", *SERVE), PodID("3")
MIG = "nvidia.com/mig-3g.40gb"


def held(pod: tuple[str, str], resource: str, *devices: str) -> PodDevices:
    return PodDevices(*pod, resource, devices)


def offered(resource: str, *devices: str) -> tuple[tuple[str, str], ...]:
    return tuple((resource, device) for device in devices)


def told(use: Use, holdings: Holdings | None) -> CollectorRegistry:
    loop = AgentLoop("n", OneNode().client, SimulatedGPUs("n", []), FixedPods())
    loop.use = use, holdings
    registry = CollectorRegistry()
    registry.register(UsageCollector(loop))
    return registry


def series(registry: CollectorRegistry, name: str) -> dict[tuple[str, ...], float]:
    """The values of one metric, by those labels that differ: pod, device, resource."""
    return {
        tuple(sample.labels[key] for key in ("pod", "uuid", "resource", "xid") if key in sample.labels): sample.value
        for family in registry.collect()
        for sample in family.samples
        if sample.name == f"gpusharing_{name}"
    }


def test_a_whole_gpu_is_one_slice_and_its_process_is_its_holders() -> None:
    use = Use((GPU,), (ProcessUse(1, "GPU-0", 20 * GIB, 60, NAMELESS),))
    registry = told(
        use, Holdings(by_pod=(held(TRAIN, "nvidia.com/gpu", "GPU-0"),), allocatable=offered("nvidia.com/gpu", "GPU-0"))
    )
    assert series(registry, "pod_memory_used_bytes") == {("train", "GPU-0"): 20 * GIB}
    assert series(registry, "pod_sm_ratio") == {("train", "GPU-0"): 0.6}
    assert series(registry, "device_sm_ratio") == {("GPU-0",): 0.6}
    assert series(registry, "pod_slices") == {("train", "GPU-0", "nvidia.com/gpu"): 1}
    assert series(registry, "device_slices") == {("GPU-0", "nvidia.com/gpu"): 1}
    assert series(registry, "device_slices_allocated") == {("GPU-0", "nvidia.com/gpu"): 1}
    assert series(registry, "device_unattributed_memory_bytes") == {("GPU-0",): 0}


@pytest.mark.parametrize(("start", "placement"), [(0, "0:4"), (4, "4:4"), (-1, "")])
def test_the_placement_of_an_instance_is_empty_where_nvml_does_not_tell_it(start: int, placement: str) -> None:
    assert LARGE.instance is not None
    registry = told(Use((replace(LARGE, instance=replace(LARGE.instance, start=start)),), ()), None)
    info = {"gpu": "1", "uuid": "MIG-b", "profile": "3g.40gb", "gpu_uuid": "GPU-1", "instance_id": "2"}
    assert registry.get_sample_value("gpusharing_device_info", info | {"placement": placement}) == 1


def test_mig_devices_tell_profile_placement_and_id_and_no_sm_time() -> None:
    use = Use((SMALL, LARGE), (ProcessUse(1, "MIG-b", 7 * GIB, None, TRAIN_ID),))
    holdings = Holdings(
        by_pod=(held(TRAIN, MIG, "MIG-b"),),
        allocatable=(*offered(MIG, "MIG-b"), *offered("nvidia.com/mig-1g.10gb", "MIG-a")),
    )
    registry = told(use, holdings)
    info = {"gpu": "1", "uuid": "MIG-b", "profile": "3g.40gb", "gpu_uuid": "GPU-1"}
    info |= {"instance_id": "2", "placement": "0:4"}
    assert registry.get_sample_value("gpusharing_device_info", info) == 1
    assert series(registry, "pod_sm_ratio") == series(registry, "device_sm_ratio") == {}
    assert series(registry, "pod_memory_used_bytes") == {("train", "MIG-b"): 7 * GIB}
    assert series(registry, "device_slices_allocated") == {("MIG-a", "nvidia.com/mig-1g.10gb"): 0, ("MIG-b", MIG): 1}


@pytest.mark.parametrize("device", [GPU, LARGE], ids=["time-slicing or MPS", "MIG and time-slicing"])
def test_a_shared_device_is_split_by_the_cgroups_of_its_processes(device: DeviceUse) -> None:
    resource, replicas = "nvidia.com/gpu.shared", [f"{device.uuid}::{number}" for number in range(4)]
    processes = (
        ProcessUse(1, device.uuid, 4 * GIB, 30, TRAIN_ID),
        ProcessUse(2, device.uuid, 2 * GIB, 10, TRAIN_ID),
        ProcessUse(3, device.uuid, 1 * GIB, 5, SERVE_ID),
        ProcessUse(4, device.uuid, 3 * GIB, 0, NAMELESS),
        ProcessUse(5, device.uuid, GIB // 2, 0, None),
    )
    holdings = Holdings(
        by_pod=(held(TRAIN, resource, *replicas[:2]), held(SERVE, resource, replicas[2])),
        allocatable=offered(resource, *replicas),
    )
    registry = told(Use((device,), processes), holdings)
    assert series(registry, "pod_memory_used_bytes") == {
        ("train", device.uuid): 6 * GIB,
        ("serve", device.uuid): 1 * GIB,
    }
    assert series(registry, "pod_slices") == {("train", device.uuid, resource): 2, ("serve", device.uuid, resource): 1}
    assert series(registry, "device_slices") == {(device.uuid, resource): 4}
    assert series(registry, "device_slices_allocated") == {(device.uuid, resource): 3}
    assert series(registry, "device_unattributed_processes") == {(device.uuid,): 2}
    assert series(registry, "device_unattributed_memory_bytes") == {(device.uuid,): 3 * GIB + GIB // 2}
    shares = {("train", device.uuid): 0.4, ("serve", device.uuid): 0.05} if device.reports_sm else {}
    assert series(registry, "pod_sm_ratio") == shares


def test_what_the_host_runs_is_never_put_down_to_the_pod_that_holds_the_gpu() -> None:
    known = usage(
        Use((GPU,), (ProcessUse(1, "GPU-0", GIB, 90, None),)),
        Holdings(by_pod=(held(TRAIN, "nvidia.com/gpu", "GPU-0"),)),
    )
    (holder,) = known.holders
    assert holder.taken == Sum(processes=0, memory=0)
    assert known.others["GPU-0"].processes == 1


def test_a_pod_that_computes_without_holding_anything_is_told() -> None:
    registry = told(Use((GPU,), (ProcessUse(1, "GPU-0", GIB, 0, SERVE_ID),)), Holdings())
    assert series(registry, "pod_memory_used_bytes") == {("serve", "GPU-0"): GIB}
    assert series(registry, "pod_slices") == {}


def test_a_pod_that_holds_a_device_and_does_nothing_is_told_with_zeros() -> None:
    registry = told(Use((GPU,)), Holdings(by_pod=(held(TRAIN, "nvidia.com/gpu", "GPU-0"),)))
    assert series(registry, "pod_memory_used_bytes") == {("train", "GPU-0"): 0}
    assert series(registry, "pod_processes") == {("train", "GPU-0"): 0}
    assert series(registry, "pod_sm_ratio") == {("train", "GPU-0"): 0}


def test_memory_that_one_process_does_not_tell_makes_the_pods_unknown() -> None:
    processes = (ProcessUse(1, "GPU-0", GIB, 1, TRAIN_ID), ProcessUse(2, "GPU-0", None, 1, TRAIN_ID))
    registry = told(Use((GPU,), processes), None)
    assert series(registry, "pod_memory_used_bytes") == {}
    assert series(registry, "pod_processes") == {("train", "GPU-0"): 2}


def test_where_processes_are_not_seen_no_sum_over_them_is_told() -> None:
    hidden = replace(GPU, all_listed=False)
    registry = told(Use((hidden,)), Holdings(by_pod=(held(TRAIN, "nvidia.com/gpu", "GPU-0"),)))
    assert series(registry, "pod_memory_used_bytes") == series(registry, "pod_processes") == {}
    assert series(registry, "device_unattributed_processes") == {}
    assert series(registry, "pod_slices") == {("train", "GPU-0", "nvidia.com/gpu"): 1}
    assert series(registry, "device_memory_used_bytes") == {("GPU-0",): 30 * GIB}


@pytest.mark.parametrize("uids", [("3", "4"), ("3",)], ids=["each has an unnamed uid", "only one of the two computes"])
def test_pods_whose_processes_nobody_can_name_are_not_told_with_zeros(uids: tuple[str, ...]) -> None:
    resource = "nvidia.com/gpu.shared"
    processes = tuple(ProcessUse(int(uid), "GPU-0", GIB, 45, PodID(uid)) for uid in uids)
    holdings = Holdings(by_pod=(held(TRAIN, resource, "GPU-0::0"), held(SERVE, resource, "GPU-0::1")))
    registry = told(Use((GPU, replace(GPU, gpu=1, uuid="GPU-1")), processes), holdings)
    assert series(registry, "pod_memory_used_bytes") == {}
    assert series(registry, "pod_processes") == {}
    assert series(registry, "pod_sm_ratio") == {}
    assert series(registry, "device_sm_ratio") == {("GPU-0",): 0.45 * len(uids), ("GPU-1",): 0}
    assert series(registry, "device_unattributed_processes") == {("GPU-0",): len(uids), ("GPU-1",): 0}
    assert series(registry, "pod_slices") == {("train", "GPU-0", resource): 1, ("serve", "GPU-0", resource): 1}


def test_two_pods_without_a_name_are_not_both_put_down_to_the_one_holder() -> None:
    processes = tuple(ProcessUse(int(uid), "GPU-0", GIB, 45, PodID(uid)) for uid in ("3", "4"))
    registry = told(Use((GPU,), processes), Holdings(by_pod=(held(TRAIN, "nvidia.com/gpu", "GPU-0"),)))
    assert series(registry, "pod_memory_used_bytes") == {}
    assert series(registry, "device_unattributed_memory_bytes") == {("GPU-0",): 2 * GIB}


def test_a_pod_without_a_name_is_not_the_holder_whose_own_processes_have_one() -> None:
    processes = (ProcessUse(1, "GPU-0", GIB, 30, TRAIN_ID), ProcessUse(2, "GPU-0", 4 * GIB, 60, NAMELESS))
    registry = told(Use((GPU,), processes), Holdings(by_pod=(held(TRAIN, "nvidia.com/gpu", "GPU-0"),)))
    assert series(registry, "pod_memory_used_bytes") == {("train", "GPU-0"): GIB}
    assert series(registry, "pod_sm_ratio") == {("train", "GPU-0"): 0.3}
    assert series(registry, "device_unattributed_memory_bytes") == {("GPU-0",): 4 * GIB}


def test_an_unnamed_pod_hides_only_those_on_its_device_whose_uid_is_not_known() -> None:
    resource = "nvidia.com/gpu.shared"
    other = replace(GPU, gpu=1, uuid="GPU-1")
    processes = (ProcessUse(1, "GPU-0", GIB, 30, NAMELESS), ProcessUse(2, "GPU-1", 2 * GIB, 10, TRAIN_ID))
    holdings = Holdings(
        by_pod=(held(TRAIN, resource, "GPU-0::0", "GPU-1::0"), held(SERVE, resource, "GPU-0::1", "GPU-1::1"))
    )
    registry = told(Use((GPU, other), processes), holdings)
    assert series(registry, "pod_processes") == {("train", "GPU-0"): 0, ("train", "GPU-1"): 1, ("serve", "GPU-1"): 0}


def test_without_the_kubelet_no_slices_are_told_and_cgroups_still_tell_the_pods() -> None:
    registry = told(Use((GPU,), (ProcessUse(1, "GPU-0", GIB, 3, TRAIN_ID),)), None)
    assert series(registry, "device_slices_allocated") == series(registry, "pod_slices") == {}
    assert series(registry, "pod_memory_used_bytes") == {("train", "GPU-0"): GIB}


def test_a_kubelet_that_does_not_tell_what_there_is_still_tells_what_is_held() -> None:
    registry = told(Use((GPU,)), Holdings(by_pod=(held(TRAIN, "nvidia.com/gpu", "GPU-0"),)))
    assert series(registry, "device_slices") == {}
    assert series(registry, "device_slices_allocated") == {("GPU-0", "nvidia.com/gpu"): 1}


def test_an_xid_is_told_from_0_on_so_that_prometheus_counts_the_first_of_a_gpu_too() -> None:
    loop, now = AgentLoop("n", OneNode().client, SimulatedGPUs("n", []), FixedPods()), [0.0]
    registry = CollectorRegistry()
    registry.register(UsageCollector(loop, lambda: now[0]))
    seen = []
    heard = {0: (), 30: ((0, 31, 2),), 60: ((0, 31, 2),), 100: ((0, 31, 3), (0, 79, 1)), 130: None, 240: None}
    for at, xids in heard.items():
        now[0] = at
        loop.use = (loop.use[0] if xids is None and loop.use else Use(xids=xids or ())), None
        seen.append(series(registry, "xid_errors_total"))
    zero = {("31",): 0.0}
    assert seen == [{}, zero, zero, {**zero, ("79",): 0.0}, {("31",): 3, ("79",): 0}, {("31",): 3, ("79",): 1}]


def test_who_asks_seldom_sees_the_0_of_an_xid_once() -> None:
    loop, now = AgentLoop("n", OneNode().client, SimulatedGPUs("n", []), FixedPods()), [0.0]
    loop.use = Use(xids=((0, 31, 2),)), None
    registry = CollectorRegistry()
    registry.register(UsageCollector(loop, lambda: now[0]))
    seen = []
    for now[0] in (0.0, 600.0, 1200.0):
        seen.append(series(registry, "xid_errors_total")["31",])
    assert seen == [0, 2, 2]


def test_nothing_is_told_while_the_gpus_are_not_read() -> None:
    loop = AgentLoop("n", OneNode().client, SimulatedGPUs("n", []), FixedPods())
    registry = CollectorRegistry()
    registry.register(UsageCollector(loop))
    assert [sample for family in registry.collect() for sample in family.samples] == []


async def test_what_the_gpus_were_used_for_is_not_told_once_the_gpunode_is_gone() -> None:
    node, gpus = OneNode(), SimulatedGPUs("gpu-01", ["NVIDIA H100 80GB HBM3"])
    loop = AgentLoop(node.name, node.client, gpus, FixedPods(), LoopSettings(interval=3600.0))
    node.ask("r1")
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(loop.run())
        await eventually(lambda: loop.use is not None)
        told = {family.name for family in UsageCollector(loop).collect()}
        node.delete()
        await eventually(lambda: "does not exist" in loop.why_not_ready())
        await loop.cycle()
        assert "gpusharing_device_memory_used_bytes" in told
        metered = {family.name for family in of_meter(loop.meter.metered)}
        peaks = {"gpusharing_gpu_pods_hour_max", "gpusharing_gpu_slices_hour_max"}
        assert {family.name for family in UsageCollector(loop).collect()} == metered | peaks
        running.cancel()


def test_of_the_names_of_a_device_those_that_nobody_holds_are_cut_off_first() -> None:
    names = [f"nvidia.com/new-{number}" for number in range(4)]
    rows = (held(TRAIN, "nvidia.com/old", "GPU-0::0"), held(SERVE, names[3], "GPU-0::1"))
    there = tuple(pair for name in names for pair in offered(name, "GPU-0::0", "GPU-0::1"))
    registry = told(Use((GPU,)), Holdings(by_pod=rows, allocatable=there))
    assert series(registry, "device_slices_allocated") == {
        ("GPU-0", "nvidia.com/old"): 1,
        ("GPU-0", names[3]): 1,
        ("GPU-0", names[0]): 0,
        ("GPU-0", names[1]): 0,
    }
    assert series(registry, "device_slices") == {("GPU-0", names[number]): 2 for number in (0, 1, 3)}


def monstrous() -> tuple[Use, Holdings]:
    """More devices than any machine has, each in the hands of more pods than a kubelet runs, under many names of which none is offered."""
    devices = tuple(replace(GPU, gpu=number, uuid=f"GPU-{number}") for number in range(300))
    names = [(f"ns-{number}", f"pod-{number}") for number in range(1000)]
    ids = [(f"nvidia.com/r{number // 300}", f"GPU-{number % 300}::{number}") for number in range(3000)]
    rows = tuple(
        held(names[number % 1000], f"nvidia.com/old-{old}", device)
        for number, (_, device) in enumerate(ids)
        for old in range(MOST_RESOURCES + 1)
    )
    processes = tuple(
        ProcessUse(number, f"GPU-{number % 300}", 1, 1, PodID(str(number), *names[number % 1000]))
        for number in range(1, 5000)
    )
    xids = tuple((gpu, xid, 1) for gpu in range(2) for xid in range(64))
    return Use(devices, processes, xids), Holdings(by_pod=rows, allocatable=tuple(ids))


def test_the_number_of_series_has_a_bound_whatever_tenants_do() -> None:
    use, holdings = monstrous()
    registry = told(use, holdings)
    count = sum(len(family.samples) for family in registry.collect())
    per_device, per_holder = 6 + 2 * MOST_RESOURCES, MOST_RESOURCES + 3
    most = MOST_DEVICES * per_device + MOST_HOLDERS * per_holder + 1
    assert most < 3600, "as docs/how-to/usage.md says"
    assert count - len(use.xids) <= most
    known: DeviceUsage = usage(use, holdings)
    assert (len(known.devices), len(known.holders)) == (MOST_DEVICES, MOST_HOLDERS)
    assert registry.get_sample_value("gpusharing_usage_left_out") == known.left_out > 300 - MOST_DEVICES
    assert DeviceUsage().left_out == 0


def test_an_agent_that_knows_all_tells_every_metric_that_there_is_in_their_order() -> None:
    loop = AgentLoop("n", OneNode().client, SimulatedGPUs("n", ["Tesla T4"]), FixedPods())
    loop.reading = SimulatedGPUs("n", ["Tesla T4"]).read()
    loop.gpus = loop.reading.gpus
    observed, holdings = (
        Observation.after(Request("r1"), loop.reading, simulated=True),
        Holdings({"nvidia.com/gpu": 1}, 1),
    )
    loop.observed, loop.use = observed.held_by(holdings), (loop.reading.use, holdings)
    told = [family for collector in (AgentCollector(loop), UsageCollector(loop)) for family in collector.collect()]
    names = [f"{family.name}{'_total' * (family.type == 'counter')}" for family in told]
    assert names == [f"gpusharing_{name}" for name in FAMILIES]


def test_no_label_holds_the_uid_of_a_pod() -> None:
    registry = told(*monstrous())
    labels = {key for family in registry.collect() for sample in family.samples for key in sample.labels}
    of_devices = {"gpu", "uuid", "profile", "gpu_uuid", "instance_id", "placement", "resource", "xid"}
    assert labels == {"namespace", "pod", *of_devices}


def test_the_same_pods_are_told_whatever_the_order_of_the_processes() -> None:
    use, holdings = monstrous()
    turned = replace(use, processes=use.processes[::-1])
    assert [holder.pod for holder in usage(use, holdings).holders] == [
        holder.pod for holder in usage(turned, holdings).holders
    ]


GPUS = 2
SHARES = st.sets(st.tuples(st.sampled_from("abc"), st.integers(0, GPUS - 1), st.integers(0, 3)), max_size=8)
"""Pods, GPUs and replicas; a kubelet gives each replica to one pod."""


def read() -> Reading:
    return SimulatedGPUs("gpu-01", [H100] * GPUS).read()


def of_shares(reading: Reading, shares: set[tuple[str, int, int]]) -> Holdings:
    devices: dict[str, list[str]] = {}
    for pod, gpu, replica in sorted(shares):
        devices.setdefault(pod, []).append(f"{reading.gpus[gpu].uuid}::{replica}")
    rows = [PodDevices("team", pod, "nvidia.com/gpu", tuple(ids)) for pod, ids in devices.items()]
    return Holdings(by_pod=tuple(rows))


@given(st.lists(st.tuples(st.integers(0, 2500), SHARES), max_size=12))
def test_the_most_of_an_hour_are_those_of_its_turns(turns: Sequence[tuple[int, set[tuple[str, int, int]]]]) -> None:
    now, reading = [0.0], read()
    peaks = HourPeaks(lambda: datetime.fromtimestamp(now[0], UTC))
    seen: list[tuple[float, set[tuple[str, int, int]]]] = []
    for seconds, shares in turns:
        now[0] += seconds
        peaks.turn(reading, of_shares(reading, shares))
        seen.append((now[0] // HOUR, shares))
        ours = [each for hour, each in seen if hour == now[0] // HOUR]
        expected = {
            gpu.uuid: (
                max(len({pod for pod, index, _ in each if index == gpu.index}) for each in ours),
                max(len([share for share in each if share[1] == gpu.index]) for each in ours),
            )
            for gpu in reading.gpus
        }
        assert peaks.most == expected
    now[0] += HOUR
    assert peaks.most == {}, "nothing is known of an hour in which nobody counted"


def test_what_did_not_change_is_not_counted_again() -> None:
    reading = read()
    holdings = of_shares(reading, {("a", 0, 0), ("b", 0, 1), ("a", 1, 0)})
    peaks = HourPeaks(lambda: datetime.fromtimestamp(0, UTC))
    peaks.turn(reading, holdings)
    counted = peaks.most
    peaks.turn(reading, holdings)
    assert peaks.most is counted
    peaks.turn(reading, of_shares(reading, {("a", 0, 0)}))
    assert (peaks.most is counted, peaks.most) == (False, counted)


def test_prometheus_is_told_the_most_by_gpu() -> None:
    reading = read()
    loop = AgentLoop("n", OneNode().client, SimulatedGPUs("n", []), FixedPods())
    loop.reading = reading
    for shares in ({("a", 0, 0), ("b", 0, 1), ("b", 0, 2)}, {("a", 1, 0)}):
        loop.peaks.turn(reading, of_shares(reading, shares))
    registry = CollectorRegistry()
    registry.register(UsageCollector(loop))
    told = {
        (sample.name, sample.labels["gpu"], sample.labels["uuid"]): sample.value
        for family in registry.collect()
        for sample in family.samples
        if "hour_max" in sample.name
    }
    first, second = (gpu.uuid for gpu in reading.gpus)
    assert told == {
        ("gpusharing_gpu_pods_hour_max", "0", first): 2,
        ("gpusharing_gpu_slices_hour_max", "0", first): 3,
        ("gpusharing_gpu_pods_hour_max", "1", second): 1,
        ("gpusharing_gpu_slices_hour_max", "1", second): 1,
    }
