"""HttpClient: KubeClient over one aiohttp session, raw JSON in and out.

Every call has a deadline, none is repeated here and none sleeps: the caller decides what to do about a 429 or
a server that is away (docs/design/drain.md#e7, E19). Typed models are not used: they reject incomplete Nodes, and
reading one costs ten times the projection (docs/design/faults.md#d10).
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self, Unpack

from gpusharing.kube.aio import aiohttp
from gpusharing.kube.answers import EVICTION, ApiRequest
from gpusharing.kube.client import JSON, PODS, VERSION, Filters, Resource, WatchEvent
from gpusharing.kube.clock import SteadyClock
from gpusharing.kube.errors import Unavailable
from gpusharing.kube.login import Login
from gpusharing.kube.raw import text
from gpusharing.kube.wire import (
    INACTIVITY,
    JSON_TYPE,
    MERGE_PATCH,
    WATCH_SECONDS,
    WireCalls,
    event_of,
    parsed,
    refusal,
    selectors,
    watch_query,
    watch_seconds,
)

OnCall = Callable[[str, Resource, str | None, int, float], None]
"""Called after each call with verb, resource, subresource, HTTP status (0: no answer), seconds until the answer."""


@dataclass(frozen=True)
class Limits:
    """Deadlines in seconds, the size of headers, and how many calls may be under way."""

    connect: float = 3.0
    """To open a connection."""
    total: float = 10.0
    """For a whole call that is no watch."""
    watch: float = WATCH_SECONDS
    """For a watch, which the server then ends; the client begins another."""
    inactivity: float = INACTIVITY
    """Without a byte of a watch, bookmarks included, after which it counts as broken."""
    header: int = 256 * 1024
    """Bytes of one line of an answer's head. A longer one is an error, although a write may have been carried out."""
    parallel: int = 8
    """Watches do not count. Each connection costs 0.3 MiB, and one process cannot keep more of them busy."""


@dataclass(frozen=True, slots=True)
class _Sent:
    """What goes over the wire, without the credentials: these may be renewed between two tries."""

    method: str
    path: str
    query: Mapping[str, str]
    timeout: aiohttp.ClientTimeout
    headers: Mapping[str, str] = field(default_factory=dict)
    data: bytes | None = None


@dataclass(frozen=True)
class _Answer:
    status: int
    body: bytes
    retry_after: str | None


class _Body(aiohttp.BytesPayload):
    """The body of a write: aiohttp sends the headers with it, so nothing has left before it is asked for."""

    def __init__(self, data: bytes, ask: Callable[[], None]) -> None:
        super().__init__(data)
        self._ask = ask
        self.objection: Exception | None = None
        """What `ask` raised: aiohttp passes on another exception."""

    async def write_with_length(
        self, writer: aiohttp.abc.AbstractStreamWriter, content_length: int | None
    ) -> None:
        """See aiohttp."""
        try:
            self._ask()
        except Exception as error:
            self.objection = error
            raise
        await super().write_with_length(writer, content_length)


