"""The server of /healthz, /readyz and /metrics of operator and agent, by plain HTTP or TLS, in threads of its own.

Everybody who reaches the port may connect. Whatever is sent, what it costs is bounded: threads, bytes, connections a
second, and how often a page is computed (docs/adr/0096-a-port-that-strangers-reach.md).
"""

import io
import socket
import ssl
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer
from typing import Any, NamedTuple, TypeAlias

from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import CollectorRegistry

MOST_CONNECTIONS = 16
"""The most connections at a time; the kubelet's probes and a few Prometheus servers need two or three."""
MOST_THREADS = 32
"""The most connections that are served or being ended. One that was ended may still wait for its page."""
MOST_OF_AN_ADDRESS = 50
"""The most connections of one address that are served in a second."""
MOST_ACCEPTED = 100
"""The most connections that are accepted in a tenth of a second, most of them to be closed at once."""
SECONDS = 10.0
"""The longest time for one connection, from its beginning to its end."""
LONGEST_REQUEST = 16 * 1024
"""Bytes of a request with its headers. A token of a service account takes a little more than 1 KiB."""
FRESH_S = 1.0
"""The shortest time in seconds for which an answer is given to all who ask."""
RENDERING_SHARE = 0.05
"""The largest share of the time that is spent on rendering metrics."""


class Answer(NamedTuple):
    status: int
    body: bytes
    content_type: str = "text/plain; charset=utf-8"


Page: TypeAlias = Callable[[str], Answer]
"""Answers a request with this Authorization header, which is empty without one; called in many threads."""


class SharedAnswer:
    """A page that is computed by one thread at a time, and at most once in FRESH_S; all others get the same answer."""

    def __init__(
        self, compute: Callable[[], Answer], *, share: float = 1.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`share` limits the part of the time in which the page is computed, so that a slow one is computed less often."""
        self._compute, self._share, self._clock = compute, share, clock
        self._lock = threading.Lock()
        self._answer: Answer | None = None
        self._fresh_until = float("-inf")

    def __call__(self, authorization: str = "") -> Answer:
        with self._lock:
            began = self._clock()
            if self._answer is None or began >= self._fresh_until:
                self._answer = self._compute()
                ended = self._clock()
                self._fresh_until = max(ended + FRESH_S, began + (ended - began) / self._share)
            return self._answer


def metrics_page(registry: CollectorRegistry, clock: Callable[[], float] = time.monotonic) -> SharedAnswer:
    def render() -> Answer:
        return Answer(200, generate_latest(registry), CONTENT_TYPE_LATEST)

    return SharedAnswer(render, share=RENDERING_SHARE, clock=clock)


class PageServer(ThreadingTCPServer):
    """Serves pages by their path from `start` to `stop`, at a free port if that is 0.

    When there are too many connections, the oldest one of the address that has most of them is closed for a new one. So
    idle connections cannot block it, and a flood from elsewhere does not end those of the kubelet. ThreadingHTTPServer
    does not fit: it looks up its own name in DNS before it listens.
    """

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 64

    def __init__(
        self,
        address: tuple[str, int],
        pages: Mapping[str, Page],
        *,
        tls: ssl.SSLContext | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock, self._tls = clock, tls
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self._lock = threading.Lock()
        self._open: dict[socket.socket, tuple[str, float]] = {}
        """The address of each open connection and when it began, oldest first. A socket is removed before it is closed."""
        self._served = 0
        """The number of connections with a thread."""
        self._second, self._of_address = 0, Counter[str]()
        """The second that is counted in, and how many connections each address has begun in it."""
        self._tenth, self._accepted = 0, 0
        self._stopping = threading.Event()
        super().__init__(address, _handler(pages))
        self._thread = threading.Thread(target=self.serve_forever, name="pages", daemon=True)

    @property
    def port(self) -> int:
        port: int = self.server_address[1]
        return port

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Accept no more connections and free the port; waits forever without `start`."""
        self._stopping.set()
        self.shutdown()
        self.server_close()
        self._thread.join()

    def verify_request(self, request: Any, client_address: Any) -> bool:
        now, address = self._clock(), str(client_address[0])
        if self._second != (second := int(now)):
            self._second = second
            self._of_address.clear()
        self._of_address[address] += 1
        return self._of_address[address] <= MOST_OF_AN_ADDRESS and self._served < MOST_THREADS

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._tls is not None:
            # The handshake takes place in the connection's thread, so that a slow client holds up no other.
            request = self._tls.wrap_socket(request, server_side=True, do_handshake_on_connect=False)
        with self._lock:
            while len(self._open) >= MOST_CONNECTIONS:
                addresses = Counter(address for address, _ in self._open.values())
                ((most, _),) = addresses.most_common(1)
                self._end(next(request for request, (address, _) in self._open.items() if address == most))
            self._open[request] = str(client_address[0]), self._clock()
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._served += 1
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._lock:
                self._served -= 1

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        now = self._clock()
        with self._lock:
            for request in [each for each, (_, began) in self._open.items() if began < now - SECONDS]:
                self._end(request)
        if (pause := self._pause(now)) > 0:
            self._stopping.wait(pause)

    def _pause(self, now: float) -> float:
        """Return for how many seconds further connections wait in the kernel, after MOST_ACCEPTED in this tenth of one."""
        if self._tenth != (tenth := int(now * 10)):
            self._tenth, self._accepted = tenth, 0
        self._accepted += 1
        return (tenth + 1) / 10 - now if self._accepted > MOST_ACCEPTED else 0.0

    def handle_error(self, request: Any, client_address: Any) -> None:
        # The client went away, its request was too long, its TLS handshake failed, or its connection was shut down.
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)

    def _end(self, request: socket.socket) -> None:
        """Shut a connection down, which makes its thread return. The caller holds the lock."""
        self._open.pop(request, None)
        # SSLSocket.shutdown would take the TLS state away from the thread that reads, so the plain socket's is used.
        with suppress(OSError):
            socket.socket.shutdown(request, socket.SHUT_RDWR)


class _RequestReader(io.BufferedReader):
    """Reads a request's lines. http.server alone would take 100 headers of 64 KiB each, on every connection."""

    left = LONGEST_REQUEST

    def readline(self, size: int | None = -1, /) -> bytes:
        line = super().readline(self.left if size is None or size < 0 else min(size, self.left))
        self.left -= len(line)
        if self.left <= 0:
            raise ConnectionAbortedError("the request is too long")
        return line


def _handler(pages: Mapping[str, Page]) -> type[BaseHTTPRequestHandler]:
    hint = f"try {' or '.join(pages)}\n".encode()

    class Handler(BaseHTTPRequestHandler):
        def setup(self) -> None:
            super().setup()
            self.rfile = _RequestReader(self.rfile.detach())

        def do_GET(self) -> None:
            page = pages.get(self.path.partition("?")[0])
            answer = Answer(404, hint) if page is None else page(self.headers.get("Authorization", ""))
            self.send_response(answer.status)
            if answer.status == 401:
                self.send_header("WWW-Authenticate", "Bearer")
            self.send_header("Content-Type", answer.content_type)
            self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            self.wfile.write(answer.body)

        def log_message(self, format: str, *args: object) -> None:
            """Log no request, because probes come every few seconds."""

    return Handler
