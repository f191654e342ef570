"""A reverse proxy on loopback in front of an API server that does something at an exact write: kill the client, say.

with FaultProxy(api.url, api.ca_pem, tls=context) as proxy:      # plain http without `tls`; bearer tokens pass through
    account = operator_account(kubeconfig, directory, Door(proxy.url, authority))
    proxy.arm(7, lambda: os.kill(pid, signal.SIGKILL))       # the 7th write is answered, the client does not hear it

Answers, refusals and watches are the server's (docs/design/faults.md#proxy), but for objects that a test makes
fail, once or for ever:

    sick = proxy.fail("PATCH", NODES.path(None, "gpu-1"), Refusal(503))
    deaf = proxy.fail("GET", PODS.path(), None, query="spec.nodeName=gpu-2")     # no answer at all
    sick.lift()
"""

import asyncio
import json
import math
import ssl
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import unquote_plus

import aiohttp
from aiohttp import web

WRITES = frozenset({"POST", "PUT", "PATCH", "DELETE"})
HOP_BY_HOP = frozenset(
    {"connection", "keep-alive", "transfer-encoding", "te", "upgrade", "content-length", "host"}
)
BLOCKED = 429
"""A PodDisruptionBudget's refusal of an eviction is a point worth dying at, too."""


@dataclass(frozen=True, slots=True)
class Write:
    """One write that the server answered."""

    number: int
    """Counted from 1 since `reset`; 0 for what does not count: renewals of a Lease and refused writes."""
    method: str
    path: str
    status: int
    user_agent: str
    body: Any
    """Decoded JSON; None without one."""

    @property
    def what(self) -> str:
        """For people: `PATCH nodes/gpu-1`."""
        parts = self.path.split("/")
        start = 3 if parts[1] == "api" else 4
        rest = parts[start:]
        if rest[0] == "namespaces" and len(rest) > 2:
            rest = rest[2:]
        return f"{self.method} {'/'.join(rest)}"


@dataclass(frozen=True, slots=True)
class Refusal:
    """What the server is made to say: an HTTP status, and a Status object as an API server words it."""

    status: int
    message: str = "the fault proxy says no"
    reason: str = ""
    retry_after: int | None = None
    """Seconds, as header and in the body."""
    causes: Mapping[str, str] = field(default_factory=dict)
    """reason -> message, for example DisruptionBudget."""

    def response(self) -> web.Response:
        """As bytes on the wire."""
        details: dict[str, Any] = {
            "causes": [{"reason": reason, "message": message} for reason, message in self.causes.items()]
        }
        headers = {}
        if self.retry_after is not None:
            details["retryAfterSeconds"] = self.retry_after
            headers["Retry-After"] = str(self.retry_after)
        body: dict[str, Any] = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "details": details,
        }
        body |= {"message": self.message, "reason": self.reason, "code": self.status}
        return web.json_response(body, status=self.status, headers=headers)


@dataclass(slots=True)
class Sick:
    """Calls to one path that get a refusal, or no answer, instead of being forwarded. Watches do not."""

    method: str
    path: str
    answer: Refusal | None
    query: str
    times: float
    hits: int = 0
    """Calls that got it."""

    def lift(self) -> None:
        """From now on calls are forwarded again."""
        self.times = 0

    def takes(self, request: web.Request) -> bool:
        """Whether this call gets it; counts it then."""
        is_watch = request.query.get("watch") in ("true", "1")
        if is_watch or self.times <= 0 or (request.method, request.path) != (self.method, self.path):
            return False
        if self.query not in unquote_plus(request.query_string):
            return False
        self.times -= 1
        self.hits += 1
        return True


@dataclass(frozen=True, slots=True)
class _Trap:
    at: int
    act: Callable[[], None]
    before: bool


