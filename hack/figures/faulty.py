"""A rollout of 50 nodes through a proxy: with a healthy API server, with refusals, and with slow answers."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

from hack import launch
from hack.bench.testbed import LARGE_SLICES, ROLL_FACTOR, SMALL_SLICES, Testbed, open_testbed
from hack.cluster.certs import create_pki
from hack.faultproxy import FaultProxy, PlayedRefusal
from hack.faultproxy.faults import Fault, RandomRefusals, Slow
from hack.figures.page import Cell, Figures

POOL, NODES, AT_ONCE = "faulty", 50, 25
PATIENCE = 900.0
ERRORS = tuple(PlayedRefusal(status) for status in (500, 503, 504))
BUSY = (PlayedRefusal(429, "too many requests", "TooManyRequests", retry_after=1),)
FAULTS: Mapping[str, Fault] = {
    "healthy": Fault(0, "all"),
    "5 % of calls answered with 500, 503 or 504": RandomRefusals(0, "all", share=0.05, answers=ERRORS),
    "20 % of calls answered with 429 and Retry-After 1 s": RandomRefusals(0, "all", share=0.2, answers=BUSY),
    "each call takes 1 s longer": Slow(0, "all", seconds=1.0),
}
"""The fault of each rollout, in order; the first one is undisturbed."""


@contextmanager
def _proxied() -> Iterator[tuple[Testbed, FaultProxy]]:
    with open_testbed(ROLL_FACTOR) as direct:
        pki = create_pki(direct.directory / "tls")
        direct.operator.stop()
        with FaultProxy(direct.api.url, direct.api.ca_pem, tls=pki.server_context()) as proxy:
            door = launch.Door(proxy.url, pki.ca.read_text())
            account = launch.operator_account(direct.plane.kubeconfig, direct.directory, door)
            with replace(direct.operator, environment={**direct.operator.environment, **account}) as operator:
                testbed = replace(direct, operator=operator)
                testbed.wait_started()
                yield testbed, proxy


def measure() -> Figures:
    """Roll the pool once with each of FAULTS. After a rollout that does not end, no other is tried."""
    rows: list[list[Cell]] = []
    with _proxied() as (testbed, proxy):
        testbed.add_nodes(POOL, NODES)
        testbed.apply_policy(POOL, POOL, {**SMALL_SLICES, "rollout": {"maxUnavailable": AT_ONCE}})
        testbed.wait_ready([POOL], PATIENCE)
        healthy, result = 0, "Ready"
        for number, (title, fault) in enumerate(FAULTS.items()):
            testbed.wait_silent(at_most=PATIENCE)
            span = testbed.span()
            proxy.disturb(fault)
            testbed.edit(POOL, SMALL_SLICES if number % 2 else LARGE_SLICES)
            try:
                testbed.wait_ready([POOL], PATIENCE)
            except TimeoutError:
                result = f"not Ready after {PATIENCE:.0f} s"
            seconds, counts = time.monotonic() - span.begun, testbed.counts(span)
            proxy.reset()
            healthy = healthy or counts.writes
            calls = counts.writes + counts.reads + counts.polls
            rows.append([title, result, seconds, calls, fault.hits, counts.writes - healthy])
            if result != "Ready":
                break
    return Figures(rows, f"hardware and waits {ROLL_FACTOR:g}x")
