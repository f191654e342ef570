"""HttpClient: KubeClient over one aiohttp session, raw JSON in and out.

Every call has a deadline, none is repeated here and none sleeps: the caller decides what to do about a 429 or a server
that is away (docs/design/drain.md#e7, E19). Typed models are not used: they reject incomplete Nodes, and reading one
costs ten times the projection (docs/design/faults.md#d10).
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Self

from gpusharing.kube.aio import aiohttp
from gpusharing.kube.client import JSON, ApiRequest, KubeClient, WatchEvent
from gpusharing.kube.clock import SteadyClock
from gpusharing.kube.errors import Unavailable
from gpusharing.kube.listreader import ListReader
from gpusharing.kube.login import Login
from gpusharing.kube.wire import (
    INACTIVITY,
    JSON_TYPE,
    METHODS,
    MOST_BYTES,
    WATCH_SECONDS,
    answer_of,
    encode_body,
    error_of_response,
    event_of,
    lasting,
    too_large,
)

OnCall = Callable[[ApiRequest, int], None]
"""Called after each request with its HTTP status, which is 0 when there was no answer."""


@dataclass(frozen=True)
class Limits:
    """Deadlines in seconds, the size of headers, and how many calls may be under way."""

    connect: float = 3.0
    total: float = 10.0
    """For a whole call other than a watch."""
    watch: float = WATCH_SECONDS
    """Seconds after which the server ends a watch; the client begins another."""
    inactivity: float = INACTIVITY
    """Seconds without a byte of a watch, bookmarks included, after which the watch counts as broken."""
    header: int = 256 * 1024
    """The most bytes of one header line. A longer line is an error, although a write may have been carried out."""
    parallel: int = 8
    """Calls under way at once, without watches. A connection costs 0.3 MiB; one process keeps no more busy."""


class _Body(aiohttp.BytesPayload):
    """The body of a write. aiohttp sends the headers with it, so nothing has left before `ask` is called."""

    def __init__(self, data: bytes, ask: Callable[[], None]) -> None:
        super().__init__(data)
        self._ask = ask
        self.objection: Exception | None = None
        """The exception that `ask` raised, kept because aiohttp raises another one in its place."""

    async def write_with_length(self, writer: aiohttp.abc.AbstractStreamWriter, content_length: int | None) -> None:
        try:
            self._ask()
        except Exception as error:
            self.objection = error
            raise
        await super().write_with_length(writer, content_length)


class HttpClient(KubeClient):
    """KubeClient for a real API server. Close it, or use `async with`.

    `before_write`, and then the request's own `before_send`, is called immediately before a write is sent, after all
    waits. If one raises, nothing is sent, and the exception reaches the caller unchanged.
    """

    def __init__(
        self,
        login: Login,
        *,
        name: str = "gpusharing-operator",
        limits: Limits | None = None,
        on_call: OnCall = lambda _request, _status: None,
        clock: SteadyClock | None = None,
        before_write: Callable[[], None] = lambda: None,
    ) -> None:
        """`name` is the field manager of writes and the User-Agent; `clock` is corrected by the Date of each answer."""
        self._login = login
        self._name = name
        self._limits = limits or Limits()
        self._timeout = aiohttp.ClientTimeout(total=self._limits.total, sock_connect=self._limits.connect)
        self._on_call = on_call
        self._clock = clock
        self._before_write = before_write
        self._slots = asyncio.Semaphore(self._limits.parallel)
        self._renewing = asyncio.Lock()
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections; calls under way fail with Unavailable. A later call opens new ones."""
        if self._session:
            await self._session.close()
            self._session = None

    async def call(self, request: ApiRequest) -> JSON:
        """Wait for a slot, without a limit of time, and send one request; after a 401, once more with a new token."""
        async with self._slots:
            for last in (False, True):
                token = await self._login.token()
                async with self._open(request, self._timeout, token) as response:
                    if request.verb == "list" and response.status == 200:
                        return await _list(request, response)
                    raw = await _whole(request, response)
                if response.status != 401 or last:
                    break
                await self._renew(token)
        if response.status >= 400:
            raise error_of_response(request, response.status, raw, response.headers.get("Retry-After"))
        return answer_of(request, raw)

    async def stream(self, request: ApiRequest) -> AsyncGenerator[WatchEvent, None]:
        limits = self._limits
        request = lasting(request, limits.watch, limits.inactivity)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=limits.connect, sock_read=limits.inactivity)
        for last in (False, True):
            token = await self._login.token()
            async with self._open(request, timeout, token) as response:
                if response.status == 401 and not last:
                    await self._renew(token)
                    continue
                if response.status != 200:
                    retry_after = response.headers.get("Retry-After")
                    raise error_of_response(request, response.status, await _whole(request, response), retry_after)
                async for line in _lines(request, response):
                    yield event_of(request, line)
                return

    @asynccontextmanager
    async def _open(
        self, request: ApiRequest, timeout: aiohttp.ClientTimeout, token: str | None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        access = await self._login.access()
        session = self._opened()
        status = 0
        sent_at = self._clock.steady() if self._clock else 0.0
        method = METHODS[request.verb]
        data, headers = encode_body(request)
        query = {"fieldManager": self._name} if method in ("POST", "PATCH") else {}

        def ask() -> None:
            self._before_write()
            request.before_send()

        body = _Body(data or b"", ask) if method != "GET" else None
        try:
            async with session.request(
                method,
                access.server + request.path,
                params={**request.query, **query},
                data=body,
                headers={**headers, "Authorization": token} if token else headers,
                timeout=timeout,
                ssl=access.tls or True,
                server_hostname=access.tls_server_name,
                proxy=access.proxy,
            ) as response:
                status = response.status
                self._on_call(request, status)
                if self._clock:
                    self._clock.note_date(response.headers.get("Date", ""), sent_at)
                try:
                    yield response
                finally:
                    # Drop the connection of an answer that was not read to its end, for example when a watch was
                    # abandoned. Otherwise aiohttp would begin to close TLS, which nobody awaits and which would outlive
                    # the session.
                    if response.connection and response.connection.transport:
                        response.connection.transport.abort()
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            if body is not None and body.objection is not None:
                raise body.objection from error
            if not status:
                self._on_call(request, status)
            reason = str(error) or type(error).__name__
            raise Unavailable(f"cannot {request.what} at {access.server}: {reason}") from error

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                # Each watch holds a connection, so calls are limited by `_slots` and not by the connector.
                connector=aiohttp.TCPConnector(limit=0),
                # Inside a cluster, compression costs the server and us more time than the smaller answers save.
                headers={"Accept": JSON_TYPE, "Accept-Encoding": "identity", "User-Agent": self._name},
                max_line_size=self._limits.header,
                max_field_size=self._limits.header,
            )
            # Otherwise aiohttp repeats a GET or DELETE whose connection breaks. There is no public switch; aiohttp's
            # own TestClient sets this attribute too.
            self._session._retry_connection = False
        return self._session

    async def _renew(self, refused: str | None) -> None:
        """Renew the credentials, unless another call has done so since this one sent the token `refused`."""
        async with self._renewing:
            if await self._login.token() == refused:
                await self._login.renew()


async def _whole(request: ApiRequest, response: aiohttp.ClientResponse) -> bytes:
    read = bytearray()
    async for piece in response.content.iter_any():
        read += piece
        if len(read) > MOST_BYTES:
            raise too_large(request)
    return bytes(read)


async def _list(request: ApiRequest, response: aiohttp.ClientResponse) -> JSON:
    reader = ListReader(request)
    async for piece in response.content.iter_any():
        reader.feed(piece)
    return reader.end()


async def _lines(request: ApiRequest, response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    # aiohttp's own reader rejects lines that are longer than its buffer.
    rest = bytearray()
    async for chunk in response.content.iter_any():
        for number, part in enumerate(chunk.split(b"\n")):
            if number and rest:
                yield bytes(rest)
            if number:
                rest = bytearray()
            rest += part
            if len(rest) > MOST_BYTES:
                raise too_large(request, bytes(rest[:4096]))