class FaultProxy:
    """Runs in a thread of its own. The log and the trap may be used from any thread."""

    def __init__(self, upstream: str, ca_pem: str, *, tls: ssl.SSLContext | None = None) -> None:
        """`upstream` as in a kubeconfig; `ca_pem` is the authority to trust; `tls` is what clients are shown."""
        self._upstream = upstream.rstrip("/")
        self._tls = ssl.create_default_context(cadata=ca_pem)
        self._shown = tls
        self._thread = threading.Thread(target=self._run, name="fault-proxy", daemon=True)
        self._ready = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._port = 0
        self._count = 0
        self._trap: _Trap | None = None
        self.writes: list[Write] = []
        self._sick: tuple[Sick, ...] = ()
        self.sprung = threading.Event()
        """Set once the trap was sprung."""

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"{'https' if self._shown else 'http'}://127.0.0.1:{self._port}"

    def reset(self) -> None:
        """Forget the log, count from 1 again, take the trap and the faults away."""
        self._trap = None
        self._sick = ()
        self._count = 0
        self.writes = []
        self.sprung.clear()

    def arm(self, at: int, act: Callable[[], None], *, before: bool = False) -> None:
        """Call `act` when write number `at` was answered upstream, or `before` it is forwarded at all."""
        self._trap = _Trap(at, act, before)

    def fail(
        self, method: str, path: str, answer: Refusal | None, *, query: str = "", times: float = math.inf
    ) -> Sick:
        """Let calls to exactly this path get `answer`, or with None hang until the client gives up.

        `query` must be part of the decoded query: `spec.nodeName=gpu-1` for the LIST of one node's pods.
        """
        sick = Sick(method, path, answer, query, times)
        self._sick = (*self._sick, sick)
        return sick

    def __enter__(self) -> Self:
        """Start and wait until it listens."""
        self._thread.start()
        if not self._ready.wait(10):
            raise TimeoutError("the fault proxy did not start")
        return self

    def __exit__(self, *_: object) -> None:
        """Stop and wait until it is gone."""
        if self._loop is not None and self._stop is not None:
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    # --- inside ----------------------------------------------------------------------------------------

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        connector = aiohttp.TCPConnector(limit=0, ssl=self._tls)
        async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as session:
            app = web.Application(client_max_size=16 * 2**20)

            async def handle(request: web.Request) -> web.StreamResponse:
                return await self._handle(request, session)

            app.router.add_route("*", "/{path:.*}", handle)
            runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=0.1)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=self._shown)
            await site.start()
            self._port = runner.addresses[0][1]
            self._ready.set()
            await self._stop.wait()
            await runner.cleanup()

    async def _handle(self, request: web.Request, session: aiohttp.ClientSession) -> web.StreamResponse:
        body = await request.read()
        headers = {key: value for key, value in request.headers.items() if key.lower() not in HOP_BY_HOP}
        if request.method in WRITES and self._is_next(body, request.path, before=True):
            self._spring()
            return web.Response(status=503, text="the fault proxy did not forward this")
        for sick in self._sick:
            if sick.takes(request):
                if sick.answer is not None:
                    return sick.answer.response()
                await asyncio.Event().wait()  # ends when the client goes, or the proxy stops
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10)
        try:
            async with session.request(
                request.method,
                self._upstream + request.raw_path,
                headers=headers,
                data=body or None,
                timeout=timeout,
            ) as answer:
                return await self._answer(request, body, answer)
        except (aiohttp.ClientError, ConnectionError) as error:
            return web.Response(status=502, text=f"fault proxy: {error!r}")

    async def _answer(
        self, request: web.Request, body: bytes, answer: aiohttp.ClientResponse
    ) -> web.StreamResponse:
        headers = {key: value for key, value in answer.headers.items() if key.lower() not in HOP_BY_HOP}
        if request.query.get("watch") in ("true", "1"):
            stream = web.StreamResponse(status=answer.status, headers=headers)
            await stream.prepare(request)
            async for chunk in answer.content.iter_any():
                await stream.write(chunk)
            return stream
        content = await answer.read()
        if request.method in WRITES:
            self._note(request, body, answer.status)
        return web.Response(status=answer.status, headers=headers, body=content)

    def _note(self, request: web.Request, body: bytes, status: int) -> None:
        counts = not is_renewal(request.path, body) and (status < 400 or status == BLOCKED)
        if counts:
            self._count += 1
        number = self._count if counts else 0
        agent = request.headers.get("User-Agent", "")
        decoded = json.loads(body) if body else None
        self.writes.append(Write(number, request.method, request.path, status, agent, decoded))
        if counts and self._trap is not None and not self._trap.before and self._trap.at == self._count:
            self._spring()

    def _is_next(self, body: bytes, path: str, *, before: bool) -> bool:
        trap = self._trap
        return (
            trap is not None
            and trap.before is before
            and trap.at == self._count + 1
            and not is_renewal(path, body)
        )

    def _spring(self) -> None:
        trap, self._trap = self._trap, None
        assert trap is not None, "only an armed trap springs"
        trap.act()
        self.sprung.set()


def is_renewal(path: str, body: bytes) -> bool:
    """A write to a Lease that says nothing but who leads: taking it, renewing it, releasing it."""
    if "/leases" not in path:
        return False
    metadata = json.loads(body).get("metadata", {}) if body else {}
    return not metadata.get("annotations")
