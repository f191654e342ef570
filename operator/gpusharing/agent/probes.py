"""Serve /healthz, /readyz and /metrics with the standard library, in a thread that outlives a stuck event loop."""

import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer
from typing import Any

from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import CollectorRegistry

MOST_CONNECTIONS = 16
"""The most connections at a time; the kubelet's probes and a few Prometheus servers need two or three."""
SECONDS = 10.0
"""The longest time for one connection, from its beginning to its end."""

Probe = Callable[[], str]
"""Returns what is wrong, or an empty string if everything is fine."""


class _Server(ThreadingTCPServer):
    """A server that a client with idle connections cannot block: when there are too many connections, the oldest one
    is closed for a new one.

    ThreadingHTTPServer does not fit: it looks up its own name in DNS before it listens.
    """

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 64

    def __init__(
        self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler], clock: Callable[[], float]
    ) -> None:
        """Listen at `address`, and answer requests with `handler`. `clock` returns monotonic seconds."""
        self._clock = clock
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self._lock = threading.Lock()
        self._open: dict[socket.socket, float] = {}
        """When each open connection began, oldest first. A socket is removed before it is closed."""
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Shut down the oldest connections as long as MOST_CONNECTIONS are open, then answer this one in its own
        thread."""
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
        """Shut down the connections that are older than SECONDS, whatever they are doing. The server calls this twice
        a second."""
        late = self._clock() - SECONDS
        with self._lock:
            for request in [each for each, began in self._open.items() if began < late]:
                self._end(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print the traceback of an error in a request, unless it is an OSError: then the client went away or its
        connection was closed."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)

    def _end(self, request: socket.socket) -> None:
        """Forget a connection and shut it down. That wakes up its thread, which closes it. The caller must hold the
        lock of this server."""
        self._open.pop(request, None)
        with suppress(OSError):
            request.shutdown(socket.SHUT_RDWR)


class ProbeServer:
    """Serves the probes and metrics from `start` to `stop`."""

    def __init__(
        self,
        address: tuple[str, int],
        alive: Probe,
        ready: Probe,
        metrics: CollectorRegistry,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Listen at `address` at once; port 0 means a free port. `alive` answers /healthz and `ready` answers /readyz.
        Raises OSError if the address is in use."""
        self._server = _Server(address, _handler(alive, ready, metrics), clock)
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
        """Stop answering, free the port, and wait until the thread has ended. `start` must have been called: otherwise
        this waits forever."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _handler(alive: Probe, ready: Probe, metrics: CollectorRegistry) -> type[BaseHTTPRequestHandler]:
    """Return the handler class that answers GET for /healthz, /readyz and /metrics, and 404 for any other path. A
    probe that returns a reason is answered with 503."""

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
                    self._answer(200, CONTENT_TYPE_LATEST, generate_latest(metrics))
                case _:
                    self._answer(404, "text/plain", b"try /healthz, /readyz or /metrics\n")

        def log_message(self, format: str, *args: object) -> None:
            """Log no request, because probes come every few seconds."""

        def _answer_probe(self, why_not: str) -> None:
            """Answer 200, or 503 with the reason in `why_not`."""
            self._answer(
                503 if why_not else 200, "text/plain; charset=utf-8", f"{why_not or 'ok'}\n".encode()
            )

        def _answer(self, status: int, kind: str, body: bytes) -> None:
            """Send a whole answer with its type and length."""
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return Handler
