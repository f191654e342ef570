"""What a process does once it leads, and whether it works then, for /healthz and /readyz.

It follows the cluster, runs passes and watches the policies. `main.py` imports this module only when the process has
become the leader (docs/adr/0085-a-standby-that-knows-nothing.md).
"""

import asyncio
import gc
from collections.abc import Callable
from dataclasses import dataclass

from gpusharing.controller.loop import Loop
from gpusharing.controller.metrics import Metrics
from gpusharing.controller.policywatch import PolicyWatch
from gpusharing.controller.role import ProcessMetrics, Role
from gpusharing.controller.settings import Settings
from gpusharing.kube.client import ApiRequest
from gpusharing.kube.clock import SteadyClock, loop_time
from gpusharing.kube.http import HttpClient
from gpusharing.kube.lease import LeaderLease
from gpusharing.kube.login import Login

STUCK = 120.0
"""Seconds without progress after which the loop counts as dead. A single call has a deadline of ten seconds."""
SILENT = 200.0
"""Seconds without an event until a watch counts as dead; the server sends a bookmark every minute."""


@dataclass(slots=True)
class Health:
    """Reports whether a running operator is dead, so that only a new process can help, or cannot decide now."""

    loop: Loop
    lease: LeaderLease
    watch: PolicyWatch
    clock: Callable[[], float] = loop_time

    def dead(self) -> dict[str, str]:
        """Return the problems that only a restart can solve, by the name of each part."""
        problems = {}
        still = self.clock() - self.loop.last_progress
        if still > STUCK:
            problems["loop"] = (
                f"for {still:.0f} s, no pass has finished and no API call from a pass has received a response"
            )
        for name, source in self.loop.sources.required.items():
            silent = self.clock() - source.last_contact
            if source.synced.is_set() and source.error is None and silent > SILENT:
                problems[name] = f"the API server has sent nothing for {silent:.0f} s"
        return problems

    def unready(self) -> dict[str, str]:
        """Return why the operator cannot decide at present, by the name of each part. Also requests overdue lists."""
        problems = self.dead() | self.loop.sources.revoked() | self.loop.sources.missing()
        for name, source in self.loop.sources.required.items():
            if source.error is not None:
                problems[name] = str(source.error) or repr(source.error)
        if not self.watch.running.is_set():
            problems["policies"] = self.watch.error or "kopf is not watching the policies"
        if not self.lease.is_leader:
            problems["lease"] = str(self.lease.error or "another process is the leader")
        return problems


async def lead(role: Role, login: Login, settings: Settings, process: ProcessMetrics, clock: SteadyClock) -> None:
    """Run the loop and the watch of the policies until canceled; an error of either is raised in a group."""

    def called(request: ApiRequest, status: int) -> None:
        process.called(request, status)
        loop.called(request, status)

    def touched(name: str, version: str) -> None:
        # The cache already has this version after our own write.
        if loop.sources.policies.touch(name, version):
            loop.wake.set()

    settle_heap()  # modules and types are loaded now
    metrics, lease = Metrics(process), role.lease
    async with HttpClient(login, on_call=called, before_write=lease.must_lead) as client:
        loop = Loop(client, lease, settings, metrics, now=clock, on_first_pass=settle_heap)
        metrics.status_of = loop.sources.policies.status
        watch = PolicyWatch(client, login, touched)
        health = Health(loop, lease, watch)
        role.probes = health.dead, health.unready
        async with asyncio.TaskGroup() as group:
            group.create_task(loop.run())
            group.create_task(watch.run())


def settle_heap() -> None:
    """Exempt all present objects, which live long, from the cycle collector; thousands of views would cost it 90 ms."""
    gc.collect()
    gc.freeze()
