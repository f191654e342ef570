"""Concurrent calls, one piece of work per object, none of which holds up the others.

A call about one object may take its whole deadline, again and again. Waiting for the slowest of many makes all of them
as slow as that one. So a round waits only as long as pieces of work keep ending; work that is still under way after
that continues by itself, and its object is left out of the following rounds until it is done.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field

PATIENCE = 1.0
"""Seconds without any piece of work ending, after which the round no longer waits for the others."""
LONGEST = 10.0
"""The longest round in seconds; work that has not begun by then belongs to the next one, which decides again."""

Work = Callable[[str], Awaitable[None]]


@dataclass(slots=True)
class _Round:
    """The state of one call of `each`, shared by its workers."""

    queue: deque[str]
    """The keys whose work has not begun."""
    work: Work
    """What to do with a key."""
    workers: int = 0
    """How many workers the round still has."""
    moved: asyncio.Event = field(default_factory=asyncio.Event)
    """Set whenever a piece of work or a worker ends."""
    left: bool = False
    """Whether nobody waits for the round any more."""


@dataclass(slots=True)
class Crew:
    """A limited number of workers for many objects, each object named by a key. Every task ends before `close`
    returns."""

    parallel: int
    """The most pieces of work at once."""
    on_late: Callable[[], None] = lambda: None
    """Called when a piece of work ends that its round no longer waited for."""
    busy: set[str] = field(default_factory=set)
    """Objects that are being worked on."""
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _errors: list[BaseException] = field(default_factory=list)

    async def each(self, keys: Iterable[str], work: Work, patience: float = PATIENCE) -> None:
        """Work on every key that is not busy, in their order, at most `parallel` at once. Return when all work has
        ended, or earlier: when no piece of work ended for `patience` seconds, or after LONGEST. Work under way then
        goes on by itself, and keys whose work has not begun are dropped.

        The first error ends all work, including that of earlier rounds, and is raised here; an error that comes after
        its round is raised by the next.
        """
        await self._raise()
        round_ = _Round(deque(key for key in keys if key not in self.busy), work)
        # Not of `_tasks`: a worker that has just ended is removed from there only after `each` has returned.
        for _ in range(min(self.parallel - len(self.busy), len(round_.queue))):
            task = asyncio.create_task(self._work(round_))
            round_.workers += 1
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        clock = asyncio.get_running_loop().time
        end = clock() + LONGEST
        try:
            while round_.workers and not self._errors:
                round_.moved.clear()
                async with asyncio.timeout_at(min(clock() + patience, end)):
                    await round_.moved.wait()
        except TimeoutError:
            pass  # what is under way goes on by itself
        except BaseException:
            await self.close()
            raise
        round_.queue.clear()
        round_.left = True
        await self._raise()

    async def close(self) -> None:
        """Cancel all work, and return when it has ended."""
        tasks = set(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _work(self, round_: _Round) -> None:
        """Work on the keys of the round one after the other. An error is kept in `_errors` for `each`; only a
        cancellation is raised."""
        try:
            while round_.queue:
                key = round_.queue.popleft()
                self.busy.add(key)
                try:
                    await round_.work(key)
                finally:
                    self.busy.discard(key)
                    round_.moved.set()
                    if round_.left:
                        self.on_late()
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001 - raised by `each`, whatever it is
            self._errors.append(error)
        finally:
            round_.workers -= 1
            round_.moved.set()

    async def _raise(self) -> None:
        """End all work and raise the errors of workers as one group; without errors, do nothing."""
        if self._errors:
            await self.close()
            errors, self._errors = self._errors, []
            raise BaseExceptionGroup("calls failed", errors)
