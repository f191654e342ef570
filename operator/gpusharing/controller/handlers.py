"""The part that kopf runs: it follows the policies. An event only wakes the loop, whatever has changed (docs/adr/0001).

There are no change handlers, indexes, timers, daemons or kopf finalizers: kopf writes nothing at all.
"""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp
import kopf

from gpusharing.api import names
from gpusharing.kube.login import Access

Touch = Callable[[str, str], None]
"""Called with the name and resourceVersion of a policy that may have changed; both are empty if any policy may have changed."""
Credentials = Callable[[], Awaitable[tuple[Access, str | None]]]
"""Returns how to reach the API server, and the value of the Authorization header, if any."""


TOKEN_LIFE = timedelta(minutes=10)
"""How long kopf uses one log-in, because the kubelet replaces the pod's token."""
IDENTITY: Any = "gpusharing-operator"
"""kopf's name for us among its peers. It has none here (standalone), but would call getpass.getuser(), which raises: the uid of a pod has no name. Its type is not public."""


async def follow_policies(
    credentials: Credentials, touch: Touch, sessions: list[aiohttp.ClientSession], running: Any
) -> None:
    """Run kopf once, in the current event loop, which must be kopf's own (containment.py). Raises the error that stopped it.

    kopf sets `running` when it begins to follow the policies; the caller must clear it, and close the `sessions`.
    """
    registry = kopf.OperatorRegistry()
    lists_watched = _after_each_list(lambda: touch("", ""))

    # Without a log-in kopf neither runs nor stops, so it has to retry, and sooner than after its default of a minute.
    @kopf.on.login(registry=registry, backoff=1.0)
    async def authenticate(**_: Any) -> kopf.AiohttpSession:
        access, token = await credentials()

        async def with_name(
            request: aiohttp.ClientRequest, send: aiohttp.ClientHandlerType
        ) -> aiohttp.ClientResponse:
            # kopf expects the name of the server's address on its certificate.
            request.server_hostname = access.tls_server_name
            return await send(request)

        session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=4, ssl=access.tls or True),
            headers={"Authorization": token} if token else {},
            proxy=access.proxy,
            middlewares=(lists_watched, with_name) if access.tls_server_name else (lists_watched,),
        )
        # kopf leaves its sessions open when it is canceled, so the caller has to close them.
        sessions[:] = [*(known for known in sessions if not known.closed), session]
        expiration = datetime.now(UTC) + TOKEN_LIFE
        return kopf.AiohttpSession(server=access.server, aiohttp_session=session, expiration=expiration)

    @kopf.on.event(names.GROUP, names.VERSION, names.POLICIES, registry=registry)
    async def policy_seen(name: str, meta: kopf.Meta, **_: Any) -> None:
        touch(name, str(meta.get("resourceVersion", "")))

    settings = kopf.OperatorSettings()  # docs/design/faults.md#kopf gives the reasons
    settings.posting.enabled = False
    settings.scanning.disabled = True
    settings.watching.server_timeout = 300
    settings.watching.inactivity_timeout = 70
    settings.networking.request_timeout = 30
    settings.networking.connect_timeout = 5
    settings.networking.enforce_retry_after = True
    settings.queueing.idle_timeout = 0.05
    settings.process.ultimate_exiting_timeout = None
    await kopf.operator(
        registry=registry,
        settings=settings,
        clusterwide=True,
        standalone=True,
        ready_flag=running,
        identity=IDENTITY,
    )


def _after_each_list(act: Callable[[], None]) -> aiohttp.ClientMiddlewareType:
    """Return a middleware that calls `act` before each watch that follows a list of the policies.

    kopf does not learn of a policy that was deleted before its list, because the list does not show what is missing.
    """
    listed = False

    async def watch_lists(
        request: aiohttp.ClientRequest, send: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        nonlocal listed
        if request.url.path.endswith(f"/{names.POLICIES}"):
            watches = "watch" in request.url.query
            if watches and listed:
                act()
            listed = not watches
        return await send(request)

    return watch_lists
