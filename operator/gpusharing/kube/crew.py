"""Concurrent calls, one piece of work per object, so that no object holds up the others.

A call about one object may take its whole deadline, again and again. Waiting for the slowest of many calls makes all
of them as slow as that one. So a round waits only as long as pieces of work keep ending. Work that is still under way
after that continues in the background, and its object is left out of later rounds until it is done.
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
    """Whether `each` has returned, so that nothing waits for the round any more."""


@dataclass(slots=True)
class Crew:
    """A limited number of workers for many objects, each object named by a key. Every task ends before `close`
    returns."""

    parallel: int
    """The most pieces of work at once."""
    on_late: Callable[[], None] = lambda: None
    """Called when a piece of work ends after its round has stopped waiting for it."""
    busy: set[str] = field(default_factory=set)
    """The keys of objects that are being worked on."""
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _errors: list[BaseException] = field(default_factory=list)

    async def each(self, keys: Iterable[str], work: Work, patience: float = PATIENCE) -> None:
        """Call `work` with every key that is not busy, in the order of `keys`. At most `parallel` pieces of work are
        under way at once, including those of earlier rounds. Return when all work of this call has ended, when none of
        it has ended for `patience` seconds, or after LONGEST seconds. Work that is under way then continues in the
        background; keys whose work has not begun are dropped. If no worker is free, nothing is begun, and the call
        returns at once. A key that is given twice is worked on twice.

        The first error cancels all work, including the work of earlier rounds, and is raised here in a group. An error
        that comes after the end of its round is raised by the next call. If this call is canceled, so is all work.
        """
        await self._raise()
        round_ = _Round(deque(key for key in keys if key not in self.busy), work)
        # `_tasks` cannot be counted here: a worker that has just ended is removed from it only after `each` has
        # returned.
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
            pass  # work that is under way continues in the background
        except BaseException:
            await self.close()
            raise
        round_.queue.clear()
        round_.left = True
        await self._raise()

    async def close(self) -> None:
        """Cancel all work, and return when every task has ended. Errors that tasks raise meanwhile are not raised
        here."""
        tasks = set(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _work(self, round_: _Round) -> None:
        """Work on the keys in the queue of the round, one after another, until it is empty. `on_late` is called after
        each piece of work that ends when its round no longer waits. An error is stored in `_errors` for `each` to
        raise; only a cancellation is raised here."""
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
        """If a worker has failed, cancel all work and raise the workers' errors as one group. Otherwise do nothing."""
        if self._errors:
            await self.close()
            errors, self._errors = self._errors, []
            raise BaseExceptionGroup("calls failed", errors)
