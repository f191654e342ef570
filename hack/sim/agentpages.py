"""The metrics of all agents of SIMULATED nodes on one port: /NODE/metrics, as long as the agent of that node runs."""

import threading
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer

from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import CollectorRegistry

from gpusharing.agent.loop import AgentLoop
from gpusharing.agent.metermetrics import MeterCollector
from gpusharing.agent.metrics import AgentCollector
from gpusharing.agent.usagemetrics import UsageCollector


class AgentPages:
    """What Prometheus scrapes where a thousand agents run in one process."""

    def __init__(self, port: int) -> None:
        """Listens on loopback at once; port 0 takes a free one. Raises OSError when it is taken."""
        self._registries: dict[str, CollectorRegistry] = {}
        self._server = _Server(("127.0.0.1", port), _handler(self._registries))
        self._thread = threading.Thread(target=self._server.serve_forever, name="agent pages", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """Where it listens."""
        port: int = self._server.server_address[1]
        return port

    def show(self, node: str, agent: AgentLoop) -> None:
        """The agent of that node runs from now on, with counters that begin at 0."""
        registry = CollectorRegistry()
        for collector in (AgentCollector(agent), UsageCollector(agent), MeterCollector(agent.meter)):
            registry.register(collector)
        self._registries[node] = registry

    def hide(self, node: str) -> None:
        """It has ended: who asks is told 404, as Prometheus finds nobody at the address of a pod that is gone."""
        self._registries.pop(node, None)

    def close(self) -> None:
        """Stop answering and free the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingTCPServer):
    """Not ThreadingHTTPServer: that one asks the DNS for its own name before it listens."""

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 64


def _handler(registries: dict[str, CollectorRegistry]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            """The page of one node."""
            node, _, rest = self.path.lstrip("/").partition("/")
            registry = registries.get(node) if rest == "metrics" else None
            if registry is None:
                self.send_error(404)
                return
            body = generate_latest(registry)
            self.send_response(200)
            self.send_header("Content-Type", CONTENT_TYPE_LATEST)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing: scrapes come every second."""

    return Handler
