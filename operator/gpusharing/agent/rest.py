"""A KubeClient over the standard library: aiohttp would need a quarter of the agent's memory.

Only the transport is the agent's own (docs/adr/0014); requests, the meaning of answers and credentials come from
`gpusharing.kube`. The agent makes one list and one watch every few minutes, and a patch when something changed, so
every call has its own connection and its own daemon thread.
"""

import asyncio
import socket
from collections.abc import AsyncGenerator
from contextlib import suppress
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from urllib.parse import urlencode, urlsplit

from gpusharing.kube.background import in_daemon_thread
from gpusharing.kube.client import JSON, ApiRequest, KubeClient, WatchEvent
from gpusharing.kube.errors import KubeError, Unauthorized, Unavailable
from gpusharing.kube.login import Access, Login
from gpusharing.kube.wire import (
    INACTIVITY,
    JSON_TYPE,
    METHODS,
    MOST_BYTES_AGENT,
    answer_of,
    encode_body,
    error_of_response,
    event_of,
    lasting,
    too_large,
)

CALL_TIMEOUT = 15.0
"""Seconds for each step of a short call, such as a read, and for each step until a watch is open."""
TOTAL_TIMEOUT = 30.0
"""Seconds for all steps of a short call together: every byte of an answer may be a step of its own."""


class RestClient(KubeClient):
    """Calls the API server with the standard library. Errors are those of `kube/errors.py`."""

    def __init__(self, login: Login) -> None:
        self._login = login

    async def stream(self, request: ApiRequest) -> AsyncGenerator[WatchEvent, None]:
        """Yield the events of a watch; a silence of INACTIVITY is Unavailable, and a 401 renews the credentials."""
        exchange = await self._prepared(lasting(request))
        loop = asyncio.get_running_loop()
        lines: asyncio.Queue[bytes | BaseException | None] = asyncio.Queue()

        def hand_over(item: bytes | BaseException | None) -> None:
            try:
                loop.call_soon_threadsafe(lines.put_nowait, item)
            except RuntimeError:
                exchange.unwanted = True  # the event loop is closed

        def read() -> None:
            end: BaseException | None = None
            try:
                response = exchange.send_off(INACTIVITY)
                try:
                    while not exchange.unwanted and (line := response.readline(MOST_BYTES_AGENT + 1)):
                        if len(line) > MOST_BYTES_AGENT:
                            raise too_large(request, line[:4096])
                        if line.strip():
                            hand_over(line)
                finally:
                    exchange.close()
            except (OSError, HTTPException, ValueError) as error:
                end = exchange.failure(error)
            except BaseException as error:  # noqa: BLE001 - raised to whoever awaits the watch
                end = error
            hand_over(end)

        in_daemon_thread(read, "kube-watch")
        try:
            while isinstance(line := await lines.get(), bytes):
                yield event_of(request, line)
        finally:
            exchange.shut()
        if isinstance(line, Unauthorized):
            await self._login.renew()
        if line is not None:
            raise line

    async def call(self, request: ApiRequest) -> JSON:
        """Send a request, after a 401 once more; no answer within TOTAL_TIMEOUT of an attempt is Unavailable."""
        for last in (False, True):
            exchange = await self._prepared(request)
            if request.verb not in ("get", "list"):
                request.before_send()
            try:
                async with asyncio.timeout(TOTAL_TIMEOUT):
                    raw = await in_daemon_thread(exchange.answer, f"kube-{request.verb}")
                return answer_of(request, raw)
            except Unauthorized:
                if last:
                    raise
                await self._login.renew()
            except (OSError, HTTPException, ValueError) as error:
                raise exchange.failure(error) from error
            finally:
                exchange.shut()
        raise AssertionError("the second call returns or raises")

    async def _prepared(self, request: ApiRequest) -> "_Exchange":
        access = await self._login.access()
        if access.proxy:
            raise Unauthorized(
                "the agent does not support proxies: remove proxy-url from the kubeconfig, and add the API server's"
                " host to NO_PROXY"
            )
        token = await self._login.token()
        try:
            return _Exchange(request, access, token)
        except (HTTPException, ValueError) as error:
            raise Unavailable(f"cannot {request.what} at {access.server}: {error}") from error


class _Exchange(HTTPSConnection):
    """One request and its own connection, to a server whose certificate may name another host (tls-server-name)."""

    unwanted = False
    """Whether the caller has given up. A write that is sent after that could undo a newer one."""

    def __init__(self, api_request: ApiRequest, access: Access, token: str | None) -> None:
        server = urlsplit(access.server)
        port = server.port or (443 if access.tls is not None else 80)
        super().__init__(server.hostname or "", port, timeout=CALL_TIMEOUT, context=access.tls)
        self._prefix = server.path
        self.api_request, self._access, self._token = api_request, access, token

    def connect(self) -> None:
        HTTPConnection.connect(self)
        tls, name = self._access.tls, self._access.tls_server_name or self.host
        if tls is not None:
            # The handshake waits until `shut` can end it: wrapping leaves the plain socket without a descriptor.
            self.sock = tls.wrap_socket(self.sock, server_hostname=name, do_handshake_on_connect=False)
        if self.unwanted:
            raise ConnectionAbortedError("abandoned before the connection was established")
        if tls is not None:
            self.sock.do_handshake()

    def send_off(self, timeout: float) -> HTTPResponse:
        """Send the request and return the response, whose body is not read; the caller closes the connection."""
        api_request = self.api_request
        data, headers = encode_body(api_request)
        headers |= {"Accept": JSON_TYPE, "User-Agent": "gpusharing-agent"}
        if self._token:
            headers["Authorization"] = self._token
        query = f"?{urlencode(api_request.query)}" if api_request.query else ""
        try:
            self.connect()
            self.sock.settimeout(timeout)
            self.request(METHODS[api_request.verb], self._prefix + api_request.path + query, data, headers)
            response = self.getresponse()
            if response.status >= 300:
                retry_after = response.getheader("Retry-After")
                raise error_of_response(api_request, response.status, response.read(MOST_BYTES_AGENT), retry_after)
        except BaseException:
            self.close()
            raise
        return response

    def answer(self) -> bytes:
        response = self.send_off(CALL_TIMEOUT)
        try:
            raw = response.read(MOST_BYTES_AGENT + 1)
            if len(raw) > MOST_BYTES_AGENT:
                raise too_large(self.api_request)
            return raw
        finally:
            self.close()

    def shut(self) -> None:
        """Make the thread that uses the connection return, also if it has no socket yet."""
        self.unwanted = True
        if (sock := self.sock) is not None:
            # SSLSocket.shutdown would take the TLS state away from the thread that reads, so the plain socket's is
            # used.
            with suppress(OSError):  # closed already
                socket.socket.shutdown(sock, socket.SHUT_RDWR)

    def failure(self, error: Exception) -> KubeError:
        reason = str(error) or type(error).__name__
        return Unavailable(f"cannot {self.api_request.what} at {self._access.server}: {reason}")
