"""Leaving an asynchronous stream early without leaving its connection open."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeVar

Item = TypeVar("Item")


@asynccontextmanager
async def closing(stream: AsyncIterator[Item]) -> AsyncIterator[AsyncIterator[Item]]:
    """Close the stream at the end of the block, even when it was not read to its end.

    A generator that is only dropped is finished some time later by the garbage collector; a watch would hold
    its connection until then.
    """
    try:
        yield stream
    finally:
        if isinstance(stream, AsyncGenerator):
            await stream.aclose()
