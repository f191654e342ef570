"""One rollout through a proxy, with a healthy API server, with refusals, and with slow answers."""

import ssl
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

from hack import launch
from hack.bench.testbed import FULL, LARGE_SLICES, ROLL_FACTOR, SMALL_SLICES, Testbed, open_testbed
from hack.cluster.certs import create_pki
from hack.faultproxy import FaultProxy, PlayedRefusal
from hack.faultproxy.faults import Fault, RandomRefusals, Slow
from hack.figures.page import Cell, Figures

POOL, NODES, AT_ONCE = "faulty", 50, 10
PATIENCE = 900.0
ERRORS = tuple(PlayedRefusal(status) for status in (500, 503, 504))
BUSY = (PlayedRefusal(429, "too many requests", "TooManyRequests", retry_after=1),)


def variants() -> Iterator[tuple[str, Fault | None]]:
    """Yield a title and the fault of each rollout, in order; the first one is undisturbed."""
    yield "healthy", None
    yield "5 % of calls answered with 500, 503 or 504", RandomRefusals(0, "all", share=0.05, answers=ERRORS)
    yield (
        "20 % of calls answered with 429, Retry-After 1 s",
        RandomRefusals(0, "all", share=0.2, answers=BUSY),
    )
    yield "each call takes 1 s longer", Slow(0, "all", seconds=1.0)


def measure(wanted: frozenset[str]) -> Iterator[tuple[str, Figures]]:
    """Yield the figures `faulty`, with a row for each variant. Raises TimeoutError if the nodes cannot be prepared; a
    rollout that does not end within PATIENCE is a row, the last one."""
    with open_testbed(ROLL_FACTOR) as direct:
        pki = create_pki(direct.directory / "tls")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pki.cert("serving"), pki.key("serving"))
        direct.operator.stop()
        with FaultProxy(direct.api.url, direct.api.ca_pem, tls=context) as proxy:
            door = launch.Door(proxy.url, pki.ca.read_text())
            account = launch.operator_account(direct.plane.kubeconfig, direct.directory, door)
            through = replace(direct.operator, environment={**direct.operator.environment, **account})
            with through:
                testbed = replace(direct, operator=through)
                testbed.wait_started()
                yield "faulty", Figures(_rows(testbed, proxy), _how())


def _how() -> str:
    """Return the conditions of the rollouts as a sentence."""
    return f"hardware and the operator's waits run {ROLL_FACTOR:g} times as fast as in reality."


def _rows(testbed: Testbed, proxy: FaultProxy) -> Sequence[Sequence[Cell]]:
    """Create the nodes and return the row of each rollout. Alternates between two MIG layouts, and stops after a
    rollout that did not end."""
    testbed.add_nodes(POOL, NODES)
    testbed.apply_policy(POOL, POOL, {**FULL, "rollout": {"maxUnavailable": AT_ONCE}})
    testbed.wait_ready([POOL], PATIENCE)
    testbed.edit(POOL, SMALL_SLICES)
    testbed.wait_ready([POOL], PATIENCE)
    rows: list[Sequence[Cell]] = []
    healthy = 0
    for number, (title, fault) in enumerate(variants()):
        testbed.wait_silent(at_most=PATIENCE)
        proxy.reset()
        span, result = testbed.span(), "Ready"
        if fault is not None:
            proxy.disturb(fault)
        testbed.edit(POOL, SMALL_SLICES if number % 2 else LARGE_SLICES)
        try:
            testbed.wait_ready([POOL], PATIENCE)
        except TimeoutError:
            result = f"not Ready after {PATIENCE:.0f} s"
        seconds = time.monotonic() - span.begun
        counts, hits = testbed.counts(span), fault.hits if fault is not None else 0
        proxy.reset()
        healthy = healthy or counts.writes
        calls = counts.writes + counts.reads + counts.polls
        rows.append([title, result, seconds, calls, hits, counts.writes - healthy])
        if result != "Ready":
            break
    return rows
