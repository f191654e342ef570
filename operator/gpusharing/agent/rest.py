"""KubeClient over the standard library: aiohttp alone would take a quarter of the agent's memory (docs/adr/0014).

Only the transport is the agent's own; requests, the meaning of answers and credentials come from `gpusharing.kube`. The
agent makes one list and one watch every few minutes and a patch when something changed, so every call takes a
connection of its own, in a daemon thread of its own.
"""

import asyncio
import socket
from collections.abc import AsyncGenerator
from contextlib import suppress
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from urllib.parse import urlencode, urlsplit

from gpusharing.agent.background import in_daemon_thread
from gpusharing.kube.client import JSON, ApiRequest, KubeClient, WatchEvent
from gpusharing.kube.errors import KubeError, Unauthorized, Unavailable
from gpusharing.kube.login import Access, Login
from gpusharing.kube.wire import (
    INACTIVITY,
    JSON_TYPE,
    METHODS,
    answer_of,
    content,
    event_of,
    lasting,
    refusal,
)

CALL_TIMEOUT = 15.0
"""Seconds for any step of a short call, and for each step until a watch is open."""
TOTAL_TIMEOUT = 30.0
"""Seconds for all steps of a short call: each byte of an answer is a step."""


class RestClient(KubeClient):
    """The API server, over the standard library. Errors are those of `kube/errors.py`."""

    def __init__(self, login: Login) -> None:
        self._login = login

    async def stream(self, request: ApiRequest) -> AsyncGenerator[WatchEvent, None]:
        """See KubeClient. After a 401 the credentials are renewed for the next watch."""
        stream = _Stream(await self._prepared(lasting(request)))
        stream.start()
        try:
            while (line := await stream.lines.get()) is not None:
                yield event_of(request, line)
        finally:
            stream.stop()
        if isinstance(stream.error, Unauthorized):
            await self._login.renew()
        if stream.error is not None:
            raise stream.error

    async def call(self, request: ApiRequest) -> JSON:
        """See KubeClient. After a 401 the credentials are renewed and the request is sent once more."""
        for last in (False, True):
            exchange = await self._prepared(request)
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
                "the agent reaches the API server directly: take proxy-url out of the kubeconfig"
            )
        return _Exchange(request, access, await self._login.token())


class _Stream:
    """Lines of one watch, read in a thread and handed to the event loop; None ends them, whatever ended the thread."""

    def __init__(self, exchange: "_Exchange") -> None:
        self.lines: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.error: BaseException | None = None
        """What ended the watch; also a fault of our own, which then ends whatever awaits it."""
        self._loop = asyncio.get_running_loop()
        self._exchange = exchange
        self._stopped = False

    def start(self) -> None:
        """Begin to read."""
        in_daemon_thread(self._read, "kube-watch")

    def stop(self) -> None:
        """Make the thread return, whatever it waits for."""
        self._stopped = True
        self._exchange.shut()

    def _read(self) -> None:
        try:
            response = self._exchange.send_off(INACTIVITY)
            try:
                while not self._stopped and (line := response.readline()):
                    if line.strip():
                        self._hand_over(line)
            finally:
                self._exchange.close()
        except (OSError, HTTPException, ValueError) as error:
            self.error = self._exchange.failure(error)
        except BaseException as error:  # noqa: BLE001 - told to the one who awaits
            self.error = error
        finally:
            self._hand_over(None)

    def _hand_over(self, line: bytes | None) -> None:
        try:
            self._loop.call_soon_threadsafe(self.lines.put_nowait, line)
        except RuntimeError:
            self._stopped = True  # the event loop is closed


class _Exchange(HTTPSConnection):
    """One request and a connection of its own, to a server whose name may differ from its address (tls-server-name of a
    kubeconfig). `send_off` and `answer` run in a thread."""

    unwanted = False
    """Nobody waits for the answer any more: a write that comes so late may undo a newer one."""

    def __init__(self, asked: ApiRequest, access: Access, token: str | None) -> None:
        server = urlsplit(access.server)
        super().__init__(server.hostname or "", server.port, timeout=CALL_TIMEOUT, context=access.tls)
        self.asked, self._access, self._token = asked, access, token

    def connect(self) -> None:
        """TCP, then TLS under that name."""
        HTTPConnection.connect(self)
        if self.unwanted:
            raise ConnectionAbortedError("given up before it was connected")
        if self._access.tls is not None:
            name = self._access.tls_server_name or self.host
            self.sock = self._access.tls.wrap_socket(self.sock, server_hostname=name)

    def send_off(self, timeout: float) -> HTTPResponse:
        """Connect and send; the response is 2xx and unread, and may take `timeout` for each read. The caller closes."""
        asked = self.asked
        data, headers = content(asked)
        headers |= {"Accept": JSON_TYPE, "User-Agent": "gpusharing-agent"}
        if self._token:
            headers["Authorization"] = self._token
        target = f"{asked.path}?{urlencode(asked.query)}" if asked.query else asked.path
        try:
            self.connect()
            self.sock.settimeout(timeout)
            self.request(METHODS[asked.verb], target, data, headers)
            response = self.getresponse()
            if response.status >= 300:
                retry_after = response.getheader("Retry-After")
                raise refusal(asked, response.status, response.read(), retry_after)
        except BaseException:
            self.close()
            raise
        return response

    def answer(self) -> bytes:
        """Send, and return the body of the answer."""
        response = self.send_off(CALL_TIMEOUT)
        try:
            return response.read()
        finally:
            self.close()

    def shut(self) -> None:
        """Make the thread that uses the connection return, unless it has; one without a socket does once it has one."""
        self.unwanted = True
        if (sock := self.sock) is not None:
            # Not SSLSocket.shutdown, which would take the TLS state away from the thread that reads.
            with suppress(OSError):  # closed already
                socket.socket.shutdown(sock, socket.SHUT_RDWR)

    def failure(self, error: Exception) -> KubeError:
        """What the caller is told of an error of the network or of an answer that is not HTTP."""
        reason = str(error) or type(error).__name__
        return Unavailable(f"cannot {self.asked.what} at {self._access.server}: {reason}")
