"""While the GPUNode is missing, NVML stays closed, and whoever holds the GPUs is billed for them all the same."""

import asyncio

from hack.sim.gpu import SimulatedGPUs
from tests.agent.test_meter import H100, devices, handed_out
from tests.fakes.gpus import FixedPods, OneNode, eventually

from gpusharing.agent.loop import AgentLoop, LoopSettings
from gpusharing.agent.podresources import Holdings


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
