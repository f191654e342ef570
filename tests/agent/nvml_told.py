"""`python -m tests.agent.nvml_told FOLDER`: what the shipped loop tells Prometheus after a reading, as its page.

The GPUs are those of hack/nvmlsim ($NVMLSIM_STATE). In FOLDER is what the node has besides: `proc`, a procfs; `logs`,
the folders of the pods' logs; `kubelet.sock`, the podresources of its kubelet.
"""

import asyncio
import json
import sys
from pathlib import Path

from prometheus_client.exposition import generate_latest
from prometheus_client.registry import CollectorRegistry
from tests.fakes.gpus import OneNode

from gpusharing.agent.kubelet import KubeletPodResources
from gpusharing.agent.loop import AgentLoop, LoopSettings
from gpusharing.agent.metrics import UsageCollector
from gpusharing.agent.nvml import NVML
from gpusharing.agent.processes import Processes, pod_names


async def told(node: Path) -> str:
    """The page once request r1 is answered."""
    gpunode = OneNode()
    gpunode.ask("r1")
    library = NVML(Processes(node / "proc", pod_named=pod_names(node / "logs")))
    pods = KubeletPodResources(node / "kubelet.sock")
    loop = AgentLoop(gpunode.name, gpunode.client, library, pods, LoopSettings(interval=3600.0))
    registry = CollectorRegistry()
    registry.register(UsageCollector(loop))
    task = asyncio.create_task(loop.run())
    await gpunode.answered("r1")
    page = generate_latest(registry).decode()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    pods.close()
    return page


if __name__ == "__main__":
    print(json.dumps(asyncio.run(told(Path(sys.argv[1])))))
