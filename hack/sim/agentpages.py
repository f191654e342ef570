"""The metrics of all agents of SIMULATED nodes on one port, and `Lapse`, a clock for agents that run through hours of
simulated time.

GET /NODE/metrics returns the metrics of a node's agent as long as that agent runs. GET /lapse returns the time of the
agents that run by the SIMULATED clock `Lapse`, in seconds since 1970. Whoever scrapes calls /NODE/seen after each
scrape, because the clock waits for that. After a call to /NODE/lost the metrics of a node are refused with 503, so its
scrapes are lost, until /NODE/found is called.

The clock advances in steps. A step comes when every running agent has made a turn since the last step and its page has
been reported as seen. So a simulated hour has as many turns and scrapes as a real one: it takes less time where the
machine keeps up and more where it does not, and no count depends on the speed of the machine.
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
from gpusharing.agent.metrics import AgentCollector
from gpusharing.agent.usagemetrics import UsageCollector

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
    """A clock that advances in steps, each of which waits for the agents that have joined. Safe to use from several
    threads."""

    def __init__(self) -> None:
        """Create a clock that begins BEFORE seconds in the past, and stands still until the first agent joins."""
        self._lock = threading.Lock()
        self._at = float(int(datetime.now(UTC).timestamp() - BEFORE))
        self._missing: dict[str, frozenset[str]] = {}
        """What must still happen before the next step (`turn`, `seen`), by node."""

    @property
    def at(self) -> float:
        """The simulated time, in seconds since 1970."""
        return self._at

    def join(self, node: str) -> Callable[[], float]:
        """Make every step of the clock wait for the agent of `node`, and return the clock function for that agent. The
        agent must call the function once per turn: it records that the turn has happened, which may advance the
        clock, and returns the simulated time."""
        with self._lock:
            self._missing[node] = _ALL

        def clock() -> float:
            """Record a turn of the agent, and return the simulated time."""
            self._happened(node, "turn")
            return self._at

        return clock

    def leave(self, node: str) -> None:
        """Stop waiting for the agent of `node`, which has ended. The clock advances if it was waiting only for that
        agent and others remain."""
        with self._lock:
            self._missing.pop(node, None)
            self._step()

    def record_scrape(self, node: str) -> None:
        """Record that the page of this node was scraped and its samples were stored. The clock advances if nothing
        else is missing."""
        self._happened(node, "seen")

    def _happened(self, node: str, what: str) -> None:
        """Record that `what` ("turn" or "seen", which means a scrape) has happened for the node, and advance the clock
        if nothing else is missing. Ignored for a node whose agent has not joined."""
        with self._lock:
            if node in self._missing:
                self._missing[node] -= {what}
                self._step()

    def _step(self) -> None:
        """Advance the clock by one step, and expect a new turn and scrape of each agent, if every agent has had both.
        Does nothing otherwise, or while no agent has joined."""
        if self._missing and not any(self._missing.values()):
            self._at += STEP
            self._missing = dict.fromkeys(self._missing, _ALL)


class Pages(Protocol):
    """Something that is notified when agents start and end, such as a server of their metrics."""

    def show(self, node: str, agent: AgentLoop, lapse: Lapse | None = None) -> None:
        """Add the agent of a node, whose counters begin at 0. With `lapse` the agent runs by that simulated clock."""

    def hide(self, node: str) -> None:
        """Remove the agent of a node, because it has ended."""

    def close(self) -> None:
        """Remove all agents, because the simulation ends."""


class AgentPages:
    """An HTTP server with a metrics page for each agent; all agents run in one process, a thousand in large tests."""

    def __init__(self, port: int) -> None:
        """Listen on `port` of the loopback address, and answer in a thread of its own; port 0 takes a free port. Raises
        OSError if the port is in use."""
        self._registries: dict[str, CollectorRegistry] = {}
        self._lapses: dict[str, Lapse] = {}
        self._server = _Server(("127.0.0.1", port), _handler(self._registries, self._lapses, set()))
        self._thread = threading.Thread(target=self._server.serve_forever, name="agent pages", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """The port that the server listens on."""
        port: int = self._server.server_address[1]
        return port

    def show(self, node: str, agent: AgentLoop, lapse: Lapse | None = None) -> None:
        """Serve the metrics of this agent at /NODE/metrics, in place of an earlier agent of the node. With `lapse`
        each sample carries the time of that simulated clock, and /NODE/seen is answered until `hide` is called."""
        registry = CollectorRegistry()
        for collector in (AgentCollector(agent), UsageCollector(agent)):
            registry.register(collector if lapse is None else _Timed(collector, lapse))
        if lapse is not None:
            self._lapses[node] = lapse
        self._registries[node] = registry

    def hide(self, node: str) -> None:
        """Answer /NODE/metrics and /NODE/seen with 404 from now on, because Prometheus finds nothing at the address of
        a deleted pod. After a request for /NODE/lost, /NODE/metrics is still answered with 503. Does nothing for an
        unknown node."""
        self._registries.pop(node, None)
        self._lapses.pop(node, None)

    def close(self) -> None:
        """Stop the server, wait for its thread, and free the port. Call it once."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Timed(Collector):
    """A collector whose samples carry the time of a SIMULATED clock."""

    def __init__(self, collector: Collector, lapse: Lapse) -> None:
        """Wrap `collector`, whose samples get the time of `lapse`."""
        self._collector, self._lapse = collector, lapse

    def collect(self) -> Iterable[Metric]:
        """Yield the collector's metrics, with the clock's present time at every sample."""
        at = self._lapse.at
        for metric in self._collector.collect():
            metric.samples = [sample._replace(timestamp=at) for sample in metric.samples]
            yield metric


class _Server(ThreadingTCPServer):
    """A threaded server. ThreadingHTTPServer is not used, because it resolves its own host name by DNS before it
    listens."""

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 64


def _handler(
    registries: dict[str, CollectorRegistry], lapses: dict[str, Lapse], lost: set[str]
) -> type[BaseHTTPRequestHandler]:
    """Return the class of an AgentPages' request handler. It looks up `registries` and `lapses`, both by node, at each
    request, and keeps the nodes whose metrics are refused with 503 in `lost`."""

    class Handler(BaseHTTPRequestHandler):
        """Answers the requests to an AgentPages."""

        def do_GET(self) -> None:
            """Answer /lapse with the clock's time, empty while no agent runs by the clock, and /NODE/metrics with the
            metrics. /NODE/seen tells the clock that the node was scraped. From /NODE/lost to /NODE/found, both accepted
            for any node, the metrics get 503. The last three answers are empty. 404 for other paths, metrics without an
            agent, and /NODE/seen without a clock."""
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
            """Send a 200 response with this body, as a metrics page."""
            self.send_response(200)
            self.send_header("Content-Type", CONTENT_TYPE_LATEST)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Log nothing: there is a scrape every second."""

    return Handler
