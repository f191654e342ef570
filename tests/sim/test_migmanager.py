"""mig-manager's transitions, one by one (docs/design/nvidia.md#a2, a.3, a.6, a.7, a.8)."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from hack.sim.gpu import SimulatedGPUs
from hack.sim.migmanager import MigManager, MigManagerFaults
from hack.sim.migparted import generated
from hack.sim.settings import Clock, SimSettings
from tests.fakes.running import running
from tests.sim.build import A100, H100, L40S, layouts_of, make_gpus

from gpusharing.api.names import DEPLOY_PAUSABLE, LABEL_DEPLOY_CLIENT, LABEL_DEPLOY_PREFIX, PAUSED_FOR_MIG

STATE = "nvidia.com/mig.config.state"
DEPLOY = tuple(f"{LABEL_DEPLOY_PREFIX}{operand}" for operand in DEPLOY_PAUSABLE if operand != "client")
SEVEN = ("1g.10gb",) * 7
FAST = SimSettings(time_factor=10_000)
OWN_FILE = """
version: v1
mig-configs:
  huge: [{devices: all, mig-enabled: true, mig-devices: {1g.10gb: 7, 7g.80gb: 1}}]
  foreign: [{devices: all, mig-enabled: true, mig-devices: {1g.5gb: 7}}]
  first-only: [{devices: [0], mig-enabled: true, mig-devices: {7g.80gb: 1}}]
  second-only: [{devices: [1], mig-enabled: true, mig-devices: {7g.80gb: 1}}]
  both: [{devices: [0], mig-enabled: true, mig-devices: {7g.80gb: 1}},
         {devices: [1], mig-enabled: true, mig-devices: {7g.80gb: 1}}]
"""


class Node:
    def __init__(self, gpus: SimulatedGPUs, text: str = "") -> None:
        self.labels: dict[str, str] = dict.fromkeys(DEPLOY, "true")
        self.writes: list[dict[str, str | None]] = []
        self.text = text or generated(gpus.read())
        self.with_reboot = False
        self.operands_go = True
        self.rebooted = asyncio.Event()
        self.lines: list[str] = []
        self._told = asyncio.Event()

    async def patch_labels(self, changes: Mapping[str, str | None]) -> None:
        self.writes.append(dict(changes))
        for key, value in changes.items():
            if value is None:
                self.labels.pop(key, None)
            else:
                self.labels[key] = value
        self._told.set()

    async def operands_gone(self, seconds: float) -> bool:
        return self.operands_go

    def mig_file(self) -> str:
        return self.text

    async def reboot(self) -> None:
        self.rebooted.set()
        await asyncio.get_running_loop().create_future()

    def log(self, line: str) -> None:
        self.lines.append(line)
        self._told.set()

    @property
    def states(self) -> list[str]:
        return [value for write in self.writes for key, value in write.items() if key == STATE and value]

    @property
    def paused(self) -> list[str]:
        return [key for key, value in self.labels.items() if value == PAUSED_FOR_MIG]

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until the condition holds; it is looked at after each write and log line."""
        while not condition():
            self._told.clear()
            await self._told.wait()

    async def ended(self, count: int) -> None:
        await self.until(lambda: len(self.states) >= count)


@asynccontextmanager
async def manager(
    node: Node, gpus: SimulatedGPUs, settings: SimSettings = FAST, faults: MigManagerFaults | None = None
) -> AsyncIterator[MigManager]:
    played = MigManager(node, gpus, faults or MigManagerFaults(), Clock(settings), settings)
    async with running(played.run()):
        async with asyncio.timeout(60):
            yield played


async def ran(node: Node, gpus: SimulatedGPUs, name: str, states: int, faults: MigManagerFaults | None = None) -> None:
    """Tell a pod of mig-manager this configuration, until the node has had so many states."""
    async with manager(node, gpus, faults=faults) as played:
        played.note(name)
        await node.ended(states)


async def test_a_new_layout_goes_over_pending_to_success_with_the_operands_paused_meanwhile() -> None:
    gpus = make_gpus(None, None)
    node = Node(gpus)
    node.labels[DEPLOY[4]] = "false"
    del node.labels[DEPLOY[2]]
    await ran(node, gpus, "all-1g.10gb", 2)
    pause = dict.fromkeys(DEPLOY[:4], PAUSED_FOR_MIG) | {DEPLOY[4]: "false"}
    restore = dict.fromkeys(DEPLOY[:4], "true") | {DEPLOY[4]: "false"}
    assert node.writes == [{STATE: "pending"}, pause, restore, {STATE: "success"}]
    assert layouts_of(gpus) == [SEVEN, SEVEN]


async def test_the_client_label_is_paused_only_where_it_exists() -> None:
    gpus = make_gpus(None)
    node = Node(gpus)
    node.labels[LABEL_DEPLOY_CLIENT] = "true"
    await ran(node, gpus, "all-1g.10gb", 2)
    assert [write[LABEL_DEPLOY_CLIENT] for write in node.writes if LABEL_DEPLOY_CLIENT in write] == [
        PAUSED_FOR_MIG,
        "true",
    ]


