"""FaultProxy: the proxy server, in a thread of its own. faults.py says what it can do to a call.

Watches pass through it line by line, each line with the time at which it arrived.
"""

import asyncio
import math
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final, Self
from urllib.parse import unquote_plus

import aiohttp
from aiohttp import web

from hack.faultproxy.calls import (
    BLOCKED,
    WRITES,
    Aim,
    Aimed,
    Incoming,
    OpenWatch,
    PlayedRefusal,
    ProxiedAnswer,
    ProxiedWrite,
    Sick,
    is_renewal,
)
from hack.faultproxy.faults import HEAL_SECONDS, Fault

LOOK: Final = (0.0, b"")
"""In place of a line: makes a watch check whether a fault ends it or its client is gone."""
END: Final = (-1.0, b"")
Lines = asyncio.Queue[tuple[float, bytes]]


class Relay:
    def __init__(self) -> None:
        self._open: set[Lines] = set()

    def look(self) -> None:
        """Make each watch check whether a fault ends it or its client is gone, even if no line arrives."""
        for lines in self._open:
            lines.put_nowait(LOOK)

    async def pass_on(
        self,
        reply: aiohttp.ClientResponse,
        request: web.Request,
        response: web.StreamResponse,
        stream: OpenWatch,
        faults: Callable[[], tuple[Fault, ...]],
    ) -> None:
        """Send each line of a watch through all faults, and end the watch if one of them says so."""
        lines: Lines = asyncio.Queue()
        reading = asyncio.create_task(_read(reply, lines))
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


async def _read(reply: aiohttp.ClientResponse, lines: Lines) -> None:
    loop = asyncio.get_running_loop()
    try:
        async for line in split(reply.content.iter_any()):
            lines.put_nowait((loop.time(), line))
    except (aiohttp.ClientError, ConnectionError):
        pass  # the client sees its stream end, as without the proxy
    finally:
        lines.put_nowait(END)


