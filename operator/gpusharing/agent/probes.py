"""Serve /healthz, /readyz and /metrics with the standard library, in a thread that outlives a stuck event loop. The
server uses plain HTTP or TLS. With TLS, only those whom the API server allows may read /metrics."""

import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer
from typing import Any

from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import CollectorRegistry

from gpusharing.agent.access import ALLOWED, Decision

MOST_CONNECTIONS = 16
"""The most connections at a time; the kubelet's probes and a few Prometheus servers need two or three."""
SECONDS = 10.0
"""The longest time for one connection, from its beginning to its end."""

_TEXT = "text/plain; charset=utf-8"
Probe = Callable[[], str]
"""Returns what is wrong, or an empty string if everything is fine."""


@dataclass(frozen=True, slots=True)
class Protection:
    """How the server keeps the metrics from those who may not read them."""

    tls: ssl.SSLContext
    """The certificate and key of the server."""
    decide: Callable[[str], Decision]
    """Decides by the Authorization header of a request for /metrics, which is empty if it has none; may block."""


class _Server(ThreadingTCPServer):
    """A server that a client with idle connections cannot block: when there are too many connections, the oldest one
    is closed for a new one.

    ThreadingHTTPServer does not fit: it looks up its own name in DNS before it listens.
    """

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 64

    def __init__(
        self,
        address: tuple[str, int],
        handler: type[BaseHTTPRequestHandler],
        clock: Callable[[], float],
        tls: ssl.SSLContext | None,
    ) -> None:
        """Listen at `address`, with TLS if there is a context for it, and answer requests with `handler`. A host that
        contains a colon is an IPv6 address. `clock` returns monotonic seconds. Raises OSError if the address is in use
        or cannot be used on this machine."""
        self._clock, self._tls = clock, tls
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self._lock = threading.Lock()
        self._open: dict[socket.socket, float] = {}
        """When each open connection began, oldest first. A socket is removed before it is closed."""
        super().__init__(address, handler)

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept a connection, and return it with the client's address. With TLS, the handshake takes place when the
        thread of the connection reads from it, so that a slow client holds up no other."""
        request, client = super().get_request()
        if self._tls is not None:
            request = self._tls.wrap_socket(request, server_side=True, do_handshake_on_connect=False)
        return request, client

    def process_request(self, request: Any, client_address: Any) -> None:
        """Shut down and forget the oldest connections as long as MOST_CONNECTIONS or more are open, then answer this
        one in its own thread."""
        with self._lock:
            while len(self._open) >= MOST_CONNECTIONS:
                self._end(next(iter(self._open)))
            self._open[request] = self._clock()
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Forget and close the connection of a request that has ended."""
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Shut down the connections that are older than SECONDS, whatever they are doing. The server calls this at
        least twice a second."""
        late = self._clock() - SECONDS
        with self._lock:
            for request in [each for each, began in self._open.items() if began < late]:
                self._end(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print the traceback of an error in a request, unless it is an OSError. Those are expected: the client went
        away, its TLS handshake failed, or its connection was shut down."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)

    def _end(self, request: socket.socket) -> None:
        """Forget a connection and shut it down, which makes its thread return and close it. The caller must hold the
        lock of this server."""
        self._open.pop(request, None)
        # SSLSocket.shutdown would take the TLS state away from the thread that reads, so the plain socket's is used.
        with suppress(OSError):
            socket.socket.shutdown(request, socket.SHUT_RDWR)


class ProbeServer:
    """Serves the probes and metrics from `start` to `stop`."""

    def __init__(
        self,
        address: tuple[str, int],
        alive: Probe,
        ready: Probe,
        metrics: CollectorRegistry,
        *,
        protection: Protection | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Listen at `address` at once; port 0 means a free port. `alive` answers /healthz and `ready` answers /readyz.
        Without `protection` everything is served in plain HTTP, and everybody may read the metrics. Raises OSError if
        the address is in use or cannot be used on this machine."""
        decide, tls = (protection.decide, protection.tls) if protection else (lambda _: ALLOWED, None)
        self._server = _Server(address, _handler(alive, ready, metrics, decide), clock, tls)
        self._thread = threading.Thread(target=self._server.serve_forever, name="probes", daemon=True)

    @property
    def port(self) -> int:
        """The port at which the server listens."""
        port: int = self._server.server_address[1]
        return port

    def start(self) -> None:
        """Begin to answer requests, in a thread of its own."""
        self._thread.start()

    def stop(self) -> None:
        """Accept no more connections, free the port, and wait until the accepting thread has ended. Requests under way
        are not awaited. `start` must have been called: otherwise this waits forever."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _handler(
    alive: Probe, ready: Probe, metrics: CollectorRegistry, decide: Callable[[str], Decision]
) -> type[BaseHTTPRequestHandler]:
    """Return the handler class that answers GET requests for /healthz, /readyz and /metrics, and 404 for any other
    path. Other methods than GET get a 501. A probe that returns a reason is answered with 503 and that reason. A
    request for /metrics that `decide` does not allow is answered with the status and the message of the decision."""

    class Handler(BaseHTTPRequestHandler):
        """Answers the requests of one connection."""

        def do_GET(self) -> None:
            """Answer /healthz, /readyz or /metrics, without regard to a query, and 404 for any other path."""
            match self.path.partition("?")[0]:
                case "/healthz":
                    self._answer_probe(alive())
                case "/readyz":
                    self._answer_probe(ready())
                case "/metrics":
                    decision = decide(self.headers.get("Authorization", ""))
                    if decision.status == 200:
                        self._answer(200, CONTENT_TYPE_LATEST, generate_latest(metrics))
                    else:
                        self._answer(decision.status, _TEXT, f"{decision.message}\n".encode())
                case _:
                    self._answer(404, "text/plain", b"try /healthz, /readyz or /metrics\n")

        def log_message(self, format: str, *args: object) -> None:
            """Log no request, because probes come every few seconds."""

        def _answer_probe(self, why_not: str) -> None:
            """Answer 200, or 503 with the reason in `why_not`."""
            self._answer(503 if why_not else 200, _TEXT, f"{why_not or 'ok'}\n".encode())

        def _answer(self, status: int, kind: str, body: bytes) -> None:
            """Send a whole answer with its type and length. A 401 also names Bearer as the scheme that is accepted."""
            self.send_response(status)
            if status == 401:
                self.send_header("WWW-Authenticate", "Bearer")
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return Handler
