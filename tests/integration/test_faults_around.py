"""What goes wrong around the operator for longer than one write: other operators, clocks, an API server that is ill.
While it lasts and after it, S1 to S9 hold in the log of the run (docs/design/faults.md#around), as in the fault matrix."""

import contextlib
import json
import os
import signal
import ssl
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hack.cluster.controlplane import ControlPlane
from hack.cluster.process import wait_until
from hack.faultproxy import faults
from hack.faultproxy.setclock import SetClock
from tests.faults.oracle import FaultOutcome
from tests.integration.crash import Scenario
from tests.integration.crashscenarios import pods_on_three
from tests.integration.faultruns import LEASE_TIMES, Around, FaultTheatre, Lives, fault_theatre
from tests.integration.faultscenarios import THREE, ready
from tests.integration.product import MIXED, SINGLE, SLICED, Pool, Product

pytestmark = pytest.mark.faults

FULL = os.environ.get("FAULTS") == "full"
KILLING = 600.0 if FULL else 60.0
"""Seconds in which the leader is killed every KILL_EVERY."""
KILL_EVERY = 10.0
KILLS = int(KILLING / KILL_EVERY) - 2
"""At least; it goes on for longer where the other one takes the Lease too late for the next."""
PATIENCE = 240.0
"""Seconds in which the pool gets ready although its operator is killed again and again."""
STOPPED = 20.0
"""Seconds for which the API server stands still: longer than a leader may go without a renewal."""
SLOW = 1.0
"""Seconds that each call takes longer."""
HOUR = 3600
QUICK_LEASE = {f"GPUSHARING_{name}": value for name, value in LEASE_TIMES.items()}
ONE_AT_A_TIME = {"drain": {"strandedPods": "Allow"}, "rollout": {"maxUnavailable": 1}}


def roll(pool: Pool) -> None:
    """The first node has begun; the two others follow one after the other."""
    pool.apply({**SLICED, **ONE_AT_A_TIME})
    pool.wait(lambda: any(map(pool.fence, pool.nodes)), "the first fence")


ROLL = Scenario("roll", roll, ready, THREE, prepare=pods_on_three)
"""Three nodes with a pod each, one after the other."""


@pytest.fixture(scope="module")
def clock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SetClock]:
    with SetClock(tmp_path_factory.mktemp("clock")) as found:
        yield found


@pytest.fixture(scope="module")
def theatre(product: Product, clock: SetClock, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultTheatre]:
    with fault_theatre(product, tmp_path_factory.mktemp("around"), clock.environment) as found:
        yield found


def complaints(theatre: FaultTheatre, run: FaultOutcome, *, faults: int = 1, restarts: int | None = 0) -> list[str]:
    """What the run did that it must not; None: who ended was right to do so."""
    allowed = run.restarts if restarts is None else restarts
    return list(theatre.reference(ROLL).complaints(run, faults=faults, restarts=allowed))


def test_of_two_operators_at_once_one_acts(theatre: FaultTheatre) -> None:
    def both_run(pool: Pool, lives: Lives) -> None:
        assert len(lives.pids) == 2

    run = theatre.watch(ROLL, around=Around(operators=2, then=both_run))
    assert complaints(theatre, run) == []
    assert len({write.door for write in theatre.proxy.writes if write.number}) == 1


@pytest.mark.thorough
def test_the_leader_may_be_killed_every_ten_seconds(theatre: FaultTheatre) -> None:
    """Two operators; who is killed is started again, and the other one takes the Lease when it has run out."""
    killed = []

    def keep_killing(lives: Lives, ended: threading.Event) -> None:
        while not ended.wait(KILL_EVERY):
            with contextlib.suppress(ValueError):  # it has ended by itself in this moment
                if pid := lives.leader():
                    theatre.nursery.strike(pid)
                    killed.append(pid)

    def change_and_change(pool: Pool, lives: Lives) -> None:
        ended = threading.Event()
        killing = threading.Thread(target=keep_killing, args=(lives, ended), daemon=True)
        began, specs = time.monotonic(), (MIXED, SINGLE, SLICED)
        killing.start()
        try:
            while time.monotonic() - began < KILLING or len(killed) < KILLS:
                assert time.monotonic() - began < KILLING + PATIENCE, "nobody leads for long enough to be killed"
                for spec in specs:
                    wait_until(lambda: ready(pool), PATIENCE, "the pool to be ready")
                    pool.apply({**spec, **ONE_AT_A_TIME})
        finally:
            ended.set()
            killing.join()

    changing = replace(ROLL, name="roll-and-roll")
    run = theatre.watch(changing, around=Around(2, QUICK_LEASE, change_and_change, forget=False, alike=False))
    assert run.wrong == ()
    assert run.twice == ()
    assert run.cost.evictions >= len(THREE), "there was somebody to evict"
    assert run.restarts >= len(killed) >= KILLS
    fences = [node["fence"] for node in run.state["nodes"].values()]
    cordons = [node["unschedulable"] for node in run.state["nodes"].values()]
    assert (fences, cordons) == ([{}] * 3, [False] * 3)


