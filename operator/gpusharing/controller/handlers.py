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
"""Called with the name and the resourceVersion of a policy that may have changed; both are empty if any policy may
have changed."""
Credentials = Callable[[], Awaitable[tuple[Access, str | None]]]
"""Returns how to reach the API server, and the value of the Authorization header, or None if none is needed."""

TOKEN_LIFE = timedelta(minutes=10)
"""How long kopf uses one log-in. After that it logs in again, because the kubelet replaces the pod's token."""
IDENTITY: Any = "gpusharing-operator"
"""kopf's name for us among its peers. It has none here (standalone), but without an identity it would use the name of
the user. The uid of a pod has no name, so getpass.getuser() would raise and kopf would never run. Its type is not
public."""


async def follow_policies(
    credentials: Credentials, touch: Touch, sessions: list[aiohttp.ClientSession], running: Any
) -> None:
    """Run kopf once, in the current event loop, which must be kopf's own (containment.py). kopf sets `running` when it
    begins to follow the policies; the caller must clear it. `touch` gets the name and resourceVersion of each policy
    that is listed or changes, and two empty strings after each list. kopf's sessions are added to `sessions`, and
    closed ones are removed at the next log-in. Raises the error that stopped kopf."""
    registry = kopf.OperatorRegistry()
    lists_watched = _after_each_list(lambda: touch("", ""))

    # Without a log-in kopf neither runs nor stops, so it has to retry, and sooner than after its default of a minute.
    @kopf.on.login(registry=registry, backoff=1.0)
    async def authenticate(**_: Any) -> kopf.AiohttpSession:
        """Open a session with new credentials, and add it to `sessions`, from which closed ones are removed. kopf logs
        in again after TOKEN_LIFE, or when the server refuses it."""
        access, token = await credentials()
        session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=4, ssl=access.tls or True),
            headers={"Authorization": token} if token else {},
            proxy=access.proxy,
            middlewares=(
                lists_watched,
                *([_called(access.tls_server_name)] if access.tls_server_name else ()),
            ),
        )
        # kopf leaves its sessions open when it is canceled, so the caller has to close them.
        sessions[:] = [*(known for known in sessions if not known.closed), session]
        expiration = datetime.now(UTC) + TOKEN_LIFE
        return kopf.AiohttpSession(server=access.server, aiohttp_session=session, expiration=expiration)

    @kopf.on.event(names.GROUP, names.VERSION, names.POLICIES, registry=registry)
    async def policy_seen(name: str, meta: kopf.Meta, **_: Any) -> None:
        """Report an event of a policy to `touch`, with its resourceVersion."""
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
    """Return a middleware that calls `act` just before each request that begins to watch what kopf has just listed:
    when kopf starts, and after a 410.

    kopf does not learn of a policy that was deleted before its list, because the list does not show what is missing.
    Later deletions are reported by the watch.
    """
    listed = False

    async def watch_lists(
        request: aiohttp.ClientRequest, send: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        """Send a request; before a watch of the policies that follows a list of them, call `act`."""
        nonlocal listed
        if request.url.path.endswith(f"/{names.POLICIES}"):
            watches = "watch" in request.url.query
            if watches and listed:
                act()
            listed = not watches
        return await send(request)

    return watch_lists


def _called(name: str) -> aiohttp.ClientMiddlewareType:
    """Return a middleware that makes each request expect `name` on the server's certificate, because kopf sets no such
    name."""

    async def with_name(
        request: aiohttp.ClientRequest, send: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        """Send the request, expecting `name` on the server's certificate."""
        request.server_hostname = name
        return await send(request)

    return with_name


def _settings() -> kopf.OperatorSettings:
    """Return kopf's settings: it posts no Events, does not scan for CRDs, and has time-outs of at most five minutes;
    docs/design/faults.md#kopf gives the reasons."""
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
