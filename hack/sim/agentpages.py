"""The metrics of all agents of SIMULATED nodes on one port, and `Lapse`, a clock for hours of simulated time.

GET /NODE/metrics, /NODE/lost (scrapes get 503 until /NODE/found), /NODE/seen (after each scrape), and /lapse, the time
of the clock. It steps when every running agent has made a turn and its page was seen, so that a simulated hour has as
many turns and scrapes as a real one whatever the speed of the machine.
"""

import threading
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer
from typing import Protocol

from prometheus_client.core import Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector, CollectorRegistry

from gpusharing.agent.loop import AgentLoop, LoopSettings
from gpusharing.agent.metrics import AgentCollector, UsageCollector

ANNOTATION_LAPSE = "sim.gpusharing.dev/lapse"
"""On a Node: `"true"` makes its agent run by the clock `Lapse`; the samples on its page then carry its times."""
STEP = 30.0
"""Simulated seconds of a step: the usual interval of an agent's readings and of Prometheus' scrapes."""
BEFORE = 6 * 3600.0
"""Real seconds before now at which the clock begins, so that it never shows a time in the future."""
LAPSING = LoopSettings(interval=0.1, hung_after=1e9)
"""Settings of an agent that runs by the clock `Lapse`. It turns as often as the clock can advance, in real seconds. No
reading counts as hung, because the clock may advance by any number of steps during one."""

_ALL = frozenset({"turn", "seen"})


class Lapse:
    """A clock that advances in steps, each of which waits for the agents that have joined."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._at = float(int(datetime.now(UTC).timestamp() - BEFORE))
        self._missing: dict[str, frozenset[str]] = {}
        """What must still happen before the next step (`turn`, `seen`), by node."""

    @property
    def at(self) -> float:
        """The simulated time, in seconds since 1970."""
        return self._at

    def join(self, node: str) -> Callable[[], float]:
        """Make every step wait for the agent of `node`."""
        with self._lock:
            self._missing[node] = _ALL

        def clock() -> float:
            self._happened(node, "turn")
            return self._at

        return clock

    def leave(self, node: str) -> None:
        with self._lock:
            self._missing.pop(node, None)
            self._step()

    def record_scrape(self, node: str) -> None:
        self._happened(node, "seen")

    def _happened(self, node: str, what: str) -> None:
        with self._lock:
            if node in self._missing:
                self._missing[node] -= {what}
                self._step()

    def _step(self) -> None:
        if self._missing and not any(self._missing.values()):
            self._at += STEP
            self._missing = dict.fromkeys(self._missing, _ALL)


class Pages(Protocol):
    """Something that is notified when agents start and end, such as a server of their metrics."""

    def show(self, node: str, agent: AgentLoop, lapse: Lapse | None = None) -> None:
        """Add the agent of a node; with `lapse` it runs by that simulated clock."""

    def hide(self, node: str) -> None:
        """Remove the agent of a node, because it has ended."""

    def close(self) -> None:
        """Remove all agents, because the simulation ends."""


class AgentPages:
    """An HTTP server with a metrics page for each agent; port 0 takes a free port."""

    def __init__(self, port: int) -> None:
        self._registries: dict[str, CollectorRegistry] = {}
        self._lapses: dict[str, Lapse] = {}
        self._server = _Server(("127.0.0.1", port), _handler(self._registries, self._lapses, set()))
        self._thread = threading.Thread(target=self._server.serve_forever, name="agent pages", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        port: int = self._server.server_address[1]
        return port

    def show(self, node: str, agent: AgentLoop, lapse: Lapse | None = None) -> None:
        """Serve the metrics of this agent, in place of an earlier one; with `lapse` at the time of that clock."""
        registry = CollectorRegistry()
        for collector in (AgentCollector(agent), UsageCollector(agent)):
            registry.register(collector if lapse is None else _Timed(collector, lapse))
        if lapse is not None:
            self._lapses[node] = lapse
        self._registries[node] = registry

    def hide(self, node: str) -> None:
        """Answer with 404 from now on, as Prometheus finds nothing at the address of a deleted pod."""
        self._registries.pop(node, None)
        self._lapses.pop(node, None)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Timed(Collector):
    def __init__(self, collector: Collector, lapse: Lapse) -> None:
        self._collector, self._lapse = collector, lapse

    def collect(self) -> Iterable[Metric]:
        """Yield the collector's metrics, with the clock's present time at every sample."""
        at = self._lapse.at
        for metric in self._collector.collect():
            metric.samples = [sample._replace(timestamp=at) for sample in metric.samples]
            yield metric


class _Server(ThreadingTCPServer):
    """ThreadingHTTPServer would look up its own host name in DNS before it listens."""

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 64


def _handler(
    registries: dict[str, CollectorRegistry], lapses: dict[str, Lapse], lost: set[str]
) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            node, _, rest = self.path.lstrip("/").partition("/")
            registry, lapse = registries.get(node), lapses.get(node)
            if node == "lapse":
                self.answer("\n".join(str(lapse.at) for lapse in list(lapses.values())[:1]).encode())
            elif rest == "metrics" and node in lost:
                self.send_error(503)
            elif rest == "metrics" and registry is not None:
                self.answer(generate_latest(registry))
            elif rest in ("lost", "found"):
                (lost.add if rest == "lost" else lost.discard)(node)
                self.answer(b"")
            elif rest == "seen" and lapse is not None:
                lapse.record_scrape(node)
                self.answer(b"")
            else:
                self.send_error(404)

        def answer(self, body: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Type", CONTENT_TYPE_LATEST)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None: ...

    return Handler
