"""Calls side by side: how many at once, and how long to hold back after a refusal.

All calls of the operator pass through a `Fanout`, except those of its Lease. `Workers` work on many objects at once, so
that no object holds up the others.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from gpusharing.kube.client import JSON, NODES, ApiRequest, KubeClient, PassingClient, WatchEvent
from gpusharing.kube.clock import Backoff, loop_time
from gpusharing.kube.errors import HeldBack, KubeError, ServerAway, Throttled, Unavailable

AWAY_OBJECTS = 3
"""How many objects' calls must fail, without an answer in between, before the server counts as away."""
AWAY_DOORS = 2
"""Doors at which these calls must have failed. One webhook may refuse every eviction while the server is well."""
LONGEST_HOLD = 60.0
"""The longest hold in seconds; a longer Retry-After is cut to this."""
FORGET_AFTER = 600.0
"""Seconds from the end of an object's hold until its refusals are forgotten; it may be gone."""
SEVERAL = 3
"""How many refused objects, without an answer in between, hold a whole door; random refusals rarely get there."""
FIRST_HOLD = 1.0
"""Seconds to wait after a 429 without a Retry-After. The wait doubles with each further one."""
Door = tuple[bool, str, str]
"""One verb on one kind, in the flow that decisions depend on (False) or that only informs people (True)."""


@dataclass(frozen=True, slots=True)
class CallTarget:
    verb: str
    kind: str
    """Kind and subresource, as `ApiRequest.kind` writes them."""
    name: str
    """Namespace and name, or selectors of a list, as `ApiRequest.full_name` writes them."""
    published: bool
    """Whether the call only publishes something for people (see `PublishingClient`)."""

    @property
    def door(self) -> Door:
        return self.published, self.verb, self.kind

    @property
    def subject(self) -> str:
        """Return the name to count failures by: a Node, its GPUNode and the list of its pods share one."""
        return self.name.removeprefix("spec.nodeName=") or self.kind


class Fanout(PassingClient):
    """A KubeClient in front of another one. Its calls may also raise HeldBack and ServerAway.

    It bounds how many calls are under way at once, waits as long as the API server asks us to, and decides whether one
    call failed or the server is away (docs/adr/0060-the-scope-of-a-refusal.md). It neither retries nor sleeps: a call
    that has to wait is refused with HeldBack, and its caller decides again when the time has come.

    A watch is not counted among the calls under way and is never held back; its events count as answers. All moments
    are by the loop's clock.
    """

    def __init__(self, client: KubeClient, *, parallel: int = 16) -> None:
        super().__init__(client)
        self._slots = asyncio.Semaphore(parallel)
        self._answers = 0
        """How many answers have come; a call that fails says nothing about the present if one came meanwhile."""
        self._failed: set[CallTarget] = set()
        """The calls that have failed since the last answer."""
        self.doors: dict[Door, float] = {}
        """When the last hold of each door ends, or ended."""
        self.objects: dict[CallTarget, float] = {}
        """When the hold of each refused object at its door ends, or ended."""
        self.pauses: dict[CallTarget, Backoff] = {}
        """The back-off of each refused object at its door."""
        self.refused: dict[Door, set[CallTarget]] = {}
        """The objects that were refused at each door since its last answer."""

    async def stream(self, request: ApiRequest) -> AsyncGenerator[WatchEvent, None]:
        async with aclosing(self.client.stream(request)) as events:
            async for event in events:
                self._reached()
                yield event

    async def call(self, request: ApiRequest) -> JSON:
        return await self.send(request, published=False)

    async def send(self, request: ApiRequest, *, published: bool) -> JSON:
        """Wait for a slot, then send the request; HeldBack, without sending, while it is on hold, or ServerAway."""
        target = CallTarget(request.verb, request.kind, request.full_name, published)
        async with self._slots:
            if (left := self.hold_left(target)) > 0:
                raise HeldBack(
                    f"not sent, because the API server asked the operator to wait for another {left:.0f} s", left
                )
            began = self._answers
            try:
                answer = await self.client.call(request)
            except Unavailable as error:
                if began == self._answers:
                    self._count_failure(target, error)
                raise
            except Throttled as error:
                self._hold(target, error.retry_after)
                self._failed.clear()
                raise
            except KubeError:
                self._answered(target)
                raise
            self._answered(target)
            return answer

    def hold_left(self, target: CallTarget | None = None) -> float:
        """Return the seconds until a call about `target` may be sent, or any call if it is None; 0 or less means now.

        All calls wait while a door of Nodes and one of another kind, in the flow that decisions depend on, are held.
        """
        of_nodes = others = float("-inf")
        for (published, _, kind), held_until in self.doors.items():
            if kind == NODES.plural:
                of_nodes = max(of_nodes, held_until)
            elif not published:
                others = max(others, held_until)
        until = min(of_nodes, others)
        if target is not None:
            until = max(until, self.doors.get(target.door, until), self.objects.get(target, until))
        return until - loop_time()

    def next_release(self, now: datetime) -> datetime | None:
        """Return when the first hold of an object that decisions depend on ends; None if there is none."""
        lasts = [until - loop_time() for target, until in self.objects.items() if not target.published]
        return min((now + timedelta(seconds=left) for left in lasts if left > 0), default=None)

    def _reached(self) -> None:
        self._answers += 1
        self._failed.clear()

    def _answered(self, target: CallTarget) -> None:
        self._reached()
        self.refused.pop(target.door, None)
        self.pauses.pop(target, None)
        self.objects.pop(target, None)

    def _count_failure(self, target: CallTarget, error: Unavailable) -> None:
        self._failed.add(target)
        alike = [other for other in self._failed if other.published == target.published]
        subjects = {other.subject for other in alike}
        doors = {other.door for other in alike}
        if len(subjects) >= AWAY_OBJECTS and len(doors) >= AWAY_DOORS:
            raise ServerAway(f"the API server is unavailable: {error}") from error

    def _hold(self, target: CallTarget, retry_after: float | None) -> None:
        now = loop_time()
        for old in [old for old, until in self.objects.items() if until + FORGET_AFTER < now]:
            del self.objects[old], self.pauses[old]
            self.refused.get(old.door, set()).discard(old)
        pause = self.pauses.setdefault(target, Backoff(FIRST_HOLD, LONGEST_HOLD, lambda: 1.0))
        wait = pause.after_failure()
        if retry_after is not None:
            wait = min(max(retry_after, FIRST_HOLD), LONGEST_HOLD)
        until = self.objects[target] = now + wait
        refused = self.refused.setdefault(target.door, set())
        refused.add(target)
        if len(refused) >= SEVERAL:
            self.doors[target.door] = max(until, self.doors.get(target.door, until))


