"""Scenes with NVIDIA's device-plugin chart in place of the GPU Operator, without and with mig-manager."""

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

from hack.sim.gpuoperator import LABEL_DEPLOY_MIG_MANAGER
from hack.sim.workloads import SimWorkload
from tests import plainchart
from tests.embedded.scene import H100, Scene, nodes, open_scene

from gpusharing.api.names import LABEL_DEPLOY_CLIENT, LABEL_DEPLOY_PREFIX, LABEL_MIG_CONFIG, LABEL_MIG_STATE
from gpusharing.kube.client import DAEMON_SETS, JSON

GPU_OPERATORS = (LABEL_MIG_CONFIG, LABEL_MIG_STATE, LABEL_DEPLOY_PREFIX)


def bare(raw: JSON) -> JSON:
    labels = raw["metadata"]["labels"]
    raw["metadata"]["labels"] = {k: v for k, v in labels.items() if not k.startswith(GPU_OPERATORS)}
    return raw


@asynccontextmanager
async def plain(
    product: str = H100, *, discovery: bool = True, workloads: Iterable[SimWorkload] = ()
) -> AsyncIterator[Scene]:
    """Two nodes on the plain stack without mig-manager; the operator starts when the chart is there."""
    machines = [bare(raw) for raw in nodes(2, product)]
    sim = {"plain_config": "gpusharing-device-plugin"}
    sets = [plainchart.plugin(), plainchart.mps(), *([plainchart.discovery()] if discovery else [])]
    async with stack(machines, sim, sets, workloads) as scene:
        yield scene


@asynccontextmanager
async def with_mig_manager(
    product: str = H100, version: str = "v0.15.1", client: str = "true", count: int = 2, sets: list[JSON] | None = None
) -> AsyncIterator[Scene]:
    """`count` nodes on the plain stack with mig-manager beside it, all with the labels that its how-to sets. `sets` replaces all DaemonSets of that stack."""
    labels = {LABEL_DEPLOY_CLIENT: "true", LABEL_DEPLOY_MIG_MANAGER: "true"}
    machines = [bare(raw) for raw in nodes(count, product)]
    for machine in machines:
        machine["metadata"]["labels"] |= labels
    sim = {"plain_config": "gpusharing-device-plugin", "plain_mig": "gpusharing-mig-parted"}
    sets = sets or [
        plainchart.plugin(client=client),
        plainchart.discovery(client=client),
        plainchart.mps(client=client),
        plainchart.mig_manager(version=version),
    ]
    async with stack(machines, sim, sets) as scene:
        yield scene


@asynccontextmanager
async def stack(
    machines: list[JSON], sim: JSON, sets: list[JSON], workloads: Iterable[SimWorkload] = ()
) -> AsyncIterator[Scene]:
    """These nodes, with these DaemonSets of NVIDIA's, and then the operator."""
    async with open_scene(*machines, cluster_policy=None, sim=sim, start=False, workloads=workloads) as scene:
        for daemon_set in sets:
            scene.e.cluster.add(DAEMON_SETS, daemon_set)
        scene.e.start_operator()
        yield scene
