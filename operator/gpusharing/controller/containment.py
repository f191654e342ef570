"""Isolates kopf from everything else in the process, and restarts it when it stops (docs/adr/0030).

It stops on a watch ERROR such as 500, which is no reason to restart the process. And it treats its event loop as its
own: when it stops, it cancels every task that was started after it, and it handles SIGTERM and SIGINT. So it gets a
loop of its own, in a thread of its own.
"""

import asyncio
import threading
import weakref
from contextlib import suppress
from typing import Any

import aiohttp
import structlog

from gpusharing.controller.handlers import Touch, follow_policies
from gpusharing.kube.backoff import Backoff
from gpusharing.kube.client import POLICIES, KubeClient
from gpusharing.kube.clock import loop_time
from gpusharing.kube.login import Access, Login

log = structlog.get_logger()

AGAIN_FIRST, AGAIN_MOST = 1.0, 60.0
"""Seconds until kopf is started again; doubled while its lives are short."""
LONG_LIFE = 60.0
"""Seconds. A kopf that ran for this long was working: the next time it stops, the waits start again from the
shortest."""
STOP_SECONDS = 5.0
"""Seconds that kopf may take to stop. Its thread does not keep the process alive."""


class PolicyWatch:
    """Runs kopf, and runs it again when it stops."""

    def __init__(
        self, client: KubeClient, login: Login, touch: Touch, *, again_after: float = AGAIN_FIRST
    ) -> None:
        """Nothing is started yet. `again_after`: seconds before the first restart of kopf, varied at random by half."""
        self._client, self._login, self._touch = client, login, touch
        self._backoff = Backoff(again_after, AGAIN_MOST)
        self.restarts = 0
        self.error = ""
        """Why kopf is not watching the policies; empty when nothing is known."""
        self.running = threading.Event()
        """Set while kopf follows the policies."""

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            began = loop_time()
            try:
                await self._served()
                await self._once()
            except Exception as error:  # noqa: BLE001 -- kopf's watchers raise anything; all of it means: restart
                before, self.error = self.error, str(error) or repr(error)
                if self.error != before:
                    log.warning("the policies are not being watched, trying again", error=self.error)
            finally:
                self.running.clear()
            self.restarts += 1
            self._touch("", "")
            if loop_time() - began >= LONG_LIFE:
                self._backoff.success()
            await asyncio.sleep(self._backoff.after_failure())

    async def _served(self) -> None:
        """Raises a KubeError as long as there is no CRD: kopf would start, and never look for it again."""
        await self._client.list_page(POLICIES, limit=1)

    async def _once(self) -> None:
        """One run of kopf."""
        ours, theirs = asyncio.get_running_loop(), KopfLoop()
        sessions: list[aiohttp.ClientSession] = []
        life = theirs.create_task(self._life(ours, sessions), name="kopf")
        ended: asyncio.Future[BaseException | None] = ours.create_future()

        def follow() -> None:
            error: BaseException | None = None
            try:
                _run(theirs, life, sessions)
            except BaseException as raised:  # noqa: BLE001 -- raised again in the thread that waits for it
                error = raised
            with suppress(RuntimeError):  # our loop is closed: nobody waits
                ours.call_soon_threadsafe(ended.set_result, error)

        threading.Thread(target=follow, name="kopf", daemon=True).start()
        try:
            if (error := await asyncio.shield(ended)) is not None:
                raise error
        finally:
            if not ended.done():
                with suppress(RuntimeError):  # it has just ended by itself
                    theirs.call_soon_threadsafe(life.cancel)
                await asyncio.wait([ended], timeout=STOP_SECONDS)

    async def _life(self, ours: asyncio.AbstractEventLoop, sessions: list[aiohttp.ClientSession]) -> None:
        """Runs in kopf's loop; log-in and touch belong to our own."""

        async def credentials() -> tuple[Access, str | None]:
            return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._credentials(), ours))

        def touch(name: str, version: str) -> None:
            ours.call_soon_threadsafe(self._touch, name, version)

        await follow_policies(credentials, touch, sessions, self.running)

    async def _credentials(self) -> tuple[Access, str | None]:
        return await self._login.access(), await self._login.token()


class KopfLoop(asyncio.SelectorEventLoop):
    """An event loop that knows its tasks and its connections, so that none is left when it is closed.

    asyncio keeps only weak references to tasks: those of a kopf that is cancelled during its start would be lost
    without being ended. And aiohttp forgets a connection as soon as it has begun to close it, which over TLS waits for
    the server.
    """

    def __init__(self) -> None:
        super().__init__()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._connections: weakref.WeakSet[asyncio.Transport] = weakref.WeakSet()
        self.set_task_factory(self._remember)

    async def create_connection(self, *args: Any, **kwargs: Any) -> Any:
        """See asyncio.loop.create_connection."""
        made = await super().create_connection(*args, **kwargs)
        self._connections.add(made[0])
        return made

    def abort_connections(self) -> None:
        """Close them without waiting for the server. They end in the next turn of the loop."""
        for transport in list(self._connections):
            transport.abort()

    def _remember(self, loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.Task(coroutine, loop=loop, **options)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _run(loop: KopfLoop, life: asyncio.Task[None], sessions: list[aiohttp.ClientSession]) -> None:
    """kopf's thread: run its loop until it stops. Raises what stopped it."""
    try:
        with suppress(asyncio.CancelledError):
            loop.run_until_complete(life)
    finally:
        loop.run_until_complete(_clear_up(sessions))
        loop.abort_connections()
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


async def _clear_up(sessions: list[aiohttp.ClientSession]) -> None:
    """What kopf leaves behind when it is cancelled: tasks, when it was just starting, and always its connections."""
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    if left:
        ended, _ = await asyncio.wait(left)
        _ = [task.cancelled() or task.exception() for task in ended]  # nobody else needs to know
    for session in sessions:
        await session.close()