async def test_a_layout_that_is_there_already_is_success_without_pending() -> None:
    gpus = make_gpus(SEVEN)
    node = Node(gpus)
    await ran(node, gpus, "all-1g.10gb", 1)
    assert node.states == ["success"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        pytest.param("all-1g.5gb", "", id="a name that the file does not hold"),
        pytest.param("all-1g.10gb", "mig-configs: [", id="a bad file"),
    ],
)
async def test_an_invalid_configuration_fails_and_touches_no_gpu(name: str, text: str) -> None:
    gpus = make_gpus(SEVEN)
    node = Node(gpus, text)
    await ran(node, gpus, name, 1)
    assert node.states == ["failed"]
    assert layouts_of(gpus) == [SEVEN]
    assert not node.paused


async def test_the_same_value_again_is_nothing_and_an_empty_one_wakes_nobody() -> None:
    gpus = make_gpus(SEVEN)
    node = Node(gpus)
    async with manager(node, gpus) as played:
        played.note("all-1g.10gb")
        await node.ended(1)
        played.note("all-1g.10gb")
        played.note("")
        await asyncio.sleep(0.02)
        assert node.states == ["success"]
        played.note("all-1g.10gb")  # removed and added again: a run
        await node.ended(2)


async def test_changes_during_a_run_collapse_to_the_last_one() -> None:
    gpus = make_gpus(None)
    node = Node(gpus)
    async with manager(node, gpus) as played:
        played.note("all-1g.10gb")
        await node.ended(1)
        played.note("all-1g.20gb")
        played.note("all-7g.80gb")
        await node.ended(4)
    assert node.states == ["pending", "success"] * 2
    assert layouts_of(gpus) == [("7g.80gb",)]


async def test_there_and_back_during_a_run_is_lost_and_removed_is_a_failed_run() -> None:
    gpus = make_gpus(None)
    node = Node(gpus)
    async with manager(node, gpus) as played:
        played.note("all-1g.10gb")
        await node.ended(1)
        played.note("all-7g.80gb")
        played.note("all-1g.10gb")
        await node.ended(2)
        await asyncio.sleep(0.02)
        assert node.states == ["pending", "success"]
        played.note("all-7g.80gb")
        await node.ended(3)
        played.note("")
        await node.ended(5)
    assert node.states[2:] == ["pending", "success", "failed"]


async def test_a_refused_layout_fails_as_such_also_where_the_first_gpu_has_no_mig() -> None:
    gpus = SimulatedGPUs("gpu-01", [L40S, H100])
    node = Node(gpus, OWN_FILE)
    faults = MigManagerFaults(refuse=True)
    await ran(node, gpus, "second-only", 2, faults)
    assert node.states == ["pending", "failed"]
    assert "mig-manager: second-only: error creating MIG device on GPU 0: SIMULATED, requested by inject" in (
        node.lines
    )


@pytest.mark.parametrize(
    ("name", "state"),
    [
        pytest.param("huge", "failed", id="impossible geometry fails"),
        pytest.param("foreign", "success", id="a profile that the card lacks is a success"),
    ],
)
async def test_a_layout_that_cannot_be_leaves_the_gpu_mig_on_and_empty(name: str, state: str) -> None:
    gpus = make_gpus(None)
    node = Node(gpus, OWN_FILE)
    await ran(node, gpus, name, 2)
    assert node.states == ["pending", state]
    assert layouts_of(gpus) == [()]
    assert not node.paused


async def test_an_instance_in_use_fails_and_is_not_atomic_over_gpus() -> None:
    gpus = make_gpus(SEVEN, SEVEN)
    used = gpus.read().gpus[1].instances[0].uuid
    gpus.add_process(1, "python3", 7, used)
    node = Node(gpus, OWN_FILE)
    await ran(node, gpus, "both", 2)
    assert node.states == ["pending", "failed"]
    assert layouts_of(gpus) == [("7g.80gb",), ("1g.10gb",)]


@pytest.mark.parametrize(
    ("second", "state"),
    [
        pytest.param(None, "failed", id="a mode change on GPU 1 disturbs GPU 0, which is right already"),
        pytest.param(SEVEN, "success", id="a geometry change on GPU 1 leaves GPU 0 alone"),
    ],
)
async def test_what_a_change_of_one_gpu_does_to_the_other(second: tuple[str, ...] | None, state: str) -> None:
    gpus = make_gpus(("7g.80gb",), second)
    gpus.add_process(0, "python3", 7, gpus.read().gpus[0].instances[0].uuid)
    node = Node(gpus, OWN_FILE)
    await ran(node, gpus, "both", 2)
    assert node.states == ["pending", state]


async def test_instances_without_compute_instances_are_cleared_with_others_and_else_take_the_room() -> None:
    for stripped, states, after in ((1, ["pending", "success"], ("7g.80gb",)), (2, ["pending", "failed"], ())):
        gpus = make_gpus(("3g.40gb", "3g.40gb"))
        for _ in range(stripped):
            gpus.destroy_compute(0)
        node = Node(gpus)
        await ran(node, gpus, "all-7g.80gb", 2)
        assert (node.states, layouts_of(gpus)) == (states, [after])


