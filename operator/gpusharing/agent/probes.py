"""/healthz, /readyz and /metrics over the standard library, in a thread that outlives a stuck event loop."""

import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer

from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import CollectorRegistry

Probe = Callable[[], str]
"""Says why not; empty when all is well."""


class _Server(ThreadingTCPServer):
    """Not ThreadingHTTPServer: that one asks the DNS for its own name before it listens."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, handler)


class ProbeServer:
    """Serves from `start` to `stop`."""

    def __init__(
        self, address: tuple[str, int], alive: Probe, ready: Probe, metrics: CollectorRegistry
    ) -> None:
        """Listens at once; port 0 takes a free one. Raises OSError when the address is taken."""
        self._server = _Server(address, _handler(alive, ready, metrics))
        self._thread = threading.Thread(target=self._server.serve_forever, name="probes", daemon=True)

    @property
    def port(self) -> int:
        """Where it listens."""
        port: int = self._server.server_address[1]
        return port

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Stop answering and free the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _handler(alive: Probe, ready: Probe, metrics: CollectorRegistry) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            """Answer one of the three paths."""
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
            """Say nothing: probes come every few seconds."""

        def _answer_probe(self, why_not: str) -> None:
            self._answer(
                503 if why_not else 200, "text/plain; charset=utf-8", f"{why_not or 'ok'}\n".encode()
            )

        def _answer(self, status: int, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return Handler
