"""Watch the policies by kopf, and keep kopf's failures from the rest of the process (docs/adr/0030).

An event only wakes the loop, whatever has changed (docs/adr/0001). There are no change handlers, indexes, timers,
daemons or kopf finalizers: kopf writes nothing at all.
"""

import asyncio
import threading
import weakref
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import aiohttp
import kopf
import structlog

from gpusharing.api import names
from gpusharing.kube.background import in_daemon_thread
from gpusharing.kube.client import POLICIES, KubeClient
from gpusharing.kube.clock import Backoff, loop_time
from gpusharing.kube.login import Access, Login

Touch = Callable[[str, str], None]
"""Called with name and resourceVersion of a policy that may have changed; both empty for any policy."""
Credentials = Callable[[], Awaitable[tuple[Access, str | None]]]
"""Returns how to reach the API server, and the value of the Authorization header, if any."""


TOKEN_LIFE = timedelta(minutes=10)
"""How long kopf uses one log-in, because the kubelet replaces the pod's token."""
IDENTITY: Any = "gpusharing-operator"
"""The name that kopf gets; its type is not public. Without one it calls getpass.getuser(), which fails in a pod, whose
UID has no name."""


async def follow_policies(
    credentials: Credentials, touch: Touch, sessions: list[aiohttp.ClientSession], running: Any
) -> None:
    """Run kopf once, in its own event loop; sets `running`, fills `sessions`, and raises the error that stopped it."""
    registry = kopf.OperatorRegistry()
    lists_watched = _after_each_list(lambda: touch("", ""))

    # Without a log-in kopf neither runs nor stops, so it has to retry, and sooner than after its default of a minute.
    @kopf.on.login(registry=registry, backoff=1.0)
    async def authenticate(**_: Any) -> kopf.AiohttpSession:
        access, token = await credentials()

        async def with_name(request: aiohttp.ClientRequest, send: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
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
        registry=registry, settings=settings, clusterwide=True, standalone=True, ready_flag=running, identity=IDENTITY
    )


def _after_each_list(act: Callable[[], None]) -> aiohttp.ClientMiddlewareType:
    """Return a middleware that calls `act` before each watch after a list: kopf does not see what the list lacks."""
    listed = False

    async def watch_lists(request: aiohttp.ClientRequest, send: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        nonlocal listed
        if request.url.path.endswith(f"/{names.POLICIES}"):
            watches = "watch" in request.url.query
            if watches and listed:
                act()
            listed = not watches
        return await send(request)

    return watch_lists


log = structlog.get_logger()

AGAIN_FIRST, AGAIN_MOST = 1.0, 60.0
"""The shortest and the longest wait in seconds until kopf is started again. It doubles while kopf stops soon."""
LONG_LIFE = 60.0
"""Seconds after which a running kopf counts as working. The next time it stops, the shortest wait applies again."""
STOP_SECONDS = 5.0
"""Seconds that kopf may take to stop. Its thread does not keep the process alive."""


class PolicyWatch:
    """Runs kopf, which watches the policies, and restarts it when it stops, as on a watch ERROR such as 500.

    kopf treats its event loop as its own: when it stops, it cancels every task that was started after it, and it
    handles SIGTERM and SIGINT. So it gets an event loop in a thread of its own.
    """

    def __init__(self, client: KubeClient, login: Login, touch: Touch, *, again_after: float = AGAIN_FIRST) -> None:
        self._client, self._login, self._touch = client, login, touch
        self._backoff = Backoff(again_after, AGAIN_MOST)
        self.restarts = 0
        """How often kopf has stopped or could not be started."""
        self.error = ""
        """Why kopf last stopped watching the policies; empty as long as there was no error."""
        self.running = threading.Event()
        """Set while kopf follows the policies."""

    async def run(self) -> None:
        """Run kopf again and again until canceled; whenever it has ended, any policy may have changed (`touch`)."""
        while True:
            began = loop_time()
            try:
                # Before the CRD of the policies is installed, kopf would start and never look for it again.
                await self._client.list_page(POLICIES, limit=1)
                await self._run_once()
            except Exception as error:  # noqa: BLE001 -- kopf's watchers raise anything; all of it means: restart
                before, self.error = self.error, str(error) or repr(error)
                if self.error != before or loop_time() - began >= LONG_LIFE:
                    log.warning("the policies cannot be watched; trying again", error=self.error)
            finally:
                self.running.clear()
            self.restarts += 1
            self._touch("", "")
            if loop_time() - began >= LONG_LIFE:
                self._backoff.success()
            await asyncio.sleep(self._backoff.after_failure())

    async def _run_once(self) -> None:
        own_loop, kopf_loop = asyncio.get_running_loop(), KopfLoop()
        sessions: list[aiohttp.ClientSession] = []

        async def read() -> tuple[Access, str | None]:
            return await self._login.access(), await self._login.token()

        async def credentials() -> tuple[Access, str | None]:  # in kopf's loop
            return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(read(), own_loop))

        def touch(name: str, version: str) -> None:
            own_loop.call_soon_threadsafe(self._touch, name, version)

        life = kopf_loop.create_task(follow_policies(credentials, touch, sessions, self.running), name="kopf")
        ended = in_daemon_thread(partial(_run, kopf_loop, life, sessions), "kopf")
        # After a cancellation nobody asks for its exception, and asyncio would log that.
        ended.add_done_callback(lambda it: it.cancelled() or it.exception())
        try:
            await asyncio.shield(ended)
        finally:
            if not ended.done():
                with suppress(RuntimeError):  # it has just ended by itself
                    kopf_loop.call_soon_threadsafe(life.cancel)
                await asyncio.wait([ended], timeout=STOP_SECONDS)


class KopfLoop(asyncio.SelectorEventLoop):
    """An event loop that remembers its tasks and its connections, so that none is left when it is closed.

    asyncio keeps only weak references to tasks: those of a kopf that is canceled during its start would be lost without
    being ended. And aiohttp forgets a connection as soon as it begins to close it, which over TLS waits for the server.
    """

    def __init__(self) -> None:
        super().__init__()
        self._tasks: set[asyncio.Task[Any]] = set()
        self.connections: weakref.WeakSet[asyncio.Transport] = weakref.WeakSet()
        self.set_task_factory(self._remember)

    async def create_connection(self, *args: Any, **kwargs: Any) -> Any:
        made = await super().create_connection(*args, **kwargs)
        self.connections.add(made[0])
        return made

    def _remember(self, loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.Task(coroutine, loop=loop, **options)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _run(loop: KopfLoop, life: asyncio.Task[None], sessions: list[aiohttp.ClientSession]) -> None:
    try:
        with suppress(asyncio.CancelledError):
            loop.run_until_complete(life)
    finally:
        loop.run_until_complete(_clear_up(sessions))
        for transport in list(loop.connections):
            transport.abort()  # without waiting for the server; they end in the next turn of the loop
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


async def _clear_up(sessions: list[aiohttp.ClientSession]) -> None:
    """End what kopf leaves behind when it is canceled while it starts."""
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    if left:
        ended, _ = await asyncio.wait(left)
        # Their errors are retrieved, because asyncio would log them.
        _ = [task.cancelled() or task.exception() for task in ended]
    for session in sessions:
        await session.close()
