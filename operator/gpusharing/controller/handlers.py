"""kopf's part: follow the policies, nothing else. Every event only says "look again" (docs/adr/0001).

No change handlers, indexes, timers, daemons or kopf finalizers: kopf writes nothing at all.
"""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp
import kopf

from gpusharing.api import names
from gpusharing.kube.login import Access

Touch = Callable[[str, str], None]
"""Called with name and resourceVersion of a policy that may have changed."""
Credentials = Callable[[], Awaitable[tuple[Access, str | None]]]
"""Where the API server is, and the value of the Authorization header."""

TOKEN_LIFE = timedelta(minutes=10)
"""kopf logs in again after this long: the kubelet replaces the pod's token."""
IDENTITY: Any = "gpusharing-operator"
"""kopf's name for us among its peers. There are none (standalone), but without an identity it uses the user's name. A
pod's uid has none, so getpass.getuser() would raise and kopf would never run. Its type is not public."""


async def follow_policies(
    credentials: Credentials, touch: Touch, sessions: list[aiohttp.ClientSession], running: Any
) -> None:
    """One life of kopf, in an event loop of its own (containment.py). `running`: an Event, set while it follows.

    `sessions` tells the caller what to close: kopf leaves sessions open when it is cancelled.
    """
    registry = kopf.OperatorRegistry()
    heard = _after_each_list(lambda: touch("", ""))

    # Without a log-in kopf neither runs nor stops: it has to try again, and sooner than after its minute.
    @kopf.on.login(registry=registry, backoff=1.0)
    async def authenticate(**_: Any) -> kopf.AiohttpSession:
        access, token = await credentials()
        session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=4, ssl=access.tls or True),
            headers={"Authorization": token} if token else {},
            proxy=access.proxy,
            middlewares=(heard, *([_called(access.tls_server_name)] if access.tls_server_name else ())),
        )
        sessions[:] = [*(known for known in sessions if not known.closed), session]
        expiration = datetime.now(UTC) + TOKEN_LIFE
        return kopf.AiohttpSession(server=access.server, aiohttp_session=session, expiration=expiration)

    @kopf.on.event(names.GROUP, names.VERSION, names.POLICIES, registry=registry)
    async def policy_seen(name: str, meta: kopf.Meta, **_: Any) -> None:
        touch(name, str(meta.get("resourceVersion", "")))

    await kopf.operator(
        registry=registry,
        settings=_settings(),
        clusterwide=True,
        standalone=True,
        ready_flag=running,
        identity=IDENTITY,
    )


def _after_each_list(act: Callable[[], None]) -> aiohttp.ClientMiddlewareType:
    """Call `act` when kopf begins to watch what it has just listed: at its start, and after a 410.

    kopf does not learn of a policy that was deleted before its list, and the list does not show what is missing. The
    watch reports later deletions.
    """
    listed = False

    async def told(request: aiohttp.ClientRequest, send: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        nonlocal listed
        if request.url.path.endswith(f"/{names.POLICIES}"):
            watches = "watch" in request.url.query
            if watches and listed:
                act()
            listed = not watches
        return await send(request)

    return told


def _called(name: str) -> aiohttp.ClientMiddlewareType:
    """Set the name that the server's certificate must have on every request of a session: kopf itself sets none."""

    async def named(
        request: aiohttp.ClientRequest, send: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        request.server_hostname = name
        return await send(request)

    return named


def _settings() -> kopf.OperatorSettings:
    """kopf as we use it; the reasons are in docs/design/faults.md#kopf."""
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
