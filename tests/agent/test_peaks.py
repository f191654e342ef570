"""The most pods and slices of each GPU in an hour (agent/meter.py), and what Prometheus is told of them."""

from collections.abc import Sequence
from datetime import UTC, datetime

from hack.sim.gpu import SimulatedGPUs
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.registry import CollectorRegistry
from tests.agent.test_meter import H100
from tests.fakes.gpus import FixedPods, OneNode

from gpusharing.agent.library import Reading
from gpusharing.agent.loop import AgentLoop
from gpusharing.agent.meter import HOUR, HourPeaks
from gpusharing.agent.metrics import UsageCollector
from gpusharing.agent.podresources import Holdings, PodDevices

GPUS = 2
SHARES = st.sets(st.tuples(st.sampled_from("abc"), st.integers(0, GPUS - 1), st.integers(0, 3)), max_size=8)
"""Pods, GPUs and replicas; a kubelet gives each replica to one pod."""


def read() -> Reading:
    return SimulatedGPUs("gpu-01", [H100] * GPUS).read()


def held(reading: Reading, shares: set[tuple[str, int, int]]) -> Holdings:
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
        peaks.turn(reading, held(reading, shares))
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
    holdings = held(reading, {("a", 0, 0), ("b", 0, 1), ("a", 1, 0)})
    peaks = HourPeaks(lambda: datetime.fromtimestamp(0, UTC))
    peaks.turn(reading, holdings)
    counted = peaks.most
    peaks.turn(reading, holdings)
    assert peaks.most is counted
    peaks.turn(reading, held(reading, {("a", 0, 0)}))
    assert (peaks.most is counted, peaks.most) == (False, counted)


def test_prometheus_is_told_the_most_by_gpu() -> None:
    reading = read()
    loop = AgentLoop("n", OneNode().client, SimulatedGPUs("n", []), FixedPods())
    loop.reading = reading
    for shares in ({("a", 0, 0), ("b", 0, 1), ("b", 0, 2)}, {("a", 1, 0)}):
        loop.peaks.turn(reading, held(reading, shares))
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