async def test_a_gpu_that_the_configuration_leaves_out_bounces_the_operands_each_time() -> None:
    gpus = make_gpus(("7g.80gb",), None)
    node = Node(gpus, OWN_FILE)
    for expected in (2, 4):
        await ran(node, gpus, "first-only", expected)
    assert node.states == ["pending", "success"] * 2
    why = "Assertion failure: selected configuration not currently applied"  # and no mode is pending
    assert [line for line in node.lines if "continuing" in line] == [f"mig-manager: {why}; continuing"] * 2


@pytest.mark.parametrize("product", [pytest.param(H100, id="Hopper"), pytest.param(A100, id="Ampere")])
async def test_an_open_nvml_client_makes_a_mode_change_fail(product: str) -> None:
    gpus = make_gpus(None, product=product)
    node = Node(gpus)
    with gpus.client():
        await ran(node, gpus, "all-balanced", 2)
    assert node.states == ["pending", "failed"]
    assert any("continuing" in line for line in node.lines)


@pytest.mark.parametrize("injected", [True, False], ids=["injected, in any version", "0.13.1"])
async def test_operands_that_do_not_go_leave_it_pending_for_ever_with_operands_paused(injected: bool) -> None:
    gpus = make_gpus(None)
    node = Node(gpus)
    node.operands_go = injected
    settings = FAST if injected else replace(FAST, mig_manager="0.13.1")
    async with manager(node, gpus, settings, MigManagerFaults(wedge_pending=injected)) as played:
        played.note("all-1g.10gb")
        await node.until(lambda: any("timed out" in line for line in node.lines))
    assert node.states == ["pending"]
    assert node.paused == list(DEPLOY)
    node.operands_go = True
    async with manager(node, gpus) as played:  # a new pod cures it
        played.note("all-1g.10gb")
        await node.ended(3)
    assert node.states == ["pending", "pending", "success"]
    assert not node.paused


async def test_since_0_15_1_operands_that_do_not_go_end_in_failed_and_are_started_again() -> None:
    gpus = make_gpus(None)
    node = Node(gpus)
    node.operands_go = False
    await ran(node, gpus, "all-1g.10gb", 2)
    assert node.states == ["pending", "failed"]
    assert (node.paused, layouts_of(gpus)) == ([], [None])


async def test_a_failure_after_the_first_full_run_leaves_the_operands_paused() -> None:
    gpus = make_gpus(None)
    node = Node(gpus)
    faults = MigManagerFaults()
    async with manager(node, gpus, faults=faults) as played:
        played.note("all-1g.10gb")
        await node.ended(2)
        faults.failed = True
        played.note("all-7g.80gb")
        await node.ended(4)
        assert node.states[2:] == ["pending", "failed"]
        assert node.paused == list(DEPLOY)
        played.note("all-1g.10gb")  # still applied: success, and still paused
        await node.ended(5)
    assert node.states[4:] == ["success"]
    assert node.paused == list(DEPLOY)


async def test_the_second_wedge_on_demand_and_a_plain_failure() -> None:
    gpus = make_gpus(None)
    node = Node(gpus)
    async with manager(node, gpus, faults=MigManagerFaults(failed=True)) as played:
        played.note("all-1g.10gb")
        await node.ended(2)
        assert node.states == ["pending", "failed"]
        assert not node.paused
    await ran(node, gpus, "all-7g.80gb", 4, MigManagerFaults(wedge_paused=True))
    assert node.states[2:] == ["pending", "failed"]
    assert node.paused == list(DEPLOY)


@pytest.mark.parametrize(
    ("product", "layout", "after"),
    [
        pytest.param(A100, ("1g.5gb",) * 7, ["pending", "success"], id="Ampere keeps the mode: success"),
        pytest.param(H100, None, ["failed"], id="Hopper loses the mode: failed"),
    ],
)
async def test_with_reboot(product: str, layout: tuple[str, ...] | None, after: list[str]) -> None:
    gpus = make_gpus(None, product=product)
    node = Node(gpus)
    name = "all-1g.5gb" if product == A100 else "all-1g.10gb"
    async with manager(node, gpus, faults=MigManagerFaults(reboot=True)) as played:
        played.note(name)
        await node.rebooted.wait()
    assert node.states == ["pending", "rebooting"]
    assert node.paused == list(DEPLOY)
    gpus.reboot()
    await ran(node, gpus, name, 2 + len(after))
    assert node.states[2:] == after
    assert layouts_of(gpus) == [layout]


async def test_a_killed_pod_is_carried_on_by_the_next() -> None:
    gpus = make_gpus(None)
    node = Node(gpus)
    async with manager(node, gpus) as played:
        played.note("all-1g.10gb")
        await node.until(lambda: node.paused)
    assert node.paused == list(DEPLOY)
    await ran(node, gpus, "all-1g.10gb", 3)
    assert node.states == ["pending", "pending", "success"]
    assert not node.paused
    assert layouts_of(gpus) == [SEVEN]
