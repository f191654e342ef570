"""What a process of the operator is, a standby or the leader, and its pages /healthz, /readyz and /metrics. kopf has an
endpoint of its own, which answers 200 whatever its watchers do.

A standby waits for the Lease and reads nothing else. It imports none of the modules that only a leader needs
(`leading.py`), so it uses less memory (docs/adr/0085-a-standby-that-knows-nothing.md).
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

import structlog
from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest

from gpusharing.controller.complaints import Complaints
from gpusharing.kube.clock import loop_time
from gpusharing.kube.lease import LeaderLease

START = 120.0
"""Seconds that a new leader may take to create its parts, after which it counts as dead. Meanwhile the Lease is
renewed, so no other process takes over. Imports take seconds, and a minute on a node whose CPUs are busy."""

log = structlog.get_logger()


class LeaderHealth(Protocol):
    """Reports whether the parts of a leader work; `health.py` implements it."""

    def dead(self) -> dict[str, str]:
        """Return the problems that only a restart can solve, by the name of each part; empty if there is none."""

    def unready(self) -> dict[str, str]:
        """Return why the leader cannot decide at present, by the name of each part; empty if it can."""


@dataclass(slots=True)
class Role:
    """Whether this process stands by or leads, and what its probes answer."""

    lease: LeaderLease
    """The contender for the Lease."""
    health: LeaderHealth | None = None
    """The health of the leader's parts; None until this process leads and has created them."""
    clock: Callable[[], float] = loop_time
    """Returns the seconds by which START is measured."""
    leads_since: float | None = None
    """When this process became the leader, by `clock`. None before."""

    def dead(self) -> dict[str, str]:
        """Return the problems that only a restart can solve, by the name of each part. Always empty before this
        process leads. A leader whose parts do not exist START seconds after it began to lead has the problem `loop`."""
        if self.health is not None:
            return self.health.dead()
        led = self.clock() - self.leads_since if self.leads_since is not None else 0.0
        problem = f"this process has led for {led:.0f} s and has not started, so the kubelet restarts it"
        return {"loop": problem} if led > START else {}

    def unready(self) -> dict[str, str]:
        """Return why the probe must fail, as a message by the name of each part; empty if this process works. A standby
        works if another process held the Lease when it was last read, and that read succeeded. A new leader does not
        work until its parts exist and are ready."""
        if self.health is not None:
            return self.health.unready()
        if self.lease.acquired.is_set():
            return self.dead() or {"loop": "this process has just become the leader and is starting"}
        if self.lease.error is not None:
            return {"lease": str(self.lease.error) or repr(self.lease.error)}
        return {} if self.lease.holder else {"lease": "nobody is known to hold the Lease yet"}

    def summary(self) -> str:
        """Return the answer of the probes if nothing is wrong: `ok`, which for a standby is followed by who leads."""
        return "ok" if self.lease.acquired.is_set() else f"ok: standby, {self.lease.holder or 'nobody'} leads"

    async def wait_to_lead(self, seconds: float) -> None:
        """Return as soon as this process leads, record when, and log that it does. Until then, check the Lease every
        `seconds`: log each new leader once, and an error of the Lease as a problem that begins and ends."""
        complaints, announced = Complaints(), ""
        while not self.lease.acquired.is_set():
            if (error := self.lease.error) is not None:
                event, text = "this process is waiting to become the leader", str(error) or repr(error)
                complaints.begins("lease", event, type(error).__name__, error=text)
            else:
                complaints.ends("lease")
                if self.lease.holder not in ("", announced):
                    announced = self.lease.holder
                    log.info("this process stands by; another one is the leader", leader=announced)
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self.lease.acquired.wait()
        complaints.ends("lease")
        self.leads_since = self.clock()
        log.info("this process is the leader now", claims=len(self.lease.claims))


def application(role: Role) -> web.Application:
    """Return the web application that serves /healthz (`Role.dead`) and /readyz (`Role.unready`). Each answers with
    status 200 if there is no problem, else with 503 and a line for each problem."""

    async def healthz(_: web.Request) -> web.Response:
        """Answer 503 with the problems that only a restart can solve, or 200 if there is none."""
        return _answer(role, role.dead())

    async def readyz(_: web.Request) -> web.Response:
        """Answer 503 with the reasons why this process does not work, or 200 if there is none."""
        return _answer(role, role.unready())

    app = web.Application()
    app.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz)])
    return app


def metrics_application(registry: CollectorRegistry) -> web.Application:
    """Return the web application that serves /metrics, with status 200 and all metrics of `registry` in the text format
    of Prometheus. It has no other page."""

    async def metrics(_: web.Request) -> web.Response:
        """Answer with all metrics of the registry."""
        return web.Response(body=generate_latest(registry), content_type="text/plain")

    app = web.Application()
    app.add_routes([web.get("/metrics", metrics)])
    return app


def _answer(role: Role, trouble: dict[str, str]) -> web.Response:
    """Return status 200 and the summary of `role` if `trouble` is empty, else 503 and one line `part: reason` for each
    part, in alphabetical order."""
    text = "\n".join(f"{part}: {why}" for part, why in sorted(trouble.items())) or role.summary()
    return web.Response(text=text + "\n", status=503 if trouble else 200)
