"""A read-only web server on loopback, whose address has a secret token."""

import asyncio
import os
import re
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from http import HTTPStatus
from urllib.parse import parse_qsl

from kubectl_gpusharing.shell.markup import POLICY, frame, tag
from kubectl_gpusharing.shell.troubles import Trouble

HOST = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:\d+)?", re.IGNORECASE)
"""The Host headers that are served, with any port, because it differs where ssh forwards one. A page elsewhere may
resolve its own name to loopback (DNS rebinding), and then sends that name."""
PATIENCE = 10.0
"""Seconds within which a browser must send its request."""
KINDS = {"js": "text/javascript", "events": "text/event-stream"}
"""The media types of pages that are not HTML."""
HEADERS = (
    "Allow: GET",
    "Cache-Control: no-store",
    "Connection: close",
    f"Content-Security-Policy: {POLICY}; script-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none';"
    " frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy: same-origin",
    "Referrer-Policy: no-referrer",
    "X-Content-Type-Options: nosniff",
    "X-Frame-Options: DENY",
)
Content = AsyncGenerator[str, None]
Pages = Mapping[str, Callable[[Mapping[str, str]], Content]]


@asynccontextmanager
async def listening(pages: Pages, port: int) -> AsyncIterator[str]:
    """Serve the pages while the context is open, and yield the address. Raises Trouble if the port cannot be used.

    The address has a secret token: every user of the machine and every page in a browser can connect to loopback.
    """
    token = secrets.token_urlsafe(24)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        broken = ConnectionError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError
        try:
            with suppress(*broken, asyncio.CancelledError):
                async with asyncio.timeout(PATIENCE):
                    head = await reader.readuntil(b"\r\n\r\n")
                status, kind, content = route(pages, token, head.decode("latin-1"))
                begin = f"HTTP/1.1 {status.value} {status.phrase}"
                rows = (begin, *HEADERS, f"Content-Type: {kind}; charset=utf-8", "", "")
                writer.write("\r\n".join(rows).encode())
                async with aclosing(content):
                    async for piece in content:
                        writer.write(piece.encode())
                        await writer.drain()
        finally:
            writer.close()

    try:
        server = await asyncio.start_server(serve, "127.0.0.1", port)
    except OSError as error:
        hint = "Choose another, such as --port 8321, or leave out --port for any free one"
        raise Trouble(f"port {port} of 127.0.0.1 cannot be used: {os.strerror(error.errno or 0)}. {hint}") from error
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/{token}/"
    finally:
        server.close()


def route(pages: Pages, token: str, head: str) -> tuple[HTTPStatus, str, Content]:
    first, *rows = head.split("\r\n")
    method, *target = first.split(" ")
    hosts = [row[5:].strip() for row in rows if row[:5].lower() == "host:"]
    path, _, query = target[0].partition("?") if len(target) == 2 else ("", "", "")
    empty, found, name, *_ = (*path.split("/", 2), "", "", "")
    if not path or empty:
        status, why = HTTPStatus.BAD_REQUEST, "This is not a request of a browser."
    elif len(hosts) != 1 or not HOST.fullmatch(hosts[0]):
        status, why = HTTPStatus.FORBIDDEN, "Only requests to an address on loopback are answered."
    elif method != "GET":
        status, why = HTTPStatus.METHOD_NOT_ALLOWED, "This page is read-only and answers only GET requests."
    elif not secrets.compare_digest(found.encode(), token.encode()):
        status, why = HTTPStatus.FORBIDDEN, "Open the whole address that was printed, with its token."
    elif name not in pages:
        status, why = HTTPStatus.NOT_FOUND, "There is no such page."
    else:
        return HTTPStatus.OK, KINDS.get(name, "text/html"), pages[name](dict(parse_qsl(query)))

    async def refusal() -> Content:
        yield frame("kubectl gpusharing", (), tag("main", tag("p", why)))

    return status, "text/html", refusal()
