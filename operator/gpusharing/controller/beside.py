"""What runs by the clock next to the loop: list the policies again, and count the pods that wait for a GPU."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from gpusharing.controller.complaints import Complaints
from gpusharing.controller.idleness import Leader
from gpusharing.controller.settings import Settings
from gpusharing.kube.errors import KubeError
from gpusharing.kube.pending import PendingPods
from gpusharing.kube.sources import Sources


@dataclass(frozen=True, slots=True)
class Beside:
    """Two clocks; each wakes the loop when there is news."""

    leader: Leader
    """Who holds the Lease: only the leader counts the pending pods."""
    settings: Settings
    """The operator's settings."""
    sources: Sources
    """The reflectors."""
    pending: PendingPods
    """What counts them."""
    complaints: Complaints
    """What was said in the log already."""
    wake: Callable[[], None]
    """Wakes the loop."""

    async def run(self) -> None:
        """Run until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._list_policies())
            group.create_task(self._count_pending())

    async def _list_policies(self) -> None:
        while True:
            await asyncio.sleep(self.settings.relist)
            self.sources.policies.touch()
            self.wake()

    async def _count_pending(self) -> None:
        while True:
            if self.leader.is_leader and not self.sources.missing():
                try:
                    before = self.pending.pods
                    await self.pending.count()
                    if self.pending.pods != before:
                        self.wake()
                    self.complaints.ends("pending pods")
                except KubeError as error:
                    self.complaints.begins(
                        "pending pods", "pending pods are not counted", type(error).__name__, error=str(error)
                    )
            await asyncio.sleep(self.settings.pending_period)
