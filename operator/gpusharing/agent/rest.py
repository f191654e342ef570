"""NodeAPI over the standard library: the official client would take more memory than the whole agent.

The agent makes one list and one watch every few minutes and a patch when something changed, so every call takes
a connection of its own, in a daemon thread of its own.
"""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from http.client import HTTPException, HTTPResponse, HTTPSConnection
from urllib.parse import urlencode

from gpusharing.agent.background import in_daemon_thread
from gpusharing.agent.credentials import Credentials
from gpusharing.kube.client import JSON, Page, Resource, WatchEvent
from gpusharing.kube.errors import (
    Conflict,
    Expired,
    Forbidden,
    Invalid,
    KubeError,
    NotFound,
    Throttled,
    Unauthorized,
    Unavailable,
)

MERGE_PATCH = "application/merge-patch+json"
CALL_TIMEOUT = 15.0
"""Seconds for any step of a short call."""
WATCH_SECONDS = 290
"""After this time the server ends a watch, and the agent goes on with a new one."""
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 30), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 3))


class RestClient:
    """The API server, as far as the agent needs it. Errors are those of `kube/errors.py`."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials

    async def pages(
        self,
        resource: Resource,
        *,
        namespace: str | None = None,
        label_selector: str = "",
        field_selector: str = "",
        limit: int = 500,
    ) -> AsyncIterator[Page]:
        """List page by page."""
        query = {"labelSelector": label_selector, "fieldSelector": field_selector, "limit": str(limit)}
        more = ""
        while True:
            answer = await self._call("GET", resource.path(namespace), {**query, "continue": more})
            metadata = answer["metadata"]
            yield Page(answer.get("items") or [], metadata["resourceVersion"])
            more = metadata.get("continue", "")
            if not more:
                return

    async def watch(
        self,
        resource: Resource,
        resource_version: str,
        *,
        namespace: str | None = None,
        label_selector: str = "",
        field_selector: str = "",
    ) -> AsyncIterator[WatchEvent]:
        """Follow changes with bookmarks."""
        query = {
            "watch": "1",
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(WATCH_SECONDS),
            "resourceVersion": resource_version,
            "labelSelector": label_selector,
            "fieldSelector": field_selector,
        }
        stream = _Stream(self._credentials, _target(resource.path(namespace), query))
        stream.start()
        try:
            while (line := await stream.lines.get()) is not None:
                yield _event(line)
        finally:
            stream.stop()
        if stream.error is not None:
            raise stream.error

    async def patch(
        self,
        resource: Resource,
        name: str,
        body: JSON,
        *,
        namespace: str | None = None,
        subresource: str | None = None,
    ) -> JSON:
        """JSON merge patch."""
        return await self._call("PATCH", resource.path(namespace, name, subresource), {}, body)

    async def _call(self, method: str, path: str, query: dict[str, str], body: JSON | None = None) -> JSON:
        def exchange() -> JSON:
            connection, response = _send(self._credentials, method, _target(path, query), body, CALL_TIMEOUT)
            try:
                answer: JSON = json.loads(response.read())
                return answer
            finally:
                connection.close()

        try:
            return await in_daemon_thread(exchange, f"kube-{method.lower()}")
        except (OSError, HTTPException, ValueError) as error:
            raise Unavailable(f"the API server did not answer: {error}") from error


class _Stream:
    """Lines of one watch, read in a thread and handed to the event loop; None ends them."""

    def __init__(self, credentials: Credentials, target: str) -> None:
        self.lines: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.error: KubeError | None = None
        self._loop = asyncio.get_running_loop()
        self._credentials = credentials
        self._target = target
        self._connection: HTTPSConnection | None = None
        self._stopped = False

    def start(self) -> None:
        """Begin to read."""
        in_daemon_thread(self._read, "kube-watch")

    def stop(self) -> None:
        """Make the thread return, whatever it waits for."""
        self._stopped = True
        if self._connection is not None and self._connection.sock is not None:
            try:
                # Not SSLSocket.shutdown, which would take the TLS state away from the thread that reads.
                socket.socket.shutdown(self._connection.sock, socket.SHUT_RDWR)
            except OSError:
                return  # closed already

    def _read(self) -> None:
        try:
            self._connection, response = _send(
                self._credentials, "GET", self._target, None, WATCH_SECONDS + CALL_TIMEOUT
            )
            try:
                while not self._stopped and (line := response.readline()):
                    self._hand_over(line)
            finally:
                self._connection.close()
        except KubeError as error:
            self.error = error
        except (OSError, HTTPException) as error:
            self.error = Unavailable(f"the watch broke off: {error}")
        self._hand_over(None)

    def _hand_over(self, line: bytes | None) -> None:
        try:
            self._loop.call_soon_threadsafe(self.lines.put_nowait, line)
        except RuntimeError:
            self._stopped = True  # the event loop is closed


def _target(path: str, query: dict[str, str]) -> str:
    set_ones = {key: value for key, value in query.items() if value}
    return f"{path}?{urlencode(set_ones)}" if set_ones else path


def _send(
    credentials: Credentials, method: str, target: str, body: JSON | None, timeout: float
) -> tuple[HTTPSConnection, HTTPResponse]:
    """Connect and send; the response is 2xx and unread. The caller closes the connection."""
    headers = {"Accept": "application/json", "User-Agent": "gpusharing-agent", **credentials.headers()}
    if body is not None:
        headers["Content-Type"] = MERGE_PATCH
    connection = HTTPSConnection(
        credentials.host, credentials.port, timeout=CALL_TIMEOUT, context=credentials.ssl_context()
    )
    try:
        connection.connect()
        _keep_alive(connection.sock, timeout)
        connection.request(method, target, None if body is None else json.dumps(body), headers)
        response = connection.getresponse()
        if response.status >= 300:
            raise _refusal(response.status, response.read())
    except BaseException:
        connection.close()
        raise
    return connection, response


def _keep_alive(connected: socket.socket, timeout: float) -> None:
    """A peer that vanished without a word is noticed after a minute, not at the end of a watch."""
    connected.settimeout(timeout)
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEPALIVE:
        connected.setsockopt(socket.IPPROTO_TCP, option, value)


def _event(line: bytes) -> WatchEvent:
    try:
        event = json.loads(line)
    except ValueError as error:
        raise Unavailable(f"the watch sent no JSON: {error}") from error
    if event["type"] == "ERROR":
        raise _refusal(event["object"].get("code", 500), json.dumps(event["object"]).encode())
    return WatchEvent(event["type"], event["object"])


def _refusal(status: int, body: bytes) -> KubeError:
    """The error for an HTTP status, with the message of the server's Status object."""
    try:
        message = str(json.loads(body)["message"])
    except (ValueError, KeyError, TypeError):
        message = body.decode(errors="replace")[:200]
    text = f"{status}: {message}"
    match status:
        case 400 | 422:
            return Invalid(text)
        case 401:
            return Unauthorized(text)
        case 403:
            return Forbidden(text)
        case 404:
            return NotFound(text)
        case 409:
            return Conflict(text)
        case 410:
            return Expired(text)
        case 429:
            return Throttled(text)
        case _:
            return Unavailable(text)
