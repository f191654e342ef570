"""kopf's part: follow the policies, nothing else. Every event only says "look again" (docs/adr/0001).

No change handlers, indexes, timers, daemons or kopf finalizers: kopf writes nothing at all.
"""

import asyncio
import ssl
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp
import kopf
import structlog

from gpusharing.api import names
from gpusharing.kube.login import Login

log = structlog.get_logger()

Touch = Callable[[str, str], None]
"""Told name and resourceVersion of a policy that may have changed."""

TOKEN_LIFE = timedelta(minutes=10)
"""kopf logs in again after this long: the kubelet replaces the pod's token."""


def make_registry(login: Login, touch: Touch) -> kopf.OperatorRegistry:
    """Handlers of one operator process."""
    registry = kopf.OperatorRegistry()

    @kopf.on.login(registry=registry)
    async def authenticate(**_: Any) -> kopf.AiohttpSession:
        access, token = await login.access(), await login.token()
        tls: ssl.SSLContext | bool = access.tls or True
        session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=4, ssl=tls),
            headers={"Authorization": token} if token else {},
            proxy=access.proxy,
        )
        return kopf.AiohttpSession(
            server=access.server, aiohttp_session=session, expiration=datetime.now(UTC) + TOKEN_LIFE
        )

    @kopf.on.event(names.GROUP, names.VERSION, names.POLICIES, registry=registry)
    async def policy_seen(name: str, meta: kopf.Meta, **_: Any) -> None:
        touch(name, str(meta.get("resourceVersion", "")))

    return registry


def make_settings() -> kopf.OperatorSettings:
    """kopf as we use it; the reasons are in reliability-performance.md 3.7 and docs/adr/0001."""
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.scanning.disabled = True
    settings.watching.server_timeout = 300
    settings.watching.inactivity_timeout = 70
    settings.networking.request_timeout = 30
    settings.networking.connect_timeout = 5
    settings.networking.enforce_retry_after = True
    settings.queueing.idle_timeout = 0.05
    settings.process.ultimate_exiting_timeout = None
    return settings


class PolicyWatch:
    """Runs kopf, and runs it again: it stops on a watch ERROR 500, which is no reason to restart the process."""

    def __init__(self, login: Login, touch: Touch, *, again_after: float = 1.0) -> None:
        self._login, self._touch, self._again_after = login, touch, again_after
        self.restarts = 0
        self.running = asyncio.Event()
        """Set while kopf follows the policies."""

    async def run(self) -> None:
        """Until cancelled, or until kopf ends in peace: it takes SIGTERM and SIGINT for itself."""
        while True:
            try:
                await self._once()
                return
            except kopf.LoginError as error:
                log.warning("kopf cannot log in", error=str(error))
            except Exception as error:  # noqa: BLE001 -- kopf's watchers raise what they meet; all of it means: again
                log.warning("kopf stopped, starting it again", error=repr(error))
            finally:
                self.running.clear()
            self.restarts += 1
            self._touch("", "")
            await asyncio.sleep(self._again_after)

    async def _once(self) -> None:
        await kopf.operator(
            registry=make_registry(self._login, self._touch),
            settings=make_settings(),
            clusterwide=True,
            standalone=True,
            ready_flag=self.running,
        )
