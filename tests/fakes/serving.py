"""A web application on loopback, for the length of a block."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web
from aiohttp.test_utils import TestServer

TURNS = 10
"""More turns of the loop than asyncio needs from the arrival of a connection until its handler knows it (four)."""


@asynccontextmanager
async def serving(
    app: web.Application, port: int | None = None, identity: ssl.SSLContext | None = None
) -> AsyncIterator[str]:
    """Serve `app`, and yield the URL of the server without a path."""
    server = TestServer(app, host="127.0.0.1", port=port, scheme="https" if identity else "http")
    await server.start_server(ssl=identity)
    try:
        yield str(server.make_url("")).rstrip("/")
    finally:
        # Of a client that gave up while it connected, the server's half would stay open if it arrived during the close.
        for _ in range(TURNS):
            await asyncio.sleep(0)
        await server.close()
