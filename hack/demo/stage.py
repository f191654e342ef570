"""The interface of the clusters on which the demo can run, which are called stages. It hides how they differ."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from gpusharing.kube.client import JSON, KubeClient
from hack.demo.columns import KubectlView
from hack.sim.workloads import SimWorkload

ROOT = Path(__file__).resolve().parent.parent.parent
LOG = ROOT / "build" / "demo-operator.log"
"""The file to which the story's operators log, one after another."""


class ApplyRefused(Exception):
    """The API server refused the object; the message is its answer."""


@dataclass(frozen=True, slots=True)
class Written:
    """One write of the operator that the API server carried out."""

    resource: str
    """The plural with its subresource, as in RBAC: pods/eviction."""
    name: str


class Stage(Protocol):
    """A cluster with simulated GPUs, and the shipped operator, which can be started and killed."""

    client: KubeClient
    """A client with all rights, as a person would use it."""
    patience: float
    """The factor for every time limit of the story on this stage."""
    simulated: str
    """A notice that says what is SIMULATED on this stage and what is real."""

    async def apply(self, manifest: JSON) -> str:
        """Apply a manifest and return the output of `kubectl apply`."""

    async def show(self, view: KubectlView) -> str:
        """Return the table that `kubectl get` prints for this view."""

    async def deploy(self, workload: SimWorkload) -> None:
        """Create a Deployment for the workload, or its equivalent on this stage."""

    async def start_operator(self) -> None:
        """Start a new operator, which has no memory of an earlier one."""

    async def kill_operator(self) -> str:
        """Kill the operator as `kill -9` does, and return a sentence that says what was killed."""

    async def writes(self) -> list[Written]:
        """Return all successful writes of the operators so far, in order, without those to the Lease."""

    async def changed(self) -> None:
        """Wait until the cluster may have changed."""


def empty_log() -> Path:
    """Empty the file LOG, or create it with its folder, and return its path."""
    LOG.parent.mkdir(exist_ok=True)
    LOG.write_text("")
    return LOG
