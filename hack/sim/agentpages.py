"""The metrics of all agents of SIMULATED nodes on one port: /NODE/metrics, as long as the agent of that node runs.

/lapse is the time of those that have the SIMULATED clock `Lapse`, in seconds since 1970; it goes on when /NODE/seen was
asked for each of them. After /NODE/lost was asked, the page of a node is refused, and its scrapes are lost, until
/NODE/found is.

That clock goes on in steps, however fast this machine is, for agents that are looked at for hours. A step comes when
every agent that runs has made a turn since the last one, and whoever looks has said that its page was seen as it is
now. So an hour has as many turns and scrapes as one has in life, in less time where the machine keeps up and in more
where it does not, and nothing that is counted depends on which.
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
from gpusharing.agent.metermetrics import MeterCollector
from gpusharing.agent.metrics import AgentCollector
from gpusharing.agent.usagemetrics import UsageCollector

ANNOTATION_LAPSE = "sim.gpusharing.dev/lapse"
"""On a Node: `"true"` gives its agent this clock, and the samples of its page the times of it."""
STEP = 30.0
"""Simulated seconds of a step: as often an agent reads, and Prometheus usually scrapes."""
BEFORE = 6 * 3600.0
"""Real seconds before now at which the clock begins, so that it never tells a time to come."""
LAPSING = LoopSettings(interval=0.1, hung_after=1e9)
"""Of an agent with this clock: it turns as often as the clock can use, in real seconds, and no reading counts as hung,
for while one lasts the clock may go on by any number of steps."""

_ALL = frozenset({"turn", "seen"})


class Lapse:
    """The clock, and what it waits for. Threads may use it."""

    def __init__(self) -> None:
        """It stands until somebody joins."""
        self._lock = threading.Lock()
        self._at = float(int(datetime.now(UTC).timestamp() - BEFORE))
        self._missing: dict[str, frozenset[str]] = {}
        """By node: what has not happened since the last step."""

    @property
    def at(self) -> float:
        """Now, in seconds since 1970."""
        return self._at

    def join(self, node: str) -> Callable[[], float]:
        """An agent begins on that node; its clock. It reads it in every turn."""
        with self._lock:
            self._missing[node] = _ALL

        def clock() -> float:
            self._happened(node, "turn")
            return self._at

        return clock

    def leave(self, node: str) -> None:
        """The agent of that node has ended."""
        with self._lock:
            self._missing.pop(node, None)
            self._step()

    def seen(self, node: str) -> None:
        """Its page was read, and what it told of this moment has arrived."""
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
