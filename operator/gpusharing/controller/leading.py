"""What a process does once it leads: it follows the cluster, runs passes and watches the policies.

`main.py` imports this module when the process has become the leader (docs/adr/0085-a-standby-that-knows-nothing.md).
"""

import asyncio
import gc

from gpusharing.controller.containment import PolicyWatch
from gpusharing.controller.health import Health
from gpusharing.controller.loop import Loop
from gpusharing.controller.metrics import Metrics
from gpusharing.controller.processmetrics import ProcessMetrics
from gpusharing.controller.role import Role
from gpusharing.controller.settings import Settings
from gpusharing.kube.client import ApiRequest
from gpusharing.kube.clock import SteadyClock
from gpusharing.kube.http import HttpClient
from gpusharing.kube.login import Login


async def lead(
    role: Role, login: Login, settings: Settings, process: ProcessMetrics, clock: SteadyClock
) -> None:
    """Run the loop and the watch of the policies until canceled. Every write first checks that this process still leads.

    An error of either is raised in a group.
    """

    def called(request: ApiRequest, status: int) -> None:
        process.called(request, status)
        loop.progress.called(request, status)

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
        role.health = Health(loop, lease, watch)
        async with asyncio.TaskGroup() as group:
            group.create_task(loop.run())
            group.create_task(watch.run())


def settle_heap() -> None:
    """Exempt all present objects from the cycle collector permanently, because they live long; reference counts still free them.

    Thousands of views, none of them in a cycle, would cost 90 ms in every full collection.
    """
    gc.collect()
    gc.freeze()
