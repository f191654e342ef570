"""Where the story is played. Two stages, one story: what differs between them is here and nowhere else."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from gpusharing.kube.client import JSON, KubeClient
from hack.demo.columns import KubectlView
from hack.sim.workloads import SimWorkload

ROOT = Path(__file__).resolve().parent.parent.parent
LOG = ROOT / "build" / "demo-operator.log"
"""Where the operators log, one after the other."""


class ApplyRefused(Exception):
    """The API server would not take the object; the text is the answer."""


@dataclass(frozen=True, slots=True)
class Written:
    """One write of the operator that the API server carried out."""

    resource: str
    """Plural with subresource, as RBAC writes it: pods/eviction."""
    name: str
    """`namespace/name`, or the name alone."""


class Stage(Protocol):
    """A cluster with simulated GPUs, and the shipped operator that can be started and killed."""

    client: KubeClient
    """A person with all rights."""
    patience: float
    """How much longer than embedded things may take here: a factor for every time limit."""
    simulated: str
    """What is not real here."""

    async def apply(self, manifest: JSON) -> str:
        """`kubectl apply`; returns its answer. Raises ApplyRefused."""

    async def show(self, view: KubectlView) -> str:
        """The table that `kubectl get` prints."""

    async def deploy(self, workload: SimWorkload) -> None:
        """A Deployment, or what stands for one."""

    async def start_operator(self) -> None:
        """A new operator process, which knows nothing of an earlier one."""

    async def kill_operator(self) -> str:
        """kill -9; returns what was killed, in words."""

    async def writes(self) -> list[Written]:
        """What the operator has written so far, in order; refused writes, and its Lease, left out."""

    async def changed(self) -> None:
        """Return when it is worth looking again."""


def empty_log() -> Path:
    """LOG, without what an earlier demo left in it."""
    LOG.parent.mkdir(exist_ok=True)
    LOG.write_text("")
    return LOG
