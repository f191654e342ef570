"""What an operand's pod does next (docs/design/nvidia.md#b4)."""

import asyncio

import pytest
from hack.sim.operands import OperandStep, PlayedOperand, Pod, decide
from hack.sim.plugin import PluginError
from hack.sim.settings import Clock, SimSettings

ABSENT = Pod()
CRASHED = Pod(exists=True)
RUNNING = Pod(exists=True, running=True, loaded="a")


@pytest.mark.parametrize(
    ("pod", "deployed", "key", "step"),
    [
        pytest.param(ABSENT, False, "a", OperandStep.REST, id="not deployed: nothing"),
        pytest.param(ABSENT, True, "a", OperandStep.START, id="deployed: it starts"),
        pytest.param(ABSENT, True, "", OperandStep.START, id="with the empty configuration too"),
        pytest.param(ABSENT, True, None, OperandStep.INIT_CRASH, id="a new pod with an unknown key crash-loops"),
        pytest.param(CRASHED, True, "a", OperandStep.START, id="a crashed pod starts again"),
        pytest.param(CRASHED, False, None, OperandStep.STOP, id="a paused label removes a crashed pod"),
        pytest.param(RUNNING, True, "a", OperandStep.REST, id="the same key: already configured"),
        pytest.param(RUNNING, True, "b", OperandStep.RELOAD, id="another key: SIGHUP"),
        pytest.param(RUNNING, True, None, OperandStep.SIDECAR_CRASH, id="an unknown key: only the sidecar crash-loops"),
        pytest.param(RUNNING, False, "b", OperandStep.STOP, id="a paused label stops a running pod"),
    ],
)
def test_the_next_step_follows_from_pod_label_and_key(
    pod: Pod, deployed: bool, key: str | None, step: OperandStep
) -> None:
    assert decide(pod, deployed=deployed, key=key) is step


def test_a_plugin_that_waited_for_the_mps_daemon_starts_to_serve_again() -> None:
    assert decide(RUNNING, deployed=True, key="a", again=True) is OperandStep.RELOAD
    assert decide(RUNNING, deployed=False, key="a", again=True) is OperandStep.STOP


class Port:
    def __init__(self) -> None:
        self.is_deployed = True
        self.wanted: str | None = "a"
        self.exits = 0
        self.events: list[str] = []
        self._told = asyncio.Event()

    def deployed(self) -> bool:
        return self.is_deployed

    def key(self, *, new_pod: bool) -> str | None:
        return self.wanted

    async def serve(self, key: str) -> None:
        if self.exits:
            self.exits -= 1
            raise PluginError("exits")
        self._note(f"serves {key}")

    def again(self) -> bool:
        return False

    async def gone(self, *, crashed: bool) -> None:
        self._note("crashed" if crashed else "stopped")

    def _note(self, event: str) -> None:
        self.events.append(event)
        self._told.set()

    async def until(self, *events: str) -> None:
        async with asyncio.timeout(60):
            while self.events != list(events):
                self._told.clear()
                await self._told.wait()


async def test_it_follows_label_and_key_and_comes_back_from_a_crash() -> None:
    settings = SimSettings(time_factor=10_000)
    port = Port()
    port.exits = 1
    operand = PlayedOperand("device-plugin", port, Clock(settings), settings.times, lambda line: None)
    task = asyncio.create_task(operand.run())
    try:
        await port.until("crashed", "serves a")
        assert not operand.is_gone.is_set()
        port.wanted = "b"
        operand.wake()
        await port.until("crashed", "serves a", "serves b")
        port.is_deployed = False
        operand.wake()
        await port.until("crashed", "serves a", "serves b", "stopped")
        await operand.is_gone.wait()
        port.is_deployed = True
        operand.wake()
        await port.until("crashed", "serves a", "serves b", "stopped", "serves b")
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
