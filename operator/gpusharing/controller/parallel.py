"""Some calls at once, however many there are to make."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

Item = TypeVar("Item")


async def each(items: Sequence[Item], work: Callable[[Item], Awaitable[None]], parallel: int) -> None:
    """Work on every item, at most `parallel` at once, in their order. The first error ends all of it.

    A few workers instead of a task for each item: the first pass over a thousand nodes stays small.
    """
    rest = iter(items)

    async def worker() -> None:
        for item in rest:
            await work(item)

    async with asyncio.TaskGroup() as group:
        for _ in range(min(parallel, len(items))):
            group.create_task(worker())