async def split(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yield complete lines of any length, including their line ends."""
    rest = b""
    async for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            yield line + b"\n"
    if rest:
        yield rest


HOP_BY_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "te", "upgrade", "content-length", "host"})
HOST = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class _Trap:
    """A function to call at write number `at`: before the write is forwarded, or after it has been answered."""

    at: int
    act: Callable[[], None]
    before: bool


class FaultProxy:
    """The proxy, in a thread of its own. Its methods may be called from any thread, but the function of `arm`, which
    runs in the proxy's thread, must neither call `open_door` nor stop the proxy."""

    def __init__(self, upstream: str, ca_pem: str, *, tls: ssl.SSLContext | None = None) -> None:
        self._upstream = upstream.rstrip("/")
        self._tls = ssl.create_default_context(cadata=ca_pem)
        self._shown = tls
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="fault-proxy", daemon=True)
        self._ready = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._runner: web.AppRunner | None = None
        self._doors: dict[int, str] = {}
        self._relay = Relay()
        self._port = 0
        self._count = 0
        self._aimed: Aimed | None = None
        """The count of the writes that `aim` selects, or None if every write counts."""
        self._newest = 0
        self._trap: _Trap | None = None
        self.writes: list[ProxiedWrite] = []
        self._sick: tuple[Sick, ...] = ()
        self._faults: tuple[Fault, ...] = ()
        self.sprung = threading.Event()
        """Set when the trap springs, before its function is called."""

    @property
    def url(self) -> str:
        """The address for clients that have none of their own (`open_door`)."""
        return self._url(self._port)

    def open_door(self, name: str) -> str:
        assert self._loop is not None, "enter the proxy before"
        listening = asyncio.run_coroutine_threadsafe(self._listen(name), self._loop)
        return self._url(listening.result(60))

    def reset(self) -> None:
        """Clear the log, the trap and all faults, and count writes from 1 again."""
        self._trap = None
        self._sick, self._faults = (), ()
        self._count = 0
        self._aimed = None
        self.writes = []
        self.sprung.clear()

    def aim(self, aim: Aim) -> None:
        self._aimed = Aimed(aim)

    def arm(self, at: int, act: Callable[[], None], *, before: bool = False) -> None:
        """Call `act` once write number `at` has been answered; with `before` when it arrives, which is then refused with
        503. It is called in the proxy's thread, which waits for it."""
        self._trap = _Trap(at, act, before)

    def disturb(self, *faults: Fault) -> None:
        self._faults = (*self._faults, *faults)

    def fail(
        self, method: str, path: str, answer: PlayedRefusal | None, *, query: str = "", times: float = math.inf
    ) -> Sick:
        """Let calls of this verb and path fail until the returned fault is lifted; watches are forwarded."""
        sick = Sick(method, path, answer, query, times)
        self._sick = (*self._sick, sick)
        return sick

    def __enter__(self) -> Self:
        self._thread.start()
        if not self._ready.wait(60):
            raise TimeoutError("the fault proxy did not start")
        return self

    def __exit__(self, *_: object) -> None:
        if self._loop is not None and self._stop is not None:
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    # --- inside ----------------------------------------------------------------------------------------

    def _url(self, port: int) -> str:
        return f"{'https' if self._shown else 'http'}://{HOST}:{port}"

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        connector = aiohttp.TCPConnector(limit=0, ssl=self._tls)
        async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as session:
            app = web.Application(client_max_size=16 * 2**20)

            async def handle(request: web.Request) -> web.StreamResponse:
                return await self._handle(request, session)

            app.router.add_route("*", "/{path:.*}", handle)
            self._runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=0.1)
            await self._runner.setup()
            self._port = await self._listen("")
            self._ready.set()
            while not self._stop.is_set():
                self._relay.look()  # streams of clients that have died end
                try:
                    await asyncio.wait_for(self._stop.wait(), 1.0)
                except TimeoutError:
                    continue
            await self._runner.cleanup()

    async def _listen(self, name: str) -> int:
        assert self._runner is not None, "enter the proxy before"
        listening = socket.create_server((HOST, 0), backlog=128)
        port: int = listening.getsockname()[1]
        self._doors[port] = name
        await web.SockSite(self._runner, listening, ssl_context=self._shown).start()
        return port

    def _incoming(self, request: web.Request, body: bytes) -> Incoming:
        """Return the call with its numbers; writes in flight at once share one, except after `aim`."""
        transport = request.transport
        port = transport.get_extra_info("sockname")[1] if transport is not None else 0
        counts = request.method in WRITES and not is_renewal(request.path, body)
        number = self._count + 1 if counts else 0
        mark, aimed = number, self._aimed
        if aimed is not None:
            mark = aimed.arrived + 1 if counts and aimed.accepts(request.method, request.path, body) else 0
            aimed.arrived += mark > 0
        return Incoming(
            method=request.method,
            path=request.path,
            query=unquote_plus(request.query_string),
            body=body,
            door=self._doors.get(port, ""),
            agent=request.headers.get("User-Agent", ""),
            number=number,
            since=self._newest,
            mark=mark,
            aimed=aimed if mark else None,
        )

    async def _handle(self, request: web.Request, session: aiohttp.ClientSession) -> web.StreamResponse:
        call = self._incoming(request, await request.read())
        if self._trap is not None and self._trap.before and 0 < self._trap.at <= call.mark:
            self._spring()
            return web.Response(status=503, text="the fault proxy did not forward this")
        for sick in self._sick:
            if sick.strikes(call):
                if sick.answer is not None:
                    return sick.answer.answer().response()
                await asyncio.Event().wait()  # ends when the client hangs up or the proxy stops
        try:
            if call.is_watch:
                return await self._watch(request, call, session)
            answer = await self._through(call, self._begun(call, answered=False), request, session)
        except (aiohttp.ClientError, ConnectionError) as error:
            if call.aimed is not None:
                call.aimed.arrived -= 1  # the write never arrived
            return web.Response(status=502, text=f"fault proxy: {error!r}")
        if answer is None and request.transport is not None:
            request.transport.abort()
        return answer.response() if answer is not None else web.Response(status=502)

    async def _through(
        self, call: Incoming, faults: tuple[Fault, ...], request: web.Request, session: aiohttp.ClientSession
    ) -> ProxiedAnswer | None:
        if faults:
            first, *rest = faults
            return await first.around(call, lambda: self._through(call, tuple(rest), request, session))
        async with self._ask(call, request, session) as reply:
            headers = self._headers(reply)
            answer = ProxiedAnswer(reply.status, headers, await reply.read())
        self._newest = max(self._newest, answer.version)
        if call.is_write:
            self._note(call, answer)
        return answer

    def _headers(self, reply: aiohttp.ClientResponse) -> Mapping[str, str]:
        headers: Mapping[str, str] = {
            key: value for key, value in reply.headers.items() if key.lower() not in HOP_BY_HOP
        }
        for fault in self._faults:
            headers = fault.headers(headers)
        return headers

    def _ask(
        self, call: Incoming, request: web.Request, session: aiohttp.ClientSession
    ) -> "aiohttp.client._RequestContextManager":
        return session.request(
            call.method,
            self._upstream + request.raw_path,
            headers={key: value for key, value in request.headers.items() if key.lower() not in HOP_BY_HOP},
            data=call.body or None,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=10),
        )

    async def _watch(self, request: web.Request, call: Incoming, session: aiohttp.ClientSession) -> web.StreamResponse:
        for fault in self._faults:
            await fault.opening(call)
        async with self._ask(call, request, session) as reply:
            headers = self._headers(reply)
            response = web.StreamResponse(status=reply.status, headers=headers)
            await response.prepare(request)
            stream = OpenWatch(call.path, asyncio.get_running_loop().time())
            await self._relay.pass_on(reply, request, response, stream, lambda: self._faults)
            return response

    def _begun(self, call: Incoming, *, answered: bool) -> tuple[Fault, ...]:
        faults: Iterable[Fault] = self._faults
        began = [fault for fault in faults if fault.watch_for(call, answered=answered)]
        if began:
            self._relay.look()
            asyncio.get_running_loop().call_later(HEAL_SECONDS + 0.05, self._relay.look)
        return self._faults

    def _note(self, call: Incoming, answer: ProxiedAnswer) -> None:
        """Log and number a write that the server has answered. A refused one does not count, except with BLOCKED."""
        counts = call.number > 0 and (answer.status < 400 or answer.status == BLOCKED)
        if counts:
            self._count += 1
        if call.aimed is not None:
            call.aimed.taken += counts
            call.aimed.arrived -= not counts
        number = self._count if counts else 0
        self.writes.append(
            ProxiedWrite(
                number,
                call.method,
                call.path,
                answer.status,
                call.agent,
                call.decoded,
                call.door,
                call.since,
                answer.version if answer.status < 300 else 0,
            )
        )
        mark = self._count
        if (aimed := self._aimed) is not None:
            mark = aimed.taken if call.aimed is aimed else 0
            call = replace(call, mark=mark if counts else 0)
        if counts and self._trap is not None and not self._trap.before and self._trap.at == mark:
            self._spring()
        self._begun(call, answered=True)

    def _spring(self) -> None:
        trap, self._trap = self._trap, None
        assert trap is not None, "only an armed trap springs"
        self.sprung.set()  # set before acting, because whoever restarts the killed process clears the event
        trap.act()
