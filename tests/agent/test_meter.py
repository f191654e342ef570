"""The meter: every second of every GPU is somebody's, once, whatever happens between two scrapes."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import pytest
from hack.sim.gpu import SimulatedGPUs
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.agent.scraping import GPUS, PARTS, CountingPrometheus
from tests.fakes.gpus import FixedPods, OneNode, eventually

from gpusharing.agent.allotment import (
    NONE_ALLOCATABLE,
    NOTHING,
    AllocatableSlices,
    Allotment,
    allotment_of,
    last_allocatable,
)
from gpusharing.agent.library import GPU, LibraryError, Reading
from gpusharing.agent.loop import AgentLoop, LoopSettings
from gpusharing.agent.meter import LAG, Meter
from gpusharing.agent.podresources import Holdings, PodDevices

H100 = "NVIDIA H100 80GB HBM3"
SMALL, LARGE, SHARED = "nvidia.com/mig-1g.10gb", "nvidia.com/mig-3g.40gb", "nvidia.com/gpu.shared"
LAYOUTS: tuple[tuple[str, ...], ...] = (
    (),
    ("3g.40gb", "3g.40gb"),
    ("4g.40gb", "3g.40gb"),
    ("1g.10gb",) * 7,
    ("2g.20gb",) * 3,
    ("1g.20gb",) * 2,
)


def machine(*layouts: Sequence[str]) -> Reading:
    """A node with one H100 for each layout; an empty one is a whole GPU."""
    gpus = SimulatedGPUs("gpu-01", [H100] * len(layouts))
    for index, layout in enumerate(layouts):
        if layout:
            gpus.set_mig_mode(index, on=True)
        for profile in layout:
            gpus.create(index, profile)
    return gpus.read()


def devices(reading: Reading, replicas: int = 1) -> list[tuple[str, str]]:
    found = []
    for gpu in reading.gpus:
        slices = [(f"nvidia.com/mig-{i.profile}", i.uuid) for i in gpu.instances] or [("nvidia.com/gpu", gpu.uuid)]
        for resource, uuid in slices:
            if replicas == 1:
                found.append((resource, uuid))
            else:
                found += [(f"{resource}.shared", f"{uuid}::{number}") for number in range(replicas)]
    return found


def handed_out(offered: Sequence[tuple[str, str]], tenants: Sequence[str]) -> Holdings:
    """The first devices go to these namespaces, in their order; "" holds nothing."""
    held = [
        PodDevices(tenant, "pod", resource, (device,))
        for tenant, (resource, device) in zip(tenants, offered, strict=False)
        if tenant
    ]
    return Holdings(by_pod=tuple(held), allocatable=tuple(offered))


def now(reading: Reading, holdings: Holdings, *, changing: bool = False) -> Allotment:
    return allotment_of(reading, holdings, "pool-b", changing=changing)


def total(stands: Allotment) -> Fraction:
    return sum(stands.allocated.values(), sum(stands.idle.values(), stands.stranded + stands.transition))


def test_a_whole_gpu_is_its_holders_or_idle() -> None:
    reading = machine((), ())
    stands = now(reading, handed_out(devices(reading), ["team-a"]))
    assert stands.allocated == {("team-a", "nvidia.com/gpu"): 1}
    assert stands.idle == {"nvidia.com/gpu": 1}
    assert stands.stranded == 0
    assert total(stands) == 2


def test_instances_are_held_idle_or_stranded_by_their_share_of_the_gpu() -> None:
    reading = machine(("2g.20gb",) * 3)
    stands = now(reading, handed_out(devices(reading), ["team-a", "team-b"]))
    resource = "nvidia.com/mig-2g.20gb"
    assert stands.allocated == {("team-a", resource): Fraction(2, 7), ("team-b", resource): Fraction(2, 7)}
    assert stands.idle == {resource: Fraction(2, 7)}
    assert stands.stranded == Fraction(1, 7)


@pytest.mark.parametrize("layout", [(), ("3g.40gb",)], ids=["a whole GPU", "an instance"])
def test_replicas_of_a_shared_device_are_equal_parts_of_it(layout: tuple[str, ...]) -> None:
    reading = machine(layout)
    stands = now(reading, handed_out(devices(reading, 4), ["team-a", "team-b", "team-a"]))
    resource = devices(reading, 4)[0][0]
    whole = Fraction(1, 2) if layout else Fraction(1)
    assert stands.allocated == {("team-a", resource): whole / 2, ("team-b", resource): whole / 4}
    assert stands.idle == {resource: whole / 4}


def test_of_a_node_in_the_middle_of_a_change_only_what_is_held_is_somebodys() -> None:
    reading = machine(("3g.40gb", "3g.40gb"), ())
    stands = now(reading, handed_out(devices(reading), ["team-a"]), changing=True)
    assert (stands.allocated, stands.idle) == ({("team-a", LARGE): Fraction(1, 2)}, {})
    assert stands.stranded == 0
    assert stands.transition == Fraction(3, 2)


def test_a_slice_that_is_held_though_it_is_sick_is_still_its_holders() -> None:
    reading = machine(())
    stands = now(reading, replace(handed_out(devices(reading), ["team-a"]), allocatable=()))
    assert stands.allocated == {("team-a", "nvidia.com/gpu"): 1}


def test_a_gpu_that_nobody_is_offered_is_stranded() -> None:
    assert now(machine(()), Holdings(allocatable=())).stranded == 1


def test_without_what_there_is_to_hold_a_device_is_its_holders_in_equal_parts() -> None:
    reading = machine(())
    holdings = replace(handed_out(devices(reading, 4), ["team-a", "team-b"]), allocatable=None)
    assert set(now(reading, holdings).allocated.values()) == {Fraction(1, 2)}


def test_time_between_two_turns_goes_to_how_things_stood_at_the_first() -> None:
    reading, meter = machine(()), Meter(lag=0)
    meter.turn(100.0, now(reading, handed_out(devices(reading), ["team-a"])))
    account = ("pool-b", "team-a", "nvidia.com/gpu")
    assert meter.metered["allocated"] == {account: 0.0}
    meter.turn(130.0, now(reading, handed_out(devices(reading), [])))
    meter.turn(140.0, None)
    assert meter.metered["allocated"] == {account: 30.0}
    assert meter.metered["idle"] == {("pool-b", "nvidia.com/gpu"): 10.0}
    assert meter.metered["gpus"] == {("pool-b",): 40.0}


def test_what_is_new_is_told_as_0_first_so_that_prometheus_counts_it_from_its_start() -> None:
    reading, meter = machine(()), Meter(lag=90)
    account = ("pool-b", "team-a", "nvidia.com/gpu")
    told = []
    for number in range(12):
        tenants = ["team-a"] if number >= 4 else []
        meter.turn(30.0 * number, now(reading, handed_out(devices(reading), tenants)))
        told.append((meter.metered["gpus"]["pool-b",], meter.metered["allocated"].get(account)))
    assert [held for _, held in told] == [None] * 4 + [0, 0, 0, 90, 120, 150, 180, 210]
    assert [gpus for gpus, _ in told] == [0, 0, 0, 90, 120, 120, 120, 210, 240, 270, 300, 330]


def test_the_sum_of_a_policy_is_dropped_after_its_last_part() -> None:
    meter = Meter(lag=90)
    one = Allotment("p", {}, {}, Fraction(1), NOTHING)
    other = replace(one, policy="q")
    meter.turn(0.0, one)
    meter.turn(100.0, replace(one, allocated={("team-a", SMALL): Fraction(1)}, stranded=NOTHING))
    meter.turn(102.0, other)
    assert meter.metered["gpus"] == {("p",): 100.0, ("q",): 0.0}
    meter.turn(200_000.0, other)
    assert list(meter.metered["stranded"]) == [("q",)]
    assert meter.metered["allocated"] == {("p", "team-a", SMALL): 2.0}
    assert meter.metered["gpus"] == {("p",): 102.0, ("q",): 199_898.0}


def test_before_anything_is_known_nothing_is_metered() -> None:
    meter = Meter()
    meter.turn(1.0, None)
    meter.turn(100.0, None)
    assert meter.metered["gpus"] == {}


HAPPENINGS = st.lists(
    st.tuples(
        st.sampled_from(
            [
                *("turn", "turn", "turn", "layout", "pods", "pods", "quiet", "blind", "restart", "policy"),
                *("lost", "foreign", "sick", "gone"),
            ]
        ),
        st.integers(1, 30),
        st.integers(0, len(LAYOUTS) - 1),
        st.lists(st.sampled_from(["", "team-a", "team-b", "team-c"]), max_size=14),
        st.sampled_from([1, 1, 4]),
    ),
    min_size=2,
    max_size=60,
)
FOREIGN = PodDevices("team-d", "pod", SHARED, ("GPU-foreign::1", "GPU-other", ""))
"""Of devices that the node has no more, or has under no name."""
LOST = GPU(0, access="Lost")
READINGS = {(one, two): machine(one, two) for one in LAYOUTS for two in (LAYOUTS[0], LAYOUTS[2])}


@dataclass
class Changing:
    reading: Reading
    holdings: Holdings = field(default_factory=Holdings)
    policy: str = "pool-b"
    changing: bool = False
    lost: bool = False
    gone: bool = False
    """The GPUNode is missing: the agent reads no GPU, and nobody shows it anything."""
    offers: AllocatableSlices = field(default_factory=dict)
    shown: tuple[Reading, str, bool] | None = None

    def happen(self, kind: str, layout: int, tenants: Sequence[str], replicas: int) -> None:
        match kind:
            case "layout":
                self.reading, self.changing = READINGS[LAYOUTS[layout], LAYOUTS[2 * (layout % 2)]], False
            case "pods":
                self.holdings = handed_out(devices(self.reading, replicas), tenants)
            case "foreign":
                self.holdings = replace(self.holdings, by_pod=(*self.holdings.by_pod, FOREIGN))
            case "sick":
                self.holdings = replace(self.holdings, allocatable=())
            case "quiet":
                self.changing = not self.changing
            case "policy":
                self.policy = "pool-c" if self.policy == "pool-b" else "pool-b"
            case "lost":
                self.lost = not self.lost
            case "gone":
                self.gone = not self.gone
            case "restart":
                self.offers, self.gone = NONE_ALLOCATABLE, False

    def stands(self) -> Allotment:
        if not self.gone or self.shown is None:
            gpus = (LOST, self.reading.gpus[1]) if self.lost else self.reading.gpus
            self.shown = replace(self.reading, gpus=gpus), self.policy, self.changing
        reading, policy, changing = self.shown
        self.offers = last_allocatable(reading, self.holdings, self.offers)
        stands = allotment_of(reading, self.holdings, policy, changing=changing, known=self.offers)
        assert total(stands) == 2
        assert min((*stands.allocated.values(), *stands.idle.values(), stands.stranded, stands.transition)) >= 0
        return stands


@settings(max_examples=150, deadline=None)
@given(HAPPENINGS)
def test_tenants_idle_stranded_and_transition_add_up_to_the_seconds_of_the_gpus(
    happenings: list[Any],
) -> None:
    meter, prometheus, clock, known = Meter(), CountingPrometheus(), 0.0, 0.0
    node = Changing(READINGS[(), ()])
    scraped = newest = 0.0
    begun: float | None = None
    keys: set[object] = set()
    for kind, seconds, layout, tenants, replicas in happenings:
        clock += seconds
        node.happen(kind, layout, tenants, replicas)
        if kind == "restart":
            known += lived(begun, scraped)
            meter, begun, keys = Meter(), None, set()
        stands = None if kind == "blind" else node.stands()
        if stands is not None:
            begun = clock if begun is None else begun
        meter.turn(clock, stands)
        if keys != (keys := keys | keys_of(meter)):
            newest = clock
        told = sum(meter.metered["gpus"].values())
        parts = sum(sum(counts.values()) for part, counts in meter.metered.items() if part != "gpus")
        assert parts == pytest.approx(told, abs=1e-6)
        since = 0.0 if begun is None else 2 * (clock - begun)
        assert told <= since + 1e-6
        if clock - newest >= LAG:
            assert told == pytest.approx(since, abs=1e-6), "nothing new: all of it is told"
        if layout % 2 or clock - scraped + 30 > LAG:
            prometheus.scrape(meter)
            scraped = clock
    known += lived(begun, scraped)
    gpus = prometheus.grown(GPUS)
    assert prometheus.grown(*PARTS) == pytest.approx(gpus, abs=1e-6)
    assert known - 1e-6 <= gpus <= 2 * clock


def lived(begun: float | None, scraped: float) -> float:
    """GPU-seconds of two GPUs that a process has told, at least: all up to its last scrape, but not what was new."""
    return 0.0 if begun is None else 2 * max(0.0, scraped - begun - LAG - 30)


def keys_of(meter: Meter) -> set[object]:
    told = meter.metered
    return {*told["allocated"], *told["idle"], *told["stranded"]}


@given(st.lists(st.tuples(st.integers(1, 30), st.sampled_from(["", "team-a"])), min_size=1, max_size=40))
def test_a_tenant_is_billed_what_it_held_but_for_one_turn_at_each_coming_and_going(
    turns: list[tuple[int, str]],
) -> None:
    reading, meter, clock = machine(("3g.40gb", "3g.40gb")), Meter(lag=0), 0.0
    offered = devices(reading)
    truth, allowed, before = 0.0, 0.0, ""
    for seconds, tenant in turns:
        truth += 0.5 * seconds / 2 * ((before != "") + (tenant != ""))  # it came or went halfway
        allowed += 0.5 * seconds if before != tenant else 0.0
        clock += seconds
        if clock == seconds:
            truth = allowed = 0.0
        meter.turn(clock, allotment_of(reading, handed_out(offered, [tenant]), "p", changing=False))
        before = tenant
    billed = sum(meter.metered["allocated"].values())
    assert abs(billed - truth) <= allowed / 2 + 1e-9


def told(loop: AgentLoop) -> tuple[dict[str, float], dict[str, float], dict[str, float]]:
    """GPU-seconds by namespace, idle by policy, and in transition by policy."""
    metered = loop.meter.metered
    held = {namespace: seconds for (_, namespace, _), seconds in metered["allocated"].items()}
    idle, transition = ({key[0]: seconds for key, seconds in metered[part].items()} for part in ("idle", "transition"))
    return held, idle, transition


async def test_the_loop_meters_for_the_policy_and_the_phase_that_the_operator_shows() -> None:
    node, pods, gpus = OneNode(), FixedPods(), SimulatedGPUs("gpu-01", [H100])
    offered = devices(gpus.read())
    clock = [0.0]
    settings = LoopSettings(interval=3600.0, meter_lag=0, jitter=0)
    loop = AgentLoop("gpu-01", node.client, gpus, pods, settings, clock=lambda: clock[0])

    async def turn(number: int, at: float, holdings: Holdings, **transition: str) -> None:
        clock[0], pods.holdings = at, holdings
        if transition:
            node.show(transition)
        node.ask(f"r{number}")
        await node.answered(f"r{number}")

    node.ask("r0")
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(loop.run())
        await node.answered("r0")
        await turn(1, 100.0, handed_out(offered, ["team-a"]), policy="pool-b", phase="Synced")
        await turn(2, 130.0, handed_out(offered, []))
        await turn(3, 140.0, handed_out(offered, []), policy="pool-b", phase="Reconfiguring")
        gpus.fail(LibraryError("the driver is being replaced"))
        clock[0] = 200.0
        node.ask("r4")
        await node.until(lambda observed: observed.error != "")
        gpus.fail(None)
        await turn(5, 205.0, handed_out(offered, ["team-b"]), policy="pool-c", phase="Synced")
        await turn(6, 206.0, handed_out(offered, ["team-b"]))
        running.cancel()
    held, idle, transition = told(loop)
    assert held == {"team-a": 30.0, "team-b": 1.0}
    assert idle["pool-b"] == 10.0
    assert transition["pool-b"] == 65.0, "an error in the middle of a change is part of the change"
    assert loop.meter.metered["gpus"] == {("",): 100.0, ("pool-b",): 105.0, ("pool-c",): 1.0}


async def test_time_without_a_gpunode_goes_to_those_who_held_the_gpu_meanwhile() -> None:
    node, pods, gpus, clock = OneNode(), FixedPods(), SimulatedGPUs("gpu-01", [H100]), [0.0]
    offered = devices(gpus.read())
    settings = LoopSettings(interval=0.001, meter_lag=0, jitter=0)
    loop = AgentLoop("gpu-01", node.client, gpus, pods, settings, clock=lambda: clock[0])

    def told() -> dict[tuple[str, str], float]:
        return {(policy, tenant): seconds for (policy, tenant, _), seconds in loop.meter.metered["allocated"].items()}

    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(loop.run())
        node.ask("r0")
        await node.answered("r0")
        node.show({"policy": "pool-b", "phase": "Synced"})
        pods.holdings = handed_out(offered, ["team-a"])
        await eventually(lambda: ("pool-b", "team-a") in told())
        node.delete()
        await eventually(lambda: "does not exist" in loop.why_not_ready())
        clock[0] = 600.0
        await eventually(lambda: told()["pool-b", "team-a"] == 600)
        read = loop.readings_by_outcome["ok"]
        pods.holdings = handed_out(offered, ["team-b"])
        await eventually(lambda: ("pool-b", "team-b") in told())
        clock[0] = 4200.0
        await eventually(lambda: told()["pool-b", "team-b"] == 3600)
        assert loop.readings_by_outcome["ok"] == read, "nothing is read that nobody asked for"
        assert loop.use is None
        node.ask("r1")
        await node.answered("r1")
        running.cancel()
    billed = {account: seconds for account, seconds in told().items() if seconds}
    assert billed == {("pool-b", "team-a"): 600.0, ("pool-b", "team-b"): 3600.0}


async def test_an_agent_that_never_read_the_gpus_asks_the_kubelet_nothing_without_a_gpunode() -> None:
    pods = CountedPods()
    loop = AgentLoop("gpu-01", OneNode().client, SimulatedGPUs("gpu-01", [H100]), pods)
    await loop.cycle()
    assert (pods.asked, loop.meter.metered["gpus"]) == (0, {})


class CountedPods(FixedPods):
    asked = 0

    async def read(self) -> Holdings:
        self.asked += 1
        return await super().read()


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
