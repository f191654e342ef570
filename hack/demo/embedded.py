"""The demo's cluster in one Python process, with FakeCluster as the API server and everything else as in
hack/embedded.py."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime

import structlog

from gpusharing.api.validation import validate_policy
from gpusharing.kube.client import JSON, POLICIES, KubeClient
from gpusharing.kube.errors import NotFound
from gpusharing.kube.lease import Timing
from gpusharing.kube.lists import list_of
from hack.demo.columns import KubectlView, render
from hack.demo.fleet import nodes
from hack.demo.stage import ApplyRefused, Written, empty_log
from hack.embedded import Embedded, embedded
from hack.sim.workloads import SimWorkload

LEASE = Timing(duration=6.0, deadline=5.0, retry=0.1)
"""The Lease's times in seconds: long enough that a slow machine does not lose it, short enough to await its expiry."""


class EmbeddedStage:
    """The demo's cluster in this process (see `stage.Stage`)."""

    patience = 4.0
    simulated = (
        "SIMULATED: the API server, GPUs, NVIDIA's node software, scheduler and workloads are played in this "
        "process, 100 times as fast as we assume the real ones to be. The operator and the agents are the shipped code."
    )

    def __init__(self, environment: Embedded) -> None:
        self._environment = environment
        self.client: KubeClient = environment.cluster.client("person")

    async def apply(self, manifest: JSON) -> str:
        name = manifest["metadata"]["name"]
        checked = validate_policy(manifest)
        if isinstance(checked, tuple):
            problems = "\n".join(f"* {problem}" for problem in checked)
            raise ApplyRefused(f'The GPUSharingPolicy "{name}" is invalid:\n{problems}')
        with suppress(NotFound):
            before = await self.client.get(POLICIES, name)
            after = self._environment.apply(manifest)
            changed = before["metadata"]["generation"] != after["metadata"]["generation"]
            return f"gpusharingpolicy.gpusharing.dev/{name} {'configured' if changed else 'unchanged'}"
        self._environment.apply(manifest)
        return f"gpusharingpolicy.gpusharing.dev/{name} created"

    async def show(self, view: KubectlView) -> str:
        return render(view, await list_of(self.client, view.resource), datetime.now(UTC))

    async def deploy(self, workload: SimWorkload) -> None:
        """Make the simulated ReplicaSet controller maintain the pods of a workload from now on."""
        self._environment.workloads.apply(workload)

    async def start_operator(self) -> None:
        self._environment.start_operator()

    async def kill_operator(self) -> str:
        await self._environment.kill_operator()
        return "every task of the operator was canceled at once; its Lease must expire"

    async def writes(self) -> list[Written]:
        return [
            Written(
                "/".join(filter(None, (write.call.resource.plural, write.call.subresource))),
                "/".join(filter(None, (write.call.namespace, write.call.name))),
            )
            for write in self._environment.cluster.writes
            if write.call.identity == "operator" and write.error is None and write.call.resource.plural != "leases"
        ]

    async def changed(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(0.2):
                await self._environment.cluster.changed()


@asynccontextmanager
async def embedded_stage() -> AsyncIterator[EmbeddedStage]:
    """Empty LOG and yield a running stage, whose operators log there as JSON."""
    fleet = nodes()
    for node in fleet:
        node["status"]["conditions"] = [{"type": "Ready", "status": "True"}]
    with empty_log().open("w") as file:
        structlog.configure(
            processors=[
                structlog.processors.add_log_level,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                structlog.processors.format_exc_info,
                structlog.processors.JSONRenderer(),
            ],
            logger_factory=structlog.WriteLoggerFactory(file=file),
        )
        try:
            async with embedded(fleet, sim={"agent_interval": 0.5}, lease_timing=LEASE) as environment:
                yield EmbeddedStage(environment)
        finally:
            structlog.reset_defaults()
