"""/healthz, /readyz and /metrics. kopf's own endpoint answers 200 whatever its watchers do, so these are ours.

/healthz fails when only a new process can help: the loop neither finishes a pass nor gets answers (progress.py), or a
reflector has heard nothing for so long that its connection must be dead. /readyz fails while we know too little to
decide.
"""

from collections.abc import Callable
from dataclasses import dataclass

from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest

from gpusharing.controller.containment import PolicyWatch
from gpusharing.controller.loop import Loop
from gpusharing.kube.clock import loop_time
from gpusharing.kube.lease import LeaderLease

STUCK = 120.0
"""Seconds without a pass or the answer to one of its calls; a call has a deadline of ten."""
SILENT = 200.0
"""Seconds without an event on a watch; the server sends a bookmark each minute and ends the watch after five."""


@dataclass(slots=True)
class Health:
    """Looks at the parts of a running operator."""

    loop: Loop
    lease: LeaderLease
    watch: PolicyWatch
    clock: Callable[[], float] = loop_time

    def dead(self) -> dict[str, str]:
        """What only a restart can repair, by part."""
        found = {}
        still = self.clock() - self.loop.progress.last
        if still > STUCK:
            found["loop"] = f"no pass has ended, and no call of a pass was answered, for {still:.0f} s"
        for name, source in self.loop.sources.required.items():
            silent = self.clock() - source.last_contact
            if source.synced.is_set() and source.error is None and silent > SILENT:
                found[name] = f"nothing heard for {silent:.0f} s"
        return found

    def unready(self) -> dict[str, str]:
        """What keeps us from deciding, by part."""
        found = dict(self.dead())
        found |= self.loop.sources.missing()
        for name, source in self.loop.sources.required.items():
            if source.error is not None:
                found[name] = str(source.error) or repr(source.error)
        if not self.watch.running.is_set():
            found["policies"] = self.watch.error or "kopf is not watching the policies"
        if not self.lease.is_leader:
            found["lease"] = str(self.lease.error or "another process leads")
        return found


def application(health: Health) -> web.Application:
    """The probes as a web application."""

    async def healthz(_: web.Request) -> web.Response:
        return _answer(health.dead())

    async def readyz(_: web.Request) -> web.Response:
        return _answer(health.unready())

    app = web.Application()
    app.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz)])
    return app


def metrics_application(registry: CollectorRegistry) -> web.Application:
    """The metrics as a web application."""

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(registry), content_type="text/plain")

    app = web.Application()
    app.add_routes([web.get("/metrics", metrics)])
    return app


def _answer(trouble: dict[str, str]) -> web.Response:
    text = "\n".join(f"{part}: {why}" for part, why in sorted(trouble.items())) or "ok"
    return web.Response(text=text + "\n", status=503 if trouble else 200)
