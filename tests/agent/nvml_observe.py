"""`python -m tests.agent.nvml_observe`: what a GPUNode holds once the shipped loop has answered a request, as JSON."""

import asyncio
import json

from tests.fakes.gpus import FixedPods, OneNode

from gpusharing.agent.loop import AgentLoop, LoopSettings
from gpusharing.agent.nvml import NVML
from gpusharing.agent.podresources import Holdings
from gpusharing.api.records import to_wire


async def observe() -> object:
    """The report to request r1, with three pods that hold devices."""
    node, pods = OneNode(), FixedPods()
    pods.holdings = Holdings({"nvidia.com/mig-3g.40gb": 1, "nvidia.com/mig-1g.10gb": 2}, 3)
    node.ask("r1")
    loop = AgentLoop(node.name, node.client, NVML(), pods, LoopSettings(interval=3600.0))
    task = asyncio.create_task(loop.run())
    observed = await node.answered("r1")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return to_wire(observed)


if __name__ == "__main__":
    print(json.dumps(asyncio.run(observe())))
