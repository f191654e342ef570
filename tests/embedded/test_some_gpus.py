"""With `drain.scope: Changed`, the pods of the seven GPUs that keep their layout stay, and the node is away as long.
SIMULATED: nodes with eight GPUs, NVIDIA's software, kubelets that hand out devices."""

import pytest
from hack.sim.workloads import SimWorkload
from tests.embedded.scene import Scene, nodes, open_scene
from tests.fakes.virtualtime import virtually

from gpusharing.kube.client import GPUNODES, JSON, PODS

HALF, SEVENTH = "nvidia.com/mig-3g.40gb", "nvidia.com/mig-1g.10gb"


def divided(last: dict[str, int], scope: str) -> JSON:
    layouts = [{"devices": [*range(7)], "profiles": {"3g.40gb": 2}}, {"devices": [7], "profiles": last}]
    drain = {"scope": scope, "strandedPods": "Allow"}
    return {"mode": "MIG", "mig": {"layouts": layouts}, "drain": drain, "rollout": {"maxUnavailable": 1}}


async def changed(scene: Scene, scope: str) -> tuple[set[str], set[str]]:
    """The pods before the last GPU of each node gets another layout, and those that are still there afterwards."""
    await scene.serve(divided({"1g.10gb": 7}, scope))
    await scene.e.until(lambda: len(running(scene)) == 30, "all pods to run")
    before = running(scene)
    await scene.serve(divided({"2g.20gb": 3}, scope))
    return before, running(scene)


def running(scene: Scene) -> set[str]:
    pods = scene.e.cluster.store.all(PODS)
    held = [pod for pod in pods if pod["metadata"]["namespace"] == "default"]
    return {pod["metadata"]["uid"] for pod in held if pod.get("status", {}).get("phase") == "Running"}


WORKLOADS = (SimWorkload("llm", 28, HALF), SimWorkload("small", 2, SEVENTH))


@pytest.mark.parametrize(("scope", "left"), [("Changed", 28), ("Node", 0)])
@virtually
async def test_pods_of_gpus_that_do_not_change_stay(scope: str, left: int) -> None:
    async with open_scene(*nodes(2, gpus=8), workloads=WORKLOADS) as scene:
        before, after = await changed(scene, scope)
        assert len(before & after) == left
        classes = {one["status"]["transition"].get("disruption") for one in scene.e.cluster.store.all(GPUNODES)}
        assert classes == {"None"}
