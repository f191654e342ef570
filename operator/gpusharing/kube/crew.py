"""Concurrent calls, one piece of work per object, so that no object holds up the others.

A call about one object may take its whole deadline, again and again. So a round waits only as long as pieces of work keep ending; work that is still under way after that continues in the background, and its object is left out of later rounds until it is done.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field

PATIENCE = 1.0
"""Seconds without the end of any piece of work, after which the round no longer waits for the rest."""
LONGEST = 10.0
"""The longest round in seconds. Work that has not begun by then is left to the next round, which decides again."""
Work = Callable[[str], Awaitable[None]]
"""Works on the object with this key."""


@dataclass(slots=True)
class Crew:
    """A limited number of workers for many objects, each object named by a key. Every task ends before `close` returns."""

    parallel: int
    """The most pieces of work at once."""
    on_late: Callable[[], None] = lambda: None
    """Called when a piece of work ends after its round has stopped waiting for it."""
    busy: set[str] = field(default_factory=set)
    """The keys of objects that are being worked on."""
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _errors: list[BaseException] = field(default_factory=list)

    async def each(self, keys: Iterable[str], work: Work, patience: float = PATIENCE) -> None:
        """Work on every key that is not busy, and return when all is done, when none has ended for `patience` seconds, or after LONGEST.

        Work under way then continues in the background; keys whose work has not begun are dropped, all of them if no worker is free. The first error cancels all work, also of earlier rounds, and is raised here in a group, or by the next call if it comes later.
        """
        await self._raise()
        queue = deque(key for key in keys if key not in self.busy)
        moved, workers, left = asyncio.Event(), 0, False

        async def worker() -> None:
            nonlocal workers
            try:
                while queue:
                    key = queue.popleft()
                    self.busy.add(key)
                    try:
                        await work(key)
                    finally:
                        self.busy.discard(key)
                        moved.set()
                        if left:
                            self.on_late()
            except asyncio.CancelledError:
                raise
            except BaseException as error:  # noqa: BLE001 - raised by `each`, whatever it is
                self._errors.append(error)
            finally:
                workers -= 1
                moved.set()

        # `_tasks` cannot be counted here: a worker that has just ended is removed from it only after `each` has
        # returned.
        for _ in range(min(self.parallel - len(self.busy), len(queue))):
            task = asyncio.create_task(worker())
            workers += 1
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        clock = asyncio.get_running_loop().time
        end = clock() + LONGEST
        try:
            while workers and not self._errors:
                moved.clear()
                async with asyncio.timeout_at(min(clock() + patience, end)):
                    await moved.wait()
        except TimeoutError:
            pass  # work that is under way continues in the background
        except BaseException:
            await self.close()
            raise
        queue.clear()
        left = True
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