@pytest.mark.parametrize("hours", [1, -1])
def test_the_operators_clock_may_be_set_by_an_hour(theatre: FaultTheatre, clock: SetClock, hours: int) -> None:
    def set_it(pool: Pool, lives: Lives) -> None:
        clock.set(hours * HOUR)

    try:
        run = theatre.watch(ROLL, around=Around(then=set_it))
    finally:
        clock.set(0)
    assert complaints(theatre, run) == []


@pytest.mark.parametrize("hours", [1, -1])
def test_the_api_servers_clock_may_be_set_by_an_hour(theatre: FaultTheatre, hours: int) -> None:
    set_later = faults.DateShifted(2, "all", seconds=float(hours * HOUR))
    run = theatre.watch(ROLL, around=Around(fault=lambda: set_later))
    assert complaints(theatre, run) == []
    assert set_later.hits > 0


def test_an_operator_may_start_with_a_wrong_clock(theatre: FaultTheatre, clock: SetClock) -> None:
    """The API server's time is taken over, so that what it writes is not of an hour ago."""

    def start_another(pool: Pool, lives: Lives) -> None:
        clock.set(-HOUR)
        lives.strike()

    try:
        run = theatre.watch(ROLL, around=Around(then=start_another))
    finally:
        clock.set(0)
    assert complaints(theatre, run, restarts=1) == []


def test_the_api_server_may_stand_still(theatre: FaultTheatre, product: Product) -> None:
    """Who leads cannot renew the Lease in time and ends; its successor goes on."""

    def stop(pool: Pool, lives: Lives) -> None:
        pid = product.plane.pids()["kube-apiserver"]
        began = datetime.now(UTC)
        os.kill(pid, signal.SIGSTOP)
        try:
            time.sleep(STOPPED)  # the fault itself
        finally:
            os.kill(pid, signal.SIGCONT)
        product.outages.append((began, datetime.now(UTC) + timedelta(seconds=10)))

    run = theatre.watch(ROLL, around=Around(then=stop, forget=False))
    assert complaints(theatre, run, faults=3, restarts=None) == []
    assert run.restarts >= 1


@pytest.mark.thorough
def test_a_slow_api_server_costs_time_and_not_the_leadership(theatre: FaultTheatre) -> None:
    slow = faults.Slow(0, "all", seconds=SLOW)
    run = theatre.watch(ROLL, around=Around(fault=lambda: slow, patience=240.0))
    assert complaints(theatre, run) == []
    assert run.restarts == 0
    assert slow.hits > 20


def test_the_api_server_may_lose_its_history(theatre: FaultTheatre, product: Product) -> None:
    """etcd is compacted and the API server killed: every watch goes on from a version that it knows no more."""

    def lose(pool: Pool, lives: Lives) -> None:
        began = datetime.now(UTC)
        product.plane.kill_component("kube-apiserver")
        compact(product.plane)
        product.plane.start_component("kube-apiserver")
        product.plane.wait_ready()
        product.outages.append((began, datetime.now(UTC) + timedelta(seconds=10)))

    long_lease = {"GPUSHARING_LEASE_DURATION": "60s", "GPUSHARING_RENEW_DEADLINE": "50s"}
    around = Around(then=lose, environment=long_lease, gaps=True)
    known = theatre.recorder.gaps
    run = theatre.watch(ROLL, around=around)
    assert theatre.recorder.gaps > known, "the recorder's watches are the server's, too"
    assert complaints(theatre, run, faults=3) == []


def compact(plane: ControlPlane) -> None:
    layout = plane.layout
    context = ssl.create_default_context(cafile=str(layout.pki.ca))
    context.load_cert_chain(layout.pki.cert("etcd-client"), layout.pki.key("etcd-client"))

    def ask(path: str, body: object) -> dict[str, dict[str, str]]:
        url = f"{layout.etcd_url}/v3/kv/{path}"
        with urllib.request.urlopen(
            urllib.request.Request(url, json.dumps(body).encode()), context=context, timeout=30
        ) as answer:
            found: dict[str, dict[str, str]] = json.load(answer)
            return found

    newest = ask("range", {"key": "AA=="})["header"]["revision"]
    ask("compaction", {"revision": newest, "physical": True})
