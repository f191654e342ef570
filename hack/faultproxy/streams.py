"""Watches on their way through the proxy: line by line, each with the moment in which it came."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Final

import aiohttp
from aiohttp import web

from hack.faultproxy.calls import OpenWatch
from hack.faultproxy.faults import Fault

LOOK: Final = (0.0, b"")
"""No line: look whether something has begun, or the client is gone."""
END: Final = (-1.0, b"")
Lines = asyncio.Queue[tuple[float, bytes]]


class Relay:
    """All streams that are open."""

    def __init__(self) -> None:
        """None is."""
        self._open: set[Lines] = set()

    def look(self) -> None:
        """Each stream looks whether a fault ends it, though no line may come."""
        for lines in self._open:
            lines.put_nowait(LOOK)

    async def pass_on(
        self,
        found: aiohttp.ClientResponse,
        request: web.Request,
        response: web.StreamResponse,
        stream: OpenWatch,
        faults: Callable[[], tuple[Fault, ...]],
    ) -> None:
        """Until the server, the client or a fault ends it."""
        lines: Lines = asyncio.Queue()
        reading = asyncio.create_task(_read(found, lines))
        self._open.add(lines)
        try:
            while (item := await lines.get()) != END:
                if request.transport is None or request.transport.is_closing():
                    return
                came, line = item
                for fault in faults():
                    if line:
                        line = await fault.line(stream, line, came)
                if line:
                    await response.write(line)
                if last := next((end for fault in faults() if (end := fault.ends(stream))), b""):
                    await response.write(last)
                    return
        finally:
            self._open.discard(lines)
            reading.cancel()
            await asyncio.wait([reading])


async def _read(found: aiohttp.ClientResponse, lines: Lines) -> None:
    loop = asyncio.get_running_loop()
    try:
        async for line in split(found.content.iter_any()):
            lines.put_nowait((loop.time(), line))
    except (aiohttp.ClientError, ConnectionError):
        pass  # the client sees its stream end, as without us
    finally:
        lines.put_nowait(END)


async def split(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Whole lines, however long, each with its end; what the stream broke off in comes last."""
    rest = b""
    async for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            yield line + b"\n"
    if rest:
        yield rest