class HttpClient(WireCalls):
    """KubeClient for a real API server. Close it, or use `async with`."""

    def __init__(
        self,
        login: Login,
        *,
        name: str = "gpusharing-operator",
        limits: Limits | None = None,
        on_call: OnCall | None = None,
        clock: SteadyClock | None = None,
        before_write: Callable[[], None] = lambda: None,
    ) -> None:
        """`name` is the field manager of our writes and our User-Agent. `clock` gets the server's time.

        `before_write` is called when a write leaves: it has waited for a slot, a connection and the loop's turn. What
        it raises reaches the caller as it is, and nothing is sent.
        """
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
        """Nothing is opened before the first call."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connections."""
        await self.close()

    async def close(self) -> None:
        """Close the connections; calls under way fail with Unavailable."""
        if self._session:
            await self._session.close()
            self._session = None

    async def get(self, resource: Resource, name: str, *, namespace: str | None = None) -> JSON:
        """See KubeClient."""
        return await self._call(ApiRequest("get", resource), "GET", resource.path(namespace, name))

    async def watch(
        self, resource: Resource, resource_version: str, **filters: Unpack[Filters]
    ) -> AsyncIterator[WatchEvent]:
        """See KubeClient. Raises Unavailable when the stream breaks or is silent for too long."""
        request = ApiRequest("watch", resource)
        seconds = watch_seconds(resource, self._limits.watch, self._limits.inactivity)
        query = watch_query(resource_version, selectors(filters), seconds)
        async with self._stream(request, resource.path(filters.get("namespace")), query) as response:
            async for line in _lines(response):
                yield event_of(request, line)

    async def version(self) -> str:
        """See KubeClient. Every authenticated user may ask (ClusterRole system:public-info-viewer)."""
        return text(await self._call(ApiRequest("get", VERSION), "GET", "/version"), "gitVersion")

    async def create(self, resource: Resource, body: JSON, *, namespace: str | None = None) -> JSON:
        """See KubeClient."""
        where = namespace or text(body, "metadata", "namespace")
        return await self._call(ApiRequest("create", resource), "POST", resource.path(where), body=body)

    async def delete(
        self,
        resource: Resource,
        name: str,
        *,
        namespace: str | None = None,
        uid: str,
        grace: int | None = None,
    ) -> None:
        """See KubeClient."""
        options: JSON = {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {"uid": uid}}
        if grace is not None:
            options["gracePeriodSeconds"] = grace
        path = resource.path(namespace, name)
        await self._call(ApiRequest("delete", resource), "DELETE", path, body=options)

    async def log(self, namespace: str, name: str, lines: int) -> str:
        """See KubeClient."""
        request, query = ApiRequest("get", PODS, "log"), {"tailLines": str(lines)}
        path = PODS.path(namespace, name, "log")
        answer = await self._answer(request, _Sent("GET", path, query, self._timeout))
        if answer.status >= 400:
            raise refusal(request, answer.status, answer.body, answer.retry_after)
        return answer.body.decode(errors="replace")

    async def evict(self, namespace: str, name: str, uid: str) -> None:
        """See KubeClient. The answer's body is a Status without information (docs/design/drain.md#e1)."""
        eviction = {
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": {"namespace": namespace, "name": name},
            "deleteOptions": {"preconditions": {"uid": uid}},
        }
        path = PODS.path(namespace, name, EVICTION)
        await self._call(ApiRequest("create", PODS, EVICTION), "POST", path, body=eviction)

    # --- transport -------------------------------------------------------------------------------------

    async def _call(
        self,
        request: ApiRequest,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: JSON | None = None,
    ) -> JSON:
        parameters = dict(query or {})
        data = None
        if body is not None:
            data = json.dumps(body, separators=(",", ":")).encode()
            if method != "DELETE":
                parameters["fieldManager"] = self._name
        content_type = MERGE_PATCH if method == "PATCH" else JSON_TYPE
        headers = {"Content-Type": content_type} if data is not None else {}
        sent = _Sent(method, path, parameters, self._timeout, headers, data)
        answer = await self._answer(request, sent)
        if answer.status >= 400:
            raise refusal(request, answer.status, answer.body, answer.retry_after)
        return parsed(request, answer.body)

    async def _answer(self, request: ApiRequest, sent: _Sent) -> _Answer:
        """The server's answer; after a 401 the credentials are renewed and the call is made once more."""
        async with self._slots:
            for last in (False, True):
                token = await self._login.token()
                async with self._open(request, sent, token) as response:
                    body = await response.read()
                if response.status != 401 or last:
                    break
                await self._renew(token)
        return _Answer(response.status, body, response.headers.get("Retry-After"))

    @asynccontextmanager
    async def _stream(
        self, request: ApiRequest, path: str, query: Mapping[str, str]
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """An open watch."""
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=self._limits.connect, sock_read=self._limits.inactivity
        )
        sent = _Sent("GET", path, query, timeout)
        for last in (False, True):
            token = await self._login.token()
            async with self._open(request, sent, token) as response:
                if response.status == 401 and not last:
                    await self._renew(token)
                    continue
                if response.status != 200:
                    retry_after = response.headers.get("Retry-After")
                    raise refusal(request, response.status, await response.read(), retry_after)
                yield response
                return

    @asynccontextmanager
    async def _open(
        self, request: ApiRequest, sent: _Sent, token: str | None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """One request on the wire; any network failure becomes Unavailable."""
        access = await self._login.access()
        session = self._opened()
        started, status = time.monotonic(), 0
        asked_at = self._clock.steady() if self._clock else 0.0
        body = _Body(sent.data or b"", self._before_write) if sent.method != "GET" else None
        try:
            async with session.request(
                sent.method,
                access.server + sent.path,
                params=sent.query,
                data=body,
                headers={**sent.headers, "Authorization": token} if token else sent.headers,
                timeout=sent.timeout,
                ssl=access.tls or True,
                server_hostname=access.tls_server_name,
                proxy=access.proxy,
            ) as response:
                status = response.status
                self._told(request, status, started)
                if self._clock:
                    self._clock.heard(response.headers.get("Date", ""), asked_at)
                try:
                    yield response
                finally:
                    _abort(response)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            if body is not None and body.objection is not None:
                raise body.objection from error
            if not status:
                self._told(request, status, started)
            reason = str(error) or type(error).__name__
            raise Unavailable(f"cannot {request.what} at {access.server}: {reason}") from error

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                # Watches hold a connection each, so the limit of calls is ours (`_slots`), not the connector's.
                connector=aiohttp.TCPConnector(limit=0),
                # Unpacking costs the server and us more time than the bytes save inside a cluster.
                headers={"Accept": JSON_TYPE, "Accept-Encoding": "identity", "User-Agent": self._name},
                max_line_size=self._limits.header,
                max_field_size=self._limits.header,
            )
            # Else aiohttp repeats a GET or DELETE whose connection breaks. It has no public switch: its own TestClient
            # sets this one.
            self._session._retry_connection = False
        return self._session

    def _told(self, request: ApiRequest, status: int, started: float) -> None:
        if self._on_call:
            seconds = time.monotonic() - started
            self._on_call(request.verb, request.resource, request.subresource, status, seconds)

    async def _renew(self, refused: str | None) -> None:
        """Renew the credentials, unless another call did so since `refused` was sent."""
        async with self._renewing:
            if await self._login.token() == refused:
                await self._login.renew()


def _abort(response: aiohttp.ClientResponse) -> None:
    """Drop the connection of an answer that was not read to its end, such as an abandoned watch.

    aiohttp would start to close TLS, which nobody awaits and which would outlive the session.
    """
    if response.connection and response.connection.transport:
        response.connection.transport.abort()


async def _lines(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """Lines of any length: aiohttp's own line reader refuses those longer than its buffer."""
    rest = b""
    async for chunk in response.content.iter_any():
        *complete, rest = (rest + chunk).split(b"\n")
        for line in complete:
            if line:
                yield line
