"""The pages /healthz, /readyz and /metrics. kopf has an endpoint of its own, which answers 200 whatever its watchers
do.

/healthz fails when only a new process can help. /readyz fails while a leader knows too little to decide, and while a
standby cannot read the Lease.
"""

from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest

from gpusharing.controller.role import Role


def application(role: Role) -> web.Application:
    """Return the web application that serves /healthz and /readyz."""

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
    """Return the web application that serves /metrics."""

    async def metrics(_: web.Request) -> web.Response:
        """Answer with all metrics of the registry."""
        return web.Response(body=generate_latest(registry), content_type="text/plain")

    app = web.Application()
    app.add_routes([web.get("/metrics", metrics)])
    return app


def _answer(role: Role, trouble: dict[str, str]) -> web.Response:
    """Return status 200 and the summary of `role` if `trouble` is empty, else 503 and one line `part: reason` for each
    part."""
    text = "\n".join(f"{part}: {why}" for part, why in sorted(trouble.items())) or role.summary()
    return web.Response(text=text + "\n", status=503 if trouble else 200)
