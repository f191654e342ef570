"""The metrics of all agents of SIMULATED nodes on one port: /NODE/metrics, as long as the agent of that node runs.

/lapse is the time of those that have the SIMULATED clock of `lapse.py`, in seconds since 1970; it goes on when
/NODE/seen was asked for each of them. After /NODE/lost was asked, the page of a node is refused, and its scrapes are
lost, until /NODE/found is.
"""

import threading
from collections.abc import Iterable
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer
from typing import Protocol

from prometheus_client.core import Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector, CollectorRegistry

from gpusharing.agent.loop import AgentLoop
from gpusharing.agent.metermetrics import MeterCollector
from gpusharing.agent.metrics import AgentCollector
from gpusharing.agent.usagemetrics import UsageCollector
from hack.sim.lapse import Lapse


class Pages(Protocol):
    """The readers that learn which agents run."""

    def show(self, node: str, agent: AgentLoop, lapse: Lapse | None = None) -> None:
        """The agent of that node runs from now on, with counters that begin at 0, by the clock `lapse` if given."""

    def hide(self, node: str) -> None:
        """It has ended."""

    def close(self) -> None:
        """Nobody runs any more."""


class AgentPages:
    """What Prometheus scrapes where a thousand agents run in one process."""

    def __init__(self, port: int) -> None:
        """Listens on loopback at once; port 0 takes a free one. Raises OSError when it is taken."""
        self._registries: dict[str, CollectorRegistry] = {}
        self._lapses: dict[str, Lapse] = {}
        self._server = _Server(("127.0.0.1", port), _handler(self._registries, self._lapses, set()))
        self._thread = threading.Thread(target=self._server.serve_forever, name="agent pages", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """Where it listens."""
        port: int = self._server.server_address[1]
        return port

    def show(self, node: str, agent: AgentLoop, lapse: Lapse | None = None) -> None:
        """See Pages. With `lapse` each sample has its time."""
        registry = CollectorRegistry()
        for collector in (AgentCollector(agent), UsageCollector(agent), MeterCollector(agent.meter)):
            registry.register(collector if lapse is None else _Timed(collector, lapse))
        if lapse is not None:
            self._lapses[node] = lapse
        self._registries[node] = registry

    def hide(self, node: str) -> None:
        """It has ended: who asks is told 404, as Prometheus finds nobody at the address of a pod that is gone."""
        self._registries.pop(node, None)
        self._lapses.pop(node, None)

    def close(self) -> None:
        """Stop answering and free the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Timed(Collector):
    """What a collector exports, as of a SIMULATED time."""

    def __init__(self, collector: Collector, lapse: Lapse) -> None:
        self._collector, self._lapse = collector, lapse

    def collect(self) -> Iterable[Metric]:
        at = self._lapse.at
        for metric in self._collector.collect():
            metric.samples = [sample._replace(timestamp=at) for sample in metric.samples]
            yield metric

    def describe(self) -> Iterable[Metric]:
        return []


class _Server(ThreadingTCPServer):
    """Not ThreadingHTTPServer: that one asks the DNS for its own name before it listens."""

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 64


def _handler(
    registries: dict[str, CollectorRegistry], lapses: dict[str, Lapse], lost: set[str]
) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            """The page of one node, or the time."""
            node, _, rest = self.path.lstrip("/").partition("/")
            registry, lapse = registries.get(node), lapses.get(node)
            if node == "lapse":
                self.answer("\n".join(str(one.at) for one in list(lapses.values())[:1]).encode())
            elif rest == "metrics" and node in lost:
                self.send_error(503)
            elif rest == "metrics" and registry is not None:
                self.answer(generate_latest(registry))
            elif rest in ("lost", "found"):
                (lost.add if rest == "lost" else lost.discard)(node)
                self.answer(b"")
            elif rest == "seen" and lapse is not None:
                lapse.seen(node)
                self.answer(b"")
            else:
                self.send_error(404)

        def answer(self, body: bytes) -> None:
            """A text."""
            self.send_response(200)
            self.send_header("Content-Type", CONTENT_TYPE_LATEST)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing: scrapes come every second."""

    return Handler
