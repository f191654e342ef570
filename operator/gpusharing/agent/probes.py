"""The server of /healthz, /readyz and /metrics, by plain HTTP or TLS. Its threads outlive a stuck event loop."""

import socket
import ssl
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

from gpusharing.agent.access import ALLOWED, Decision

MOST_CONNECTIONS = 16
"""The most connections at a time; the kubelet's probes and a few Prometheus servers need two or three."""
SECONDS = 10.0
"""The longest time for one connection, from its beginning to its end."""

_TEXT = "text/plain; charset=utf-8"
Probe = Callable[[], str]
"""Returns what is wrong, or an empty string if everything is fine."""


class ProbeServer(ThreadingTCPServer):
    """Serves the probes and metrics from `start` to `stop`, at a free port if that is 0.

    When there are too many connections, the oldest one is closed for a new one, so idle ones cannot block it.
    ThreadingHTTPServer does not fit: it looks up its own name in DNS before it listens.
    """

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 64

    def __init__(
        self,
        address: tuple[str, int],
        alive: Probe,
        ready: Probe,
        metrics: CollectorRegistry,
        *,
        tls: ssl.SSLContext | None = None,
        decide: Callable[[str], Decision] = lambda _: ALLOWED,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock, self._tls = clock, tls
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self._lock = threading.Lock()
        self._open: dict[socket.socket, float] = {}
        """When each open connection began, oldest first. A socket is removed before it is closed."""
        super().__init__(address, _handler(alive, ready, metrics, decide))
        self._thread = threading.Thread(target=self.serve_forever, name="probes", daemon=True)

    @property
    def port(self) -> int:
        port: int = self.server_address[1]
        return port

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Accept no more connections and free the port; waits forever without `start`."""
        self.shutdown()
        self.server_close()
        self._thread.join()

    def get_request(self) -> tuple[socket.socket, Any]:
        request, client = super().get_request()
        if self._tls is not None:
            # The handshake takes place in the connection's thread, so that a slow client holds up no other.
            request = self._tls.wrap_socket(request, server_side=True, do_handshake_on_connect=False)
        return request, client

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            while len(self._open) >= MOST_CONNECTIONS:
                self._end(next(iter(self._open)))
            self._open[request] = self._clock()
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        late = self._clock() - SECONDS
        with self._lock:
            for request in [each for each, began in self._open.items() if began < late]:
                self._end(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        # The client went away, its TLS handshake failed, or its connection was shut down.
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)

    def _end(self, request: socket.socket) -> None:
        """Shut a connection down, which makes its thread return. The caller holds the lock."""
        self._open.pop(request, None)
        # SSLSocket.shutdown would take the TLS state away from the thread that reads, so the plain socket's is used.
        with suppress(OSError):
            socket.socket.shutdown(request, socket.SHUT_RDWR)


def _handler(
    alive: Probe, ready: Probe, metrics: CollectorRegistry, decide: Callable[[str], Decision]
) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            match self.path.partition("?")[0]:
                case "/healthz":
                    self._answer_probe(alive())
                case "/readyz":
                    self._answer_probe(ready())
                case "/metrics":
                    status, why_not = decide(self.headers.get("Authorization", ""))
                    if status == 200:
                        self._answer(200, CONTENT_TYPE_LATEST, generate_latest(metrics))
                    else:
                        self._answer(status, _TEXT, f"{why_not}\n".encode())
                case _:
                    self._answer(404, "text/plain", b"try /healthz, /readyz or /metrics\n")

        def log_message(self, format: str, *args: object) -> None:
            """Log no request, because probes come every few seconds."""

        def _answer_probe(self, why_not: str) -> None:
            self._answer(503 if why_not else 200, _TEXT, f"{why_not or 'ok'}\n".encode())

        def _answer(self, status: int, kind: str, body: bytes) -> None:
            self.send_response(status)
            if status == 401:
                self.send_header("WWW-Authenticate", "Bearer")
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return Handler
