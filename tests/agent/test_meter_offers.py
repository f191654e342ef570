"""How many parts a device has that the kubelet offers no more: those that it had, or that are held at least."""

import asyncio
from dataclasses import replace
from fractions import Fraction

import pytest
from hack.sim.gpu import SimulatedGPUs
from tests.agent.test_meter import H100, SHARED, devices, handed_out, machine, told
from tests.fakes.gpus import FixedPods, OneNode

from gpusharing.agent.allotment import NONE_ALLOCATABLE, allotment_of, last_allocatable
from gpusharing.agent.library import GPU
from gpusharing.agent.loop import AgentLoop, LoopSettings
from gpusharing.agent.podresources import Holdings


@pytest.mark.parametrize("layout", [(), ("3g.40gb",)], ids=["a whole GPU", "an instance"])
def test_who_holds_a_replica_of_a_device_that_became_unhealthy_holds_as_much_as_before(layout: tuple[str, ...]) -> None:
    """A kubelet no longer lists it, and whoever holds one of four was billed for the whole of it."""
    reading = machine(layout)
    healthy = handed_out(devices(reading, 4), ["team-a"])
    unhealthy = replace(healthy, allocatable=())
    before = last_allocatable(reading, healthy, NONE_ALLOCATABLE)
    stands = allotment_of(reading, unhealthy, "pool-b", changing=False, known=before)
    resource = devices(reading, 4)[0][0]
    whole = Fraction(1, 2) if layout else Fraction(1)
    assert stands.allocated == {("team-a", resource): whole / 4}
    assert sum(stands.idle.values()) == 0
    assert stands.stranded == 1 - whole / 4, "what is unhealthy is offered to nobody"
    assert last_allocatable(reading, unhealthy, before) == before, "for as long as it lasts"


def test_a_gpu_that_could_not_be_read_once_has_as_many_parts_as_before() -> None:
    reading = machine((), ())
    healthy = handed_out(devices(reading, 4), ["team-a"])
    lost = replace(reading, gpus=(GPU(0, access="Lost"), reading.gpus[1]))
    unhealthy = replace(healthy, allocatable=healthy.allocatable[4:] if healthy.allocatable else None)
    known = last_allocatable(reading, healthy, NONE_ALLOCATABLE)
    for seen in (lost, reading):
        known = last_allocatable(seen, unhealthy, known)
    stands = allotment_of(reading, unhealthy, "", changing=False, known=known)
    assert stands.allocated == {("team-a", SHARED): Fraction(1, 4)}


@pytest.mark.parametrize(("replica", "parts"), [(0, 2), (1, 2), (2, 3), (6, 7)])
def test_of_a_device_that_was_never_offered_the_held_replicas_tell_how_many_there_are(replica: int, parts: int) -> None:
    """As after a restart of the agent; no plugin offers fewer than two replicas."""
    reading = machine(())
    holdings = handed_out(devices(reading, 7)[replica:], ["team-a"])
    holdings = replace(holdings, allocatable=())
    known = last_allocatable(reading, holdings, NONE_ALLOCATABLE)
    stands = allotment_of(reading, holdings, "", changing=False, known=known)
    assert stands.allocated == {("team-a", SHARED): Fraction(1, parts)}
    later = replace(handed_out(devices(reading, 9)[8:], ["team-a"]), allocatable=())
    assert list(last_allocatable(reading, later, known).values()) == [{SHARED: 9}]


def test_what_is_offered_anew_counts_and_what_is_gone_is_forgotten() -> None:
    reading, divided = machine(()), machine(("3g.40gb",))
    four = last_allocatable(reading, handed_out(devices(reading, 4), []), NONE_ALLOCATABLE)
    two = handed_out(devices(reading, 2), ["team-a"])
    assert allotment_of(reading, two, "", changing=False, known=four).allocated == {("team-a", SHARED): Fraction(1, 2)}
    assert last_allocatable(reading, two, four) == {uuid: {SHARED: 2} for uuid in four}
    instance = divided.gpus[0].instances[0].uuid
    as_instance = last_allocatable(divided, handed_out(devices(divided), []), NONE_ALLOCATABLE)
    assert list(as_instance) == [instance]
    assert last_allocatable(reading, Holdings(allocatable=()), as_instance) == {}


@pytest.mark.parametrize(
    ("offered", "idle"), [(None, 150.0), ((), 75.0)], ids=["it cannot be asked once", "it offers nothing once"]
)
async def test_a_kubelet_that_told_what_there_is_and_does_not_once_changes_no_bill(
    offered: tuple[tuple[str, str], ...] | None, idle: float
) -> None:
    node, pods, gpus = OneNode(), FixedPods(), SimulatedGPUs("gpu-01", [H100])
    known = handed_out(devices(gpus.read(), 4), ["team-a"])
    clock = [0.0]
    settings = LoopSettings(interval=3600.0, meter_lag=0, jitter=0)
    loop = AgentLoop("gpu-01", node.client, gpus, pods, settings, clock=lambda: clock[0])
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(loop.run())
        for at, holdings in ((0.0, known), (100.0, replace(known, allocatable=offered)), (200.0, known)):
            clock[0], pods.holdings = at, holdings
            node.ask(f"at {at}")
            await node.answered(f"at {at}")
        running.cancel()
    assert told(loop)[:2] == ({"team-a": 50.0}, {"": idle}), "what is not offered is stranded"


# --- what somebody else changes under a holder, without a restart of its pod ---------------------------------------


@pytest.mark.parametrize("layout", [(), ("3g.40gb",)], ids=["a whole GPU", "an instance"])
@pytest.mark.parametrize("others", [0, 2])
def test_who_holds_a_device_that_is_shared_since_holds_all_of_it_but_for_replicas_that_others_hold(
    layout: tuple[str, ...], others: int
) -> None:
    reading = machine(layout)
    before, after = devices(reading), devices(reading, 4)
    held = (*handed_out(before, ["team-a"]).by_pod, *handed_out(after, ["team-b"] * others).by_pod)
    whole = Fraction(1, 2) if layout else Fraction(1)
    known = last_allocatable(reading, handed_out(before, []), NONE_ALLOCATABLE)
    for offered in (tuple(after), ()):  # and while the plugin restarts
        holdings = Holdings(by_pod=held, allocatable=offered)
        known = last_allocatable(reading, holdings, known)
        stands = allotment_of(reading, holdings, "", changing=False, known=known)
        parts = {name: part for (name, _), part in stands.allocated.items()}
        assert parts["team-a"] == whole * Fraction(4, 4 + others)
        assert parts.get("team-b", 0) == whole * Fraction(others, 4 + others)
        assert sum(stands.idle.values()) == 0
        assert stands.stranded == 1 - whole


@pytest.mark.parametrize("others", [0, 1])
def test_who_holds_a_gpu_that_is_divided_since_holds_all_of_it_but_for_instances_that_others_hold(others: int) -> None:
    whole, divided = machine(()), machine(("3g.40gb", "3g.40gb"))
    instances = devices(divided)
    held = (*handed_out(devices(whole), ["team-a"]).by_pod, *handed_out(instances, ["team-b"] * others).by_pod)
    stands = allotment_of(divided, Holdings(by_pod=held, allocatable=tuple(instances)), "", changing=False)
    parts = {name: part for (name, _), part in stands.allocated.items()}
    assert parts["team-a"] == 1 - Fraction(others, 2)
    assert parts.get("team-b", 0) == Fraction(others, 2)
    assert sum(stands.idle.values()) + stands.stranded == 0
