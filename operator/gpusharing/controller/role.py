"""What a process of the operator is, a standby or the leader, and its /healthz, /readyz and /metrics.

A standby waits for the Lease and reads nothing else. It imports none of the modules that only a leader needs
(`leading.py`), so it uses less memory (docs/adr/0085-a-standby-that-knows-nothing.md).
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeAlias

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge

from gpusharing.controller.complaints import Complaints
from gpusharing.kube.client import ApiRequest
from gpusharing.kube.clock import loop_time
from gpusharing.kube.lease import LeaderLease
from gpusharing.kube.ownversion import own_version
from gpusharing.kube.pageserver import Answer, Page, SharedAnswer

log = structlog.get_logger()


START = 120.0
"""Seconds until a leader that has not started counts as dead; on a busy node, imports take a minute."""
LOOP_ANSWERS_S = 4.0
"""Seconds in which the event loop must answer a probe; the chart lets the kubelet wait for five."""


Probe: TypeAlias = Callable[[], dict[str, str]]
"""Returns the problems of a process, by the name of each part."""


@dataclass(slots=True)
class Role:
    """Whether this process stands by or leads, and what its probes answer."""

    lease: LeaderLease
    probes: tuple[Probe, Probe] | None = None
    """`dead` and `unready` of `leading.Health`; None until this process leads and has created its parts."""
    clock: Callable[[], float] = loop_time
    leads_since: float | None = None

    def dead(self) -> dict[str, str]:
        if self.probes is not None:
            return self.probes[0]()
        led = self.clock() - self.leads_since if self.leads_since is not None else 0.0
        problem = f"this process has led for {led:.0f} s and has not started, so the kubelet restarts it"
        return {"loop": problem} if led > START else {}

    def unready(self) -> dict[str, str]:
        """Return why this process does not work, by the name of each part. A standby works while it knows who leads."""
        if self.probes is not None:
            return self.probes[1]()
        if self.lease.acquired.is_set():
            return self.dead() or {"loop": "this process has just become the leader and is starting"}
        if self.lease.error is not None:
            return {"lease": str(self.lease.error) or repr(self.lease.error)}
        return {} if self.lease.holder else {"lease": "nobody is known to hold the Lease yet"}

    def summary(self) -> str:
        return "ok" if self.lease.acquired.is_set() else f"ok: standby, {self.lease.holder or 'nobody'} leads"

    async def wait_to_lead(self, seconds: float) -> None:
        """Return as soon as this process leads; check the Lease every `seconds` for the log."""
        complaints, announced = Complaints(), ""
        while not self.lease.acquired.is_set():
            error = self.lease.error
            complaints.follow("lease", "this process is waiting to become the leader", error)
            if error is None and self.lease.holder not in ("", announced):
                announced = self.lease.holder
                log.info("this process stands by; another one is the leader", leader=announced)
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self.lease.acquired.wait()
        complaints.ends("lease")
        self.leads_since = self.clock()
        log.info("this process is the leader now", claims=len(self.lease.claims))


def probe_pages(role: Role, clock: Callable[[], float] = time.monotonic) -> Mapping[str, Page]:
    """Return /healthz and /readyz, as kopf's own endpoint answers 200 whatever its watchers do.

    The event loop, which renews the Lease, is asked at most once a second for each page, whoever asks for it.
    """
    loop = asyncio.get_running_loop()

    def page(find: Probe) -> SharedAnswer:
        def answer() -> Answer:
            problems = find()
            lines = "\n".join(f"{part}: {why}" for part, why in sorted(problems.items()))
            return Answer(503 if problems else 200, f"{lines or role.summary()}\n".encode())

        return SharedAnswer(lambda: _ask(loop, answer), clock=clock)

    return {"/healthz": page(role.dead), "/readyz": page(role.unready)}


def _ask(loop: asyncio.AbstractEventLoop, find: Callable[[], Answer]) -> Answer:
    """Return what `find` returns in the event loop; called from another thread."""
    answer = Future[Answer]()

    def settle() -> None:
        try:
            answer.set_result(find())
        except Exception as error:  # noqa: BLE001 - raised in the thread that asks
            answer.set_exception(error)

    try:
        loop.call_soon_threadsafe(settle)
        return answer.result(LOOP_ANSWERS_S)
    except TimeoutError:
        return Answer(503, f"loop: the event loop has not answered for {LOOP_ANSWERS_S:.0f} s\n".encode())
    except RuntimeError:  # the event loop is closed
        return Answer(503, b"loop: this process is stopping\n")


class ProcessMetrics:
    """API calls, version and leadership, in a registry to which a leader adds its own metrics."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "gpusharing_api_requests_total",
            "Calls to the API server by verb, resource and HTTP status (0: no response).",
            ["verb", "resource", "status"],
            registry=self.registry,
        )
        build = "1, with the version of the operator or of the agent."
        self.build = Gauge("gpusharing_build_info", build, ["version", "component"], registry=self.registry)
        self.build.labels(own_version(), "operator").set(1)
        leads = "1 while this process holds the Lease."
        self.leader = Gauge("gpusharing_leader", leads, registry=self.registry)

    def called(self, request: ApiRequest, status: int) -> None:
        """Count an API call; the kind is empty for discovery. See http.OnCall."""
        kind = request.kind if request.resource.plural else ""
        self.requests.labels(request.verb, kind, str(status)).inc()