class PublishingClient(PassingClient):
    """A client for statuses and Events, which are only for people.

    They share the limit of calls under way with all other calls. Their refusals and failures neither hold back the
    calls that decisions depend on, nor end a pass. Watches go to the client behind the Fanout.
    """

    def __init__(self, fanout: Fanout) -> None:
        super().__init__(fanout.client)
        self._fanout = fanout

    async def call(self, request: ApiRequest) -> JSON:
        return await self._fanout.send(request, published=True)


PATIENCE = 1.0
"""Seconds without the end of any piece of work, after which the round no longer waits for the rest."""
LONGEST = 10.0
"""The longest round in seconds. Work that has not begun by then is left to the next round, which decides again."""
Work = Callable[[str], Awaitable[None]]
"""Works on the object with this key."""


@dataclass(slots=True)
class Workers:
    """A limited number of workers for many objects, each named by a key that one worker has at a time.

    A call about one object may take its whole deadline, again and again. So a round waits only as long as pieces of
    work keep ending, and leaves out objects whose work is still under way in the background.
    """

    parallel: int
    on_late: Callable[[], None] = lambda: None
    """Called when a piece of work ends after its round has stopped waiting for it."""
    busy: set[str] = field(default_factory=set)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _errors: list[BaseException] = field(default_factory=list)

    async def each(self, keys: Iterable[str], work: Work, patience: float = PATIENCE) -> None:
        """Work on every key that is not busy; return when all is done, or none ended for `patience` seconds.

        Work under way then continues; keys whose work has not begun are dropped. The first error cancels all work, also
        of earlier rounds, and is raised here in a group, or by the next call if it comes later.
        """
        await self._raise()
        queue = deque(key for key in keys if key not in self.busy)
        moved = asyncio.Event()

        async def worker() -> None:
            while queue:
                key = queue.popleft()
                self.busy.add(key)
                try:
                    await work(key)
                except asyncio.CancelledError:
                    raise
                except BaseException as error:  # noqa: BLE001 - raised by `each`, whatever it is
                    self._errors.append(error)
                    return
                finally:
                    self.busy.discard(key)
                    moved.set()

        workers = [asyncio.create_task(worker()) for _ in range(min(self.parallel - len(self.busy), len(queue)))]
        for task in workers:
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        end = loop_time() + LONGEST
        try:
            while not all(task.done() for task in workers) and not self._errors:
                moved.clear()
                async with asyncio.timeout_at(min(loop_time() + patience, end)):
                    await moved.wait()
        except TimeoutError:
            pass  # work that is under way continues in the background
        except BaseException:
            await self.close()
            raise
        queue.clear()
        for task in workers:
            if not task.done():  # with the queue empty, it ends with its present piece of work
                task.add_done_callback(lambda _: self.on_late())
        await self._raise()

    async def close(self) -> None:
        tasks = set(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _raise(self) -> None:
        if self._errors:
            await self.close()
            errors, self._errors = self._errors, []
            raise BaseExceptionGroup("calls failed", errors)
