"""What an AgentLoop needs around it in tests: one GPUNode on a FakeCluster, and pods that hold devices."""

import asyncio
from collections.abc import Callable, Sequence

from pydantic import TypeAdapter
from tests.fakes.cluster import FakeCluster

from gpusharing.agent.podresources import Holdings, PodResourcesUnavailable
from gpusharing.api.gpunode import Observed
from gpusharing.kube.client import GPUNODES, JSON
from gpusharing.planning.gpus.texts import read_programs

REPORT = TypeAdapter(Observed)


def programs_on(observed: Observed, index: int) -> list[str]:
    return [name for name, gpus in read_programs(observed.programs) if index in gpus]


AGENT = "agent"
DEADLINE = 60.0
"""Seconds after which a condition that was waited for counts as never coming true."""


async def eventually(holds: Callable[[], bool]) -> None:
    """Wait for something that other threads or tasks make true."""
    async with asyncio.timeout(DEADLINE):
        while not holds():  # noqa: ASYNC110 - what is waited for knows of no event
            await asyncio.sleep(0.001)


class OneNode:
    """The operator's side of one GPUNode; the agent's side is `client`."""

    def __init__(self, name: str = "gpu-01") -> None:
        self.name = name
        self.cluster = FakeCluster()
        self.client = self.cluster.client(AGENT)

    def ask(self, request_id: str, *, quiet: bool = False, quiet_gpus: Sequence[int] = ()) -> None:
        """Write spec.request, creating the GPUNode when it is absent."""
        spec = {"request": {"id": request_id, "quiet": quiet, "quietGPUs": list(quiet_gpus)}}
        if self._node is None:
            self.cluster.add(GPUNODES, {"metadata": {"name": self.name}, "spec": spec})
        else:
            self.cluster.patch(GPUNODES, self.name, {"spec": spec})

    def show(self, transition: JSON) -> None:
        """Write status.transition, as the operator does for people."""
        self.cluster.patch(GPUNODES, self.name, {"status": {"transition": transition}}, subresource="status")

    def delete(self) -> None:
        self.cluster.delete(GPUNODES, self.name)

    @property
    def observed(self) -> Observed | None:
        found = ((self._node or {}).get("status") or {}).get("observed")
        return None if found is None else REPORT.validate_python(found)

    @property
    def patches(self) -> list[JSON]:
        """Bodies of the patches that were taken, in order."""
        return [w.call.body for w in self.cluster.writes if w.error is None and w.call.body is not None]

    @property
    def lists(self) -> int:
        return self.cluster.calls[AGENT, "list", GPUNODES.plural]

    async def until(self, holds: Callable[[Observed], bool]) -> Observed:
        await eventually(lambda: self.observed is not None and holds(self.observed))
        assert self.observed is not None
        return self.observed

    async def answered(self, request_id: str) -> Observed:
        return await self.until(lambda observed: observed.request_id == request_id)

    @property
    def _node(self) -> JSON | None:
        return next(iter(self.cluster.objects(GPUNODES)), None)


class FixedPods:
    """An `agent.podresources.PodResources` that says what it was told."""

    def __init__(self) -> None:
        self.holdings = Holdings()
        self.unavailable = ""

    async def read(self) -> Holdings:
        """What was set; raises while `unavailable` gives a reason."""
        if self.unavailable:
            raise PodResourcesUnavailable(self.unavailable)
        return self.holdings
